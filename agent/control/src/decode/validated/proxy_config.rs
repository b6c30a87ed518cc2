//! ProxyConfig.

use super::super::report::{Path, Report};
use super::Object;
use super::schema::{MANY, NOT_NEGATIVE, TEXT, Type, may, short};
use super::shared::{self, SELECTOR};

/// The fields of `spec`.
pub(super) const SPEC: Type = Type::Object(&[
    may("concurrency", NOT_NEGATIVE),
    may("environmentVariables", Type::Map(&short(2048), MANY)),
    may("image", Type::Object(&[may("imageType", TEXT)])),
    may("selector", SELECTOR),
]);

/// What belongs together.
pub(super) fn check(object: &Object<'_>, report: &mut Report<'_>) {
    shared::selector(object.spec, "selector", "matchLabels", &Path::Root("spec"), report);
}
