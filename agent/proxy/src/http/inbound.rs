//! The server's side of a request: who asks, with what tokens, and whether policy lets it reach the application.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use http::header::SERVER;
use http::request::Parts;
use http::{HeaderValue, Response, StatusCode, Version};
use smallvec::SmallVec;
use tokio::sync::watch;
use weft_core::decide::ext_authz::{self, Allowed, Answer};
use weft_core::decide::http::apply;
use weft_core::decide::inbound::ExternalCheck;
use weft_core::decide::request_authentication::{Authentication, JwtFailure, Outcome, authenticate};
use weft_core::decide::{InboundConnection, InboundRequest, Verdict, inbound, protocol};
use weft_core::hashing::FastMap;
use weft_core::resource::PortProtocol;
use weft_core::snapshot::{LocalWorkload, Workload};
use weft_core::{Identity, ObjectRef, Snapshot};
use weft_telemetry::Reporter;

use super::ahead::Ahead;
use super::body::Body;
use super::call::Call;
use super::expectation;
use super::external::{Asker, Included, OfAuthoriser};
use super::failure;
use super::headers::{
    X_FORWARDED_CLIENT_CERT, address, identify, join_cookies, set_service_time, strip_certificate,
    strip_hop_by_hop, wants_upgrade,
};
use super::message::Message;
use super::record::{Addresses, Record};
use super::reply::Reply;
use super::serve::{Admitted, BrokenOff, Downstream};
use super::upload::Upload;
use super::upstream::{self, Application, Leg, SendError, SendErrorKind, UpstreamProtocol};
use crate::account::{Facts, Failure, Route};
use crate::labels::{Ends, Service, inbound_cluster};
use crate::pod::Pod;
use crate::refusal::{Refusal, audit, count_dry_runs, policy_id};
use crate::registry::Admission;
use crate::worker::Worker;

/// What `server` says on the server's side (H-1).
const SERVER_NAME: HeaderValue = HeaderValue::from_static("istio-envoy");

/// Values that a worker keeps; beyond that it forgets all and begins again.
const MAX_VOUCHERS: usize = 4096;

/// A connection to an application of this node.
#[derive(Clone)]
pub(crate) struct Arrival {
    /// The application's pod.
    pub(crate) pod: Arc<Pod>,
    /// Who opened it: from TLS or from the kernel, never from an address.
    pub(crate) identity: Option<Arc<Identity>>,
    /// Fingerprint of the certificate that it showed; `None` where the kernel vouches for it.
    pub(crate) certificate: Option<Arc<str>>,
    /// The client's address.
    pub(crate) client: SocketAddr,
    /// The application's.
    pub(crate) destination: SocketAddr,
    /// How it came.
    pub(crate) route: Route,
    /// The client's pod, where it is known.
    pub(crate) source: Option<Arc<Workload>>,
    /// Its principal, where somebody vouches for it.
    pub(crate) principal: Option<Arc<str>>,
    /// What the client had addressed.
    pub(crate) service: Service,
}

impl Arrival {
    /// A connection that was admitted. `source` is the workload at the client's address.
    pub(crate) fn of(admission: &Admission, facts: &Facts, source: Option<&Arc<Workload>>) -> Self {
        Self {
            pod: admission.pod.clone(),
            identity: admission.identity.clone(),
            certificate: None,
            client: facts.client,
            destination: admission.destination,
            route: facts.route,
            source: source.cloned(),
            principal: facts.ends.source_principal.clone(),
            service: facts.ends.service.clone(),
        }
    }

    fn connection(&self) -> InboundConnection<'_> {
        InboundConnection {
            identity: self.identity.as_deref(),
            source_ip: self.client.ip(),
            destination: self.destination,
            sni: None,
        }
    }

    /// A record of a request that came so.
    pub(super) fn record(&self, worker: &Rc<Worker>, local: &LocalWorkload, parts: &Parts) -> Box<Record> {
        let authenticated = self.identity.is_some();
        let ends = Ends {
            source: self.source.as_ref().map(|source| source.labels.clone()),
            source_principal: self.principal.clone(),
            destination: Some(local.workload.labels.clone()),
            destination_principal: authenticated.then(|| local.workload.labels.principal.clone()),
            service: self.service.clone(),
        };
        let addresses = Addresses { client: self.client, addressed: self.destination };
        let mut record = Record::new(worker, Reporter::Destination, addresses, parts, (self.route, ends));
        record.pods = [self.source.clone(), Some(local.workload.clone())];
        record.upstream = Some(self.destination);
        record.cluster = inbound_cluster(local, self.destination.port());
        record
    }
}

