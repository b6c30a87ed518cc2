//! ServiceEntry (SE-1 and following).

use serde_json::Value;

use super::super::report::{Path, Report};
use super::Object;
use super::names::{self, Protocol};
use super::schema::{MANY, TEXT, TEXTS, Type, UNSIGNED, may, must, short};
use super::shared::{self, ENDPOINT, Owner, WORKLOAD_SELECTOR};
use super::value::{get, has, items, number, text, texts};
use crate::codes;

const PORT: Type = Type::Object(&[
    must("name", short(256)),
    must("number", UNSIGNED),
    may("protocol", short(256)),
    may("targetPort", UNSIGNED),
]);

/// The fields of `spec`.
pub(super) const SPEC: Type = Type::Object(&[
    may("addresses", Type::List(&short(64), 0, 256)),
    may("endpoints", Type::List(&ENDPOINT, 0, 4096)),
    may("exportTo", TEXTS),
    must("hosts", Type::List(&TEXT, 1, 256)),
    may("location", Type::OneOf(&["MESH_EXTERNAL", "MESH_INTERNAL"])),
    may("ports", Type::List(&PORT, 0, 256)),
    may("resolution", Type::OneOf(&["NONE", "STATIC", "DNS", "DNS_ROUND_ROBIN", "DYNAMIC_DNS"])),
    may("subjectAltNames", Type::List(&TEXT, 0, MANY)),
    may("workloadSelector", WORKLOAD_SELECTOR),
]);

const SPEC_ROOT: Path<'static> = Path::Root("spec");

/// What belongs together.
pub(super) fn check(object: &Object<'_>, report: &mut Report<'_>) {
    let spec = object.spec;
    shared::selector(spec, "workloadSelector", "labels", &SPEC_ROOT, report);
    if has(spec, "workloadSelector") && has(spec, "endpoints") {
        let message = "`workloadSelector` and `endpoints` exclude each other.";
        report.reject("spec.endpoints", message, "Keep one of them.");
    }
    hosts(spec, report);
    addresses(spec, report);
    let names = ports(spec, report);
    match text(spec, "resolution") {
        "" | "NONE" => resolution_none(spec, report),
        "STATIC" => endpoints(spec, Owner::Addresses(&names), report),
        "DYNAMIC_DNS" => dynamic_dns(object, report),
        _ => dns(spec, &names, report),
    }
    several_hosts(spec, report);
    shared::export_to(spec, object.namespace, &SPEC_ROOT, report);
}

fn hosts(spec: &Value, report: &mut Report<'_>) {
    let root = Path::Root("spec.hosts");
    for (index, host) in texts(spec, "hosts").enumerate() {
        let at = root.index(index);
        if host == "*" {
            report.reject(at, "A ServiceEntry cannot stand for every host.", "Name the hosts.");
        } else if let Err(why) = names::wildcard_host(host) {
            shared::bad_host(host, &why, &at, report);
        } else if names::is_partial_wildcard(host) && text(spec, "resolution") != "DYNAMIC_DNS" {
            let message = format!("`{host}` has a `*` that is not its whole first label.");
            report.add(codes::SCHEMA_WARNING, at, message, "Write for example `*.example.com`.");
        }
    }
}

fn addresses(spec: &Value, report: &mut Report<'_>) {
    let root = Path::Root("spec.addresses");
    for (index, address) in texts(spec, "addresses").enumerate() {
        let at = root.index(index);
        if !names::is_address_or_range(address) {
            let message = format!("`{address}` is neither an IP address nor a range.");
            report.reject(at, message, "Write for example 10.1.2.3 or 10.0.0.0/8.");
        }
        if address.contains('/') && !matches!(text(spec, "resolution"), "" | "NONE" | "STATIC") {
            let message = format!("The resolution {} cannot have ranges.", text(spec, "resolution"));
            report.reject(at, message, "Write single addresses, or use the resolution NONE or STATIC.");
        }
    }
}

/// Checks the ports and returns their names.
fn ports<'v>(spec: &'v Value, report: &mut Report<'_>) -> Vec<&'v str> {
    let root = Path::Root("spec.ports");
    let (mut known_names, mut known_numbers) = (Vec::new(), Vec::new());
    for (index, port) in items(spec, "ports").iter().enumerate() {
        let at = root.index(index);
        let (name, port_number) = (text(port, "name"), number(port, "number"));
        if known_names.contains(&name) {
            let message = format!("Another port has the name `{name}` already.");
            report.reject(at.field("name"), message, "Give each port a name of its own.");
        }
        if known_numbers.contains(&port_number) {
            let message = format!("Port {port_number} is listed twice.");
            report.reject(at.field("number"), message, "Keep only one of them.");
        }
        shared::port_name(name, &at.field("name"), report);
        shared::port(port_number, &at.field("number"), report);
        if has(port, "targetPort") {
            shared::port(number(port, "targetPort"), &at.field("targetPort"), report);
        }
        shared::protocol(text(port, "protocol"), &at.field("protocol"), report);
        known_names.push(name);
        known_numbers.push(port_number);
    }
    known_names
}

