//! What is known about the clusters of each client workload, shared by all workers (D-14).
//!
//! It outlives configurations: limits and ejections follow the names of clusters and the addresses of endpoints,
//! not the snapshot.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::time::Instant;
use weft_core::resource::NamespacedName;
use weft_core::resource::destination_rule::{HashAlgorithm, OutlierDetection, Warmup};
use weft_core::snapshot::Endpoint;
use weft_telemetry::{ClusterCounters, ClusterEvent};

use super::limits::{Counted, Gauge, Queue};
use super::outlier::{Ejected, Ejections, Outcome, Rows};
use super::table::Table;

/// Clusters that are kept before unused ones are looked for.
const UNSWEPT: usize = 256;

/// One endpoint of a cluster.
#[derive(Debug)]
pub(super) struct Host {
    /// Where it is.
    pub(super) addr: SocketAddr,
    /// Requests that it has not answered to the end.
    pub(super) active: Gauge,
    /// Connections to it, of all workers.
    pub(super) connections: Gauge,
    rows: Rows,
    ejected: AtomicBool,
    /// When it began to be chosen, in nanoseconds since the cluster's birth; [`AWAY`] while it may not be.
    since: AtomicU64,
}

/// No time at all.
const AWAY: u64 = u64::MAX;

impl Host {
    /// An endpoint without requests.
    pub(super) fn new(addr: SocketAddr) -> Arc<Self> {
        Arc::new(Self {
            addr,
            active: Gauge::default(),
            connections: Gauge::default(),
            rows: Rows::default(),
            ejected: AtomicBool::new(false),
            since: AtomicU64::new(AWAY),
        })
    }

    /// Whether it is out of the rotation.
    pub(super) fn is_ejected(&self) -> bool {
        self.ejected.load(Ordering::Relaxed)
    }
}

/// One cluster of one client workload.
#[derive(Debug)]
pub(super) struct ClusterState {
    /// Connections, open or being opened.
    pub(super) connections: Gauge,
    /// `maxConnections` as the newest request knows it: also connections that older requests made have to keep it.
    pub(super) limit: AtomicU32,
    requests: Gauge,
    pending: Gauge,
    retries: Gauge,
    /// Those who wait for a connection.
    pub(super) queue: Queue,
    /// Its counters.
    pub(super) counters: ClusterCounters,
    /// The turn of ROUND_ROBIN.
    turn: AtomicUsize,
    /// Endpoints that may be chosen.
    ready: AtomicUsize,
    /// Locked when the endpoints change.
    hosts: Mutex<HashMap<SocketAddr, Arc<Host>>>,
    /// Locked when an endpoint is ejected or returns.
    ejections: Mutex<Ejections>,
    /// Endpoints that are out, to look at without the lock.
    out: AtomicUsize,
    born: Instant,
    /// When the next endpoint returns, in nanoseconds since `born`.
    next_return: AtomicU64,
    /// When the youngest endpoint came, in nanoseconds since `born`.
    youngest: AtomicU64,
}

impl ClusterState {
    /// A cluster that nobody has used. `turn` is where ROUND_ROBIN begins.
    pub(super) fn new(counters: ClusterCounters, turn: usize) -> Arc<Self> {
        Arc::new(Self {
            connections: Gauge::default(),
            limit: AtomicU32::new(u32::MAX),
            requests: Gauge::default(),
            pending: Gauge::default(),
            retries: Gauge::default(),
            queue: Queue::default(),
            counters,
            turn: AtomicUsize::new(turn),
            ready: AtomicUsize::new(0),
            hosts: Mutex::default(),
            ejections: Mutex::default(),
            out: AtomicUsize::new(0),
            born: Instant::now(),
            next_return: AtomicU64::new(u64::MAX),
            youngest: AtomicU64::new(0),
        })
    }

    /// The number of what is counted.
    pub(super) fn gauge(&self, counted: Counted) -> &Gauge {
        match counted {
            Counted::Request => &self.requests,
            Counted::Pending => &self.pending,
            Counted::Retry => &self.retries,
        }
    }

    /// The next turn of ROUND_ROBIN.
    pub(super) fn next_turn(&self) -> usize {
        self.turn.fetch_add(1, Ordering::Relaxed)
    }

