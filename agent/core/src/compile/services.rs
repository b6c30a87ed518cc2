//! Services and EndpointSlices become services with endpoints.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::Compiler;
use super::state::{NamespaceState, PodRecord, ServiceRecord, SliceRecord, Slices};
use crate::names;
use crate::resource::virtual_service::ExportTo;
use crate::resource::{
    ContainerPort, EndpointSlice, Labels, NamespacedName, PortProtocol, Service, ServicePort, TargetPort,
};
use crate::snapshot::{CompiledPort, CompiledService, Endpoint};
use crate::visibility::Visibility;

/// Up to so many Services are matched with every label set of their namespace one by one; more of them by asking
/// for each label set which Services select it.
const FEW_SELECTORS: usize = 8;

impl Compiler {
    pub(super) fn upsert_service(&mut self, service: Service) {
        let key = self.shared_key(&service.meta.key);
        let state = self.namespaces.entry(key.namespace.clone()).or_default();
        let old = state.services.remove(&key.name);
        if let Some(old) = old {
            if old.service == service {
                state.services.insert(key.name, old);
                return;
            }
            if let Some(selector) = old.selector() {
                state.service_selectors.remove(selector, &key.name);
            }
        } else {
            self.objects += 1;
        }
        let record = Box::new(ServiceRecord { service, groups: Vec::new() });
        if let Some(selector) = record.selector() {
            state.service_selectors.insert(selector, &key.name);
            self.dirty.selectors.insert(key.clone());
        }
        state.services.insert(key.name.clone(), record);
        self.mark_service(key);
    }

    pub(super) fn delete_service(&mut self, key: &NamespacedName) {
        let Some(state) = self.namespaces.get_mut(&key.namespace) else {
            return;
        };
        let Some(old) = state.services.remove(&key.name) else {
            return;
        };
        if let Some(selector) = old.selector() {
            state.service_selectors.remove(selector, &key.name);
        }
        self.objects -= 1;
        self.mark_service(key.clone());
        self.forget_namespace_if_empty(&key.namespace);
    }

    /// The object itself changed: also what pods of this node have declared.
    fn mark_service(&mut self, key: NamespacedName) {
        self.dirty.local.namespaces.insert(key.namespace.clone());
        self.dirty.services.insert(key);
        self.dirty.any = true;
    }

    pub(super) fn upsert_slice(&mut self, slice: EndpointSlice) {
        let key = self.shared_key(&slice.meta.key);
        let addresses = slice
            .endpoints
            .iter()
            .flat_map(|endpoint| endpoint.addresses.iter().map(|address| (*address, endpoint.ready)));
        let record = SliceRecord { addresses: addresses.collect(), ports: slice.ports.into() };
        let state = self.namespaces.entry(key.namespace.clone()).or_default();
        let old = state.slices.insert(key.name.clone(), slice.service.clone());
        self.objects += usize::from(old.is_none());
        let former = old.flatten();
        if let Some(service) = former.filter(|service| slice.service.as_ref() != Some(service)) {
            self.remove_slice(&key, service);
        }
        let Some(service) = slice.service else {
            self.dirty.any = true;
            return;
        };
        let state = self.namespaces.entry(key.namespace.clone()).or_default();
        let slices = state.slices_of.entry(service.clone()).or_default();
        let known = slices.iter().position(|(name, _)| *name == key.name);
        let known = known.and_then(|at| slices.get_mut(at));
        if known.as_ref().is_none_or(|(_, known)| *known != record) {
            match known {
                Some((_, known)) => *known = record,
                None => slices.push((key.name, record)),
            }
            self.dirty.services.insert(NamespacedName::new(key.namespace, service));
            self.dirty.any = true;
        }
    }

    pub(super) fn delete_slice(&mut self, key: &NamespacedName) {
        let Some(state) = self.namespaces.get_mut(&key.namespace) else {
            return;
        };
        let Some(service) = state.slices.remove(&key.name) else {
            return;
        };
        self.objects -= 1;
        self.dirty.any = true;
        if let Some(service) = service {
            self.remove_slice(key, service);
        }
        self.forget_namespace_if_empty(&key.namespace);
    }

    fn remove_slice(&mut self, key: &NamespacedName, service: Arc<str>) {
        let Some(state) = self.namespaces.get_mut(&key.namespace) else {
            return;
        };
        if let Some(slices) = state.slices_of.get_mut(&service) {
            slices.retain(|(name, _)| *name != key.name);
            if slices.is_empty() {
                state.slices_of.remove(&service);
            }
        }
        self.dirty.services.insert(NamespacedName::new(key.namespace.clone(), service));
        self.dirty.any = true;
    }

    /// Matches the selectors of new and changed Services with the pods.
    pub(super) fn settle_selectors(&mut self) {
        let mut by_namespace = BTreeMap::<Arc<str>, HashSet<Arc<str>>>::new();
        for key in std::mem::take(&mut self.dirty.selectors) {
            by_namespace.entry(key.namespace).or_default().insert(key.name);
        }
        for (namespace, names) in by_namespace {
            if let Some(state) = self.namespaces.get_mut(&namespace) {
                match_selectors(state, &names);
            }
        }
    }

