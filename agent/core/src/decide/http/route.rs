//! Where does a request go?

use std::sync::Arc;

use super::matching::Scope;
use super::memory::{Known, RouteMemory};
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
    let mut known = Known::new(snapshot, caller, request.authority);
    decide(snapshot, caller, request, (&mut known, &mut ()))
}

/// The same decision, sooner where a request like it was decided before.
pub fn route_remembering(
    memory: &mut RouteMemory,
    snapshot: &Snapshot,
    caller: &Caller<'_>,
    request: &Request<'_>,
) -> RouteDecision {
    let known = memory.of(snapshot, caller, request.authority);
    decide(snapshot, caller, request, (known, &mut ()))
}

/// The same decision, with what was passed over on the way.
pub fn route_traced(
    snapshot: &Snapshot,
    caller: &Caller<'_>,
    request: &Request<'_>,
) -> (RouteDecision, Trace) {
    let mut trace = Trace::default();
    let mut known = Known::new(snapshot, caller, request.authority);
    let decision = decide(snapshot, caller, request, (&mut known, &mut trace));
    (decision, trace)
}

fn decide(
    snapshot: &Snapshot,
    caller: &Caller<'_>,
    request: &Request<'_>,
    (known, observer): (&mut Known, &mut impl Observer),
) -> RouteDecision {
    let port = caller.original.port();
    let scope = Scope { snapshot, caller, request, path: fields::path(request.target), port };
    let owned = match &known.named {
        Some(named) if named.endpoint => None,
        Some(_) | None => owner(&scope, known, observer),
    };
    match owned {
        Some(Owned::Rule(rule, matched)) => by_rule(&scope, known, Applied { rule, matched }),
        Some(Owned::NoRoute(object)) => {
            let mut decision = plain(known, Action::Respond(no_route()));
            decision.owner = Some(object);
            decision
        }
        None => by_default(&scope, known),
    }
}

fn by_rule(scope: &Scope<'_>, known: &mut Known, applied: Applied) -> RouteDecision {
    let rule = applied.rule.clone();
    let matched = applied.entry();
    let action = match &rule.action {
        CompiledAction::Forward(written) => {
            Action::Forward(known.forward(Some(&rule)).unwrap_or_else(|| {
                let forward = forward::by_rule(scope.snapshot, scope.caller, &rule, written);
                known.keep(Some(&rule), &forward);
                forward
            }))
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
        ..plain(known, action)
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

fn by_default(scope: &Scope<'_>, known: &mut Known) -> RouteDecision {
    let forward = known.forward(None).or_else(|| {
        let forward = forward::by_default(scope.snapshot, scope.caller, known.named.as_ref()?)?;
        known.keep(None, &forward);
        Some(forward)
    });
    let action = match forward {
        Some(forward) => Action::Forward(forward),
        None if scope.snapshot.mesh.registry_only => Action::Respond(block_all()),
        None => Action::Passthrough,
    };
    plain(known, action)
}

fn plain(known: &Known, action: Action) -> RouteDecision {
    let service = known.named.as_ref().map(|named| (named.service.clone(), named.port));
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
