//! The `weft` binary: node agent, controller and command line.
//!
//! Everything that could be a library is one; here stand the wiring, the settings and what people read.
#![forbid(unsafe_code)]

mod agent;
mod cli;
mod config;
mod controller;
mod dump;
mod explain;
mod logging;
mod memory;
mod output;
mod shutdown;
mod view;

use std::process::ExitCode;

/// The agent allocates and frees buffers of many sizes on several threads; jemalloc returns what it no longer
/// needs, which the default allocator does not.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    cli::main()
}
