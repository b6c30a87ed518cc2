//! Where the configuration comes from: files, read once by the tools and watched by the long-running commands.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use weft_control::decode::ObjectCounts;
use weft_control::directory::{self, DirectoryOptions, Handle};
use weft_core::compile::CompileOptions;
use weft_core::{Problem, Snapshot};

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

/// Ruling 15: files may use Istio's opt-in labels.
fn of_files() -> CompileOptions {
    CompileOptions { node: None, adopt_istio_labels: true }
}

impl From<directory::Loaded> for Loaded {
    fn from(loaded: directory::Loaded) -> Self {
        let directory::Loaded { snapshot, problems, objects } = loaded;
        Self { snapshot, problems, counts: objects }
    }
}

/// Reads files and directories and goes on watching them.
pub(crate) fn watch(paths: &[PathBuf], node: &str, adopt_istio_labels: bool) -> anyhow::Result<Handle> {
    if paths.iter().any(|path| path == Path::new("-")) {
        bail!("standard input cannot be watched: give files or directories with --config");
    }
    let options = DirectoryOptions { paths: paths.to_vec() };
    directory::start(options, CompileOptions { node: Some(node.into()), adopt_istio_labels })
        .context("the configuration could not be loaded")
}
