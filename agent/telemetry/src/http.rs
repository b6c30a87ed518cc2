//! Series of HTTP and gRPC requests (M-1, M-3).
//!
//! A series is looked up by everything that is known before the answer ([`RequestLabels`]); what the answer adds
//! (status, gRPC status, flags) chooses a set of cells within it. Both are bounded.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use weft_core::snapshot::WorkloadLabels;

use crate::families;
use crate::metrics::{Reporter, SecurityPolicy, UNKNOWN, known, side};
use crate::scrape::{Family, ScrapeSink};
use crate::table::{Cells, Table};
use crate::unknown_hosts::{self, UnknownHosts};

/// Upper bounds of the histograms in thousandths of their unit, `+Inf` left out: Envoy's, and so Istio's, 20 buckets.
const BOUNDS: [u64; 19] = [
    500,
    1_000,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    300_000_000,
    600_000_000,
    1_800_000_000,
    3_600_000_000,
];
/// Different answers that are told apart within one series.
const OUTCOMES_PER_SERIES: usize = 32;

/// `request_protocol` label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RequestProtocol {
    /// Any request that is not gRPC.
    Http,
    /// `content-type: application/grpc`.
    Grpc,
}

impl RequestProtocol {
    fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Grpc => "grpc",
        }
    }
}

/// What is known of a request before it is answered (M-3); absent workloads become `unknown` (M-4).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RequestLabels {
    /// Who reports. Where the agent sees both ends it reports for both (M-7).
    pub reporter: Reporter,
    /// The client's workload.
    pub source: Option<Arc<WorkloadLabels>>,
    /// Its authenticated principal, `spiffe://…`.
    pub source_principal: Option<Arc<str>>,
    /// The server's workload; `None` for requests that never arrived (K-2).
    pub destination: Option<Arc<WorkloadLabels>>,
    /// Its principal.
    pub destination_principal: Option<Arc<str>>,
    /// `destination_service`: the Service's host, or what M-8 says.
    pub service: Arc<str>,
    /// `destination_service_name`.
    pub service_name: Arc<str>,
    /// `destination_service_namespace`.
    pub service_namespace: Arc<str>,
    /// `request_protocol`.
    pub protocol: RequestProtocol,
    /// `connection_security_policy`.
    pub security: SecurityPolicy,
}

impl RequestLabels {
    fn values<'a>(&'a self, outcome: &'a OutcomeText) -> Vec<&'a str> {
        let mut values = Vec::with_capacity(families::REQUEST_LABELS.len());
        values.push(self.reporter.as_str());
        values.extend(side(self.source.as_deref(), self.source_principal.as_deref()));
        values.extend(side(self.destination.as_deref(), self.destination_principal.as_deref()));
        values.extend([&*self.service, &*self.service_name, &*self.service_namespace].map(known));
        values.extend([self.protocol.as_str(), &outcome.status, &outcome.grpc_status, outcome.flags]);
        values.push(self.security.as_str());
        values
    }

    /// Where requests are counted for which there is no room for a series of their own.
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
            protocol: self.protocol,
            security: SecurityPolicy::Unknown,
        }
    }
}

/// One request that is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestSample {
    /// `response_code`; 0 where the client got no answer (M-4).
    pub status: u16,
    /// `grpc_response_status`; `None` where the request was not gRPC.
    pub grpc_status: Option<u8>,
    /// `response_flags` (H-16); `-` for none.
    pub flags: &'static str,
    /// From the request's first byte to the answer's last one.
    pub duration: Duration,
    /// Size of the request, headers and body.
    pub request_bytes: u64,
    /// Size of the answer, headers and body.
    pub response_bytes: u64,
    /// gRPC messages from the client.
    pub request_messages: u64,
    /// gRPC messages to the client.
    pub response_messages: u64,
}

/// How a request ended, as far as labels tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Outcome {
    /// `None` where outcomes are too many to be told apart.
    status: Option<u16>,
    grpc_status: Option<u8>,
    flags: &'static str,
}

impl Outcome {
    /// All outcomes for which there is no room.
    const REST: Self = Self { status: None, grpc_status: None, flags: "-" };

