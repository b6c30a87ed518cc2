//! WasmPlugin and TrafficExtension.

use serde_json::Value;

use super::super::report::{Path, Report};
use super::Object;
use super::schema::{Check, MANY, SIGNED, TEXT, Type, filled, may, must, short};
use super::shared::{self, SELECTOR, TARGET, TARGETS};
use super::url;
use super::value::{get, has, items, number, text};

const MATCH: Type = Type::List(
    &Type::Object(&[
        may("mode", Type::OneOf(&["UNDEFINED", "CLIENT", "SERVER", "CLIENT_AND_SERVER"])),
        may("ports", Type::List(&Type::Object(&[must("number", Type::Integer(1, 65535))]), 0, MANY)),
    ]),
    0,
    MANY,
);

const ENVIRONMENT: Type = Type::Object(&[may(
    "env",
    Type::List(
        &Type::Object(&[
            must("name", filled(256)),
            may("value", short(2048)),
            may("valueFrom", Type::OneOf(&["INLINE", "HOST"])),
        ]),
        0,
        256,
    ),
)]);

const FAIL_STRATEGY: Type = Type::OneOf(&["FAIL_CLOSE", "FAIL_OPEN", "FAIL_RELOAD"]);
const PULL_POLICY: Type = Type::OneOf(&["UNSPECIFIED_POLICY", "IfNotPresent", "Always"]);
const PLUGIN_TYPE: Type = Type::OneOf(&["UNSPECIFIED_PLUGIN_TYPE", "HTTP", "NETWORK"]);
const DIGEST: Type = Type::Text(0, MANY, Some(digest));
const URL: Type = Type::Text(1, MANY, Some(image_or_url as Check));

/// The fields of `spec` of a WasmPlugin.
pub(super) const PLUGIN: Type = Type::Object(&[
    may("failStrategy", FAIL_STRATEGY),
    may("imagePullPolicy", PULL_POLICY),
    may("imagePullSecret", filled(253)),
    may("match", MATCH),
    may("phase", Type::OneOf(&["UNSPECIFIED_PHASE", "AUTHN", "AUTHZ", "STATS"])),
    may("pluginConfig", Type::Opaque),
    may("pluginName", filled(256)),
    may("priority", SIGNED),
    may("selector", SELECTOR),
    may("sha256", DIGEST),
    may("targetRef", TARGET),
    may("targetRefs", TARGETS),
    may("type", PLUGIN_TYPE),
    must("url", URL),
    may("verificationKey", TEXT),
    may("vmConfig", ENVIRONMENT),
]);

/// The fields of `spec` of a TrafficExtension.
pub(super) const EXTENSION: Type = Type::Object(&[
    may("lua", Type::Object(&[must("inlineCode", filled(65_536))])),
    may("match", MATCH),
    may("phase", Type::OneOf(&["UNSPECIFIED", "AUTHN", "AUTHZ", "STATS"])),
    may("priority", SIGNED),
    may("selector", SELECTOR),
    may("targetRefs", TARGETS),
    may(
        "wasm",
        Type::Object(&[
            may("failStrategy", FAIL_STRATEGY),
            may("imagePullPolicy", PULL_POLICY),
            may("imagePullSecret", filled(253)),
            may("pluginConfig", Type::Opaque),
            may("pluginName", filled(256)),
            may("sha256", DIGEST),
            may("type", PLUGIN_TYPE),
            must("url", URL),
            may("verificationKey", TEXT),
            may("vmConfig", ENVIRONMENT),
        ]),
    ),
]);

fn digest(text: &str) -> Option<(String, &'static str)> {
    let is_hex = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
    let valid = text.is_empty() || (text.len() == 64 && text.bytes().all(is_hex));
    (!valid).then(|| ("is not a SHA-256 digest".to_owned(), "Write 64 digits and letters from a to f."))
}

/// A URL, or the name of an image without a scheme.
fn image_or_url(text: &str) -> Option<(String, &'static str)> {
    const FIX: &str = "Write an image, or a URL with the scheme oci, http, https or file.";
    let with_scheme = || url::scheme(&format!("http://{text}")).map(|_| url::Scheme(""));
    match url::scheme(text).or_else(with_scheme) {
        None => Some(("is not a URL".to_owned(), FIX)),
        Some(scheme) if scheme.is_one_of(&["", "oci", "http", "https", "file"]) => None,
        Some(url::Scheme(scheme)) => Some((format!("has the scheme `{scheme}`, which is not known"), FIX)),
    }
}

/// What belongs together in a WasmPlugin.
pub(super) fn check_plugin(object: &Object<'_>, report: &mut Report<'_>) {
    let root = Path::Root("spec");
    shared::selector(object.spec, "selector", "matchLabels", &root, report);
    shared::attachment(object.spec, "selector", &root, report);
    traffic(object.spec, report);
    environment(get(object.spec, "vmConfig"), &root.field("vmConfig"), report);
}

/// What belongs together in a TrafficExtension.
pub(super) fn check_extension(object: &Object<'_>, report: &mut Report<'_>) {
    let (root, spec) = (Path::Root("spec"), object.spec);
    if has(spec, "wasm") == has(spec, "lua") {
        report.reject(
            root,
            "An extension is written either in Wasm or in Lua.",
            "Write one of `wasm` and `lua`.",
        );
    }
    shared::selector(spec, "selector", "matchLabels", &root, report);
    shared::attachment(spec, "selector", &root, report);
    traffic(spec, report);
    let at = root.field("wasm");
    environment(get(get(spec, "wasm"), "vmConfig"), &at.field("vmConfig"), report);
}

/// To which ports it applies; each is named once.
fn traffic(spec: &Value, report: &mut Report<'_>) {
    let root = Path::Root("spec.match");
    for (index, traffic) in items(spec, "match").iter().enumerate() {
        let at = root.index(index);
        let at = at.field("ports");
        let mut known = Vec::new();
        for (index, port) in items(traffic, "ports").iter().enumerate() {
            let number = number(port, "number");
            if known.contains(&number) {
                let message = format!("Port {number} is listed twice.");
                report.reject(at.index(index), message, "Keep only one of them.");
            }
            known.push(number);
        }
    }
}

fn environment(machine: &Value, at: &Path<'_>, report: &mut Report<'_>) {
    let at = at.field("env");
    let mut known = Vec::new();
    for (index, variable) in items(machine, "env").iter().enumerate() {
        let (at, name) = (at.index(index), text(variable, "name"));
        if known.contains(&name) {
            report.reject(at.field("name"), format!("`{name}` is listed twice."), "Keep only one of them.");
        }
        if text(variable, "valueFrom") == "HOST" && has(variable, "value") {
            let message = format!("`{name}` comes from the host, so it has no value here.");
            report.reject(at.field("value"), message, "Remove `value`, or `valueFrom`.");
        }
        known.push(name);
    }
}
