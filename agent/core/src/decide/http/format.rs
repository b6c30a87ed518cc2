//! `%OPERATORS%` in header values (V-17).
//!
//! Values of a request are complete when it leaves; in those of an answer some operators wait for it, and everything
//! else is made safe: what came from the request is never read as an operator.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;

use super::{Request, RouteDecision, Target, fields};
use crate::access_format::{self, Operator, Piece};
use crate::resource::virtual_service::{HeaderChanges, HeaderOperations};

/// What is known about a request beside its head.
#[derive(Clone, Copy)]
pub struct Circumstances<'a> {
    /// Who sent it.
    pub client: SocketAddr,
    /// What the client dialled.
    pub original: SocketAddr,
    /// `HTTP/1.1` or `HTTP/2`.
    pub protocol: &'a str,
    /// The client's pod.
    pub pod: &'a str,
    /// The time, in a form of `strftime` or the usual one.
    pub time: &'a dyn Fn(Option<&str>) -> String,
}

/// What is known when the answer is there.
#[derive(Debug, Clone, Copy)]
pub struct Answered<'a> {
    /// Its status.
    pub status: u16,
    /// Its headers, before any is changed.
    pub headers: &'a HeaderMap,
    /// Who gave it; `None` is the mesh.
    pub upstream: Option<SocketAddr>,
    /// Response flags.
    pub flags: &'a str,
    /// `response_code_details`.
    pub details: &'a str,
    /// How long it took.
    pub duration: Duration,
}

/// What an operator comes to.
enum Value {
    Text(String),
    /// The answer tells.
    Later,
}

/// What the operators read.
pub(super) struct Context<'a> {
    pub(super) decision: &'a RouteDecision,
    pub(super) target: Option<&'a Target>,
    pub(super) request: &'a Request<'a>,
    pub(super) circumstances: &'a Circumstances<'a>,
}

type Pairs = [(Arc<str>, Arc<str>)];

fn has_operators(changes: &HeaderChanges) -> bool {
    changes.set.iter().chain(&changes.add).any(|(_, value)| value.contains('%'))
}

/// Replaces operators in all values; one of a request that comes out empty is left out. Without operators it is the same
/// object.
pub(super) fn expand_all(operations: Arc<HeaderOperations>, context: &Context<'_>) -> Arc<HeaderOperations> {
    if ![&operations.request, &operations.response].into_iter().any(has_operators) {
        return operations;
    }
    let early = |operator: &Operator| context.operate(operator);
    let now = |operator: &Operator| match early(operator) {
        Value::Later => Value::Text(String::new()),
        text @ Value::Text(_) => text,
    };
    Arc::new(HeaderOperations {
        request: changes(&operations.request, &now, false),
        response: changes(&operations.response, &early, true),
    })
}

/// The changes of an answer's headers with what only the answer tells.
pub fn complete<'c>(written: &'c HeaderChanges, answered: &Answered<'_>) -> Cow<'c, HeaderChanges> {
    match has_operators(written) {
        false => Cow::Borrowed(written),
        true => Cow::Owned(changes(written, &|operator| answered.operate(operator), false)),
    }
}

/// `again` says that the values will be read once more.
fn changes(written: &HeaderChanges, operate: &dyn Fn(&Operator) -> Value, again: bool) -> HeaderChanges {
    let pairs = |pairs: &Pairs| -> Vec<(Arc<str>, Arc<str>)> {
        let expanded = pairs.iter().map(|(name, value)| match value.contains('%') {
            true => (name.clone(), Arc::from(expand(value, operate, again))),
            false => (name.clone(), value.clone()),
        });
        let kept = expanded.zip(pairs).filter(|((_, new), (_, old))| !new.is_empty() || old.is_empty());
        kept.map(|(new, _)| new).collect()
    };
    HeaderChanges { set: pairs(&written.set), add: pairs(&written.add), remove: written.remove.clone() }
}

/// `%%` is a per cent sign. An operator that nobody knows, or that has nothing to say, is nothing.
fn expand(value: &str, operate: &dyn Fn(&Operator) -> Value, again: bool) -> String {
    let sign = if again { "%%" } else { "%" };
    let mut out = String::with_capacity(value.len());
    let mut rest = value;
    while let Some((before, after)) = rest.split_once('%') {
        out.push_str(before);
        let parts =
            access_format::end_of(after).and_then(|end| Some((after.get(..end)?, after.get(end + 1..)?)));
        let Some((command, next)) = parts else {
            out.push_str(sign);
            rest = after;
            continue;
        };
        rest = next;
        if command.is_empty() {
            out.push_str(sign);
            continue;
        }
        let (operator, length) = access_format::read(command, &mut Vec::new());
        match operate(&operator) {
            Value::Text(text) => {
                let cut = text.chars().take(length.unwrap_or(usize::MAX));
                cut.for_each(|character| match character {
                    '%' => out.push_str(sign),
                    other => out.push(other),
                });
            }
            Value::Later => {
                out.push('%');
                out.push_str(command);
                out.push('%');
            }
        }
    }
    out.push_str(rest);
    out
}

