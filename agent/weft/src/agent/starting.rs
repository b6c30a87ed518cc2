//! Starts what serves the pods: the proxy, the reconciler, and the threads that tell it things.

use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::oneshot;
use weft_control::writer::Published;
use weft_core::kernel_view::LearnedPorts;
use weft_core::resource::NamespacedName;
use weft_kernel::{FlowEvents, NamespaceChanges};
use weft_proxy::{Context, Proxy, ProxyConfig};
use weft_telemetry::AccessLog;

use super::Agent;
use super::admin::Facts;
use super::direct_metrics::{self, Cuts, DirectAccounting};
use super::node::{Clocks, Event, Node, SharedDatapath, lock};
use super::older::Older;
use super::outside::Shared;
use super::plan::Pods;

/// The reconciler, as the rest of the agent sees it.
pub(super) struct Running {
    pub(super) events: Sender<Event>,
    /// Told once its first pass is over.
    pub(super) began: Option<oneshot::Receiver<()>>,
    ended: oneshot::Receiver<()>,
}

/// One pod may use half of the descriptors (a connection has two), so that it cannot starve the others.
fn connections_per_pod() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(1 << 20);
    usize::try_from(limit / 4).unwrap_or(usize::MAX).clamp(1024, ProxyConfig::default().connections_per_pod)
}

impl Agent {
    /// Starts proxy and reconciler.
    pub(super) fn start(
        &self,
        datapath: SharedDatapath,
        facts: &Facts,
        access_log: &AccessLog,
        direct: Arc<Mutex<DirectAccounting>>,
        shared: Shared,
    ) -> anyhow::Result<Running> {
        let (learned, learning) = tokio::sync::mpsc::unbounded_channel();
        let (onward, tuples, changes) = {
            let datapath = lock(&datapath);
            (datapath.onward(), datapath.tuples(), datapath.changes())
        };
        let context = Context {
            snapshot: facts.config.cell().clone(),
            certs: facts.certs.clone(),
            onward,
            tuples,
            metrics: self.metrics.clone(),
            access_log: access_log.clone(),
            learned,
        };
        let settings = ProxyConfig {
            workers: self.options.workers(),
            connections_per_pod: connections_per_pod(),
            tls_files: self.options.tls_files.clone(),
            ..ProxyConfig::default()
        };
        let proxy = Proxy::start(settings, context).context("the proxy cannot be started")?;
        *lock(&facts.proxy) = Some(Arc::new(proxy));
        let flow_events = lock(&datapath).take_events().context("events of direct flows cannot be read")?;
        let (cuts, reading) = (Arc::new(Cuts::default()), Arc::default());
        if let Some(flow_events) = flow_events {
            let (config, cuts, access_log) = (facts.config.clone(), Arc::clone(&cuts), access_log.clone());
            let reading = Arc::clone(&reading);
            let work = move || log_direct_flows(flow_events, &reading, &config, (&cuts, &access_log));
            std::thread::Builder::new().name("flow-log".into()).spawn(work)?;
        }
        let (began, beginning) = oneshot::channel();
        let node = Node {
            config: facts.config.clone(),
            datapath,
            proxy: facts.proxy.clone(),
            certs: facts.certs.clone(),
            metrics: self.metrics.clone(),
            access_log: access_log.clone(),
            direct,
            cuts,
            flow_events: false,
            state: facts.state.clone(),
            changed: shared.changed,
            places: shared.places,
            kubelet: shared.kubelet,
            keeper: shared.keeper,
            farewell: None,
            pods: Pods::default(),
            learned: LearnedPorts::default(),
            older: Older::default(),
            clocks: Clocks::new(Instant::now()),
            began: Some(began),
            reading,
            successor: None,
            resumed: false,
        };
        let (events, received) = channel();
        let (alive, ended) = oneshot::channel();
        std::thread::Builder::new().name("node".into()).spawn(move || {
            // Dropped when the thread ends, however that comes about.
            let _alive: oneshot::Sender<()> = alive;
            node.run(&received);
        })?;
        tokio::spawn(forward_learned(learning, events.clone()));
        watch_namespaces(changes, events.clone())?;
        Ok(Running { events, began: Some(beginning), ended })
    }
}

async fn forward_learned(mut learning: UnboundedReceiver<(NamespacedName, u16)>, reconciler: Sender<Event>) {
    while let Some((pod, port)) = learning.recv().await {
        tracing::debug!(%pod, port, "an undeclared port does not speak HTTP: it may go direct");
        if reconciler.send(Event::Learned(pod, port)).is_err() {
            return;
        }
    }
}

/// Tells the reconciler of changes in pods' namespaces, on a thread of its own that ends with the process.
fn watch_namespaces(changes: NamespaceChanges, reconciler: Sender<Event>) -> std::io::Result<()> {
    /// A pod that takes its rules out again and again occupies no more of the agent than this allows.
    const PAUSE: Duration = Duration::from_millis(50);
    let watch = move || {
        while changes.wait().is_ok() && reconciler.send(Event::Namespaces).is_ok() {
            std::thread::sleep(PAUSE);
        }
    };
    std::thread::Builder::new().name("namespaces".into()).spawn(watch).map(drop)
}

/// Writes the access log of direct flows, on a thread of its own that ends with the process.
/// `reading` is held by whoever does not want it to read.
fn log_direct_flows(
    mut flow_events: FlowEvents,
    reading: &Mutex<()>,
    config: &Published,
    (cuts, access_log): (&Cuts, &AccessLog),
) {
    use rustix::event::{PollFd, PollFlags, poll};

    loop {
        let polled = poll(&mut [PollFd::new(&flow_events, PollFlags::IN)], None);
        match polled {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return tracing::error!(%error, "direct flows are not in the access log any more"),
        }
        let _reading = lock(reading);
        let snapshot = config.snapshot();
        while let Some(event) = flow_events.next() {
            direct_metrics::log_event(&event, &snapshot, cuts, access_log);
        }
    }
}

/// Waits for the reconciler's end; for ever, where there is none.
pub(super) async fn ended(running: Option<&mut Running>) {
    match running {
        Some(running) => drop((&mut running.ended).await),
        None => std::future::pending().await,
    }
}
