//! Processor time and memory of processes and of the machine.

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result};

/// What a process used between two looks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Usage {
    /// Processor seconds of the watched processes, kernel time included.
    pub ours: f64,
    /// Busy seconds of all processors, interrupts included.
    pub machine: f64,
    /// Wall-clock seconds.
    pub wall: f64,
}

/// A look at the clocks, to be compared with a later one.
#[derive(Debug)]
pub struct CpuClock {
    pids: Vec<u32>,
    ours: f64,
    machine: f64,
    at: Instant,
}

impl CpuClock {
    /// Starts to watch these processes.
    pub fn start(pids: &[u32]) -> Result<Self> {
        let ours = pids.iter().map(|pid| cpu_seconds(*pid)).sum::<Result<f64>>()?;
        Ok(Self { pids: pids.to_vec(), ours, machine: machine_busy_seconds()?, at: Instant::now() })
    }

    /// What was used since the start.
    pub fn read(&self) -> Result<Usage> {
        let ours = self.pids.iter().map(|pid| cpu_seconds(*pid)).sum::<Result<f64>>()?;
        let machine = machine_busy_seconds()?;
        Ok(Usage {
            ours: ours - self.ours,
            machine: machine - self.machine,
            wall: self.at.elapsed().as_secs_f64(),
        })
    }
}

/// Processor seconds of all threads of a process, to the nanosecond (`schedstat`).
///
/// Time of threads that have ended is not in it: measure processes whose threads stay.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    let mut nanoseconds = 0.0;
    for thread in
        fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("process {pid} has ended"))?
    {
        // A thread may end between the listing and the look.
        let text = fs::read_to_string(thread?.path().join("schedstat")).unwrap_or_default();
        nanoseconds += text.split(' ').next().and_then(|v| v.parse::<f64>().ok()).unwrap_or(0.0);
    }
    Ok(nanoseconds / 1e9)
}

/// Seconds that the processors were not idle since boot, summed (ticks of 10 ms).
pub fn machine_busy_seconds() -> Result<f64> {
    let text = fs::read_to_string("/proc/stat")?;
    let line = text.lines().next().context("/proc/stat is empty")?;
    let ticks: Vec<f64> = line.split_ascii_whitespace().skip(1).filter_map(|v| v.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal; guest time is part of user.
    let idle: f64 = ticks.iter().skip(3).take(2).sum();
    let all: f64 = ticks.iter().take(8).sum();
    Ok((all - idle) / 100.0)
}

/// Resident memory of a process in bytes.
pub fn resident_bytes(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("process {pid} has ended"))?;
    let line =
        text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("the process has no memory")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib * 1024)
}
