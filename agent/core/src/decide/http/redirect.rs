//! Answers that a rule gives itself (V-18, V-19, E35); [`added`](super::added) says which headers it adds to them.

use std::sync::Arc;

use super::matching::Scope;
use super::{LocalReply, fields};
use crate::compile::routing::rules::CompiledMatch;
use crate::decide::http::pattern::Pattern;
use crate::resource::virtual_service::{DirectResponse, Redirect, RedirectPort};

/// `redirect`.
pub(super) fn redirect(
    scope: &Scope<'_>,
    matched: Option<&CompiledMatch>,
    redirect: &Redirect,
) -> LocalReply {
    LocalReply {
        status: redirect.code,
        headers: vec![(Arc::from("location"), location(scope, matched, redirect))],
        body: Arc::default(),
        flag: "-",
        details: "direct_response",
        by: "redirect",
    }
}

/// `directResponse`.
pub(super) fn direct_response(response: &DirectResponse) -> LocalReply {
    LocalReply {
        status: response.status,
        headers: Vec::new(),
        body: response.body.clone(),
        flag: "-",
        details: "direct_response",
        by: "direct_response",
    }
}

fn location(scope: &Scope<'_>, matched: Option<&CompiledMatch>, redirect: &Redirect) -> String {
    let request = scope.request;
    let scheme = redirect.scheme.as_deref().unwrap_or(request.scheme);
    let port = explicit_port(redirect, scheme, scope.port);
    let host = match &redirect.authority {
        Some(authority) => authority.to_string(),
        None => request_host(request.authority, (request.scheme, scheme), port.is_some()),
    };
    let port = port.map(|port| format!(":{port}")).unwrap_or_default();
    let path = path(request.target, matched, redirect);
    format!("{scheme}://{host}{port}{path}")
}

/// The port that the rule asks for, unless it is the scheme's own.
fn explicit_port(redirect: &Redirect, scheme: &str, listener: u16) -> Option<u16> {
    let port = match redirect.port? {
        RedirectPort::Number(port) => port,
        RedirectPort::RequestPort => listener,
        RedirectPort::ProtocolDefault => return None,
    };
    let own = matches!((scheme, port), ("http", 80) | ("https", 443));
    (!own).then_some(port)
}

/// The client's Host: its port stays, unless another one replaces it or it was the default of the former scheme.
fn request_host(authority: &str, (from, to): (&str, &str), replaced: bool) -> String {
    let port = fields::port(authority);
    let former_default = from != to && matches!((from, port), ("http", ":80") | ("https", ":443"));
    let drop = replaced || former_default;
    let keep = if drop { authority.len() - port.len() } else { authority.len() };
    authority.get(..keep).unwrap_or(authority).to_owned()
}

fn path(target: &str, matched: Option<&CompiledMatch>, redirect: &Redirect) -> String {
    let path = fields::path(target);
    let query = fields::query(target).map(|query| format!("?{query}")).unwrap_or_default();
    if let Some(uri) = redirect.uri.as_deref().filter(|uri| !uri.is_empty()) {
        // A query of its own replaces the request's.
        return if uri.contains('?') { uri.to_owned() } else { format!("{uri}{query}") };
    }
    let Some(prefix) = &redirect.prefix_rewrite else { return format!("{path}{query}") };
    let rest = path.get(matched_length(path, matched)..).unwrap_or_default();
    format!("{prefix}{rest}{query}")
}

/// How much of a path the match's `uri` stands for: of a prefix its own length, of any other match everything; a
/// match without `uri` is one of the prefix `/`.
pub(super) fn matched_length(path: &str, matched: Option<&CompiledMatch>) -> usize {
    match matched.and_then(|matched| matched.uri.as_ref()) {
        Some(Pattern::Prefix(prefix)) => prefix.len().min(path.len()),
        Some(Pattern::Exact(_) | Pattern::Regex(_) | Pattern::Never) => path.len(),
        Some(Pattern::Present) | None => usize::from(path.starts_with('/')),
    }
}
