//! `spec.tls` and `spec.tcp` (V-30, V-31).

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use weft_core::resource::virtual_service::{ConnectionMatch, DestinationRef, TcpRule, TlsMatch, TlsRule};

use super::super::fields::{List, Pairs, Text};
use super::super::networking::{Reader, host_is_within, shown};
use super::super::report::Path;
use super::super::validated::names;
use super::wire::{ConnectionRouteWire, TcpMatchWire, TcpWire, TlsMatchWire, TlsWire};
use super::{Scope, check_name, destinations};
use crate::codes;

pub(super) fn tls_rules(
    wires: &[TlsWire<'_>],
    scope: Scope<'_>,
    reader: &mut Reader<'_, '_>,
) -> Vec<TlsRule> {
    let root = Path::Root("spec.tls");
    wires.iter().enumerate().map(|(index, wire)| tls_rule(wire, scope, &root.index(index), reader)).collect()
}

fn tls_rule(wire: &TlsWire<'_>, scope: Scope<'_>, at: &Path<'_>, reader: &mut Reader<'_, '_>) -> TlsRule {
    let at_match = at.field("match");
    if wire.matches.items.is_empty() {
        let message = "A rule for TLS needs at least one match (V-30).";
        reader.report.reject(at_match, message, "Write `match` with `sniHosts`.");
    }
    let matches = wire.matches.items.iter().enumerate();
    let matches =
        matches.map(|(index, wire)| tls_match(wire, scope, &at_match.index(index), reader)).collect();
    TlsRule { matches, routes: routes(&wire.route.items, &at.field("route"), reader) }
}

fn tls_match(
    wire: &TlsMatchWire<'_>,
    scope: Scope<'_>,
    at: &Path<'_>,
    reader: &mut Reader<'_, '_>,
) -> TlsMatch {
    let at_hosts = at.field("sniHosts");
    if wire.sni_hosts.items.is_empty() {
        let message = "A match of TLS needs at least one server name (V-30).";
        reader.report.reject(at_hosts, message, "Write `sniHosts`.");
    }
    for (index, host) in wire.sni_hosts.items.iter().enumerate() {
        check_sni_host(host.as_str(), scope, &at_hosts.index(index), reader);
    }
    let connection = connection(
        &Conditions {
            subnets: &wire.destination_subnets,
            port: wire.port.get(),
            labels: &wire.source_labels,
            namespace: &wire.source_namespace,
            gateways: &wire.gateways,
        },
        at,
        reader,
    );
    TlsMatch { sni_hosts: sni_hosts(&wire.sni_hosts, reader), connection }
}

/// Server names are compared as they are: short ones are not completed, for clients send what they dialled.
fn sni_hosts(list: &List<Text<'_>>, reader: &mut Reader<'_, '_>) -> Vec<Arc<str>> {
    list.items.iter().map(|host| reader.text(&host.as_str().to_ascii_lowercase())).collect()
}

fn check_sni_host(host: &str, scope: Scope<'_>, at: &Path<'_>, reader: &mut Reader<'_, '_>) {
    match check_name(host, scope.gateways_only) {
        Ok(()) if scope.hosts.iter().any(|of| host_is_within(host, of.as_str())) => {}
        Ok(()) => {
            let message = format!("The server name {} is not within `spec.hosts` (V-30).", shown(host));
            reader.report.reject(at, message, "Add it to `spec.hosts`, or remove it.");
        }
        Err(_) if names::is_address(host) => {
            let message =
                format!("{} is an address; clients do not send addresses as server names.", shown(host));
            reader.report.add(codes::SCHEMA_WARNING, at, message, "Write the name that clients ask for.");
        }
        Err(why) => reader.bad_host(host, &why, at),
    }
}

pub(super) fn tcp_rules(wires: &[TcpWire<'_>], reader: &mut Reader<'_, '_>) -> Vec<TcpRule> {
    let root = Path::Root("spec.tcp");
    let mut rules = Vec::with_capacity(wires.len());
    for (index, wire) in wires.iter().enumerate() {
        let at = root.index(index);
        let at_match = at.field("match");
        let matches = wire.matches.items.iter().enumerate();
        let matches = matches.map(|(index, wire)| tcp_match(wire, &at_match.index(index), reader)).collect();
        rules.push(TcpRule { matches, routes: routes(&wire.route.items, &at.field("route"), reader) });
    }
    rules
}

fn tcp_match(wire: &TcpMatchWire<'_>, at: &Path<'_>, reader: &mut Reader<'_, '_>) -> ConnectionMatch {
    if wire.source_subnet.non_empty().is_some() {
        reader.not_applied(
            at.field("sourceSubnet"),
            "clients are told apart by `sourceLabels` and `sourceNamespace`",
        );
    }
    let conditions = Conditions {
        subnets: &wire.destination_subnets,
        port: wire.port.get(),
        labels: &wire.source_labels,
        namespace: &wire.source_namespace,
        gateways: &wire.gateways,
    };
    connection(&conditions, at, reader)
}

/// What `tls[].match[]` and `tcp[].match[]` have in common.
struct Conditions<'w, 'a> {
    subnets: &'w List<Text<'a>>,
    port: i64,
    labels: &'w Pairs<'a>,
    namespace: &'w Text<'a>,
    gateways: &'w List<Text<'a>>,
}

fn connection(wire: &Conditions<'_, '_>, at: &Path<'_>, reader: &mut Reader<'_, '_>) -> ConnectionMatch {
    ConnectionMatch {
        destination_subnets: subnets(wire.subnets, &at.field("destinationSubnets"), reader),
        port: reader.optional_port(wire.port, &at.field("port")),
        source_labels: reader.labels(wire.labels, &at.field("sourceLabels")),
        source_namespace: reader.optional(wire.namespace),
        gateways: reader.gateways(wire.gateways, &at.field("gateways")),
    }
}

fn subnets(list: &List<Text<'_>>, at: &Path<'_>, reader: &mut Reader<'_, '_>) -> Vec<IpNet> {
    let mut subnets = Vec::with_capacity(list.items.len());
    for (index, text) in list.items.iter().enumerate() {
        match subnet(text.as_str()) {
            Some(subnet) => subnets.push(subnet),
            None => {
                let message = format!("{} is not an IP address or range.", shown(text.as_str()));
                reader.report.reject(at.index(index), message, "Write for example 10.0.0.0/8 or fd00::/8.");
            }
        }
    }
    subnets
}

/// An address, which may have a zone, or a range.
fn subnet(text: &str) -> Option<IpNet> {
    if text.contains('/') {
        return text.parse::<IpNet>().ok().map(|subnet| subnet.trunc());
    }
    let address = text.split('%').next().unwrap_or(text);
    names::is_address(text).then(|| address.parse().ok().map(|address: IpAddr| IpNet::from(address)))?
}

fn routes(
    wires: &[ConnectionRouteWire<'_>],
    at: &Path<'_>,
    reader: &mut Reader<'_, '_>,
) -> Vec<(DestinationRef, u32)> {
    if wires.is_empty() {
        reader.report.reject(at, "The rule has no target.", "Write `route` with a `destination`.");
    }
    let mut routes = Vec::with_capacity(wires.len());
    for (index, wire) in wires.iter().enumerate() {
        let destination = destinations::required(wire.destination.as_ref(), &at.index(index), reader);
        routes.extend(destination.map(|to| (to, destinations::weight(wire.weight.get()))));
    }
    let weights: Vec<_> = wires.iter().map(|wire| wire.weight.get()).collect();
    destinations::check_weights(&weights, at, reader);
    routes
}
