//! What one request adds to metrics and log, on one side of it (M-7).

use std::borrow::Cow;
use std::cell::{OnceCell, RefCell};
use std::hash::{Hash, Hasher};
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, USER_AGENT};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Uri, Version};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Instant;
use weft_core::ObjectRef;
use weft_core::hashing::FastMap;
use weft_core::snapshot::Workload;
use weft_telemetry::{
    Direction, LogText, Metrics, NotedHeaders, Reporter, RequestLog, RequestProtocol, RequestSample,
    RequestSeries,
};

use super::body::{Body, BodyError};
use super::flags::{Flags, Reason};
use super::headers::{GRPC_STATUS, X_FORWARDED_FOR, X_REQUEST_ID, is_grpc_type};
use super::io::Busy;
use super::refused;
use super::reply::Reply;
use super::traffic::Traffic;
use super::upload::{Source, Upload};
use crate::account::{Failure, Route};
use crate::labels::{Ends, Service};
use crate::worker::Worker;

/// Series that a worker keeps at hand; beyond that it forgets all and begins again.
const MAX_CACHED: usize = 8192;

/// Both ends of the connection that a request came on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Addresses {
    /// Who opened it.
    pub(crate) client: SocketAddr,
    /// What it was addressed to.
    pub(crate) addressed: SocketAddr,
}

/// The parts of a request's head that the log names. Copies are counted references.
#[derive(Debug, Clone)]
struct Head {
    method: Method,
    uri: Uri,
    version: Version,
    authority: Option<HeaderValue>,
    user_agent: Option<HeaderValue>,
    request_id: Option<HeaderValue>,
    forwarded_for: Option<HeaderValue>,
}

impl Head {
    /// Everything but the fields.
    fn of(parts: &Parts) -> Self {
        Self {
            method: parts.method.clone(),
            uri: parts.uri.clone(),
            version: parts.version,
            authority: None,
            user_agent: None,
            request_id: None,
            forwarded_for: None,
        }
    }

    /// One look at all fields: also whether the request is gRPC, and the bytes of its fields.
    fn read(&mut self, headers: &HeaderMap) -> (bool, u64) {
        let (mut content_type, mut bytes) = (None, 0);
        // Of several values the first one counts.
        for (name, value) in headers {
            bytes += (name.as_str().len() + value.len()) as u64;
            let place = if *name == HOST {
                &mut self.authority
            } else if *name == USER_AGENT {
                &mut self.user_agent
            } else if *name == X_REQUEST_ID {
                &mut self.request_id
            } else if *name == X_FORWARDED_FOR {
                &mut self.forwarded_for
            } else {
                if *name == CONTENT_TYPE {
                    content_type.get_or_insert(value);
                }
                continue;
            };
            place.get_or_insert_with(|| value.clone());
        }
        (content_type.is_some_and(is_grpc_type), bytes)
    }
}

/// One request, seen from one side. Counted and logged when it is dropped.
pub(crate) struct Record {
    worker: Rc<Worker>,
    began: Instant,
    reporter: Reporter,
    head: Head,
    addresses: Addresses,
    /// Bytes of the request's head.
    head_bytes: u64,
    /// Its body, where there is one.
    received: OnceCell<Rc<Traffic>>,
    sent: Traffic,
    protocol: RequestProtocol,
    /// How it travelled.
    pub(crate) route: Route,
    /// Both ends.
    pub(crate) ends: Ends,
    /// The client's pod and the server's.
    pub(crate) pods: [Option<Arc<Workload>>; 2],
    /// Where it went.
    pub(crate) upstream: Option<SocketAddr>,
    /// From where.
    pub(crate) upstream_local: Option<SocketAddr>,
    /// L-4.
    pub(crate) cluster: Option<Arc<str>>,
    /// The rule's name.
    pub(crate) route_name: Option<Arc<str>>,
    /// Flags.
    pub(crate) flags: Flags,
    /// `response_code_details`.
    pub(crate) details: Cow<'static, str>,
    /// For people.
    pub(crate) failure: Option<String>,
    /// The policy that decided.
    pub(crate) policy: Option<String>,
    /// The policy that let it in, and its rule: put into words only for a line of the log.
    pub(crate) allowed_by: Option<(ObjectRef, Option<usize>)>,
    /// The AUDIT policies that matched.
    pub(crate) audit: Option<String>,
    /// What the log's format prints of the headers.
    noted: Option<Box<NotedHeaders>>,
    refused: bool,
    status: u16,
    grpc_status: Option<u8>,
    service_time: Option<Duration>,
    /// How long it took, where that was known before its end.
    duration: Option<Duration>,
    over: bool,
    /// Keeps the client's connection from being idle.
    busy: Option<Busy>,
    /// The request's body, of which nothing is wanted any more when the record is over.
    upload: Option<Rc<Source>>,
    /// The body of the answer.
    body: Body,
    /// The route's timeout covers the whole answer (V-21).
    timer: Option<Pin<Box<tokio::time::Sleep>>>,
    keep_trailers: bool,
}

