//! What several kinds have in common: selectors, references, TLS of servers, endpoints, limits of connections.

use serde_json::Value;

use super::super::report::{Path, Report};
use super::names::{self, BadHost};
use super::schema::{MANY, SIGNED, TEXT, TEXTS, Type, UNSIGNED, checked, filled, may, must, short};
use super::value::{entries, get, has, items, number, text, texts, whole};
use crate::codes;

/// `matchLabels` of a selector of the newer kinds.
pub(super) const SELECTOR: Type =
    Type::Object(&[may("matchLabels", Type::Map(&checked(63, no_wildcard), 4096))]);
/// `labels` of a selector of the networking kinds.
pub(super) const WORKLOAD_SELECTOR: Type =
    Type::Object(&[may("labels", Type::Map(&checked(63, no_wildcard), 256))]);
/// A reference to the object that a policy is attached to.
pub(super) const TARGET: Type = Type::Object(&[
    may("group", checked(253, group)),
    must("kind", Type::Text(1, 63, Some(kind))),
    must("name", filled(253)),
    may("namespace", TEXT),
]);
/// Several of them.
pub(super) const TARGETS: Type = Type::List(&TARGET, 0, 16);
/// A provider of telemetry.
pub(super) const PROVIDERS: Type = Type::List(&Type::Object(&[must("name", filled(MANY))]), 0, MANY);
/// On which side of a connection something counts.
pub(super) const SIDE: Type = Type::OneOf(&["CLIENT_AND_SERVER", "CLIENT", "SERVER"]);
/// A length of time of a millisecond or more.
pub(super) const DURATION: Type = Type::Text(0, MANY, Some(at_least_a_millisecond));

const TLS_VERSION: Type = Type::OneOf(&["TLS_AUTO", "TLSV1_0", "TLSV1_1", "TLSV1_2", "TLSV1_3"]);

/// TLS of a server.
pub(super) const SERVER_TLS: Type = Type::Object(&[
    may("caCertCredentialName", TEXT),
    may("caCertificates", TEXT),
    may("caCrl", TEXT),
    may("cipherSuites", TEXTS),
    may("credentialName", TEXT),
    may("credentialNames", Type::List(&TEXT, 1, 2)),
    may("ecdhCurves", TEXTS),
    may("httpsRedirect", Type::Flag),
    may("insecureSkipVerify", Type::Flag),
    may("maxProtocolVersion", TLS_VERSION),
    may("minProtocolVersion", TLS_VERSION),
    may(
        "mode",
        Type::OneOf(&[
            "PASSTHROUGH",
            "SIMPLE",
            "MUTUAL",
            "AUTO_PASSTHROUGH",
            "ISTIO_MUTUAL",
            "OPTIONAL_MUTUAL",
        ]),
    ),
    may("privateKey", TEXT),
    may("serverCertificate", TEXT),
    may("subjectAltNames", TEXTS),
    may(
        "tlsCertificates",
        Type::List(
            &Type::Object(&[
                may("caCertificates", TEXT),
                may("privateKey", TEXT),
                may("serverCertificate", TEXT),
            ]),
            1,
            2,
        ),
    ),
    may("verifyCertificateHash", TEXTS),
    may("verifyCertificateSpki", TEXTS),
]);

/// An address with ports, outside Kubernetes.
pub(super) const ENDPOINT: Type = Type::Object(&[
    may("address", short(256)),
    may("labels", Type::Map(&TEXT, 256)),
    may("locality", short(2048)),
    may("network", short(2048)),
    may("ports", Type::Map(&UNSIGNED, 128)),
    may("serviceAccount", short(253)),
    may("weight", UNSIGNED),
]);

/// Limits of connections.
pub(super) const CONNECTION_POOL: Type = Type::Object(&[
    may(
        "http",
        Type::Object(&[
            may("h2UpgradePolicy", Type::OneOf(&["DEFAULT", "DO_NOT_UPGRADE", "UPGRADE"])),
            may("http1MaxPendingRequests", SIGNED),
            may("http2KeepAlive", Type::Object(&[may("interval", DURATION), may("timeout", DURATION)])),
            may("http2MaxRequests", SIGNED),
            may("idleTimeout", DURATION),
            may("maxConcurrentStreams", SIGNED),
            may("maxRequestsPerConnection", SIGNED),
            may("maxRetries", SIGNED),
            may("useClientProtocol", Type::Flag),
        ]),
    ),
    may(
        "tcp",
        Type::Object(&[
            may("connectTimeout", DURATION),
            may("idleTimeout", TEXT),
            may("maxConnectionDuration", DURATION),
            may("maxConnections", SIGNED),
            may(
                "tcpKeepalive",
                Type::Object(&[may("interval", DURATION), may("probes", UNSIGNED), may("time", DURATION)]),
            ),
        ]),
    ),
]);

