//! Commands against a cluster: which one it is, and how its agents are asked.
//!
//! An agent has no open port but metrics and readiness (ruling 10): it is asked by running this same program in its
//! container, through the API server, as `kubectl exec` does. Who may do that is what RBAC says about `pods/exec`.

mod agents;
mod exec;
mod failure;
mod merged;
mod nearest;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use k8s_openapi::apimachinery::pkg::version::Info;
use kube::Client;
use tokio::runtime::Runtime;
use weft_control::kubernetes::{ClientOptions, client};

pub(super) use agents::{Agent, Answered, Unanswered, asked_all};
pub(super) use failure::{is_forbidden, reading};
pub(super) use merged::{ClusterDump, ClusterStatus};

/// Where everything of Weft's own is, unless it was installed elsewhere.
pub(super) const SYSTEM_NAMESPACE: &str = "weft-system";
/// The DaemonSet of the agents.
pub(super) const AGENT: &str = "weft-agent";
/// The Deployment of the controller.
pub(super) const CONTROLLER: &str = "weft-controller";
/// An API server that says nothing for so long is away.
const PATIENCE: Duration = Duration::from_secs(15);

/// Which cluster is asked.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Cluster")]
pub(crate) struct ClusterOptions {
    /// The kubeconfig file [default: $KUBECONFIG, else ~/.kube/config].
    #[arg(long, value_name = "PATH")]
    pub(super) kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig [default: its current one].
    #[arg(long, value_name = "NAME")]
    pub(super) context: Option<String>,
    /// The namespace in which Weft itself runs.
    #[arg(long, value_name = "NAMESPACE", default_value = SYSTEM_NAMESPACE)]
    pub(super) system_namespace: String,
}

impl ClusterOptions {
    /// The user named a cluster.
    pub(super) fn is_given(&self) -> bool {
        self.kubeconfig.is_some() || self.context.is_some()
    }

    /// There is a kubeconfig: the named one, or the user's own. Whether it is any good is seen when it is used.
    pub(super) fn is_there(&self) -> bool {
        let own =
            || std::env::home_dir().map(|home| home.join(".kube/config")).is_some_and(|path| path.is_file());
        let variable = || std::env::var_os("KUBECONFIG").filter(|paths| !paths.is_empty());
        self.is_given() || variable().is_some() || own()
    }

    /// How the client finds the API server.
    pub(super) fn client_options(&self) -> ClientOptions {
        let Self { kubeconfig, context, system_namespace: _ } = self.clone();
        ClientOptions { kubeconfig, context, infer: true }
    }

    /// A connection to an API server that has answered.
    pub(super) fn connect(&self) -> anyhow::Result<Cluster> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (client, version) = runtime.block_on(async {
            let client = client(&self.client_options()).await?;
            let version = tokio::time::timeout(PATIENCE, client.apiserver_version()).await;
            let version = version.with_context(|| failure::silent(PATIENCE))?;
            anyhow::Ok((client, version.map_err(|error| failure::unreachable(&error))?))
        })?;
        Ok(Cluster { runtime, client, version, system: self.system_namespace.clone() })
    }
}

/// A cluster whose API server answers.
pub(super) struct Cluster {
    runtime: Runtime,
    client: Client,
    version: Info,
    system: String,
}

impl Cluster {
    /// Runs a task to its end.
    pub(super) fn block_on<T>(&self, task: impl Future<Output = T>) -> T {
        self.runtime.block_on(task)
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// The version of the API server.
    pub(super) fn version(&self) -> &Info {
        &self.version
    }

    /// The namespace in which Weft runs.
    pub(super) fn system(&self) -> &str {
        &self.system
    }
}
