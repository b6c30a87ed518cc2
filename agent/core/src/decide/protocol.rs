//! What does a port speak, as far as anybody says? (X-9, X-10, ruling 5)
//!
//! The answers are protocols as a Service may declare them: `Tcp` stands for whatever the mesh does not look into,
//! `Undeclared` says that the first bytes have to show it.

use std::net::{IpAddr, SocketAddr};

use crate::Snapshot;
use crate::resource::PortProtocol;
use crate::snapshot::{CompiledService, LocalWorkload, TrafficHint};

/// Ports on which servers speak first, unless somebody declares something else.
const SERVER_FIRST: [u16; 4] = [25, 53, 3306, 27017];

/// The cluster of ports that no Service has (L-4).
pub const INBOUND_PASSTHROUGH: &str = "InboundPassthroughCluster";

/// What a pod of this node, in namespace `client`, dialled.
pub fn outbound(snapshot: &Snapshot, client: &str, addressed: SocketAddr) -> PortProtocol {
    if let Some(service) = snapshot.visible_by_vip(&addressed.ip(), client) {
        return of_service(snapshot, service, addressed.port());
    }
    match snapshot.headless(&addressed, Some(client)).and_then(|(service, at)| service.ports.get(at)) {
        Some(port) => {
            with_hint(port.protocol, local(snapshot, addressed.ip()).and_then(|local| local.traffic))
        }
        None => of_address(snapshot, addressed),
    }
}

/// A port of a Service. On one that it does not have nobody answers, whatever is spoken.
pub fn of_service(snapshot: &Snapshot, service: &CompiledService, port: u16) -> PortProtocol {
    let Some(port) = service.port(port) else { return PortProtocol::Tcp };
    let endpoint = port.endpoints.first().map(|endpoint| endpoint.addr().ip());
    let hint = endpoint.and_then(|ip| local(snapshot, ip)?.traffic);
    with_hint(port.protocol, hint)
}

/// An address that is no Service's.
pub fn of_address(snapshot: &Snapshot, addressed: SocketAddr) -> PortProtocol {
    match local(snapshot, addressed.ip()) {
        Some(local) => inbound(local, addressed.port()),
        None if SERVER_FIRST.contains(&addressed.port()) => PortProtocol::Tcp,
        None => PortProtocol::Undeclared,
    }
}

/// A port of a pod of this node.
pub fn inbound(local: &LocalWorkload, port: u16) -> PortProtocol {
    with_hint(declared(local, port).unwrap_or(PortProtocol::Undeclared), local.traffic)
}

/// What a Service declares a target port to speak, whatever the pod's annotation says.
pub fn declared(local: &LocalWorkload, port: u16) -> Option<PortProtocol> {
    let at = local.declared_ports.binary_search_by_key(&port, |(port, _)| *port).ok()?;
    local.declared_ports.get(at).map(|(_, protocol)| *protocol)
}

/// What the access log names the server's side of a connection to a port of this pod (L-4): what reaches a port that no
/// Service has is passed through. Of a pod that is gone nothing but the port is known.
pub fn inbound_cluster(local: Option<&LocalWorkload>, port: u16) -> String {
    match local {
        Some(local) if declared(local, port).is_none() => INBOUND_PASSTHROUGH.to_owned(),
        Some(_) | None => format!("inbound|{port}||"),
    }
}

fn local(snapshot: &Snapshot, ip: IpAddr) -> Option<&LocalWorkload> {
    snapshot.local_workload(&snapshot.workload_by_ip(&ip)?.key).map(|local| &**local)
}

/// The annotation has the last word.
fn with_hint(protocol: PortProtocol, hint: Option<TrafficHint>) -> PortProtocol {
    match hint {
        Some(TrafficHint::L4) => PortProtocol::Tcp,
        Some(TrafficHint::L7) if !protocol.is_http() => PortProtocol::Undeclared,
        Some(TrafficHint::L7) | None => protocol,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_annotation_has_the_last_word() {
        use PortProtocol::{Grpc, Http, Tcp, Tls, Undeclared};
        for (declared, hint, expected) in [
            (Http, None, Http),
            (Http, Some(TrafficHint::L4), Tcp),
            (Grpc, Some(TrafficHint::L7), Grpc),
            (Tls, None, Tls),
            (Tls, Some(TrafficHint::L7), Undeclared),
            (Undeclared, Some(TrafficHint::L7), Undeclared),
            (Undeclared, Some(TrafficHint::L4), Tcp),
        ] {
            assert_eq!(with_hint(declared, hint), expected, "{declared:?} {hint:?}");
        }
    }

    #[test]
    fn servers_that_speak_first_are_not_waited_for() {
        let snapshot = crate::testing::compile([]);
        let of = |port| outbound(&snapshot, "shop", SocketAddr::from(([192, 0, 2, 1], port)));
        assert_eq!((of(3306), of(8080)), (PortProtocol::Tcp, PortProtocol::Undeclared));
    }
}
