//! A captured connection of a pod: decide where it goes, open the way, relay.
//!
//! The way is open before a byte of the client is read, so protocols in which the server speaks first work,
//! and another endpoint can still be tried when one fails.

use std::cell::Cell;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use smallvec::SmallVec;
use tokio::net::TcpStream;
use tokio::time::timeout;
use weft_core::Snapshot;
use weft_core::decide::http::{Caller, Cluster, choose};
use weft_core::decide::outbound::{outbound, pick};
use weft_core::decide::{Candidate, Destination, OutboundDecision, Path, route_connection};
use weft_core::resource::PortProtocol;
use weft_core::snapshot::{LocalWorkload, Workload};

use crate::account::{Account, Facts, Failure, Route, Side};
use crate::early::{Early, How, Purpose, Upstream};
use crate::hbone::client::{self, TunnelStream};
use crate::hbone::pool::Permit;
use crate::hello;
use crate::http::detect::{self, Heard, Speaks};
use crate::http::exchange::Outbound;
use crate::http::io::Transport;
use crate::http::serve::{Origin, serve as serve_http};
use crate::http::stream::TunnelIo;
use crate::http::upstream::{Chosen, Leg, Opaque, Place, Tls};
use crate::inbound::{self, Application};
use crate::labels::Service;
use crate::learn::Learning;
use crate::listener::Accepted;
use crate::net::{self, Dialled};
use crate::pod::Pod;
use crate::ports::Lease;
use crate::registry::{Admission, Registered};
use crate::relay::{Ahead, Pair, relay, unboxed};
use crate::worker::{EndpointLoad, Worker};

/// Endpoints that are tried for one connection.
const ATTEMPTS: usize = 5;

