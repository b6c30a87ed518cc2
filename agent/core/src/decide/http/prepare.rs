//! How a request leaves (V-17, V-20, E31, E36, E37).

use std::sync::Arc;

use super::format::{self, Answered, Circumstances, Context};
use super::redirect::matched_length;
use super::{Outgoing, Request, RouteDecision, Target, fields};
use crate::compile::routing::rules::{self, CompiledAction, CompiledMatch, CompiledRewrite, CompiledRule};
use crate::resource::virtual_service::{HeaderChanges, HeaderOperations};

/// The matched rule in compiled form, for [`prepare()`].
#[derive(Debug, Clone)]
pub struct Applied {
    pub(super) rule: Arc<CompiledRule>,
    /// Position among the rule's matches.
    pub(super) matched: Option<usize>,
}

impl Applied {
    pub(super) fn entry(&self) -> Option<&CompiledMatch> {
        self.rule.matches.as_ref()?.get(self.matched?)
    }
}

/// How a request leaves for one of the rule's targets. What changes about the answer is for [`complete`](super::complete)
/// to finish.
pub fn prepare(
    decision: &RouteDecision,
    target: &Target,
    request: &Request<'_>,
    circumstances: &Circumstances<'_>,
) -> Outgoing {
    let Some(applied) = &decision.applied else { return Outgoing::default() };
    let rule = &applied.rule;
    let changes = |headers: &HeaderOperations| !(headers.request.is_empty() && headers.response.is_empty());
    if rule.rewrite.is_none() && !changes(&rule.headers) && !changes(&target.headers) {
        return Outgoing::default();
    }
    let authority = new_authority(rule, target);
    let rewritten =
        rule.rewrite.as_ref().and_then(|rewrite| new_target(rewrite, applied.entry(), request.target));
    let mut request_headers = Vec::new();
    request_headers.extend(originals(request, rewritten.is_some(), authority.is_some()));
    request_headers.extend(in_order(rule, target, |operations| &operations.request));
    let response_headers = in_order(rule, target, |operations| &operations.response);
    let context = Context { decision, target: Some(target), request, circumstances };
    let expand = |operations: Arc<HeaderOperations>| format::expand_all(operations, &context);
    Outgoing {
        authority,
        target: rewritten,
        request_headers: request_headers.into_iter().map(expand).collect(),
        response_headers: response_headers.into_iter().map(expand).collect(),
    }
}

/// The headers that a rule adds to an answer of the mesh: a redirect, or a direct response (V-17).
pub fn added(
    decision: &RouteDecision,
    request: &Request<'_>,
    (circumstances, answered): (&Circumstances<'_>, &Answered<'_>),
) -> Vec<(Arc<str>, String)> {
    let Some(applied) = &decision.applied else { return Vec::new() };
    if let CompiledAction::Forward(_) = &applied.rule.action {
        return Vec::new();
    }
    let context = Context { decision, target: None, request, circumstances };
    let operations = format::expand_all(applied.rule.headers.clone(), &context);
    let changes = format::complete(&operations.response, answered);
    let pairs = changes.set.iter().chain(&changes.add);
    pairs.map(|(name, value)| (name.to_ascii_lowercase().into(), value.to_string())).collect()
}

/// `rewrite.authority` before the rule's Host before the destination's (V-17).
fn new_authority(rule: &CompiledRule, target: &Target) -> Option<String> {
    let rewrite = rule.rewrite.as_ref().and_then(|rewrite| rewrite.authority.as_ref());
    let by_rule = || rules::host_of(&rule.headers.request);
    let by_target = || rules::host_of(&target.headers.request);
    rewrite.or_else(by_rule).or_else(by_target).map(|authority| authority.to_string())
}

/// The new path and query; the query stays as it is.
fn new_target(rewrite: &CompiledRewrite, matched: Option<&CompiledMatch>, target: &str) -> Option<String> {
    let path = fields::path(target);
    let query = fields::query(target).map(|query| format!("?{query}")).unwrap_or_default();
    if let Some((regex, replacement)) = &rewrite.regex {
        let path = regex.replace_all(path, |captures: &regex::Captures<'_>| replacement.fill(captures));
        return Some(format!("{path}{query}"));
    }
    let uri = rewrite.uri.as_ref()?;
    let rest = path.get(matched_length(path, matched)..).unwrap_or_default();
    Some(format!("{uri}{rest}{query}"))
}

/// What the request was before, for the application (E36).
fn originals(request: &Request<'_>, path: bool, host: bool) -> Option<Arc<HeaderOperations>> {
    let path = path.then(|| (Arc::from("x-envoy-original-path"), Arc::from(literal(request.target))));
    let host = host.then(|| (Arc::from("x-envoy-original-host"), Arc::from(literal(request.authority))));
    let set: Vec<_> = path.into_iter().chain(host).collect();
    if set.is_empty() {
        return None;
    }
    let request = HeaderChanges { set, ..HeaderChanges::default() };
    Some(Arc::new(HeaderOperations { request, response: HeaderChanges::default() }))
}

/// Text that `format` leaves as it is.
fn literal(text: &str) -> String {
    text.replace('%', "%%")
}

/// The header changes in the order in which they are made: with one destination the rule's before its own, which
/// wins, and all removals first; with several the destination's before the rule's, which wins (E31, E32).
fn in_order(
    rule: &CompiledRule,
    target: &Target,
    side: impl Fn(&HeaderOperations) -> &HeaderChanges,
) -> Vec<Arc<HeaderOperations>> {
    let single = match &rule.action {
        CompiledAction::Forward(forward) => forward.single,
        CompiledAction::Redirect(_) | CompiledAction::Direct(_) => false,
    };
    let changes = |operations: &&Arc<HeaderOperations>| !side(operations).is_empty();
    let order = if single { [&rule.headers, &target.headers] } else { [&target.headers, &rule.headers] };
    let mut list: Vec<Arc<HeaderOperations>> = order.into_iter().filter(changes).cloned().collect();
    if single && list.len() > 1 && !side(&target.headers).remove.is_empty() {
        let removal = |operations: &HeaderChanges| HeaderChanges {
            remove: operations.remove.clone(),
            ..HeaderChanges::default()
        };
        let rest = |operations: &HeaderChanges| HeaderChanges { remove: Vec::new(), ..operations.clone() };
        let part = |of: &dyn Fn(&HeaderChanges) -> HeaderChanges, operations: &Arc<HeaderOperations>| {
            Arc::new(HeaderOperations {
                request: of(&operations.request),
                response: of(&operations.response),
            })
        };
        let removals = list.iter().map(|operations| part(&removal, operations));
        let rests = list.iter().map(|operations| part(&rest, operations));
        list = removals.chain(rests).collect();
    }
    list
}
