//! The text of one access log line.

use std::borrow::Cow;
use std::cell::RefCell;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Serialize, Serializer};

use crate::access::{AccessLogFormat, ConnectionLog, Direction, LogText, RequestLog};
use crate::custom;

/// Appends one line, its end included.
pub(crate) fn line(fields: &Fields<'_>, format: &AccessLogFormat, out: &mut Vec<u8>) {
    match format {
        AccessLogFormat::Custom(format) => custom::line(fields, format, out),
        AccessLogFormat::Text => text(fields, out),
        // Strings and numbers always serialise.
        AccessLogFormat::Json => serde_json::to_writer(&mut *out, fields).unwrap_or_default(),
    }
    out.push(b'\n');
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
    #[serde(serialize_with = "as_text")]
    pub(crate) x_forwarded_for: Option<&'a [u8]>,
    #[serde(serialize_with = "as_text")]
    pub(crate) user_agent: Option<&'a [u8]>,
    #[serde(serialize_with = "as_text")]
    pub(crate) request_id: Option<&'a [u8]>,
    #[serde(serialize_with = "as_text")]
    pub(crate) authority: Option<&'a [u8]>,
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
            x_forwarded_for: entry.x_forwarded_for,
            user_agent: entry.user_agent,
            request_id: entry.request_id,
            authority: entry.authority,
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
fn text(fields: &Fields<'_>, out: &mut Vec<u8>) {
    out.push(b'[');
    start_time(fields.start_time, out);
    out.extend_from_slice(b"] \"");
    words(fields.method, out);
    out.push(b' ');
    words(fields.path, out);
    out.push(b' ');
    out.extend_from_slice(fields.protocol.unwrap_or("-").as_bytes());
    out.extend_from_slice(b"\" ");
    number(fields.response_code, out);
    let details = fields.response_code_details.unwrap_or("-");
    let termination = fields.connection_termination_details.as_deref().unwrap_or("-");
    for word in [fields.response_flags, details, termination] {
        out.push(b' ');
        out.extend_from_slice(word.as_bytes());
    }
    out.extend_from_slice(b" \"");
    words(fields.upstream_transport_failure_reason, out);
    out.push(b'"');
    let service_time = fields.upstream_service_time.map(milliseconds);
    let numbers = [fields.bytes_received, fields.bytes_sent, milliseconds(fields.duration)];
    for value in numbers.map(Some).into_iter().chain([service_time]) {
        out.push(b' ');
        optional(value, number, out);
    }
    for header in [fields.x_forwarded_for, fields.user_agent, fields.request_id, fields.authority] {
        out.extend_from_slice(b" \"");
        optional(header, escaped, out);
        out.push(b'"');
    }
    addresses(fields, out);
}

/// The end of the text format: upstream, addresses, SNI, route.
fn addresses(fields: &Fields<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(b" \"");
    optional(fields.upstream_host, address, out);
    out.extend_from_slice(b"\" ");
    match fields.upstream_cluster {
        Some(LogText::Plain(cluster)) => out.extend_from_slice(cluster.as_bytes()),
        Some(LogText::InboundPort(port)) => {
            out.extend_from_slice(b"inbound|");
            number(port, out);
            out.extend_from_slice(b"||");
        }
        // Writing to memory cannot fail.
        Some(other) => _ = write!(out, "{other}"),
        None => out.push(b'-'),
    }
    out.push(b' ');
    optional(fields.upstream_local_address, address, out);
    for end in [fields.downstream_local_address, fields.downstream_remote_address] {
        out.push(b' ');
        address(end, out);
    }
    out.push(b' ');
    words(fields.requested_server_name, out);
    out.push(b' ');
    out.extend_from_slice(fields.route_name.unwrap_or("-").as_bytes());
}

/// With milliseconds. Lines come one after the other: the second is put into words once for all of it.
pub(crate) fn start_time(start: SystemTime, out: &mut Vec<u8>) {
    thread_local! {
        static SECOND: RefCell<(u64, String)> = const { RefCell::new((0, String::new())) };
    }
    let Ok(since) = start.duration_since(UNIX_EPOCH) else { return out.push(b'-') };
    SECOND.with_borrow_mut(|(of, words)| {
        if *of != since.as_secs() || words.is_empty() {
            let Ok(time) = jiff::Timestamp::try_from(start) else { return out.push(b'-') };
            (*of, *words) = (since.as_secs(), time.strftime("%Y-%m-%dT%H:%M:%S.").to_string());
        }
        out.extend_from_slice(words.as_bytes());
        let milliseconds = since.subsec_millis();
        out.extend_from_slice(match milliseconds {
            0..10 => b"00",
            10..100 => b"0",
            _ => b"",
        });
        number(milliseconds, out);
        out.push(b'Z');
    });
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn optional<T>(value: Option<T>, print: impl FnOnce(T, &mut Vec<u8>), out: &mut Vec<u8>) {
    match value {
        Some(value) => print(value, out),
        None => out.push(b'-'),
    }
}

fn number(value: impl itoa::Integer, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

fn address(address: SocketAddr, out: &mut Vec<u8>) {
    let SocketAddr::V4(address) = address else {
        // Writing to memory cannot fail.
        let _ = write!(out, "{address}");
        return;
    };
    for (octet, end) in address.ip().octets().into_iter().zip(*b"...:") {
        // A few digits cost less than finding out how many they are.
        if octet >= 100 {
            out.push(b'0' + octet / 100);
        }
        if octet >= 10 {
            out.push(b'0' + octet / 10 % 10);
        }
        out.extend_from_slice(&[b'0' + octet % 10, end]);
    }
    number(address.port(), out);
}

fn words(text: Option<&str>, out: &mut Vec<u8>) {
    optional(text.map(str::as_bytes), escaped, out);
}

/// Whatever a peer or an object's name put there, the line stays one line and its quotes stay balanced.
pub(crate) fn escaped(text: &[u8], out: &mut Vec<u8>) {
    // All bytes are looked at in any case, several at a time.
    let is_plain = |byte: u8| (b' '..0x7F).contains(&byte) & (byte != b'"') & (byte != b'\\');
    if text.iter().fold(true, |plain, byte| plain & is_plain(*byte)) {
        return out.extend_from_slice(text);
    }
    for c in String::from_utf8_lossy(text).chars() {
        // Writing to memory cannot fail.
        let _ = match c {
            '"' | '\\' => write!(out, "\\{c}"),
            c if c.is_control() => write!(out, "{}", c.escape_default()),
            c => write!(out, "{c}"),
        };
    }
}

fn as_text<S: Serializer>(text: &Option<&[u8]>, serializer: S) -> Result<S::Ok, S::Error> {
    text.map(String::from_utf8_lossy).serialize(serializer)
}

fn as_time<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    let mut text = Vec::new();
    start_time(*time, &mut text);
    serializer.serialize_str(&String::from_utf8_lossy(&text))
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
