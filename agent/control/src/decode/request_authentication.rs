//! RequestAuthentication (RA-1 to RA-9), validated as Istio's admission does.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use weft_core::resource::request_authentication::{JwtRule, KeySource};
use weft_core::resource::{Kind, RequestAuthentication, Resource};

use super::Read;
use super::fields::{Body, List, Text, nullable};
use super::intern::Interner;
use super::meta::{self, ObjectWire};
use super::networking::Reader;
use super::policy::targets::{TargetRefWire, Targets};
use super::report::{Path, Place};
use super::validate::{self, SelectorWire};
use super::validated::url;
use crate::codes;

/// How long fetching keys may take (RA-5).
const KEY_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[serde(expecting = "a map of fields")]
struct SpecWire<'a> {
    #[serde(borrow, default)]
    selector: Option<SelectorWire<'a>>,
    #[serde(borrow, default)]
    target_ref: Option<TargetRefWire<'a>>,
    #[serde(borrow, default)]
    target_refs: List<TargetRefWire<'a>>,
    #[serde(borrow, default)]
    jwt_rules: List<Option<RuleWire<'a>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[serde(expecting = "a rule")]
struct RuleWire<'a> {
    #[serde(borrow, default)]
    issuer: Option<Text<'a>>,
    #[serde(borrow, default)]
    audiences: List<Text<'a>>,
    // Kept for readers of older objects: `jwks_uri` was a second spelling.
    #[serde(borrow, default, alias = "jwks_uri")]
    jwks_uri: Option<Text<'a>>,
    #[serde(borrow, default)]
    jwks: Option<Text<'a>>,
    #[serde(borrow, default)]
    from_headers: List<Option<HeaderWire<'a>>>,
    #[serde(borrow, default)]
    from_params: List<Text<'a>>,
    #[serde(borrow, default)]
    from_cookies: List<Text<'a>>,
    #[serde(borrow, default)]
    output_payload_to_header: Text<'a>,
    #[serde(borrow, default)]
    output_claim_to_headers: List<Option<ClaimWire<'a>>>,
    #[serde(default, deserialize_with = "nullable")]
    forward_original_token: bool,
    #[serde(borrow, default)]
    timeout: Option<Text<'a>>,
    #[serde(borrow, default)]
    space_delimited_claims: List<Text<'a>>,
    #[serde(borrow, default)]
    presence: Option<Text<'a>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(expecting = "a map with `name` and `prefix`")]
struct HeaderWire<'a> {
    #[serde(borrow, default)]
    name: Text<'a>,
    #[serde(borrow, default)]
    prefix: Text<'a>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(expecting = "a map with `header` and `claim`")]
struct ClaimWire<'a> {
    #[serde(borrow, default)]
    header: Text<'a>,
    #[serde(borrow, default)]
    claim: Text<'a>,
}

pub(super) fn request_authentication<'a>(
    body: Body<'_>,
    place: Place<'a>,
    interner: &mut Interner,
) -> Read<'a> {
    let wire: ObjectWire<'_, SpecWire<'_>> = body.read()?;
    let (meta, mut report) = meta::namespaced(&wire.metadata, Kind::RequestAuthentication, place, interner);
    validate::no_dry_run(&wire.metadata, &mut report);
    validate::no_reserved_annotations(&wire.metadata, &mut report);
    let spec = wire.spec.unwrap_or_default();
    let targets = Targets { selector: &spec.selector, one: &spec.target_ref, several: &spec.target_refs };
    targets.check(&mut report);
    let selector = validate::selector(spec.selector.as_ref(), interner, &mut report);
    let targets_gateway = targets.are_set();
    let mut reader = Reader { interner, report: &mut report, namespace: meta.key.namespace.clone() };
    let rules = rules(&spec.jwt_rules, &mut reader);
    let object = RequestAuthentication { meta, selector, targets_gateway, rules };
    Ok((Resource::RequestAuthentication(object), report))
}

