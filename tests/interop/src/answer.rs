//! What a request came to, and where two of them differ.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// Something that is not the same.
#[derive(Debug, PartialEq, Eq)]
pub struct Difference {
    /// The case in which it was seen.
    pub case: String,
    /// What differs: `status`, `backend`, `body`, `response.NAME` (a header that the client gets), `seen.NAME` (one
    /// that the application gets), `seen` + `:path`, `:method`, `:authority`, `:protocol`.
    pub field: String,
    /// What Envoy (or another peer) makes of it.
    pub theirs: Option<String>,
    /// What we make of it.
    pub own: Option<String>,
}

/// Compares two reports of `lab-peer http` about the same request.
pub fn compare(case: &str, envoy: &Value, own: &Value) -> Vec<Difference> {
    let (envoy, own) = (fields(envoy), fields(own));
    let names: BTreeSet<&String> = envoy.keys().chain(own.keys()).collect();
    let different = names.into_iter().filter(|name| envoy.get(*name) != own.get(*name));
    different
        .map(|name| Difference {
            case: case.to_owned(),
            field: name.clone(),
            theirs: envoy.get(name).cloned(),
            own: own.get(name).cloned(),
        })
        .collect()
}

/// Everything that counts, by name; what is another every time is replaced by what it is.
fn fields(report: &Value) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::new();
    let last = report.get("last").unwrap_or(&Value::Null);
    fields.insert("status".to_owned(), text(last.get("status")));
    fields.insert("errors".to_owned(), text(report.get("errors")));
    let body = last.get("body").unwrap_or(&Value::Null);
    let echo = body.get("headers").and_then(Value::as_object);
    for (name, value) in last.get("headers").and_then(Value::as_object).into_iter().flatten() {
        // The echo tells of headers whose values have no fixed length.
        if echo.is_none() || name != "content-length" {
            fields.insert(format!("response.{name}"), constant(name, value));
        }
    }
    for (name, value) in last.get("trailers").and_then(Value::as_object).into_iter().flatten() {
        fields.insert(format!("trailer.{name}"), constant(name, value));
    }
    if let Some(backend) = fields.remove("response.x-app-version") {
        fields.insert("backend".to_owned(), backend);
    }
    let Some(echo) = echo else {
        // Envoy leaves it out where the answer overtakes the request's body, which depends on the moment.
        fields.remove("response.x-envoy-upstream-service-time");
        fields.insert("body".to_owned(), text(Some(body)));
        return fields;
    };
    for (name, value) in echo {
        fields.insert(format!("seen.{name}"), constant(name, value));
    }
    let certificate = echo.get("x-forwarded-client-cert").map(|value| text(Some(value)));
    if certificate.is_some_and(|value| value.contains("Hash=")) {
        // Another one in every run.
        fields.insert("seen.x-forwarded-client-cert.hash".to_owned(), "a hash".to_owned());
    }
    for name in ["method", "path", "authority", "protocol"] {
        fields.insert(format!("seen.:{name}"), text(body.get(name)));
    }
    fields.insert("seen.body".to_owned(), text(body.get("body_bytes")));
    fields
}

fn text(value: Option<&Value>) -> String {
    match value {
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
        None => "nothing".to_owned(),
    }
}

fn constant(name: &str, value: &Value) -> String {
    let value = text(Some(value));
    match name {
        "date" => "a date".to_owned(),
        "x-envoy-upstream-service-time" if value.bytes().all(|byte| byte.is_ascii_digit()) => {
            "milliseconds".to_owned()
        }
        "x-request-id" if is_uuid(&value) => "a UUID".to_owned(),
        "x-forwarded-client-cert" => without_hash(&value),
        _ => value,
    }
}

fn is_uuid(text: &str) -> bool {
    let groups: Vec<usize> = text.split('-').map(str::len).collect();
    let digits = text.bytes().all(|byte| byte == b'-' || byte.is_ascii_hexdigit());
    digits && groups == [8, 4, 4, 4, 12]
}

/// The hash is a field of its own.
fn without_hash(text: &str) -> String {
    text.split(';').filter(|part| !part.starts_with("Hash=")).collect::<Vec<_>>().join(";")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn report(path: &str, header: &str) -> Value {
        let seen = json!({"x-a": header, "x-request-id": "0a1b2c3d-0a1b-0a1b-0a1b-0a1b2c3d4e5f"});
        let headers = json!({"x-app-version": "v1", "content-length": path.len().to_string()});
        let body = json!({"path": path, "headers": seen});
        json!({"errors": {}, "last": {"status": 200, "headers": headers, "body": body}})
    }

    #[test]
    fn what_differs_is_named_with_both_values() {
        assert_eq!(compare("one", &report("/a", "1"), &report("/a", "1")), []);
        let found = compare("one", &report("/a", "1"), &report("/bc", "2"));
        let fields: Vec<&str> = found.iter().map(|it| it.field.as_str()).collect();
        assert_eq!(fields, ["seen.:path", "seen.x-a"]);
        let values = (found[0].theirs.as_deref(), found[0].own.as_deref());
        assert_eq!(values, (Some("/a"), Some("/bc")));
    }

    #[test]
    fn a_header_that_only_one_of_them_has_is_a_difference() {
        let mut other = report("/a", "1");
        other["last"]["headers"]["server"] = "envoy".into();
        let found = compare("one", &other, &report("/a", "1"));
        let only = Difference {
            case: "one".into(),
            field: "response.server".into(),
            theirs: Some("envoy".into()),
            own: None,
        };
        assert_eq!(found, [only]);
    }
}
