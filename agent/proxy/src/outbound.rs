//! A captured connection of a pod: decide where it goes, open the way, relay.
//!
//! The way is open before a byte of the client is read, so protocols in which the server speaks first work,
//! and another endpoint can still be tried when one fails.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Context;

use bytes::Bytes;
use smallvec::SmallVec;
use tokio::net::TcpStream;
use weft_core::Snapshot;
use weft_core::decide::outbound::{outbound, pick};
use weft_core::decide::{Candidate, Destination, OutboundDecision, Path};
use weft_core::snapshot::{LocalWorkload, Workload};

use crate::account::{Account, Facts, Failure, Route, Side};
use crate::hbone::client::{self, TunnelStream};
use crate::hbone::pool::Permit;
use crate::http::detect::{self, Heard, Speaks};
use crate::http::exchange::Outbound;
use crate::http::io::Transport;
use crate::http::serve::{Origin, serve as serve_http};
use crate::http::stream::TunnelIo;
use crate::inbound::{self, Application};
use crate::labels::Service;
use crate::learn::Learning;
use crate::listener::Accepted;
use crate::net::{self, Dialled, Purpose};
use crate::pod::Pod;
use crate::ports::Lease;
use crate::registry::{Admission, Registered};
use crate::relay::{Ahead, Pair, relay};
use crate::worker::{EndpointLoad, Worker};

/// Endpoints that are tried for one connection.
const ATTEMPTS: usize = 5;

/// The server's side of a connection.
enum Upstream {
    Socket(Dialled),
    Tunnel(TunnelIo, Permit),
}

impl Upstream {
    /// Whether the server has sent something, or has left.
    fn has_spoken(&mut self, cx: &mut Context<'_>) -> bool {
        match self {
            Self::Socket(dialled) => dialled.stream.poll_read_ready(cx).is_ready(),
            Self::Tunnel(tunnel, _) => tunnel.poll_receive(cx).is_ready(),
        }
    }
}

/// A way that is open.
struct Way {
    upstream: Upstream,
    live: Registered,
    learning: Option<Box<Learning>>,
}

/// Why one endpoint did not do.
pub(crate) enum Setback {
    /// Another may.
    Endpoint(Failure),
    /// None will.
    Final(Failure),
}

/// Serves one connection.
///
/// Setting up takes a future of its own on the heap, which is gone once bytes flow.
pub(crate) async fn serve(worker: Rc<Worker>, accepted: Accepted) {
    let admitted = accepted.admitted;
    let (ends, pod) = ((accepted.peer, accepted.local), accepted.pod);
    match Box::pin(set_up(worker.clone(), pod, accepted.stream, ends)).await {
        Some(Next::Relay(open)) => {
            let Open { account, pair, ahead, live, held } = *open;
            let end = relay(pair, ahead, account.meter(), &live).await;
            drop(held);
            account.finish(end.into_cut());
        }
        Some(Next::Http(http)) => {
            let (transport, outbound, live) = *http;
            Box::pin(serve_http(worker, transport, Origin::Outbound(outbound), live)).await;
        }
        None => {}
    }
    drop(admitted);
}

/// What a connection turned out to be.
enum Next {
    Relay(Box<Open>),
    Http(Box<(Transport, Outbound, Registered)>),
}

/// A connection that only has to be relayed.
struct Open {
    account: Account,
    pair: Pair,
    ahead: Ahead,
    live: Registered,
    /// Given back after the connection has been closed.
    held: (Option<EndpointLoad>, Held),
}

