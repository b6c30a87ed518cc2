//! `localityLbSetting` and `zoneAwareLbSetting` (D-10, D-11).

use std::collections::BTreeSet;
use std::sync::Arc;

use weft_core::names;
use weft_core::resource::destination_rule::{Distribute, LocalityPattern, LocalitySetting, PriorityLabel};

use super::super::fields::{List, Text};
use super::super::networking::{Reader, shown};
use super::super::report::Path;
use super::wire::{DistributeWire, FailoverWire, LocalityWire, ZoneWire};
use crate::codes;

/// Labels that failover between localities handles by itself.
const TOPOLOGY: [&str; 3] = [names::TOPOLOGY_REGION, names::TOPOLOGY_ZONE, names::TOPOLOGY_SUBZONE];

/// `has_outlier`: whether failover can act; `None` where other objects say so.
pub(in super::super) fn locality(
    wire: &LocalityWire<'_>,
    has_outlier: Option<bool>,
    at: &Path<'_>,
    reader: &mut Reader<'_, '_>,
) -> Arc<LocalitySetting> {
    check_exclusions(wire, at, reader);
    check_distribute(&wire.distribute.items, &at.field("distribute"), reader);
    check_failover(&wire.failover, &wire.failover_priority, has_outlier, at, reader);
    let to = |wire: &DistributeWire<'_>| {
        let shares = wire.to.0.iter();
        let shares = shares.map(|(locality, weight)| (locality.as_str(), weight.get()));
        shares
            .map(|(locality, weight)| (LocalityPattern::new(locality), u32::try_from(weight).unwrap_or(0)))
            .collect()
    };
    let distribute = wire.distribute.items.iter();
    let distribute =
        distribute.map(|wire| Distribute { from: LocalityPattern::new(wire.from.as_str()), to: to(wire) });
    let failover = wire.failover.items.iter();
    let failover = failover.map(|wire| (reader.text(wire.from.as_str()), reader.text(wire.to.as_str())));
    let setting = LocalitySetting {
        enabled: wire.enabled != Some(false),
        distribute: distribute.collect(),
        failover: failover.collect(),
        failover_priority: wire
            .failover_priority
            .items
            .iter()
            .map(|label| PriorityLabel::new(label.as_str()))
            .collect(),
    };
    Arc::new(setting)
}

fn check_exclusions(wire: &LocalityWire<'_>, at: &Path<'_>, reader: &mut Reader<'_, '_>) {
    let has_failover = !wire.failover.items.is_empty();
    if has_failover && !wire.distribute.items.is_empty() {
        let message = "`distribute` and `failover` exclude each other (D-10).";
        reader.report.reject(at.field("failover"), message, "Keep one of them.");
    }
    let priorities = &wire.failover_priority.items;
    for label in priorities.iter().filter(|label| has_failover && TOPOLOGY.contains(&label.as_str())) {
        let message = format!("`failover` and {} as a priority exclude each other.", shown(label.as_str()));
        reader.report.reject(at.field("failoverPriority"), message, "Keep one of them.");
    }
}

