//! DestinationRule (`networking.istio.io`), reduced to what the mesh executes (D-1 to D-21).

use std::sync::Arc;
use std::time::Duration;

use super::virtual_service::{ExportTo, PerMillion};
use super::{Labels, Meta};

/// A DestinationRule that passed validation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DestinationRule {
    /// Name, age, origin.
    pub meta: Meta,
    /// `spec.host`, completed, in lower case; may begin with `*`.
    pub host: Arc<str>,
    /// `spec.trafficPolicy`.
    pub policy: Option<TrafficPolicy>,
    /// `spec.subsets`.
    pub subsets: Vec<Subset>,
    /// `spec.exportTo`; empty leaves it to the mesh.
    pub export_to: Vec<ExportTo>,
    /// `spec.workloadSelector.matchLabels` (D-3).
    pub workload_selector: Option<Labels>,
}

/// One entry of `spec.subsets` (D-4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subset {
    /// `name`.
    pub name: Arc<str>,
    /// `labels`: pods that have all of them.
    pub labels: Labels,
    /// `trafficPolicy`: overrides block by block.
    pub policy: Option<TrafficPolicy>,
}

/// `trafficPolicy`. A block that is absent inherits (but see [`TrafficPolicy::ports`]).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrafficPolicy {
    /// The blocks for every port.
    pub blocks: PolicyBlocks,
    /// `portLevelSettings`: Service port → blocks that replace the others wholesale (D-5).
    pub ports: Vec<(u16, PolicyBlocks)>,
}

/// The blocks of a traffic policy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PolicyBlocks {
    /// `loadBalancer`.
    pub load_balancer: Option<Balancing>,
    /// `connectionPool`.
    pub connection_pool: Option<ConnectionPool>,
    /// `outlierDetection`.
    pub outlier_detection: Option<OutlierDetection>,
    /// `tls`.
    pub tls: Option<ClientTls>,
    /// `retryBudget` (D-19).
    pub retry_budget: Option<RetryBudget>,
}

impl PolicyBlocks {
    /// These blocks, and those of `base` where there is none (D-4, D-21).
    pub fn over(&self, base: &Self) -> Self {
        Self {
            load_balancer: self.load_balancer.clone().or_else(|| base.load_balancer.clone()),
            connection_pool: self.connection_pool.clone().or_else(|| base.connection_pool.clone()),
            outlier_detection: self.outlier_detection.clone().or_else(|| base.outlier_detection.clone()),
            tls: self.tls.clone().or_else(|| base.tls.clone()),
            retry_budget: self.retry_budget.or(base.retry_budget),
        }
    }
}

/// `loadBalancer` as a whole: overridden as one block (D-4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Balancing {
    /// How one of several endpoints is chosen.
    pub balancer: LoadBalancer,
    /// `localityLbSetting`; `None` leaves it to the mesh.
    pub locality: Option<Arc<LocalitySetting>>,
    /// `warmup`, or `warmupDurationSecs`.
    pub warmup: Option<Warmup>,
}

impl Balancing {
    /// One that says nothing about places and new endpoints.
    pub fn of(balancer: LoadBalancer) -> Self {
        Self { balancer, locality: None, warmup: None }
    }
}

/// `localityLbSetting` (D-10).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalitySetting {
    /// `enabled`, true when absent.
    pub enabled: bool,
    /// `distribute`.
    pub distribute: Vec<Distribute>,
    /// `failover`: from one region to another.
    pub failover: Vec<(Arc<str>, Arc<str>)>,
    /// `failoverPriority`.
    pub failover_priority: Vec<PriorityLabel>,
}

impl Default for LocalitySetting {
    fn default() -> Self {
        Self { enabled: true, distribute: Vec::new(), failover: Vec::new(), failover_priority: Vec::new() }
    }
}

/// An entry of `distribute`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Distribute {
    /// Clients for whom it holds.
    pub from: LocalityPattern,
    /// Their shares, in percent.
    pub to: Vec<(LocalityPattern, u32)>,
}

/// `region/zone/subzone`, where a part that is absent or `*` is any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalityPattern {
    /// The region.
    pub region: Option<Arc<str>>,
    /// The zone.
    pub zone: Option<Arc<str>>,
    /// The subzone.
    pub subzone: Option<Arc<str>>,
}

