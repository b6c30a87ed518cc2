//! The table "Change, start, restart".

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weft_lab::{AgentOptions, Lab, LabSpec, PodSpec, Watcher, ms_between, now_ns, poll_until};

use super::bed::{Bed, ECHO, SMALL, Where};
use super::l4::{map_bytes, to_f64};
use super::report::{Collected, Contender, Family, percentile};
use super::{Plan, scale, succession};

/// Changes of each round: so many that the p99 of three rounds means something.
const CHANGES: usize = 40;
const PODS: usize = 250;
const PATIENCE: Duration = Duration::from_secs(10);

const DENY: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: deny-client
  namespace: mesh
spec:
  action: DENY
  rules:
  - from:
    - source:
        principals: [\"cluster.local/ns/mesh/sa/client\"]
";

pub(crate) const STRICT: &str = "\
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata:
  name: default
  namespace: mesh
spec:
  mtls:
    mode: STRICT
";

pub(crate) fn measure(plan: &Plan, binaries: &Path, collected: &mut Collected) -> Result<()> {
    if plan.wants_any(&["change.enforced-p50", "change.enforced-p99", "change.deny-cuts"]) {
        let bed = Bed::new(binaries, &[])?;
        for round in 1..=plan.rounds {
            eprintln!("change: round {round} of {}", plan.rounds);
            if plan.wants_any(&["change.enforced-p50", "change.enforced-p99"])
                && let Err(e) = enforced(&bed, plan, collected)
            {
                collected.fail("change.enforced-p50", Family::V4, &e);
                collected.fail("change.enforced-p99", Family::V4, &e);
            }
            if plan.wants("change.deny-cuts") {
                note(collected, "change.deny-cuts", deny_cuts(&bed));
            }
        }
    }
    for _ in 0..plan.rounds {
        if plan.wants("change.start-empty") {
            note(collected, "change.start-empty", start_empty(binaries));
        }
        if plan.wants("change.start-100k") {
            note(collected, "change.start-100k", scale::start_full(binaries));
        }
    }
    if plan.wants("change.enrol-250") {
        note_all(collected, "change.enrol-250", enrol_many(plan, binaries));
    }
    succession::measure(plan, binaries, collected)
}

fn note(collected: &mut Collected, row: &'static str, value: Result<f64>) {
    note_all(collected, row, value.map(|value| vec![value]));
}

fn note_all(collected: &mut Collected, row: &'static str, values: Result<Vec<f64>>) {
    match values {
        Ok(values) => values.iter().for_each(|value| collected.add(row, Family::V4, Contender::Weft, *value)),
        Err(e) => collected.fail(row, Family::V4, &e),
    }
}

/// From the rename of a file to the first connection with the new answer.
fn enforced(bed: &Bed, plan: &Plan, collected: &mut Collected) -> Result<()> {
    let target = bed.target(Contender::Weft, Where::CrossNode, Family::V4, SMALL)?;
    let mut watcher = Watcher::start(bed.client(Contender::Weft)?, &target)?;
    watcher.next(true, PATIENCE).context("the path does not work before the change")?;
    let mut times = Vec::new();
    for _ in 0..CHANGES / 2 {
        bed.lab.config().stage("deny.yaml", DENY)?;
        let from = now_ns()?;
        bed.lab.config().publish("deny.yaml")?;
        times.push(ms_between(from, watcher.next(false, PATIENCE)?));
        let from = now_ns()?;
        bed.lab.config().remove("deny.yaml")?;
        times.push(ms_between(from, watcher.next(true, PATIENCE)?));
    }
    for (row, percent) in [("change.enforced-p50", 50), ("change.enforced-p99", 99)] {
        if plan.wants(row) {
            collected.add(row, Family::V4, Contender::Weft, percentile(&times, percent));
        }
    }
    Ok(())
}

/// From the rename of a file to the end of the last of two established connections: proxied and direct.
fn deny_cuts(bed: &Bed) -> Result<f64> {
    let client = bed.client(Contender::Weft)?;
    let mut held = Vec::new();
    for location in [Where::SameNode, Where::CrossNode] {
        let target = bed.target(Contender::Weft, location, Family::V4, ECHO)?;
        let mut process = client.spawn(&["connect", &target, "--hold"])?;
        process.wait_for_line(PATIENCE, |line| line.contains("established").then_some(()))?;
        held.push(process);
    }
    bed.lab.config().stage("deny.yaml", DENY)?;
    let from = now_ns()?;
    bed.lab.config().publish("deny.yaml")?;
    let ended = held.iter_mut().map(|process| {
        let line = process.wait_for_line(PATIENCE, |line| line.contains("ended").then(|| line.to_owned()))?;
        let event: Value = serde_json::from_str(&line)?;
        let at = event.get("at_ns").and_then(Value::as_u64).context("an event has a time")?;
        Ok(ms_between(from, at))
    });
    let ended: Result<Vec<f64>> = ended.collect();
    bed.lab.config().remove("deny.yaml")?;
    let target = bed.target(Contender::Weft, Where::CrossNode, Family::V4, SMALL)?;
    poll_until(PATIENCE, || {
        let report = client.peer(&["load", "first", &target])?;
        ensure!(report.get("ms").is_some(), "still denied: {report}");
        Ok(())
    })?;
    Ok(ended?.into_iter().fold(0.0, f64::max))
}

/// From the start of the program to the first connection that it refuses: plaintext to a STRICT pod.
fn start_empty(binaries: &Path) -> Result<f64> {
    let spec = LabSpec::new().node("a").binaries(binaries.to_owned());
    let lab = Lab::new(&spec.pod(PodSpec::new("a", "mesh", "server")))?;
    lab.config().namespace("mesh", &[("weft.dev/mesh", "enabled")])?;
    lab.config().write("strict.yaml", STRICT)?;
    Ok(start_to_enforced(&lab, PATIENCE, false)?.ms)
}

/// How an agent came up.
pub(crate) struct Started {
    /// From the start of the program to the first refusal.
    pub(crate) ms: f64,
    /// What it used until then, and for a moment after.
    pub(crate) cpu_seconds: f64,
    /// Its memory when it had settled; 0 when that was not asked for.
    pub(crate) rss_mb: f64,
    /// Memory of its kernel maps.
    pub(crate) maps_mb: f64,
}

/// Starts the agent of node a while a client from outside connects to pod `mesh/server`. `weigh` waits for its
/// memory to settle.
pub(crate) fn start_to_enforced(lab: &Lab, limit: Duration, weigh: bool) -> Result<Started> {
    let server = lab.pod("mesh/server")?;
    let _server = server.serve(&[&format!("small:{SMALL}")])?;
    let mut watcher = Watcher::start(lab.outside(), &format!("{}:{SMALL}", server.ipv4()))?;
    watcher.next(true, PATIENCE).context("the pod does not answer before the agent is there")?;
    let from = now_ns()?;
    let options = AgentOptions { embedded_ca: true, ..AgentOptions::default() };
    let mut agent = lab.spawn_agent("a", &options)?;
    let refused = watcher.next(false, limit).with_context(|| agent.process().report("does not enforce"))?;
    agent.wait_ready()?;
    let cpu_seconds = weft_lab::cpu_seconds(agent.pid())?;
    let maps_mb = to_f64(map_bytes(agent.pid())?) / 1e6;
    let rss_mb = if weigh { to_f64(weft_lab::settled_resident_bytes(agent.pid())?) / 1e6 } else { 0.0 };
    agent.stop(Duration::from_secs(30))?;
    // Otherwise the kernel goes on to refuse what nobody can decide about.
    lab.clean_up_node("a")?;
    Ok(Started { ms: ms_between(from, refused), cpu_seconds, rss_mb, maps_mb })
}

/// From the rename of the Namespace's file to the enrolment of its 250 running pods.
fn enrol_many(plan: &Plan, binaries: &Path) -> Result<Vec<f64>> {
    let spec = LabSpec::new().node("a").binaries(binaries.to_owned());
    let pods = (0..PODS).map(|number| PodSpec::new("a", "many", &format!("pod-{number}")));
    let lab = Lab::new(&pods.fold(spec, LabSpec::pod))?;
    lab.config().namespace("many", &[])?;
    let mut agent = lab.spawn_agent("a", &AgentOptions { embedded_ca: true, ..AgentOptions::default() })?;
    agent.wait_ready()?;
    let wait_for = |count: f64| {
        poll_until(Duration::from_secs(60), || {
            let enrolled = agent.metrics()?.value("weft_workloads", &[("state", "enrolled")]);
            ensure!((enrolled - count).abs() < 0.5, "{enrolled} pods are enrolled, not {count}");
            Ok(())
        })
    };
    let mut times = Vec::new();
    for _ in 0..plan.rounds {
        let started = Instant::now();
        lab.config().namespace("many", &[("weft.dev/mesh", "enabled")])?;
        wait_for(250.0)?;
        times.push(started.elapsed().as_secs_f64() * 1e3);
        lab.config().namespace("many", &[])?;
        wait_for(0.0)?;
    }
    Ok(times)
}
