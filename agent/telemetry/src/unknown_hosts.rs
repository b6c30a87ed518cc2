//! Hosts that the mesh does not know, as values of `destination_service` (M-8).
//!
//! A client chooses them as it likes: without a limit one pod could fill the table of all series.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use weft_core::snapshot::WorkloadLabels;

use crate::metrics::UNKNOWN;

/// The longest host that becomes a label, in bytes: a name of 253 with a dot at its end and a port.
const LONGEST: usize = 260;

/// A source workload: namespace and name.
type Source = (Arc<str>, Arc<str>);

/// The hosts that each source workload has named.
///
/// The lock is taken for reading by each request to an unknown host, and for writing when a host is new.
#[derive(Debug)]
pub(crate) struct UnknownHosts {
    hosts: RwLock<HashMap<Option<Source>, HashSet<Arc<str>>>>,
    limit: usize,
    overflow: AtomicU64,
}

impl UnknownHosts {
    /// At most `limit` hosts of each workload.
    pub(crate) fn new(limit: usize) -> Self {
        Self { hosts: RwLock::default(), limit, overflow: AtomicU64::new(0) }
    }

    /// What a host is called: by its name, or `unknown` where the workload has named too many others.
    pub(crate) fn name(&self, source: Option<&WorkloadLabels>, host: &str) -> Arc<str> {
        let source = key(source);
        let known = |hosts: &HashMap<_, HashSet<Arc<str>>>| {
            hosts.get(&source).and_then(|of_source| of_source.get(host)).cloned()
        };
        if let Some(known) = known(&self.hosts.read().unwrap_or_else(PoisonError::into_inner)) {
            return known;
        }
        if host.len() <= LONGEST {
            let mut hosts = self.hosts.write().unwrap_or_else(PoisonError::into_inner);
            let of_source = hosts.entry(source).or_default();
            if of_source.len() < self.limit || of_source.contains(host) {
                let host: Arc<str> = host.into();
                of_source.insert(host.clone());
                return host;
            }
        }
        self.overflow.fetch_add(1, Ordering::Relaxed);
        UNKNOWN.into()
    }

    /// Forgets the hosts for which there is no series among `shown`.
    pub(crate) fn retain(&self, shown: &HashSet<(Option<Source>, Arc<str>)>) {
        let mut hosts = self.hosts.write().unwrap_or_else(PoisonError::into_inner);
        hosts.retain(|source, of_source| {
            of_source.retain(|host| shown.contains(&(source.clone(), host.clone())));
            !of_source.is_empty()
        });
    }

    /// How often the limit was met.
    pub(crate) fn overflow(&self) -> u64 {
        self.overflow.load(Ordering::Relaxed)
    }
}

/// The workload of a series.
pub(crate) fn key(source: Option<&WorkloadLabels>) -> Option<Source> {
    source.map(|labels| (labels.namespace.clone(), labels.workload.clone()))
}