impl LocalityPattern {
    /// Takes a pattern apart.
    pub fn new(text: &str) -> Self {
        let mut parts = text.splitn(3, '/').map(|part| (!matches!(part, "" | "*")).then(|| part.into()));
        let mut next = || parts.next().flatten();
        Self { region: next(), zone: next(), subzone: next() }
    }
}

/// An entry of `failoverPriority`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PriorityLabel {
    /// The label.
    pub key: Arc<str>,
    /// The value that an endpoint must have; `None` is the client's own.
    pub value: Option<Arc<str>>,
}

impl PriorityLabel {
    /// Takes `key` or `key=value` apart.
    pub fn new(text: &str) -> Self {
        match text.split_once('=') {
            Some((key, value)) => Self { key: key.into(), value: Some(value.into()) },
            None => Self { key: text.into(), value: None },
        }
    }
}

/// `warmup` (D-9): how long a new endpoint gets less than its share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Warmup {
    /// `duration`.
    pub duration: Duration,
    /// `minimumPercent`, 10 %.
    pub minimum: PerMillion,
    /// `aggression` in thousandths, 1000 (a straight line).
    pub aggression: u32,
}

/// `retryBudget` (D-19).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryBudget {
    /// `percent` of outstanding requests, 20 %.
    pub share: PerMillion,
    /// `minRetryConcurrency`, 3.
    pub minimum: u32,
}

/// `loadBalancer` (D-6 to D-8).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoadBalancer {
    /// Least of two random by open requests; the default.
    LeastRequest,
    /// One after the other.
    RoundRobin,
    /// Any.
    Random,
    /// The address that the client dialled.
    Passthrough,
    /// `consistentHash`.
    ConsistentHash {
        /// What is hashed.
        key: HashKey,
        /// How the hash finds an endpoint.
        algorithm: HashAlgorithm,
    },
}

/// `consistentHash`: what is hashed (D-7).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HashKey {
    /// `httpHeaderName`, in lower case.
    Header(Arc<str>),
    /// `httpCookie`.
    Cookie {
        /// Name.
        name: Arc<str>,
        /// `path`.
        path: Option<Arc<str>>,
        /// `ttl`: `None` never sets the cookie, zero makes it a session cookie (E34).
        ttl: Option<Duration>,
        /// `attributes`: name and value, appended as written.
        attributes: Vec<(Arc<str>, Arc<str>)>,
    },
    /// `useSourceIp`.
    SourceIp,
    /// `httpQueryParameterName`.
    Query(Arc<str>),
}

/// How a hash finds an endpoint (D-8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HashAlgorithm {
    /// `ringHash.minimumRingSize`, 1024 by default.
    Ring {
        /// Points on the ring, at least.
        minimum_size: u64,
    },
    /// `maglev.tableSize`, 65537 by default; a prime.
    Maglev {
        /// Entries of the table.
        table_size: u64,
    },
}

/// `connectionPool` (D-12, D-13). `None` is no limit, or the default that stands in the row.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConnectionPool {
    /// `tcp.maxConnections`.
    pub max_connections: Option<u32>,
    /// `tcp.connectTimeout`; 10 s by default.
    pub connect_timeout: Option<Duration>,
    /// `tcp.maxConnectionDuration`.
    pub max_connection_duration: Option<Duration>,
    /// `tcp.idleTimeout`; 1 h by default, zero is never.
    pub tcp_idle_timeout: Option<Duration>,
    /// `tcp.tcpKeepalive`.
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// `http.http1MaxPendingRequests`.
    pub max_pending_requests: Option<u32>,
    /// `http.http2MaxRequests`: for HTTP/1.1 as well (E27).
    pub max_requests: Option<u32>,
    /// `http.maxRequestsPerConnection`.
    pub max_requests_per_connection: Option<u32>,
    /// `http.maxRetries`.
    pub max_retries: Option<u32>,
    /// `http.idleTimeout`; 1 h by default.
    pub http_idle_timeout: Option<Duration>,
    /// `http.h2UpgradePolicy`: UPGRADE is true, DO_NOT_UPGRADE false, DEFAULT absent.
    pub h2_upgrade: Option<bool>,
    /// `http.useClientProtocol`.
    pub use_client_protocol: bool,
    /// `http.maxConcurrentStreams`.
    pub max_concurrent_streams: Option<u32>,
    /// `http.http2KeepAlive`: interval and timeout.
    pub http2_keep_alive: Option<(Duration, Duration)>,
}

