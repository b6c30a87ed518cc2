//! JSON Web Tokens (RFC 7519) as RequestAuthentication uses them (RA-2 to RA-6).
//!
//! What a key may verify is fixed by the key's own type, never by the token (RFC 8725 3.1): a public RSA key is no
//! HMAC secret, and `none` is no algorithm. Time is a parameter.

mod base64;
mod keys;
mod token;

pub use keys::{InvalidJwkSet, JwkSet};
use token::Token;
use weft_core::decide::request_authentication::{Claims, JwtFailure};
use weft_core::resource::request_authentication::JwtRule;

/// Clocks may differ by so many seconds.
const SKEW: i64 = 60;

/// Verifies a token by a rule and the keys of its issuer. `now` counts seconds since the Unix epoch.
///
/// # Errors
///
/// Says what is wrong with the token; the texts are those that clients see (E40).
pub fn verify(rule: &JwtRule, keys: &JwkSet, token: &str, now: i64) -> Result<Claims, JwtFailure> {
    Unverified::read(rule, token, now)?.verify(keys)
}

/// A token that would be valid if its signature were.
///
/// Everything that needs no key is checked first, so that nobody makes us fetch keys for a token that is useless, or
/// wait for those of another issuer.
#[derive(Debug)]
pub struct Unverified<'t>(Token<'t>);

impl<'t> Unverified<'t> {
    /// Reads a token. `now` counts seconds since the Unix epoch.
    ///
    /// # Errors
    ///
    /// The token is malformed, of another issuer, for another audience, or not of this time.
    pub fn read(rule: &JwtRule, token: &'t str, now: i64) -> Result<Self, JwtFailure> {
        let token = Token::read(token)?;
        if !rule.issuer.is_empty() && *rule.issuer != *token.issuer {
            return Err(JwtFailure::Issuer);
        }
        if token.expires.is_some_and(|at| now > at.saturating_add(SKEW)) {
            return Err(JwtFailure::Expired);
        }
        if token.not_before.is_some_and(|at| now.saturating_add(SKEW) < at) {
            return Err(JwtFailure::NotYetValid);
        }
        if !audience_allowed(rule, &token) {
            return Err(JwtFailure::Audience);
        }
        Ok(Self(token))
    }

    /// Verifies the signature.
    ///
    /// # Errors
    ///
    /// [`JwtFailure::KeyNotFound`] where no key may verify this token, [`JwtFailure::Signature`] where none does.
    pub fn verify(self, keys: &JwkSet) -> Result<Claims, JwtFailure> {
        let Self(token) = self;
        keys.verify(&token)?;
        Ok(Claims {
            issuer: token.issuer,
            subject: token.subject,
            values: token.claims,
            payload: token.payload.to_owned(),
        })
    }
}

/// Any of the rule's audiences; without some there is no condition.
fn audience_allowed(rule: &JwtRule, token: &Token<'_>) -> bool {
    let plain = |audience: &str| bare_audience(audience).to_owned();
    let wanted: Vec<String> = rule.audiences.iter().map(|audience| plain(audience)).collect();
    wanted.is_empty() || token.audiences.iter().any(|audience| wanted.contains(&plain(audience)))
}

/// Audiences are often written as URLs, with or without scheme and final slash: that makes no difference.
fn bare_audience(audience: &str) -> &str {
    let bare = audience.strip_prefix("https://").or(audience.strip_prefix("http://")).unwrap_or(audience);
    bare.strip_suffix('/').unwrap_or(bare)
}

#[cfg(test)]
mod tests;
