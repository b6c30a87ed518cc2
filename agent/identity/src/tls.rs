//! TLS for HBONE: what is offered, what is accepted, how SPIFFE identities are verified.

use std::sync::Arc;
use std::time::SystemTime;

use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::CertificateDer;
use weft_core::Identity;

/// Why a peer's certificate was not accepted. `Display` goes to the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PeerVerificationError(pub String);

/// TLS configurations of one identity: TLS 1.3, ALPN `h2`, no resumption, no SNI, hybrid key exchange first.
#[derive(Debug)]
pub struct Hbone {}

impl Hbone {
    /// The identity.
    pub fn identity(&self) -> &Identity {
        unimplemented!()
    }

    /// Expiry of the certificate.
    pub fn not_after(&self) -> SystemTime {
        unimplemented!()
    }

    /// For accepting: asks for a client certificate whose chain verifies and whose SPIFFE trust domain is ours.
    pub fn server(&self) -> Arc<ServerConfig> {
        unimplemented!()
    }

    /// For dialling: accepts only a server that proves to be `expected`. Cached per expected identity.
    pub fn client(&self, expected: &Identity) -> Arc<ClientConfig> {
        let _ = expected;
        unimplemented!()
    }
}

/// The SPIFFE identity in a verified peer's leaf certificate.
pub fn peer_identity(chain: &[CertificateDer<'_>]) -> Result<Identity, PeerVerificationError> {
    let _ = chain;
    unimplemented!()
}
