//! Where does a request go, and what is changed about it? The client's side of HTTP.
//!
//! [`route()`] chooses a rule, [`Forward::choose`] one of its destinations, [`prepare()`] says how the request
//! leaves. All of it is pure: the proxy executes the answers, `explain` prints them.

mod cache;
mod clusters;
mod cors;
mod fault;
pub(crate) mod fields;
mod format;
mod forward;
mod hash;
mod headers;
mod hosts;
mod locality;
mod matching;
mod memory;
mod owner;
pub(crate) mod pattern;
mod prepare;
mod redirect;
mod retry;
mod route;
mod timeout;
mod trace;
mod warmup;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use smallvec::SmallVec;

use crate::resource::destination_rule::{
    ClientTls, ConnectionPool, HashKey, LoadBalancer, LocalitySetting, OutlierDetection, RetryBudget, Warmup,
};
use crate::resource::virtual_service::{Fault, HeaderOperations, PerMillion};
use crate::resource::{Labels, ObjectRef};
use crate::snapshot::{CompiledService, Endpoint, Workload};

pub(crate) use self::cache::ClusterCache;
pub use self::clusters::{cluster_candidates, is_endpoint_of_headless, under_policy};
pub use self::cors::{Cors, CorsPolicy, cors};
pub use self::fault::{FaultDraw, draw_fault, drawn};
pub use self::format::{Answered, Circumstances, complete};
pub(crate) use self::forward::cluster_of;
pub use self::hash::{Hash, hash, source_ip_hash};
pub use self::headers::apply;
pub(crate) use self::headers::is_host;
pub use self::locality::{Group, Layout, layout};
pub(crate) use self::matching::Field;
pub use self::memory::RouteMemory;
pub use self::prepare::{Applied, added, prepare};
pub use self::retry::TryOutcome;
pub use self::route::{route, route_remembering, route_traced};
pub(crate) use self::trace::Observer;
pub use self::trace::{Ignored, Skipped, Trace};

/// A request as the client sent it.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The method.
    pub method: &'a str,
    /// `x-forwarded-proto` of the client, else `http` (E14).
    pub scheme: &'a str,
    /// Host or `:authority` as sent, with its port; the target's own where it is in absolute form (E7).
    pub authority: &'a str,
    /// Path and query in origin form, after normalisation by the mesh.
    pub target: &'a str,
    /// The headers.
    pub headers: &'a HeaderMap,
}

/// Who asks, and where the connection was going.
#[derive(Debug, Clone, Copy)]
pub struct Caller<'a> {
    /// The client's pod.
    pub workload: &'a Workload,
    /// What it dialled: its port is the listener's (V-10).
    pub original: SocketAddr,
    /// Labels and namespace for `sourceLabels` and `sourceNamespace` are the workload's.
    pub labels: &'a Labels,
}

/// The rule that matched, in the terms of the object that it stands in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleRef {
    /// The object.
    pub object: ObjectRef,
    /// The list in which `rule` counts: `http`, `tls`, `tcp`, or `rules` for Gateway API routes.
    pub list: &'static str,
    /// Index of the rule.
    pub rule: usize,
    /// Index of its match; `None` where the rule has none.
    pub matched: Option<usize>,
    /// Route name of the access log (V-14).
    pub name: Option<Arc<str>>,
    /// Where a delegate's rule matched: the VirtualService that delegates, with the index of its rule (V-29).
    pub root: Option<(ObjectRef, usize)>,
}

/// A cluster in Envoy's sense: a port and a subset of one host with the client's policy for it.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// `outbound|PORT|SUBSET|HOST` (L-4).
    pub name: Arc<str>,
    /// The host.
    pub host: Arc<str>,
    /// The Service's port.
    pub port: u16,
    /// The subset.
    pub subset: Option<Arc<str>>,
    /// The Service behind the host.
    pub service: Arc<CompiledService>,
    /// Index of the port in `service.ports`.
    pub service_port: usize,
    /// The endpoints of the subset, ready or not, sorted by address.
    pub endpoints: Arc<[Endpoint]>,
    /// The client's policy.
    pub policy: Arc<ClusterPolicy>,
}

