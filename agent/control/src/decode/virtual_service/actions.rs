//! `redirect`, `directResponse` and `rewrite` (V-18 to V-20).

use weft_core::resource::virtual_service::{DirectResponse, Redirect, RedirectPort, Rewrite};

use super::super::networking::numbers::base64;
use super::super::networking::{Reader, shown};
use super::super::report::Path;
use super::matches;
use super::wire::{BodyWire, DirectResponseWire, HttpMatchWire, HttpWire, RedirectWire, RewriteWire};
use crate::codes;

/// Longest body of a direct response, in bytes.
const MAX_BODY: usize = 1 << 20;
/// From this length on a body is worth a warning.
const LARGE_BODY: usize = 100 << 10;
/// 301, when the redirect names no code.
const MOVED_PERMANENTLY: u16 = 301;

pub(super) fn redirect(wire: &HttpWire<'_>, at: &Path<'_>, reader: &mut Reader<'_, '_>) -> Option<Redirect> {
    let redirect = wire.redirect.as_ref()?;
    check_target(redirect, &wire.matches.items, at, reader);
    let code = redirect.redirect_code.get();
    if code != 0 && !(300..400).contains(&code) {
        let message = format!("{code} is not the code of a redirect.");
        reader.report.reject(at.field("redirectCode"), message, "Write 301, 302, 303, 307 or 308.");
    }
    if !matches!(redirect.scheme.as_str(), "" | "http" | "https") {
        let message = format!("{} is not the scheme of a redirect.", shown(redirect.scheme.as_str()));
        reader.report.reject(at.field("scheme"), message, "Write http or https.");
    }
    Some(Redirect {
        uri: reader.optional(&redirect.uri),
        prefix_rewrite: reader.optional(&redirect.prefix_rewrite),
        authority: reader.optional(&redirect.authority),
        port: port(redirect, at, reader),
        scheme: reader.optional(&redirect.scheme),
        code: u16::try_from(code).ok().filter(|code| *code != 0).unwrap_or(MOVED_PERMANENTLY),
    })
}

