//! Asking an external authoriser (AP-17): what it is told, and what its answer means.
//!
//! Two protocols: the provider is sent the request itself, without body, over HTTP; or it is asked by
//! `envoy.service.auth.v3.Authorization/Check` over gRPC, whose few messages stand in module `wire`.

mod wire;

use std::net::SocketAddr;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::http::{LocalReply, Request};
use super::inbound::InboundConnection;
use crate::resource::ExtAuthz;
use crate::resource::virtual_service::HeaderChanges;

/// The method of the gRPC service.
pub const GRPC_PATH: &str = "/envoy.service.auth.v3.Authorization/Check";

/// What the authoriser decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The request goes on.
    Allow(Allowed),
    /// It is answered so.
    Deny(LocalReply),
}

/// What an authoriser that allows a request wants changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Allowed {
    /// Headers of the request.
    pub request: HeaderChanges,
    /// Headers of the application's answer.
    pub response: HeaderChanges,
}

/// The request that asks an authoriser over HTTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpCheck {
    /// The method of the request in question.
    pub method: String,
    /// `pathPrefix` and the path in question.
    pub target: String,
    /// The host of the request in question.
    pub authority: String,
    /// The headers; the length of the body is the sender's to set.
    pub headers: HeaderMap,
}

/// What an authoriser is told over gRPC.
#[derive(Debug, Clone, Copy)]
pub struct GrpcCheck<'a> {
    /// The connection of the request in question.
    pub connection: InboundConnection<'a>,
    /// The client's port.
    pub source_port: u16,
    /// The destination's identity with `spiffe://`.
    pub destination_principal: &'a str,
    /// The request in question.
    pub request: Request<'a>,
    /// `HTTP/1.1`, `HTTP/2`.
    pub protocol: &'a str,
    /// As much of the body as the provider wants.
    pub body: &'a [u8],
    /// Seconds since the Unix epoch.
    pub now: i64,
}

/// What stands for the provider's answer when there is none: `failOpen` and `statusOnError`.
pub fn failure(provider: &ExtAuthz) -> Answer {
    if provider.fail_open {
        return Answer::Allow(Allowed::default());
    }
    Answer::Deny(reply(provider.status_on_error, Vec::new(), Arc::default(), "ext_authz_error"))
}

/// How an HTTP provider is asked: method, path and host of the request, `authorization`, and the headers that the
/// provider is configured to get.
pub fn http_check(provider: &ExtAuthz, request: &Request<'_>) -> HttpCheck {
    let mut headers = HeaderMap::new();
    for (name, value) in request.headers {
        let wanted = name.as_str() == "authorization" || is_one_of(&provider.include_request_headers, name);
        if wanted && !is_of_connection(name) {
            headers.append(name.clone(), value.clone());
        }
    }
    for (name, value) in &provider.include_additional_headers {
        if let (Ok(name), Ok(value)) =
            (HeaderName::try_from(&**name), HeaderValue::from_bytes(value.as_bytes()))
        {
            headers.insert(name, value);
        }
    }
    let prefix = provider.path_prefix.as_deref().unwrap_or_default();
    HttpCheck {
        method: request.method.to_owned(),
        target: format!("{prefix}{}", request.target),
        authority: request.authority.to_owned(),
        headers,
    }
}

/// What an HTTP provider's answer means: 200 allows, 5xx is a failure, all else is the answer to the client.
pub fn http_answer(provider: &ExtAuthz, status: u16, headers: &HeaderMap, body: &[u8]) -> Answer {
    if status == 200 {
        let (up, down) = (&provider.headers_to_upstream_on_allow, &provider.headers_to_downstream_on_allow);
        return Answer::Allow(Allowed {
            request: overrides(headers, up),
            response: overrides(headers, down),
        });
    }
    if status >= 500 {
        return failure(provider);
    }
    let told = &provider.headers_to_downstream_on_deny;
    let passes = |name: &HeaderName| {
        let always = matches!(name.as_str(), "www-authenticate" | "location" | "content-type");
        !is_of_connection(name) && (told.is_empty() || always || is_one_of(told, name))
    };
    let kept = headers.iter().filter(|(name, _)| passes(name));
    let kept = kept.filter_map(|(name, value)| Some((name.as_str().into(), value.to_str().ok()?.to_owned())));
    Answer::Deny(reply(status, kept.collect(), body.into(), "ext_authz_denied"))
}

/// The message that asks a gRPC provider.
pub fn grpc_check(check: &GrpcCheck<'_>) -> Vec<u8> {
    wire::request(check)
}

/// What a gRPC provider's message means; `status` is that of the call itself. A call that ended without any message is
/// no answer: ask [`failure`].
pub fn grpc_answer(provider: &ExtAuthz, status: u32, message: &[u8]) -> Answer {
    let read = if status == 0 { wire::response(message) } else { None };
    let Some(response) = read else { return failure(provider) };
    if response.code == 0 {
        return Answer::Allow(Allowed { request: response.request, response: response.response });
    }
    // 403 where the provider names no status, or one that is none.
    let status = Some(response.status).filter(|status| (200..=599).contains(status)).unwrap_or(403);
    Answer::Deny(reply(status, response.denial, response.body.into(), "ext_authz_denied"))
}

fn reply(
    status: u16,
    headers: Vec<(Arc<str>, String)>,
    body: Arc<[u8]>,
    details: &'static str,
) -> LocalReply {
    LocalReply { status, headers, body, flag: "UAEX", details, by: "authorization" }
}

/// The answer's headers of these names, to replace those that are there.
fn overrides(headers: &HeaderMap, names: &[Arc<str>]) -> HeaderChanges {
    let mut changes = HeaderChanges::default();
    for name in headers.keys().filter(|name| is_one_of(names, name) && !is_of_connection(name)) {
        let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        for (at, value) in values.enumerate() {
            let list = if at == 0 { &mut changes.set } else { &mut changes.add };
            list.push((name.as_str().into(), value.into()));
        }
    }
    changes
}

/// Names may have a `*` at one end, as in policies (AP-5).
fn is_one_of(patterns: &[Arc<str>], name: &HeaderName) -> bool {
    let name = name.as_str();
    patterns.iter().any(|pattern| match (pattern.strip_suffix('*'), pattern.strip_prefix('*')) {
        (Some(prefix), _) => name.starts_with(prefix),
        (None, Some(suffix)) => name.ends_with(suffix),
        (None, None) => **pattern == *name,
    })
}

/// Headers that belong to one connection (RFC 9110 7.6.1), and those that the sender makes itself.
fn is_of_connection(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection"
            | "content-length"
            | "host"
            | "keep-alive"
            | "proxy-connection"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
    )
}

/// An address as the messages have it.
fn address_parts(address: SocketAddr) -> (String, u16) {
    (address.ip().to_string(), address.port())
}

#[cfg(test)]
mod tests;
