//! The metric families and their handles.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use weft_core::snapshot::WorkloadLabels;

use crate::cluster::{ClusterCounters, ClusterTable};
use crate::families;
use crate::http::{RequestLabels, RequestSeries, RequestTable};
use crate::scrape::{Family, ScrapeSink, Text};
use crate::table::{Cells, Single, Table};

/// The name of the cluster in `source_cluster` and `destination_cluster` (M-6).
const CLUSTER: &str = "Kubernetes";
/// M-4: what an absent value is called.
pub(crate) const UNKNOWN: &str = "unknown";
/// Reasons of refusals that no destination hears of.
pub const SOURCE_REFUSALS: &[&str] = &["forged_source"];

/// `reporter` label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reporter {
    /// Seen at the client.
    Source,
    /// Seen at the server.
    Destination,
}

impl Reporter {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }
}

/// `connection_security_policy` label (M-4: always `unknown` where the client reports).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SecurityPolicy {
    /// TLS carried the bytes.
    MutualTls,
    /// It did not.
    None,
    /// Not for this reporter to say.
    Unknown,
}

impl SecurityPolicy {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::MutualTls => "mutual_tls",
            Self::None => "none",
            Self::Unknown => UNKNOWN,
        }
    }
}

/// The labels of one TCP series (M-3); absent workloads become `unknown` (M-4).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TcpLabels {
    /// Who reports.
    pub reporter: Reporter,
    /// The client's workload.
    pub source: Option<Arc<WorkloadLabels>>,
    /// Its authenticated principal, `spiffe://…`; `unknown` without mTLS or kernel attestation.
    pub source_principal: Option<Arc<str>>,
    /// The server's workload.
    pub destination: Option<Arc<WorkloadLabels>>,
    /// Its principal.
    pub destination_principal: Option<Arc<str>>,
    /// `destination_service`: the Service's host, or what M-8 says.
    pub service: Arc<str>,
    /// `destination_service_name`.
    pub service_name: Arc<str>,
    /// `destination_service_namespace`.
    pub service_namespace: Arc<str>,
    /// `response_flags`.
    pub flags: &'static str,
    /// `connection_security_policy`.
    pub security: SecurityPolicy,
}

impl TcpLabels {
    /// The values of all labels, in the order of the families' label names.
    fn values(&self) -> Vec<&str> {
        let mut values = Vec::with_capacity(families::TCP_LABELS.len());
        values.push(self.reporter.as_str());
        values.extend(side(self.source.as_deref(), self.source_principal.as_deref()));
        values.extend(side(self.destination.as_deref(), self.destination_principal.as_deref()));
        values.extend([&*self.service, &*self.service_name, &*self.service_namespace].map(known));
        values.extend(["tcp", self.flags, self.security.as_str()]);
        values
    }

    /// Where connections are counted for which there is no room for a series of their own.
    fn overflow(&self) -> Self {
        let unknown: Arc<str> = UNKNOWN.into();
        Self {
            reporter: self.reporter,
            source: None,
            source_principal: None,
            destination: None,
            destination_principal: None,
            service: unknown.clone(),
            service_name: unknown.clone(),
            service_namespace: unknown,
            flags: self.flags,
            security: self.security,
        }
    }
}

/// The eight labels of one end.
pub(crate) fn side<'a>(labels: Option<&'a WorkloadLabels>, principal: Option<&'a str>) -> [&'a str; 8] {
    let principal = known(principal.unwrap_or(UNKNOWN));
    let Some(labels) = labels else {
        return [UNKNOWN, UNKNOWN, principal, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN];
    };
    [
        known(&labels.workload),
        known(&labels.namespace),
        principal,
        known(&labels.app),
        known(&labels.version),
        CLUSTER,
        known(&labels.canonical_service),
        known(&labels.canonical_revision),
    ]
}

/// M-4: an absent value is the word `unknown`, never the empty string.
pub(crate) fn known(value: &str) -> &str {
    if value.is_empty() { UNKNOWN } else { value }
}

#[derive(Debug, Default)]
struct TcpCells {
    opened: AtomicU64,
    closed: AtomicU64,
    failed: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
}

