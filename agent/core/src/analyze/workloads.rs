//! Which pods a selector selects, and which are in the mesh.

use super::objects::{Head, ObjectSet, Pairs, Pod};
use crate::names;

/// Label of a Namespace or Pod: the revision of Istio that it belongs to.
pub(super) const REVISION: &str = "istio.io/rev";

/// Whether labels have everything that a selector asks for. An empty selector selects everything.
pub(super) fn selects(selector: &Pairs, labels: &Pairs) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// Pods of a namespace that a selector selects.
pub(super) fn selected<'s>(
    set: &'s ObjectSet,
    namespace: &'s str,
    selector: &'s Pairs,
) -> impl Iterator<Item = &'s Pod> {
    set.pods_in(namespace).filter(|pod| selects(selector, &pod.labels))
}

/// Whether a pod, or the pods of a Deployment, are in the mesh: a sidecar, a label of their own, or one of their
/// namespace (ruling 15).
pub(super) fn in_mesh(set: &ObjectSet, pod: &Pod) -> bool {
    let redirected = pod.annotations.get("ambient.istio.io/redirection").is_some_and(|is| is == "enabled");
    if pod.has_sidecar || redirected {
        return true;
    }
    let own = opted(&pod.labels).or_else(|| {
        let inject = |pairs: &Pairs| Some(pairs.get(names::ISTIO_SIDECAR_INJECT)? == "true");
        inject(&pod.labels).or_else(|| inject(&pod.annotations))
    });
    own.or_else(|| namespace_opted(set.namespace(&pod.head.namespace)?)).unwrap_or(false)
}

/// Whether Istio's injector, as it is usually installed, makes a sidecar for the pods of a Deployment.
pub(super) fn is_injected(set: &ObjectSet, deployment: &Pod) -> bool {
    let pods = deployment.labels.get(names::ISTIO_SIDECAR_INJECT).map(String::as_str);
    let labels = set.namespace(&deployment.head.namespace).map(|namespace| &namespace.labels);
    let of_namespace = |name: &str| labels.and_then(|labels| labels.get(name)).map(String::as_str);
    match (of_namespace(names::ISTIO_INJECTION), pods) {
        (_, Some("false")) | (Some("disabled"), _) => false,
        (Some("enabled"), _) | (_, Some("true")) => true,
        _ => [of_namespace(REVISION), deployment.labels.get(REVISION).map(String::as_str)]
            .into_iter()
            .flatten()
            .any(|revision| !revision.is_empty()),
    }
}

fn opted(labels: &Pairs) -> Option<bool> {
    let is = |label: &str, yes: &str| labels.get(label).map(|value| value == yes);
    is(names::MESH, names::MESH_ENABLED).or_else(|| is(names::ISTIO_DATAPLANE_MODE, "ambient"))
}

fn namespace_opted(namespace: &Head) -> Option<bool> {
    opted(&namespace.labels).or_else(|| {
        let revision = namespace.labels.get(REVISION).is_some_and(|revision| !revision.is_empty());
        let injected = namespace.labels.get(names::ISTIO_INJECTION).map(|value| value == "enabled");
        injected.or_else(|| revision.then_some(true))
    })
}