fn check_distribute(wires: &[DistributeWire<'_>], at: &Path<'_>, reader: &mut Reader<'_, '_>) {
    for (index, wire) in wires.iter().enumerate() {
        let at = at.index(index);
        let at = at.field("to");
        let weights = wire.to.0.iter().map(|(_, weight)| weight.get());
        if weights.clone().any(|weight| !(1..=100).contains(&weight)) {
            reader.report.reject(at, "A share is not from 1 to 100.", "Leave out what gets nothing.");
        } else if weights.clone().sum::<i64>() != 100 {
            let message = format!("The shares add up to {}, not to 100.", weights.sum::<i64>());
            reader.report.reject(at, message, "Correct the shares.");
        }
        let localities: Vec<_> = wire.to.0.iter().map(|(locality, _)| locality.as_str()).collect();
        check_localities(&localities, &at, reader);
    }
    let sources: Vec<_> = wires.iter().map(|wire| wire.from.as_str()).collect();
    check_localities(&sources, at, reader);
}

/// `region/zone/subzone` with `*` at the end at most, and none within another.
fn check_localities(localities: &[&str], at: &Path<'_>, reader: &mut Reader<'_, '_>) {
    let mut seen = Localities::default();
    for locality in localities {
        let stars = locality.matches('*').count();
        if stars > 1 || (stars == 1 && !locality.ends_with('*')) {
            let message = format!("{} has a `*` that is not at the end.", shown(locality));
            reader.report.reject(at, message, "Write `region/*`, or the whole locality.");
        } else if locality.splitn(3, '/').any(str::is_empty) {
            let message = format!("{} has an empty region, zone or subzone.", shown(locality));
            reader.report.reject(at, message, "Write `region`, `region/zone` or `region/zone/subzone`.");
        } else if seen.overlaps(locality) {
            let message = format!("{} overlaps with another locality.", shown(locality));
            reader.report.reject(at, message, "Keep one of them.");
        }
    }
}

/// Localities that were named before.
#[derive(Default)]
struct Localities<'l> {
    whole: BTreeSet<&'l str>,
    /// Regions and zones that contain them.
    containing: BTreeSet<&'l str>,
}

impl<'l> Localities<'l> {
    /// Whether it is, contains or is contained in one of them; then it becomes one of them. As in Istio's admission,
    /// what a wildcard adds to localities before it is no overlap.
    fn overlaps(&mut self, locality: &'l str) -> bool {
        let mut overlaps = self.containing.contains(locality) || self.whole.contains("*");
        for (at, _) in locality.match_indices('/').take(2) {
            let part = locality.get(..at).unwrap_or_default();
            overlaps |= self.whole.contains(part) || self.whole.contains(format!("{part}/*").as_str());
            self.containing.insert(part);
        }
        overlaps | !self.whole.insert(locality)
    }
}

pub(super) fn check_zones(
    wire: Option<&ZoneWire<'_>>,
    has_outlier: bool,
    at: &Path<'_>,
    reader: &mut Reader<'_, '_>,
) {
    let Some(wire) = wire else { return };
    for (index, label) in wire.failover_priority.items.iter().enumerate() {
        if TOPOLOGY.contains(&label.as_str()) {
            let at = at.field("failoverPriority");
            let message = format!("{} is handled by itself and cannot be a priority.", shown(label.as_str()));
            reader.report.reject(at.index(index), message, "Remove it.");
        }
    }
    check_failover(&wire.failover, &wire.failover_priority, Some(has_outlier), at, reader);
    if wire.enabled != Some(false) {
        reader.not_applied(at, "endpoints of all zones get the same share (D-11)");
    }
}

fn check_failover(
    failover: &List<FailoverWire<'_>>,
    priority: &List<Text<'_>>,
    has_outlier: Option<bool>,
    at: &Path<'_>,
    reader: &mut Reader<'_, '_>,
) {
    let has_failover = !failover.items.is_empty() || !priority.items.is_empty();
    if has_failover && has_outlier == Some(false) {
        let message = "Failover acts only together with `outlierDetection` (D-10).";
        reader.report.add(codes::SCHEMA_WARNING, at, message, "Add `outlierDetection` to the policy.");
    }
    let at = at.field("failover");
    for (index, wire) in failover.items.iter().enumerate() {
        let at = at.index(index);
        let (from, to) = (wire.from.as_str(), wire.to.as_str());
        if from == to {
            let message = format!("{} cannot fail over to itself.", shown(from));
            reader.report.reject(at, message, "Name two regions.");
        }
        if [from, to].into_iter().any(|region| region.contains(['/', '*'])) {
            let message = "Failover goes from region to region, without zones and wildcards.";
            reader.report.reject(at, message, "Name two regions.");
        }
    }
}
