//! The tables "L4, same node" and "L4, cross node, mTLS".

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use weft_lab::{AgentOptions, Lab, LabSpec, anonymous_bytes, settled_resident_bytes};

use super::Plan;
use super::bed::{Bed, ECHO, SMALL, Where};
use super::load::TESTS;
use super::report::{Collected, Contender, Family, median_of, percentile};
use super::rows::names;

/// New tunnels for each round of `cross-node.cold-tunnel`.
const COLD_PER_ROUND: usize = 7;
/// Connections that are held before the memory is first looked at, and then.
const HELD: (usize, usize) = (500, 2500);
/// The agents' allocator gives back within a second what it has no use for (`dirty_decay_ms`).
const GIVEN_BACK: Duration = Duration::from_secs(2);

const MEMORY: [(&str, Where); 2] =
    [("same-node.memory-per-conn", Where::SameNode), ("cross-node.memory-per-conn", Where::CrossNode)];

pub(crate) fn measure(plan: &Plan, binaries: &Path, collected: &mut Collected) -> Result<()> {
    if plan.wants("agent.rss-empty")
        && let Err(e) = rss_empty(plan, binaries, collected)
    {
        collected.fail("agent.rss-empty", Family::V4, &e);
    }
    if !names(super::Suite::L4).iter().any(|row| *row != "agent.rss-empty" && plan.wants(row)) {
        return Ok(());
    }
    let cold = if plan.wants("cross-node.cold-tunnel") { plan.rounds * COLD_PER_ROUND } else { 0 };
    let cold: Vec<String> = (0..cold).map(|number| format!("cold-{number}")).collect();
    let bed = Bed::new(binaries, &cold)?;
    // Before anything else has made the agents' memory grow.
    for (row, location) in MEMORY.into_iter().filter(|(row, _)| plan.wants(row)) {
        for _ in 0..plan.rounds {
            match memory_per_connection(&bed, location) {
                Ok(bytes) => collected.add(row, Family::V4, Contender::Weft, bytes),
                Err(e) => collected.fail(row, Family::V4, &e),
            }
        }
    }
    for (round, pods) in (1..=plan.rounds).zip(chunks(&cold, plan.rounds)) {
        eprintln!("l4: round {round} of {}", plan.rounds);
        run_round(&bed, plan, &pods, collected);
    }
    if plan.wants("cross-node.conn-sustained")
        && let Err(e) = sustained(&bed, collected)
    {
        collected.fail("cross-node.conn-sustained", Family::V4, &e);
    }
    Ok(())
}

/// As many parts as there are rounds, also of nothing.
fn chunks(names: &[String], rounds: usize) -> Vec<Vec<String>> {
    let each = names.len() / rounds.max(1);
    (0..rounds).map(|round| names.iter().skip(round * each).take(each).cloned().collect()).collect()
}

fn run_round(bed: &Bed, plan: &Plan, cold: &[String], collected: &mut Collected) {
    for test in TESTS.iter().filter(|test| plan.wants_any(test.rows)) {
        test.run(bed, plan, Family::V4, collected);
        if test.both_families && test.rows.first().is_some_and(|main| plan.wants(main)) {
            test.run(bed, plan, Family::V6, collected);
        }
    }
    if !cold.is_empty() {
        match cold_tunnels(bed, cold) {
            Ok(ms) => collected.add("cross-node.cold-tunnel", Family::V4, Contender::Weft, ms),
            Err(e) => collected.fail("cross-node.cold-tunnel", Family::V4, &e),
        }
    }
}

/// The median time to the first byte from pods to which there is no tunnel yet.
fn cold_tunnels(bed: &Bed, pods: &[String]) -> Result<f64> {
    let times = pods.iter().map(|name| {
        let target = format!("{}:{SMALL}", bed.lab.pod(&format!("mesh/{name}"))?.ipv4());
        bed.measure_first(&target)
    });
    let times: Vec<f64> = times.collect::<Result<_>>()?;
    Ok(percentile(&times, 50))
}

impl Bed {
    /// Time to the first byte in milliseconds. Never repeated: the second time is not the first.
    fn measure_first(&self, target: &str) -> Result<f64> {
        let report = self.client(Contender::Weft)?.peer(&["load", "first", target])?;
        report.get("ms").and_then(Value::as_f64).with_context(|| format!("{target} did not answer: {report}"))
    }
}

