//! `weft controller`: the certificate authority of the mesh, one Unix socket for each node (ruling 9).

mod authority;
mod sockets;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use weft_control::writer::Published;
use weft_identity::Ca;

pub(crate) use self::authority::SnapshotAuthority;
use self::sockets::Sockets;
use crate::config;
use crate::logging::{self, LogFormat};
use crate::shutdown::Signals;

/// How soon a socket that could not be served is tried again.
const RETRY: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Files or directories with the configuration. May be repeated.
    #[arg(long, value_name = "PATH", required = true)]
    config: Vec<PathBuf>,
    /// Directory of the CA's key and root certificate; created when missing.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/weft-ca")]
    state_dir: PathBuf,
    /// Directory in which each node has its socket, NODE.sock.
    #[arg(long, value_name = "DIR", default_value = "/run/weft/ca")]
    socket_dir: PathBuf,
    /// Longest life of a certificate, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 86_400)]
    cert_lifetime: u64,
    /// Whether Istio's opt-in labels count as well.
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    adopt_istio_labels: bool,
    /// Level of the log, or directives such as `info,weft_identity=debug`.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log_level: String,
    /// How log lines look.
    #[arg(long, value_enum, default_value_t)]
    log_format: LogFormat,
}

/// Runs until a signal asks for the end.
pub(crate) fn run(options: Options) -> anyhow::Result<()> {
    logging::start(&options.log_level, options.log_format)?;
    // No node has this name: nothing is compiled as local.
    let source = config::watch(&options.config, "", options.adopt_istio_labels)?;
    let trust_domain = source.snapshot().mesh().trust_domain.clone();
    let ca = Ca::open(&options.state_dir, &trust_domain)
        .with_context(|| format!("the CA in {} cannot be used", options.state_dir.display()))?
        .with_max_lifetime(Duration::from_secs(options.cert_lifetime));
    make_private_directory(&options.socket_dir)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let published = source.published().clone();
    let authority = Arc::new(SnapshotAuthority::new(published.clone()));
    let sockets = Sockets::new(options.socket_dir, Arc::new(ca), authority);
    runtime.block_on(serve(published, sockets))
}

/// Creates a directory that only we may enter; one that exists is left as it is.
pub(crate) fn make_private_directory(path: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt;

    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("the directory {} cannot be created", path.display()))
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
