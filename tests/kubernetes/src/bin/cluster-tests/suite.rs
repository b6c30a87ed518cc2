//! Steps, one after the other on the same cluster, and their sums.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;
use weft_kubernetes_tests::cluster::Cluster;
use weft_lab::poll_until;

use crate::PEER_IMAGE;

/// So long a state that should come may take. Kubelet restarts a container only after ten seconds and more.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);

/// The cluster, and what became of the steps.
pub(crate) struct Suite {
    pub(crate) cluster: Cluster,
    /// The manifest that installs Weft.
    pub(crate) manifest: String,
    filters: Vec<String>,
    passed: u64,
    failed: u64,
    skipped: u64,
}

impl Suite {
    pub(crate) fn new(cluster: Cluster, manifest: String, filters: Vec<String>) -> Self {
        Self { cluster, manifest, filters, passed: 0, failed: 0, skipped: 0 }
    }

    /// Runs a step, if it is wanted.
    pub(crate) fn step(&mut self, name: &str, step: impl FnOnce(&mut Cluster, &str) -> Result<()>) -> bool {
        if !self.filters.is_empty() && !self.filters.iter().any(|filter| name.contains(filter)) {
            self.skipped += 1;
            return true;
        }
        self.required(name, step)
    }

    /// Runs a step that the others rest on.
    pub(crate) fn required(
        &mut self,
        name: &str,
        step: impl FnOnce(&mut Cluster, &str) -> Result<()>,
    ) -> bool {
        let started = Instant::now();
        let done = step(&mut self.cluster, &self.manifest);
        let seconds = started.elapsed().as_secs_f64();
        match done {
            Ok(()) => {
                println!("step {name} ... ok ({seconds:.1} s)");
                self.passed += 1;
                true
            }
            Err(e) => {
                println!(
                    "step {name} ... FAILED ({seconds:.1} s)\n    {}",
                    format!("{e:#}").replace('\n', "\n    ")
                );
                self.failed += 1;
                false
            }
        }
    }

    /// Prints the sums, as a test program does; true when nothing has failed.
    pub(crate) fn finish(self) -> bool {
        let Self { passed, failed, skipped, .. } = self;
        let word = if failed == 0 { "ok" } else { "FAILED" };
        println!(
            "test result: {word}. {passed} passed; {failed} failed; {skipped} ignored; 0 measured; 0 filtered out"
        );
        failed == 0
    }
}

/// A pod of the peer image with a command of `lab-peer`.
pub(crate) struct Peer<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
    pub(crate) node: &'a str,
    pub(crate) command: &'a [&'a str],
    /// Port of an HTTP readiness and liveness probe.
    pub(crate) probe: Option<u16>,
}

impl Peer<'_> {
    pub(crate) fn object(&self) -> Value {
        let command: Vec<&str> =
            std::iter::once("/bin/lab-peer").chain(self.command.iter().copied()).collect();
        let probe = self.probe.map(|port| {
            serde_json::json!({ "httpGet": { "path": "/healthz", "port": port }, "periodSeconds": 1, "timeoutSeconds": 2, "failureThreshold": 3 })
        });
        serde_json::json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "namespace": self.namespace, "name": self.name, "labels": { "app": self.name } },
            "spec": {
                "nodeName": self.node,
                "terminationGracePeriodSeconds": 1,
                "serviceAccountName": "default",
                "containers": [{
                    "name": "main",
                    "image": PEER_IMAGE,
                    "imagePullPolicy": "Never",
                    "command": command,
                    "readinessProbe": probe,
                    "livenessProbe": probe,
                }],
            },
        })
    }
}

/// Makes a namespace and waits for its service account.
pub(crate) fn namespace(cluster: &Cluster, name: &str) -> Result<()> {
    let object = serde_json::json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } });
    cluster.plane().apply(&object.to_string())?;
    poll_until(LIMIT, || cluster.kubectl(&["get", "serviceaccount", "-n", name, "default"])).map(drop)
}

/// Makes pods and waits until they are ready.
pub(crate) fn start(cluster: &Cluster, peers: &[Peer<'_>]) -> Result<()> {
    for peer in peers {
        cluster.plane().apply(&peer.object().to_string())?;
    }
    for peer in peers {
        ready(cluster, peer.namespace, peer.name)?;
    }
    Ok(())
}

/// Waits until a pod is ready.
pub(crate) fn ready(cluster: &Cluster, namespace: &str, name: &str) -> Result<()> {
    let pod = format!("pod/{name}");
    let limit = format!("--timeout={}s", LIMIT.as_secs());
    cluster
        .kubectl(&["wait", "-n", namespace, "--for=condition=Ready", &pod, &limit])
        .map(drop)
        .with_context(|| describe(cluster, namespace, &pod))
}

/// What kubectl says about an object, and what its containers said.
pub(crate) fn describe(cluster: &Cluster, namespace: &str, object: &str) -> String {
    let said = |args: &[&str]| cluster.kubectl(args).unwrap_or_else(|e| format!("{e:#}"));
    let logs =
        said(&["logs", "-n", namespace, object, "--all-containers", "--all-pods", "--prefix", "--tail=30"]);
    let previous =
        cluster.kubectl(&["logs", "-n", namespace, object, "--previous", "--tail=20"]).unwrap_or_default();
    format!(
        "{}\nlog:\n{logs}\nlog of the container before:\n{previous}",
        said(&["describe", "-n", namespace, object])
    )
}

/// The address of a pod.
pub(crate) fn address(cluster: &Cluster, namespace: &str, name: &str) -> Result<String> {
    cluster.kubectl(&["get", "pod", "-n", namespace, name, "-o=jsonpath={.status.podIP}"])
}

/// Runs `lab-peer` in a pod and gives the last line that it printed.
pub(crate) fn peer(cluster: &Cluster, namespace: &str, pod: &str, args: &[&str]) -> Result<Value> {
    let command = [&["exec", "-n", namespace, pod, "--", "/bin/lab-peer"], args].concat();
    let text = cluster.kubectl(&command)?;
    let last = text.lines().last().context("lab-peer printed nothing")?;
    serde_json::from_str(last).with_context(|| format!("lab-peer did not print JSON: {text}"))
}

/// A pod of the agent.
#[derive(Debug)]
pub(crate) struct AgentPod {
    pub(crate) name: String,
    pub(crate) address: String,
}

/// The agents' pods.
pub(crate) fn agent_pods(cluster: &Cluster) -> Result<Vec<AgentPod>> {
    let list = cluster.json(&["get", "pods", "-n=weft-system", "-l=app=weft-agent"])?;
    let items = list.get("items").and_then(Value::as_array).context("a list has items")?;
    let text =
        |item: &Value, at: &str| item.pointer(at).and_then(Value::as_str).unwrap_or_default().to_owned();
    Ok(items
        .iter()
        .map(|item| AgentPod { name: text(item, "/metadata/name"), address: text(item, "/status/podIP") })
        .collect())
}
