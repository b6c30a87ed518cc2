//! Which hosts there are, and for whom.

use std::collections::BTreeMap;

use super::objects::{ObjectSet, Service, ServiceEntry};
use crate::names;

/// Visible everywhere.
pub(super) const EVERYWHERE: &str = "*";
const CLUSTER_DOMAIN: &str = "svc.cluster.local";

/// A name with dots; a short one is completed with its namespace.
pub(super) fn complete(namespace: &str, host: &str) -> String {
    if host.starts_with('*') || host.contains('.') {
        host.to_owned()
    } else {
        format!("{host}.{namespace}.{CLUSTER_DOMAIN}")
    }
}

/// Whether two hosts, each possibly with a wildcard, have a name in common.
pub(super) fn overlap(one: &str, other: &str) -> bool {
    match (one.strip_prefix('*'), other.strip_prefix('*')) {
        (Some(one), Some(other)) => one.ends_with(other) || other.ends_with(one),
        (Some(one), None) => other.ends_with(one),
        (None, Some(other)) => one.ends_with(other),
        (None, None) => one == other,
    }
}

/// The namespaces that `exportTo` names; [`EVERYWHERE`] alone if it is among them or nothing is.
pub(super) fn scopes<'e>(export_to: &'e [String], own: &'e str) -> Vec<&'e str> {
    if export_to.is_empty() || export_to.iter().any(|scope| scope == EVERYWHERE) {
        return vec![EVERYWHERE];
    }
    let mut scopes: Vec<&str> =
        export_to.iter().map(|scope| if scope == "." { own } else { scope.as_str() }).collect();
    scopes.sort_unstable();
    scopes.dedup();
    scopes
}

/// What stands behind a host.
#[derive(Debug, Clone, Copy)]
pub(super) enum Target<'s> {
    /// A Service.
    Service(&'s Service),
    /// A ServiceEntry.
    Entry(&'s ServiceEntry),
}

impl Target<'_> {
    /// Its ports.
    pub(super) fn ports(&self) -> Vec<i64> {
        match self {
            Self::Service(service) => service.ports.iter().map(|port| port.port).collect(),
            Self::Entry(entry) => entry.ports.iter().map(|(port, _)| *port).collect(),
        }
    }
}

/// Hosts of Services and ServiceEntries by who sees them.
#[derive(Debug)]
pub(super) struct Hosts<'s> {
    by_scope: BTreeMap<(String, String), Target<'s>>,
}

impl<'s> Hosts<'s> {
    /// All hosts of a set. Services go before ServiceEntries.
    pub(super) fn new(set: &'s ObjectSet) -> Self {
        let mut by_scope = BTreeMap::new();
        for entry in &set.service_entries {
            let namespace = &entry.head.namespace;
            for host in &entry.hosts {
                for scope in scopes(&entry.export_to, namespace) {
                    by_scope.insert((scope.to_owned(), complete(namespace, host)), Target::Entry(entry));
                }
            }
        }
        for service in &set.services {
            let namespace = &service.head.namespace;
            let host = complete(namespace, &service.head.name);
            for scope in scopes(&annotated(service), namespace) {
                by_scope.insert((scope.to_owned(), host.clone()), Target::Service(service));
            }
        }
        Self { by_scope }
    }

    /// What an object of `namespace` with this `exportTo` means by a host.
    pub(super) fn find(&self, namespace: &str, export_to: &[String], host: &str) -> Option<Target<'s>> {
        let name = complete(namespace, host);
        let get = |scope: &str| self.by_scope.get(&(scope.to_owned(), name.clone())).copied();
        let own = ["."].map(str::to_owned);
        let asked = if export_to.is_empty() { own.as_slice() } else { export_to };
        let exact = get(EVERYWHERE)
            .or_else(|| asked.iter().find_map(|scope| get(if scope == "." { namespace } else { scope })));
        exact.or_else(|| self.find_wildcard(namespace, &name))
    }

    fn find_wildcard(&self, namespace: &str, name: &str) -> Option<Target<'s>> {
        let covers = |((scope, host), _): &(&(String, String), &Target<'s>)| {
            let visible = scope == EVERYWHERE || scope == namespace;
            let suffix = host.strip_prefix('*');
            visible && suffix.is_some_and(|suffix| name.trim_start_matches('*').ends_with(suffix))
        };
        self.by_scope.iter().find(covers).map(|(_, target)| *target)
    }

    /// Whether a host with a wildcard covers any host at all.
    pub(super) fn any_below(&self, wildcard: &str) -> bool {
        self.by_scope.keys().any(|(_, host)| overlap(wildcard, host))
    }
}

/// Who sees a Service.
fn annotated(service: &Service) -> Vec<String> {
    let written = service.head.annotations.get(names::EXPORT_TO).map(String::as_str).unwrap_or_default();
    written.split(',').map(|scope| scope.trim().to_owned()).filter(|scope| !scope.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_are_completed() {
        assert_eq!(complete("shop", "a"), "a.shop.svc.cluster.local");
        assert_eq!((complete("shop", "a.b").as_str(), complete("shop", "*").as_str()), ("a.b", "*"));
    }

    #[test]
    fn wildcards_overlap_at_the_end() {
        assert!(
            overlap("*.b.c", "a.b.c") && overlap("a.b", "*") && overlap("*.c", "*.b.c") && overlap("a", "a")
        );
        assert!(!overlap("*.b", "b") && !overlap("a", "b") && !overlap("*.a", "*.b"));
    }
}
