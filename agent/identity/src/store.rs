//! The certificates of this node's workloads, kept fresh.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use weft_core::Identity;

use crate::tls::Hbone;

/// Failures on the way to a certificate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// The CA refuses for good.
    #[error("the CA refuses: {0}")]
    Refused(String),
    /// The CA cannot be asked now.
    #[error("the CA cannot be reached: {0}")]
    Unavailable(String),
    /// The answer is not usable.
    #[error("the CA's answer is not usable: {0}")]
    InvalidAnswer(String),
    /// No certificate for this identity (yet); the text says why.
    #[error("no certificate for {identity}: {reason}")]
    NoCertificate {
        /// The identity.
        identity: Identity,
        /// Why.
        reason: String,
    },
    /// Local failure.
    #[error("{0}")]
    Internal(String),
}

/// What a CA returns: PEM, leaf first, and the roots to trust.
#[derive(Debug, Clone)]
pub struct SignedCertificate {
    /// Leaf, then intermediates.
    pub chain_pem: Vec<String>,
    /// One or several roots.
    pub roots_pem: Vec<String>,
}

/// One interface for every CA.
pub trait CaClient: Send + Sync + 'static {
    /// Asks for a certificate.
    fn sign<'a>(
        &'a self,
        csr_pem: &'a str,
        identity: &'a Identity,
    ) -> Pin<Box<dyn Future<Output = Result<SignedCertificate, IdentityError>> + Send + 'a>>;
}

/// State of one identity, for status and metrics. No key material.
#[derive(Debug, Clone)]
pub struct CertInfo {
    /// The identity.
    pub identity: Identity,
    /// Expiry of the certificate in use.
    pub not_after: Option<SystemTime>,
    /// The last failure to get or renew one.
    pub error: Option<String>,
}

/// The certificates of this node. Cheap to clone; reads take no lock that a renewal holds.
#[derive(Clone)]
pub struct CertStore {}

impl CertStore {
    /// A store that asks `ca`. Nothing is fetched before [`CertStore::want`]. `runtime` runs its renewals.
    pub fn new(ca: Arc<dyn CaClient>, runtime: tokio::runtime::Handle) -> Self {
        let _ = (ca, runtime);
        Self {}
    }

    /// The identities that pods of this node have; others are dropped, new ones fetched (8 at a time),
    /// all renewed at half life with jittered back-off on failure.
    pub fn want(&self, identities: BTreeSet<Identity>) {
        let _ = identities;
    }

    /// TLS configurations of the moment for one identity.
    pub fn get(&self, identity: &Identity) -> Result<Arc<Hbone>, IdentityError> {
        Err(IdentityError::NoCertificate { identity: identity.clone(), reason: String::new() })
    }

    /// The same, waiting for a fetch that is under way, at most `limit`.
    pub async fn wait(&self, identity: &Identity, limit: Duration) -> Result<Arc<Hbone>, IdentityError> {
        let _ = limit;
        self.get(identity)
    }

    /// All identities with their state.
    pub fn infos(&self) -> Vec<CertInfo> {
        Vec::new()
    }
}
