//! Objects of a manifest.

use std::fmt;

use anyhow::Context;
use kube::Client;
use kube::api::{Api, DynamicObject};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::Value;

/// An object as it is applied.
pub(super) struct Object {
    pub(super) value: Value,
    resource: ApiResource,
    name: String,
    namespace: Option<String>,
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind(), self.name),
            None => write!(f, "{} {}", self.kind(), self.name),
        }
    }
}

impl Object {
    /// An object of which only the name is known.
    pub(super) fn named(api_version: &str, kind: &str, (namespace, name): (Option<&str>, &str)) -> Self {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        // All our kinds form their plural as English does.
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        Self { value: Value::Null, resource, name: name.to_owned(), namespace: namespace.map(str::to_owned) }
    }

    fn new(value: Value) -> anyhow::Result<Self> {
        let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str);
        let api_version = text("/apiVersion").context("an object without apiVersion")?;
        let kind = text("/kind").context("an object without kind")?;
        let name = text("/metadata/name").context("an object without name")?;
        let named = Self::named(api_version, kind, (text("/metadata/namespace"), name));
        Ok(Self { value, ..named })
    }

    pub(super) fn kind(&self) -> &str {
        &self.resource.kind
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    pub(super) fn is_mesh_config(&self) -> bool {
        self.kind() == "ConfigMap" && self.name == "weft"
    }

    pub(super) fn api(&self, client: &Client) -> Api<DynamicObject> {
        match &self.namespace {
            Some(namespace) => Api::namespaced_with(client.clone(), namespace, &self.resource),
            None => Api::all_with(client.clone(), &self.resource),
        }
    }
}

/// The objects of a file, in order.
pub(super) fn parse(text: &str) -> anyhow::Result<Vec<Object>> {
    let documents = text.split("\n---\n").map(|document| document.strip_prefix("---\n").unwrap_or(document));
    let is_empty = |document: &&str| document.lines().all(|line| line.is_empty() || line.starts_with('#'));
    documents
        .filter(|document| !is_empty(document))
        .map(|document| Object::new(serde_saphyr::from_str(document).context("the manifest is no YAML")?))
        .collect()
}
