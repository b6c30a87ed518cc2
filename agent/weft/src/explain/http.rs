//! Requests: the client's side.
//!
//! A straight line through what the client's proxy does: normalise the path, choose a rule, CORS, faults, then the
//! destinations, each with the request as it leaves and the server's side of every endpoint.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, SystemTime};

use ::http::HeaderMap;
use weft_core::decide::http::{
    Action, Answered, Caller, Circumstances, Cors, FaultDraw, Forward, LocalReply, Outgoing, RouteDecision,
    Target, added, apply, choose, cors, draw_fault, prepare, route_traced,
};
use weft_core::http_path::normalise;
use weft_core::resource::virtual_service::{HeaderOperations, PerMillion};

use super::chance::Chance;
use super::destination::Exchange;
use super::gather::gather;
use super::hop::Outcome;
use super::question::AskedRequest;
use super::reach::{Reach, dialled};
use super::{Explanation, Inquiry, ResponseView, ServiceView, Unanswerable, reply, rule};

/// Fills in the answer to a question about a request.
pub(super) fn explain(inquiry: &Inquiry<'_>, answer: &mut Explanation) -> Result<(), Unanswerable> {
    let mut asked = AskedRequest::of(inquiry.question, inquiry.target)?;
    if asked.is_grpc() {
        answer.protocol = "grpc".into();
    }
    if inquiry.speaks_tls() {
        answer.steps.push(
            "The port is declared as HTTP and the client begins with TLS: that is no request to the mesh."
                .into(),
        );
        respond(answer, reply::plain(400, "", "bad_request", false));
        return Ok(());
    }
    let dialled = dialled(inquiry, &mut answer.steps);
    if let Some(refusal) = tidy(inquiry, &mut asked, answer) {
        respond(answer, refusal);
    } else if inquiry.source.in_mesh {
        clients_side(inquiry, &dialled, asked, answer);
    } else {
        answer.steps.push("Nothing captures this client: no rule of the client's side applies.".into());
        unrouted(inquiry, &dialled, asked, answer);
    }
    Ok(())
}

fn clients_side(
    inquiry: &Inquiry<'_>,
    dialled: &[SocketAddr],
    asked: AskedRequest,
    answer: &mut Explanation,
) {
    let caller = inquiry.caller(dialled);
    let (decision, trace) = route_traced(inquiry.snapshot, &caller, &asked.as_request());
    rule::describe(&decision, &trace, answer);
    let of_service =
        decision.service.as_ref().and_then(|(service, at)| Some((service, service.ports.get(*at)?)));
    if let Some((service, port)) = of_service {
        answer.service = Some(ServiceView { host: service.host.to_string(), port: port.port });
    }
    let added = match decision.cors.as_ref().map(|policy| cors(policy, &asked.as_request())) {
        Some(Cors::Preflight(preflight)) => {
            answer.steps.push("corsPolicy: this is a preflight, which the mesh answers.".into());
            return respond(answer, reply::view(&preflight, asked.is_grpc()));
        }
        Some(Cors::Headers(headers)) => headers,
        Some(Cors::None) | None => Vec::new(),
    };
    let added = added.into_iter().map(|(name, value)| (name.to_string(), value));
    match &decision.action {
        Action::Respond(local) => {
            let mut response = reply::view(local, asked.is_grpc());
            response.headers.extend(added_by_rule(&decision, local, &asked, &caller));
            response.headers.extend(added);
            respond(answer, response);
        }
        Action::Passthrough => unrouted(inquiry, dialled, asked, answer),
        Action::Forward(forward) => {
            let added = added.map(|(name, value)| (name, Some(value))).collect();
            let request = Routed { inquiry, decision: &decision, asked: &asked, dialled, added };
            request.forward(forward, answer);
        }
    }
}

/// H-10: rules see the normalised path, and so does the application.
fn tidy(inquiry: &Inquiry<'_>, asked: &mut AskedRequest, answer: &mut Explanation) -> Option<ResponseView> {
    let level = inquiry.snapshot.mesh().http.path_normalization;
    let tidied = match normalise(level, &asked.target) {
        Ok(tidied) => tidied.into_owned(),
        Err(bad) => {
            answer.steps.push(format!("{bad}: refused."));
            return Some(reply::plain(400, "", "bad_request", asked.is_grpc()));
        }
    };
    if tidied != asked.target {
        answer.steps.push(format!("Path normalisation turns {} into {tidied}.", asked.target));
        asked.target = tidied;
    }
    None
}

fn respond(answer: &mut Explanation, response: ResponseView) {
    answer.verdict = Outcome::Respond.as_str().into();
    answer.steps.push(format!("The mesh answers itself: {}.", reply::told(&response)));
    answer.response = Some(response);
}

