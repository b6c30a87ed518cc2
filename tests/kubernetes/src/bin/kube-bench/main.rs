//! One agent and a real API server with very many objects: what `cargo xtask bench kube` measures.
//!
//! Prints one JSON object with all samples.
#![forbid(unsafe_code)]

mod api;
mod objects;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use serde_json::json;
use weft_lab::{cpu_seconds, poll_until, settled_resident_bytes};

use world::World;

/// Changes of each round.
const CHANGES: usize = 40;
/// How long changes are made for each sample of the processor's time.
const CHURN: Duration = Duration::from_secs(20);
/// Changes of pods in a second.
const CHURN_RATE: u32 = 100;
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Parser)]
struct Args {
    /// Directory of the programs.
    #[arg(long)]
    binaries: PathBuf,
    #[arg(long, default_value_t = 1)]
    rounds: usize,
    #[arg(long, default_value_t = 100_000)]
    pods: usize,
    #[arg(long, default_value_t = 10_000)]
    services: usize,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::from(2)
        }
    }
}

/// False when the servers are missing.
fn run(args: &Args) -> Result<bool> {
    let Some(world) = World::start(&args.binaries)? else { return Ok(false) };
    world.fill(args.pods, args.services)?;
    let mut resident = Vec::new();
    let mut synced = Vec::new();
    let mut enforced = Vec::new();
    let mut churn = Vec::new();
    let mut requests = Vec::new();
    for round in 1..=args.rounds {
        eprintln!("kube: round {round} of {}", args.rounds);
        let started = Instant::now();
        let mut agent = world.start_agent()?;
        synced.push(started.elapsed().as_secs_f64());
        resident.push(settled_resident_bytes(agent.pid())?);
        enforced.extend(time_changes(&world)?);
        churn.push(time_churn(&world, agent.pid())?);
        let metrics = agent.metrics()?;
        requests.push(metrics.value("weft_config_requests_total", &[]));
        agent.stop(Duration::from_secs(30))?;
        world.lab.clean_up_node("a")?;
    }
    let report = json!({
        "synced_s": synced, "resident_bytes": resident, "enforced_ms": enforced,
        "churn_cores": churn, "requests": requests,
    });
    println!("{report}");
    Ok(true)
}

/// From the API's answer to the first connection with the new answer, in milliseconds.
fn time_changes(world: &World) -> Result<Vec<f64>> {
    let mut watcher = world.watch()?;
    world.set_mode("PERMISSIVE")?;
    watcher.next(true, PATIENCE).context("the pod does not answer")?;
    let mut times = Vec::new();
    for _ in 0..CHANGES / 2 {
        for (mode, allowed) in [("STRICT", false), ("PERMISSIVE", true)] {
            let answered = world.set_mode(mode)?;
            let seen = watcher.next(allowed, PATIENCE).with_context(|| format!("after {mode}"))?;
            times.push(Duration::from_nanos(seen.saturating_sub(answered)).as_secs_f64() * 1e3);
        }
    }
    Ok(times)
}

/// Cores that the agent uses while pods change.
fn time_churn(world: &World, pid: u32) -> Result<f64> {
    // It has dealt with what was before.
    poll_until(Duration::from_secs(60), || {
        let before = cpu_seconds(pid)?;
        std::thread::sleep(Duration::from_millis(500));
        anyhow::ensure!(cpu_seconds(pid)? - before < 0.05, "the agent is busy");
        Ok(())
    })?;
    let (before, began) = (cpu_seconds(pid)?, Instant::now());
    let mut changes = 0;
    while began.elapsed() < CHURN {
        world.change_pod(changes)?;
        changes += 1;
        let due = Duration::from_secs(u64::try_from(changes)?) / CHURN_RATE;
        std::thread::sleep(due.saturating_sub(began.elapsed()));
    }
    let rate = f64::from(u32::try_from(changes)?) / began.elapsed().as_secs_f64();
    let used = (cpu_seconds(pid)? - before) / began.elapsed().as_secs_f64();
    eprintln!("kube: {rate:.0} changes a second cost {used:.4} cores");
    Ok(used)
}
