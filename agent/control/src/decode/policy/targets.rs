//! What a policy is attached to: `selector`, `targetRef`, `targetRefs` (AP-3).

use serde::Deserialize;

use super::super::fields::{List, Text};
use super::super::report::{Path, Report};
use super::super::validate::SelectorWire;

/// Most `targetRefs` of one policy.
const MAX_TARGET_REFS: usize = 16;

/// Most bytes of an object's name.
const LONGEST_NAME: usize = 253;

/// A reference to the object that a policy is attached to.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(expecting = "a map of fields")]
pub(in crate::decode) struct TargetRefWire<'a> {
    #[serde(borrow, default)]
    group: Text<'a>,
    #[serde(borrow, default)]
    kind: Text<'a>,
    #[serde(borrow, default)]
    name: Text<'a>,
    #[serde(borrow, default)]
    namespace: Text<'a>,
}

/// The three ways to say where a policy applies, of which only one may be used.
#[derive(Clone, Copy)]
pub(in crate::decode) struct Targets<'s, 'a> {
    pub(in crate::decode) selector: &'s Option<SelectorWire<'a>>,
    pub(in crate::decode) one: &'s Option<TargetRefWire<'a>>,
    pub(in crate::decode) several: &'s List<TargetRefWire<'a>>,
}

impl Targets<'_, '_> {
    /// Whether the policy is for gateways and the like, and no business of ordinary workloads.
    pub(in crate::decode) fn are_set(&self) -> bool {
        self.one.is_some() || !self.several.items.is_empty()
    }

    /// AP-3: selector xor targetRefs, empty or not, and only references that exist for policies.
    pub(in crate::decode) fn check(&self, report: &mut Report<'_>) {
        let single = self.one.iter().map(|target| (Path::Root("spec.targetRef"), target));
        let list = Path::Root("spec.targetRefs");
        let several = self.several.items.iter().enumerate().map(|(at, target)| (list.index(at), target));
        for (at, target) in single.chain(several) {
            target.check(&at, report);
        }
        let ways = [self.selector.is_some(), self.one.is_some(), self.several.listed];
        if ways.into_iter().filter(|way| *way).count() > 1 {
            let message =
                "Only one of `selector`, `targetRef` and `targetRefs` can say where the policy applies.";
            report.reject("spec", message, "Keep one of them.");
        }
        if self.several.items.len() > MAX_TARGET_REFS {
            let message =
                format!("There are {} references, more than {MAX_TARGET_REFS}.", self.several.items.len());
            report.reject("spec.targetRefs", message, "Split the policy.");
        }
    }
}

impl TargetRefWire<'_> {
    fn check(&self, at: &Path<'_>, report: &mut Report<'_>) {
        if self.name.non_empty().is_none() {
            report.reject(at.field("name"), "The reference has no name.", "Name the object.");
        }
        if self.name.as_str().len() > LONGEST_NAME {
            let message = format!("No name has more than {LONGEST_NAME} bytes.");
            report.reject(at.field("name"), message, "Name the object.");
        }
        if let Some(namespace) = self.namespace.non_empty() {
            let message = format!("A policy cannot refer to another namespace (`{namespace}`).");
            report.reject(at.field("namespace"), message, "Remove it, and put the policy beside the object.");
        }
        let known = matches!(
            (self.group.as_str(), self.kind.as_str()),
            ("gateway.networking.k8s.io", "Gateway" | "GatewayClass")
                | ("" | "core", "Service")
                | ("networking.istio.io", "ServiceEntry")
        );
        if !known {
            let message =
                format!("A policy cannot refer to `{}/{}`.", self.group.as_str(), self.kind.as_str());
            let fix = "Refer to a Gateway, GatewayClass, Service or ServiceEntry.";
            report.reject(at.field("kind"), message, fix);
        }
    }
}