/// Without a rule of the client's side, the request goes where the connection goes.
fn unrouted(inquiry: &Inquiry<'_>, dialled: &[SocketAddr], asked: AskedRequest, answer: &mut Explanation) {
    let reach = Reach::of(inquiry, dialled, &mut answer.steps);
    let service = inquiry.target.service().is_some();
    if reach.candidates.is_empty() && reach.unready.is_empty() {
        super::connection::nowhere(answer, reach.otherwise);
        return;
    }
    let exchange = Exchange { request: Some(asked), ..Exchange::default() };
    let view = inquiry.unrouted_view();
    let mut destination = inquiry.endpoints(view, &reach.candidates, reach.unready, exchange);
    if destination.outcome == Outcome::Respond && !inquiry.source.in_mesh {
        destination.outcome = Outcome::Unreachable;
        destination.response = None;
    }
    if destination.outcome == Outcome::Allow && inquiry.source.in_mesh && service {
        // The dialled Service does not have the name that the request gives.
        destination.outcome = Outcome::Passthrough;
    }
    gather(answer, vec![destination]);
}

/// A request for which a rule decided.
struct Routed<'a> {
    inquiry: &'a Inquiry<'a>,
    decision: &'a RouteDecision,
    asked: &'a AskedRequest,
    dialled: &'a [SocketAddr],
    /// What CORS adds to the answer.
    added: Vec<(String, Option<String>)>,
}

impl Routed<'_> {
    fn forward(&self, forward: &Forward, answer: &mut Explanation) {
        rule::forwarding(forward, self.asked, answer);
        let mut chance = self.inquiry.question.seed.map(Chance::new);
        let fault = self.fault(forward, chance.as_mut());
        if let Some(delay) = fault.delay {
            answer.steps.push(format!("fault.delay: the request waits for {} ms.", delay.as_millis()));
        }
        let targets = picked(&forward.targets, chance.as_mut(), answer);
        let destinations = targets.into_iter().map(|(target, weight)| self.destination(target, weight));
        if let Some(status) = fault.abort {
            answer.destinations = destinations.map(|destination| destination.view).collect();
            answer.steps.push("fault.abort: the mesh answers instead of the application.".into());
            respond(answer, reply::abort(status, self.asked.is_grpc()));
            return;
        }
        let destinations = destinations.collect();
        gather(answer, destinations);
    }

    /// What happens for certain; with `--seed` one draw.
    fn fault(&self, forward: &Forward, chance: Option<&mut Chance>) -> FaultDraw {
        let Some(fault) = &forward.fault else { return FaultDraw::default() };
        match chance {
            Some(chance) => draw_fault(fault, &mut |n| chance.below(n)),
            None => FaultDraw {
                delay: fault.delay.filter(|(share, _)| *share >= PerMillion::ALL).map(|(_, delay)| delay),
                abort: fault.abort.filter(|(share, _)| *share >= PerMillion::ALL).map(|(_, status)| status),
            },
        }
    }

    fn destination(&self, target: &Target, weight: f64) -> super::destination::Destination {
        let caller = self.inquiry.caller(self.dialled);
        let circumstances = circumstances(&caller);
        let outgoing = prepare(self.decision, target, &self.asked.as_request(), &circumstances);
        let mut response_headers = response_changes(&outgoing.response_headers);
        response_headers.extend(self.added.iter().cloned());
        let leaving = self.leaving(&outgoing);
        let changes = changes(self.asked, &leaving);
        let exchange = Exchange { request: Some(leaving), response_headers };
        let mut destination = match &target.cluster {
            Ok(cluster) => self.inquiry.cluster(cluster, weight, self.dialled, exchange),
            Err(name) => self.inquiry.missing(name, weight, &exchange),
        };
        destination.changes = changes;
        destination
    }

    /// The request with all changes made.
    fn leaving(&self, outgoing: &Outgoing) -> AskedRequest {
        let mut request = self.asked.clone();
        if let Some(authority) = &outgoing.authority {
            request.authority.clone_from(authority);
        }
        if let Some(target) = &outgoing.target {
            request.target.clone_from(target);
        }
        for operations in &outgoing.request_headers {
            apply(&operations.request, &mut request.headers);
        }
        request
    }
}

/// What operators in header values read, as far as it is known beforehand.
fn circumstances<'a>(caller: &Caller<'a>) -> Circumstances<'a> {
    let family = |ip: &&IpAddr| ip.is_ipv4() == caller.original.is_ipv4();
    let client = caller.workload.ips.iter().find(family).copied();
    Circumstances {
        client: SocketAddr::new(client.unwrap_or(Ipv4Addr::UNSPECIFIED.into()), 0),
        original: caller.original,
        protocol: "HTTP/1.1",
        pod: &caller.workload.key.name,
        time: &|format| weft_telemetry::time(SystemTime::now(), format),
    }
}

