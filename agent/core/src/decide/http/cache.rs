//! Clusters that were asked for before: a decision takes them as they are, without building them again.
//!
//! Only a memory: an entry counts only for exactly the parts that it was built of.

use std::hash::BuildHasher;
use std::sync::{Arc, PoisonError, RwLock};

use smallvec::SmallVec;

use super::{Cluster, ClusterPolicy};
use crate::hashing::{FastMap, FastState};
use crate::snapshot::{CompiledService, Endpoint};

const STRIPES: usize = 16;
/// Clusters in one stripe; a stripe that is full is emptied.
const MOST: usize = 1024;
/// Clusters of one name: clients of different namespaces have different policies.
const MOST_OF_A_NAME: usize = 8;

type Stripe = RwLock<FastMap<u64, SmallVec<[Arc<Cluster>; 1]>>>;

/// What a cluster is made of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parts<'a> {
    pub(crate) service: &'a Arc<CompiledService>,
    /// Index of the port.
    pub(crate) port: usize,
    pub(crate) subset: Option<&'a Arc<str>>,
    pub(crate) endpoints: &'a Arc<[Endpoint]>,
    pub(crate) policy: &'a Arc<ClusterPolicy>,
}

impl Parts<'_> {
    fn made(&self, cluster: &Cluster) -> bool {
        Arc::ptr_eq(self.service, &cluster.service)
            && self.port == cluster.service_port
            && self.subset == cluster.subset.as_ref()
            && Arc::ptr_eq(self.endpoints, &cluster.endpoints)
            && Arc::ptr_eq(self.policy, &cluster.policy)
    }
}

/// Clusters by name, shared by all snapshots of one compiler.
#[derive(Debug)]
pub(crate) struct ClusterCache {
    hasher: FastState,
    stripes: [Stripe; STRIPES],
}

impl Default for ClusterCache {
    fn default() -> Self {
        Self { hasher: FastState::default(), stripes: std::array::from_fn(|_| RwLock::default()) }
    }
}

impl ClusterCache {
    /// The cluster of these parts; `build` makes it where it is not known.
    pub(crate) fn get(&self, parts: Parts<'_>, build: impl FnOnce() -> Cluster) -> Arc<Cluster> {
        let hash = self.hasher.hash_one((&parts.service.host, parts.port, parts.subset));
        // The stripe is chosen by bits that the map does not need.
        let Some(stripe) = self.stripes.get((hash >> 32) as usize % STRIPES) else {
            return Arc::new(build());
        };
        let known = stripe.read().unwrap_or_else(PoisonError::into_inner);
        let found = known.get(&hash).and_then(|list| list.iter().find(|cluster| parts.made(cluster)));
        if let Some(cluster) = found {
            return cluster.clone();
        }
        drop(known);
        let cluster = Arc::new(build());
        let mut known = stripe.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST {
            known.clear();
        }
        let list = known.entry(hash).or_default();
        // Of a former version of the Service nobody will ask again.
        list.retain(|other| Arc::ptr_eq(&other.service, parts.service));
        if list.len() >= MOST_OF_A_NAME {
            list.clear();
        }
        list.push(cluster.clone());
        cluster
    }
}