impl Record {
    /// A request that just arrived.
    pub(crate) fn new(
        worker: &Rc<Worker>,
        reporter: Reporter,
        addresses: Addresses,
        parts: &Parts,
        (route, ends): (Route, Ends),
    ) -> Box<Self> {
        let mut record = Box::new(Self {
            worker: worker.clone(),
            began: Instant::now(),
            reporter,
            head: Head::of(parts),
            addresses,
            head_bytes: 0,
            received: OnceCell::new(),
            sent: Traffic::default(),
            protocol: RequestProtocol::Http,
            route,
            ends,
            pods: [None, None],
            upstream: None,
            upstream_local: None,
            cluster: None,
            route_name: None,
            flags: Flags::default(),
            details: Cow::Borrowed("-"),
            failure: None,
            policy: None,
            allowed_by: None,
            audit: None,
            noted: noted(worker, &parts.headers),
            refused: false,
            status: 0,
            grpc_status: None,
            service_time: None,
            duration: None,
            over: false,
            busy: None,
            upload: None,
            body: Body::empty(),
            timer: None,
            keep_trailers: false,
        });
        // Read to where it stays, since it is large.
        let (grpc, head_bytes) = record.head.read(&parts.headers);
        record.head_bytes = head_bytes;
        if grpc {
            record.protocol = RequestProtocol::Grpc;
        }
        record
    }

    /// Whether the log prints headers.
    pub(crate) fn notes_headers(&self) -> bool {
        self.noted.is_some()
    }

    /// When it arrived.
    pub(crate) fn began(&self) -> Instant {
        self.began
    }

    /// Whether the caller speaks gRPC.
    pub(crate) fn is_grpc(&self) -> bool {
        match self.protocol {
            RequestProtocol::Grpc => true,
            RequestProtocol::Http => false,
        }
    }

    /// Keeps the client's connection from being idle until the request is over.
    pub(crate) fn hold(&mut self, busy: Busy) {
        self.busy = Some(busy);
    }

    /// The request's body ends with the record.
    pub(crate) fn upload(&mut self, upload: &Upload) {
        self.upload = upload.source().cloned();
    }

    /// Where its body is counted.
    pub(crate) fn received(&self) -> &Rc<Traffic> {
        self.received.get_or_init(|| Rc::new(Traffic::of_body(self.is_grpc())))
    }

    fn of_body(&self, count: impl FnOnce(&Traffic) -> u64) -> u64 {
        self.received.get().map_or(0, |received| count(received))
    }

    /// The id that the request was given, where it had none.
    pub(crate) fn identified(&mut self, id: Option<HeaderValue>) {
        self.head.request_id = self.head.request_id.take().or(id);
    }

    /// The application answered.
    pub(crate) fn answered(&mut self, status: u16, headers: &HeaderMap) -> Duration {
        let time = self.began.elapsed();
        self.service_time = Some(time);
        if self.details == "-" {
            self.details = Cow::Borrowed("via_upstream");
        }
        self.head_of_answer(status, headers);
        time
    }

