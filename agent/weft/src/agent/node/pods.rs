//! One pod's way into the mesh and out of it.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use weft_core::resource::NamespacedName;
use weft_kernel::{EnrolError, Enrolled, PodToEnrol, Processes};

use super::{Node, lock};
use crate::agent::plan::{Failure, GRACE, Place, Plan, Stage, Target};
use crate::output;

impl Node {
    /// Closes a pod's listeners. Its connections live on for at most `grace`.
    pub(super) fn close(&mut self, pod: &NamespacedName, grace: Duration) {
        self.with_proxy(|proxy| proxy.remove_pod(pod, grace));
        self.keeper.forget(pod);
    }

    /// Pods in another place: the kernel keeps them captured while nobody listens. Before the maps are written,
    /// which would set them free.
    pub(super) fn hand_over(&mut self, pods: &[NamespacedName]) {
        if pods.is_empty() {
            return;
        }
        // Their counts go with them.
        self.account();
        for pod in pods {
            tracing::info!(%pod, "has other addresses or another network namespace");
            lock(&self.datapath).hand_over(pod);
            self.close(pod, Duration::ZERO);
            self.forget_learned(pod);
        }
    }

    /// What was learned of a pod is not true of another one of the same name.
    fn forget_learned(&mut self, pod: &NamespacedName) {
        self.learned.0.retain(|(known, _)| known != pod);
    }

    pub(super) fn take_out(&mut self, plan: &Plan) {
        for pod in &plan.leave {
            tracing::info!(%pod, "leaves the mesh");
            self.close(pod, GRACE);
        }
        if !plan.undo.is_empty() {
            // Their counts go with them.
            self.account();
        }
        for pod in &plan.undo {
            self.undo(pod);
        }
    }

    pub(super) fn undo(&mut self, pod: &NamespacedName) {
        self.close(pod, Duration::ZERO);
        match lock(&self.datapath).unenrol(pod) {
            Ok(()) => tracing::info!(%pod, "is out of the mesh"),
            Err(error) => {
                tracing::error!(%pod, error = %output::chain(&error), "not everything could be removed from the pod; see `weft cleanup --pod`");
            }
        }
        self.pods.undone(pod);
        self.older.forget(pod);
        self.forget_learned(pod);
    }

    pub(super) fn enrol(&mut self, pods: &[NamespacedName]) {
        // One look serves them all, and none may be of before the pods began.
        let processes = lock(&self.datapath).processes().scan().unwrap_or_else(|error| {
            tracing::error!(%error, "the processes of this machine cannot be listed");
            Arc::default()
        });
        let mut listening = Vec::new();
        for key in pods {
            let Some(target) = self.pods.0.get(key).and_then(|pod| pod.target.clone()) else { continue };
            let result = match self.enrol_somewhere(key, &target, &processes) {
                Ok(enrolled) => {
                    tracing::info!(pod = %key, "is in the mesh");
                    self.find_older(key);
                    listening.push((key.clone(), enrolled));
                    Ok(())
                }
                Err(failure) => {
                    if let Failure::Wrong(reason) = &failure {
                        self.tell_failure(key, reason);
                    }
                    Err(failure)
                }
            };
            self.pods.enrolled(key, result, Instant::now());
        }
        for (key, enrolled) in &listening {
            self.keeper.keep(key, &enrolled.inbound, &enrolled.outbound);
        }
        // All at once: one of them may have a connection for another in its queue.
        self.with_proxy(|proxy| proxy.add_pods(listening));
    }

    /// Enrols a pod in the first namespace that is its own.
    fn enrol_somewhere(
        &self,
        key: &NamespacedName,
        target: &Target,
        processes: &Processes,
    ) -> Result<Enrolled, Failure> {
        /// Processes of others may be in a pod's cgroup, but not in many namespaces.
        const CANDIDATES: usize = 4;
        let candidates: Vec<&Path> = match (&target.place, &target.uid) {
            (Place::Path(path), _) => vec![path],
            (Place::Processes, Some(uid)) => {
                processes.of_pod(uid).into_iter().map(|process| &*process.netns).take(CANDIDATES).collect()
            }
            (Place::Processes, None) => Vec::new(),
        };
        let mut failure = Failure::NotYet("no process of it is running".into());
        for netns in candidates {
            let pod = PodToEnrol { key: key.clone(), netns: netns.to_owned(), ips: target.ips.clone() };
            match lock(&self.datapath).enrol(&pod) {
                Ok(enrolled) => return Ok(enrolled),
                Err(error @ EnrolError::NotYet(_)) => failure = Failure::NotYet(output::chain(&error)),
                Err(error) => failure = Failure::Wrong(output::chain(&error)),
            }
        }
        Err(failure)
    }

    /// Says why a pod could not be enrolled, once for each reason.
    fn tell_failure(&self, key: &NamespacedName, reason: &str) {
        let known = match self.pods.0.get(key).map(|pod| &pod.stage) {
            Some(Stage::Failed { reason: before, .. }) => before == reason,
            Some(
                Stage::Pending(_)
                | Stage::Beginning { .. }
                | Stage::Enrolled
                | Stage::Leaving(_)
                | Stage::Excluded(_),
            )
            | None => false,
        };
        if !known {
            tracing::warn!(pod = %key, reason, "cannot be enrolled; it will be tried again");
        }
    }
}
