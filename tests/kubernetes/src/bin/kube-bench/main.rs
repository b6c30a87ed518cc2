//! One agent, one controller and a real API server with very many objects: what `cargo xtask bench kube` measures.
//!
//! Prints one JSON object with all samples.
#![forbid(unsafe_code)]

mod api;
mod cni;
mod events;
mod objects;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use clap::Parser;
use serde_json::{Value, json};
use weft_lab::{
    Process, cpu_seconds, ms_between, peak_resident_bytes, poll_until, resident_bytes, settled_resident_bytes,
};

use objects::Templates;
use world::{AGENT, CONTROLLER, World};

/// Changes of a policy in each round.
const CHANGES: usize = 40;
/// Times that the pod is taken in, in each round.
const ENROLMENTS: usize = 10;
/// How long events are told for each sample of the processor's time.
const CHURN: Duration = Duration::from_secs(20);
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
    let services = args.pods.div_ceil(objects::PODS_PER_SERVICE);
    let templates = world.fill(args.pods, services)?;
    let mut rounds = Vec::new();
    for round in 1..=args.rounds {
        eprintln!("kube: round {round} of {}", args.rounds);
        rounds.push(measure(&world, &templates, services, round)?);
    }
    println!("{}", Value::from(rounds));
    Ok(true)
}

/// One round. The field names are those that `xtask bench` reads.
fn measure(world: &World, templates: &Templates, services: usize, round: usize) -> Result<Value> {
    let before = world.requests_of(AGENT);
    let started = Instant::now();
    let mut agent = world.start_agent()?;
    let synced_s = started.elapsed().as_secs_f64();
    let mut report = json!({
        "synced_s": synced_s, "sync_cpu_s": cpu_seconds(agent.pid())?,
        "resident": settled_resident_bytes(agent.pid())?, "peak": peak_resident_bytes(agent.pid())?,
        "sync_requests": world.requests_of(AGENT) - before,
        "enforced_ms": time_changes(world)?, "enrol_ms": time_enrolments(world)?, "add_ms": world.add_pods()?,
    });
    // Reading everything takes it long: once is enough.
    let controller = if round == 1 { Some(world.start_controller()?) } else { None };
    let mut told = match &controller {
        Some(controller) => {
            let resident = settled_resident_bytes(controller.pid())?;
            json!({ "controller_resident": resident })
        }
        None => json!({}),
    };
    add(&mut report, &mut told);
    let requests = [AGENT, CONTROLLER].map(|user| world.requests_of(user));
    let pids: Vec<u32> = std::iter::once(agent.pid()).chain(controller.as_ref().map(Process::pid)).collect();
    let (rate, cores) = time_churn(templates, services, &pids)?;
    let after = [AGENT, CONTROLLER].map(|user| world.requests_of(user));
    let made: Vec<usize> = after.iter().zip(requests).map(|(after, before)| after - before).collect();
    let busy_ms = while_telling(templates, services, || time_changes(world))?.1;
    let mut told = json!({
        "rate": rate, "agent_cores": cores.first(), "controller_cores": cores.get(1), "requests_after": made,
        "enforced_busy_ms": busy_ms, "resident_after": resident_bytes(agent.pid())?,
    });
    add(&mut report, &mut told);
    if let Some(controller) = &controller {
        let mut told = json!({ "controller_peak": peak_resident_bytes(controller.pid())? });
        add(&mut report, &mut told);
    }
    drop(controller);
    agent.stop(Duration::from_secs(30))?;
    world.lab.clean_up_node("a")?;
    Ok(report)
}

/// Moves the fields of one object into another one.
fn add(to: &mut Value, from: &mut Value) {
    if let (Some(to), Some(from)) = (to.as_object_mut(), from.as_object_mut()) {
        to.append(from);
    }
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
            times.push(ms_between(answered, seen));
        }
    }
    Ok(times)
}

/// From the API's answer to the label of a namespace to the first connection that its pod refuses, in milliseconds.
fn time_enrolments(world: &World) -> Result<Vec<f64>> {
    let mut watcher = world.watch()?;
    world.set_mode("STRICT")?;
    watcher.next(false, PATIENCE).context("the pod is not strict")?;
    let mut times = Vec::new();
    for _ in 0..ENROLMENTS {
        world.set_member(false)?;
        watcher.next(true, PATIENCE).context("the pod is taken out")?;
        let answered = world.set_member(true)?;
        let seen = watcher.next(false, PATIENCE).context("the pod is taken in")?;
        times.push(ms_between(answered, seen));
    }
    Ok(times)
}

/// Does something while a large cluster's events are told; also how many changes of pods per second there were.
fn while_telling<T>(
    templates: &Templates,
    services: usize,
    work: impl FnOnce() -> Result<T>,
) -> Result<(f64, T)> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let telling = scope.spawn(|| events::run(templates, services, &stop));
        let done = work();
        stop.store(true, Ordering::Relaxed);
        let rate = telling.join().map_err(|_| anyhow!("the events ended in a panic"))??;
        Ok((rate, done?))
    })
}

/// Changes of pods per second, and the cores that each process uses while a large cluster's events are told.
fn time_churn(templates: &Templates, services: usize, pids: &[u32]) -> Result<(f64, Vec<f64>)> {
    let used = || pids.iter().map(|pid| cpu_seconds(*pid)).collect::<Result<Vec<_>>>();
    // They have dealt with what was before.
    poll_until(Duration::from_secs(60), || {
        let before: f64 = used()?.iter().sum();
        std::thread::sleep(Duration::from_millis(500));
        ensure!(used()?.iter().sum::<f64>() - before < 0.05, "they are busy");
        Ok(())
    })?;
    let (rate, cores) = while_telling(templates, services, || {
        let (before, began) = (used()?, Instant::now());
        std::thread::sleep(CHURN);
        let after = used()?;
        let cores =
            after.iter().zip(&before).map(|(after, before)| (after - before) / began.elapsed().as_secs_f64());
        Ok(cores.collect())
    })?;
    Ok((rate, cores))
}
