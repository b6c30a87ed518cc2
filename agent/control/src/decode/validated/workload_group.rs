//! WorkloadGroup.

use serde_json::Value;

use super::super::report::{Path, Report};
use super::Object;
use super::schema::{MANY, NOT_NEGATIVE, TEXT, Type, UNSIGNED, checked, filled, may, must};
use super::shared::{self, ENDPOINT};
use super::value::{entries, get, has, items, number, text, whole};

const PROBE: Type = Type::Object(&[
    may("exec", Type::Object(&[must("command", Type::List(&filled(MANY), 0, MANY))])),
    may("failureThreshold", NOT_NEGATIVE),
    may("grpc", Type::Object(&[may("port", UNSIGNED), may("service", TEXT)])),
    may("httpGet", HTTP),
    may("initialDelaySeconds", NOT_NEGATIVE),
    may("periodSeconds", NOT_NEGATIVE),
    may("successThreshold", NOT_NEGATIVE),
    may("tcpSocket", Type::Object(&[may("host", TEXT), must("port", UNSIGNED)])),
    may("timeoutSeconds", NOT_NEGATIVE),
]);

const HTTP: Type = Type::Object(&[
    may("host", TEXT),
    may(
        "httpHeaders",
        Type::List(&Type::Object(&[may("name", checked(MANY, header)), may("value", TEXT)]), 0, MANY),
    ),
    may("path", TEXT),
    must("port", UNSIGNED),
    may("scheme", Type::OneOf(&["", "HTTP", "HTTPS"])),
]);

/// The fields of `spec`.
pub(super) const SPEC: Type = Type::Object(&[
    may(
        "metadata",
        Type::Object(&[may("annotations", Type::Map(&TEXT, 256)), may("labels", Type::Map(&TEXT, 256))]),
    ),
    may("probe", PROBE),
    must("template", ENDPOINT),
]);

fn header(name: &str) -> Option<(String, &'static str)> {
    let valid = !name.is_empty() && name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-');
    (!valid).then(|| ("is not a name of a header".to_owned(), "Use letters, digits and `-`."))
}

/// What belongs together.
pub(super) fn check(object: &Object<'_>, report: &mut Report<'_>) {
    let spec = object.spec;
    shared::label_texts(get(spec, "metadata"), "labels", &Path::Root("spec.metadata"), report);
    template(get(spec, "template"), report);
    if has(spec, "probe") {
        probe(get(spec, "probe"), report);
    }
}

/// The template's address is filled in when a workload registers.
fn template(template: &Value, report: &mut Report<'_>) {
    let at = Path::Root("spec.template");
    let address = text(template, "address");
    if let Some(path) = address.strip_prefix("unix://") {
        if !path.starts_with(['/', '@']) || path.ends_with('/') {
            let message = format!("`{path}` is not an absolute path to a file.");
            report.reject(at.field("address"), message, "Write `unix:///path/to/socket` or `unix://@name`.");
        }
        if has(template, "ports") {
            report.reject(at.field("ports"), "A Unix socket has no ports.", "Remove `ports`.");
        }
    }
    let at = at.field("ports");
    for (name, value) in entries(template, "ports") {
        let field = at.field(name);
        if name.len() >= 63 {
            report.reject(field, format!("`{name}` is too long."), "Use at most 62 characters.");
        }
        shared::port_name(name, &field, report);
        shared::port(whole(value).unwrap_or_default(), &field, report);
    }
}

fn probe(probe: &Value, report: &mut Report<'_>) {
    let at = Path::Root("spec.probe");
    let methods = ["httpGet", "tcpSocket", "exec", "grpc"];
    let written: Vec<&str> = methods.into_iter().filter(|name| has(probe, name)).collect();
    let &[method] = written.as_slice() else {
        let message = match written.as_slice() {
            [] => "The probe does not say how to probe.".to_owned(),
            _ => format!("{} exclude each other.", written.join(" and ")),
        };
        report.reject(at, message, "Keep one of httpGet, tcpSocket and exec.");
        return;
    };
    let (how, at) = (get(probe, method), at.field(method));
    if method == "grpc" {
        // The schema knows it, Istio's admission does not.
        report.reject(at, "Probes by gRPC are not possible.", "Use httpGet, tcpSocket or exec.");
        return;
    }
    if method == "exec" {
        if items(how, "command").is_empty() {
            report.reject(
                at.field("command"),
                "There is no command.",
                "Write the command and its arguments.",
            );
        }
    } else {
        shared::port(number(how, "port"), &at.field("port"), report);
    }
    let headers = at.field("httpHeaders");
    for (index, header) in items(how, "httpHeaders").iter().enumerate() {
        if !has(header, "name") {
            report.reject(headers.index(index).field("name"), "The header has no name.", "Add `name`.");
        }
    }
}
