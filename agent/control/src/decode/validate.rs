//! What Istio's admission checks, shared by its kinds.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use weft_core::resource::{Labels, ServiceAccountMatch, StringMatch};

use super::fields::{Pairs, Text, without_nulls};
use super::intern::Interner;
use super::meta::MetaWire;
use super::report::{Path, Report};
use crate::codes;

/// `spec.selector`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[serde(expecting = "a map with `matchLabels`")]
pub(super) struct SelectorWire<'a> {
    #[serde(borrow, default, deserialize_with = "without_nulls")]
    pub(super) match_labels: Pairs<'a>,
}

/// Most bytes of a label's value.
const LONGEST_LABEL: usize = 63;

const DRY_RUN: &str = "istio.io/dry-run";
const DRY_RUN_FIELD: &str = "metadata.annotations[istio.io/dry-run]";

/// The labels of a selector; `None` if there are none, which selects the whole scope.
pub(super) fn selector(
    wire: Option<&SelectorWire<'_>>,
    interner: &mut Interner,
    report: &mut Report<'_>,
) -> Option<Labels> {
    let pairs = &wire?.match_labels.0;
    let field = "spec.selector.matchLabels";
    if pairs.is_empty() {
        let message = "The selector has no labels, so it selects every workload of its scope.";
        report.add(codes::EMPTY_SELECTOR, "spec.selector", message, "Add labels, or remove `selector`.");
        return None;
    }
    for (key, value) in pairs {
        let (key, value) = (key.as_str(), value.as_str());
        if key.is_empty() {
            report.reject(
                field,
                format!("A label without a name (`: {value}`) selects nothing."),
                "Name the label.",
            );
        }
        if key.contains('*') || value.contains('*') {
            let message = format!("`{key}: {value}` has a `*`, but selectors have no wildcards.");
            report.reject(field, message, "Write the whole label.");
        }
        if value.len() > LONGEST_LABEL {
            let message = format!("The value of `{key}` has {} bytes.", value.len());
            report.reject(field, message, "A value of a label has at most 63.");
        }
    }
    let texts = pairs.iter().map(|(key, value)| (interner.text(key.as_str()), interner.text(value.as_str())));
    Some(Labels::from_iter(texts.collect::<Vec<_>>()))
}

/// The value of the dry-run annotation of a kind (and action) that can have one.
pub(super) fn dry_run(wire: &MetaWire<'_>, report: &mut Report<'_>) -> bool {
    let Some(value) = wire.annotations.get(DRY_RUN).map(Text::as_str) else { return false };
    // The spellings of Go's strconv.ParseBool.
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => true,
        "0" | "f" | "F" | "false" | "FALSE" | "False" => false,
        _ => {
            report.reject(
                DRY_RUN_FIELD,
                format!("`{value}` is neither true nor false."),
                "Write \"true\" or \"false\".",
            );
            false
        }
    }
}

/// Rejects the dry-run annotation where it has no meaning.
pub(super) fn no_dry_run(wire: &MetaWire<'_>, report: &mut Report<'_>) {
    if wire.annotations.get(DRY_RUN).is_some() {
        let message = "Only an AuthorizationPolicy with the action ALLOW or DENY can be tried out.";
        report.reject(DRY_RUN_FIELD, message, "Remove the annotation.");
    }
}

/// Annotations that Istio's control plane sets on objects that it makes itself.
const RESERVED_ANNOTATIONS: [&str; 3] = [
    "internal.istio.io/webhook-always-reject",
    "internal.istio.io/parent-namespace",
    "internal.istio.io/parents",
];

/// Rejects annotations that nobody else may set.
pub(super) fn no_reserved_annotations(wire: &MetaWire<'_>, report: &mut Report<'_>) {
    for name in RESERVED_ANNOTATIONS.into_iter().filter(|name| wire.annotations.get(name).is_some()) {
        let field = format!("metadata.annotations[{name}]");
        report.reject(field, "Istio reserves this annotation for itself.", "Remove the annotation.");
    }
}

/// A port from 1 to 65535, digits only.
pub(super) fn port(text: &str) -> Option<u16> {
    let digits = !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
    text.parse().ok().filter(|port| digits && *port != 0)
}

/// Reads each of `items`; an empty one is rejected before `read` sees it (Istio allows no empty values).
pub(super) fn each<T>(
    items: &[Text<'_>],
    at: &Path<'_>,
    report: &mut Report<'_>,
    mut read: impl FnMut(&str) -> Result<T, Invalid>,
) -> Vec<T> {
    let mut values = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        let Some(text) = item.non_empty() else {
            report.reject(
                at.index(index),
                "The value is empty, and matches nothing.",
                "Remove it, or write a value.",
            );
            continue;
        };
        match read(text) {
            Ok(value) => values.push(value),
            Err(Invalid { what, fix }) => {
                report.reject(at.index(index), format!("`{text}` is not {what}."), fix);
            }
        }
    }
    values
}

/// Why a value is wrong: "is not …", and what to write instead.
pub(super) struct Invalid {
    what: &'static str,
    fix: &'static str,
}

/// AP-5. `*` stands for any non-empty value at an end only; elsewhere it is an ordinary character.
pub(super) fn string_match(text: &str, interner: &mut Interner) -> StringMatch {
    if text == "*" {
        return StringMatch::Present;
    }
    if let Some(suffix) = text.strip_prefix('*') {
        return StringMatch::Suffix(interner.text(suffix));
    }
    match text.strip_suffix('*') {
        Some(prefix) => StringMatch::Prefix(interner.text(prefix)),
        None => StringMatch::Exact(interner.text(text)),
    }
}

