//! The client of a node's Unix socket.

use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::net::UnixStream;
use tonic::Request;
use tonic::transport::{Channel, Endpoint};
use weft_core::Identity;

use super::answers;
use super::connector::Connector;
use super::message::IstioCertificateRequest;
use crate::{CaClient, IdentityError, SignedCertificate};

/// Longest wait for an answer, and for the connection.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Client of the API.
#[derive(Debug, Clone)]
pub struct UnixCaClient {
    socket: Arc<Path>,
    lifetime: Duration,
    /// Made on first use: making it takes a runtime.
    channel: Arc<OnceLock<Channel>>,
}

impl UnixCaClient {
    /// A client for the socket; connects on first use and again after failures. The CA chooses how long
    /// certificates live.
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.into(), lifetime: Duration::ZERO, channel: Arc::default() }
    }

    /// Asks for certificates of this life instead (whole seconds); the CA may shorten it.
    #[must_use]
    pub fn with_lifetime(mut self, lifetime: Duration) -> Self {
        self.lifetime = lifetime;
        self
    }

    pub(super) fn channel(&self) -> Channel {
        let socket = Arc::clone(&self.socket);
        let open = move || {
            let socket = Arc::clone(&socket);
            async move { UnixStream::connect(&*socket).await }
        };
        let connect = || {
            Endpoint::from_static("http://csr-api.invalid")
                .timeout(TIMEOUT)
                .connect_timeout(TIMEOUT)
                .connect_with_connector_lazy(Connector(open))
        };
        self.channel.get_or_init(connect).clone()
    }

    async fn create(&self, csr_pem: &str, identity: &Identity) -> Result<SignedCertificate, IdentityError> {
        let place = || self.socket.display().to_string();
        let request = IstioCertificateRequest::new(csr_pem, &identity.to_string(), self.lifetime);
        answers::call(self.channel(), Request::new(request), &place).await
    }
}

impl CaClient for UnixCaClient {
    fn sign<'a>(
        &'a self,
        csr_pem: &'a str,
        identity: &'a Identity,
    ) -> Pin<Box<dyn Future<Output = Result<SignedCertificate, IdentityError>> + Send + 'a>> {
        Box::pin(self.create(csr_pem, identity))
    }
}
