//! Where a pod is: region, zone and subzone, by the labels of its node.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::names;
use crate::resource::destination_rule::LocalityPattern;
use crate::resource::{Labels, Node};
use crate::snapshot::Workload;

/// A place. What is not known is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Locality {
    /// `topology.kubernetes.io/region`.
    pub region: Arc<str>,
    /// `topology.kubernetes.io/zone`.
    pub zone: Arc<str>,
    /// `topology.istio.io/subzone`.
    pub subzone: Arc<str>,
}

impl Locality {
    /// By the labels of a Node; `None` where none of them says anything.
    fn of_labels(labels: &Labels) -> Option<Self> {
        let part = |key: &str| labels.get_shared(key).cloned().unwrap_or_default();
        let found = Self {
            region: part(names::TOPOLOGY_REGION),
            zone: part(names::TOPOLOGY_ZONE),
            subzone: part(names::TOPOLOGY_SUBZONE),
        };
        (found != Self::default()).then_some(found)
    }

    /// By a pod's own label: `region.zone.subzone`, or with `/` between.
    fn of_text(text: &str) -> Self {
        let separator = if text.contains('/') { '/' } else { '.' };
        let mut parts = text.splitn(3, separator).map(Arc::from);
        let mut next = || parts.next().unwrap_or_default();
        Self { region: next(), zone: next(), subzone: next() }
    }

    /// Whether it lies within a pattern.
    pub fn is_within(&self, pattern: &LocalityPattern) -> bool {
        let same = |wanted: &Option<Arc<str>>, part| wanted.as_ref().is_none_or(|wanted| wanted == part);
        same(&pattern.region, &self.region)
            && same(&pattern.zone, &self.zone)
            && same(&pattern.subzone, &self.subzone)
    }

    /// How far away another place is: 0 in the same subzone, 1 in the same zone, 2 in the same region, else 3.
    pub fn distance(&self, other: &Self) -> u32 {
        match (self.region == other.region, self.zone == other.zone, self.subzone == other.subzone) {
            (true, true, true) => 0,
            (true, true, false) => 1,
            (true, false, _) => 2,
            (false, ..) => 3,
        }
    }
}

impl std::fmt::Display for Locality {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts = [&self.region, &self.zone, &self.subzone];
        let known = parts.iter().rposition(|part| !part.is_empty()).map_or(0, |last| last + 1);
        for (at, part) in parts.into_iter().take(known).enumerate() {
            let separator = if at == 0 { "" } else { "/" };
            write!(f, "{separator}{part}")?;
        }
        Ok(())
    }
}

/// The places of all nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Localities {
    by_node: BTreeMap<Arc<str>, Arc<Locality>>,
    /// Pods in the host's network have the addresses of their node. With its name: two may claim one address.
    by_address: BTreeMap<(IpAddr, Arc<str>), Arc<Locality>>,
}

impl Localities {
    /// Notes a node, which stood at `old` addresses before.
    pub(crate) fn insert(&mut self, node: &Node, old: &[IpAddr]) {
        self.remove(&node.name, old);
        if let Some(locality) = Locality::of_labels(&node.labels).map(Arc::new) {
            let addresses = node.addresses.iter();
            let addresses = addresses.map(|address| ((*address, node.name.clone()), locality.clone()));
            self.by_address.extend(addresses);
            self.by_node.insert(node.name.clone(), locality);
        }
    }

    /// Forgets a node with its addresses.
    pub(crate) fn remove(&mut self, name: &Arc<str>, addresses: &[IpAddr]) {
        self.by_node.remove(name);
        for address in addresses {
            self.by_address.remove(&(*address, name.clone()));
        }
    }

    /// Whether no node says where it is.
    pub fn is_empty(&self) -> bool {
        self.by_node.is_empty()
    }

    /// Where a node is, if it says so.
    pub fn of_node(&self, node: &str) -> Option<&Arc<Locality>> {
        self.by_node.get(node)
    }

    /// Where a pod is: by its own label, else by its node.
    pub fn of(&self, workload: &Workload) -> Locality {
        let own = [names::ISTIO_LOCALITY, names::ISTIO_LOCALITY_OLD];
        if let Some(text) = own.into_iter().find_map(|key| workload.pod_labels.get(key)) {
            return Locality::of_text(text);
        }
        let of_node = workload.node.as_ref().and_then(|node| self.by_node.get(node));
        of_node.map(|locality| (**locality).clone()).unwrap_or_default()
    }

    /// Where an address is that is no pod's own.
    pub fn of_address(&self, address: &IpAddr) -> Locality {
        let first = self.by_address.range((*address, Arc::default())..).next();
        let found = first.filter(|((of, _), _)| of == address);
        found.map(|(_, locality)| (**locality).clone()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{ip, labels};

    fn place(text: &str) -> Locality {
        Locality::of_text(text)
    }

    #[test]
    fn patterns_cover_what_they_leave_out() {
        for (pattern, locality, within) in [
            ("*", "eu/a/1", true),
            ("*", "", true),
            ("eu", "eu/a/1", true),
            ("eu/*", "eu/a/1", true),
            ("eu/a", "eu/a/1", true),
            ("eu/a/*", "eu/a", true),
            ("eu/a/2", "eu/a/1", false),
            ("eu/b/*", "eu/a/1", false),
            ("us", "eu/a/1", false),
            ("eu", "", false),
        ] {
            assert_eq!(
                place(locality).is_within(&LocalityPattern::new(pattern)),
                within,
                "{pattern} {locality}"
            );
        }
    }

    #[test]
    fn distance_grows_from_the_outside_in() {
        for (other, distance) in [("eu/a/1", 0), ("eu/a/2", 1), ("eu/b/1", 2), ("us/a/1", 3), ("", 3)] {
            assert_eq!(place("eu/a/1").distance(&place(other)), distance, "{other}");
        }
        assert_eq!(place("").distance(&place("")), 0);
        assert_eq!(
            [place("eu/a/1"), place("eu/a"), place("")].map(|place| place.to_string()),
            ["eu/a/1", "eu/a", ""]
        );
    }

    #[test]
    fn a_node_that_says_nothing_any_more_is_forgotten_with_its_addresses() {
        let mut localities = Localities::default();
        let mut node = Node {
            name: "a".into(),
            addresses: vec![ip("192.0.2.1")],
            labels: Arc::new(labels("topology.kubernetes.io/region=eu,topology.kubernetes.io/zone=eu-1")),
        };
        localities.insert(&node, &[]);
        assert_eq!(localities.of_address(&ip("192.0.2.1")).to_string(), "eu/eu-1");
        node.labels = Arc::default();
        localities.insert(&node, &[ip("192.0.2.1")]);
        assert_eq!(localities, Localities::default());
    }
}