/// An address or a range; what stands beyond the prefix does not count.
pub(super) fn ip_block(text: &str) -> Result<IpNet, Invalid> {
    let block = match text.parse::<IpNet>() {
        Ok(block) => Some(block.trunc()),
        Err(_) => text.parse().ok().map(|ip: IpAddr| IpNet::from(ip)),
    };
    block.ok_or(Invalid {
        what: "an IP address or range",
        fix: "Write for example 10.1.2.3, 10.0.0.0/8 or fd00::/8.",
    })
}

/// A port of `ports` or `destination.port`; Istio's admission lets 0 pass, which no connection has.
pub(super) fn port_value(text: &str) -> Result<u16, Invalid> {
    if !text.is_empty() && text.bytes().all(|c| c == b'0') {
        return Ok(0);
    }
    port(text).ok_or(Invalid { what: "a port", fix: "Write a number from 1 to 65535 in quotes." })
}

/// Most bytes of a service account with its namespace (AP-7).
const LONGEST_ACCOUNT: usize = 320;

/// `ns/sa`, or `sa` of the policy's own namespace (AP-7).
pub(super) fn service_account(
    text: &str,
    own_namespace: &str,
    interner: &mut Interner,
) -> Result<ServiceAccountMatch, Invalid> {
    let (namespace, name) = text.split_once('/').unwrap_or((own_namespace, text));
    if text.len() > LONGEST_ACCOUNT {
        return Err(Invalid { what: "a service account: it is too long", fix: "Write at most 320 bytes." });
    }
    if namespace.is_empty() || name.is_empty() || name.contains('/') || text.contains('*') {
        return Err(Invalid {
            what: "a service account",
            fix: "Write `namespace/name`, or `name` for the policy's own namespace; there are no wildcards.",
        });
    }
    Ok(ServiceAccountMatch { namespace: interner.text(namespace), name: interner.text(name) })
}

/// A path, possibly with the templates `{*}` (one segment) and `{**}` (the rest), AP-10.
pub(super) fn path(text: &str) -> Result<(), Invalid> {
    const FIX: &str =
        "Write a template as a whole segment, `{**}` as the last of them, and no other `*` beside them.";
    let templated = text.contains("{*}") || text.contains("{**}");
    let mut open_ended = false;
    for segment in text.trim_matches('/').split('/') {
        let template = matches!(segment, "{*}" | "{**}");
        if template && open_ended {
            return Err(Invalid { what: "a path: nothing can be templated after `{**}`", fix: FIX });
        }
        if !template && (segment.contains(['{', '}']) || (templated && !is_path_literal(segment))) {
            return Err(Invalid { what: "a path with valid templates", fix: FIX });
        }
        open_ended |= segment == "{**}";
    }
    Ok(())
}

/// What can stand between the slashes of a path with templates: RFC 3986's pchar without `*`.
fn is_path_literal(segment: &str) -> bool {
    let other = |c: u8| b"-._~%!$&'()+,;:@=".contains(&c);
    !segment.is_empty() && segment.bytes().all(|c| c.is_ascii_alphanumeric() || other(c))
}

/// A value whose only `*` stands at an end.
pub(super) fn one_wildcard_at_an_end(text: &str) -> Result<(), Invalid> {
    let inner = text.strip_prefix('*').or_else(|| text.strip_suffix('*')).unwrap_or(text);
    let fix = "Write one `*` at most, at the beginning or at the end.";
    if inner.contains('*') { Err(Invalid { what: "a trust domain", fix }) } else { Ok(()) }
}

/// A trust domain of a source, which is no path.
pub(super) fn trust_domain(text: &str) -> Result<(), Invalid> {
    let fix = "Write the trust domain alone, for example `cluster.local`.";
    if text.contains('/') {
        Err(Invalid { what: "a trust domain", fix })
    } else {
        one_wildcard_at_an_end(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_digits_from_1_to_65535() {
        assert_eq!((port("1"), port("65535"), port("080")), (Some(1), Some(65535), Some(80)));
        for bad in ["", "0", "65536", "+80", "-1", "8 0", "http", "4294967376"] {
            assert_eq!(port(bad), None, "{bad}");
        }
    }

    #[test]
    fn blocks_are_cut_to_their_prefix() {
        let block = |text: &str| ip_block(text).ok().map(|block| block.to_string());
        assert_eq!(block("10.1.2.3/8").as_deref(), Some("10.0.0.0/8"));
        assert_eq!(block("10.1.2.3").as_deref(), Some("10.1.2.3/32"));
        assert_eq!(block("fd00::1").as_deref(), Some("fd00::1/128"));
        assert_eq!((block("10.1.2.3/33"), block("ip1"), block("10.1.2")), (None, None, None));
    }

    #[test]
    fn a_star_counts_at_the_ends_only() {
        let mut interner = Interner::default();
        let mut read = |text: &str| string_match(text, &mut interner);
        assert_eq!(read("*"), StringMatch::Present);
        assert_eq!(read("a*"), StringMatch::Prefix("a".into()));
        assert_eq!(read("*a"), StringMatch::Suffix("a".into()));
        assert_eq!(read("a*b"), StringMatch::Exact("a*b".into()));
        assert_eq!(read("*a*"), StringMatch::Suffix("a*".into()));
    }

    #[test]
    fn templates_are_whole_segments() {
        for good in ["/a/*", "*/b", "*", "/a/{*}/b", "/{*}/{**}", "/{**}/a", "a"] {
            assert!(path(good).is_ok(), "{good}");
        }
        for bad in ["/a{*}", "/{a}", "/{**}/{*}", "/{**}/{**}", "/{*}/b*", "/a/{"] {
            assert!(path(bad).is_err(), "{bad}");
        }
    }
}
