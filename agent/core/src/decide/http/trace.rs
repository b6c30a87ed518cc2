//! Why did an earlier rule not take a request?

use super::matching::Field;
use crate::resource::ObjectRef;

/// Watches a decision being taken.
pub(crate) trait Observer {
    /// A match did not hold; the first field that failed.
    fn skipped(
        &mut self,
        object: &ObjectRef,
        list: &'static str,
        rule: usize,
        matched: Option<usize>,
        field: Field<'_>,
    );

    /// A VirtualService for the host did not take part.
    fn ignored(&mut self, object: &ObjectRef, why: Ignored);
}

/// Decisions that nobody watches.
impl Observer for () {
    fn skipped(&mut self, _: &ObjectRef, _: &'static str, _: usize, _: Option<usize>, _: Field<'_>) {}
    fn ignored(&mut self, _: &ObjectRef, _: Ignored) {}
}

/// Why a VirtualService for the host did not take part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ignored {
    /// Its gateways do not include the mesh (V-2).
    NotMesh,
    /// It is not exported to the client's namespace.
    NotExported,
    /// None of its rules is for this client and port.
    NoRuleForClient,
    /// An older or more specific one owns the host.
    NotOwner,
    /// It acts on hosts without a Service on other ports only (V-1).
    OtherPort,
    /// It matches Services, so it does not act on hosts without one.
    ForServices,
}

impl Ignored {
    /// The reason as the end of a sentence about the object.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotMesh => "binds gateways only, not the mesh",
            Self::NotExported => "is not exported to the client's namespace",
            Self::NoRuleForClient => "has no rule for this client and port",
            Self::NotOwner => "gives way: an older or more specific VirtualService owns the host",
            Self::OtherPort => "acts on hosts without a Service on other ports only",
            Self::ForServices => "is for the Services that it matches, not for hosts without one",
        }
    }
}

/// A match that did not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// The object.
    pub object: ObjectRef,
    /// The list in which `rule` counts.
    pub list: &'static str,
    /// Index of the rule.
    pub rule: usize,
    /// Index of the match; `None` where a delegate has it of its root.
    pub matched: Option<usize>,
    /// The first field that failed, as `uri` or `headers[end-user]`.
    pub field: String,
}

/// Everything that was passed over on the way to a decision.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trace {
    /// Matches that did not hold, in the order of asking.
    pub skipped: Vec<Skipped>,
    /// VirtualServices for the host that did not take part.
    pub ignored: Vec<(ObjectRef, Ignored)>,
}

impl Observer for Trace {
    fn skipped(
        &mut self,
        object: &ObjectRef,
        list: &'static str,
        rule: usize,
        matched: Option<usize>,
        field: Field<'_>,
    ) {
        self.skipped.push(Skipped { object: object.clone(), list, rule, matched, field: field.to_string() });
    }

    fn ignored(&mut self, object: &ObjectRef, why: Ignored) {
        self.ignored.push((object.clone(), why));
    }
}
