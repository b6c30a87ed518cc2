//! From resources to a [`Snapshot`], incrementally.
//!
//! [`Compiler::apply`] files each object under its namespace and notes what depends on it;
//! [`Compiler::snapshot`] compiles what was noted, in the order of dependence: mesh-wide settings, pods of changed
//! namespaces, selectors, Services, and at last the pods of this node with their policies. The big maps are shared
//! with the snapshot before and copied in small parts, so that the change of one pod costs the same in a large
//! cluster as in a small one.

mod addresses;
mod capture;
mod discovery;
mod exposure;
mod findings;
mod intern;
mod local;
mod membership;
mod mesh;
mod peer_authentication;
pub mod policy;
mod report;
mod request_authentication;
pub(crate) mod routing;
mod services;
pub mod sharded;
mod state;
#[cfg(test)]
pub(crate) mod tests;
mod workloads;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use self::addresses::Addresses;
use self::findings::Findings;
use self::local::{LocalRecord, PolicyCache};
use self::policy::TrustDomains;
use self::sharded::Registry;
use self::state::{Dirty, NamespaceState};
use self::workloads::Interned;
use crate::Snapshot;
use crate::hashing::FastMap;
use crate::locality::Localities;
use crate::resource::{Change, Kind, MeshConfig, NamespacedName, Node, Resource, ResourceKey};
use crate::snapshot::{CompiledService, LocalWorkload, MeshSettings, Workload};

/// What the compiler needs to know beside the objects.
#[derive(Debug, Clone)]
pub struct CompileOptions {
    /// This node's name; `None` compiles every pod as if it were local (`explain`, `analyze`).
    pub node: Option<Arc<str>>,
    /// Whether Istio's opt-in labels count as well (ruling 15).
    pub adopt_istio_labels: bool,
    /// Whether a Service with a selector and no EndpointSlice gets its endpoints from the pods that it selects
    /// (ruling 16: with the directory source only; in a cluster EndpointSlices alone count).
    pub endpoints_from_pods: bool,
}

/// Pods of this node and the Services that may lead to them.
type LocalList = (Arc<[Arc<LocalWorkload>]>, Arc<[NamespacedName]>);

/// Holds the objects and compiles what changed.
#[derive(Debug)]
pub struct Compiler {
    options: CompileOptions,
    mesh: Arc<MeshSettings>,
    mesh_configs: BTreeMap<NamespacedName, MeshConfig>,
    nodes: FastMap<Arc<str>, Node>,
    localities: Arc<Localities>,
    /// Nodes with the label `weft.dev/mesh: bypass`.
    bypassed_nodes: BTreeSet<Arc<str>>,
    namespaces: FastMap<Arc<str>, NamespaceState>,
    interned: Interned,
    workloads: Registry<Workload>,
    by_ip: Addresses<Workload>,
    services: Registry<CompiledService>,
    by_vip: Addresses<CompiledService>,
    /// The endpoints of Services without selector.
    manual_backends: BTreeMap<NamespacedName, BTreeSet<SocketAddr>>,
    bypassed: Arc<BTreeSet<NamespacedName>>,
    opted_namespaces: Arc<BTreeSet<Arc<str>>>,
    policies: PolicyCache,
    routing: routing::RoutingState,
    request_authentications: request_authentication::RequestAuthentications,
    local: BTreeMap<NamespacedName, LocalRecord>,
    local_list: Option<LocalList>,
    /// What policies were last reported about.
    exposure: exposure::Exposure,
    findings: Findings,
    dirty: Dirty,
    objects: usize,
    /// Changes of the sets of labels that pods have.
    label_sets: u64,
    last: Option<Arc<Snapshot>>,
}

impl Compiler {
    /// A compiler without any object.
    pub fn new(options: CompileOptions) -> Self {
        let mesh = mesh::settings(None, false);
        let mut policies = PolicyCache::default();
        policies.set_trust_domains(TrustDomains::new(&mesh.trust_domain, &mesh.trust_domain_aliases));
        Self {
            options,
            mesh: Arc::new(mesh),
            mesh_configs: BTreeMap::new(),
            nodes: FastMap::default(),
            localities: Arc::default(),
            bypassed_nodes: BTreeSet::new(),
            namespaces: FastMap::default(),
            interned: Interned::default(),
            workloads: Registry::default(),
            by_ip: Addresses::default(),
            services: Registry::default(),
            by_vip: Addresses::default(),
            manual_backends: BTreeMap::new(),
            bypassed: Arc::default(),
            opted_namespaces: Arc::default(),
            policies,
            routing: routing::RoutingState::default(),
            request_authentications: request_authentication::RequestAuthentications::default(),
            local: BTreeMap::new(),
            local_list: None,
            exposure: exposure::Exposure::default(),
            findings: Findings::default(),
            dirty: Dirty::default(),
            objects: 0,
            label_sets: 0,
            last: None,
        }
    }

