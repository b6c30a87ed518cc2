//! The table "Kubernetes": one agent, a real API server, 100,000 pods and 10,000 Services.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Plan;
use super::report::{Collected, Contender, Family, percentile};
use crate::build::{cargo, cargo_command};
use crate::k8s;

pub(crate) fn measure(plan: &Plan, binaries: &Path, collected: &mut Collected) -> Result<()> {
    k8s::build()?;
    cargo(&[
        "build",
        "--quiet",
        "--release",
        "--locked",
        "-p",
        "weft-kubernetes-tests",
        "--bin",
        "kube-bench",
    ])?;
    let rounds = plan.rounds.to_string();
    let mut command = cargo_command(&["run", "--quiet", "--release", "--locked"])?;
    command.args(["-p", "weft-kubernetes-tests", "--bin", "kube-bench", "--", "--rounds", &rounds]);
    let output = command.arg("--binaries").arg(binaries).stderr(Stdio::inherit()).output();
    let output = output.context("kube-bench cannot be run")?;
    ensure!(output.status.success(), "kube-bench ended with {}", output.status);
    let report: Value = serde_json::from_slice(&output.stdout).context("kube-bench tells no samples")?;
    let samples = |field: &str| -> Vec<f64> {
        report.get(field).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_f64).collect()
    };
    let mut add = |row: &'static str, values: Vec<f64>| {
        for value in values.into_iter().filter(|_| plan.wants(row)) {
            collected.add(row, Family::V4, Contender::Weft, value);
        }
    };
    add("kube.enforced-p99", vec![percentile(&samples("enforced_ms"), 99)]);
    add("kube.rss", samples("resident_bytes").into_iter().map(|bytes| bytes / 1e6).collect());
    add("kube.cpu-churn", samples("churn_cores"));
    let text =
        |field: &str| samples(field).iter().map(|value| format!("{value:.1}")).collect::<Vec<_>>().join(" ");
    collected.note("kube.rss", format!("without kernel maps; read after {} s", text("synced_s")));
    collected.note(
        "kube.cpu-churn",
        format!("cores at 100 changes a second; requests in all: {}", text("requests")),
    );
    Ok(())
}
