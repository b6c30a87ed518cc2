//! Processes that run in a cgroup and a network namespace of the lab.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::wait::poll_until;

/// Moves the shell into the cgroup and becomes the program in the namespace; the process id stays.
const PLACE: &str =
    r#"cgroup=$1; netns=$2; shift 2; echo 0 > "$cgroup/cgroup.procs" && exec nsenter --net="$netns" -- "$@""#;

/// Where a process runs.
#[derive(Debug, Clone)]
pub struct Place {
    /// Its cgroup2 directory.
    pub cgroup: PathBuf,
    /// Its network namespace.
    pub netns: PathBuf,
    /// Where its output goes.
    pub logs: PathBuf,
}

/// A running process. Killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Process {
    /// Starts `program` with its output in log files; its standard input is a pipe.
    pub fn spawn(place: &Place, name: &str, program: &Path, args: &[&str]) -> Result<Self> {
        static RUN: AtomicU32 = AtomicU32::new(0);
        let log = format!("{name}-{}", RUN.fetch_add(1, Ordering::Relaxed));
        let stdout = place.logs.join(format!("{log}.out"));
        let stderr = place.logs.join(format!("{log}.err"));
        let child = Command::new("sh")
            .args(["-c", PLACE, "sh"])
            .arg(&place.cgroup)
            .arg(&place.netns)
            .arg(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(File::create(&stdout).with_context(|| format!("{} cannot be written", stdout.display()))?)
            .stderr(File::create(&stderr)?)
            // Ctrl-C at the terminal is for the owner of the lab, who ends its processes in order.
            .process_group(0)
            .spawn()
            .with_context(|| format!("{name} cannot be started"))?;
        Ok(Self { child, name: name.to_owned(), stdout, stderr })
    }

    /// Process id, also of the program itself.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far.
    pub fn stdout(&self) -> String {
        fs::read_to_string(&self.stdout).unwrap_or_default()
    }

    /// What it has printed on standard error so far.
    pub fn stderr(&self) -> String {
        fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    /// What it has printed from byte `from` on, and the position after it.
    pub fn stdout_from(&self, from: u64) -> Result<(String, u64)> {
        let mut file = File::open(&self.stdout)?;
        file.seek(SeekFrom::Start(from))?;
        let mut text = String::new();
        let read = file.read_to_string(&mut text)?;
        Ok((text, from + u64::try_from(read)?))
    }

    /// Writes a line to its standard input.
    pub fn tell(&mut self, line: &str) -> Result<()> {
        let stdin = self.child.stdin.as_mut().context("its standard input was closed")?;
        writeln!(stdin, "{line}").with_context(|| format!("{} does not listen", self.name))
    }

    /// Closes its standard input.
    pub fn close_stdin(&mut self) {
        self.child.stdin = None;
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for a complete line of output that `wanted` accepts.
    pub fn wait_for_line<T>(
        &mut self,
        limit: Duration,
        mut wanted: impl FnMut(&str) -> Option<T>,
    ) -> Result<T> {
        poll_until(limit, || {
            let text = self.stdout();
            let complete = text.rsplit_once('\n').map_or("", |(complete, _)| complete);
            complete
                .lines()
                .find_map(&mut wanted)
                .ok_or_else(|| anyhow!("{}", self.report("did not print it")))
        })
    }

    /// Waits for its end; kills it when it takes longer.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let ended = poll_until(limit, || self.child.try_wait()?.ok_or_else(|| anyhow!("it still runs")));
        if ended.is_err() {
            self.kill();
            bail!("{}", self.report(&format!("did not end within {:.0} s", limit.as_secs_f64())));
        }
        ended
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw).context("a process has an id")?;
        kill_process(pid, signal).with_context(|| format!("{} cannot be signalled", self.name))
    }

    /// SIGKILL, and the end of it.
    pub fn kill(&mut self) {
        // Fails only when it has ended before, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// A message about the process with the end of its output.
    pub fn report(&self, what: &str) -> String {
        format!(
            "{} {what}; its output ends with:\n{}{}",
            self.name,
            tail(&self.stdout()),
            tail(&self.stderr())
        )
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The last lines of a text.
pub(crate) fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(40);
    lines.iter().skip(from).map(|line| format!("    {line}\n")).collect()
}
