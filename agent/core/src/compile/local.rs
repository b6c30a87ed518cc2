//! The pods of this node with everything that decisions about them need.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use smallvec::SmallVec;

use super::Compiler;
use super::findings::{Text, Topic};
use super::policy::{PolicyIndex, PolicySet, TrustDomains};
use super::state::{NamespaceState, PodRecord, policy_selector};
use super::{capture, membership, report, services};
use crate::problem::Severity;
use crate::resource::{AuthorizationPolicy, Kind, Labels, NamespacedName, PortProtocol};
use crate::snapshot::{LocalWorkload, TrafficHint, Workload};

/// A pod of this node and the Services that may lead to it.
#[derive(Debug)]
pub(super) struct LocalRecord {
    pub(super) workload: Arc<LocalWorkload>,
    services: Vec<NamespacedName>,
}

/// Indices over policies, shared between the pods that they concern.
#[derive(Debug, Default)]
pub(super) struct PolicyCache {
    trust_domains: Arc<TrustDomains>,
    /// Policies of a namespace without selector.
    wide: HashMap<Arc<str>, Arc<PolicyIndex>>,
    /// Policies with a selector, by the policies that are in (their addresses: each index keeps them alive).
    selected: HashMap<Vec<usize>, Arc<PolicyIndex>>,
    /// Sets by the indices that are in (their addresses: each set keeps them alive).
    sets: HashMap<Vec<usize>, Arc<PolicySet>>,
}

impl PolicyCache {
    pub(super) fn set_trust_domains(&mut self, trust_domains: TrustDomains) {
        self.trust_domains = Arc::new(trust_domains);
        self.sets.clear();
    }

    fn wide(&mut self, namespace: &Arc<str>, state: &NamespaceState) -> Option<Arc<PolicyIndex>> {
        state.wide_policies().next()?;
        let build = || Arc::new(PolicyIndex::new(state.wide_policies().cloned().collect()));
        Some(self.wide.entry(namespace.clone()).or_insert_with(build).clone())
    }

    fn selected(&mut self, policies: Vec<Arc<AuthorizationPolicy>>) -> Option<Arc<PolicyIndex>> {
        if policies.is_empty() {
            return None;
        }
        let mut key: Vec<usize> = policies.iter().map(|policy| Arc::as_ptr(policy).addr()).collect();
        key.sort_unstable();
        Some(self.selected.entry(key).or_insert_with(|| Arc::new(PolicyIndex::new(policies))).clone())
    }

    fn set(&mut self, layers: SmallVec<[Arc<PolicyIndex>; 3]>) -> Arc<PolicySet> {
        let key = layers.iter().map(|layer| Arc::as_ptr(layer).addr()).collect();
        let trust_domains = self.trust_domains.clone();
        let build = || Arc::new(PolicySet::new(layers, trust_domains));
        self.sets.entry(key).or_insert_with(build).clone()
    }

    /// Drops what no pod uses any more.
    fn sweep(&mut self) {
        self.sets.retain(|_, set| Arc::strong_count(set) > 1);
        self.selected.retain(|_, index| Arc::strong_count(index) > 1);
        self.wide.retain(|_, index| Arc::strong_count(index) > 1);
    }
}

impl Compiler {
    pub(super) fn upsert_policy(&mut self, policy: AuthorizationPolicy) {
        let key = self.shared_key(&policy.meta.key);
        let state = self.namespaces.entry(key.namespace.clone()).or_default();
        if state.policies.get(&key.name).is_some_and(|old| **old == policy) {
            return;
        }
        if let Some(selector) = policy_selector(&policy)
            && !policy.targets_gateway
        {
            state.policy_selectors.insert(selector, &key.name);
        }
        let old = state.policies.insert(key.name.clone(), Arc::new(policy));
        if let Some(selector) = old.as_deref().and_then(policy_selector) {
            refile_selector(state, selector, &key.name);
        }
        self.objects += usize::from(old.is_none());
        self.mark_policies(key.namespace);
    }

    pub(super) fn delete_policy(&mut self, key: &NamespacedName) {
        let Some(state) = self.namespaces.get_mut(&key.namespace) else {
            return;
        };
        let Some(old) = state.policies.remove(&key.name) else {
            return;
        };
        if let Some(selector) = policy_selector(&old) {
            state.policy_selectors.remove(selector, &key.name);
        }
        self.objects -= 1;
        self.mark_policies(key.namespace.clone());
        self.forget_namespace_if_empty(&key.namespace);
    }

    fn mark_policies(&mut self, namespace: Arc<str>) {
        self.policies.wide.remove(&namespace);
        self.dirty.any = true;
        if namespace == self.mesh.root_namespace {
            self.dirty.local.all = true;
        } else {
            self.dirty.local.namespaces.insert(namespace);
        }
    }

