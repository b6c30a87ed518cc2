//! The table "State and policy at scale": 100,000 pods, 10,000 Services, 10,000 policies in one namespace.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use weft_lab::{Lab, LabSpec, PodSpec};

use super::change::{STRICT, Started, start_to_enforced};
use super::report::{Collected, Contender, Family};
use super::{Plan, standing};
use crate::build::cargo;

const PODS: usize = 100_000;
const SERVICES: usize = 10_000;
const POLICIES: usize = 10_000;
/// Pods of one service account, and of one Service.
const PODS_PER_SERVICE: usize = PODS / SERVICES;
const NAMESPACES: usize = 100;

pub(crate) fn measure(plan: &Plan, binaries: &Path, collected: &mut Collected) -> Result<()> {
    let rows = [LAYERS[0].time, LAYERS[1].time, GROWTH];
    if plan.wants_any(&rows)
        && let Err(e) = decisions(plan, binaries, collected)
    {
        for row in rows.into_iter().filter(|row| plan.wants(row)) {
            collected.fail(row, Family::V4, &e);
        }
    }
    let rows = ["scale.rss", "scale.full-sync"];
    if plan.wants_any(&rows)
        && let Err(e) = full_sync(plan, binaries, collected)
    {
        for row in rows.into_iter().filter(|row| plan.wants(row)) {
            collected.fail(row, Family::V4, &e);
        }
    }
    let rows = [standing::IDLE, standing::UPDATE, standing::CHURN];
    if plan.wants_any(&rows)
        && let Err(e) = full_lab(binaries).and_then(|lab| standing::measure(plan, &lab, collected))
    {
        for row in rows.into_iter().filter(|row| plan.wants(row)) {
            collected.fail(row, Family::V4, &e);
        }
    }
    Ok(())
}

/// What decisions are about.
struct Layer {
    time: &'static str,
    policy: fn(usize) -> Value,
    args: &'static [&'static str],
}

/// The larger one of both layers'.
const GROWTH: &str = "scale.decision-growth";
/// How often each number of policies is looked at for it.
const LOOKS: usize = 5;

const LAYERS: [Layer; 2] = [
    Layer { time: "scale.l4-decision", policy, args: &[] },
    Layer { time: "scale.l7-decision", policy: policy_of_requests, args: &["--requests"] },
];

fn service_account(number: usize) -> String {
    format!("sa-{}", number / PODS_PER_SERVICE)
}

/// A pod as a Deployment has it.
fn pod(number: usize) -> Value {
    let service = number / PODS_PER_SERVICE;
    let v4 = format!("10.{}.{}.{}", 128 + number / 62_500, number / 250 % 250, number % 250 + 1);
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": format!("pod-{number}"), "namespace": format!("ns-{}", service % NAMESPACES),
                      "labels": { "app": format!("app-{service}"), "version": "v1" },
                      "ownerReferences": [{ "kind": "ReplicaSet", "name": format!("app-{service}-5d4f8c7b9d"), "controller": true }] },
        "spec": { "nodeName": format!("node-{}", number % 1000), "serviceAccountName": service_account(number) },
        "status": { "phase": "Running", "podIPs": [{ "ip": v4 }, { "ip": format!("fd00:1::{:x}:{:x}", number / 60_000, number % 60_000 + 1) }],
                    "conditions": [{ "type": "Ready", "status": "True" }] },
    })
}

fn service(number: usize) -> Value {
    let vip = format!("172.{}.{}.{}", 20 + number / 62_500, number / 250, number % 250 + 1);
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": format!("svc-{number}"), "namespace": format!("ns-{}", number % NAMESPACES) },
        "spec": { "clusterIP": vip, "clusterIPs": [vip], "selector": { "app": format!("app-{number}") },
                  "ports": [{ "name": "tcp", "port": 80, "targetPort": 8080, "protocol": "TCP" }] },
    })
}