impl Context<'_> {
    fn operate(&self, operator: &Operator) -> Value {
        let circumstances = self.circumstances;
        Value::Text(match operator {
            Operator::Request { name, otherwise, without_query } => {
                let names = [Some(name), otherwise.as_ref()].into_iter().flatten();
                let found = names.filter_map(|name| header(self.request, name)).next().unwrap_or_default();
                match without_query {
                    true => found.split('?').next().unwrap_or_default().to_owned(),
                    false => found,
                }
            }
            Operator::StartTime(format) => (circumstances.time)(format.as_deref()),
            Operator::Protocol => circumstances.protocol.to_owned(),
            Operator::Hostname => circumstances.pod.to_owned(),
            Operator::DownstreamRemote(piece) => address(circumstances.client, *piece),
            Operator::DownstreamLocal(piece) => address(circumstances.original, *piece),
            Operator::RouteName => self.decision.route_name().unwrap_or_default().to_owned(),
            Operator::UpstreamCluster => match self.target.map(|target| &target.cluster) {
                Some(Ok(cluster)) => cluster.name.to_string(),
                Some(Err(name)) => name.to_string(),
                None => String::new(),
            },
            Operator::TrafficDirection => "outbound".into(),
            Operator::Response { .. }
            | Operator::ResponseCode
            | Operator::ResponseCodeDetails
            | Operator::ResponseFlags
            | Operator::Duration
            | Operator::GrpcStatus
            | Operator::UpstreamHost(_) => return Value::Later,
            // The client speaks to its own node: there is no TLS, and nothing has ended yet.
            Operator::RequestedServerName
            | Operator::DownstreamPeerUriSan
            | Operator::DownstreamLocalUriSan
            | Operator::UpstreamPeerUriSan
            | Operator::UpstreamLocalUriSan
            | Operator::UpstreamLocal(_)
            | Operator::ConnectionTerminationDetails
            | Operator::UpstreamTransportFailureReason
            | Operator::BytesReceived
            | Operator::BytesSent
            | Operator::Nothing => String::new(),
        })
    }
}

impl Answered<'_> {
    fn operate(&self, operator: &Operator) -> Value {
        let header = |name: &Arc<str>| match &**name {
            ":status" => Some(self.status.to_string()),
            name => joined(self.headers.get_all(name).iter().map(http::HeaderValue::as_bytes)),
        };
        Value::Text(match operator {
            Operator::Response { name, otherwise } => {
                let names = [Some(name), otherwise.as_ref()].into_iter().flatten();
                names.filter_map(header).next().unwrap_or_default()
            }
            Operator::ResponseCode => self.status.to_string(),
            Operator::ResponseCodeDetails => self.details.to_owned(),
            Operator::ResponseFlags => self.flags.to_owned(),
            Operator::Duration => self.duration.as_millis().to_string(),
            Operator::GrpcStatus => header(&"grpc-status".into()).unwrap_or_default(),
            Operator::UpstreamHost(piece) => {
                self.upstream.map(|upstream| address(upstream, *piece)).unwrap_or_default()
            }
            // All others were replaced before.
            Operator::Request { .. }
            | Operator::StartTime(_)
            | Operator::Protocol
            | Operator::Hostname
            | Operator::DownstreamRemote(_)
            | Operator::DownstreamLocal(_)
            | Operator::RouteName
            | Operator::UpstreamCluster
            | Operator::TrafficDirection
            | Operator::RequestedServerName
            | Operator::DownstreamPeerUriSan
            | Operator::DownstreamLocalUriSan
            | Operator::UpstreamPeerUriSan
            | Operator::UpstreamLocalUriSan
            | Operator::UpstreamLocal(_)
            | Operator::ConnectionTerminationDetails
            | Operator::UpstreamTransportFailureReason
            | Operator::BytesReceived
            | Operator::BytesSent
            | Operator::Nothing => String::new(),
        })
    }
}

fn header(request: &Request<'_>, name: &str) -> Option<String> {
    joined(fields::values(request, name))
}

/// All values of a header as one.
fn joined<'v>(values: impl Iterator<Item = &'v [u8]>) -> Option<String> {
    let texts: Vec<_> = values.map(|value| String::from_utf8_lossy(value).into_owned()).collect();
    (!texts.is_empty()).then(|| texts.join(","))
}

fn address(address: SocketAddr, piece: Piece) -> String {
    match piece {
        Piece::Whole => address.to_string(),
        Piece::Ip => address.ip().to_string(),
        Piece::Port => address.port().to_string(),
    }
}
