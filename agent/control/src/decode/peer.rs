//! PeerAuthentication (PA-1 to PA-3), validated as Istio's admission does.

use serde::Deserialize;
use weft_core::resource::{Kind, MtlsMode, PeerAuthentication, Resource};

use super::Read;
use super::fields::{Body, Pairs, Text};
use super::intern::Interner;
use super::meta::{self, ObjectWire};
use super::report::{Path, Place, Report};
use super::validate::{self, SelectorWire};

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[serde(expecting = "a map of fields")]
struct PeerSpec<'a> {
    #[serde(borrow, default)]
    selector: Option<SelectorWire<'a>>,
    #[serde(borrow, default)]
    mtls: Option<MtlsWire<'a>>,
    #[serde(borrow, default)]
    port_level_mtls: Option<Pairs<'a, Option<MtlsWire<'a>>>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(expecting = "a map with `mode`")]
struct MtlsWire<'a> {
    #[serde(borrow, default)]
    mode: Option<Text<'a>>,
}

pub(super) fn peer_authentication<'a>(body: Body<'_>, place: Place<'a>, interner: &mut Interner) -> Read<'a> {
    let wire: ObjectWire<'_, PeerSpec<'_>> = body.read()?;
    let (meta, mut report) = meta::namespaced(&wire.metadata, Kind::PeerAuthentication, place, interner);
    validate::no_dry_run(&wire.metadata, &mut report);
    validate::no_reserved_annotations(&wire.metadata, &mut report);
    let spec = wire.spec.unwrap_or_default();
    let selector = validate::selector(spec.selector.as_ref(), interner, &mut report);
    let is_written = |(_, mtls): &(Text<'_>, Option<MtlsWire<'_>>)| mtls.is_some();
    if spec.port_level_mtls.as_ref().is_some_and(|ports| !ports.0.iter().any(is_written)) {
        let fix = "Write the modes of ports, or remove the field.";
        report.reject("spec.portLevelMtls", "The map is empty.", fix);
    }
    let ports = port_modes(&spec.port_level_mtls.unwrap_or_default(), &mut report);
    if selector.as_ref().is_none_or(|labels| labels.is_empty()) && !ports.is_empty() {
        let message =
            "Modes of ports need a selector: mesh-wide and namespace-wide objects cannot have them (PA-3).";
        report.reject(
            "spec.portLevelMtls",
            message,
            "Add `selector.matchLabels`, or remove `portLevelMtls`.",
        );
    }
    let mode = spec.mtls.and_then(|mtls| mode(&mtls, &Path::Root("spec.mtls.mode"), &mut report));
    Ok((Resource::PeerAuthentication(PeerAuthentication { meta, selector, mode, ports }), report))
}

fn port_modes(
    wires: &Pairs<'_, Option<MtlsWire<'_>>>,
    report: &mut Report<'_>,
) -> Vec<(u16, Option<MtlsMode>)> {
    let root = Path::Root("spec.portLevelMtls");
    let mut ports: Vec<(u16, Option<MtlsMode>)> = Vec::with_capacity(wires.0.len());
    // The API server leaves out entries that are `null`.
    for (key, wire) in wires.0.iter().filter_map(|(key, wire)| Some((key, wire.as_ref()?))) {
        let at = root.field(key.as_str());
        let Some(port) = validate::port(key.as_str()).filter(|_| !key.as_str().starts_with('0')) else {
            let message = format!("`{}` is not a port from 1 to 65535.", key.as_str());
            report.reject(at, message, "Write the number of a port of the workload.");
            continue;
        };
        if ports.iter().any(|(other, _)| *other == port) {
            report.reject(at, format!("Port {port} is listed twice."), "Keep only one of them.");
        }
        let mode = mode(wire, &at.field("mode"), report);
        ports.push((port, mode));
    }
    ports.sort_by_key(|(port, _)| *port);
    ports
}

fn mode(wire: &MtlsWire<'_>, at: &Path<'_>, report: &mut Report<'_>) -> Option<MtlsMode> {
    match wire.mode.as_ref()?.as_str() {
        "UNSET" => None,
        "DISABLE" => Some(MtlsMode::Disable),
        "PERMISSIVE" => Some(MtlsMode::Permissive),
        "STRICT" => Some(MtlsMode::Strict),
        other => {
            let message = format!("`{other}` is not a mode.");
            report.reject(at, message, "Write UNSET, DISABLE, PERMISSIVE or STRICT.");
            None
        }
    }
}
