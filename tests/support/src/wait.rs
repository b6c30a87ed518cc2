//! Waiting for conditions instead of for time.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

/// How long to rest between two looks at a condition.
const REST: Duration = Duration::from_millis(5);

/// Calls `condition` until it gives a value, for `limit` at most. The last refusal becomes the error.
pub fn poll_until<T>(limit: Duration, mut condition: impl FnMut() -> Result<T>) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        match condition() {
            Ok(value) => return Ok(value),
            Err(refusal) if Instant::now() >= end => {
                return Err(refusal.context(format!("still so after {:.1} s", limit.as_secs_f64())));
            }
            Err(_) => std::thread::sleep(REST),
        }
    }
}

/// Waits until `condition` is true; `what` says in words what was awaited.
pub fn eventually(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
    poll_until(limit, || if condition() { Ok(()) } else { Err(anyhow!("not true: {what}")) })
}
