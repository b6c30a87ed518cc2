//! The shared user-space proxy: accepts what the kernel steers to it, asks `core`, and moves bytes.
//!
//! N workers, each a single-threaded runtime on a thread of its own. A pod's listeners are polled by its
//! home worker, which keeps a connection or hands it to the least loaded one. One file per phase.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod account;
mod buffers;
mod counters;
mod drain;
mod early;
#[cfg(test)]
mod foreign;
mod hbone;
mod hello;
mod http;
mod inbound;
mod labels;
mod learn;
mod lifetime;
mod listener;
mod net;
mod outbound;
mod pod;
mod ports;
mod refusal;
mod registry;
mod relay;
mod sniff;
#[cfg(any(test, feature = "testing"))]
#[cfg_attr(not(test), allow(dead_code, reason = "most of it is for tests of this crate"))]
#[allow(clippy::unwrap_used, reason = "failures are those of a test")]
mod testbed;
#[cfg(any(test, feature = "testing"))]
#[allow(clippy::unwrap_used, clippy::panic, reason = "failures are those of a measurement")]
pub mod testing;
mod tls;
mod unread;
mod worker;

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::oneshot;
use weft_core::Snapshot;
use weft_core::resource::NamespacedName;
use weft_identity::CertStore;
use weft_kernel::{Enrolled, Listeners, OnwardTuples, Tuples};
use weft_telemetry::{AccessLog, Metrics};

use listener::Role;
use pod::{Loads, Pod};
use worker::{Command, Services, Shared};

/// Limits and timeouts. [`Default`] is what the agent uses.
#[derive(Debug, Clone)]
pub struct ProxyConfig {
    /// Worker threads.
    pub workers: usize,
    /// Connections of one pod (both directions) before accepting pauses.
    pub connections_per_pod: usize,
    /// TLS handshakes of one pod at a time; further ones wait for a turn, and are refused when none comes.
    pub handshakes_per_pod: usize,
    /// Bytes that tunnels brought and the applications of one pod have not taken, before the pod's new streams
    /// are refused. What the windows of open streams still allow, 1 MiB for each, may come on top.
    pub unread_per_pod: usize,
    /// TCP connect.
    pub connect_timeout: Duration,
    /// TLS handshake, either side.
    pub handshake_timeout: Duration,
    /// Answer to a CONNECT. Longer than a TCP connect, so that the far agent can say that its application does
    /// not answer, instead of both giving up at once.
    pub tunnel_timeout: Duration,
    /// Tunnels without a stream are closed after this.
    pub tunnel_idle: Duration,
    /// Certificates that DestinationRules name (D-18) are read below this directory, each namespace's in one of its
    /// own; `None` reads none, and what asks for some is not connected.
    pub tls_files: Option<std::path::PathBuf>,
}

