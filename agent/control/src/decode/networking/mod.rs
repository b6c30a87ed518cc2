//! What VirtualService and DestinationRule have in common: hosts, gateways, `exportTo`, durations, labels.

pub(super) mod header;
pub(super) mod numbers;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use weft_core::resource::Labels;
use weft_core::resource::virtual_service::ExportTo;

use super::fields::{List, Pairs, Text};
use super::intern::Interner;
use super::meta::MetaWire;
use super::report::{Path, Report};
use super::validate;
use super::validated::names;
use crate::codes;
use numbers::Unsigned;

/// What follows `name.namespace` in the full name of a Service.
const CLUSTER_SUFFIX: &str = "svc.cluster.local";
/// The gateway that stands for all pods of the mesh.
pub(super) const MESH: &str = "mesh";

/// A port of a destination as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(expecting = "a map with `number`")]
pub(super) struct PortWire {
    #[serde(default)]
    pub(super) number: Unsigned,
}

/// Reads the fields of one object.
pub(super) struct Reader<'r, 'a> {
    pub(super) interner: &'r mut Interner,
    pub(super) report: &'r mut Report<'a>,
    /// The object's namespace.
    pub(super) namespace: Arc<str>,
}

/// What the admission says about annotations.
pub(super) fn check_annotations(metadata: &MetaWire<'_>, report: &mut Report<'_>) {
    validate::no_dry_run(metadata, report);
    validate::no_reserved_annotations(metadata, report);
}

/// Text as a field's value is told in a message: long ones are cut.
pub(super) fn shown(text: &str) -> String {
    const MOST: usize = 80;
    if text.chars().nth(MOST).is_none() {
        return format!("`{text}`");
    }
    format!("`{}…`", text.chars().take(MOST).collect::<String>())
}

