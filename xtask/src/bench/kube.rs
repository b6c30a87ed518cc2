//! The table "Kubernetes": one agent, one controller, a real API server, 100,000 pods and 10,000 Services.

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
    cargo(&["build", "--quiet", "--release", "--locked", "-p", "weft-cni"])?;
    let rounds = plan.rounds.to_string();
    let mut command = cargo_command(&["run", "--quiet", "--release", "--locked"])?;
    command.args(["-p", "weft-kubernetes-tests", "--bin", "kube-bench", "--", "--rounds", &rounds]);
    if let Some(pods) = plan.pods {
        command.args(["--pods", &pods.to_string()]);
    }
    let output = command.arg("--binaries").arg(binaries).stderr(Stdio::inherit()).output();
    let output = output.context("kube-bench cannot be run")?;
    ensure!(output.status.success(), "kube-bench ended with {}", output.status);
    let report: Value = serde_json::from_slice(&output.stdout).context("kube-bench tells no samples")?;
    let samples = Samples(report.as_array().cloned().unwrap_or_default());
    samples.add_rows(plan, collected);
    samples.add_notes(collected);
    Ok(())
}

/// What each round told.
struct Samples(Vec<Value>);

impl Samples {
    /// All values of a field.
    fn all(&self, field: &str) -> Vec<f64> {
        let values = self.0.iter().filter_map(|round| round.get(field));
        let numbers = values.flat_map(|value| match value {
            Value::Array(values) => values.iter().filter_map(Value::as_f64).collect(),
            value => value.as_f64().into_iter().collect::<Vec<_>>(),
        });
        numbers.collect()
    }

    fn mb(&self, field: &str) -> Vec<f64> {
        self.all(field).into_iter().map(|bytes| bytes / 1e6).collect()
    }

    fn add_rows(&self, plan: &Plan, collected: &mut Collected) {
        let one = |field: &str, percent| vec![percentile(&self.all(field), percent)];
        let rows = [
            ("kube.enforced-p50", one("enforced_ms", 50)),
            ("kube.enforced-p99", one("enforced_ms", 99)),
            ("kube.enforced-busy-p99", one("enforced_busy_ms", 99)),
            ("kube.enrol", self.all("enrol_ms")),
            ("kube.cni-add", self.all("add_ms")),
            ("kube.rss", self.mb("resident")),
            ("kube.cpu-churn", self.all("agent_cores")),
            ("kube.requests", self.all("sync_requests")),
            ("kube.controller-rss", self.mb("controller_resident")),
            ("kube.controller-cpu-churn", self.all("controller_cores")),
        ];
        for (row, values) in rows.into_iter().filter(|(row, _)| plan.wants(row)) {
            for value in values {
                collected.add(row, Family::V4, Contender::Weft, value);
            }
        }
    }

    fn add_notes(&self, collected: &mut Collected) {
        let text =
            |values: &[f64]| values.iter().map(|value| format!("{value:.1}")).collect::<Vec<_>>().join(" ");
        let of = |field: &str| text(&self.all(field));
        let mb = |field: &str| text(&self.mb(field));
        let read = format!(
            "without kernel maps; read after {} s and {} CPU-s; at most {} MB; after all events {} MB",
            of("synced_s"),
            of("sync_cpu_s"),
            mb("peak"),
            mb("resident_after")
        );
        collected.note("kube.rss", read);
        let rate = of("rate");
        collected.note(
            "kube.cpu-churn",
            format!(
                "{rate} changes of pods a second, half as many of EndpointSlices, heartbeats of 5,000 nodes"
            ),
        );
        let after = of("requests_after");
        collected.note(
            "kube.requests",
            format!("until everything was read and the pod taken in; in 20 s of events, agent and controller: {after}"),
        );
        collected.note("kube.controller-rss", format!("at most {} MB", mb("controller_peak")));
    }
}
