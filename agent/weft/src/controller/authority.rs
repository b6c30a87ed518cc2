//! Which node may have which identity.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use weft_control::writer::Published;
use weft_core::{Identity, Snapshot};
use weft_identity::CaError;
use weft_identity::csr_api::NodeAuthority;

/// Which identities the pods of each node have, of one revision of the configuration.
struct Index {
    revision: u64,
    nodes: HashMap<Arc<str>, HashSet<Arc<Identity>>>,
}

/// Answers from the configuration of the moment which node may have which identity.
pub(crate) struct SnapshotAuthority {
    published: Published,
    /// Built when first asked after a change. Only certificate requests take the lock.
    index: Mutex<Arc<Index>>,
}

impl SnapshotAuthority {
    pub(crate) fn new(published: Published) -> Self {
        let index = Index::of(&published.snapshot());
        Self { published, index: Mutex::new(Arc::new(index)) }
    }

    fn index(&self) -> Arc<Index> {
        let snapshot = self.published.snapshot();
        let mut index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        if index.revision != snapshot.revision() {
            *index = Arc::new(Index::of(&snapshot));
        }
        index.clone()
    }
}

impl Index {
    fn of(snapshot: &Snapshot) -> Self {
        let mut nodes: HashMap<Arc<str>, HashSet<Arc<Identity>>> = HashMap::new();
        for workload in snapshot.workloads().filter(|workload| workload.in_mesh()) {
            if let Some(node) = &workload.node {
                nodes.entry(node.clone()).or_default().insert(workload.identity.clone());
            }
        }
        Self { revision: snapshot.revision(), nodes }
    }
}

impl NodeAuthority for SnapshotAuthority {
    fn may_have(&self, node: &str, identity: &Identity) -> Result<(), CaError> {
        let index = self.index();
        if index.nodes.get(node).is_some_and(|identities| identities.contains(identity)) {
            return Ok(());
        }
        Err(CaError::Forbidden(format!(
            "no pod of the mesh with identity {identity} is assigned to node {node}"
        )))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::config;

    pub(in super::super) fn published(yaml: &str) -> (tempfile::TempDir, weft_control::Handle) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("mesh.yaml"), yaml).unwrap();
        let handle = config::watch(&[dir.path().to_owned()], "", true).unwrap();
        (dir, handle)
    }

    pub(in super::super) const PODS: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: cart, namespace: shop, labels: {weft.dev/mesh: enabled}}
spec: {nodeName: a, serviceAccountName: cart}
status: {podIPs: [{ip: 10.0.0.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: legacy, namespace: shop}
spec: {nodeName: b, serviceAccountName: legacy}
status: {podIPs: [{ip: 10.0.0.2}]}
";

    #[test]
    fn an_identity_belongs_to_the_node_of_its_pod() {
        let (_dir, handle) = published(PODS);
        let authority = SnapshotAuthority::new(handle.published().clone());
        let cart = Identity::new("cluster.local", "shop", "cart");
        assert!(authority.may_have("a", &cart).is_ok());
        assert!(matches!(authority.may_have("b", &cart), Err(CaError::Forbidden(_))));
        let legacy = Identity::new("cluster.local", "shop", "legacy");
        assert!(authority.may_have("b", &legacy).is_err(), "a pod outside the mesh needs no certificate");
    }
}