/// Pairs of places in `hosts` that overlap: the same host, or one that a wildcard covers. Each place is named once.
///
/// The time grows with the length of the list, not with its square: a list may be as long as an object.
pub(super) fn overlaps(hosts: &[Text<'_>]) -> Vec<(usize, usize)> {
    let mut exact: HashMap<&str, usize> = HashMap::with_capacity(hosts.len());
    let mut wildcards: HashMap<&str, usize> = HashMap::new();
    let mut overlaps = Vec::new();
    for (index, host) in hosts.iter().enumerate() {
        let earlier = match host.as_str().strip_prefix('*') {
            Some(end) => wildcards.insert(end, index),
            None => exact.insert(host.as_str(), index),
        };
        overlaps.extend(earlier.map(|earlier| (earlier, index)));
    }
    for (index, host) in hosts.iter().enumerate() {
        let host = host.as_str();
        let ends = host.char_indices().map(|(at, _)| host.get(at..).unwrap_or_default()).skip(1).chain([""]);
        // An exact host is also its own end; a wildcard's own end is what follows the star.
        let own = (!host.starts_with('*')).then_some(host);
        let covering = ends.chain(own).filter_map(|end| wildcards.get(end)).find(|other| **other != index);
        overlaps.extend(covering.map(|other| ((*other).min(index), (*other).max(index))));
    }
    overlaps.sort_unstable_by_key(|(first, second)| (*second, *first));
    overlaps.dedup_by_key(|(_, second)| *second);
    overlaps
}

/// Every name that `inner` stands for is one of `outer`'s.
pub(super) fn host_is_within(inner: &str, outer: &str) -> bool {
    match (inner.strip_prefix('*'), outer.strip_prefix('*')) {
        (Some(inner), Some(outer)) => inner.ends_with(outer),
        (Some(_), None) => false,
        (None, Some(end)) => inner.ends_with(end),
        (None, None) => inner == outer,
    }
}

impl Reader<'_, '_> {
    pub(super) fn text(&mut self, text: &str) -> Arc<str> {
        self.interner.text(text)
    }

    /// The text, unless it is empty.
    pub(super) fn optional(&mut self, text: &Text<'_>) -> Option<Arc<str>> {
        text.non_empty().map(|text| self.interner.text(text))
    }

    pub(super) fn texts(&mut self, texts: &List<Text<'_>>) -> Vec<Arc<str>> {
        texts.items.iter().map(|text| self.interner.text(text.as_str())).collect()
    }

    /// A field that is valid, but that this version does not execute.
    pub(super) fn not_applied(&mut self, at: impl std::fmt::Display, what: &str) {
        let message = format!("`{at}` is accepted but not applied: {what}.");
        self.report.add(codes::FIELD_NOT_APPLIED, at, message, "");
    }

    /// A duration of at least a millisecond, in whole milliseconds.
    pub(super) fn duration(&mut self, text: Option<&Text<'_>>, at: &Path<'_>) -> Option<Duration> {
        let nanoseconds = self.any_duration(text, at)?;
        let (problem, fix) = if nanoseconds < 1_000_000 {
            ("is shorter than a millisecond", "Write 1ms or more; remove the field to do without it.")
        } else if nanoseconds % 1_000_000 != 0 {
            ("is not a number of whole milliseconds", "Round it to milliseconds.")
        } else {
            return to_duration(nanoseconds);
        };
        let value = shown(text.map_or("", Text::as_str));
        self.report.reject(at, format!("The duration {value} {problem} (X-15)."), fix);
        None
    }

    /// Any duration, in nanoseconds; it may be negative.
    pub(super) fn any_duration(&mut self, text: Option<&Text<'_>>, at: &Path<'_>) -> Option<i128> {
        let text = text?.as_str();
        let read = names::duration(text);
        if read.is_none() {
            let message = format!("{} is not a duration.", shown(text));
            self.report.reject(at, message, "Write for example 1.5s, 100ms or 1h.");
        }
        read
    }

    /// A port from 1 to 65535; 0 and absent are `None`.
    pub(super) fn optional_port(&mut self, number: i64, at: &Path<'_>) -> Option<u16> {
        if number == 0 { None } else { self.port(number, at) }
    }

    /// A port from 1 to 65535.
    pub(super) fn port(&mut self, number: i64, at: &Path<'_>) -> Option<u16> {
        let port = u16::try_from(number).ok().filter(|port| *port != 0);
        if port.is_none() {
            self.report.reject(at, format!("{number} is not a port."), "Write a number from 1 to 65535.");
        }
        port
    }

    /// A host whose first label may begin with `*`; short names are completed.
    pub(super) fn wildcard_host(&mut self, host: &str, at: &Path<'_>) -> Arc<str> {
        if let Err(why) = names::wildcard_host(host) {
            self.bad_host(host, &why, at);
        }
        self.complete(host)
    }

    pub(super) fn bad_host(&mut self, host: &str, why: &names::BadHost, at: &Path<'_>) {
        let message = format!("{} is not a host: {why}.", shown(host));
        let fix = "Write the name of a Service, a full name, or one that begins with `*.`.";
        self.report.reject(at, message, fix);
    }

    /// a name without dot is a Service of the object's namespace. Hosts have no case.
    pub(super) fn complete(&mut self, host: &str) -> Arc<str> {
        let host = host.to_ascii_lowercase();
        if host.is_empty() || host == "*" || host.contains('.') || names::is_address(&host) {
            return self.text(&host);
        }
        let full = format!("{host}.{}.{CLUSTER_SUFFIX}", self.namespace);
        self.text(&full)
    }

    /// Names and values of labels.
    pub(super) fn labels(&mut self, pairs: &Pairs<'_>, at: &Path<'_>) -> Labels {
        for (key, value) in &pairs.0 {
            if !names::is_label_key(key.as_str()) {
                let message = format!("{} is not the name of a label.", shown(key.as_str()));
                let fix = "Use letters, digits, `-`, `_` and `.`; a DNS name with `/` may stand in front.";
                self.report.reject(at, message, fix);
            }
            if !names::is_label_value(value.as_str()) {
                let message = format!("{} is not the value of a label.", shown(value.as_str()));
                let fix = "Use letters, digits, `-`, `_` and `.`, with a letter or digit at both ends.";
                self.report.reject(at.field(key.as_str()), message, fix);
            }
        }
        self.interned_labels(pairs)
    }

    /// Labels that were checked.
    pub(super) fn interned_labels(&mut self, pairs: &Pairs<'_>) -> Labels {
        let texts = pairs.0.iter().map(|(key, value)| (self.text(key.as_str()), self.text(value.as_str())));
        Labels::from_iter(texts.collect::<Vec<_>>())
    }

    /// A label of DNS: names of subsets and namespaces.
    pub(super) fn is_label(&mut self, text: &str, what: &str, at: &Path<'_>) -> bool {
        let valid = names::is_label(text);
        if !valid {
            let message = format!("{} is not {what}.", shown(text));
            let fix = "Use at most 63 letters, digits and `-`, with a letter or digit at both ends.";
            self.report.reject(at, message, fix);
        }
        valid
    }

    /// Names of gateways as `mesh` or `namespace/name`.
    ///
    /// As in Istio's admission, what follows a name without namespace is not checked.
    pub(super) fn gateways(&mut self, list: &List<Text<'_>>, at: &Path<'_>) -> Vec<Arc<str>> {
        let mut checked = true;
        let mut gateways = Vec::with_capacity(list.items.len());
        for (index, gateway) in list.items.iter().enumerate() {
            let gateway = gateway.as_str();
            self.check_gateway(gateway, &at.index(index), checked);
            gateways.push(self.resolve_gateway(gateway));
            checked &= gateway.contains('/');
        }
        gateways
    }

    fn check_gateway(&mut self, gateway: &str, at: &Path<'_>, checked: bool) {
        let valid = match gateway.split_once('/') {
            Some((namespace, name)) => {
                (namespace == "." || names::is_label(namespace)) && names::is_label(name)
            }
            None => names::host(gateway).is_ok(),
        };
        if !valid {
            let code = if checked { self.report.invalid } else { codes::NO_EFFECT };
            let message = format!("{} is not the name of a gateway.", shown(gateway));
            self.report.add(code, at, message, "Write `namespace/name`, `name` or `mesh`.");
        } else if let Some((namespace, name)) = legacy_gateway(gateway) {
            let message = format!("{} is the old way to name a gateway.", shown(gateway));
            self.report.add(codes::SCHEMA_WARNING, at, message, format!("Write `{namespace}/{name}`."));
        }
    }

    fn resolve_gateway(&mut self, gateway: &str) -> Arc<str> {
        let full = match (gateway.split_once('/'), legacy_gateway(gateway)) {
            (Some((".", name)), _) => format!("{}/{name}", self.namespace),
            (Some(_), _) => gateway.to_owned(),
            (None, Some((namespace, name))) => format!("{namespace}/{name}"),
            (None, None) if gateway == MESH => gateway.to_owned(),
            (None, None) => format!("{}/{gateway}", self.namespace),
        };
        self.text(&full)
    }

    /// `exportTo`; an object with a workload selector can only be exported to its own namespace (D-20).
    pub(super) fn export_to(&mut self, list: &List<Text<'_>>, has_selector: bool) -> Vec<ExportTo> {
        let at = Path::Root("spec.exportTo");
        let namespace = self.namespace.clone();
        let mut known: BTreeSet<&str> = BTreeSet::new();
        let mut exports = Vec::with_capacity(list.items.len());
        for (index, entry) in list.items.iter().enumerate() {
            let at = at.index(index);
            let entry = entry.as_str();
            let name = if entry == "." { &*namespace } else { entry };
            if known.contains(name) {
                let message = format!("`{name}` is listed twice.");
                self.report.reject(at, message, "Keep only one of them; `.` is the object's own namespace.");
            } else if entry == "~" {
                let message = "`~` (nobody) is for Services and ServiceEntries only.";
                self.report.reject(at, message, "Write `.`, `*` or the name of a namespace.");
            } else if name == "*" || self.is_label(name, "a namespace, `.` or `*`", &at) {
                known.insert(name);
                exports.push(self.export(name));
            }
        }
        self.check_export_to(&known, list.items.len(), has_selector, &at);
        exports
    }

    fn check_export_to(&mut self, known: &BTreeSet<&str>, written: usize, has_selector: bool, at: &Path<'_>) {
        let own = known.contains(&*self.namespace);
        if has_selector && !known.is_empty() && (!own || known.len() > 1) {
            let message = "An object with `workloadSelector` is for its own namespace only (D-20).";
            self.report.reject(at, message, "Write `.` alone, or remove `exportTo`.");
        }
        if known.contains("*") && written > 1 {
            let message = "`*` exports to everybody, so nothing can stand beside it.";
            self.report.reject(at, message, "Keep `*` alone, or remove it.");
        }
    }

    fn export(&mut self, name: &str) -> ExportTo {
        if name == "*" { ExportTo::All } else { ExportTo::Namespace(self.text(name)) }
    }
}

/// Who sees an object, by entries of which Istio's admission says nothing: those of a Service's annotation, and the
/// mesh's defaults.
pub(super) fn unchecked_exports<'t>(
    entries: impl Iterator<Item = &'t str>,
    at: &Path<'_>,
    interner: &mut Interner,
    report: &mut Report<'_>,
) -> Vec<ExportTo> {
    let mut exports = Vec::new();
    for entry in entries {
        exports.push(match entry {
            "*" => ExportTo::All,
            "." => ExportTo::Own,
            "~" => ExportTo::Nobody,
            name => {
                if !names::is_label(name) {
                    let message = format!("{} is the name of no namespace.", shown(name));
                    let fix = "Write names of namespaces, `.`, `*` or `~`.";
                    report.add(codes::NO_EFFECT, at, message, fix);
                }
                ExportTo::Namespace(interner.text(name))
            }
        });
    }
    exports
}

