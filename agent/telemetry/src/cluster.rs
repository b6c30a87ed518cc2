//! Counters of one client workload's cluster under Envoy's names (M-9, D-14).

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use crate::families;
use crate::metrics::UNKNOWN;
use crate::scrape::{Family, ScrapeSink};
use crate::table::{Cells, Table};

/// What happened to a cluster; each counts the Envoy statistic that its text names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClusterEvent {
    /// `upstream_rq_total`: a request (or a try of it) was sent.
    Request,
    /// `upstream_rq_pending_total`: it had to wait for a connection.
    Pending,
    /// `upstream_rq_pending_overflow`: refused, because too many wait for a connection.
    PendingOverflow,
    /// `upstream_rq_active_overflow`: refused, because too many are outstanding.
    ActiveOverflow,
    /// `upstream_rq_retry`: a request is tried again.
    Retry,
    /// `upstream_rq_retry_overflow`: not tried again, because too many are.
    RetryOverflow,
    /// `upstream_rq_timeout`: the route's timeout passed.
    Timeout,
    /// `upstream_rq_per_try_timeout`: a try's own timeout passed.
    PerTryTimeout,
    /// `upstream_cx_total`: a connection was made.
    Connection,
    /// `upstream_cx_overflow`: a connection was wanted beyond the limit.
    ConnectionOverflow,
    /// `upstream_cx_connect_fail`: a connection could not be made.
    ConnectFailure,
    /// `ssl_connection_error`: TLS that a policy asks for did not come about (S-56).
    TlsFailure,
    /// `outlier_detection_ejections_overflow`: not ejected, because too many are.
    EjectionOverflow,
}

#[derive(Debug, Default)]
struct ClusterCells {
    requests: AtomicU64,
    pending: AtomicU64,
    pending_overflow: AtomicU64,
    active_overflow: AtomicU64,
    retry: AtomicU64,
    retry_overflow: AtomicU64,
    timeout: AtomicU64,
    per_try_timeout: AtomicU64,
    connections: AtomicU64,
    connection_overflow: AtomicU64,
    connect_failure: AtomicU64,
    tls_failure: AtomicU64,
    ejections: AtomicU64,
    ejection_overflow: AtomicU64,
    completed: AtomicU64,
    /// 1xx to 5xx.
    classes: [AtomicU64; 5],
    ejected_now: AtomicI64,
}

