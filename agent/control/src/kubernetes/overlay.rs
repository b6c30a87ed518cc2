//! Which objects of a cluster stand in files as well: those of the files count, as if they had been applied.

use std::collections::HashSet;

use serde_json::Value;

use crate::decode::documents::{Document, Syntax};
use crate::decode::read_yaml;

/// Group, kind, namespace and name. The version is left out: it is the same object in all of them.
type Key = (String, String, String, String);

/// The objects of files.
#[derive(Debug, Default)]
pub(super) struct Overlay(HashSet<Key>);

impl Overlay {
    /// Notes the object, or the objects of a List, that a document holds.
    pub(super) fn note(&mut self, document: &Document<'_>) {
        let value = match document.syntax {
            Syntax::Json => serde_json::from_slice(document.text).ok(),
            Syntax::Yaml => {
                let text = std::str::from_utf8(document.text).ok();
                text.and_then(|text| read_yaml(text, document.line).ok())
            }
        };
        // What cannot be read hides nothing, and is a finding of its own.
        value.iter().for_each(|value| self.add(value));
    }

    fn add(&mut self, value: &Value) {
        if let Some(items) = value.get("items").and_then(Value::as_array) {
            items.iter().for_each(|item| self.add(item));
            return;
        }
        let text = |path: &str| value.pointer(path).and_then(Value::as_str).unwrap_or_default();
        let kind = (text("/apiVersion"), text("/kind"));
        self.0.insert(key(kind, text("/metadata/namespace"), text("/metadata/name")));
    }

    /// Whether an object of the cluster stands in the files.
    pub(super) fn hides(&self, kind: (&str, &str), namespace: &str, name: &str) -> bool {
        !self.0.is_empty() && self.0.contains(&key(kind, namespace, name))
    }
}

fn key((api_version, kind): (&str, &str), namespace: &str, name: &str) -> Key {
    let group = api_version.split_once('/').map_or("", |(group, _)| group);
    // What is of no namespace in a file is applied to `default`, or is of a kind that has none.
    let namespace = if namespace.is_empty() { "default" } else { namespace };
    (group.to_owned(), kind.to_owned(), namespace.to_owned(), name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_of_files_hide_those_of_the_cluster_in_any_version() {
        let mut overlay = Overlay::default();
        let yaml = b"apiVersion: networking.istio.io/v1beta1\nkind: VirtualService\nmetadata: {name: cart, namespace: shop}";
        overlay.note(&Document { number: 1, line: 1, text: yaml, syntax: Syntax::Yaml });
        let json = br#"{"kind": "List", "items": [{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}}]}"#;
        overlay.note(&Document { number: 1, line: 1, text: json, syntax: Syntax::Json });
        overlay.note(&Document { number: 1, line: 1, text: b"{", syntax: Syntax::Json });
        let route = ("networking.istio.io/v1", "VirtualService");
        assert!(overlay.hides(route, "shop", "cart"));
        assert!(!overlay.hides(route, "shop", "other") && !overlay.hides(route, "other", "cart"));
        assert!(!overlay.hides(("networking.istio.io/v1", "Gateway"), "shop", "cart"));
        assert!(overlay.hides(("v1", "Service"), "default", "a"));
        assert!(!Overlay::default().hides(route, "shop", "cart"));
    }
}
