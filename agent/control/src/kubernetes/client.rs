//! The client of the Kubernetes API.

use std::path::PathBuf;
use std::time::Duration;

use http::HeaderValue;
use http::header::USER_AGENT;
use kube::config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};

/// A server that takes longer than this to accept a connection is away.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection that takes nothing for so long is dead.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// How to find the API server.
#[derive(Debug, Clone, Default)]
pub struct ClientOptions {
    /// A kubeconfig file.
    pub kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig; without `kubeconfig` of the user's own one.
    pub context: Option<String>,
    /// With neither of the two and outside a cluster, the user's own kubeconfig counts (`$KUBECONFIG`,
    /// `~/.kube/config`). For tools that people call: an agent must not depend on whose home it runs in.
    pub infer: bool,
}

/// There is no way to the API server.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Not in a pod, and no kubeconfig is given.
    #[error(
        "no source of configuration: this is not a pod of a cluster, and neither --config nor --kubeconfig is given"
    )]
    OutsideCluster(#[source] InClusterError),
    /// The kubeconfig cannot be used.
    #[error("the kubeconfig{} cannot be used; check --kubeconfig and --context", of(.path.as_ref()))]
    Kubeconfig {
        /// The file, if one was named.
        path: Option<PathBuf>,
        /// Why.
        source: KubeconfigError,
    },
    /// The credentials cannot be used.
    #[error("the credentials for the API server cannot be used")]
    Credentials(#[source] kube::Error),
}

fn of(path: Option<&PathBuf>) -> String {
    path.map(|path| format!(" {}", path.display())).unwrap_or_default()
}

/// A client that retries requests which the server was too busy for.
///
/// Must be called on the runtime that is going to use it.
///
/// # Errors
///
/// When no API server is configured. Whether it answers is not tried.
pub async fn client(options: &ClientOptions) -> Result<Client, ClientError> {
    Client::try_from(config(options).await?).map_err(ClientError::Credentials)
}

/// A client for the watches, which have their own idea of when to try again.
pub(super) async fn without_retries(options: &ClientOptions) -> Result<Client, ClientError> {
    let mut config = config(options).await?;
    config.default_retry = false;
    Client::try_from(config).map_err(ClientError::Credentials)
}

async fn config(options: &ClientOptions) -> Result<Config, ClientError> {
    let mut config = match (&options.kubeconfig, &options.context) {
        (None, None) => match (Config::incluster(), options.infer) {
            (Ok(config), _) => config,
            (Err(_), true) => from_kubeconfig(options).await?,
            (Err(error), false) => return Err(ClientError::OutsideCluster(error)),
        },
        (_, _) => from_kubeconfig(options).await?,
    };
    let agent = HeaderValue::from_static(concat!("weft/", env!("CARGO_PKG_VERSION")));
    config.headers.push((USER_AGENT, agent));
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.write_timeout = Some(WRITE_TIMEOUT);
    Ok(config)
}

async fn from_kubeconfig(options: &ClientOptions) -> Result<Config, ClientError> {
    let failed = |source| ClientError::Kubeconfig { path: options.kubeconfig.clone(), source };
    let chosen = KubeConfigOptions { context: options.context.clone(), ..KubeConfigOptions::default() };
    match &options.kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path).map_err(failed)?;
            Config::from_custom_kubeconfig(file, &chosen).await.map_err(failed)
        }
        None => Config::from_kubeconfig(&chosen).await.map_err(failed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KUBECONFIG: &str = r#"
apiVersion: v1
kind: Config
clusters: [{name: a, cluster: {server: "https://10.0.0.1:6443"}}, {name: b, cluster: {server: "https://10.0.0.2:6443"}}]
users: [{name: me, user: {token: secret}}]
contexts: [{name: a, context: {cluster: a, user: me}}, {name: b, context: {cluster: b, user: me}}]
current-context: a
"#;

    #[tokio::test]
    async fn the_context_chooses_the_cluster() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), KUBECONFIG).unwrap();
        let mut options =
            ClientOptions { kubeconfig: Some(file.path().to_owned()), ..ClientOptions::default() };
        assert_eq!(config(&options).await.unwrap().cluster_url.host(), Some("10.0.0.1"));
        options.context = Some("b".into());
        let config_of_b = config(&options).await.unwrap();
        assert_eq!(config_of_b.cluster_url.host(), Some("10.0.0.2"));
        assert!(
            config_of_b
                .headers
                .iter()
                .any(|(name, value)| { name == USER_AGENT && value.to_str().unwrap().starts_with("weft/") })
        );
        options.context = Some("c".into());
        let error = config(&options).await.unwrap_err();
        assert!(error.to_string().contains("--context"), "{error}");
    }

    #[tokio::test]
    async fn outside_a_cluster_something_must_be_given() {
        if std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() {
            return;
        }
        let error = client(&ClientOptions::default()).await.err().unwrap();
        assert!(
            matches!(error, ClientError::OutsideCluster(_)) && error.to_string().contains("--kubeconfig")
        );
    }
}
