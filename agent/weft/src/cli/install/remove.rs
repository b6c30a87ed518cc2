//! Removes an installation: first what could hinder others, then the agents, who let go of their pods while they
//! still have the right to do so, then the rest.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, ListParams, PropagationPolicy};
use kube::{Client, Error};

use super::super::Ended;
use super::apply::failed;
use super::objects::Object;
use crate::output;

/// How often it is looked whether the agents are gone.
const PERIOD: Duration = Duration::from_millis(500);

/// A removal.
pub(super) struct Removal<'a> {
    pub(super) client: &'a Client,
    /// What was installed.
    pub(super) objects: &'a [Object],
    pub(super) dry_run: bool,
    /// Take the CA's key as well.
    pub(super) purge: bool,
    pub(super) patience: Duration,
}

impl Removal<'_> {
    pub(super) async fn run(&self) -> anyhow::Result<Ended> {
        for object in self.of_kinds(&["ValidatingWebhookConfiguration", "DaemonSet"]) {
            self.remove(object).await?;
        }
        for agents in self.of_kinds(&["DaemonSet"]) {
            let left = self.wait_for_end(agents).await?;
            if !left.is_empty() {
                return still_there(&left).map(|()| Ended::BadNews);
            }
        }
        let done_before = ["ValidatingWebhookConfiguration", "DaemonSet", "Namespace"];
        for object in self.objects.iter().rev().filter(|object| !done_before.contains(&object.kind())) {
            self.remove(object).await?;
        }
        self.made_by_the_controller().await?;
        Ok(Ended::Fine)
    }

    fn of_kinds(&self, kinds: &'static [&'static str]) -> impl Iterator<Item = &Object> {
        kinds.iter().flat_map(|kind| self.objects.iter().filter(move |object| object.kind() == *kind))
    }

    /// What no manifest has, because the controller made it.
    async fn made_by_the_controller(&self) -> anyhow::Result<()> {
        for namespace in self.of_kinds(&["Namespace"]) {
            let inside = |name: &'static str| (Some(namespace.name()), name);
            self.remove(&Object::named("v1", "ConfigMap", inside("weft-ca-root-cert"))).await?;
            self.remove(&Object::named("coordination.k8s.io/v1", "Lease", inside("weft-controller"))).await?;
            let key = Object::named("v1", "Secret", inside("weft-ca"));
            if self.purge {
                self.remove(&key).await?;
                self.remove(namespace).await?;
            } else {
                let text =
                    format!("{key}, {namespace}: kept for a later installation; --purge removes them\n");
                output::write(text.as_bytes())?;
            }
        }
        Ok(())
    }

    async fn remove(&self, object: &Object) -> anyhow::Result<()> {
        let params = DeleteParams {
            dry_run: self.dry_run,
            propagation_policy: Some(PropagationPolicy::Background),
            ..DeleteParams::default()
        };
        let word = match object.api(self.client).delete(object.name(), &params).await {
            Ok(_) if self.dry_run => "would be removed",
            Ok(_) => "removed",
            Err(Error::Api(status)) if status.code == 404 => "not there",
            Err(error) => return Err(failed("removed", object, &error)),
        };
        output::write(format!("{object}: {word}\n").as_bytes())
    }

    /// Pods of the DaemonSet that are there after our patience, as `POD on NODE`.
    async fn wait_for_end(&self, agents: &Object) -> anyhow::Result<Vec<String>> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), agents.namespace().unwrap_or_default());
        let selector = ListParams::default().labels(&format!("app={}", agents.name()));
        let deadline = Instant::now() + self.patience;
        let mut told = None;
        loop {
            let left =
                pods.list(&selector).await.map_err(|error| failed("waited for", agents, &error))?.items;
            if self.dry_run || left.is_empty() || Instant::now() >= deadline {
                let left = left.iter().filter(|_| !self.dry_run);
                return Ok(left.map(name_and_node).collect());
            }
            if told != Some(left.len()) {
                let text = format!("{agents}: {} agents are letting go of their pods\n", left.len());
                output::write(text.as_bytes())?;
                told = Some(left.len());
            }
            tokio::time::sleep(PERIOD).await;
        }
    }
}

fn name_and_node(pod: &Pod) -> String {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or("no node");
    format!("{name} on {node}")
}

fn still_there(left: &[String]) -> anyhow::Result<()> {
    let mut text = "Agents have not ended:\n".to_owned();
    for pod in left {
        text += &format!("  {pod}\n");
    }
    text += "Their rights are left to them. Run the command again when they are gone; on a node that is lost for \
             good, delete the pod: kubectl -n weft-system delete pod NAME --force\n";
    output::write(text.as_bytes())
}
