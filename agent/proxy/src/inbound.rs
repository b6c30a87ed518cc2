//! Plaintext that reaches a pod: ask policy, connect to the application in the client's name, relay.

use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Context;

use bytes::Bytes;
use tokio::net::TcpStream;
use weft_core::Snapshot;
use weft_core::decide::Verdict;
use weft_core::decide::inbound::{self as decide, inbound};
use weft_core::snapshot::{LocalWorkload, Workload};

use crate::account::{Account, Facts, Failure, Route, Side};
use crate::early::{Early, How, Purpose, Upstream};
use crate::http::detect::{self, Heard, Speaks};
use crate::http::inbound::Arrival;
use crate::http::io::Transport;
use crate::http::serve::{Origin, serve as serve_http};
use crate::labels::inbound_cluster;
use crate::learn::Learning;
use crate::listener::Accepted;
use crate::net::{self, DialError, Dialled};
use crate::pod::Pod;
use crate::ports::Lease;
use crate::refusal::{Refusal, audit, count_dry_runs, policy_id};
use crate::registry::{Admission, Registered};
use crate::relay::{Ahead, End, Pair, relay, unboxed};
use crate::worker::Worker;

/// An application's side of a connection, ready to relay.
pub(crate) struct Application {
    /// The connection; drop before the rest.
    pub(crate) dialled: Dialled,
    /// In whose name it was opened.
    pub(crate) client: IpAddr,
    /// Reaches the connection when policy changes.
    pub(crate) live: Registered,
    /// Looks at the first bytes.
    pub(crate) learning: Option<Box<Learning>>,
}

/// Serves one connection.
///
/// Setting up takes a future of its own on the heap, which is gone once bytes flow.
pub(crate) async fn serve(worker: Rc<Worker>, accepted: Accepted) {
    let admitted = accepted.admitted;
    let (ends, pod) = ((accepted.peer, accepted.local), accepted.pod);
    match Box::pin(set_up(worker.clone(), pod, accepted.stream, ends)).await {
        Some(Next::Relay(open)) => {
            let Open { account, pair, ahead, live, ports } = unboxed(open);
            let end = relay(pair, ahead, account.meter(), &live).await;
            drop(ports);
            account.finish(end.into_cut());
        }
        Some(Next::Http(http)) => {
            let Http { transport, arrival, live, port: _port } = unboxed(http);
            Box::pin(serve_http(worker, transport, Origin::Inbound(arrival), live)).await;
        }
        None => {}
    }
    drop(admitted);
}

/// What a connection turned out to be.
pub(crate) enum Next {
    /// It is relayed.
    Relay(Box<Open>),
    /// It speaks HTTP.
    Http(Box<Http>),
}

/// A connection that only has to be relayed.
pub(crate) struct Open {
    /// Counts it.
    pub(crate) account: Account,
    /// Both connections.
    pub(crate) pair: Pair,
    /// What was read already.
    pub(crate) ahead: Ahead,
    /// Reaches it when policy changes.
    pub(crate) live: Registered,
    /// Ports in use until it is closed: the onward connection's, and the peer's where the kernel must not
    /// see its four-tuple a second time.
    pub(crate) ports: (Lease, Option<Lease>),
}

/// A connection on which requests come.
pub(crate) struct Http {
    /// The client's side.
    pub(crate) transport: Transport,
    /// Who it is.
    pub(crate) arrival: Arrival,
    /// Reaches it when the pod or the agent goes.
    pub(crate) live: Registered,
    /// The peer's port, where the kernel must not see its four-tuple a second time.
    pub(crate) port: Option<Lease>,
}

