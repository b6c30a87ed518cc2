//! One request of a pod: the client's side decides where it goes, what is changed, and what becomes of failures.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::request::Parts;
use http::{HeaderMap, Response};
use smallvec::SmallVec;
use weft_core::decide::http::{
    Action, Answered, Caller, Circumstances, Cluster, Cors, Forward, LocalReply, RouteDecision, added, cors,
    draw_fault, drawn, hash, prepare, route_remembering,
};
use weft_core::resource::PortProtocol;
use weft_core::resource::virtual_service::{AbortStatus, Fault};
use weft_core::snapshot::LocalWorkload;
use weft_telemetry::Reporter;

use super::body::Body;
use super::call::Call;
use super::expectation;
use super::flags::{Flags, Reason};
use super::forward::{self, Outward};
use super::headers::{
    identify, join_cookies, strip_certificate, strip_controls, strip_hop_by_hop, wants_upgrade,
};
use super::message::Message;
use super::mirror::{self, Mirrored};
use super::record::{Addresses, Record};
use super::reply::Reply;
use super::serve::{Admitted, BrokenOff, Downstream};
use super::upload::Upload;
use super::upstream::{Leg, UpstreamProtocol};
use crate::account::Route;
use crate::inbound;
use crate::labels::{Ends, Service};
use crate::pod::Pod;
use crate::worker::Worker;

/// A captured connection of a pod.
pub(crate) struct Outbound {
    /// The pod.
    pub(crate) pod: Arc<Pod>,
    /// Its end of the connection.
    pub(crate) client: SocketAddr,
    /// What it dialled.
    pub(crate) original: SocketAddr,
}

/// Answers one request.
pub(crate) async fn exchange(
    downstream: &Rc<Downstream>,
    outbound: &Outbound,
    admitted: Admitted,
    mut call: Box<Call>,
) -> Result<Response<Body>, BrokenOff> {
    let worker = &downstream.worker;
    let snapshot = worker.snapshot();
    let source = inbound::own_workload(&snapshot, &outbound.pod);
    let source = source.map_err(|failure| downstream.unknown(&failure))?;
    expectation::wait(&mut call);
    if downstream.http2 {
        join_cookies(&mut call.parts.headers);
    }
    let mut record = begin(worker, outbound, source, &call.parts);
    record.hold(admitted.busy);
    let message = match Message::read(&call.parts, admitted.smell, snapshot.mesh().http.path_normalization) {
        Ok(message) => message,
        Err(reply) => return Ok(record.reply(*reply)),
    };
    strip_controls(&mut call.parts.headers);
    record.identified(identify(worker, &mut call.parts.headers));
    let upgrade = !downstream.http2 && wants_upgrade(&call.parts.headers);
    let leg = Leg {
        pod: &outbound.pod,
        source,
        client: outbound.client,
        original: outbound.original,
        snapshot: &snapshot,
        local: Cell::default(),
    };
    // Boxed: it is handed on several times, and would be moved each time.
    let asked = Box::new(Outward {
        downstream,
        leg,
        message,
        authority: None,
        record,
        upgrade,
        protocol: clients_protocol(downstream.http2),
        response_changes: Vec::new(),
        response_headers: Extra::new(),
    });
    decide(asked, call).await
}

/// A record of a request of a pod.
pub(super) fn begin(
    worker: &Rc<Worker>,
    outbound: &Outbound,
    source: &Arc<LocalWorkload>,
    parts: &Parts,
) -> Box<Record> {
    let addresses = Addresses { client: outbound.client, addressed: outbound.original };
    let workload = &source.workload;
    let ends = Ends {
        source: Some(workload.labels.clone()),
        source_principal: Some(workload.labels.principal.clone()),
        destination: None,
        destination_principal: None,
        service: Service::Unknown,
    };
    let mut record = Record::new(worker, Reporter::Source, addresses, parts, (Route::Plaintext, ends));
    record.pods = [Some(workload.clone()), None];
    record
}

