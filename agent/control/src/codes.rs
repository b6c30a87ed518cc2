//! Every finding that this crate reports: its code, its name and how bad it is.
//!
//! Codes of Istio's own tools begin with `IST`, ours with `WEFT`; `WEFT0001` to `WEFT0099` belong to this
//! crate. Codes are stable: scripts and CI pipelines compare them.

use weft_core::problem::Code;

/// An Istio object that Istio's own admission would reject.
pub const SCHEMA_VALIDATION: Code = Code::error("IST0106", "SchemaValidationError");
/// An Istio object that Istio's own admission would accept with a warning.
pub const SCHEMA_WARNING: Code = Code::warning("IST0133", "SchemaWarning");
/// A document that is no YAML or JSON.
pub const INVALID_DOCUMENT: Code = Code::error("WEFT0001", "InvalidDocument");
/// A Kubernetes object with a field that cannot be read.
pub const INVALID_FIELD: Code = Code::error("WEFT0002", "InvalidField");
/// A document that is not a Kubernetes object.
pub const NOT_AN_OBJECT: Code = Code::error("WEFT0003", "NotAnObject");
/// A kind, or a version of it, that does not exist in its API group.
pub const UNKNOWN_KIND: Code = Code::error("WEFT0004", "UnknownKind");
/// The same object twice; the second is not in force.
pub const DUPLICATE_OBJECT: Code = Code::error("WEFT0005", "DuplicateObject");
/// An Istio kind that this version of the mesh does not execute.
pub const KIND_NOT_APPLIED: Code = Code::info("WEFT0006", "KindNotApplied");
/// A condition that is written but has no value, and therefore matches everything.
pub const MATCHES_EVERYTHING: Code = Code::warning("WEFT0007", "MatchesEverything");
/// A file that cannot be read.
pub const UNREADABLE_FILE: Code = Code::error("WEFT0008", "UnreadableFile");
/// A configured path that is gone; the last good configuration stays in force.
pub const SOURCE_GONE: Code = Code::error("WEFT0009", "SourceGone");
/// Changes are found by looking every second instead of being told.
pub const POLLING: Code = Code::warning("WEFT0010", "PollingForChanges");
/// A fault of our own while compiling; the last snapshot stays in force.
pub const COMPILER_FAILED: Code = Code::error("WEFT0011", "CompilerFailed");
/// A selector without labels selects everything in its scope.
pub const EMPTY_SELECTOR: Code = Code::warning("WEFT0012", "EmptySelector");
/// A value that is read but has no effect.
pub const NO_EFFECT: Code = Code::warning("WEFT0013", "NoEffect");
/// A field that is valid, but that this version of the mesh does not execute.
pub const FIELD_NOT_APPLIED: Code = Code::info("WEFT0014", "FieldNotApplied");
/// A kind that the API server does not let us read.
pub const KIND_DENIED: Code = Code::error("WEFT0015", "KindDenied");
/// Changes are not heard of; the last configuration stays in force.
pub const NOT_FOLLOWED: Code = Code::error("WEFT0016", "NotFollowed");
/// Kinds that are installed later are found by asking from time to time.
pub const POLLING_FOR_KINDS: Code = Code::info("WEFT0017", "PollingForKinds");

/// The whole table, for the reference documentation and for `weft analyze --help`.
pub const ALL: &[Code] = &[
    SCHEMA_VALIDATION,
    SCHEMA_WARNING,
    INVALID_DOCUMENT,
    INVALID_FIELD,
    NOT_AN_OBJECT,
    UNKNOWN_KIND,
    DUPLICATE_OBJECT,
    KIND_NOT_APPLIED,
    MATCHES_EVERYTHING,
    UNREADABLE_FILE,
    SOURCE_GONE,
    POLLING,
    COMPILER_FAILED,
    EMPTY_SELECTOR,
    NO_EFFECT,
    FIELD_NOT_APPLIED,
    KIND_DENIED,
    NOT_FOLLOWED,
    POLLING_FOR_KINDS,
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn codes_and_names_are_unique() {
        let codes: BTreeSet<_> = ALL.iter().map(|code| code.code).collect();
        let names: BTreeSet<_> = ALL.iter().map(|code| code.name).collect();
        assert_eq!((codes.len(), names.len()), (ALL.len(), ALL.len()));
    }
}
