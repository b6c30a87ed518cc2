//! Pods become workloads.

use std::net::IpAddr;
use std::sync::Arc;

use smallvec::SmallVec;

use super::Compiler;
use super::intern::Interner;
use super::membership::{self, KeptOut};
use super::state::{NamespaceFacts, NamespaceState, PodRecord, Rarities, Template};
use crate::Identity;
use crate::names;
use crate::resource::{Labels, Namespace, NamespacedName, Node, Pod};
use crate::snapshot::{Workload, WorkloadLabels};

/// Up to so many pods with the same labels are kept without spare room.
const SMALL_GROUP: usize = 32;

/// Values that pods share.
#[derive(Debug, Default)]
pub(super) struct Interned {
    text: Interner<str>,
    templates: Interner<Template>,
    identities: Interner<Identity>,
    workload_labels: Interner<WorkloadLabels>,
}

impl Interned {
    /// The same labels with keys that all label sets share.
    fn with_shared_keys(&mut self, labels: &Labels) -> Arc<Labels> {
        let pairs = labels.iter_shared().map(|(key, value)| (self.text.share(key.clone()), value.clone()));
        Arc::new(pairs.collect())
    }
}

/// What a workload is made from, beside its namespace and the mesh.
struct Parts {
    key: NamespacedName,
    ips: SmallVec<[IpAddr; 2]>,
    node: Option<Arc<str>>,
    service_account: Arc<str>,
    workload_name: Arc<str>,
    labels: Arc<Labels>,
    ready: bool,
}

impl Compiler {
    pub(super) fn upsert_pod(&mut self, pod: Pod) {
        let key = self.shared_key(&pod.meta.key);
        if pod.terminated {
            return self.end_pod(key);
        }
        let record = self.compile_pod(key.clone(), pod);
        let old = self.pod_record(&key).cloned();
        if old.as_ref().is_some_and(|old| old.same_as(&record)) {
            return;
        }
        let state = self.namespaces.entry(key.namespace.clone()).or_default();
        let was_ended = state.ended.remove(&key.name);
        self.objects += usize::from(old.is_none() && !was_ended);
        self.replace_pod(old.as_ref(), record);
    }

    pub(super) fn delete_pod(&mut self, key: &NamespacedName) {
        if let Some(old) = self.pod_record(key).cloned() {
            self.remove_pod(&old);
            self.objects -= 1;
        } else if let Some(state) = self.namespaces.get_mut(&key.namespace)
            && state.ended.remove(&key.name)
        {
            self.objects -= 1;
            self.dirty.any = true;
        }
        self.forget_namespace_if_empty(&key.namespace);
    }

    fn end_pod(&mut self, key: NamespacedName) {
        let old = self.pod_record(&key).cloned();
        if let Some(old) = &old {
            self.remove_pod(old);
        }
        let state = self.namespaces.entry(key.namespace).or_default();
        if state.ended.insert(key.name) && old.is_none() {
            self.objects += 1;
            self.dirty.any = true;
        }
    }

    fn compile_pod(&mut self, key: NamespacedName, pod: Pod) -> PodRecord {
        let state = self.namespaces.entry(key.namespace.clone()).or_default();
        let facts = state.facts;
        let labels = match state.groups.get_key_value(&pod.labels) {
            Some((labels, _)) => labels.clone(),
            None => self.interned.with_shared_keys(&pod.labels),
        };
        let template = self.interned.templates.share(Template {
            annotations: pod.annotations,
            ports: pod.ports,
            host_network: pod.host_network,
            runtime_class: pod.runtime_class,
        });
        let parts = Parts {
            ips: pod.ips,
            node: pod.node.map(|node| self.interned.text.share(node)),
            service_account: pod.service_account,
            workload_name: pod.owner.map_or_else(|| key.name.clone(), |owner| owner.name.clone()),
            labels,
            ready: pod.ready,
            key,
        };
        let workload = Arc::new(self.workload(parts, &template, facts));
        // Findings are about pods of this node only.
        let origin = pod.meta.origin.filter(|_| self.is_local(&workload));
        let uid = pod.uid.filter(|_| self.is_local(&workload));
        let rarities = Rarities { netns: pod.netns, origin, uid };
        PodRecord {
            workload,
            template,
            rarities: (rarities != Rarities::default()).then(|| Box::new(rarities)),
            created: pod.meta.created.unwrap_or(i64::MIN),
        }
    }

    fn workload(&mut self, parts: Parts, template: &Template, facts: NamespaceFacts) -> Workload {
        let Parts { key, ips, node, service_account, workload_name, labels, ready } = parts;
        let (identity, text) = self.identity_and_text(&key, &service_account, &workload_name, &labels);
        let adopt = self.options.adopt_istio_labels;
        let opted =
            membership::of_pod(&labels, &template.annotations, adopt).or(facts.opted).unwrap_or(false);
        Workload {
            membership: membership::of_opted(opted, template, self.kept_out(&node, facts)),
            key,
            ips,
            node,
            identity,
            labels: text,
            pod_labels: labels,
            ready,
            encrypt_same_node: facts.encrypt_same_node,
        }
    }

