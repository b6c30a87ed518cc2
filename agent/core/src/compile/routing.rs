//! VirtualServices and DestinationRules, indexed by host.
//!
//! A changed object is compiled again by itself, with those that delegate to it; the indexes are persistent, so that
//! a change costs the same in a large mesh as in a small one. Which Service a decision ends at is looked up when it
//! is taken: only subsets are compiled with their Services.

mod delegate;
mod divided;
mod endpoints;
pub(crate) mod expressions;
pub(crate) mod hosts;
pub(crate) mod policies;
mod report;
pub(crate) mod retry;
pub(crate) mod rules;
pub(crate) mod subsets;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use self::divided::Divided;
use self::endpoints::EndpointIndex;
use self::expressions::Expressions;
use self::hosts::HostIndex;
use self::policies::{Base, RuleIndex};
use self::retry::Retry;
use self::rules::CompiledVirtualService;
use self::subsets::SubsetTable;
use super::Compiler;
use super::discovery;
use super::findings::Topic;
use super::sharded::Sharded;
use crate::decide::http::{ClusterCache, ClusterPolicy};
use crate::hashing::FastMap;
use crate::resource::virtual_service::{ExportTo, HeaderOperations, HttpAction, Retries};
use crate::resource::{DestinationRule, Kind, Labels, NamespacedName, VirtualService};
use crate::snapshot::{CompiledService, Workload};
use crate::visibility::Visibility;

/// The VirtualServices of one host: those for some namespaces first, then by age.
pub(crate) type HostServices = Arc<[Arc<CompiledVirtualService>]>;

/// What decisions on requests read beside Services and workloads.
#[derive(Debug, Clone)]
pub(crate) struct Routing {
    pub(crate) virtual_services: HostIndex<HostServices>,
    pub(crate) rules: RuleIndex,
    /// Services by their full host.
    pub(crate) services: Sharded<Arc<str>, Arc<CompiledService>>,
    /// The names of the Services of one namespace, sorted.
    pub(crate) namespaces: Sharded<Arc<str>, Arc<BTreeSet<NamespacedName>>>,
    /// What clients of headless Services dial.
    pub(crate) endpoints: EndpointIndex,
    /// Services that a DestinationRule divides.
    pub(crate) subsets: Sharded<NamespacedName, Arc<SubsetTable>>,
    pub(crate) default_retry: Retry,
    pub(crate) default_policy: Arc<ClusterPolicy>,
    /// No header operations.
    pub(crate) no_headers: Arc<HeaderOperations>,
    pub(crate) clusters: Arc<ClusterCache>,
}

impl Default for Routing {
    fn default() -> Self {
        Self {
            virtual_services: HostIndex::default(),
            rules: RuleIndex::default(),
            services: Sharded::default(),
            namespaces: Sharded::default(),
            endpoints: EndpointIndex::default(),
            subsets: Sharded::default(),
            default_retry: Retry::default_of(None),
            default_policy: Arc::new(policies::default_policy(&Base::default())),
            no_headers: Arc::default(),
            clusters: Arc::default(),
        }
    }
}

/// The objects as the compiler keeps them, and what was compiled of them last.
#[derive(Debug, Default)]
pub(super) struct RoutingState {
    virtual_services: BTreeMap<NamespacedName, Arc<VirtualService>>,
    compiled: HashMap<NamespacedName, Arc<CompiledVirtualService>>,
    /// Delegate → those that name it.
    roots: HashMap<NamespacedName, BTreeSet<NamespacedName>>,
    destination_rules: BTreeMap<NamespacedName, Arc<DestinationRule>>,
    rules_of_host: HashMap<Arc<str>, BTreeSet<NamespacedName>>,
    expressions: Expressions,
    divided: Divided,
    mesh_retries: Option<Retries>,
    mesh_policy: Base,
    /// `defaultVirtualServiceExportTo`.
    mesh_export_to: Vec<ExportTo>,
    dirty: RoutingDirty,
    routing: Routing,
    published: Arc<Routing>,
}

#[derive(Debug, Default)]
struct RoutingDirty {
    /// The published form is not the present one.
    any: bool,
    /// The mesh's default policy is another one.
    mesh: bool,
    virtual_services: BTreeSet<NamespacedName>,
    /// Hosts of DestinationRules.
    hosts: BTreeSet<Arc<str>>,
    /// Services that changed.
    services: BTreeSet<NamespacedName>,
    /// Addresses of pods that came, went or changed their labels.
    addresses: BTreeSet<IpAddr>,
}

impl RoutingState {
    /// The compiled form.
    pub(super) fn published(&self) -> Arc<Routing> {
        self.published.clone()
    }