    fn ejections(&self) -> MutexGuard<'_, Ejections> {
        self.ejections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state of the endpoints that may be chosen; `all` are those of the cluster, sorted by address.
    pub(super) fn hosts(&self, ready: impl Iterator<Item = SocketAddr>, all: &[Endpoint]) -> Vec<Arc<Host>> {
        let exists = |addr: &SocketAddr| all.binary_search_by(|endpoint| endpoint.addr().cmp(addr)).is_ok();
        let mut known = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        let hosts: Vec<_> =
            ready.map(|addr| known.entry(addr).or_insert_with(|| Host::new(addr)).clone()).collect();
        known.retain(|addr, host| exists(addr) || Arc::strong_count(host) > 1);
        self.note_beginnings(&known, &hosts, all);
        drop(known);
        self.ready.store(hosts.len(), Ordering::Relaxed);
        if self.out.load(Ordering::Relaxed) > 0 {
            let mut ejections = self.ejections();
            let gone = ejections.retain(exists);
            (0..gone).for_each(|_| self.counters.returned());
            self.note_ejections(&ejections);
        }
        hosts
    }

    /// An endpoint that is ready anew begins anew, as it does where an endpoint that is not ready is none (D-9).
    fn note_beginnings(&self, known: &HashMap<SocketAddr, Arc<Host>>, ready: &[Arc<Host>], all: &[Endpoint]) {
        let away = all.iter().filter(|endpoint| !endpoint.ready);
        for host in away.filter_map(|endpoint| known.get(&endpoint.addr())) {
            host.since.store(AWAY, Ordering::Relaxed);
        }
        let now = u64::try_from(self.born.elapsed().as_nanos()).unwrap_or(AWAY - 1);
        for host in ready {
            let began = host.since.compare_exchange(AWAY, now, Ordering::Relaxed, Ordering::Relaxed);
            if began.is_ok() {
                self.youngest.fetch_max(now, Ordering::Relaxed);
            }
        }
    }

    /// Whether some endpoint has not been chosen from for as long as `warmup` takes.
    pub(super) fn is_warming(&self, warmup: &Warmup) -> bool {
        let youngest = Duration::from_nanos(self.youngest.load(Ordering::Relaxed));
        self.born.elapsed().saturating_sub(youngest) < warmup.duration
    }

    /// How long an endpoint has been among those to choose from.
    pub(super) fn age(&self, host: &Host, now: Instant) -> Duration {
        let since = Duration::from_nanos(host.since.load(Ordering::Relaxed));
        now.saturating_duration_since(self.born).saturating_sub(since)
    }

    /// Requests that are under way or wait.
    pub(super) fn outstanding(&self) -> u32 {
        self.requests.get().saturating_add(self.pending.get())
    }

    fn note_ejections(&self, ejections: &Ejections) {
        let since = |at: Instant| at.saturating_duration_since(self.born).as_nanos();
        let next = ejections.next_return().map_or(u128::from(u64::MAX), since);
        self.next_return.store(u64::try_from(next).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.out.store(ejections.active(), Ordering::Relaxed);
    }

    /// Whether any endpoint is out at `now`. Takes back those whose time is over.
    pub(super) fn any_ejected(&self, now: impl Fn() -> Instant) -> bool {
        if self.out.load(Ordering::Relaxed) == 0 {
            return false;
        }
        let now = now();
        let next = Duration::from_nanos(self.next_return.load(Ordering::Relaxed));
        if self.born.checked_add(next).is_some_and(|next| next <= now) {
            let mut ejections = self.ejections();
            for addr in ejections.returned(now) {
                self.counters.returned();
                self.set_ejected(&addr, false);
            }
            self.note_ejections(&ejections);
        }
        self.out.load(Ordering::Relaxed) > 0
    }

    fn set_ejected(&self, addr: &SocketAddr, ejected: bool) {
        let hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(host) = hosts.get(addr) {
            host.rows.clear();
            host.ejected.store(ejected, Ordering::Relaxed);
        }
    }

    /// Counts how a request to `host` ended, and ejects the endpoint where that completes a row.
    pub(super) fn record(&self, host: &Host, outcome: Outcome, policy: Option<&OutlierDetection>) {
        let Some(policy) = policy else { return };
        if !host.rows.record(outcome, policy) {
            return;
        }
        let mut ejections = self.ejections();
        match ejections.eject(host.addr, self.ready.load(Ordering::Relaxed), policy, Instant::now()) {
            Ejected::Until(_) => {
                host.rows.clear();
                host.ejected.store(true, Ordering::Relaxed);
                self.counters.ejected();
                self.note_ejections(&ejections);
            }
            Ejected::Refused => self.counters.count(ClusterEvent::EjectionOverflow),
            Ejected::Already => {}
        }
    }

    /// The same for an endpoint by its address.
    pub(super) fn record_at(&self, addr: &SocketAddr, outcome: Outcome, policy: Option<&OutlierDetection>) {
        let host = self.hosts.lock().unwrap_or_else(PoisonError::into_inner).get(addr).cloned();
        if let Some(host) = host {
            self.record(&host, outcome, policy);
        }
    }

    /// Endpoints that are out.
    pub(super) fn ejected(&self) -> usize {
        self.out.load(Ordering::Relaxed)
    }

    fn is_idle(&self) -> bool {
        self.out.load(Ordering::Relaxed) == 0
    }
}

impl Drop for ClusterState {
    fn drop(&mut self) {
        let out = self.ejections().active();
        (0..out).for_each(|_| self.counters.returned());
    }
}

type Clusters = HashMap<NamespacedName, HashMap<Arc<str>, Arc<ClusterState>>>;
/// The endpoints of a cluster by address, their family, the algorithm with its size.
type TableKey = (usize, bool, bool, u64);

/// Tables with the endpoints that they were made for.
type Tables = HashMap<TableKey, (Weak<[Endpoint]>, Weak<Table>)>;

/// All clusters of all client workloads.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// Locked when a worker meets a cluster for the first time; workers remember what they have met.
    clusters: Mutex<Registered>,
    /// Tables of consistent hashing: large, and the same for all clients and workers. Locked when one is wanted
    /// for the first time after the endpoints changed.
    tables: Mutex<Tables>,
}

