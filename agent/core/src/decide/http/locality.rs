//! Which endpoints are near, and how much each place gets (D-10, D-11).
//!
//! [`layout()`] sorts the endpoints of a cluster, as one client sees them, into groups: those that Istio would give
//! Envoy as priorities (failover) or as weighted localities (distribute). [`Layout::choose`] then takes a group as
//! Envoy does: a group in which too few are healthy gives a part of its share to the others.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use smallvec::SmallVec;

use super::Cluster;
use crate::Snapshot;
use crate::locality::Locality;
use crate::names;
use crate::resource::TrafficDistribution;
use crate::resource::destination_rule::{Distribute, LocalitySetting, PriorityLabel};
use crate::snapshot::Workload;

/// A group keeps its whole share while so many hundredths of its endpoints, divided by this, are available.
const OVERPROVISIONING: u64 = 140;

/// Tries before retries that may leave do so: the update frequency that Istio gives Envoy.
const TRIES_IN_A_PLACE: usize = 2;

/// The endpoints of a cluster in groups, the nearest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    groups: Vec<Group>,
}

/// Endpoints that are as near as each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Where they are, where all are in one place.
    pub locality: Option<Locality>,
    /// 0 is first; the next one only gets what this one cannot take.
    pub priority: u32,
    /// Share among the groups of one priority; never 0.
    pub weight: u32,
    /// Indexes in the list that was laid out, ascending; never empty.
    pub members: Vec<u32>,
}

/// The setting that holds for a cluster, and whether it acts without outlier detection.
struct Effective<'a> {
    setting: Cow<'a, LocalitySetting>,
    failover: bool,
}

/// Lays out `endpoints` (of `cluster`) for a client; `None` where all of them are alike to it.
pub fn layout(
    snapshot: &Snapshot,
    client: &Workload,
    cluster: &Cluster,
    endpoints: &[SocketAddr],
) -> Option<Layout> {
    let Effective { setting, failover } = effective(snapshot, cluster)?;
    let place = Places { snapshot };
    let own = snapshot.localities.of(client);
    let groups = if setting.distribute.is_empty() {
        if !failover {
            return None;
        }
        by_priority(&place, (client, &own), &setting, endpoints)
    } else {
        let entry = setting.distribute.iter().find(|entry| own.is_within(&entry.from))?;
        by_weight(&place, entry, endpoints)
    };
    let alike = matches!(groups.as_slice(), [only] if only.members.len() == endpoints.len());
    (!alike).then_some(Layout { groups })
}

/// Istio's order: the DestinationRule's own setting, the Service's, the mesh's.
fn effective<'a>(snapshot: &'a Snapshot, cluster: &'a Cluster) -> Option<Effective<'a>> {
    let outlier = cluster.policy.outlier_detection.is_some();
    if let Some(own) = &cluster.policy.locality {
        return own.enabled.then_some(Effective { setting: Cow::Borrowed(own), failover: outlier });
    }
    if let Some(distribution) = cluster.service.distribution {
        return Some(Effective { setting: Cow::Owned(near(distribution)), failover: true });
    }
    match &snapshot.mesh.http.locality {
        Some(mesh) => mesh.enabled.then_some(Effective { setting: Cow::Borrowed(mesh), failover: outlier }),
        // Nothing to compare: most meshes, and every small one.
        None if !outlier || snapshot.localities.is_empty() => None,
        None => Some(Effective { setting: Cow::Owned(LocalitySetting::default()), failover: true }),
    }
}

/// `trafficDistribution` in terms of labels (D-11).
fn near(distribution: TrafficDistribution) -> LocalitySetting {
    let keys: &[&str] = match distribution {
        TrafficDistribution::SameZone => &[names::TOPOLOGY_REGION, names::TOPOLOGY_ZONE],
        TrafficDistribution::SameNode => {
            &[names::TOPOLOGY_REGION, names::TOPOLOGY_ZONE, names::TOPOLOGY_SUBZONE, names::HOSTNAME]
        }
    };
    let failover_priority = keys.iter().map(|key| PriorityLabel::new(key)).collect();
    LocalitySetting { failover_priority, ..LocalitySetting::default() }
}

