//! Namespaces that the mesh does not look at (`discoverySelectors`, C-1).
//!
//! Their objects stay with the compiler, so that a label brings them back at once, and as they were last valid; but no
//! Service, route or rule of theirs is published, and no pod of theirs is in the mesh.

use std::sync::Arc;

use super::Compiler;
use super::state::NamespaceState;
use crate::hashing::FastMap;
use crate::resource::{Namespace, NamespacedName};

/// Whether the mesh does not look at a namespace.
pub(super) fn is_hidden(namespaces: &FastMap<Arc<str>, NamespaceState>, name: &str) -> bool {
    namespaces.get(name).is_some_and(|state| state.facts.hidden)
}

impl Compiler {
    /// Whether `discoverySelectors` leave this namespace out. Never the root namespace: rules for the whole mesh stand
    /// there, and a selector that forgot it would open what they close.
    pub(super) fn would_hide(&self, namespace: &Namespace) -> bool {
        let selectors = &self.mesh.discovery_selectors;
        !selectors.is_empty()
            && namespace.name != self.mesh.root_namespace
            && !selectors.iter().any(|selector| selector.selects(&namespace.labels))
    }

    /// Looks at every namespace with the selectors of now.
    pub(super) fn settle_discovery(&mut self) {
        let of_state = |(name, state): (&Arc<str>, &NamespaceState)| {
            let facts = self.facts_of(state.object.as_ref()?);
            (facts != state.facts).then(|| (name.clone(), facts))
        };
        let changed: Vec<_> = self.namespaces.iter().filter_map(of_state).collect();
        for (name, facts) in changed {
            self.set_facts(&name, facts);
            self.findings_of_namespace(&name);
        }
    }

    /// The mesh looks at a namespace now, or does not any more: marks what others see of it.
    pub(super) fn mark_hidden(&mut self, name: &Arc<str>) {
        let services = self.namespaces.get(name).into_iter().flat_map(|state| state.services.keys());
        let services = services.map(|service| NamespacedName::new(name.clone(), service.clone()));
        self.dirty.services.extend(services);
        self.routing.mark_namespace(name);
        self.dirty.any = true;
    }
}
