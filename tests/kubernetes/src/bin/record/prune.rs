//! Takes out of Envoy's configuration what only Istio's own build understands, and what is another in every world:
//! addresses, certificates, telemetry.

use anyhow::{Context, Result};
use serde_json::{Map, Value};

const MANAGER: &str =
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
/// Filters of Envoy itself; Istio's have other types.
const HTTP_FILTERS: &str = "type.googleapis.com/envoy.extensions.filters.http.";
/// Istio's extensions that need modules.
const WASM: &str = "type.googleapis.com/envoy.extensions.filters.http.wasm.";

/// The connection manager of a listener's first filter chain that `wanted` accepts.
pub(crate) fn manager(listener: &Value, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
    let chains = listener["filter_chains"].as_array().context("a listener has filter chains")?;
    let chain = chains.iter().filter(|chain| wanted(&chain["filter_chain_match"]));
    let mut filters = chain.filter_map(|chain| chain["filters"].as_array()).flatten();
    let found = filters.find(|filter| filter["typed_config"]["@type"] == MANAGER);
    let found = found.with_context(|| format!("{} has no connection manager", listener["name"]))?;
    let mut manager = object(&found["typed_config"])?;
    for name in ["access_log", "tracing", "access_log_options"] {
        manager.remove(name);
    }
    if let Some(Value::Array(filters)) = manager.get_mut("http_filters") {
        filters.retain(is_of_envoy);
    }
    Ok(Value::Object(manager))
}

fn is_of_envoy(filter: &Value) -> bool {
    let kind = filter["typed_config"]["@type"].as_str().unwrap_or_default();
    kind.starts_with(HTTP_FILTERS) && !kind.starts_with(WASM)
}

/// A cluster without its endpoints and certificates.
pub(crate) fn cluster(cluster: &Value) -> Result<Value> {
    let mut cluster = object(cluster)?;
    for name in [
        "transport_socket",
        "transport_socket_matches",
        "filters",
        "metadata",
        "eds_cluster_config",
        "type",
        "lb_policy",
        "cleanup_interval",
        "upstream_bind_config",
        "alt_stat_name",
    ] {
        cluster.remove(name);
    }
    Ok(Value::Object(cluster))
}

/// Takes away what tells of objects and not of behaviour.
pub(crate) fn without_metadata(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            // A matcher of the same name decides.
            if fields.get("metadata").is_some_and(|metadata| metadata.get("filter_metadata").is_some()) {
                fields.remove("metadata");
            }
            fields.remove("decorator");
            fields.values_mut().for_each(without_metadata);
        }
        Value::Array(values) => values.iter_mut().for_each(without_metadata),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn object(value: &Value) -> Result<Map<String, Value>> {
    value.as_object().cloned().with_context(|| format!("not an object: {value}"))
}
