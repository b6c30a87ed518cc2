//! Envoy's command operators, taken apart: in access log formats of a user's own (L-5), and in header values (V-17).
//!
//! `%OPERATOR%`, `%OPERATOR(argument)%`, `%OPERATOR(argument):LENGTH%`; `%%` is a percent sign. What an operator stands
//! for is looked up when a line is written; what the mesh does not know prints as `-`.

use std::sync::Arc;

/// A format as it was written, compiled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccessFormat {
    /// `accessLogEncoding: TEXT`.
    Text(Template),
    /// `accessLogEncoding: JSON`: an object whose texts are templates.
    Json(Value),
}

/// A part of a JSON format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A text.
    Template(Template),
    /// Members, in the order in which they were written.
    Object(Vec<(Arc<str>, Value)>),
    /// Elements.
    Array(Vec<Value>),
    /// A number or a truth, as JSON.
    Literal(Arc<str>),
}

/// A text with operators in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Template(Vec<Part>);

/// A part of a [`Template`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Prints as it is.
    Literal(String),
    /// Prints what it stands for, up to a number of characters.
    Operator(Operator, Option<usize>),
}

/// What an operator stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "each variant is Envoy's operator of the same name")]
pub enum Operator {
    /// With a format of its own, as `strftime` has it.
    StartTime(Option<Arc<str>>),
    /// A header of the request, in lower case, and another one where it is absent.
    Request {
        name: Arc<str>,
        otherwise: Option<Arc<str>>,
        without_query: bool,
    },
    /// The same of the answer.
    Response {
        name: Arc<str>,
        otherwise: Option<Arc<str>>,
    },
    Protocol,
    ResponseCode,
    ResponseCodeDetails,
    ResponseFlags,
    ConnectionTerminationDetails,
    UpstreamTransportFailureReason,
    BytesReceived,
    BytesSent,
    Duration,
    UpstreamHost(Piece),
    UpstreamCluster,
    UpstreamLocal(Piece),
    DownstreamLocal(Piece),
    DownstreamRemote(Piece),
    RequestedServerName,
    RouteName,
    GrpcStatus,
    DownstreamPeerUriSan,
    DownstreamLocalUriSan,
    UpstreamPeerUriSan,
    UpstreamLocalUriSan,
    /// The pod for which the proxy works.
    Hostname,
    /// Ours: `outbound` or `inbound`.
    TrafficDirection,
    /// Known to Envoy, and nothing that the mesh has: prints `-`.
    Nothing,
}

/// Which part of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    /// Address and port.
    Whole,
    /// The address.
    Ip,
    /// The port.
    Port,
}

/// Something in a format that is not what it looks like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Oddity {
    /// An operator that nobody knows.
    Unknown(String),
    /// An operator that Envoy knows and the mesh has no answer for.
    Unanswered(String),
    /// A `%` that begins nothing.
    Unclosed(String),
}

impl AccessFormat {
    /// Compiles a text; one line end at its end is every line's own.
    pub fn text(text: &str, odd: &mut Vec<Oddity>) -> Self {
        Self::Text(Template::new(text.strip_suffix('\n').unwrap_or(text), odd))
    }

    /// The names of headers that it prints, in lower case: of requests and of answers.
    pub fn headers(&self) -> [Vec<Arc<str>>; 2] {
        let mut found = [Vec::new(), Vec::new()];
        match self {
            Self::Text(template) => template.headers(&mut found),
            Self::Json(value) => value.headers(&mut found),
        }
        found
    }
}

impl Value {
    fn headers(&self, found: &mut [Vec<Arc<str>>; 2]) {
        match self {
            Self::Template(template) => template.headers(found),
            Self::Object(members) => members.iter().for_each(|(_, value)| value.headers(found)),
            Self::Array(values) => values.iter().for_each(|value| value.headers(found)),
            Self::Literal(_) => {}
        }
    }
}

impl Template {
    /// Takes a text apart; what is odd about it is added to `odd`.
    pub fn new(text: &str, odd: &mut Vec<Oddity>) -> Self {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('%') {
            literal(&mut parts, before);
            let end = end_of(after);
            let Some((command, after_it)) =
                end.and_then(|end| Some((after.get(..end)?, after.get(end + 1..)?)))
            else {
                odd.push(Oddity::Unclosed(after.to_owned()));
                literal(&mut parts, "%");
                rest = after;
                continue;
            };
            if command.is_empty() {
                literal(&mut parts, "%");
            } else {
                parts.push(operator(command, odd));
            }
            rest = after_it;
        }
        literal(&mut parts, rest);
        Self(parts)
    }