    fn text(self) -> OutcomeText {
        OutcomeText {
            status: self.status.map_or_else(|| UNKNOWN.to_owned(), |status| status.to_string()),
            // Istio leaves the label empty where the request is not gRPC.
            grpc_status: self.grpc_status.map(|status| status.to_string()).unwrap_or_default(),
            flags: self.flags,
        }
    }
}

struct OutcomeText {
    status: String,
    grpc_status: String,
    flags: &'static str,
}

#[derive(Debug, Default)]
struct Histogram {
    /// Not cumulative; the last one is `+Inf`.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    /// In thousandths.
    sum: AtomicU64,
}

impl Histogram {
    fn observe(&self, thousandths: u64) {
        let at = BOUNDS.partition_point(|bound| *bound < thousandths);
        if let Some(bucket) = self.buckets.get(at) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.sum.fetch_add(thousandths, Ordering::Relaxed);
    }

    fn count(&self) -> u64 {
        self.buckets.iter().fold(0, |sum, bucket| sum.wrapping_add(bucket.load(Ordering::Relaxed)))
    }

    fn show(&self, family: &Family, values: &[&str], sink: &mut ScrapeSink) {
        if !sink.wants(family) {
            return;
        }
        let mut count = 0;
        let bounds = BOUNDS.iter().map(|bound| *bound as f64 / 1000.0).chain([f64::INFINITY]);
        let buckets = bounds.zip(&self.buckets).map(|(bound, bucket)| {
            count += bucket.load(Ordering::Relaxed);
            (bound, count)
        });
        let sum = self.sum.load(Ordering::Relaxed) as f64 / 1000.0;
        sink.histogram(family, values, buckets, sum);
    }
}

#[derive(Debug, Default)]
struct RequestCells {
    /// Microseconds; its count is that of requests.
    duration: Histogram,
    request_bytes: Histogram,
    response_bytes: Histogram,
    request_messages: AtomicU64,
    response_messages: AtomicU64,
}

impl RequestCells {
    fn add(&self, sample: &RequestSample) {
        self.duration.observe(u64::try_from(sample.duration.as_micros()).unwrap_or(u64::MAX));
        self.request_bytes.observe(sample.request_bytes.saturating_mul(1000));
        self.response_bytes.observe(sample.response_bytes.saturating_mul(1000));
        if sample.request_messages > 0 {
            self.request_messages.fetch_add(sample.request_messages, Ordering::Relaxed);
        }
        if sample.response_messages > 0 {
            self.response_messages.fetch_add(sample.response_messages, Ordering::Relaxed);
        }
    }

    fn show(&self, labels: &RequestLabels, outcome: Outcome, sink: &mut ScrapeSink) {
        let text = outcome.text();
        let values = labels.values(&text);
        sink.set(&families::REQUESTS, &values, self.duration.count() as f64);
        self.duration.show(&families::REQUEST_DURATION, &values, sink);
        self.request_bytes.show(&families::REQUEST_BYTES, &values, sink);
        self.response_bytes.show(&families::RESPONSE_BYTES, &values, sink);
        match labels.protocol {
            RequestProtocol::Http => {}
            RequestProtocol::Grpc => {
                let count = |cell: &AtomicU64| cell.load(Ordering::Relaxed) as f64;
                sink.set(&families::REQUEST_MESSAGES, &values, count(&self.request_messages));
                sink.set(&families::RESPONSE_MESSAGES, &values, count(&self.response_messages));
            }
        }
    }
}

/// The cells of one label set by outcome.
///
/// The lock is taken for writing when an outcome is new and for reading by each request, which then scans a few
/// entries and adds; outcomes cannot be known beforehand, so a snapshot could not carry them.
#[derive(Debug, Default)]
pub(crate) struct Outcomes(RwLock<Vec<(Outcome, Box<RequestCells>)>>);