    /// A Service was compiled.
    pub(super) fn note_service(&mut self, key: &NamespacedName) {
        self.dirty.services.insert(key.clone());
    }

    /// The pod behind these addresses came, went or changed its labels.
    pub(super) fn note_addresses(&mut self, ips: &[IpAddr]) {
        if !self.divided.is_empty() {
            self.dirty.addresses.extend(ips);
        }
    }

    /// A VirtualService is compiled again with those that delegate to it.
    fn mark_virtual_service(&mut self, key: &NamespacedName) {
        self.dirty.virtual_services.extend(self.roots.get(key).into_iter().flatten().cloned());
        self.dirty.virtual_services.insert(key.clone());
    }

    /// All that stands in a namespace is compiled again.
    pub(super) fn mark_namespace(&mut self, namespace: &Arc<str>) {
        let first = NamespacedName::new(namespace.clone(), "");
        let within = |key: &NamespacedName| key.namespace == *namespace;
        let services = self.virtual_services.range(first.clone()..).take_while(|(key, _)| within(key));
        for key in services.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            self.mark_virtual_service(&key);
        }
        let rules = self.destination_rules.range(first..).take_while(|(key, _)| within(key));
        self.dirty.hosts.extend(rules.map(|(_, rule)| rule.host.clone()));
    }

    /// Brings the index of delegates up to date.
    fn file_delegates(&mut self, old: Option<&VirtualService>, new: Option<&VirtualService>) {
        if let Some(service) = old {
            for name in delegates(service) {
                if let Some(roots) = self.roots.get_mut(name) {
                    roots.remove(&service.meta.key);
                    if roots.is_empty() {
                        self.roots.remove(name);
                    }
                }
            }
        }
        if let Some(service) = new {
            for name in delegates(service) {
                self.roots.entry(name.clone()).or_default().insert(service.meta.key.clone());
            }
        }
    }

    fn replace_compiled(&mut self, key: &NamespacedName, new: Option<Arc<CompiledVirtualService>>) {
        let old = match &new {
            Some(new) => self.compiled.insert(key.clone(), new.clone()),
            None => self.compiled.remove(key),
        };
        let hosts_of = |compiled: &Arc<CompiledVirtualService>| compiled.source.hosts.clone();
        let hosts: BTreeSet<_> = old.iter().chain(&new).flat_map(hosts_of).collect();
        for host in hosts {
            let index = &mut self.routing.virtual_services;
            let others = index.get(&host).into_iter().flat_map(|list| list.iter());
            let mut list: Vec<_> = others.filter(|known| known.source.meta.key != *key).cloned().collect();
            list.extend(new.clone().filter(|new| new.source.hosts.contains(&host)));
            let public = |service: &CompiledVirtualService| service.visibility == Visibility::Everywhere;
            list.sort_by(|a, b| {
                let by_age = || a.source.meta.precedence().cmp(&b.source.meta.precedence());
                public(a).cmp(&public(b)).then_with(by_age)
            });
            index.set(&host, (!list.is_empty()).then(|| list.into()));
        }
    }

    /// Compiles the DestinationRules of one host; answers whether it divides Services otherwise than before. A wildcard
    /// covers thousands of them, and most changes are about something else.
    fn settle_host(&mut self, host: &Arc<str>, is_hidden: impl Fn(&str) -> bool) -> bool {
        let keys = self.rules_of_host.get(host).into_iter().flatten();
        let keys = keys.filter(|key| !is_hidden(&key.namespace));
        let rules: Vec<_> = keys.filter_map(|key| self.destination_rules.get(key)).cloned().collect();
        let before = self.routing.rules.get(host).map(|rules| labels_of_subsets(rules)).unwrap_or_default();
        let compiled = policies::compile(&rules, &self.mesh_policy);
        let after = labels_of_subsets(&compiled);
        self.routing.rules.set(host, (!compiled.is_empty()).then(|| Arc::new(compiled)));
        before != after
    }

    /// The labels of all subsets that any DestinationRule defines for a host.
    fn subsets_of(&self, host: &str) -> BTreeSet<Arc<Labels>> {
        let covering = self.routing.rules.covering(host);
        covering.iter().flat_map(|found| labels_of_subsets(found.value)).collect()
    }

    /// Brings the indexes of Services up to date. `lookup` answers the Service as it is now.
    fn settle_services<'s>(
        &mut self,
        keys: &BTreeSet<NamespacedName>,
        lookup: impl Fn(&NamespacedName) -> Option<&'s Arc<CompiledService>>,
    ) {
        let mut membership = BTreeMap::<Arc<str>, Vec<(&NamespacedName, bool)>>::new();
        for key in keys {
            let host: Arc<str> = super::services::host(key).into();
            let known = self.routing.services.get(&*host);
            let now = lookup(key);
            if !same(known, now) {
                self.routing.endpoints.replace(known, now);
            }
            if known.is_some() != now.is_some() {
                membership.entry(key.namespace.clone()).or_default().push((key, now.is_some()));
            }
            match now {
                Some(_) if same(known, now) => {}
                Some(service) => self.routing.services.insert(service.host.clone(), service.clone()),
                None => self.routing.services.remove(&*host),
            }
        }
        for (namespace, changes) in membership {
            let mut names = self.routing.namespaces.get(&*namespace).cloned().unwrap_or_default();
            let set = Arc::make_mut(&mut names);
            for (key, exists) in changes {
                if exists {
                    set.insert(key.clone());
                } else {
                    set.remove(key);
                }
            }
            match names.is_empty() {
                true => self.routing.namespaces.remove(&*namespace),
                false => self.routing.namespaces.insert(namespace, names),
            }
        }
    }

    /// Compiles the subsets of one Service.
    fn settle_subsets<'p>(
        &mut self,
        key: &NamespacedName,
        service: Option<&Arc<CompiledService>>,
        workload_of: impl Fn(&IpAddr) -> Option<&'p Arc<Workload>>,
    ) {
        let old = self.routing.subsets.get(key).cloned();
        let table = service.map(|service| {
            let labels_of = |ip: &IpAddr| workload_of(ip).map(|workload| &*workload.pod_labels);
            SubsetTable::new(service, self.subsets_of(&service.host), labels_of, old.as_deref())
        });
        let table = table.filter(|table| !table.is_empty());
        self.divided.file(key, service.filter(|_| table.is_some()));
        if table.as_ref() == old.as_deref() {
            return;
        }
        self.dirty.any = true;
        match table {
            Some(table) => self.routing.subsets.insert(key.clone(), Arc::new(table)),
            None => self.routing.subsets.remove(key),
        }
    }
}

