//! Pods without a node: what istiod sees of them is in the API alone.

use anyhow::Result;
use serde_json::json;

use super::Recorder;

/// A pod that runs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pod {
    pub(crate) name: &'static str,
    pub(crate) app: &'static str,
    pub(crate) version: &'static str,
    pub(crate) ip: &'static str,
}

impl Pod {
    /// Makes it in the namespace `shop`, with the service account of its application's name.
    pub(crate) fn apply(&self, recorder: &Recorder<'_>) -> Result<()> {
        let Self { name, app, version, ip } = self;
        let metadata = json!({"name": name, "namespace": "shop", "labels": self.labels()});
        let account = json!({
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": app, "namespace": "shop"},
        });
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": metadata,
            "spec": {
                "nodeName": "node-a",
                "serviceAccountName": app,
                "automountServiceAccountToken": false,
                "containers": [{"name": version, "image": "none"}],
            },
        });
        recorder.plane.apply(&account.to_string())?;
        recorder.plane.apply(&pod.to_string())?;
        let status = json!({"status": {
            "phase": "Running",
            "podIP": ip,
            "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": "True"}],
        }});
        let patch = status.to_string();
        let what = ["patch", "pod", name, "-n", "shop", "--subresource=status", "--type=merge", "-p", &patch];
        recorder.plane.kubectl(&what).map(drop)
    }

    /// Its labels.
    pub(crate) fn labels(&self) -> serde_json::Value {
        json!({"app": self.app, "version": self.version})
    }
}