impl Outcomes {
    fn len(&self) -> usize {
        self.0.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Adds to the cells of an outcome that is known already.
    fn add(&self, outcome: Outcome, sample: &RequestSample) -> bool {
        let cells = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let found = cells.iter().find(|(known, _)| *known == outcome);
        found.inspect(|(_, cells)| cells.add(sample)).is_some()
    }

    /// Makes cells for an outcome, unless another thread just did; whether it was new.
    fn create(&self, outcome: Outcome) -> bool {
        let mut cells = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let new = cells.iter().all(|(known, _)| *known != outcome);
        if new {
            cells.push((outcome, Box::default()));
        }
        new
    }
}

impl Cells for Outcomes {
    fn fingerprint(&self) -> u64 {
        let cells = self.0.read().unwrap_or_else(PoisonError::into_inner);
        cells.iter().fold(0, |sum, (_, cells)| sum.wrapping_add(cells.duration.count()))
    }
}

/// How many sets of cells there are, and how many there may be.
#[derive(Debug)]
struct Budget {
    limit: usize,
    used: AtomicUsize,
    overflow: AtomicU64,
}

/// Counters of one series of requests, of whatever outcome. Cheap to clone; a request costs a shared lock and
/// some atomic additions. A series that somebody holds is never evicted.
#[derive(Debug, Clone)]
pub struct RequestSeries {
    outcomes: Arc<Outcomes>,
    rest: Arc<Outcomes>,
    budget: Arc<Budget>,
}

impl RequestSeries {
    /// Counts one request.
    pub fn record(&self, sample: &RequestSample) {
        let outcome =
            Outcome { status: Some(sample.status), grpc_status: sample.grpc_status, flags: sample.flags };
        if self.outcomes.add(outcome, sample) {
            return;
        }
        let budget = &self.budget;
        let room = budget.used.load(Ordering::Relaxed) < budget.limit;
        if room && self.outcomes.len() < OUTCOMES_PER_SERIES {
            if self.outcomes.create(outcome) {
                budget.used.fetch_add(1, Ordering::Relaxed);
            }
            self.outcomes.add(outcome, sample);
            return;
        }
        budget.overflow.fetch_add(1, Ordering::Relaxed);
        self.rest.create(Outcome::REST);
        self.rest.add(Outcome::REST, sample);
    }
}

/// All series of requests.
#[derive(Debug)]
pub(crate) struct RequestTable {
    series: Table<RequestLabels, Outcomes>,
    unknown: UnknownHosts,
    budget: Arc<Budget>,
}

impl RequestTable {
    /// At most `limit` label sets, and as many sets of cells; `hosts` unknown hosts of each source workload.
    pub(crate) fn new(limit: usize, hosts: usize) -> Self {
        let budget = Budget { limit, used: AtomicUsize::new(0), overflow: AtomicU64::new(0) };
        Self { series: Table::new(limit), unknown: UnknownHosts::new(hosts), budget: Arc::new(budget) }
    }

    pub(crate) fn get(&self, labels: &RequestLabels) -> RequestSeries {
        let rest = labels.overflow();
        RequestSeries {
            rest: self.series.reserved(&rest),
            outcomes: self.series.get(labels, || rest),
            budget: self.budget.clone(),
        }
    }

    /// The same for a destination that the mesh does not know, by the name that the client has for it.
    pub(crate) fn get_unknown(&self, mut labels: RequestLabels, host: &str) -> RequestSeries {
        labels.service = self.unknown.name(labels.source.as_deref(), host);
        self.get(&labels)
    }

    /// Drops idle series and counts anew what is left; a request that makes cells meanwhile is counted the
    /// next time.
    pub(crate) fn sweep(&self, now: std::time::Instant, idle: Duration) {
        self.series.sweep(now, idle);
        let mut used = 0;
        let mut shown = HashSet::new();
        self.series.each(|labels, outcomes| {
            used += outcomes.len();
            shown.insert((unknown_hosts::key(labels.source.as_deref()), labels.service.clone()));
        });
        self.unknown.retain(&shown);
        self.budget.used.store(used, Ordering::Relaxed);
    }

    pub(crate) fn overflow(&self) -> u64 {
        self.series.overflow() + self.unknown.overflow() + self.budget.overflow.load(Ordering::Relaxed)
    }

    pub(crate) fn collect(&self, sink: &mut ScrapeSink) {
        if !families::OF_REQUESTS.iter().any(|family| sink.wants(family)) {
            return;
        }
        self.series.each(|labels, outcomes| {
            let cells = outcomes.0.read().unwrap_or_else(PoisonError::into_inner);
            cells.iter().for_each(|(outcome, cells)| cells.show(labels, *outcome, sink));
        });
    }
}

#[cfg(test)]
#[path = "http_tests.rs"]
mod tests;