impl TcpCells {
    fn families(&self) -> [(&'static Family, &AtomicU64); 5] {
        [
            (&families::TCP_OPENED, &self.opened),
            (&families::TCP_CLOSED, &self.closed),
            (&families::TCP_FAILED, &self.failed),
            (&families::TCP_SENT, &self.sent),
            (&families::TCP_RECEIVED, &self.received),
        ]
    }
}

impl Cells for TcpCells {
    fn fingerprint(&self) -> u64 {
        // All of them only grow, so that their sum changes whenever one does.
        self.families().iter().fold(0, |sum, (_, cell)| sum.wrapping_add(cell.load(Ordering::Relaxed)))
    }
}

/// An increase of all counters of one series, for flows that are counted elsewhere (in the kernel).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TcpDelta {
    /// Connections opened.
    pub opened: u64,
    /// Connections closed.
    pub closed: u64,
    /// Connections failed.
    pub failed: u64,
    /// Bytes from server to client.
    pub sent: u64,
    /// Bytes from client to server.
    pub received: u64,
}

/// Counters of one series. Cheap to clone. `sent` and `received` are from the server's view (M-2):
/// received is what the client sent. A series that somebody holds is never evicted.
#[derive(Debug, Clone)]
pub struct TcpSeries {
    cells: Arc<TcpCells>,
}

impl TcpSeries {
    /// A connection was opened.
    pub fn opened(&self) {
        self.cells.opened.fetch_add(1, Ordering::Relaxed);
    }

    /// A connection was closed.
    pub fn closed(&self) {
        self.cells.closed.fetch_add(1, Ordering::Relaxed);
    }

    /// Bytes from client to server.
    pub fn add_received(&self, bytes: u64) {
        self.cells.received.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes from server to client.
    pub fn add_sent(&self, bytes: u64) {
        self.cells.sent.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Adds what was counted elsewhere.
    pub fn add(&self, delta: TcpDelta) {
        let TcpDelta { opened, closed, failed, sent, received } = delta;
        let cells = &self.cells;
        for (cell, by) in [
            (&cells.opened, opened),
            (&cells.closed, closed),
            (&cells.failed, failed),
            (&cells.sent, sent),
            (&cells.received, received),
        ] {
            cell.fetch_add(by, Ordering::Relaxed);
        }
    }
}

/// How many series there may be, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// TCP series; connections beyond are counted under labels that are all `unknown`.
    pub tcp_series: usize,
    /// Series of requests, each outcome on its own: every one of them shows three histograms; requests beyond are
    /// counted under labels that are all `unknown`.
    pub request_series: usize,
    /// Hosts that the mesh does not know and that one source workload may have series of; others are `unknown`.
    pub unknown_hosts: usize,
    /// Clusters of client workloads; what happens beyond is counted under `unknown`.
    pub clusters: usize,
    /// Series of each family that names policies.
    pub policy_series: usize,
    /// A series that has no open connection and has not changed for this long is dropped.
    pub idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            tcp_series: 20_000,
            request_series: 4_000,
            unknown_hosts: 100,
            clusters: 4_000,
            policy_series: 2_000,
            idle: Duration::from_secs(600),
        }
    }
}

type Callback = Box<dyn Fn(&mut ScrapeSink) + Send + Sync>;

/// Two label values: `reason` and `policy`, or `policy` and `outcome`.
type PolicyTable = Table<(Arc<str>, Arc<str>), Single>;

struct Inner {
    limits: Limits,
    tcp: Table<TcpLabels, TcpCells>,
    requests: RequestTable,
    clusters: ClusterTable,
    refused: PolicyTable,
    dry_run: PolicyTable,
    audit: Table<Arc<str>, Single>,
    policy_cut: AtomicU64,
    panics: AtomicU64,
    tunnels: AtomicI64,
    /// Written at start-up, read at scrapes.
    callbacks: Mutex<Vec<Callback>>,
}

/// All metrics of the agent. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    inner: Arc<Inner>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").field("limits", &self.inner.limits).finish_non_exhaustive()
    }
}

impl Metrics {
    /// No series yet, default limits.
    pub fn new() -> Self {
        Self::with_limits(Limits::default())
    }

    /// No series yet.
    pub fn with_limits(limits: Limits) -> Self {
        Self {
            inner: Arc::new(Inner {
                limits,
                tcp: Table::new(limits.tcp_series),
                requests: RequestTable::new(limits.request_series, limits.unknown_hosts),
                clusters: ClusterTable::new(limits.clusters),
                refused: Table::new(limits.policy_series),
                dry_run: Table::new(limits.policy_series),
                audit: Table::new(limits.policy_series),
                policy_cut: AtomicU64::new(0),
                panics: AtomicU64::new(0),
                tunnels: AtomicI64::new(0),
                callbacks: Mutex::default(),
            }),
        }
    }

