//! `weft controller`: the certificate authority of the mesh, one Unix socket for each node (ruling 9).

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use weft_control::writer::Published;
use weft_core::{Identity, Snapshot};
use weft_identity::csr_api::{self, NodeAuthority};
use weft_identity::{Ca, CaError};

use crate::logging::{self, LogFormat};
use crate::shutdown::Signals;
use crate::{config, output};

/// How soon a socket that could not be served is tried again.
const RETRY: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Files or directories with the configuration. May be repeated.
    #[arg(long, value_name = "PATH", required = true)]
    config: Vec<PathBuf>,
    /// Directory of the CA's key and root certificate; created when missing.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/weft-ca")]
    state_dir: PathBuf,
    /// Directory in which each node has its socket, NODE.sock.
    #[arg(long, value_name = "DIR", default_value = "/run/weft/ca")]
    socket_dir: PathBuf,
    /// Longest life of a certificate, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 86_400)]
    cert_lifetime: u64,
    /// Whether Istio's opt-in labels count as well.
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    adopt_istio_labels: bool,
    /// Level of the log, or directives such as `info,weft_identity=debug`.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log_level: String,
    /// How log lines look.
    #[arg(long, value_enum, default_value_t)]
    log_format: LogFormat,
}

/// Runs until a signal asks for the end.
pub(crate) fn run(options: Options) -> anyhow::Result<()> {
    logging::start(&options.log_level, options.log_format)?;
    // No node has this name: nothing is compiled as local.
    let source = config::watch(&options.config, "", options.adopt_istio_labels)?;
    let trust_domain = source.snapshot().mesh().trust_domain.clone();
    let ca = Ca::open(&options.state_dir, &trust_domain)
        .with_context(|| format!("the CA in {} cannot be used", options.state_dir.display()))?
        .with_max_lifetime(Duration::from_secs(options.cert_lifetime));
    make_private_directory(&options.socket_dir)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let published = source.published().clone();
    let authority = Arc::new(SnapshotAuthority::new(published.clone()));
    let sockets =
        Sockets { directory: options.socket_dir, ca: Arc::new(ca), authority, served: BTreeMap::new() };
    runtime.block_on(serve(published, sockets))
}

/// Creates a directory that only we may enter; one that exists is left as it is.
pub(crate) fn make_private_directory(path: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt;

    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("the directory {} cannot be created", path.display()))
}

async fn serve(published: Published, mut sockets: Sockets) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    let mut changes = published.subscribe();
    loop {
        sockets.follow(&nodes(&published.snapshot()));
        tokio::select! {
            () = signals.next() => break,
            changed = changes.changed() => changed.context("the configuration is not followed any more")?,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
    tracing::info!("stopping");
    tokio::select! {
        () = sockets.stop() => {}
        () = signals.next() => {}
    }
    Ok(())
}

/// Every node on which a pod runs.
fn nodes(snapshot: &Snapshot) -> BTreeSet<Arc<str>> {
    snapshot.workloads().filter_map(|workload| workload.node.clone()).collect()
}

/// The sockets that are served.
struct Sockets {
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
    /// Serves the sockets of these nodes and of no other.
    fn follow(&mut self, nodes: &BTreeSet<Arc<str>>) {
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

    async fn stop(&mut self) {
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
mod tests {
    use super::*;

    fn published(yaml: &str) -> (tempfile::TempDir, weft_control::directory::Handle) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("mesh.yaml"), yaml).unwrap();
        let handle = config::watch(&[dir.path().to_owned()], "", true).unwrap();
        (dir, handle)
    }

    const PODS: &str = r"
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
