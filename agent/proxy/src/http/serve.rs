//! The server's side of an HTTP connection: reads requests, has them answered, writes the answers.

use std::cell::{Cell, RefCell};
use std::error::Error;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HeaderValue};
use http::{Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::{HttpService, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};

use super::body::Body;
use super::call::Call;
use super::exchange::{self, Outbound};
use super::flags::Reason;
use super::h1::server::{self, Ended};
use super::h1::{Duplex, Malformed, Progress, Smell, Switched};
use super::headers::strip_hop_by_hop;
use super::inbound::{self, Arrival};
use super::io::{Busy, Deadline, Io, Late, Transport, Watch};
use super::parting::Parting;
use super::record::Record;
use super::refused;
use super::reply::Reply;
use crate::account::{Facts, Failure, Route, Side};
use crate::inbound::own_workload;
use crate::registry::{Live, Registered};
use crate::sniff::{self, Protocol};
use crate::worker::Worker;

/// Bytes of the head of an HTTP/2 request (H-10).
const HEAD_BYTES: u32 = 60 * 1024;
/// Requests of one HTTP/2 connection at a time.
const STREAMS: u32 = 200;
/// What one HTTP/2 stream, and one connection, may send without being read, in bytes.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// How often an HTTP/2 client is asked for a sign of life, and how long it may take to answer.
const PING: Duration = Duration::from_secs(60);
const PONG: Duration = Duration::from_secs(20);
/// How long, and how much, a client may still send after it was told that its request is not understood.
/// A close before would reset the connection, and the client might never read the answer.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 256 * 1024;

/// Where a connection came from, which says what is to be done with its requests.
pub(crate) enum Origin {
    /// A pod of this node: the client's side, to begin with.
    Outbound(Outbound),
    /// Another node, or somebody without a tunnel: the server's side.
    Inbound(Arrival),
}

/// What the requests of one connection share.
pub(crate) struct Downstream {
    pub(crate) worker: Rc<Worker>,
    origin: Origin,
    watch: Rc<Watch>,
    /// Whether requests are HTTP/2.
    pub(crate) http2: bool,
    /// The connection is to end: an HTTP/1 client is told so with its next answer.
    parting: Cell<bool>,
    /// Set by the request that was answered with 101.
    upgrade: RefCell<Option<Upgrade>>,
}

/// What the connection knows about a request.
pub(crate) struct Admitted {
    /// What is wrong with its head.
    pub(crate) smell: Option<Smell>,
    /// Keeps the connection from being idle.
    pub(crate) busy: Busy,
}

/// A connection that is about to speak another protocol.
struct Upgrade {
    /// The application's side.
    upstream: Box<dyn Duplex>,
    /// Counts what is moved.
    record: Box<Record>,
    /// What the answer's body holds until the end.
    held: Body,
}

/// The client is to see a broken connection (HTTP/1) or stream (HTTP/2).
#[derive(Debug, thiserror::Error)]
#[error("the request is broken off")]
pub(crate) struct BrokenOff(#[from] h2::Error);

impl BrokenOff {
    /// For HTTP/2 clients: RST_STREAM with this reason.
    pub(crate) fn new() -> Self {
        Self(h2::Reason::INTERNAL_ERROR.into())
    }
}

impl Downstream {
    /// The application agrees to another protocol: both connections are joined once the client knows (H-5). Without
    /// having been asked it agrees to nothing.
    pub(crate) fn switch(
        &self,
        asked: bool,
        mut response: Response<Body>,
        record: Box<Record>,
    ) -> Result<Response<Body>, BrokenOff> {
        if !asked {
            let reply = Reply::flagged(502, "", "upstream_switched_protocols_unasked", Reason::UPE);
            return Ok(record.reply(reply));
        }
        let Some(upstream) = Switched::take(&mut response) else { return Err(BrokenOff::new()) };
        let (mut parts, held) = response.into_parts();
        strip_hop_by_hop(&mut parts.headers, true);
        parts.version = Version::HTTP_11;
        *self.upgrade.borrow_mut() = Some(Upgrade { upstream, record, held });
        Ok(Response::from_parts(parts, Body::empty()))
    }

    async fn answer(
        self: Rc<Self>,
        call: Box<Call>,
        smell: Option<Smell>,
    ) -> Result<Response<Body>, BrokenOff> {
        let admitted = Admitted { smell, busy: self.watch.request() };
        let mut answer = match &self.origin {
            Origin::Outbound(outbound) => exchange::exchange(&self, outbound, admitted, call).await,
            Origin::Inbound(arrival) => inbound::arrived(&self, arrival, admitted, call).await,
        }?;
        if self.parting.get() && !self.http2 && answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(answer)
    }

    /// Counts and logs a request of, or for, a pod that the configuration does not know (any more).
    pub(crate) fn unknown(&self, failure: &Failure) -> BrokenOff {
        let (side, route, client, addressed) = match &self.origin {
            Origin::Outbound(Outbound { client, original, .. }) => {
                (Side::Source, Route::Plaintext, *client, *original)
            }
            Origin::Inbound(arrival) => {
                (Side::Destination, arrival.route, arrival.client, arrival.destination)
            }
        };
        Facts::new(side, route, client, addressed).fail(&self.worker, failure);
        BrokenOff::new()
    }

    /// A record of a request that could not be read; `None` for an unknown pod, of which there is nothing to say.
    fn unread(&self) -> Option<Box<Record>> {
        let (worker, snapshot) = (&self.worker, self.worker.snapshot());
        let parts = refused::unread_head(self.http2);
        match &self.origin {
            Origin::Outbound(outbound) => {
                let source = own_workload(&snapshot, &outbound.pod).ok()?;
                Some(exchange::begin(worker, outbound, source, &parts))
            }
            Origin::Inbound(arrival) => {
                let local = own_workload(&snapshot, &arrival.pod).ok()?;
                Some(arrival.record(worker, local, &parts))
            }
        }
    }

    /// Counts and logs what ended the connection, where it was the client's fault.
    fn account(&self, end: &End) {
        let failure = match end {
            End::Malformed(malformed) => {
                // The connection has answered already.
                drop(self.unread().map(|record| record.reply(refused::unread(*malformed))));
                return;
            }
            End::Broken(error) => refused::broken_http2(error),
            End::Late(Late::Head) => Some(refused::late_head()),
            End::Late(Late::Body) => Some(refused::late_body()),
            End::Late(Late::Idle) | End::Over | End::Cut => None,
        };
        if let (Some(failure), Some(record)) = (failure, self.unread()) {
            record.closed(failure);
        }
    }
}

/// Serves a connection until it ends.
pub(crate) async fn serve(worker: Rc<Worker>, mut transport: Transport, origin: Origin, live: Registered) {
    let watch = Watch::new();
    let mut deadline = Deadline::new(watch.clone());
    let mut parting = Parting::default();
    let protocol = poll_fn(|cx| {
        live.listen(cx);
        if live.is_cut() {
            return Poll::Ready(Err(End::Cut));
        }
        let is_due = live.is_going_away() && parting.is_due(false, cx);
        let protocol = poll_protocol(&mut transport, cx);
        watch.set_opening(protocol.is_pending() && !transport.first_bytes().is_empty());
        match protocol {
            Poll::Ready(protocol) => Poll::Ready(protocol.ok_or(End::Over)),
            Poll::Pending if is_due => Poll::Ready(Err(End::Cut)),
            Poll::Pending => deadline.poll_over(cx).map(|late| Err(End::Late(late))),
        }
    });
    let protocol = protocol.await;
    let http2 = matches!(protocol, Ok(Protocol::Http2));
    let downstream = Rc::new(Downstream {
        worker,
        origin,
        watch: watch.clone(),
        http2,
        parting: Cell::new(false),
        upgrade: RefCell::default(),
    });
    if let Err(end) = protocol {
        downstream.account(&end);
        return;
    }
    if http2 {
        serve_http2(&downstream, Io::new(transport, None), deadline, &live).await;
    } else {
        let io = Io::new(transport, Some(watch));
        serve_http1(&downstream, io, deadline, &live).await;
    }
}

/// HTTP/2 or not; `None` when the client has left without a byte.
fn poll_protocol(transport: &mut Transport, cx: &mut Context<'_>) -> Poll<Option<Protocol>> {
    loop {
        match sniff::classify(transport.first_bytes()) {
            Protocol::Undecided => {}
            decided => return Poll::Ready(Some(decided)),
        }
        match ready!(transport.poll_more(cx)) {
            Ok(true) => {}
            Ok(false) | Err(_) => return Poll::Ready(None),
        }
    }
}

/// How driving a connection ended.
#[derive(Debug)]
enum End {
    /// Both sides are through with it.
    Over,
    /// The client's head was not understood.
    Malformed(Malformed),
    /// The client broke the protocol or went away.
    Broken(hyper::Error),
    /// Its time is over.
    Late(Late),
    /// It was cut.
    Cut,
}

/// A connection of either version.
trait Driven {
    type Output;
    /// Drives it.
    fn poll_on(&mut self, cx: &mut Context<'_>) -> Poll<Self::Output>;
    /// Ends it after the requests that are on it.
    fn graceful(&mut self);
}

/// A connection of HTTP/1.
struct Driven1<'a, F> {
    serving: Pin<&'a mut F>,
    progress: &'a Progress,
}

impl<F: Future> Driven for Driven1<'_, F> {
    type Output = F::Output;

    fn poll_on(&mut self, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.serving.as_mut().poll(cx)
    }

    fn graceful(&mut self) {
        self.progress.closing.set(true);
    }
}

impl<S> Driven for Pin<&mut http2::Connection<TokioIo<Io>, S, Tasks>>
where
    S: HttpService<Incoming, ResBody = Body, Error: Into<Box<dyn Error + Send + Sync>>, Future: 'static>,
{
    type Output = hyper::Result<()>;

    fn poll_on(&mut self, cx: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        self.as_mut().poll(cx)
    }

    fn graceful(&mut self) {
        self.as_mut().graceful_shutdown();
    }
}

/// Drives a connection until it ends by itself, or has to be ended.
async fn drive<C: Driven>(
    downstream: &Downstream,
    mut connection: C,
    mut deadline: Deadline,
    live: &Live,
) -> Result<C::Output, End> {
    let mut told = false;
    let mut parting = Parting::default();
    poll_fn(|cx| {
        live.listen(cx);
        if live.is_cut() {
            return Poll::Ready(Err(End::Cut));
        }
        if live.is_going_away() && !told {
            downstream.parting.set(true);
            told = downstream.http2 || parting.is_due(downstream.watch.is_busy(), cx);
            if told {
                connection.graceful();
            }
        }
        if let Poll::Ready(output) = connection.poll_on(cx) {
            return Poll::Ready(Ok(output));
        }
        match ready!(deadline.poll_over(cx)) {
            Late::Idle if !told => {
                // An HTTP/2 client hears it before its next request.
                told = true;
                connection.graceful();
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            late @ (Late::Idle | Late::Body | Late::Head) => Poll::Ready(Err(End::Late(late))),
        }
    })
    .await
}

async fn serve_http1(downstream: &Rc<Downstream>, io: Io, deadline: Deadline, live: &Registered) {
    let progress = &downstream.watch.progress;
    let answering = |request: Request<Body>, smell| downstream.clone().answer(request.into(), smell);
    let serving = pin!(server::serve(io, progress, answering));
    let driven = Driven1 { serving, progress };
    match drive(downstream, driven, deadline, live).await {
        Err(end) => downstream.account(&end),
        Ok(Ended::Over) => {}
        Ok(Ended::Unread(io)) => linger(io).await,
        Ok(Ended::Malformed(malformed, io)) => {
            downstream.account(&End::Malformed(malformed));
            linger(io).await;
        }
        Ok(Ended::Switched(io, ahead)) => {
            let upgrade = downstream.upgrade.borrow_mut().take();
            if let Some(upgrade) = upgrade {
                tunnel(io, ahead, upgrade, live).await;
            }
        }
    }
}

async fn serve_http2(downstream: &Rc<Downstream>, io: Io, deadline: Deadline, live: &Registered) {
    let mut builder = http2::Builder::new(Tasks(downstream.worker.clone()));
    builder
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(HEAD_BYTES)
        .max_send_buf_size(STREAM_WINDOW as usize)
        .timer(TokioTimer::new())
        .keep_alive_interval(PING)
        .keep_alive_timeout(PONG);
    // A stream becomes a task, and its future is moved on the way there.
    let answering = service_fn(|request: Request<Incoming>| {
        Box::pin(downstream.clone().answer(request.map(Body::from).into(), None))
    });
    let connection = pin!(builder.serve_connection(TokioIo::new(io), answering));
    // An end for whatever reason ends its streams as well.
    match drive(downstream, connection, deadline, live).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => downstream.account(&End::Broken(error)),
        Err(end) => downstream.account(&end),
    }
}

/// Runs the streams of HTTP/2 connections on their worker.
#[derive(Clone)]
pub(crate) struct Tasks(pub(crate) Rc<Worker>);

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for Tasks {
    fn execute(&self, task: F) {
        self.0.spawn(task);
    }
}

/// Moves bytes after an upgrade until both sides are through (H-5).
async fn tunnel(mut client: Io, ahead: Bytes, upgrade: Upgrade, live: &Registered) {
    let Upgrade { upstream: mut server, record, held } = upgrade;
    let moving = async {
        server.write_all(&ahead).await?;
        copy_bidirectional(&mut client, &mut server).await
    };
    let cut = poll_fn(|cx| {
        live.listen(cx);
        if live.is_cut() { Poll::Ready(()) } else { Poll::Pending }
    });
    tokio::select! {
        biased;
        () = cut => {}
        // A side that breaks ends the connection: there is nobody to be told.
        Ok((received, sent)) = moving => record.tunnelled(received + ahead.len() as u64, sent),
        else => {}
    }
    record.finish();
    drop(held);
}

/// Reads on for a moment, so that the client can read the answer before the connection is reset.
async fn linger(mut client: Io) {
    let reading = async {
        let mut left = LINGER_BYTES;
        let mut waste = [0; 4096];
        while left > 0 {
            match client.read(&mut waste).await {
                Ok(0) | Err(_) => return,
                Ok(count) => left = left.saturating_sub(count),
            }
        }
    };
    // Whether the client has read everything is its own affair.
    let _ = tokio::time::timeout(LINGER, reading).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of_output<A, B, C, F: Future>(_: impl FnOnce(A, B, C) -> F) -> usize {
        size_of::<F>()
    }

    /// What a request may have to do is moved for each of them, several times, whether it does it or not.
    #[test]
    fn what_is_rare_is_not_moved_for_every_request() {
        let size = size_of_output(Downstream::answer);
        assert!(size <= 11 * 1024, "the future of a request has {size} bytes: box what is rare");
    }
}
