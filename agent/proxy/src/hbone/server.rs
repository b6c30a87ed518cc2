//! The server's side of HBONE: accepts tunnels into a pod and serves the streams in them.

use std::cell::Cell;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::server::{Builder, Connection, SendResponse};
use h2::{Reason, RecvStream};
use http::{Method, Request, Response, StatusCode};
use tokio::time::timeout;
use weft_core::Identity;

use super::client::flushed;
use super::driver::Keepalive;
use super::headers::{add_baggage, forwarded_service};
use super::lanes::{self, Conduit, Lane, Lanes};
use super::{ACCEPTED_STREAMS, ACCEPTED_WINDOW, MAX_FRAME, PORT, STREAM_WINDOW};
use crate::account::{Account, Facts, Failure, Route, Side};
use crate::http::detect::{self, Heard, Speaks};
use crate::http::inbound::Arrival;
use crate::http::io::Transport;
use crate::http::serve::{Origin, serve as serve_http};
use crate::http::stream::TunnelIo;
use crate::inbound::{self, Application, Http, Next, Open};
use crate::labels::Service;
use crate::listener::Accepted;
use crate::net::{self, Dialled};
use crate::pod::{Admitted, Handshaking, Pod};
use crate::registry::{Admission, Registered};
use crate::relay::{Ahead, H2Stream, Pair, relay, unboxed};
use crate::tls;
use crate::unread::Counted;
use crate::worker::Worker;

/// How long a connection may wait for its turn to shake hands. Others of the pod are accepted meanwhile.
const TURN: Duration = Duration::from_secs(5);

/// What the streams of one tunnel share.
struct Tunnel {
    pod: Arc<Pod>,
    peer: SocketAddr,
    identity: Arc<Identity>,
    /// Fingerprint of the peer's certificate.
    certificate: Arc<str>,
    /// Streams whose application is being reached.
    opening: Cell<u32>,
}

/// One of them.
struct Opening(Rc<Tunnel>);

impl Opening {
    /// `None` when there are as many as there may be streams. A peer that opens and resets streams frees their
    /// places at once, but each of them still costs us an attempt to connect.
    fn new(tunnel: &Rc<Tunnel>) -> Option<Self> {
        let opening = tunnel.opening.get();
        (opening < ACCEPTED_STREAMS).then(|| {
            tunnel.opening.set(opening + 1);
            Self(tunnel.clone())
        })
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        self.0.opening.set(self.0.opening.get().saturating_sub(1));
    }
}

/// A tunnel that is established.
struct Established {
    tunnel: Rc<Tunnel>,
    connection: Connection<Conduit, Bytes>,
    lanes: Lanes,
    keepalive: Option<Keepalive>,
}

/// Serves one tunnel.
pub(crate) async fn serve(worker: Rc<Worker>, accepted: Accepted) {
    let Accepted { pod, stream, peer, local, admitted: _admitted } = accepted;
    let live = worker.live.tunnel(&pod);
    let Some(handshaking) = Handshaking::begin(&pod, peer.ip(), TURN).await else {
        worker.shared.counters.over_limit.add();
        net::reset(stream);
        return;
    };
    match Box::pin(establish(&worker, &pod, stream, peer)).await {
        Ok(established) => {
            drop(handshaking);
            worker.shared.context.metrics.tunnel_opened();
            run(&worker, established, &live).await;
            worker.shared.context.metrics.tunnel_closed();
        }
        Err(failure) => {
            let mut facts = Facts::new(Side::Destination, Route::Hbone, peer, local);
            let snapshot = worker.snapshot();
            if let Ok(local) = inbound::own_workload(&snapshot, &pod) {
                inbound::name_destination(&mut facts, local, false);
            }
            facts.fail(&worker, &failure);
        }
    }
}