fn no_wildcard(value: &str) -> Option<(String, &'static str)> {
    let found = value.contains('*');
    found.then(|| ("has a `*`, but selectors have no wildcards".to_owned(), "Write the whole value."))
}

fn group(name: &str) -> Option<(String, &'static str)> {
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    let is_part = |part: &str| {
        !part.is_empty() && !part.starts_with('-') && !part.ends_with('-') && part.bytes().all(inner)
    };
    let valid = name.is_empty() || name.split('.').all(is_part);
    (!valid).then(|| {
        ("is not an API group".to_owned(), "Write for example `gateway.networking.k8s.io`, in lower case.")
    })
}

/// A kind begins with a letter.
fn kind(name: &str) -> Option<(String, &'static str)> {
    let valid = names::is_label(name) && name.starts_with(|first: char| first.is_ascii_alphabetic());
    (!valid).then(|| ("is not a kind".to_owned(), "Write for example `Gateway`."))
}

fn at_least_a_millisecond(text: &str) -> Option<(String, &'static str)> {
    const MILLISECOND: i128 = 1_000_000;
    const FIX: &str = "Write for example `500ms`, `10s` or `1h30m`.";
    match names::duration(text) {
        None => Some(("is not a length of time".to_owned(), FIX)),
        Some(length) if length < MILLISECOND => Some(("is shorter than a millisecond".to_owned(), FIX)),
        Some(length) if length % MILLISECOND != 0 => Some(("is finer than a millisecond".to_owned(), FIX)),
        Some(_) => None,
    }
}

/// A port from 1 to 65535.
pub(super) fn port(number: i64, at: &Path<'_>, report: &mut Report<'_>) {
    if !(1..=65535).contains(&number) {
        report.reject(at, format!("{number} is not a port."), "Write a number from 1 to 65535.");
    }
}

/// A name of a port.
pub(super) fn port_name(name: &str, at: &Path<'_>, report: &mut Report<'_>) {
    if !names::is_label(name) {
        let message = format!("`{name}` is not a name of a port.");
        report.reject(at, message, "Use at most 63 letters, digits and `-`, not `-` at the ends.");
    }
}

/// A protocol, or nothing.
pub(super) fn protocol(name: &str, at: &Path<'_>, report: &mut Report<'_>) {
    if !name.is_empty() && names::Protocol::parse(name).is_none() {
        let message = format!("`{name}` is not a protocol.");
        report.reject(
            at,
            message,
            "Write HTTP, HTTP2, GRPC, GRPC-WEB, HTTPS, TLS, TCP, MONGO, REDIS or MYSQL.",
        );
    }
}

/// Says why a host is none.
pub(super) fn bad_host(host: &str, why: &BadHost, at: &Path<'_>, report: &mut Report<'_>) {
    report.reject(at, format!("`{host}` is not a host: {why}."), "Correct the host.");
}

/// Keys of labels in a selector: `labels` or `matchLabels` of `selector`.
pub(super) fn selector(spec: &Value, name: &str, labels: &str, at: &Path<'_>, report: &mut Report<'_>) {
    if !has(spec, name) {
        return;
    }
    let (selector, at) = (get(spec, name), at.field(name));
    let at_labels = at.field(labels);
    for (key, _) in entries(selector, labels) {
        if key.is_empty() {
            report.reject(at_labels, "A label without a name selects nothing.", "Name the label.");
        } else if key.contains('*') {
            let message = format!("The label `{key}` has a `*`, but selectors have no wildcards.");
            report.reject(at_labels, message, "Write the whole name.");
        }
    }
    if entries(selector, labels).next().is_none() {
        let message = "The selector has no labels, so it selects every workload of its scope.";
        let fix = format!("Add labels, or remove `{name}`.");
        report.add(codes::SCHEMA_WARNING, at, message, fix);
    }
}

/// `selector`, `targetRef` and `targetRefs`: one of them, and references to kinds that can be referred to.
pub(super) fn attachment(spec: &Value, selector_name: &str, at: &Path<'_>, report: &mut Report<'_>) {
    exclusive(spec, selector_name, at, report);
    target(get(spec, "targetRef"), &at.field("targetRef"), report);
    let targets = at.field("targetRefs");
    for (index, reference) in items(spec, "targetRefs").iter().enumerate() {
        target(reference, &targets.index(index), report);
    }
}

