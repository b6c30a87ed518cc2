//! Workers: threads with a single-threaded runtime each. What belongs to one worker is never locked.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::future::Future;
use std::hash::BuildHasher;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::ops::ControlFlow;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::FutureExt;
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use weft_core::Snapshot;
use weft_core::decide::http::RouteMemory;
use weft_core::hashing::FastMap;
use weft_core::resource::NamespacedName;
use weft_identity::CertStore;
use weft_kernel::{AttestedPeer, OnwardTuples, Tuples};
use weft_telemetry::{AccessLog, Metrics};

use crate::counters::Counters;
use crate::early::Early;
use crate::hbone::{Baggage, Pool};
use crate::http::headers::Texts;
use crate::http::inbound::Vouchers;
use crate::http::keys::Keys;
use crate::http::record::RequestCache;
use crate::http::upstream;
use crate::labels::SeriesCache;
use crate::learn::Learned;
use crate::listener::{self, Handed, Role};
use crate::pod::{Loads, Pod};
use crate::registry::{Cut, Registry};
use crate::{ProxyConfig, drain, hbone, inbound, outbound};

/// What all workers share.
pub(crate) struct Shared {
    pub(crate) config: ProxyConfig,
    pub(crate) context: Services,
    pub(crate) kernel: Box<dyn Kernel>,
    pub(crate) loads: Arc<Loads>,
    pub(crate) counters: Arc<Counters>,
    /// Open connections that are neither HTTP's nor tunnels.
    pub(crate) connections: Arc<AtomicUsize>,
    /// Limits, load and ejections of the clusters of each client workload (D-14).
    pub(crate) http: upstream::State,
    /// TLS that the mesh begins for applications.
    pub(crate) originations: upstream::Originations,
    pub(crate) workers: Vec<UnboundedSender<Command>>,
}

/// What the rest of the agent does for the workers.
pub(crate) struct Services {
    pub(crate) snapshot: Arc<ArcSwap<Snapshot>>,
    pub(crate) certs: CertStore,
    pub(crate) metrics: Metrics,
    pub(crate) access_log: AccessLog,
    pub(crate) learned: UnboundedSender<(NamespacedName, u16)>,
}

/// What the kernel's maps do for the workers; tests have no such maps.
pub(crate) trait Kernel: Send + Sync {
    /// See [`OnwardTuples::publish`].
    fn publish(&self, source: SocketAddr, destination: SocketAddr) -> io::Result<()>;
    /// See [`OnwardTuples::withdraw`].
    fn withdraw(&self, source: SocketAddr, destination: SocketAddr);
    /// See [`Tuples::attested`].
    fn attested(&self, source: SocketAddr, destination: SocketAddr) -> Option<AttestedPeer>;
}

impl Kernel for (OnwardTuples, Tuples) {
    fn publish(&self, source: SocketAddr, destination: SocketAddr) -> io::Result<()> {
        self.0.publish(source, destination)
    }

    fn withdraw(&self, source: SocketAddr, destination: SocketAddr) {
        self.0.withdraw(source, destination);
    }

    fn attested(&self, source: SocketAddr, destination: SocketAddr) -> Option<AttestedPeer> {
        self.1.attested(source, destination)
    }
}

/// What a worker is told.
pub(crate) enum Command {
    /// A pod is in service.
    AddPod(Arc<Pod>),
    /// For the home worker of a pod.
    Accept {
        /// The pod.
        pod: Arc<Pod>,
        /// Its listeners.
        listeners: Vec<(Role, Arc<TcpListener>)>,
    },
    /// A pod is out of service; its connections are cut after the grace.
    RemovePod {
        /// The pod.
        pod: Arc<Pod>,
        /// How long its connections may live on.
        grace: Duration,
    },
    /// A connection that another worker accepted.
    Serve(Handed),
    /// Ask again about everything that is open.
    Reevaluate,
    /// Accept nothing more, for any pod, and answer.
    StopAccepting {
        /// The answer.
        done: oneshot::Sender<()>,
    },
    /// Wait at most so long, cut the rest, then answer. Nothing is accepted any more.
    Drain {
        /// How long to wait.
        deadline: Duration,
        /// The answer.
        done: oneshot::Sender<()>,
    },
    /// End at once. The workers hold each other's channels, so these never close by themselves.
    Stop,
}

