//! What one connection adds to metrics and log.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use weft_core::resource::NamespacedName;
use weft_telemetry::{ConnectionLog, Direction, Reporter, TcpSeries};

use crate::labels::{Ends, Service};
use crate::learn::Learning;
use crate::lifetime::{Lifetime, Limits};
use crate::refusal::Refusal;
use crate::registry::Cut;
use crate::worker::Worker;

/// How a connection travelled; the words of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    /// Inside this process, to a pod of this node.
    Node,
    /// Through an mTLS tunnel.
    Hbone,
    /// Plain TCP to or from a known peer.
    Plaintext,
    /// Plain TCP to somebody the mesh does not know.
    Passthrough,
}

impl Route {
    /// The word of the log.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Hbone => "hbone",
            Self::Plaintext => "plaintext",
            Self::Passthrough => "passthrough",
        }
    }
}

/// For whom the agent speaks (M-7: it sees both ends of a same-node connection and reports both).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// The client's.
    Source,
    /// The server's.
    Destination,
    /// Both.
    Both,
}

impl Side {
    fn reporters(self) -> &'static [Reporter] {
        match self {
            Self::Source => &[Reporter::Source],
            Self::Destination => &[Reporter::Destination],
            Self::Both => &[Reporter::Source, Reporter::Destination],
        }
    }
}

/// What is known about a connection.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    /// When it was accepted, by the clock of logs.
    pub(crate) start: SystemTime,
    /// The same by a clock that never jumps.
    pub(crate) began: Instant,
    /// For whom we speak.
    pub(crate) side: Side,
    /// How it travels.
    pub(crate) route: Route,
    /// Who opened it.
    pub(crate) client: SocketAddr,
    /// What it was addressed to.
    pub(crate) addressed: SocketAddr,
    /// Where it went, from where.
    pub(crate) upstream: Option<(SocketAddr, Option<SocketAddr>)>,
    /// The client's pod.
    pub(crate) source_pod: Option<NamespacedName>,
    /// The server's pod.
    pub(crate) destination_pod: Option<NamespacedName>,
    /// Both ends for metrics.
    pub(crate) ends: Ends,
    /// The policy that let it in or would not have.
    pub(crate) policy: Option<String>,
    /// The AUDIT policies that matched.
    pub(crate) audit: Option<String>,
    /// The server's cluster, where it does not follow from the port.
    pub(crate) inbound_cluster: Option<Arc<str>>,
    /// How long it may last.
    pub(crate) lifetime: Limits,
}

impl Facts {
    /// A connection of which nothing but the addresses is known yet.
    pub(crate) fn new(side: Side, route: Route, client: SocketAddr, addressed: SocketAddr) -> Self {
        Self {
            start: SystemTime::now(),
            began: Instant::now(),
            side,
            route,
            client,
            addressed,
            upstream: None,
            source_pod: None,
            destination_pod: None,
            ends: Ends {
                source: None,
                source_principal: None,
                destination: None,
                destination_principal: None,
                service: Service::Unknown,
            },
            policy: None,
            audit: None,
            inbound_cluster: None,
            lifetime: Limits::default(),
        }
    }

    fn tls(&self) -> bool {
        self.route == Route::Hbone
    }

    fn log(&self, worker: &Worker, bytes: (u64, u64), verdict: &Verdict<'_>) {
        if verdict.flags == "-"
            && self.audit.is_none()
            && !worker.shared.context.access_log.wants_everything()
        {
            return;
        }
        for reporter in self.side.reporters() {
            worker.shared.context.access_log.write(self.line(*reporter, bytes, verdict));
        }
    }

