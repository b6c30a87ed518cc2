//! EnvoyFilter: its frame. What it patches into Envoy's configuration is not looked at.

use serde_json::Value;
use weft_core::re2;

use super::super::report::{Path, Report};
use super::Object;
use super::schema::{MANY, SIGNED, TEXT, Type, UNSIGNED, may};
use super::shared::{self, TARGETS, WORKLOAD_SELECTOR};
use super::value::{get, has, items, text};
use crate::codes;

const FILTER: Type = Type::Object(&[may("name", TEXT), may("subFilter", Type::Object(&[may("name", TEXT)]))]);

const LISTENER: Type = Type::Object(&[
    may(
        "filterChain",
        Type::Object(&[
            may("applicationProtocols", TEXT),
            may("destinationPort", UNSIGNED),
            may("filter", FILTER),
            may("name", TEXT),
            may("sni", TEXT),
            may("transportProtocol", TEXT),
            may("transportSocket", TEXT),
        ]),
    ),
    may("listenerFilter", TEXT),
    may("name", TEXT),
    may("portName", TEXT),
    may("portNumber", UNSIGNED),
]);

const ROUTES: Type = Type::Object(&[
    may("gateway", TEXT),
    may("name", TEXT),
    may("portName", TEXT),
    may("portNumber", UNSIGNED),
    may(
        "vhost",
        Type::Object(&[
            may("domainName", TEXT),
            may("name", TEXT),
            may(
                "route",
                Type::Object(&[
                    may("action", Type::OneOf(&["ANY", "ROUTE", "REDIRECT", "DIRECT_RESPONSE"])),
                    may("name", TEXT),
                ]),
            ),
        ]),
    ),
]);

const MATCH: Type = Type::Object(&[
    may(
        "cluster",
        Type::Object(&[
            may("name", TEXT),
            may("portNumber", UNSIGNED),
            may("service", TEXT),
            may("subset", TEXT),
        ]),
    ),
    may("context", Type::OneOf(&["ANY", "SIDECAR_INBOUND", "SIDECAR_OUTBOUND", "GATEWAY", "WAYPOINT"])),
    may("listener", LISTENER),
    may("proxy", Type::Object(&[may("metadata", Type::Map(&TEXT, MANY)), may("proxyVersion", TEXT)])),
    may("routeConfiguration", ROUTES),
    may(
        "waypoint",
        Type::Object(&[
            may("filter", FILTER),
            may("portNumber", Type::Integer(1, 65535)),
            may("route", Type::Object(&[may("name", TEXT)])),
        ]),
    ),
]);

const PATCH: Type = Type::Object(&[
    may("filterClass", Type::OneOf(&["UNSPECIFIED", "AUTHN", "AUTHZ", "STATS"])),
    may(
        "operation",
        Type::OneOf(&[
            "INVALID",
            "MERGE",
            "ADD",
            "REMOVE",
            "INSERT_BEFORE",
            "INSERT_AFTER",
            "INSERT_FIRST",
            "REPLACE",
            "MERGE_AND_REPLACE_LIST",
        ]),
    ),
    may("value", Type::Opaque),
]);

const APPLY_TO: Type = Type::OneOf(&[
    "INVALID",
    "LISTENER",
    "FILTER_CHAIN",
    "NETWORK_FILTER",
    "HTTP_FILTER",
    "ROUTE_CONFIGURATION",
    "VIRTUAL_HOST",
    "HTTP_ROUTE",
    "CLUSTER",
    "EXTENSION_CONFIG",
    "BOOTSTRAP",
    "LISTENER_FILTER",
]);

/// The fields of `spec`.
pub(super) const SPEC: Type = Type::Object(&[
    may(
        "configPatches",
        Type::List(
            &Type::Object(&[may("applyTo", APPLY_TO), may("match", MATCH), may("patch", PATCH)]),
            0,
            MANY,
        ),
    ),
    may("priority", SIGNED),
    may("targetRefs", TARGETS),
    may("workloadSelector", WORKLOAD_SELECTOR),
]);

/// What can be matched; one of them.
const MATCHES: [&str; 4] = ["listener", "routeConfiguration", "cluster", "waypoint"];

/// What belongs together.
pub(super) fn check(object: &Object<'_>, report: &mut Report<'_>) {
    let (spec, root) = (object.spec, Path::Root("spec"));
    shared::selector(spec, "workloadSelector", "labels", &root, report);
    // What it refers to may be of any kind.
    shared::exclusive(spec, "workloadSelector", &root, report);
    let targets = root.field("targetRefs");
    for (index, target) in items(spec, "targetRefs").iter().enumerate() {
        shared::own_namespace(target, &targets.index(index), report);
    }
    let root = Path::Root("spec.configPatches");
    for (index, patch) in items(spec, "configPatches").iter().enumerate() {
        check_patch(patch, &root.index(index), report);
    }
}