/// DestinationRule, resolved for one client, host, subset and port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterPolicy {
    /// The object; `None` where defaults apply.
    pub object: Option<ObjectRef>,
    /// How an endpoint is chosen.
    pub load_balancer: LoadBalancer,
    /// Which places are preferred; `None` leaves it to the Service and the mesh.
    pub locality: Option<Arc<LocalitySetting>>,
    /// How new endpoints begin.
    pub warmup: Option<Warmup>,
    /// Limits.
    pub connection_pool: ConnectionPool,
    /// Ejection.
    pub outlier_detection: Option<OutlierDetection>,
    /// TLS as configured; `None` is automatic, by endpoint (S-27).
    pub tls: Option<ClientTls>,
    /// Limit of retries by what is outstanding, in place of `maxRetries`.
    pub retry_budget: Option<RetryBudget>,
}

impl ClusterPolicy {
    /// What is hashed to choose an endpoint.
    pub fn hash_key(&self) -> Option<&HashKey> {
        match &self.load_balancer {
            LoadBalancer::ConsistentHash { key, .. } => Some(key),
            LoadBalancer::LeastRequest
            | LoadBalancer::RoundRobin
            | LoadBalancer::Random
            | LoadBalancer::Passthrough => None,
        }
    }
}

/// One of a rule's destinations.
#[derive(Debug, Clone)]
pub struct Target {
    /// The cluster; `Err` names a host or subset that does not exist (503 `NC`, E25).
    pub cluster: Result<Arc<Cluster>, Arc<str>>,
    /// Its share relative to the others; never 0.
    pub weight: u32,
    /// Header operations of the destination (E31).
    pub headers: Arc<HeaderOperations>,
}

/// Retrying, with defaults filled in (V-22 to V-24, S-11).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Tries after the first one; 0 is off.
    pub attempts: u32,
    /// Conditions.
    pub on: RetryOn,
    /// The conditions as text, for people.
    pub on_text: Arc<[Arc<str>]>,
    /// Each try's own limit.
    pub per_try_timeout: Option<Duration>,
    /// First wait; doubled with each try up to ten times as much, with jitter.
    pub backoff: Duration,
    /// Endpoints that failed are avoided.
    pub ignore_previous_hosts: bool,
    /// Whether tries after the second one leave the places that were tried (V-25): `Some(false)` keeps them where the
    /// first one was, and with `None` they leave it only when nobody untried is left there.
    pub remote_localities: Option<bool>,
    /// Set where no object asks for retries: then only requests that no application can have seen are repeated.
    pub default: bool,
}

/// Conditions of a retry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "each field is the condition of the same name")]
pub struct RetryOn {
    pub server_errors: bool,
    pub gateway_errors: bool,
    pub reset: bool,
    pub reset_before_request: bool,
    pub connect_failure: bool,
    pub retriable_4xx: bool,
    pub refused_stream: bool,
    /// Bare status codes.
    pub status_codes: Vec<u16>,
    /// gRPC statuses: `cancelled` 1, `deadline-exceeded` 4, `resource-exhausted` 8, `internal` 13, `unavailable` 14.
    pub grpc: Vec<u8>,
}

/// A mirror with its cluster.
#[derive(Debug, Clone)]
pub struct MirrorTarget {
    /// The cluster, as in [`Target::cluster`].
    pub cluster: Result<Arc<Cluster>, Arc<str>>,
    /// Share of requests.
    pub share: PerMillion,
}

/// What a rule says about requests that it forwards.
#[derive(Debug, Clone)]
pub struct Forward {
    /// The destinations.
    pub targets: SmallVec<[Target; 1]>,
    /// Whole exchange, retries included; `None` is none.
    pub timeout: Option<Duration>,
    /// Retries.
    pub retry: Arc<RetryPolicy>,
    /// Faults.
    pub fault: Option<Arc<Fault>>,
    /// Mirrors.
    pub mirrors: SmallVec<[MirrorTarget; 1]>,
}

