//! The reconciler: makes kernel, proxy and certificates follow the configuration.
//!
//! One thread of its own, because entering namespaces and loading programs blocks. It is the only one that
//! changes the data path; others read it (metrics, status) between its steps.

mod denials;
mod pods;
mod replaced;
mod state;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use weft_control::writer::Published;
use weft_core::Snapshot;
use weft_core::kernel_view::{LearnedPorts, kernel_view};
use weft_core::resource::NamespacedName;
use weft_identity::CertStore;
use weft_kernel::{CleanupReport, Datapath};
use weft_proxy::Proxy;
use weft_telemetry::{AccessLog, Metrics};

pub(crate) use self::state::{NodeState, PodState};
use super::cgroups::Kubelet;
use super::direct_metrics::{Cuts, DirectAccounting};
use super::handover::{Keeper, Take};
use super::older::Older;
use super::places::Places;
use super::plan::{Failure, Pods, Stage, Wanted};
use crate::output;

/// How often a sign of life is given; the kernel believes in it for 30 s.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// How often the rules in the pods' namespaces are looked after when nothing reports a change: sysctls are not
/// reported.
const REASSERT: Duration = Duration::from_secs(10);
/// One tuple's lifetime after a revocation the kernel is asked again about flows that were being opened.
const SWEEP: Duration = Duration::from_millis(5_100);

/// Ports of one pod that may be learned to go direct; the others are proxied.
const LEARNED_PER_POD: usize = 64;

/// What wakes the reconciler.
#[derive(Debug)]
pub(crate) enum Event {
    /// A new snapshot.
    Config,
    /// A port was seen to speak something else than HTTP.
    Learned(NamespacedName, u16),
    /// Something changed in the network namespace of a pod.
    Namespaces,
    /// The network plugin told where pods are.
    Places,
    /// End for good: every pod leaves the mesh, and nothing stays pinned.
    Uninstall(Farewell),
    /// End: connections are being drained, pins stay.
    Stop,
    /// Another agent wants to take over.
    Successor(Take),
    /// The agent from which this one has taken over has ended.
    PredecessorEnded,
}

/// The data path, shared between the reconciler, which changes it step by step, and scrapes, which read it in
/// between. Connections never come near the lock.
pub(crate) type SharedDatapath = Arc<Mutex<Datapath>>;

/// The proxy, once there is one. The lock is held for the calls of reconciler, status and scrapes.
pub(crate) type SharedProxy = Arc<Mutex<Option<Arc<Proxy>>>>;

/// Locks, whatever happened to an earlier holder: both types are consistent between calls.
pub(crate) fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How the mesh is left for good.
#[derive(Debug)]
pub(crate) struct Farewell {
    /// Until when open connections may go on.
    pub(crate) until: Instant,
    /// Who wants to know how it went.
    pub(crate) done: tokio::sync::oneshot::Sender<CleanupReport>,
}

/// Everything that the reconciler drives.
pub(crate) struct Node {
    pub(crate) config: Published,
    pub(crate) datapath: SharedDatapath,
    pub(crate) proxy: SharedProxy,
    pub(crate) certs: CertStore,
    pub(crate) metrics: Metrics,
    pub(crate) access_log: AccessLog,
    pub(crate) direct: Arc<Mutex<DirectAccounting>>,
    pub(crate) cuts: Arc<Cuts>,
    /// Direct flows have events.
    pub(crate) flow_events: bool,
    pub(crate) state: Arc<ArcSwap<NodeState>>,
    /// Told of every new state.
    pub(crate) changed: tokio::sync::watch::Sender<()>,
    pub(crate) places: Arc<Mutex<Places>>,
    /// Who keeps listening sockets while this agent is started again.
    pub(crate) keeper: Keeper,
    /// Whose probes are let through, where it is looked for.
    pub(crate) kubelet: Option<Kubelet>,
    pub(crate) farewell: Option<Farewell>,
    pub(crate) pods: Pods,
    pub(crate) learned: LearnedPorts,
    pub(crate) older: Older,
    pub(crate) clocks: Clocks,
    /// Told once the first pass is over.
    pub(crate) began: Option<tokio::sync::oneshot::Sender<()>>,
    /// Held while events of direct flows are read.
    pub(crate) reading: Arc<Mutex<()>>,
    /// Who waits for this agent's place.
    pub(crate) successor: Option<Take>,
    /// A successor has failed: what it did is to be looked through.
    pub(crate) resumed: bool,
}

