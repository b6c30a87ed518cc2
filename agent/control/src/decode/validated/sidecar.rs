//! Sidecar (SC-1 and following).

use serde_json::Value;

use super::super::report::{Path, Report};
use super::Object;
use super::gateway::shared_host;
use super::names::{self, Protocol};
use super::schema::{MANY, TEXT, TEXTS, Type, UNSIGNED, may, must};
use super::server_tls;
use super::shared::{self, CONNECTION_POOL, SERVER_TLS, WORKLOAD_SELECTOR};
use super::value::{flag, get, has, items, number, text, texts};
use crate::codes;

const PORT: Type = Type::Object(&[
    may("name", TEXT),
    may("number", UNSIGNED),
    may("protocol", TEXT),
    may("targetPort", UNSIGNED),
]);

const CAPTURE: Type = Type::OneOf(&["DEFAULT", "IPTABLES", "NONE"]);

const EGRESS: Type =
    Type::Object(&[may("bind", TEXT), may("captureMode", CAPTURE), must("hosts", TEXTS), may("port", PORT)]);

const INGRESS: Type = Type::Object(&[
    may("bind", TEXT),
    may("captureMode", CAPTURE),
    may("connectionPool", CONNECTION_POOL),
    may("defaultEndpoint", TEXT),
    must("port", PORT),
    may("tls", SERVER_TLS),
]);

const DESTINATION: Type = Type::Object(&[
    must("host", TEXT),
    may("port", Type::Object(&[may("number", UNSIGNED)])),
    may("subset", TEXT),
]);

/// The fields of `spec`.
pub(super) const SPEC: Type = Type::Object(&[
    may("egress", Type::List(&EGRESS, 0, MANY)),
    may("inboundConnectionPool", CONNECTION_POOL),
    may("ingress", Type::List(&INGRESS, 0, MANY)),
    may(
        "outboundTrafficPolicy",
        Type::Object(&[
            may("egressProxy", DESTINATION),
            may("mode", Type::OneOf(&["REGISTRY_ONLY", "ALLOW_ANY"])),
        ]),
    ),
    may("workloadSelector", WORKLOAD_SELECTOR),
]);

const SPEC_ROOT: Path<'static> = Path::Root("spec");

/// What belongs together.
pub(super) fn check(object: &Object<'_>, report: &mut Report<'_>) {
    let spec = object.spec;
    shared::selector(spec, "workloadSelector", "labels", &SPEC_ROOT, report);
    let nothing = items(spec, "egress").is_empty() && items(spec, "ingress").is_empty();
    if nothing && !has(spec, "outboundTrafficPolicy") && !has(spec, "inboundConnectionPool") {
        let fix = "Add `egress`, `ingress`, `outboundTrafficPolicy` or `inboundConnectionPool`.";
        report.reject("spec", "The Sidecar says nothing.", fix);
        return;
    }
    ingress(spec, report);
    shared::connection_pool(spec, "inboundConnectionPool", &SPEC_ROOT, report);
    egress(object, report);
    outbound(get(spec, "outboundTrafficPolicy"), report);
}

fn ingress(spec: &Value, report: &mut Report<'_>) {
    let root = Path::Root("spec.ingress");
    let mut known = Vec::new();
    for (index, listener) in items(spec, "ingress").iter().enumerate() {
        let at = root.index(index);
        let (port, at_port) = (get(listener, "port"), at.field("port"));
        port_texts(port, &at_port, report);
        shared::port(number(port, "number"), &at_port.field("number"), report);
        bind_address(listener, &at, report);
        once(number(port, "number"), &mut known, &at_port, report);
        default_endpoint(text(listener, "defaultEndpoint"), &at.field("defaultEndpoint"), report);
        ingress_tls(listener, &at, report);
        shared::connection_pool(listener, "connectionPool", &at, report);
        let is_http = Protocol::parse(text(port, "protocol")).is_some_and(Protocol::is_http);
        if has(get(listener, "connectionPool"), "http") && !is_http {
            let message = "The port does not speak HTTP, so limits of HTTP have no effect.";
            let fix = "Name an HTTP protocol, or remove the limits.";
            report.add(codes::SCHEMA_WARNING, at.field("connectionPool").field("http"), message, fix);
        }
    }
}

/// Name, protocol and target of a port.
fn port_texts(port: &Value, at: &Path<'_>, report: &mut Report<'_>) {
    if number(port, "targetPort") > 0 {
        report.reject(at.field("targetPort"), "A Sidecar's port has no target.", "Remove `targetPort`.");
    }
    let name = text(port, "name");
    if !name.is_empty() {
        shared::port_name(name, &at.field("name"), report);
    }
    shared::protocol(text(port, "protocol"), &at.field("protocol"), report);
}