/// Namespace and name of a gateway in the form `name.namespace.svc…`.
fn legacy_gateway(gateway: &str) -> Option<(&str, &str)> {
    if gateway.contains('/') {
        return None;
    }
    let (name, rest) = gateway.split_once('.')?;
    Some((rest.split('.').next().unwrap_or(rest), name))
}

fn to_duration(nanoseconds: i128) -> Option<Duration> {
    u64::try_from(nanoseconds).ok().map(Duration::from_nanos)
}

/// A duration that may be zero; negative ones count as zero.
pub(super) fn zero_or_more(nanoseconds: i128) -> Duration {
    to_duration(nanoseconds).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_cover_what_ends_like_them() {
        for (first, second, overlap, within) in [
            ("foo.com", "foo.com", true, true),
            ("foo.com", "bar.com", false, false),
            ("foo.com", "*.com", true, true),
            ("*.com", "foo.com", true, false),
            ("*.foo.com", "foo.com", false, false),
            ("*.foo.com", "*.com", true, true),
            ("*.com", "*.foo.com", true, false),
            ("*", "foo.com", true, false),
            ("*-a.com", "*.com", true, true),
        ] {
            let hosts = [first, second].map(|host| Text(host.into()));
            assert_eq!(!overlaps(&hosts).is_empty(), overlap, "{first} {second}");
            let hosts = [second, first].map(|host| Text(host.into()));
            assert_eq!(overlaps(&hosts) == [(0, 1)], overlap, "{first} {second}");
            assert_eq!(host_is_within(first, second), within, "{first} in {second}");
        }
    }

    #[test]
    fn long_values_are_cut() {
        assert_eq!(shown("a"), "`a`");
        assert_eq!(shown(&"ä".repeat(81)).chars().count(), 83);
    }
}
