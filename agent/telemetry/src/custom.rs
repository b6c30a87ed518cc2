//! Lines in a format of a user's own (L-5).

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use weft_core::access_format::{AccessFormat, Operator, Part, Piece, Template, Value};

use crate::format::{Fields, escaped, start_time};

/// Headers that a format prints beside those that every line has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WantedHeaders {
    /// Of requests, in lower case.
    pub request: Vec<Arc<str>>,
    /// Of answers, in lower case.
    pub response: Vec<Arc<str>>,
}

/// Request headers that every line has anyhow.
const NOTED_ANYHOW: [&str; 3] = ["x-forwarded-for", "user-agent", "x-request-id"];
/// The answer's header that is made of what is measured.
const SERVICE_TIME: &str = "x-envoy-upstream-service-time";

impl WantedHeaders {
    /// Those of a format; `None` where there are none.
    pub(crate) fn of(format: &AccessFormat) -> Option<Self> {
        let [mut request, mut response] = format.headers();
        request.retain(|name| !name.starts_with(':') && !NOTED_ANYHOW.contains(&&**name));
        response.retain(|name| !name.starts_with(':') && **name != *SERVICE_TIME);
        let any = !(request.is_empty() && response.is_empty());
        any.then_some(Self { request, response })
    }
}

/// What an operator prints.
enum Printed<'a> {
    Nothing,
    Number(u128),
    Text(Cow<'a, str>),
}

impl<'a> Printed<'a> {
    fn text(text: Option<&'a str>) -> Self {
        text.map_or(Self::Nothing, |text| Self::Text(Cow::Borrowed(text)))
    }

    fn cut(self, length: Option<usize>) -> Self {
        match (self, length) {
            (Self::Text(text), Some(length)) => {
                Self::Text(text.chars().take(length).collect::<String>().into())
            }
            (other, _) => other,
        }
    }
}

/// Appends one line without its end.
pub(crate) fn line(fields: &Fields<'_>, format: &AccessFormat, out: &mut Vec<u8>) {
    match format {
        AccessFormat::Text(template) => text(fields, template, out),
        AccessFormat::Json(value) => json(fields, value, out),
    }
}

fn text(fields: &Fields<'_>, template: &Template, out: &mut Vec<u8>) {
    for part in template.parts() {
        match part {
            Part::Literal(text) => out.extend_from_slice(text.as_bytes()),
            Part::Operator(operator, length) => match printed(fields, operator).cut(*length) {
                Printed::Nothing => out.push(b'-'),
                // Writing to memory cannot fail.
                Printed::Number(number) => _ = write!(out, "{number}"),
                Printed::Text(text) => escaped(text.as_bytes(), out),
            },
        }
    }
}

/// A text that is one operator keeps what it is: a number, or null for nothing.
fn json(fields: &Fields<'_>, value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Literal(literal) => out.extend_from_slice(literal.as_bytes()),
        Value::Array(values) => {
            out.push(b'[');
            for (at, value) in values.iter().enumerate() {
                out.extend_from_slice(if at == 0 { b"" } else { b"," });
                json(fields, value, out);
            }
            out.push(b']');
        }
        Value::Object(members) => {
            out.push(b'{');
            for (at, (name, value)) in members.iter().enumerate() {
                out.extend_from_slice(if at == 0 { b"" } else { b"," });
                string(name, out);
                out.push(b':');
                json(fields, value, out);
            }
            out.push(b'}');
        }
        Value::Template(template) => match template.parts() {
            [Part::Operator(operator, length)] => match printed(fields, operator).cut(*length) {
                Printed::Nothing => out.extend_from_slice(b"null"),
                Printed::Number(number) => _ = write!(out, "{number}"),
                Printed::Text(text) => string(&text, out),
            },
            parts => string(&joined(fields, parts), out),
        },
    }
}

fn joined(fields: &Fields<'_>, parts: &[Part]) -> String {
    let mut joined = String::new();
    for part in parts {
        match part {
            Part::Literal(text) => joined.push_str(text),
            Part::Operator(operator, length) => match printed(fields, operator).cut(*length) {
                Printed::Nothing => joined.push('-'),
                Printed::Number(number) => _ = write!(joined, "{number}"),
                Printed::Text(text) => joined.push_str(&text),
            },
        }
    }
    joined
}

fn string(text: &str, out: &mut Vec<u8>) {
    // A string always serialises.
    serde_json::to_writer(out, text).unwrap_or_default();
}