/// An answer that the mesh gives itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalReply {
    /// HTTP status (gRPC callers get it mapped by [`crate::decide::http::grpc_status`]).
    pub status: u16,
    /// Headers, `location` and such.
    pub headers: Vec<(Arc<str>, String)>,
    /// Body.
    pub body: Arc<[u8]>,
    /// Envoy's response flag (H-16); `-` for none.
    pub flag: &'static str,
    /// `response_code_details`.
    pub details: &'static str,
    /// The word of `response.by` in the command line's contract: `redirect`, `direct_response`, `cors`, `no_route`, …
    pub by: &'static str,
}

/// What becomes of a request.
#[derive(Debug, Clone)]
pub enum Action {
    /// It goes to one of the targets.
    Forward(Forward),
    /// The mesh answers.
    Respond(LocalReply),
    /// It goes to the address that the client dialled: nobody knows the host.
    Passthrough,
}

/// The answer of [`route()`].
#[derive(Debug, Clone)]
pub struct RouteDecision {
    /// The host that the authority (or the dialled address) names, and the index of its port.
    pub service: Option<(Arc<CompiledService>, usize)>,
    /// The rule; `None` for the Service's own default.
    pub rule: Option<RuleRef>,
    /// The matched rule's CORS policy.
    pub cors: Option<Arc<CorsPolicy>>,
    /// What becomes of it.
    pub action: Action,
    /// The VirtualService that owns the host, also where none of its rules matched (404).
    pub owner: Option<ObjectRef>,
    /// The matched rule, for [`prepare()`].
    pub applied: Option<Applied>,
}

impl RouteDecision {
    /// The route's name in access logs (V-14): the rule's own, else what Istio calls its defaults.
    pub fn route_name(&self) -> Option<&str> {
        match (&self.rule, &self.action) {
            (Some(rule), _) => rule.name.as_deref(),
            (None, Action::Forward(_)) => Some("default"),
            (None, Action::Passthrough) => Some("allow_any"),
            (None, Action::Respond(reply)) => (reply.by == "block_all").then_some("block_all"),
        }
    }
}

/// A request as it leaves for the application, for one target.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outgoing {
    /// The new authority, where it changes.
    pub authority: Option<String>,
    /// The new path and query, where it changes.
    pub target: Option<String>,
    /// Header changes to be made one after the other (E31: the later ones win).
    pub request_headers: Vec<Arc<HeaderOperations>>,
    /// The same for the answer, for [`complete`].
    pub response_headers: Vec<Arc<HeaderOperations>>,
}

impl Outgoing {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.authority.is_none()
            && self.target.is_none()
            && self.request_headers.is_empty()
            && self.response_headers.is_empty()
    }
}

impl Forward {
    /// Chooses by weight. `random(n)` answers a number below `n`. `None` when there is no target.
    pub fn choose(&self, random: &mut dyn FnMut(u64) -> u64) -> Option<&Target> {
        choose(&self.targets, random)
    }
}

/// Chooses one of several targets by weight (V-16). `random(n)` answers a number below `n`.
pub fn choose<'a>(targets: &'a [Target], random: &mut dyn FnMut(u64) -> u64) -> Option<&'a Target> {
    if let [only] = targets {
        return Some(only);
    }
    let total: u64 = targets.iter().map(|target| u64::from(target.weight)).sum();
    let mut left = if total == 0 { return None } else { random(total) };
    targets.iter().find(|target| {
        let weight = u64::from(target.weight);
        let chosen = left < weight;
        left = left.saturating_sub(weight);
        chosen
    })
}

/// The gRPC status for an HTTP status of a local reply (E47).
pub fn grpc_status(http: u16) -> u8 {
    match http {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

#[cfg(test)]
pub(crate) mod tests;
