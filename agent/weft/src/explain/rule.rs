//! The rule that decided, in words and as data.

use std::time::Duration;

use weft_core::decide::http::{Action, Caller, Forward, MirrorTarget, RouteDecision, RuleRef};
use weft_core::resource::virtual_service::{AbortStatus, Fault, PerMillion};

use super::destination::name_parts;
use super::question::AskedRequest;
use super::{
    AbortView, DelayView, Explanation, FaultView, Inquiry, MirrorView, ObjectView, RetryView, RouteView,
};

/// A request larger than this is not kept, so it is not repeated (E17).
const LARGEST_REPEATED: u64 = 1 << 20;

/// Which rule decided, and why no other did.
pub(super) fn describe(
    _inquiry: &Inquiry<'_>,
    _caller: &Caller<'_>,
    _asked: &AskedRequest,
    decision: &RouteDecision,
    answer: &mut Explanation,
) {
    answer.route = decision.rule.as_ref().map(route_view);
    answer.steps.push(match (&decision.rule, &decision.action) {
        (Some(rule), _) => matched(rule),
        (None, Action::Forward(_)) => match &decision.service {
            Some((service, _)) => {
                format!("No rule routes requests for Service {}: it takes all of them.", service.key)
            }
            None => "No rule routes the request.".into(),
        },
        (None, Action::Respond(reply)) => match reply.by {
            "no_route" => "No rule matches the request: 404.".into(),
            _ => format!("No rule routes the request ({}, response flag {}).", reply.details, reply.flag),
        },
        (None, Action::Passthrough) => {
            "The mesh knows no host of this name: the request goes where the client dialled.".into()
        }
    });
}

fn matched(rule: &RuleRef) -> String {
    let place = match rule.matched {
        Some(matched) => format!("spec.{}[{}].match[{matched}]", rule.list, rule.rule),
        None => format!("spec.{}[{}], which has no match,", rule.list, rule.rule),
    };
    format!("{}: {place} takes the request.", rule.object)
}

fn route_view(rule: &RuleRef) -> RouteView {
    RouteView {
        list: rule.list.into(),
        object: Some(ObjectView::from(&rule.object)),
        rule: rule.rule,
        matched: rule.matched,
        name: rule.name.as_deref().map(Into::into),
    }
}

/// What the rule says about requests that it forwards.
pub(super) fn forwarding(forward: &Forward, asked: &AskedRequest, answer: &mut Explanation) {
    answer.timeout_ms = forward.timeout.map(millis);
    answer.retry = Some(RetryView {
        attempts: forward.retry.attempts,
        on: forward.retry.on_text.iter().map(ToString::to_string).collect(),
        per_try_timeout_ms: forward.retry.per_try_timeout.map(millis),
    });
    answer.fault = forward.fault.as_deref().map(fault_view);
    answer.mirrors = forward.mirrors.iter().map(mirror_view).collect();
    if let Some(ms) = answer.timeout_ms {
        answer.steps.push(format!("timeout: the whole exchange has {ms} ms, retries included."));
    }
    answer.steps.push(repeated(forward, asked));
    answer.steps.extend(answer.fault.iter().flat_map(fault_sentences));
    for mirror in &answer.mirrors {
        let text = format!("mirrors: {} % of the requests go to {} as well.", mirror.percent, mirror.host);
        answer.steps.push(text);
    }
}

fn repeated(forward: &Forward, asked: &AskedRequest) -> String {
    let retry = &forward.retry;
    let by = if retry.default { "By default" } else { "retries" };
    if retry.attempts == 0 {
        return format!("{by}: a request that fails is not repeated.");
    }
    if asked.body_size.is_some_and(|size| size > LARGEST_REPEATED) {
        return format!("{by}: the request would be repeated, but its body is larger than 1 MiB: it is not.");
    }
    let on = retry.on_text.join(", ");
    format!("{by}: a request that fails is repeated up to {} times, on {on}.", retry.attempts)
}

fn fault_sentences(fault: &FaultView) -> Vec<String> {
    let delay = fault.delay.as_ref();
    let delay = delay
        .map(|delay| format!("fault.delay: {} % of the requests wait for {} ms.", delay.percent, delay.ms));
    let abort = fault.abort.as_ref().map(|abort| {
        let with = match (abort.http_status, abort.grpc_status) {
            (Some(status), _) => format!("status {status}"),
            (None, Some(status)) => format!("gRPC status {status}"),
            (None, None) => "an error".into(),
        };
        format!("fault.abort: {} % of the requests are answered with {with}.", abort.percent)
    });
    delay.into_iter().chain(abort).collect()
}

fn fault_view(fault: &Fault) -> FaultView {
    FaultView {
        delay: fault.delay.map(|(share, delay)| DelayView { percent: percent(share), ms: millis(delay) }),
        abort: fault.abort.map(|(share, status)| {
            let (http_status, grpc_status) = match status {
                AbortStatus::Http(status) => (Some(status), None),
                AbortStatus::Grpc(status) => (None, Some(status)),
            };
            AbortView { percent: percent(share), http_status, grpc_status }
        }),
    }
}

fn mirror_view(mirror: &MirrorTarget) -> MirrorView {
    let percent = percent(mirror.share);
    match &mirror.cluster {
        Ok(cluster) => MirrorView {
            host: cluster.host.to_string(),
            port: Some(cluster.port),
            subset: cluster.subset.as_deref().map(Into::into),
            percent,
        },
        Err(name) => {
            let (host, port, subset) = name_parts(name);
            MirrorView { host: host.into(), port, subset: subset.map(Into::into), percent }
        }
    }
}

fn percent(share: PerMillion) -> f64 {
    f64::from(share.0) / 10_000.0
}

/// Milliseconds; what is longer than 500 million years is that long.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
