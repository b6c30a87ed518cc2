//! Whether the agent ends for good: its DaemonSet is gone or going.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use k8s_openapi::api::apps::v1::DaemonSet;
use kube::api::Api;
use kube::{Client, Error};
use tokio::time::timeout;

/// How long the API server may take to answer at the end.
const PATIENCE: Duration = Duration::from_secs(3);
/// Pause between questions at the beginning.
const PAUSE: Duration = Duration::from_secs(5);

/// The DaemonSet to which this agent belongs.
#[derive(Clone)]
pub(crate) struct OwnDaemonSet {
    api: Api<DaemonSet>,
    name: String,
    /// It has been seen, and we may look at it.
    seen: Arc<AtomicBool>,
}

/// What is known of the DaemonSet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    There,
    Gone,
    /// Our own permissions have gone.
    Refused,
    Unknown,
}

impl OwnDaemonSet {
    /// `None` outside of a pod: the downward API gives `POD_NAMESPACE`; `WEFT_DAEMONSET` is the name, where it is not
    /// `weft-agent`.
    pub(crate) fn of_this_pod(client: Client) -> Option<Self> {
        let namespace = std::env::var("POD_NAMESPACE").ok().filter(|namespace| !namespace.is_empty())?;
        let name = std::env::var("WEFT_DAEMONSET").ok().filter(|name| !name.is_empty());
        Some(Self {
            api: Api::namespaced(client, &namespace),
            name: name.unwrap_or_else(|| "weft-agent".into()),
            seen: Arc::default(),
        })
    }

    /// Looks until there is an answer. One that is not there at the beginning is not this agent's.
    pub(crate) async fn notice(self) {
        loop {
            match self.look().await {
                Found::There => return self.seen.store(true, Ordering::Relaxed),
                Found::Gone => return tracing::info!(name = self.name, "this agent belongs to no DaemonSet"),
                Found::Refused => {
                    return tracing::warn!(
                        name = self.name,
                        "the DaemonSet of the agent may not be read (get daemonsets.apps): when it is deleted, pods stay \
                         captured until `weft cleanup` is run on the node"
                    );
                }
                Found::Unknown => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    /// Whether the agent is being removed from the cluster, rather than restarted.
    pub(crate) async fn is_removed(&self) -> bool {
        let found = timeout(PATIENCE, self.look()).await.unwrap_or(Found::Unknown);
        is_removal(self.seen.load(Ordering::Relaxed), found)
    }

    async fn look(&self) -> Found {
        match self.api.get_metadata_opt(&self.name).await {
            Ok(None) => Found::Gone,
            Ok(Some(found)) if found.metadata.deletion_timestamp.is_some() => Found::Gone,
            Ok(Some(_)) => Found::There,
            Err(Error::Api(status)) if matches!(status.code, 401 | 403) => Found::Refused,
            Err(error) => {
                tracing::debug!(%error, "the DaemonSet of the agent cannot be read");
                Found::Unknown
            }
        }
    }
}

/// Who removes everything at once removes our permissions as well, and perhaps first. In doubt nothing is undone.
fn is_removal(seen: bool, found: Found) -> bool {
    seen && match found {
        Found::Gone | Found::Refused => true,
        Found::There | Found::Unknown => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_doubt_nothing_is_undone() {
        for (seen, found, removal) in [
            (true, Found::Gone, true),
            (true, Found::Refused, true),
            (true, Found::There, false),
            (true, Found::Unknown, false),
            (false, Found::Gone, false),
            (false, Found::Refused, false),
        ] {
            assert_eq!(is_removal(seen, found), removal, "{seen} {found:?}");
        }
    }
}
