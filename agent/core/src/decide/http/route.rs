//! Where does a request go?

use std::net::SocketAddr;
use std::sync::Arc;

use super::hosts::{self, Named};
use super::matching::Scope;
use super::owner::{Owned, owner};
use super::prepare::Applied;
use super::trace::{Observer, Trace};
use super::{Action, Caller, LocalReply, Request, RouteDecision, RuleRef, fields, forward, redirect};
use crate::Snapshot;
use crate::compile::routing::rules::{CompiledAction, CompiledMatch, CompiledRule};

/// Decides on a request that `caller` makes.
///
/// The Host names the Service, by any of its forms; the VirtualService that owns the host chooses by its rules,
/// else the request goes to the Service's own port. Hosts that nobody knows are passed through, or refused under
/// REGISTRY_ONLY.
pub fn route(snapshot: &Snapshot, caller: &Caller<'_>, request: &Request<'_>) -> RouteDecision {
    decide(snapshot, caller, request, &mut ())
}

/// The same decision, with what was passed over on the way.
pub fn route_traced(
    snapshot: &Snapshot,
    caller: &Caller<'_>,
    request: &Request<'_>,
) -> (RouteDecision, Trace) {
    let mut trace = Trace::default();
    let decision = decide(snapshot, caller, request, &mut trace);
    (decision, trace)
}

fn decide(
    snapshot: &Snapshot,
    caller: &Caller<'_>,
    request: &Request<'_>,
    observer: &mut impl Observer,
) -> RouteDecision {
    let original = SocketAddr::new(caller.original.ip().to_canonical(), caller.original.port());
    let scope =
        Scope { snapshot, caller, request, path: fields::path(request.target), port: original.port() };
    let host = match request.authority.is_empty() {
        false => hosts::normal(request.authority),
        // Nobody said: the dialled address did.
        true => original.ip().to_string().into(),
    };
    let named = hosts::find(snapshot, &caller.workload.key.namespace, &host, original);
    let owned = match &named {
        Some(named) if named.endpoint => None,
        Some(_) | None => owner(&scope, &host, named.as_ref(), observer),
    };
    match owned {
        Some(Owned::Rule(rule, matched)) => by_rule(&scope, named, Applied { rule, matched }),
        Some(Owned::NoRoute(object)) => {
            let mut decision = plain(named, Action::Respond(no_route()));
            decision.owner = Some(object);
            decision
        }
        None => by_default(&scope, named),
    }
}

fn by_rule(scope: &Scope<'_>, named: Option<Named>, applied: Applied) -> RouteDecision {
    let rule = applied.rule.clone();
    let matched = applied.entry();
    let action = match &rule.action {
        CompiledAction::Forward(forward) => {
            Action::Forward(forward::by_rule(scope.snapshot, scope.caller, &rule, forward))
        }
        CompiledAction::Redirect(written) => Action::Respond(redirect::redirect(scope, matched, written)),
        CompiledAction::Direct(written) => Action::Respond(redirect::direct_response(written)),
    };
    let reference = rule_ref(&rule, matched);
    let owner = rule.root.as_ref().map_or(&rule.object, |(object, _)| object).clone();
    RouteDecision {
        rule: Some(reference),
        cors: rule.cors.clone(),
        applied: Some(applied),
        owner: Some(owner),
        ..plain(named, action)
    }
}

fn rule_ref(rule: &CompiledRule, matched: Option<&CompiledMatch>) -> RuleRef {
    let of_match = matched.and_then(|matched| matched.name.as_ref());
    // V-14.
    let name = match (&rule.name, of_match) {
        (Some(rule), Some(matched)) => Some(Arc::from(format!("{rule}.{matched}"))),
        (Some(rule), None) => Some(rule.clone()),
        (None, of_match) => of_match.map(|matched| Arc::from(format!(".{matched}"))),
    };
    RuleRef {
        object: rule.object.clone(),
        list: "http",
        rule: rule.rule,
        matched: matched.and_then(|matched| matched.at),
        name,
        root: rule.root.clone(),
    }
}

fn by_default(scope: &Scope<'_>, named: Option<Named>) -> RouteDecision {
    let forward = named.as_ref().and_then(|named| forward::by_default(scope.snapshot, scope.caller, named));
    let action = match forward {
        Some(forward) => Action::Forward(forward),
        None if scope.snapshot.mesh.registry_only => Action::Respond(block_all()),
        None => Action::Passthrough,
    };
    plain(named, action)
}

fn plain(named: Option<Named>, action: Action) -> RouteDecision {
    let service = named.map(|named| (named.service, named.port));
    RouteDecision { service, rule: None, cors: None, action, owner: None, applied: None }
}

/// E3.
fn no_route() -> LocalReply {
    LocalReply {
        status: 404,
        headers: Vec::new(),
        body: Arc::default(),
        flag: "NR",
        details: "route_not_found",
        by: "no_route",
    }
}

/// E45.
fn block_all() -> LocalReply {
    LocalReply {
        status: 502,
        headers: Vec::new(),
        body: Arc::default(),
        flag: "-",
        details: "direct_response",
        by: "block_all",
    }
}