async fn set_up(
    worker: Rc<Worker>,
    pod: Arc<Pod>,
    stream: TcpStream,
    (peer, local): (SocketAddr, SocketAddr),
) -> Option<Next> {
    if pod.ports.is_ours(peer, local) {
        worker.shared.counters.loops.add();
        net::reset(stream);
        return None;
    }
    let port = pod.ports.peer(peer.ip(), peer.port());
    let mut facts = Box::new(Facts::new(Side::Destination, Route::Plaintext, peer, local));
    let mut client = Transport::Tcp(stream, Bytes::new());
    let heard = hear(&worker, &pod, &mut client, &mut facts).await;
    let Transport::Tcp(stream, ahead) = client else { return None };
    match heard {
        Ok((Heard::Http(early), arrival)) => {
            keep_for_requests(&worker, &arrival, early);
            let live = worker.live.tunnel(&pod);
            let transport = Transport::Tcp(stream, ahead);
            Some(Next::Http(Box::new(Http { transport, arrival, live, port })))
        }
        Ok((Heard::Opaque(Application { dialled, client: _, live, learning }), _)) => {
            let Dialled { stream: application, lease } = dialled;
            let account = Account::open(&worker, facts, learning);
            let ahead = Ahead { socket: ahead, stream: Bytes::new() };
            let pair = Pair::Tcp(stream, application);
            Some(Next::Relay(Box::new(Open { account, pair, ahead, live, ports: (lease, port) })))
        }
        Err(failure) => {
            net::reset(stream);
            facts.fail(&worker, &failure);
            None
        }
    }
}

/// Finds out what the connection speaks, and reaches the application unless that is HTTP.
async fn hear(
    worker: &Rc<Worker>,
    pod: &Arc<Pod>,
    client: &mut Transport,
    facts: &mut Facts,
) -> Result<(Heard<Application>, Arrival), Failure> {
    let snapshot = worker.snapshot();
    let local = own_workload(&snapshot, pod)?;
    let attested = worker.shared.kernel.attested(facts.client, facts.addressed);
    let source = match attested {
        Some(peer) => snapshot.workload(&peer.pod),
        None => None,
    };
    let identity = source.map(|source| source.identity.clone());
    facts.ends.source_principal = source.map(|source| source.labels.principal.clone());
    name_source(facts, source.or_else(|| snapshot.workload_by_ip(&facts.client.ip())));
    let source_ip = facts.client.ip();
    let admission = Admission { pod: pod.clone(), identity, source: source_ip, destination: facts.addressed };
    let arrival = Arrival::of(&admission, facts, snapshot.workload_by_ip(&source_ip));
    let heard = match Speaks::inbound(local, facts.addressed.port()) {
        Speaks::Http => {
            authenticated(local, facts, &admission)?;
            Heard::Http(None)
        }
        Speaks::Opaque => Heard::Opaque(open_application(worker, pod, local, facts, admission).await?),
        Speaks::Unknown => {
            authenticated(local, facts, &admission)?;
            let opening = pin!(open_application(worker, pod, local, facts, admission));
            let spoke = |application: &mut Application, cx: &mut Context<'_>| {
                application.dialled.stream.poll_read_ready(cx).is_ready()
            };
            detect::listen(client, detect::patience(&snapshot), opening, spoke).await?
        }
    };
    Ok((heard, arrival))
}

/// Asks PeerAuthentication alone: what else is to be asked depends on what the connection speaks (PA-4).
pub(crate) fn authenticated(
    local: &LocalWorkload,
    facts: &mut Facts,
    admission: &Admission,
) -> Result<(), Failure> {
    name_destination(facts, local, admission.identity.is_some());
    let decision = decide::connection(local, &admission.question());
    match decision.verdict {
        Verdict::Allow => Ok(()),
        Verdict::DenyPeerAuthentication | Verdict::DenyAuthorization => Err(Refusal::of(&decision).into()),
    }
}

/// The pod in the snapshot. Whatever is not known there is refused.
pub(crate) fn own_workload<'a>(snapshot: &'a Snapshot, pod: &Pod) -> Result<&'a Arc<LocalWorkload>, Failure> {
    snapshot.local_workload(&pod.key).ok_or_else(|| {
        let details = format!("pod {} is not in the configuration of this node", pod.key);
        Failure::new("DENY", "unknown_pod", details)
    })
}