    /// Compiles the pods of this node that something changed for.
    pub(super) fn settle_local(&mut self) {
        let dirty = std::mem::take(&mut self.dirty.local);
        let mut keys = dirty.pods;
        if dirty.all {
            keys.extend(self.local.keys().cloned());
        } else {
            for namespace in dirty.namespaces {
                let first = NamespacedName::new(namespace.clone(), "");
                let own = self.local.range(first..).take_while(|(key, _)| key.namespace == namespace);
                keys.extend(own.map(|(key, _)| key.clone()));
            }
        }
        if keys.is_empty() {
            return;
        }
        let mut changed = false;
        for key in keys {
            changed |= self.settle_local_pod(&key);
        }
        self.policies.sweep();
        if changed {
            self.local_list = None;
            self.report_exposure();
        }
    }

    fn settle_local_pod(&mut self, key: &NamespacedName) -> bool {
        let record = self.pod_record(key).filter(|record| self.is_local(&record.workload)).cloned();
        let Some(record) = record else {
            self.findings.set(Kind::Pod, key, Topic::Local, Vec::new());
            return self.local.remove(key).is_some();
        };
        let new = self.compile_local(&record);
        if let Some(old) = self.local.get(key)
            && old.services == new.services
            && same(&old.workload, &new.workload)
        {
            return false;
        }
        self.local.insert(key.clone(), new);
        true
    }

    fn compile_local(&mut self, record: &PodRecord) -> LocalRecord {
        let workload = &record.workload;
        let key = &workload.key;
        let (capture, bad_items) = capture::rules(&record.template.annotations);
        let findings = report::pod(record, bad_items);
        self.findings.set(Kind::Pod, key, Topic::Local, findings);
        let policies = self.policies_of(workload);
        let peer_authentication = self.modes_of(&key.namespace, &workload.pod_labels);
        let facts = self.namespaces.get(&key.namespace).map(|state| state.facts).unwrap_or_default();
        let annotations = &record.template.annotations;
        let services = self.services_of(workload);
        let service_hint = self.service_hint(&services);
        let traffic = membership::traffic_hint(annotations).or(service_hint).or(facts.traffic);
        let local = LocalWorkload {
            workload: workload.clone(),
            netns: record.rarities.as_ref().and_then(|rarities| rarities.netns.clone()),
            uid: record.rarities.as_ref().and_then(|rarities| rarities.uid.clone()),
            policies,
            peer_authentication,
            capture,
            traffic,
            pass_when_agent_gone: facts.pass_when_agent_gone,
            bypass: membership::is_bypassed(annotations),
            declared_ports: self.declared_ports(record, &services),
            request_authentication: self.jwt_rules_of(&key.namespace, &workload.pod_labels),
            http: self.mesh.http.clone(),
        };
        LocalRecord { workload: Arc::new(local), services }
    }

    /// Root namespace, own namespace, selectors (AP-3).
    fn policies_of(&mut self, workload: &Workload) -> Arc<PolicySet> {
        let root = self.mesh.root_namespace.clone();
        let own = &workload.key.namespace;
        let mut layers = SmallVec::new();
        let mut selecting = Vec::new();
        let scopes = [Some(&root), Some(own).filter(|own| **own != root)];
        for namespace in scopes.into_iter().flatten() {
            if let Some(state) = self.namespaces.get(namespace) {
                layers.extend(self.policies.wide(namespace, state));
                selecting.extend(state.policies_selecting(&workload.pod_labels).cloned());
            }
        }
        layers.extend(self.policies.selected(selecting));
        self.policies.set(layers)
    }

    /// The Services of a pod's own namespace that may lead to it, sorted. Those of others may name its address, but not
    /// say what its ports speak.
    fn services_of(&self, workload: &Workload) -> Vec<NamespacedName> {
        let namespace = &workload.key.namespace;
        let state = self.namespaces.get(namespace);
        let selecting = state.map(|state| state.services_selecting(&workload.pod_labels)).unwrap_or_default();
        let mut services: Vec<_> =
            selecting.into_iter().map(|name| NamespacedName::new(namespace.clone(), name)).collect();
        let manual = self.manual_services_of(&workload.ips).into_iter();
        services.extend(manual.filter(|service| service.namespace == *namespace));
        services.sort();
        services.dedup();
        services
    }

    fn service_hint(&self, services: &[NamespacedName]) -> Option<TrafficHint> {
        let hints = services.iter().filter_map(|key| {
            let record = self.namespaces.get(&key.namespace)?.services.get(&key.name)?;
            membership::traffic_hint(&record.service.annotations)
        });
        // Where Services disagree the proxy takes the traffic: it can do all that any of them asks for.
        hints.max_by_key(|hint| match hint {
            TrafficHint::L4 => 0,
            TrafficHint::L7 => 1,
        })
    }