/// Finds out where things are.
struct Places<'a> {
    snapshot: &'a Snapshot,
}

impl<'a> Places<'a> {
    fn workload(&self, endpoint: &SocketAddr) -> Option<&'a Workload> {
        self.snapshot.workload_by_ip(&endpoint.ip()).map(|workload| &**workload)
    }

    fn locality(&self, endpoint: &SocketAddr) -> Locality {
        let localities = &self.snapshot.localities;
        match self.workload(endpoint) {
            Some(workload) => localities.of(workload),
            None => localities.of_address(&endpoint.ip()),
        }
    }
}

/// A label of a pod; those of the topology are its place's.
fn label<'a>(workload: Option<&'a Workload>, place: &'a Locality, key: &str) -> &'a str {
    match key {
        names::TOPOLOGY_REGION => &place.region,
        names::TOPOLOGY_ZONE => &place.zone,
        names::TOPOLOGY_SUBZONE => &place.subzone,
        names::HOSTNAME => workload.and_then(|workload| workload.node.as_deref()).unwrap_or_default(),
        other => workload.and_then(|workload| workload.pod_labels.get(other)).unwrap_or_default(),
    }
}

fn by_priority(
    places: &Places<'_>,
    (client, own): (&Workload, &Locality),
    setting: &LocalitySetting,
    endpoints: &[SocketAddr],
) -> Vec<Group> {
    let labels = &setting.failover_priority;
    let by_place = labels.is_empty() || !setting.failover.is_empty();
    let mut by_priority = BTreeMap::<u32, (Vec<u32>, BTreeSet<Locality>)>::new();
    for (index, endpoint) in (0..).zip(endpoints) {
        let place = places.locality(endpoint);
        let workload = places.workload(endpoint);
        // As many as leading labels agree: the more, the nearer.
        let differs = |wanted: &PriorityLabel| {
            let value = wanted.value.as_deref().unwrap_or_else(|| label(Some(client), own, &wanted.key));
            value != label(workload, &place, &wanted.key)
        };
        let agreeing = labels.iter().position(differs).unwrap_or(labels.len());
        let by_labels = u32::try_from(labels.len() - agreeing).unwrap_or(u32::MAX);
        let distance = if by_place { failover_distance(own, &place, setting) } else { 0 };
        // Distances go up to 4.
        let entry = by_priority.entry(by_labels.saturating_mul(5).saturating_add(distance)).or_default();
        entry.0.push(index);
        entry.1.insert(place);
    }
    let numbered = (0..).zip(by_priority.into_values());
    let group = |(priority, (members, mut places)): (u32, (Vec<u32>, BTreeSet<Locality>))| {
        let locality = if places.len() == 1 { places.pop_first() } else { None };
        Group { locality, priority, weight: 1, members }
    };
    numbered.map(group).collect()
}

/// Other regions are equally far, but that named by `failover` comes before the rest.
fn failover_distance(own: &Locality, other: &Locality, setting: &LocalitySetting) -> u32 {
    let distance = own.distance(other);
    let wanted = setting.failover.iter().find(|(from, _)| *from == own.region);
    match wanted {
        Some((_, to)) if distance == 3 && *to != other.region => 4,
        Some(_) | None => distance,
    }
}

/// Endpoints that no entry of `to` covers get nothing. Places that one entry covers share what it gives by their
/// number of endpoints.
fn by_weight(places: &Places<'_>, entry: &Distribute, endpoints: &[SocketAddr]) -> Vec<Group> {
    let mut left = BTreeMap::<Locality, Vec<u32>>::new();
    for (index, endpoint) in (0..).zip(endpoints) {
        left.entry(places.locality(endpoint)).or_default().push(index);
    }
    let mut groups = Vec::new();
    for (pattern, weight) in &entry.to {
        let covered = left.extract_if(.., |place, _| place.is_within(pattern));
        let covered: Vec<(Locality, Vec<u32>)> = covered.collect();
        let total: u64 = covered.iter().map(|(_, members)| members.len() as u64).sum();
        groups.extend(covered.into_iter().filter(|_| *weight > 0).map(|(place, members)| {
            let share = (members.len() as u64 * u64::from(*weight)).div_ceil(total.max(1));
            let weight = u32::try_from(share).unwrap_or(u32::MAX).max(1);
            Group { locality: Some(place), priority: 0, weight, members }
        }));
    }
    groups
}