    /// The answer's headers as the client gets them.
    pub(crate) fn leaves(&mut self, headers: &HeaderMap) {
        if let Some(noted) = &mut self.noted
            && let Some(wanted) = self.worker.shared.context.access_log.wanted_headers()
        {
            noted.response = values(&wanted.response, headers);
        }
    }

    fn head_of_answer(&mut self, status: u16, headers: &HeaderMap) {
        self.status = status;
        self.leaves(headers);
        self.sent = Traffic::of(headers, self.is_grpc());
        self.saw_grpc_status(headers);
    }

    fn saw_grpc_status(&mut self, headers: &HeaderMap) {
        if self.is_grpc()
            && let Some(status) = headers.get(GRPC_STATUS).and_then(|value| value.to_str().ok()?.parse().ok())
        {
            self.grpc_status = Some(status);
        }
    }

    /// The mesh answers. What the reply says about its reasons is kept; the record is over with its body.
    pub(crate) fn reply(mut self: Box<Self>, mut reply: Reply) -> http::Response<Body> {
        self.flags.reason = reply.flags.reason.or(self.flags.reason);
        self.flags.aborted |= reply.flags.aborted;
        let refusal = refused::reason(&reply, &self.ends.service);
        if let Some(reason) = refusal {
            self.worker.shared.context.metrics.refused(reason, reply.policy.as_deref());
        }
        self.refused = refusal.is_some() || reply.policy.is_some() || matches!(reply.status, 401 | 403);
        self.details = std::mem::take(&mut reply.details);
        self.policy = reply.policy.take().or(self.policy.take());
        self.failure = reply.failure.take().or(self.failure.take());
        let response = reply.response(self.is_grpc());
        self.head_of_answer(response.status().as_u16(), response.headers());
        let (parts, body) = response.into_parts();
        http::Response::from_parts(parts, self.until_over(body, None, false))
    }

    /// Wraps the answer's body: the request is over when it is. `keep_trailers` says that the client's protocol
    /// has them (H-8).
    pub(crate) fn until_over(
        mut self: Box<Self>,
        body: Body,
        deadline: Option<Instant>,
        keep_trailers: bool,
    ) -> Body {
        if body.is_end_stream() && body.size_hint().exact() == Some(0) {
            self.finish();
            return Body::empty();
        }
        self.timer = deadline.map(|deadline| Box::pin(tokio::time::sleep_until(deadline)));
        self.body = body;
        self.keep_trailers = keep_trailers;
        Body::boxed(self)
    }

    /// The same for who hands the body over to another record: one that is here already needs no second look.
    pub(crate) fn until_handed_over(mut self: Box<Self>, body: Body) -> Body {
        let Some(bytes) = body.complete() else { return self.until_over(body, None, true) };
        self.sent.add(bytes);
        self.duration = self.service_time;
        self.finish();
        body
    }

    /// The request is over when the body is dropped, and as it should be: the connection now speaks something else.
    pub(crate) fn until_dropped(mut self: Box<Self>, body: Body) -> Body {
        self.over = true;
        self.body = body;
        self.keep_trailers = true;
        Body::boxed(self)
    }

    /// The connection is closed without an answer, by policy or for what the client did.
    pub(crate) fn closed(mut self: Box<Self>, failure: Failure) {
        self.worker.shared.context.metrics.refused(failure.reason, failure.policy.as_deref());
        self.flags.reason = Flags::reason_of(failure.flags).or(Some(Reason::DENY));
        self.refused = true;
        self.details = Cow::Owned(failure.details);
        self.policy = failure.policy;
    }

    /// The request is over as it should be.
    pub(crate) fn finish(mut self: Box<Self>) {
        self.over = true;
    }

    /// Bytes that a tunnel moved after an upgrade.
    pub(crate) fn tunnelled(&self, received: u64, sent: u64) {
        self.received().add_untold(received);
        self.sent.add_untold(sent);
    }

