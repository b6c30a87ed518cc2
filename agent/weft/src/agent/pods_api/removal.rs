//! Whether the agent leaves its node for good: its DaemonSet is gone or going, or does not want this node any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, ListParams};
use kube::{Client, Error};
use tokio::time::timeout;

use super::selection::selects;

/// How long the API server may take to answer at the end.
const PATIENCE: Duration = Duration::from_secs(3);
/// Pause between questions at the beginning.
const PAUSE: Duration = Duration::from_secs(5);

/// The DaemonSet to which this agent belongs.
#[derive(Clone)]
pub(crate) struct OwnDaemonSet {
    client: Client,
    namespace: String,
    name: String,
    /// The node, and the pod where it is known.
    node: String,
    pod: Option<String>,
    /// It has been seen, and we may look at it.
    seen: Arc<AtomicBool>,
}

/// Why the DaemonSet could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Missing {
    Gone,
    /// Our own permissions have gone.
    Refused,
    Unknown,
}

impl OwnDaemonSet {
    /// `None` outside of a pod: the downward API gives `POD_NAMESPACE` and `POD_NAME`; `WEFT_DAEMONSET` is the name,
    /// where it is not `weft-agent`.
    pub(crate) fn of_this_pod(client: Client, node: &str) -> Option<Self> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        Some(Self {
            client,
            namespace: variable("POD_NAMESPACE")?,
            name: variable("WEFT_DAEMONSET").unwrap_or_else(|| "weft-agent".into()),
            node: node.to_owned(),
            pod: variable("POD_NAME"),
            seen: Arc::default(),
        })
    }

    /// Looks until there is an answer. One that is not there at the beginning is not this agent's.
    pub(crate) async fn notice(self) {
        loop {
            match self.look().await {
                Ok(_) => return self.seen.store(true, Ordering::Relaxed),
                Err(Missing::Gone) => {
                    return tracing::info!(name = self.name, "this agent belongs to no DaemonSet");
                }
                Err(Missing::Refused) => {
                    return tracing::warn!(
                        name = self.name,
                        "the DaemonSet of the agent may not be read (get daemonsets.apps): when it is deleted, pods stay \
                         captured until `weft cleanup` is run on the node"
                    );
                }
                Err(Missing::Unknown) => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    /// Whether the agent is being removed from its node, rather than restarted.
    pub(crate) async fn is_removed(&self) -> bool {
        let fate = timeout(PATIENCE, self.fate()).await.unwrap_or(Err(Missing::Unknown));
        is_removal(self.seen.load(Ordering::Relaxed), fate)
    }

    /// Whether a DaemonSet that is there takes its pod from this node.
    async fn fate(&self) -> Result<bool, Missing> {
        let set = self.look().await?;
        self.is_taken_from(&set).await.map_err(|error| unknown(&error))
    }

    async fn look(&self) -> Result<DaemonSet, Missing> {
        let sets: Api<DaemonSet> = Api::namespaced(self.client.clone(), &self.namespace);
        match sets.get_opt(&self.name).await {
            Ok(None) => Err(Missing::Gone),
            Ok(Some(set)) if set.metadata.deletion_timestamp.is_some() => Err(Missing::Gone),
            Ok(Some(set)) => Ok(set),
            Err(Error::Api(status)) if matches!(status.code, 401 | 403) => Err(Missing::Refused),
            Err(error) => Err(unknown(&error)),
        }
    }

    /// Whether our pod is going and will have no successor, as the DaemonSet does not want the node any more. Both are
    /// asked for as lists, which is what the agent may do.
    async fn is_taken_from(&self, set: &DaemonSet) -> Result<bool, Error> {
        let Some(spec) = set.spec.as_ref().and_then(|set| set.template.spec.as_ref()) else {
            return Ok(false);
        };
        let Some(pod) = &self.pod else { return Ok(false) };
        let named = |name: &str| ListParams::default().fields(&format!("metadata.name={name}"));
        let nodes = Api::<Node>::all(self.client.clone()).list(&named(&self.node)).await?;
        // A node that is not there says nothing.
        if nodes.items.iter().all(|node| selects(spec, node)) {
            return Ok(false);
        }
        let pods = Api::<Pod>::namespaced(self.client.clone(), &self.namespace);
        let pods = pods.list_metadata(&named(pod)).await?;
        Ok(pods.items.iter().all(|pod| pod.metadata.deletion_timestamp.is_some()))
    }
}

fn unknown(error: &Error) -> Missing {
    tracing::debug!(%error, "the DaemonSet of the agent cannot be read");
    Missing::Unknown
}

/// Who removes everything at once removes our permissions as well, and perhaps first. In doubt nothing is undone.
fn is_removal(seen: bool, fate: Result<bool, Missing>) -> bool {
    match fate {
        Ok(taken) => taken,
        Err(Missing::Gone | Missing::Refused) => seen,
        Err(Missing::Unknown) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_doubt_nothing_is_undone() {
        for (seen, fate, removal) in [
            (true, Err(Missing::Gone), true),
            (true, Err(Missing::Refused), true),
            (true, Ok(false), false),
            (true, Ok(true), true),
            (true, Err(Missing::Unknown), false),
            (false, Err(Missing::Gone), false),
            (false, Err(Missing::Refused), false),
        ] {
            assert_eq!(is_removal(seen, fate), removal, "{seen} {fate:?}");
        }
    }
}
