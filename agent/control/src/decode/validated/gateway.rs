//! Gateway of `networking.istio.io` (G-1 and following).

use serde_json::Value;

use super::super::report::{Path, Report};
use super::Object;
use super::names::{self, Protocol};
use super::schema::{MANY, TEXT, TEXTS, Type, UNSIGNED, may, must};
use super::server_tls;
use super::shared::{self, SERVER_TLS};
use super::value::{flag, get, has, items, number, text, texts};
use crate::codes;

const PORT: Type = Type::Object(&[
    must("name", TEXT),
    must("number", UNSIGNED),
    must("protocol", TEXT),
    may("targetPort", UNSIGNED),
]);

const SERVER: Type = Type::Object(&[
    may("bind", TEXT),
    may("defaultEndpoint", TEXT),
    must("hosts", TEXTS),
    may("name", TEXT),
    must("port", PORT),
    may("tls", SERVER_TLS),
]);

/// The fields of `spec`.
pub(super) const SPEC: Type =
    Type::Object(&[may("selector", Type::Map(&TEXT, MANY)), may("servers", Type::List(&SERVER, 0, MANY))]);

/// What belongs together.
pub(super) fn check(object: &Object<'_>, report: &mut Report<'_>) {
    let made = is_made_by_istio(object);
    if !made && !names::is_label(object.name) {
        let message = format!("`{}` is not a name of a Gateway, which has no dots.", object.name);
        report.reject("metadata.name", message, "Use at most 63 letters, digits and `-`.");
    }
    let spec = object.spec;
    if items(spec, "servers").is_empty() {
        report.reject("spec.servers", "The Gateway has no server.", "Add one.");
    }
    let root = Path::Root("spec.servers");
    let mut port_names: Vec<&str> = Vec::new();
    for (index, server) in items(spec, "servers").iter().enumerate() {
        let at = root.index(index);
        check_server(server, made, &at, report);
        let name = text(get(server, "port"), "name");
        if port_names.contains(&name) {
            let message = format!("Another server's port has the name `{name}` already.");
            report.reject(at.field("port").field("name"), message, "Give each port a name of its own.");
        }
        port_names.push(name);
    }
}

/// Whether it stands for a Gateway of the Gateway API, whose rules about names and hosts are wider.
fn is_made_by_istio(object: &Object<'_>) -> bool {
    text(get(object.metadata, "annotations"), "internal.istio.io/gateway-semantics") == "gateway"
}

fn check_server(server: &Value, made: bool, at: &Path<'_>, report: &mut Report<'_>) {
    let hosts = at.field("hosts");
    if items(server, "hosts").is_empty() {
        report.reject(hosts, "The server has no host.", "Add one, or `*` for all.");
    }
    for (index, host) in texts(server, "hosts").enumerate() {
        // Nobody's namespace: no route is attached.
        let host = host.strip_prefix("~/").filter(|_| made).unwrap_or(host);
        check_host(host, &hosts.index(index), report);
    }
    check_port(server, at, report);
    check_bind(server, at, report);
    server_tls::check(get(server, "tls"), &at.field("tls"), report);
    check_tls_of_protocol(server, at, report);
}

fn check_host(entry: &str, at: &Path<'_>, report: &mut Report<'_>) {
    let host = match entry.split_once('/') {
        None => entry,
        Some((namespace, host)) => {
            if !matches!(namespace, "*" | ".") && !names::is_label(namespace) {
                let message = format!("`{namespace}` is not a namespace.");
                report.reject(at, message, "Write `*`, `.` or the name of a namespace before the `/`.");
            }
            host
        }
    };
    shared_host(host, names::is_address(host), at, report);
}

/// A host of a Gateway or of a Sidecar: complete, with a wildcard only as its whole first label.
pub(super) fn shared_host(host: &str, is_allowed_address: bool, at: &Path<'_>, report: &mut Report<'_>) {
    if host != "*" && !host.contains('.') {
        let message = format!("`{host}` is a short name.");
        report.reject(at, message, "Write the whole host, for example `a.shop.svc.cluster.local`.");
    } else if let Err(why) = names::wildcard_host(host)
        && !is_allowed_address
    {
        shared::bad_host(host, &why, at, report);
    } else if names::is_partial_wildcard(host) {
        let message = format!("`{host}` has a `*` in the middle of a label.");
        report.reject(at, message, "Let `*` stand for a whole first label, as in `*.example.com`.");
    }
}

fn check_port(server: &Value, at: &Path<'_>, report: &mut Report<'_>) {
    let (port, at) = (get(server, "port"), at.field("port"));
    let protocol = text(port, "protocol");
    if Protocol::parse(protocol).is_none() {
        let message = format!("`{protocol}` is not a protocol.");
        report.reject(
            at.field("protocol"),
            message,
            "Write HTTP, HTTP2, GRPC, GRPC-WEB, HTTPS, TLS, TCP, MONGO, REDIS or MYSQL.",
        );
    }
    let port_number = number(port, "number");
    if port_number > 0 || !text(server, "bind").starts_with("unix://") {
        shared::port(port_number, &at.field("number"), report);
    }
    if number(port, "targetPort") > 0 {
        report.reject(at.field("targetPort"), "A Gateway's port has no target.", "Remove `targetPort`.");
    }
    if text(port, "name").is_empty() {
        report.reject(at.field("name"), "The port has no name.", "Give it one.");
    }
}

fn check_bind(server: &Value, at: &Path<'_>, report: &mut Report<'_>) {
    let (bind, field) = (text(server, "bind"), at.field("bind"));
    if let Some(path) = bind.strip_prefix("unix://") {
        if !names::is_socket_path(path) {
            let message = format!("`{path}` is not an absolute path to a file.");
            report.reject(field, message, "Write `unix:///path/to/socket` or `unix://@name`.");
        }
        if number(get(server, "port"), "number") != 0 {
            let message = "A Unix socket has no port.";
            report.reject(at.field("port").field("number"), message, "Write 0.");
        }
    } else if !bind.is_empty() && !names::is_address(bind) {
        report.reject(field, format!("`{bind}` is not an IP address."), "Write an IP address.");
    }
}

fn check_tls_of_protocol(server: &Value, at: &Path<'_>, report: &mut Report<'_>) {
    let name = text(get(server, "port"), "protocol");
    let Some(protocol) = Protocol::parse(name) else { return };
    let (tls, field) = (get(server, "tls"), at.field("tls"));
    if protocol.is_tls() {
        if tls.is_null() {
            let message = format!("The protocol {name} needs TLS settings.");
            report.reject(field, message, "Add `tls`, for example with `mode: SIMPLE` and `credentialName`.");
        }
    } else if has(server, "tls") {
        let certificates = ["caCertificates", "privateKey", "serverCertificate"];
        let bare =
            server_tls::passes_through(tls) && certificates.iter().all(|name| text(tls, name).is_empty());
        if !protocol.is_http() {
            let message = format!("The protocol {name} has no TLS settings.");
            report.reject(field, message, "Use the protocol TLS or HTTPS, or remove `tls`.");
        } else if !bare {
            let message = format!("The protocol {name} is plain text: only `httpsRedirect` has a meaning.");
            report.reject(field, message, "Use the protocol HTTPS, or keep `httpsRedirect` alone.");
        }
    }
    if flag(tls, "httpsRedirect") && !protocol.is_http() {
        let message = "Only a server that speaks plain HTTP can redirect to HTTPS.";
        report.add(codes::SCHEMA_WARNING, field.field("httpsRedirect"), message, "Remove `httpsRedirect`.");
    }
}
