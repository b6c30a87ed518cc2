//! What is to be done about the pods of this node: pure, so that every case can be tested.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use weft_core::Snapshot;
use weft_core::resource::NamespacedName;
use weft_core::snapshot::{LocalWorkload, Membership};
use weft_kernel::PodToEnrol;

/// How long connections of a pod that leaves the mesh may keep its route (ruling 8).
pub(crate) const GRACE: Duration = Duration::from_secs(30);
/// First and longest pause before an enrolment that failed is tried again.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// What the configuration wants of one pod.
#[derive(Debug, Clone)]
pub(crate) enum Wanted {
    /// In the mesh.
    Enrol(PodToEnrol),
    /// In the mesh by its labels, but it cannot be enrolled: the reason.
    Excluded(String),
    /// In the mesh, but something is missing in the configuration: the reason.
    Incomplete(String),
}

impl Wanted {
    /// `None`: nothing is wanted of this pod.
    pub(crate) fn of(local: &LocalWorkload) -> Option<Self> {
        let workload = &local.workload;
        match &workload.membership {
            Membership::OutOfMesh => None,
            Membership::Excluded(why) => Some(Self::Excluded(why.to_string())),
            Membership::InMesh => Some(match &local.netns {
                Some(netns) => Self::Enrol(PodToEnrol {
                    key: workload.key.clone(),
                    netns: netns.clone(),
                    ips: workload.ips.to_vec(),
                }),
                None => Self::Incomplete(format!(
                    "the annotation {} does not name its network namespace",
                    weft_core::names::NETNS
                )),
            }),
        }
    }

    /// All pods of this node of which something is wanted.
    pub(crate) fn all(snapshot: &Snapshot) -> BTreeMap<NamespacedName, Self> {
        let local = snapshot.local().iter();
        local.filter_map(|local| Some((local.workload.key.clone(), Self::of(local)?))).collect()
    }
}

/// Where one pod is.
#[derive(Debug, Clone)]
pub(crate) enum Stage {
    /// To be enrolled since then.
    Pending(Instant),
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
    pub(crate) target: Option<PodToEnrol>,
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
                    if !matches!(wanted.get(key), Some(Wanted::Enrol(_) | Wanted::Incomplete(_))) =>
                {
                    pod.stage = Stage::Leaving(now + GRACE);
                    plan.leave.push(key.clone());
                }
                // One that left just now still has the connections of the last moment.
                Stage::Leaving(until) if until <= now || open(key) == 0 => plan.undo.push(key.clone()),
                Stage::Pending(_) | Stage::Enrolled | Stage::Leaving(_) => {}
                Stage::Failed { .. } | Stage::Excluded(_) => {}
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
            Wanted::Incomplete(why) => {
                return pod.rest(Stage::Failed { reason: why.clone(), attempts: 0, retry: None });
            }
        };
        let same =
            pod.target.as_ref().is_some_and(|known| known.netns == target.netns && known.ips == target.ips);
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
            Stage::Failed { .. } | Stage::Pending(_) => plan.enrol.push(key.clone()),
            Stage::Excluded(_) => {
                pod.stage = Stage::Pending(now);
                plan.enrol.push(key.clone());
            }
        }
    }

    /// An enrolment ended.
    pub(crate) fn enrolled(&mut self, key: &NamespacedName, result: Result<(), String>, now: Instant) {
        let Some(pod) = self.0.get_mut(key) else { return };
        pod.stage = match (result, &pod.stage) {
            (Ok(()), _) => Stage::Enrolled,
            (Err(reason), Stage::Failed { attempts, .. }) => Stage::failed(reason, attempts + 1, now),
            (Err(reason), _) => Stage::failed(reason, 1, now),
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
            Stage::Failed { retry, .. } => *retry,
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
}

impl Stage {
    fn failed(reason: String, attempts: u32, now: Instant) -> Self {
        let pause = RETRY.0.saturating_mul(1 << attempts.saturating_sub(1).min(5)).min(RETRY.1);
        Self::Failed { reason, attempts, retry: Some(now + pause) }
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