async fn establish(
    worker: &Rc<Worker>,
    pod: &Arc<Pod>,
    stream: tokio::net::TcpStream,
    peer: SocketAddr,
) -> Result<Established, Failure> {
    let config = &worker.shared.config;
    let own = inbound::own_workload(&worker.snapshot(), pod)?.workload.identity.clone();
    let certificate = worker
        .shared
        .context
        .certs
        .wait(&own, config.handshake_timeout)
        .await
        .map_err(|error| Failure::new("IDENTITY_ERROR", "no_certificate", error.to_string()))?;
    let tls_failure =
        |why: String| Failure::new("TLS_FAILURE", "tls", format!("no tunnel with {peer}: {why}"));
    let secured = timeout(config.handshake_timeout, tls::accept(stream, certificate.server()))
        .await
        .map_err(|_| tls_failure("the TLS handshake took too long".to_owned()))?
        .map_err(|error| tls_failure(weft_identity::explain(&error)))?;
    let identity =
        weft_identity::peer_identity(&secured.peer).map_err(|error| tls_failure(error.to_string()))?;
    let (conduit, lanes) = lanes::server(secured.stream);
    let handshake = pin!(builder().handshake::<_, Bytes>(conduit));
    let http2_failure =
        |why: &str| Failure::new("H2_HANDSHAKE_FAILURE", "http2", format!("no tunnel with {peer}: {why}"));
    let mut connection = timeout(config.handshake_timeout, flushed(handshake, &lanes))
        .await
        .map_err(|_| http2_failure("the HTTP/2 preface took too long"))?
        .map_err(|error| http2_failure(&error))?;
    let keepalive = connection.ping_pong().map(|pings| Keepalive::new(pings, config.tunnel_idle));
    let certificate =
        weft_identity::fingerprint(secured.peer.first().map(|leaf| leaf.as_ref()).unwrap_or_default());
    let (pod, identity) = (pod.clone(), Arc::new(identity));
    let tunnel = Rc::new(Tunnel { pod, peer, identity, certificate, opening: Cell::new(0) });
    Ok(Established { tunnel, connection, lanes, keepalive })
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(ACCEPTED_WINDOW)
        .max_frame_size(MAX_FRAME)
        .max_header_list_size(64 * 1024)
        .max_concurrent_streams(ACCEPTED_STREAMS);
    builder
}

/// Accepts streams until the tunnel ends.
async fn run(worker: &Rc<Worker>, mut established: Established, live: &Registered) {
    let mut told = false;
    let end = poll_fn(|cx| {
        live.listen(cx);
        if live.is_cut() {
            return Poll::Ready(Err("it was cut".to_owned()));
        }
        if live.is_going_away() && !told {
            established.connection.graceful_shutdown();
            told = true;
        }
        if established.keepalive.as_mut().is_some_and(|keepalive| keepalive.poll_dead(cx).is_ready()) {
            return Poll::Ready(Err("the peer does not answer PINGs".to_owned()));
        }
        let ended = loop {
            match established.connection.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => {
                    let lane = established.lanes.lane(request.body().stream_id());
                    accept(worker, &established.tunnel, (request, lane), respond)
                }
                Poll::Ready(Some(Err(error))) => break Poll::Ready(Err(error.to_string())),
                Poll::Ready(None) => break Poll::Ready(Ok(())),
                Poll::Pending => break Poll::Pending,
            }
        };
        if let Poll::Ready(Err(error)) = established.lanes.flush(cx) {
            return Poll::Ready(Err(error.to_string()));
        }
        ended
    });
    if let Err(error) = end.await {
        tracing::debug!(peer = %established.tunnel.peer, error, "a tunnel broke");
    }
}

fn accept(
    worker: &Rc<Worker>,
    tunnel: &Rc<Tunnel>,
    (request, lane): (Request<RecvStream>, Lane),
    mut respond: SendResponse<Bytes>,
) {
    let config = &worker.shared.config;
    let pod = &tunnel.pod;
    let room = pod.has_room(config.connections_per_pod) && !pod.unread.exceeds(config.unread_per_pod);
    let Some(opening) = Opening::new(tunnel).filter(|_| room) else {
        worker.shared.counters.over_limit.add();
        respond.send_reset(Reason::REFUSED_STREAM);
        return;
    };
    let admitted = Admitted::new(pod, &worker.shared.loads, worker.index);
    let counted = Counted::new(pod, lane.unread());
    let set_up = Box::pin(set_up(worker.clone(), opening, (request, lane), respond));
    let task = worker.clone();
    worker.spawn(async move {
        match set_up.await {
            Some(Next::Relay(open)) => {
                let Open { account, pair, ahead, live, ports } = unboxed(open);
                let end = relay(pair, ahead, account.meter(), &live).await;
                drop(counted);
                drop(ports);
                account.finish(end.into_cut());
            }
            Some(Next::Http(http)) => {
                let Http { transport, arrival, live, .. } = unboxed(http);
                Box::pin(serve_http(task, transport, Origin::Inbound(arrival), live)).await;
                drop(counted);
            }
            None => {}
        }
        drop(admitted);
    });
}

