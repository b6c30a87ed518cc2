//! What happens to a mesh.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weft_kubernetes_tests::cluster::Cluster;
use weft_lab::poll_until;

use super::SHOP;
use super::install::rolled_out;
use super::travel::{agents, protected, travel, under_load};
use crate::suite::{LIMIT, agent_pods, ready};

const CLIENT: (&str, &str) = (SHOP, "client");
const WEB: (&str, &str) = (SHOP, "web");

/// SIGKILL for the agents of both nodes.
pub(super) fn killed(cluster: &mut Cluster) -> Result<()> {
    let before: u64 = agent_pods(cluster)?.iter().map(|pod| pod.restarts).sum();
    let report = under_load(cluster, CLIENT, WEB, |cluster| {
        for node in cluster.nodes() {
            // The pattern does not match itself in the command of grep.
            let pattern = format!("[-]-node={}", node.name());
            node.sh(&format!("kill -9 $(grep -lzx -- '{pattern}' /proc/[0-9]*/cmdline | cut -d/ -f3)"))?;
        }
        poll_until(LIMIT, || {
            let pods = agent_pods(cluster)?;
            let restarts: u64 = pods.iter().map(|pod| pod.restarts).sum();
            ensure!(restarts >= before + 2, "the agents were not restarted: {pods:?}");
            Ok(())
        })?;
        rolled_out(cluster, "daemonset", "weft-agent")
    })?;
    tell(&report);
    protected(cluster, CLIENT, WEB)
}

/// A rollout, as an upgrade does it: no request fails, and each node's new agent has taken over from a running one.
pub(super) fn replaced(cluster: &mut Cluster) -> Result<()> {
    let report = under_load(cluster, CLIENT, WEB, |cluster| {
        cluster.kubectl(&["rollout", "restart", "-n=weft-system", "daemonset/weft-agent"])?;
        rolled_out(cluster, "daemonset", "weft-agent")
    })?;
    tell(&report);
    let requests = report.get("requests").and_then(Value::as_u64);
    let answered = report.pointer("/statuses/200").and_then(Value::as_u64);
    ensure!(
        answered == requests,
        "requests failed while agents were replaced: {report}\n{}",
        agents(cluster)
    );
    let logs = agent_pods(cluster)?.into_iter().map(|pod| {
        // One that was replaced may go at any moment.
        cluster.kubectl(&["logs", "-n=weft-system", &pod.name, "-c=agent"]).unwrap_or_default()
    });
    let successors = logs.filter(|said| said.contains("took over")).count();
    ensure!(successors == cluster.nodes().len(), "{successors} agents took over from another one");
    protected(cluster, CLIENT, WEB)
}

/// Whether requests go on; without the logs of agents, which kubelet hands out.
fn travels(cluster: &Cluster) -> Result<()> {
    poll_until(LIMIT, || {
        let travel = travel(cluster, CLIENT, WEB)?;
        ensure!(travel.is_protected(), "without kubelet: {travel:?}");
        Ok(())
    })
}

/// Pods stay, and stay in the mesh.
pub(super) fn kubelet(cluster: &mut Cluster) -> Result<()> {
    cluster.node_mut("two")?.kill_kubelet();
    let meanwhile = travels(cluster);
    cluster.restart_kubelet("two")?;
    meanwhile?;
    // The state of the node does not change in so short a time; the new kubelet answers only when it works.
    poll_until(LIMIT, || cluster.kubectl(&["get", "--raw=/api/v1/nodes/two/proxy/healthz"]))?;
    ready(cluster, SHOP, "web")?;
    protected(cluster, CLIENT, WEB).with_context(|| agents(cluster))
}

/// Prints what became of the requests.
fn tell(report: &Value) {
    let part = |name: &str| report.get(name).map(Value::to_string).unwrap_or_default();
    println!("    {} requests meanwhile: {}, errors {}", part("requests"), part("statuses"), part("errors"));
}
