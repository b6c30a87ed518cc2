//! Takes secrets out of everything that goes into a bug report.
//!
//! Three nets, from fine to coarse: by the kind and the field ([`object`]), by the name of a field, header, variable
//! or option, and by the look of the value itself ([`text`]). What is taken out leaves a note, so that a reader
//! knows that something stood there.

use std::sync::LazyLock;

use regex::{Captures, Regex};
use serde_json::Value;

const NOTE: &str = "[removed]";

/// Fields whose content is free text of somebody else's making: too many ways to write a password.
const OPAQUE: [&str; 7] =
    ["stringData", "pluginConfig", "jwks", "inlineString", "inlineBytes", "inline_string", "inline_bytes"];
/// Annotations in which the whole object is repeated.
const COPIES: [&str; 1] = ["kubectl.kubernetes.io/last-applied-configuration"];

/// Whether a name promises a secret: `password`, `x-api-key`, `DB_PASSWORD`, `accessToken`. Names of files, of
/// Secrets and of lifetimes are no secrets.
fn is_secret_name(name: &str) -> bool {
    static NAMES: LazyLock<Regex> = LazyLock::new(|| {
        regex(
            r"(?i)(password|passwd|passphrase|secret|token|api[-_]?key|access[-_]?key|private[-_]?key|signing[-_]?key|credentials?|authorization|cookie|ca-key\.pem|tls\.key|key\.pem)$",
        )
    });
    NAMES.is_match(name)
}

fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).expect("a constant pattern that the tests use")
}

/// Takes secrets out of an object as the API gives it, in place.
pub(super) fn object(value: &mut Value) {
    if value.get("kind").and_then(Value::as_str) == Some("Secret") {
        for part in ["data", "stringData"] {
            value.get_mut(part).into_iter().for_each(remove);
        }
    }
    walk(value);
}

/// Takes everything out of a value but its shape.
fn remove(value: &mut Value) {
    match value {
        Value::Object(fields) => fields.values_mut().for_each(remove),
        Value::Array(items) => items.iter_mut().for_each(remove),
        Value::Null | Value::Bool(_) => {}
        Value::Number(_) | Value::String(_) => *value = NOTE.into(),
    }
}

fn walk(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            remove_values_of_pair(fields);
            fields.remove("managedFields");
            for (name, value) in fields.iter_mut() {
                match name.as_str() {
                    copy if COPIES.contains(&copy) => remove(value),
                    opaque if OPAQUE.contains(&opaque) => remove(value),
                    secret if is_secret_name(secret) => remove(value),
                    _ => walk(value),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(walk),
        Value::String(string) => *string = text(string),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// `{name: DB_PASSWORD, value: …}` of a container, `{key: request.headers[x-token], values: […]}` of a policy. The
/// value of every variable of a container is taken out: their names follow no rule.
fn remove_values_of_pair(fields: &mut serde_json::Map<String, Value>) {
    let name = |key: &str| fields.get(key).and_then(Value::as_str).unwrap_or_default();
    let is_variable = fields.len() == 2 && fields.contains_key("name") && fields.contains_key("value");
    let key = name("key").trim_end_matches(']').to_owned();
    if is_variable || is_secret_name(name("name")) || is_secret_name(&key) {
        for part in ["value", "values", "notValues"] {
            fields.get_mut(part).into_iter().for_each(remove);
        }
    }
}

/// Takes secrets out of text: of a log, of metrics, of a file in a ConfigMap.
pub(super) fn text(text: &str) -> String {
    let mut out = text.to_owned();
    for rule in RULES.iter() {
        if let std::borrow::Cow::Owned(changed) =
            rule.pattern.replace_all(&out, |found: &Captures<'_>| (rule.replace)(found))
        {
            out = changed;
        }
    }
    out
}

/// What is taken out by its look.
struct Rule {
    pattern: Regex,
    replace: fn(&Captures<'_>) -> String,
}

static RULES: LazyLock<[Rule; 8]> = LazyLock::new(|| {
    let whole = |_: &Captures<'_>| NOTE.to_owned();
    let after_name = |found: &Captures<'_>| format!("{}{NOTE}", group(found, 1));
    let between = |found: &Captures<'_>| format!("{}{NOTE}{}", group(found, 1), group(found, 3));
    [
        // A private key in PEM, its line ends real or written as \n; one whose end is cut off goes to the end.
        Rule {
            pattern: regex(
                r"(?s)-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(-----END [A-Z0-9 ]*PRIVATE KEY-----|\z)",
            ),
            replace: whole,
        },
        // PEM in base64 that is no certificate (`-----BEGIN C`): as Secrets and kubeconfigs have it.
        Rule {
            pattern: regex(r"LS0tLS1CRUdJTi[A-Za-z0-9+/=_-]+"),
            replace: |found| {
                let text = group(found, 0);
                let certificate = text.starts_with("LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS");
                if certificate { text.to_owned() } else { NOTE.to_owned() }
            },
        },
        // JSON web tokens: of the three parts the first begins with `{"` in base64.
        Rule {
            pattern: regex(r"eyJ[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*(\.[A-Za-z0-9_-]*)?(\.[A-Za-z0-9_-]*){0,2}"),
            replace: whole,
        },
        // Headers whose value goes on to the end of the line, or of the string in which they stand.
        Rule {
            pattern: regex(
                r#"(?i)(\b(?:proxy-)?authorization["']?\s*[:=]\s*["']?|\b(?:set-)?cookie["']?\s*[:=]\s*["']?)([^"'\r\n]+)"#,
            ),
            replace: after_name,
        },
        Rule {
            pattern: regex(r"(?i)(\b(?:(?:bearer|basic|negotiate)\s+)+)([A-Za-z0-9+/=._~-]{6,})"),
            replace: after_name,
        },
        // Who logs in, in a URL.
        Rule { pattern: regex(r"([a-zA-Z][a-zA-Z0-9+.-]*://)([^/\s]+)(@)"), replace: between },
        // NAME=value, NAME: value, "name":"value"; quoted values go on to the closing quote. What looks like a name
        // once more is taken along with what follows it.
        Rule {
            pattern: regex(&format!(
                r#"{SECRET_NAME}((?:[^\s,;&}}\]"']+[:=]\s*)*(?:"(?:[^"\\]|\\.)*"|'[^']*'|\\"[^"]*\\"|[^\s,;&}}\]"']+))"#
            )),
            replace: after_name,
        },
        // --option value, as in a command line.
        Rule {
            pattern: regex(
                r#"(?i)(--[a-z0-9-]*(?:password|passwd|passphrase|secret|token|api-?key|access-?key|private-?key|credentials?)\s+)((?:-\S*\s+)*[^\s"']+)"#,
            ),
            replace: after_name,
        },
    ]
});

/// A name that promises a secret, and what stands between it and the value.
const SECRET_NAME: &str = r#"(?i)((?:password|passwd|passphrase|secret|token|api[-_]?key|access[-_]?key|private[-_]?key|signing[-_]?key|credentials?)\\?["']?\s*[:=]\s*)"#;

fn group<'t>(found: &Captures<'t>, at: usize) -> &'t str {
    found.get(at).map_or("", |found| found.as_str())
}

#[cfg(test)]
#[path = "redact_tests.rs"]
mod tests;