/// One of `selector`, `targetRef` and `targetRefs` at most.
pub(super) fn exclusive(spec: &Value, selector_name: &str, at: &Path<'_>, report: &mut Report<'_>) {
    let written: Vec<&str> =
        [selector_name, "targetRef", "targetRefs"].into_iter().filter(|name| has(spec, name)).collect();
    if let [_, second, ..] = written.as_slice() {
        let message = format!("{} exclude each other.", written.join(" and "));
        report.reject(at.field(second), message, "Keep one of them.");
    }
}

/// What is referred to stands in the object's own namespace.
pub(super) fn own_namespace(reference: &Value, at: &Path<'_>, report: &mut Report<'_>) {
    if !text(reference, "namespace").is_empty() {
        let message = "References across namespaces are not possible.";
        report.reject(at.field("namespace"), message, "Remove `namespace`.");
    }
}

fn target(reference: &Value, at: &Path<'_>, report: &mut Report<'_>) {
    if reference.is_null() {
        return;
    }
    own_namespace(reference, at, report);
    let (group, kind) = (text(reference, "group"), text(reference, "kind"));
    let possible = match kind {
        "Service" => matches!(group, "" | "core"),
        "ServiceEntry" => group == "networking.istio.io",
        "Gateway" | "GatewayClass" => group == "gateway.networking.k8s.io",
        _ => false,
    };
    if !possible {
        let message = format!("Nothing can be attached to a {kind} of `{group}`.");
        let fix =
            "Refer to a Service, a ServiceEntry, or a Gateway or GatewayClass of gateway.networking.k8s.io.";
        report.reject(at.field("kind"), message, fix);
    }
}

/// Names and values of labels.
pub(super) fn label_texts(owner: &Value, name: &str, at: &Path<'_>, report: &mut Report<'_>) {
    let at = at.field(name);
    for (key, value) in entries(owner, name) {
        if !names::is_label_key(key) {
            let message = format!("`{key}` is not a name of a label.");
            report.reject(
                at,
                message,
                "Use letters, digits, `-`, `_` and `.`, with a prefix before `/` at most.",
            );
        }
        let value = value.as_str().unwrap_or_default();
        if !names::is_label_value(value) {
            let message = format!("`{value}` is not a value of a label.");
            report.reject(at.field(key), message, "Use letters, digits, `-`, `_` and `.`.");
        }
    }
}

/// What an endpoint belongs to.
#[derive(Debug, Clone, Copy)]
pub(super) enum Owner<'s> {
    /// An object of its own, whose ports are not known.
    Itself,
    /// A ServiceEntry with these ports whose endpoints have addresses.
    Addresses(&'s [&'s str]),
    /// A ServiceEntry with these ports whose endpoints may have names.
    Hosts(&'s [&'s str]),
}

/// An endpoint: address, ports, labels.
pub(super) fn endpoint(endpoint: &Value, owner: Owner<'_>, at: &Path<'_>, report: &mut Report<'_>) {
    let address = text(endpoint, "address");
    if !has(endpoint, "address") && !has(endpoint, "network")
        || address.is_empty() && text(endpoint, "network").is_empty()
    {
        report.reject(at.field("address"), "The endpoint has no address.", "Write an IP address or a host.");
        return;
    }
    if address.is_empty() {
        let message = "Without an address the endpoint is reached only through a gateway of its network.";
        report.add(codes::SCHEMA_WARNING, at.field("address"), message, "Write an IP address or a host.");
    }
    endpoint_address(address, endpoint, owner, at, report);
    endpoint_ports(endpoint, owner, at, report);
    label_texts(endpoint, "labels", at, report);
}

fn endpoint_address(
    address: &str,
    endpoint: &Value,
    owner: Owner<'_>,
    at: &Path<'_>,
    report: &mut Report<'_>,
) {
    let field = at.field("address");
    let named = match owner {
        Owner::Itself | Owner::Hosts(_) => true,
        Owner::Addresses(_) => false,
    };
    if let Some(path) = address.strip_prefix("unix://").filter(|_| !matches!(owner, Owner::Hosts(_))) {
        if !names::is_socket_path(path) {
            let message = format!("`{path}` is not an absolute path to a file.");
            report.reject(field, message, "Write `unix:///path/to/socket` or `unix://@name`.");
        }
        if has(endpoint, "ports") {
            report.reject(at.field("ports"), "A Unix socket has no ports.", "Remove `ports`.");
        }
        if let Owner::Addresses(ports) = owner
            && ports.len() != 1
        {
            let message = format!("A Unix socket serves one port, but the ServiceEntry has {}.", ports.len());
            report.reject(field, message, "Keep exactly one port.");
        }
    } else if !(address.is_empty() && !matches!(owner, Owner::Hosts(_))
        || names::is_address(address)
        || named && names::host(address).is_ok())
    {
        let wanted = if named { "an IP address or a host" } else { "an IP address" };
        report.reject(field, format!("`{address}` is not {wanted}."), format!("Write {wanted}."));
    }
}