fn endpoints(spec: &Value, owner: Owner<'_>, report: &mut Report<'_>) {
    let root = Path::Root("spec.endpoints");
    for (index, endpoint) in items(spec, "endpoints").iter().enumerate() {
        shared::endpoint(endpoint, owner, &root.index(index), report);
    }
}

fn resolution_none(spec: &Value, report: &mut Report<'_>) {
    if has(spec, "endpoints") {
        let message = "Without `resolution` traffic goes to the address that was dialled, so endpoints have no meaning.";
        report.reject("spec.endpoints", message, "Write `resolution: STATIC`, or remove `endpoints`.");
    }
    if has(spec, "workloadSelector") {
        let message =
            "Without `resolution` traffic goes to the address that was dialled, not to selected workloads.";
        report.add(codes::SCHEMA_WARNING, "spec.workloadSelector", message, "Write `resolution: STATIC`.");
    }
}

fn dns(spec: &Value, port_names: &[&str], report: &mut Report<'_>) {
    let resolution = text(spec, "resolution");
    let count = items(spec, "endpoints").len();
    let root = Path::Root("spec.hosts");
    if count == 0 {
        for (index, host) in texts(spec, "hosts").enumerate() {
            if let Err(why) = names::host(host) {
                let message = format!("`{host}` cannot be looked up: {why}.");
                report.reject(
                    root.index(index),
                    message,
                    "Write a host without wildcard, or add `endpoints`.",
                );
            }
        }
    }
    if resolution == "DNS_ROUND_ROBIN" && count > 1 {
        let message = format!("The resolution DNS_ROUND_ROBIN has at most one endpoint, not {count}.");
        report.reject("spec.endpoints", message, "Keep one of them, or use the resolution DNS.");
    }
    endpoints(spec, Owner::Hosts(port_names), report);
}

fn dynamic_dns(object: &Object<'_>, report: &mut Report<'_>) {
    let spec = object.spec;
    let hosts = Path::Root("spec.hosts");
    for (index, host) in texts(spec, "hosts").enumerate().filter(|(_, host)| !host.starts_with('*')) {
        let message = format!("`{host}` has no wildcard, but the resolution DYNAMIC_DNS is for wildcards.");
        report.reject(hosts.index(index), message, "Write a wildcard, or use the resolution DNS.");
    }
    for name in ["addresses", "endpoints"].into_iter().filter(|name| !items(spec, name).is_empty()) {
        let message =
            format!("The resolution DYNAMIC_DNS finds out where to send to, so `{name}` has no place.");
        report.reject(SPEC_ROOT.field(name), message, format!("Remove `{name}`."));
    }
    let ports = Path::Root("spec.ports");
    for (index, port) in items(spec, "ports").iter().enumerate() {
        let protocol = text(port, "protocol");
        let possible = Protocol::parse(protocol).is_some_and(|protocol| {
            matches!(protocol, Protocol::Http | Protocol::Tls | Protocol::Grpc | Protocol::Http2)
        });
        if !possible {
            let message =
                format!("The protocol `{protocol}` does not name the host, which DYNAMIC_DNS needs.");
            let at = ports.index(index);
            report.reject(at.field("protocol"), message, "Write HTTP, HTTP2, GRPC or TLS.");
        }
    }
    let waypoint = text(get(object.metadata, "labels"), "istio.io/use-waypoint");
    let uses_waypoint = !waypoint.is_empty() && !waypoint.eq_ignore_ascii_case("none");
    if uses_waypoint && text(spec, "location") == "MESH_INTERNAL" {
        let message = "A waypoint serves the resolution DYNAMIC_DNS only outside the mesh.";
        report.reject(
            "spec.location",
            message,
            "Write MESH_EXTERNAL, or remove the label `istio.io/use-waypoint`.",
        );
    }
}

/// Plain TCP does not say which of several hosts is meant.
fn several_hosts(spec: &Value, report: &mut Report<'_>) {
    if matches!(text(spec, "resolution"), "" | "NONE") || items(spec, "hosts").len() < 2 {
        return;
    }
    let ports = Path::Root("spec.ports");
    for (index, port) in items(spec, "ports").iter().enumerate() {
        let protocol = Protocol::parse(text(port, "protocol"));
        if !protocol.is_some_and(|protocol| protocol.is_http() || protocol.is_tls()) {
            let message =
                "There are several hosts, but this port's protocol does not tell which one is meant.";
            let fix = "Name an HTTP or TLS protocol, or keep one host.";
            report.reject(ports.index(index).field("protocol"), message, fix);
        }
    }
}