fn bind_address(listener: &Value, at: &Path<'_>, report: &mut Report<'_>) {
    let bind = text(listener, "bind");
    if !bind.is_empty() && !names::is_address(bind) {
        let message = format!("`{bind}` is not an IP address.");
        report.reject(at.field("bind"), message, "Write an IP address.");
    }
}

fn once(number: i64, known: &mut Vec<i64>, at: &Path<'_>, report: &mut Report<'_>) {
    if known.contains(&number) {
        let message = format!("Another listener has the port {number} already.");
        report.reject(at.field("number"), message, "Keep one listener for each port.");
    }
    known.push(number);
}

fn default_endpoint(endpoint: &str, at: &Path<'_>, report: &mut Report<'_>) {
    const FIX: &str = "Write 127.0.0.1:PORT, 0.0.0.0:PORT, [::1]:PORT, [::]:PORT or unix:///PATH.";
    if endpoint.is_empty() {
        return;
    }
    if let Some(path) = endpoint.strip_prefix("unix://") {
        if !names::is_socket_path(path) {
            report.reject(at, format!("`{path}` is not an absolute path to a file."), FIX);
        }
        return;
    }
    let Some((host, port)) = endpoint.rsplit_once(':') else {
        report.reject(at, format!("`{endpoint}` has no port."), FIX);
        return;
    };
    if !matches!(host, "" | "127.0.0.1" | "0.0.0.0" | "[::1]" | "[::]" | "[]" | "[127.0.0.1]" | "[0.0.0.0]") {
        report.reject(at, format!("`{host}` is not an address of the workload itself."), FIX);
    } else if !port.parse::<i64>().is_ok_and(|port| (1..=65535).contains(&port)) {
        report.reject(at, format!("`{port}` is not a port."), FIX);
    }
}

fn ingress_tls(listener: &Value, at: &Path<'_>, report: &mut Report<'_>) {
    let (tls, at) = (get(listener, "tls"), at.field("tls"));
    if tls.is_null() {
        return;
    }
    for name in ["subjectAltNames", "credentialName", "credentialNames", "tlsCertificates"] {
        if !text(tls, name).is_empty() || !items(tls, name).is_empty() {
            let message = format!("A Sidecar cannot have `{name}`.");
            report.reject(at.field(name), message, "Remove it; certificates come from files here.");
        }
    }
    if flag(tls, "httpsRedirect") {
        report.reject(at.field("httpsRedirect"), "A Sidecar cannot redirect to HTTPS.", "Remove it.");
    }
    let mode = text(tls, "mode");
    if matches!(mode, "ISTIO_MUTUAL" | "AUTO_PASSTHROUGH") {
        let message = format!("A Sidecar cannot have the mode {mode}.");
        report.reject(at.field("mode"), message, "Write SIMPLE, MUTUAL, OPTIONAL_MUTUAL or PASSTHROUGH.");
    }
    let protocol = text(get(listener, "port"), "protocol");
    if !Protocol::parse(protocol).is_some_and(Protocol::is_tls) {
        let message = format!("The protocol `{protocol}` has no TLS settings.");
        report.reject(at, message, "Use the protocol TLS or HTTPS, or remove `tls`.");
    }
    server_tls::check(tls, &at, report);
}

fn egress(object: &Object<'_>, report: &mut Report<'_>) {
    let listeners = items(object.spec, "egress");
    let root = Path::Root("spec.egress");
    let (mut ports, mut sockets) = (Vec::new(), Vec::new());
    for (index, listener) in listeners.iter().enumerate() {
        let at = root.index(index);
        let port = get(listener, "port");
        if port.is_null() {
            if index + 1 != listeners.len() {
                let message = "A listener without port takes everything, so those after it are never asked.";
                report.reject(at, message, "Make it the last one, and keep only one of them.");
            }
        } else {
            port_texts(port, &at.field("port"), report);
            if number(port, "number") == 0 {
                socket(listener, &mut sockets, &at, report);
            } else {
                shared::port(number(port, "number"), &at.field("port").field("number"), report);
                bind_address(listener, &at, report);
                once(number(port, "number"), &mut ports, &at.field("port"), report);
            }
        }
        egress_hosts(listener, object.namespace, &at, report);
    }
}