fn rules(wires: &List<Option<RuleWire<'_>>>, reader: &mut Reader<'_, '_>) -> Vec<JwtRule> {
    let root = Path::Root("spec.jwtRules");
    let mut rules = Vec::with_capacity(wires.items.len());
    for (index, wire) in wires.items.iter().enumerate() {
        let at = root.index(index);
        match wire {
            Some(wire) => rules.push(rule(wire, &at, reader)),
            None => reader.report.reject(at, "The rule is empty.", "Write its `issuer`, or remove it."),
        }
    }
    rules
}

fn rule(wire: &RuleWire<'_>, at: &Path<'_>, reader: &mut Reader<'_, '_>) -> JwtRule {
    for (text, name) in [(&wire.issuer, "issuer"), (&wire.jwks_uri, "jwksUri")] {
        if text.as_ref().is_some_and(|text| text.non_empty().is_none()) {
            reader.report.reject(at.field(name), "The text is empty.", "Write it, or remove the field.");
        }
    }
    if wire.issuer.is_none() && wire.jwks_uri.is_none() {
        let message = "The rule has neither `issuer` nor `jwksUri`: nobody could issue a token for it.";
        reader.report.reject(at, message, "Write the issuer as tokens name it (`iss`).");
    }
    let names = |list: &List<Text<'_>>, field: &str, reader: &mut Reader<'_, '_>| {
        let Reader { interner, report, .. } = reader;
        validate::each(&list.items, &at.field(field), report, |text| Ok(interner.text(text)))
    };
    JwtRule {
        issuer: reader.text(wire.issuer.as_ref().map_or("", Text::as_str)),
        audiences: names(&wire.audiences, "audiences", reader),
        keys: keys(wire, at, reader),
        from_headers: headers(&wire.from_headers, &at.field("fromHeaders"), reader),
        from_params: names(&wire.from_params, "fromParams", reader),
        from_cookies: names(&wire.from_cookies, "fromCookies", reader),
        output_payload_to_header: wire
            .output_payload_to_header
            .non_empty()
            .and_then(|name| payload_header(name, &at.field("outputPayloadToHeader"), reader)),
        output_claim_to_headers: claims(
            &wire.output_claim_to_headers,
            &at.field("outputClaimToHeaders"),
            reader,
        ),
        forward_original_token: wire.forward_original_token,
        timeout: reader.duration(wire.timeout.as_ref(), &at.field("timeout")).unwrap_or(KEY_TIMEOUT),
        space_delimited_claims: names(&wire.space_delimited_claims, "spaceDelimitedClaims", reader),
        required: required(wire, at, reader),
    }
}

fn keys(wire: &RuleWire<'_>, at: &Path<'_>, reader: &mut Reader<'_, '_>) -> KeySource {
    if wire.jwks.is_some() && wire.jwks_uri.is_some() {
        let message = "`jwks` and `jwksUri` exclude each other.";
        reader.report.reject(at, message, "Keep one of them.");
    }
    let uri = wire.jwks_uri.as_ref().and_then(Text::non_empty);
    if let Some(uri) = uri
        && !url::scheme(uri).is_some_and(|scheme| scheme.is_one_of(&["http", "https"]))
    {
        let message = format!("`{uri}` is not a URL of http or https.");
        let fix = "Write for example https://issuer.example/.well-known/jwks.json.";
        reader.report.reject(at.field("jwksUri"), message, fix);
    }
    let Some(text) = wire.jwks.as_ref().and_then(Text::non_empty) else {
        return match uri {
            Some(uri) => KeySource::Uri(reader.text(uri)),
            None => KeySource::Discovery,
        };
    };
    match serde_json::from_str::<Value>(text) {
        Ok(Value::Object(set)) if set.contains_key("keys") || set.contains_key("kty") => {
            if has_private_key(&set) {
                let message = "`jwks` has a private key, which everybody who reads this object now has.";
                let fix = "Remove the key's private part, and replace the key.";
                reader.report.add(codes::SCHEMA_WARNING, at.field("jwks"), message, fix);
            }
        }
        Ok(_) | Err(_) => {
            let message = "`jwks` is not a JWK Set: a JSON object with the list `keys`.";
            reader.report.reject(at.field("jwks"), message, "Write the issuer's key set, or its `jwksUri`.");
        }
    }
    KeySource::Inline(reader.text(text))
}