/// What the server's side occupies.
enum Held {
    Port(#[expect(dead_code, reason = "held until it is dropped")] Lease),
    Place(#[expect(dead_code, reason = "held until it is dropped")] Permit),
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
    let mut facts = Box::new(Facts::new(Side::Source, Route::Plaintext, peer, local));
    let mut client = Transport::Tcp(stream, Bytes::new());
    let heard = hear(&worker, &pod, &mut client, &mut facts).await;
    let Transport::Tcp(stream, ahead) = client else { return None };
    match heard {
        Ok(Heard::Http) => {
            let live = worker.live.tunnel(&pod);
            let outbound = Outbound { pod, client: peer, original: local };
            Some(Next::Http(Box::new((Transport::Tcp(stream, ahead), outbound, live))))
        }
        Ok(Heard::Opaque((Way { upstream, live, learning }, load))) => {
            let account = Account::open(&worker, facts, learning);
            let mut ahead = Ahead { socket: ahead, stream: Bytes::new() };
            let (pair, held) = match upstream {
                Upstream::Socket(Dialled { stream: server, lease }) => {
                    (Pair::Tcp(stream, server), Held::Port(lease))
                }
                Upstream::Tunnel(tunnel, permit) => {
                    let (tunnel, received) = tunnel.into_parts();
                    ahead.stream = received;
                    (Pair::ClientTcp(stream, tunnel), Held::Place(permit))
                }
            };
            Some(Next::Relay(Box::new(Open { account, pair, ahead, live, held: (load, held) })))
        }
        Err(failure) => {
            net::reset(stream);
            facts.fail(&worker, &failure);
            None
        }
    }
}

/// A way with what it adds to the load of its endpoint.
type Opened = (Way, Option<EndpointLoad>);

/// Finds out what the connection speaks, and opens a way unless that is HTTP.
async fn hear(
    worker: &Rc<Worker>,
    pod: &Arc<Pod>,
    client: &mut Transport,
    facts: &mut Facts,
) -> Result<Heard<Opened>, Failure> {
    let snapshot = worker.snapshot();
    let source = inbound::own_workload(&snapshot, pod)?;
    inbound::name_source(facts, Some(&source.workload));
    if !source.workload.ips.contains(&facts.client.ip()) {
        worker.shared.counters.forged_sources.add();
        let details = format!("{} is not an address of pod {}", facts.client.ip(), pod.key);
        return Err(Failure::new("DENY", "forged_source", details));
    }
    facts.ends.source_principal = Some(source.workload.labels.principal.clone());
    match Speaks::outbound(&snapshot, facts.addressed) {
        Speaks::Http => Ok(Heard::Http),
        Speaks::Opaque => Ok(Heard::Opaque(establish(worker, pod, (&snapshot, source), facts).await?)),
        Speaks::Unknown => {
            let opening = establish(worker, pod, (&snapshot, source), facts);
            detect::listen(client, opening, |(way, _), cx| way.upstream.has_spoken(cx)).await
        }
    }
}

async fn establish(
    worker: &Rc<Worker>,
    pod: &Arc<Pod>,
    (snapshot, source): (&Snapshot, &LocalWorkload),
    facts: &mut Facts,
) -> Result<Opened, Failure> {
    match outbound(snapshot, &source.workload, facts.addressed) {
        OutboundDecision::Endpoints { destination, candidates } => {
            facts.ends.service = Service::of(&destination, false);
            let (way, load) = any_endpoint(worker, pod, source, &candidates, facts).await?;
            Ok((way, Some(load)))
        }
        OutboundDecision::Passthrough { destination } => {
            pass_through(worker, pod, &destination, facts).await.map(|way| (way, None))
        }
        OutboundDecision::Unreachable { destination, reason, flag } => {
            facts.ends.service = Service::of(&destination, true);
            Err(Failure::new(flag, "unreachable", reason))
        }
    }
}

async fn pass_through(
    worker: &Rc<Worker>,
    pod: &Arc<Pod>,
    destination: &Destination,
    facts: &mut Facts,
) -> Result<Way, Failure> {
    facts.ends.service = Service::of(destination, false);
    facts.route = Route::Passthrough;
    if let Destination::Pod(workload) = destination {
        name_plain_destination(facts, Some(workload));
    }
    plain(worker, pod, facts.addressed, facts).await
}

fn name_plain_destination(facts: &mut Facts, workload: Option<&Arc<Workload>>) {
    facts.ends.destination = workload.map(|workload| workload.labels.clone());
    facts.ends.destination_principal = None;
    facts.destination_pod = workload.map(|workload| workload.key.clone());
}

async fn plain(
    worker: &Rc<Worker>,
    pod: &Arc<Pod>,
    addr: SocketAddr,
    facts: &mut Facts,
) -> Result<Way, Failure> {
    let dialled = net::dial(pod, addr, Purpose::Plain, worker.shared.config.connect_timeout)
        .await
        .map_err(|error| Failure::new("UF", "connect", format!("{addr} cannot be reached: {error}")))?;
    facts.upstream = Some((addr, dialled.stream.local_addr().ok()));
    let live = worker.live.connection(pod, None);
    Ok(Way { upstream: Upstream::Socket(dialled), live, learning: None })
}

/// Tries endpoints until one does, as long as no byte has moved and time is left.
async fn any_endpoint(
    worker: &Rc<Worker>,
    pod: &Arc<Pod>,
    source: &LocalWorkload,
    candidates: &[Candidate],
    facts: &mut Facts,
) -> Result<(Way, EndpointLoad), Failure> {
    let mut tried = SmallVec::<[usize; ATTEMPTS]>::new();
    let mut last = Failure::new("UH", "no_endpoint", "there is no endpoint to connect to");
    while tried.len() < ATTEMPTS && facts.began.elapsed() < worker.shared.config.connect_timeout {
        let mut random = |below: usize| usize::try_from(worker.random() % below.max(1) as u64).unwrap_or(0);
        let load = |endpoint: &SocketAddr| worker.endpoint_load(endpoint);
        let Some(index) = pick(candidates, &tried, &mut random, &load) else { break };
        let Some(candidate) = candidates.get(index) else { break };
        let load = worker.load_endpoint(candidate.addr);
        match one_endpoint(worker, pod, source, candidate, facts).await {
            Ok(way) => return Ok((way, load)),
            Err(Setback::Final(failure)) => return Err(failure),
            Err(Setback::Endpoint(failure)) => last = failure,
        }
        tried.push(index);
    }
    Err(last)
}

async fn one_endpoint(
    worker: &Rc<Worker>,
    pod: &Arc<Pod>,
    source: &LocalWorkload,
    candidate: &Candidate,
    facts: &mut Facts,
) -> Result<Way, Setback> {
    facts.side = Side::Source;
    facts.upstream = Some((candidate.addr, None));
    match &candidate.path {
        Path::SameNode(local) => same_node(worker, pod, source, local, (candidate.addr, facts)).await,
        Path::Hbone(destination) => {
            facts.route = Route::Hbone;
            name_plain_destination(facts, Some(destination));
            facts.ends.destination_principal = Some(destination.labels.principal.clone());
            let tunnel =
                client::open(worker, pod, &source.workload, destination, (candidate.addr, facts)).await?;
            let live = worker.live.connection(pod, None);
            let TunnelStream { stream, permit } = tunnel;
            Ok(Way { upstream: Upstream::Tunnel(TunnelIo::new(stream), permit), live, learning: None })
        }
        Path::Plaintext => {
            facts.route = Route::Plaintext;
            name_plain_destination(facts, candidate.workload.as_ref());
            plain(worker, pod, candidate.addr, facts).await.map_err(Setback::Endpoint)
        }
    }
}

/// A pod of this node: the destination's rules apply here, and no second hop is needed.
async fn same_node(
    worker: &Rc<Worker>,
    pod: &Arc<Pod>,
    source: &LocalWorkload,
    local: &LocalWorkload,
    (addr, facts): (SocketAddr, &mut Facts),
) -> Result<Way, Setback> {
    facts.route = Route::Node;
    facts.side = Side::Both;
    inbound::name_destination(facts, local, true);
    let Some(destination) = worker.pod(&local.workload.key) else {
        // Never around the proxy: without its namespace the destination's rules could not be enforced.
        let details = format!("pod {} is not enrolled yet", local.workload.key);
        return Err(Setback::Endpoint(Failure::new("UF", "not_enrolled", details)));
    };
    // The listener's network namespace says who speaks (ruling 2).
    let identity = Some(source.workload.identity.clone());
    let admission = Admission { pod: destination, identity, source: facts.client.ip(), destination: addr };
    match inbound::open_application(worker, pod, local, facts, admission).await {
        Ok(Application { dialled, live, learning }) => {
            Ok(Way { upstream: Upstream::Socket(dialled), live, learning })
        }
        Err(failure) if failure.flags == "DENY" => Err(Setback::Final(failure)),
        Err(failure) => Err(Setback::Endpoint(failure)),
    }
}

#[cfg(test)]
mod tests;