#[derive(Debug, Default)]
struct Registered {
    clusters: Clusters,
    len: usize,
    sweep_at: usize,
}

impl State {
    fn registered(&self) -> MutexGuard<'_, Registered> {
        self.clusters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state of a cluster; `new` makes it.
    pub(super) fn cluster(
        &self,
        pod: &NamespacedName,
        name: &Arc<str>,
        new: impl FnOnce() -> Arc<ClusterState>,
    ) -> Arc<ClusterState> {
        let mut registered = self.registered();
        if let Some(state) = registered.clusters.get(pod).and_then(|of_pod| of_pod.get(name)) {
            return state.clone();
        }
        if registered.len >= registered.sweep_at {
            registered.sweep();
        }
        let state = new();
        registered.clusters.entry(pod.clone()).or_default().insert(name.clone(), state.clone());
        registered.len += 1;
        state
    }

    /// Forgets a pod that is gone.
    pub(super) fn forget(&self, pod: &NamespacedName) {
        let mut registered = self.registered();
        let of_pod = registered.clusters.remove(pod);
        registered.len -= of_pod.map_or(0, |of_pod| of_pod.len());
    }

    /// The hash table for `addresses`, which are the endpoints of one family that may be chosen.
    pub(super) fn table(
        &self,
        endpoints: &Arc<[Endpoint]>,
        ipv4: bool,
        algorithm: HashAlgorithm,
        addresses: &[SocketAddr],
    ) -> Arc<Table> {
        let (maglev, size) = match algorithm {
            HashAlgorithm::Ring { minimum_size } => (false, minimum_size),
            HashAlgorithm::Maglev { table_size } => (true, table_size),
        };
        let key = (endpoints.as_ptr().addr(), ipv4, maglev, size);
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, table)) = tables.get(&key)
            && of.upgrade().is_some_and(|of| Arc::ptr_eq(&of, endpoints))
            && let Some(table) = table.upgrade()
        {
            return table;
        }
        tables.retain(|_, (_, table)| table.strong_count() > 0);
        let table = Arc::new(Table::new(algorithm, addresses));
        tables.insert(key, (Arc::downgrade(endpoints), Arc::downgrade(&table)));
        table
    }
}

impl Registered {
    /// Lets go of clusters that no worker uses and in which nobody is ejected.
    fn sweep(&mut self) {
        self.clusters.retain(|_, of_pod| {
            of_pod.retain(|_, state| Arc::strong_count(state) > 1 || !state.is_idle());
            !of_pod.is_empty()
        });
        self.len = self.clusters.values().map(HashMap::len).sum();
        self.sweep_at = UNSWEPT.max(2 * self.len);
    }
}
