//! The certificate authority on a cluster: its key in a Secret that all replicas share, its roots in a ConfigMap for
//! the agents, its API over TLS for whoever holds a token of the API server.
//!
//! Every replica serves; nothing here depends on who leads.

mod metrics;
mod reviews;
mod roots;
mod secret;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use kube::Client;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use weft_identity::csr_api::{Access, Counters, NetworkServer, NodeAuthority, ServiceAccount};
use weft_identity::{IdentityError, LiveCa, ServingTls};

use self::secret::{Secrets, State};

/// Settings of the certificate authority on a cluster.
#[derive(Debug, Clone, Args)]
pub(super) struct CaOptions {
    /// Address at which agents ask for certificates.
    #[arg(long, value_name = "ADDRESS", default_value = "[::]:15012")]
    ca_listen: SocketAddr,
    /// Audience that the agents' tokens must be made for.
    #[arg(long, value_name = "NAME", default_value = "weft-ca")]
    ca_audience: String,
    /// Service accounts of node agents, NAMESPACE/NAME: they may ask for certificates of the pods of their node
    /// [default: weft-agent in the controller's namespace].
    #[arg(long, value_name = "ACCOUNT", value_delimiter = ',')]
    ca_trusted_node_accounts: Vec<ServiceAccount>,
    /// Secret with the CA's key and certificates; created when missing.
    #[arg(long, value_name = "NAME", default_value = "weft-ca")]
    ca_secret: String,
    /// ConfigMap in which the roots are published.
    #[arg(long, value_name = "NAME", default_value = "weft-ca-root-cert")]
    ca_root_config_map: String,
}

impl CaOptions {
    fn secrets(&self, around: &Surroundings) -> Secrets {
        Secrets::new(&around.client, (&around.namespace, &self.ca_secret), &around.trust_domain)
            .with_max_lifetime(around.max_lifetime)
    }

    fn node_accounts(&self, namespace: &str) -> BTreeSet<ServiceAccount> {
        if self.ca_trusted_node_accounts.is_empty() {
            let (namespace, name) = (namespace.to_owned(), "weft-agent".to_owned());
            return BTreeSet::from([ServiceAccount { namespace, name }]);
        }
        self.ca_trusted_node_accounts.iter().cloned().collect()
    }
}

/// What the CA needs of the rest of the controller.
pub(super) struct Surroundings {
    pub(super) client: Client,
    pub(super) namespace: String,
    pub(super) trust_domain: String,
    pub(super) max_lifetime: Duration,
    /// DNS names under which agents ask.
    pub(super) names: Vec<String>,
    pub(super) authority: Arc<dyn NodeAuthority>,
}

/// What is read at a scrape.
#[derive(Clone)]
pub(super) struct Readings {
    ca: Arc<LiveCa>,
    state: Arc<State>,
    counters: Arc<Counters>,
}

/// A CA that serves.
pub(super) struct Serving {
    readings: Readings,
    server: JoinHandle<Result<(), IdentityError>>,
    followers: Vec<JoinHandle<()>>,
    stop: oneshot::Sender<()>,
}

impl Serving {
    /// Reads or creates the Secret and serves what is in it. Waits for as long as the API server is away.
    ///
    /// # Errors
    /// The Secret is not usable, we may not read or create it, or the address cannot be bound.
    pub(super) async fn start(options: &CaOptions, around: Surroundings) -> anyhow::Result<Self> {
        let listener = crate::agent::http::bind("certificates", options.ca_listen).await?;
        let mut secrets = options.secrets(&around);
        let ca = Arc::new(LiveCa::new(secrets.open().await?));
        let state = secrets.state();
        let map = (around.namespace.clone(), options.ca_root_config_map.clone());
        let followers = vec![
            tokio::spawn(secrets.follow(Arc::clone(&ca))),
            tokio::spawn(roots::publish(around.client.clone(), map, Arc::clone(&ca))),
        ];
        let access = Access {
            authenticator: Arc::new(reviews::Reviews::new(around.client.clone(), &options.ca_audience)),
            authority: Arc::clone(&around.authority),
            node_accounts: options.node_accounts(&around.namespace),
        };
        let tls = ServingTls::new(Arc::clone(&ca), around.names, &["h2"])
            .context("there is no certificate for the CA's own server")?;
        let server = NetworkServer::new(Arc::clone(&ca), access);
        let readings = Readings { ca, state, counters: server.counters() };
        let (stop, server) = spawn(server, listener, tls);
        Ok(Self { readings, server, followers, stop })
    }

    /// The CA of the moment.
    pub(super) fn ca(&self) -> Arc<LiveCa> {
        Arc::clone(&self.readings.ca)
    }

    /// For metrics.
    pub(super) fn readings(&self) -> Readings {
        self.readings.clone()
    }

    /// Waits until serving has ended, which it does not by itself.
    pub(super) async fn ended(&mut self) -> anyhow::Error {
        match (&mut self.server).await {
            Ok(Ok(())) => anyhow::anyhow!("the CA's server has ended"),
            Ok(Err(error)) => error.into(),
            Err(error) => error.into(),
        }
    }

    /// Answers what is being asked, then ends.
    pub(super) async fn stop(self) {
        // A server that has ended does not listen any more.
        let _ = self.stop.send(());
        let _ = self.server.await;
        for follower in self.followers {
            follower.abort();
        }
    }
}

type Server = JoinHandle<Result<(), IdentityError>>;

fn spawn(
    server: NetworkServer,
    listener: TcpListener,
    tls: Arc<ServingTls>,
) -> (oneshot::Sender<()>, Server) {
    let (stop, stopped) = oneshot::channel::<()>();
    // The sender is dropped or used: both mean the end.
    let task = tokio::spawn(server.serve(listener, tls, async move { drop(stopped.await) }));
    (stop, task)
}
