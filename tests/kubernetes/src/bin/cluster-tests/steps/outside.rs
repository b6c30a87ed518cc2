//! Pods, namespaces and nodes that are outside of the mesh, for a while or for good, and say so.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weft_kubernetes_tests::cluster::Cluster;
use weft_lab::poll_until;

use super::commands::weft_json;
use super::install::{pins_and_plugin, rolled_out};
use super::strict::apply_strict;
use super::travel::{agents, plain, protected, travel};
use super::{OUTSIDE, SHOP};
use crate::suite::{LIMIT, Peer, describe, peer, ready, start};

const CLIENT: (&str, &str) = (SHOP, "client");
const WEB: (&str, &str) = (SHOP, "web");
const STRANGER: (&str, &str) = (OUTSIDE, "stranger");
const AGENTS: [&str; 3] = ["-n=weft-system", "daemonset", "weft-agent"];

/// A pod in the network of its host, and one that does not want to: both keep their plain ways.
pub(super) fn excluded(cluster: &Cluster) -> Result<()> {
    let pod = |name| Peer {
        namespace: SHOP,
        name,
        node: "one",
        command: &["app", "--version", "plain", "8080"],
        probe: None,
    };
    let mut host = pod("host").object();
    if let Some(spec) = host.get_mut("spec").and_then(Value::as_object_mut) {
        spec.insert("hostNetwork".to_owned(), true.into());
    }
    let mut opted_out = pod("opted-out").object();
    if let Some(labels) = opted_out.pointer_mut("/metadata/labels").and_then(Value::as_object_mut) {
        labels.insert("weft.dev/mesh".to_owned(), "disabled".into());
    }
    for object in [host, opted_out] {
        cluster.plane().apply(&object.to_string())?;
    }
    for (name, reason) in [("host", "hostNetwork"), ("opted-out", "weft.dev/mesh: disabled")] {
        ready(cluster, SHOP, name)?;
        plain(cluster, WEB, (SHOP, name))?;
        poll_until(LIMIT, || says_excluded(cluster, name, reason)).with_context(|| agents(cluster))?;
        cluster.kubectl(&["delete", "pod", "-n", SHOP, name, "--wait=false"])?;
    }
    Ok(())
}

fn annotation(cluster: &Cluster, name: &str, annotation: &str) -> Result<String> {
    let path = format!("-o=jsonpath={{.metadata.annotations.weft\\.dev/{annotation}}}");
    cluster.kubectl(&["get", "pod", "-n", SHOP, name, &path])
}

/// The annotation and the agents say the same.
fn says_excluded(cluster: &Cluster, name: &str, reason: &str) -> Result<()> {
    let shown = (annotation(cluster, name, "state")?, annotation(cluster, name, "state-reason")?);
    ensure!(shown.0 == "excluded" && shown.1.contains(reason), "{name} shows {shown:?}");
    let status = weft_json(cluster, &["status", "-n", SHOP], &[0])?;
    let nodes = status.get("nodes").and_then(Value::as_array).into_iter().flatten();
    let mut workloads = nodes.filter_map(|node| node.get("workloads")?.as_array()).flatten();
    let found = workloads.find(|pod| pod.get("pod") == Some(&json!(format!("{SHOP}/{name}"))));
    let found = found.with_context(|| format!("{name} is not in the status: {status}"))?;
    let text = |key: &str| found.get(key).and_then(Value::as_str).unwrap_or_default();
    ensure!(text("state") == "excluded" && text("reason").contains(reason), "{found}");
    Ok(())
}

/// Pods of the mesh wait for an agent, all others start; those of Weft and of Kubernetes itself above all.
pub(super) fn no_agent(cluster: &Cluster) -> Result<()> {
    let [namespace, kind, name] = AGENTS;
    let set = cluster.json(&["get", namespace, kind, name])?;
    let strategy = set.pointer("/spec/updateStrategy").cloned().unwrap_or_default();
    let image = set.pointer("/spec/template/spec/containers/0/image").cloned().unwrap_or_default();
    let patch = |strategy: &Value, image: &Value| {
        let container = json!([{"name": "agent", "image": image}]);
        let patch = json!({"spec": {
            "updateStrategy": strategy, "template": {"spec": {"containers": container}},
        }});
        cluster.kubectl(&["patch", namespace, kind, name, "-p", &patch.to_string()]).map(drop)
    };
    // The agent that comes instead has no image.
    patch(&json!({"type": "OnDelete", "rollingUpdate": null}), &"weft.invalid/none:0".into())?;
    let done = without_agent(cluster);
    patch(&strategy, &image)?;
    done?;
    rolled_out(cluster, kind, name)?;
    ready(cluster, SHOP, "held").with_context(|| agents(cluster))?;
    for (namespace, name) in
        [(SHOP, "held"), (OUTSIDE, "free"), ("kube-system", "free"), ("weft-system", "free")]
    {
        cluster.kubectl(&["delete", "pod", "-n", namespace, name, "--wait=false"])?;
    }
    protected(cluster, CLIENT, WEB)
}

