//! Sends one request to one endpoint: chooses it, keeps within the limits of its cluster, finds or opens a
//! connection, and keeps account of the request until its answer has ended.
//!
//! Connections belong to one worker; limits, load and ejections are shared by all workers and kept for each client
//! workload and cluster (D-14). What a policy says is read from the cluster with every request, so that a change of
//! configuration acts at once and loses no connection.

mod admit;
mod balance;
mod connection;
mod dial;
mod exchange;
mod http2;
mod limits;
mod local;
mod opaque;
mod origination;
mod outlier;
mod pool;
mod state;
mod table;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use http::header::HOST;
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Response, Uri, Version};
use smallvec::SmallVec;
use weft_core::Snapshot;
use weft_core::decide::http::{Cluster, under_policy};
use weft_core::decide::outbound::candidate;
use weft_core::decide::{Candidate, Path};
use weft_core::resource::destination_rule::{ClientTls, ClientTlsMode, ConnectionPool};
use weft_core::snapshot::{LocalWorkload, Workload};
use weft_telemetry::ClusterEvent;

use self::admit::{Admission, Overflow};
use self::dial::{Dial, Way};
use self::exchange::{Active, Carrier, Exchange, Home, Judge};
use self::limits::{Counted, Limits, Permit};
use self::local::Wanted;
use self::outlier::Outcome;
use self::pool::Settings;
use super::body::Body;
use super::call::Call;
use super::inbound::serve_local;
use crate::account::{Failure, Route};
use crate::labels::Service;
use crate::pod::Pod;
use crate::worker::Worker;

pub(crate) use self::local::Upstreams;
pub(crate) use self::opaque::{Chosen, Opaque, Place};
pub(crate) use self::origination::{Originations, TLS, Tls};
pub(crate) use self::state::State;

/// The client's side of a request.
pub(crate) struct Leg<'a> {
    /// The client's pod: connections are opened in its namespace.
    pub(crate) pod: &'a Arc<Pod>,
    /// Its workload.
    pub(crate) source: &'a Arc<LocalWorkload>,
    /// The client's address.
    pub(crate) client: SocketAddr,
    /// What it dialled.
    pub(crate) original: SocketAddr,
    /// The configuration of this request.
    pub(crate) snapshot: &'a Arc<Snapshot>,
    /// From where the request was sent last: known once there is a connection for it, whatever comes after that.
    /// For an application of this node it is the address that the application sees.
    pub(crate) local: Cell<Option<SocketAddr>>,
}

impl Leg<'_> {
    /// Whether an endpoint can be reached under a policy.
    fn reaches(&self, endpoint: SocketAddr, tls: Option<&ClientTls>) -> bool {
        under_policy(tls, candidate(self.snapshot, &self.source.workload, endpoint)).is_some()
    }
}

/// What is spoken to the endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum UpstreamProtocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
}

/// What a request wants of its endpoint, and which ones it was sent to.
#[derive(Debug, Default)]
pub(crate) struct Search {
    /// Its hash, where the policy hashes.
    pub(crate) hash: Option<u64>,
    /// Where it was sent, in this order.
    pub(crate) tried: SmallVec<[SocketAddr; 4]>,
    /// Those may be chosen again as well as any other.
    pub(crate) again: bool,
    /// `retryRemoteLocalities`.
    pub(crate) remote: Option<bool>,
}

/// An answer. Its body keeps the account of the request until it has ended or is dropped.
#[derive(Debug)]
pub(crate) struct Sent {
    /// The answer.
    pub(crate) response: Response<Body>,
    /// Who gave it.
    pub(crate) endpoint: SocketAddr,
    /// The pod behind the endpoint, where it is known.
    pub(crate) workload: Option<Arc<Workload>>,
    /// How it was reached.
    pub(crate) route: Route,
}

/// No answer.
#[derive(Debug)]
pub(crate) struct SendError {
    /// Why.
    pub(crate) kind: SendErrorKind,
    /// For people.
    pub(crate) detail: String,
    /// Who was asked.
    pub(crate) endpoint: Option<SocketAddr>,
    /// The request, where nothing of it was sent.
    pub(crate) request: Option<Box<Call>>,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SendErrorKind {
    /// No endpoint is ready and in the rotation (`UH`).
    NoHealthyUpstream,
    /// A limit of the cluster is reached (`UO`).
    Overflow,
    /// The endpoint cannot be reached (`UF`).
    ConnectFailure,
    /// The endpoint refused the stream before it did anything with it.
    RefusedStream,
    /// The connection broke before anything of the request was sent.
    ResetBeforeRequest,
    /// The connection broke; nobody knows what the endpoint did with the request.
    Reset,
    /// The client's body did not come to its end; `malformed` says that it was no body any more.
    BrokenBody {
        /// The client does not keep to the protocol, as opposed to having left.
        malformed: bool,
    },
    /// The endpoint's policies refuse the connection.
    Denied(Failure),
}

impl SendError {
    /// An error about which nothing more is known.
    pub(crate) fn new(kind: SendErrorKind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into(), endpoint: None, request: None }
    }

