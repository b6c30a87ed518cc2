//! What is known in a cluster: objects, agents' answers, logs, events.

use std::collections::BTreeSet;

use anyhow::Context;
use http::Request;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{ListParams, LogParams};
use kube::core::ApiResource;
use kube::discovery::verbs;
use serde_json::{Value, json};

use super::super::check;
use super::super::cluster::{Agent, Cluster, asked_all, reading};
use super::Archive;

/// API groups that hold nothing but rules for the mesh.
const GROUPS: [&str; 5] = [
    "networking.istio.io",
    "security.istio.io",
    "telemetry.istio.io",
    "extensions.istio.io",
    "gateway.networking.k8s.io",
];
/// Lists of Weft's own namespace: never its Secrets.
const OWN: [(&str, &str); 9] = [
    ("daemonsets", "/apis/apps/v1"),
    ("deployments", "/apis/apps/v1"),
    ("replicasets", "/apis/apps/v1"),
    ("pods", "/api/v1"),
    ("services", "/api/v1"),
    ("configmaps", "/api/v1"),
    ("endpointslices", "/apis/discovery.k8s.io/v1"),
    ("leases", "/apis/coordination.k8s.io/v1"),
    ("events", "/api/v1"),
];
/// What stands in the way of an installation, or lets it be.
const WIDE: [(&str, &str); 6] = [
    ("nodes", "/api/v1/nodes"),
    ("namespaces", "/api/v1/namespaces"),
    (
        "mesh-config-of-istio",
        "/api/v1/namespaces/istio-system/configmaps?fieldSelector=metadata.name%3Distio",
    ),
    ("definitions", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"),
    ("validating-webhooks", "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"),
    ("admission-policies", "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"),
];

pub(super) fn gather(
    cluster: &Cluster,
    node: Option<&str>,
    tail: u32,
    archive: &mut Archive,
) -> anyhow::Result<()> {
    archive.json("kubernetes.json", serde_json::to_value(cluster.version())?)?;
    let report = check::of_cluster(cluster, false)?;
    archive.text("check.txt", &check::text(&report))?;
    cluster.block_on(async {
        objects(cluster, archive).await?;
        rules(cluster, archive).await?;
        agents(cluster, node, archive).await?;
        logs(cluster, node, tail, archive).await
    })
}

async fn objects(cluster: &Cluster, archive: &mut Archive) -> anyhow::Result<()> {
    let own = OWN
        .iter()
        .map(|(kind, api)| ((*kind).to_owned(), format!("{api}/namespaces/{}/{kind}", cluster.system())));
    let wide = WIDE.iter().map(|(name, path)| ((*name).to_owned(), (*path).to_owned()));
    for (name, path) in own.chain(wide) {
        match get(cluster, &path).await {
            Ok(mut list) => {
                if name == "definitions" {
                    only_names(&mut list);
                }
                archive.json(&format!("objects/{name}.json"), list)?;
            }
            Err(error) => archive.failed(&name, &error),
        }
    }
    Ok(())
}

/// Definitions are megabytes of schema; which there are is what counts.
fn only_names(list: &mut Value) {
    let items = list.get_mut("items").and_then(Value::as_array_mut);
    for item in items.into_iter().flatten() {
        let name = item.pointer("/metadata/name").cloned().unwrap_or_default();
        let versions = item.pointer("/spec/versions").and_then(Value::as_array).cloned().unwrap_or_default();
        let served = versions.iter().filter(|version| version.get("served") == Some(&Value::Bool(true)));
        let served: Vec<_> = served.filter_map(|version| version.get("name").cloned()).collect();
        *item = json!({"name": name, "served": served});
    }
}

async fn get(cluster: &Cluster, path: &str) -> anyhow::Result<Value> {
    let request = Request::get(path).body(Vec::new())?;
    cluster.client().request(request).await.map_err(|error| reading(path, &error))
}

/// All objects of the mesh's groups.
async fn rules(cluster: &Cluster, archive: &mut Archive) -> anyhow::Result<()> {
    let groups = match cluster.client().list_api_groups().await {
        Ok(groups) => groups.groups,
        Err(error) => {
            archive.failed("the mesh's rules", &reading("the API's groups", &error));
            return Ok(());
        }
    };
    let there: BTreeSet<String> = groups.into_iter().map(|group| group.name).collect();
    for group in GROUPS.into_iter().filter(|group| there.contains(*group)) {
        let found = match kube::discovery::group(cluster.client(), group).await {
            Ok(found) => found,
            Err(error) => {
                archive.failed(group, &reading(group, &error));
                continue;
            }
        };
        for (kind, capabilities) in found.recommended_resources() {
            if capabilities.supports_operation(verbs::LIST) {
                list(cluster, &kind, archive).await?;
            }
        }
    }
    Ok(())
}

async fn list(cluster: &Cluster, kind: &ApiResource, archive: &mut Archive) -> anyhow::Result<()> {
    match get(cluster, &format!("/apis/{}/{}", kind.api_version, kind.plural)).await {
        Ok(list) => archive.json(&format!("rules/{}.{}.json", kind.plural, kind.group), list),
        Err(error) => {
            archive.failed(&kind.plural, &error);
            Ok(())
        }
    }
}

/// What one agent said; each part on its own, since any may be missing.
struct Said {
    status: anyhow::Result<Value>,
    dump: anyhow::Result<Value>,
    metrics: anyhow::Result<String>,
}

async fn agents(cluster: &Cluster, node: Option<&str>, archive: &mut Archive) -> anyhow::Result<()> {
    let agents = match cluster.agents(node).await {
        Ok(agents) => agents,
        Err(error) => {
            archive.failed("the agents", &error);
            return Ok(());
        }
    };
    let answered = asked_all(agents, async |agent| Ok(ask(cluster, &agent).await)).await;
    for silent in &answered.silent {
        archive.failed(&format!("the agent of {}", silent.node), &anyhow::anyhow!("{}", silent.error));
    }
    for (agent, said) in answered.answers {
        for (name, part) in [("status", said.status), ("dump", said.dump)] {
            match part {
                Ok(value) => archive.json(&format!("agents/{}/{name}.json", agent.node), value)?,
                Err(error) => archive.failed(&format!("{name} of {}", agent.node), &error),
            }
        }
        match said.metrics {
            Ok(text) => archive.text(&format!("agents/{}/metrics.txt", agent.node), &text)?,
            Err(error) => archive.failed(&format!("metrics of {}", agent.node), &error),
        }
    }
    Ok(())
}

async fn ask(cluster: &Cluster, agent: &Agent) -> Said {
    let json = async |command: &str| -> anyhow::Result<Value> {
        cluster.exec(agent, &["weft", command, "-o", "json"], None).await?.json()
    };
    let path = format!("/api/v1/namespaces/{}/pods/{}:15020/proxy/metrics", cluster.system(), agent.pod);
    let metrics = async {
        let request = Request::get(&path).body(Vec::new())?;
        cluster
            .client()
            .request_text(request)
            .await
            .context("the API server cannot reach the agent's metrics")
    };
    Said { status: json("status").await, dump: json("dump").await, metrics: metrics.await }
}

/// The end of each log in Weft's namespace, and of the run before where there was one.
async fn logs(cluster: &Cluster, node: Option<&str>, tail: u32, archive: &mut Archive) -> anyhow::Result<()> {
    let pods: Api<Pod> = Api::namespaced(cluster.client().clone(), cluster.system());
    let listed = match pods.list(&ListParams::default()).await {
        Ok(listed) => listed,
        Err(error) => {
            archive.failed("the logs", &reading("the pods", &error));
            return Ok(());
        }
    };
    for pod in listed {
        let runs_on = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
        let is_agent = pod
            .metadata
            .labels
            .as_ref()
            .and_then(|labels| labels.get("app"))
            .is_some_and(|app| app == "weft-agent");
        if is_agent && node.is_some_and(|node| runs_on != Some(node)) {
            continue;
        }
        let Some(name) = pod.metadata.name.clone() else { continue };
        let restarted = restarted(&pod);
        let spec = pod.spec.unwrap_or_default();
        // Sidecars are init containers that stay.
        for container in spec.containers.into_iter().chain(spec.init_containers.into_iter().flatten()) {
            for previous in [false, true] {
                if previous && !restarted.contains(&container.name) {
                    continue;
                }
                let suffix = if previous { ".previous" } else { "" };
                let file = format!("logs/{name}.{}{suffix}.log", container.name);
                let which = LogParams {
                    container: Some(container.name.clone()),
                    previous,
                    tail_lines: Some(tail.into()),
                    timestamps: true,
                    ..LogParams::default()
                };
                match pods.logs(&name, &which).await {
                    Ok(text) => archive.text(&file, &text)?,
                    Err(error) => archive.failed(&file, &reading("the log", &error)),
                }
            }
        }
    }
    Ok(())
}

/// Containers that have run before.
fn restarted(pod: &Pod) -> BTreeSet<String> {
    let statuses = pod.status.iter().flat_map(|status| {
        [&status.container_statuses, &status.init_container_statuses].into_iter().flatten().flatten()
    });
    let again = statuses.filter(|status| status.restart_count > 0);
    again.map(|status| status.name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_definitions_only_the_names_are_kept() {
        let mut list = json!({"items": [{"metadata": {"name": "things.weft.dev"}, "spec": {"versions": [
            {"name": "v1", "served": true, "schema": {}}, {"name": "v1alpha1", "served": false}]}}]});
        only_names(&mut list);
        assert_eq!(list, json!({"items": [{"name": "things.weft.dev", "served": ["v1"]}]}));
    }
}
