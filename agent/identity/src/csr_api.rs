//! Istio's CSR API (`istio.v1.auth.IstioCertificateService/CreateCertificate`): over a Unix socket, one for each
//! node, so that the socket says which node asks; and over TLS with a token that says who asks.
//!
//! The wire is Istio's (spec section 4): a PEM request, the identity as metadata `ImpersonatedIdentity`, the
//! answer leaf first and the bundle of roots last.

mod answers;
mod client;
mod connector;
mod counters;
mod limits;
mod message;
mod network_client;
mod network_server;
mod server;
mod service;
mod socket;
mod tls_listener;
mod tokens;

use std::time::{Duration, SystemTime};

use weft_core::Identity;

use crate::{Ca, CaError, SignedCertificate, bundle};

pub use client::UnixCaClient;
pub use counters::{Counters, Outcome};
pub use network_client::{NetworkCaClient, NetworkCaOptions};
pub use network_server::{Access, NetworkServer, ServiceAccount};
pub use server::serve;
pub use tokens::{AuthenticationError, Authenticator, Caller};

/// The only method.
const METHOD: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";

/// Says whether pods with an identity run on a node, from the server's own view of the configuration.
pub trait NodeAuthority: Send + Sync + 'static {
    /// `Ok` when at least one pod with `identity` is assigned to `node`.
    fn may_have(&self, node: &str, identity: &Identity) -> Result<(), CaError>;
}

/// Checks, signs and audits one request, a PEM request and the lifetime that is asked for.
pub(crate) fn issue(
    ca: &Ca,
    authority: &dyn NodeAuthority,
    node: &str,
    identity: &Identity,
    (csr_pem, lifetime): (&str, Duration),
) -> Result<SignedCertificate, CaError> {
    let answer = authority.may_have(node, identity).and_then(|()| ca.sign(csr_pem, identity, lifetime));
    match &answer {
        Ok(signed) => audit_issue((node, "-"), identity, signed),
        Err(error) => audit_refusal((node, "-"), Some(identity), &error.to_string()),
    }
    answer
}

/// The audit line of a certificate that was issued; node and caller as far as they are known.
fn audit_issue((node, caller): (&str, &str), identity: &Identity, signed: &SignedCertificate) {
    let (serial, lifetime) = leaf_facts(signed).unwrap_or_else(|| ("-".to_owned(), Duration::ZERO));
    let seconds = lifetime.as_secs();
    tracing::info!(target: "audit", node, caller, %identity, serial, seconds, "certificate issued");
}

/// The audit line of a request that got no certificate.
fn audit_refusal((node, caller): (&str, &str), identity: Option<&Identity>, reason: &str) {
    let identity = identity.map_or_else(|| "-".to_owned(), Identity::to_string);
    tracing::warn!(target: "audit", node, caller, identity, reason, "certificate refused");
}

/// Serial number (hexadecimal) and life of what was signed.
fn leaf_facts(signed: &SignedCertificate) -> Option<(String, Duration)> {
    let blocks = bundle::blocks(signed.chain_pem.first()?).ok()?;
    let leaf = blocks.first()?.parse().ok()?;
    let not_after: SystemTime = leaf.validity().not_after.to_datetime().into();
    let serial = leaf.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect();
    Some((serial, not_after.duration_since(SystemTime::now()).unwrap_or_default()))
}

#[cfg(test)]
mod network_tests;
#[cfg(test)]
mod tests;