/// A redirect has to lead elsewhere, in one way.
fn check_target(
    wire: &RedirectWire<'_>,
    conditions: &[HttpMatchWire<'_>],
    at: &Path<'_>,
    reader: &mut Reader<'_, '_>,
) {
    let prefix = wire.prefix_rewrite.non_empty().is_some();
    if prefix && wire.uri.non_empty().is_some() {
        let message = "`uri` and `prefixRewrite` exclude each other.";
        reader.report.reject(at.field("prefixRewrite"), message, "Keep one of them.");
    }
    let other =
        |condition: &HttpMatchWire<'_>| condition.uri.as_ref().is_some_and(|uri| uri.prefix.is_none());
    if prefix && conditions.iter().any(other) {
        let message = "`prefixRewrite` needs a prefix: every `match.uri` of the rule has to be one.";
        reader.report.reject(
            at.field("prefixRewrite"),
            message,
            "Match with `uri.prefix`, or redirect with `uri`.",
        );
    }
    let texts = [&wire.uri, &wire.prefix_rewrite, &wire.authority, &wire.scheme];
    let has_port = wire.port.is_written() || wire.derive_port.is_some();
    if texts.iter().all(|text| text.non_empty().is_none()) && !has_port {
        let message = "The redirect leads to where the request went already.";
        reader.report.reject(at, message, "Write `uri`, `prefixRewrite`, `authority`, `scheme` or `port`.");
    }
}

fn port(wire: &RedirectWire<'_>, at: &Path<'_>, reader: &mut Reader<'_, '_>) -> Option<RedirectPort> {
    if wire.port.is_written() && wire.derive_port.is_some() {
        let message = "`port` and `derivePort` exclude each other.";
        reader.report.reject(at.field("derivePort"), message, "Keep one of them.");
    }
    let Some(derived) = &wire.derive_port else {
        return reader.optional_port(wire.port.get(), &at.field("port")).map(RedirectPort::Number);
    };
    match derived.as_str() {
        "FROM_PROTOCOL_DEFAULT" => Some(RedirectPort::ProtocolDefault),
        "FROM_REQUEST_PORT" => Some(RedirectPort::RequestPort),
        other => {
            let message = format!("{} is not a way to derive a port.", shown(other));
            let fix = "Write FROM_PROTOCOL_DEFAULT or FROM_REQUEST_PORT.";
            reader.report.reject(at.field("derivePort"), message, fix);
            None
        }
    }
}

pub(super) fn direct_response(
    wire: Option<&DirectResponseWire<'_>>,
    at: &Path<'_>,
    reader: &mut Reader<'_, '_>,
) -> Option<DirectResponse> {
    let wire = wire?;
    let status = status(wire.status.get(), &at.field("status"), reader);
    let body = wire.body.as_ref().map(|body| self::body(body, &at.field("body"), reader)).unwrap_or_default();
    if body.len() > MAX_BODY {
        let message = format!("The body has {} bytes, more than {MAX_BODY}.", body.len());
        reader.report.reject(at.field("body"), message, "Let a Service answer with so much.");
    } else if body.len() > LARGE_BODY {
        let message =
            format!("The body has {} bytes, which every node of the mesh keeps in memory.", body.len());
        reader.report.add(
            codes::SCHEMA_WARNING,
            at.field("body"),
            message,
            "Let a Service answer with so much.",
        );
    }
    Some(DirectResponse { status: status.unwrap_or(500), body: body.into() })
}

fn body(wire: &BodyWire<'_>, at: &Path<'_>, reader: &mut Reader<'_, '_>) -> Vec<u8> {
    match (&wire.string, &wire.bytes) {
        (Some(_), Some(_)) => {
            let message = "`string` and `bytes` exclude each other.";
            reader.report.reject(at, message, "Keep one of them.");
            Vec::new()
        }
        (Some(text), None) => text.as_str().as_bytes().to_vec(),
        (None, Some(text)) => text.non_empty().and_then(base64).unwrap_or_else(|| {
            let message = "The value is not base64.";
            reader.report.reject(at.field("bytes"), message, "Encode it, or write it as `string`.");
            Vec::new()
        }),
        (None, None) => Vec::new(),
    }
}

/// A status that can be answered with; Istio lets 600 pass.
pub(super) fn status(status: i64, at: &Path<'_>, reader: &mut Reader<'_, '_>) -> Option<u16> {
    let valid = u16::try_from(status).ok().filter(|status| (200..=600).contains(status));
    if valid.is_none() {
        let message = format!("{status} is not a status to answer with.");
        reader.report.reject(at, message, "Write a number from 200 to 599.");
    }
    valid
}

pub(super) fn rewrite(
    wire: Option<&RewriteWire<'_>>,
    at: &Path<'_>,
    reader: &mut Reader<'_, '_>,
) -> Option<Rewrite> {
    let wire = wire?;
    let has_uri = wire.uri.non_empty().is_some();
    if has_uri && wire.uri_regex_rewrite.is_some() {
        let message = "`uri` and `uriRegexRewrite` exclude each other.";
        reader.report.reject(at.field("uriRegexRewrite"), message, "Keep one of them.");
    }
    if !has_uri && wire.uri_regex_rewrite.is_none() && wire.authority.non_empty().is_none() {
        let message = "The rewrite changes nothing.";
        reader.report.reject(at, message, "Write `uri`, `uriRegexRewrite` or `authority`.");
    }
    let at = at.field("uriRegexRewrite");
    let regex = wire.uri_regex_rewrite.as_ref().and_then(|regex| {
        if regex.matches.non_empty().is_none() || regex.rewrite.non_empty().is_none() {
            let message = "Both `match` and `rewrite` are needed.";
            reader.report.reject(at, message, "Write the expression and its replacement.");
            return None;
        }
        let expression = matches::expression(regex.matches.as_str(), &at.field("match"), reader)?;
        Some((expression, reader.text(regex.rewrite.as_str())))
    });
    Some(Rewrite { uri: reader.optional(&wire.uri), regex, authority: reader.optional(&wire.authority) })
}