/// Memory that one more connection costs the larger agent: its own, and the kernel's for its maps.
fn memory_per_connection(bed: &Bed, location: Where) -> Result<f64> {
    let target = bed.target(Contender::Weft, location, Family::V4, ECHO)?;
    let (few, many) = HELD;
    let first = hold(bed, &target, few)?;
    let before = memory(bed)?;
    let second = hold(bed, &target, many - few)?;
    let after = memory(bed)?;
    drop((first, second));
    let grown = before.iter().zip(&after).map(|(before, after)| after.saturating_sub(*before));
    let grown = grown.max().context("there are agents")?;
    let settled = weft_lab::poll_until(Duration::from_secs(10), || {
        let open: f64 = bed.agent(0)?.metrics()?.value("weft_connections_open", &[]);
        ensure!(open == 0.0, "{open} connections are still open");
        Ok(())
    });
    settled.context("the connections were closed, but the agent still holds some")?;
    Ok(to_f64(grown) / to_f64(u64::try_from(many - few)?))
}

pub(crate) fn to_f64(value: u64) -> f64 {
    // Sizes are far below 2^53.
    #[expect(clippy::cast_precision_loss, reason = "sizes of memory fit")]
    {
        value as f64
    }
}

fn hold(bed: &Bed, target: &str, count: usize) -> Result<weft_lab::Process> {
    let count_text = count.to_string();
    let mut held = bed.client(Contender::Weft)?.spawn(&["hold", target, "--count", &count_text])?;
    let line =
        held.wait_for_line(Duration::from_secs(60), |line| line.contains("held").then(|| line.to_owned()))?;
    let report: Value = serde_json::from_str(&line)?;
    let working = report.get("working").and_then(Value::as_u64).unwrap_or_default();
    if working != u64::try_from(count)? {
        bail!("{working} of {count} connections work: {line}");
    }
    Ok(held)
}

/// Bytes of each agent, with its maps, once what opening the connections took was given back: they are idle.
fn memory(bed: &Bed) -> Result<Vec<u64>> {
    std::thread::sleep(GIVEN_BACK);
    bed.agents.iter().map(|agent| Ok(anonymous_bytes(agent.pid())? + map_bytes(agent.pid())?)).collect()
}

/// Memory of the kernel maps that a process has open, each counted once, as the kernel tells it.
pub(crate) fn map_bytes(pid: u32) -> Result<u64> {
    let mut maps: BTreeMap<String, u64> = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        let text = fs::read_to_string(entry?.path()).unwrap_or_default();
        let field =
            |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(|v| v.trim().to_owned());
        if let (Some(id), Some(bytes)) = (field("map_id:"), field("memlock:")) {
            maps.insert(id, bytes.parse()?);
        }
    }
    Ok(maps.values().sum())
}

/// New connections for 120 s: do ports or memory run out?
fn sustained(bed: &Bed, collected: &mut Collected) -> Result<()> {
    let target = bed.target(Contender::Weft, Where::CrossNode, Family::V4, SMALL)?;
    let report =
        bed.client(Contender::Weft)?.peer(&["load", "conn", &target, "-n", "16", "--seconds", "120"])?;
    let per_second =
        report.get("per_second").and_then(Value::as_array).context("the client counts per second")?;
    let per_second: Vec<f64> = per_second.iter().filter_map(Value::as_f64).take(120).collect();
    let first: f64 = per_second.iter().take(10).sum();
    let last: f64 = per_second.iter().rev().take(10).sum();
    let failed = report.get("failed").and_then(Value::as_u64).unwrap_or_default();
    if failed > 0 {
        bail!("{failed} connections failed: {report}");
    }
    ensure!(first > 0.0, "no connection succeeded: {report}");
    collected.add("cross-node.conn-sustained", Family::V4, Contender::Weft, last / first);
    collected.note(
        "cross-node.conn-sustained",
        format!("one round; median of a second: {}", median_of(&per_second)),
    );
    Ok(())
}

/// Memory of an agent with nothing to do.
fn rss_empty(plan: &Plan, binaries: &Path, collected: &mut Collected) -> Result<()> {
    let lab = Lab::new(&LabSpec::new().node("empty").binaries(binaries.to_owned()))?;
    for _ in 0..plan.rounds {
        let mut agent =
            lab.spawn_agent("empty", &AgentOptions { embedded_ca: true, ..AgentOptions::default() })?;
        agent.wait_ready()?;
        let bytes = settled_resident_bytes(agent.pid())?;
        agent.stop(Duration::from_secs(30))?;
        collected.add("agent.rss-empty", Family::V4, Contender::Weft, to_f64(bytes) / 1e6);
    }
    Ok(())
}
