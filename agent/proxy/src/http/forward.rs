//! Brings a request to an endpoint: one try after the other, each within its time, then the answer.

use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::header::SERVER;
use http::{Response, StatusCode, Version};
use smallvec::SmallVec;
use tokio::time::Instant;
use weft_core::decide::http::{Answered, Cluster, Outgoing, RetryPolicy, TryOutcome, apply, complete};
use weft_core::decide::outbound::outbound;
use weft_core::decide::{OutboundDecision, Path};
use weft_core::resource::virtual_service::HeaderOperations;
use weft_telemetry::ClusterEvent;

use super::body::Body;
use super::call::Call;
use super::exchange::Extra;
use super::failure;
use super::flags::Reason;
use super::headers::{
    GRPC_STATUS, address, grpc_timeout, set_attempt, set_expected_timeout, set_grpc_timeout,
    set_service_time, strip_hop_by_hop,
};
use super::message::Message;
use super::record::Record;
use super::reply::{Reply, SERVER_NAME};
use super::serve::{BrokenOff, Downstream};
use super::upload::Upload;
use super::upstream::{self, Leg, Search, SendError, Sent, UpstreamProtocol};
use crate::account::Route;
use crate::labels::Service;

/// The longest wait between tries, as a multiple of the first one (V-23).
const LONGEST_BACKOFF: u32 = 10;

/// A request on its way out.
pub(crate) struct Outward<'a> {
    pub(crate) downstream: &'a Rc<Downstream>,
    pub(crate) leg: Leg<'a>,
    pub(crate) message: Message,
    /// The authority that rules give it.
    pub(crate) authority: Option<String>,
    pub(crate) record: Box<Record>,
    /// The client asks for another protocol on its connection.
    pub(crate) upgrade: bool,
    pub(crate) protocol: UpstreamProtocol,
    /// Changes of the answer's headers.
    pub(crate) response_changes: Vec<Arc<HeaderOperations>>,
    /// Headers that the answer gets.
    pub(crate) response_headers: Extra,
}

/// What the rule says about bringing it there.
pub(crate) struct Plan {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) hash: Option<u64>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) retry: Arc<RetryPolicy>,
}

impl Outward<'_> {
    /// Makes the changes that rules ask for.
    pub(crate) fn change(&mut self, call: &mut Call, outgoing: Outgoing) {
        for operations in &outgoing.request_headers {
            apply(&operations.request, &mut call.parts.headers);
        }
        if let Some(target) = &outgoing.target {
            self.message.set_target(target);
        }
        self.authority = outgoing.authority;
        self.response_changes = outgoing.response_headers;
    }

    /// Takes the body.
    pub(crate) fn upload(&mut self, call: &mut Call, keep: bool) -> Upload {
        let body = call.take_body();
        // The route's time begins after a delay of the mesh's own.
        let began = if self.record.flags.delayed { Instant::now() } else { self.record.began() };
        let upload = Upload::new(body, || self.record.received(), (keep, self.downstream.http2), began);
        self.record.upload(&upload);
        upload
    }

    /// Gives the request the form in which it leaves.
    pub(crate) fn finish(&self, call: &mut Call) {
        let authority = self.authority.as_deref().unwrap_or(self.message.authority());
        address(&mut call.parts, self.message.target(), authority);
    }
}

/// How long everything, and one try, may take from the request's last byte on.
struct Limits {
    total: Option<Duration>,
    per_try: Option<Duration>,
}

impl Limits {
    /// H-9: a gRPC caller's own limit counts, up to the route's.
    fn of(out: &Outward<'_>, call: &Call, plan: &Plan) -> Self {
        let asked = if out.record.is_grpc() { grpc_timeout(&call.parts.headers) } else { None };
        let cap = plan.timeout.filter(|timeout| !timeout.is_zero());
        let total = match (asked, cap) {
            (Some(asked), Some(cap)) => Some(asked.min(cap)),
            (asked, cap) => asked.or(cap),
        };
        Self { total, per_try: plan.retry.per_try_timeout.filter(|limit| !limit.is_zero()) }
    }

