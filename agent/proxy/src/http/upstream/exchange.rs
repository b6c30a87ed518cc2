//! One request on its connection: sends it, and keeps account of it until the body of the answer has ended.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, Request, Response, StatusCode};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::task::unconstrained;
use weft_core::decide::http::ClusterPolicy;

use super::super::body::{Body, BodyError};
use super::connection::{Shared, Single, Usage};
use super::engine::Driving;
use super::limits::{Permit, Slot};
use super::outlier::{Outcome, status_of_grpc};
use super::pool::{Pool, Settings};
use super::state::{ClusterState, Host};
use super::{SendError, SendErrorKind};
use crate::worker::Worker;

/// A request counted for its endpoint.
#[derive(Debug)]
pub(super) struct Active(Arc<Host>);

impl Active {
    /// Counts until dropped.
    pub(super) fn new(host: &Arc<Host>) -> Self {
        host.active.add();
        Self(host.clone())
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.active.remove();
    }
}

/// A request counted for its connection.
pub(super) struct Using(Rc<Usage>);

impl Using {
    /// Counts until dropped.
    fn new(usage: &Rc<Usage>) -> Self {
        usage.begin();
        Self(usage.clone())
    }
}

impl Drop for Using {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// What carries a request.
pub(super) enum Carrier {
    /// A connection of its own, until the answer has ended.
    Single(Single),
    /// A connection with others.
    Shared(Rc<Shared>),
    /// No connection at all: the destination is served in this process. In HTTP/1.1 terms it is a connection.
    Node(#[expect(dead_code, reason = "held until it is dropped")] Option<Slot>),
}

/// The account of one request.
pub(super) struct Exchange {
    /// First what counts requests, so that whoever gets the connection next is not one too many.
    pub(super) permit: Option<Permit>,
    pub(super) active: Option<Active>,
    pub(super) carrier: Carrier,
    pub(super) home: Home,
    using: Option<Using>,
    /// After what it drives: whoever drops the request leaves the rest to the connection's own task.
    driving: Option<Driving>,
}

/// Where a connection goes back to.
#[derive(Clone)]
pub(super) struct Home {
    pub(super) worker: Rc<Worker>,
    pub(super) pool: Rc<Pool>,
    pub(super) cluster: Option<Arc<ClusterState>>,
    pub(super) settings: Settings,
}

impl Home {
    /// Takes a connection back.
    pub(super) fn take_back(&self, connection: Single) {
        self.pool.put(&self.worker, connection, self.cluster.as_ref(), &self.settings);
    }
}

impl Exchange {
    /// Begins; dropped, it ends without giving the connection back.
    pub(super) fn new(permit: Option<Permit>, active: Option<Active>, carrier: Carrier, home: Home) -> Self {
        let using = match &carrier {
            Carrier::Single(connection) => Some(Using::new(&connection.usage)),
            Carrier::Shared(connection) => Some(Using::new(&connection.usage)),
            Carrier::Node(_) => None,
        };
        Self { permit, active, carrier, home, using, driving: None }
    }

    /// The answer has ended as it should.
    fn finish(self) {
        let Self { permit, active, carrier, home, using, driving } = self;
        drop((permit, active, using, driving));
        match carrier {
            Carrier::Single(connection) => home.take_back(connection),
            Carrier::Shared(_) | Carrier::Node(_) => {}
        }
    }

    /// Sends a request on the connection.
    pub(super) async fn send(&mut self, request: Request<Body>) -> Result<Response<Body>, SendError> {
        match &mut self.carrier {
            Carrier::Single(connection) => {
                // A body has to go on while the answer waits to be read.
                self.driving = request.body().is_end_stream().then(|| Driving::begin(&connection.engine));
                let driving = self.driving.as_ref();
                let mut answer = pin!(unconstrained(connection.sender.try_send_request(request)));
                let sent = poll_fn(|cx| poll_driven(driving, answer.as_mut(), cx)).await;
                sent.map(|response| framed_once(response).map(Body::from)).map_err(send_error)
            }
            Carrier::Shared(connection) => {
                let sent = connection.sender.clone().try_send_request(request).await;
                sent.map(|response| response.map(Body::from)).map_err(send_error)
            }
            Carrier::Node(_) => {
                Err(SendError::new(SendErrorKind::ConnectFailure, "there is no connection to send on"))
            }
        }
    }