/// A policy for every pod of namespace `mesh`: callers are allowed one by one.
fn policy(number: usize) -> Value {
    let service = number * SERVICES / POLICIES;
    let caller = format!("cluster.local/ns/ns-{}/sa/sa-{service}", service % NAMESPACES);
    json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": { "name": format!("allow-{number}"), "namespace": "mesh" },
        "spec": { "action": "ALLOW", "rules": [{ "from": [{ "source": { "principals": [caller] } }] }] },
    })
}

/// The same for one path each, which every caller asks for.
fn policy_of_requests(number: usize) -> Value {
    let mut policy = policy(number);
    let operation = json!({ "methods": ["GET"], "paths": ["/items*"], "ports": ["8080"] });
    if let Some(rule) = policy.pointer_mut("/spec/rules/0") {
        rule["to"] = json!([{ "operation": operation }]);
    }
    policy
}

/// One object on a line.
fn lines(objects: impl Iterator<Item = Value>) -> Result<String> {
    let mut text = String::new();
    for object in objects {
        writeln!(text, "{object}")?;
    }
    Ok(text)
}

/// The same in the block style in which people write YAML.
fn yaml(objects: impl Iterator<Item = Value>) -> Result<String> {
    let mut text = String::new();
    for object in objects {
        text.push_str("---\n");
        write_block(&mut text, &object, 0)?;
    }
    Ok(text)
}

fn write_block(text: &mut String, value: &Value, indent: usize) -> std::fmt::Result {
    let entries: Vec<(String, &Value)> = match value {
        Value::Object(map) => map.iter().map(|(key, value)| (format!("{key}:"), value)).collect(),
        Value::Array(items) => items.iter().map(|item| ("-".to_owned(), item)).collect(),
        scalar => return writeln!(text, "{:indent$}{scalar}", ""),
    };
    for (head, value) in entries {
        if value.is_object() || value.is_array() {
            writeln!(text, "{:indent$}{head}", "")?;
            write_block(text, value, indent + 2)?;
        } else {
            writeln!(text, "{:indent$}{head} {value}", "")?;
        }
    }
    Ok(())
}

fn new_lab(binaries: &Path) -> Result<Lab> {
    let spec = LabSpec::new().node("a").binaries(binaries.to_owned());
    let pods = ["server", "client"].map(|name| PodSpec::new("a", "mesh", name));
    let lab = Lab::new(&pods.into_iter().fold(spec, LabSpec::pod))?;
    lab.config().namespace("mesh", &[("weft.dev/mesh", "enabled")])?;
    lab.config().write("strict.yaml", STRICT)?;
    Ok(lab)
}

/// Decisions about connections, and requests, to one pod under 0, 100 and 10,000 policies that all select it.
fn decisions(plan: &Plan, binaries: &Path, collected: &mut Collected) -> Result<()> {
    cargo(&[
        "build",
        "--quiet",
        "--release",
        "--locked",
        "-p",
        "weft-decision-bench",
        "--bin",
        "decision-bench",
    ])?;
    let lab = new_lab(binaries)?;
    lab.config().write("pods.jsonl", &lines((0..PODS).step_by(PODS_PER_SERVICE).map(pod))?)?;
    for round in 1..=plan.rounds {
        eprintln!("scale: decisions: round {round} of {}", plan.rounds);
        let under = |layer, count| {
            time_decisions(&lab, binaries, layer, count).with_context(|| format!("{count} policies"))
        };
        for layer in LAYERS.iter().filter(|layer| plan.wants(layer.time)) {
            let (none, all) = (under(layer, 0)?, under(layer, POLICIES)?);
            collected.add(layer.time, Family::V4, Contender::Weft, all.p99 - none.p50);
        }
        if plan.wants(GROWTH) {
            let growth: Result<Vec<f64>> =
                LAYERS.iter().map(|layer| growth(|count| under(layer, count))).collect();
            collected.add(GROWTH, Family::V4, Contender::Weft, growth?.into_iter().fold(0.0, f64::max));
        }
    }
    for layer in LAYERS.iter().filter(|layer| plan.wants(layer.time)) {
        collected.note(layer.time, "p99 at 10,000 policies, less the median at none".to_owned());
    }
    Ok(())
}

