//! Where the agent's certificates come from: a CA in the cluster, the socket of a CA beside it, or itself.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use weft_control::writer::Published;
use weft_identity::csr_api::{NetworkCaClient, NetworkCaOptions, UnixCaClient};
use weft_identity::{Ca, CaClient, CertStore, EmbeddedCa};

use crate::controller::SnapshotAuthority;

/// Our own controller, under the name that its manifest gives it.
const CONTROLLER: &str = "https://weft-controller.weft-system.svc:15012";

/// Settings of the certificates.
#[derive(Debug, Clone, Args)]
pub(super) struct CertificateOptions {
    /// CA in the cluster that speaks Istio's CSR API: istiod, istio-csr or our controller, which is the default
    /// without --config, at port 15012 of its Service.
    #[arg(long, value_name = "URL", conflicts_with_all = ["ca_socket", "embedded_ca"])]
    ca_address: Option<String>,
    /// File with the token that tells the CA who we are.
    #[arg(long, value_name = "PATH", default_value = "/var/run/secrets/weft/token")]
    ca_token_file: PathBuf,
    /// File with the CA's root certificates. Peers with certificates of these roots are trusted as well.
    #[arg(long, value_name = "PATH", default_value = "/var/run/secrets/weft-ca/root-cert.pem")]
    ca_root_file: PathBuf,
    /// Name in the CA's certificate [default: the host of its address].
    #[arg(long, value_name = "NAME")]
    ca_server_name: Option<String>,
    /// Name of this cluster, for a CA that serves several.
    #[arg(long, value_name = "NAME", default_value = "Kubernetes")]
    ca_cluster_id: String,
    /// Socket of the certificate authority [default with --config: /run/weft/ca/NODE.sock].
    #[arg(long, value_name = "PATH", conflicts_with = "embedded_ca")]
    ca_socket: Option<PathBuf>,
    /// Be the certificate authority as well: for an agent that is alone.
    #[arg(long)]
    embedded_ca: bool,
    /// Life of certificates in seconds; they are renewed at half of it.
    #[arg(long, value_name = "SECONDS", default_value_t = 86_400)]
    cert_lifetime: u64,
}

/// Which CA is asked.
#[derive(Debug, PartialEq, Eq)]
enum Source {
    Embedded,
    Socket(PathBuf),
    Network(String),
}

impl CertificateOptions {
    fn source(&self, node: &str, on_cluster: bool) -> Source {
        match (&self.ca_address, &self.ca_socket) {
            (Some(address), _) => Source::Network(address.clone()),
            (None, Some(socket)) => Source::Socket(socket.clone()),
            (None, None) if self.embedded_ca => Source::Embedded,
            (None, None) if on_cluster => Source::Network(CONTROLLER.to_owned()),
            (None, None) => Source::Socket(format!("/run/weft/ca/{node}.sock").into()),
        }
    }

    fn lifetime(&self) -> Duration {
        Duration::from_secs(self.cert_lifetime)
    }

    /// The store of this node's certificates; `on_cluster` says whether the configuration comes from an API server.
    ///
    /// # Errors
    /// The embedded CA is not usable, or the address of the one in the cluster is malformed.
    pub(super) fn store(
        &self,
        config: &Published,
        (node, state_dir): (&str, &Path),
        on_cluster: bool,
    ) -> anyhow::Result<CertStore> {
        let snapshot = config.snapshot();
        let mesh = snapshot.mesh();
        let source = self.source(node, on_cluster);
        let client: Arc<dyn CaClient> = match &source {
            Source::Embedded => {
                let dir = state_dir.join("ca");
                let ca = Ca::open(&dir, &mesh.trust_domain)
                    .with_context(|| format!("the CA in {} cannot be used", dir.display()))?
                    .with_max_lifetime(self.lifetime());
                let authority = Arc::new(SnapshotAuthority::new(config.clone()));
                Arc::new(EmbeddedCa::new(Arc::new(ca), authority, node.into()))
            }
            Source::Socket(socket) => Arc::new(UnixCaClient::new(socket).with_lifetime(self.lifetime())),
            Source::Network(address) => Arc::new(self.network(address)?),
        };
        let aliases = mesh.trust_domain_aliases.clone();
        let store = CertStore::with_trust_domain_aliases(client, tokio::runtime::Handle::current(), aliases);
        if matches!(source, Source::Network(_)) {
            store.follow_roots(&self.ca_root_file);
        }
        Ok(store)
    }

    fn network(&self, address: &str) -> anyhow::Result<NetworkCaClient> {
        let options = NetworkCaOptions {
            address: address.to_owned(),
            token_file: self.ca_token_file.clone(),
            root_file: self.ca_root_file.clone(),
            server_name: self.ca_server_name.clone(),
            cluster_id: self.ca_cluster_id.clone(),
            lifetime: self.lifetime(),
        };
        NetworkCaClient::new(options).context("the CA cannot be asked; see --ca-address and --ca-server-name")
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        options: CertificateOptions,
    }

    fn source(args: &[&str], on_cluster: bool) -> Source {
        let args = std::iter::once("agent").chain(args.iter().copied());
        Command::try_parse_from(args).unwrap().options.source("a", on_cluster)
    }

    #[test]
    fn the_ca_is_where_it_is_said_to_be_else_where_the_configuration_comes_from() {
        let socket = |path: &str| Source::Socket(path.into());
        assert_eq!(source(&[], false), socket("/run/weft/ca/a.sock"));
        assert_eq!(source(&[], true), Source::Network(CONTROLLER.to_owned()));
        for on_cluster in [false, true] {
            assert_eq!(source(&["--ca-socket=/x.sock"], on_cluster), socket("/x.sock"));
            assert_eq!(source(&["--embedded-ca"], on_cluster), Source::Embedded);
            let istiod = "https://istiod.istio-system.svc:15012";
            let address = format!("--ca-address={istiod}");
            assert_eq!(source(&[&address], on_cluster), Source::Network(istiod.to_owned()));
        }
        assert!(Command::try_parse_from(["agent", "--ca-address=x", "--embedded-ca"]).is_err());
    }
}