/// A request that is on its way to an application of this node.
struct Asked<'a> {
    worker: &'a Rc<Worker>,
    arrival: &'a Arrival,
    snapshot: &'a Arc<Snapshot>,
    local: &'a Arc<LocalWorkload>,
    from: &'a Cell<Option<SocketAddr>>,
    message: Message,
    call: Box<Call>,
    record: Box<Record>,
    /// Not unset but for a request that the client's side has brought into form, and whose answer it marks itself.
    marks: bool,
}

/// Why a request gets no further.
enum Stopped {
    /// It is answered so.
    Reply(Box<Reply>),
    /// The connection is closed without a word (PA-4).
    Close(Failure),
}

/// Answers a request that came by a tunnel or in the clear.
pub(crate) async fn arrived(
    downstream: &Rc<Downstream>,
    arrival: &Arrival,
    admitted: Admitted,
    mut call: Box<Call>,
) -> Result<Response<Body>, BrokenOff> {
    let worker = &downstream.worker;
    let snapshot = worker.snapshot();
    let local = crate::inbound::own_workload(&snapshot, &arrival.pod);
    let local = local.map_err(|failure| downstream.unknown(&failure))?;
    expectation::wait(&mut call);
    if downstream.http2 {
        join_cookies(&mut call.parts.headers);
    }
    let mut record = arrival.record(worker, local, &call.parts);
    record.hold(admitted.busy);
    let message = match Message::read(&call.parts, admitted.smell, snapshot.mesh().http.path_normalization) {
        Ok(message) => message,
        Err(reply) => return Ok(record.reply(*reply)),
    };
    record.identified(identify(worker, &mut call.parts.headers));
    let upgrade = !downstream.http2 && wants_upgrade(&call.parts.headers);
    strip_hop_by_hop(&mut call.parts.headers, upgrade);
    let clients = if downstream.http2 { UpstreamProtocol::Http2 } else { UpstreamProtocol::Http1 };
    let protocol = if upgrade { UpstreamProtocol::Http1 } else { protocol_of(local, arrival, clients) };
    let body = call.take_body();
    let upload = Upload::new(body, || record.received(), (false, downstream.http2), record.began());
    record.upload(&upload);
    let from = Cell::default();
    let going = Asked {
        worker,
        arrival,
        snapshot: &snapshot,
        local,
        from: &from,
        message,
        call,
        record,
        marks: true,
    };
    let delivered = match deliver(going, &upload, protocol).await {
        Ok(delivered) => delivered,
        Err(Refused::Reply(response)) => return Ok(response),
        Err(Refused::Unreachable(failed)) => return Ok(failed.1),
        Err(Refused::Close) => return Err(BrokenOff::new()),
    };
    let Delivered { response, record } = delivered;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return downstream.switch(upgrade, response, record);
    }
    let (mut parts, body) = response.into_parts();
    parts.version = if downstream.http2 { Version::HTTP_2 } else { Version::HTTP_11 };
    Ok(Response::from_parts(parts, record.until_over(body, None, downstream.http2)))
}

/// X-11 on the server's side: what the port declares, else what the client speaks.
fn protocol_of(local: &LocalWorkload, arrival: &Arrival, clients: UpstreamProtocol) -> UpstreamProtocol {
    match protocol::declared(local, arrival.destination.port()) {
        Some(PortProtocol::Http) => UpstreamProtocol::Http1,
        Some(PortProtocol::Http2 | PortProtocol::Grpc | PortProtocol::GrpcWeb) => UpstreamProtocol::Http2,
        Some(PortProtocol::Tls | PortProtocol::Tcp | PortProtocol::Udp | PortProtocol::Undeclared) | None => {
            clients
        }
    }
}