    /// What the application is told (E19).
    fn expected(&self) -> Option<Duration> {
        match (self.total, self.per_try) {
            (Some(total), Some(per_try)) => Some(total.min(per_try)),
            (total, per_try) => total.or(per_try),
        }
    }
}

/// How one try ended.
enum Tried {
    Answered(Box<Sent>),
    Failed(Box<SendError>),
    TimedOut { per_try: bool },
}

impl Tried {
    fn outcome(&self, grpc: bool) -> Option<TryOutcome> {
        match self {
            Self::Answered(sent) => {
                let status = if grpc { sent.response.headers().get(GRPC_STATUS) } else { None };
                let status = status.and_then(|status| status.to_str().ok()?.parse().ok());
                let http = || TryOutcome::Status(sent.response.status().as_u16());
                Some(status.map_or_else(http, TryOutcome::GrpcStatus))
            }
            Self::Failed(error) => failure::outcome(&error.kind),
            Self::TimedOut { per_try: true } => Some(TryOutcome::PerTryTimeout),
            Self::TimedOut { per_try: false } => None,
        }
    }

    /// The request, where nothing of it was sent.
    fn take_call(&mut self) -> Option<Box<Call>> {
        match self {
            Self::Failed(error) => error.request.take(),
            Self::Answered(_) | Self::TimedOut { .. } => None,
        }
    }
}

/// Ready when `limit` has passed since the client sent everything and since `from`.
async fn expired(upload: &Upload, limit: Option<Duration>, from: Option<Instant>) {
    let Some(limit) = limit else { return std::future::pending().await };
    let ended = upload.until_ended().await;
    let begin = from.map_or(ended, |from| from.max(ended));
    tokio::time::sleep_until(begin + limit).await;
}

/// Tries until there is an answer, no try is left, or the time is over.
pub(crate) async fn forward(
    mut out: Box<Outward<'_>>,
    mut call: Box<Call>,
    upload: Upload,
    plan: Plan,
) -> Result<Response<Body>, BrokenOff> {
    let worker = out.downstream.worker.clone();
    let limits = Limits::of(&out, &call, &plan);
    if let Some(expected) = limits.expected() {
        set_expected_timeout(&mut call.parts.headers, expected);
        if out.record.is_grpc() {
            // Else the application would work on for longer than anybody waits.
            set_grpc_timeout(&mut call.parts.headers, expected);
        }
    }
    let retry = plan.retry.clone();
    // By default only requests come back that nobody has seen, and mostly they are given back then.
    let copied = retry.attempts > 0 && (!retry.default || out.protocol == UpstreamProtocol::Http2);
    out.finish(&mut call);
    let mut next = Some(call);
    let mut search = Search {
        hash: plan.hash,
        again: !retry.ignore_previous_hosts,
        remote: retry.remote_localities,
        ..Search::default()
    };
    let mut attempt = 1;
    let mut permit = None;
    let last = loop {
        let Some(mut call) = next.take() else { break Tried::Failed(Box::new(lost())) };
        set_attempt(&mut call.parts.headers, attempt);
        next = copied.then(|| call.copy());
        call.body = upload.next_try();
        let mut result = one_try(&out, &plan, &limits, (&upload, &mut search), call).await;
        let outcome = result.outcome(out.record.is_grpc());
        let repeats = outcome.is_some_and(|outcome| retry.repeats(&outcome));
        if !repeats {
            break result;
        }
        out.record.flags.exhausted = retry.attempts > 0 && attempt > retry.attempts;
        next = result.take_call().or(next);
        if attempt > retry.attempts || next.is_none() || !upload.is_repeatable() {
            break result;
        }
        // The one before is given back first.
        drop(permit.take());
        permit = upstream::retry(&worker, &out.leg, &plan.cluster);
        if permit.is_none() {
            break result;
        }
        drop(result);
        let wait = backoff(retry.backoff, attempt, worker.random());
        tokio::select! {
            biased;
            () = expired(&upload, limits.total, None) => break Tried::TimedOut { per_try: false },
            () = tokio::time::sleep(wait) => {}
        }
        attempt += 1;
    };
    upload.forget();
    drop(permit);
    match last {
        Tried::Answered(sent) => {
            let deadline = limits.total.zip(upload.ended()).map(|(limit, ended)| ended + limit);
            answer(out, *sent, deadline)
        }
        Tried::Failed(error) => {
            out.record.upstream = error.endpoint;
            out.record.upstream_local = out.leg.local.get();
            Ok(out.record.reply(failure::reply(*error, attempt > 1)))
        }
        Tried::TimedOut { per_try } => {
            out.record.upstream = search.tried.last().copied();
            out.record.upstream_local = out.leg.local.get();
            Ok(out.record.reply(failure::timeout(per_try)))
        }
    }
}

