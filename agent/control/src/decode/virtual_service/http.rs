//! `spec.http` (V-3, V-14 to V-22).

use weft_core::resource::NamespacedName;
use weft_core::resource::virtual_service::{HttpAction, HttpRule, RouteDestination};

use super::super::networking::Reader;
use super::super::report::Path;
use super::wire::{HttpWire, RouteWire};
use super::{Scope, actions, cors, destinations, faults, headers, matches};

pub(super) fn rules(wires: &[HttpWire<'_>], scope: Scope<'_>, reader: &mut Reader<'_, '_>) -> Vec<HttpRule> {
    let root = Path::Root("spec.http");
    wires.iter().enumerate().map(|(index, wire)| rule(wire, scope, &root.index(index), reader)).collect()
}

fn rule(wire: &HttpWire<'_>, scope: Scope<'_>, at: &Path<'_>, reader: &mut Reader<'_, '_>) -> HttpRule {
    check_action(wire, scope, at, reader);
    let authority = wire.rewrite.as_ref().map_or("", |rewrite| rewrite.authority.as_str());
    headers::check_authority(authority, wire.headers.as_ref(), at, reader);
    HttpRule {
        name: reader.optional(&wire.name),
        matches: matches::matches(&wire.matches.items, scope, &at.field("match"), reader),
        action: action(wire, scope, at, reader),
        rewrite: actions::rewrite(wire.rewrite.as_ref(), &at.field("rewrite"), reader),
        timeout: reader.duration(wire.timeout.as_ref(), &at.field("timeout")),
        retries: faults::retries(wire.retries.as_ref(), &at.field("retries"), reader),
        fault: faults::fault(wire.fault.as_ref(), &at.field("fault"), reader),
        mirrors: faults::mirrors(wire, at, reader),
        cors: cors::cors(wire.cors_policy.as_ref(), &at.field("corsPolicy"), reader),
        headers: headers::operations(wire.headers.as_ref(), at, reader),
    }
}

/// Every rule has one way to answer (V-18, V-19, V-29).
fn check_action(wire: &HttpWire<'_>, scope: Scope<'_>, at: &Path<'_>, reader: &mut Reader<'_, '_>) {
    let has_route = !wire.route.items.is_empty();
    if wire.delegate.is_some() && !scope.is_delegate {
        exclude(("delegate", [("route", has_route), ("redirect", wire.redirect.is_some())]), at, reader);
        return;
    }
    if wire.delegate.is_some() {
        let message = "A delegate cannot hand requests over once more (V-29).";
        reader.report.reject(at.field("delegate"), message, "Write the routes here.");
    }
    let others = [
        ("route", has_route),
        ("fault", wire.fault.is_some()),
        ("rewrite", wire.rewrite.is_some()),
        ("directResponse", wire.direct_response.is_some()),
    ];
    if wire.redirect.is_some() {
        exclude(("redirect", others), at, reader);
    } else if wire.direct_response.is_some() {
        let [route, fault, rewrite, _] = others;
        exclude(("directResponse", [route, fault, rewrite]), at, reader);
    } else if !has_route {
        let message =
            "The rule has no target; as it stands, it would match requests and have no answer for them.";
        let fix = "Add `route`, `redirect` or `directResponse`; what stands alone here (a fault, retries) belongs into \
                   the rule that has the route.";
        reader.report.reject(at, message, fix);
    }
    if wire.mirror.is_some() && !wire.mirrors.items.is_empty() {
        exclude(("mirror", [("mirrors", true)]), at, reader);
    }
}

fn exclude<const N: usize>(
    (name, others): (&str, [(&str, bool); N]),
    at: &Path<'_>,
    reader: &mut Reader<'_, '_>,
) {
    for (other, _) in others.into_iter().filter(|(_, written)| *written) {
        let message = format!("`{name}` and `{other}` exclude each other.");
        reader.report.reject(at.field(other), message, "Keep one of them.");
    }
}

fn action(wire: &HttpWire<'_>, scope: Scope<'_>, at: &Path<'_>, reader: &mut Reader<'_, '_>) -> HttpAction {
    // All of them are read, so that all mistakes are told at once.
    let routes = routes(&wire.route.items, &at.field("route"), reader);
    let redirect = actions::redirect(wire, &at.field("redirect"), reader);
    let response =
        actions::direct_response(wire.direct_response.as_ref(), &at.field("directResponse"), reader);
    if let Some(delegate) = wire.delegate.as_ref().filter(|_| !scope.is_delegate) {
        let namespace = delegate.namespace.non_empty().unwrap_or(&reader.namespace);
        return HttpAction::Delegate(NamespacedName::new(namespace, delegate.name.as_str()));
    }
    match (redirect, response) {
        (Some(redirect), _) => HttpAction::Redirect(redirect),
        (None, Some(response)) => HttpAction::DirectResponse(response),
        (None, None) => HttpAction::Route(routes),
    }
}

fn routes(wires: &[RouteWire<'_>], at: &Path<'_>, reader: &mut Reader<'_, '_>) -> Vec<RouteDestination> {
    let mut routes = Vec::with_capacity(wires.len());
    for (index, wire) in wires.iter().enumerate() {
        let at = at.index(index);
        let destination = destinations::required(wire.destination.as_ref(), &at, reader);
        let headers = headers::operations(wire.headers.as_ref(), &at, reader);
        let weight = destinations::weight(wire.weight.get());
        routes.extend(destination.map(|destination| RouteDestination { destination, weight, headers }));
    }
    let weights: Vec<_> = wires.iter().map(|wire| wire.weight.get()).collect();
    destinations::check_weights(&weights, at, reader);
    routes
}
