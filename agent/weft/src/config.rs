//! Where the configuration comes from: files or an API server, read once by the tools and followed by the long-running
//! commands.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use clap::Args;
use weft_control::decode::ObjectCounts;
use weft_control::directory::{self, DirectoryOptions};
use weft_control::kubernetes::{self, ClientOptions, KubernetesOptions};
use weft_control::{Handle, Loaded as Read};
use weft_core::compile::CompileOptions;
use weft_core::{Problem, Snapshot};

use crate::shutdown::Signals;

/// A configuration that was read once.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) snapshot: Arc<Snapshot>,
    /// Findings of reading and of compiling.
    pub(crate) problems: Vec<Problem>,
    pub(crate) counts: ObjectCounts,
}

/// Reads files, directories and (`-`) standard input once; every pod counts as local.
pub(crate) fn load(paths: &[PathBuf]) -> anyhow::Result<Loaded> {
    Ok(directory::load(paths, of_files())?.into())
}

/// Reads as [`load`] does, and adds what the analyzers find.
pub(crate) fn analyze(paths: &[PathBuf]) -> anyhow::Result<Loaded> {
    Ok(directory::analyze(paths, of_files())?.into())
}

/// Reads all objects of a cluster once; every pod counts as local.
pub(crate) async fn load_cluster(client: &ClientOptions) -> anyhow::Result<Loaded> {
    Ok(kubernetes::load(client, of_cluster(&[]), false).await?.into())
}

/// Reads a cluster with files on top of it, and adds what the analyzers find.
pub(crate) async fn analyze_cluster(client: &ClientOptions, files: &[PathBuf]) -> anyhow::Result<Loaded> {
    Ok(kubernetes::load_over(client, of_cluster(files), true, files).await?.into())
}

/// Services of files have no EndpointSlices yet.
fn of_cluster(files: &[PathBuf]) -> CompileOptions {
    CompileOptions { node: None, adopt_istio_labels: false, endpoints_from_pods: !files.is_empty() }
}

/// Ruling 15: files may use Istio's opt-in labels.
fn of_files() -> CompileOptions {
    CompileOptions { node: None, adopt_istio_labels: true, endpoints_from_pods: true }
}

impl From<Read> for Loaded {
    fn from(loaded: Read) -> Self {
        let Read { snapshot, problems, objects } = loaded;
        Self { snapshot, problems, counts: objects }
    }
}

/// Where the long-running commands get their configuration.
#[derive(Debug, Clone, Args)]
pub(crate) struct SourceOptions {
    /// Files or directories with the configuration; may be repeated. Without it the configuration comes from the
    /// Kubernetes API server, in a pod the one of its cluster.
    #[arg(long, value_name = "PATH")]
    pub(crate) config: Vec<PathBuf>,
    /// The kubeconfig that names the API server.
    #[arg(long, value_name = "PATH", conflicts_with = "config")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig.
    #[arg(long, value_name = "NAME", conflicts_with = "config")]
    pub(crate) context: Option<String>,
    /// Whether Istio's opt-in labels count as well [default: true with --config, else false].
    #[arg(long, value_name = "BOOL")]
    adopt_istio_labels: Option<bool>,
}

/// Who reads the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// The agent of a node: kinds that it executes.
    Node,
    /// The controller: kinds that are validated as well.
    Controller,
}

impl SourceOptions {
    /// How to reach the API server; `None` when the configuration stands in files.
    pub(crate) fn client(&self) -> Option<ClientOptions> {
        self.config.is_empty().then(|| ClientOptions {
            kubeconfig: self.kubeconfig.clone(),
            context: self.context.clone(),
            infer: false,
        })
    }

    /// Starts to follow the configuration. With files it is there when this returns; with an API server
    /// [`first`] waits for it.
    pub(crate) fn start(&self, node: &str, purpose: Purpose) -> anyhow::Result<Handle> {
        let Some(client) = self.client() else {
            return watch(&self.config, node, self.adopt_istio_labels.unwrap_or(true));
        };
        let options = KubernetesOptions {
            client,
            validated_kinds: purpose == Purpose::Controller,
            ..KubernetesOptions::default()
        };
        let compile = CompileOptions {
            node: Some(node.into()),
            adopt_istio_labels: self.adopt_istio_labels.unwrap_or(false),
            endpoints_from_pods: false,
        };
        Ok(kubernetes::start(options, compile)?)
    }
}

/// Waits until everything was read once; false if a signal asks for the end.
pub(crate) async fn first(source: &Handle) -> anyhow::Result<bool> {
    let mut signals = Signals::new()?;
    tokio::select! {
        complete = source.published().completed() => {
            ensure!(complete, "the configuration is not followed any more");
            Ok(true)
        }
        () = signals.next() => Ok(false),
    }
}

/// Reads files and directories and goes on watching them.
pub(crate) fn watch(paths: &[PathBuf], node: &str, adopt_istio_labels: bool) -> anyhow::Result<Handle> {
    if paths.iter().any(|path| path == Path::new("-")) {
        bail!("standard input cannot be watched: give files or directories with --config");
    }
    let options = DirectoryOptions { paths: paths.to_vec() };
    let compile = CompileOptions { node: Some(node.into()), adopt_istio_labels, endpoints_from_pods: true };
    directory::start(options, compile).context("the configuration could not be loaded")
}