/// Names the client's workload, for people and metrics only.
pub(crate) fn name_source(facts: &mut Facts, source: Option<&Arc<Workload>>) {
    facts.ends.source = source.map(|source| source.labels.clone());
    facts.source_pod = source.map(|source| source.key.clone());
}

/// Names the server's workload.
pub(crate) fn name_destination(facts: &mut Facts, local: &LocalWorkload, authenticated: bool) {
    facts.ends.destination = Some(local.workload.labels.clone());
    facts.ends.destination_principal = authenticated.then(|| local.workload.labels.principal.clone());
    facts.destination_pod = Some(local.workload.key.clone());
}

/// Asks policy, then connects to the application. The same for every way in.
pub(crate) async fn open_application(
    worker: &Rc<Worker>,
    source_pod: &Arc<Pod>,
    local: &LocalWorkload,
    facts: &mut Facts,
    admission: Admission,
) -> Result<Application, Failure> {
    let (pod, destination) = (admission.pod.clone(), admission.destination);
    facts.inbound_cluster = inbound_cluster(local, destination.port());
    name_destination(facts, local, admission.identity.is_some());
    // Registered before the question: a change of policy in between is then not missed.
    let live = worker.live.connection(source_pod, Some(admission.clone()));
    let decision = inbound(local, &admission.question());
    let metrics = &worker.shared.context.metrics;
    count_dry_runs(metrics, &decision);
    facts.audit = audit(metrics, &decision);
    match decision.verdict {
        Verdict::Allow => facts.policy = policy_id(&decision),
        Verdict::DenyPeerAuthentication | Verdict::DenyAuthorization => {
            return Err(Refusal::of(&decision).into());
        }
    }
    let client =
        preserved(admission.source, worker.snapshot().workload_by_ip(&admission.source), destination.ip());
    let own = client == destination.ip() || local.workload.ips.contains(&client);
    let limit = worker.shared.config.connect_timeout;
    let dialled = net::onward(&pod, &*worker.shared.kernel, (client, own), destination, limit)
        .await
        .map_err(|error| refused_by_application(destination, &error))?;
    facts.upstream = Some((destination, dialled.stream.local_addr().ok()));
    let learning = worker.learned.wanted(local, destination.port());
    Ok(Application { dialled, client, live, learning })
}

impl Application {
    /// What else the connection is good for.
    pub(crate) fn purpose(&self, pod: &Pod, endpoint: SocketAddr) -> Purpose {
        Purpose { pod: pod.key.clone(), endpoint, how: How::Onward(self.client) }
    }
}

/// Keeps a connection to an application for the first request (see [`Early`]).
pub(crate) fn keep_for_requests(worker: &Rc<Worker>, arrival: &Arrival, application: Option<Application>) {
    if let Some(application) = application {
        let purpose = application.purpose(&arrival.pod, arrival.destination);
        Early::keep(worker, purpose, Upstream::Socket(application.dialled));
    }
}

fn refused_by_application(destination: SocketAddr, error: &DialError) -> Failure {
    Failure::new("UF", "connect", format!("the application at {destination} cannot be reached: {error}"))
}

/// The address in whose name the application is reached: the client's own, of the application's family.
///
/// A client of the other family is represented by its pod's other address, failing that by the pod itself.
pub(crate) fn preserved(client: IpAddr, source: Option<&Arc<Workload>>, destination: IpAddr) -> IpAddr {
    if client.is_ipv4() == destination.is_ipv4() {
        return client;
    }
    let same_family = |ip: &&IpAddr| ip.is_ipv4() == destination.is_ipv4();
    source.and_then(|source| source.ips.iter().find(same_family)).copied().unwrap_or(destination)
}

impl End {
    /// What the log says about an end.
    pub(crate) fn into_cut(self) -> Option<crate::registry::Cut> {
        match self {
            Self::Cut(cut) => Some(cut),
            Self::Clean | Self::Reset => None,
        }
    }
}
