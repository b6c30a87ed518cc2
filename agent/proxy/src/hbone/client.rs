//! The client's side of HBONE: tunnels to other nodes and streams in them.

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Builder, Connection};
use http::StatusCode;
use tokio::time::{Instant, timeout};
use weft_core::snapshot::Workload;

use super::driver::Keepalive;
use super::headers::connect_request;
use super::lanes::{self, Conduit, Lanes};
use super::pool::{Dialling, Permit, Target, Tunnel, Usage};
use super::{MAX_FRAME, PORT, STREAM_WINDOW, STREAMS, connection_window};
use crate::ProxyConfig;
use crate::account::{Facts, Failure};
use crate::labels::Service;
use crate::net::{self, Dialled, Purpose};
use crate::outbound::Setback;
use crate::pod::Pod;
use crate::ports::Lease;
use crate::relay::H2Stream;
use crate::tls;
use crate::worker::Worker;

/// Tunnels that are tried for one stream, not counting those that were there before it and are over: of a peer that
/// goes away they may be many.
const TRIES: usize = 3;

/// A stream to an application on another node.
pub(crate) struct TunnelStream {
    /// The stream.
    pub(crate) stream: H2Stream,
    /// Its place in the tunnel.
    pub(crate) permit: Permit,
}

/// Opens a stream to `authority`, an application of `destination`.
pub(crate) async fn open(
    worker: &Rc<Worker>,
    pod: &Arc<Pod>,
    source: &Workload,
    destination: &Workload,
    (authority, facts): (SocketAddr, &Facts),
) -> Result<TunnelStream, Setback> {
    let target = Target {
        pod: pod.key.clone(),
        source: source.identity.clone(),
        peer: authority.ip(),
        destination: destination.identity.clone(),
    };
    let service = match &facts.ends.service {
        Service::Known { service, .. } => Some(&**service),
        Service::Passthrough | Service::BlackHole | Service::Unknown => None,
    };
    let start = |dialling: Dialling| {
        let (task, pod) = (worker.clone(), pod.clone());
        worker.spawn(async move {
            let result = dial(&task, &pod, dialling.target()).await;
            dialling.done(result);
        });
    };
    let mut last = failed(authority, "CONNECT", "the tunnel ended before the stream began");
    let (began, mut tries) = (Instant::now(), 0);
    while tries < TRIES {
        let mut permit = timeout(patience(&worker.shared.config), worker.tunnels.checkout(&target, start))
            .await
            .map_err(|_| failed(authority, "UF", "no tunnel had a place in time"))
            .flatten()
            .map_err(Setback::Endpoint)?;
        let request = connect_request(worker, source, authority, facts.client, service)
            .map_err(|error| Setback::Final(failed(authority, "CONNECT", error)))?;
        let limit = worker.shared.config.tunnel_timeout;
        match timeout(limit, request_stream(&mut permit, request)).await {
            Ok(Ok((StatusCode::OK, stream))) => return Ok(TunnelStream { stream, permit }),
            Ok(Ok((status, _))) => return Err(refused(authority, status)),
            Ok(Err(NoStream::Refused(error))) => {
                tries += 1;
                permit.tunnel_is_gone();
                worker.tunnels.sweep(&target);
                last = failed(authority, "CONNECT", error);
            }
            Ok(Err(NoStream::Over(error))) => {
                // None comes again: it is out of the pool.
                tries += usize::from(!permit.is_older_than(began));
                permit.tunnel_is_gone();
                worker.tunnels.sweep(&target);
                last = failed(authority, "CONNECT", error);
            }
            Ok(Err(NoStream::Unanswered(error))) => {
                return Err(Setback::Endpoint(failed(authority, "CONNECT", error)));
            }
            Err(_) => {
                let details = format!("no answer within {} s", limit.as_secs());
                return Err(Setback::Endpoint(failed(authority, "CONNECT", details)));
            }
        }
    }
    Err(Setback::Endpoint(last))
}

/// How long a place in a tunnel may take: every step of [`dial`] may use up its own limit.
fn patience(config: &ProxyConfig) -> Duration {
    config.connect_timeout + config.handshake_timeout * 4
}

/// Why a request has no answer.
enum NoStream {
    /// The peer certainly did nothing with it: it may be sent again.
    Refused(h2::Error),
    /// The tunnel takes no streams any more, or broke before the answer. That may be asked for again as well: no byte of
    /// the client has left, so all that an application can have seen is a connection on which nothing came.
    Over(h2::Error),
    /// The peer has ended the stream.
    Unanswered(h2::Error),
}

async fn request_stream(
    permit: &mut Permit,
    request: http::Request<()>,
) -> Result<(StatusCode, H2Stream), NoStream> {
    let (mut sender, lanes) =
        permit.take_sender().ok_or_else(|| NoStream::Refused(h2::Reason::REFUSED_STREAM.into()))?;
    poll_fn(|cx| sender.poll_ready(cx)).await.map_err(NoStream::Over)?;
    let (response, send) = sender.send_request(request, false).map_err(NoStream::Refused)?;
    // Nothing is sent before the answer, so that the request is on the wire by then.
    let lane = lanes.opened(response.stream_id());
    drop(sender);
    let (head, recv) = response.await.map_err(unanswered)?.into_parts();
    Ok((head.status, H2Stream { send, recv, lane }))
}

