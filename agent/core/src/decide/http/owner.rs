//! Which VirtualService owns the host of a request? (X-4, X-5, V-1)

use std::sync::Arc;

use smallvec::SmallVec;

use super::hosts::{self, Named};
use super::matching::{Evaluated, Scope, evaluate};
use super::memory::Known;
use super::trace::{Ignored, Observer};
use crate::Snapshot;
use crate::compile::routing::HostServices;
use crate::compile::routing::rules::{CompiledRule, CompiledVirtualService, in_order};
use crate::resource::ObjectRef;

/// What the owner says.
#[derive(Debug)]
pub(super) enum Owned {
    /// A rule of it, by one of its matches.
    Rule(Arc<CompiledRule>, Option<usize>),
    /// Nothing: 404.
    NoRoute(ObjectRef),
}

/// What the VirtualServices say about a request for a Service, or for a host that no Service has.
pub(super) fn owner(scope: &Scope<'_>, known: &Known, observer: &mut impl Observer) -> Option<Owned> {
    match &known.named {
        // A host that a VirtualService names as it stands is that, also where it is another form of a Service.
        Some(named) if *known.host != *named.service.host => {
            exact(scope, &known.host, observer).or_else(|| of_service(scope, known, observer))
        }
        Some(_) => of_service(scope, known, observer),
        None => of_stranger(scope, &known.host, observer),
    }
}

/// The VirtualServices that cover a Service's host, the most specific host first, each with whether they name it itself.
pub(super) fn covering(snapshot: &Snapshot, named: &Named) -> SmallVec<[(bool, HostServices); 1]> {
    let found = snapshot.routing.virtual_services.covering(&named.service.host);
    found.iter().map(|found| (found.suffix.is_none(), found.value.clone())).collect()
}

/// Those that name the host itself are asked one after the other. Of wildcards only the first one of the most specific
/// counts, and only where nobody names the host; if it has nothing for this client, the Service's default stays.
fn of_service(scope: &Scope<'_>, known: &Known, observer: &mut impl Observer) -> Option<Owned> {
    let mut owned = None;
    let mut taken = false;
    for (exact, services) in &known.virtual_services {
        for service in in_order(services, client(scope)) {
            let mine = unavailable(scope, service).is_none();
            consider(scope, service, taken.then_some(Ignored::NotOwner), &mut owned, observer);
            taken |= mine && !exact;
        }
        taken |= services.iter().any(|service| unavailable(scope, service).is_none());
    }
    owned
}

fn exact(scope: &Scope<'_>, host: &str, observer: &mut impl Observer) -> Option<Owned> {
    let mut owned = None;
    let services = scope.snapshot.routing.virtual_services.get(host)?;
    for service in in_order(services, client(scope)) {
        let refused = other_port(scope, service);
        consider(scope, service, refused, &mut owned, observer);
    }
    owned
}

fn of_stranger(scope: &Scope<'_>, host: &str, observer: &mut impl Observer) -> Option<Owned> {
    let mut owned = None;
    for found in scope.snapshot.routing.virtual_services.covering(host) {
        let for_services =
            found.suffix.is_some_and(|suffix| hosts::meets_service(scope.snapshot, client(scope), suffix));
        for service in in_order(found.value, client(scope)) {
            let refused = for_services.then_some(Ignored::ForServices).or_else(|| other_port(scope, service));
            consider(scope, service, refused, &mut owned, observer);
        }
    }
    owned
}

/// The namespace of the client.
fn client<'a>(scope: &Scope<'a>) -> &'a str {
    &scope.caller.workload.key.namespace
}

fn other_port(scope: &Scope<'_>, service: &CompiledVirtualService) -> Option<Ignored> {
    let serves = hosts::serves_port(scope.snapshot, client(scope), service, scope.port);
    (!serves).then_some(Ignored::OtherPort)
}

/// Asks one VirtualService, unless the host has its owner.
fn consider(
    scope: &Scope<'_>,
    service: &CompiledVirtualService,
    refused: Option<Ignored>,
    owned: &mut Option<Owned>,
    observer: &mut impl Observer,
) {
    let refused = unavailable(scope, service).or(refused);
    if let Some(why) = refused.or_else(|| owned.is_some().then_some(Ignored::NotOwner)) {
        observer.ignored(&service.object, why);
        return;
    }
    match evaluate(scope, service, observer) {
        Evaluated::Hit(rule, matched) => *owned = Some(Owned::Rule(rule, matched)),
        Evaluated::Miss => *owned = Some(Owned::NoRoute(service.object.clone())),
        Evaluated::Inert => observer.ignored(&service.object, Ignored::NoRuleForClient),
    }
}

fn unavailable(scope: &Scope<'_>, service: &CompiledVirtualService) -> Option<Ignored> {
    if !service.mesh {
        return Some(Ignored::NotMesh);
    }
    let namespace = &scope.caller.workload.key.namespace;
    (!service.visibility.reaches(namespace)).then_some(Ignored::NotExported)
}