    fn count(&self, sample: &RequestSample) {
        let metrics = &self.worker.shared.context.metrics;
        let tls = self.route == Route::Hbone;
        if let (Service::Passthrough | Service::BlackHole, Some(host)) =
            (&self.ends.service, &self.head.authority)
        {
            let labels = self.ends.request_labels(self.reporter, tls, self.protocol);
            return metrics.http_to_unknown(labels, host.to_str().unwrap_or("unknown")).record(sample);
        }
        self.worker.requests.count(metrics, &self.ends, (self.reporter, tls, self.protocol), sample);
    }

    fn line(&self, flags: &'static str, duration: Duration) -> RequestLog<'_> {
        let [source_pod, destination_pod] =
            self.pods.each_ref().map(|pod| pod.as_ref().map(|pod| LogText::Object(&pod.key)));
        let cluster = self.cluster.as_deref().map(LogText::Plain);
        // L-4; on the server's side both follow from the port.
        let (direction, cluster, route_name) = match self.reporter {
            Reporter::Source => (Direction::Outbound, cluster, self.route_name.as_deref()),
            Reporter::Destination => {
                let of_port = LogText::InboundPort(self.addresses.addressed.port());
                (Direction::Inbound, cluster.or(Some(of_port)), Some("default"))
            }
        };
        let allowed_by = self.allowed_by.as_ref().map(|(object, rule)| LogText::Policy(object, *rule));
        let authority = self.head.uri.authority().map(|authority| authority.as_str().as_bytes());
        RequestLog {
            // The clock is asked for lines alone.
            start: SystemTime::now().checked_sub(duration).unwrap_or(SystemTime::UNIX_EPOCH),
            duration,
            direction,
            method: self.head.method.as_str(),
            path: self.head.uri.path_and_query().map(PathAndQuery::as_str).unwrap_or_default(),
            protocol: match self.head.version {
                Version::HTTP_2 => "HTTP/2",
                Version::HTTP_10 => "HTTP/1.0",
                _ => "HTTP/1.1",
            },
            response_code: self.status,
            flags,
            response_code_details: Some(&*self.details).filter(|details| *details != "-"),
            termination_details: None,
            transport_failure: self.failure.as_deref(),
            bytes_received: self.of_body(Traffic::body),
            bytes_sent: self.sent.body(),
            upstream_service_time: self.service_time,
            x_forwarded_for: self.head.forwarded_for.as_ref().map(HeaderValue::as_bytes),
            user_agent: self.head.user_agent.as_ref().map(HeaderValue::as_bytes),
            request_id: self.head.request_id.as_ref().map(HeaderValue::as_bytes),
            authority: authority.or_else(|| self.head.authority.as_ref().map(HeaderValue::as_bytes)),
            upstream_host: self.upstream,
            upstream_cluster: cluster,
            upstream_local: self.upstream_local,
            downstream_local: self.addresses.addressed,
            downstream_remote: self.addresses.client,
            requested_server_name: None,
            route_name,
            mesh_path: self.route.as_str(),
            source_principal: self.ends.source_principal.as_deref(),
            destination_principal: self.ends.destination_principal.as_deref(),
            source_pod,
            destination_pod,
            policy: self.policy.as_deref().map(LogText::Plain).or(allowed_by),
            audit: self.audit.as_deref(),
            grpc_status: self.grpc_status,
            headers: self.noted.as_deref(),
            refused: self.refused,
        }
    }
}

fn text(value: &HeaderValue) -> Cow<'_, str> {
    String::from_utf8_lossy(value.as_bytes())
}

/// The headers of a request that the log's format prints.
fn noted(worker: &Worker, headers: &HeaderMap) -> Option<Box<NotedHeaders>> {
    let wanted = worker.shared.context.access_log.wanted_headers()?;
    Some(Box::new(NotedHeaders { request: values(&wanted.request, headers), response: Vec::new() }))
}

/// The values of those headers that are there.
fn values(names: &[Arc<str>], headers: &HeaderMap) -> Vec<(Arc<str>, String)> {
    let value = |name: &Arc<str>| {
        let value = headers.get(&**name)?;
        Some((name.clone(), text(value).into_owned()))
    };
    names.iter().filter_map(value).collect()
}

