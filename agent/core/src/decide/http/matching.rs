//! Does a rule match a request? One code path, which a `Trace` may watch.

use std::fmt;
use std::sync::Arc;

use super::trace::Observer;
use super::{Caller, Request, fields};
use crate::Snapshot;
use crate::compile::routing::rules::{CompiledMatch, CompiledRule, CompiledVirtualService, SourceMatch};

/// What a decision is taken from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scope<'a> {
    pub(super) snapshot: &'a Snapshot,
    pub(super) caller: &'a Caller<'a>,
    pub(super) request: &'a Request<'a>,
    /// The path without the query.
    pub(super) path: &'a str,
    /// The listener's port (V-10).
    pub(super) port: u16,
}

/// A field of a match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Field<'a> {
    Uri,
    Scheme,
    Method,
    Authority,
    Header(&'a str),
    WithoutHeader(&'a str),
    QueryParam(&'a str),
    Port,
    SourceLabels,
    SourceNamespace,
    Gateways,
    SniHosts,
    DestinationSubnets,
}

impl fmt::Display for Field<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uri => f.write_str("uri"),
            Self::Scheme => f.write_str("scheme"),
            Self::Method => f.write_str("method"),
            Self::Authority => f.write_str("authority"),
            Self::Header(name) => write!(f, "headers[{name}]"),
            Self::WithoutHeader(name) => write!(f, "withoutHeaders[{name}]"),
            Self::QueryParam(name) => write!(f, "queryParams[{name}]"),
            Self::Port => f.write_str("port"),
            Self::SourceLabels => f.write_str("sourceLabels"),
            Self::SourceNamespace => f.write_str("sourceNamespace"),
            Self::Gateways => f.write_str("gateways"),
            Self::SniHosts => f.write_str("sniHosts"),
            Self::DestinationSubnets => f.write_str("destinationSubnets"),
        }
    }
}

/// What the rules of one VirtualService say.
#[derive(Debug)]
pub(super) enum Evaluated {
    /// This rule, by this one of its matches.
    Hit(Arc<CompiledRule>, Option<usize>),
    /// There are rules for this client and port, but none for this request.
    Miss,
    /// There is no rule for this client and port: the object does not act here at all.
    Inert,
}

/// The first rule that matches (V-3, V-4).
pub(super) fn evaluate(
    scope: &Scope<'_>,
    service: &CompiledVirtualService,
    observer: &mut impl Observer,
) -> Evaluated {
    let mut acts = false;
    for rule in &service.http {
        let Some(matches) = &rule.matches else { return Evaluated::Hit(rule.clone(), None) };
        for (at, entry) in matches.iter().enumerate() {
            let failed = match client_mismatch(scope, entry) {
                Some(field) => Some(field),
                None => {
                    acts = true;
                    request_mismatch(scope, entry)
                }
            };
            match failed {
                None => return Evaluated::Hit(rule.clone(), Some(at)),
                Some(field) => observer.skipped(&rule.object, "http", rule.rule, entry.at, field),
            }
        }
    }
    if acts { Evaluated::Miss } else { Evaluated::Inert }
}

/// The first condition on client and listener that does not hold.
fn client_mismatch<'m>(scope: &Scope<'_>, entry: &'m CompiledMatch) -> Option<Field<'m>> {
    match &entry.source {
        SourceMatch::Gateways(false) => return Some(Field::Gateways),
        SourceMatch::Gateways(true) => {}
        SourceMatch::Workload { labels, namespace } => {
            if !labels.is_subset_of(scope.caller.labels) {
                return Some(Field::SourceLabels);
            }
            if namespace.as_ref().is_some_and(|namespace| *namespace != scope.caller.workload.key.namespace) {
                return Some(Field::SourceNamespace);
            }
        }
    }
    entry.port.filter(|port| *port != scope.port).map(|_| Field::Port)
}

/// The first condition on the request that does not hold.
fn request_mismatch<'m>(scope: &Scope<'_>, entry: &'m CompiledMatch) -> Option<Field<'m>> {
    let request = scope.request;
    if let Some(uri) = &entry.uri {
        let path = scope.path.as_bytes();
        let matches = if entry.ignore_uri_case { uri.matches_ignoring_case(path) } else { uri.matches(path) };
        if !matches {
            return Some(Field::Uri);
        }
    }
    let texts = [
        (&entry.method, request.method, Field::Method),
        (&entry.authority, request.authority, Field::Authority),
        (&entry.scheme, request.scheme, Field::Scheme),
    ];
    for (pattern, value, field) in texts {
        if pattern.as_ref().is_some_and(|pattern| !pattern.matches(value.as_bytes())) {
            return Some(field);
        }
    }
    list_mismatch(request, entry)
}

fn list_mismatch<'m>(request: &Request<'_>, entry: &'m CompiledMatch) -> Option<Field<'m>> {
    for (name, pattern) in &entry.headers {
        // Each value by itself (E9).
        if !fields::any(request, name, |value| pattern.matches(value)) {
            return Some(Field::Header(name));
        }
    }
    for (name, pattern) in &entry.without_headers {
        let mut values = fields::values(request, name).peekable();
        // An absent header is an empty one, but not for the question whether it is there (E12).
        let absent = values.peek().is_none();
        let empty_matches = absent && !pattern.is_present() && pattern.matches(b"");
        if empty_matches || values.any(|value| pattern.matches(value)) {
            return Some(Field::WithoutHeader(name));
        }
    }
    for (name, pattern) in &entry.query_params {
        let value = fields::query_parameter(request.target, name);
        if !value.is_some_and(|value| pattern.matches(value.as_bytes())) {
            return Some(Field::QueryParam(name));
        }
    }
    None
}