impl ClusterCells {
    fn counters(&self) -> [(&'static Family, &AtomicU64); 15] {
        [
            (&families::CLUSTER_REQUESTS, &self.requests),
            (&families::CLUSTER_PENDING, &self.pending),
            (&families::CLUSTER_PENDING_OVERFLOW, &self.pending_overflow),
            (&families::CLUSTER_ACTIVE_OVERFLOW, &self.active_overflow),
            (&families::CLUSTER_RETRY, &self.retry),
            (&families::CLUSTER_RETRY_OVERFLOW, &self.retry_overflow),
            (&families::CLUSTER_TIMEOUT, &self.timeout),
            (&families::CLUSTER_PER_TRY_TIMEOUT, &self.per_try_timeout),
            (&families::CLUSTER_CONNECTIONS, &self.connections),
            (&families::CLUSTER_CONNECTION_OVERFLOW, &self.connection_overflow),
            (&families::CLUSTER_CONNECT_FAILURE, &self.connect_failure),
            (&families::CLUSTER_TLS_FAILURE, &self.tls_failure),
            (&families::CLUSTER_EJECTIONS, &self.ejections),
            (&families::CLUSTER_EJECTION_OVERFLOW, &self.ejection_overflow),
            (&families::CLUSTER_COMPLETED, &self.completed),
        ]
    }

    fn of(&self, event: ClusterEvent) -> &AtomicU64 {
        match event {
            ClusterEvent::Request => &self.requests,
            ClusterEvent::Pending => &self.pending,
            ClusterEvent::PendingOverflow => &self.pending_overflow,
            ClusterEvent::ActiveOverflow => &self.active_overflow,
            ClusterEvent::Retry => &self.retry,
            ClusterEvent::RetryOverflow => &self.retry_overflow,
            ClusterEvent::Timeout => &self.timeout,
            ClusterEvent::PerTryTimeout => &self.per_try_timeout,
            ClusterEvent::Connection => &self.connections,
            ClusterEvent::ConnectionOverflow => &self.connection_overflow,
            ClusterEvent::ConnectFailure => &self.connect_failure,
            ClusterEvent::TlsFailure => &self.tls_failure,
            ClusterEvent::EjectionOverflow => &self.ejection_overflow,
        }
    }

    fn show(&self, (workload, cluster): &(Arc<str>, Arc<str>), sink: &mut ScrapeSink) {
        for (family, cell) in self.counters() {
            sink.set(family, &[cluster, workload], cell.load(Ordering::Relaxed) as f64);
        }
        for (class, cell) in ["1xx", "2xx", "3xx", "4xx", "5xx"].into_iter().zip(&self.classes) {
            let count = cell.load(Ordering::Relaxed);
            if count > 0 {
                sink.set(&families::CLUSTER_CLASSES, &[cluster, workload, class], count as f64);
            }
        }
        let ejected = self.ejected_now.load(Ordering::Relaxed);
        sink.set(&families::CLUSTER_EJECTED, &[cluster, workload], ejected as f64);
    }
}

impl Cells for ClusterCells {
    fn fingerprint(&self) -> u64 {
        let ejected = self.ejected_now.load(Ordering::Relaxed).unsigned_abs();
        self.counters().iter().fold(ejected, |sum, (_, cell)| sum.wrapping_add(cell.load(Ordering::Relaxed)))
    }
}

/// Counters of one client workload's cluster. Cheap to clone; counting is an atomic addition.
#[derive(Debug, Clone)]
pub struct ClusterCounters {
    cells: Arc<ClusterCells>,
}

impl ClusterCounters {
    /// Something happened.
    pub fn count(&self, event: ClusterEvent) {
        self.cells.of(event).fetch_add(1, Ordering::Relaxed);
    }

    /// `upstream_rq_completed` and `upstream_rq_2xx` and the like: an answer's head came.
    pub fn completed(&self, status: u16) {
        self.cells.completed.fetch_add(1, Ordering::Relaxed);
        let class = usize::from(status / 100).checked_sub(1).and_then(|at| self.cells.classes.get(at));
        class.inspect(|cell| {
            cell.fetch_add(1, Ordering::Relaxed);
        });
    }

    /// `outlier_detection_ejections_enforced_total`, `…_active`: an endpoint was ejected.
    pub fn ejected(&self) {
        self.cells.ejections.fetch_add(1, Ordering::Relaxed);
        self.cells.ejected_now.fetch_add(1, Ordering::Relaxed);
    }

    /// `outlier_detection_ejections_active`: an endpoint came back, or went altogether while it was ejected.
    pub fn returned(&self) {
        self.cells.ejected_now.fetch_sub(1, Ordering::Relaxed);
    }
}

/// All clusters of all client workloads.
#[derive(Debug)]
pub(crate) struct ClusterTable(Table<(Arc<str>, Arc<str>), ClusterCells>);

impl ClusterTable {
    pub(crate) fn new(limit: usize) -> Self {
        Self(Table::new(limit))
    }

    pub(crate) fn get(&self, workload: &str, cluster: &str) -> ClusterCounters {
        let rest = || (UNKNOWN.into(), UNKNOWN.into());
        ClusterCounters { cells: self.0.get(&(workload.into(), cluster.into()), rest) }
    }

    pub(crate) fn sweep(&self, now: std::time::Instant, idle: std::time::Duration) {
        self.0.sweep(now, idle);
    }

    pub(crate) fn overflow(&self) -> u64 {
        self.0.overflow()
    }

    pub(crate) fn collect(&self, sink: &mut ScrapeSink) {
        let none = ClusterCells::default();
        let mut all = none.counters().map(|(family, _)| family).into_iter();
        let others = [&families::CLUSTER_CLASSES, &families::CLUSTER_EJECTED];
        if !all.any(|family| sink.wants(family)) && !others.iter().any(|family| sink.wants(family)) {
            return;
        }
        self.0.each(|key, cells| cells.show(key, sink));
    }
}
