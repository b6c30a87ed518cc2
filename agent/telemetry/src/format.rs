//! The text of one access log line.

use std::borrow::Cow;
use std::cell::RefCell;
use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Serialize, Serializer};

use crate::access::{AccessLogFormat, ConnectionLog, Direction, LogText, RequestLog};
use crate::custom;

/// Appends one line, its end included.
pub(crate) fn line(fields: &Fields<'_>, format: &AccessLogFormat, out: &mut String) {
    match format {
        AccessLogFormat::Custom(format) => custom::line(fields, format, out),
        AccessLogFormat::Text => text(fields, out),
        // Strings and numbers always serialise.
        AccessLogFormat::Json => out.push_str(&serde_json::to_string(fields).unwrap_or_default()),
    }
    out.push('\n');
}

/// What a line says: L-3's keys in the order of Istio's format, then ours.
#[derive(Debug, Serialize)]
pub(crate) struct Fields<'a> {
    #[serde(serialize_with = "as_time")]
    pub(crate) start_time: SystemTime,
    pub(crate) method: Option<&'a str>,
    pub(crate) path: Option<&'a str>,
    pub(crate) protocol: Option<&'a str>,
    pub(crate) response_code: u16,
    pub(crate) response_flags: &'a str,
    pub(crate) response_code_details: Option<&'a str>,
    pub(crate) connection_termination_details: Option<Cow<'a, str>>,
    pub(crate) upstream_transport_failure_reason: Option<&'a str>,
    pub(crate) bytes_received: u64,
    pub(crate) bytes_sent: u64,
    #[serde(serialize_with = "as_milliseconds")]
    pub(crate) duration: Duration,
    #[serde(serialize_with = "as_header")]
    pub(crate) upstream_service_time: Option<Duration>,
    pub(crate) x_forwarded_for: Option<&'a str>,
    pub(crate) user_agent: Option<&'a str>,
    pub(crate) request_id: Option<&'a str>,
    pub(crate) authority: Option<&'a str>,
    pub(crate) upstream_host: Option<SocketAddr>,
    pub(crate) upstream_cluster: Option<LogText<'a>>,
    pub(crate) upstream_local_address: Option<SocketAddr>,
    pub(crate) downstream_local_address: SocketAddr,
    pub(crate) downstream_remote_address: SocketAddr,
    pub(crate) requested_server_name: Option<&'a str>,
    pub(crate) route_name: Option<&'a str>,
    pub(crate) direction: &'static str,
    mesh_path: &'a str,
    pub(crate) source_principal: Option<&'a str>,
    pub(crate) destination_principal: Option<&'a str>,
    source_pod: Option<LogText<'a>>,
    destination_pod: Option<LogText<'a>>,
    policy: Option<LogText<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    audit: Option<&'a str>,
    #[serde(skip)]
    pub(crate) grpc_status: Option<u8>,
    #[serde(skip)]
    pub(crate) request_headers: &'a [(Arc<str>, String)],
    #[serde(skip)]
    pub(crate) response_headers: &'a [(Arc<str>, String)],
}

impl<'a> Fields<'a> {
    /// Of a connection: what only HTTP fills is absent.
    pub(crate) fn of_connection(entry: &'a ConnectionLog) -> Self {
        Self {
            start_time: entry.start,
            method: None,
            path: None,
            protocol: None,
            response_code: 0,
            response_flags: entry.flags,
            response_code_details: None,
            connection_termination_details: termination(entry).map(Cow::Owned),
            upstream_transport_failure_reason: entry.details.as_deref(),
            bytes_received: entry.bytes_received,
            bytes_sent: entry.bytes_sent,
            duration: entry.duration,
            upstream_service_time: None,
            x_forwarded_for: None,
            user_agent: None,
            request_id: None,
            authority: None,
            upstream_host: entry.upstream_remote,
            upstream_cluster: Some(LogText::Plain(&entry.upstream_cluster)),
            upstream_local_address: entry.upstream_local,
            downstream_local_address: entry.downstream_local,
            downstream_remote_address: entry.downstream_remote,
            requested_server_name: None,
            route_name: None,
            direction: direction(entry.direction),
            mesh_path: entry.path,
            source_principal: entry.source_principal.as_deref(),
            destination_principal: entry.destination_principal.as_deref(),
            source_pod: entry.source_pod.as_deref().map(LogText::Plain),
            destination_pod: entry.destination_pod.as_deref().map(LogText::Plain),
            policy: entry.policy.as_deref().map(LogText::Plain),
            audit: entry.audit.as_deref(),
            grpc_status: None,
            request_headers: &[],
            response_headers: &[],
        }
    }

