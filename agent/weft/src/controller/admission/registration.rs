//! Keeps the root of our certificate in the webhook's configuration: the API server trusts nobody else.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};
use tokio::sync::watch;
use weft_identity::Ca;

use crate::controller::MANAGER;
use crate::controller::lease::Leadership;
use crate::output;

/// How often to look whether somebody has applied the manifest again, which empties the field.
const PERIOD: Duration = Duration::from_secs(30);

/// Patches `name` while we lead, for ever.
pub(in crate::controller) async fn keep_registered(
    client: Client,
    name: String,
    mut ca: watch::Receiver<Arc<Ca>>,
    mut leadership: Leadership,
) {
    let api: Api<ValidatingWebhookConfiguration> = Api::all(client);
    let mut told = None;
    loop {
        leadership.won().await;
        let pem = ca.borrow_and_update().root_pem().as_bytes().to_vec();
        let request = tokio::time::timeout(leadership.terms().request(), register(&api, &name, &pem));
        let outcome = match request.await {
            Ok(Ok(outcome)) => outcome.to_owned(),
            Ok(Err(error)) => output::chain(&error),
            Err(_) => "the API server does not answer in time".to_owned(),
        };
        if told.as_ref() != Some(&outcome) {
            tracing::info!(webhook = name, outcome, "validation of objects before they are stored");
            told = Some(outcome);
        }
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            changed = ca.changed() => if changed.is_err() {
                tokio::time::sleep(PERIOD).await;
            },
        }
    }
}

async fn register(
    api: &Api<ValidatingWebhookConfiguration>,
    name: &str,
    pem: &[u8],
) -> Result<&'static str, kube::Error> {
    let Some(configuration) = api.get_opt(name).await? else {
        return Ok("there is no such configuration: objects are not validated");
    };
    let value = serde_json::to_value(&configuration).map_err(kube::Error::SerdeError)?;
    let Some(patch) = patch(&value, pem) else { return Ok("registered") };
    let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
    match api.patch(name, &params, &Patch::Strategic(&patch)).await {
        Ok(_) => Ok("registered"),
        // It changed in between, which the next round sees.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok("somebody else changes the configuration"),
        Err(error) => Err(error),
    }
}

/// What is to change; webhooks are told apart by their names. `None` when all have our root already.
fn patch(configuration: &Value, pem: &[u8]) -> Option<Value> {
    let bundle = serde_json::to_value(k8s_openapi::ByteString(pem.to_vec())).unwrap_or_default();
    let webhooks = configuration.get("webhooks").and_then(Value::as_array)?;
    let differs = |webhook: &&Value| webhook.pointer("/clientConfig/caBundle") != Some(&bundle);
    let changed: Vec<Value> = webhooks
        .iter()
        .filter(differs)
        .filter_map(|webhook| {
            Some(json!({"name": webhook.get("name")?, "clientConfig": {"caBundle": bundle}}))
        })
        .collect();
    let version = configuration.pointer("/metadata/resourceVersion").cloned().unwrap_or_default();
    (!changed.is_empty()).then(|| json!({"metadata": {"resourceVersion": version}, "webhooks": changed}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_patched() {
        let configuration = json!({
            "metadata": {"resourceVersion": "7"},
            "webhooks": [
                {"name": "a.weft.dev", "clientConfig": {"caBundle": "Y2E=", "service": {"name": "x"}}},
                {"name": "b.weft.dev", "clientConfig": {"service": {"name": "x"}}},
            ],
        });
        let expected = json!({
            "metadata": {"resourceVersion": "7"},
            "webhooks": [{"name": "b.weft.dev", "clientConfig": {"caBundle": "Y2E="}}],
        });
        assert_eq!(patch(&configuration, b"ca"), Some(expected));
        let webhooks = json!({"webhooks": [{"name": "a", "clientConfig": {"caBundle": "Y2E="}}]});
        assert_eq!(patch(&webhooks, b"ca"), None);
        assert_eq!(patch(&json!({}), b"ca"), None);
    }
}
