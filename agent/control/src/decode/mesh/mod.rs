//! MeshConfig, which is YAML inside a ConfigMap (C-1, ruling 14).
//!
//! Istio's MeshConfig has far more fields than the mesh reads, so unknown ones are ignored.

mod access_log;
mod discovery;
mod exports;
mod http;
mod providers;
mod unapplied;

use serde::Deserialize;
use serde_json::Value;
use weft_core::resource::{Kind, MeshConfig, Resource};

use super::fields::{Body, FieldError, Pairs, Parsed, Text, nullable};
use super::intern::Interner;
use super::meta::{self, MetaWire, check_name};
use super::networking::Reader;
use super::report::{Path, Place, Report};
use super::{Read, reject_field, yaml};
use crate::codes;

/// The ConfigMaps that carry a MeshConfig, in `namespace/name` form.
const MESH_CONFIG_MAPS: [(&str, &str); 2] = [("weft-system", "weft"), ("istio-system", "istio")];

#[derive(Deserialize)]
#[serde(expecting = "a map of fields")]
struct NameOnly<'a> {
    #[serde(borrow, default, deserialize_with = "nullable")]
    metadata: NameWire<'a>,
}

#[derive(Default, Deserialize)]
#[serde(expecting = "a map of fields")]
struct NameWire<'a> {
    #[serde(borrow, default)]
    name: Text<'a>,
    #[serde(borrow, default)]
    namespace: Text<'a>,
}

/// Whether this ConfigMap carries the mesh's settings.
pub(super) fn is_mesh_config(body: Body<'_>) -> bool {
    let Ok(NameOnly { metadata }) = body.read() else { return false };
    MESH_CONFIG_MAPS.contains(&(metadata.namespace.as_str(), metadata.name.as_str()))
}

#[derive(Deserialize)]
#[serde(expecting = "a map of fields")]
struct ConfigMapWire<'a> {
    #[serde(borrow, default, deserialize_with = "nullable")]
    metadata: MetaWire<'a>,
    #[serde(borrow, default)]
    data: Pairs<'a>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
#[serde(expecting = "a map of fields")]
struct MeshWire<'a> {
    #[serde(borrow, default)]
    trust_domain: Text<'a>,
    #[serde(borrow, default, deserialize_with = "nullable")]
    trust_domain_aliases: Vec<Text<'a>>,
    #[serde(borrow, default)]
    root_namespace: Text<'a>,
    #[serde(borrow, default)]
    access_log_file: Text<'a>,
    #[serde(borrow, default)]
    access_log_encoding: Text<'a>,
    #[serde(borrow, default)]
    access_log_format: Text<'a>,
    #[serde(borrow, default, deserialize_with = "nullable")]
    outbound_traffic_policy: OutboundWire<'a>,
    #[serde(borrow, default, deserialize_with = "nullable")]
    weft: WeftWire<'a>,
}

#[derive(Default, Deserialize)]
#[serde(expecting = "a map of fields")]
struct OutboundWire<'a> {
    #[serde(borrow, default)]
    mode: Text<'a>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
#[serde(expecting = "a map of fields")]
struct WeftWire<'a> {
    #[serde(borrow, default)]
    same_node: Text<'a>,
}

pub(super) fn mesh_config<'a>(body: Body<'_>, place: Place<'a>, interner: &mut Interner) -> Read<'a> {
    let ConfigMapWire { metadata, data } = body.read()?;
    let (meta, mut report) = meta::namespaced(&metadata, Kind::MeshConfig, place, interner);
    let text = data.get("mesh").map(Text::as_str).unwrap_or_default();
    let value = match yaml::read(text, 1) {
        Ok(value) => value,
        Err(error) => {
            let message =
                format!("The mesh's settings are not valid YAML: {error} (counted within `data.mesh`).");
            report.reject("data.mesh", message, "Correct the YAML there.");
            Value::Null
        }
    };
    let value = Parsed::new(&value);
    let wire: MeshWire<'_> = settings(&value, &mut report);
    let http: http::HttpWire<'_> = settings(&value, &mut report);
    let exports: exports::ExportsWire<'_> = settings(&value, &mut report);
    let providers: providers::DefaultsWire<'_> = settings(&value, &mut report);
    let discovery: discovery::DiscoveryWire<'_> = settings(&value, &mut report);
    let others: unapplied::UnappliedWire = settings(&value, &mut report);
    let mut reader = Reader { interner, report: &mut report, namespace: meta.key.namespace.clone() };
    let http = http::settings(&http, &Path::Root("data.mesh"), &mut reader);
    let exports = exports::defaults(&exports, &Path::Root("data.mesh"), &mut reader);
    let logs = providers::access_log(&providers, &Path::Root("data.mesh"), &mut reader);
    let discovery_selectors = discovery::selectors(&discovery, &Path::Root("data.mesh"), &mut reader);
    unapplied::report(&others, &Path::Root("data.mesh"), &mut reader);
    let json = wire.access_log_encoding.as_str() == "JSON";
    let mesh = MeshConfig {
        key: meta.key,
        trust_domain: trust_domain(&wire.trust_domain, "data.mesh.trustDomain", interner, &mut report),
        trust_domain_aliases: aliases(&wire, interner, &mut report),
        root_namespace: root_namespace(&wire, interner, &mut report),
        access_log: logs || wire.access_log_file.non_empty().is_some(),
        access_log_json: access_log_json(&wire, &mut report),
        access_log_format: access_log::format(&wire.access_log_format, json, &mut report),
        registry_only: registry_only(&wire, &mut report),
        encrypt_same_node: encrypt_same_node(&wire, &mut report),
        exports,
        discovery_selectors,
        http,
    };
    Ok((Resource::MeshConfig(mesh), report))
}

