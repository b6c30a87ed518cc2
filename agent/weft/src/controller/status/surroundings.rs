//! What the analyzers compare Istio's objects with: Namespaces, Services, Gateways of the Gateway API, MeshConfig. They
//! are listed in pages and reduced at once; nobody keeps them up to date, for it is enough to look again when one of them
//! has changed. Pods are left to [`super::pods`].

use kube::Client;
use serde_json::Value;
use weft_control::decode::{Decoder, Trust};
use weft_core::analyze::ObjectSet;

/// Objects of a page.
const PAGE: usize = 500;

const LISTS: &[&str] =
    &["/api/v1/namespaces", "/api/v1/services", "/apis/gateway.networking.k8s.io/v1/gateways"];
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
    let mut decoder = Decoder::noting(Trust::Api);
    for path in MESH_CONFIGS {
        if let Some(list) = get(client, path, path).await? {
            note(&mut decoder, &list);
        }
    }
    for path in LISTS {
        read_all(client, path, &mut decoder).await?;
    }
    Ok(decoder.into_facts())
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

async fn read_all(client: &Client, path: &'static str, decoder: &mut Decoder) -> Result<(), ReadError> {
    let mut after = String::new();
    loop {
        let uri = format!("{path}?limit={PAGE}{after}");
        let Some(mut list) = get(client, path, &uri).await? else { return Ok(()) };
        let next = list.pointer("/metadata/continue").and_then(Value::as_str).unwrap_or_default();
        after = format!("&continue={}", encoded(next));
        let is_last = next.is_empty();
        if let Some(items) = list.get_mut("items").and_then(Value::as_array_mut) {
            items.iter_mut().for_each(slim);
        }
        note(decoder, &list);
        if is_last {
            return Ok(());
        }
    }
}

fn note(decoder: &mut Decoder, value: &Value) {
    // Whether they are valid is none of our business here.
    decoder.value(value, None, &mut Vec::new());
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