fn socket<'v>(listener: &'v Value, known: &mut Vec<&'v str>, at: &Path<'_>, report: &mut Report<'_>) {
    let (bind, field) = (text(listener, "bind"), at.field("bind"));
    match bind.strip_prefix("unix://") {
        None => {
            let message = "Port 0 stands for a Unix socket, but `bind` names none.";
            report.reject(field, message, "Write a port, or `bind: unix:///PATH`.");
        }
        Some(path) if !names::is_socket_path(path) => {
            let message = format!("`{path}` is not an absolute path to a file.");
            report.reject(field, message, "Write `unix:///path/to/socket` or `unix://@name`.");
        }
        Some(_) => {}
    }
    if text(listener, "captureMode") == "IPTABLES" {
        let message = "Connections to a Unix socket cannot be captured.";
        report.reject(at.field("captureMode"), message, "Write NONE, or remove the field.");
    }
    if known.contains(&bind) {
        let message = format!("Another listener has the socket `{bind}` already.");
        report.reject(field, message, "Keep one listener for each socket.");
    }
    known.push(bind);
}

fn egress_hosts(listener: &Value, own_namespace: &str, at: &Path<'_>, report: &mut Report<'_>) {
    let root = at.field("hosts");
    if items(listener, "hosts").is_empty() {
        report.reject(root, "The listener has no host.", "Add one, or `*/*` for all.");
    }
    let mut known: Vec<(&str, &str)> = Vec::new();
    for (index, entry) in texts(listener, "hosts").enumerate() {
        let at = root.index(index);
        let Some((namespace, host)) = entry.split_once('/') else {
            let message = format!("`{entry}` names no namespace.");
            report.reject(at, message, "Write NAMESPACE/HOST; `*` and `.` can stand for the namespace.");
            continue;
        };
        let excluded = namespace.starts_with('~');
        let name = namespace.strip_prefix('~').unwrap_or(namespace);
        if namespace.is_empty() || host.is_empty() {
            report.reject(at, "Namespace and host must not be empty.", "Write NAMESPACE/HOST.");
        } else if !matches!(name, "" | "*" | ".") && !names::is_label(name) {
            let message = format!("`{namespace}` is not a namespace.");
            report.reject(at, message, "Write `*`, `.`, `~` or the name of a namespace before the `/`.");
        } else {
            shared_host(host, false, &at, report);
        }
        if !excluded {
            let namespace = if namespace == "." { own_namespace } else { namespace };
            duplicate((namespace, host), &mut known, &at, report);
        }
    }
    if known.contains(&("*", "*")) && known.iter().any(|(namespace, _)| *namespace != "*") {
        let message = "`*/*` selects everything, so the other hosts have no effect.";
        report.add(codes::SCHEMA_WARNING, root, message, "Remove them, or `*/*`.");
    }
}

fn duplicate<'v>(
    entry: (&'v str, &'v str),
    known: &mut Vec<(&'v str, &'v str)>,
    at: &Path<'_>,
    report: &mut Report<'_>,
) {
    let (namespace, host) = entry;
    let mut same_namespace = known.iter().filter(|(other, _)| *other == namespace);
    if same_namespace.any(|(_, other)| host == "*" || *other == "*" || *other == host) {
        let message = format!("`{namespace}/{host}` is covered by another host, or covers one.");
        report.add(codes::SCHEMA_WARNING, at, message, "Keep the wider one.");
    }
    known.push(entry);
}

fn outbound(policy: &Value, report: &mut Report<'_>) {
    let proxy = get(policy, "egressProxy");
    if proxy.is_null() {
        return;
    }
    let at = Path::Root("spec.outboundTrafficPolicy.egressProxy");
    // REGISTRY_ONLY is what an absent mode means here.
    if text(policy, "mode") != "ALLOW_ANY" {
        let message =
            "Without ALLOW_ANY nothing goes to unknown hosts, so there is nothing to send to a proxy.";
        report.reject(at, message, "Write `mode: ALLOW_ANY`, or remove `egressProxy`.");
        return;
    }
    let host = text(proxy, "host");
    if let Err(why) = names::host(host) {
        shared::bad_host(host, &why, &at.field("host"), report);
    }
    if !has(proxy, "port") {
        report.reject(at.field("port"), "The proxy has no port.", "Add `port.number`.");
        return;
    }
    shared::port(number(get(proxy, "port"), "number"), &at.field("port").field("number"), report);
    let subset = text(proxy, "subset");
    if !subset.is_empty() && !names::is_label(subset) {
        let message = format!("`{subset}` is not a name of a subset.");
        report.reject(at.field("subset"), message, "Use at most 63 letters, digits and `-`.");
    }
}
