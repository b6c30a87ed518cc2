//! A CA inside the agent, for an agent that is alone on its machine (ruling 9).

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use weft_core::Identity;

use crate::csr_api::{NodeAuthority, issue};
use crate::{Ca, CaClient, CaError, IdentityError, SignedCertificate};

/// Asks a [`Ca`] in the same process, with the same check of pod → node and the same audit lines as the
/// CSR API.
pub struct EmbeddedCa {
    ca: Arc<Ca>,
    authority: Arc<dyn NodeAuthority>,
    node: Arc<str>,
    lifetime: Duration,
}

impl EmbeddedCa {
    /// A client for the agent of `node`. Certificates live as long as the CA allows.
    pub fn new(ca: Arc<Ca>, authority: Arc<dyn NodeAuthority>, node: Arc<str>) -> Self {
        let lifetime = ca.max_lifetime();
        Self { ca, authority, node, lifetime }
    }
}

impl CaClient for EmbeddedCa {
    fn sign<'a>(
        &'a self,
        csr_pem: &'a str,
        identity: &'a Identity,
    ) -> Pin<Box<dyn Future<Output = Result<SignedCertificate, IdentityError>> + Send + 'a>> {
        let answer = issue(&self.ca, &*self.authority, &self.node, identity, (csr_pem, self.lifetime));
        Box::pin(std::future::ready(answer.map_err(|error| match error {
            CaError::Forbidden(reason) | CaError::InvalidRequest(reason) => IdentityError::Refused(reason),
            CaError::Internal(reason) => IdentityError::Unavailable(reason),
        })))
    }
}