    /// Compiles the Services whose endpoints or definition changed.
    pub(super) fn settle_services(&mut self) {
        for key in std::mem::take(&mut self.dirty.services) {
            let old = self.services.get(&key).cloned();
            let state = self.namespaces.get(&key.namespace).filter(|state| !state.facts.hidden);
            let context = (self.options.endpoints_from_pods, &*self.mesh.exports.services);
            let new = state.and_then(|state| compile(state, &key, old.as_deref(), context));
            self.replace_service(&key, old, new);
            self.routing.note_service(&key);
        }
    }

    fn replace_service(
        &mut self,
        key: &NamespacedName,
        old: Option<Arc<CompiledService>>,
        new: Option<CompiledService>,
    ) {
        self.mark_backends(key, new.as_ref());
        let same = old.as_deref() == new.as_ref();
        let new = if same { old.clone() } else { new.map(Arc::new) };
        for vip in old.iter().flat_map(|old| &old.vips) {
            let kept = new.as_ref().is_some_and(|new| new.vips.contains(vip));
            if !kept {
                self.by_vip.release(*vip, key);
            }
        }
        let Some(new) = new else {
            self.services.remove(key);
            return;
        };
        let namespaces = &self.namespaces;
        let rank_of = |service: &CompiledService| rank(namespaces.get(&service.key.namespace), &service.key);
        // Also where nothing else changed: the Service's age may have.
        for vip in &new.vips {
            self.by_vip.claim(*vip, &new, rank(namespaces.get(&key.namespace), key), rank_of);
        }
        if !same {
            self.services.insert(new);
        }
    }

    /// A Service without selector declares the ports of the pods that its slices name by their addresses.
    fn mark_backends(&mut self, key: &NamespacedName, new: Option<&CompiledService>) {
        let record = self.namespaces.get(&key.namespace).and_then(|state| state.services.get(&key.name));
        let manual = record.is_some_and(|record| record.selector().is_none());
        let before = self.manual_backends.remove(key).unwrap_or_default();
        let after = if manual { new.map(backends).unwrap_or_default() } else { BTreeSet::new() };
        if before.is_empty() && after.is_empty() {
            return;
        }
        let touched = |ips: &[IpAddr]| names_one(&before, ips) || names_one(&after, ips);
        let pods = self.local.iter().filter(|(_, record)| touched(&record.workload.workload.ips));
        self.dirty.local.pods.extend(pods.map(|(key, _)| key.clone()));
        if !after.is_empty() {
            self.manual_backends.insert(key.clone(), after);
        }
    }

    /// The Services without selector that name one of these addresses, sorted.
    pub(super) fn manual_services_of(&self, ips: &[IpAddr]) -> Vec<NamespacedName> {
        let naming = self.manual_backends.iter().filter(|(_, backends)| names_one(backends, ips));
        naming.map(|(key, _)| key.clone()).collect()
    }
}

fn names_one(backends: &BTreeSet<SocketAddr>, ips: &[IpAddr]) -> bool {
    ips.iter().any(|ip| {
        let lowest = SocketAddr::new(*ip, 0);
        backends.range(lowest..).next().is_some_and(|backend| backend.ip() == *ip)
    })
}

fn backends(service: &CompiledService) -> BTreeSet<SocketAddr> {
    service.ports.iter().flat_map(|port| port.endpoints.iter().map(|endpoint| endpoint.addr())).collect()
}

/// The oldest Service owns a virtual address that several claim.
fn rank(state: Option<&NamespaceState>, key: &NamespacedName) -> i64 {
    let record = state.and_then(|state| state.services.get(&key.name));
    record.and_then(|record| record.service.meta.created).unwrap_or(i64::MIN)
}

fn match_selectors(state: &mut NamespaceState, names: &HashSet<Arc<str>>) {
    for name in names {
        if let Some(record) = state.services.get_mut(name) {
            record.groups.clear();
        }
    }
    if names.len() <= FEW_SELECTORS {
        for name in names {
            if let Some(record) = state.services.get_mut(name) {
                let selector = record.selector();
                let selects = |labels: &&Arc<Labels>| selector.is_some_and(|own| own.is_subset_of(labels));
                record.groups = state.groups.keys().filter(selects).cloned().collect();
            }
        }
        return;
    }
    let mut joined = Vec::new();
    for labels in state.groups.keys() {
        let selecting = state.services_selecting(labels).into_iter().filter(|name| names.contains(name));
        joined.extend(selecting.map(|name| (name, labels.clone())));
    }
    for (name, labels) in joined {
        if let Some(record) = state.services.get_mut(&name) {
            record.groups.push(labels);
        }
    }
}

