//! What is to be done about the pods of this node: pure, so that every case can be tested.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use weft_core::Snapshot;
use weft_core::resource::NamespacedName;
use weft_core::snapshot::{LocalWorkload, Membership, Workload};

use super::places::Places;

/// How long connections of a pod that leaves the mesh may keep its route (ruling 8).
pub(crate) const GRACE: Duration = Duration::from_secs(30);
/// First and longest pause before an enrolment that failed is tried again.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// First and longest pause while a pod begins: its process or address may be there in a moment.
const SOON: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// How long a pod may take to begin before that counts as a failure.
const BEGINNING: Duration = Duration::from_secs(10);

/// Where a pod's network namespace is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// At this path: the configuration or the network plugin says so.
    Path(PathBuf),
    /// That of its processes.
    Processes,
}

/// A pod that is to be enrolled.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) uid: Option<Arc<str>>,
    pub(crate) place: Place,
    pub(crate) ips: Vec<IpAddr>,
}

/// Why an enrolment did not work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// What is missing may be there in a moment.
    NotYet(String),
    /// Something is wrong.
    Wrong(String),
}

/// Why a pod is outside of the mesh while its namespace is in it.
pub(crate) const OPTED_OUT: &str = "its own label keeps it out of the mesh (weft.dev/mesh: disabled)";

/// Whether a pod, and not its namespace, says that it is outside.
pub(crate) fn is_opted_out(workload: &Workload, snapshot: &Snapshot) -> bool {
    workload.membership == Membership::OutOfMesh
        && snapshot.opted_namespaces().contains(&workload.key.namespace)
}

/// What the configuration wants of one pod.
#[derive(Debug, Clone)]
pub(crate) enum Wanted {
    /// In the mesh.
    Enrol(Target),
    /// In the mesh, but it has not begun yet: what is missing.
    NotBegun(String),
    /// In the mesh by its labels, but it cannot be enrolled: the reason.
    Excluded(String),
    /// In the mesh, but something is missing in the configuration: the reason.
    Incomplete(String),
}

impl Wanted {
    /// `None`: nothing is wanted of this pod.
    pub(crate) fn of(local: &LocalWorkload, places: &Places) -> Option<Self> {
        match &local.workload.membership {
            Membership::OutOfMesh => None,
            Membership::Excluded(why) => Some(Self::Excluded(why.to_string())),
            Membership::InMesh => Some(Self::in_mesh(local, places)),
        }
    }

    fn in_mesh(local: &LocalWorkload, places: &Places) -> Self {
        let ips = local.workload.ips.to_vec();
        let target = |place, ips| Self::Enrol(Target { uid: local.uid.clone(), place, ips });
        if let Some(netns) = &local.netns {
            return target(Place::Path(netns.clone()), ips);
        }
        if let Some(told) = places.of(&local.workload.key, local.uid.as_deref()) {
            // The API shows addresses later than the plugin, and those of a sandbox that is gone for longer.
            let ips = if told.ips.is_empty() { ips } else { told.ips.clone() };
            return target(Place::Path(told.netns.clone()), ips);
        }
        match (&local.uid, ips.is_empty()) {
            (Some(_), false) => target(Place::Processes, ips),
            (Some(_), true) => Self::NotBegun("it has no address yet".into()),
            (None, _) => Self::Incomplete(format!(
                "the annotation {} does not name its network namespace, and without metadata.uid it cannot be found",
                weft_core::names::NETNS
            )),
        }
    }

    /// All pods of this node of which something is wanted.
    pub(crate) fn all(snapshot: &Snapshot, places: &Places) -> BTreeMap<NamespacedName, Self> {
        let local = snapshot.local().iter();
        local.filter_map(|local| Some((local.workload.key.clone(), Self::of(local, places)?))).collect()
    }
}