    fn at(self, endpoint: SocketAddr) -> Self {
        Self { endpoint: Some(endpoint), ..self }
    }

    fn with(self, request: Box<Call>) -> Self {
        Self { request: Some(request), ..self }
    }

    /// Whether it counts for outlier detection: what we refuse ourselves, and what
    /// the client does, is no fault of the endpoint.
    fn blames_endpoint(&self) -> bool {
        match self.kind {
            SendErrorKind::ConnectFailure
            | SendErrorKind::RefusedStream
            | SendErrorKind::ResetBeforeRequest
            | SendErrorKind::Reset => true,
            SendErrorKind::NoHealthyUpstream
            | SendErrorKind::Overflow
            | SendErrorKind::BrokenBody { .. }
            | SendErrorKind::Denied(_) => false,
        }
    }

    fn of(failure: Failure) -> Self {
        if failure.flags == "DENY" {
            return Self::new(SendErrorKind::Denied(failure.clone()), failure.details);
        }
        Self::new(SendErrorKind::ConnectFailure, failure.details)
    }
}

/// A retry that is under way; the cluster's `maxRetries` counts it until it is dropped.
#[derive(Debug)]
pub(crate) struct Retry(#[expect(dead_code, reason = "held until it is dropped")] Permit);

/// Asks whether a request may be tried once more; `None` when too many retries of the cluster are under way.
pub(crate) fn retry(worker: &Rc<Worker>, leg: &Leg<'_>, cluster: &Cluster) -> Option<Retry> {
    let local = worker.upstreams.cluster(worker, leg, cluster);
    let limit = match cluster.policy.retry_budget {
        Some(budget) => budget.limit(local.state.outstanding()),
        None => Limits::of(&cluster.policy.connection_pool).retries,
    };
    let permit = local.state.permit(Counted::Retry, limit);
    let event = if permit.is_some() { ClusterEvent::Retry } else { ClusterEvent::RetryOverflow };
    local.state.counters.count(event);
    permit.map(Retry)
}

/// Counts something that only the caller sees, a timeout for example.
pub(crate) fn count(worker: &Rc<Worker>, leg: &Leg<'_>, cluster: &Cluster, event: ClusterEvent) {
    worker.upstreams.cluster(worker, leg, cluster).state.counters.count(event);
}

/// An endpoint did not answer in time: an error of it for outlier detection.
pub(crate) fn timed_out(worker: &Rc<Worker>, leg: &Leg<'_>, cluster: &Cluster, endpoint: SocketAddr) {
    if cluster.policy.outlier_detection.is_some() {
        let local = worker.upstreams.cluster(worker, leg, cluster);
        local.state.record_at(&endpoint, Outcome::Local, cluster.policy.outlier_detection.as_ref());
    }
}

/// Sends a request to an endpoint of a cluster, and to one that was not tried if there is another. The endpoint is added
/// to `search` before anything is sent to it.
///
/// # Cancel safety
///
/// Dropped, the request is abandoned and its connection closed; whatever was counted is given back.
pub(crate) async fn send(
    worker: &Rc<Worker>,
    leg: &Leg<'_>,
    cluster: &Arc<Cluster>,
    search: &mut Search,
    call: Box<Call>,
    protocol: UpstreamProtocol,
) -> Result<Sent, SendError> {
    let local = worker.upstreams.cluster(worker, leg, cluster);
    let server = match origination::tls(worker, leg, cluster, Some(protocol)).await {
        Ok(server) => server,
        Err(why) => {
            local.state.counters.count(ClusterEvent::TlsFailure);
            return Err(SendError::new(SendErrorKind::ConnectFailure, why).with(call));
        }
    };
    let tls = cluster.policy.tls.as_ref();
    let mutual = tls.is_some_and(|tls| tls.mode == ClientTlsMode::IstioMutual);
    let suits = |addr: &SocketAddr| !mutual || leg.reaches(*addr, tls);
    let wanted = Wanted { search, suits: &suits };
    let Some(host) = local.choose(worker, leg, cluster, &wanted) else {
        let proven = if mutual { " and proves an identity that the policy accepts" } else { "" };
        let detail = format!("{} has no endpoint that is ready and not ejected{proven}", cluster.name);
        return Err(SendError::new(SendErrorKind::NoHealthyUpstream, detail).with(call));
    };
    let endpoint = host.host.addr;
    search.tried.push(endpoint);
    let found = candidate(leg.snapshot, &leg.source.workload, endpoint);
    let Some(Candidate { path, workload, .. }) = under_policy(tls, found) else {
        let detail = format!("{endpoint} cannot be reached as the DestinationRule's `tls` asks");
        return Err(SendError::new(SendErrorKind::ConnectFailure, detail).with(call));
    };
    let path = &path;
    let judge = cluster.policy.outlier_detection.as_ref().map(|_| Judge {
        cluster: local.state.clone(),
        host: host.host.clone(),
        policy: cluster.policy.clone(),
        grpc: is_grpc(&call.parts.headers),
    });
    let service = Service::Known { service: cluster.service.clone(), port: cluster.port };
    let mut dial = dial_of(leg, endpoint, path, (service, &cluster.policy.connection_pool));
    if let Some(server) = server {
        dial.way = Way::Tls(server);
    }
    let admission = Admission {
        worker,
        cluster: &local.state,
        host: &host,
        settings: Settings::of(&cluster.policy.connection_pool),
        dial: &dial,
        protocol,
    };
    let response = match in_cluster(&admission, path, leg, judge.clone(), call).await {
        Ok(response) => response,
        Err(error) => {
            if let Some(judge) = judge.filter(|_| error.blames_endpoint()) {
                judge.record(Outcome::Local);
            }
            return Err(error.at(endpoint));
        }
    };
    Ok(Sent { response, endpoint, workload, route: route_of(path) })
}

/// Sends a request to an address, outside every cluster: what the client dialled, for example.
///
/// # Cancel safety
///
/// As [`send`].
pub(crate) async fn send_to(
    worker: &Rc<Worker>,
    leg: &Leg<'_>,
    endpoint: SocketAddr,
    path: &Path,
    call: Box<Call>,
    protocol: UpstreamProtocol,
) -> Result<Sent, SendError> {
    let pool = ConnectionPool::default();
    let dial = dial_of(leg, endpoint, path, (Service::Unknown, &pool));
    let sent = match path {
        Path::SameNode(local) => Box::pin(serve_local(worker, leg, local, (endpoint, protocol), call)).await,
        Path::Hbone(_) | Path::Plaintext => {
            let settings = Settings::of(&pool);
            outside_clusters(worker, (&dial, &leg.local), &settings, call, protocol).await
        }
    };
    let response = sent.map_err(|error| error.at(endpoint))?;
    let workload = leg.snapshot.workload_by_ip(&endpoint.ip()).cloned();
    let route = match (path, &workload) {
        (Path::Plaintext, None) => Route::Passthrough,
        (Path::Plaintext | Path::SameNode(_) | Path::Hbone(_), _) => route_of(path),
    };
    Ok(Sent { response, endpoint, workload, route })
}

/// An application of this node, reached in the name of a client.
pub(crate) struct Application<'a> {
    /// Its pod.
    pub(crate) pod: &'a Arc<Pod>,
    /// Its workload.
    pub(crate) local: &'a LocalWorkload,
    /// The client's address.
    pub(crate) client: IpAddr,
    /// Where the application listens.
    pub(crate) destination: SocketAddr,
    /// From where the request was sent, as [`Leg::local`].
    pub(crate) from: &'a Cell<Option<SocketAddr>>,
}