    /// Keeps the account until the body has ended, or the connection that the answer upgrades is closed. Where that
    /// is not ours, the body of the answer stands for it until it is dropped.
    pub(super) fn attach(mut self, response: Response<Body>, judge: Option<Judge>) -> Response<Body> {
        let upgraded = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        self.driving.take_if(|_| upgraded);
        match &self.carrier {
            Carrier::Single(connection) if upgraded => {
                let usage = connection.usage.clone();
                usage.keep_until_closed(self);
                return response;
            }
            Carrier::Single(_) | Carrier::Shared(_) | Carrier::Node(_) => {}
        }
        if response.body().is_end_stream() && !upgraded {
            self.finish();
            return response;
        }
        response.map(|body| Body::new(Accounted { body, exchange: Some(self), judge, upgraded }))
    }
}

/// Of two lengths Transfer-Encoding is the one that was read (RFC 9112 6.3); nobody else is to read the other.
fn framed_once<B>(mut response: Response<B>) -> Response<B> {
    let headers = response.headers_mut();
    if headers.contains_key(TRANSFER_ENCODING) {
        headers.remove(CONTENT_LENGTH);
    }
    response
}

/// Looks for an answer, after driving the connection where that is up to the request.
fn poll_driven<F: Future>(
    driving: Option<&Driving>,
    answer: Pin<&mut F>,
    cx: &mut Context<'_>,
) -> Poll<F::Output> {
    let Some(driving) = driving else { return answer.poll(cx) };
    driving.drive(cx);
    // Only the connection answers: who drives it need not be woken for that.
    answer.poll(&mut Context::from_waker(Waker::noop()))
}

fn send_error(mut error: hyper::client::conn::TrySendError<Request<Body>>) -> SendError {
    let request = error.take_message();
    let error = error.into_error();
    let kind = match (&request, h2_error(&error), broken_body(&error)) {
        (Some(_), ..) => SendErrorKind::ResetBeforeRequest,
        (None, _, Some(body)) => SendErrorKind::BrokenBody { malformed: body.is_malformed() },
        (None, Some(h2), None) if is_refusal(h2) => SendErrorKind::RefusedStream,
        (None, Some(h2), None) if is_ours(h2) => SendErrorKind::BrokenBody { malformed: false },
        (None, Some(_) | None, None) => SendErrorKind::Reset,
    };
    let mut detail = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        detail = format!("{detail}: {cause}");
        source = cause.source();
    }
    SendError { kind, detail, endpoint: None, request }
}

/// Why the body that was to be sent did not come to its end, where that is what went wrong.
fn broken_body(error: &hyper::Error) -> Option<&BodyError> {
    std::error::Error::source(error)?.downcast_ref()
}

/// The stream was reset from here. That happens when its body cannot be read to the end, and only then while
/// somebody waits for the answer.
fn is_ours(error: &h2::Error) -> bool {
    error.is_reset() && !error.is_remote() && !error.is_library()
}

fn h2_error(error: &hyper::Error) -> Option<&h2::Error> {
    std::error::Error::source(error)?.downcast_ref()
}

/// REFUSED_STREAM, and GOAWAY without an error before the stream's turn, say that nothing was done (RFC 9113 8.7).
fn is_refusal(error: &h2::Error) -> bool {
    let refused = error.reason() == Some(h2::Reason::REFUSED_STREAM);
    refused || (error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR))
}

/// Says how a request ended to outlier detection.
#[derive(Debug, Clone)]
pub(super) struct Judge {
    pub(super) cluster: Arc<ClusterState>,
    pub(super) host: Arc<Host>,
    pub(super) policy: Arc<ClusterPolicy>,
    /// gRPC says in a trailer how it went.
    pub(super) grpc: bool,
}

impl Judge {
    /// Counts an end.
    pub(super) fn record(&self, outcome: Outcome) {
        self.cluster.record(&self.host, outcome, self.policy.outlier_detection.as_ref());
    }

    /// Counts the head of an answer; `Some` where the trailers say more.
    pub(super) fn head(self, head: &Response<Body>) -> Option<Self> {
        let status = head.status().as_u16();
        let grpc = if self.grpc { grpc_status(head.headers()) } else { None };
        if self.grpc && grpc.is_none() && status < 500 && !head.body().is_end_stream() {
            return Some(self);
        }
        self.record(Outcome::Status(grpc.map_or(status, |grpc| status.max(status_of_grpc(grpc)))));
        self.policy.outlier_detection.is_some().then_some(Self { grpc: false, ..self })
    }
}

fn grpc_status(headers: &HeaderMap) -> Option<u16> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

/// The body of an answer with the account of its request.
struct Accounted {
    body: Body,
    exchange: Option<Exchange>,
    judge: Option<Judge>,
    upgraded: bool,
}

impl Accounted {
    fn look_at(&mut self, frame: Option<&Result<Frame<Bytes>, BodyError>>) {
        match frame {
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_ref()
                    && let Some(judge) = self.judge.take_if(|judge| judge.grpc)
                {
                    judge.record(Outcome::Status(grpc_status(trailers).map_or(200, status_of_grpc)));
                }
            }
            Some(Err(_)) => {
                if let Some(judge) = self.judge.take() {
                    judge.record(Outcome::Local);
                }
                self.exchange = None;
            }
            None if self.upgraded => {}
            None => self.end(),
        }
        if self.body.is_end_stream() && !self.upgraded {
            self.end();
        }
    }

    /// What is here already needs nothing of the connection.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let body = Pin::new(&mut self.body);
        let Some(driving) = self.exchange.as_ref().and_then(|exchange| exchange.driving.as_ref()) else {
            return body.poll_frame(cx);
        };
        if let Poll::Ready(frame) = body.poll_frame(&mut Context::from_waker(Waker::noop())) {
            return Poll::Ready(frame);
        }
        driving.drive(cx);
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn end(&mut self) {
        if let Some(exchange) = self.exchange.take() {
            exchange.finish();
        }
    }
}

impl HttpBody for Accounted {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let frame = ready!(this.poll_body(cx));
        this.look_at(frame.as_ref());
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
