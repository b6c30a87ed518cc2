//! Findings about Namespaces and the pods of this node.

use super::capture::BadItem;
use super::findings::Text;
use super::membership;
use super::state::{NamespaceFacts, PodRecord};
use crate::Problem;
use crate::names;
use crate::problem::Severity;
use crate::resource::{Kind, Labels, Namespace, NamespacedName};
use crate::snapshot::Membership;

/// A label or annotation and the values that mean something.
type Marker = (&'static str, &'static [&'static str]);

const NAMESPACE_MARKERS: &[Marker] = &[
    (names::TRAFFIC, &[names::TRAFFIC_L4, names::TRAFFIC_L7]),
    (names::SAME_NODE, &[names::SAME_NODE_ENCRYPT]),
    (names::AGENT_GONE, &[names::AGENT_GONE_PASS]),
];
const POD_MARKERS: &[Marker] =
    &[(names::TRAFFIC, &[names::TRAFFIC_L4, names::TRAFFIC_L7]), (names::MESH, &[names::MESH_BYPASS])];
const MESH_LABEL: &[Marker] = &[(names::MESH, &[names::MESH_ENABLED, names::MESH_DISABLED])];

/// The findings about a Namespace.
pub(super) fn namespace(namespace: &Namespace, facts: NamespaceFacts) -> Vec<Problem> {
    let key = NamespacedName::new("", namespace.name.clone());
    let about = |severity, text: Text| text.about(severity, Kind::Namespace, &key, namespace.origin.clone());
    let labels = bad_markers("metadata.labels", &namespace.labels, MESH_LABEL);
    let annotations = bad_markers("metadata.annotations", &namespace.annotations, NAMESPACE_MARKERS);
    let mut problems: Vec<_> =
        labels.into_iter().chain(annotations).map(|text| about(Severity::Warning, text)).collect();
    if namespace.annotations.get(names::AGENT_GONE) == Some(names::AGENT_GONE_PASS) {
        let text = Text {
            code: "WEFT0109",
            name: "AgentGonePass",
            field: field("metadata.annotations", names::AGENT_GONE),
            message: "while no agent runs, new connections reach the pods of this namespace without \
                      any mTLS or authorisation rule being applied"
                .into(),
            fix: "remove the annotation to refuse such connections instead",
        };
        problems.push(about(Severity::Warning, text));
    }
    if facts.hidden && facts.opted == Some(true) && !facts.bypass {
        let text = Text {
            code: "WEFT0114",
            name: "NamespaceNotDiscovered",
            field: "metadata.labels".into(),
            message:
                "the namespace is opted in, but matches none of the mesh's discoverySelectors: its pods stay \
                      outside the mesh, where nothing is encrypted or authorised, and its Services and rules \
                      count for nobody"
                    .into(),
            fix: "add a label that one of discoverySelectors asks for, or opt the namespace out",
        };
        problems.push(about(Severity::Warning, text));
    }
    problems
}

/// The findings about a pod of this node.
pub(super) fn pod(record: &PodRecord, bad_items: Vec<BadItem>) -> Vec<Problem> {
    let annotations = &record.template.annotations;
    let mut warnings = bad_markers("metadata.labels", &record.workload.pod_labels, MESH_LABEL);
    warnings.extend(bad_markers("metadata.annotations", annotations, POD_MARKERS));
    warnings.extend(bad_items.into_iter().map(bad_item));
    warnings.extend(membership::is_bypassed(annotations).then(bypass));
    let warnings = warnings.into_iter().map(|text| (Severity::Warning, text));
    let excluded = excluded(&record.workload.membership).map(|text| (Severity::Info, text));
    let origin = record.rarities.as_ref().and_then(|rarities| rarities.origin.as_ref());
    let key = &record.workload.key;
    let about = |(severity, text): (Severity, Text)| text.about(severity, Kind::Pod, key, origin.cloned());
    warnings.chain(excluded).map(about).collect()
}

fn field(map: &str, key: &str) -> String {
    format!("{map}[{key}]")
}

fn bad_markers(map: &str, labels: &Labels, markers: &[Marker]) -> Vec<Text> {
    let bad = markers.iter().filter_map(|(key, values)| {
        let value = labels.get(key).filter(|value| !values.contains(value))?;
        Some(Text {
            code: "WEFT0108",
            name: "UnknownMarkerValue",
            field: field(map, key),
            message: format!("the value {value:?} means nothing; known values: {}", values.join(", ")),
            fix: "use one of the known values, or remove it",
        })
    });
    bad.collect()
}

fn bad_item(bad: BadItem) -> Text {
    Text {
        code: "IST0125",
        name: "InvalidAnnotation",
        field: field("metadata.annotations", bad.annotation),
        message: format!("{:?} is not {}; it is left out, the rest applies", bad.item, bad.expected),
        fix: "correct the list",
    }
}

fn excluded(membership: &Membership) -> Option<Text> {
    match membership {
        Membership::Excluded(reason) => Some(Text {
            code: "WEFT0110",
            name: "PodNotEnrollable",
            field: String::new(),
            message: format!("the pod is opted in but stays outside the mesh: {reason}"),
            fix: "opt it out with the label weft.dev/mesh: disabled, or change the pod",
        }),
        Membership::InMesh | Membership::OutOfMesh => None,
    }
}

fn bypass() -> Text {
    Text {
        code: "WEFT0111",
        name: "CaptureBypassed",
        field: field("metadata.annotations", names::MESH),
        message: "capture is off: connections of this pod are neither encrypted nor authorised".into(),
        fix: "remove the annotation when the emergency is over",
    }
}
