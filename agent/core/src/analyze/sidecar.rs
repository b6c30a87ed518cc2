//! Sidecars: whom they select, and what is on its way out.

use std::collections::BTreeMap;

use super::objects::{ObjectSet, Sidecar};
use super::{Findings, codes, listed, shown, workloads};

/// Checks all Sidecars.
pub(super) fn check(set: &ObjectSet, findings: &mut Findings) {
    let mut of_pods: BTreeMap<String, Vec<&Sidecar>> = BTreeMap::new();
    let mut of_namespaces: BTreeMap<&str, Vec<&Sidecar>> = BTreeMap::new();
    for sidecar in &set.sidecars {
        let namespace = sidecar.head.namespace.as_str();
        if sidecar.has_egress_proxy {
            let place = (&sidecar.head, "spec.outboundTrafficPolicy.egressProxy");
            findings.add(codes::DEPRECATED, place, "`egressProxy` is ignored.", "Remove it.");
        }
        if sidecar.selector.is_empty() {
            of_namespaces.entry(namespace).or_default().push(sidecar);
            continue;
        }
        let mut pods = workloads::selected(set, namespace, &sidecar.selector).peekable();
        if pods.peek().is_none() {
            let message = format!(
                "No pod of `{namespace}` has the labels {}, so the Sidecar applies to nobody.",
                shown(&sidecar.selector)
            );
            let place = (&sidecar.head, "spec.workloadSelector.labels");
            findings.add(codes::NOT_FOUND, place, message, "Correct the labels.");
        }
        for pod in pods {
            of_pods.entry(pod.head.full_name()).or_default().push(sidecar);
        }
    }
    for (pod, sidecars) in of_pods.iter().filter(|(_, sidecars)| sidecars.len() > 1) {
        let names = listed(sidecars.iter().map(|sidecar| sidecar.head.name.as_str()));
        let message = format!("The Sidecars {names} select the same pod {pod}; only one is in force for it.");
        for sidecar in sidecars {
            let place = (&sidecar.head, "spec.workloadSelector");
            findings.add(
                codes::CONFLICTING_SIDECARS,
                place,
                message.as_str(),
                "Let one of them select the pod.",
            );
        }
    }
    for (namespace, sidecars) in of_namespaces.iter().filter(|(_, sidecars)| sidecars.len() > 1) {
        let names = listed(sidecars.iter().map(|sidecar| sidecar.head.name.as_str()));
        let message =
            format!("The Sidecars {names} of `{namespace}` select every workload; only one is in force.");
        for sidecar in sidecars {
            let place = (&sidecar.head, "spec.workloadSelector");
            let fix = "Keep one without `workloadSelector`.";
            findings.add(codes::SIDECARS_WITHOUT_SELECTOR, place, message.as_str(), fix);
        }
    }
}
