//! How requests go from pod to pod, seen on the wire between the nodes.

use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weft_kubernetes_tests::cluster::{BRIDGE, Cluster};
use weft_lab::{Capture, poll_until};

use crate::suite::{LIMIT, address, peer};

/// Where the mesh's TLS goes.
const HBONE: u16 = 15008;
/// Where the application listens.
const APPLICATION: u16 = 8080;

/// A way that a request took.
#[derive(Debug)]
pub(super) struct Travel {
    /// What the client says.
    pub(super) answer: Value,
    /// Whether the request could be read on the wire.
    pub(super) readable: bool,
    /// Whether it went to the mesh's port, and nothing to the application's.
    pub(super) encrypted: bool,
}

/// A text that occurs nowhere else.
fn marker() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    format!("/marker-{}-in-a-path", NUMBER.fetch_add(1, Ordering::Relaxed))
}

/// One request from a pod (namespace and name) to port 8080 of a pod on the other node.
pub(super) fn travel(cluster: &Cluster, from: (&str, &str), to: (&str, &str)) -> Result<Travel> {
    travel_to(cluster, from, &address(cluster, to.0, to.1)?)
}

/// The same, to an address.
pub(super) fn travel_to(cluster: &Cluster, from: (&str, &str), to: &str) -> Result<Travel> {
    let marker = marker();
    let url = format!("http://{to}:{APPLICATION}{marker}");
    let capture = Capture::start(cluster.place(), BRIDGE)?;
    let answer = peer(cluster, from.0, from.1, &["get", &url])?;
    let seen = capture.stop()?;
    // Agents keep their connections, so the beginning of the TLS may lie before the capture.
    let encrypted = seen.bytes_on_port(HBONE) > 0 && seen.bytes_on_port(APPLICATION) == 0;
    Ok(Travel { answer, readable: seen.contains(&marker), encrypted })
}

impl Travel {
    /// Whether the application answered, and nobody on the way could read it.
    pub(super) fn is_protected(&self) -> bool {
        self.answered() && !self.readable && self.encrypted
    }

    /// Whether the application answered.
    pub(super) fn answered(&self) -> bool {
        self.answer.get("status").is_some_and(|status| status == 200)
    }
}

/// Waits until requests are answered and unreadable.
pub(super) fn protected(cluster: &Cluster, from: (&str, &str), to: (&str, &str)) -> Result<()> {
    protected_to(cluster, from, &address(cluster, to.0, to.1)?)
}

/// Waits until requests to an address are answered and unreadable.
pub(super) fn protected_to(cluster: &Cluster, from: (&str, &str), to: &str) -> Result<()> {
    poll_until(LIMIT, || {
        let travel = travel_to(cluster, from, to)?;
        ensure!(travel.is_protected(), "{from:?} to {to}: {travel:?}");
        Ok(())
    })
    .with_context(|| agents(cluster))
}

/// Waits until requests are answered and readable.
pub(super) fn plain(cluster: &Cluster, from: (&str, &str), to: (&str, &str)) -> Result<()> {
    poll_until(LIMIT, || {
        let travel = travel(cluster, from, to)?;
        ensure!(travel.answered() && travel.readable, "{from:?} to {to:?}: {travel:?}");
        Ok(())
    })
    .with_context(|| agents(cluster))
}

/// Requests without pause while something happens, none of which may be readable. Gives their report.
pub(super) fn under_load(
    cluster: &mut Cluster,
    from: (&str, &str),
    to: (&str, &str),
    happens: impl FnOnce(&mut Cluster) -> Result<()>,
) -> Result<Value> {
    let marker = marker();
    let target = format!("{}:8080", address(cluster, to.0, to.1)?);
    let capture = Capture::start(cluster.place(), BRIDGE)?;
    let client = Requests::start(cluster, from, &[&target, "--path", &marker, "--timeout-ms", "15000"])?;
    let done = happens(cluster);
    let report = client.end();
    let seen = capture.stop()?;
    done?;
    let report = report?;
    ensure!(!seen.contains(&marker), "a request could be read on the wire; the client says {report}");
    let requests = report.get("requests").and_then(Value::as_u64).unwrap_or_default();
    ensure!(requests > 0, "nothing was asked: {report}");
    Ok(report)
}

/// Requests of a pod without pause, each over a connection of its own.
pub(super) struct Requests(std::process::Child);

impl Requests {
    /// Begins, with these arguments of `lab-peer http`.
    pub(super) fn start(cluster: &Cluster, from: (&str, &str), args: &[&str]) -> Result<Self> {
        let child = std::process::Command::new(cluster.plane().programs().join("kubectl"))
            .args(["exec", "-i", "-n", from.0, from.1, "--", "/bin/lab-peer", "http"])
            .args(args)
            .args(["--close", "--until-eof"])
            .env("KUBECONFIG", cluster.plane().kubeconfig())
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn();
        child.map(Self).context("kubectl cannot be run")
    }

    /// Ends and gives their report.
    pub(super) fn end(mut self) -> Result<Value> {
        drop(self.0.stdin.take());
        let said = self.0.wait_with_output()?;
        let text = String::from_utf8_lossy(&said.stdout).into_owned();
        serde_json::from_str(text.lines().last().unwrap_or_default())
            .with_context(|| format!("lab-peer did not print JSON: {text}"))
    }
}

/// The ends of the logs of Weft's pods, for messages.
pub(super) fn agents(cluster: &Cluster) -> String {
    let logs = |selector: &str| {
        let args = ["logs", "-n=weft-system", "-l", selector, "--prefix", "--tail=12", "--all-containers"];
        cluster.kubectl(&args).unwrap_or_else(|e| format!("{e:#}"))
    };
    let status: String = crate::suite::agent_pods(cluster)
        .unwrap_or_default()
        .iter()
        .map(|pod| cluster.kubectl(&["exec", "-n=weft-system", &pod.name, "--", "weft", "status"]))
        .map(|said| said.unwrap_or_else(|e| format!("{e:#}")))
        .collect();
    format!(
        "controllers:\n{}agents:\n{}status:\n{status}",
        logs("app=weft-controller"),
        logs("app=weft-agent")
    )
}