fn same(known: Option<&Arc<CompiledService>>, now: Option<&Arc<CompiledService>>) -> bool {
    known.map(Arc::as_ptr) == now.map(Arc::as_ptr)
}

/// The labels of the subsets of one host, whichever namespace defines them.
fn labels_of_subsets(by_namespace: &FastMap<Arc<str>, policies::HostRules>) -> BTreeSet<Arc<Labels>> {
    let rules = by_namespace.values().flat_map(|rules| rules.iter());
    rules.flat_map(|rule| rule.subset_labels().cloned()).collect()
}

fn delegates(service: &VirtualService) -> impl Iterator<Item = &NamespacedName> {
    service.http.iter().filter_map(|rule| match &rule.action {
        HttpAction::Delegate(name) => Some(name),
        HttpAction::Route(_) | HttpAction::Redirect(_) | HttpAction::DirectResponse(_) => None,
    })
}

impl Compiler {
    pub(super) fn upsert_virtual_service(&mut self, service: VirtualService) {
        let key = service.meta.key.clone();
        let new = Arc::new(service);
        let old = self.routing.virtual_services.insert(key.clone(), new.clone());
        if old.as_ref() == Some(&new) {
            return;
        }
        self.routing.file_delegates(old.as_deref(), Some(&new));
        self.routing.mark_virtual_service(&key);
        self.objects += usize::from(old.is_none());
        self.dirty.any = true;
    }

    pub(super) fn delete_virtual_service(&mut self, name: &NamespacedName) {
        let old = self.routing.virtual_services.remove(name);
        if let Some(old) = &old {
            self.routing.file_delegates(Some(old), None);
            self.routing.mark_virtual_service(name);
        }
        self.count(old.is_some(), -1);
    }

    pub(super) fn upsert_destination_rule(&mut self, rule: DestinationRule) {
        let key = rule.meta.key.clone();
        let new = Arc::new(rule);
        let old = self.routing.destination_rules.insert(key.clone(), new.clone());
        if old.as_ref() == Some(&new) {
            return;
        }
        self.unfile_rule(old.as_deref());
        self.routing.rules_of_host.entry(new.host.clone()).or_default().insert(key);
        self.routing.dirty.hosts.insert(new.host.clone());
        self.objects += usize::from(old.is_none());
        self.dirty.any = true;
    }

    pub(super) fn delete_destination_rule(&mut self, name: &NamespacedName) {
        let old = self.routing.destination_rules.remove(name);
        self.unfile_rule(old.as_deref());
        self.count(old.is_some(), -1);
    }