/// Where one pod is.
#[derive(Debug, Clone)]
pub(crate) enum Stage {
    /// To be enrolled since then.
    Pending(Instant),
    /// It has not begun yet: what is missing, since when, how often it was looked, when to look again (`None`: when
    /// the configuration changes).
    Beginning { reason: String, since: Instant, attempts: u32, retry: Option<Instant> },
    /// In the mesh.
    Enrolled,
    /// Out of the mesh again, but connections still use its route, until then at most.
    Leaving(Instant),
    /// It could not be enrolled: why, how often in a row, when to try again (`None`: when it changes).
    Failed { reason: String, attempts: u32, retry: Option<Instant> },
    /// It cannot be enrolled: why.
    Excluded(String),
}

/// A pod with its history.
#[derive(Debug, Clone)]
pub(crate) struct Pod {
    /// As it was (or is to be) enrolled.
    pub(crate) target: Option<Target>,
    pub(crate) stage: Stage,
}

/// What to do now, in the order of the fields.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Enrolled pods that left the mesh: out of the view, then their listeners close.
    pub(crate) leave: Vec<NamespacedName>,
    /// Enrolled pods in another place now: their capture stays until they are enrolled anew.
    pub(crate) replace: Vec<NamespacedName>,
    /// Pods whose namespace is to be undone now.
    pub(crate) undo: Vec<NamespacedName>,
    /// Pods to enrol now.
    pub(crate) enrol: Vec<NamespacedName>,
}

/// The pods of this node.
#[derive(Debug, Default)]
pub(crate) struct Pods(pub(crate) BTreeMap<NamespacedName, Pod>);

impl Pods {
    /// Takes the configuration's wishes in and says what to do. `open` answers the open connections of a pod.
    pub(crate) fn plan(
        &mut self,
        wanted: &BTreeMap<NamespacedName, Wanted>,
        now: Instant,
        open: &dyn Fn(&NamespacedName) -> usize,
    ) -> Plan {
        let mut plan = Plan::default();
        for (key, wanted) in wanted {
            self.want(key, wanted, now, &mut plan);
        }
        for (key, pod) in &mut self.0 {
            match pod.stage {
                // What is missing in the configuration does not end what was begun with it.
                Stage::Enrolled
                    if !matches!(
                        wanted.get(key),
                        Some(Wanted::Enrol(_) | Wanted::Incomplete(_) | Wanted::NotBegun(_))
                    ) =>
                {
                    pod.stage = Stage::Leaving(now + GRACE);
                    plan.leave.push(key.clone());
                }
                // One that left just now still has the connections of the last moment.
                Stage::Leaving(until) if until <= now || open(key) == 0 => plan.undo.push(key.clone()),
                Stage::Pending(_) | Stage::Enrolled | Stage::Leaving(_) => {}
                Stage::Beginning { .. } | Stage::Failed { .. } | Stage::Excluded(_) => {}
            }
        }
        // What is in neither state needs no memory.
        self.0.retain(|key, pod| wanted.contains_key(key) || matches!(pod.stage, Stage::Leaving(_)));
        plan
    }

    fn want(&mut self, key: &NamespacedName, wanted: &Wanted, now: Instant, plan: &mut Plan) {
        let pod =
            self.0.entry(key.clone()).or_insert_with(|| Pod { target: None, stage: Stage::Pending(now) });
        let target = match wanted {
            Wanted::Enrol(target) => target,
            Wanted::Excluded(why) => return pod.rest(Stage::Excluded(why.clone())),
            Wanted::NotBegun(why) => {
                let since = pod.begun(now);
                return pod.rest(Stage::Beginning { reason: why.clone(), since, attempts: 0, retry: None });
            }
            Wanted::Incomplete(why) => {
                return pod.rest(Stage::Failed { reason: why.clone(), attempts: 0, retry: None });
            }
        };
        let same = pod.target.as_ref().is_some_and(|known| known.is_same(target, &pod.stage));
        pod.target = Some(target.clone());
        match &pod.stage {
            Stage::Enrolled if same => {}
            // A pod of the same name in another place: it must not be open in between.
            Stage::Enrolled => {
                pod.stage = Stage::Pending(now);
                plan.replace.push(key.clone());
                plan.enrol.push(key.clone());
            }
            // One that comes back begins anew.
            Stage::Leaving(_) => {
                pod.stage = Stage::Pending(now);
                plan.undo.push(key.clone());
                plan.enrol.push(key.clone());
            }
            Stage::Failed { retry, .. } if same && retry.is_some_and(|at| at > now) => {}
            Stage::Beginning { retry, .. } if same && retry.is_some_and(|at| at > now) => {}
            Stage::Failed { .. } | Stage::Pending(_) | Stage::Beginning { .. } => {
                plan.enrol.push(key.clone())
            }
            Stage::Excluded(_) => {
                pod.stage = Stage::Pending(now);
                plan.enrol.push(key.clone());
            }
        }
    }

