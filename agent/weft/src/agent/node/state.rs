//! What the reconciler has achieved, as status and metrics show it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use weft_core::Snapshot;
use weft_core::kernel_view::LearnedPorts;
use weft_core::resource::NamespacedName;

use super::Node;
use crate::agent::plan::{Place, Pod, Stage};

/// One pod for status and metrics.
#[derive(Debug, Clone)]
pub(crate) struct PodState {
    /// `enrolled`, `enrolling`, `excluded` or `failed`.
    pub(crate) state: &'static str,
    pub(crate) reason: Option<String>,
    /// Since when it has been waiting to be enrolled.
    pub(crate) pending_since: Option<Instant>,
    /// Path of the network namespace, where it was named.
    pub(crate) netns: Option<PathBuf>,
}

/// What the reconciler has achieved.
#[derive(Debug, Clone, Default)]
pub(crate) struct NodeState {
    /// Revision of the snapshot that kernel and proxy follow; `None` before the first one.
    pub(crate) revision: Option<u64>,
    pub(crate) pods: BTreeMap<NamespacedName, PodState>,
    pub(crate) learned: LearnedPorts,
    /// The last failure to write the kernel's maps.
    pub(crate) failure: Option<String>,
}

impl Node {
    pub(super) fn publish(&self, snapshot: &Snapshot) {
        let pods = self.pods.0.iter().map(|(key, pod)| (key.clone(), PodState::of(pod))).collect();
        let state = NodeState {
            revision: Some(snapshot.revision()),
            pods,
            learned: self.learned.clone(),
            failure: self.state.load().failure.clone(),
        };
        self.state.store(Arc::new(state));
        self.changed.send_replace(());
    }
}

impl PodState {
    fn of(pod: &Pod) -> Self {
        let netns = pod.target.as_ref().and_then(|target| match &target.place {
            Place::Path(path) => Some(path.clone()),
            Place::Processes => None,
        });
        let new = |state, reason: Option<&str>| Self {
            state,
            reason: reason.map(Into::into),
            pending_since: None,
            netns: netns.clone(),
        };
        match &pod.stage {
            Stage::Pending(since) => Self { pending_since: Some(*since), ..new("enrolling", None) },
            Stage::Beginning { reason, since, retry, .. } => {
                // Without an address it is the kubelet's turn.
                Self { pending_since: retry.map(|_| *since), ..new("enrolling", Some(reason)) }
            }
            Stage::Enrolled => new("enrolled", None),
            Stage::Leaving(_) => new("excluded", Some("it leaves the mesh; open connections may end")),
            Stage::Failed { reason, .. } => new("failed", Some(reason)),
            Stage::Excluded(reason) => new("excluded", Some(reason)),
        }
    }
}
