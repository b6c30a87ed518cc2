//! `headers` of rules and destinations (V-17).

use std::sync::Arc;

use weft_core::access_format::{Oddity, Template};
use weft_core::resource::virtual_service::{HeaderChanges, HeaderOperations};

use super::super::fields::{List, Pairs, Text};
use super::super::networking::{Reader, header, shown};
use super::super::report::Path;
use super::wire::{ChangesWire, HeadersWire};
use crate::codes;

/// Where a name stands: only `set` and `add` of requests may name the host.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Spot {
    RequestValue,
    Elsewhere,
}

pub(super) fn operations(
    wire: Option<&HeadersWire<'_>>,
    at: &Path<'_>,
    reader: &mut Reader<'_, '_>,
) -> HeaderOperations {
    let Some(wire) = wire else { return HeaderOperations::default() };
    let at = at.field("headers");
    let request = wire.request.as_ref();
    let response = wire.response.as_ref();
    HeaderOperations {
        request: request
            .map(|wire| changes(wire, Spot::RequestValue, &at.field("request"), reader))
            .unwrap_or_default(),
        response: response
            .map(|wire| changes(wire, Spot::Elsewhere, &at.field("response"), reader))
            .unwrap_or_default(),
    }
}

fn changes(wire: &ChangesWire<'_>, spot: Spot, at: &Path<'_>, reader: &mut Reader<'_, '_>) -> HeaderChanges {
    HeaderChanges {
        set: values(&wire.set, spot, &at.field("set"), reader),
        add: values(&wire.add, spot, &at.field("add"), reader),
        remove: removed(&wire.remove, &at.field("remove"), reader),
    }
}

fn values(
    pairs: &Pairs<'_>,
    spot: Spot,
    at: &Path<'_>,
    reader: &mut Reader<'_, '_>,
) -> Vec<(Arc<str>, Arc<str>)> {
    let mut values = Vec::with_capacity(pairs.0.len());
    for (name, value) in &pairs.0 {
        let (name, value) = (name.as_str(), value.as_str());
        let at = at.field(name);
        check_name(name, spot, &at, reader);
        if let Some(why) = header::bad_value(value) {
            let message = format!("{} is not the value of a header: {why}.", shown(value));
            reader.report.reject(at, message, "Write `%%` for a percent sign, and variables as `%NAME%`.");
        } else if value.contains('%') {
            tell_of_operators(value, &at, reader);
        }
        values.push((reader.text(name), reader.text(value)));
    }
    values
}

/// Operators that come to nothing: a header of which nothing is left is not set.
fn tell_of_operators(value: &str, at: &Path<'_>, reader: &mut Reader<'_, '_>) {
    let mut odd = Vec::new();
    Template::new(value, &mut odd);
    for oddity in odd {
        let message = match oddity {
            Oddity::Unknown(name) => format!("There is no operator `%{name}%`: it comes to nothing."),
            Oddity::Unanswered(name) => format!("The mesh has no answer to `%{name}%`: it comes to nothing."),
            // What Envoy reads otherwise was refused before.
            Oddity::Unclosed(_) => continue,
        };
        reader.report.add(
            codes::NO_EFFECT,
            at,
            message,
            "Check its spelling and its argument, or remove it.",
        );
    }
}

fn removed(list: &List<Text<'_>>, at: &Path<'_>, reader: &mut Reader<'_, '_>) -> Vec<Arc<str>> {
    for (index, name) in list.items.iter().enumerate() {
        check_name(name.as_str(), Spot::Elsewhere, &at.index(index), reader);
    }
    reader.texts(list)
}

fn check_name(name: &str, spot: Spot, at: &Path<'_>, reader: &mut Reader<'_, '_>) {
    let is_authority = header::is_authority(name);
    if name.is_empty() {
        reader.report.reject(at, "The name of a header is empty.", "Name the header.");
    } else if is_authority && spot == Spot::Elsewhere {
        let message = "The host can be set in requests only, not removed and not set in responses.";
        reader.report.reject(at, message, "Remove it; `headers.request.set` can overwrite the host.");
    } else if name.starts_with(':') && !is_authority {
        let message = format!("{} is part of the request line and no header.", shown(name));
        reader.report.reject(at, message, "Remove it; `rewrite` changes the path.");
    } else if !is_authority && !header::is_token(name) {
        let message = format!("HTTP has no header with the name {}; it is left out.", shown(name));
        reader.report.add(codes::NO_EFFECT, at, message, "Correct the name.");
    }
}

/// The host can be overwritten in one place of a rule only.
pub(super) fn check_authority(
    rewrite: &str,
    headers: Option<&HeadersWire<'_>>,
    at: &Path<'_>,
    reader: &mut Reader<'_, '_>,
) {
    let Some(request) = headers.and_then(|headers| headers.request.as_ref()) else { return };
    let mut current = rewrite;
    for (name, value) in request.set.0.iter().chain(&request.add.0) {
        if !header::is_authority(name.as_str()) {
            continue;
        }
        if !current.is_empty() {
            let message = format!(
                "The host is overwritten twice: with {} and with {}.",
                shown(current),
                shown(value.as_str())
            );
            let fix = "Keep `rewrite.authority` or one header.";
            reader.report.reject(at.field("headers").field("request"), message, fix);
            return;
        }
        current = value.as_str();
    }
}