/// REFUSED_STREAM, and GOAWAY before the stream's turn, say that nothing was done (RFC 9113 8.7).
fn unanswered(error: h2::Error) -> NoStream {
    if error.reason() == Some(h2::Reason::REFUSED_STREAM) {
        return NoStream::Refused(error);
    }
    if error.is_go_away() || error.is_io() { NoStream::Over(error) } else { NoStream::Unanswered(error) }
}

fn refused(authority: SocketAddr, status: StatusCode) -> Setback {
    if status == StatusCode::UNAUTHORIZED {
        let details = format!("the policies of the destination {authority} refuse the connection");
        return Setback::Final(Failure::new("DENY", "refused_by_peer", details));
    }
    Setback::Endpoint(failed(authority, "UF", format!("the peer answers {status} to CONNECT")))
}

fn failed(authority: SocketAddr, flags: &'static str, why: impl std::fmt::Display) -> Failure {
    Failure::new(flags, "tunnel", format!("no stream to {authority}: {why}"))
}

/// Dials a tunnel and starts its driver.
async fn dial(worker: &Rc<Worker>, pod: &Arc<Pod>, target: &Target) -> Result<Tunnel, Failure> {
    let config = &worker.shared.config;
    let peer = SocketAddr::new(target.peer, PORT);
    let fail = |flags, reason, error: &dyn std::fmt::Display| {
        Failure::new(
            flags,
            reason,
            format!("no tunnel to {peer}, which should be {}: {error}", target.destination),
        )
    };
    let certificate = worker
        .shared
        .context
        .certs
        .wait(&target.source, config.handshake_timeout)
        .await
        .map_err(|error| fail("IDENTITY_ERROR", "no_certificate", &error))?;
    let client = certificate.client(&target.destination);
    let Dialled { stream, lease } = net::dial(pod, peer, Purpose::Tunnel, config.connect_timeout)
        .await
        .map_err(|error| fail("UF", "connect", &error))?;
    let local = stream.local_addr().ok();
    let secured = timeout(config.handshake_timeout, tls::connect(stream, client, target.peer))
        .await
        .map_err(|_| fail("TLS_FAILURE", "tls", &"the TLS handshake took too long"))?
        .map_err(|error| fail("TLS_FAILURE", "tls", &weft_identity::explain(&error)))?;
    let (conduit, lanes) = lanes::client(secured.stream);
    let handshake = pin!(builder().handshake::<_, Bytes>(conduit));
    let http2_failure = |error: &dyn std::fmt::Display| fail("H2_HANDSHAKE_FAILURE", "http2", error);
    let (send, mut connection) = timeout(config.handshake_timeout, flushed(handshake, &lanes))
        .await
        .map_err(|_| http2_failure(&"the HTTP/2 preface took too long"))?
        .map_err(|error| http2_failure(&error))?;
    let usage = Usage::new(local);
    if let Some(pings) = connection.ping_pong() {
        let keepalive = Keepalive::new(pings, config.tunnel_idle);
        let driver = Driver { connection, lanes: lanes.clone(), keepalive, usage: usage.clone(), lease };
        let (task, target) = (worker.clone(), target.clone());
        worker.spawn(async move { driver.run(&task, &target).await });
    }
    Ok(Tunnel { send, lanes, usage })
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(connection_window(STREAMS as u32))
        .max_frame_size(MAX_FRAME)
        .max_header_list_size(16 * 1024)
        .initial_max_send_streams(STREAMS)
        .enable_push(false);
    builder
}

/// Runs HTTP/2's part of a handshake. What it wrote last leaves with what the driver writes first.
pub(super) async fn flushed<T>(
    mut handshake: std::pin::Pin<&mut impl Future<Output = Result<T, h2::Error>>>,
    lanes: &Lanes,
) -> Result<T, String> {
    poll_fn(|cx| {
        if let Poll::Ready(done) = handshake.as_mut().poll(cx) {
            return Poll::Ready(done.map_err(|error| error.to_string()));
        }
        match lanes.flush(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error.to_string())),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// Keeps one tunnel going.
struct Driver {
    connection: Connection<Conduit, Bytes>,
    lanes: Lanes,
    keepalive: Keepalive,
    usage: Rc<Usage>,
    lease: Lease,
}

impl Driver {
    async fn run(mut self, worker: &Rc<Worker>, target: &Target) {
        let idle = worker.shared.config.tunnel_idle;
        worker.shared.context.metrics.tunnel_opened();
        let end = poll_fn(|cx| {
            if self.usage.idle_since().is_some_and(|since| since.elapsed() >= idle) {
                self.usage.close();
                worker.tunnels.sweep(target);
            }
            if self.keepalive.poll_dead(cx).is_ready() {
                return Poll::Ready(Err("it does not answer PINGs".to_owned()));
            }
            let ended = Future::poll(std::pin::Pin::new(&mut self.connection), cx);
            if self.lanes.is_leaving() && !self.usage.is_gone() {
                self.usage.close();
                worker.tunnels.sweep(target);
            }
            if let Poll::Ready(Err(error)) = self.lanes.flush(cx) {
                return Poll::Ready(Err(error.to_string()));
            }
            ended.map_err(|error| error.to_string())
        });
        if let Err(error) = end.await {
            tracing::debug!(peer = %target.peer, error, "a tunnel broke");
        }
        self.usage.close();
        worker.tunnels.sweep(target);
        worker.shared.context.metrics.tunnel_closed();
        drop(self.connection);
        drop(self.lease);
    }
}
