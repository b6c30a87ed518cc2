//! Pod.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use smallvec::SmallVec;
use weft_core::names;
use weft_core::resource::{Kind, Owner, Pod, Resource};

use super::fields::{Body, Ip, Port, Text, nullable};
use super::intern::{Interner, WrittenPort};
use super::meta::{self, MetaWire};
use super::report::{Place, Report};
use super::{Read, Trust};

#[derive(Deserialize)]
#[serde(expecting = "a map of fields")]
struct PodWire<'a> {
    #[serde(borrow, default, deserialize_with = "nullable")]
    metadata: MetaWire<'a>,
    #[serde(borrow, default, deserialize_with = "nullable")]
    spec: PodSpec<'a>,
    #[serde(borrow, default, deserialize_with = "nullable")]
    status: PodStatus<'a>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
#[serde(expecting = "a map of fields")]
struct PodSpec<'a> {
    #[serde(borrow, default)]
    node_name: Text<'a>,
    #[serde(borrow, default)]
    service_account_name: Text<'a>,
    /// The deprecated name of the same.
    #[serde(borrow, default)]
    service_account: Text<'a>,
    #[serde(default, deserialize_with = "nullable")]
    host_network: bool,
    #[serde(borrow, default)]
    runtime_class_name: Text<'a>,
    #[serde(borrow, default, deserialize_with = "nullable")]
    containers: Vec<Container<'a>>,
    #[serde(borrow, default, deserialize_with = "nullable")]
    init_containers: Vec<Container<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[serde(expecting = "a map of fields")]
struct Container<'a> {
    #[serde(borrow, default, deserialize_with = "nullable")]
    ports: Vec<PortWire<'a>>,
    #[serde(borrow, default)]
    restart_policy: Text<'a>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[serde(expecting = "a map of fields")]
struct PortWire<'a> {
    #[serde(borrow, default)]
    name: Text<'a>,
    #[serde(default)]
    container_port: Port,
    #[serde(borrow, default)]
    protocol: Text<'a>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
#[serde(expecting = "a map of fields")]
struct PodStatus<'a> {
    #[serde(default, rename = "podIP")]
    pod_ip: Ip,
    #[serde(default, rename = "podIPs", deserialize_with = "nullable")]
    pod_ips: SmallVec<[PodIp; 2]>,
    #[serde(borrow, default)]
    phase: Text<'a>,
    #[serde(borrow, default, deserialize_with = "nullable")]
    conditions: Vec<PodCondition<'a>>,
}

#[derive(Deserialize)]
#[serde(expecting = "a map of fields")]
struct PodIp {
    #[serde(default)]
    ip: Ip,
}

#[derive(Deserialize)]
#[serde(expecting = "a map of fields")]
struct PodCondition<'a> {
    #[serde(borrow, default, rename = "type")]
    kind: Text<'a>,
    #[serde(borrow, default)]
    status: Text<'a>,
}

const NETNS_ANNOTATION: &str = "weft.dev/netns";

pub(super) fn pod<'a>(body: Body<'_>, place: Place<'a>, interner: &mut Interner, trust: Trust) -> Read<'a> {
    let PodWire { metadata, spec, status } = body.read()?;
    let (meta, mut report) = meta::namespaced(&metadata, Kind::Pod, place, interner);
    let account =
        spec.service_account_name.non_empty().or(spec.service_account.non_empty()).unwrap_or("default");
    meta::check_name(&mut report, "spec.serviceAccountName", account, 253);
    let over = matches!(status.phase.as_str(), "Succeeded" | "Failed");
    let pod = Pod {
        labels: interner.labels(&metadata.labels.0, |_| true),
        annotations: interner.labels(&metadata.annotations.0, meta::is_read_annotation),
        node: spec.node_name.non_empty().map(|name| interner.text(name)),
        ips: addresses(&status),
        service_account: interner.text(account),
        host_network: spec.host_network,
        runtime_class: spec.runtime_class_name.non_empty().map(|name| interner.text(name)),
        // A pod that is being deleted takes no new connections, but it still runs: policy holds until it is over.
        ready: is_ready(&status.conditions) && metadata.deletion_timestamp.is_none(),
        terminated: over,
        owner: owner(&metadata, interner),
        ports: interner.ports(&ports(&spec)),
        netns: netns(&metadata, trust, &mut report),
        uid: uid(&metadata),
        meta,
    };
    Ok((Resource::Pod(pod), report))
}

fn addresses(status: &PodStatus<'_>) -> SmallVec<[std::net::IpAddr; 2]> {
    let listed: SmallVec<_> = status.pod_ips.iter().filter_map(|entry| entry.ip.0).collect();
    if listed.is_empty() { status.pod_ip.0.into_iter().collect() } else { listed }
}

/// A pod without a Ready condition is ready (ruling 16).
fn is_ready(conditions: &[PodCondition<'_>]) -> bool {
    let condition = conditions.iter().find(|condition| condition.kind.as_str() == "Ready");
    condition.is_none_or(|condition| condition.status.as_str() == "True")
}

/// TCP ports of the containers that run as long as the pod does.
fn ports<'w>(spec: &'w PodSpec<'_>) -> SmallVec<[WrittenPort<'w>; 8]> {
    let sidecars = spec.init_containers.iter().filter(|init| init.restart_policy.as_str() == "Always");
    let declared = spec.containers.iter().chain(sidecars).flat_map(|container| &container.ports);
    let tcp = declared.filter(|port| matches!(port.protocol.as_str(), "" | "TCP"));
    tcp.filter_map(|port| port.container_port.0.map(|number| (port.name.as_str(), number))).collect()
}

/// The controller, with the Deployment behind a ReplicaSet and the CronJob behind a Job.
fn owner(metadata: &MetaWire<'_>, interner: &mut Interner) -> Option<Arc<Owner>> {
    let controller = metadata.owner_references.iter().find(|owner| owner.controller);
    let owner = controller.or(metadata.owner_references.first())?;
    let (kind, name) = (owner.kind.as_str(), owner.name.as_str());
    let (stem, suffix) = name.rsplit_once('-').unwrap_or((name, ""));
    let hash = !suffix.is_empty() && suffix.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    // A CronJob numbers its Jobs with the minute (8 digits) for which they were due.
    let minute = suffix.len() >= 8 && suffix.bytes().all(|c| c.is_ascii_digit());
    Some(match kind {
        "ReplicaSet" if hash => interner.owner("Deployment", stem),
        "Job" if minute => interner.owner("CronJob", stem),
        _ => interner.owner(kind, name),
    })
}

/// The kubelet runs a static pod under the uid of its manifest; the object in the API has another one.
fn uid(metadata: &MetaWire<'_>) -> Option<Arc<str>> {
    let of_manifest = metadata.annotations.get(names::MIRROR).and_then(|uid| uid.non_empty());
    of_manifest.or(metadata.uid.non_empty()).map(Arc::from)
}

/// Ruling 13: only whoever writes the machine's files may name a network namespace.
fn netns(metadata: &MetaWire<'_>, trust: Trust, report: &mut Report<'_>) -> Option<PathBuf> {
    let path = metadata.annotations.get(NETNS_ANNOTATION)?.non_empty()?;
    if trust == Trust::Api {
        return None;
    }
    if !Path::new(path).is_absolute() {
        let message =
            format!("`{path}` is not an absolute path, so the pod's network namespace cannot be found.");
        report.reject(
            "metadata.annotations[weft.dev/netns]",
            message,
            "Write a path such as /run/netns/web.",
        );
    }
    Some(PathBuf::from(path))
}
