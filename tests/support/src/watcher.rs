//! A client that tells when the answer of a server changes.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow};
use serde_json::Value;

use crate::lab::Pod;
use crate::process::Process;
use crate::wait::poll_until;

/// Connects without pause, for 170 s at most. Killed when dropped.
#[derive(Debug)]
pub struct Watcher {
    process: Process,
    read: u64,
}

impl Watcher {
    /// Starts in a pod, and connects to `target`, an address with a port.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(client: &Pod, target: &str) -> Result<Self> {
        let args = ["watch", target, "--pause-us", "100", "--seconds", "170", "--timeout-ms", "1000"];
        Ok(Self { process: client.spawn(&args)?, read: 0 })
    }

    /// When connections became `allowed`, or something else, in nanoseconds since 1970.
    ///
    /// # Errors
    /// They did not within `limit`.
    pub fn next(&mut self, allowed: bool, limit: Duration) -> Result<u64> {
        poll_until(limit, || {
            let (text, _) = self.process.stdout_from(self.read)?;
            for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
                self.read += u64::try_from(line.len())?;
                let event: Value = serde_json::from_str(line)?;
                let Some(outcome) = event.get("outcome").and_then(Value::as_str) else { continue };
                if (outcome == "ok") == allowed {
                    return event.get("at_ns").and_then(Value::as_u64).context("an event has a time");
                }
            }
            Err(anyhow!("the answer has not changed to {}", if allowed { "allowed" } else { "refused" }))
        })
    }
}

/// Now, in nanoseconds since 1970.
///
/// # Errors
/// The clock stands before 1970.
pub fn now_ns() -> Result<u64> {
    Ok(u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos())?)
}

/// Milliseconds from one moment to a later one.
pub fn ms_between(from_ns: u64, to_ns: u64) -> f64 {
    Duration::from_nanos(to_ns.saturating_sub(from_ns)).as_secs_f64() * 1e3
}
