//! AuthorizationPolicies: namespaces that there are not, and policies for nobody.

use super::objects::{AuthorizationPolicy, ObjectSet, Pod};
use super::{Findings, codes, shown, workloads};

/// Checks all AuthorizationPolicies.
pub(super) fn check(set: &ObjectSet, findings: &mut Findings) {
    let pods: Vec<&Pod> = set.pods.iter().filter(|pod| workloads::in_mesh(set, pod)).collect();
    for policy in &set.authorization_policies {
        namespaces(set, policy, findings);
        if !policy.has_targets {
            scope(set, policy, &pods, findings);
        }
    }
}

fn scope(set: &ObjectSet, policy: &AuthorizationPolicy, pods: &[&Pod], findings: &mut Findings) {
    let mesh_wide = policy.head.namespace == set.root_namespace();
    let in_scope = |pod: &&&Pod| mesh_wide || pod.head.namespace == policy.head.namespace;
    let mut pods = pods.iter().filter(in_scope);
    let place = (&policy.head, "spec.selector");
    let scope =
        if mesh_wide { "the mesh".to_owned() } else { format!("`{}` in the mesh", policy.head.namespace) };
    match &policy.selector {
        None if mesh_wide => {}
        None => {
            if pods.next().is_none() {
                let message = format!("No workload of {scope}, so the policy applies to nobody.");
                findings.add(codes::NO_WORKLOADS, place, message, "Put it into the workloads' namespace.");
            }
        }
        Some(selector) => {
            if !pods.any(|pod| workloads::selects(selector, &pod.labels)) {
                let message = format!(
                    "No workload of {scope} has the labels {}, so the policy applies to nobody.",
                    shown(selector)
                );
                findings.add(codes::NO_WORKLOADS, place, message, "Correct the labels or the namespace.");
            }
        }
    }
}

fn namespaces(set: &ObjectSet, policy: &AuthorizationPolicy, findings: &mut Findings) {
    for (field, pattern) in &policy.namespaces {
        if !set.namespaces.iter().any(|namespace| matches(pattern, &namespace.name)) {
            let message = format!("There is no namespace `{pattern}`.");
            findings.add(codes::NOT_FOUND, (&policy.head, field), message, "Correct the namespace.");
        }
    }
}

/// `*` stands at an end only.
fn matches(pattern: &str, namespace: &str) -> bool {
    match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        (Some(suffix), _) => namespace.ends_with(suffix),
        (None, Some(prefix)) => namespace.starts_with(prefix),
        (None, None) => namespace.eq_ignore_ascii_case(pattern),
    }
}