async fn set_up(
    worker: Rc<Worker>,
    opening: Opening,
    (request, lane): (Request<RecvStream>, Lane),
    mut respond: SendResponse<Bytes>,
) -> Option<Next> {
    let tunnel = &opening.0;
    let mut facts = Box::new(Facts::new(Side::Destination, Route::Hbone, tunnel.peer, tunnel.peer));
    let opened = tokio::select! {
        biased;
        opened = open(&worker, tunnel, &request, &mut facts) => opened,
        _ = poll_fn(|cx| respond.poll_reset(cx)) => {
            let details = "the client gave up before the application was reached";
            facts.fail(&worker, &Failure::new("DC", "client_gone", details));
            return None;
        }
    };
    match opened {
        Ok((way, arrival, response)) => {
            let Ok(send) = respond.send_response(response, false) else {
                // The client has gone while the application was being reached.
                if let Way::Open(Application { dialled, .. }) = way {
                    net::reset(dialled.stream);
                }
                return None;
            };
            let stream = TunnelIo::new(H2Stream { send, recv: request.into_body(), lane });
            begin(&worker, facts, (way, arrival), stream).await
        }
        Err((status, failure)) => {
            facts.fail(&worker, &failure);
            let mut response = Response::new(());
            *response.status_mut() = status;
            // The client may have gone.
            let _ = respond.send_response(response, true);
            None
        }
    }
}

/// How far the way to the application is when the client is told to begin.
enum Way {
    /// The stream speaks HTTP: requests are decided one by one.
    Http,
    /// The application is there.
    Open(Application),
    /// The policies say something about requests: whether they apply shows with the first bytes (AP-13).
    Later(Admission),
}

/// Relays to the application, unless the stream turns out to speak HTTP.
async fn begin(
    worker: &Rc<Worker>,
    mut facts: Box<Facts>,
    (way, arrival): (Way, Arrival),
    stream: TunnelIo,
) -> Option<Next> {
    let mut client = Transport::Tunnel(stream);
    let spoke = |application: &mut Application, cx: &mut Context<'_>| {
        application.dialled.stream.poll_read_ready(cx).is_ready()
    };
    let snapshot = worker.snapshot();
    let unknown = Speaks::inbound_of(&snapshot, &arrival) == Speaks::Unknown;
    let patience = detect::patience(&snapshot);
    let heard = match way {
        Way::Http => Ok(Heard::Http(None)),
        Way::Open(application) if !unknown => Ok(Heard::Opaque(application)),
        Way::Open(application) => {
            detect::listen(&mut client, patience, async { Ok(application) }, spoke).await
        }
        Way::Later(admission) => {
            let opening = pin!(async {
                let local = inbound::own_workload(&snapshot, &arrival.pod)?;
                inbound::open_application(worker, &arrival.pod, local, &mut facts, admission).await
            });
            detect::listen(&mut client, patience, opening, spoke).await
        }
    };
    match (heard, client) {
        (Ok(Heard::Opaque(application)), Transport::Tunnel(stream)) => {
            let Application { dialled, client: _, live, learning } = application;
            let Dialled { stream: application, lease } = dialled;
            let account = Account::open(worker, facts, learning);
            let (stream, received) = stream.into_parts();
            let ahead = Ahead { socket: Bytes::new(), stream: received };
            let pair = Pair::ServerTcp(application, stream);
            Some(Next::Relay(Box::new(Open { account, pair, ahead, live, ports: (lease, None) })))
        }
        (Ok(Heard::Http(early)), transport) => {
            inbound::keep_for_requests(worker, &arrival, early);
            let live = worker.live.tunnel(&arrival.pod);
            Some(Next::Http(Box::new(Http { transport, arrival, live, port: None })))
        }
        // The client is a tunnel.
        (Ok(Heard::Opaque(_)), Transport::Tcp(..)) => None,
        // What is left of the stream is reset.
        (Err(failure), _) => {
            facts.fail(worker, &failure);
            None
        }
    }
}

