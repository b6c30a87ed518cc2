//! The CA: signs certificate requests with a key that it loads or creates in its state directory.

use std::path::Path;
use std::time::Duration;

use weft_core::Identity;

use crate::SignedCertificate;

/// Why a request was not signed. `Display` is told to the caller.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CaError {
    /// The caller may not have this identity; the text says why.
    #[error("{0}")]
    Forbidden(String),
    /// The request is malformed.
    #[error("{0}")]
    InvalidRequest(String),
    /// The CA itself failed.
    #[error("{0}")]
    Internal(String),
}

/// A CA with its key in memory.
#[derive(Debug)]
pub struct Ca {}

impl Ca {
    /// Loads key and root certificate from `dir`, or creates both (mode 0600) when there is none.
    pub fn open(dir: &Path, trust_domain: &str) -> Result<Self, CaError> {
        let _ = (dir, trust_domain);
        unimplemented!()
    }

    /// Signs `csr_pem` for exactly `identity`. The caller has checked that the requester may have it.
    pub fn sign(&self, csr_pem: &str, identity: &Identity, lifetime: Duration) -> Result<SignedCertificate, CaError> {
        let _ = (csr_pem, identity, lifetime);
        unimplemented!()
    }

    /// The root certificate, PEM.
    pub fn root_pem(&self) -> &str {
        unimplemented!()
    }
}