    /// Takes changes in; what depends on them is compiled by the next [`Compiler::snapshot`].
    pub fn apply(&mut self, changes: impl IntoIterator<Item = Change>) {
        for change in changes {
            match change {
                Change::Upsert(resource) => self.upsert(*resource),
                Change::Delete(key) => self.delete(&key),
            }
        }
    }

    /// Compiles what changed since the last call and returns the new snapshot (or the last one, if nothing did).
    pub fn snapshot(&mut self) -> Arc<Snapshot> {
        if let Some(last) = self.last.as_ref().filter(|_| !self.dirty.any) {
            return last.clone();
        }
        self.settle_mesh();
        self.settle_namespaces();
        self.settle_selectors();
        self.settle_services();
        self.settle_routing();
        self.settle_peer_authentications();
        self.settle_local();
        self.settle_address_findings();
        self.dirty.any = false;
        let snapshot = Arc::new(self.publish());
        self.last = Some(snapshot.clone());
        snapshot
    }

    fn publish(&mut self) -> Snapshot {
        let (local, local_services) = self.local_list();
        Snapshot {
            revision: self.last.as_ref().map_or(1, |last| last.revision + 1),
            mesh: self.mesh.clone(),
            workloads: self.workloads.clone(),
            by_ip: self.by_ip.owners.clone(),
            services: self.services.clone(),
            by_vip: self.by_vip.owners.clone(),
            local,
            local_services,
            bypassed: self.bypassed.clone(),
            opted_namespaces: self.opted_namespaces.clone(),
            routing: self.routing.published(),
            localities: self.localities.clone(),
            problems: self.findings.list(),
            objects: self.objects,
            label_sets: self.label_sets,
        }
    }

    fn upsert(&mut self, resource: Resource) {
        match resource {
            Resource::Namespace(namespace) => self.upsert_namespace(namespace),
            Resource::Node(node) => self.upsert_node(node),
            Resource::Pod(pod) => self.upsert_pod(pod),
            Resource::Service(service) => self.upsert_service(service),
            Resource::ServiceAccount(meta) => {
                let key = self.shared_key(&meta.key);
                let state = self.namespaces.entry(key.namespace).or_default();
                let new = state.service_accounts.insert(key.name);
                self.count(new, 1);
            }
            Resource::EndpointSlice(slice) => self.upsert_slice(slice),
            Resource::MeshConfig(config) => self.upsert_mesh_config(config),
            Resource::AuthorizationPolicy(policy) => self.upsert_policy(policy),
            Resource::PeerAuthentication(policy) => self.upsert_peer_authentication(policy),
            Resource::RequestAuthentication(policy) => self.upsert_request_authentication(policy),
            Resource::VirtualService(service) => self.upsert_virtual_service(service),
            Resource::DestinationRule(rule) => self.upsert_destination_rule(rule),
        }
    }

    fn delete(&mut self, key: &ResourceKey) {
        let name = &key.name;
        match key.kind {
            Kind::Namespace => self.delete_namespace(&name.name),
            Kind::Node => self.delete_node(&name.name),
            Kind::Pod => self.delete_pod(name),
            Kind::Service => self.delete_service(name),
            Kind::ServiceAccount => {
                let state = self.namespaces.get_mut(&name.namespace);
                let known = state.is_some_and(|state| state.service_accounts.remove(&name.name));
                self.count(known, -1);
                self.forget_namespace_if_empty(&name.namespace);
            }
            Kind::EndpointSlice => self.delete_slice(name),
            Kind::MeshConfig => self.delete_mesh_config(name),
            Kind::AuthorizationPolicy => self.delete_policy(name),
            Kind::PeerAuthentication => self.delete_peer_authentication(name),
            Kind::RequestAuthentication => self.delete_request_authentication(name),
            Kind::VirtualService => self.delete_virtual_service(name),
            Kind::DestinationRule => self.delete_destination_rule(name),
        }
    }

    /// Counts an object of which only the existence matters.
    fn count(&mut self, changed: bool, by: isize) {
        if changed {
            self.objects = self.objects.saturating_add_signed(by);
            self.dirty.any = true;
        }
    }
}
