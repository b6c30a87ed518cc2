//! AuthorizationPolicies: namespaces that there are not, and policies for nobody.

use super::objects::{AuthorizationPolicy, ObjectSet, Pod};
use super::{Findings, codes, shown, workloads};

/// Checks all AuthorizationPolicies.
pub(super) fn check(set: &ObjectSet, findings: &mut Findings) {
    for policy in &set.authorization_policies {
        namespaces(set, policy, findings);
        if !policy.has_targets {
            scope(set, policy, findings);
        }
    }
}

fn scope(set: &ObjectSet, policy: &AuthorizationPolicy, findings: &mut Findings) {
    let mesh_wide = policy.head.namespace == set.root_namespace();
    let is_found = |pod: &Pod| {
        policy.selector.as_ref().is_none_or(|selector| workloads::selects(selector, &pod.labels))
            && workloads::in_mesh(set, pod)
    };
    let found = match (mesh_wide, &policy.selector) {
        (true, None) => true,
        (true, Some(_)) => set.pods.iter().any(is_found),
        (false, _) => set.pods_in(&policy.head.namespace).any(is_found),
    };
    if found {
        return;
    }
    let place = (&policy.head, "spec.selector");
    let scope =
        if mesh_wide { "the mesh".to_owned() } else { format!("`{}` in the mesh", policy.head.namespace) };
    let (which, fix) = match &policy.selector {
        None => (String::new(), "Put it into the workloads' namespace."),
        Some(selector) => {
            (format!(" has the labels {}", shown(selector)), "Correct the labels or the namespace.")
        }
    };
    let message = format!("No workload of {scope}{which}: the policy applies to nobody.");
    findings.add(codes::NO_WORKLOADS, place, message, fix);
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
