//! In the mesh or not, from labels alone (rulings 11, 12, 15; C-2).

use std::sync::Arc;

use super::state::{NamespaceFacts, Template};
use crate::names;
use crate::resource::{Labels, Namespace};
use crate::snapshot::{Membership, TrafficHint};

/// What the labels (and Istio's former annotation) of a pod say; `None` leaves it to the namespace.
pub(super) fn of_pod(labels: &Labels, annotations: &Labels, adopt_istio: bool) -> Option<bool> {
    own_label(labels).or_else(|| {
        if !adopt_istio {
            return None;
        }
        dataplane_mode(labels).or_else(|| {
            let inject = |labels: &Labels| match labels.get(names::ISTIO_SIDECAR_INJECT) {
                Some("true") => Some(true),
                Some("false") => Some(false),
                Some(_) | None => None,
            };
            inject(labels).or_else(|| inject(annotations))
        })
    })
}

/// What a Namespace says, which the mesh looks at or not (`hidden`).
pub(super) fn facts(namespace: &Namespace, adopt_istio: bool, hidden: bool) -> NamespaceFacts {
    let annotation = |key: &str| namespace.annotations.get(key);
    NamespaceFacts {
        opted: own_label(&namespace.labels)
            .or_else(|| if adopt_istio { istio_namespace(&namespace.labels) } else { None }),
        hidden,
        bypass: namespace.labels.get(names::MESH) == Some(names::MESH_BYPASS)
            || annotation(names::MESH) == Some(names::MESH_BYPASS),
        encrypt_same_node: annotation(names::SAME_NODE) == Some(names::SAME_NODE_ENCRYPT),
        pass_when_agent_gone: annotation(names::AGENT_GONE) == Some(names::AGENT_GONE_PASS),
        traffic: traffic_hint(&namespace.annotations),
    }
}

fn own_label(labels: &Labels) -> Option<bool> {
    match labels.get(names::MESH) {
        Some(names::MESH_ENABLED) => Some(true),
        Some(names::MESH_DISABLED) => Some(false),
        Some(_) | None => None,
    }
}

fn dataplane_mode(labels: &Labels) -> Option<bool> {
    match labels.get(names::ISTIO_DATAPLANE_MODE) {
        Some("ambient") => Some(true),
        Some("none") => Some(false),
        Some(_) | None => None,
    }
}

fn istio_namespace(labels: &Labels) -> Option<bool> {
    dataplane_mode(labels).or_else(|| match labels.get(names::ISTIO_INJECTION) {
        Some("enabled") => Some(true),
        Some("disabled") => Some(false),
        Some(_) | None => None,
    })
}

/// Annotation `weft.dev/traffic`.
pub(super) fn traffic_hint(annotations: &Labels) -> Option<TrafficHint> {
    match annotations.get(names::TRAFFIC) {
        Some(names::TRAFFIC_L4) => Some(TrafficHint::L4),
        Some(names::TRAFFIC_L7) => Some(TrafficHint::L7),
        Some(_) | None => None,
    }
}

/// Annotation `weft.dev/mesh: bypass`.
pub(super) fn is_bypassed(annotations: &Labels) -> bool {
    annotations.get(names::MESH) == Some(names::MESH_BYPASS)
}

/// What keeps all pods of a namespace or a node out, whatever they say themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KeptOut {
    /// The namespace has the label of the break-glass.
    Namespace,
    /// The node has it.
    Node,
    /// The mesh does not look at the namespace.
    Hidden,
}

impl KeptOut {
    fn reason(self) -> &'static str {
        match self {
            Self::Namespace => {
                "its namespace has the label weft.dev/mesh: bypass, which switches capture off"
            }
            Self::Node => "its node has the label weft.dev/mesh: bypass, which switches capture off",
            Self::Hidden => "its namespace matches none of the mesh's discoverySelectors",
        }
    }
}

/// The membership of a pod that is opted in or not.
pub(super) fn of_opted(opted: bool, template: &Template, kept_out: Option<KeptOut>) -> Membership {
    // The label of the namespace took the place of the one that opted it in: its pods are shown all the same.
    if let Some(by) = kept_out.filter(|by| opted || *by == KeptOut::Namespace) {
        return Membership::Excluded(Arc::new(by.reason().to_owned()));
    }
    if !opted {
        return Membership::OutOfMesh;
    }
    match obstacle(template) {
        None => Membership::InMesh,
        Some(reason) => Membership::Excluded(Arc::new(reason)),
    }
}

/// Why a pod cannot be enrolled.
fn obstacle(template: &Template) -> Option<String> {
    if template.host_network {
        return Some("it uses the network of its host (hostNetwork: true)".into());
    }
    if let Some(class) = template.runtime_class.as_deref()
        && bypasses_host_sockets(class)
    {
        return Some(format!("its runtime class {class} does not use the sockets of the host's kernel"));
    }
    let sidecar = template.annotations.get(names::ISTIO_SIDECAR_STATUS);
    sidecar.map(|_| "it has an Istio sidecar already (annotation sidecar.istio.io/status)".into())
}

/// gVisor and Kata, also under the names of their variants (`kata-qemu`, `kata-fc`, …).
fn bypasses_host_sockets(class: &str) -> bool {
    let class = class.to_ascii_lowercase();
    let mut parts = class.split(['-', '_', '.']);
    parts.any(|part| matches!(part, "gvisor" | "runsc" | "kata"))
}
