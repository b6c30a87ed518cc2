//! Where traffic goes (V-15, V-16).

use weft_core::resource::virtual_service::DestinationRef;

use super::super::networking::{Reader, shown};
use super::super::report::Path;
use super::wire::DestinationWire;

/// A destination that has to be there.
pub(super) fn required(
    wire: Option<&DestinationWire<'_>>,
    at: &Path<'_>,
    reader: &mut Reader<'_, '_>,
) -> Option<DestinationRef> {
    let at = at.field("destination");
    if wire.is_none() {
        let message =
            "`destination` is missing, or has no value; what stands beside it must be indented below it.";
        reader.report.reject(at, message, "Write `destination:` with `host` below it.");
    }
    destination(wire?, &at, reader)
}

pub(super) fn destination(
    wire: &DestinationWire<'_>,
    at: &Path<'_>,
    reader: &mut Reader<'_, '_>,
) -> Option<DestinationRef> {
    let host = wire.host.as_str();
    if host == "*" {
        let message = "`*` is not a destination.";
        reader.report.reject(at.field("host"), message, "Name a Service or another host.");
    }
    let host = reader.wildcard_host(host, &at.field("host"));
    if let Some(subset) = wire.subset.non_empty() {
        reader.is_label(subset, "the name of a subset", &at.field("subset"));
    }
    let port = match &wire.port {
        // `port: {}` is the port 0, which does not exist.
        Some(port) => reader.port(port.number.get(), &at.field("port").field("number")),
        None => None,
    };
    Some(DestinationRef { host, subset: reader.optional(&wire.subset), port })
}

/// Weights: none below 0, and not all 0 where there are several (V-16).
pub(super) fn check_weights(weights: &[i64], at: &Path<'_>, reader: &mut Reader<'_, '_>) {
    for (index, weight) in weights.iter().enumerate().filter(|(_, weight)| **weight < 0) {
        let at = at.index(index);
        let message = format!("The weight {} is below 0.", shown(&weight.to_string()));
        reader.report.reject(at.field("weight"), message, "Write 0 or more.");
    }
    if weights.len() > 1 && weights.iter().sum::<i64>() == 0 {
        let message = "All weights are 0, so no destination would get anything (V-16).";
        reader.report.reject(at, message, "Give at least one destination a weight.");
    }
}

/// A weight that was checked.
pub(super) fn weight(weight: i64) -> u32 {
    u32::try_from(weight).unwrap_or_default()
}