fn printed<'a>(fields: &'a Fields<'_>, operator: &Operator) -> Printed<'a> {
    match operator {
        Operator::StartTime(format) => Printed::Text(time(fields.start_time, format.as_deref()).into()),
        Operator::Request { name, otherwise, without_query } => {
            let names = [Some(name), otherwise.as_ref()].into_iter().flatten();
            let found = names.filter_map(|name| request_header(fields, name)).next();
            found.map_or(Printed::Nothing, |text| {
                Printed::Text(if *without_query { path(text) } else { text })
            })
        }
        Operator::Response { name, otherwise } => {
            let names = [Some(name), otherwise.as_ref()].into_iter().flatten();
            let mut found = names.filter_map(|name| response_header(fields, name));
            found.next().map_or(Printed::Nothing, Printed::Text)
        }
        Operator::Protocol => Printed::text(fields.protocol),
        Operator::ResponseCode => Printed::Number(fields.response_code.into()),
        Operator::ResponseCodeDetails => Printed::text(fields.response_code_details),
        Operator::ResponseFlags => Printed::text(Some(fields.response_flags)),
        Operator::ConnectionTerminationDetails => {
            Printed::text(fields.connection_termination_details.as_deref())
        }
        Operator::UpstreamTransportFailureReason => Printed::text(fields.upstream_transport_failure_reason),
        Operator::BytesReceived => Printed::Number(fields.bytes_received.into()),
        Operator::BytesSent => Printed::Number(fields.bytes_sent.into()),
        Operator::Duration => Printed::Number(fields.duration.as_millis()),
        Operator::UpstreamHost(piece) => address(fields.upstream_host, *piece),
        Operator::UpstreamCluster => fields
            .upstream_cluster
            .map_or(Printed::Nothing, |cluster| Printed::Text(cluster.to_string().into())),
        Operator::UpstreamLocal(piece) => address(fields.upstream_local_address, *piece),
        Operator::DownstreamLocal(piece) => address(Some(fields.downstream_local_address), *piece),
        Operator::DownstreamRemote(piece) => address(Some(fields.downstream_remote_address), *piece),
        Operator::RequestedServerName => Printed::text(fields.requested_server_name),
        Operator::RouteName => Printed::text(fields.route_name),
        Operator::GrpcStatus => {
            fields.grpc_status.map_or(Printed::Nothing, |status| Printed::Number(status.into()))
        }
        Operator::DownstreamPeerUriSan => {
            Printed::text(fields.source_principal.filter(|_| fields.is_inbound()))
        }
        Operator::DownstreamLocalUriSan => {
            Printed::text(fields.destination_principal.filter(|_| fields.is_inbound()))
        }
        Operator::UpstreamPeerUriSan => {
            Printed::text(fields.destination_principal.filter(|_| !fields.is_inbound()))
        }
        Operator::UpstreamLocalUriSan => {
            Printed::text(fields.source_principal.filter(|_| !fields.is_inbound()))
        }
        Operator::Hostname => Printed::text(fields.own_pod()),
        Operator::TrafficDirection => Printed::text(Some(fields.direction)),
        Operator::Nothing => Printed::Nothing,
    }
}

fn request_header<'a>(fields: &'a Fields<'_>, name: &str) -> Option<Cow<'a, str>> {
    let sent = |value: Option<&'a [u8]>| value.map(String::from_utf8_lossy);
    match name {
        ":method" => fields.method.map(Cow::Borrowed),
        ":path" => fields.path.map(Cow::Borrowed),
        ":authority" | "host" => sent(fields.authority),
        "x-forwarded-for" => sent(fields.x_forwarded_for),
        "user-agent" => sent(fields.user_agent),
        "x-request-id" => sent(fields.request_id),
        other => noted(fields.request_headers, other).map(Cow::Borrowed),
    }
}

/// Without its query.
fn path(target: Cow<'_, str>) -> Cow<'_, str> {
    let length = target.find('?').unwrap_or(target.len());
    match target {
        Cow::Borrowed(text) => text.get(..length).unwrap_or_default().into(),
        Cow::Owned(mut text) => {
            text.truncate(length);
            text.into()
        }
    }
}

fn response_header<'a>(fields: &'a Fields<'_>, name: &str) -> Option<Cow<'a, str>> {
    match name {
        ":status" => (fields.response_code > 0).then(|| fields.response_code.to_string().into()),
        SERVICE_TIME => fields.upstream_service_time.map(|time| time.as_millis().to_string().into()),
        other => noted(fields.response_headers, other).map(Cow::Borrowed),
    }
}

fn noted<'a>(headers: &'a [(Arc<str>, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(known, _)| **known == *name).map(|(_, value)| value.as_str())
}

fn address<'a>(address: Option<SocketAddr>, piece: Piece) -> Printed<'a> {
    let Some(address) = address else { return Printed::Nothing };
    match piece {
        Piece::Whole => Printed::Text(address.to_string().into()),
        Piece::Ip => Printed::Text(address.ip().to_string().into()),
        Piece::Port => Printed::Number(address.port().into()),
    }
}

/// `%START_TIME%`: a time in a form of `strftime` with Envoy's additions, or in the usual one.
pub fn time(start: SystemTime, format: Option<&str>) -> String {
    let Some(format) = format else {
        let mut text = Vec::new();
        start_time(start, &mut text);
        return String::from_utf8_lossy(&text).into_owned();
    };
    // Envoy's own seconds with a number of digits.
    let format = (1..=9).fold(format.to_owned(), |format, digits| {
        format.replace(&format!("%E{digits}S"), &format!("%S.%{digits}f"))
    });
    let time = jiff::Timestamp::try_from(start).map(|time| time.to_zoned(jiff::tz::TimeZone::UTC));
    let text = time.ok().and_then(|time| jiff::fmt::strtime::format(&format, &time).ok());
    text.unwrap_or_else(|| "-".to_owned())
}

#[cfg(test)]
#[path = "custom_tests.rs"]
mod tests;
