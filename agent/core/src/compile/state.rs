//! The objects as the compiler keeps them: by namespace, reduced to what compiling them again needs.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::hashing::{FastMap, FastSet};
use crate::problem::Origin;
use crate::resource::{
    AuthorizationPolicy, ContainerPort, Labels, Namespace, NamespacedName, PeerAuthentication, Service,
};
use crate::snapshot::{TrafficHint, Workload};

/// What a Namespace object says about its pods.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct NamespaceFacts {
    /// Opted in or out; `None` says nothing.
    pub(super) opted: Option<bool>,
    /// The mesh does not look at it (`discoverySelectors`).
    pub(super) hidden: bool,
    /// Label `weft.dev/mesh: bypass`: nothing of it is captured, whatever its pods say.
    pub(super) bypass: bool,
    /// Annotation `weft.dev/same-node: encrypt`.
    pub(super) encrypt_same_node: bool,
    /// Annotation `weft.dev/agent-gone: pass`.
    pub(super) pass_when_agent_gone: bool,
    /// Annotation `weft.dev/traffic`.
    pub(super) traffic: Option<TrafficHint>,
}

/// What the pods of one template have in common beside their labels.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Template {
    pub(super) annotations: Arc<Labels>,
    pub(super) ports: Arc<[ContainerPort]>,
    pub(super) host_network: bool,
    pub(super) runtime_class: Option<Arc<str>>,
}

/// What few pods have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Rarities {
    pub(super) netns: Option<PathBuf>,
    pub(super) origin: Option<Origin>,
    pub(super) uid: Option<Arc<str>>,
}

/// A pod. Everything that its [`Workload`] says is kept only there.
#[derive(Debug, Clone)]
pub(super) struct PodRecord {
    pub(super) workload: Arc<Workload>,
    pub(super) template: Arc<Template>,
    pub(super) rarities: Option<Box<Rarities>>,
    /// Later is younger; equal where the source knows no time.
    pub(super) created: i64,
}

impl PodRecord {
    pub(super) fn same_as(&self, other: &Self) -> bool {
        self.workload == other.workload
            && Arc::ptr_eq(&self.template, &other.template)
            && self.rarities == other.rarities
            && self.created == other.created
    }
}

/// A Service with what it is joined with.
#[derive(Debug)]
pub(super) struct ServiceRecord {
    pub(super) service: Service,
    /// The label sets in its namespace that its selector matches.
    pub(super) groups: Vec<Arc<Labels>>,
}

impl ServiceRecord {
    /// The selector; an empty one selects nothing, as Kubernetes has it.
    pub(super) fn selector(&self) -> Option<&Labels> {
        self.service.selector.as_ref().filter(|selector| !selector.is_empty())
    }
}

/// An EndpointSlice.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SliceRecord {
    pub(super) ports: Box<[(Arc<str>, u16)]>,
    pub(super) addresses: Box<[(IpAddr, bool)]>,
}

/// The slices of one Service with their names.
pub(super) type Slices = SmallVec<[(Arc<str>, SliceRecord); 1]>;

/// Everything in one namespace.
#[derive(Debug, Default)]
pub(super) struct NamespaceState {
    pub(super) object: Option<Namespace>,
    pub(super) facts: NamespaceFacts,
    /// Pods by their label set: selectors are matched once for all pods that have the same labels.
    pub(super) groups: FastMap<Arc<Labels>, Vec<PodRecord>>,
    /// Pods that have ended; only their number matters.
    pub(super) ended: FastSet<Arc<str>>,
    pub(super) service_accounts: FastSet<Arc<str>>,
    pub(super) services: FastMap<Arc<str>, Box<ServiceRecord>>,
    pub(super) service_selectors: SelectorIndex,
    /// Slice → its Service, `None` for a slice that names none.
    pub(super) slices: FastMap<Arc<str>, Option<Arc<str>>>,
    /// Service → its slices.
    pub(super) slices_of: FastMap<Arc<str>, Slices>,
    pub(super) policies: FastMap<Arc<str>, Arc<AuthorizationPolicy>>,
    pub(super) policy_selectors: SelectorIndex,
    pub(super) peer_authentications: BTreeMap<Arc<str>, Arc<PeerAuthentication>>,
}

impl NamespaceState {
    pub(super) fn is_empty(&self) -> bool {
        self.object.is_none()
            && self.groups.is_empty()
            && self.ended.is_empty()
            && self.service_accounts.is_empty()
            && self.services.is_empty()
            && self.slices.is_empty()
            && self.policies.is_empty()
            && self.peer_authentications.is_empty()
    }