/// A way that is open.
struct Way {
    upstream: Upstream,
    /// What else it is good for.
    purpose: Purpose,
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
            let Open { account, pair, ahead, live, held } = unboxed(open);
            let end = relay(pair, ahead, account.meter(), &live).await;
            drop(held);
            account.finish(end.into_cut());
        }
        Some(Next::Http(http)) => {
            let (transport, outbound, live) = unboxed(http);
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
    held: (Load, Held),
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
        Ok(Heard::Http(early)) => {
            if let Some((Way { upstream, purpose, .. }, _)) = early {
                Early::keep(&worker, purpose, upstream);
            }
            let live = worker.live.tunnel(&pod);
            let outbound = Outbound { pod, client: peer, original: local };
            Some(Next::Http(Box::new((Transport::Tcp(stream, ahead), outbound, live))))
        }
        Ok(Heard::Opaque((way, load))) => {
            let load = match load.settle() {
                Ok(load) => load,
                Err(failure) => {
                    net::reset(stream);
                    facts.fail(&worker, &failure);
                    return None;
                }
            };
            let Way { upstream, purpose: _, live, learning } = way;
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
                Upstream::Secured(server, received, lease) => {
                    ahead.stream = received;
                    (Pair::ClientTls(stream, server), Held::Port(lease))
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
type Opened = (Way, Load);

/// How a connection is counted while it is open.
enum Load {
    /// For nobody.
    None,
    /// For the endpoint.
    Endpoint(#[expect(dead_code, reason = "held until it is dropped")] EndpointLoad),
    /// For the endpoint and the cluster, within the limits of the client's policy.
    Cluster(#[expect(dead_code, reason = "held until it is dropped")] Place),
    /// As before, once it is known that the connection is not HTTP: that has limits of its own.
    Later(Box<(Opaque, Chosen)>),
}

impl Load {
    /// Counts a connection that turned out not to be HTTP.
    fn settle(self) -> Result<Self, Failure> {
        match self {
            Self::Later(later) => later.0.place(&later.1).map(Self::Cluster),
            Self::None | Self::Endpoint(_) | Self::Cluster(_) => Ok(self),
        }
    }
}

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
    if !pod.has_address(&source.workload, &facts.client.ip()) {
        worker.shared.counters.forged_sources.add();
        let details = format!("{} is not an address of pod {}", facts.client.ip(), pod.key);
        return Err(Failure::new("DENY", "forged_source", details));
    }
    facts.ends.source_principal = Some(source.workload.labels.principal.clone());
    let namespace = &*source.workload.key.namespace;
    match Speaks::outbound(&snapshot, namespace, facts.addressed) {
        Speaks::Http => Ok(Heard::Http(None)),
        Speaks::Opaque => {
            let sni = if is_tls(&snapshot, namespace, facts.addressed) {
                hello::server_name(client, &worker.shared.config).await
            } else {
                None
            };
            let known = Known { opaque: true, sni: sni.as_deref() };
            Ok(Heard::Opaque(establish(worker, pod, (&snapshot, source), known, facts).await?))
        }
        Speaks::Unknown => {
            let known = Known { opaque: false, sni: None };
            let opening = pin!(establish(worker, pod, (&snapshot, source), known, facts));
            let patience = detect::patience(&snapshot);
            detect::listen(client, patience, opening, |(way, _), cx| way.upstream.has_spoken(cx)).await
        }
    }
}

/// What is known about a connection when its way is opened.
struct Known<'a> {
    /// It is certainly not HTTP.
    opaque: bool,
    /// The server that a TLS client asks for.
    sni: Option<&'a str>,
}

/// Whether a port is declared to speak TLS: then the client begins, with the name of the server.
fn is_tls(snapshot: &Snapshot, client: &str, addressed: SocketAddr) -> bool {
    let port = snapshot.addressed(&addressed, Some(client)).and_then(|(service, at)| service.ports.get(at));
    port.is_some_and(|port| port.protocol == PortProtocol::Tls)
}

async fn establish(
    worker: &Rc<Worker>,
    pod: &Arc<Pod>,
    (snapshot, source): (&Arc<Snapshot>, &Arc<LocalWorkload>),
    known: Known<'_>,
    facts: &mut Facts,
) -> Result<Opened, Failure> {
    let leg = Leg {
        pod,
        source,
        client: facts.client,
        original: facts.addressed,
        snapshot,
        local: Cell::default(),
    };
    let workload = &source.workload;
    let caller = Caller { workload, original: leg.original, labels: &workload.pod_labels };
    let decision = route_connection(snapshot, &caller, known.sni);
    if let Some((service, at)) = &decision.service {
        let port = service.ports.get(*at).map_or(0, |port| port.port);
        facts.ends.service = Service::Known { service: service.clone(), port };
        let mut random = |below: u64| worker.random() % below.max(1);
        return match choose(&decision.targets, &mut random).map(|target| &target.cluster) {
            Some(Ok(cluster)) => in_cluster(worker, &leg, (cluster, known.opaque), facts).await,
            Some(Err(name)) => {
                Err(Failure::new("NC", "no_cluster", format!("{name} is the name of no cluster")))
            }
            None => Err(Failure::new("NR", "no_route", "no destination of the rule has a weight")),
        };
    }
    match outbound(snapshot, workload, facts.addressed) {
        OutboundDecision::Endpoints { destination, candidates } => {
            facts.ends.service = Service::of(&destination, false);
            let (way, load) = any_endpoint(worker, pod, source, &candidates, facts).await?;
            Ok((way, Load::Endpoint(load)))
        }
        OutboundDecision::Passthrough { destination } => {
            Box::pin(pass_through(worker, pod, &destination, facts)).await.map(|way| (way, Load::None))
        }
        OutboundDecision::Unreachable { destination, reason, flag } => {
            facts.ends.service = Service::of(&destination, true);
            Err(Failure::new(flag, "unreachable", reason))
        }
    }
}

/// Tries endpoints of a cluster as [`any_endpoint`] does, under the client's policy.
async fn in_cluster(
    worker: &Rc<Worker>,
    leg: &Leg<'_>,
    (cluster, opaque): (&Arc<Cluster>, bool),
    facts: &mut Facts,
) -> Result<Opened, Failure> {
    let policy = Opaque::new(worker, leg, cluster);
    let tls = policy.tls(worker, leg).await?;
    facts.lifetime = policy.lifetime();
    let limit = policy.connect_timeout().unwrap_or(worker.shared.config.connect_timeout);
    let mut tried = SmallVec::<[SocketAddr; ATTEMPTS]>::new();
    let nobody = format!("port {} of Service {} has no ready endpoint", cluster.port, cluster.service.key);
    let mut last = Failure::new("UH", "unreachable", nobody);
    while tried.len() < ATTEMPTS && facts.began.elapsed() < limit {
        let Some(chosen) = policy.choose(worker, leg, &tried) else { break };
        tried.push(chosen.candidate.addr);
        let place = if opaque { Some(policy.place(&chosen)?) } else { None };
        let opening = async {
            match &tls {
                Some(tls) => Box::pin(secured(worker, leg.pod, &chosen.candidate, tls, facts)).await,
                None => one_endpoint(worker, leg.pod, leg.source, &chosen.candidate, facts).await,
            }
        };
        let opened = match policy.connect_timeout() {
            Some(limit) => timeout(limit, opening).await.unwrap_or_else(|_| {
                let details = format!("no answer from {} within connectTimeout", chosen.candidate.addr);
                Err(Setback::Endpoint(Failure::new("UF", "connect", details)))
            }),
            None => opening.await,
        };
        match opened {
            Ok(way) => {
                policy.reached(&chosen, None);
                way.upstream.keep_alive(policy.keepalive());
                let later = || Load::Later(Box::new((policy.clone(), chosen)));
                return Ok((way, place.map_or_else(later, Load::Cluster)));
            }
            Err(Setback::Final(failure)) => return Err(failure),
            Err(Setback::Endpoint(failure)) => {
                policy.reached(&chosen, Some(&failure));
                last = failure;
            }
        }
    }
    Err(last)
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
    let dialled = net::dial(pod, addr, net::Purpose::Plain, worker.shared.config.connect_timeout)
        .await
        .map_err(|error| Failure::new("UF", "connect", format!("{addr} cannot be reached: {error}")))?;
    facts.upstream = Some((addr, dialled.stream.local_addr().ok()));
    let live = worker.live.connection(pod, None);
    let purpose = Purpose { pod: pod.key.clone(), endpoint: addr, how: How::Plain };
    Ok(Way { upstream: Upstream::Socket(dialled), purpose, live, learning: None })
}

/// An endpoint to which the client's policy wants TLS begun.
async fn secured(
    worker: &Rc<Worker>,
    pod: &Arc<Pod>,
    candidate: &Candidate,
    tls: &Tls,
    facts: &mut Facts,
) -> Result<Way, Setback> {
    facts.side = Side::Source;
    facts.route = Route::Plaintext;
    facts.upstream = Some((candidate.addr, None));
    name_plain_destination(facts, candidate.workload.as_ref());
    let Way { upstream, purpose, live, learning } =
        plain(worker, pod, candidate.addr, facts).await.map_err(Setback::Endpoint)?;
    let Upstream::Socket(Dialled { stream, lease }) = upstream else {
        return Ok(Way { upstream, purpose, live, learning });
    };
    let limit = worker.shared.config.handshake_timeout;
    let stream = tls.begin(stream, candidate.addr, limit).await.map_err(Setback::Endpoint)?;
    let purpose = Purpose { how: How::Secured, ..purpose };
    Ok(Way { upstream: Upstream::Secured(stream, Bytes::new(), lease), purpose, live, learning })
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

/// What is no tunnel takes a future of its own: the largest of them would be part of all, and many wait at a time.
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
        Path::SameNode(local) => {
            Box::pin(same_node(worker, pod, source, local, (candidate.addr, facts))).await
        }
        Path::Hbone(destination) => {
            facts.route = Route::Hbone;
            name_plain_destination(facts, Some(destination));
            facts.ends.destination_principal = Some(destination.labels.principal.clone());
            let tunnel =
                client::open(worker, pod, &source.workload, destination, (candidate.addr, facts)).await?;
            let live = worker.live.connection(pod, None);
            let TunnelStream { stream, permit } = tunnel;
            facts.upstream = Some((candidate.addr, permit.tunnel().local()));
            let upstream = Upstream::Tunnel(TunnelIo::new(stream), permit);
            let identities = (source.workload.identity.clone(), destination.identity.clone());
            let how = How::Tunnel(identities.0, identities.1);
            let purpose = Purpose { pod: pod.key.clone(), endpoint: candidate.addr, how };
            Ok(Way { upstream, purpose, live, learning: None })
        }
        Path::Plaintext => {
            facts.route = Route::Plaintext;
            name_plain_destination(facts, candidate.workload.as_ref());
            Box::pin(plain(worker, pod, candidate.addr, facts)).await.map_err(Setback::Endpoint)
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
    let admission =
        Admission { pod: destination.clone(), identity, source: facts.client.ip(), destination: addr };
    match inbound::open_application(worker, pod, local, facts, admission).await {
        Ok(application) => {
            let purpose = application.purpose(&destination, addr);
            let Application { dialled, client: _, live, learning } = application;
            Ok(Way { upstream: Upstream::Socket(dialled), purpose, live, learning })
        }
        Err(failure) if failure.flags == "DENY" => Err(Setback::Final(failure)),
        Err(failure) => Err(Setback::Endpoint(failure)),
    }
}

#[cfg(test)]
mod tests;