    /// The handle of a TCP series; created on first use.
    pub fn tcp(&self, labels: &TcpLabels) -> TcpSeries {
        TcpSeries { cells: self.inner.tcp.get(labels, || labels.overflow()) }
    }

    /// The handle of a series of requests; created on first use. Look it up once per connection and keep it.
    pub fn http(&self, labels: &RequestLabels) -> RequestSeries {
        self.inner.requests.get(labels)
    }

    /// The same for a destination that the mesh does not know: its `destination_service` is the host as the client
    /// named it, or `unknown` where the source workload has named [`Limits::unknown_hosts`] others (M-8).
    pub fn http_to_unknown(&self, labels: RequestLabels, host: &str) -> RequestSeries {
        self.inner.requests.get_unknown(labels, host)
    }

    /// The counters of a client workload's cluster: `namespace/name` of the workload, `outbound|PORT|SUBSET|HOST`.
    pub fn cluster(&self, pod_workload: &str, cluster: &str) -> ClusterCounters {
        self.inner.clusters.get(pod_workload, cluster)
    }

    /// A connection failed or was refused: `istio_tcp_connections_failed_total` with the same labels, and
    /// `weft_refused_total{reason,policy}` for refusals: where a policy decided, or flags are `DENY` or `UO`.
    ///
    /// A refusal is counted once, though both sides may report the failure: by the destination, which
    /// enforces; by the source only what it refuses by itself ([`SOURCE_REFUSALS`]).
    pub fn failed(&self, labels: &TcpLabels, reason: &'static str, policy: Option<&str>) {
        self.tcp(labels).cells.failed.fetch_add(1, Ordering::Relaxed);
        let refused = policy.is_some() || matches!(labels.flags, "DENY" | "UO");
        let decides = match labels.reporter {
            Reporter::Destination => true,
            Reporter::Source => SOURCE_REFUSALS.contains(&reason),
        };
        if refused && decides {
            self.refused(reason, policy);
        }
    }

    /// A refusal of something for which there are no TCP labels (a tunnel, a handshake).
    pub fn refused(&self, reason: &str, policy: Option<&str>) {
        count(&self.inner.refused, reason, policy.unwrap_or(""), |reason| (reason, UNKNOWN.into()));
    }

    /// What a dry-run policy would have answered: `allow` or `deny`.
    pub fn dry_run(&self, policy: &str, outcome: &str) {
        count(&self.inner.dry_run, policy, outcome, |_| (UNKNOWN.into(), outcome.into()));
    }

    /// An AUDIT policy matched: `ns[NS]-policy[NAME]-rule[I]`.
    pub fn audited(&self, policy: &str) {
        let cells = self.inner.audit.get(&policy.into(), || UNKNOWN.into());
        cells.0.fetch_add(1, Ordering::Relaxed);
    }

    /// An established connection was cut by a change of policy.
    pub fn policy_cut(&self) {
        self.inner.policy_cut.fetch_add(1, Ordering::Relaxed);
    }

    /// A panic was confined.
    pub fn panicked(&self) {
        self.inner.panics.fetch_add(1, Ordering::Relaxed);
    }

    /// An HBONE tunnel was opened.
    pub fn tunnel_opened(&self) {
        self.inner.tunnels.fetch_add(1, Ordering::Relaxed);
    }

    /// An HBONE tunnel was closed.
    pub fn tunnel_closed(&self) {
        self.inner.tunnels.fetch_sub(1, Ordering::Relaxed);
    }

    /// Asks `callback` for samples at every scrape. It runs on the scraper's thread and may take milliseconds.
    pub fn on_scrape(&self, callback: Box<dyn Fn(&mut ScrapeSink) + Send + Sync>) {
        self.inner.callbacks.lock().unwrap_or_else(PoisonError::into_inner).push(callback);
    }

    /// Drops series that are idle ([`Limits::idle`]). Scrapes do it too; call it now and then where nobody
    /// scrapes.
    pub fn sweep(&self, now: Instant) {
        let idle = self.inner.limits.idle;
        self.inner.tcp.sweep(now, idle);
        self.inner.requests.sweep(now, idle);
        self.inner.clusters.sweep(now, idle);
        self.inner.refused.sweep(now, idle);
        self.inner.dry_run.sweep(now, idle);
        self.inner.audit.sweep(now, idle);
    }

