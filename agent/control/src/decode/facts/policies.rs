//! Telemetry, AuthorizationPolicy, RequestAuthentication, WasmPlugin.

use serde_json::Value;
use weft_core::analyze::Object;
use weft_core::analyze::objects::{AuthorizationPolicy, Head, Pairs, Telemetry};

use super::super::validated::value::{flag, get, items, text};
use super::{has_targets, selector};

pub(super) fn telemetry(head: Head, value: &Value) -> Object {
    let spec = get(value, "spec");
    let logs = items(spec, "accessLogging").iter().enumerate();
    let silent = logs.filter(|(_, log)| !flag(log, "disabled") && items(log, "providers").is_empty());
    let tracers = items(spec, "tracing").iter().enumerate().flat_map(|(at, tracing)| {
        items(tracing, "providers").iter().map(move |provider| (at, text(provider, "name").to_owned()))
    });
    Object::Telemetry(Telemetry {
        head,
        selector: selector(spec, "selector", "matchLabels"),
        has_targets: has_targets(spec),
        logs_without_provider: silent.map(|(at, _)| at).collect(),
        tracers: tracers.collect(),
    })
}

pub(super) fn authorization_policy(head: Head, value: &Value) -> Object {
    let spec = get(value, "spec");
    let mut namespaces = Vec::new();
    for (rule_at, rule) in items(spec, "rules").iter().enumerate() {
        for (from_at, from) in items(rule, "from").iter().enumerate() {
            for list in ["namespaces", "notNamespaces"] {
                for (at, name) in items(get(from, "source"), list).iter().enumerate() {
                    let field = format!("spec.rules[{rule_at}].from[{from_at}].source.{list}[{at}]");
                    namespaces.extend(name.as_str().map(|name| (field, name.to_owned())));
                }
            }
        }
    }
    Object::AuthorizationPolicy(AuthorizationPolicy {
        head,
        selector: selector(spec, "selector", "matchLabels"),
        has_targets: has_targets(spec),
        namespaces,
    })
}

pub(super) fn request_authentication(head: Head, value: &Value) -> Object {
    Object::RequestAuthentication(head, effective_selector(value))
}

pub(super) fn wasm_plugin(head: Head, value: &Value) -> Object {
    Object::WasmPlugin(head, effective_selector(value))
}

/// Targets take the place of a selector.
fn effective_selector(value: &Value) -> Option<Pairs> {
    let spec = get(value, "spec");
    selector(spec, "selector", "matchLabels").filter(|_| !has_targets(spec))
}