/// The state of one worker.
pub(crate) struct Worker {
    pub(crate) index: usize,
    pub(crate) shared: Arc<Shared>,
    pub(crate) live: Rc<Registry>,
    pub(crate) tunnels: Rc<Pool>,
    pub(crate) upstreams: upstream::Upstreams,
    pub(crate) series: SeriesCache,
    pub(crate) requests: RequestCache,
    /// Where requests went.
    pub(crate) routes: RefCell<RouteMemory>,
    pub(crate) keys: Keys,
    pub(crate) vouchers: Vouchers,
    /// Connections that wait for their first request.
    pub(crate) early: Early,
    /// Ids of requests.
    pub(crate) ids: Texts,
    pub(crate) learned: Rc<Learned>,
    pub(crate) baggage: Baggage,
    pods: RefCell<FastMap<NamespacedName, Arc<Pod>>>,
    accepting: RefCell<HashMap<NamespacedName, Vec<AbortHandle>>>,
    /// Open connections of this worker by endpoint.
    endpoints: RefCell<HashMap<SocketAddr, usize>>,
    random: Cell<u64>,
}

/// Starts one thread for each receiver.
pub(crate) fn start(shared: &Arc<Shared>, receivers: Vec<UnboundedReceiver<Command>>) -> io::Result<()> {
    for (index, receiver) in receivers.into_iter().enumerate() {
        let shared = shared.clone();
        std::thread::Builder::new().name(format!("weft-proxy-{index}")).spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
            match runtime {
                Ok(runtime) => runtime.block_on(Worker::new(index, shared).run(receiver)),
                Err(error) => tracing::error!(%error, index, "a proxy worker could not start its runtime"),
            }
        })?;
    }
    Ok(())
}

/// As many channels as there are workers.
pub(crate) fn channels(workers: usize) -> (Vec<UnboundedSender<Command>>, Vec<UnboundedReceiver<Command>>) {
    (0..workers).map(|_| unbounded_channel()).unzip()
}

impl Worker {
    /// A worker without pods.
    pub(crate) fn new(index: usize, shared: Arc<Shared>) -> Rc<Self> {
        Rc::new(Self {
            index,
            live: Rc::new(Registry::counting(shared.connections.clone())),
            tunnels: Rc::default(),
            upstreams: upstream::Upstreams::default(),
            series: SeriesCache::default(),
            requests: RequestCache::default(),
            routes: RefCell::default(),
            keys: Keys::default(),
            vouchers: Vouchers::new(shared.context.certs.subscribe()),
            early: Early::default(),
            ids: Texts::default(),
            learned: Rc::new(Learned::new(shared.context.learned.clone())),
            baggage: Baggage::default(),
            pods: RefCell::default(),
            accepting: RefCell::default(),
            endpoints: RefCell::default(),
            // Odd, so never the one state in which the generator stands still.
            random: Cell::new(RandomState::new().hash_one(index) | 1),
            shared,
        })
    }

    async fn run(self: Rc<Self>, mut commands: UnboundedReceiver<Command>) {
        while let Some(command) = commands.recv().await {
            if self.obey(command).is_break() {
                return;
            }
        }
    }

    fn obey(self: &Rc<Self>, command: Command) -> ControlFlow<()> {
        match command {
            Command::AddPod(pod) => self.add_pod(&pod),
            Command::Accept { pod, listeners } => self.accept(&pod, listeners),
            Command::RemovePod { pod, grace } => self.remove_pod(pod, grace),
            Command::Serve(handed) => self.serve(handed),
            Command::Reevaluate => {
                self.series.clear();
                self.requests.clear();
                self.routes.borrow_mut().clear();
                self.live.reevaluate(&self.snapshot());
            }
            Command::StopAccepting { done } => {
                let accepting = self.accepting.take();
                accepting.into_values().flatten().for_each(|task| task.abort());
                // The caller may have stopped waiting.
                let _ = done.send(());
            }
            Command::Drain { deadline, done } => {
                let worker = self.clone();
                self.spawn(async move {
                    drain::drain(&worker, None, deadline, Cut::Drain).await;
                    // As above.
                    let _ = done.send(());
                });
            }
            Command::Stop => return ControlFlow::Break(()),
        }
        ControlFlow::Continue(())
    }