    fn unfile_rule(&mut self, old: Option<&DestinationRule>) {
        let Some(old) = old else { return };
        self.routing.dirty.hosts.insert(old.host.clone());
        if let Some(keys) = self.routing.rules_of_host.get_mut(&old.host) {
            keys.remove(&old.meta.key);
            if keys.is_empty() {
                self.routing.rules_of_host.remove(&old.host);
            }
        }
    }

    /// Compiles what changed of the routing; Services are compiled before.
    pub(super) fn settle_routing(&mut self) {
        self.settle_default_policy();
        self.settle_default_visibility();
        let dirty = std::mem::take(&mut self.routing.dirty);
        let changed =
            !(dirty.virtual_services.is_empty() && dirty.hosts.is_empty() && dirty.services.is_empty());
        self.routing.dirty.any = changed || dirty.mesh;
        for key in &dirty.virtual_services {
            self.settle_virtual_service(key);
        }
        let services = &self.services;
        self.routing.settle_services(&dirty.services, |key| services.get(key));
        let mut divided = dirty.services;
        divided.extend(dirty.addresses.iter().flat_map(|ip| self.routing.divided.at(*ip)).cloned());
        for host in &dirty.hosts {
            let is_hidden = |name: &str| discovery::is_hidden(&self.namespaces, name);
            if self.routing.settle_host(host, is_hidden) {
                divided.extend(self.services_covered(host));
            }
        }
        for key in divided {
            let service = self.services.get(&key);
            let by_ip = &self.by_ip.owners;
            self.routing.settle_subsets(&key, service, |ip| by_ip.get(ip));
        }
        self.settle_default_retry();
        if std::mem::take(&mut self.routing.dirty.any) {
            self.routing.published = Arc::new(self.routing.routing.clone());
        }
    }

    fn settle_virtual_service(&mut self, key: &NamespacedName) {
        let namespaces = &self.namespaces;
        let visible = |key: &NamespacedName| {
            let service = self.routing.virtual_services.get(key);
            service.filter(|_| !discovery::is_hidden(namespaces, &key.namespace))
        };
        let Some(service) = visible(key).cloned() else {
            self.routing.replace_compiled(key, None);
            self.findings.set(Kind::VirtualService, key, Topic::Object, Vec::new());
            return;
        };
        let default = &self.routing.mesh_export_to;
        let (rules, refused) = delegate::merged(&service, visible, default);
        let visibility = Visibility::new(&service.export_to, default, &key.namespace);
        let expressions = &mut self.routing.expressions;
        let compiled = Arc::new(rules::compile(&service, &rules, visibility, expressions));
        let problems = report::problems(&service, &refused, expressions);
        self.routing.replace_compiled(key, Some(compiled));
        self.findings.set(Kind::VirtualService, key, Topic::Object, problems);
    }

    fn services_covered(&self, host: &str) -> Vec<NamespacedName> {
        let services = match host.strip_prefix('*') {
            None => self.routing.routing.services.get(host).into_iter().cloned().collect::<Vec<_>>(),
            Some(suffix) => {
                let covered = |service: &&Arc<CompiledService>| service.host.ends_with(suffix);
                self.services.values().filter(covered).cloned().collect()
            }
        };
        services.into_iter().map(|service| service.key.clone()).collect()
    }

    /// The mesh's default stands behind every rule (D-21).
    fn settle_default_policy(&mut self) {
        let http = &self.mesh.http;
        let export_to = self.mesh.exports.destination_rules.clone();
        let wanted = Base { policy: http.traffic_policy.clone(), pool: http.pool, export_to };
        if self.routing.mesh_policy != wanted {
            self.routing.routing.default_policy = Arc::new(policies::default_policy(&wanted));
            self.routing.mesh_policy = wanted;
            self.routing.dirty.hosts.extend(self.routing.rules_of_host.keys().cloned());
            self.routing.dirty.mesh = true;
        }
    }

    /// The mesh says who sees a VirtualService that says nothing.
    fn settle_default_visibility(&mut self) {
        let wanted = &self.mesh.exports.virtual_services;
        if self.routing.mesh_export_to != *wanted {
            self.routing.mesh_export_to.clone_from(wanted);
            self.routing.dirty.virtual_services.extend(self.routing.virtual_services.keys().cloned());
        }
    }

    fn settle_default_retry(&mut self) {
        let wanted = self.mesh.http.default_retries.as_ref();
        if self.routing.mesh_retries.as_ref() != wanted {
            self.routing.mesh_retries = wanted.cloned();
            self.routing.routing.default_retry = Retry::default_of(wanted);
            self.routing.dirty.any = true;
        }
    }
}
