//! Which Service does a Host name? (X-3, X-13, S-40)

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use smallvec::SmallVec;

use super::fields;
use crate::Snapshot;
use crate::compile::routing::rules::CompiledVirtualService;
use crate::names::CLUSTER_DOMAIN;
use crate::resource::PortProtocol;
use crate::snapshot::CompiledService;

/// The port on which hosts that no Service has are served (V-1).
const HTTP_PORT: u16 = 80;

/// A Service's port that a request names.
#[derive(Debug, Clone)]
pub(super) struct Named {
    pub(super) service: Arc<CompiledService>,
    /// Index of the port.
    pub(super) port: usize,
    /// The client named one endpoint by its address, and dialled it: no rule sends it elsewhere (S-40).
    pub(super) endpoint: bool,
}

/// The host of an authority as it is compared: in lower case and without port.
pub(super) fn normal(authority: &str) -> Cow<'_, str> {
    let host = fields::host(authority);
    match host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        true => host.to_ascii_lowercase().into(),
        false => host.into(),
    }
}

/// The Service that a host names for clients of `namespace`, where it has the port that the client dialled.
pub(super) fn find(snapshot: &Snapshot, namespace: &str, host: &str, original: SocketAddr) -> Option<Named> {
    if may_be_address(host)
        && let Ok(ip) = host.parse::<IpAddr>()
    {
        return by_address(snapshot, namespace, ip.to_canonical(), original);
    }
    if let Some(service) = by_name(snapshot, namespace, host) {
        return with_port(service, original);
    }
    // One pod of a headless Service.
    let (_, of) = host.split_once('.')?;
    let service = by_name(snapshot, namespace, of).filter(|service| service.vips.is_empty())?;
    with_port(service, original)
}

/// The Service whose address was dialled, on a port of which nobody says what it speaks: a listener of its own serves it,
/// whatever the Host.
pub(super) fn of_undeclared_port(snapshot: &Snapshot, client: &str, original: SocketAddr) -> Option<Named> {
    let service = snapshot.visible_by_vip(&original.ip(), client)?;
    let port = service.ports.iter().position(|port| port.port == original.port())?;
    let undeclared = service.ports.get(port)?.protocol == PortProtocol::Undeclared;
    undeclared.then(|| Named { service: service.clone(), port, endpoint: false })
}

/// Names begin with a letter as a rule: that is seen sooner than that they are no address.
fn may_be_address(host: &str) -> bool {
    host.starts_with(|first: char| first.is_ascii_digit()) || host.bytes().any(|byte| byte == b':')
}

fn by_name<'s>(snapshot: &'s Snapshot, namespace: &str, host: &str) -> Option<&'s Arc<CompiledService>> {
    let services = &snapshot.routing.services;
    // A full name may end with the root's dot, no other form of it.
    if let Some(service) = services.get(host.strip_suffix('.').unwrap_or(host)) {
        return snapshot.concrete_for(service, namespace);
    }
    let mut labels = host.split('.');
    let full = match (labels.next(), labels.next(), labels.next(), labels.next()) {
        (Some(_), None, ..) => joined([host, ".", namespace, ".svc.", CLUSTER_DOMAIN]),
        (_, Some(_), None, _) => joined([host, ".svc.", CLUSTER_DOMAIN, "", ""]),
        (_, _, Some("svc"), None) => joined([host, ".", CLUSTER_DOMAIN, "", ""]),
        _ => return None,
    };
    let full = std::str::from_utf8(&full).ok()?;
    services.get(full).and_then(|service| snapshot.concrete_for(service, namespace))
}

/// Parts of a name in a row; names of the usual length take no memory of their own.
fn joined(parts: [&str; 5]) -> SmallVec<[u8; 96]> {
    let mut name = SmallVec::from_elem(0, parts.iter().map(|part| part.len()).sum());
    let mut rest = name.as_mut_slice();
    for part in parts {
        let (here, after) = std::mem::take(&mut rest).split_at_mut(part.len());
        here.copy_from_slice(part.as_bytes());
        rest = after;
    }
    name
}

fn with_port(service: &Arc<CompiledService>, original: SocketAddr) -> Option<Named> {
    let named = |port| Named { service: service.clone(), port, endpoint: false };
    let by_number = service.ports.iter().position(|port| port.port == original.port());
    // Clients of a headless Service dial its pods: on the target port.
    let headless = || if service.vips.is_empty() { service.port_of_endpoint(&original) } else { None };
    by_number.or_else(headless).map(named)
}

fn by_address(snapshot: &Snapshot, client: &str, ip: IpAddr, original: SocketAddr) -> Option<Named> {
    if let Some(service) = snapshot.visible_by_vip(&ip, client) {
        return with_port(service, original);
    }
    if ip != original.ip().to_canonical() {
        return None;
    }
    let pod = snapshot.workload_by_ip(&ip)?;
    let names = snapshot.routing.namespaces.get(&*pod.key.namespace)?;
    names.iter().find_map(|name| {
        let service = snapshot.service(name).filter(|service| service.visibility.reaches(client))?;
        let port = service.port_of_endpoint(&original)?;
        Some(Named { service: service.clone(), port, endpoint: true })
    })
}

/// Whether some Service that clients of namespace `client` see has a host that ends so.
pub(super) fn meets_service(snapshot: &Snapshot, client: &str, suffix: &str) -> bool {
    let namespaces = &snapshot.routing.namespaces;
    let tail = format!(".svc.{CLUSTER_DOMAIN}");
    let meets =
        |service: &CompiledService| service.visibility.reaches(client) && service.host.ends_with(suffix);
    let in_namespace = |namespace: &str| {
        let names = namespaces.get(namespace).into_iter().flat_map(|names| names.iter());
        names.filter_map(|name| snapshot.service(name)).any(|service| meets(service))
    };
    // The client's own namespace first: what is there is seen as a rule.
    let anywhere = |ends: &str| {
        let others = namespaces.iter().map(|(namespace, _)| &**namespace);
        let mut all = std::iter::once(client).chain(others);
        all.any(|namespace| namespace.ends_with(ends) && in_namespace(namespace))
    };
    if tail.ends_with(suffix) {
        return anywhere("");
    }
    let Some(head) = suffix.strip_suffix(tail.as_str()) else { return false };
    match head.rsplit_once('.') {
        Some((_, namespace)) => in_namespace(namespace),
        None => anywhere(head),
    }
}

/// Whether a VirtualService acts on hosts that no Service has, on one port: on 80, and on those of the Services that it
/// names as well, as far as clients of namespace `client` see them (V-1).
pub(super) fn serves_port(
    snapshot: &Snapshot,
    client: &str,
    service: &CompiledVirtualService,
    port: u16,
) -> bool {
    let named = service.source.hosts.iter().filter_map(|host| snapshot.routing.services.get(&**host));
    let named = named.filter(|service| service.visibility.reaches(client));
    let mut ports = named.flat_map(|service| service.ports.iter()).filter(|port| may_be_http(port.protocol));
    port == HTTP_PORT || ports.any(|known| known.port == port)
}

fn may_be_http(protocol: PortProtocol) -> bool {
    protocol.is_http() || protocol == PortProtocol::Undeclared
}
