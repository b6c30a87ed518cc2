//! Namespace, Node, ServiceAccount: where workloads live and who they are.

use serde::Deserialize;
use weft_core::resource::{Kind, Namespace, Node, Resource};

use super::Read;
use super::fields::{Body, Ip, Text, nullable};
use super::intern::Interner;
use super::meta::{self, MetaWire};
use super::report::Place;

#[derive(Deserialize)]
#[serde(expecting = "a map of fields")]
struct MetaOnly<'a> {
    #[serde(borrow, default, deserialize_with = "nullable")]
    metadata: MetaWire<'a>,
}

#[derive(Deserialize)]
#[serde(expecting = "a map of fields")]
struct NodeWire<'a> {
    #[serde(borrow, default, deserialize_with = "nullable")]
    metadata: MetaWire<'a>,
    #[serde(borrow, default, deserialize_with = "nullable")]
    status: NodeStatus<'a>,
}

#[derive(Default, Deserialize)]
#[serde(expecting = "a map of fields")]
struct NodeStatus<'a> {
    #[serde(borrow, default, deserialize_with = "nullable")]
    addresses: Vec<NodeAddress<'a>>,
}

#[derive(Deserialize)]
#[serde(expecting = "a map of fields")]
struct NodeAddress<'a> {
    #[serde(borrow, default, rename = "type")]
    kind: Text<'a>,
    #[serde(borrow, default)]
    address: Text<'a>,
}

/// The label that an API server gives to every Namespace, and files need not have: its name.
const NAME: &str = "kubernetes.io/metadata.name";

pub(super) fn namespace<'a>(body: Body<'_>, place: Place<'a>, interner: &mut Interner) -> Read<'a> {
    let MetaOnly { mut metadata } = body.read()?;
    let report = meta::cluster_scoped(&metadata, Kind::Namespace, place, interner);
    if metadata.labels.get(NAME).is_none() {
        metadata.labels.0.push((Text(NAME.into()), metadata.name.clone()));
    }
    let namespace = Namespace {
        name: report.key.name.clone(),
        labels: interner.labels(&metadata.labels.0, |_| true),
        annotations: interner.labels(&metadata.annotations.0, meta::is_read_annotation),
        origin: place.origin.cloned(),
    };
    Ok((Resource::Namespace(namespace), report))
}

pub(super) fn node<'a>(body: Body<'_>, place: Place<'a>, interner: &mut Interner) -> Read<'a> {
    let NodeWire { metadata, status } = body.read()?;
    let mut report = meta::cluster_scoped(&metadata, Kind::Node, place, interner);
    let mut addresses = Vec::new();
    for (at, address) in status.addresses.iter().enumerate() {
        // Others are host names.
        if !matches!(address.kind.as_str(), "InternalIP" | "ExternalIP") {
            continue;
        }
        match serde_json::from_value(address.address.as_str().into()) {
            Ok(Ip(ip)) => addresses.extend(ip),
            Err(error) => report.reject(
                format_args!("status.addresses[{at}].address"),
                format!("The address of the node cannot be read: {error}."),
                "Write an IPv4 or IPv6 address.",
            ),
        }
    }
    let node = Node {
        name: report.key.name.clone(),
        addresses,
        labels: interner.labels(&metadata.labels.0, |_| true),
    };
    Ok((Resource::Node(node), report))
}

pub(super) fn service_account<'a>(body: Body<'_>, place: Place<'a>, interner: &mut Interner) -> Read<'a> {
    let MetaOnly { metadata } = body.read()?;
    let (meta, report) = meta::namespaced(&metadata, Kind::ServiceAccount, place, interner);
    Ok((Resource::ServiceAccount(meta), report))
}