/// Brings a request of a pod of this node to another one: the server's rules apply as if it had come from
/// elsewhere, and its side is reported as well (M-7).
pub(crate) async fn serve_local(
    worker: &Rc<Worker>,
    leg: &Leg<'_>,
    local: &Arc<LocalWorkload>,
    (destination, protocol): (SocketAddr, UpstreamProtocol),
    mut call: Box<Call>,
) -> Result<Response<Body>, SendError> {
    let Some(pod) = worker.pod(&local.workload.key) else {
        // Never around the proxy: without its namespace the destination's rules could not be enforced.
        let details = format!("pod {} is not enrolled yet", local.workload.key);
        return Err(SendError {
            request: Some(call),
            ..SendError::new(SendErrorKind::ConnectFailure, details)
        });
    };
    let source = &leg.source.workload;
    let addressed = leg.snapshot.addressed(&leg.original, None);
    let service = addressed.and_then(|(service, at)| {
        Some(Service::Known { service: service.clone(), port: service.ports.get(at)?.port })
    });
    let arrival = Arrival {
        pod,
        // The listener's network namespace says who speaks (ruling 2).
        identity: Some(source.identity.clone()),
        certificate: None,
        client: leg.client,
        destination,
        route: Route::Node,
        source: Some(source.clone()),
        principal: Some(source.labels.principal.clone()),
        service: service.unwrap_or(Service::Unknown),
    };
    let mut record = arrival.record(worker, local, &call.parts);
    let (plain, level) = (call.plain.take(), leg.snapshot.mesh().http.path_normalization);
    let marks = plain.is_none() || record.notes_headers();
    let message = match plain.map_or_else(|| Message::read(&call.parts, None, level), Ok) {
        Ok(message) => message,
        Err(reply) => return Ok(record.reply(*reply)),
    };
    let upload = Upload::new(call.take_body(), || record.received(), (false, true), record.began());
    record.upload(&upload);
    let going = Asked {
        worker,
        arrival: &arrival,
        snapshot: leg.snapshot,
        local,
        from: &leg.local,
        message,
        call,
        record,
        marks,
    };
    match deliver(going, &upload, protocol).await {
        Ok(Delivered { response, record }) => {
            let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
            Ok(response.map(|body| match switched {
                true => record.until_dropped(body),
                false => record.until_handed_over(body),
            }))
        }
        Err(Refused::Reply(response)) => Ok(response),
        Err(Refused::Unreachable(failed)) => Err(failed.0),
        Err(Refused::Close) => {
            let failure =
                Failure::new("DENY", "peer_authentication", "the destination refuses the connection");
            Err(SendError::new(SendErrorKind::Denied(failure.clone()), failure.details))
        }
    }
}

/// The application's answer.
struct Delivered {
    response: Response<Body>,
    record: Box<Record>,
}

/// Somebody else's, or none.
enum Refused {
    Reply(Response<Body>),
    Close,
    /// The application cannot be reached; nothing was sent.
    Unreachable(Box<(SendError, Response<Body>)>),
}

/// Asks policy, then the application.
async fn deliver(
    mut going: Asked<'_>,
    upload: &Upload,
    protocol: UpstreamProtocol,
) -> Result<Delivered, Refused> {
    let mut body = Ahead::new(upload.next_try());
    let Passed { changed, allowed } = match admit(&mut going, &mut body).await {
        Ok(passed) => passed,
        Err(Stopped::Reply(reply)) => return Err(Refused::Reply(going.record.reply(*reply))),
        Err(Stopped::Close(failure)) => {
            going.record.closed(failure);
            return Err(Refused::Close);
        }
    };
    let Asked { worker, arrival, local, from, message, mut call, mut record, marks, .. } = going;
    vouch(worker, &mut call.parts, arrival, local);
    if marks || changed {
        address(&mut call.parts, message.target(), message.authority());
    }
    let application = Application {
        pod: &arrival.pod,
        local,
        client: arrival.client.ip(),
        destination: arrival.destination,
        from,
    };
    call.body = body.into();
    let answered = upstream::application(worker, &application, call, protocol).await;
    record.upstream_local = from.get();
    match answered {
        Ok(mut response) => {
            let time = record.answered(response.status().as_u16(), response.headers());
            if response.status() != StatusCode::SWITCHING_PROTOCOLS {
                let headers = response.headers_mut();
                strip_hop_by_hop(headers, false);
                for allowed in &allowed {
                    apply(&allowed.response, headers);
                }
                if marks {
                    set_service_time(headers, time);
                    headers.insert(SERVER, SERVER_NAME);
                    record.leaves(headers);
                }
            }
            Ok(Delivered { response, record })
        }
        Err(mut error) => {
            let request = error.request.take().filter(|_| !changed);
            let (kind, detail) = (error.kind.clone(), error.detail.clone());
            let reply = record.reply(failure::reply(error, false));
            if kind != SendErrorKind::ConnectFailure {
                return Err(Refused::Reply(reply));
            }
            Err(Refused::Unreachable(Box::new((
                SendError { request, ..SendError::new(kind, detail) },
                reply,
            ))))
        }
    }
}

