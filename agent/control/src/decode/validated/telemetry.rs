//! Telemetry (T-1 and following).

use serde_json::Value;

use super::super::report::{Path, Report};
use super::Object;
use super::cel;
use super::schema::{MANY, TEXT, Type, filled, may, must};
use super::shared::{self, DURATION, PROVIDERS, SELECTOR, SIDE, TARGET, TARGETS};
use super::value::{entries, get, has, items, text};
use crate::codes;

const MATCH: Type = Type::Object(&[may("mode", SIDE)]);

const ACCESS_LOGGING: Type = Type::Object(&[
    may("disabled", Type::Flag),
    may("filter", Type::Object(&[may("expression", TEXT)])),
    may("match", MATCH),
    may("providers", PROVIDERS),
]);

const METRIC: Type = Type::OneOf(&[
    "ALL_METRICS",
    "REQUEST_COUNT",
    "REQUEST_DURATION",
    "REQUEST_SIZE",
    "RESPONSE_SIZE",
    "TCP_OPENED_CONNECTIONS",
    "TCP_CLOSED_CONNECTIONS",
    "TCP_SENT_BYTES",
    "TCP_RECEIVED_BYTES",
    "GRPC_REQUEST_MESSAGES",
    "GRPC_RESPONSE_MESSAGES",
]);

const OVERRIDE: Type = Type::Object(&[
    may("disabled", Type::Flag),
    may(
        "match",
        Type::Object(&[may("customMetric", filled(MANY)), may("metric", METRIC), may("mode", SIDE)]),
    ),
    may(
        "tagOverrides",
        Type::Map(
            &Type::Object(&[may("operation", Type::OneOf(&["UPSERT", "REMOVE"])), may("value", TEXT)]),
            MANY,
        ),
    ),
]);

const METRICS: Type = Type::Object(&[
    may("overrides", Type::List(&OVERRIDE, 0, MANY)),
    may("providers", PROVIDERS),
    may("reportingInterval", DURATION),
]);

const NAMED: Type = Type::Object(&[may("defaultValue", TEXT), must("name", filled(MANY))]);
const VALUED: Type = Type::Object(&[must("value", filled(MANY))]);

const TRACING: Type = Type::Object(&[
    may(
        "customTags",
        Type::Map(
            &Type::Object(&[
                may("environment", NAMED),
                may("formatter", VALUED),
                may("header", NAMED),
                may("literal", VALUED),
            ]),
            MANY,
        ),
    ),
    may("disableContextPropagation", Type::Flag),
    may("disableSpanReporting", Type::Flag),
    may("enableIstioTags", Type::Flag),
    may("match", MATCH),
    may("providers", PROVIDERS),
    may("randomSamplingPercentage", Type::Number(0.0, 100.0)),
    may("useRequestIdForTraceSampling", Type::Flag),
]);

/// The fields of `spec`.
pub(super) const SPEC: Type = Type::Object(&[
    may("accessLogging", Type::List(&ACCESS_LOGGING, 0, MANY)),
    may("metrics", Type::List(&METRICS, 0, MANY)),
    may("selector", SELECTOR),
    may("targetRef", TARGET),
    may("targetRefs", TARGETS),
    may("tracing", Type::List(&TRACING, 0, MANY)),
]);

/// What belongs together.
pub(super) fn check(object: &Object<'_>, report: &mut Report<'_>) {
    let spec = object.spec;
    let root = Path::Root("spec");
    shared::selector(spec, "selector", "matchLabels", &root, report);
    shared::attachment(spec, "selector", &root, report);
    metrics(spec, report);
    tracing(spec, report);
    let logs = Path::Root("spec.accessLogging");
    for (index, log) in items(spec, "accessLogging").iter().enumerate() {
        if has(log, "filter") {
            filter(text(get(log, "filter"), "expression"), &logs.index(index), report);
        }
    }
}

fn filter(expression: &str, at: &Path<'_>, report: &mut Report<'_>) {
    if let Err(error) = cel::check(expression) {
        let message = format!("The expression is not valid CEL: {error}.");
        let at = at.field("filter");
        report.reject(at.field("expression"), message, "Write for example `response.code >= 400`.");
    }
}

fn metrics(spec: &Value, report: &mut Report<'_>) {
    let root = Path::Root("spec.metrics");
    for (index, metrics) in items(spec, "metrics").iter().enumerate() {
        let at = root.index(index);
        let at = at.field("overrides");
        for (index, change) in items(metrics, "overrides").iter().enumerate() {
            let at = at.index(index);
            let matched = get(change, "match");
            if has(matched, "metric") && has(matched, "customMetric") {
                let message = "`metric` and `customMetric` exclude each other.";
                report.reject(at.field("match"), message, "Keep one of them.");
            }
            for (name, tag) in entries(change, "tagOverrides") {
                tag_override(name, tag, &at.field("tagOverrides"), report);
            }
        }
    }
}

fn tag_override(name: &str, tag: &Value, at: &Path<'_>, report: &mut Report<'_>) {
    let field = at.field(name);
    if name.is_empty() {
        report.add(codes::SCHEMA_WARNING, at, "A tag has no name.", "Name the tag.");
    }
    match text(tag, "operation") {
        "REMOVE" => {
            if has(tag, "value") {
                let message = format!("The tag `{name}` is removed, so it has no value.");
                report.reject(field.field("value"), message, "Remove `value`, or `operation: REMOVE`.");
            }
        }
        _ => {
            if text(tag, "value").is_empty() {
                let message = format!("The tag `{name}` is set, but not to what.");
                report.reject(field.field("value"), message, "Add `value`, or write `operation: REMOVE`.");
            }
        }
    }
}

fn tracing(spec: &Value, report: &mut Report<'_>) {
    let root = Path::Root("spec.tracing");
    if items(spec, "tracing").len() > 1 {
        let message = "Only one entry is in force.";
        report.add(codes::SCHEMA_WARNING, root, message, "Keep one of them.");
    }
    for (index, tracing) in items(spec, "tracing").iter().enumerate() {
        let at = root.index(index);
        if items(tracing, "providers").len() > 1 {
            let message = "Only one provider of traces is in force.";
            report.add(codes::SCHEMA_WARNING, at.field("providers"), message, "Keep one of them.");
        }
        let at = at.field("customTags");
        for (name, tag) in entries(tracing, "customTags") {
            if name.is_empty() {
                report.reject(at, "A tag has no name.", "Name the tag.");
            }
            let sources = ["literal", "environment", "header", "formatter"];
            let written: Vec<&str> = sources.into_iter().filter(|source| has(tag, source)).collect();
            if written.len() > 1 {
                let message = format!("{} exclude each other.", written.join(" and "));
                report.reject(at.field(name), message, "Keep one of them.");
            }
        }
    }
}
