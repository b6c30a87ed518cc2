//! VirtualServices (V-32).

mod destinations;
mod gateways;
mod reachability;

use std::collections::{BTreeMap, BTreeSet};

use super::hosts::{EVERYWHERE, complete, overlap, scopes};
use super::objects::{ObjectSet, VirtualService};
use super::{Findings, codes, listed};

/// Sidecars and node agents, as opposed to Gateways.
const MESH: &str = "mesh";

/// Checks all VirtualServices.
pub(super) fn check(set: &ObjectSet, findings: &mut Findings) {
    for service in &set.virtual_services {
        for at in &service.delays_in_percent {
            let field = format!("spec.http[{at}].fault.delay.percent");
            let message = "`percent` is deprecated.";
            findings.add(codes::DEPRECATED, (&service.head, &field), message, "Use `percentage.value`.");
        }
        reachability::check(service, findings);
    }
    conflicts(set, findings);
    destinations::check(set, findings);
    gateways::check(set, findings);
}

/// Hosts by who sees them, and the VirtualServices that have them.
type Claims<'s> = BTreeMap<(&'s str, String), Vec<&'s VirtualService>>;

/// hosts of the mesh are not merged, so of several VirtualServices for one host only the first is in force.
fn conflicts(set: &ObjectSet, findings: &mut Findings) {
    let mut claims = Claims::new();
    for service in &set.virtual_services {
        if !service.gateways.is_empty() && !service.gateways.iter().any(|gateway| gateway == MESH) {
            continue;
        }
        let namespace = service.head.namespace.as_str();
        for scope in scopes(&service.export_to, namespace) {
            for host in &service.hosts {
                claims.entry((scope, complete(namespace, host))).or_default().push(service);
            }
        }
    }
    let mut told: BTreeSet<(&str, &str, &str)> = BTreeSet::new();
    // Narrow scopes see the wide one as well, and tell more: `*` sorts before all names.
    for ((scope, host), own) in claims.iter().rev() {
        let mut all = own.clone();
        if *scope != EVERYWHERE {
            let public =
                claims.iter().filter(|((scope, other), _)| *scope == EVERYWHERE && overlap(host, other));
            all.extend(public.flat_map(|(_, services)| services));
        }
        if all.len() < 2 {
            continue;
        }
        let names: Vec<String> = all.iter().map(|service| service.head.full_name()).collect();
        let message = format!(
            "The VirtualServices {} have the host `{host}` for the same clients; only the oldest is in force.",
            listed(names.iter().map(String::as_str))
        );
        for service in all {
            if !told.insert((&service.head.namespace, &service.head.name, host)) {
                continue;
            }
            let fix = "Merge them into one VirtualService.";
            findings.add(codes::CONFLICTING_HOSTS, (&service.head, "spec.hosts"), message.as_str(), fix);
        }
    }
}
