//! Service and EndpointSlice.

use std::net::IpAddr;
use std::sync::Arc;

use serde::Deserialize;
use smallvec::SmallVec;
use weft_core::names;
use weft_core::resource::virtual_service::ExportTo;
use weft_core::resource::{
    EndpointSlice, Kind, Labels, NamespacedName, PortProtocol, Resource, Service, ServicePort, SliceEndpoint,
    TargetPort, TrafficDistribution,
};

use super::Read;
use super::fields::{Body, ClusterIp, Ip, Pairs, Port, PortOrName, Text, nullable};
use super::intern::Interner;
use super::meta::{self, MetaWire};
use super::networking;
use super::report::{Path, Place, Report};

#[derive(Deserialize)]
#[serde(expecting = "a map of fields")]
struct ServiceWire<'a> {
    #[serde(borrow, default, deserialize_with = "nullable")]
    metadata: MetaWire<'a>,
    #[serde(borrow, default, deserialize_with = "nullable")]
    spec: ServiceSpec<'a>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
#[serde(expecting = "a map of fields")]
struct ServiceSpec<'a> {
    #[serde(borrow, default, rename = "type")]
    kind: Text<'a>,
    #[serde(borrow, default)]
    external_name: Text<'a>,
    #[serde(default, rename = "clusterIP")]
    cluster_ip: ClusterIp,
    #[serde(default, rename = "clusterIPs", deserialize_with = "nullable")]
    cluster_ips: SmallVec<[ClusterIp; 2]>,
    #[serde(borrow, default)]
    selector: Pairs<'a>,
    #[serde(default, deserialize_with = "nullable")]
    publish_not_ready_addresses: bool,
    #[serde(borrow, default)]
    traffic_distribution: Text<'a>,
    #[serde(borrow, default, deserialize_with = "nullable")]
    ports: Vec<ServicePortWire<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[serde(expecting = "a map of fields")]
struct ServicePortWire<'a> {
    #[serde(borrow, default)]
    name: Text<'a>,
    #[serde(default)]
    port: Port,
    #[serde(borrow, default)]
    target_port: PortOrName<'a>,
    #[serde(borrow, default)]
    protocol: Text<'a>,
    #[serde(borrow, default)]
    app_protocol: Text<'a>,
}

pub(super) fn service<'a>(body: Body<'_>, place: Place<'a>, interner: &mut Interner) -> Read<'a> {
    let ServiceWire { metadata, spec } = body.read()?;
    let (meta, mut report) = meta::namespaced(&metadata, Kind::Service, place, interner);
    let ports = service_ports(&spec.ports, interner, &mut report);
    let export_to = export_to(&metadata, interner, &mut report);
    let service = Service {
        meta,
        annotations: interner.labels(&metadata.annotations.0, meta::is_read_annotation),
        vips: vips(&spec),
        ports: ports.into(),
        selector: selector(&spec.selector, interner),
        publish_not_ready: spec.publish_not_ready_addresses,
        external_name: external_name(&spec, interner),
        distribution: distribution(&spec, &metadata),
        export_to,
    };
    Ok((Resource::Service(service), report))
}

/// The field before Istio's older annotation; what neither knows is no preference (D-11).
fn distribution(spec: &ServiceSpec<'_>, metadata: &MetaWire<'_>) -> Option<TrafficDistribution> {
    let annotated = || metadata.annotations.get(names::TRAFFIC_DISTRIBUTION).map(Text::as_str);
    let written = spec.traffic_distribution.non_empty().or_else(annotated);
    match written? {
        "PreferClose" | "PreferSameZone" => Some(TrafficDistribution::SameZone),
        "PreferSameNode" => Some(TrafficDistribution::SameNode),
        _ => None,
    }
}

/// The namespaces whose clients see it, in a row with commas.
fn export_to(metadata: &MetaWire<'_>, interner: &mut Interner, report: &mut Report<'_>) -> Vec<ExportTo> {
    let written = metadata.annotations.get(names::EXPORT_TO).and_then(Text::non_empty);
    let entries = written.into_iter().flat_map(|text| text.split(',').map(str::trim));
    let at = Path::Root("metadata.annotations[networking.istio.io/exportTo]");
    networking::unchecked_exports(entries, &at, interner, report)
}

