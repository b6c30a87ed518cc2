//! Whose tokens does a request carry? RequestAuthentication (RA-1 to RA-9).
//!
//! Finding tokens and judging the results is pure and stands here; verifying one is the caller's
//! (`weft-identity`), which also knows when keys have to be fetched first.

mod tokens;

use std::fmt;
use std::sync::Arc;

use smallvec::SmallVec;

use self::tokens::{Token, tokens};
use super::http::{LocalReply, Request};
use crate::ObjectRef;
use crate::resource::request_authentication::JwtRule;
use crate::resource::virtual_service::HeaderChanges;
use crate::snapshot::{JwtPolicy, LocalWorkload};

/// A value of a token's payload.
#[derive(Debug, Clone, PartialEq)]
pub enum Claim {
    /// `null`.
    Null,
    /// A truth value.
    Bool(bool),
    /// A number, as it stands in the token.
    Number(String),
    /// Text.
    Text(String),
    /// A list.
    List(Vec<Claim>),
    /// A map, in the order of the token.
    Map(Vec<(String, Claim)>),
}

impl Claim {
    /// The entry of a map.
    pub fn get(&self, name: &str) -> Option<&Claim> {
        match self {
            Self::Map(entries) => entries.iter().find(|(key, _)| key == name).map(|(_, value)| value),
            Self::Null | Self::Bool(_) | Self::Number(_) | Self::Text(_) | Self::List(_) => None,
        }
    }

    /// The texts that a condition compares: the value itself, or each element of a list.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        let items = match self {
            Self::List(items) => items.as_slice(),
            Self::Null | Self::Bool(_) | Self::Number(_) | Self::Text(_) | Self::Map(_) => {
                std::slice::from_ref(self)
            }
        };
        items.iter().filter_map(|item| match item {
            Self::Text(text) => Some(text.as_str()),
            Self::Null | Self::Bool(_) | Self::Number(_) | Self::List(_) | Self::Map(_) => None,
        })
    }
}

impl fmt::Display for Claim {
    /// JSON.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Number(text) => f.write_str(text),
            Self::Text(text) => quote(text, f),
            Self::List(items) => {
                f.write_str("[")?;
                for (at, item) in items.iter().enumerate() {
                    write!(f, "{}{item}", if at > 0 { "," } else { "" })?;
                }
                f.write_str("]")
            }
            Self::Map(entries) => {
                f.write_str("{")?;
                for (at, (key, value)) in entries.iter().enumerate() {
                    f.write_str(if at > 0 { "," } else { "" })?;
                    quote(key, f)?;
                    write!(f, ":{value}")?;
                }
                f.write_str("}")
            }
        }
    }
}

fn quote(text: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.write_str("\"")?;
    for character in text.chars() {
        match character {
            '"' | '\\' => write!(f, "\\{character}")?,
            '\u{0}'..='\u{1f}' => write!(f, "\\u{:04x}", u32::from(character))?,
            _ => write!(f, "{character}")?,
        }
    }
    f.write_str("\"")
}

/// What a valid token says.
#[derive(Debug, Clone, PartialEq)]
pub struct Claims {
    /// `iss`; empty when absent.
    pub issuer: String,
    /// `sub`; empty when absent.
    pub subject: String,
    /// The payload, a [`Claim::Map`].
    pub values: Claim,
    /// The payload as it stands in the token, base64url without padding.
    pub payload: String,
}

impl Claims {
    /// `iss/sub` (RA-9); `None` where one of them is missing.
    pub fn principal(&self) -> Option<String> {
        let known = !self.issuer.is_empty() && !self.subject.is_empty();
        known.then(|| format!("{}/{}", self.issuer, self.subject))
    }

    /// A value by the names that lead to it.
    pub fn at<'n>(&self, path: impl IntoIterator<Item = &'n str>) -> Option<&Claim> {
        path.into_iter().try_fold(&self.values, |value, name| value.get(name))
    }

    /// Cuts text of words into a list (RA-6).
    fn split_words(&mut self, names: &[Arc<str>]) {
        let Claim::Map(entries) = &mut self.values else { return };
        for (key, value) in entries {
            let spaced =
                matches!(key.as_str(), "scope" | "permission") || names.iter().any(|name| **name == **key);
            if let (true, Claim::Text(text)) = (spaced, &*value) {
                let words = text.split(' ').filter(|word| !word.is_empty());
                *value = Claim::List(words.map(|word| Claim::Text(word.to_owned())).collect());
            }
        }
    }
}