impl Layout {
    /// The groups, the nearest first.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// The priorities that a retry leaves out (V-25), by the indexes of the endpoints that were tried, in their order: as
    /// Istio has Envoy's `previous_priorities`, after every second try those of all tries so far. They are asked
    /// after all where nobody else is available.
    pub fn left_behind(&self, tried: impl ExactSizeIterator<Item = usize>) -> SmallVec<[u32; 4]> {
        let settled = tried.len() / TRIES_IN_A_PLACE * TRIES_IN_A_PLACE;
        let group_of = |index: usize| {
            let index = u32::try_from(index).ok()?;
            self.groups.iter().find(|group| group.members.binary_search(&index).is_ok())
        };
        tried.take(settled).filter_map(group_of).map(|group| group.priority).collect()
    }

    /// Chooses a group. `available` answers how many of a group's members may be chosen, `draw` is any number.
    /// `None` when none may.
    pub fn choose(&self, available: &mut dyn FnMut(&Group) -> usize, draw: u64) -> Option<&Group> {
        let standing = |group| Standing { group, available: available(group) as u64 };
        let standings: SmallVec<[Standing<'_>; 8]> = self.groups.iter().map(standing).collect();
        let priority = choose_priority(&standings, draw % 100)?;
        let mut left = draw / 100;
        let among = standings.iter().filter(|standing| standing.group.priority == priority);
        let total: u64 = among.clone().map(Standing::weight).sum();
        left %= total.max(1);
        let found = among.clone().find(|standing| {
            let weight = standing.weight();
            let chosen = left < weight;
            left = left.saturating_sub(weight);
            chosen
        });
        found.map(|standing| standing.group)
    }
}

/// A group with those of its members that may be chosen.
#[derive(Clone, Copy)]
struct Standing<'a> {
    group: &'a Group,
    available: u64,
}

impl Standing<'_> {
    /// The group's weight as far as its members can carry it.
    fn weight(&self) -> u64 {
        u64::from(self.group.weight) * health(self.available, self.group.members.len() as u64)
    }
}

/// In percent; a group with a few out of the rotation carries its share nevertheless. Never 0 while one is there.
fn health(available: u64, all: u64) -> u64 {
    let percent = (OVERPROVISIONING * available).checked_div(all).unwrap_or(0).min(100);
    percent.max(u64::from(available > 0))
}

/// The priority that `percentile` (below 100) falls to: each takes as much as it can carry of what is left.
fn choose_priority(standings: &[Standing<'_>], percentile: u64) -> Option<u32> {
    let of_one = standings.chunk_by(|one, other| one.group.priority == other.group.priority);
    let loads = of_one.filter_map(|groups| {
        let available = groups.iter().map(|standing| standing.available).sum();
        let all = groups.iter().map(|standing| standing.group.members.len() as u64).sum();
        Some((groups.first()?.group.priority, health(available, all)))
    });
    let loads: SmallVec<[(u32, u64); 8]> = loads.filter(|(_, health)| *health > 0).collect();
    // Where all together cannot carry everything, each gets more than it should.
    let total = loads.iter().map(|(_, health)| health).sum::<u64>().clamp(1, 100);
    let mut before = 0;
    let found = loads.iter().find(|(_, health)| {
        before += health * 100 / total;
        percentile < before
    });
    // What rounding leaves belongs to the first one.
    found.or(loads.first()).map(|(priority, _)| *priority)
}

#[cfg(test)]
#[path = "locality_tests.rs"]
mod tests;
