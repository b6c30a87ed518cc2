//! Many connections held open.

use std::io::{BufRead, Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use anyhow::Result;
use clap::Args;
use serde_json::json;

use crate::dial::{DialArgs, plain};

#[derive(Debug, Args)]
pub(crate) struct HoldArgs {
    #[command(flatten)]
    dial: DialArgs,
    /// How many connections.
    #[arg(long, default_value_t = 100)]
    count: usize,
}

/// Opens the connections (to an echo server), says so, and obeys lines of standard input.
pub(crate) fn run(args: &HoldArgs) -> Result<()> {
    let started = Instant::now();
    let mut streams = Vec::with_capacity(args.count);
    let mut failures = Vec::new();
    for _ in 0..args.count {
        match args.dial.dial() {
            Ok(stream) => streams.push(stream),
            Err(e) => failures.push(e.to_string()),
        }
    }
    let working = check(&mut streams);
    let local = streams.first().and_then(|s| s.local_addr().ok()).map(|a| plain(a).to_string());
    failures.truncate(3);
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{}",
        json!({ "event": "held", "connections": streams.len(), "working": working, "failures": failures,
                "local": local, "seconds": seconds })
    );
    for line in std::io::stdin().lock().lines() {
        if line? == "check" {
            println!("{}", json!({ "event": "checked", "working": check(&mut streams) }));
        }
    }
    Ok(())
}

/// How many connections still carry a byte there and back.
fn check(streams: &mut [TcpStream]) -> usize {
    let speak = |stream: &mut TcpStream| stream.write_all(b"c").and_then(|()| stream.read_exact(&mut [0]));
    streams.iter_mut().map(|stream| usize::from(speak(stream).is_ok())).sum()
}
