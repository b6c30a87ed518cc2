//! Pods that come while others run.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weft_kubernetes_tests::cluster::Cluster;
use weft_lab::poll_until;

use super::travel::{agents, protected_to};
use super::{OUTSIDE, SHOP};
use crate::PEER_IMAGE;
use crate::suite::{LIMIT, Peer, address, describe, namespace, peer, start};

/// A pod that is not in the mesh.
pub(super) fn stranger() -> Peer<'static> {
    Peer { namespace: OUTSIDE, name: "stranger", node: "one", command: &["serve", "echo:7"], probe: None }
}

/// Before Weft is there.
pub(super) fn plain(cluster: &Cluster) -> Result<()> {
    namespace(cluster, SHOP)?;
    let web = Peer {
        namespace: SHOP,
        name: "web",
        node: "two",
        command: &["app", "--version", "web", "8080"],
        probe: Some(8080),
    };
    let client =
        Peer { namespace: SHOP, name: "client", node: "one", command: &["serve", "echo:7"], probe: None };
    start(cluster, &[web, client])?;
    let url = format!("http://{}:8080/", address(cluster, SHOP, "web")?);
    let answer = peer(cluster, SHOP, "client", &["get", &url])?;
    ensure!(answer.get("status").is_some_and(|status| status == 200), "{answer}");
    Ok(())
}

/// The first thing that these pods do is a request to a pod that speaks to the mesh alone.
pub(super) fn first_instruction(cluster: &Cluster) -> Result<()> {
    let url = format!("http://{}:8080/first", address(cluster, SHOP, "web")?);
    let names: Vec<String> = (0..6).map(|number| format!("first-{number}")).collect();
    for (name, node) in names.iter().zip(["one", "two"].iter().cycle()) {
        let command = ["get", &url];
        let mut pod = Peer { namespace: SHOP, name, node, command: &command, probe: None }.object();
        if let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) {
            spec.insert("restartPolicy".to_owned(), "Never".into());
        }
        cluster.plane().apply(&pod.to_string())?;
    }
    for name in &names {
        ended(cluster, name)?;
        let said = cluster.kubectl(&["logs", "-n", SHOP, name])?;
        let answer: Value = serde_json::from_str(said.trim()).with_context(|| said.clone())?;
        ensure!(
            answer.get("status").is_some_and(|status| status == 200),
            "{name} was not in the mesh yet: {answer}\n{}",
            agents(cluster)
        );
        cluster.kubectl(&["delete", "pod", "-n", SHOP, name, "--wait=false"])?;
    }
    Ok(())
}

fn ended(cluster: &Cluster, name: &str) -> Result<()> {
    poll_until(LIMIT, || {
        let phase = cluster.kubectl(&["get", "pod", "-n", SHOP, name, "-o=jsonpath={.status.phase}"])?;
        ensure!(phase == "Succeeded", "pod {name} is {phase}");
        Ok(())
    })
    .with_context(|| format!("{}\n{}", describe(cluster, SHOP, &format!("pod/{name}")), agents(cluster)))
}

/// No part of the mesh in the pod keeps it alive.
pub(super) fn job(cluster: &Cluster) -> Result<()> {
    let url = format!("http://{}:8080/job", address(cluster, SHOP, "web")?);
    let job = json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": { "namespace": SHOP, "name": "once" },
        "spec": {
            "completions": 2,
            "parallelism": 2,
            "template": { "spec": {
                "restartPolicy": "Never",
                "containers": [{
                    "name": "main",
                    "image": PEER_IMAGE,
                    "imagePullPolicy": "Never",
                    "command": ["/bin/lab-peer", "get", url],
                }],
            }},
        },
    });
    cluster.plane().apply(&job.to_string())?;
    let limit = format!("--timeout={}s", LIMIT.as_secs());
    cluster
        .kubectl(&["wait", "-n", SHOP, "--for=condition=Complete", "job/once", &limit])
        .with_context(|| describe(cluster, SHOP, "job/once"))?;
    // What has ended is not shown as enrolled.
    let states = "-o=jsonpath={.items[*].metadata.annotations.weft\\.dev/state}";
    poll_until(LIMIT, || {
        let states = cluster.kubectl(&["get", "pods", "-n", SHOP, "-l=job-name=once", states])?;
        ensure!(states.trim().is_empty(), "its pods are shown as {states}");
        Ok(())
    })
    .with_context(|| agents(cluster))
}

/// The address of a Service leads into the mesh as well.
pub(super) fn service(cluster: &Cluster) -> Result<()> {
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "namespace": SHOP, "name": "web" },
        "spec": { "selector": { "app": "web" }, "ports": [{ "name": "http", "port": 8080 }] },
    });
    cluster.plane().apply(&service.to_string())?;
    let address = cluster.kubectl(&["get", "service", "-n", SHOP, "web", "-o=jsonpath={.spec.clusterIP}"])?;
    protected_to(cluster, (SHOP, "client"), &address)
}

/// A Deployment moves to the other node when its own is drained.
pub(super) fn drained(cluster: &Cluster) -> Result<()> {
    let deployment = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": { "namespace": SHOP, "name": "moving" },
        "spec": {
            "selector": { "matchLabels": { "app": "moving" } },
            "template": {
                "metadata": { "labels": { "app": "moving" } },
                "spec": {
                    "terminationGracePeriodSeconds": 1,
                    "containers": [{
                        "name": "main",
                        "image": PEER_IMAGE,
                        "imagePullPolicy": "Never",
                        "command": ["/bin/lab-peer", "app", "--version", "moving", "8080"],
                        "readinessProbe": { "httpGet": { "path": "/healthz", "port": 8080 }, "periodSeconds": 1 },
                    }],
                },
            },
        },
    });
    cluster.kubectl(&["cordon", "two"])?;
    cluster.plane().apply(&deployment.to_string())?;
    let there = moved(cluster, "one").and_then(|address| protected_to(cluster, (SHOP, "web"), &address));
    cluster.kubectl(&["uncordon", "two"])?;
    there?;
    let drain = ["drain", "one", "--pod-selector=app=moving", "--ignore-daemonsets", "--timeout=60s"];
    cluster.kubectl(&drain)?;
    let there = moved(cluster, "two").and_then(|address| protected_to(cluster, (SHOP, "client"), &address));
    cluster.kubectl(&["uncordon", "one"])?;
    there
}

/// Waits until the Deployment's pod is ready on a node, and gives its address.
fn moved(cluster: &Cluster, node: &str) -> Result<String> {
    poll_until(LIMIT, || {
        let list = cluster.json(&["get", "pods", "-n", SHOP, "-l=app=moving"])?;
        let items = list.get("items").and_then(Value::as_array).context("a list has items")?;
        let on_node = items.iter().find(|pod| {
            pod.pointer("/spec/nodeName").is_some_and(|name| name == node)
                && pod.pointer("/status/containerStatuses/0/ready") == Some(&Value::Bool(true))
                && pod.pointer("/metadata/deletionTimestamp").is_none()
        });
        let address = on_node.and_then(|pod| pod.pointer("/status/podIP")).and_then(Value::as_str);
        address.map(str::to_owned).with_context(|| format!("no pod of `moving` is ready on node {node}"))
    })
    .with_context(|| agents(cluster))
}