    /// Its parts.
    pub fn parts(&self) -> &[Part] {
        &self.0
    }

    fn headers(&self, [requests, responses]: &mut [Vec<Arc<str>>; 2]) {
        for part in &self.0 {
            let (list, name, otherwise) = match part {
                Part::Operator(Operator::Request { name, otherwise, .. }, _) => {
                    (&mut *requests, name, otherwise)
                }
                Part::Operator(Operator::Response { name, otherwise }, _) => {
                    (&mut *responses, name, otherwise)
                }
                Part::Operator(..) | Part::Literal(_) => continue,
            };
            for name in [Some(name), otherwise.as_ref()].into_iter().flatten() {
                if !list.contains(name) {
                    list.push(name.clone());
                }
            }
        }
    }
}

/// Where a command ends: at the next `%` that is not within parentheses.
pub(crate) fn end_of(text: &str) -> Option<usize> {
    let mut depth = 0_u32;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'(' => depth += 1,
            b')' => depth = depth.saturating_sub(1),
            b'%' if depth == 0 => return Some(at),
            _ => {}
        }
    }
    None
}

fn literal(parts: &mut Vec<Part>, text: &str) {
    match parts.last_mut() {
        _ if text.is_empty() => {}
        Some(Part::Literal(before)) => before.push_str(text),
        Some(Part::Operator(..)) | None => parts.push(Part::Literal(text.to_owned())),
    }
}

/// `NAME`, `NAME(argument)`, each with `:LENGTH`.
fn operator(command: &str, odd: &mut Vec<Oddity>) -> Part {
    let (operator, length) = read(command, odd);
    Part::Operator(operator, length)
}

/// What a command stands for, and how many characters of it are wanted.
pub(crate) fn read(command: &str, odd: &mut Vec<Oddity>) -> (Operator, Option<usize>) {
    let (head, length) = match command.rsplit_once(':') {
        // A colon within the argument belongs to the name of a pseudo-header.
        Some((head, length)) if !length.contains(')') => (head, length.parse().ok()),
        Some(_) | None => (command, None),
    };
    let (name, argument) = match head.split_once('(') {
        Some((name, argument)) => (name, argument.strip_suffix(')')),
        None => (head, None),
    };
    let found = match (name, argument) {
        ("REQ" | "REQ_WITHOUT_QUERY" | "RESP", Some(argument)) => Some(header(name, argument)),
        ("START_TIME", format) => {
            Some(Operator::StartTime(format.filter(|format| !format.is_empty()).map(Into::into)))
        }
        (_, None) => plain(name).or_else(|| address(name)),
        (_, Some(_)) => None,
    };
    let found = found.unwrap_or_else(|| {
        odd.push(if is_known(name) {
            Oddity::Unanswered(name.to_owned())
        } else {
            Oddity::Unknown(name.to_owned())
        });
        Operator::Nothing
    });
    (found, length)
}

fn header(name: &str, argument: &str) -> Operator {
    let lower = |text: &str| -> Arc<str> { text.to_ascii_lowercase().into() };
    let (first, otherwise) = match argument.split_once('?') {
        Some((first, otherwise)) => (lower(first), Some(lower(otherwise))),
        None => (lower(argument), None),
    };
    match name {
        "RESP" => Operator::Response { name: first, otherwise },
        _ => Operator::Request { name: first, otherwise, without_query: name == "REQ_WITHOUT_QUERY" },
    }
}

fn plain(name: &str) -> Option<Operator> {
    Some(match name {
        "PROTOCOL" => Operator::Protocol,
        "RESPONSE_CODE" => Operator::ResponseCode,
        "RESPONSE_CODE_DETAILS" => Operator::ResponseCodeDetails,
        "RESPONSE_FLAGS" => Operator::ResponseFlags,
        "CONNECTION_TERMINATION_DETAILS" => Operator::ConnectionTerminationDetails,
        "UPSTREAM_TRANSPORT_FAILURE_REASON" => Operator::UpstreamTransportFailureReason,
        "BYTES_RECEIVED" => Operator::BytesReceived,
        "BYTES_SENT" => Operator::BytesSent,
        "DURATION" => Operator::Duration,
        "UPSTREAM_CLUSTER" | "UPSTREAM_CLUSTER_RAW" => Operator::UpstreamCluster,
        "REQUESTED_SERVER_NAME" => Operator::RequestedServerName,
        "ROUTE_NAME" => Operator::RouteName,
        "GRPC_STATUS" | "GRPC_STATUS_NUMBER" => Operator::GrpcStatus,
        "DOWNSTREAM_PEER_URI_SAN" => Operator::DownstreamPeerUriSan,
        "DOWNSTREAM_LOCAL_URI_SAN" => Operator::DownstreamLocalUriSan,
        "UPSTREAM_PEER_URI_SAN" => Operator::UpstreamPeerUriSan,
        "UPSTREAM_LOCAL_URI_SAN" => Operator::UpstreamLocalUriSan,
        "TRAFFIC_DIRECTION" => Operator::TrafficDirection,
        "HOSTNAME" => Operator::Hostname,
        _ => return None,
    })
}

