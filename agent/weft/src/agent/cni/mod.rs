//! The agent's half of the CNI plugin: it answers the plugin ([`server`]), installs it on the node ([`installer`],
//! [`conflist`]) and leaves it the rules for times without an agent ([`mod@follow`]).

mod conflist;
mod follow;
pub(crate) mod installer;
mod server;

use std::path::PathBuf;

use clap::Args;

pub(super) use self::follow::follow;
pub(super) use self::installer::Installation;
pub(super) use self::server::{Server, serve};

/// Where the network plugin of the node is.
#[derive(Debug, Clone, Args)]
pub(crate) struct InstallOptions {
    /// Directory of the node's CNI plugins, into which weft-cni is copied.
    #[arg(long, value_name = "DIR", requires = "cni_conf_dir")]
    cni_bin_dir: Option<PathBuf>,
    /// Directory of the node's CNI configuration, into the first list of which weft-cni is chained.
    #[arg(long, value_name = "DIR", requires = "cni_bin_dir")]
    cni_conf_dir: Option<PathBuf>,
}

/// Settings of the agent's side of the plugin.
#[derive(Debug, Clone, Args)]
pub(crate) struct CniOptions {
    #[command(flatten)]
    install: InstallOptions,
    /// Socket on which weft-cni asks, at the same path on the node [default: /run/weft/cni.sock, where the plugin is
    /// installed].
    #[arg(long, value_name = "PATH")]
    cni_socket: Option<PathBuf>,
    /// The plugin that is copied [default: weft-cni beside this program].
    #[arg(long, value_name = "PATH")]
    cni_plugin: Option<PathBuf>,
}

impl InstallOptions {
    /// Where the plugin is (to be) installed; `None` where there is none.
    pub(crate) fn installation(&self, plugin: Option<PathBuf>, socket: PathBuf) -> Option<Installation> {
        Some(Installation {
            bin_dir: self.cni_bin_dir.clone()?,
            conf_dir: self.cni_conf_dir.clone()?,
            plugin: plugin.unwrap_or_else(beside_this_program),
            socket,
        })
    }
}

impl CniOptions {
    /// The socket, where the plugin is used at all.
    pub(super) fn socket(&self) -> Option<PathBuf> {
        let installed = self.install.cni_bin_dir.is_some();
        self.cni_socket.clone().or_else(|| installed.then(|| weft_cni::protocol::SOCKET.into()))
    }

    pub(super) fn installation(&self) -> Option<Installation> {
        self.install.installation(self.cni_plugin.clone(), self.socket()?)
    }
}

fn beside_this_program() -> PathBuf {
    std::env::current_exe().unwrap_or_default().with_file_name(installer::BINARY)
}
