//! Kinds of Istio that the mesh does not execute, validated as Istio's admission does: what it rejects is an error,
//! what it accepts is told to have no effect.
//!
//! An object passes two steps. `schema` compares it with the shape of its kind, as Kubernetes does; each kind's file
//! then checks what belongs together. The second step relies on the first and is left out where that one found
//! something.

mod cel;
mod envoy_filter;
mod gateway;
pub(in crate::decode) mod names;
mod proxy_config;
mod schema;
mod server_tls;
mod service_entry;
mod shared;
mod sidecar;
mod telemetry;
pub(in crate::decode) mod url;
pub(in crate::decode) mod value;
mod wasm_plugin;
mod workload_entry;
mod workload_group;

use serde::Deserialize;
use serde_json::Value;

use super::fields::{Body, FieldError};
use super::meta::{self, MetaWire, check_name};
use super::report::{Path, Place, Report};
use super::{Decoded, Outcome, reject_field};
use crate::codes;
use schema::Type;

/// A kind that is validated and has no effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Validated {
    EnvoyFilter,
    Gateway,
    ProxyConfig,
    ServiceEntry,
    Sidecar,
    Telemetry,
    TrafficExtension,
    WasmPlugin,
    WorkloadEntry,
    WorkloadGroup,
}

impl Validated {
    /// The kind of this name in an API group.
    pub(crate) fn of(group: &str, kind: &str) -> Option<Self> {
        Some(match (group, kind) {
            ("networking.istio.io", "EnvoyFilter") => Self::EnvoyFilter,
            ("networking.istio.io", "Gateway") => Self::Gateway,
            ("networking.istio.io", "ProxyConfig") => Self::ProxyConfig,
            ("networking.istio.io", "ServiceEntry") => Self::ServiceEntry,
            ("networking.istio.io", "Sidecar") => Self::Sidecar,
            ("networking.istio.io", "WorkloadEntry") => Self::WorkloadEntry,
            ("networking.istio.io", "WorkloadGroup") => Self::WorkloadGroup,
            ("telemetry.istio.io", "Telemetry") => Self::Telemetry,
            ("extensions.istio.io", "TrafficExtension") => Self::TrafficExtension,
            ("extensions.istio.io", "WasmPlugin") => Self::WasmPlugin,
            _ => return None,
        })
    }

    /// The versions in which it exists, and how to write them.
    pub(crate) fn versions(self) -> (&'static [&'static str], &'static str) {
        match self {
            Self::EnvoyFilter => (&["v1alpha3"], "networking.istio.io/v1alpha3"),
            Self::ProxyConfig => (&["v1beta1"], "networking.istio.io/v1beta1"),
            Self::Telemetry => (&["v1", "v1alpha1"], "telemetry.istio.io/v1"),
            Self::TrafficExtension | Self::WasmPlugin => (&["v1alpha1"], "extensions.istio.io/v1alpha1"),
            Self::Gateway
            | Self::ServiceEntry
            | Self::Sidecar
            | Self::WorkloadEntry
            | Self::WorkloadGroup => (&["v1", "v1beta1", "v1alpha3"], "networking.istio.io/v1"),
        }
    }

    /// The shape of `spec`, and what belongs together in it.
    fn rules(self) -> (Type, fn(&Object<'_>, &mut Report<'_>)) {
        match self {
            Self::EnvoyFilter => (envoy_filter::SPEC, envoy_filter::check),
            Self::Gateway => (gateway::SPEC, gateway::check),
            Self::ProxyConfig => (proxy_config::SPEC, proxy_config::check),
            Self::ServiceEntry => (service_entry::SPEC, service_entry::check),
            Self::Sidecar => (sidecar::SPEC, sidecar::check),
            Self::Telemetry => (telemetry::SPEC, telemetry::check),
            Self::TrafficExtension => (wasm_plugin::EXTENSION, wasm_plugin::check_extension),
            Self::WasmPlugin => (wasm_plugin::PLUGIN, wasm_plugin::check_plugin),
            Self::WorkloadEntry => (workload_entry::SPEC, workload_entry::check),
            Self::WorkloadGroup => (workload_group::SPEC, workload_group::check),
        }
    }
}

/// An object whose types are right.
struct Object<'v> {
    namespace: &'v str,
    name: &'v str,
    metadata: &'v Value,
    spec: &'v Value,
}

#[derive(Deserialize)]
#[serde(expecting = "a map of fields")]
struct MetaOnly<'a> {
    #[serde(borrow)]
    metadata: MetaWire<'a>,
}

/// What every object has.
const FRAME: [&str; 5] = ["apiVersion", "kind", "metadata", "spec", "status"];

/// Validates an object. `name` is the kind's name.
pub(super) fn decode(kind: Validated, name: &str, body: Body<'_>, place: Place<'_>) -> Decoded {
    let mut report = Report::new(codes::SCHEMA_VALIDATION, name, meta::rescued_key(body), place);
    let parsed;
    let value = match body {
        Body::Value(parsed) => parsed.value,
        Body::Text(_) => match body.read::<Value>() {
            Ok(value) => {
                parsed = value;
                &parsed
            }
            Err(error) => {
                reject_field(&mut report, error);
                return finish(name, report);
            }
        },
    };
    if let Err(error) = validate(kind, (body, value), &mut report) {
        reject_field(&mut report, error);
    }
    finish(name, report)
}

/// `value` is what `body` says.
fn validate(
    kind: Validated,
    (body, value): (Body<'_>, &Value),
    report: &mut Report<'_>,
) -> Result<(), FieldError> {
    let MetaOnly { metadata } = body.read()?;
    let namespace = metadata.namespace.non_empty().unwrap_or("default");
    check_name(report, "metadata.namespace", namespace, 63);
    check_name(report, "metadata.name", metadata.name.as_str(), 253);
    super::validate::no_dry_run(&metadata, report);
    super::validate::no_reserved_annotations(&metadata, report);
    for name in value.as_object().into_iter().flatten().map(|(name, _)| name.as_str()) {
        if !FRAME.contains(&name) {
            let message = format!("There is no field `{}` here.", schema::shortened(name));
            report.reject(name, message, "Correct the spelling or the indentation, or remove the field.");
        }
    }
    let empty = Value::Object(serde_json::Map::new());
    let spec = Some(value::get(value, "spec")).filter(|spec| !spec.is_null()).unwrap_or(&empty);
    let (shape, check) = kind.rules();
    schema::check(spec, &shape, &Path::Root("spec"), report);
    if !report.is_rejected() {
        let metadata_value = value::get(value, "metadata");
        check(&Object { namespace, name: metadata.name.as_str(), metadata: metadata_value, spec }, report);
    }
    Ok(())
}

fn finish(kind: &str, mut report: Report<'_>) -> Decoded {
    let outcome = if report.is_rejected() {
        Outcome::Refused
    } else {
        let message = format!("{kind} is not applied by this version of Weft; the object has no effect.");
        report.add(codes::KIND_NOT_APPLIED, "", message, "");
        Outcome::Ignored
    };
    Decoded { outcome, problems: report.into_problems() }
}