/// RFC 7518 6.2.2 and 6.3.2: `d` is what signs.
fn has_private_key(set: &serde_json::Map<String, Value>) -> bool {
    let keys = set.get("keys").and_then(Value::as_array);
    set.contains_key("d") || keys.is_some_and(|keys| keys.iter().any(|key| key.get("d").is_some()))
}

fn headers(
    wires: &List<Option<HeaderWire<'_>>>,
    at: &Path<'_>,
    reader: &mut Reader<'_, '_>,
) -> Vec<(Arc<str>, Arc<str>)> {
    let mut headers = Vec::with_capacity(wires.items.len());
    for (index, wire) in wires.items.iter().enumerate() {
        let at = at.index(index);
        match wire.as_ref().and_then(|wire| Some((wire.name.non_empty()?, wire))) {
            Some((name, wire)) => {
                headers.push((reader.text(&name.to_ascii_lowercase()), reader.text(wire.prefix.as_str())));
            }
            None => reader.report.reject(at.field("name"), "The header has no name.", "Name the header."),
        }
    }
    headers
}

fn claims(
    wires: &List<Option<ClaimWire<'_>>>,
    at: &Path<'_>,
    reader: &mut Reader<'_, '_>,
) -> Vec<(Arc<str>, Arc<str>)> {
    let mut claims = Vec::with_capacity(wires.items.len());
    for (index, wire) in wires.items.iter().enumerate() {
        let at = at.index(index);
        let parts = wire.as_ref().and_then(|wire| Some((wire.header.non_empty()?, wire.claim.non_empty()?)));
        match parts {
            Some((header, claim)) => {
                let header = header_name(header, &at.field("header"), reader);
                claims.push((header, reader.text(claim)));
            }
            None => {
                let message = "A claim needs the `header` that it goes to, and its own name in `claim`.";
                reader.report.reject(at, message, "Write both.");
            }
        }
    }
    claims
}

/// A header for the token's payload. Istio's admission takes any text here; one that cannot be sent is left out.
fn payload_header(name: &str, at: &Path<'_>, reader: &mut Reader<'_, '_>) -> Option<Arc<str>> {
    if is_header_name(name) {
        return Some(reader.text(&name.to_ascii_lowercase()));
    }
    let message = format!("`{name}` is not the name of a header, so the payload goes nowhere.");
    reader.report.add(codes::SCHEMA_WARNING, at, message, "Use letters, digits, `-` and `_`.");
    None
}

fn is_header_name(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}

fn header_name(name: &str, at: &Path<'_>, reader: &mut Reader<'_, '_>) -> Arc<str> {
    if !is_header_name(name) {
        let message = format!("`{name}` is not the name of a header.");
        reader.report.reject(at, message, "Use letters, digits, `-` and `_`.");
    }
    reader.text(&name.to_ascii_lowercase())
}

fn required(wire: &RuleWire<'_>, at: &Path<'_>, reader: &mut Reader<'_, '_>) -> bool {
    match wire.presence.as_ref().map_or("OPTIONAL", Text::as_str) {
        "PRESENCE_UNSPECIFIED" | "OPTIONAL" => false,
        "REQUIRED" => true,
        other => {
            let message = format!("`{other}` does not say whether there must be a token.");
            reader.report.reject(at.field("presence"), message, "Write OPTIONAL or REQUIRED.");
            false
        }
    }
}
