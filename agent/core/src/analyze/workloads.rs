//! Which pods a selector selects, and which are in the mesh.

use super::objects::{Head, ObjectSet, Pairs, Pod};
use crate::names;

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

fn opted(labels: &Pairs) -> Option<bool> {
    let is = |label: &str, yes: &str| labels.get(label).map(|value| value == yes);
    is(names::MESH, names::MESH_ENABLED).or_else(|| is(names::ISTIO_DATAPLANE_MODE, "ambient"))
}

fn namespace_opted(namespace: &Head) -> Option<bool> {
    opted(&namespace.labels).or_else(|| {
        let revision = namespace.labels.get("istio.io/rev").is_some_and(|revision| !revision.is_empty());
        let injected = namespace.labels.get(names::ISTIO_INJECTION).map(|value| value == "enabled");
        injected.or_else(|| revision.then_some(true))
    })
}
