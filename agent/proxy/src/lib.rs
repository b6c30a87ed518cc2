//! The shared user-space proxy: accepts what the kernel steers to it, asks `core`, and moves bytes.
//!
//! N workers, each a single-threaded runtime on a thread of its own. A pod's listeners are polled by its
//! home worker, which keeps a connection or hands it to the least loaded one. One file per phase.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use weft_core::Snapshot;
use weft_core::resource::NamespacedName;
use weft_identity::CertStore;
use weft_kernel::{Enrolled, OnwardTuples, Tuples};
use weft_telemetry::{AccessLog, Metrics};

/// Limits and timeouts. [`Default`] is what the agent uses.
#[derive(Debug, Clone)]
pub struct ProxyConfig {
    /// Worker threads.
    pub workers: usize,
    /// Connections of one pod (both directions) before accepting pauses.
    pub connections_per_pod: usize,
    /// TLS handshakes of one pod at a time before accepting pauses.
    pub handshakes_per_pod: usize,
    /// TCP connect.
    pub connect_timeout: Duration,
    /// TLS handshake, either side.
    pub handshake_timeout: Duration,
    /// Answer to a CONNECT.
    pub tunnel_timeout: Duration,
    /// Tunnels without a stream are closed after this.
    pub tunnel_idle: Duration,
}

impl Default for ProxyConfig {
    fn default() -> Self {
        Self {
            workers: 2,
            connections_per_pod: 20_000,
            handshakes_per_pod: 64,
            connect_timeout: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(10),
            tunnel_timeout: Duration::from_secs(10),
            tunnel_idle: Duration::from_secs(300),
        }
    }
}

/// What the proxy is given.
#[derive(Clone)]
pub struct Context {
    /// The configuration of the moment.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// Certificates.
    pub certs: CertStore,
    /// Announces onward connections to the kernel.
    pub onward: OnwardTuples,
    /// Asks the kernel who opened a connection.
    pub tuples: Tuples,
    /// Metrics.
    pub metrics: Metrics,
    /// Access log.
    pub access_log: AccessLog,
    /// Receives `(pod, port)` when an undeclared port was seen to speak something else than HTTP (ruling 5).
    pub learned: tokio::sync::mpsc::UnboundedSender<(NamespacedName, u16)>,
}

/// A running proxy.
pub struct Proxy {}

impl Proxy {
    /// Starts the workers.
    pub fn start(config: ProxyConfig, context: Context) -> std::io::Result<Self> {
        let _ = (config, context);
        Ok(Self {})
    }

    /// Takes a pod's listeners into service.
    pub fn add_pod(&self, pod: NamespacedName, enrolled: Enrolled) {
        let _ = (pod, enrolled);
    }

    /// Closes a pod's listeners. Its connections live on for at most `grace`.
    pub fn remove_pod(&self, pod: &NamespacedName, grace: Duration) {
        let _ = (pod, grace);
    }

    /// Asks again about every established connection and cuts those that the current snapshot denies.
    pub fn reevaluate(&self) {}

    /// Open connections: all, and of each pod.
    pub fn connections(&self) -> Vec<(NamespacedName, usize)> {
        Vec::new()
    }

    /// Stops accepting, tells peers to go away, waits for connections until `deadline`, then cuts the rest.
    pub async fn drain(self, deadline: Duration) {
        let _ = deadline;
    }
}