    /// The identity and the metric labels, those of another pod of the same template where there is one.
    fn identity_and_text(
        &mut self,
        key: &NamespacedName,
        service_account: &Arc<str>,
        workload_name: &Arc<str>,
        labels: &Arc<Labels>,
    ) -> (Arc<Identity>, Arc<WorkloadLabels>) {
        let group = self.namespaces.get(&key.namespace).and_then(|state| state.groups.get(labels));
        if let Some(sibling) = group.and_then(|group| group.first()).map(|record| &record.workload)
            && sibling.identity.service_account_shared() == service_account
            && *sibling.identity.trust_domain() == *self.mesh.trust_domain
            && sibling.labels.workload == *workload_name
        {
            return (sibling.identity.clone(), sibling.labels.clone());
        }
        let identity =
            Identity::new(self.mesh.trust_domain.clone(), key.namespace.clone(), service_account.clone());
        let identity = self.interned.identities.share(identity);
        let principal = self.interned.text.share(identity.to_string());
        let defaults = [names::UNKNOWN, "latest"].map(|text| self.interned.text.share(text));
        let (workload, namespace) = (workload_name.clone(), key.namespace.clone());
        let text = workload_labels(workload, namespace, principal, labels, defaults);
        (identity, self.interned.workload_labels.share(text))
    }

    pub(super) fn pod_record(&self, key: &NamespacedName) -> Option<&PodRecord> {
        self.namespaces.get(&key.namespace)?.record(self.workloads.get(key)?)
    }

    /// Puts a record into the place of its former version and marks what depends on it.
    fn replace_pod(&mut self, old: Option<&PodRecord>, new: PodRecord) {
        let key = new.workload.key.clone();
        if let Some(old) = old {
            self.release_addresses(old);
        }
        self.file_record(old, &new);
        self.claim_addresses(&new);
        self.workloads.insert(new.workload.clone());
        self.note_bypass(&key, membership::is_bypassed(&new.template.annotations));
        self.mark_services_of(old, Some(&new));
        self.mark_local(&key, old.into_iter().chain([&new]));
        self.dirty.any = true;
    }

    fn remove_pod(&mut self, old: &PodRecord) {
        let key = &old.workload.key;
        self.release_addresses(old);
        self.mark_services_of(Some(old), None);
        self.unfile_record(old);
        self.workloads.remove(key);
        self.note_bypass(key, false);
        self.mark_local(key, [old]);
        self.dirty.any = true;
    }

    fn file_record(&mut self, old: Option<&PodRecord>, new: &PodRecord) {
        let labels = &new.workload.pod_labels;
        let moved = old.filter(|old| old.workload.pod_labels != *labels);
        if let Some(old) = moved {
            self.unfile_record(old);
        }
        let state = self.namespaces.entry(new.workload.key.namespace.clone()).or_default();
        if !state.groups.contains_key(labels) {
            join_services(state, labels);
            self.label_sets += 1;
        }
        let group = state.groups.entry(labels.clone()).or_default();
        let same_pod = |record: &&mut PodRecord| record.workload.key.name == new.workload.key.name;
        let known = if old.is_some() { group.iter_mut().find(same_pod) } else { None };
        match known {
            Some(record) => *record = new.clone(),
            None => {
                // Most groups are the pods of one Deployment: doubling would leave much of the room unused.
                if group.len() < SMALL_GROUP {
                    group.reserve_exact(1);
                }
                group.push(new.clone());
            }
        }
    }

    fn unfile_record(&mut self, old: &PodRecord) {
        let labels = &old.workload.pod_labels;
        let Some(state) = self.namespaces.get_mut(&old.workload.key.namespace) else {
            return;
        };
        let Some(group) = state.groups.get_mut(labels) else {
            return;
        };
        group.retain(|record| record.workload.key.name != old.workload.key.name);
        if group.is_empty() {
            state.groups.remove(labels);
            part_services(state, labels);
            self.label_sets += 1;
        }
    }

    fn claim_addresses(&mut self, record: &PodRecord) {
        // The address of a pod in the host's network is the node's: it names no single pod.
        if record.template.host_network {
            return;
        }
        let namespaces = &self.namespaces;
        // The younger pod has the address: the older one is a leftover of a node that stopped reporting.
        let rank_of = |workload: &Workload| {
            let state = namespaces.get(&workload.key.namespace);
            let record = state.and_then(|state| state.record(workload));
            record.map_or(i64::MAX, |record| record.created.saturating_neg())
        };
        for ip in &record.workload.ips {
            self.by_ip.claim(*ip, &record.workload, record.created.saturating_neg(), rank_of);
        }
    }

