//! Names of ports.

use super::objects::{ObjectSet, Service, ServicePort};
use super::{Findings, codes};

/// Labels of what a gateway's controller makes: nobody writes these by hand.
const MANAGED_BY: &str = "gateway.istio.io/managed";

/// Checks all Services.
pub(super) fn check(set: &ObjectSet, findings: &mut Findings) {
    for service in set.services.iter().filter(|service| !is_made_by_others(service)) {
        for (at, port) in service.ports.iter().enumerate() {
            check_port(service, at, port, findings);
        }
    }
}

/// The control plane's own Services, and those of managed gateways.
fn is_made_by_others(service: &Service) -> bool {
    let labels = &service.head.labels;
    labels.contains_key("istio")
        || labels.get("release").is_some_and(|release| release == "istio")
        || labels.get(MANAGED_BY).is_some_and(|by| by.starts_with("istio.io-"))
}

fn check_port(service: &Service, at: usize, port: &ServicePort, findings: &mut Findings) {
    let field = format!("spec.ports[{at}].name");
    let place = (&service.head, field.as_str());
    let named = match port.name.as_str() {
        "" => "has no name".to_owned(),
        name => format!("is named `{name}`"),
    };
    if service.is_external_name && (port.name == "tcp" || !names_protocol(port)) {
        let message = format!(
            "Port {} of an ExternalName Service {named}, so all traffic to this port number may be taken for it.",
            port.port
        );
        let fix = "Name the port after its protocol, e.g. `http`.";
        findings.add(codes::EXTERNAL_NAME_PORT, place, message, fix);
    } else if !names_protocol(port) {
        let message = format!(
            "Port {} (target port {}) {named}, which tells no protocol: the first bytes of each connection decide.",
            port.port, port.target
        );
        let fix = "Begin the name with http, http2, grpc, tcp, tls, https … and `-`, or write `appProtocol`.";
        findings.add(codes::PORT_NAME, place, message, fix);
    }
}

/// Whether name, `appProtocol` or the number tell the protocol.
fn names_protocol(port: &ServicePort) -> bool {
    const KNOWN: [&str; 12] = [
        "tcp",
        "udp",
        "grpc",
        "grpc-web",
        "http",
        "http_proxy",
        "http2",
        "https",
        "tls",
        "mongo",
        "redis",
        "mysql",
    ];
    const OF_KUBERNETES: [&str; 3] = ["kubernetes.io/h2c", "kubernetes.io/ws", "kubernetes.io/wss"];
    let declared = port.app_protocol.as_ref().unwrap_or(&port.name).to_ascii_lowercase();
    let first = declared.split('-').next().unwrap_or_default();
    !port.protocol.eq_ignore_ascii_case("TCP")
        || KNOWN.contains(&first)
        || declared.starts_with("grpc-web")
        || OF_KUBERNETES.contains(&declared.as_str())
        || matches!(port.port, 25 | 53 | 3306 | 27017)
}
