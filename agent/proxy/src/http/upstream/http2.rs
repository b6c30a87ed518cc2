//! Requests over an HTTP/2 connection: each drives its own stream, in its own task.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use h2::client::{Builder, Connection, ResponseFuture, SendRequest};
use h2::{Ping, PingPong, Reason, SendStream};
use http::header::CONTENT_LENGTH;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Body as HttpBody;
use tokio::time::{sleep, timeout};

use super::super::body::{Body, BodyError};
use super::super::call::Call;
use super::super::expectation::Gate;
use super::super::headers::strip_hop_by_hop;
use super::dial::Wire;

/// What a stream's receiver may be sent ahead, in bytes.
const STREAM_WINDOW: u32 = 256 * 1024;
/// The same for all streams of a connection.
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// The longest list of headers of an answer, in bytes.
const HEADER_LIST: u32 = 64 * 1024;
/// Bytes of a stream that wait to be sent.
const SEND_BUFFER: usize = 256 * 1024;
/// Streams at a time before the server has said how many it takes.
const FIRST_STREAMS: usize = 100;

/// Takes requests of a connection.
pub(super) struct Sender {
    /// Never sends itself: a copy is made for each request, so that none waits for the stream of another.
    sender: RefCell<SendRequest<Bytes>>,
    over: Rc<Cell<bool>>,
}

/// Drives a connection.
pub(super) struct Driver {
    connection: Connection<Wire, Bytes>,
    pinging: Option<LocalBoxFuture<'static, ()>>,
    over: Rc<Cell<bool>>,
}

/// An answer whose head has come.
pub(super) struct Answer {
    /// The answer.
    pub(super) response: Response<Body>,
    /// What is left of the request's body: it has to go on while the answer waits to be read.
    pub(super) rest: Option<Box<Upload>>,
}

/// Why there is no answer.
pub(super) enum Failed {
    /// Nothing of the request was sent.
    Unsent(Box<Call>),
    /// The request's body did not come to its end.
    Body(BodyError),
    /// The stream or its connection broke.
    Stream(h2::Error),
}

/// Begins to speak HTTP/2. `pings` are the interval and the time for an answer: also an idle connection is asked for a
/// sign of life, since what is in between forgets connections on which nothing moves.
pub(super) async fn handshake(
    wire: Wire,
    pings: Option<(Duration, Duration)>,
) -> Result<(Sender, Driver), h2::Error> {
    let (sender, mut connection) = Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(HEADER_LIST)
        .max_send_buffer_size(SEND_BUFFER)
        .initial_max_send_streams(FIRST_STREAMS)
        .enable_push(false)
        .handshake(wire)
        .await?;
    let over = Rc::<Cell<bool>>::default();
    let pinging = pings.zip(connection.ping_pong());
    let pinging = pinging.map(|(times, pong)| -> LocalBoxFuture<'static, ()> { Box::pin(ping(pong, times)) });
    let driver = Driver { connection, pinging, over: over.clone() };
    Ok((Sender { sender: RefCell::new(sender), over }, driver))
}

/// Over when there was no answer in time.
async fn ping(mut pong: PingPong, (interval, limit): (Duration, Duration)) {
    loop {
        sleep(interval).await;
        if !matches!(timeout(limit, pong.ping(Ping::opaque())).await, Ok(Ok(_))) {
            return;
        }
    }
}

impl Driver {
    /// Ready when the connection is over. Its users see an error of it themselves.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let silent = self.pinging.as_mut().is_some_and(|pinging| pinging.as_mut().poll(cx).is_ready());
        if !silent {
            ready!(Pin::new(&mut self.connection).poll(cx).map(drop));
        }
        self.over.set(true);
        Poll::Ready(())
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.over.set(true);
    }
}

impl Sender {
    /// Whether it takes no more requests: the connection is over, or the server has said so.
    pub(super) fn is_closed(&self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        self.over.get() || matches!(self.sender.borrow_mut().poll_ready(&mut cx), Poll::Ready(Err(_)))
    }

