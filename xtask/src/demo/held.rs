//! The demo as its user has it, for `cargo xtask test`: all steps, the commands that it shows, and nothing left after
//! Ctrl-C.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::build::target_dir;
use crate::test::Counts;

/// For all steps, with a build for tests.
const STEPS: Duration = Duration::from_secs(300);
/// For the end, with everything that has to be removed.
const END: Duration = Duration::from_secs(60);
/// Begins the last line that is printed.
const LAST: &str = "  same node, by Service";

/// Plays the demo with what was built for tests, and does what it shows.
///
/// # Errors
/// A step or a command did not work, or something was left behind.
pub(crate) fn stage() -> Result<Counts> {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED the demo: it needs root");
        return Ok(Counts { skipped: 1, ..Counts::default() });
    }
    let mut demo = Held::start(&target_dir()?.join("debug"))?;
    let said = demo.all_said()?;
    println!("{said}");
    ensure!(said.contains(" passed, 0 failed\n"), "not every step went as expected");
    let word_after = |what: &str| said.lines().find_map(|line| Some(line.split_once(what)?.1.trim()));
    let shell = word_after("  a shell in a pod    sh ")
        .and_then(|rest| rest.split(' ').next())
        .context("no shell is shown")?;
    for (_, command) in said.lines().filter_map(|line| line.split_once("bash -c '")) {
        let command = command.trim_end_matches('\'');
        let answer = weft_lab::output("sh", &[shell, "shop/frontend", "bash", "-c", command])?;
        ensure!(answer.contains("\"peer\":\"10."), "`{command}` from shop/frontend: {answer}");
    }
    for agent in ["ask agent a", "ask agent b"] {
        let words: Vec<&str> = word_after(agent).context("no question is shown")?.split(' ').collect();
        let (program, args) = words.split_first().context("the question has no words")?;
        let answer = weft_lab::output(program, args)?;
        ensure!(answer.contains("shop/") && answer.contains("enrolled"), "{agent}: {answer}");
    }
    demo.interrupt()?;
    let lab = Path::new(shell).parent().context("the shell is in no directory")?;
    ensure!(!lab.exists(), "{} is left behind", lab.display());
    Ok(Counts { passed: 1, ..Counts::default() })
}

/// A demo that runs; interrupted when dropped.
struct Held {
    child: Child,
    lines: Receiver<String>,
}

impl Held {
    fn start(binaries: &Path) -> Result<Self> {
        // Not our own program: that was linked anew when the tests were built.
        let mut child = Command::new(binaries.join("xtask"))
            .args(["demo", "--hold", "--binaries"])
            .arg(binaries)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("the demo cannot be started")?;
        let output = child.stdout.take().context("the output was asked for")?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            // Ends with the demo, or when nobody wants to know.
            BufReader::new(output).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Ok(Self { child, lines })
    }

    /// All that it says before it waits.
    fn all_said(&self) -> Result<String> {
        let (begun, mut said) = (Instant::now(), String::new());
        loop {
            let line = self.lines.recv_timeout(STEPS.saturating_sub(begun.elapsed()));
            let line = line.with_context(|| format!("the demo has not come to its end:\n{said}"))?;
            said.push_str(&line);
            said.push('\n');
            if line.starts_with(LAST) {
                return Ok(said);
            }
        }
    }

    /// Ctrl-C, and the end.
    fn interrupt(&mut self) -> Result<()> {
        let pid =
            i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("a process has an id")?;
        kill_process(pid, Signal::INT).context("the demo cannot be interrupted")?;
        weft_lab::eventually(END, "the demo has ended", || matches!(self.child.try_wait(), Ok(Some(_))))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None))
            && let Err(error) = self.interrupt()
        {
            println!("{error:#}");
            // Its labs are removed by their janitors.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
