//! Runs a client in a pod and says what that cost whom, when others leave the machine alone.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use weft_lab::{Lab, Others, Pod, Process, mount_point};

/// More foreign load than this, and a measurement is thrown away.
const FOREIGN_LIMIT: f64 = 0.06;
/// How often a measurement is repeated for the sake of quiet.
const REPEATS: usize = 3;
/// How long one look at the load of others takes.
const LOOK: Duration = Duration::from_millis(500);
/// How long a whole run waits for others to become quiet.
const PATIENCE: Duration = Duration::from_secs(300);

/// What a measurement gave.
#[derive(Debug)]
pub(crate) struct Measured {
    /// What the client printed.
    pub(crate) report: Value,
    /// Processor seconds of all agents (or of whoever serves the path instead).
    pub(crate) agents_cpu: f64,
    /// Busy seconds of the whole machine.
    pub(crate) machine_busy: f64,
    /// Share of the machine that was used by others.
    pub(crate) foreign: f64,
}

impl Measured {
    /// A number of the client's report.
    pub(crate) fn number(&self, field: &str) -> Result<f64> {
        let value = self.report.get(field).and_then(Value::as_f64);
        value.with_context(|| format!("the client did not report {field}: {}", self.report))
    }
}

/// Measures in one lab.
#[derive(Debug)]
pub(crate) struct Meter {
    cgroup: PathBuf,
    /// How long this run has waited for quiet.
    waited: Cell<Duration>,
}

struct Clocks {
    served: f64,
    machine: f64,
    others: Others,
    at: Instant,
}

impl Meter {
    pub(crate) fn new(lab: &Lab) -> Result<Self> {
        Ok(Self { cgroup: mount_point()?.join(lab.id().cgroup_name()), waited: Cell::new(Duration::ZERO) })
    }

    /// Runs a client in `pod` while the processes of `serving` carry what it sends; repeats it when others
    /// disturbed.
    pub(crate) fn measure(&self, pod: &Pod, serving: &[u32], args: &[&str]) -> Result<Measured> {
        self.wait_for_quiet()?;
        let mut measured = self.measure_once(pod, serving, args)?;
        for _ in 1..REPEATS {
            if measured.foreign <= FOREIGN_LIMIT {
                break;
            }
            self.wait_for_quiet()?;
            measured = self.measure_once(pod, serving, args)?;
        }
        Ok(measured)
    }

    /// Waits until others use little of the machine, or the patience of the whole run is used up.
    fn wait_for_quiet(&self) -> Result<()> {
        while self.waited.get() < PATIENCE {
            let before = self.clocks(&[])?;
            std::thread::sleep(LOOK);
            if foreign(&before, &self.clocks(&[])?)? <= FOREIGN_LIMIT {
                break;
            }
            self.waited.set(self.waited.get() + LOOK);
        }
        Ok(())
    }

    fn measure_once(&self, pod: &Pod, serving: &[u32], args: &[&str]) -> Result<Measured> {
        let before = self.clocks(serving)?;
        let report = pod.peer(args)?;
        let after = self.clocks(serving)?;
        if report.get("error").is_some() {
            bail!("{} {}: {report}", pod.key(), args.join(" "));
        }
        let algorithm = report.get("congestion_control").and_then(Value::as_str).unwrap_or("unknown");
        if algorithm != "cubic" {
            bail!("the sockets use {algorithm}, not cubic: figures would mean nothing");
        }
        Ok(Measured {
            report,
            agents_cpu: after.served - before.served,
            machine_busy: after.machine - before.machine,
            foreign: foreign(&before, &after)?,
        })
    }

    fn clocks(&self, serving: &[u32]) -> Result<Clocks> {
        Ok(Clocks {
            served: serving.iter().map(|pid| weft_lab::cpu_seconds(*pid)).sum::<Result<f64>>()?,
            machine: weft_lab::machine_busy_seconds()?,
            others: Others::look(&self.cgroup)?,
            at: Instant::now(),
        })
    }
}

/// Share of the machine that others used between two looks.
fn foreign(before: &Clocks, after: &Clocks) -> Result<f64> {
    let wall = after.at.duration_since(before.at).as_secs_f64();
    let processors = f64::from(u32::try_from(std::thread::available_parallelism()?.get())?);
    Ok(after.others.since(&before.others) / (wall * processors))
}

/// A process for each processor that keeps it from halting, at the lowest priority.
pub(crate) fn keep_awake(lab: &Lab, binaries: &Path) -> Result<Vec<Process>> {
    let peer = binaries.join("lab-peer");
    let peer = peer.to_str().context("the path of lab-peer is UTF-8")?;
    let count = std::thread::available_parallelism()?.get();
    let spin =
        |_| Process::spawn(lab.outside().place(), "spin", Path::new("chrt"), &["--idle", "0", peer, "spin"]);
    (0..count).map(spin).collect()
}