fn endpoint_ports(endpoint: &Value, owner: Owner<'_>, at: &Path<'_>, report: &mut Report<'_>) {
    let at = at.field("ports");
    for (name, value) in entries(endpoint, "ports") {
        let field = at.field(name);
        if let Owner::Addresses(known) | Owner::Hosts(known) = owner
            && !known.contains(&name)
        {
            let message = format!("The ServiceEntry has no port `{name}`.");
            report.reject(field, message, "Name one of `spec.ports`.");
        }
        if name.len() >= 63 {
            report.reject(field, format!("`{name}` is too long."), "Use at most 62 characters.");
        }
        port_name(name, &field, report);
        port(whole(value).unwrap_or_default(), &field, report);
    }
}

/// Limits of connections.
pub(super) fn connection_pool(owner: &Value, name: &str, at: &Path<'_>, report: &mut Report<'_>) {
    if !has(owner, name) {
        return;
    }
    let (pool, at) = (get(owner, name), at.field(name));
    let (http, tcp) = (get(pool, "http"), get(pool, "tcp"));
    if http.is_null() && tcp.is_null() {
        report.reject(at, "There is neither `http` nor `tcp`.", "Add one of them, or remove the field.");
    }
    let at_http = at.field("http");
    const COUNTS: [&str; 5] = [
        "http1MaxPendingRequests",
        "http2MaxRequests",
        "maxRequestsPerConnection",
        "maxRetries",
        "maxConcurrentStreams",
    ];
    for name in COUNTS {
        not_negative(http, name, &at_http, report);
    }
    if text(http, "h2UpgradePolicy") == "UPGRADE" && super::value::flag(http, "useClientProtocol") {
        let message = "`useClientProtocol` and `h2UpgradePolicy: UPGRADE` exclude each other.";
        report.reject(at_http.field("useClientProtocol"), message, "Keep one of them.");
    }
    if has(http, "http2KeepAlive") {
        let (keep_alive, at) = (get(http, "http2KeepAlive"), at_http.field("http2KeepAlive"));
        for name in ["interval", "timeout"].into_iter().filter(|name| !has(keep_alive, name)) {
            report.reject(at.field(name), "The field is missing.", format!("Add `{name}`."));
        }
    }
    let at_tcp = at.field("tcp");
    not_negative(tcp, "maxConnections", &at_tcp, report);
    // 0 switches the timeout off.
    let idle = text(tcp, "idleTimeout");
    let is_off = names::duration(idle).is_some_and(|length| length / 1_000_000 == 0);
    if has(tcp, "idleTimeout")
        && !is_off
        && let Some((what, fix)) = at_least_a_millisecond(idle)
    {
        report.reject(at_tcp.field("idleTimeout"), format!("`{idle}` {what}."), fix);
    }
}

fn not_negative(owner: &Value, name: &str, at: &Path<'_>, report: &mut Report<'_>) {
    let count = number(owner, name);
    if count < 0 {
        report.reject(at.field(name), format!("{count} is negative."), "Write 0 or more.");
    }
}

/// `exportTo` of an object in `namespace`; only a ServiceEntry can be exported to nobody (`~`).
pub(super) fn export_to(spec: &Value, namespace: &str, at: &Path<'_>, report: &mut Report<'_>) {
    let at = at.field("exportTo");
    let mut known: Vec<&str> = Vec::new();
    for (index, entry) in texts(spec, "exportTo").enumerate() {
        let name = if entry == "." { namespace } else { entry };
        if known.contains(&name) {
            report.reject(at.index(index), format!("`{entry}` is listed twice."), "Keep only one of them.");
        } else if !matches!(name, "*" | "~") && !names::is_label(name) {
            let message = format!("`{entry}` is not a namespace.");
            report.reject(at.index(index), message, "Write `.`, `*`, `~` or the name of a namespace.");
        } else {
            known.push(name);
        }
    }
    for (all, whom) in [("*", "everybody"), ("~", "nobody")] {
        if known.contains(&all) && items(spec, "exportTo").len() > 1 {
            let message = format!("`{all}` exports to {whom}, so nothing can stand beside it.");
            report.reject(at, message, format!("Keep `{all}` alone, or remove it."));
        }
    }
}
