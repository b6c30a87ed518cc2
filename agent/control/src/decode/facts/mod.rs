//! What the analyzers of [`weft_core::analyze`] want to know, read from objects as they are written.
//!
//! Objects are read leniently here, whether the mesh executes their kind or not and whether they are valid or not:
//! what is wrong with them by themselves is told elsewhere. Only `weft analyze` asks for this.

mod networking;
mod policies;
mod secret;
mod workloads;

use serde_json::Value;
use weft_core::analyze::objects::{Head, Mesh, Pairs};
use weft_core::analyze::{Object, ObjectSet};

use super::fields::Body;
use super::report::Place;
use super::validated::value::{entries, flag, get, has, items, text};
use super::{mesh, yaml};

/// Adds what the analyzers want to know of an object.
pub(super) fn add(set: &mut ObjectSet, body: Body<'_>, header: (&str, &str), place: Place<'_>) {
    let Some((kind, read)) = reader(header) else { return };
    let parsed;
    let value = match body {
        Body::Value(parsed) => parsed.value,
        Body::Text(_) => {
            let Ok(value) = body.read::<Value>() else { return };
            parsed = value;
            &parsed
        }
    };
    if kind == "ConfigMap" {
        if mesh::is_mesh_config(body) {
            set.add(Object::Mesh(mesh_config(value)));
        }
        return;
    }
    let head = head(kind, value, place);
    if !head.name.is_empty() {
        set.add(read(head, value));
    }
}

type Read = fn(Head, &Value) -> Object;

/// The kind's name and who reads it.
fn reader((api_version, kind): (&str, &str)) -> Option<(&'static str, Read)> {
    let group = api_version.split_once('/').map_or("", |(group, _)| group);
    Some(match (group, kind) {
        ("", "Namespace") => ("Namespace", |head, _| Object::Namespace(head)),
        ("", "Node") => ("Node", |head, _| Object::Node(head)),
        ("", "Pod") => ("Pod", workloads::pod),
        ("", "Service") => ("Service", workloads::service),
        ("", "Secret") => ("Secret", secret::secret),
        ("", "ConfigMap") => ("ConfigMap", |head, _| Object::Namespace(head)),
        ("apps", "Deployment") => ("Deployment", workloads::deployment),
        ("gateway.networking.k8s.io", "Gateway") => ("Gateway", networking::kubernetes_gateway),
        ("networking.istio.io", "Gateway") => ("Gateway", networking::gateway),
        ("networking.istio.io", "ServiceEntry") => ("ServiceEntry", networking::service_entry),
        ("networking.istio.io", "WorkloadEntry") => {
            ("WorkloadEntry", |head, value| Object::WorkloadEntry(head, pairs(get(value, "spec"), "labels")))
        }
        ("networking.istio.io", "Sidecar") => ("Sidecar", networking::sidecar),
        ("networking.istio.io", "VirtualService") => ("VirtualService", networking::virtual_service),
        ("networking.istio.io", "DestinationRule") => ("DestinationRule", networking::destination_rule),
        ("telemetry.istio.io", "Telemetry") => ("Telemetry", policies::telemetry),
        ("security.istio.io", "AuthorizationPolicy") => {
            ("AuthorizationPolicy", policies::authorization_policy)
        }
        ("security.istio.io", "RequestAuthentication") => {
            ("RequestAuthentication", policies::request_authentication)
        }
        ("extensions.istio.io", "WasmPlugin") => ("WasmPlugin", policies::wasm_plugin),
        _ => return None,
    })
}

fn head(kind: &'static str, value: &Value, place: Place<'_>) -> Head {
    let metadata = get(value, "metadata");
    let namespace = match (kind, text(metadata, "namespace")) {
        ("Namespace" | "Node", _) => "",
        (_, "") => "default",
        (_, namespace) => namespace,
    };
    Head {
        kind,
        namespace: namespace.to_owned(),
        name: text(metadata, "name").to_owned(),
        prefix: place.prefix.to_owned(),
        origin: place.origin.cloned(),
        labels: pairs(metadata, "labels"),
        annotations: pairs(metadata, "annotations"),
    }
}

/// A map of texts; values that are none are left out.
fn pairs(owner: &Value, name: &str) -> Pairs {
    let of_text = |(key, value): (&str, &Value)| Some((key.to_owned(), value.as_str()?.to_owned()));
    entries(owner, name).filter_map(of_text).collect()
}

/// A list of texts.
fn strings(owner: &Value, name: &str) -> Vec<String> {
    items(owner, name).iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// The labels of a selector, if it is written.
fn selector(spec: &Value, name: &str, labels: &str) -> Option<Pairs> {
    has(spec, name).then(|| pairs(get(spec, name), labels))
}

/// Whether a policy is attached to objects.
fn has_targets(spec: &Value) -> bool {
    has(spec, "targetRef") || !items(spec, "targetRefs").is_empty()
}

fn mesh_config(config_map: &Value) -> Mesh {
    let mesh = yaml::read(text(get(config_map, "data"), "mesh"), 1).unwrap_or_default();
    let metadata = get(get(&mesh, "defaultConfig"), "proxyMetadata");
    let is_on = |name: &str| text(metadata, name) == "true" || flag(metadata, name);
    let allocates = is_on("ISTIO_META_DNS_AUTO_ALLOCATE") || is_on("PILOT_ENABLE_IP_AUTOALLOCATE");
    let providers = items(&mesh, "extensionProviders").iter();
    let lightstep = providers.filter(|provider| has(provider, "lightstep"));
    Mesh {
        root_namespace: text(&mesh, "rootNamespace").to_owned(),
        allocates_addresses: is_on("ISTIO_META_DNS_CAPTURE") && allocates,
        has_default_access_log: !items(get(&mesh, "defaultProviders"), "accessLogging").is_empty(),
        lightstep: lightstep.map(|provider| text(provider, "name").to_owned()).collect(),
    }
}
