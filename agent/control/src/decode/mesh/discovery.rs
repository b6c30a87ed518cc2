//! Which namespaces the mesh looks at: `discoverySelectors` (C-1).

use std::sync::Arc;

use serde::Deserialize;
use weft_core::resource::LabelSelector;
use weft_core::resource::label_selector::{LabelOperator, LabelRequirement};

use super::super::fields::{List, Pairs, Text};
use super::super::networking::{Reader, shown};
use super::super::report::Path;
use super::super::validated::names;

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
#[serde(expecting = "a map of fields")]
pub(super) struct DiscoveryWire<'a> {
    #[serde(borrow, default)]
    discovery_selectors: List<SelectorWire<'a>>,
}

/// Fields that nobody knows are refused: what remains of a selector without them selects more than was meant.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[serde(expecting = "a map with `matchLabels` or `matchExpressions`")]
struct SelectorWire<'a> {
    #[serde(borrow, default)]
    match_labels: Pairs<'a>,
    #[serde(borrow, default)]
    match_expressions: List<RequirementWire<'a>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(expecting = "a map with `key`, `operator` and `values`")]
struct RequirementWire<'a> {
    #[serde(borrow, default)]
    key: Text<'a>,
    #[serde(borrow, default)]
    operator: Text<'a>,
    #[serde(borrow, default)]
    values: List<Text<'a>>,
}

/// Reads the selectors; `at` is the place of the MeshConfig.
pub(super) fn selectors(
    wire: &DiscoveryWire<'_>,
    at: &Path<'_>,
    reader: &mut Reader<'_, '_>,
) -> Arc<[LabelSelector]> {
    let list = at.field("discoverySelectors");
    let selectors = wire.discovery_selectors.items.iter().enumerate();
    selectors.map(|(at, selector)| one(selector, &list.index(at), reader)).collect()
}

fn one(wire: &SelectorWire<'_>, at: &Path<'_>, reader: &mut Reader<'_, '_>) -> LabelSelector {
    let labels = reader.labels(&wire.match_labels, &at.field("matchLabels"));
    let list = at.field("matchExpressions");
    let expressions = wire.match_expressions.items.iter().enumerate();
    let expressions =
        expressions.filter_map(|(at, requirement)| expression(requirement, &list.index(at), reader));
    LabelSelector { expressions: expressions.collect(), labels }
}

/// Kubernetes' own rules: `In` and `NotIn` need values, the others take none.
fn expression(
    wire: &RequirementWire<'_>,
    at: &Path<'_>,
    reader: &mut Reader<'_, '_>,
) -> Option<LabelRequirement> {
    if !names::is_label_key(wire.key.as_str()) {
        let message = format!("{} is not the name of a label.", shown(wire.key.as_str()));
        reader.report.reject(at.field("key"), message, "Name the label that the condition is about.");
    }
    for value in wire.values.items.iter().map(Text::as_str).filter(|value| !names::is_label_value(value)) {
        let message = format!("{} is not the value of a label.", shown(value));
        reader.report.reject(at.field("values"), message, "Write a value that a label can have.");
    }
    let values: Vec<_> = wire.values.items.iter().map(|value| reader.text(value.as_str())).collect();
    let operator = match (wire.operator.as_str(), values.is_empty()) {
        ("In", false) => LabelOperator::In(values),
        ("NotIn", false) => LabelOperator::NotIn(values),
        ("Exists", true) => LabelOperator::Exists,
        ("DoesNotExist", true) => LabelOperator::DoesNotExist,
        ("In" | "NotIn", true) => {
            reader.report.reject(at.field("values"), "There are no values to compare with.", "List some.");
            return None;
        }
        ("Exists" | "DoesNotExist", false) => {
            let message = format!("{} compares with no values.", wire.operator.as_str());
            reader.report.reject(at.field("values"), message, "Remove the values, or write In or NotIn.");
            return None;
        }
        (other, _) => {
            let message = format!("{} is not an operator.", shown(other));
            reader.report.reject(at.field("operator"), message, "Write In, NotIn, Exists or DoesNotExist.");
            return None;
        }
    };
    Some(LabelRequirement { key: reader.text(wire.key.as_str()), operator })
}
