//! The plugin as the container runtime calls it.
#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::process::ExitCode;

use weft_cni::plugin::{Environment, run};

/// Longest configuration: the runtime writes some kilobytes.
const CONFIG_LIMIT: u64 = 4 << 20;

fn main() -> ExitCode {
    let mut config = Vec::new();
    // What cannot be read is no valid configuration, which is said below.
    let _ = std::io::stdin().lock().take(CONFIG_LIMIT).read_to_end(&mut config);
    let reply = run(&Environment::of_process(), &config);
    // Nobody else can be told when the runtime does not listen.
    let _ = std::io::stdout().lock().write_all(reply.output.as_bytes());
    if reply.success { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
