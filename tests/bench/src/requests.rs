//! Requests through the proxy in one process, of which a profiler counts instructions and allocations.
#![forbid(unsafe_code)]

use clap::{Parser, ValueEnum};
use weft_proxy::testing::{Between, requests};

#[derive(Debug, Parser)]
#[command(about = "Sends requests through the proxy in this process")]
struct Args {
    /// How many requests.
    #[arg(long)]
    requests: usize,
    /// What stands between client and application.
    #[arg(long, default_value = "rules")]
    between: What,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum What {
    /// What the measurement itself costs.
    Nothing,
    Mesh,
    /// Routing, one ALLOW and one DENY policy.
    Rules,
    TenRulesAndLog,
}

fn main() {
    let args = Args::parse();
    let between = match args.between {
        What::Nothing => Between::Nothing,
        What::Mesh => Between::Mesh,
        What::Rules => Between::Rules,
        What::TenRulesAndLog => Between::TenRulesAndLog,
    };
    requests(args.requests, between);
}