    pub(super) fn record(&self, workload: &Workload) -> Option<&PodRecord> {
        let group = self.groups.get(&workload.pod_labels)?;
        group.iter().find(|record| record.workload.key.name == workload.key.name)
    }

    /// Names of the Services that select pods with these labels, sorted.
    pub(super) fn services_selecting(&self, labels: &Labels) -> Vec<Arc<str>> {
        let selects = |name: &Arc<str>| {
            let selector = self.services.get(name).and_then(|record| record.selector());
            selector.is_some_and(|selector| selector.is_subset_of(labels))
        };
        let mut names: Vec<_> =
            self.service_selectors.candidates(labels).filter(|name| selects(name)).cloned().collect();
        names.sort();
        names
    }

    /// Policies for workloads whose selector matches these labels.
    pub(super) fn policies_selecting(
        &self,
        labels: &Labels,
    ) -> impl Iterator<Item = &Arc<AuthorizationPolicy>> {
        let policies = self.policy_selectors.candidates(labels).filter_map(|name| self.policies.get(name));
        policies
            .filter(|policy| policy_selector(policy).is_some_and(|selector| selector.is_subset_of(labels)))
    }

    /// Policies for every workload of their scope.
    pub(super) fn wide_policies(&self) -> impl Iterator<Item = &Arc<AuthorizationPolicy>> {
        self.policies.values().filter(|policy| !policy.targets_gateway && policy_selector(policy).is_none())
    }
}

/// The selector of a policy; an empty one is none.
pub(super) fn policy_selector(policy: &AuthorizationPolicy) -> Option<&Labels> {
    policy.selector.as_ref().filter(|selector| !selector.is_empty())
}

/// The selector of a PeerAuthentication; an empty one is none.
pub(super) fn peer_authentication_selector(policy: &PeerAuthentication) -> Option<&Labels> {
    policy.selector.as_ref().filter(|selector| !selector.is_empty())
}

/// Names by the value of one label.
type NamesByValue = FastMap<Arc<str>, SmallVec<[Arc<str>; 1]>>;

/// Finds the selectors that may match a label set: each is filed under one of its pairs, the least crowded one.
#[derive(Debug, Default)]
pub(super) struct SelectorIndex {
    by_pair: FastMap<Arc<str>, NamesByValue>,
}

impl SelectorIndex {
    pub(super) fn insert(&mut self, selector: &Labels, name: &Arc<str>) {
        let crowd = |key: &str, value: &str| {
            self.by_pair.get(key).and_then(|values| values.get(value)).map_or(0, SmallVec::len)
        };
        if let Some((key, value)) = selector.iter_shared().min_by_key(|(key, value)| crowd(key, value)) {
            let names = self.by_pair.entry(key.clone()).or_default().entry(value.clone()).or_default();
            names.push(name.clone());
        }
    }

    pub(super) fn remove(&mut self, selector: &Labels, name: &Arc<str>) {
        for (key, value) in selector.iter() {
            let Some(values) = self.by_pair.get_mut(key) else {
                continue;
            };
            if let Some(names) = values.get_mut(value) {
                names.retain(|filed| filed != name);
                if names.is_empty() {
                    values.remove(value);
                }
            }
            if values.is_empty() {
                self.by_pair.remove(key);
            }
        }
    }

    fn candidates(&self, labels: &Labels) -> impl Iterator<Item = &Arc<str>> {
        labels.iter().filter_map(|(key, value)| self.by_pair.get(key)?.get(value)).flatten()
    }
}

/// What has to be compiled again.
#[derive(Debug, Default)]
pub(super) struct Dirty {
    /// Something that the snapshot shows has changed.
    pub(super) any: bool,
    /// Mesh-wide settings may have changed.
    pub(super) mesh: bool,
    /// The namespace's facts changed.
    pub(super) namespaces: BTreeSet<Arc<str>>,
    /// The Service's selector is not matched with the pods yet.
    pub(super) selectors: BTreeSet<NamespacedName>,
    /// The Service or its endpoints changed.
    pub(super) services: BTreeSet<NamespacedName>,
    /// PeerAuthentications of the namespace changed.
    pub(super) peer_authentications: BTreeSet<Arc<str>>,
    /// Pods of this node.
    pub(super) local: LocalDirty,
}

/// Which pods of this node have to be compiled again.
#[derive(Debug, Default)]
pub(super) struct LocalDirty {
    pub(super) all: bool,
    pub(super) namespaces: BTreeSet<Arc<str>>,
    pub(super) pods: BTreeSet<NamespacedName>,
}