/// The name as hosts are compared: in lower case, without a final dot.
fn external_name(spec: &ServiceSpec<'_>, interner: &mut Interner) -> Option<Arc<str>> {
    let name = spec.external_name.as_str();
    let name = name.strip_suffix('.').unwrap_or(name);
    let named = spec.kind.as_str() == "ExternalName" && !name.is_empty();
    named.then(|| interner.text(&name.to_ascii_lowercase()))
}

fn vips(spec: &ServiceSpec<'_>) -> SmallVec<[IpAddr; 2]> {
    if spec.kind.as_str() == "ExternalName" {
        return SmallVec::new();
    }
    let listed: SmallVec<_> = spec.cluster_ips.iter().filter_map(|ip| ip.0).collect();
    if listed.is_empty() { spec.cluster_ip.0.into_iter().collect() } else { listed }
}

/// An empty selector selects nothing: the endpoints are the user's to write.
fn selector(pairs: &Pairs<'_>, interner: &mut Interner) -> Option<Labels> {
    let texts: Vec<_> =
        pairs.0.iter().map(|(k, v)| (interner.text(k.as_str()), interner.text(v.as_str()))).collect();
    (!texts.is_empty()).then(|| Labels::from_iter(texts))
}

fn service_ports(
    wires: &[ServicePortWire<'_>],
    interner: &mut Interner,
    report: &mut Report<'_>,
) -> Vec<ServicePort> {
    let mut ports: Vec<ServicePort> = Vec::with_capacity(wires.len());
    for (at, wire) in wires.iter().enumerate() {
        let Some(port) = wire.port.0 else {
            let field = format_args!("spec.ports[{at}].port").to_string();
            report.reject(field, "The port has no number.", "Write a number from 1 to 65535.");
            continue;
        };
        let target = match &wire.target_port {
            PortOrName::Absent => TargetPort::Number(port),
            PortOrName::Number(number) => TargetPort::Number(*number),
            PortOrName::Name(name) => TargetPort::Name(interner.text(name.as_str())),
        };
        let protocol = protocol(wire, port);
        if ports.iter().any(|other| other.port == port && is_udp(other.protocol) == is_udp(protocol)) {
            let message = format!("Port {port} is listed twice.");
            report.reject(format_args!("spec.ports[{at}].port"), message, "Keep only one of them.");
        }
        let name = wire.name.non_empty().map(|name| interner.text(name));
        ports.push(ServicePort { name, port, target, protocol });
    }
    ports
}

fn is_udp(protocol: PortProtocol) -> bool {
    protocol == PortProtocol::Udp
}

/// `appProtocol`, else the port's name before the first `-`, else well-known ports, else undeclared.
fn protocol(wire: &ServicePortWire<'_>, port: u16) -> PortProtocol {
    match wire.protocol.as_str() {
        "" | "TCP" => {}
        // SCTP has no kind of its own: what matters is that it is never captured.
        _ => return PortProtocol::Udp,
    }
    let declared = match wire.app_protocol.as_str() {
        "" => wire.name.as_str(),
        "kubernetes.io/h2c" => return PortProtocol::Http2,
        "kubernetes.io/ws" => return PortProtocol::Http,
        "kubernetes.io/wss" => return PortProtocol::Tls,
        app_protocol => app_protocol,
    }
    .to_ascii_lowercase();
    if declared.starts_with("grpc-web") {
        return PortProtocol::GrpcWeb;
    }
    match declared.split('-').next().unwrap_or_default() {
        "http" => PortProtocol::Http,
        "http2" => PortProtocol::Http2,
        "grpc" => PortProtocol::Grpc,
        "https" | "tls" => PortProtocol::Tls,
        "tcp" | "mongo" | "mysql" | "redis" => PortProtocol::Tcp,
        "udp" => PortProtocol::Udp,
        // SMTP, DNS, MySQL, MongoDB: the server speaks first.
        _ if matches!(port, 25 | 53 | 3306 | 27017) => PortProtocol::Tcp,
        _ => PortProtocol::Undeclared,
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[serde(expecting = "a map of fields")]
struct SliceWire<'a> {
    #[serde(borrow, default, deserialize_with = "nullable")]
    metadata: MetaWire<'a>,
    #[serde(borrow, default)]
    address_type: Text<'a>,
    #[serde(borrow, default, deserialize_with = "nullable")]
    ports: Vec<SlicePort<'a>>,
    #[serde(borrow, default, deserialize_with = "nullable")]
    endpoints: Vec<EndpointWire<'a>>,
}

#[derive(Deserialize)]
#[serde(expecting = "a map of fields")]
struct SlicePort<'a> {
    #[serde(borrow, default)]
    name: Text<'a>,
    #[serde(default)]
    port: Port,
    #[serde(borrow, default)]
    protocol: Text<'a>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[serde(expecting = "a map of fields")]
struct EndpointWire<'a> {
    #[serde(borrow, default, deserialize_with = "nullable")]
    addresses: SmallVec<[Text<'a>; 1]>,
    #[serde(default, deserialize_with = "nullable")]
    conditions: EndpointConditions,
    #[serde(borrow, default)]
    target_ref: Option<TargetRefWire<'a>>,
    #[serde(borrow, default)]
    node_name: Text<'a>,
}

#[derive(Default, Deserialize)]
#[serde(expecting = "a map of fields")]
struct EndpointConditions {
    #[serde(default)]
    ready: Option<bool>,
}

#[derive(Deserialize)]
#[serde(expecting = "a map of fields")]
struct TargetRefWire<'a> {
    #[serde(borrow, default)]
    kind: Text<'a>,
    #[serde(borrow, default)]
    namespace: Text<'a>,
    #[serde(borrow, default)]
    name: Text<'a>,
}

const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

pub(super) fn endpoint_slice<'a>(body: Body<'_>, place: Place<'a>, interner: &mut Interner) -> Read<'a> {
    let wire: SliceWire<'_> = body.read()?;
    let (meta, mut report) = meta::namespaced(&wire.metadata, Kind::EndpointSlice, place, interner);
    let tcp = wire.ports.iter().filter(|port| matches!(port.protocol.as_str(), "" | "TCP"));
    let ports = tcp.filter_map(|port| Some((interner.text(port.name.as_str()), port.port.0?))).collect();
    // Names in place of addresses are the user's DNS to resolve; the mesh routes addresses.
    let by_name = wire.address_type.as_str() == "FQDN";
    let endpoints = if by_name { &[] } else { wire.endpoints.as_slice() };
    let endpoints = endpoints
        .iter()
        .enumerate()
        .map(|(at, endpoint)| slice_endpoint(endpoint, (at, &meta.key.namespace), interner, &mut report))
        .collect();
    let service = wire.metadata.labels.get(SERVICE_NAME_LABEL).and_then(Text::non_empty);
    let slice = EndpointSlice { service: service.map(|name| interner.text(name)), ports, endpoints, meta };
    Ok((Resource::EndpointSlice(slice), report))
}

fn slice_endpoint(
    wire: &EndpointWire<'_>,
    (at, namespace): (usize, &Arc<str>),
    interner: &mut Interner,
    report: &mut Report<'_>,
) -> SliceEndpoint {
    let mut addresses = SmallVec::new();
    for (index, address) in wire.addresses.iter().enumerate() {
        match serde_json::from_value(address.as_str().into()) {
            Ok(Ip(ip)) => addresses.extend(ip),
            Err(error) => report.reject(
                format_args!("endpoints[{at}].addresses[{index}]"),
                format!("The address cannot be read: {error}."),
                "Write an IPv4 or IPv6 address, or set `addressType: FQDN` for names.",
            ),
        }
    }
    let pod = wire.target_ref.as_ref().filter(|target| target.kind.as_str() == "Pod").map(|target| {
        let namespace =
            target.namespace.non_empty().map_or_else(|| namespace.clone(), |name| interner.text(name));
        NamespacedName { namespace, name: target.name.as_str().into() }
    });
    SliceEndpoint {
        addresses,
        ready: wire.conditions.ready.unwrap_or(true),
        pod,
        node: wire.node_name.non_empty().map(|name| interner.text(name)),
    }
}