/// How much longer a decision takes that finds its policy among all than among a hundred. One look at a microsecond says
/// more about what else the machine was doing: each is looked at several times in turns, and the quickest counts.
fn growth(under: impl Fn(usize) -> Result<Timed>) -> Result<f64> {
    let (mut hundred, mut all) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..LOOKS {
        hundred = hundred.min(under(100)?.allowed_p50);
        all = all.min(under(POLICIES)?.allowed_p50);
    }
    Ok(all / hundred)
}

/// Percentiles in microseconds.
struct Timed {
    p50: f64,
    p99: f64,
    /// Of the decisions that found a policy that allows: the same work under any number of policies.
    allowed_p50: f64,
}

fn time_decisions(lab: &Lab, binaries: &Path, layer: &Layer, policies: usize) -> Result<Timed> {
    lab.config().write("policies.jsonl", &lines((0..policies).map(layer.policy))?)?;
    let config = lab.config().path().to_str().context("the lab's directory is UTF-8")?;
    let program = binaries.join("decision-bench");
    let program = program.to_str().context("the target directory is UTF-8")?;
    let args = [&["--config", config, "--to", "mesh/server"], layer.args].concat();
    let text = weft_lab::output(program, &args)?;
    let timed: Value = serde_json::from_str(&text)?;
    let number = |field: &str| {
        timed.get(field).and_then(Value::as_f64).with_context(|| format!("no {field}: {timed}"))
    };
    Ok(Timed { p50: number("p50_us")?, p99: number("p99_us")?, allowed_p50: number("allowed_p50_us")? })
}

/// A lab whose directory has everything.
fn full_lab(binaries: &Path) -> Result<Lab> {
    let lab = new_lab(binaries)?;
    lab.config().write("pods.jsonl", &lines((0..PODS).map(pod))?)?;
    lab.config().write("services.jsonl", &lines((0..SERVICES).map(service))?)?;
    lab.config().write("policies.jsonl", &lines((0..POLICIES).map(policy))?)?;
    Ok(lab)
}

/// From the start of an agent that has everything to read to the first connection that it refuses, in milliseconds.
pub(crate) fn start_full(binaries: &Path) -> Result<f64> {
    Ok(start_to_enforced(&full_lab(binaries)?, Duration::from_secs(30), false)?.ms)
}

/// Start of an agent that has everything to read, up to the first connection that it refuses.
fn full_sync(plan: &Plan, binaries: &Path, collected: &mut Collected) -> Result<()> {
    let lab = full_lab(binaries)?;
    let mut cpu = Vec::new();
    for round in 1..=plan.rounds {
        eprintln!("scale: full sync: round {round} of {}", plan.rounds);
        let started = start_to_enforced(&lab, Duration::from_secs(30), plan.wants("scale.rss"))?;
        cpu.push(format!("{:.2}", started.cpu_seconds));
        note(plan, collected, &started);
    }
    lab.config().remove("pods.jsonl")?;
    lab.config().write("pods.yaml", &yaml((0..PODS).map(pod))?)?;
    let from_yaml = start_to_enforced(&lab, Duration::from_secs(120), false)?;
    let text = format!(
        "JSON Lines, {} CPU-s; pods in YAML: {:.2} s, {:.2} CPU-s",
        cpu.join(" "),
        from_yaml.ms / 1e3,
        from_yaml.cpu_seconds
    );
    collected.note("scale.full-sync", text);
    Ok(())
}

fn note(plan: &Plan, collected: &mut Collected, started: &Started) {
    for (row, value) in
        [("scale.full-sync", started.ms / 1e3), ("scale.rss", started.rss_mb + started.maps_mb)]
    {
        if plan.wants(row) {
            collected.add(row, Family::V4, Contender::Weft, value);
        }
    }
    collected.note("scale.rss", format!("of which kernel maps {:.1} MB", started.maps_mb));
}
