//! What the analyzers compare Istio's objects with: Namespaces, Nodes, Pods, Services, Gateways of the Gateway API,
//! MeshConfig. They are listed in pages and reduced at once; nobody watches them, for it is enough to look again
//! when the configuration has changed.

use std::collections::HashMap;

use kube::Client;
use serde_json::Value;
use weft_control::decode::{Decoder, Trust};
use weft_core::analyze::ObjectSet;

/// Objects of a page.
const PAGE: usize = 500;
/// Of pods with the same labels in one namespace a few stand for all.
const ALIKE: usize = 3;

const LISTS: &[&str] = &["/api/v1/namespaces", "/api/v1/nodes", "/api/v1/services", "/api/v1/pods"];
const GATEWAYS: &str = "/apis/gateway.networking.k8s.io/v1/gateways";
/// The first one counts (ruling 14).
const MESH_CONFIGS: &[&str] =
    &["/api/v1/namespaces/weft-system/configmaps/weft", "/api/v1/namespaces/istio-system/configmaps/istio"];

/// Something cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{path} cannot be read")]
pub(super) struct ReadError {
    path: &'static str,
    source: kube::Error,
}

/// Reads everything.
pub(super) async fn read(client: &Client) -> Result<ObjectSet, ReadError> {
    let mut reader = Reader { decoder: Decoder::noting(Trust::Api), alike: HashMap::new() };
    for path in MESH_CONFIGS {
        if let Some(list) = get(client, path, path).await? {
            reader.note(list);
        }
    }
    for path in LISTS {
        reader.list(client, path).await?;
    }
    reader.list(client, GATEWAYS).await?;
    Ok(reader.decoder.into_facts())
}

/// `None` if there is nothing at the address, not even a kind.
async fn get(client: &Client, path: &'static str, uri: &str) -> Result<Option<Value>, ReadError> {
    let failed = |source| ReadError { path, source };
    let request = http::Request::get(uri).body(Vec::new()).map_err(kube::Error::HttpError).map_err(failed)?;
    match client.request::<Value>(request).await {
        Ok(value) => Ok(Some(value)),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

struct Reader {
    decoder: Decoder,
    /// How many pods were seen, by namespace and labels.
    alike: HashMap<String, usize>,
}

impl Reader {
    async fn list(&mut self, client: &Client, path: &'static str) -> Result<(), ReadError> {
        let mut after = String::new();
        loop {
            let uri = format!("{path}?limit={PAGE}{after}");
            let Some(mut list) = get(client, path, &uri).await? else { return Ok(()) };
            let next = list.pointer("/metadata/continue").and_then(Value::as_str).unwrap_or_default();
            after = format!("&continue={}", encoded(next));
            let is_last = next.is_empty();
            if let Some(items) = list.get_mut("items").and_then(Value::as_array_mut) {
                items.retain_mut(|item| path != "/api/v1/pods" || !self.is_one_too_many(item));
                items.iter_mut().for_each(slim);
            }
            self.note(list);
            if is_last {
                return Ok(());
            }
        }
    }

    fn note(&mut self, value: Value) {
        // Whether they are valid is none of our business here.
        self.decoder.value(&value, None, &mut Vec::new());
    }

    fn is_one_too_many(&mut self, pod: &Value) -> bool {
        let part = |name: &str| pod.pointer(name).map(Value::to_string).unwrap_or_default();
        let seen = self.alike.entry(part("/metadata/namespace") + &part("/metadata/labels")).or_default();
        *seen += 1;
        *seen > ALIKE
    }
}

/// Takes away what no analyzer asks for.
fn slim(object: &mut Value) {
    let Some(fields) = object.as_object_mut() else { return };
    fields.remove("status");
    let Some(metadata) = fields.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    metadata.remove("managedFields");
    if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
        annotations.retain(|name, _| name.contains("istio.io/") || name.contains("weft.dev/"));
    }
}

/// For a query: tokens of lists are base64 in some alphabet.
fn encoded(text: &str) -> String {
    use std::fmt::Write;

    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            out.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_few_pods_stand_for_many() {
        let mut reader = Reader { decoder: Decoder::noting(Trust::Api), alike: HashMap::new() };
        let pod = |app: &str| json!({"metadata": {"namespace": "shop", "labels": {"app": app}}});
        let left: Vec<bool> = (0..5).map(|_| reader.is_one_too_many(&pod("cart"))).collect();
        assert_eq!(left, [false, false, false, true, true]);
        assert!(!reader.is_one_too_many(&pod("pay")));
    }

    #[test]
    fn ballast_goes() {
        let mut object = json!({
            "metadata": {
                "name": "a", "managedFields": [1],
                "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "x", "sidecar.istio.io/inject": "true"},
            },
            "spec": {"a": 1}, "status": {"b": 2},
        });
        slim(&mut object);
        let expected = json!({
            "metadata": {"name": "a", "annotations": {"sidecar.istio.io/inject": "true"}}, "spec": {"a": 1},
        });
        assert_eq!(object, expected);
        slim(&mut Value::Null);
    }

    #[test]
    fn tokens_are_encoded() {
        assert_eq!(encoded("eyJ2+/=="), "eyJ2%2B%2F%3D%3D");
    }
}