impl Default for ProxyConfig {
    fn default() -> Self {
        Self {
            workers: 2,
            connections_per_pod: 20_000,
            handshakes_per_pod: 64,
            unread_per_pod: 64 * 1024 * 1024,
            connect_timeout: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(10),
            tunnel_timeout: Duration::from_secs(15),
            tunnel_idle: Duration::from_secs(300),
            tls_files: None,
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

/// A running proxy. Dropping it ends the workers and everything that is open.
pub struct Proxy {
    shared: Arc<Shared>,
    pods: Mutex<BTreeMap<NamespacedName, Served>>,
    /// The next home worker.
    home: AtomicUsize,
}

/// A pod in service.
struct Served {
    pod: Arc<Pod>,
    /// Its home worker accepts from them.
    listeners: Vec<(Role, Arc<TcpListener>)>,
}

impl Proxy {
    /// Starts the workers.
    ///
    /// # Errors
    /// A thread could not be started.
    pub fn start(config: ProxyConfig, context: Context) -> std::io::Result<Self> {
        let count = config.workers.max(1);
        let (workers, receivers) = worker::channels(count);
        let loads = Arc::new(Loads::new(count));
        let Context { snapshot, certs, onward, tuples, metrics, access_log, learned } = context;
        let originations = http::upstream::Originations::new(config.tls_files.clone());
        let shared = Shared {
            config,
            context: Services { snapshot, certs, metrics, access_log, learned },
            kernel: Box::new((onward, tuples)),
            loads,
            counters: Arc::default(),
            connections: Arc::default(),
            http: http::upstream::State::default(),
            originations,
            workers,
        };
        let shared = Arc::new(shared);
        worker::start(&shared, receivers)?;
        Ok(Self { shared, pods: Mutex::default(), home: AtomicUsize::new(0) })
    }

    /// Takes the listeners of pods into service. Pods of the same names that are in service are replaced.
    ///
    /// All are known to every worker before anybody accepts for one of them: what waits in its queue may be for another.
    pub fn add_pods(&self, pods: Vec<(NamespacedName, Enrolled)>) {
        let mut added = Vec::with_capacity(pods.len());
        for (key, enrolled) in pods {
            self.remove_pod(&key, Duration::ZERO);
            let Enrolled { netns, ips, inbound, outbound } = enrolled;
            let pod = Pod::new(key.clone(), netns, &self.shared.config).with_ips(ips);
            let pod = Arc::new(pod.with_counters(self.shared.counters.clone()));
            self.tell_all(|_| Command::AddPod(pod.clone()));
            let inbound = inbound.into_iter().map(|listener| (Role::Inbound, Arc::new(listener)));
            let outbound = outbound.into_iter().map(|listener| (Role::Outbound, Arc::new(listener)));
            added.push((key, Served { pod, listeners: inbound.chain(outbound).collect() }));
        }
        for (key, served) in added {
            let home = self.home.fetch_add(1, Ordering::Relaxed) % self.shared.workers.len();
            let (pod, listeners) = (served.pod.clone(), served.listeners.clone());
            if let Some(worker) = self.shared.workers.get(home) {
                // A worker that has ended has nothing to be told.
                let _ = worker.send(Command::Accept { pod, listeners });
            }
            self.pods().insert(key, served);
        }
    }

    /// The listeners of all pods, for another process that is to accept from them as well, or instead.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn listeners(&self) -> std::io::Result<Vec<(NamespacedName, Listeners)>> {
        let pods = self.pods();
        pods.iter().map(|(key, served)| Ok((key.clone(), served.share()?))).collect()
    }

    /// Closes a pod's listeners. Its connections live on for at most `grace`.
    pub fn remove_pod(&self, pod: &NamespacedName, grace: Duration) {
        if let Some(Served { pod, .. }) = self.pods().remove(pod) {
            self.tell_all(|_| Command::RemovePod { pod: pod.clone(), grace });
        }
    }

    /// Asks again about every established connection and cuts those that the current snapshot denies.
    pub fn reevaluate(&self) {
        self.tell_all(|_| Command::Reevaluate);
    }

    /// Open connections of each pod, sorted by name. A tunnel counts as one, and so does each stream in it.
    pub fn connections(&self) -> Vec<(NamespacedName, usize)> {
        self.pods().iter().map(|(key, served)| (key.clone(), served.pod.connections())).collect()
    }

    /// Counts of things that should not happen: panics (each stayed in its connection), connections with a
    /// forged source, loops, refusals for want of room or of descriptors.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        self.shared.counters.all().to_vec()
    }

    /// Whether every open connection can be told to end without harm: tunnels and HTTP can, others would be cut.
    pub fn is_quiet(&self) -> bool {
        self.shared.connections.load(Ordering::Relaxed) == 0
    }

    /// Accepts nothing any more. What was accepted is served.
    pub async fn stop_accepting(&self) {
        self.pods().values_mut().for_each(|served| served.listeners.clear());
        self.all(|done| Command::StopAccepting { done }).await;
    }

    /// Stops accepting, tells peers to go away, waits for connections until `deadline`, then cuts the rest.
    /// Meanwhile [`reevaluate`](Self::reevaluate) still ends what policy revokes.
    pub async fn drain(&self, deadline: Duration) {
        // One that accepts gives connections to others, also to those that have nothing open any more.
        self.stop_accepting().await;
        self.all(|done| Command::Drain { deadline, done }).await;
    }

    /// Tells all workers something and waits for their answers.
    async fn all(&self, mut command: impl FnMut(oneshot::Sender<()>) -> Command) {
        let mut waiting = Vec::new();
        self.tell_all(|_| {
            let (done, over) = oneshot::channel();
            waiting.push(over);
            command(done)
        });
        for over in waiting {
            // A worker that has ended already has nothing left to do.
            let _ = over.await;
        }
    }

    fn pods(&self) -> MutexGuard<'_, BTreeMap<NamespacedName, Served>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell_all(&self, mut command: impl FnMut(usize) -> Command) {
        for (index, worker) in self.shared.workers.iter().enumerate() {
            // A worker that has ended has nothing to be told.
            let _ = worker.send(command(index));
        }
    }
}

impl Served {
    fn share(&self) -> std::io::Result<Listeners> {
        let mut shared = Listeners::default();
        for (role, listener) in &self.listeners {
            let listener = listener.try_clone()?;
            match role {
                Role::Inbound => shared.inbound.push(listener),
                Role::Outbound => shared.outbound.push(listener),
            }
        }
        Ok(shared)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.tell_all(|_| Command::Stop);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testbed::{Bed, name, run};

    #[test]
    fn all_pods_are_known_everywhere_before_anybody_accepts() {
        run(async {
            let bed = Bed::new("a");
            let (proxy, mut told) = bed.proxy(2);
            let pod = |pod: &str| {
                let netns = bed.client.netns.clone();
                let listener = TcpListener::bind("127.0.0.1:0").unwrap();
                let enrolled =
                    Enrolled { netns, ips: Vec::new(), inbound: vec![listener], outbound: Vec::new() };
                (name(pod), enrolled)
            };
            proxy.add_pods(vec![pod("one"), pod("two"), pod("three")]);
            let mut accepting = 0;
            for told in &mut told {
                let commands: Vec<_> = std::iter::from_fn(|| told.try_recv().ok()).collect();
                let (known, accept) = commands.split_at(3);
                assert!(known.iter().all(|command| matches!(command, Command::AddPod(_))));
                assert!(accept.iter().all(|command| matches!(command, Command::Accept { .. })));
                accepting += accept.len();
            }
            assert_eq!((accepting, proxy.listeners().unwrap().len()), (3, 3));
        });
    }
}