    /// Whether the server's side speaks.
    pub(crate) fn is_inbound(&self) -> bool {
        self.direction == direction(Direction::Inbound)
    }

    /// The name of the pod for which the line is.
    pub(crate) fn own_pod(&self) -> Option<&'a str> {
        match if self.is_inbound() { self.destination_pod } else { self.source_pod }? {
            LogText::Object(pod) => Some(&pod.name),
            LogText::Plain(pod) => pod.rsplit('/').next(),
            LogText::InboundPort(_) | LogText::Policy(..) => None,
        }
    }

    /// Of a request.
    pub(crate) fn of_request(entry: &'a RequestLog<'_>) -> Self {
        Self {
            start_time: entry.start,
            method: Some(entry.method),
            path: Some(entry.path),
            protocol: Some(entry.protocol),
            response_code: entry.response_code,
            response_flags: entry.flags,
            response_code_details: entry.response_code_details,
            connection_termination_details: entry.termination_details.map(Cow::Borrowed),
            upstream_transport_failure_reason: entry.transport_failure,
            bytes_received: entry.bytes_received,
            bytes_sent: entry.bytes_sent,
            duration: entry.duration,
            upstream_service_time: entry.upstream_service_time,
            x_forwarded_for: entry.x_forwarded_for.as_deref(),
            user_agent: entry.user_agent.as_deref(),
            request_id: entry.request_id.as_deref(),
            authority: entry.authority.as_deref(),
            upstream_host: entry.upstream_host,
            upstream_cluster: entry.upstream_cluster,
            upstream_local_address: entry.upstream_local,
            downstream_local_address: entry.downstream_local,
            downstream_remote_address: entry.downstream_remote,
            requested_server_name: entry.requested_server_name,
            route_name: entry.route_name,
            direction: direction(entry.direction),
            mesh_path: entry.mesh_path,
            source_principal: entry.source_principal,
            destination_principal: entry.destination_principal,
            source_pod: entry.source_pod,
            destination_pod: entry.destination_pod,
            policy: entry.policy,
            audit: entry.audit,
            grpc_status: entry.grpc_status,
            request_headers: entry.headers.map_or(&[], |headers| &headers.request),
            response_headers: entry.headers.map_or(&[], |headers| &headers.response),
        }
    }
}

fn direction(direction: Direction) -> &'static str {
    match direction {
        Direction::Outbound => "outbound",
        Direction::Inbound => "inbound",
    }
}

/// `%CONNECTION_TERMINATION_DETAILS%` as Envoy writes it for a connection that its RBAC filter closed.
fn termination(entry: &ConnectionLog) -> Option<String> {
    let policy = entry.policy.as_deref().filter(|policy| !policy.starts_with("dry-run:"));
    (entry.flags == "DENY")
        .then(|| format!("rbac_access_denied_matched_policy[{}]", policy.unwrap_or("none")))
}

/// Istio's default text format (L-2). What peers chose is escaped, quoted or not: it must not look like another
/// field.
///
/// Written with every request where the log is on, by hand: `write!` would cost several times as much.
fn text(fields: &Fields<'_>, out: &mut String) {
    out.push('[');
    start_time(fields.start_time, out);
    out.push_str("] \"");
    escaped(fields.method, out);
    out.push(' ');
    escaped(fields.path, out);
    out.push(' ');
    out.push_str(fields.protocol.unwrap_or("-"));
    out.push_str("\" ");
    number(fields.response_code.into(), out);
    let details = fields.response_code_details.unwrap_or("-");
    let termination = fields.connection_termination_details.as_deref().unwrap_or("-");
    for word in [fields.response_flags, details, termination] {
        out.push(' ');
        out.push_str(word);
    }
    out.push_str(" \"");
    escaped(fields.upstream_transport_failure_reason, out);
    out.push('"');
    let service_time = fields.upstream_service_time.map(milliseconds);
    let numbers = [fields.bytes_received, fields.bytes_sent, milliseconds(fields.duration)];
    for value in numbers.map(Some).into_iter().chain([service_time]) {
        out.push(' ');
        optional(value, number, out);
    }
    for header in [fields.x_forwarded_for, fields.user_agent, fields.request_id, fields.authority] {
        out.push_str(" \"");
        escaped(header, out);
        out.push('"');
    }
    addresses(fields, out);
}

