//! The client side.

use std::error::Error;
use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::{BoxFuture, Service};
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;
use weft_core::Identity;

use super::METHOD;
use super::message::{IstioCertificateRequest, IstioCertificateResponse};
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
        let connect = || {
            Endpoint::from_static("http://csr-api.invalid")
                .timeout(TIMEOUT)
                .connect_timeout(TIMEOUT)
                .connect_with_connector_lazy(Connector { socket: Arc::clone(&self.socket) })
        };
        self.channel.get_or_init(connect).clone()
    }

    async fn create(&self, csr_pem: &str, identity: &Identity) -> Result<SignedCertificate, IdentityError> {
        let seconds = i64::try_from(self.lifetime.as_secs()).unwrap_or(i64::MAX);
        let request = IstioCertificateRequest::new(csr_pem, &identity.to_string(), seconds);
        let mut grpc = Grpc::new(self.channel());
        grpc.ready().await.map_err(|error| self.unreachable(&error))?;
        let answer = grpc
            .unary(Request::new(request), PathAndQuery::from_static(METHOD), ProstCodec::default())
            .await
            .map_err(|status| self.failed(&status))?;
        signed(answer.into_inner())
    }

    fn failed(&self, status: &Status) -> IdentityError {
        match status.code() {
            Code::PermissionDenied | Code::InvalidArgument | Code::Unauthenticated | Code::Unimplemented => {
                IdentityError::Refused(status.message().to_owned())
            }
            _ => match status.source() {
                Some(source) => self.unreachable(source),
                None => self.unreachable(&io::Error::other(status.message().to_owned())),
            },
        }
    }

    /// Names the innermost cause: the layers around it only say that a transport failed.
    fn unreachable(&self, error: &dyn Error) -> IdentityError {
        let mut cause = error;
        while let Some(source) = cause.source() {
            cause = source;
        }
        IdentityError::Unavailable(format!("{}: {cause}", self.socket.display()))
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

/// Splits an answer: the last element is the bundle of roots.
fn signed(answer: IstioCertificateResponse) -> Result<SignedCertificate, IdentityError> {
    let mut chain_pem = answer.cert_chain;
    match chain_pem.pop() {
        Some(roots) if !chain_pem.is_empty() => Ok(SignedCertificate { chain_pem, roots_pem: vec![roots] }),
        _ => Err(IdentityError::InvalidAnswer(
            "cert_chain must have the leaf first and the roots last, so at least two elements".to_owned(),
        )),
    }
}

/// Connects to the socket, whatever the URI says.
struct Connector {
    socket: Arc<Path>,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<UnixStream>;
    type Error = io::Error;
    type Future = BoxFuture<Self::Response, io::Error>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _uri: Uri) -> Self::Future {
        let socket = Arc::clone(&self.socket);
        Box::pin(async move { UnixStream::connect(&*socket).await.map(TokioIo::new) })
    }
}