    /// An enrolment ended.
    pub(crate) fn enrolled(&mut self, key: &NamespacedName, result: Result<(), Failure>, now: Instant) {
        let Some(pod) = self.0.get_mut(key) else { return };
        pod.stage = match (result, &pod.stage) {
            (Ok(()), _) => Stage::Enrolled,
            (Err(Failure::NotYet(reason) | Failure::Wrong(reason)), Stage::Failed { attempts, .. }) => {
                Stage::failed(reason, attempts + 1, now)
            }
            (Err(Failure::Wrong(reason)), _) => Stage::failed(reason, 1, now),
            (Err(Failure::NotYet(reason)), Stage::Beginning { since, attempts, .. }) => {
                Stage::beginning(reason, *since, attempts + 1, now)
            }
            (Err(Failure::NotYet(reason)), _) => Stage::beginning(reason, now, 1, now),
        };
    }

    /// A pod's namespace has been undone (or has gone).
    pub(crate) fn undone(&mut self, key: &NamespacedName) {
        if self.0.get(key).is_some_and(|pod| matches!(pod.stage, Stage::Leaving(_))) {
            self.0.remove(key);
        }
    }

    /// When something is due without any change from outside.
    pub(crate) fn due(&self, now: Instant) -> Option<Instant> {
        let soon = now + Duration::from_millis(500);
        let due = |pod: &Pod| match &pod.stage {
            Stage::Leaving(until) => Some(soon.min(*until)),
            Stage::Failed { retry, .. } | Stage::Beginning { retry, .. } => *retry,
            Stage::Pending(_) | Stage::Enrolled | Stage::Excluded(_) => None,
        };
        self.0.values().filter_map(due).min()
    }
}

impl Pod {
    /// Takes a stage of rest, unless there is something to undo first.
    fn rest(&mut self, stage: Stage) {
        if !matches!(self.stage, Stage::Enrolled | Stage::Leaving(_)) {
            self.stage = stage;
        }
    }

    /// Since when it has been beginning.
    fn begun(&self, now: Instant) -> Instant {
        match &self.stage {
            Stage::Pending(since) | Stage::Beginning { since, .. } => *since,
            Stage::Enrolled | Stage::Leaving(_) | Stage::Failed { .. } | Stage::Excluded(_) => now,
        }
    }
}

impl Target {
    /// Whether what was done for this target serves the other one as well.
    fn is_same(&self, other: &Self, stage: &Stage) -> bool {
        let uid = match (&self.uid, &other.uid) {
            (Some(one), Some(other)) => one == other,
            (Some(_) | None, None) | (None, Some(_)) => true,
        };
        // The plugin takes its word back when the sandbox goes; until it has gone it is where it was.
        let place = self.place == other.place
            || (matches!(stage, Stage::Enrolled) && other.place == Place::Processes);
        let set = |ips: &[IpAddr]| ips.iter().copied().collect::<BTreeSet<_>>();
        uid && place && set(&self.ips) == set(&other.ips)
    }
}

impl Stage {
    fn failed(reason: String, attempts: u32, now: Instant) -> Self {
        let pause = RETRY.0.saturating_mul(1 << attempts.saturating_sub(1).min(5)).min(RETRY.1);
        Self::Failed { reason, attempts, retry: Some(now + pause) }
    }

    fn beginning(reason: String, since: Instant, attempts: u32, now: Instant) -> Self {
        if now.saturating_duration_since(since) >= BEGINNING {
            return Self::failed(reason, 1, now);
        }
        let pause = SOON.0.saturating_mul(1 << attempts.saturating_sub(1).min(6)).min(SOON.1);
        Self::Beginning { reason, since, attempts, retry: Some(now + pause) }
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