/// The end of the text format: upstream, addresses, SNI, route.
fn addresses(fields: &Fields<'_>, out: &mut String) {
    out.push_str(" \"");
    optional(fields.upstream_host, address, out);
    out.push_str("\" ");
    match fields.upstream_cluster {
        Some(LogText::Plain(cluster)) => out.push_str(cluster),
        // Writing to a String cannot fail.
        Some(other) => _ = write!(out, "{other}"),
        None => out.push('-'),
    }
    out.push(' ');
    optional(fields.upstream_local_address, address, out);
    for end in [fields.downstream_local_address, fields.downstream_remote_address] {
        out.push(' ');
        address(end, out);
    }
    out.push(' ');
    escaped(fields.requested_server_name, out);
    out.push(' ');
    out.push_str(fields.route_name.unwrap_or("-"));
}

/// With milliseconds. Lines come one after the other: the second is put into words once for all of it.
pub(crate) fn start_time(start: SystemTime, out: &mut String) {
    thread_local! {
        static SECOND: RefCell<(u64, String)> = const { RefCell::new((0, String::new())) };
    }
    let Ok(since) = start.duration_since(UNIX_EPOCH) else { return out.push('-') };
    SECOND.with_borrow_mut(|(of, words)| {
        if *of != since.as_secs() || words.is_empty() {
            let Ok(time) = jiff::Timestamp::try_from(start) else { return out.push('-') };
            (*of, *words) = (since.as_secs(), time.strftime("%Y-%m-%dT%H:%M:%S").to_string());
        }
        out.push_str(words);
        out.push('.');
        for place in [100, 10, 1] {
            number(u64::from(since.subsec_millis() / place % 10), out);
        }
        out.push('Z');
    });
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn optional<T>(value: Option<T>, print: impl FnOnce(T, &mut String), out: &mut String) {
    match value {
        Some(value) => print(value, out),
        None => out.push('-'),
    }
}

fn number(value: u64, out: &mut String) {
    // 20 digits are the most that there can be.
    let (mut digits, mut rest, mut from) = ([b'0'; 20], value, 20);
    for digit in digits.iter_mut().rev() {
        *digit += u8::try_from(rest % 10).unwrap_or_default();
        rest /= 10;
        from -= 1;
        if rest == 0 {
            break;
        }
    }
    let digits = digits.get(from..).unwrap_or_default();
    out.push_str(std::str::from_utf8(digits).unwrap_or_default());
}

fn address(address: SocketAddr, out: &mut String) {
    let SocketAddr::V4(address) = address else {
        // Writing to a String cannot fail.
        let _ = write!(out, "{address}");
        return;
    };
    for (at, octet) in address.ip().octets().into_iter().enumerate() {
        if at > 0 {
            out.push('.');
        }
        number(octet.into(), out);
    }
    out.push(':');
    number(address.port().into(), out);
}

/// Whatever a peer or an object's name put there, the line stays one line and its quotes stay balanced.
pub(crate) fn escaped(text: Option<&str>, out: &mut String) {
    let text = text.unwrap_or("-");
    // All bytes are looked at in any case, several at a time.
    let is_plain = |byte: u8| (b' '..0x7F).contains(&byte) & (byte != b'"') & (byte != b'\\');
    let plain = text.bytes().fold(true, |plain, byte| plain & is_plain(byte));
    if plain {
        return out.push_str(text);
    }
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if c.is_control() => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
}

fn as_time<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    let mut text = String::new();
    start_time(*time, &mut text);
    serializer.serialize_str(&text)
}

fn as_milliseconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u128(duration.as_millis())
}

/// `%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%` is a header, so that JSON shows a string.
fn as_header<S: Serializer>(time: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => serializer.collect_str(&time.as_millis()),
        None => serializer.serialize_none(),
    }
}