fn lost() -> SendError {
    SendError::new(upstream::SendErrorKind::Reset, "the request cannot be sent again")
}

async fn one_try(
    out: &Outward<'_>,
    plan: &Plan,
    limits: &Limits,
    (upload, search): (&Upload, &mut Search),
    call: Box<Call>,
) -> Tried {
    let worker = &out.downstream.worker;
    let began = limits.per_try.map(|_| Instant::now());
    let per_try = {
        // Pinned where it is: it is large, and would be moved to where the first of three is waited for.
        let mut sending = pin!(upstream::send(worker, &out.leg, &plan.cluster, search, call, out.protocol));
        tokio::select! {
            biased;
            sent = &mut sending => return match sent {
                Ok(sent) => Tried::Answered(Box::new(sent)),
                Err(error) => Tried::Failed(Box::new(error)),
            },
            () = expired(upload, limits.total, None) => false,
            () = expired(upload, limits.per_try, began) => true,
        }
    };
    let event = if per_try { ClusterEvent::PerTryTimeout } else { ClusterEvent::Timeout };
    upstream::count(worker, &out.leg, &plan.cluster, event);
    if let Some(endpoint) = search.tried.last() {
        upstream::timed_out(worker, &out.leg, &plan.cluster, *endpoint);
    }
    Tried::TimedOut { per_try }
}

/// A random part of the first wait doubled with each try (V-23).
fn backoff(base: Duration, attempt: u32, random: u64) -> Duration {
    let factor = 2u32.saturating_pow(attempt.min(16)).saturating_sub(1).min(LONGEST_BACKOFF);
    let longest = u64::try_from((base * factor).as_micros()).unwrap_or(u64::MAX).max(1);
    Duration::from_micros(random % longest)
}

/// Brings a request to the address that its client dialled (X-14, S-40).
pub(crate) async fn pass_through(
    mut out: Box<Outward<'_>>,
    mut call: Box<Call>,
) -> Result<Response<Body>, BrokenOff> {
    let (endpoint, path) = match outbound(out.leg.snapshot, &out.leg.source.workload, out.leg.original) {
        OutboundDecision::Endpoints { candidates, .. } => match candidates.into_iter().next() {
            Some(candidate) => (candidate.addr, candidate.path),
            None => return Ok(out.record.reply(no_endpoint())),
        },
        OutboundDecision::Passthrough { .. } => (out.leg.original, Path::Plaintext),
        OutboundDecision::Unreachable { reason, .. } => {
            out.record.ends.service = Service::BlackHole;
            out.record.cluster = Some("BlackHoleCluster".into());
            out.record.route_name = Some("block_all".into());
            let reply = Reply::text(502, "", "direct_response");
            return Ok(out.record.reply(Reply { failure: Some(reason), ..reply }));
        }
    };
    out.record.cluster.get_or_insert_with(|| "PassthroughCluster".into());
    out.record.route_name.get_or_insert_with(|| "allow_any".into());
    out.record.route = Route::Passthrough;
    out.record.upstream = Some(endpoint);
    let upload = out.upload(&mut call, false);
    out.finish(&mut call);
    set_attempt(&mut call.parts.headers, 1);
    call.body = upload.next_try();
    let worker = out.downstream.worker.clone();
    match upstream::send_to(&worker, &out.leg, endpoint, &path, call, out.protocol).await {
        Ok(sent) => answer(out, sent, None),
        Err(error) => {
            out.record.upstream_local = out.leg.local.get();
            Ok(out.record.reply(failure::reply(error, false)))
        }
    }
}

