//! What happens to a mesh.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weft_kubernetes_tests::cluster::Cluster;
use weft_lab::poll_until;

use super::install::rolled_out;
use super::outside::refused;
use super::strict::apply_strict;
use super::travel::{Requests, agents, protected, travel, under_load};
use super::{OUTSIDE, SHOP};
use crate::suite::{LIMIT, address, agent_pods, ready};

const CLIENT: (&str, &str) = (SHOP, "client");
const WEB: (&str, &str) = (SHOP, "web");
const STRANGER: (&str, &str) = (OUTSIDE, "stranger");
/// Containers of the agent's pods.
const AGENT: &str = "agent";
const HOLDER: &str = "holder";

/// SIGKILL for the holders of both nodes, then for the agents: new connections wait for the next agent, and nobody gets
/// in who may not.
pub(super) fn killed(cluster: &mut Cluster) -> Result<()> {
    apply_strict(cluster)?;
    refused(cluster)?;
    poll_until(LIMIT, || {
        let pods = agent_pods(cluster)?;
        ensure!(pods.len() == cluster.nodes().len(), "some are of a step before: {pods:?}");
        Ok(())
    })?;
    let web = format!("{}:8080", address(cluster, WEB.0, WEB.1)?);
    let stranger = Requests::start(cluster, STRANGER, &[&web, "--pause-ms", "20", "--timeout-ms", "2000"])?;
    let report = under_load(cluster, CLIENT, WEB, |cluster| {
        kill(cluster, "[-]-socket=/run/weft-holder/private/holder.sock", HOLDER)?;
        said(cluster, "the holder is back")?;
        for node in ["one", "two"] {
            kill(cluster, &format!("[-]-node={node}"), AGENT)?;
        }
        rolled_out(cluster, "daemonset", "weft-agent")?;
        said(cluster, "took listening sockets back that were held")
    });
    let stranger = stranger.end()?;
    let report = report?;
    tell(&report);
    ensure!(stranger.pointer("/statuses/200").is_none(), "a stranger was let in: {stranger}");
    for outcome in ["refused", "timeout"] {
        ensure!(
            report.get("errors").and_then(|errors| errors.get(outcome)).is_none(),
            "{outcome} while agents were killed: {report}\n{}",
            agents(cluster)
        );
    }
    protected(cluster, CLIENT, WEB)
}

/// Kills the processes of all nodes whose command line has a word, which is written as a pattern that does not match
/// itself in the command of grep. Waits until as many containers (of all pods of the agent) have been started again.
fn kill(cluster: &Cluster, word: &str, container: &str) -> Result<()> {
    let before = restarts(cluster, container)?;
    let find = format!("grep -lzx -- '{word}' /proc/[0-9]*/cmdline | cut -d/ -f3");
    // Nodes see each other's processes.
    let node = cluster.nodes().first().context("a cluster has nodes")?;
    let killed = node.sh(&format!("pids=$({find}); kill -9 $pids; echo $pids"))?;
    let killed = u64::try_from(killed.split_whitespace().count())?;
    ensure!(killed > 0, "nobody has {word} in the command line");
    poll_until(LIMIT, || {
        let now = restarts(cluster, container)?;
        ensure!(now >= before + killed, "{killed} of {container} were killed, {} came back", now - before);
        Ok(())
    })
}

/// How often a container was started again, of all pods of the agent.
fn restarts(cluster: &Cluster, container: &str) -> Result<u64> {
    let list = cluster.json(&["get", "pods", "-n=weft-system", "-l=app=weft-agent"])?;
    let items = list.get("items").and_then(Value::as_array).context("a list has items")?;
    let statuses = items.iter().flat_map(|item| {
        ["/status/initContainerStatuses", "/status/containerStatuses"]
            .into_iter()
            .filter_map(|at| item.pointer(at)?.as_array())
            .flatten()
    });
    let counts = statuses
        .filter(|status| status.get("name").is_some_and(|name| name == container))
        .filter_map(|status| status.get("restartCount")?.as_u64());
    Ok(counts.sum())
}

/// Waits until the agents of all nodes have said something.
fn said(cluster: &Cluster, what: &str) -> Result<()> {
    poll_until(LIMIT, || {
        for pod in agent_pods(cluster)? {
            let log = cluster.kubectl(&["logs", "-n=weft-system", &pod.name, "-c", AGENT])?;
            ensure!(log.contains(what), "{} has not said {what:?}:\n{log}", pod.name);
        }
        Ok(())
    })
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
