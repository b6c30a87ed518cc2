//! Settings of `weft agent`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::certificates::CertificateOptions;
use super::cni::CniOptions;
use super::datapath_options::DatapathOptions;
use crate::cli::ADMIN_SOCKET;
use crate::config::SourceOptions;
use crate::logging::LogFormat;

const STATE_DIR: &str = "/var/lib/weft";

#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(super) source: SourceOptions,
    /// Name of this node, as in the pods' spec.nodeName.
    #[arg(long, value_name = "NAME")]
    pub(super) node: String,
    #[command(flatten)]
    pub(super) datapath: DatapathOptions,
    #[command(flatten)]
    pub(super) cni: CniOptions,
    /// Directory of this agent's own state; one agent for each.
    #[arg(long, value_name = "DIR", default_value = STATE_DIR)]
    pub(super) state_dir: PathBuf,
    #[command(flatten)]
    pub(super) certificates: CertificateOptions,
    /// Address of the metrics.
    #[arg(long, value_name = "ADDRESS", default_value = "[::]:15020")]
    pub(super) metrics_addr: SocketAddr,
    /// Address of the readiness check.
    #[arg(long, value_name = "ADDRESS", default_value = "[::]:15021")]
    pub(super) readiness_addr: SocketAddr,
    /// Socket for `weft status`, `dump` and `explain` [default: /run/weft/admin.sock, with another state
    /// directory admin.sock in that].
    #[arg(long, value_name = "PATH")]
    admin_socket: Option<PathBuf>,
    /// Socket of `weft hold`, which keeps connections waiting while the agent is started again after a crash.
    #[arg(long, value_name = "PATH")]
    pub(super) holder_socket: Option<PathBuf>,
    /// Threads that move bytes [default: one for each CPU, at most 8].
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
    /// Directory of the certificates that DestinationRules name: file /a of namespace b is DIR/b/a. Without it no
    /// TLS with certificates is begun for applications.
    #[arg(long, value_name = "DIR")]
    pub(super) tls_files: Option<PathBuf>,
    /// Capture nothing at all, and undo the capture that an earlier agent left.
    #[arg(long)]
    pub(super) break_glass: bool,
    /// Level of the log, or directives such as `info,weft_proxy=debug`.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub(super) log_level: String,
    /// How log lines look.
    #[arg(long, value_enum, default_value_t)]
    pub(super) log_format: LogFormat,
    /// How long connections may go on after the first SIGTERM.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    drain_seconds: u64,
}

impl Options {
    pub(super) fn admin_socket(&self) -> PathBuf {
        match &self.admin_socket {
            Some(given) => given.clone(),
            None if self.state_dir.as_os_str() == STATE_DIR => ADMIN_SOCKET.into(),
            None => self.state_dir.join("admin.sock"),
        }
    }

    pub(super) fn drain(&self) -> Duration {
        Duration::from_secs(self.drain_seconds)
    }

    pub(super) fn workers(&self) -> usize {
        let cpus = || std::thread::available_parallelism().map_or(2, usize::from).min(8);
        self.workers.unwrap_or_else(cpus).max(1)
    }
}
