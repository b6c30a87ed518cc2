//! Istio's CSR API (`istio.v1.auth.IstioCertificateService/CreateCertificate`) over a Unix socket: one
//! socket per node, so that the socket says which node asks.
//!
//! The wire is Istio's (spec section 4): a PEM request, the identity as metadata `ImpersonatedIdentity`, the
//! answer leaf first and the bundle of roots last.

mod client;
mod message;
mod server;
mod socket;

use std::time::Duration;

use weft_core::Identity;

use crate::{Ca, CaError, SignedCertificate};

pub use client::UnixCaClient;
pub use server::serve;

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
        Ok(_) => tracing::info!(target: "audit", node, %identity, ?lifetime, "certificate issued"),
        Err(error) => audit_refusal(node, Some(identity), &error.to_string()),
    }
    answer
}

/// The audit line of a request that got no certificate.
fn audit_refusal(node: &str, identity: Option<&Identity>, reason: &str) {
    let identity = identity.map_or_else(|| "-".to_owned(), Identity::to_string);
    tracing::warn!(target: "audit", node, identity, reason, "certificate refused");
}

#[cfg(test)]
mod tests;