/// A request that may go on.
struct Passed {
    /// Its headers or target are not what they were.
    changed: bool,
    /// What external authorisers want changed.
    allowed: SmallVec<[Allowed; 1]>,
}

/// Authentication of the request, then policy.
async fn admit(going: &mut Asked<'_>, body: &mut Ahead) -> Result<Passed, Stopped> {
    let authentication = authenticated(going).await;
    let (changes, target) = {
        let request = going.message.view(&going.call.parts);
        if let Some(refusal) = authentication.refusal(&request) {
            let details = authentication.details().map_or(Cow::Borrowed(refusal.details), Cow::Owned);
            return Err(Stopped::Reply(Box::new(Reply { details, ..Reply::from(&refusal) })));
        }
        let asked = InboundRequest {
            connection: going.arrival.connection(),
            request,
            authentication: &authentication,
        };
        let mut decision = inbound::request(going.local, &asked);
        let metrics = &going.worker.shared.context.metrics;
        count_dry_runs(metrics, &decision);
        let allowed_by = match decision.verdict {
            Verdict::Allow => decision.authorization.object.take(),
            Verdict::DenyAuthorization | Verdict::DenyPeerAuthentication => None,
        };
        match allowed_by {
            Some(object) => going.record.allowed_by = Some((object, decision.authorization.rule)),
            None => going.record.policy = policy_id(&decision),
        }
        if decision.verdict == Verdict::DenyPeerAuthentication {
            return Err(Stopped::Close(Refusal::of(&decision).into()));
        }
        let mut checked = SmallVec::<[Allowed; 1]>::new();
        for check in &decision.authorization.external {
            // Boxed, as everything that is rare: what a request may have to do decides how much is moved for each.
            checked.push(Box::pin(externally(going, check, &asked, body)).await?);
        }
        going.record.audit = audit(metrics, &decision);
        if let Some(refusal) = decision.refusal() {
            let details = Cow::Owned(decision.authorization.details());
            let policy = Refusal::of(&decision).policy;
            return Err(Stopped::Reply(Box::new(Reply { details, policy, ..Reply::from(&refusal) })));
        }
        ((authentication.changes, checked), authentication.target)
    };
    let (of_tokens, checked) = changes;
    let mut changed = target.is_some();
    for change in std::iter::once(&of_tokens).chain(checked.iter().map(|allowed| &allowed.request)) {
        if !change.is_empty() {
            changed = true;
            apply(change, &mut going.call.parts.headers);
        }
    }
    if let Some(target) = target {
        going.message.set_target(&target);
    }
    Ok(Passed { changed, allowed: checked })
}

/// Asks an external authoriser (AP-17).
async fn externally(
    going: &Asked<'_>,
    check: &ExternalCheck,
    asked: &InboundRequest<'_>,
    body: &mut Ahead,
) -> Result<Allowed, Stopped> {
    let ObjectRef { namespace, name, .. } = &check.object;
    let policy = || Some(format!("ns[{namespace}]-policy[{name}]-rule[{}]", check.rule));
    let asker = Asker {
        worker: going.worker,
        snapshot: going.snapshot,
        pod: &going.arrival.pod,
        local: going.local,
        source_port: going.arrival.client.port(),
        protocol: if going.call.parts.version == Version::HTTP_2 { "HTTP/2" } else { "HTTP/1.1" },
    };
    let answer = match going.call.parts.extensions.get::<OfAuthoriser>() {
        Some(OfAuthoriser) => ext_authz::failure(&check.provider),
        None => match Included::of(&check.provider, body).await {
            Ok(included) => asker.ask(check, asked, &included).await,
            Err(reply) => return Err(Stopped::Reply(Box::new(Reply { policy: policy(), ..*reply }))),
        },
    };
    match answer {
        Answer::Allow(allowed) => Ok(allowed),
        Answer::Deny(refusal) => {
            Err(Stopped::Reply(Box::new(Reply { policy: policy(), ..Reply::from(&refusal) })))
        }
    }
}