async fn decide(mut asked: Box<Outward<'_>>, mut call: Box<Call>) -> Result<Response<Body>, BrokenOff> {
    let caller = Caller {
        workload: &asked.leg.source.workload,
        original: asked.leg.original,
        labels: &asked.leg.source.workload.pod_labels,
    };
    // Gone before anybody is waited for: what lives on is moved with the request.
    let aimed = {
        let decision = {
            let memory = &mut asked.downstream.worker.routes.borrow_mut();
            route_remembering(memory, asked.leg.snapshot, &caller, &asked.message.view(&call.parts))
        };
        name_route(&mut asked.record, &decision);
        let mut extra = SmallVec::new();
        match decision.cors.as_ref().map(|policy| cors(policy, &asked.message.view(&call.parts))) {
            Some(Cors::Preflight(reply)) => return Ok(asked.record.reply(Reply::from(&reply))),
            Some(Cors::Headers(headers)) => extra.extend(headers),
            Some(Cors::None) | None => {}
        }
        match &decision.action {
            Action::Respond(reply) => return Ok(respond(asked, &call, (&decision, reply), extra)),
            Action::Passthrough => {
                leave(&mut asked, &mut call, extra);
                Ok(None)
            }
            Action::Forward(rule) => {
                let reply = match &rule.fault {
                    Some(fault) => Box::pin(inject(&mut asked, fault)).await,
                    None => None,
                };
                match reply {
                    Some(reply) => Err(Box::new(reply)),
                    None => aim(&mut asked, &mut call, (&decision, rule), extra).map(Some),
                }
            }
        }
    };
    match aimed {
        Ok(Some((plan, upload))) => forward::forward(asked, call, upload, plan).await,
        Ok(None) => Box::pin(forward::pass_through(asked, call)).await,
        Err(reply) => Ok(asked.record.reply(*reply)),
    }
}

pub(super) type Extra = SmallVec<[(Arc<str>, String); 2]>;

fn respond(
    asked: Box<Outward<'_>>,
    call: &Call,
    (decision, reply): (&RouteDecision, &LocalReply),
    mut extra: Extra,
) -> Response<Body> {
    let answered = Answered {
        status: reply.status,
        headers: &HeaderMap::new(),
        upstream: None,
        flags: reply.flag,
        details: reply.details,
        duration: Duration::ZERO,
    };
    extra.extend(added(decision, &asked.message.view(&call.parts), (&circumstances(&asked), &answered)));
    let reply = extra.iter().fold(Reply::from(reply), |reply, (name, value)| reply.with(name, value));
    asked.record.reply(reply)
}

/// What `%OPERATORS%` may read (V-17).
fn circumstances<'a>(asked: &'a Outward<'_>) -> Circumstances<'a> {
    Circumstances {
        client: asked.leg.client,
        original: asked.leg.original,
        protocol: if asked.downstream.http2 { "HTTP/2" } else { "HTTP/1.1" },
        pod: &asked.leg.source.workload.key.name,
        time: &now,
    }
}

fn now(format: Option<&str>) -> String {
    weft_telemetry::time(SystemTime::now(), format)
}

/// Log and metrics name the rule and the Service also where the mesh answers.
fn name_route(record: &mut Record, decision: &RouteDecision) {
    record.ends.service = match &decision.service {
        Some((service, at)) => {
            let port = service.ports.get(*at).map_or(0, |port| port.port);
            Service::Known { service: service.clone(), port }
        }
        None => match &decision.action {
            Action::Passthrough => Service::Passthrough,
            Action::Respond(reply) if reply.by == "block_all" || reply.status == 502 => Service::BlackHole,
            Action::Respond(_) | Action::Forward(_) => Service::Unknown,
        },
    };
    record.route_name = match &decision.rule {
        Some(rule) => rule.name.clone(),
        None => route_without_rule(&record.ends.service),
    };
}

/// What the log calls the route where no rule was needed to find one (L-4).
fn route_without_rule(service: &Service) -> Option<Arc<str>> {
    thread_local! {
        static NAMES: [Arc<str>; 2] = ["default".into(), "block_all".into()];
    }
    NAMES.with(|[default, block_all]| match service {
        Service::Known { .. } => Some(default.clone()),
        Service::BlackHole => Some(block_all.clone()),
        Service::Passthrough | Service::Unknown => None,
    })
}

/// Injects the rule's faults: waits, or says what the mesh answers.
async fn inject(asked: &mut Outward<'_>, fault: &Fault) -> Option<Reply> {
    let worker = &asked.downstream.worker;
    let drawn = draw_fault(fault, &mut |below| worker.random() % below.max(1));
    if let Some(delay) = drawn.delay {
        asked.record.flags.delayed = true;
        tokio::time::sleep(delay).await;
    }
    drawn.abort.map(aborted)
}