/// Why a token is not accepted. The texts are those of E40, which clients see.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
pub enum JwtFailure {
    /// There is no token where a rule requires one.
    #[error("Jwt is missing")]
    Missing,
    /// The keys have to be fetched first; nothing is decided.
    #[error("Jwks remote fetch is failed")]
    KeysMissing,
    /// The keys could not be fetched (RA-5).
    #[error("Jwks remote fetch is failed")]
    KeysUnavailable,
    /// The keys are no JWK Set.
    #[error("Jwks doesn't have any valid public key")]
    KeysInvalid,
    /// Not three parts, or far too long.
    #[error("Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections")]
    Form,
    /// The header is no base64url.
    #[error("Jwt header is an invalid Base64url encoded")]
    HeaderEncoding,
    /// The header is no JSON.
    #[error("Jwt header is an invalid JSON")]
    HeaderJson,
    /// `alg` is missing or no text.
    #[error("Jwt header [alg] field is required and must be a string")]
    AlgorithmMissing,
    /// `alg` is `none` or unknown.
    #[error("Jwt header [alg] is not supported")]
    AlgorithmUnsupported,
    /// `kid` is no text.
    #[error("Jwt header [kid] field is not a string")]
    KeyId,
    /// The payload is no base64url.
    #[error("Jwt payload is an invalid Base64url encoded")]
    PayloadEncoding,
    /// The payload is no JSON object.
    #[error("Jwt payload is an invalid JSON")]
    PayloadJson,
    /// A registered claim has the wrong type.
    #[error("Jwt payload [{0}] field has a wrong type")]
    PayloadField(&'static str),
    /// The signature is no base64url.
    #[error("Jwt signature is an invalid Base64url encoded")]
    SignatureEncoding,
    /// `iss` is not the rule's issuer.
    #[error("Jwt issuer is not configured")]
    Issuer,
    /// `exp` is over.
    #[error("Jwt is expired")]
    Expired,
    /// `nbf` is to come.
    #[error("Jwt not yet valid")]
    NotYetValid,
    /// `aud` has none of the rule's audiences.
    #[error("Audiences in Jwt are not allowed")]
    Audience,
    /// No key fits `kid` and `alg`.
    #[error("Jwks doesn't have key to match kid or alg from Jwt")]
    KeyNotFound,
    /// No key verifies the signature.
    #[error("Jwt verification fails")]
    Signature,
}

impl JwtFailure {
    /// The status of the answer: 403 where the token is good, but for somebody else.
    pub fn status(&self) -> u16 {
        if *self == Self::Audience { 403 } else { 401 }
    }
}

/// What became of a request's tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Outcome {
    /// No rule applies to the workload.
    #[default]
    None,
    /// There are rules, but no token (RA-2), or nobody asks for one (RA-7).
    Missing,
    /// Every token is valid.
    Valid,
    /// A token is not: the request is refused.
    Invalid(JwtFailure),
    /// Keys of these rules have to be fetched, then the question is to be asked again.
    KeysMissing(Vec<Arc<JwtPolicy>>),
}

/// The answer of [`authenticate`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Authentication {
    /// What became of the tokens.
    pub outcome: Outcome,
    /// What the valid tokens say; the first is the request's principal (RA-3).
    pub claims: SmallVec<[Claims; 1]>,
    /// `iss/sub` of the first token.
    pub principal: Option<String>,
    /// The object whose rule accepted (or refused) the token.
    pub object: Option<ObjectRef>,
    /// Changes of the request's headers before it goes on: tokens removed, payload and claims added (RA-6).
    pub changes: HeaderChanges,
    /// The new path and query, where a token was in it.
    pub target: Option<String>,
}

impl Authentication {
    /// The answer to a request that is refused (E40); `None` where it is not.
    pub fn refusal(&self, request: &Request<'_>) -> Option<LocalReply> {
        let Outcome::Invalid(failure) = &self.outcome else { return None };
        let Request { scheme, authority, target, .. } = request;
        let path = target.split('?').next().unwrap_or_default();
        // Quotes would end the parameter early.
        let realm: String =
            format!("{scheme}://{authority}{path}").chars().filter(|c| !matches!(c, '"' | '\\')).collect();
        let error = if *failure == JwtFailure::Missing { "" } else { ", error=\"invalid_token\"" };
        Some(LocalReply {
            status: failure.status(),
            headers: vec![("www-authenticate".into(), format!("Bearer realm=\"{realm}\"{error}"))],
            body: failure.to_string().into_bytes().into(),
            flag: "-",
            details: "jwt_authn_access_denied",
            by: "jwt",
        })
    }

    /// `response_code_details` of a request that is refused, for example
    /// `jwt_authn_access_denied{Jwt_verification_fails}`.
    pub fn details(&self) -> Option<String> {
        let Outcome::Invalid(failure) = &self.outcome else { return None };
        Some(format!("jwt_authn_access_denied{{{}}}", failure.to_string().replace(' ', "_")))
    }
}

/// Verifies one token by one rule.
pub type Verify<'v> = dyn Fn(&JwtRule, &str) -> Result<Claims, JwtFailure> + 'v;

