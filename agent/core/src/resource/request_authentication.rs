//! RequestAuthentication (`security.istio.io`) (RA-1 to RA-9).

use std::sync::Arc;
use std::time::Duration;

use super::{Labels, Meta};

/// A RequestAuthentication that passed validation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestAuthentication {
    /// Name, age, origin.
    pub meta: Meta,
    /// `spec.selector.matchLabels`; `None` when absent or empty.
    pub selector: Option<Labels>,
    /// `spec.targetRefs` is set: ordinary workloads ignore the object.
    pub targets_gateway: bool,
    /// `spec.jwtRules`.
    pub rules: Vec<JwtRule>,
}

/// One entry of `jwtRules`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JwtRule {
    /// `issuer`; empty accepts every issuer whose token the keys verify.
    pub issuer: Arc<str>,
    /// `audiences`: any of them; empty is no condition.
    pub audiences: Vec<Arc<str>>,
    /// `jwks` or `jwksUri`.
    pub keys: KeySource,
    /// `fromHeaders`: name in lower case, prefix.
    pub from_headers: Vec<(Arc<str>, Arc<str>)>,
    /// `fromParams`.
    pub from_params: Vec<Arc<str>>,
    /// `fromCookies`.
    pub from_cookies: Vec<Arc<str>>,
    /// `outputPayloadToHeader`.
    pub output_payload_to_header: Option<Arc<str>>,
    /// `outputClaimToHeaders`: header, claim (nested with `.`).
    pub output_claim_to_headers: Vec<(Arc<str>, Arc<str>)>,
    /// `forwardOriginalToken`.
    pub forward_original_token: bool,
    /// `timeout` of fetching keys, 5 s by default.
    pub timeout: Duration,
    /// `spaceDelimitedClaims`, beside `scope` and `permission`.
    pub space_delimited_claims: Vec<Arc<str>>,
    /// `presence: REQUIRED`: a request without a token is refused.
    pub required: bool,
}

/// Where the keys of an issuer come from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum KeySource {
    /// `jwks`: the text of a JWK Set.
    Inline(Arc<str>),
    /// `jwksUri`.
    Uri(Arc<str>),
    /// Neither: OpenID discovery from the issuer (RA-5).
    Discovery,
}
