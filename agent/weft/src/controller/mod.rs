//! `weft controller`: the certificate authority of the mesh. With configuration from files it has one Unix socket for
//! each node (ruling 9); on a cluster it serves over TLS, and does its duties for users' objects.

mod admission;
mod authority;
mod ca;
mod cluster;
mod counters;
mod duties;
mod lease;
mod sockets;
mod status;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use weft_control::Handle;
use weft_control::writer::Published;
use weft_identity::Ca;

pub(crate) use self::authority::SnapshotAuthority;
use self::cluster::ClusterOptions;
use self::sockets::Sockets;
use crate::config::{self, Purpose, SourceOptions};
use crate::logging::{self, LogFormat};
use crate::shutdown::Signals;

/// The name under which this controller writes into objects.
const MANAGER: &str = "weft-controller";
/// How soon a socket that could not be served is tried again.
const RETRY: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    source: SourceOptions,
    #[command(flatten)]
    cluster: ClusterOptions,
    /// With --config: directory of the CA's key and root certificate; created when missing.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/weft-ca")]
    state_dir: PathBuf,
    /// With --config: directory in which each node has its socket, NODE.sock.
    #[arg(long, value_name = "DIR", default_value = "/run/weft/ca")]
    socket_dir: PathBuf,
    /// Longest life of a certificate, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 86_400)]
    cert_lifetime: u64,
    /// Level of the log, or directives such as `info,weft_identity=debug`.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log_level: String,
    /// How log lines look.
    #[arg(long, value_enum, default_value_t)]
    log_format: LogFormat,
}

/// Runs until a signal asks for the end.
pub(crate) fn run(options: Options) -> anyhow::Result<()> {
    logging::start_lossless(&options.log_level, options.log_format)?;
    // No node has this name: nothing is compiled as local.
    let source = options.source.start("", Purpose::Controller)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match options.source.client() {
        Some(client) => {
            let lifetime = options.lifetime();
            runtime.block_on(cluster::run(options.cluster, client, source, lifetime))
        }
        None => runtime.block_on(with_files(options, source)),
    }
}

impl Options {
    fn lifetime(&self) -> Duration {
        Duration::from_secs(self.cert_lifetime)
    }
}

/// The CA in a directory, with one socket for each node.
async fn with_files(options: Options, source: Handle) -> anyhow::Result<()> {
    if !config::first(&source).await? {
        return Ok(());
    }
    let trust_domain = source.snapshot().mesh().trust_domain.clone();
    let ca = Ca::open(&options.state_dir, &trust_domain)
        .with_context(|| format!("the CA in {} cannot be used", options.state_dir.display()))?
        .with_max_lifetime(options.lifetime());
    make_private_directory(&options.socket_dir)?;
    let published = source.published().clone();
    let authority = Arc::new(SnapshotAuthority::new(published.clone()));
    serve(published, Sockets::new(options.socket_dir, Arc::new(ca), authority)).await
}

/// Creates a directory that only we may enter. One that exists must be ours (or root's), and others must not be
/// able to change what is in it.
pub(crate) fn make_private_directory(path: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, MetadataExt};

    let created = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    created.with_context(|| format!("the directory {} cannot be created", path.display()))?;
    let metadata = std::fs::metadata(path)
        .with_context(|| format!("the directory {} cannot be read", path.display()))?;
    let own = rustix::process::geteuid().as_raw();
    if metadata.uid() != own && metadata.uid() != 0 {
        bail!(
            "the directory {} belongs to user {}, who could exchange what is in it: it must belong to user {own}",
            path.display(),
            metadata.uid()
        );
    }
    let mode = metadata.mode() & 0o7777;
    if mode & 0o022 != 0 {
        bail!(
            "the directory {0} has mode {mode:04o}, so that others could exchange what is in it: run `chmod 700 {0}`",
            path.display()
        );
    }
    Ok(())
}

async fn serve(published: Published, mut sockets: Sockets) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    let mut changes = published.subscribe();
    loop {
        sockets.follow(&sockets::nodes(&published.snapshot()));
        tokio::select! {
            () = signals.next() => break,
            changed = changes.changed() => changed.context("the configuration is not followed any more")?,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
    tracing::info!("stopping");
    tokio::select! {
        () = sockets.stop() => {}
        () = signals.next() => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_directory_that_others_can_change_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("a/b");
        make_private_directory(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o700);
        make_private_directory(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o775)).unwrap();
        let error = make_private_directory(&path).unwrap_err().to_string();
        assert!(error.contains("mode 0775") && error.contains("chmod 700"), "{error}");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        make_private_directory(&path).unwrap();
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(12_345), None).unwrap();
            let error = make_private_directory(&path).unwrap_err().to_string();
            assert!(error.contains("belongs to user 12345"), "{error}");
        }
    }
}
