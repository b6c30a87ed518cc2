//! Taking a token apart. Nothing in it is believed yet.

use serde_json::{Map, Value};
use weft_core::decide::request_authentication::{Claim, JwtFailure};

use super::base64;

/// Longer tokens are refused unread. (All headers of a request together have 60 KiB.)
const MAX_LENGTH: usize = 48 * 1024;

/// `alg` (RFC 7518 3.1, RFC 8037 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Algorithm {
    Hs256,
    Hs384,
    Hs512,
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    Es512,
    EdDsa,
}

impl Algorithm {
    pub(super) fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "HS256" => Self::Hs256,
            "HS384" => Self::Hs384,
            "HS512" => Self::Hs512,
            "RS256" => Self::Rs256,
            "RS384" => Self::Rs384,
            "RS512" => Self::Rs512,
            "PS256" => Self::Ps256,
            "PS384" => Self::Ps384,
            "PS512" => Self::Ps512,
            "ES256" => Self::Es256,
            "ES384" => Self::Es384,
            "ES512" => Self::Es512,
            "EdDSA" => Self::EdDsa,
            _ => return None,
        })
    }
}

/// A token, taken apart.
#[derive(Debug)]
pub(super) struct Token<'t> {
    pub(super) algorithm: Algorithm,
    pub(super) key_id: Option<String>,
    /// What is signed.
    pub(super) signed: &'t str,
    pub(super) signature: Vec<u8>,
    /// As it stands in the token.
    pub(super) payload: &'t str,
    pub(super) claims: Claim,
    pub(super) issuer: String,
    pub(super) subject: String,
    pub(super) audiences: Vec<String>,
    /// Seconds since the Unix epoch.
    pub(super) expires: Option<i64>,
    /// Seconds since the Unix epoch.
    pub(super) not_before: Option<i64>,
}

impl<'t> Token<'t> {
    pub(super) fn read(token: &'t str) -> Result<Self, JwtFailure> {
        let (header, payload, signature) = sections(token).ok_or(JwtFailure::Form)?;
        let signed = token.get(..header.len() + 1 + payload.len()).ok_or(JwtFailure::Form)?;
        let (algorithm, key_id) = read_header(header)?;
        let bytes = base64::decode(payload).ok_or(JwtFailure::PayloadEncoding)?;
        let claims: Map<String, Value> =
            serde_json::from_slice(&bytes).map_err(|_| JwtFailure::PayloadJson)?;
        let token = Self {
            algorithm,
            key_id,
            signed,
            signature: base64::decode(signature).ok_or(JwtFailure::SignatureEncoding)?,
            payload,
            issuer: text(&claims, "iss")?,
            subject: text(&claims, "sub")?,
            audiences: audiences(&claims)?,
            expires: time(&claims, "exp")?,
            not_before: time(&claims, "nbf")?,
            claims: claim(Value::Object(claims)),
        };
        Ok(token)
    }
}

fn sections(token: &str) -> Option<(&str, &str, &str)> {
    let mut parts = Some(token).filter(|token| token.len() <= MAX_LENGTH)?.split('.');
    let found = (parts.next()?, parts.next()?, parts.next()?);
    parts.next().is_none().then_some(found)
}

fn read_header(text: &str) -> Result<(Algorithm, Option<String>), JwtFailure> {
    let bytes = base64::decode(text).ok_or(JwtFailure::HeaderEncoding)?;
    let header: Map<String, Value> = serde_json::from_slice(&bytes).map_err(|_| JwtFailure::HeaderJson)?;
    let name = header.get("alg").and_then(Value::as_str).ok_or(JwtFailure::AlgorithmMissing)?;
    let algorithm = Algorithm::parse(name).ok_or(JwtFailure::AlgorithmUnsupported)?;
    // RFC 7515 4.1.11: extensions that must be understood are not.
    if header.contains_key("crit") {
        return Err(JwtFailure::AlgorithmUnsupported);
    }
    let key_id = match header.get("kid") {
        None => None,
        Some(Value::String(id)) => Some(id.clone()),
        Some(_) => return Err(JwtFailure::KeyId),
    };
    Ok((algorithm, key_id))
}

fn text(claims: &Map<String, Value>, name: &'static str) -> Result<String, JwtFailure> {
    match claims.get(name) {
        None => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(JwtFailure::PayloadField(name)),
    }
}

fn audiences(claims: &Map<String, Value>) -> Result<Vec<String>, JwtFailure> {
    let wrong = JwtFailure::PayloadField("aud");
    match claims.get("aud") {
        None => Ok(Vec::new()),
        Some(Value::String(one)) => Ok(vec![one.clone()]),
        Some(Value::Array(items)) => {
            let texts = items.iter().map(|item| item.as_str().map(str::to_owned));
            texts.collect::<Option<_>>().ok_or(wrong)
        }
        Some(_) => Err(wrong),
    }
}

/// RFC 7519 2, NumericDate: seconds, possibly with a fraction.
fn time(claims: &Map<String, Value>, name: &'static str) -> Result<Option<i64>, JwtFailure> {
    let Some(value) = claims.get(name) else { return Ok(None) };
    let whole = value.as_i64();
    // Far beyond any clock, and still exact as a floating point number.
    let limit = 2f64.powi(52);
    let fraction = || value.as_f64().filter(|seconds| seconds.abs() < limit).map(|seconds| seconds as i64);
    whole.or_else(fraction).map(Some).ok_or(JwtFailure::PayloadField(name))
}

fn claim(value: Value) -> Claim {
    match value {
        Value::Null => Claim::Null,
        Value::Bool(value) => Claim::Bool(value),
        Value::Number(number) => Claim::Number(number.to_string()),
        Value::String(text) => Claim::Text(text),
        Value::Array(items) => Claim::List(items.into_iter().map(claim).collect()),
        Value::Object(entries) => {
            Claim::Map(entries.into_iter().map(|(key, value)| (key, claim(value))).collect())
        }
    }
}
