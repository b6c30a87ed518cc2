//! Istio's CSR API (`istio.v1.auth.IstioCertificateService/CreateCertificate`) over a Unix socket: one
//! socket per node, so that the socket says which node asks.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use weft_core::Identity;

use crate::{Ca, CaClient, CaError, IdentityError, SignedCertificate};

/// Says whether pods with an identity run on a node, from the server's own view of the configuration.
pub trait NodeAuthority: Send + Sync + 'static {
    /// `Ok` when at least one pod with `identity` is assigned to `node`.
    fn may_have(&self, node: &str, identity: &Identity) -> Result<(), CaError>;
}

/// Serves the API for `node` on `socket` (mode 0600) until `shutdown` completes.
pub async fn serve(
    socket: PathBuf,
    node: Arc<str>,
    ca: Arc<Ca>,
    authority: Arc<dyn NodeAuthority>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), IdentityError> {
    let _ = (socket, node, ca, authority, shutdown);
    unimplemented!()
}

/// Client of the API.
#[derive(Debug, Clone)]
pub struct UnixCaClient {}

impl UnixCaClient {
    /// A client for the socket; connects on first use and again after failures.
    pub fn new(socket: &Path) -> Self {
        let _ = socket;
        Self {}
    }
}

impl CaClient for UnixCaClient {
    fn sign<'a>(
        &'a self,
        csr_pem: &'a str,
        identity: &'a Identity,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<SignedCertificate, IdentityError>> + Send + 'a>> {
        let _ = (csr_pem, identity);
        unimplemented!()
    }
}
