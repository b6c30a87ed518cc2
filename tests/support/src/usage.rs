//! Processor time and memory of processes and of the machine.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

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
    status_bytes(pid, "VmRSS:")
}

/// Resident memory that the process has written: what its work makes grow. Pages of its program come and go.
pub fn anonymous_bytes(pid: u32) -> Result<u64> {
    status_bytes(pid, "RssAnon:")
}

/// The most that it ever was.
pub fn peak_resident_bytes(pid: u32) -> Result<u64> {
    status_bytes(pid, "VmHWM:")
}

fn status_bytes(pid: u32, field: &str) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("process {pid} has ended"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)).context("the process has no memory")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib * 1024)
}

/// Resident memory once it no longer changes: allocators give back what they do not need only after a while.
///
/// Waits until three looks, one second apart, differ by less than 1 %, for 30 s at most.
pub fn settled_resident_bytes(pid: u32) -> Result<u64> {
    let mut last = [0, 0, resident_bytes(pid)?];
    for _ in 0..30 {
        std::thread::sleep(Duration::from_secs(1));
        let [_, before, now] = last;
        last = [before, now, resident_bytes(pid)?];
        let (low, high) = (last.iter().min(), last.iter().max());
        if let (Some(low), Some(high)) = (low, high)
            && (high - low) * 100 < *high
        {
            break;
        }
    }
    let [.., settled] = last;
    Ok(settled)
}

/// Processor time of everything on the machine that is not in one cgroup, to be compared with a later look.
///
/// Kernel threads are left out: they work for whoever sends packets. What a process used that ended between
/// two looks is not seen; time that the hypervisor gave to others is.
#[derive(Debug)]
pub struct Others {
    processes: HashMap<u32, f64>,
    stolen: f64,
}

impl Others {
    /// Looks now; `cgroup` and all below it are ours.
    pub fn look(cgroup: &Path) -> Result<Self> {
        let ours = pids_below(cgroup);
        let mut processes = HashMap::new();
        for entry in fs::read_dir("/proc")? {
            let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
                continue;
            };
            if !ours.contains(&pid)
                && pid != std::process::id()
                && let Some(seconds) = process_seconds(pid)
            {
                processes.insert(pid, seconds);
            }
        }
        let stat = fs::read_to_string("/proc/stat")?;
        let stolen = stat.split_ascii_whitespace().nth(8).and_then(|v| v.parse::<f64>().ok()).unwrap_or(0.0);
        Ok(Self { processes, stolen: stolen / 100.0 })
    }

    /// Processor seconds that others used since `before`.
    pub fn since(&self, before: &Self) -> f64 {
        let used = self.processes.iter().map(|(pid, now)| {
            let then = before.processes.get(pid).copied().unwrap_or(0.0);
            (now - then).max(0.0)
        });
        used.sum::<f64>() + self.stolen - before.stolen
    }
}

fn pids_below(cgroup: &Path) -> Vec<u32> {
    let text = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    let mut pids: Vec<u32> = text.lines().filter_map(|line| line.parse().ok()).collect();
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            pids.extend(pids_below(&entry.path()));
        }
    }
    pids
}

/// User and system time of a process with all its threads (ticks of 10 ms); `None` for kernel threads and
/// processes that have ended.
fn process_seconds(pid: u32) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may contain anything, so the fields are counted from its closing parenthesis.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let kernel_thread = 0x0020_0000;
    if fields.get(6)?.parse::<u64>().ok()? & kernel_thread != 0 {
        return None;
    }
    let ticks = |at: usize| fields.get(at)?.parse::<f64>().ok();
    Some((ticks(11)? + ticks(12)?) / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_processor_time_is_seen() {
        let clock = CpuClock::start(&[std::process::id()]).unwrap();
        let mut sum = 0_u64;
        while clock.read().unwrap().ours < 0.02 {
            sum = std::hint::black_box(sum + 1);
        }
        assert!(process_seconds(std::process::id()).unwrap() >= 0.01);
        assert!(resident_bytes(std::process::id()).unwrap() > 100_000);
    }

    #[test]
    fn kernel_threads_are_nobody() {
        // kthreadd
        assert_eq!(process_seconds(2), None);
    }
}