    fn release_addresses(&mut self, record: &PodRecord) {
        for ip in &record.workload.ips {
            self.by_ip.release(*ip, &record.workload.key);
        }
    }

    fn note_opted(&mut self, name: &Arc<str>, facts: NamespaceFacts) {
        let opted = facts.opted == Some(true) && !facts.bypass && !facts.hidden;
        if opted == self.opted_namespaces.contains(name) {
            return;
        }
        let all = Arc::make_mut(&mut self.opted_namespaces);
        if opted {
            all.insert(name.clone());
        } else {
            all.remove(name);
        }
    }

    /// What keeps every pod of a namespace or a node out: a break-glass (ruling 12), or `discoverySelectors`.
    fn kept_out(&self, node: &Option<Arc<str>>, facts: NamespaceFacts) -> Option<KeptOut> {
        if facts.bypass {
            return Some(KeptOut::Namespace);
        }
        if facts.hidden {
            return Some(KeptOut::Hidden);
        }
        let of_node = node.as_ref().is_some_and(|node| self.bypassed_nodes.contains(node));
        of_node.then_some(KeptOut::Node)
    }

    pub(super) fn upsert_node(&mut self, node: Node) {
        let bypass = node.labels.get(names::MESH) == Some(names::MESH_BYPASS);
        self.set_node_bypass(&node.name, bypass);
        let known = self.nodes.get(&node.name);
        // Nodes report every few seconds, and mostly the same.
        if known.is_none_or(|known| known.addresses != node.addresses || known.labels != node.labels) {
            let old = known.map(|known| known.addresses.clone()).unwrap_or_default();
            Arc::make_mut(&mut self.localities).insert(&node, &old);
            self.dirty.any = true;
        }
        let old = self.nodes.insert(node.name.clone(), node);
        self.count(old.is_none(), 1);
    }

    pub(super) fn delete_node(&mut self, name: &Arc<str>) {
        self.set_node_bypass(name, false);
        let known = self.nodes.remove(name);
        if let Some(known) = &known {
            Arc::make_mut(&mut self.localities).remove(name, &known.addresses);
        }
        self.count(known.is_some(), -1);
    }

    fn set_node_bypass(&mut self, name: &Arc<str>, bypass: bool) {
        let changed = match bypass {
            true => self.bypassed_nodes.insert(name.clone()),
            false => self.bypassed_nodes.remove(name),
        };
        if changed {
            // Rare enough to look at every pod.
            self.dirty.namespaces.extend(self.namespaces.keys().cloned());
            self.dirty.any = true;
        }
    }

    fn note_bypass(&mut self, key: &NamespacedName, bypassed: bool) {
        if bypassed == self.bypassed.contains(key) {
            return;
        }
        let all = Arc::make_mut(&mut self.bypassed);
        if bypassed {
            all.insert(key.clone());
        } else {
            all.remove(key);
        }
    }

    /// Marks the Services whose endpoints come from this pod.
    fn mark_services_of(&mut self, old: Option<&PodRecord>, new: Option<&PodRecord>) {
        if let (Some(old), Some(new)) = (old, new)
            && same_endpoints(old, new)
        {
            return;
        }
        for record in old.into_iter().chain(new) {
            let key = &record.workload.key;
            let Some(state) = self.namespaces.get(&key.namespace) else {
                continue;
            };
            let selecting = state.services_selecting(&record.workload.pod_labels);
            let from_pods = self.options.endpoints_from_pods;
            let is_derived = |name: &Arc<str>| from_pods && !state.slices_of.contains_key(name);
            let derived = selecting.into_iter().filter(is_derived);
            self.dirty.services.extend(derived.map(|name| NamespacedName::new(key.namespace.clone(), name)));
            self.routing.note_addresses(&record.workload.ips);
        }
    }

