//! What requests of a client came to before. Most of a decision follows from client, dialled address and authority,
//! which stay the same from request to request.
//!
//! Only a memory: decisions are the same without it (`what_is_remembered_is_what_would_be_decided`).

use std::net::SocketAddr;
use std::sync::Arc;

use smallvec::SmallVec;

use super::hosts::{self, Named};
use super::{Caller, Forward, owner};
use crate::Snapshot;
use crate::compile::routing::HostServices;
use crate::compile::routing::rules::CompiledRule;

/// Entries; one more takes the place of another.
const PLACES: usize = 64;
/// Rules whose targets are kept for one authority.
const MOST_RULES: usize = 8;

/// The memory of one thread, for [`route_remembering`](super::route_remembering). All snapshots that it is used with are
/// of one compiler.
#[derive(Debug, Default)]
pub struct RouteMemory(Vec<Option<Known>>);

/// What does not depend on the rest of a request.
#[derive(Debug)]
pub(super) struct Known {
    revision: u64,
    /// Address of the client's workload, which is of that revision.
    client: usize,
    original: SocketAddr,
    authority: Box<str>,
    /// The host that the authority, or else the dialled address, names.
    pub(super) host: Box<str>,
    /// The Service's port behind it.
    pub(super) named: Option<Named>,
    /// The VirtualServices for that Service, the most specific first; whether they name its host itself.
    pub(super) virtual_services: SmallVec<[(bool, HostServices); 1]>,
    /// By the rule; `None` is the Service's default.
    forwards: SmallVec<[(Option<Arc<CompiledRule>>, Forward); 1]>,
}

impl RouteMemory {
    /// Forgets everything: nothing is kept alive that a new snapshot has no more.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// What is known about requests with this authority.
    pub(super) fn of(&mut self, snapshot: &Snapshot, caller: &Caller<'_>, authority: &str) -> &mut Known {
        if self.0.is_empty() {
            self.0.resize_with(PLACES, || None);
        }
        let last = authority.as_bytes().last().copied().unwrap_or_default();
        let mixed = address(caller) / 64 + usize::from(caller.original.port()) + authority.len() * 7;
        let at = (mixed + usize::from(last)) % PLACES;
        let place = self.0.get_mut(at).expect("there are as many places");
        if !place.as_ref().is_some_and(|known| known.is_of(snapshot, caller, authority)) {
            *place = None;
        }
        place.get_or_insert_with(|| Known::new(snapshot, caller, authority))
    }
}

/// Within one revision no other workload has it.
fn address(caller: &Caller<'_>) -> usize {
    std::ptr::from_ref(caller.workload).addr()
}

impl Known {
    /// Finds it out.
    pub(super) fn new(snapshot: &Snapshot, caller: &Caller<'_>, authority: &str) -> Self {
        let original = SocketAddr::new(caller.original.ip().to_canonical(), caller.original.port());
        let client = &caller.workload.key.namespace;
        let host: Box<str> = match authority.is_empty() {
            false => hosts::normal(authority).into(),
            // Nobody said: the dialled address did.
            true => original.ip().to_string().into(),
        };
        let undeclared = hosts::of_undeclared_port(snapshot, client, original);
        let host = undeclared.as_ref().map_or(host, |named| (*named.service.host).into());
        let named = undeclared.or_else(|| hosts::find(snapshot, client, &host, original));
        let virtual_services = named.as_ref().map(|named| owner::covering(snapshot, named));
        Self {
            revision: snapshot.revision,
            client: address(caller),
            original: caller.original,
            authority: authority.into(),
            named,
            virtual_services: virtual_services.unwrap_or_default(),
            host,
            forwards: SmallVec::new(),
        }
    }

    fn is_of(&self, snapshot: &Snapshot, caller: &Caller<'_>, authority: &str) -> bool {
        self.revision == snapshot.revision
            && self.client == address(caller)
            && self.original == caller.original
            && *self.authority == *authority
    }

    /// What a rule, or the Service's default, said about requests that it forwards.
    pub(super) fn forward(&self, rule: Option<&Arc<CompiledRule>>) -> Option<Forward> {
        let same = |of: &Option<Arc<CompiledRule>>| match (of, rule) {
            (Some(of), Some(rule)) => Arc::ptr_eq(of, rule),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        self.forwards.iter().find(|(of, _)| same(of)).map(|(_, forward)| forward.clone())
    }

    /// Keeps that.
    pub(super) fn keep(&mut self, rule: Option<&Arc<CompiledRule>>, forward: &Forward) {
        if self.forwards.len() < MOST_RULES {
            self.forwards.push((rule.cloned(), forward.clone()));
        }
    }
}
