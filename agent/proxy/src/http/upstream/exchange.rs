//! One request on its connection: sends it, and keeps account of it until the body of the answer has ended.

use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use weft_core::decide::http::ClusterPolicy;

use super::super::body::{Body, BodyError};
use super::super::call::Call;
use super::super::h1::client::{Answer, Failed};
use super::connection::{Shared, Single, Usage};
use super::http2;
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
        self.pool.put(connection, self.cluster.as_ref(), &self.settings);
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
        Self { permit, active, carrier, home, using }
    }

    /// From where the request is sent.
    pub(super) fn local(&self) -> Option<SocketAddr> {
        match &self.carrier {
            Carrier::Single(connection) => connection.usage.local(),
            Carrier::Shared(connection) => connection.usage.local(),
            Carrier::Node(_) => None,
        }
    }

    /// The answer has ended as it should.
    fn finish(self) {
        let Self { permit, active, carrier, home, using } = self;
        drop((permit, active, using));
        match carrier {
            Carrier::Single(connection) => home.take_back(connection),
            Carrier::Shared(_) | Carrier::Node(_) => {}
        }
    }

    /// Sends a request on the connection.
    pub(super) async fn send(&mut self, call: Box<Call>) -> Result<Response<Body>, SendError> {
        match &mut self.carrier {
            Carrier::Single(connection) => {
                let Answer { response, rest } = connection.sender.send(call).await.map_err(failed)?;
                if let Some(rest) = rest {
                    self.home.worker.spawn(rest.run());
                }
                Ok(response)
            }
            Carrier::Shared(connection) => {
                let http2::Answer { response, rest } =
                    connection.sender.send(call).await.map_err(failed_stream)?;
                if let Some(rest) = rest {
                    self.home.worker.spawn(rest.run());
                }
                Ok(response)
            }
            Carrier::Node(_) => {
                Err(SendError::new(SendErrorKind::ConnectFailure, "there is no connection to send on"))
            }
        }
    }

    /// Keeps the account until the body has ended, or the connection that the answer upgrades is closed. Where that
    /// is not ours, the body of the answer stands for it until it is dropped.
    pub(super) fn attach(self, response: Response<Body>, judge: Option<Judge>) -> Response<Body> {
        let upgraded = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        match &self.carrier {
            Carrier::Single(connection) if upgraded => {
                let usage = connection.usage.clone();
                usage.keep_until_closed(self);
                return response;
            }
            Carrier::Single(_) | Carrier::Shared(_) | Carrier::Node(_) => {}
        }
        if response.body().complete().is_some() && !upgraded {
            self.finish();
            return response;
        }
        response.map(|body| Body::new(Accounted { body, exchange: Some(self), judge, upgraded }))
    }
}

fn failed(failed: Failed) -> SendError {
    match failed {
        Failed::Unsent(call) => unsent(call),
        Failed::Body(error) => broken_body(&error),
        Failed::Reset(why) => SendError::new(SendErrorKind::Reset, why),
    }
}

fn failed_stream(failed: http2::Failed) -> SendError {
    match failed {
        http2::Failed::Unsent(call) => unsent(call),
        http2::Failed::Body(error) => broken_body(&error),
        http2::Failed::Stream(error) => {
            let refused = is_refusal(&error);
            let kind = if refused { SendErrorKind::RefusedStream } else { SendErrorKind::Reset };
            SendError::new(kind, error.to_string())
        }
    }
}

fn unsent(call: Box<Call>) -> SendError {
    let why = "the connection was closed before the request";
    SendError::new(SendErrorKind::ResetBeforeRequest, why).with(call)
}

fn broken_body(error: &BodyError) -> SendError {
    let kind = SendErrorKind::BrokenBody { malformed: error.is_malformed() };
    SendError::new(kind, error.to_string())
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
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
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