fn check_patch(patch: &Value, at: &Path<'_>, report: &mut Report<'_>) {
    let (matched, at_match) = (get(patch, "match"), at.field("match"));
    let written: Vec<&str> = MATCHES.into_iter().filter(|name| has(matched, name)).collect();
    if written.len() > 1 {
        let message = format!("{} exclude each other.", written.join(" and "));
        report.reject(at_match, message, "Keep one of them.");
    }
    let waypoint = text(matched, "context") == "WAYPOINT";
    if waypoint != has(matched, "waypoint") {
        let message = "`waypoint` and `context: WAYPOINT` belong together.";
        report.reject(at_match.field("waypoint"), message, "Write both or neither.");
    }
    if waypoint {
        return;
    }
    let apply_to = text(patch, "applyTo");
    if matches!(apply_to, "" | "INVALID") {
        let message = "The patch does not say what it applies to.";
        report.reject(at.field("applyTo"), message, "Write for example `applyTo: HTTP_FILTER`.");
        return;
    }
    if !has_operation(patch, at, report) || !has_version(matched, &at_match, report) {
        return;
    }
    let wanted = match apply_to {
        "LISTENER" | "FILTER_CHAIN" | "NETWORK_FILTER" | "HTTP_FILTER" => "listener",
        "ROUTE_CONFIGURATION" | "VIRTUAL_HOST" | "HTTP_ROUTE" => "routeConfiguration",
        "CLUSTER" => "cluster",
        _ => return,
    };
    if let Some(other) = written.iter().find(|name| **name != wanted) {
        let message = format!("A patch of {apply_to} cannot be matched by `{other}`.");
        report.reject(at_match.field(other), message, format!("Match by `{wanted}`."));
    }
    check_filter(matched, apply_to, &at_match, report);
}

fn has_operation(patch: &Value, at: &Path<'_>, report: &mut Report<'_>) -> bool {
    let at = at.field("patch");
    let operation = text(get(patch, "patch"), "operation");
    if !has(patch, "patch") {
        report.reject(at, "There is no patch.", "Add `patch`.");
    } else if matches!(operation, "" | "INVALID") {
        report.reject(
            at.field("operation"),
            "The patch has no operation.",
            "Write for example MERGE or ADD.",
        );
    } else if operation != "REMOVE" && !has(get(patch, "patch"), "value") {
        report.reject(at.field("value"), "The patch has no value.", "Add `value`, or write REMOVE.");
    } else {
        return true;
    }
    false
}

/// Expressions of more than 1024 bytes are ignored by Istio, not refused.
fn has_version(matched: &Value, at: &Path<'_>, report: &mut Report<'_>) -> bool {
    let version = text(get(matched, "proxy"), "proxyVersion");
    if version.len() > 1024 {
        return true;
    }
    if let Err(reason) = re2::translate(version) {
        let message = format!("`{version}` is not a regular expression of RE2: {reason}.");
        report.reject(at.field("proxy").field("proxyVersion"), message, "Correct it.");
        return false;
    }
    true
}

fn check_filter(matched: &Value, apply_to: &str, at: &Path<'_>, report: &mut Report<'_>) {
    let filter = get(get(get(matched, "listener"), "filterChain"), "filter");
    if filter.is_null() {
        return;
    }
    let at = at.field("listener");
    let at = at.field("filterChain");
    let at = at.field("filter");
    if matches!(apply_to, "LISTENER" | "FILTER_CHAIN") {
        let message = format!("A filter says nothing about a {apply_to}, and has no effect.");
        report.add(codes::SCHEMA_WARNING, at, message, "Remove it.");
    }
    let name = text(filter, "name");
    let sub = get(filter, "subFilter");
    let manager = ["envoy.filters.network.http_connection_manager", "envoy.http_connection_manager"];
    if name.is_empty() {
        report.reject(at.field("name"), "The filter has no name.", "Name it.");
    } else if sub.is_null() {
    } else if apply_to != "HTTP_FILTER" {
        let message = format!("A filter within a filter says nothing about a {apply_to}.");
        report.reject(at.field("subFilter"), message, "Use it with HTTP_FILTER only.");
    } else if !manager.contains(&name) {
        let message = format!("`{name}` has no filters within.");
        report.reject(
            at.field("name"),
            message,
            format!("Write {}.", manager.first().copied().unwrap_or_default()),
        );
    } else if text(sub, "name").is_empty() {
        report.reject(at.field("subFilter").field("name"), "The filter has no name.", "Name it.");
    }
}
