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

/// What a Namespace says.
pub(super) fn facts(namespace: &Namespace, adopt_istio: bool) -> NamespaceFacts {
    let annotation = |key: &str| namespace.annotations.get(key);
    NamespaceFacts {
        opted: own_label(&namespace.labels)
            .or_else(|| if adopt_istio { istio_namespace(&namespace.labels) } else { None }),
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

/// Who switched capture off for all of its pods at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Emergency {
    Namespace,
    Node,
}

impl Emergency {
    fn reason(self) -> String {
        let whose = match self {
            Self::Namespace => "namespace",
            Self::Node => "node",
        };
        format!("its {whose} has the label weft.dev/mesh: bypass, which switches capture off")
    }
}

/// The membership of a pod that is opted in or not.
pub(super) fn of_opted(opted: bool, template: &Template, emergency: Option<Emergency>) -> Membership {
    match emergency {
        // The label took the place of the one that opted the namespace in: its pods are shown all the same.
        Some(Emergency::Namespace) => return Membership::Excluded(Arc::new(Emergency::Namespace.reason())),
        Some(Emergency::Node) if opted => {
            return Membership::Excluded(Arc::new(Emergency::Node.reason()));
        }
        Some(Emergency::Node) | None => {}
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