    fn declared_ports(&self, pod: &PodRecord, services: &[NamespacedName]) -> Vec<(u16, PortProtocol)> {
        let mut declared = BTreeMap::<u16, PortProtocol>::new();
        let mut add = |(port, protocol): (u16, PortProtocol)| {
            let known = declared.entry(port).or_insert(protocol);
            if strength(protocol) > strength(*known) {
                *known = protocol;
            }
        };
        for key in services {
            let state = self.namespaces.get(&key.namespace);
            let Some(record) = state.and_then(|state| state.services.get(&key.name)) else {
                continue;
            };
            match record.selector() {
                Some(_) => services::declared_by_selector(&record.service, pod).for_each(&mut add),
                None => {
                    let compiled = self.services.get(key).into_iter();
                    compiled
                        .flat_map(|service| services::declared_by_endpoints(service, &pod.workload.ips))
                        .for_each(&mut add);
                }
            }
        }
        declared.into_iter().collect()
    }

    /// The pods of this node and the Services that may lead to them, for a snapshot.
    pub(super) fn local_list(&mut self) -> (Arc<[Arc<LocalWorkload>]>, Arc<[NamespacedName]>) {
        let local = &self.local;
        let list = self.local_list.get_or_insert_with(|| {
            let services: BTreeSet<_> = local.values().flat_map(|record| &record.services).collect();
            let workloads = local.values().map(|record| record.workload.clone());
            (workloads.collect(), services.into_iter().cloned().collect())
        });
        list.clone()
    }

    pub(super) fn findings_of_namespace(&mut self, name: &Arc<str>) {
        let key = NamespacedName::new("", name.clone());
        let state = self.namespaces.get(name);
        let found = state.and_then(|state| Some(report::namespace(state.object.as_ref()?, state.facts)));
        let problems = found.unwrap_or_default();
        self.findings.set(Kind::Namespace, &key, Topic::Object, problems);
    }

    /// Reports addresses that several objects claim.
    pub(super) fn settle_address_findings(&mut self) {
        if std::mem::take(&mut self.by_ip.unreported) {
            let problems: BTreeSet<_> = self
                .by_ip
                .losers()
                .map(|(ip, owner, loser)| {
                    let message =
                        format!("its address {ip} is also that of the younger Pod {owner}, which gets it");
                    (loser.clone(), address_finding("WEFT0106", "status.podIPs", message, Kind::Pod, loser))
                })
                .collect();
            self.findings.set_all(Kind::Pod, Topic::Address, problems);
        }
        if std::mem::take(&mut self.by_vip.unreported) {
            let problems: BTreeSet<_> = self
                .by_vip
                .losers()
                .map(|(ip, owner, loser)| {
                    let message =
                        format!("its address {ip} is also that of the older Service {owner}, which gets it");
                    let problem =
                        address_finding("WEFT0107", "spec.clusterIPs", message, Kind::Service, loser);
                    (loser.clone(), problem)
                })
                .collect();
            self.findings.set_all(Kind::Service, Topic::Address, problems);
        }
    }
}

fn address_finding(
    code: &'static str,
    field: &str,
    message: String,
    kind: Kind,
    key: &NamespacedName,
) -> crate::Problem {
    let text = Text {
        code,
        name: "AddressTaken",
        field: field.into(),
        message,
        fix: "give each object an address of its own",
    };
    text.about(Severity::Error, kind, key, None)
}

/// Files a policy's present selector again after its former one was taken out.
fn refile_selector(state: &mut NamespaceState, former: &Labels, name: &Arc<str>) {
    state.policy_selectors.remove(former, name);
    let present = state.policies.get(name).filter(|policy| !policy.targets_gateway).cloned();
    if let Some(selector) = present.as_deref().and_then(policy_selector) {
        state.policy_selectors.remove(selector, name);
        state.policy_selectors.insert(selector, name);
    }
}

/// Where Services disagree about a port: HTTP before opaque before undeclared, so that nothing that a user expects
/// of a declaration is lost.
fn strength(protocol: PortProtocol) -> u8 {
    match protocol {
        PortProtocol::Udp => 0,
        PortProtocol::Undeclared => 1,
        PortProtocol::Tcp => 2,
        PortProtocol::Tls => 3,
        PortProtocol::Http => 4,
        PortProtocol::Http2 => 5,
        PortProtocol::GrpcWeb => 6,
        PortProtocol::Grpc => 7,
    }
}

fn same(old: &LocalWorkload, new: &LocalWorkload) -> bool {
    let LocalWorkload {
        workload,
        netns,
        uid,
        policies,
        peer_authentication,
        capture,
        traffic,
        pass_when_agent_gone,
        bypass,
        declared_ports,
        request_authentication,
        http,
    } = old;
    Arc::ptr_eq(policies, &new.policies)
        && *workload == new.workload
        && *netns == new.netns
        && *uid == new.uid
        && *peer_authentication == new.peer_authentication
        && *capture == new.capture
        && *traffic == new.traffic
        && *pass_when_agent_gone == new.pass_when_agent_gone
        && *bypass == new.bypass
        && *declared_ports == new.declared_ports
        && *request_authentication == new.request_authentication
        && *http == new.http
}
