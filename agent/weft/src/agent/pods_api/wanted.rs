//! What the API server is to be told about each pod: pure, so that every case can be tested.

use std::collections::BTreeMap;

use weft_core::Snapshot;
use weft_core::names;
use weft_core::resource::NamespacedName;
use weft_core::snapshot::{LocalWorkload, Membership};

use crate::agent::node::{NodeState, PodState};
use crate::agent::plan::{OPTED_OUT, is_opted_out};

/// All annotations that the agent writes.
pub(super) const KEYS: [&str; 3] = [names::STATE, names::STATE_REASON, names::ISTIO_REDIRECTION];

/// The annotations of one pod that are the agent's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Annotations(BTreeMap<&'static str, String>);

/// An Event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) reason: &'static str,
    pub(super) note: String,
}

/// What one pod is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) uid: Option<String>,
    /// `None`: what it has, as nothing is decided yet.
    pub(super) annotations: Option<Annotations>,
    pub(super) event: Option<Told>,
}

impl Annotations {
    /// Those that a pod has.
    pub(super) fn of(all: &BTreeMap<String, String>) -> Self {
        Self(KEYS.iter().filter_map(|key| Some((*key, all.get(*key)?.clone()))).collect())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    fn enrolled() -> Self {
        Self(BTreeMap::from([
            (names::STATE, names::STATE_ENROLLED.to_owned()),
            (names::ISTIO_REDIRECTION, names::ISTIO_REDIRECTION_ENABLED.to_owned()),
        ]))
    }

    fn because(state: &str, reason: &str) -> Self {
        Self(BTreeMap::from([(names::STATE, state.to_owned()), (names::STATE_REASON, reason.to_owned())]))
    }
}

impl Wanted {
    /// All pods of this node.
    pub(super) fn all(snapshot: &Snapshot, state: &NodeState) -> BTreeMap<NamespacedName, Self> {
        let local = snapshot.local().iter();
        let all = local.map(|local| {
            let key = &local.workload.key;
            let wanted = if is_opted_out(&local.workload, snapshot) {
                Self::opted_out(local)
            } else {
                Self::of(local, state.pods.get(key))
            };
            (key.clone(), wanted)
        });
        all.collect()
    }

    fn opted_out(local: &LocalWorkload) -> Self {
        let annotations = Some(Annotations::because(names::STATE_EXCLUDED, OPTED_OUT));
        Self { uid: local.uid.as_deref().map(str::to_owned), annotations, event: None }
    }

