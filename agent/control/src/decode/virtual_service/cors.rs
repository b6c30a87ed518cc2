//! `corsPolicy` (V-28).

use std::time::Duration;

use weft_core::resource::virtual_service::{CorsPolicy, TextMatch};

use super::super::fields::{List, Text};
use super::super::networking::{Reader, header, shown};
use super::super::report::Path;
use super::matches;
use super::wire::CorsWire;

const METHODS: &[&str] =
    &["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "OPTIONS", "TRACE", "*"];

pub(super) fn cors(
    wire: Option<&CorsWire<'_>>,
    at: &Path<'_>,
    reader: &mut Reader<'_, '_>,
) -> Option<CorsPolicy> {
    let wire = wire?;
    check_methods(&wire.allow_methods, &at.field("allowMethods"), reader);
    check_headers(&wire.allow_headers, &at.field("allowHeaders"), reader);
    check_headers(&wire.expose_headers, &at.field("exposeHeaders"), reader);
    Some(CorsPolicy {
        allow_origins: origins(wire, &at.field("allowOrigins"), reader),
        allow_methods: reader.texts(&wire.allow_methods),
        allow_headers: reader.texts(&wire.allow_headers),
        expose_headers: reader.texts(&wire.expose_headers),
        max_age: max_age(wire.max_age.as_ref(), &at.field("maxAge"), reader),
        allow_credentials: wire.allow_credentials,
        ignore_unmatched_preflights: unmatched(wire, &at.field("unmatchedPreflights"), reader),
    })
}

/// `allowOrigins`; the legacy `allowOrigin` counts only without it.
fn origins(wire: &CorsWire<'_>, at: &Path<'_>, reader: &mut Reader<'_, '_>) -> Vec<TextMatch> {
    if wire.allow_origins.items.is_empty() {
        return reader.texts(&wire.allow_origin).into_iter().map(TextMatch::Exact).collect();
    }
    let origins = wire.allow_origins.items.iter().enumerate();
    origins.filter_map(|(index, origin)| matches::origin(origin, &at.index(index), reader)).collect()
}

fn check_methods(list: &List<Text<'_>>, at: &Path<'_>, reader: &mut Reader<'_, '_>) {
    for (index, method) in list.items.iter().enumerate() {
        if !METHODS.contains(&method.as_str()) {
            let message = format!("{} is not a method of HTTP.", shown(method.as_str()));
            reader.report.reject(at.index(index), message, format!("Write one of {}.", METHODS.join(", ")));
        }
    }
}

fn check_headers(list: &List<Text<'_>>, at: &Path<'_>, reader: &mut Reader<'_, '_>) {
    for (index, name) in list.items.iter().enumerate() {
        if !header::is_token(name.as_str()) {
            let message = format!("{} is not the name of a header.", shown(name.as_str()));
            reader.report.reject(at.index(index), message, "Write the name of a header, or `*`.");
        }
    }
}

/// Whole seconds: the header that carries it has no fractions.
fn max_age(text: Option<&Text<'_>>, at: &Path<'_>, reader: &mut Reader<'_, '_>) -> Option<Duration> {
    let age = reader.duration(text, at)?;
    if age.subsec_nanos() != 0 {
        let message = "The age is not a number of whole seconds.";
        reader.report.reject(at, message, "Round it to seconds.");
    }
    Some(age)
}

fn unmatched(wire: &CorsWire<'_>, at: &Path<'_>, reader: &mut Reader<'_, '_>) -> bool {
    match wire.unmatched_preflights.as_ref().map(Text::as_str) {
        None | Some("UNSPECIFIED" | "FORWARD") => false,
        Some("IGNORE") => true,
        Some(other) => {
            let message = format!("{} says nothing about preflights.", shown(other));
            reader.report.reject(at, message, "Write FORWARD or IGNORE.");
            false
        }
    }
}