/// Sends a request to an application of this node. Nobody is asked whether that is allowed.
///
/// # Cancel safety
///
/// As [`send`].
pub(crate) async fn application(
    worker: &Rc<Worker>,
    to: &Application<'_>,
    call: Box<Call>,
    protocol: UpstreamProtocol,
) -> Result<Response<Body>, SendError> {
    let snapshot = worker.snapshot();
    let source = snapshot.workload_by_ip(&to.client);
    let client = crate::inbound::preserved(to.client, source, to.destination.ip());
    let own = client == to.destination.ip() || to.local.workload.ips.contains(&client);
    let dial = Dial {
        pod: to.pod.clone(),
        source: None,
        client: (SocketAddr::new(client, 0), to.destination),
        endpoint: to.destination,
        way: Way::Onward(client, own),
        service: Service::Unknown,
        limit: None,
        keepalive: None,
    };
    let settings = Settings::of(&ConnectionPool::default());
    let sent = outside_clusters(worker, (&dial, to.from), &settings, call, protocol).await;
    sent.map_err(|error| error.at(to.destination))
}

fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(http::header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    kind.is_some_and(|kind| kind.starts_with(b"application/grpc"))
}

fn route_of(path: &Path) -> Route {
    match path {
        Path::SameNode(_) => Route::Node,
        Path::Hbone(_) => Route::Hbone,
        Path::Plaintext => Route::Plaintext,
    }
}