    fn of(local: &LocalWorkload, state: Option<&PodState>) -> Self {
        let uid = local.uid.as_deref().map(str::to_owned);
        let with = |annotations, event| Self { uid: uid.clone(), annotations, event };
        match &local.workload.membership {
            Membership::OutOfMesh => return with(Some(Annotations::default()), None),
            Membership::Excluded(why) => {
                return with(Some(Annotations::because(names::STATE_EXCLUDED, why)), None);
            }
            Membership::InMesh => {}
        }
        let reason = state.and_then(|state| state.reason.as_deref()).unwrap_or_default();
        match state.map(|state| state.state) {
            Some("enrolled") if local.bypass => {
                let note = "capture is off (annotation weft.dev/mesh: bypass): its connections are neither encrypted \
                            nor authorised";
                let event = Told { reason: "CaptureBypassed", note: note.into() };
                with(Some(Annotations::because(names::STATE_EXCLUDED, note)), Some(event))
            }
            Some("enrolled") => with(Some(Annotations::enrolled()), None),
            Some("failed") => {
                let event =
                    Told { reason: "NotEnrolled", note: format!("the pod is not in the mesh: {reason}") };
                with(Some(Annotations::because(names::STATE_FAILED, reason)), Some(event))
            }
            // On its way in, or not looked at yet.
            Some(_) | None => with(None, None),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const YAML: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {weft.dev/mesh: enabled}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, uid: u-1}
---
apiVersion: v1
kind: Pod
metadata: {name: bypassed, namespace: shop, annotations: {weft.dev/mesh: bypass}}
---
apiVersion: v1
kind: Pod
metadata: {name: out, namespace: shop, labels: {weft.dev/mesh: disabled}}
---
apiVersion: v1
kind: Pod
metadata: {name: host, namespace: shop}
spec: {hostNetwork: true}
---
apiVersion: v1
kind: Pod
metadata: {name: far, namespace: elsewhere}
";

    fn wanted(states: &[(&str, &'static str)]) -> BTreeMap<String, Wanted> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("all.yaml");
        std::fs::write(&path, YAML).unwrap();
        let snapshot: Arc<Snapshot> = crate::config::load(&[path]).unwrap().snapshot;
        let pods = states.iter().map(|(pod, state)| {
            let pod_state =
                PodState { state, reason: Some("no address".into()), pending_since: None, netns: None };
            (NamespacedName::new("shop", *pod), pod_state)
        });
        let state = NodeState { pods: pods.collect(), ..NodeState::default() };
        let all = Wanted::all(&snapshot, &state).into_iter();
        all.map(|(key, wanted)| (key.name.to_string(), wanted)).collect()
    }

    fn state_of(wanted: &Wanted) -> Option<&str> {
        wanted.annotations.as_ref().and_then(|annotations| annotations.get(names::STATE))
    }

    #[test]
    fn an_enrolled_pod_is_shown_to_consoles() {
        let wanted = wanted(&[("web", "enrolled")]);
        let annotations = wanted["web"].annotations.as_ref().unwrap();
        assert_eq!(annotations.get(names::STATE), Some("enrolled"));
        assert_eq!(annotations.get(names::ISTIO_REDIRECTION), Some("enabled"));
        assert_eq!(annotations.get(names::STATE_REASON), None);
        assert_eq!(wanted["web"].uid.as_deref(), Some("u-1"));
        assert_eq!(wanted["web"].event, None);
    }

    #[test]
    fn failures_and_exclusions_have_a_reason_and_only_failures_an_event() {
        let wanted = wanted(&[("web", "failed"), ("host", "excluded")]);
        assert_eq!(state_of(&wanted["web"]), Some("failed"));
        assert!(wanted["web"].event.as_ref().unwrap().note.contains("no address"));
        assert_eq!(state_of(&wanted["host"]), Some("excluded"));
        let reason = wanted["host"].annotations.as_ref().unwrap().get(names::STATE_REASON).unwrap();
        assert!(reason.contains("hostNetwork"), "{reason}");
        assert_eq!(wanted["host"].event, None);
    }

    #[test]
    fn a_pod_that_keeps_out_of_its_namespaces_mesh_says_so() {
        let wanted = wanted(&[]);
        assert_eq!(state_of(&wanted["out"]), Some("excluded"));
        let reason = wanted["out"].annotations.as_ref().unwrap().get(names::STATE_REASON).unwrap();
        assert!(reason.contains("weft.dev/mesh: disabled"), "{reason}");
        assert_eq!(wanted["out"].event, None);
    }

    #[test]
    fn break_glass_is_loud() {
        let wanted = wanted(&[("bypassed", "enrolled")]);
        assert_eq!(state_of(&wanted["bypassed"]), Some("excluded"));
        assert_eq!(wanted["bypassed"].event.as_ref().unwrap().reason, "CaptureBypassed");
    }

    #[test]
    fn pods_outside_have_nothing_and_undecided_ones_what_they_have() {
        let wanted = wanted(&[("web", "enrolling"), ("far", "excluded")]);
        assert_eq!(wanted["far"].annotations, Some(Annotations::default()));
        assert_eq!(wanted["web"].annotations, None);
        assert_eq!(wanted["bypassed"].annotations, None);
    }

    #[test]
    fn only_our_own_annotations_are_read() {
        let all = BTreeMap::from([
            ("other".to_owned(), "x".to_owned()),
            (names::STATE.to_owned(), "enrolled".to_owned()),
        ]);
        let read = Annotations::of(&all);
        assert_eq!(read.get(names::STATE), Some("enrolled"));
        assert_eq!(read.get("other"), None);
        assert!(!read.is_empty());
    }
}