impl Drop for Record {
    fn drop(&mut self) {
        // What it holds is given back before anybody can see that the request is over.
        self.body = Body::empty();
        if let Some(upload) = self.upload.take() {
            upload.abandon();
        }
        if !self.over && self.flags.reason.is_none() {
            self.flags.reason = Some(Reason::DC);
            self.details = Cow::Borrowed("downstream_remote_disconnect");
        }
        let flags = self.flags.text();
        let duration = self.duration.unwrap_or_else(|| self.began.elapsed());
        self.count(&RequestSample {
            status: self.status,
            grpc_status: self.grpc_status,
            flags,
            duration,
            request_bytes: self.head_bytes + self.of_body(Traffic::body),
            response_bytes: self.sent.total(),
            request_messages: self.of_body(Traffic::messages),
            response_messages: self.sent.messages(),
        });
        let log = &self.worker.shared.context.access_log;
        if self.refused || flags != "-" || self.audit.is_some() || log.wants_everything() {
            log.request(&self.line(flags, duration));
        }
    }
}

/// The answer's body, counted. The record is its own body, so that the two need one allocation.
impl HttpBody for Record {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        if let Some(timer) = &mut this.timer
            && timer.as_mut().poll(cx).is_ready()
        {
            this.flags.reason = Some(Reason::UT);
            this.details = Cow::Borrowed("response_timeout");
            return Poll::Ready(Some(Err(BodyError::Ended("the route's timeout is over"))));
        }
        loop {
            match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                Some(Ok(frame)) => {
                    if let Some(bytes) = frame.data_ref() {
                        this.sent.add(bytes);
                    }
                    if let Some(trailers) = frame.trailers_ref() {
                        this.saw_grpc_status(trailers);
                        this.over = true;
                        if !this.keep_trailers {
                            continue;
                        }
                    }
                    if this.body.is_end_stream() {
                        this.over = true;
                    }
                    return Poll::Ready(Some(Ok(frame)));
                }
                Some(Err(error)) => {
                    this.flags.reason.get_or_insert(Reason::UC);
                    this.details = Cow::Borrowed("upstream_reset_after_response_started");
                    this.failure = Some(error.to_string());
                    return Poll::Ready(Some(Err(error)));
                }
                None => {
                    this.over = true;
                    return Poll::Ready(None);
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Identity of a series by the addresses of its shared parts, which the cache keeps alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Key {
    reporter: Reporter,
    tls: bool,
    protocol: RequestProtocol,
    parts: [usize; 5],
}

impl Hash for Key {
    /// One word of all addresses: the rest tells few series apart, and it is done for every request.
    fn hash<H: Hasher>(&self, state: &mut H) {
        let mixed = |sum: usize, part: &usize| sum.rotate_left(9) ^ part;
        state.write_usize(self.parts.iter().fold(self.reporter as usize, mixed));
    }
}

/// Series that this worker has used, found again without hashing text.
#[derive(Debug, Default)]
pub(crate) struct RequestCache(RefCell<FastMap<Key, (RequestSeries, Ends)>>);

impl RequestCache {
    fn count(
        &self,
        metrics: &Metrics,
        ends: &Ends,
        (reporter, tls, protocol): (Reporter, bool, RequestProtocol),
        sample: &RequestSample,
    ) {
        let key = Key { reporter, tls, protocol, parts: ends.parts() };
        if let Some((series, _)) = self.0.borrow().get(&key) {
            return series.record(sample);
        }
        let series = metrics.http(&ends.request_labels(reporter, tls, protocol));
        series.record(sample);
        let mut cache = self.0.borrow_mut();
        if cache.len() >= MAX_CACHED {
            cache.clear();
        }
        cache.insert(key, (series, ends.clone()));
    }

    /// Forgets everything: after a new snapshot its parts may have other addresses.
    pub(crate) fn clear(&self) {
        self.0.borrow_mut().clear();
    }
}
