//! The roots in a ConfigMap: agents mount it, and verify with it whom they ask for certificates.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use weft_identity::LiveCa;

use crate::controller::MANAGER;
use crate::output;

const ROOT: &str = "root-cert.pem";
/// How often it is looked whether somebody has changed or removed it.
const LOOK: Duration = Duration::from_secs(30);
/// Pause after a failure.
const RETRY: Duration = Duration::from_secs(2);

/// Keeps the ConfigMap (namespace, name) with the roots of the CA, for ever. Every replica does: they write the same.
pub(super) async fn publish(client: Client, (namespace, name): (String, String), ca: Arc<LiveCa>) {
    let maps: Api<ConfigMap> = Api::namespaced(client, &namespace);
    let mut changes = ca.subscribe();
    let mut told = String::new();
    loop {
        let roots = changes.borrow_and_update().root_pem().to_owned();
        let pause = match keep(&maps, &name, &roots).await {
            Ok(()) => {
                told.clear();
                LOOK
            }
            Err(error) => {
                let error = output::chain(&error);
                if error != told {
                    tracing::error!(
                        name,
                        error,
                        "the CA's roots are not published: agents cannot verify the CA"
                    );
                }
                told = error;
                RETRY
            }
        };
        tokio::select! {
            // The sender lives as long as the CA.
            _ = changes.changed() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn keep(maps: &Api<ConfigMap>, name: &str, roots: &str) -> Result<(), kube::Error> {
    let present = maps.get_opt(name).await?;
    let data = present.as_ref().and_then(|map| map.data.as_ref());
    if data.and_then(|data| data.get(ROOT)).is_some_and(|text| text == roots) {
        return Ok(());
    }
    let wanted = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name},
        "data": {ROOT: roots},
    });
    maps.patch(name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(wanted)).await?;
    tracing::info!(name, "the CA's roots are published");
    Ok(())
}