fn dial_of(
    leg: &Leg<'_>,
    endpoint: SocketAddr,
    path: &Path,
    (service, pool): (Service, &ConnectionPool),
) -> Dial {
    let way = match path {
        Path::Plaintext => Way::Plaintext,
        Path::Hbone(destination) => Way::Hbone(destination.clone()),
        Path::SameNode(local) => Way::Hbone(local.workload.clone()),
    };
    Dial {
        pod: leg.pod.clone(),
        source: Some(leg.source.workload.clone()),
        client: (leg.client, leg.original),
        endpoint,
        way,
        service,
        limit: pool.connect_timeout,
        keepalive: pool.tcp_keepalive,
    }
}

async fn in_cluster(
    admission: &Admission<'_>,
    path: &Path,
    leg: &Leg<'_>,
    judge: Option<Judge>,
    mut call: Box<Call>,
) -> Result<Response<Body>, SendError> {
    let counters = &admission.cluster.counters;
    let node = matches!(path, Path::SameNode(_));
    leg.local.set(None);
    let mut exchange = match admission.enter(node, Active::new(&admission.host.host)).await {
        Ok(exchange) => exchange,
        Err(Overflow::Limit(detail)) => {
            return Err(SendError::new(SendErrorKind::Overflow, detail).with(call));
        }
        Err(Overflow::Failure(failure)) => {
            counters.count(ClusterEvent::ConnectFailure);
            if failure.reason == TLS {
                counters.count(ClusterEvent::TlsFailure);
            }
            return Err(SendError::of(failure).with(call));
        }
    };
    counters.count(ClusterEvent::Request);
    leg.local.set(exchange.local());
    let response = match path {
        Path::SameNode(local) => {
            let to = (admission.dial.endpoint, admission.protocol);
            // Both sides of a request in one future would be moved for those that leave the node as well.
            Box::pin(serve_local(admission.worker, leg, local, to, call)).await?
        }
        Path::Hbone(_) | Path::Plaintext => {
            shape(&mut call.parts, admission.protocol);
            exchange.send(call).await?
        }
    };
    counters.completed(response.status().as_u16());
    let judge = judge.and_then(|judge| judge.head(&response));
    Ok(exchange.attach(response, judge))
}

/// Sends without limits, over the connections that belong to no cluster.
async fn outside_clusters(
    worker: &Rc<Worker>,
    (dial, from): (&Dial, &Cell<Option<SocketAddr>>),
    settings: &Settings,
    mut call: Box<Call>,
    protocol: UpstreamProtocol,
) -> Result<Response<Body>, SendError> {
    let pool = worker.upstreams.pool(dial, protocol);
    let carrier = match protocol {
        UpstreamProtocol::Http1 => match pool.take(settings) {
            Some(connection) => Ok(Carrier::Single(connection)),
            None => {
                let opening = connection::single(worker, &pool, dial, (None, settings));
                Box::pin(opening).await.map(Carrier::Single)
            }
        },
        UpstreamProtocol::Http2 => pool.share_or_dial(worker, dial, settings).await.map(Carrier::Shared),
    };
    let carrier = match carrier {
        Ok(carrier) => carrier,
        Err(failure) => return Err(SendError::of(failure).with(call)),
    };
    let home = Home { worker: worker.clone(), pool, cluster: None, settings: *settings };
    let mut exchange = Exchange::new(None, None, carrier, home);
    from.set(exchange.local());
    shape(&mut call.parts, protocol);
    let response = exchange.send(call).await?;
    Ok(exchange.attach(response, None))
}

/// Gives a request the form that its protocol has: in HTTP/1.1 the target is in origin form and the authority in
/// Host, in HTTP/2 the authority is part of the target.
fn shape(parts: &mut Parts, protocol: UpstreamProtocol) {
    match protocol {
        UpstreamProtocol::Http1 => {
            parts.version = Version::HTTP_11;
            if let Some(authority) = parts.uri.authority().cloned() {
                if !parts.headers.contains_key(HOST)
                    && let Ok(host) = HeaderValue::from_str(authority.as_str())
                {
                    parts.headers.insert(HOST, host);
                }
                let target = parts.uri.path_and_query().cloned();
                parts.uri = Uri::from(target.unwrap_or(PathAndQuery::from_static("/")));
            }
        }
        UpstreamProtocol::Http2 => {
            parts.version = Version::HTTP_2;
            if let Some(host) = parts.headers.remove(HOST)
                && let Ok(authority) = Authority::try_from(host.as_bytes())
            {
                let mut uri = std::mem::take(&mut parts.uri).into_parts();
                uri.authority = Some(authority);
                uri.scheme.get_or_insert(Scheme::HTTP);
                uri.path_and_query.get_or_insert(PathAndQuery::from_static("/"));
                parts.uri = Uri::from_parts(uri).unwrap_or_default();
            }
        }
    }
}
