//! Routing as it was compiled, in the terms of the objects: for people.

use std::sync::Arc;

use crate::Snapshot;
use crate::compile::routing::rules::CompiledVirtualService;
use crate::decide::http::ClusterPolicy;
use crate::resource::ObjectRef;
use crate::resource::virtual_service::VirtualService;

/// A host, or wildcard, with the VirtualServices that name it. For each client the first that it sees owns the host.
#[derive(Debug, Clone)]
pub struct RoutedHost {
    /// As it is written in `spec.hosts`, completed.
    pub host: String,
    /// The oldest first.
    pub virtual_services: Vec<RoutedObject>,
}

/// A VirtualService as it was compiled.
#[derive(Debug, Clone)]
pub struct RoutedObject {
    /// The object.
    pub object: ObjectRef,
    /// As it was read: gateways, visibility, rules for connections.
    pub source: Arc<VirtualService>,
    /// Whether clients of the mesh take part (V-2).
    pub mesh: bool,
    /// Its rules for requests, with those of its delegates in their place.
    pub http: Vec<RoutedRule>,
}

/// A rule for requests.
#[derive(Debug, Clone)]
pub struct RoutedRule {
    /// The object in which it stands: the delegate, where there is one.
    pub object: ObjectRef,
    /// Its index there.
    pub rule: usize,
    /// Its name.
    pub name: Option<Arc<str>>,
    /// Number of its matches; `None` takes everything.
    pub matches: Option<usize>,
}

/// A DestinationRule, merged with others of its namespace and host (D-2).
#[derive(Debug, Clone)]
pub struct HostPolicy {
    /// The host, or wildcard.
    pub host: String,
    /// The namespace in which it stands.
    pub namespace: Arc<str>,
    /// What holds for the whole host, but for ports that have their own.
    pub policy: Arc<ClusterPolicy>,
    /// Names of the subsets, sorted.
    pub subsets: Vec<Arc<str>>,
}

impl Snapshot {
    /// The hosts that VirtualServices name, sorted.
    pub fn routed_hosts(&self) -> Vec<RoutedHost> {
        let hosts = self.routing.virtual_services.iter();
        let mut hosts: Vec<RoutedHost> = hosts
            .map(|(host, services)| RoutedHost {
                host,
                virtual_services: services.iter().map(|service| RoutedObject::of(service)).collect(),
            })
            .collect();
        hosts.sort_by(|a, b| a.host.cmp(&b.host));
        hosts
    }

    /// The DestinationRules, sorted by host and namespace.
    pub fn host_policies(&self) -> Vec<HostPolicy> {
        let mut found = Vec::new();
        for (host, by_namespace) in self.routing.rules.iter() {
            for (namespace, rules) in by_namespace.iter() {
                found.extend(rules.iter().map(|rule| HostPolicy {
                    host: host.clone(),
                    namespace: namespace.clone(),
                    policy: rule.default_policy().clone(),
                    subsets: rule.subset_names(),
                }));
            }
        }
        found.sort_by(|a, b| (&a.host, &a.namespace).cmp(&(&b.host, &b.namespace)));
        found
    }
}

impl RoutedObject {
    fn of(service: &CompiledVirtualService) -> Self {
        let http = service.http.iter().map(|rule| RoutedRule {
            object: rule.object.clone(),
            rule: rule.rule,
            name: rule.name.clone(),
            matches: rule.matches.as_ref().map(|matches| matches.len()),
        });
        Self {
            object: service.object.clone(),
            source: service.source.clone(),
            mesh: service.mesh,
            http: http.collect(),
        }
    }
}
