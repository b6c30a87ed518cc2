//! Whom the agent talks to outside of the data path: the container runtime's plugin and the API server.

use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};

use anyhow::Context;
use tokio::sync::{oneshot, watch};
use weft_kernel::CleanupReport;

use super::admin::{self, Facts};
use super::cgroups::Kubelet;
use super::cni::{self, Installation, Server};
use super::node::Event;
use super::options::Options;
use super::places::Places;
use super::pods_api::removal::OwnDaemonSet;
use super::pods_api::{self, PodsApi};

/// What the reconciler shares with the rest of the agent.
pub(super) struct Shared {
    /// Where pods are, as the plugin tells.
    pub(super) places: Arc<Mutex<Places>>,
    /// Told of every new state of the node.
    pub(super) changed: watch::Sender<()>,
    /// The kubelet that is to be followed.
    pub(super) kubelet: Option<Kubelet>,
}

/// What was started, to be ended.
#[derive(Default)]
pub(super) struct Outside {
    plugin: Option<(Installation, oneshot::Sender<()>)>,
    annotations: Option<oneshot::Sender<pods_api::Farewell>>,
    daemonset: Option<OwnDaemonSet>,
}

impl Outside {
    /// Starts what the options ask for. `reconciler` is `None` in break-glass.
    pub(super) async fn start(
        options: &Options,
        facts: &Facts,
        shared: (Arc<Mutex<Places>>, watch::Receiver<()>),
        reconciler: Option<Sender<Event>>,
    ) -> anyhow::Result<Self> {
        let (places, changed) = shared;
        let mut outside = Self::default();
        if let Some(client) = options.source.client() {
            let client = weft_control::kubernetes::client(&client).await?;
            outside.tell_api_server(client, facts, changed.clone());
        }
        if let Some(socket) = options.cni.socket() {
            let listener = admin::bind(&socket).context("weft-cni could not ask")?;
            let server = Server {
                config: facts.config.clone(),
                state: facts.state.clone(),
                changed,
                places,
                reconciler,
                proc: options.datapath.proc().to_owned(),
            };
            tokio::spawn(cni::serve(listener, Arc::new(server)));
        }
        // Only now: a plugin that nobody answers would hold pods back.
        outside.plugin = options.cni.installation().map(|installation| {
            let (stop, stopped) = oneshot::channel();
            tokio::spawn(cni::follow(installation.clone(), facts.config.clone(), stopped));
            (installation, stop)
        });
        Ok(outside)
    }

    fn tell_api_server(&mut self, client: kube::Client, facts: &Facts, changed: watch::Receiver<()>) {
        let (farewell, asked) = oneshot::channel();
        let api = PodsApi::new(
            client.clone(),
            facts.node.clone(),
            facts.config.clone(),
            facts.state.clone(),
            changed,
        );
        tokio::spawn(api.follow(asked));
        self.annotations = Some(farewell);
        self.daemonset = OwnDaemonSet::of_this_pod(client);
        if let Some(daemonset) = self.daemonset.clone() {
            tokio::spawn(daemonset.notice());
        }
    }

    /// Whether the agent is being taken out of the cluster.
    pub(super) async fn is_removed(&self) -> bool {
        match &self.daemonset {
            Some(daemonset) => daemonset.is_removed().await,
            None => false,
        }
    }

    /// Takes the plugin off the node: first of all, so that new pods are not held back.
    pub(super) fn remove_plugin(&mut self) {
        let Some((installation, stop)) = self.plugin.take() else { return };
        // It has ended already if nobody listens.
        let _ = stop.send(());
        for failure in installation.uninstall() {
            tracing::error!(
                failure,
                "weft-cni could not be removed completely; see `weft cleanup --cni-conf-dir`"
            );
        }
    }

    /// Removes the agent's annotations from this node's pods.
    pub(super) async fn remove_annotations(&mut self) {
        let Some(farewell) = self.annotations.take() else { return };
        let (done, over) = oneshot::channel();
        if farewell.send(done).is_ok() {
            // It limits itself; an end without a word is one as well.
            let _ = over.await;
        }
    }
}

/// Says what was removed at the end for good.
pub(super) fn tell(report: &CleanupReport) {
    tracing::info!(
        links = report.links,
        maps = report.maps,
        namespaces = report.namespaces,
        "all pods are out of the mesh, and nothing is pinned any more"
    );
    for failure in &report.failures {
        tracing::error!(failure, "something could not be removed; see `weft cleanup`");
    }
}