fn address(name: &str) -> Option<Operator> {
    let (base, piece) = match (name.strip_suffix("_WITHOUT_PORT"), name.strip_suffix("_PORT")) {
        (Some(base), _) => (base, Piece::Ip),
        (None, Some("UPSTREAM_REMOTE")) => ("UPSTREAM_REMOTE_ADDRESS", Piece::Port),
        (None, Some("UPSTREAM_LOCAL")) => ("UPSTREAM_LOCAL_ADDRESS", Piece::Port),
        (None, Some("DOWNSTREAM_LOCAL")) => ("DOWNSTREAM_LOCAL_ADDRESS", Piece::Port),
        (None, Some("DOWNSTREAM_REMOTE")) => ("DOWNSTREAM_REMOTE_ADDRESS", Piece::Port),
        (None, Some("DOWNSTREAM_DIRECT_REMOTE")) => ("DOWNSTREAM_DIRECT_REMOTE_ADDRESS", Piece::Port),
        (None, Some(_) | None) => (name, Piece::Whole),
    };
    Some(match base {
        "UPSTREAM_HOST" | "UPSTREAM_REMOTE_ADDRESS" => Operator::UpstreamHost(piece),
        "UPSTREAM_LOCAL_ADDRESS" => Operator::UpstreamLocal(piece),
        "DOWNSTREAM_LOCAL_ADDRESS" => Operator::DownstreamLocal(piece),
        "DOWNSTREAM_REMOTE_ADDRESS" | "DOWNSTREAM_DIRECT_REMOTE_ADDRESS" => Operator::DownstreamRemote(piece),
        _ => return None,
    })
}

