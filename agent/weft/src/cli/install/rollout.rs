//! Waits until a DaemonSet or Deployment runs as it should, and says why it does not.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::api::{Api, DynamicObject, ListParams};
use serde_json::Value;

use super::objects::Object;
use crate::output;

/// How often it is looked.
const PERIOD: Duration = Duration::from_millis(500);

/// A wait for one object.
pub(super) struct Rollout<'a> {
    pub(super) client: &'a Client,
    pub(super) object: &'a Object,
    pub(super) deadline: Instant,
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Progress {
    ready: i64,
    wanted: i64,
    is_done: bool,
}

impl Rollout<'_> {
    /// `None` when it is ready; else what hinders it, in sentences.
    pub(super) async fn finish(&self) -> anyhow::Result<Option<Vec<String>>> {
        let api = self.object.api(self.client);
        let mut told = None;
        loop {
            // An API server that is away for a moment is asked again.
            let progress = api.get_opt(self.object.name()).await.ok().flatten().as_ref().map(progress);
            if let Some(now) = progress.filter(|now| told != Some(*now)) {
                let Progress { ready, wanted, .. } = now;
                output::write(format!("{}: {ready} of {wanted} ready\n", self.object).as_bytes())?;
                told = Some(now);
            }
            if progress.is_some_and(|now| now.is_done) {
                return Ok(None);
            }
            if Instant::now() >= self.deadline {
                return Ok(Some(self.reasons().await));
            }
            tokio::time::sleep(PERIOD).await;
        }
    }

    /// What pods that are not ready say.
    async fn reasons(&self) -> Vec<String> {
        let namespace = self.object.namespace().unwrap_or_default();
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let selector = ListParams::default().labels(&format!("app={}", self.object.name()));
        match pods.list(&selector).await {
            Ok(pods) if pods.items.is_empty() => vec![format!(
                "there are no pods: kubectl -n {namespace} describe {} {}",
                self.object.kind().to_lowercase(),
                self.object.name()
            )],
            Ok(pods) => pods.items.iter().filter_map(hindrance).collect(),
            Err(error) => vec![format!("its pods cannot be read: {}", output::chain(&error))],
        }
    }
}

fn progress(object: &DynamicObject) -> Progress {
    let number = |pointer: &str| object.data.pointer(pointer).and_then(Value::as_i64);
    let status = |name: &str| number(&format!("/status/{name}")).unwrap_or(0);
    let is_daemon_set = object.types.as_ref().is_some_and(|types| types.kind == "DaemonSet");
    let (wanted, updated, ready) = match is_daemon_set {
        true => {
            (status("desiredNumberScheduled"), status("updatedNumberScheduled"), status("numberAvailable"))
        }
        false => {
            (number("/spec/replicas").unwrap_or(1), status("updatedReplicas"), status("availableReplicas"))
        }
    };
    let is_seen = status("observedGeneration") >= object.metadata.generation.unwrap_or(0);
    Progress { ready, wanted, is_done: is_seen && updated >= wanted && ready >= wanted }
}

/// Why a pod is not ready; `None` when it is.
fn hindrance(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let conditions = status.conditions.iter().flatten();
    let mut failing = conditions.filter(|condition| condition.status != "True");
    if !failing.clone().any(|condition| condition.type_ == "Ready") {
        return None;
    }
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or("no node");
    let mut containers = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    let waiting = containers.find_map(|container| {
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        let reason = waiting.reason.clone().unwrap_or_default();
        Some(match &waiting.message {
            Some(message) => format!("{reason}: {message}"),
            None => reason,
        })
    });
    let why = waiting.or_else(|| failing.find_map(|condition| condition.message.clone()));
    Some(format!("pod {name} on {node}: {}", why.unwrap_or_else(|| "not ready".to_owned())))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(value: Value) -> Progress {
        progress(&serde_json::from_value(value).unwrap())
    }

    #[test]
    fn a_rollout_is_done_when_the_newest_version_runs_everywhere() {
        let daemon_set = |generation: i64, updated: i64, available: i64| {
            json!({
                "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "a", "generation": 2},
                "status": {"observedGeneration": generation, "desiredNumberScheduled": 3,
                           "updatedNumberScheduled": updated, "numberAvailable": available},
            })
        };
        assert!(of(daemon_set(2, 3, 3)).is_done);
        assert!(!of(daemon_set(1, 3, 3)).is_done, "the status is about the version before");
        assert!(!of(daemon_set(2, 2, 3)).is_done);
        assert!(!of(daemon_set(2, 3, 2)).is_done);
        let deployment = json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a", "generation": 1},
            "spec": {"replicas": 2}, "status": {"observedGeneration": 1, "updatedReplicas": 2, "availableReplicas": 1},
        });
        assert_eq!(of(deployment), Progress { ready: 1, wanted: 2, is_done: false });
    }

    #[test]
    fn a_pod_says_what_hinders_it() {
        let pod = |status: Value| -> Option<String> {
            let pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n", "containers": []}, "status": status});
            hindrance(&serde_json::from_value(pod).unwrap())
        };
        let not_ready =
            json!({"type": "Ready", "status": "False", "message": "containers with unready status"});
        assert_eq!(pod(json!({"conditions": [{"type": "Ready", "status": "True"}]})), None);
        assert_eq!(
            pod(json!({"conditions": [not_ready.clone()]})).unwrap(),
            "pod p on n: containers with unready status"
        );
        let waiting = json!({"name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"waiting": {"reason": "ErrImagePull", "message": "no such image"}}});
        let text = pod(json!({"conditions": [not_ready], "containerStatuses": [waiting]})).unwrap();
        assert_eq!(text, "pod p on n: ErrImagePull: no such image");
    }
}
