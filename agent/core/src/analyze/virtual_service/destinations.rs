//! Where VirtualServices send to: hosts, ports, subsets (V-15).

use std::collections::BTreeSet;

use super::super::hosts::{Hosts, complete};
use super::super::objects::{Destination, DestinationList, ObjectSet, VirtualService};
use super::super::{Findings, codes};

/// Checks the destinations of all VirtualServices.
pub(super) fn check(set: &ObjectSet, findings: &mut Findings) {
    let hosts = Hosts::new(set);
    let subsets = subsets(set);
    let in_mesh = in_mesh(set);
    for service in &set.virtual_services {
        for destination in &service.destinations {
            host_and_port(service, destination, &hosts, findings);
            subset(service, destination, &subsets, findings);
        }
        passes_by(service, &in_mesh, findings);
    }
}

fn host_and_port(
    service: &VirtualService,
    destination: &Destination,
    hosts: &Hosts<'_>,
    findings: &mut Findings,
) {
    let Destination { field, host, port, .. } = destination;
    let Some(target) = hosts.find(&service.head.namespace, &service.export_to, host) else {
        let message =
            format!("There is no Service and no ServiceEntry with the host `{host}`, so requests fail.");
        let field = format!("{field}.host");
        findings.add(codes::NOT_FOUND, (&service.head, &field), message, "Correct the host.");
        return;
    };
    let ports = target.ports();
    let known: Vec<String> = ports.iter().map(i64::to_string).collect();
    let field = format!("{field}.port");
    match port {
        None if ports.len() > 1 => {
            let message = format!("`{host}` has several ports: {}.", known.join(", "));
            findings.add(codes::PORT_REQUIRED, (&service.head, &field), message, "Add `port.number`.");
        }
        Some(number) if !ports.contains(number) => {
            let message = format!("`{host}` has no port {number}; it has {}.", known.join(", "));
            findings.add(codes::NOT_FOUND, (&service.head, &field), message, "Correct the port.");
        }
        None | Some(_) => {}
    }
}

/// Hosts with the names of their subsets.
fn subsets(set: &ObjectSet) -> BTreeSet<(String, &str)> {
    let of_rules = set.destination_rules.iter().flat_map(|rule| {
        let host = complete(&rule.head.namespace, &rule.host);
        rule.subsets.iter().map(move |(name, _)| (host.clone(), name.as_str()))
    });
    of_rules.collect()
}

fn subset(
    service: &VirtualService,
    destination: &Destination,
    known: &BTreeSet<(String, &str)>,
    findings: &mut Findings,
) {
    let Destination { field, host, subset, .. } = destination;
    if subset.is_empty() || known.contains(&(complete(&service.head.namespace, host), subset)) {
        return;
    }
    let message = format!("No DestinationRule for `{host}` has a subset `{subset}`, so requests get 503.");
    let field = format!("{field}.subset");
    findings.add(codes::NOT_FOUND, (&service.head, &field), message, "Add the subset, or correct its name.");
}

/// Hosts that a VirtualService sends to subsets of itself, with that VirtualService.
fn in_mesh(set: &ObjectSet) -> Vec<(&str, &VirtualService)> {
    let of_services = set.virtual_services.iter().flat_map(|service| {
        let own = service.destinations.iter().filter(|destination| {
            destination.list == DestinationList::Http
                && !destination.subset.is_empty()
                && service.hosts.contains(&destination.host)
        });
        own.map(move |destination| (destination.host.as_str(), service))
    });
    of_services.collect()
}

/// A request through a Gateway is routed once, by the Gateway's VirtualService: subsets that another one chooses
/// for clients in the mesh have no part in it.
fn passes_by(service: &VirtualService, in_mesh: &[(&str, &VirtualService)], findings: &mut Findings) {
    if service.gateways.is_empty() {
        return;
    }
    let whole = service
        .destinations
        .iter()
        .filter(|destination| destination.list == DestinationList::Http && destination.subset.is_empty());
    for destination in whole {
        for (_, other) in in_mesh.iter().filter(|(host, _)| *host == destination.host) {
            let message = format!(
                "The VirtualService {} chooses subsets of `{}` for clients in the mesh; requests through this one's \
                 gateways pass it by.",
                other.head.full_name(),
                destination.host
            );
            let place = (&service.head, destination.field.as_str());
            findings.add(codes::INGRESS_PASSES_BY, place, message, "Choose the subset here as well.");
        }
    }
}
