//! The text of one access log line.

use std::fmt::Write;
use std::net::SocketAddr;
use std::time::SystemTime;

use serde::Serialize;

use crate::access::{AccessLogFormat, ConnectionLog, Direction};

/// Appends one line, its end included.
pub(crate) fn line(entry: &ConnectionLog, format: AccessLogFormat, out: &mut String) {
    match format {
        AccessLogFormat::Text => text(entry, out),
        AccessLogFormat::Json => json(entry, out),
    }
    out.push('\n');
}

/// Istio's default text format for TCP (L-2): what HTTP would fill is `-`.
fn text(entry: &ConnectionLog, out: &mut String) {
    out.push('[');
    start_time(entry.start, out);
    let termination = termination(entry);
    let termination = termination.as_deref().unwrap_or("-");
    // Writing to a String cannot fail.
    let _ = write!(out, "] \"- - -\" 0 {} - {termination} \"", entry.flags);
    quoted(entry.details.as_deref().unwrap_or("-"), out);
    let _ = write!(out, "\" {} {}", entry.bytes_received, entry.bytes_sent);
    let _ = write!(out, " {} - \"-\" \"-\" \"-\" \"-\" \"", entry.duration.as_millis());
    address(entry.upstream_remote, out);
    let _ = write!(out, "\" {} ", entry.upstream_cluster);
    address(entry.upstream_local, out);
    let _ = write!(out, " {} {} - -", entry.downstream_local, entry.downstream_remote);
}

/// `%CONNECTION_TERMINATION_DETAILS%` as Envoy writes it for a connection that its RBAC filter closed.
fn termination(entry: &ConnectionLog) -> Option<String> {
    let policy = entry.policy.as_deref().filter(|policy| !policy.starts_with("dry-run:"));
    (entry.flags == "DENY")
        .then(|| format!("rbac_access_denied_matched_policy[{}]", policy.unwrap_or("none")))
}

fn start_time(start: SystemTime, out: &mut String) {
    match jiff::Timestamp::try_from(start) {
        Ok(time) => {
            let _ = write!(out, "{}", time.strftime("%Y-%m-%dT%H:%M:%S.%3fZ"));
        }
        Err(_) => out.push('-'),
    }
}

fn address(address: Option<SocketAddr>, out: &mut String) {
    match address {
        Some(address) => {
            let _ = write!(out, "{address}");
        }
        None => out.push('-'),
    }
}

/// Text inside quotes: whatever a peer or an object's name put there, the line stays one line and the quotes
/// stay balanced.
fn quoted(text: &str, out: &mut String) {
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if c.is_control() => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
}

/// L-3, in the order of Istio's format; keys that only HTTP fills are null.
#[derive(Serialize)]
struct Json<'a> {
    start_time: String,
    method: (),
    path: (),
    protocol: (),
    response_code: u16,
    response_flags: &'a str,
    response_code_details: (),
    connection_termination_details: Option<String>,
    upstream_transport_failure_reason: Option<&'a str>,
    bytes_received: u64,
    bytes_sent: u64,
    duration: u128,
    upstream_service_time: (),
    x_forwarded_for: (),
    user_agent: (),
    request_id: (),
    authority: (),
    upstream_host: Option<SocketAddr>,
    upstream_cluster: &'a str,
    upstream_local_address: Option<SocketAddr>,
    downstream_local_address: SocketAddr,
    downstream_remote_address: SocketAddr,
    requested_server_name: (),
    route_name: (),
    direction: &'static str,
    mesh_path: &'a str,
    source_principal: Option<&'a str>,
    destination_principal: Option<&'a str>,
    source_pod: Option<&'a str>,
    destination_pod: Option<&'a str>,
    policy: Option<&'a str>,
}

fn json(entry: &ConnectionLog, out: &mut String) {
    let mut start = String::new();
    start_time(entry.start, &mut start);
    let json = Json {
        start_time: start,
        method: (),
        path: (),
        protocol: (),
        response_code: 0,
        response_flags: entry.flags,
        response_code_details: (),
        connection_termination_details: termination(entry),
        upstream_transport_failure_reason: entry.details.as_deref(),
        bytes_received: entry.bytes_received,
        bytes_sent: entry.bytes_sent,
        duration: entry.duration.as_millis(),
        upstream_service_time: (),
        x_forwarded_for: (),
        user_agent: (),
        request_id: (),
        authority: (),
        upstream_host: entry.upstream_remote,
        upstream_cluster: &entry.upstream_cluster,
        upstream_local_address: entry.upstream_local,
        downstream_local_address: entry.downstream_local,
        downstream_remote_address: entry.downstream_remote,
        requested_server_name: (),
        route_name: (),
        direction: match entry.direction {
            Direction::Outbound => "outbound",
            Direction::Inbound => "inbound",
        },
        mesh_path: entry.path,
        source_principal: entry.source_principal.as_deref(),
        destination_principal: entry.destination_principal.as_deref(),
        source_pod: entry.source_pod.as_deref(),
        destination_pod: entry.destination_pod.as_deref(),
        policy: entry.policy.as_deref(),
    };
    // Strings and numbers always serialise.
    out.push_str(&serde_json::to_string(&json).unwrap_or_default());
}
