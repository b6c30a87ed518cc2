//! From destinations to clusters.

use std::sync::Arc;

use smallvec::SmallVec;

use super::cache::Parts;
use super::hosts::Named;
use super::{Caller, Cluster, ClusterPolicy, Forward, MirrorTarget, Target};
use crate::Snapshot;
use crate::compile::routing::policies::{self, Client};
use crate::compile::routing::rules::{CompiledForward, CompiledRule};
use crate::resource::destination_rule::LoadBalancer;
use crate::resource::virtual_service::{DestinationRef, PerMillion};
use crate::snapshot::{CompiledService, Endpoint};

/// What `rule` says about requests that it forwards.
pub(super) fn by_rule(
    snapshot: &Snapshot,
    caller: &Caller<'_>,
    rule: &CompiledRule,
    forward: &CompiledForward,
) -> Forward {
    let targets: SmallVec<[Target; 1]> = forward
        .targets
        .iter()
        .map(|target| Target {
            cluster: cluster_of(snapshot, caller, &target.destination),
            weight: target.weight,
            headers: target.headers.clone(),
        })
        .collect();
    let mirrors = rule.mirrors.iter().filter(|(_, share)| *share > PerMillion(0));
    let mirrors = mirrors.map(|(destination, share)| MirrorTarget {
        cluster: cluster_of(snapshot, caller, destination),
        share: *share,
    });
    let retry = rule.retry.as_ref().unwrap_or(&snapshot.routing.default_retry);
    let hashing = forward.single && targets.first().is_some_and(hashes);
    Forward {
        timeout: rule.timeout,
        retry: if hashing { retry.hashing.clone() } else { retry.usual.clone() },
        fault: rule.fault.clone(),
        mirrors: mirrors.collect(),
        targets,
    }
}

/// The Service's own default: its port as it was named.
pub(super) fn by_default(snapshot: &Snapshot, caller: &Caller<'_>, named: &Named) -> Option<Forward> {
    let mut cluster = cluster(snapshot, caller, &named.service, (named.port, None)).ok()?;
    if named.endpoint {
        let policy = (*cluster.policy).clone();
        let policy = Arc::new(ClusterPolicy { load_balancer: LoadBalancer::Passthrough, ..policy });
        cluster = Arc::new(Cluster { policy, ..(*cluster).clone() });
    }
    let headers = snapshot.routing.no_headers.clone();
    let target = Target { cluster: Ok(cluster), weight: 1, headers };
    let retry = &snapshot.routing.default_retry;
    let retry = if hashes(&target) { retry.hashing.clone() } else { retry.usual.clone() };
    Some(Forward {
        targets: SmallVec::from_iter([target]),
        timeout: None,
        retry,
        fault: None,
        mirrors: SmallVec::new(),
    })
}

fn hashes(target: &Target) -> bool {
    target.cluster.as_ref().is_ok_and(|cluster| cluster.policy.hash_key().is_some())
}

/// The cluster of a destination; `Err` is the name of one that does not exist (E25).
pub(crate) fn cluster_of(
    snapshot: &Snapshot,
    caller: &Caller<'_>,
    destination: &DestinationRef,
) -> Result<Arc<Cluster>, Arc<str>> {
    let listener = caller.original.port();
    let subset = destination.subset.as_ref();
    let missing = |port: u16| cluster_name(port, subset.map(|name| &**name), &destination.host);
    let named = snapshot.routing.services.get(&*destination.host);
    let client = &*caller.workload.key.namespace;
    let Some(service) = named.and_then(|service| snapshot.concrete_for(service, client)) else {
        return Err(missing(destination.port.unwrap_or(listener)));
    };
    // V-15.
    let number = destination.port.unwrap_or(match service.ports.as_ref() {
        [only] => only.port,
        _ => listener,
    });
    let at = service.ports.iter().position(|port| port.port == number).ok_or_else(|| missing(number))?;
    cluster(snapshot, caller, service, (at, subset))
}

/// A Service's port, by its index, and a subset, as this client sees it.
fn cluster(
    snapshot: &Snapshot,
    caller: &Caller<'_>,
    service: &Arc<CompiledService>,
    (at, subset): (usize, Option<&Arc<str>>),
) -> Result<Arc<Cluster>, Arc<str>> {
    let port = service.ports.get(at);
    let number = port.map(|port| port.port).unwrap_or_default();
    let name = || cluster_name(number, subset.map(|name| &**name), &service.host);
    let Some(port) = port else { return Err(name()) };
    let client = Client { namespace: &caller.workload.key.namespace, labels: caller.labels };
    let namespaces = [&*service.key.namespace, &*snapshot.mesh.root_namespace];
    let rule = policies::find(&snapshot.routing.rules, client, &service.host, namespaces);
    let (endpoints, policy) = match (subset, rule) {
        (None, None) => (port.endpoints.clone(), &snapshot.routing.default_policy),
        (None, Some(rule)) => (port.endpoints.clone(), rule.policy(number)),
        (Some(_), None) => return Err(name()),
        (Some(wanted), Some(rule)) => {
            let Some((subset, policy)) = rule.subset(wanted, number) else { return Err(name()) };
            (endpoints_of_subset(snapshot, service, at, &subset.labels), policy)
        }
    };
    let build = || Cluster {
        name: name(),
        host: service.host.clone(),
        port: number,
        subset: subset.cloned(),
        service: service.clone(),
        service_port: at,
        endpoints: endpoints.clone(),
        policy: policy.clone(),
    };
    let parts = Parts { service, port: at, subset, endpoints: &endpoints, policy };
    Ok(snapshot.routing.clusters.get(parts, build))
}

fn endpoints_of_subset(
    snapshot: &Snapshot,
    service: &CompiledService,
    at: usize,
    labels: &crate::resource::Labels,
) -> Arc<[Endpoint]> {
    let table = snapshot.routing.subsets.get(&service.key);
    // The compiler has the table of every Service and subset that a DestinationRule names.
    table.and_then(|table| table.get(labels, at)).cloned().unwrap_or_default()
}

/// `outbound|PORT|SUBSET|HOST` (L-4).
fn cluster_name(port: u16, subset: Option<&str>, host: &str) -> Arc<str> {
    format!("outbound|{port}|{}|{host}", subset.unwrap_or_default()).into()
}