    /// Drops TCP series for which `keep` says no (their workload is gone), except those with an open
    /// connection.
    pub fn retain(&self, keep: impl Fn(&TcpLabels) -> bool) {
        self.inner.tcp.retain(keep);
    }

    /// Text 0.0.4: families by name, samples by their labels. With all the series that there may be it has 250 MB;
    /// use [`Self::pieces`] where it need not be in memory as a whole.
    pub fn render(&self) -> String {
        self.pieces().collect()
    }

    /// What [`Self::render`] gives, some megabytes at a time. Each family is read when it is its turn.
    pub fn pieces(&self) -> Pieces {
        self.sweep(Instant::now());
        let mut asked = ScrapeSink::default();
        let callbacks = self.inner.callbacks.lock().unwrap_or_else(PoisonError::into_inner);
        callbacks.iter().for_each(|callback| callback(&mut asked));
        drop(callbacks);
        let mut own = ScrapeSink::names();
        self.collect(&mut own);
        let names: BTreeSet<_> = own.into_names().chain(asked.names_so_far()).collect();
        Pieces { metrics: self.clone(), asked, names: names.into_iter(), text: None }
    }

    fn collect(&self, sink: &mut ScrapeSink) {
        let inner = &self.inner;
        if TcpCells::default().families().iter().any(|(family, _)| sink.wants(family)) {
            self.collect_tcp(sink);
        }
        inner.requests.collect(sink);
        inner.clusters.collect(sink);
        collect_policies(&inner.refused, &families::REFUSED, sink);
        collect_policies(&inner.dry_run, &families::DRY_RUN, sink);
        inner.audit.each(|policy, cells| {
            sink.set(&families::AUDIT, &[policy], cells.0.load(Ordering::Relaxed) as f64);
        });
        let policies = inner.refused.overflow() + inner.dry_run.overflow() + inner.audit.overflow();
        let overflow =
            inner.tcp.overflow() + inner.requests.overflow() + inner.clusters.overflow() + policies;
        sink.set(&families::SERIES_OVERFLOW, &[], overflow as f64);
        sink.set(&families::POLICY_CUT, &[], inner.policy_cut.load(Ordering::Relaxed) as f64);
        sink.set(&families::PANICS, &[], inner.panics.load(Ordering::Relaxed) as f64);
        sink.set(&families::TUNNELS_OPEN, &[], inner.tunnels.load(Ordering::Relaxed) as f64);
    }

    fn collect_tcp(&self, sink: &mut ScrapeSink) {
        self.inner.tcp.each(|labels, cells| {
            let values = labels.values();
            let used = cells.opened.load(Ordering::Relaxed) > 0;
            for (family, cell) in cells.families() {
                let value = cell.load(Ordering::Relaxed);
                // A refused connection has no bytes; an opened one begins at zero, so that rates see its
                // first count.
                if value > 0 || (used && family.name != families::TCP_FAILED.name) {
                    sink.set(family, &values, value as f64);
                }
            }
        });
    }
}

/// The text of one scrape, in pieces.
#[derive(Debug)]
pub struct Pieces {
    metrics: Metrics,
    /// What callbacks told.
    asked: ScrapeSink,
    names: std::collections::btree_set::IntoIter<&'static str>,
    text: Option<Text>,
}

impl Iterator for Pieces {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        loop {
            if let Some(piece) = self.text.as_mut().and_then(Iterator::next) {
                return Some(piece);
            }
            let name = self.names.next()?;
            let mut sink = ScrapeSink::one(name);
            self.metrics.collect(&mut sink);
            sink.append(self.asked.take(name));
            self.text = sink.take(name).map(Text::new);
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

fn count(
    table: &PolicyTable,
    first: &str,
    second: &str,
    rest: impl FnOnce(Arc<str>) -> (Arc<str>, Arc<str>),
) {
    let key: (Arc<str>, Arc<str>) = (first.into(), second.into());
    let cells = table.get(&key, || rest(key.0.clone()));
    cells.0.fetch_add(1, Ordering::Relaxed);
}

fn collect_policies(table: &PolicyTable, family: &Family, sink: &mut ScrapeSink) {
    table.each(|(first, second), cells| {
        sink.set(family, &[first, second], cells.0.load(Ordering::Relaxed) as f64);
    });
}

#[cfg(test)]
#[path = "metrics_tests.rs"]
mod tests;
