//! What all objects have: `metadata`, and around it the same few fields.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use weft_core::resource::{Kind, Meta, NamespacedName};

use super::fields::{Body, Moment, Pairs, Text, nullable};
use super::intern::Interner;
use super::invalid_code;
use super::report::{Place, Report};

/// An object of Istio's with the spec `S`, as it is written. Unknown fields are errors.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(expecting = "a map of fields")]
pub(super) struct ObjectWire<'a, S> {
    #[serde(rename = "apiVersion", default)]
    _api_version: IgnoredAny,
    #[serde(rename = "kind", default)]
    _kind: IgnoredAny,
    #[serde(rename = "status", default)]
    _status: IgnoredAny,
    #[serde(borrow)]
    pub(super) metadata: MetaWire<'a>,
    #[serde(default = "Option::default")]
    pub(super) spec: Option<S>,
}

/// `metadata` as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
#[serde(expecting = "a map of fields")]
pub(super) struct MetaWire<'a> {
    #[serde(borrow, default)]
    pub(super) name: Text<'a>,
    #[serde(borrow, default)]
    pub(super) namespace: Text<'a>,
    #[serde(borrow, default)]
    pub(super) uid: Text<'a>,
    #[serde(borrow, default)]
    pub(super) labels: Pairs<'a>,
    #[serde(borrow, default)]
    pub(super) annotations: Pairs<'a>,
    #[serde(default)]
    pub(super) creation_timestamp: Moment,
    #[serde(default)]
    pub(super) deletion_timestamp: Option<IgnoredAny>,
    #[serde(borrow, default, deserialize_with = "nullable")]
    pub(super) owner_references: Vec<OwnerWire<'a>>,
}

/// One of `metadata.ownerReferences`.
#[derive(Debug, Default, Deserialize)]
#[serde(expecting = "a map of fields")]
pub(super) struct OwnerWire<'a> {
    #[serde(borrow, default)]
    pub(super) kind: Text<'a>,
    #[serde(borrow, default)]
    pub(super) name: Text<'a>,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) controller: bool,
}

/// Begins the report of a namespaced object; a missing namespace is `default`, as for `kubectl`.
pub(super) fn namespaced<'a>(
    wire: &MetaWire<'_>,
    kind: Kind,
    place: Place<'a>,
    interner: &mut Interner,
) -> (Meta, Report<'a>) {
    let namespace = interner.text(wire.namespace.non_empty().unwrap_or("default"));
    let key = NamespacedName { namespace, name: wire.name.as_str().into() };
    let mut report = Report::new(invalid_code(kind), kind.as_str(), key.clone(), place);
    check_name(&mut report, "metadata.namespace", &key.namespace, 63);
    check_name(&mut report, "metadata.name", &key.name, 253);
    (Meta { key, created: wire.creation_timestamp.0, origin: place.origin.cloned() }, report)
}

/// Begins the report of a cluster-scoped object.
pub(super) fn cluster_scoped<'a>(
    wire: &MetaWire<'_>,
    kind: Kind,
    place: Place<'a>,
    interner: &mut Interner,
) -> Report<'a> {
    let key = NamespacedName { namespace: interner.text(""), name: interner.text(wire.name.as_str()) };
    let mut report = Report::new(invalid_code(kind), kind.as_str(), key.clone(), place);
    check_name(&mut report, "metadata.name", &key.name, if kind == Kind::Namespace { 63 } else { 253 });
    report
}

/// Names of namespaces, service accounts and objects: what Kubernetes allows. Identities rely on it.
pub(super) fn check_name(report: &mut Report<'_>, field: &str, name: &str, max_len: usize) {
    let edge = |c: Option<u8>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let inner =
        |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-' || (c == b'.' && max_len > 63);
    let bytes = name.as_bytes();
    if bytes.is_empty() {
        report.reject(field, "The object has no name.", "Give it one.");
    } else if bytes.len() > max_len
        || !(edge(bytes.first().copied()) && edge(bytes.last().copied()))
        || !bytes.iter().copied().all(inner)
    {
        let dots = if max_len > 63 { "`-` and `.`" } else { "`-`" };
        let message = format!("`{name}` is not a valid name.");
        let fix = format!(
            "Use at most {max_len} lower-case letters, digits, {dots}, beginning and ending with a letter or digit."
        );
        report.reject(field, message, fix);
    }
}

/// Annotations that the mesh reads (`weft.dev/netns` has a field of its own; what the agent writes is no input).
pub(super) fn is_read_annotation(key: &str) -> bool {
    let Some((domain, name)) = key.split_once('/') else { return false };
    match domain {
        "weft.dev" => !matches!(name, "netns" | "state" | "state-reason"),
        "traffic.sidecar.istio.io" | "networking.istio.io" => true,
        "sidecar.istio.io" => matches!(name, "inject" | "status"),
        _ => false,
    }
}

/// Namespace and name of an object that could not be read as its kind.
pub(super) fn rescued_key(body: Body<'_>) -> NamespacedName {
    let parsed;
    let value = match body {
        Body::Value(parsed) => parsed.value,
        Body::Text(text) => {
            parsed = serde_json::from_str(text).unwrap_or(Value::Null);
            &parsed
        }
    };
    let text = |name: &str| value.pointer(name).and_then(Value::as_str).unwrap_or_default();
    let namespace = Some(text("/metadata/namespace")).filter(|text| !text.is_empty()).unwrap_or("default");
    NamespacedName::new(namespace, text("/metadata/name"))
}
