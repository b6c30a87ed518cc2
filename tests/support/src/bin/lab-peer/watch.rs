//! New connections without pause: when does the answer change?

use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use serde_json::json;

use crate::client::{now_ns, one_byte};
use crate::dial::{DialArgs, outcome_of};

#[derive(Debug, Args)]
pub(crate) struct WatchArgs {
    #[command(flatten)]
    dial: DialArgs,
    /// Pause between two connections in microseconds.
    #[arg(long, default_value_t = 200)]
    pause_us: u64,
    /// End after so many seconds.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
}

/// Prints a line for the first connection and for every one whose outcome differs from the one before.
pub(crate) fn run(args: &WatchArgs) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(args.seconds);
    let mut last = "";
    let mut attempts = 0_u64;
    while Instant::now() < end {
        let begun_ns = now_ns();
        let outcome = one_byte(&args.dial).map_or_else(|e| outcome_of(&e), |()| "ok");
        attempts += 1;
        if outcome != last {
            let line =
                json!({ "outcome": outcome, "begun_ns": begun_ns, "at_ns": now_ns(), "attempts": attempts });
            println!("{line}");
            last = outcome;
        }
        std::thread::sleep(Duration::from_micros(args.pause_us));
    }
    println!("{}", json!({ "event": "end", "attempts": attempts }));
    Ok(())
}
