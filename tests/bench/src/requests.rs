//! Requests through the proxy in one process, of which a profiler counts instructions and allocations.
#![forbid(unsafe_code)]

use clap::Parser;

#[derive(Debug, Parser)]
#[command(about = "Sends requests through the proxy in this process")]
struct Args {
    /// How many requests.
    #[arg(long)]
    requests: usize,
    /// Straight to the application: what the measurement itself costs.
    #[arg(long)]
    direct: bool,
}

fn main() {
    let Args { requests, direct } = Args::parse();
    weft_proxy::testing::requests(requests, !direct);
}