/// Chooses one of the rule's targets, and gives the request the form in which it leaves for it.
fn aim(
    asked: &mut Outward<'_>,
    call: &mut Call,
    (decision, rule): (&RouteDecision, &Forward),
    mut extra: Extra,
) -> Result<(forward::Plan, Upload), Box<Reply>> {
    let worker = asked.downstream.worker.clone();
    let mut random = |below: u64| worker.random() % below.max(1);
    let Some(target) = rule.choose(&mut random) else {
        return Err(Box::new(missing_cluster("no destination has a weight")));
    };
    let cluster = target.cluster.clone().map_err(|name| {
        let reply = Box::new(missing_cluster(&name));
        asked.record.cluster = Some(name);
        reply
    })?;
    name_cluster(&mut asked.record, &cluster);
    let view = asked.message.view(&call.parts);
    let hashed = hash(&cluster.policy, &view, asked.leg.client.ip(), worker.random());
    extra.extend(hashed.set_cookie.map(|cookie| (Arc::from("set-cookie"), cookie)));
    let outgoing = prepare(decision, target, &view, &circumstances(asked));
    let mirrors: SmallVec<[Arc<Cluster>; 1]> = rule
        .mirrors
        .iter()
        .filter(|mirror| drawn(mirror.share, &mut random))
        .filter_map(|mirror| mirror.cluster.as_ref().ok().cloned())
        .collect();
    let http2 = asked.downstream.http2;
    leave(asked, call, extra);
    asked.protocol = protocol_to(&cluster, http2, asked.upgrade);
    if outgoing.is_empty() {
        call.plain = asked.message.of_unchanged();
    }
    asked.change(call, outgoing);
    let plan =
        forward::Plan { cluster, hash: hashed.value, timeout: rule.timeout, retry: rule.retry.clone() };
    let upload = asked.upload(call, plan.retry.attempts > 0);
    for cluster in mirrors {
        let protocol = protocol_to(&cluster, http2, asked.upgrade);
        mirror::send((asked, call), &upload, Mirrored { cluster, protocol, timeout: plan.timeout });
    }
    Ok((plan, upload))
}

fn name_cluster(record: &mut Record, cluster: &Arc<Cluster>) {
    record.cluster = Some(cluster.name.clone());
    record.ends.service = Service::Known { service: cluster.service.clone(), port: cluster.port };
}

fn clients_protocol(http2: bool) -> UpstreamProtocol {
    if http2 { UpstreamProtocol::Http2 } else { UpstreamProtocol::Http1 }
}

/// what the port declares, what the policy says, or what the client speaks.
fn protocol_to(cluster: &Cluster, client_http2: bool, upgrade: bool) -> UpstreamProtocol {
    let clients = clients_protocol(client_http2);
    let pool = &cluster.policy.connection_pool;
    if upgrade {
        return UpstreamProtocol::Http1;
    }
    if pool.use_client_protocol {
        return clients;
    }
    if pool.h2_upgrade == Some(true) {
        return UpstreamProtocol::Http2;
    }
    match cluster.service.ports.get(cluster.service_port).map(|port| port.protocol) {
        Some(PortProtocol::Http2 | PortProtocol::Grpc | PortProtocol::GrpcWeb) => UpstreamProtocol::Http2,
        Some(PortProtocol::Http) => UpstreamProtocol::Http1,
        Some(PortProtocol::Tls | PortProtocol::Tcp | PortProtocol::Udp | PortProtocol::Undeclared) | None => {
            clients
        }
    }
}

/// Takes away what does not leave with the request, and keeps what its answer gets.
fn leave(asked: &mut Outward<'_>, call: &mut Call, extra: Extra) {
    strip_hop_by_hop(&mut call.parts.headers, asked.upgrade);
    strip_certificate(&mut call.parts.headers);
    asked.response_headers = extra;
}

fn aborted(abort: AbortStatus) -> Reply {
    let (status, grpc) = match abort {
        AbortStatus::Http(status) => (status, None),
        // E24: callers that do not speak gRPC get 200 with the text.
        AbortStatus::Grpc(status) => (200, Some(status)),
    };
    let flags = Flags { aborted: true, ..Flags::default() };
    Reply { flags, grpc, ..Reply::text(status, "fault filter abort", "fault_filter_abort") }
}

/// E25, V-15.
fn missing_cluster(name: &str) -> Reply {
    let reply = Reply::flagged(503, "", "cluster_not_found", Reason::NC);
    Reply { failure: Some(format!("there is no host or subset {name}")), ..reply }
}