/// A Service with its endpoints, which come `from_pods` where no slice names them, visible by `default` where it says
/// nothing; parts that equal those of `old` are shared with it.
fn compile(
    state: &NamespaceState,
    key: &NamespacedName,
    old: Option<&CompiledService>,
    (from_pods, default): (bool, &[ExportTo]),
) -> Option<CompiledService> {
    let record = state.services.get(&key.name)?;
    let none = Slices::default();
    let slices = state.slices_of.get(&key.name).or((!from_pods).then_some(&none));
    // UDP is never captured, and a UDP port may have the number of a TCP port.
    let ports = record.service.ports.iter().filter(|port| port.protocol != PortProtocol::Udp);
    let ports = ports.map(|port| {
        let endpoints = endpoints(state, record, slices, port);
        let known = old.and_then(|old| old.port(port.port)).map(|port| &port.endpoints);
        let endpoints = match known.filter(|known| ***known == *endpoints) {
            Some(known) => known.clone(),
            None => endpoints.into(),
        };
        CompiledPort { port: port.port, name: port.name.clone(), protocol: port.protocol, endpoints }
    });
    let host = match old {
        Some(old) => old.host.clone(),
        None => host(key).into(),
    };
    let vips = record.service.vips.clone();
    let alias = record.service.external_name.clone();
    let distribution = record.service.distribution;
    let visibility = Visibility::new(&record.service.export_to, default, &key.namespace);
    let ports = ports.collect();
    Some(CompiledService { key: key.clone(), host, vips, ports, alias, distribution, visibility })
}

/// The full host of a Service.
pub(super) fn host(key: &NamespacedName) -> String {
    format!("{}.{}.svc.{}", key.name, key.namespace, names::CLUSTER_DOMAIN)
}

/// The endpoints of one port, sorted by address.
fn endpoints(
    state: &NamespaceState,
    record: &ServiceRecord,
    slices: Option<&Slices>,
    port: &ServicePort,
) -> Vec<Endpoint> {
    let mut endpoints = match slices {
        Some(slices) => slice_endpoints(slices, port),
        None => pod_endpoints(state, record, port),
    };
    if record.service.publish_not_ready {
        endpoints.iter_mut().for_each(|endpoint| endpoint.ready = true);
    }
    // A ready entry wins over another one for the same address.
    endpoints.sort_unstable_by_key(|endpoint| (endpoint.addr(), !endpoint.ready));
    endpoints.dedup_by_key(|endpoint| endpoint.addr());
    endpoints
}

fn slice_endpoints(slices: &Slices, port: &ServicePort) -> Vec<Endpoint> {
    let name = port.name.as_deref().unwrap_or_default();
    let mut endpoints = Vec::new();
    for (_, slice) in slices {
        let numbers = slice.ports.iter().filter(|(of, _)| **of == *name);
        for (_, number) in numbers {
            let addresses = slice.addresses.iter();
            endpoints
                .extend(addresses.map(|(ip, ready)| Endpoint::new(SocketAddr::new(*ip, *number), *ready)));
        }
    }
    endpoints
}

/// Without EndpointSlices (`endpoints_from_pods`): the pods that the Service selects.
fn pod_endpoints(state: &NamespaceState, record: &ServiceRecord, port: &ServicePort) -> Vec<Endpoint> {
    let pods = record.groups.iter().filter_map(|labels| state.groups.get(labels)).flatten();
    let mut endpoints = Vec::new();
    for pod in pods {
        if let Some(number) = target_port(&pod.template.ports, port) {
            let ready = pod.workload.ready;
            endpoints
                .extend(pod.workload.ips.iter().map(|ip| Endpoint::new(SocketAddr::new(*ip, number), ready)));
        }
    }
    endpoints
}

fn target_port(ports: &[ContainerPort], port: &ServicePort) -> Option<u16> {
    match &port.target {
        TargetPort::Number(number) => Some(*number),
        TargetPort::Name(name) => {
            let named = |container: &&ContainerPort| container.name.as_ref() == Some(name);
            ports.iter().find(named).map(|container| container.port)
        }
    }
}

/// The target ports that a Service declares on a pod which it selects, with what they speak.
pub(super) fn declared_by_selector(
    service: &Service,
    pod: &PodRecord,
) -> impl Iterator<Item = (u16, PortProtocol)> {
    let ports = service.ports.iter().filter(|port| port.protocol != PortProtocol::Udp);
    ports.filter_map(|port| Some((target_port(&pod.template.ports, port)?, port.protocol)))
}

/// The target ports of these addresses that the endpoints of a Service name, with what they speak.
pub(super) fn declared_by_endpoints(
    service: &CompiledService,
    ips: &[IpAddr],
) -> impl Iterator<Item = (u16, PortProtocol)> {
    service.ports.iter().flat_map(move |port| {
        let own = port.endpoints.iter().filter(|endpoint| ips.contains(&endpoint.addr().ip()));
        own.map(|endpoint| (endpoint.addr().port(), port.protocol))
    })
}