/// The headers that a redirect or a direct response has of its rule.
fn added_by_rule(
    decision: &RouteDecision,
    local: &LocalReply,
    asked: &AskedRequest,
    caller: &Caller<'_>,
) -> Vec<(String, String)> {
    let answered = Answered {
        status: local.status,
        headers: &HeaderMap::new(),
        upstream: None,
        flags: local.flag,
        details: local.details,
        duration: Duration::ZERO,
    };
    let headers = added(decision, &asked.as_request(), (&circumstances(caller), &answered));
    headers.into_iter().map(|(name, value)| (name.to_string(), value)).collect()
}

/// What the rule changes about the request, in words.
fn changes(asked: &AskedRequest, leaving: &AskedRequest) -> Vec<String> {
    let mut changes = Vec::new();
    if leaving.target != asked.target {
        changes.push(format!("rewrite: path {} becomes {}.", asked.target, leaving.target));
    }
    if leaving.authority != asked.authority {
        changes.push(format!("rewrite or headers: host {} becomes {}.", asked.authority, leaving.authority));
    }
    let values = |request: &AskedRequest, name: &str| -> Vec<String> {
        let values = request.headers.get_all(name).iter();
        values.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).collect()
    };
    let names = leaving.headers.keys().chain(asked.headers.keys());
    let names: BTreeSet<&str> = names.map(::http::HeaderName::as_str).collect();
    for name in names {
        let (before, after) = (values(asked, name), values(leaving, name));
        if after.is_empty() {
            changes.push(format!("headers: {name} is removed."));
        } else if before != after {
            changes.push(format!("headers: {name} becomes `{}`.", after.join("`, `")));
        }
    }
    changes
}

/// The destinations with their weights in per cent; with `--seed` one of them.
pub(super) fn picked<'t>(
    targets: &'t [Target],
    chance: Option<&mut Chance>,
    answer: &mut Explanation,
) -> Vec<(&'t Target, f64)> {
    let total: u64 = targets.iter().map(|target| u64::from(target.weight)).sum();
    let weighted = |target: &'t Target| (target, share(target.weight, total));
    let Some(chance) = chance.filter(|_| targets.len() > 1) else {
        return targets.iter().map(weighted).collect();
    };
    answer.steps.push("--seed picks one of the rule's destinations.".into());
    choose(targets, &mut |n| chance.below(n)).map(weighted).into_iter().collect()
}

/// In per cent of the rule, with four decimals.
fn share(weight: u32, total: u64) -> f64 {
    let parts = (u64::from(weight) * 1_000_000).checked_div(total).unwrap_or(0);
    u32::try_from(parts).map_or(100.0, |parts| f64::from(parts) / 10_000.0)
}

/// What the later changes leave of the earlier ones (E31, E32); `None` as value removes.
fn response_changes(operations: &[std::sync::Arc<HeaderOperations>]) -> Vec<(String, Option<String>)> {
    let mut changes: Vec<(String, Option<String>)> = Vec::new();
    let forget = |changes: &mut Vec<(String, Option<String>)>, name: &str| {
        changes.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
    };
    for operations in operations {
        for name in &operations.response.remove {
            forget(&mut changes, name);
            changes.push((name.to_lowercase(), None));
        }
        for (name, value) in &operations.response.set {
            forget(&mut changes, name);
            changes.push((name.to_lowercase(), Some(unanswered(value))));
        }
        let added = operations.response.add.iter();
        changes.extend(added.map(|(name, value)| (name.to_lowercase(), Some(unanswered(value)))));
    }
    changes
}

/// A value in which the operators stand that only the answer can replace.
fn unanswered(value: &str) -> String {
    value.replace("%%", "%")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use weft_core::resource::virtual_service::HeaderChanges;

    use super::*;

    #[test]
    fn shares_are_in_per_cent() {
        assert!((share(1, 3) - 33.3333).abs() < 1e-9);
        assert!((share(20, 100) - 20.0).abs() < 1e-9);
        assert!((share(5, 0)).abs() < 1e-9);
    }

    #[test]
    fn later_changes_of_the_answer_win() {
        let pair = |name: &str, value: &str| (Arc::from(name), Arc::from(value));
        let first = HeaderChanges {
            set: vec![pair("x-a", "1")],
            add: vec![pair("X-B", "1")],
            remove: vec!["server".into()],
        };
        let second =
            HeaderChanges { set: vec![pair("x-a", "2")], add: vec![pair("x-b", "2")], remove: Vec::new() };
        let operations: Vec<_> = [first, second]
            .into_iter()
            .map(|response| Arc::new(HeaderOperations { response, ..HeaderOperations::default() }))
            .collect();
        let changes = response_changes(&operations);
        let expected = [("server", None), ("x-b", Some("1")), ("x-a", Some("2")), ("x-b", Some("2"))];
        let changes: Vec<_> = changes.iter().map(|(name, value)| (name.as_str(), value.as_deref())).collect();
        assert_eq!(changes, expected);
    }
}