    fn line(&self, reporter: Reporter, bytes: (u64, u64), verdict: &Verdict<'_>) -> ConnectionLog {
        let pod = |key: &Option<NamespacedName>| key.as_ref().map(ToString::to_string);
        let (direction, upstream_cluster) = match reporter {
            Reporter::Source => (Direction::Outbound, self.ends.service.outbound_cluster()),
            Reporter::Destination => (Direction::Inbound, self.inbound_cluster()),
        };
        ConnectionLog {
            start: self.start,
            duration: Duration::from_nanos(
                u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX),
            ),
            direction,
            flags: verdict.flags,
            details: verdict.details.map(str::to_owned),
            bytes_received: bytes.0,
            bytes_sent: bytes.1,
            downstream_remote: self.client,
            downstream_local: self.addressed,
            upstream_remote: self.upstream.map(|(remote, _)| remote),
            upstream_local: self.upstream.and_then(|(_, local)| local),
            upstream_cluster,
            path: self.route.as_str(),
            source_principal: self.ends.source_principal.clone(),
            destination_principal: self.ends.destination_principal.clone(),
            source_pod: pod(&self.source_pod),
            destination_pod: pod(&self.destination_pod),
            policy: verdict.policy.map(str::to_owned).or_else(|| self.policy.clone()),
            // It is the server's policy.
            audit: self.audit.clone().filter(|_| reporter == Reporter::Destination),
        }
    }

    /// `inbound|PORT||` (L-4), of the port that the application listens on.
    fn inbound_cluster(&self) -> String {
        if let Some(cluster) = &self.inbound_cluster {
            return cluster.to_string();
        }
        let port = self.upstream.map_or(self.addressed.port(), |(remote, _)| remote.port());
        format!("inbound|{port}||")
    }

    /// Counts and logs a connection that never came to be.
    pub(crate) fn fail(&self, worker: &Worker, failure: &Failure) {
        for reporter in self.side.reporters() {
            let labels = self.ends.labels(*reporter, self.tls(), failure.flags);
            worker.shared.context.metrics.failed(&labels, failure.reason, failure.policy.as_deref());
        }
        let verdict = Verdict {
            flags: failure.flags,
            details: Some(&failure.details),
            policy: failure.policy.as_deref(),
        };
        self.log(worker, (0, 0), &verdict);
    }
}

struct Verdict<'a> {
    flags: &'static str,
    details: Option<&'a str>,
    policy: Option<&'a str>,
}

/// Why a connection never came to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// Envoy's response flag (H-16).
    pub(crate) flags: &'static str,
    /// Name of the reason in metrics.
    pub(crate) reason: &'static str,
    /// For people.
    pub(crate) details: String,
    /// The policy that decided, where one did.
    pub(crate) policy: Option<String>,
}

impl Failure {
    /// A failure that no policy decided.
    pub(crate) fn new(flags: &'static str, reason: &'static str, details: impl Into<String>) -> Self {
        Self { flags, reason, details: details.into(), policy: None }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self { flags: "DENY", reason: refusal.reason, details: refusal.details, policy: refusal.policy }
    }
}

/// Counts the bytes of one connection while they move.
pub(crate) struct Meter {
    received: Cell<u64>,
    sent: Cell<u64>,
    series: [Option<TcpSeries>; 2],
    learning: Cell<Option<Box<Learning>>>,
    lifetime: RefCell<Option<Box<Lifetime>>>,
}

impl Meter {
    /// Counts into up to two series.
    pub(crate) fn new(series: [Option<TcpSeries>; 2], learning: Option<Box<Learning>>) -> Self {
        Self {
            received: Cell::new(0),
            sent: Cell::new(0),
            series,
            learning: Cell::new(learning),
            lifetime: RefCell::default(),
        }
    }

    /// The same for a connection that may not last for ever.
    pub(crate) fn limited(self, lifetime: Option<Box<Lifetime>>) -> Self {
        Self { lifetime: RefCell::new(lifetime), ..self }
    }

    /// Ready when the connection has lasted as long as it may. To be polled whenever bytes may have moved.
    pub(crate) fn poll_over(&self, cx: &mut Context<'_>) -> Poll<Cut> {
        match &mut *self.lifetime.borrow_mut() {
            Some(lifetime) => lifetime.poll_over(self.received.get().wrapping_add(self.sent.get()), cx),
            None => Poll::Pending,
        }
    }

