//! Who sees objects without an `exportTo` of their own.

use serde::Deserialize;
use weft_core::resource::ExportDefaults;
use weft_core::resource::virtual_service::ExportTo;

use super::super::fields::{List, Text};
use super::super::networking::{Reader, unchecked_exports};
use super::super::report::Path;
use crate::codes;

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
#[serde(expecting = "a map of fields")]
pub(super) struct ExportsWire<'a> {
    #[serde(borrow, default)]
    default_service_export_to: List<Text<'a>>,
    #[serde(borrow, default)]
    default_virtual_service_export_to: List<Text<'a>>,
    #[serde(borrow, default)]
    default_destination_rule_export_to: List<Text<'a>>,
}

/// Reads the lists; `at` is the place of the MeshConfig.
pub(super) fn defaults(wire: &ExportsWire<'_>, at: &Path<'_>, reader: &mut Reader<'_, '_>) -> ExportDefaults {
    let mut read = |list: &List<Text<'_>>, name: &str| {
        let at = at.field(name);
        unchecked_exports(list.items.iter().map(Text::as_str), &at, reader.interner, reader.report)
    };
    let services = read(&wire.default_service_export_to, "defaultServiceExportTo");
    let virtual_services = read(&wire.default_virtual_service_export_to, "defaultVirtualServiceExportTo");
    let rules = read(&wire.default_destination_rule_export_to, "defaultDestinationRuleExportTo");
    ExportDefaults { services, virtual_services, destination_rules: of_rules(rules, at, reader) }
}

/// Of what is written for DestinationRules Istio only looks whether `.` is among it.
fn of_rules(written: Vec<ExportTo>, at: &Path<'_>, reader: &mut Reader<'_, '_>) -> Vec<ExportTo> {
    if written.iter().any(|entry| !matches!(entry, ExportTo::All | ExportTo::Own)) {
        let message = "For DestinationRules only `.` and `*` have a meaning here.";
        let fix = "Write one of them, or `exportTo` in the objects themselves.";
        reader.report.add(codes::NO_EFFECT, at.field("defaultDestinationRuleExportTo"), message, fix);
    }
    written.into_iter().filter(|entry| *entry == ExportTo::Own).collect()
}