async fn open(
    worker: &Rc<Worker>,
    tunnel: &Tunnel,
    request: &Request<RecvStream>,
    facts: &mut Facts,
) -> Result<(Way, Arrival, Response<()>), (StatusCode, Failure)> {
    let snapshot = worker.snapshot();
    let local = inbound::own_workload(&snapshot, &tunnel.pod)
        .map_err(|failure| (StatusCode::SERVICE_UNAVAILABLE, failure))?;
    let source =
        snapshot.workload_by_ip(&tunnel.peer.ip()).filter(|source| *source.identity == *tunnel.identity);
    inbound::name_source(facts, source);
    facts.ends.source_principal = Some(match source {
        Some(source) => source.labels.principal.clone(),
        None => tunnel.identity.to_string().into(),
    });
    facts.destination_pod = Some(tunnel.pod.key.clone());
    let destination = destination(request, &local.workload.ips)
        .map_err(|details| (StatusCode::BAD_REQUEST, Failure::new("CONNECT", "bad_request", details)))?;
    facts.addressed = destination;
    if let Some(service) = forwarded_service(request.headers(), &snapshot) {
        facts.ends.service = Service::Known { service, port: 0 };
    }
    let identity = Some(tunnel.identity.clone());
    let admission = Admission { pod: tunnel.pod.clone(), identity, source: tunnel.peer.ip(), destination };
    let certificate = Some(tunnel.certificate.clone());
    let arrival = Arrival { certificate, ..Arrival::of(&admission, facts, source) };
    let refused = |failure: Failure| {
        let denied = failure.flags == "DENY";
        (if denied { StatusCode::UNAUTHORIZED } else { StatusCode::SERVICE_UNAVAILABLE }, failure)
    };
    let way = match Speaks::inbound(local, destination.port()) {
        Speaks::Http => {
            inbound::authenticated(local, facts, &admission).map_err(refused)?;
            Way::Http
        }
        Speaks::Unknown if local.policies.reads_http() => {
            inbound::authenticated(local, facts, &admission).map_err(refused)?;
            Way::Later(admission)
        }
        Speaks::Opaque | Speaks::Unknown => {
            let opening = inbound::open_application(worker, &tunnel.pod, local, facts, admission);
            Way::Open(opening.await.map_err(refused)?)
        }
    };
    let mut response = Response::new(());
    add_baggage(response.headers_mut(), worker.baggage.of(&local.workload));
    Ok((way, arrival, response))
}

/// The application that a request is for: a port of the pod itself.
fn destination<B>(request: &Request<B>, own: &[std::net::IpAddr]) -> Result<SocketAddr, String> {
    if request.method() != Method::CONNECT {
        return Err(format!("the method is {}; only CONNECT is served", request.method()));
    }
    let authority = request.uri().authority().map(http::uri::Authority::as_str).unwrap_or_default();
    let addr: SocketAddr =
        authority.parse().map_err(|_| format!("the authority `{authority}` is not an address and a port"))?;
    let addr = net::unmapped(addr);
    if !own.contains(&addr.ip()) {
        return Err(format!("the authority `{authority}` is not an address of this pod"));
    }
    if addr.port() == PORT || addr.port() == 0 {
        return Err(format!("port {} is not an application's", addr.port()));
    }
    Ok(addr)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testbed::{Bed, identity, run};

    #[test]
    fn only_ports_of_the_pod_itself_are_served() {
        let own = ["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        let ask = |method: Method, authority: &str| {
            let mut request = Request::new(());
            *request.method_mut() = method;
            *request.uri_mut() = authority.parse().unwrap();
            destination(&request, &own)
        };
        assert_eq!(ask(Method::CONNECT, "10.0.0.1:80"), Ok("10.0.0.1:80".parse().unwrap()));
        assert_eq!(ask(Method::CONNECT, "[fd00::1]:80"), Ok("[fd00::1]:80".parse().unwrap()));
        for (method, authority) in [
            (Method::GET, "10.0.0.1:80"),
            (Method::CONNECT, "10.0.0.2:80"),
            (Method::CONNECT, "127.0.0.1:80"),
            (Method::CONNECT, "10.0.0.1:15008"),
            (Method::CONNECT, "10.0.0.1:0"),
            (Method::CONNECT, "cart.shop:80"),
            (Method::CONNECT, "10.0.0.1"),
        ] {
            assert!(ask(method.clone(), authority).is_err(), "{method} {authority}");
        }
    }

    #[test]
    fn unfinished_attempts_of_a_tunnel_are_limited() {
        run(async {
            let bed = Bed::new("b");
            let peer = SocketAddr::new(bed.client_ip, 40000);
            let identity = Arc::new(identity("client"));
            let (pod, certificate) = (bed.server.clone(), "".into());
            let tunnel = Rc::new(Tunnel { pod, peer, identity, certificate, opening: Cell::new(0) });
            let mut attempts: Vec<_> =
                (0..ACCEPTED_STREAMS).map(|_| Opening::new(&tunnel).unwrap()).collect();
            assert!(Opening::new(&tunnel).is_none());
            attempts.pop();
            assert!(Opening::new(&tunnel).is_some());
        });
    }
}