/// When what is due.
pub(crate) struct Clocks {
    heartbeat: Instant,
    reassert: Instant,
    sweep: Option<Instant>,
}

impl Clocks {
    pub(crate) fn new(now: Instant) -> Self {
        // Direct flows of before the start are asked about as well.
        Self { heartbeat: now, reassert: now + REASSERT, sweep: Some(now + SWEEP) }
    }
}

impl Node {
    /// Runs until told to stop.
    pub(crate) fn run(mut self, events: &Receiver<Event>) {
        self.reconcile();
        // Nobody may wait for it.
        let _ = self.began.take().map(|began| began.send(()));
        while !self.has_left() {
            match events.recv_timeout(self.next_wake().saturating_duration_since(Instant::now())) {
                Ok(first) => {
                    let (mut stop, mut changed) = (false, false);
                    for event in std::iter::once(first).chain(events.try_iter()) {
                        changed |= !matches!(event, Event::Namespaces);
                        stop |= self.take(event);
                    }
                    if self.successor.take().is_some_and(|take| self.make_room(&take, events)) {
                        return;
                    }
                    if stop {
                        return self.beat_until_closed(events);
                    }
                    if changed || std::mem::take(&mut self.resumed) {
                        self.reconcile();
                    }
                    // Events may follow one another faster than they are dealt with.
                    self.look_after();
                }
                Err(RecvTimeoutError::Timeout) => self.tick(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Whether it is the end.
    fn take(&mut self, event: Event) -> bool {
        match event {
            Event::Config | Event::Places => false,
            Event::Learned(pod, port) => {
                let (first, last) = ((pod.clone(), u16::MIN), (pod.clone(), u16::MAX));
                // The kernel's table of permissions is shared: one pod must not fill it with ports.
                if self.learned.0.range(first..=last).count() < LEARNED_PER_POD {
                    self.learned.0.insert((pod, port));
                }
                false
            }
            Event::Namespaces => {
                self.clocks.reassert = Instant::now();
                false
            }
            Event::Uninstall(farewell) => {
                self.farewell = Some(farewell);
                false
            }
            Event::Stop => true,
            Event::Successor(take) => {
                // When the node leaves the mesh there is nothing to take over.
                self.successor = self.farewell.is_none().then_some(take);
                false
            }
            Event::PredecessorEnded => {
                tracing::info!("the agent that was replaced has ended");
                if let Err(error) = lock(&self.datapath).predecessor_ended() {
                    tracing::warn!(error = %output::chain(&error), "the agent that was replaced cannot be forgotten");
                }
                false
            }
        }
    }

    /// Whether nothing is left to wait for at the end for good; then everything is removed.
    fn has_left(&mut self) -> bool {
        let over = |farewell: &mut Farewell| self.pods.0.is_empty() || farewell.until <= Instant::now();
        let Some(Farewell { done, .. }) = self.farewell.take_if(over) else { return false };
        for pod in self.pods.0.keys().cloned().collect::<Vec<_>>() {
            self.close(&pod, Duration::ZERO);
        }
        self.account();
        self.pods = Pods::default();
        let report = lock(&self.datapath).remove_everything();
        self.publish(&self.config.snapshot());
        // Whoever asked may have given up.
        let _ = done.send(report);
        true
    }

    /// While connections are drained the kernel may go on with direct flows, as policy has it then: no pod is
    /// enrolled or undone any more, but what is revoked ends.
    fn beat_until_closed(&mut self, events: &Receiver<Event>) {
        // What came together with the end.
        self.enforce();
        loop {
            match events.recv_timeout(HEARTBEAT) {
                Ok(first) => {
                    for event in std::iter::once(first).chain(events.try_iter()) {
                        self.take(event);
                    }
                    if self.successor.take().is_some_and(|take| self.make_room(&take, events)) {
                        return;
                    }
                    self.enforce();
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.heartbeat();
            self.sweep();
        }
    }

    /// Lets kernel and proxy follow the configuration for the pods that are enrolled.
    fn enforce(&mut self) {
        let snapshot = self.config.snapshot();
        self.apply(&snapshot);
        self.with_proxy(Proxy::reevaluate);
        self.publish(&snapshot);
    }

    fn next_wake(&self) -> Instant {
        let now = Instant::now();
        let farewell = self.farewell.as_ref().map(|farewell| farewell.until);
        let clocks = [Some(self.clocks.heartbeat), self.clocks.sweep, self.pods.due(now), farewell];
        clocks.into_iter().flatten().min().unwrap_or(now + HEARTBEAT)
    }

    fn tick(&mut self) {
        self.look_after();
        let now = Instant::now();
        if self.pods.due(now).is_some_and(|due| due <= now + Duration::from_millis(500)) {
            self.reconcile();
        }
    }

    /// What is to be done from time to time.
    fn look_after(&mut self) {
        let now = Instant::now();
        if self.clocks.heartbeat <= now {
            self.clocks.heartbeat = now + HEARTBEAT;
            self.heartbeat();
            self.follow_kubelet();
            self.look_for_holder();
            self.forget_vanished();
            self.metrics.sweep(now);
        }
        if self.clocks.reassert <= now {
            self.clocks.reassert = now + REASSERT;
            for pod in lock(&self.datapath).reassert() {
                tracing::warn!(%pod, "put back what something had removed from the pod's network namespace");
            }
        }
        self.sweep();
    }

    fn heartbeat(&mut self) {
        if let Err(error) = lock(&self.datapath).heartbeat() {
            tracing::error!(error = %output::chain(&error), "the kernel gets no sign of life: direct flows will end");
        }
    }

    /// A kubelet that was restarted is in another cgroup: its probes would be strangers.
    fn follow_kubelet(&mut self) {
        let Some(kubelet) = self.kubelet.as_mut().filter(|kubelet| !kubelet.is_unchanged()) else { return };
        let Some(cgroup) = kubelet.find() else { return };
        if let Err(error) = lock(&self.datapath).set_probe_cgroup(Some(&cgroup)) {
            tracing::error!(error = %output::chain(&error), "the kubelet's probes cannot be told from other connections");
        }
    }

    /// One pass: what is taken away first, then what is given.
    fn reconcile(&mut self) {
        let snapshot = self.config.snapshot();
        let wanted = match self.farewell {
            Some(_) => BTreeMap::new(),
            None => Wanted::all(&snapshot, &lock(&self.places)),
        };
        self.certs.want(identities(&snapshot, &wanted));
        self.learned.0.retain(|(pod, _)| snapshot.local_workload(pod).is_some());
        let open = self.open_connections();
        let plan = self.pods.plan(&wanted, Instant::now(), &|pod| open.get(pod).copied().unwrap_or(0));
        self.hand_over(&plan.replace);
        self.apply(&snapshot);
        self.take_out(&plan);
        self.with_proxy(Proxy::reevaluate);
        self.publish(&snapshot);
        if !plan.enrol.is_empty() {
            self.enrol(&plan.enrol);
            self.apply(&snapshot);
            self.publish(&snapshot);
        }
        self.cut_older(&snapshot);
        self.remove_leftovers();
        if !plan.leave.is_empty() || !plan.undo.is_empty() || !plan.replace.is_empty() {
            self.forget_series(&snapshot);
        }
    }

    fn open_connections(&self) -> BTreeMap<NamespacedName, usize> {
        lock(&self.proxy).as_ref().map(|proxy| proxy.connections().into_iter().collect()).unwrap_or_default()
    }

    fn with_proxy(&self, work: impl FnOnce(&Proxy)) {
        if let Some(proxy) = lock(&self.proxy).as_ref() {
            work(proxy);
        }
    }

    fn enrolled(&self) -> BTreeSet<NamespacedName> {
        let enrolled = self.pods.0.iter().filter(|(_, pod)| matches!(pod.stage, Stage::Enrolled));
        enrolled.map(|(key, _)| key.clone()).collect()
    }

    /// Direct flows have events exactly while the access log wants everything.
    fn follow_access_log(&mut self, wanted: bool) {
        if self.flow_events == wanted {
            return;
        }
        match lock(&self.datapath).set_flow_events(wanted) {
            Ok(()) => self.flow_events = wanted,
            Err(error) => {
                tracing::error!(error = %output::chain(&error), "the access log of direct flows stays as it was");
            }
        }
    }

    /// Writes the kernel's view, and cuts what it revoked and policy denies.
    fn apply(&mut self, snapshot: &Snapshot) {
        self.follow_access_log(snapshot.mesh().access_log);
        let view = kernel_view(snapshot, &self.enrolled(), &self.learned);
        let applied = lock(&self.datapath).apply(&view);
        let failure = match applied {
            Ok(applied) => {
                if applied.overflow > 0 {
                    tracing::warn!(
                        entries = applied.overflow,
                        "kernel maps are full: some flows pass the proxy"
                    );
                }
                if applied.removed > 0 {
                    self.clocks.sweep = Some(Instant::now() + SWEEP);
                }
                self.cut_denied(snapshot, &applied.revoked);
                None
            }
            Err(error) => {
                let failure = output::chain(&error);
                tracing::error!(error = failure, "the kernel maps could not be written");
                Some(failure)
            }
        };
        let mut state = NodeState::clone(&self.state.load());
        state.failure = failure;
        self.state.store(Arc::new(state));
    }

    /// Pods of an earlier agent that nobody wants any more.
    fn remove_leftovers(&mut self) {
        let leftovers = lock(&self.datapath).leftovers();
        for pod in leftovers {
            if !self.pods.0.contains_key(&pod) {
                tracing::info!(%pod, "was enrolled by an earlier agent and is not in the mesh any more");
                self.undo(&pod);
            }
        }
    }

    fn forget_vanished(&mut self) {
        let vanished = lock(&self.datapath).vanished();
        if vanished.is_empty() {
            return;
        }
        self.account();
        for pod in &vanished {
            tracing::info!(%pod, "its network namespace is gone");
            self.undo(pod);
            let gone = Failure::NotYet("its network namespace is gone".into());
            self.pods.enrolled(pod, Err(gone), Instant::now());
        }
        self.reconcile();
    }

    fn account(&self) {
        account(&self.datapath, &self.direct, &self.config.snapshot(), &self.metrics);
    }

    /// Drops the series of workloads that have no pod any more.
    fn forget_series(&self, snapshot: &Snapshot) {
        let alive: BTreeSet<_> =
            snapshot.workloads().map(|workload| workload.labels.clone()).map(name_of).collect();
        let lives = |labels: &Option<Arc<weft_core::snapshot::WorkloadLabels>>| {
            labels.as_ref().is_none_or(|labels| alive.contains(&name_of(labels.clone())))
        };
        self.metrics.retain(|labels| lives(&labels.source) && lives(&labels.destination));
    }
}

fn name_of(labels: Arc<weft_core::snapshot::WorkloadLabels>) -> (Arc<str>, Arc<str>) {
    (labels.namespace.clone(), labels.workload.clone())
}

/// Brings the kernel's counts of direct flows into the series.
pub(crate) fn account(
    datapath: &Mutex<Datapath>,
    direct: &Mutex<DirectAccounting>,
    snapshot: &Snapshot,
    metrics: &Metrics,
) {
    // Both locks at once: two accounts must not overtake each other.
    let mut direct = lock(direct);
    let mut datapath = lock(datapath);
    if datapath.is_retired() {
        return;
    }
    let totals = datapath.totals();
    match totals {
        Ok(totals) => direct.update(&totals, snapshot, metrics),
        Err(error) => {
            tracing::warn!(error = %output::chain(&error), "cannot read the counts of direct flows")
        }
    }
}

/// Identities of the pods that are (to be) enrolled.
fn identities(
    snapshot: &Snapshot,
    wanted: &BTreeMap<NamespacedName, Wanted>,
) -> BTreeSet<weft_core::Identity> {
    let enrol = wanted.iter().filter(|(_, wanted)| matches!(wanted, Wanted::Enrol(_)));
    enrol.filter_map(|(key, _)| Some((*snapshot.workload(key)?.identity).clone())).collect()
}
