//! The rule that decided, in words and as data.

use std::time::Duration;

use weft_core::decide::ConnectionDecision;
use weft_core::decide::http::{Action, Forward, MirrorTarget, RouteDecision, RuleRef, Skipped, Trace};
use weft_core::resource::virtual_service::{AbortStatus, Fault, PerMillion};

use super::destination::name_parts;
use super::question::AskedRequest;
use super::{AbortView, DelayView, Explanation, FaultView, MirrorView, ObjectView, RetryView, RouteView};

/// A request larger than this is not kept, so it is not repeated (E17).
const LARGEST_REPEATED: u64 = 1 << 20;

/// Which rule decided about a request, and why no other did.
pub(super) fn describe(decision: &RouteDecision, trace: &Trace, answer: &mut Explanation) {
    passed_over(trace, answer);
    answer.route = decision.rule.as_ref().map(route_view);
    answer.steps.push(match (&decision.rule, &decision.action) {
        (Some(rule), _) => matched(rule, "request"),
        (None, Action::Forward(_)) => match &decision.service {
            Some((service, _)) => {
                format!("No rule routes requests for Service {}: it takes all of them itself.", service.key)
            }
            None => "No rule routes the request.".into(),
        },
        (None, Action::Respond(reply)) => match &decision.owner {
            Some(owner) => format!("No rule of {owner}, which decides for this host, matches the request."),
            None => match reply.by {
                "block_all" => {
                    "outboundTrafficPolicy is REGISTRY_ONLY and the mesh knows no such host: refused.".into()
                }
                _ => format!("No rule routes the request ({}).", reply.details),
            },
        },
        (None, Action::Passthrough) => {
            "The mesh knows no such host: the request goes where the client dialled.".into()
        }
    });
}

/// Which rule decided about a connection, and why no other did.
pub(super) fn describe_connection(decision: &ConnectionDecision, trace: &Trace, answer: &mut Explanation) {
    passed_over(trace, answer);
    answer.route = decision.rule.as_ref().map(route_view);
    answer.steps.extend(decision.rule.as_ref().map(|rule| matched(rule, "connection")));
}

fn passed_over(trace: &Trace, answer: &mut Explanation) {
    answer.steps.extend(trace.ignored.iter().map(|(object, why)| format!("{object} {}.", why.as_str())));
    answer.steps.extend(trace.skipped.iter().map(|skipped| {
        let Skipped { object, list, rule, matched, field } = skipped;
        match matched {
            Some(at) => format!("{object}: spec.{list}[{rule}].match[{at}] does not match by `{field}`."),
            None => {
                format!("{object}: spec.{list}[{rule}] does not match by `{field}` of what delegates to it.")
            }
        }
    }));
}

fn matched(rule: &RuleRef, what: &str) -> String {
    let RuleRef { object, list, rule: at, matched, name: _, root } = rule;
    let place = match matched {
        Some(matched) => format!("spec.{list}[{at}].match[{matched}] takes"),
        None => format!("spec.{list}[{at}] has no match and takes"),
    };
    let by = match root {
        Some((root, at)) => format!(" ({root} delegates to it by spec.http[{at}])"),
        None => String::new(),
    };
    format!("{object}: {place} the {what}{by}.")
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
    answer.timeout_ms = forward.limit(&asked.as_request()).map(millis);
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
    answer.steps.extend(answer.mirrors.iter().map(|mirror| {
        let subset = mirror.subset.as_ref().map(|subset| format!(", subset {subset}")).unwrap_or_default();
        format!("mirrors: {} % of the requests go to {}{subset} as well.", mirror.percent, mirror.host)
    }));
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