    /// Sends a request.
    ///
    /// # Cancel safety
    /// Dropped, the stream is reset.
    pub(super) async fn send(&self, call: Box<Call>) -> Result<Answer, Failed> {
        let mut sender = self.sender.borrow().clone();
        if self.over.get() || poll_fn(|cx| sender.poll_ready(cx)).await.is_err() {
            return Err(Failed::Unsent(call));
        }
        let Call { mut parts, body, .. } = *call;
        // Rules may have added what HTTP/2 does not have (RFC 9113 8.2.2).
        strip_hop_by_hop(&mut parts.headers, false);
        let with_length = matches!(parts.method, Method::POST | Method::PUT | Method::PATCH);
        if let Some(length) = body.size_hint().exact().filter(|length| *length > 0 || with_length) {
            parts.headers.entry(CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(length));
        }
        let gate = parts.extensions.remove::<Arc<Gate>>();
        let ended = body.is_end_stream();
        let (answer, stream) =
            sender.send_request(Request::from_parts(parts, ()), ended).map_err(Failed::Stream)?;
        let upload = (!ended).then(|| Box::new(Upload { body, stream, chunk: Bytes::new(), last: false }));
        let mut waiting = Waiting { answer, gate, upload };
        poll_fn(|cx| waiting.poll(cx)).await
    }
}

/// A request whose answer has not come.
struct Waiting {
    answer: ResponseFuture,
    /// Told when the application wants the body.
    gate: Option<Arc<Gate>>,
    upload: Option<Box<Upload>>,
}

impl Waiting {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Answer, Failed>> {
        if let Some(upload) = &mut self.upload {
            match upload.poll(cx) {
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Failed::Body(error))),
                Poll::Ready(Ok(())) => self.upload = None,
                Poll::Pending => {}
            }
        }
        if let Some(gate) = &self.gate
            && let Poll::Ready(informed) = self.answer.poll_informational(cx)
        {
            if matches!(informed, Some(Ok(response)) if response.status() == StatusCode::CONTINUE) {
                gate.open();
            }
            self.gate = None;
        }
        let response = ready!(Pin::new(&mut self.answer).poll(cx)).map_err(Failed::Stream)?;
        Poll::Ready(Ok(Answer { response: response.map(Body::stream), rest: self.upload.take() }))
    }
}

/// A request's body on its way. Dropped before its end, the stream is reset.
pub(super) struct Upload {
    body: Body,
    stream: SendStream<Bytes>,
    /// Waits for room.
    chunk: Bytes,
    /// Nothing follows the chunk.
    last: bool,
}

impl Upload {
    /// Sends it to its end.
    pub(super) async fn run(mut self) {
        // Whoever reads the answer learns of an error there.
        let _ = poll_fn(|cx| self.poll(cx)).await;
    }

    /// Ready when there is nothing more to send, or nobody who wants it; an error is the body's own.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BodyError>> {
        loop {
            if !self.chunk.is_empty() || self.last {
                let sent = ready!(self.poll_send(cx));
                if sent.is_err() || self.last {
                    return Poll::Ready(Ok(()));
                }
                continue;
            }
            let frame = match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(frame) => frame,
                // Also a server that wants nothing more wakes this task.
                Poll::Pending => return self.stream.poll_reset(cx).map(|_| Ok(())),
            };
            match frame {
                None => self.last = true,
                Some(Err(error)) => {
                    self.stream.send_reset(Reason::INTERNAL_ERROR);
                    return Poll::Ready(Err(error));
                }
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(chunk) => {
                        self.chunk = chunk;
                        self.last = self.body.is_end_stream();
                    }
                    Err(frame) => {
                        let trailers = frame.into_trailers().unwrap_or_default();
                        // Fails where the stream is over already.
                        let _ = self.stream.send_trailers(trailers);
                        return Poll::Ready(Ok(()));
                    }
                },
            }
        }
    }

    /// Sends the chunk as there is room for it.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        while !self.chunk.is_empty() {
            self.stream.reserve_capacity(self.chunk.len());
            let room = match self.stream.capacity() {
                0 => match ready!(self.stream.poll_capacity(cx)) {
                    Some(room) => room?,
                    None => return Poll::Ready(Err(Reason::STREAM_CLOSED.into())),
                },
                room => room,
            };
            let part = self.chunk.split_to(room.min(self.chunk.len()));
            let end = self.last && self.chunk.is_empty();
            self.stream.send_data(part, end)?;
            if end {
                return Poll::Ready(Ok(()));
            }
        }
        Poll::Ready(if self.last { self.stream.send_data(Bytes::new(), true) } else { Ok(()) })
    }
}
