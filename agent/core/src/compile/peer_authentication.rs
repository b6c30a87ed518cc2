//! PeerAuthentications become the modes of each workload (PA-1 to PA-3).

use std::sync::Arc;

use super::Compiler;
use super::findings::{Text, Topic};
use super::state::{NamespaceState, peer_authentication_selector};
use crate::Problem;
use crate::problem::Severity;
use crate::resource::{Kind, Labels, MtlsMode, NamespacedName, ObjectRef, PeerAuthentication};
use crate::snapshot::{EffectiveMode, PeerAuthenticationModes};

impl Compiler {
    pub(super) fn upsert_peer_authentication(&mut self, policy: PeerAuthentication) {
        let key = self.shared_key(&policy.meta.key);
        let state = self.namespaces.entry(key.namespace.clone()).or_default();
        let old = state.peer_authentications.insert(key.name.clone(), Arc::new(policy));
        let new = state.peer_authentications.get(&key.name);
        if old.as_ref() == new {
            return;
        }
        self.objects += usize::from(old.is_none());
        self.mark_peer_authentications(key.namespace);
    }

    pub(super) fn delete_peer_authentication(&mut self, key: &NamespacedName) {
        let state = self.namespaces.get_mut(&key.namespace);
        if state.and_then(|state| state.peer_authentications.remove(&key.name)).is_none() {
            return;
        }
        self.objects -= 1;
        self.findings.set(Kind::PeerAuthentication, key, Topic::Scope, Vec::new());
        self.mark_peer_authentications(key.namespace.clone());
        self.forget_namespace_if_empty(&key.namespace);
    }

    fn mark_peer_authentications(&mut self, namespace: Arc<str>) {
        self.dirty.any = true;
        self.dirty.peer_authentications.insert(namespace);
    }

    /// Marks the pods that changed PeerAuthentications concern and reports those without effect.
    pub(super) fn settle_peer_authentications(&mut self) {
        for namespace in std::mem::take(&mut self.dirty.peer_authentications) {
            let root = namespace == self.mesh.root_namespace;
            if let Some(state) = self.namespaces.get(&namespace) {
                for (key, problems) in scope_findings(state, root) {
                    self.findings.set(Kind::PeerAuthentication, &key, Topic::Scope, problems);
                }
            }
            if root {
                self.dirty.local.all = true;
            } else {
                self.dirty.local.namespaces.insert(namespace);
            }
        }
    }

    /// The modes of the workloads with these labels.
    pub(super) fn modes_of(&self, namespace: &str, labels: &Labels) -> PeerAuthenticationModes {
        let state = |namespace: &str| self.namespaces.get(namespace);
        let mesh = state(&self.mesh.root_namespace).and_then(namespace_wide);
        let own = state(namespace);
        let workload = own.filter(|_| *namespace != *self.mesh.root_namespace).and_then(|state| {
            oldest(state.peer_authentications.values().filter(|policy| {
                peer_authentication_selector(policy).is_some_and(|selector| selector.is_subset_of(labels))
            }))
        });
        let scopes = [workload, own.and_then(namespace_wide), mesh];
        let set = scopes.into_iter().flatten().find_map(|policy| Some(effective(policy, policy.mode?)));
        let default = set.unwrap_or(EffectiveMode { mode: MtlsMode::Permissive, object: None });
        let ports = workload.map(|policy| port_modes(policy)).unwrap_or_default();
        PeerAuthenticationModes { default, ports }
    }
}

/// PA-3: the first entry of a port counts; one without mode inherits and is left out.
fn port_modes(policy: &PeerAuthentication) -> Vec<(u16, EffectiveMode)> {
    let mut ports = policy.ports.clone();
    ports.sort_by_key(|(port, _)| *port);
    ports.dedup_by_key(|(port, _)| *port);
    ports.into_iter().filter_map(|(port, mode)| Some((port, effective(policy, mode?)))).collect()
}

fn effective(policy: &PeerAuthentication, mode: MtlsMode) -> EffectiveMode {
    let key = &policy.meta.key;
    let object = ObjectRef::new(Kind::PeerAuthentication, key.namespace.clone(), key.name.clone());
    EffectiveMode { mode, object: Some(object) }
}

fn namespace_wide(state: &NamespaceState) -> Option<&Arc<PeerAuthentication>> {
    oldest(
        state.peer_authentications.values().filter(|policy| peer_authentication_selector(policy).is_none()),
    )
}

fn oldest<'p>(
    policies: impl Iterator<Item = &'p Arc<PeerAuthentication>>,
) -> Option<&'p Arc<PeerAuthentication>> {
    policies.min_by(|a, b| a.meta.precedence().cmp(&b.meta.precedence()))
}

/// What each PeerAuthentication of a namespace has to be told about its scope.
fn scope_findings(state: &NamespaceState, root: bool) -> Vec<(NamespacedName, Vec<Problem>)> {
    let winner = namespace_wide(state);
    let finding = |policy: &Arc<PeerAuthentication>| match peer_authentication_selector(policy) {
        Some(_) if root => Some(selector_in_root(policy)),
        Some(_) => None,
        None => winner.filter(|winner| !Arc::ptr_eq(winner, policy)).map(|winner| shadowed(policy, winner)),
    };
    let policies = state.peer_authentications.values();
    policies.map(|policy| (policy.meta.key.clone(), finding(policy).into_iter().collect())).collect()
}

fn warning(policy: &PeerAuthentication, text: Text) -> Problem {
    text.about(Severity::Warning, Kind::PeerAuthentication, &policy.meta.key, policy.meta.origin.clone())
}

fn selector_in_root(policy: &PeerAuthentication) -> Problem {
    let text = Text {
        code: "WEFT0104",
        name: "SelectorInRootNamespace",
        field: "spec.selector".into(),
        message: "a PeerAuthentication with a selector has no effect in the root namespace".into(),
        fix: "move it to the namespace of the workloads, or remove the selector to apply it to the whole mesh",
    };
    warning(policy, text)
}

fn shadowed(policy: &PeerAuthentication, winner: &PeerAuthentication) -> Problem {
    let text = Text {
        code: "WEFT0105",
        name: "ScopeAlreadySet",
        field: String::new(),
        message: format!(
            "the older PeerAuthentication {} applies to all workloads of this namespace; this one has no effect",
            winner.meta.key
        ),
        fix: "merge the two, or give this one a selector",
    };
    warning(policy, text)
}