fn no_endpoint() -> Reply {
    Reply::flagged(503, "no healthy upstream", "no_healthy_upstream", Reason::UH)
}

/// Turns an endpoint's answer into the client's.
fn answer(
    mut out: Box<Outward<'_>>,
    sent: Sent,
    deadline: Option<Instant>,
) -> Result<Response<Body>, BrokenOff> {
    let Sent { response, endpoint, workload, route } = sent;
    let record = &mut out.record;
    record.route = route;
    record.upstream = Some(endpoint);
    record.upstream_local = out.leg.local.get();
    record.ends.destination = workload.as_ref().map(|workload| workload.labels.clone());
    record.ends.destination_principal = match route {
        Route::Node | Route::Hbone => workload.as_ref().map(|workload| workload.labels.principal.clone()),
        Route::Plaintext | Route::Passthrough => None,
    };
    record.pods[1] = workload;
    let time = record.answered(response.status().as_u16(), response.headers());
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return out.downstream.switch(out.upgrade, response, out.record);
    }
    let (mut parts, body) = response.into_parts();
    strip_hop_by_hop(&mut parts.headers, false);
    change_answer(&out, &mut parts, endpoint, time);
    for (name, value) in &out.response_headers {
        let Some((name, value)) = header(name, value) else { continue };
        if name == http::header::SET_COOKIE {
            parts.headers.append(name, value);
        } else {
            parts.headers.insert(name, value);
        }
    }
    set_service_time(&mut parts.headers, time);
    parts.headers.insert(SERVER, SERVER_NAME);
    out.record.leaves(&parts.headers);
    parts.version = if out.downstream.http2 { Version::HTTP_2 } else { Version::HTTP_11 };
    let body = out.record.until_over(body, deadline, out.downstream.http2);
    Ok(Response::from_parts(parts, body))
}

/// Makes the changes that rules ask for (V-17).
fn change_answer(out: &Outward<'_>, parts: &mut http::response::Parts, endpoint: SocketAddr, time: Duration) {
    let answered = Answered {
        status: parts.status.as_u16(),
        headers: &parts.headers,
        upstream: Some(endpoint),
        flags: out.record.flags.text(),
        details: "via_upstream",
        duration: time,
    };
    let changes = out.response_changes.iter().map(|operations| complete(&operations.response, &answered));
    let changes: SmallVec<[_; 2]> = changes.collect();
    changes.iter().for_each(|changes| apply(changes, &mut parts.headers));
}

fn header(name: &str, value: &str) -> Option<(http::HeaderName, http::HeaderValue)> {
    Some((name.parse().ok()?, http::HeaderValue::from_str(value).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_up_to_ten_times_the_first_one() {
        let base = Duration::from_millis(25);
        let longest = |attempt| backoff(base, attempt, u64::MAX - 1).max(backoff(base, attempt, 24_999));
        assert!(longest(1) < base);
        for (attempt, factor) in [(1, 1), (2, 3), (3, 7), (4, 10), (40, 10)] {
            for random in [0, 1, u64::MAX, u64::MAX / 3] {
                assert!(backoff(base, attempt, random) < base * factor, "{attempt} {random}");
            }
        }
        assert_eq!(backoff(Duration::ZERO, 3, 7), Duration::ZERO);
    }
}
