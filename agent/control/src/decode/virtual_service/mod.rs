//! VirtualService, validated as Istio's admission does (V-1 to V-31).

mod actions;
mod connections;
mod cors;
mod destinations;
mod faults;
mod headers;
mod http;
mod matches;
mod wire;

use std::sync::Arc;

use weft_core::resource::{Kind, Resource, VirtualService};

use super::Read;
use super::fields::{Body, List, Text};
use super::intern::Interner;
use super::meta::{self, ObjectWire};
use super::networking::{self, MESH, Reader, shown};
use super::report::{Path, Place};
use super::validated::names;
use wire::SpecWire;

/// What the rules of a VirtualService depend on besides themselves.
#[derive(Clone, Copy)]
struct Scope<'s> {
    /// It has no hosts: others hand requests over to it (V-29).
    is_delegate: bool,
    /// It is bound to gateways alone, not to the mesh.
    gateways_only: bool,
    /// Some TLS rule matches on server names.
    has_sni: bool,
    /// `spec.hosts` as written.
    hosts: &'s [Text<'s>],
}

pub(super) fn virtual_service<'a>(body: Body<'_>, place: Place<'a>, interner: &mut Interner) -> Read<'a> {
    let wire: ObjectWire<'_, SpecWire<'_>> = body.read()?;
    let (meta, mut report) = meta::namespaced(&wire.metadata, Kind::VirtualService, place, interner);
    networking::check_annotations(&wire.metadata, &mut report);
    let spec = wire.spec.unwrap_or_default();
    let mut reader = Reader { interner, report: &mut report, namespace: meta.key.namespace.clone() };
    let scope = Scope::new(&spec);
    check_delegate(&spec, scope, &mut reader);
    let gateways = gateways(&spec.gateways, &mut reader);
    let hosts = hosts(scope, &mut reader);
    if spec.http.items.is_empty() && spec.tls.items.is_empty() && spec.tcp.items.is_empty() {
        let message = "The VirtualService has no rules.";
        reader.report.reject("spec", message, "Add `http`, `tls` or `tcp` with at least one rule.");
    }
    let http = http::rules(&spec.http.items, scope, &mut reader);
    let tls = connections::tls_rules(&spec.tls.items, scope, &mut reader);
    let tcp = connections::tcp_rules(&spec.tcp.items, &mut reader);
    let export_to = reader.export_to(&spec.export_to, false);
    let service = VirtualService { meta, hosts, gateways, export_to, http, tls, tcp };
    Ok((Resource::VirtualService(service), report))
}

impl<'s> Scope<'s> {
    fn new(spec: &'s SpecWire<'_>) -> Self {
        let gateways = &spec.gateways.items;
        let matches = spec.tls.items.iter().flat_map(|rule| &rule.matches.items);
        Self {
            is_delegate: spec.hosts.items.is_empty(),
            gateways_only: !gateways.is_empty() && !gateways.iter().any(|gateway| gateway.as_str() == MESH),
            has_sni: matches.into_iter().any(|condition| !condition.sni_hosts.items.is_empty()),
            hosts: &spec.hosts.items,
        }
    }
}

/// A VirtualService without hosts is a delegate, and has `http` only (V-29).
fn check_delegate(spec: &SpecWire<'_>, scope: Scope<'_>, reader: &mut Reader<'_, '_>) {
    let fields = [
        ("spec.gateways", !spec.gateways.items.is_empty()),
        ("spec.tls", !spec.tls.items.is_empty()),
        ("spec.tcp", !spec.tcp.items.is_empty()),
    ];
    for (field, _) in fields.into_iter().filter(|(_, written)| *written && scope.is_delegate) {
        let message = "A VirtualService without `hosts` is a delegate, which has `http` only (V-29).";
        reader.report.reject(field, message, "Add `spec.hosts`, or remove the field.");
    }
}

/// `spec.gateways`; absent is the mesh (V-2).
fn gateways(list: &List<Text<'_>>, reader: &mut Reader<'_, '_>) -> Vec<Arc<str>> {
    let gateways = reader.gateways(list, &Path::Root("spec.gateways"));
    if gateways.is_empty() { vec![reader.text(MESH)] } else { gateways }
}

/// `spec.hosts` (V-1).
fn hosts(scope: Scope<'_>, reader: &mut Reader<'_, '_>) -> Vec<Arc<str>> {
    let at = Path::Root("spec.hosts");
    let mut all_valid = true;
    for (index, host) in scope.hosts.iter().enumerate() {
        all_valid &= check_host(host.as_str(), scope, &at.index(index), reader);
    }
    if all_valid {
        check_overlap(scope.hosts, &at, reader);
    }
    scope.hosts.iter().map(|host| reader.complete(host.as_str())).collect()
}

fn check_host(host: &str, scope: Scope<'_>, at: &Path<'_>, reader: &mut Reader<'_, '_>) -> bool {
    match check_name(host, scope.gateways_only && scope.has_sni) {
        Ok(()) if host == "*" && !scope.gateways_only => {
            let message = "`*` would take over every host of the mesh (V-1).";
            let fix = "Name the hosts, or bind the VirtualService to gateways only.";
            reader.report.reject(at, message, fix);
            false
        }
        Ok(()) => true,
        Err(_) if names::is_address(host) => true,
        Err(why) => {
            reader.bad_host(host, &why, at);
            false
        }
    }
}

/// A host; at a gateway, `outbound_.<port>_._.<host>` may be a server name: Istio's own between clusters.
fn check_name(host: &str, generated_allowed: bool) -> Result<(), names::BadHost> {
    let is_generated = generated_allowed && host.len() <= 255 && host.starts_with("outbound_");
    if !is_generated {
        return names::wildcard_host(host);
    }
    let mut parts = host.split('_').skip(1);
    let port = parts.next().unwrap_or_default();
    let name = parts.nth(1).unwrap_or_default();
    let valid =
        port.contains(|c: char| c.is_ascii_digit()) && name.contains(|c: char| c.is_ascii_alphabetic());
    if valid { Ok(()) } else { Err(names::BadHost::Label(host.to_owned())) }
}

/// Every host once: a wildcard also stands for what it covers.
fn check_overlap(hosts: &[Text<'_>], at: &Path<'_>, reader: &mut Reader<'_, '_>) {
    for (first, second) in networking::overlaps(hosts) {
        let host = |index: usize| shown(hosts.get(index).map_or("", Text::as_str));
        let message = format!("{} and {} overlap (V-1).", host(first), host(second));
        let fix = "Keep the more general of them, or write two VirtualServices.";
        reader.report.reject(at.index(second), message, fix);
    }
}
