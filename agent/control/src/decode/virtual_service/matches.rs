//! `http[].match[]` (V-4 to V-13).

use std::sync::Arc;

use weft_core::re2;
use weft_core::resource::virtual_service::{HttpMatch, TextMatch};

use super::super::fields::{Pairs, Text};
use super::super::networking::{Reader, header, shown};
use super::super::report::Path;
use super::Scope;
use super::wire::{HttpMatchWire, TextMatchWire};

/// Where a StringMatch stands: empty texts mean different things.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spot {
    /// `uri`: the empty prefix matches everything (V-5).
    Uri,
    /// `withoutHeaders`: `regex: "*"` asks for presence (V-7).
    WithoutHeaders,
    /// Anywhere else.
    Elsewhere,
}

pub(super) fn matches(
    wires: &[HttpMatchWire<'_>],
    scope: Scope<'_>,
    at: &Path<'_>,
    reader: &mut Reader<'_, '_>,
) -> Vec<HttpMatch> {
    wires.iter().enumerate().map(|(index, wire)| one(wire, scope, &at.index(index), reader)).collect()
}

fn one(wire: &HttpMatchWire<'_>, scope: Scope<'_>, at: &Path<'_>, reader: &mut Reader<'_, '_>) -> HttpMatch {
    if wire.stat_prefix.non_empty().is_some() {
        reader.not_applied(at.field("statPrefix"), "there are no statistics of single routes (V-14)");
    }
    let elsewhere = Spot::Elsewhere;
    let names = (Spot::Elsewhere, "headers", &wire.headers);
    let without = (Spot::WithoutHeaders, "withoutHeaders", &wire.without_headers);
    HttpMatch {
        name: reader.optional(&wire.name),
        // An empty map asks for nothing; every request has a path.
        uri: optional(wire.uri.as_ref(), Spot::Uri, &at.field("uri"), reader)
            .filter(|uri| *uri != TextMatch::Present),
        ignore_uri_case: wire.ignore_uri_case.unwrap_or_default(),
        scheme: optional(wire.scheme.as_ref(), elsewhere, &at.field("scheme"), reader),
        method: optional(wire.method.as_ref(), elsewhere, &at.field("method"), reader),
        authority: optional(wire.authority.as_ref(), elsewhere, &at.field("authority"), reader),
        headers: header_matches(names, scope, at, reader),
        without_headers: header_matches(without, scope, at, reader),
        query_params: query_params(&wire.query_params, &at.field("queryParams"), reader),
        port: reader.optional_port(wire.port.get(), &at.field("port")),
        source_labels: reader.labels(&wire.source_labels, &at.field("sourceLabels")),
        source_namespace: source_namespace(&wire.source_namespace, &at.field("sourceNamespace"), reader),
        gateways: reader.gateways(&wire.gateways, &at.field("gateways")),
    }
}

fn source_namespace(text: &Text<'_>, at: &Path<'_>, reader: &mut Reader<'_, '_>) -> Option<Arc<str>> {
    let text = text.non_empty()?;
    reader.is_label(text, "the name of a namespace", at);
    Some(reader.text(text))
}

fn header_matches(
    (spot, name, wires): (Spot, &str, &Pairs<'_, TextMatchWire<'_>>),
    scope: Scope<'_>,
    at: &Path<'_>,
    reader: &mut Reader<'_, '_>,
) -> Vec<(Arc<str>, TextMatch)> {
    let at = at.field(name);
    let mut matches = Vec::with_capacity(wires.0.len());
    for (name, wire) in &wires.0 {
        let name = name.as_str();
        let at = at.field(name);
        check_name(name, scope, &at, reader);
        let Some(value) = text_match(wire, spot, &at, reader) else { continue };
        // Names of claims have a case, names of headers have none.
        let name =
            if header::is_claim(name) { reader.text(name) } else { reader.text(&name.to_ascii_lowercase()) };
        matches.push((name, value));
    }
    matches
}

fn check_name(name: &str, scope: Scope<'_>, at: &Path<'_>, reader: &mut Reader<'_, '_>) {
    if header::is_claim(name) && !scope.gateways_only {
        let message = "Claims of tokens can be matched at gateways only (V-6).";
        reader.report.reject(at, message, "Bind the VirtualService to gateways only, or match a header.");
    } else if !header::is_matchable(name) {
        let message = format!("{} is not the name of a header.", shown(name));
        reader.report.reject(at, message, "Correct the name.");
    }
}

fn query_params(
    wires: &Pairs<'_, TextMatchWire<'_>>,
    at: &Path<'_>,
    reader: &mut Reader<'_, '_>,
) -> Vec<(Arc<str>, TextMatch)> {
    let mut matches = Vec::with_capacity(wires.0.len());
    for (name, wire) in &wires.0 {
        if let Some(value) = text_match(wire, Spot::Elsewhere, &at.field(name.as_str()), reader) {
            matches.push((reader.text(name.as_str()), value));
        }
    }
    matches
}

fn optional(
    wire: Option<&TextMatchWire<'_>>,
    spot: Spot,
    at: &Path<'_>,
    reader: &mut Reader<'_, '_>,
) -> Option<TextMatch> {
    text_match(wire?, spot, at, reader)
}

/// A StringMatch; `None` if it is invalid, which has been reported.
fn text_match(
    wire: &TextMatchWire<'_>,
    spot: Spot,
    at: &Path<'_>,
    reader: &mut Reader<'_, '_>,
) -> Option<TextMatch> {
    match (&wire.exact, &wire.prefix, &wire.regex) {
        (None, None, None) => Some(TextMatch::Present),
        (Some(exact), None, None) => Some(TextMatch::Exact(reader.text(exact.as_str()))),
        (None, Some(prefix), None) if prefix.non_empty().is_none() && spot != Spot::Uri => {
            let message = "An empty prefix matches everything; Istio does not allow it here.";
            reader.report.reject(at.field("prefix"), message, "Write a prefix, or `{}` to ask for presence.");
            None
        }
        (None, Some(prefix), None) => Some(TextMatch::Prefix(reader.text(prefix.as_str()))),
        (None, None, Some(regex)) if regex.as_str() == "*" && spot == Spot::WithoutHeaders => {
            Some(TextMatch::Present)
        }
        (None, None, Some(regex)) => {
            expression(regex.as_str(), &at.field("regex"), reader).map(TextMatch::Regex)
        }
        _ => {
            let message = "`exact`, `prefix` and `regex` exclude each other.";
            reader.report.reject(at, message, "Keep one of them.");
            None
        }
    }
}

/// A regular expression of RE2.
pub(super) fn expression(text: &str, at: &Path<'_>, reader: &mut Reader<'_, '_>) -> Option<Arc<str>> {
    if text.is_empty() {
        let message = "An empty expression matches nothing but the empty text; Istio does not allow it.";
        reader.report.reject(at, message, "Write an expression.");
        return None;
    }
    if let Err(reason) = re2::whole(text) {
        let message = format!("{} is not a regular expression of RE2: {reason}.", shown(text));
        reader.report.reject(
            at,
            message,
            "Correct it; RE2's syntax is described at github.com/google/re2/wiki/Syntax.",
        );
        return None;
    }
    Some(reader.text(text))
}

/// An origin of `corsPolicy.allowOrigins`: never empty.
pub(super) fn origin(
    wire: &TextMatchWire<'_>,
    at: &Path<'_>,
    reader: &mut Reader<'_, '_>,
) -> Option<TextMatch> {
    let texts = [&wire.exact, &wire.prefix, &wire.regex];
    if texts.into_iter().flatten().all(|text| text.non_empty().is_none()) {
        let message = "An origin must not be empty (V-28).";
        reader.report.reject(at, message, "Write `exact`, `prefix` or `regex` with a value.");
        return None;
    }
    text_match(wire, Spot::Elsewhere, at, reader)
}