    fn mark_local<'r>(&mut self, key: &NamespacedName, records: impl IntoIterator<Item = &'r PodRecord>) {
        if records.into_iter().any(|record| self.is_local(&record.workload)) {
            self.dirty.local.pods.insert(key.clone());
        }
    }

    pub(super) fn is_local(&self, workload: &Workload) -> bool {
        self.options.node.is_none() || workload.node == self.options.node
    }

    pub(super) fn shared_key(&mut self, key: &NamespacedName) -> NamespacedName {
        NamespacedName { namespace: self.interned.text.share(key.namespace.clone()), name: key.name.clone() }
    }

    pub(super) fn upsert_namespace(&mut self, namespace: Namespace) {
        let name = self.interned.text.share(namespace.name.clone());
        let state = self.namespaces.entry(name.clone()).or_default();
        if state.object.as_ref() == Some(&namespace) {
            return;
        }
        let facts = self.facts_of(&namespace);
        let state = self.namespaces.entry(name.clone()).or_default();
        self.objects += usize::from(state.object.replace(namespace).is_none());
        self.set_facts(&name, facts);
        self.findings_of_namespace(&name);
        self.dirty.any = true;
    }

    pub(super) fn delete_namespace(&mut self, name: &Arc<str>) {
        let Some(state) = self.namespaces.get_mut(name) else {
            return;
        };
        if state.object.take().is_none() {
            return;
        }
        self.objects -= 1;
        self.dirty.any = true;
        self.set_facts(name, NamespaceFacts::default());
        self.findings_of_namespace(name);
        self.forget_namespace_if_empty(name);
    }

    /// What a Namespace says, and the mesh about it.
    pub(super) fn facts_of(&self, namespace: &Namespace) -> NamespaceFacts {
        membership::facts(namespace, self.options.adopt_istio_labels, self.would_hide(namespace))
    }

    /// Brings the facts of a namespace up to date and marks what depends on them.
    pub(super) fn set_facts(&mut self, name: &Arc<str>, facts: NamespaceFacts) {
        let Some(state) = self.namespaces.get_mut(name) else {
            return;
        };
        let old = std::mem::replace(&mut state.facts, facts);
        if facts == old {
            return;
        }
        self.dirty.namespaces.insert(name.clone());
        self.note_opted(name, facts);
        if facts.hidden != old.hidden {
            self.mark_hidden(name);
        }
    }

    pub(super) fn forget_namespace_if_empty(&mut self, name: &Arc<str>) {
        if self.namespaces.get(name).is_some_and(NamespaceState::is_empty) {
            self.namespaces.remove(name);
        }
    }

    /// Compiles the pods of namespaces whose facts (or whose trust domain) changed.
    pub(super) fn settle_namespaces(&mut self) {
        for name in std::mem::take(&mut self.dirty.namespaces) {
            let Some(state) = self.namespaces.get(&name) else {
                continue;
            };
            let facts = state.facts;
            let records: Vec<PodRecord> = state.groups.values().flatten().cloned().collect();
            for old in records {
                let workload = self.workload(parts_of(&old.workload), &old.template, facts);
                if workload != *old.workload {
                    let new = PodRecord { workload: Arc::new(workload), ..old.clone() };
                    self.replace_pod(Some(&old), new);
                }
            }
            self.dirty.local.namespaces.insert(name);
        }
    }
}

/// What the workload was made from.
fn parts_of(workload: &Workload) -> Parts {
    Parts {
        key: workload.key.clone(),
        ips: workload.ips.clone(),
        node: workload.node.clone(),
        service_account: workload.identity.service_account_shared().clone(),
        workload_name: workload.labels.workload.clone(),
        labels: workload.pod_labels.clone(),
        ready: workload.ready,
    }
}

/// M-3, M-5, M-6.
fn workload_labels(
    workload: Arc<str>,
    namespace: Arc<str>,
    principal: Arc<str>,
    labels: &Labels,
    [unknown, latest]: [Arc<str>; 2],
) -> WorkloadLabels {
    let first = |keys: &[&str]| keys.iter().find_map(|key| labels.get_shared(key)).cloned();
    let revision = [names::CANONICAL_REVISION, names::KUBERNETES_VERSION, names::VERSION];
    WorkloadLabels {
        app: first(&[names::APP]).unwrap_or_else(|| unknown.clone()),
        version: first(&[names::VERSION]).unwrap_or(unknown),
        canonical_service: first(&[names::CANONICAL_NAME, names::KUBERNETES_NAME, names::APP])
            .unwrap_or_else(|| workload.clone()),
        canonical_revision: first(&revision).unwrap_or(latest),
        workload,
        namespace,
        principal,
    }
}

/// Whether a Service would have the same endpoints from both.
fn same_endpoints(old: &PodRecord, new: &PodRecord) -> bool {
    old.workload.ips == new.workload.ips
        && old.workload.ready == new.workload.ready
        && old.workload.pod_labels == new.workload.pod_labels
        && old.template.ports == new.template.ports
}

/// A label set is new: adds it to the Services that select it.
fn join_services(state: &mut NamespaceState, labels: &Arc<Labels>) {
    for name in state.services_selecting(labels) {
        if let Some(record) = state.services.get_mut(&name) {
            record.groups.push(labels.clone());
        }
    }
}

/// A label set is gone.
fn part_services(state: &mut NamespaceState, labels: &Arc<Labels>) {
    for name in state.services_selecting(labels) {
        if let Some(record) = state.services.get_mut(&name) {
            record.groups.retain(|group| group != labels);
        }
    }
}