/// Finds the tokens of a request to `workload` and has them verified.
///
/// Every token must be valid, wherever it stands, by one of the rules that look for tokens there (RA-2, RA-3):
/// the application may read any of them.
pub fn authenticate(workload: &LocalWorkload, request: &Request<'_>, verify: &Verify<'_>) -> Authentication {
    let rules = &workload.request_authentication;
    if rules.is_empty() {
        return Authentication::default();
    }
    let mut answer = Authentication { outcome: Outcome::Missing, ..Authentication::default() };
    answer.changes.remove = forged_headers(rules);
    if is_preflight(request) {
        return answer;
    }
    let tokens = tokens(rules, request);
    if let (true, Some(policy)) = (tokens.is_empty(), rules.iter().find(|policy| policy.rule.required)) {
        answer.outcome = Outcome::Invalid(JwtFailure::Missing);
        answer.object = Some(policy.object.clone());
        return answer;
    }
    let mut missing: Vec<Arc<JwtPolicy>> = Vec::new();
    let mut removed: SmallVec<[&Token<'_>; 1]> = SmallVec::new();
    for token in &tokens {
        match judge(rules, token, verify) {
            Judged::Accepted(policy, claims) => {
                accept(&mut answer, policy, claims);
                if !policy.rule.forward_original_token {
                    removed.push(token);
                }
            }
            Judged::Refused(policy, failure) => {
                answer.outcome = Outcome::Invalid(failure);
                answer.object = Some(policy.object.clone());
                return answer;
            }
            Judged::KeysMissing(policies) => missing.extend(policies),
        }
    }
    if !missing.is_empty() {
        answer.outcome = Outcome::KeysMissing(missing);
        return answer;
    }
    answer.changes.remove.extend(removed.iter().filter_map(|token| token.header().map(Into::into)));
    answer.target = tokens::without(request.target, &removed);
    answer
}

/// What the rules say about one token.
enum Judged<'r> {
    Accepted(&'r Arc<JwtPolicy>, Claims),
    Refused(&'r Arc<JwtPolicy>, JwtFailure),
    KeysMissing(Vec<Arc<JwtPolicy>>),
}

fn judge<'r>(rules: &'r [Arc<JwtPolicy>], token: &Token<'_>, verify: &Verify<'_>) -> Judged<'r> {
    let mut missing = Vec::new();
    let mut refused: Option<(&Arc<JwtPolicy>, JwtFailure)> = None;
    for policy in token.rules.iter().filter_map(|at| rules.get(*at)) {
        match verify(&policy.rule, &token.text) {
            Ok(claims) => return Judged::Accepted(policy, claims),
            Err(JwtFailure::KeysMissing) => missing.push(policy.clone()),
            // That a token is not of some other issuer tells nobody anything.
            Err(JwtFailure::Issuer) if refused.is_some() => {}
            Err(failure) => {
                let weak = matches!(refused, None | Some((_, JwtFailure::Issuer)));
                if weak {
                    refused = Some((policy, failure));
                }
            }
        }
    }
    match refused {
        Some((policy, failure)) if missing.is_empty() => Judged::Refused(policy, failure),
        Some(_) | None => Judged::KeysMissing(missing),
    }
}

/// Notes an accepted token and what its rule wants told to the application.
fn accept(answer: &mut Authentication, policy: &JwtPolicy, mut claims: Claims) {
    let rule = &policy.rule;
    if let Some(header) = &rule.output_payload_to_header {
        answer.changes.set.push((header.clone(), claims.payload.as_str().into()));
    }
    for (header, name) in &rule.output_claim_to_headers {
        if let Some(value) = claims.at(name.split('.')).and_then(header_value) {
            answer.changes.set.push((header.clone(), value.into()));
        }
    }
    claims.split_words(&rule.space_delimited_claims);
    if answer.claims.is_empty() {
        answer.principal = claims.principal();
        answer.object = Some(policy.object.clone());
        answer.outcome = Outcome::Valid;
    }
    answer.claims.push(claims);
}

/// A claim as a header: text, numbers and truth values as they are, lists and maps as base64 of their JSON.
fn header_value(claim: &Claim) -> Option<String> {
    let text = match claim {
        Claim::Null => return None,
        Claim::Bool(value) => value.to_string(),
        Claim::Number(text) | Claim::Text(text) => text.clone(),
        Claim::List(_) | Claim::Map(_) => tokens::base64(claim.to_string().as_bytes()),
    };
    // What cannot stand in a header is left out: a line break would begin another one.
    text.bytes().all(|byte| byte >= b' ' && byte != 0x7f).then_some(text)
}

/// Headers that only this mesh may set: what a client sent under their names is removed.
fn forged_headers(rules: &[Arc<JwtPolicy>]) -> Vec<Arc<str>> {
    let rules = rules.iter().map(|policy| &policy.rule);
    let mut names: Vec<Arc<str>> = rules
        .flat_map(|rule| {
            let claims = rule.output_claim_to_headers.iter().map(|(header, _)| header);
            rule.output_payload_to_header.iter().chain(claims).cloned()
        })
        .collect();
    names.sort();
    names.dedup();
    names
}

/// RA-7: browsers ask without a token whether they may send one.
fn is_preflight(request: &Request<'_>) -> bool {
    let present = |name: &str| request.headers.get(name).is_some_and(|value| !value.is_empty());
    request.method == "OPTIONS" && present("origin") && present("access-control-request-method")
}

#[cfg(test)]
mod tests;
