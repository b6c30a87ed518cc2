//! The pods that the analyzers compare Istio's objects with, and the nodes of these.
//!
//! They come from the configuration of the moment, which has them anyway: to list all pods of a large cluster takes
//! longer than everything else that the controller does.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use weft_core::Snapshot;
use weft_core::analyze::ObjectSet;
use weft_core::analyze::objects::{Head, Object, Pairs, Pod};
use weft_core::locality::Locality;
use weft_core::names;
use weft_core::resource::Labels;
use weft_core::snapshot::{Membership, Workload};

/// Istio's label on a pod with a sidecar, and its value.
const SIDECAR: (&str, &str) = ("security.istio.io/tlsMode", "istio");

/// By what the analyzers can tell pods apart, but for their names.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Traits<'s> {
    /// The address: the pods of a namespace share labels that are equal.
    labels: usize,
    namespace: &'s str,
    has_proxy: bool,
    locality: Option<&'s Locality>,
}

/// Adds pods to a set, and their nodes: of pods that no analyzer can tell apart the first stands for all.
pub(super) fn add(set: &mut ObjectSet, snapshot: &Snapshot) {
    for (pod, node) in representatives(snapshot) {
        node.into_iter().for_each(|node| set.add(Object::Node(node)));
        set.add(Object::Pod(pod));
    }
}

/// Sorted by namespace and name. Nodes that do not say where they are interest nobody.
fn representatives(snapshot: &Snapshot) -> Vec<(Pod, Option<Head>)> {
    let mut first: BTreeMap<Traits<'_>, &Workload> = BTreeMap::new();
    for workload in snapshot.workloads() {
        match first.entry(Traits::of(workload, snapshot)) {
            Entry::Vacant(place) => drop(place.insert(workload)),
            Entry::Occupied(mut place) if workload.key.name < place.get().key.name => {
                place.insert(workload);
            }
            Entry::Occupied(_) => {}
        }
    }
    let mut found: Vec<_> = first.into_iter().collect();
    found.sort_unstable_by_key(|(_, workload)| &workload.key);
    let written = found.into_iter().map(|(traits, workload)| {
        let node = workload.node.as_ref().zip(traits.locality).map(|(name, locality)| node(name, locality));
        (pod(workload, traits.has_proxy), node)
    });
    written.collect()
}

impl<'s> Traits<'s> {
    fn of(workload: &'s Workload, snapshot: &'s Snapshot) -> Self {
        let node = workload.node.as_ref();
        Self {
            namespace: &workload.key.namespace,
            labels: Arc::as_ptr(&workload.pod_labels).addr(),
            has_proxy: workload.membership != Membership::OutOfMesh
                || workload.pod_labels.get(SIDECAR.0) == Some(SIDECAR.1),
            locality: node.and_then(|node| snapshot.localities().of_node(node)).map(Arc::as_ref),
        }
    }
}

fn pod(workload: &Workload, has_proxy: bool) -> Pod {
    let head = Head {
        kind: "Pod",
        namespace: workload.key.namespace.to_string(),
        name: workload.key.name.to_string(),
        ..Head::default()
    };
    Pod {
        head,
        labels: pairs(&workload.pod_labels),
        node: workload.node.as_deref().unwrap_or_default().to_owned(),
        has_sidecar: has_proxy,
        ..Pod::default()
    }
}

fn pairs(labels: &Labels) -> Pairs {
    labels.iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

fn node(name: &str, locality: &Locality) -> Head {
    let parts = [
        (names::TOPOLOGY_REGION, &locality.region),
        (names::TOPOLOGY_ZONE, &locality.zone),
        (names::TOPOLOGY_SUBZONE, &locality.subzone),
    ];
    let known = parts.into_iter().filter(|(_, part)| !part.is_empty());
    let labels = known.map(|(key, part)| (key.to_owned(), part.to_string())).collect();
    Head { kind: "Node", name: name.to_owned(), labels, ..Head::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::authority::tests::published;

    fn found(yaml: &str) -> Vec<(Pod, Option<Head>)> {
        let (_dir, handle) = published(yaml);
        representatives(&handle.snapshot())
    }

    fn written(name: &str, labels: &str, node: &str) -> String {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{{labels}}}}}\nspec: {{nodeName: {node}}}\n"
        )
    }

    #[test]
    fn one_pod_stands_for_all_that_are_alike() {
        let pods = [
            written("c", "app: cart", "one"),
            written("b", "app: cart", "one"),
            written("d", "app: pay", "one"),
            written("e", "app: cart", "two"),
        ];
        let nodes = ["one", "two"].map(|name| {
            format!(
                "---\napiVersion: v1\nkind: Node\nmetadata: {{name: {name}, labels: {{topology.kubernetes.io/zone: zone-{name}}}}}\n"
            )
        });
        let found = found(&(pods.concat() + &nodes.concat()));
        let zone = |node: &Option<Head>| node.as_ref().unwrap().labels["topology.kubernetes.io/zone"].clone();
        let found: Vec<_> =
            found.iter().map(|(pod, node)| (&*pod.head.name, &*pod.node, zone(node))).collect();
        let expected = [("b", "one", "zone-one"), ("d", "one", "zone-one"), ("e", "two", "zone-two")];
        assert_eq!(found, expected.map(|(name, node, zone)| (name, node, zone.to_owned())));
    }

    #[test]
    fn pods_of_the_mesh_and_pods_with_a_sidecar_have_a_proxy() {
        let pods = [
            written("a", "weft.dev/mesh: enabled", "one"),
            written("b", "security.istio.io/tlsMode: istio", "one"),
            written("c", "app: cart", "one"),
        ];
        let found: Vec<_> =
            found(&pods.concat()).into_iter().map(|(pod, node)| (pod.has_sidecar, node)).collect();
        assert_eq!(found, [(true, None), (true, None), (false, None)], "and no node says where it is");
    }
}