    fn series(&self) -> impl Iterator<Item = &TcpSeries> {
        self.series.iter().flatten()
    }

    /// Bytes from client to server.
    pub(crate) fn client_sent(&self, bytes: &[u8]) {
        self.learn(true, bytes);
        self.add_client_sent(bytes.len() as u64);
    }

    /// Bytes from server to client.
    pub(crate) fn server_sent(&self, bytes: &[u8]) {
        self.learn(false, bytes);
        self.add_server_sent(bytes.len() as u64);
    }

    /// More bytes from client to server, which were not looked at.
    pub(crate) fn add_client_sent(&self, bytes: u64) {
        self.received.set(self.received.get() + bytes);
        self.series().for_each(|series| series.add_received(bytes));
    }

    /// More bytes from server to client, which were not looked at.
    pub(crate) fn add_server_sent(&self, bytes: u64) {
        self.sent.set(self.sent.get() + bytes);
        self.series().for_each(|series| series.add_sent(bytes));
    }

    /// Whether anything has moved.
    pub(crate) fn has_counted(&self) -> bool {
        self.received.get() + self.sent.get() > 0
    }

    fn learn(&self, from_client: bool, bytes: &[u8]) {
        if self.received.get() + self.sent.get() == 0
            && let Some(learning) = self.learning.take()
        {
            learning.first_bytes(from_client, bytes);
        }
    }

    /// Bytes so far: from the client, from the server.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        (self.received.get(), self.sent.get())
    }
}

/// An established connection: opened when made, closed when finished (or dropped, should its task panic).
pub(crate) struct Account {
    worker: Rc<Worker>,
    facts: Box<Facts>,
    meter: Meter,
}

impl Account {
    /// Counts an opened connection.
    pub(crate) fn open(worker: &Rc<Worker>, facts: Box<Facts>, learning: Option<Box<Learning>>) -> Self {
        let metrics = &worker.shared.context.metrics;
        let series = |reporter| worker.series.get(metrics, &facts.ends, reporter, facts.tls());
        let mut reporters = facts.side.reporters().iter().map(|reporter| series(*reporter));
        let meter = Meter::new([reporters.next(), reporters.next()], learning);
        drop(reporters);
        let meter = meter.limited(facts.lifetime.begin(Instant::now()));
        meter.series().for_each(TcpSeries::opened);
        Self { worker: worker.clone(), facts, meter }
    }

    /// Counts bytes.
    pub(crate) fn meter(&self) -> &Meter {
        &self.meter
    }

    /// Logs the end.
    pub(crate) fn finish(self, cut: Option<Cut>) {
        if let Some(Cut::Policy(_)) = &cut {
            self.worker.shared.context.metrics.policy_cut();
        }
        let verdict = match &cut {
            None => Verdict { flags: "-", details: None, policy: None },
            Some(Cut::Policy(refusal)) => Verdict {
                flags: "DENY",
                details: Some(&format!("closed due to policy change: {}", refusal.details)),
                policy: refusal.policy.as_deref(),
            },
            Some(Cut::PodRemoved) => {
                Verdict { flags: "LR", details: Some("closed because the pod left the mesh"), policy: None }
            }
            Some(Cut::Drain) => {
                Verdict { flags: "LR", details: Some("closed because the agent stops"), policy: None }
            }
            Some(Cut::Idle) => {
                Verdict { flags: "-", details: Some("idle for as long as idleTimeout allows"), policy: None }
            }
            Some(Cut::TooOld) => {
                let details = Some("open for as long as maxConnectionDuration allows");
                Verdict { flags: "DT", details, policy: None }
            }
        };
        self.facts.log(&self.worker, self.meter.bytes(), &verdict);
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.meter.series().for_each(TcpSeries::closed);
    }
}
