//! DestinationRule, validated as Istio's admission does (D-1 to D-20).

mod load_balancer;
mod locality;
mod policy;
mod pool;
mod tls;
mod wire;

pub(super) use self::locality::locality;
pub(super) use self::policy::policy as traffic_policy;
pub(super) use self::pool::{keep_alive, upgrade};
pub(super) use self::wire::{KeepAliveWire, LocalityWire, PolicyWire};

use std::collections::BTreeSet;

use weft_core::resource::destination_rule::Subset;
use weft_core::resource::{DestinationRule, Kind, Labels, Resource};

use super::Read;
use super::fields::Body;
use super::intern::Interner;
use super::meta::{self, ObjectWire};
use super::networking::{self, Reader, shown};
use super::report::{Path, Place};
use super::validate::SelectorWire;
use crate::codes;
use wire::{SpecWire, SubsetWire};

/// Most characters of a label's value in a selector, and most labels of it.
const MAX_LABEL_VALUE: usize = 63;
const MAX_LABELS: usize = 4096;

pub(super) fn destination_rule<'a>(body: Body<'_>, place: Place<'a>, interner: &mut Interner) -> Read<'a> {
    let wire: ObjectWire<'_, SpecWire<'_>> = body.read()?;
    let (meta, mut report) = meta::namespaced(&wire.metadata, Kind::DestinationRule, place, interner);
    networking::check_annotations(&wire.metadata, &mut report);
    let spec = wire.spec.unwrap_or_default();
    let mut reader = Reader { interner, report: &mut report, namespace: meta.key.namespace.clone() };
    let host = reader.wildcard_host(spec.host.as_str(), &Path::Root("spec.host"));
    let at_policy = Path::Root("spec.trafficPolicy");
    let policy = spec.traffic_policy.as_ref().map(|policy| policy::policy(policy, &at_policy, &mut reader));
    let subsets = subsets(&spec.subsets.items, &mut reader);
    let export_to = reader.export_to(&spec.export_to, spec.workload_selector.is_some());
    let workload_selector =
        spec.workload_selector.as_ref().map(|selector| self::selector(selector, &mut reader));
    let rule = DestinationRule { meta, host, policy, subsets, export_to, workload_selector };
    Ok((Resource::DestinationRule(rule), report))
}

/// `spec.subsets` (D-4).
fn subsets(wires: &[SubsetWire<'_>], reader: &mut Reader<'_, '_>) -> Vec<Subset> {
    let root = Path::Root("spec.subsets");
    let mut subsets = Vec::with_capacity(wires.len());
    let mut names = BTreeSet::new();
    for (index, wire) in wires.iter().enumerate() {
        let at = root.index(index);
        let name = wire.name.as_str();
        if name.is_empty() {
            reader.report.reject(at.field("name"), "The subset has no name.", "Name it.");
        } else if reader.is_label(name, "the name of a subset", &at.field("name")) && !names.insert(name) {
            let message = format!("There are two subsets with the name {}.", shown(name));
            reader.report.reject(at.field("name"), message, "Give each subset a name of its own.");
        }
        let at_policy = at.field("trafficPolicy");
        let policy = wire.traffic_policy.as_ref().map(|policy| policy::policy(policy, &at_policy, reader));
        let labels = reader.labels(&wire.labels, &at.field("labels"));
        subsets.push(Subset { name: reader.text(name), labels, policy });
    }
    subsets
}

/// `spec.workloadSelector` (D-3).
fn selector(wire: &SelectorWire<'_>, reader: &mut Reader<'_, '_>) -> Labels {
    let at = Path::Root("spec.workloadSelector.matchLabels");
    let pairs = &wire.match_labels.0;
    if pairs.is_empty() {
        let message = "The selector has no labels, so it selects every workload of the namespace.";
        let fix = "Add labels, or remove `workloadSelector`.";
        reader.report.add(codes::SCHEMA_WARNING, Path::Root("spec.workloadSelector"), message, fix);
    }
    if pairs.len() > MAX_LABELS {
        reader.report.reject(at, format!("There are more than {MAX_LABELS} labels."), "Remove some.");
    }
    for (key, value) in pairs {
        let (key, value) = (key.as_str(), value.as_str());
        if key.is_empty() {
            reader.report.reject(at, "A label without a name selects nothing.", "Name the label.");
        }
        if key.contains('*') || value.contains('*') {
            let message =
                format!("{} has a `*`, but selectors have no wildcards.", shown(&format!("{key}: {value}")));
            reader.report.reject(at, message, "Write the whole label.");
        }
        if value.chars().count() > MAX_LABEL_VALUE {
            let message = format!("{} is longer than {MAX_LABEL_VALUE} characters.", shown(value));
            reader.report.reject(at.field(key), message, "Shorten the value.");
        }
    }
    reader.interned_labels(&wire.match_labels)
}