impl ConnectionPool {
    /// What the mesh says where the pool is silent, field by field.
    pub fn over(mut self, base: &PoolDefaults) -> Self {
        self.connect_timeout = self.connect_timeout.or(base.connect_timeout);
        self.h2_upgrade = self.h2_upgrade.or(base.h2_upgrade);
        self.tcp_keepalive = match (self.tcp_keepalive, base.tcp_keepalive) {
            (Some(own), Some(base)) => Some(own.over(base)),
            (own, base) => own.or(base),
        };
        self
    }
}

/// What MeshConfig says about every connection pool (C-1).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolDefaults {
    /// `connectTimeout`; 10 s by default.
    pub connect_timeout: Option<Duration>,
    /// `tcpKeepalive`.
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// `h2UpgradePolicy`: UPGRADE is true, DO_NOT_UPGRADE false.
    pub h2_upgrade: Option<bool>,
}

/// `outlierDetection` with its defaults filled in (D-15).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutlierDetection {
    /// `consecutive5xxErrors`, 5; 0 is off.
    pub consecutive_5xx: u32,
    /// `consecutiveGatewayErrors`; 0 is off, the default.
    pub consecutive_gateway: u32,
    /// `consecutiveLocalOriginFailures`, 5; only with `split_local_origin`.
    pub consecutive_local_origin: u32,
    /// `splitExternalLocalOriginErrors`.
    pub split_local_origin: bool,
    /// `interval`, 10 s.
    pub interval: Duration,
    /// `baseEjectionTime`, 30 s.
    pub base_ejection_time: Duration,
    /// `maxEjectionPercent`, 10.
    pub max_ejection_percent: u32,
    /// `minHealthPercent`, 0.
    pub min_health_percent: u32,
    /// `outlierDetectionHttpErrorCodes`: the statuses that are errors; empty is every 5xx (D-17).
    pub error_codes: Vec<u16>,
}

impl OutlierDetection {
    /// Whether an answer with this status is an error.
    pub fn is_error(&self, status: u16) -> bool {
        if self.error_codes.is_empty() { status >= 500 } else { self.error_codes.contains(&status) }
    }
}

/// `tcp.tcpKeepalive`; what is absent is the system's (D-12).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TcpKeepalive {
    /// `probes`.
    pub probes: Option<u32>,
    /// `time`: how long a connection is idle before the first probe.
    pub time: Option<Duration>,
    /// `interval`.
    pub interval: Option<Duration>,
}

impl TcpKeepalive {
    fn over(self, base: Self) -> Self {
        Self {
            probes: self.probes.or(base.probes),
            time: self.time.or(base.time),
            interval: self.interval.or(base.interval),
        }
    }
}

/// `tls` (D-18).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientTls {
    /// `mode`.
    pub mode: ClientTlsMode,
    /// `sni`.
    pub sni: Option<Arc<str>>,
    /// `subjectAltNames`.
    pub subject_alt_names: Vec<Arc<str>>,
    /// Certificates of its own, to present or to verify with; `None` verifies nothing.
    pub certificates: Option<Arc<ClientCertificates>>,
}

/// The files, or the Secret, that a `tls` block names. What cannot be read lets no connection come about. A Secret is one of
/// the client's namespace.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ClientCertificates {
    /// The namespace of the object that names them: files are looked for below its directory.
    pub namespace: Arc<str>,
    /// `caCertificates`.
    pub authorities: Option<Arc<str>>,
    /// `caCrl`.
    pub revoked: Option<Arc<str>>,
    /// `clientCertificate`.
    pub certificate: Option<Arc<str>>,
    /// `privateKey`.
    pub key: Option<Arc<str>>,
    /// `credentialName`.
    pub credential: Option<Arc<str>>,
    /// `insecureSkipVerify`: authorities that the Secret has are not asked.
    pub unverified: bool,
}

/// `tls.mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientTlsMode {
    /// DISABLE.
    Disable,
    /// SIMPLE.
    Simple,
    /// MUTUAL.
    Mutual,
    /// ISTIO_MUTUAL.
    IstioMutual,
}

impl ClientTlsMode {
    /// The API's constant.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disable => "DISABLE",
            Self::Simple => "SIMPLE",
            Self::Mutual => "MUTUAL",
            Self::IstioMutual => "ISTIO_MUTUAL",
        }
    }
}