fn without_agent(cluster: &Cluster) -> Result<()> {
    let selector = ["-n=weft-system", "-l=app=weft-agent", "--field-selector=spec.nodeName=one"];
    cluster.kubectl(&[&["delete", "pod"], &selector[..]].concat())?;
    let pod =
        |namespace, name| Peer { namespace, name, node: "one", command: &["serve", "echo:7"], probe: None };
    cluster.plane().apply(&pod(SHOP, "held").object().to_string())?;
    start(cluster, &[pod(OUTSIDE, "free"), pod("kube-system", "free"), pod("weft-system", "free")])?;
    let about_held = ["get", "events", "-n", SHOP, "--field-selector=involvedObject.name=held", "-o=yaml"];
    poll_until(LIMIT, || {
        let events = cluster.kubectl(&about_held)?;
        ensure!(events.contains("it would start unprotected"), "nothing tells why it waits: {events}");
        Ok(())
    })
    .with_context(|| describe(cluster, SHOP, "pod/held"))?;
    let containers = "-o=jsonpath={.status.containerStatuses[*].state.running}";
    let running = cluster.kubectl(&["get", "pod", "-n", SHOP, "held", containers])?;
    ensure!(running.is_empty(), "it has started unprotected: {running}");
    Ok(())
}

/// A pod, a namespace and a node are taken out of the mesh at once, and come back.
pub(super) fn break_glass(cluster: &Cluster) -> Result<()> {
    apply_strict(cluster)?;
    let overwritten = |args: &[&str]| cluster.kubectl(&[args, &["--overwrite"]].concat()).map(drop);
    let cases: [(&str, &[&str], &str, &str); 3] = [
        ("a pod", &["annotate", "pod", "web", "-n", SHOP], "weft.dev/mesh=bypass", "weft.dev/mesh-"),
        ("a namespace", &["label", "namespace", SHOP], "weft.dev/mesh=bypass", "weft.dev/mesh=enabled"),
        ("a node", &["label", "node", "two"], "weft.dev/mesh=bypass", "weft.dev/mesh-"),
    ];
    for (what, object, out, back) in cases {
        refused(cluster)?;
        overwritten(&[object, &[out]].concat())?;
        let begun = Instant::now();
        let outcome = poll_until(LIMIT, || admitted(cluster));
        println!("    {what} was out of the mesh {} ms after kubectl had ended", begun.elapsed().as_millis());
        let shown = poll_until(LIMIT, || {
            let state = annotation(cluster, "web", "state")?;
            ensure!(state == "excluded", "web is shown as {state}");
            Ok(())
        });
        overwritten(&[object, &[back]].concat())?;
        outcome.with_context(|| format!("{what}: {}", agents(cluster)))?;
        shown.with_context(|| format!("{what}: {}", agents(cluster)))?;
    }
    refused(cluster)?;
    protected(cluster, CLIENT, WEB)
}

fn admitted(cluster: &Cluster) -> Result<()> {
    let url = format!("http://{}:8080/", crate::suite::address(cluster, WEB.0, WEB.1)?);
    let answer = peer(cluster, STRANGER.0, STRANGER.1, &["get", &url])?;
    ensure!(answer.get("status").is_some_and(|status| status == 200), "a stranger is refused: {answer}");
    Ok(())
}

/// Waits until a stranger is refused.
pub(super) fn refused(cluster: &Cluster) -> Result<()> {
    poll_until(LIMIT, || {
        let stranger = travel(cluster, STRANGER, WEB)?;
        ensure!(!stranger.answered(), "a stranger is let in: {stranger:?}");
        Ok(())
    })
    .with_context(|| agents(cluster))
}

/// A DaemonSet that does not want a node any more leaves nothing on it; where it comes again, so does the mesh.
pub(super) fn not_selected(cluster: &Cluster, before: &str) -> Result<()> {
    let [namespace, kind, name] = AGENTS;
    let select = |selector: Value| {
        let patch = json!({"spec": {"template": {"spec": {"nodeSelector": selector}}}});
        cluster.kubectl(&["patch", namespace, kind, name, "--type=merge", "-p", &patch.to_string()]).map(drop)
    };
    cluster.kubectl(&["label", "node", "two", "weft-test=yes"])?;
    select(json!({"weft-test": "yes"}))?;
    let one = cluster.node("one")?;
    let left = poll_until(LIMIT, || {
        let is = pins_and_plugin(one)?;
        ensure!(is == before, "node one is not as it was:\n{is}\nbut:\n{before}");
        let state = annotation(cluster, CLIENT.1, "state")?;
        ensure!(state.is_empty(), "{CLIENT:?} is shown as {state}");
        Ok(())
    });
    let left = left.with_context(|| agents(cluster));
    let stayed = rolled_out(cluster, kind, name);
    select(Value::Null)?;
    cluster.kubectl(&["label", "node", "two", "weft-test-"])?;
    left?;
    stayed?;
    rolled_out(cluster, kind, name)?;
    protected(cluster, CLIENT, WEB)
}
