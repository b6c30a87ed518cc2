//! Namespaces: labels that contradict each other, and namespaces that are not in the mesh.

use super::objects::{Head, ObjectSet};
use super::workloads::REVISION;
use super::{Findings, OF_KUBERNETES, codes, workloads};
use crate::names;

/// Namespaces of meshes themselves: as those of Kubernetes, nobody takes them into a mesh.
const OF_MESHES: [&str; 2] = [names::ISTIO_NAMESPACE, names::WEFT_NAMESPACE];

/// Checks all Namespaces.
pub(super) fn check(set: &ObjectSet, findings: &mut Findings) {
    let of_users = |namespace: &&Head| {
        let name = namespace.name.as_str();
        !OF_KUBERNETES.contains(&name) && !OF_MESHES.contains(&name)
    };
    for namespace in set.namespaces.iter().filter(of_users) {
        contradictions(namespace, findings);
        outside(set, namespace, findings);
    }
}

/// A namespace that injects nothing may have other labels beside.
fn contradictions(namespace: &Head, findings: &mut Findings) {
    let injection = namespace.labels.get(names::ISTIO_INJECTION);
    let counts = injection.is_none_or(|value| value == "enabled");
    let others = [REVISION, names::ISTIO_DATAPLANE_MODE].into_iter().filter(|_| counts);
    let label = |name: &'static str| Some((name, namespace.labels.get(name)?));
    let asked = std::iter::once(names::ISTIO_INJECTION).chain(others).filter_map(label);
    let asked: Vec<String> = asked.map(|(name, value)| format!("{name}={value}")).collect();
    if asked.len() > 1 {
        let message = format!(
            "The namespace has several labels that each say how its pods get into Istio's mesh: {}.",
            asked.join(", ")
        );
        let fix = "Keep one of them.";
        findings.add(codes::SEVERAL_LABELS, (namespace, "metadata.labels"), message, fix);
    }
}

/// Whoever says that a namespace stays outside has decided.
fn outside(set: &ObjectSet, namespace: &Head, findings: &mut Findings) {
    let labels = [names::MESH, names::ISTIO_DATAPLANE_MODE, names::ISTIO_INJECTION, REVISION];
    let decided = labels.into_iter().any(|name| namespace.labels.contains_key(name));
    let name = namespace.name.as_str();
    let deployments = set.deployments.iter().filter(|deployment| deployment.head.namespace == name);
    let in_mesh = || set.pods_in(name).chain(deployments).any(|pod| workloads::in_mesh(set, pod));
    if decided || in_mesh() {
        return;
    }
    let message =
        "Neither the namespace nor a pod of it is in the mesh: nothing there is encrypted or authorised.";
    let fix = format!(
        "Label it: `{0}: {1}`, or `{0}: {2}` if it stays outside.",
        names::MESH,
        names::MESH_ENABLED,
        names::MESH_DISABLED
    );
    findings.add(codes::NOT_IN_MESH, (namespace, "metadata.labels"), message, fix);
}
