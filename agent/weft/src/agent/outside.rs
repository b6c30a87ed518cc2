//! Whom the agent talks to outside of the data path: the container runtime's plugin and the API server.

use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use tokio::sync::{oneshot, watch};
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::timeout;
use weft_control::writer::Published;
use weft_kernel::{CleanupReport, Datapath};

use super::admin::Facts;
use super::cgroups::Kubelet;
use super::cni::{self, Installation, Server};
use super::handover::Keeper;
use super::node::Event;
use super::options::Options;
use super::places::Places;
use super::pods_api::removal::OwnDaemonSet;
use super::pods_api::{self, PodsApi};
use super::private_socket;

/// How long what is on its way to the API server may take when another agent takes over.
const LAST_WORD: Duration = Duration::from_secs(2);

/// What the reconciler shares with the rest of the agent.
pub(super) struct Shared {
    /// Where pods are, as the plugin tells.
    pub(super) places: Arc<Mutex<Places>>,
    /// Told of every new state of the node.
    pub(super) changed: watch::Sender<()>,
    /// The kubelet that is to be followed.
    pub(super) kubelet: Option<Kubelet>,
    /// Who keeps listening sockets while the agent is started again.
    pub(super) keeper: Keeper,
}

/// What was started, to be ended.
#[derive(Default)]
pub(super) struct Outside {
    /// The API server, where it is the source.
    client: Option<kube::Client>,
    plugin: Option<(Installation, oneshot::Sender<()>)>,
    annotations: Option<(oneshot::Sender<pods_api::Farewell>, JoinHandle<()>)>,
    daemonset: Option<OwnDaemonSet>,
    /// Answers the plugin.
    answering: Option<AbortHandle>,
}

impl Outside {
    /// What is to be known before there is a configuration: whether the agent belongs to a DaemonSet.
    pub(super) async fn begin(options: &Options) -> anyhow::Result<Self> {
        let Some(client) = options.source.client() else { return Ok(Self::default()) };
        let client = weft_control::kubernetes::client(&client).await?;
        let daemonset = OwnDaemonSet::of_this_pod(client.clone(), &options.node);
        if let Some(daemonset) = daemonset.clone() {
            tokio::spawn(daemonset.notice());
        }
        Ok(Self { client: Some(client), daemonset, ..Self::default() })
    }

    /// Starts what the options ask for. `reconciler` is `None` in break-glass.
    pub(super) fn start(
        &mut self,
        options: &Options,
        facts: &Facts,
        shared: (Arc<Mutex<Places>>, watch::Receiver<()>),
        reconciler: Option<Sender<Event>>,
    ) -> anyhow::Result<()> {
        let (places, changed) = shared;
        if let Some(client) = self.client.clone() {
            self.tell_api_server(client, facts, changed.clone());
        }
        if let Some(socket) = options.cni.socket() {
            let listener = private_socket::replace(&socket).context("weft-cni could not ask")?;
            let server = Server {
                config: facts.config.clone(),
                state: facts.state.clone(),
                changed,
                places,
                reconciler,
                proc: options.datapath.proc().to_owned(),
            };
            self.answering = Some(tokio::spawn(cni::serve(listener, Arc::new(server))).abort_handle());
        }
        // Only now: a plugin that nobody answers would hold pods back.
        self.plugin = options.cni.installation().map(|installation| {
            let (stop, stopped) = oneshot::channel();
            tokio::spawn(cni::follow(installation.clone(), facts.config.clone(), stopped));
            (installation, stop)
        });
        Ok(())
    }

    fn tell_api_server(&mut self, client: kube::Client, facts: &Facts, changed: watch::Receiver<()>) {
        let (farewell, asked) = oneshot::channel();
        let api =
            PodsApi::new(client, facts.node.clone(), facts.config.clone(), facts.state.clone(), changed);
        self.annotations = Some((farewell, tokio::spawn(api.follow(asked))));
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
        uninstall(&installation);
    }

    /// Another agent has taken over: it answers the plugin, keeps it installed and tells the API server, once nothing
    /// of ours is on its way there.
    pub(super) async fn retire(&mut self) {
        // What is dropped ends what it belongs to without another word.
        drop(self.plugin.take());
        if let Some(answering) = self.answering.take() {
            answering.abort();
        }
        if let Some((farewell, writing)) = self.annotations.take() {
            drop(farewell);
            // An API server that does not answer must not keep the successor waiting.
            let _ = timeout(LAST_WORD, writing).await;
        }
    }

    /// Removes what an earlier agent left, for one that is removed before it has begun.
    pub(super) async fn undo_earlier(self, options: &Options, config: &Published) {
        if let Some(installation) = options.cni.installation() {
            uninstall(&installation);
        }
        let settings = options.datapath.resolve(&options.node, self.client.is_some());
        let undone = settings.and_then(|settings| Ok(Datapath::cleanup(&settings.config, None)?));
        match undone {
            Ok(report) => tell(&report),
            Err(error) => tracing::error!(
                error = format!("{error:#}"),
                "what an earlier agent left could not be removed; see `weft cleanup`"
            ),
        }
        if let Some(client) = self.client {
            PodsApi::clear(client, options.node.as_str().into(), config.clone()).await;
        }
    }

    /// Removes the agent's annotations from this node's pods.
    pub(super) async fn remove_annotations(&mut self) {
        let Some((farewell, _)) = self.annotations.take() else { return };
        let (done, over) = oneshot::channel();
        if farewell.send(done).is_ok() {
            // It limits itself; an end without a word is one as well.
            let _ = over.await;
        }
    }
}

fn uninstall(installation: &Installation) {
    for failure in installation.uninstall() {
        tracing::error!(
            failure,
            "weft-cni could not be removed completely; see `weft cleanup --cni-conf-dir`"
        );
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
