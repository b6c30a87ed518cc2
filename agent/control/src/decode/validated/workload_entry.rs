//! WorkloadEntry.

use super::super::report::{Path, Report};
use super::Object;
use super::schema::Type;
use super::shared::{self, ENDPOINT, Owner};

/// The fields of `spec`.
pub(super) const SPEC: Type = ENDPOINT;

/// What belongs together.
pub(super) fn check(object: &Object<'_>, report: &mut Report<'_>) {
    shared::endpoint(object.spec, Owner::Itself, &Path::Root("spec"), report);
}