    /// Also used by tests, which have no thread of their own.
    pub(crate) fn add_pod(&self, pod: &Arc<Pod>) {
        self.pods.borrow_mut().insert(pod.key.clone(), pod.clone());
    }

    /// Also used by tests.
    pub(crate) fn accept(self: &Rc<Self>, pod: &Arc<Pod>, listeners: Vec<(Role, Arc<TcpListener>)>) {
        let tasks = listeners.into_iter().map(|(role, listener)| {
            let accepting = listener::accept_loop(self.clone(), pod.clone(), role, listener);
            self.spawn(accepting)
        });
        self.accepting.borrow_mut().insert(pod.key.clone(), tasks.collect());
    }

    /// Also used by tests.
    pub(crate) fn remove_pod(self: &Rc<Self>, pod: Arc<Pod>, grace: Duration) {
        let current = self.pod(&pod.key).is_some_and(|current| Arc::ptr_eq(&current, &pod));
        if current {
            self.pods.borrow_mut().remove(&pod.key);
            self.accepting.borrow_mut().remove(&pod.key).into_iter().flatten().for_each(|task| task.abort());
        }
        self.tunnels.forget(&pod.key);
        self.upstreams.forget(self, &pod.key);
        self.learned.forget(&pod.key);
        let worker = self.clone();
        self.spawn(async move { drain::drain(&worker, Some(&pod), grace, Cut::PodRemoved).await });
    }

    /// Takes a connection over, wherever it was accepted.
    pub(crate) fn serve(self: &Rc<Self>, handed: Handed) {
        let Ok((accepted, role)) = handed.register() else { return };
        let worker = self.clone();
        match role {
            Role::Outbound => self.spawn(outbound::serve(worker, accepted)),
            Role::Inbound if accepted.local.port() == hbone::PORT => {
                self.spawn(hbone::server::serve(worker, accepted))
            }
            Role::Inbound => self.spawn(inbound::serve(worker, accepted)),
        };
    }

    /// Runs a task of one connection; a panic ends that connection only.
    pub(crate) fn spawn(self: &Rc<Self>, task: impl Future<Output = ()> + 'static) -> AbortHandle {
        let shared = self.shared.clone();
        let guarded = AssertUnwindSafe(task).catch_unwind().map(move |result| {
            if result.is_err() {
                shared.counters.panics.add();
            }
        });
        tokio::task::spawn_local(guarded).abort_handle()
    }

    /// The configuration of the moment.
    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        self.shared.context.snapshot.load_full()
    }

    /// A pod in service.
    pub(crate) fn pod(&self, key: &NamespacedName) -> Option<Arc<Pod>> {
        self.pods.borrow().get(key).cloned()
    }

    /// A random number: fast, not for secrets.
    pub(crate) fn random(&self) -> u64 {
        // xorshift64*, Marsaglia and Vigna.
        let mut state = self.random.get();
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        self.random.set(state);
        state.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Open connections of this worker to an endpoint.
    pub(crate) fn endpoint_load(&self, endpoint: &SocketAddr) -> usize {
        self.endpoints.borrow().get(endpoint).copied().unwrap_or(0)
    }

    /// Counts a connection to an endpoint until the guard is dropped.
    pub(crate) fn load_endpoint(self: &Rc<Self>, endpoint: SocketAddr) -> EndpointLoad {
        *self.endpoints.borrow_mut().entry(endpoint).or_default() += 1;
        EndpointLoad { worker: self.clone(), endpoint }
    }
}

/// One connection to an endpoint.
pub(crate) struct EndpointLoad {
    worker: Rc<Worker>,
    endpoint: SocketAddr,
}

impl Drop for EndpointLoad {
    fn drop(&mut self) {
        let mut endpoints = self.worker.endpoints.borrow_mut();
        if let Some(load) = endpoints.get_mut(&self.endpoint) {
            *load -= 1;
            if *load == 0 {
                endpoints.remove(&self.endpoint);
            }
        }
    }
}
