//! TLS of a server, as Gateway and Sidecar have it.

use serde_json::Value;

use super::super::report::{Path, Report};
use super::value::{get, has, items, text, texts};
use crate::codes;

/// Cipher suites that the proxy knows.
const CIPHER_SUITES: [&str; 15] = [
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-CHACHA20-POLY1305",
    "ECDHE-ECDSA-AES128-SHA",
    "ECDHE-RSA-AES128-SHA",
    "ECDHE-ECDSA-AES256-SHA",
    "ECDHE-RSA-AES256-SHA",
    "AES128-GCM-SHA256",
    "AES256-GCM-SHA384",
    "AES128-SHA",
    "AES256-SHA",
    "DES-CBC3-SHA",
];

/// Sources of a server's certificate.
const SOURCES: [&str; 6] = [
    "serverCertificate",
    "privateKey",
    "caCertificates",
    "tlsCertificates",
    "credentialName",
    "credentialNames",
];

/// Whether the connection is passed on without being terminated.
pub(super) fn passes_through(tls: &Value) -> bool {
    // PASSTHROUGH is what an absent mode means.
    matches!(text(tls, "mode"), "" | "PASSTHROUGH" | "AUTO_PASSTHROUGH")
}

/// Checks the settings by themselves.
pub(super) fn check(tls: &Value, at: &Path<'_>, report: &mut Report<'_>) {
    if tls.is_null() {
        return;
    }
    ciphers(tls, at, report);
    let mode = text(tls, "mode");
    if mode == "ISTIO_MUTUAL" {
        for name in SOURCES.into_iter().filter(|name| is_set(tls, name)) {
            let message =
                format!("ISTIO_MUTUAL uses the workload's own certificate, so `{name}` cannot be set.");
            report.reject(at.field(name), message, format!("Remove `{name}`, or use another mode."));
        }
        return;
    }
    if passes_through(tls)
        && let Some(name) = SOURCES.into_iter().chain(["caCrl"]).find(|name| is_set(tls, name))
    {
        let message = format!("The connection is passed on as it is, so `{name}` is ignored.");
        report.add(codes::SCHEMA_WARNING, at.field(name), message, "Remove it, or use the mode SIMPLE.");
    }
    one_source(tls, at, report);
    if passes_through(tls) {
        return revocations(tls, at, report);
    }
    if is_set(tls, "credentialName") || is_set(tls, "credentialNames") {
        return;
    }
    certificates(tls, mode, at, report);
    revocations(tls, at, report);
}

fn is_set(tls: &Value, name: &str) -> bool {
    !text(tls, name).is_empty() || !items(tls, name).is_empty()
}

fn ciphers(tls: &Value, at: &Path<'_>, report: &mut Report<'_>) {
    let at_ciphers = at.field("cipherSuites");
    let old = matches!(text(tls, "minProtocolVersion"), "TLSV1_0" | "TLSV1_1");
    if old && items(tls, "cipherSuites").is_empty() {
        let message = "TLS below 1.2 needs cipher suites that are not among the default ones.";
        report.add(codes::SCHEMA_WARNING, at.field("minProtocolVersion"), message, "Add `cipherSuites`.");
    }
    let mut known: Vec<&str> = Vec::new();
    for (index, suite) in texts(tls, "cipherSuites").enumerate() {
        // What begins with an operator of OpenSSL's lists (`-`, `+`, `[`) is more than a name.
        let is_name = suite.starts_with(|first: char| first.is_alphanumeric());
        let (what, fix) = if is_name && suite != "ALL" && !CIPHER_SUITES.contains(&suite) {
            ("is not a cipher suite that the proxy knows, and is ignored", "Correct the name.")
        } else if known.contains(&suite) {
            ("is listed twice", "Keep only one of them.")
        } else {
            known.push(suite);
            continue;
        };
        report.add(codes::SCHEMA_WARNING, at_ciphers.index(index), format!("`{suite}` {what}."), fix);
    }
}

/// Certificates come from files, from one secret, from several, or from a list.
fn one_source(tls: &Value, at: &Path<'_>, report: &mut Report<'_>) {
    let files = is_set(tls, "serverCertificate") && is_set(tls, "privateKey");
    let named = ["credentialName", "credentialNames", "tlsCertificates"];
    let mut sources: Vec<&str> = named.into_iter().filter(|name| is_set(tls, name)).collect();
    if files {
        sources.push("serverCertificate with privateKey");
    }
    if let [first, _, ..] = sources.as_slice() {
        let message = format!("The certificate comes from several places: {}.", sources.join(", "));
        report.reject(at.field(first.split(' ').next().unwrap_or_default()), message, "Keep one of them.");
    }
    // Kubernetes looks at what is written, not at whether it is empty.
    for (one, other) in [("credentialName", "credentialNames"), ("credentialNames", "tlsCertificates")] {
        if sources.len() < 2 && has(tls, one) && has(tls, other) {
            let message = format!("`{one}` and `{other}` exclude each other.");
            report.reject(at.field(other), message, "Keep one of them.");
        }
    }
}

/// A server that terminates TLS without a secret needs certificate and key, and the clients' authority.
fn certificates(tls: &Value, mode: &str, at: &Path<'_>, report: &mut Report<'_>) {
    let needed = |owner: &Value, name: &str, at: &Path<'_>, report: &mut Report<'_>| {
        if text(owner, name).is_empty() {
            let message = format!("The mode {mode} needs `{name}` or `credentialName`.");
            report.reject(at.field(name), message, "Add one of them.");
        }
    };
    if matches!(mode, "MUTUAL" | "OPTIONAL_MUTUAL") {
        needed(tls, "caCertificates", at, report);
    }
    let at_list = at.field("tlsCertificates");
    let listed = items(tls, "tlsCertificates");
    for (index, pair) in listed.iter().enumerate() {
        for name in ["serverCertificate", "privateKey"] {
            needed(pair, name, &at_list.index(index), report);
        }
    }
    if listed.is_empty() {
        for name in ["serverCertificate", "privateKey"] {
            needed(tls, name, at, report);
        }
    }
}

fn revocations(tls: &Value, at: &Path<'_>, report: &mut Report<'_>) {
    if get(tls, "caCrl").as_str().is_none_or(str::is_empty) {
        return;
    }
    let field = at.field("caCrl");
    if is_set(tls, "credentialName") {
        let message = "With `credentialName` the list of revoked certificates is a part of the secret.";
        report.reject(field, message, "Move it into the secret.");
    } else if text(tls, "mode") == "SIMPLE" {
        let message = "SIMPLE does not ask clients for certificates, so none can be revoked.";
        report.reject(field, message, "Remove `caCrl`, or use the mode MUTUAL.");
    }
}
