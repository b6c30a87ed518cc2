//! Selectors over sets of labels, as Kubernetes has them (`LabelSelector` of meta/v1).

use std::sync::Arc;

use super::Labels;

/// A set of conditions on labels, all of which must hold; without any it selects everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LabelSelector {
    /// `matchLabels`.
    pub labels: Labels,
    /// `matchExpressions`.
    pub expressions: Vec<LabelRequirement>,
}

/// One condition on one label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelRequirement {
    /// `key`.
    pub key: Arc<str>,
    /// `operator`, with `values`.
    pub operator: LabelOperator,
}

/// What a [`LabelRequirement`] asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LabelOperator {
    /// The label is there, with one of these values.
    In(Vec<Arc<str>>),
    /// The label has none of these values, or is not there.
    NotIn(Vec<Arc<str>>),
    /// The label is there.
    Exists,
    /// The label is not there.
    DoesNotExist,
}

impl LabelSelector {
    /// Whether all conditions hold for these labels.
    pub fn selects(&self, labels: &Labels) -> bool {
        self.labels.is_subset_of(labels) && self.expressions.iter().all(|one| one.holds_for(labels))
    }
}

impl LabelRequirement {
    fn holds_for(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        let among = |values: &[Arc<str>]| value.is_some_and(|value| values.iter().any(|one| **one == *value));
        match &self.operator {
            LabelOperator::In(values) => among(values),
            LabelOperator::NotIn(values) => !among(values),
            LabelOperator::Exists => value.is_some(),
            LabelOperator::DoesNotExist => value.is_none(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::labels;

    #[test]
    fn operators_hold_as_in_kubernetes() {
        let holds = |operator: LabelOperator, on: &str| {
            LabelRequirement { key: "env".into(), operator }.holds_for(&labels(on))
        };
        let values = || vec!["prod".into(), "stage".into()];
        for (on, one_of, none_of, there) in [
            ("env=prod", true, false, true),
            ("env=test", false, true, true),
            ("env=", false, true, true),
            ("other=prod", false, true, false),
        ] {
            assert_eq!(holds(LabelOperator::In(values()), on), one_of, "{on}");
            assert_eq!(holds(LabelOperator::NotIn(values()), on), none_of, "{on}");
            assert_eq!(holds(LabelOperator::Exists, on), there, "{on}");
            assert_eq!(holds(LabelOperator::DoesNotExist, on), !there, "{on}");
        }
    }

    #[test]
    fn all_conditions_must_hold_and_none_selects_everything() {
        let exists = LabelRequirement { key: "team".into(), operator: LabelOperator::Exists };
        let selector = LabelSelector { labels: labels("mesh=on"), expressions: vec![exists] };
        assert!(selector.selects(&labels("mesh=on,team=a")));
        assert!(!selector.selects(&labels("mesh=on")) && !selector.selects(&labels("mesh=off,team=a")));
        assert!(LabelSelector::default().selects(&labels("")));
    }
}
