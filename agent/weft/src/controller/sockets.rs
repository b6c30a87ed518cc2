//! One Unix socket for each node (ruling 9).

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use weft_core::Snapshot;
use weft_identity::{Ca, csr_api};

use super::SnapshotAuthority;
use crate::output;

/// Every node on which a pod runs.
pub(super) fn nodes(snapshot: &Snapshot) -> BTreeSet<Arc<str>> {
    snapshot.workloads().filter_map(|workload| workload.node.clone()).collect()
}

/// The sockets that are served.
pub(super) struct Sockets {
    directory: PathBuf,
    ca: Arc<Ca>,
    authority: Arc<SnapshotAuthority>,
    served: BTreeMap<Arc<str>, Served>,
}

struct Served {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Sockets {
    pub(super) fn new(directory: PathBuf, ca: Arc<Ca>, authority: Arc<SnapshotAuthority>) -> Self {
        Self { directory, ca, authority, served: BTreeMap::new() }
    }

    /// Serves the sockets of these nodes and of no other.
    pub(super) fn follow(&mut self, nodes: &BTreeSet<Arc<str>>) {
        // A socket that could not be served is forgotten, and so tried again.
        self.served.retain(|node, served| nodes.contains(node) && !served.task.is_finished());
        for node in nodes {
            if self.served.contains_key(node) {
                continue;
            }
            if is_file_name(node) {
                let served = self.start(node.clone());
                self.served.insert(node.clone(), served);
            } else {
                tracing::warn!(%node, "no socket for this node: its name cannot be the name of a file");
            }
        }
    }

    fn start(&self, node: Arc<str>) -> Served {
        let socket = self.directory.join(format!("{node}.sock"));
        let (stop, stopped) = oneshot::channel::<()>();
        let (ca, authority) = (self.ca.clone(), self.authority.clone());
        let task = tokio::spawn(async move {
            tracing::info!(%node, socket = %socket.display(), "serving certificates");
            // The sender is dropped or used: both mean the end.
            let shutdown = async move { drop(stopped.await) };
            if let Err(error) = csr_api::serve(socket, node.clone(), ca, authority, shutdown).await {
                tracing::error!(%node, error = %output::chain(&error), "certificates of this node are not served");
            }
        });
        Served { stop, task }
    }

    pub(super) async fn stop(&mut self) {
        for (_, served) in std::mem::take(&mut self.served) {
            // A task that has ended does not listen any more.
            let _ = served.stop.send(());
            let _ = served.task.await;
        }
    }
}

fn is_file_name(node: &str) -> bool {
    !node.is_empty() && !node.starts_with('.') && !node.contains(['/', '\0'])
}

#[cfg(test)]
mod tests {
    use super::super::authority::tests::{PODS, published};
    use super::*;

    #[test]
    fn every_node_with_a_pod_gets_a_socket() {
        let (_dir, handle) = published(PODS);
        let names: Vec<String> = nodes(&handle.snapshot()).iter().map(ToString::to_string).collect();
        assert_eq!(names, ["a", "b"]);
        assert!(is_file_name("node-1.example"));
        for bad in ["", ".", "..", "a/b"] {
            assert!(!is_file_name(bad), "{bad}");
        }
    }
}