/// Operators of Envoy's for which there is no answer here.
fn is_known(name: &str) -> bool {
    const NAMES: &[&str] = &[
        "CEL",
        "METADATA",
        "DYNAMIC_METADATA",
        "CLUSTER_METADATA",
        "UPSTREAM_METADATA",
        "FILTER_STATE",
        "UPSTREAM_FILTER_STATE",
        "TRAILER",
        "TRACE_ID",
        "SPAN_ID",
        "STREAM_ID",
        "ENVIRONMENT",
        "QUERY_PARAM",
        "QUERY_PARAMS",
        "PATH",
        "CONNECTION_ID",
        "UPSTREAM_CONNECTION_ID",
        "EMIT_TIME",
        "START_TIME_LOCAL",
        "EMIT_TIME_LOCAL",
        "COMMON_DURATION",
        "RESPONSE_DURATION",
        "REQUEST_DURATION",
        "REQUEST_TX_DURATION",
        "RESPONSE_TX_DURATION",
        "ROUNDTRIP_DURATION",
        "DOWNSTREAM_HANDSHAKE_DURATION",
        "RESPONSE_FLAGS_LONG",
        "REQUEST_HEADERS_BYTES",
        "RESPONSE_HEADERS_BYTES",
        "RESPONSE_TRAILERS_BYTES",
        "UPSTREAM_REQUEST_ATTEMPT_COUNT",
        "UPSTREAM_PROTOCOL",
        "VIRTUAL_CLUSTER_NAME",
        "LOCAL_REPLY_BODY",
        "ACCESS_LOG_TYPE",
        "UNIQUE_ID",
        "CUSTOM_FLAGS",
        "UPSTREAM_HOST_NAME",
        "UPSTREAM_HOST_NAME_WITHOUT_PORT",
    ];
    let families = ["UPSTREAM_WIRE_", "DOWNSTREAM_WIRE_", "UPSTREAM_HEADER_", "DOWNSTREAM_HEADER_", "TLS_"];
    let peers =
        ["UPSTREAM_PEER_", "DOWNSTREAM_PEER_", "UPSTREAM_LOCAL_", "DOWNSTREAM_LOCAL_", "UPSTREAM_TLS_"];
    NAMES.contains(&name)
        || families.into_iter().chain(peers).chain(["DOWNSTREAM_TLS_"]).any(|family| name.starts_with(family))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(format: &str) -> (Vec<Part>, Vec<Oddity>) {
        let mut odd = Vec::new();
        match AccessFormat::text(format, &mut odd) {
            AccessFormat::Text(template) => (template.0, odd),
            other @ AccessFormat::Json(_) => panic!("{other:?}"),
        }
    }

    fn printed(text: &str) -> Part {
        Part::Literal(text.into())
    }

    #[test]
    fn operators_are_taken_apart() {
        let request = |name: &str, otherwise: Option<&str>, without_query| Operator::Request {
            name: name.into(),
            otherwise: otherwise.map(Into::into),
            without_query,
        };
        let format =
            "[%START_TIME%] %REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH):16% 100%% %UPSTREAM_HOST%\n";
        let (parts, odd) = text(format);
        let expected = [
            printed("["),
            Part::Operator(Operator::StartTime(None), None),
            printed("] "),
            Part::Operator(request(":method", None, false), None),
            printed(" "),
            Part::Operator(request("x-envoy-original-path", Some(":path"), false), Some(16)),
            printed(" 100% "),
            Part::Operator(Operator::UpstreamHost(Piece::Whole), None),
        ];
        assert_eq!((parts.as_slice(), odd), (&expected[..], vec![]));
        for (format, operator) in [
            ("%START_TIME(%s.%3f)%", Operator::StartTime(Some("%s.%3f".into()))),
            ("%REQ_WITHOUT_QUERY(:PATH)%", request(":path", None, true)),
            ("%RESP(Server)%", Operator::Response { name: "server".into(), otherwise: None }),
            ("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", Operator::DownstreamRemote(Piece::Ip)),
            ("%DOWNSTREAM_LOCAL_PORT%", Operator::DownstreamLocal(Piece::Port)),
            ("%UPSTREAM_REMOTE_ADDRESS%", Operator::UpstreamHost(Piece::Whole)),
            ("%UPSTREAM_CLUSTER_RAW%", Operator::UpstreamCluster),
        ] {
            assert_eq!(text(format), (vec![Part::Operator(operator, None)], vec![]), "{format}");
        }
    }

    #[test]
    fn what_is_odd_is_named() {
        let nothing = || Part::Operator(Operator::Nothing, None);
        assert_eq!(text("%WEATHER%"), (vec![nothing()], vec![Oddity::Unknown("WEATHER".into())]));
        assert_eq!(text("%CEL(a.b)%").1, [Oddity::Unanswered("CEL".into())]);
        assert_eq!(text("%METADATA(ROUTE:a:b)%").1, [Oddity::Unanswered("METADATA".into())]);
        assert_eq!(text("%PROTOCOL(x)%").1, [Oddity::Unknown("PROTOCOL".into())]);
        assert_eq!(text("50% up"), (vec![printed("50% up")], vec![Oddity::Unclosed(" up".into())]));
    }

    #[test]
    fn headers_are_collected_once() {
        let mut odd = Vec::new();
        let mut template = |text: &str| Value::Template(Template::new(text, &mut odd));
        let inner = Value::Array(vec![template("%RESP(X-C)%"), Value::Literal("5".into())]);
        let members = vec![("b".into(), template("%REQ(X-B?X-A)% %REQ(x-a)%")), ("a".into(), inner)];
        let found = AccessFormat::Json(Value::Object(members)).headers();
        let names = found.each_ref().map(|list| list.iter().map(|name| &**name).collect::<Vec<_>>());
        assert_eq!(names, [vec!["x-b", "x-a"], vec!["x-c"]]);
    }

    proptest! {
        /// Without a percent sign every text is itself; with any, nothing panics and oddities are few.
        #[test]
        fn any_text_is_a_format(format in "[ -~%()?:A-Z]{0,60}") {
            let (parts, odd) = text(&format);
            prop_assert!(odd.len() <= format.len() && parts.len() <= format.len() + 1);
            if !format.contains('%') {
                let whole = (!format.is_empty()).then(|| printed(&format));
                prop_assert_eq!(parts, whole.into_iter().collect::<Vec<_>>());
            }
        }
    }
}