/// Reads some of the settings; a field that cannot be read rejects the object.
fn settings<'v, T: Default + Deserialize<'v>>(value: &'v Parsed<'v>, report: &mut Report<'_>) -> T {
    match Body::Value(value).read::<Option<T>>() {
        Ok(wire) => wire.unwrap_or_default(),
        Err(FieldError { path, message }) => {
            let separator = if path.is_empty() { "" } else { "." };
            reject_field(report, FieldError { path: format!("data.mesh{separator}{path}"), message });
            T::default()
        }
    }
}

/// A trust domain is part of a SPIFFE ID: no `/`, and nothing that a URI would read differently.
fn trust_domain(
    text: &Text<'_>,
    field: &str,
    interner: &mut Interner,
    report: &mut Report<'_>,
) -> Option<std::sync::Arc<str>> {
    let domain = text.non_empty()?;
    let allowed = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'-' | b'_');
    if !domain.bytes().all(allowed) || domain.len() > 255 {
        let message = format!("`{domain}` is not a trust domain.");
        report.reject(field, message, "Use letters, digits, `.`, `-` and `_`, without `spiffe://`.");
    }
    Some(interner.text(domain))
}

fn aliases(
    wire: &MeshWire<'_>,
    interner: &mut Interner,
    report: &mut Report<'_>,
) -> Vec<std::sync::Arc<str>> {
    let numbered = wire.trust_domain_aliases.iter().enumerate();
    numbered
        .filter_map(|(at, alias)| {
            trust_domain(alias, &format!("data.mesh.trustDomainAliases[{at}]"), interner, report)
        })
        .collect()
}

fn root_namespace(
    wire: &MeshWire<'_>,
    interner: &mut Interner,
    report: &mut Report<'_>,
) -> Option<std::sync::Arc<str>> {
    let namespace = wire.root_namespace.non_empty()?;
    check_name(report, "data.mesh.rootNamespace", namespace, 63);
    Some(interner.text(namespace))
}

fn access_log_json(wire: &MeshWire<'_>, report: &mut Report<'_>) -> bool {
    match wire.access_log_encoding.as_str() {
        "JSON" => true,
        "" | "TEXT" => false,
        other => {
            let message = format!("`{other}` is not an encoding.");
            report.reject("data.mesh.accessLogEncoding", message, "Write TEXT or JSON.");
            false
        }
    }
}

fn registry_only(wire: &MeshWire<'_>, report: &mut Report<'_>) -> bool {
    match wire.outbound_traffic_policy.mode.as_str() {
        "REGISTRY_ONLY" => true,
        "" | "ALLOW_ANY" => false,
        other => {
            let message = format!("`{other}` is not a mode.");
            report.reject(
                "data.mesh.outboundTrafficPolicy.mode",
                message,
                "Write ALLOW_ANY or REGISTRY_ONLY.",
            );
            false
        }
    }
}

fn encrypt_same_node(wire: &MeshWire<'_>, report: &mut Report<'_>) -> bool {
    match wire.weft.same_node.as_str() {
        "encrypt" => true,
        "" | "direct" => false,
        other => {
            let message = format!("`{other}` has no meaning, so flows between pods of a node stay direct.");
            report.add(codes::NO_EFFECT, "data.mesh.weft.sameNode", message, "Write `encrypt` or `direct`.");
            false
        }
    }
}