/// What the request's tokens say. Keys that are missing are fetched first, once.
async fn authenticated(going: &Asked<'_>) -> Authentication {
    if going.local.request_authentication.is_empty() {
        return Authentication::default();
    }
    let keys = &going.worker.keys;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    let now = i64::try_from(now).unwrap_or(i64::MAX);
    let ask = || {
        let verify = |rule: &_, token: &str| keys.verify(rule, token, now);
        authenticate(going.local, &going.message.view(&going.call.parts), &verify)
    };
    let first = ask();
    let Outcome::KeysMissing(policies) = &first.outcome else { return first };
    for policy in policies {
        let fetched =
            keys.fetch(going.worker, going.snapshot, (&going.arrival.pod, going.local), &policy.rule);
        Box::pin(fetched).await;
    }
    let second = ask();
    match second.outcome {
        Outcome::KeysMissing(_) => {
            Authentication { outcome: Outcome::Invalid(JwtFailure::KeysUnavailable), ..second }
        }
        Outcome::None | Outcome::Missing | Outcome::Valid | Outcome::Invalid(_) => second,
    }
}

/// Tells the application who the client is (H-2); what the client says about that itself is taken away.
///
/// On one node no certificate is shown: the client's own of the moment, which this node keeps, stands for it, so that
/// the application cannot tell the ways apart.
fn vouch(worker: &Worker, parts: &mut Parts, arrival: &Arrival, local: &LocalWorkload) {
    match &arrival.identity {
        Some(identity) => {
            let certs = &worker.shared.context.certs;
            let value = worker.vouchers.of(
                (identity, arrival.certificate.as_ref()),
                &local.workload.labels.principal,
                || Some(certs.get(identity).ok()?.fingerprint().clone()),
            );
            parts.headers.insert(X_FORWARDED_CLIENT_CERT, value);
        }
        None => {
            strip_certificate(&mut parts.headers);
        }
    }
}

/// Values of `x-forwarded-client-cert` by client, its certificate and server. Keeps its keys alive, so their
/// addresses are unique.
#[derive(Debug)]
pub(crate) struct Vouchers {
    known: RefCell<FastMap<[usize; 3], Voucher>>,
    /// Tells that certificates of this node are others than before.
    changes: RefCell<watch::Receiver<u64>>,
}

#[derive(Debug)]
struct Voucher {
    value: HeaderValue,
    _client: Arc<Identity>,
    _certificate: Option<Arc<str>>,
    _server: Arc<str>,
}

impl Vouchers {
    /// Nothing is known yet; forgets everything whenever `changes` ticks.
    pub(crate) fn new(changes: watch::Receiver<u64>) -> Self {
        Self { known: RefCell::default(), changes: RefCell::new(changes) }
    }

    /// The value for a client; `own` is the fingerprint of the certificate that this node has for it.
    fn of(
        &self,
        (client, certificate): (&Arc<Identity>, Option<&Arc<str>>),
        server: &Arc<str>,
        own: impl FnOnce() -> Option<Arc<str>>,
    ) -> HeaderValue {
        self.forget_what_changed();
        let shown = certificate.map_or(0, |certificate| Arc::as_ptr(certificate).addr());
        let key = [Arc::as_ptr(client).addr(), shown, Arc::as_ptr(server).addr()];
        if let Some(known) = self.known.borrow().get(&key) {
            return known.value.clone();
        }
        let hash = certificate.cloned().or_else(own).map(|hash| format!("Hash={hash};")).unwrap_or_default();
        let value = HeaderValue::try_from(format!("By={server};{hash}Subject=\"\";URI={client}"));
        // Identities are visible ASCII.
        let value = value.unwrap_or_else(|_| HeaderValue::from_static(""));
        let mut known = self.known.borrow_mut();
        if known.len() >= MAX_VOUCHERS {
            known.clear();
        }
        let voucher = Voucher {
            value: value.clone(),
            _client: client.clone(),
            _certificate: certificate.cloned(),
            _server: server.clone(),
        };
        known.insert(key, voucher);
        value
    }

    fn forget_what_changed(&self) {
        let mut changes = self.changes.borrow_mut();
        // An error: the store is gone, with the agent.
        if changes.has_changed().unwrap_or(false) {
            changes.borrow_and_update();
            self.known.borrow_mut().clear();
        }
    }
}
