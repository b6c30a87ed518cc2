//! The gRPC service with its one method, and the parts of an answer that every server shares.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::{Grpc, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;
use weft_core::Identity;

use super::METHOD;
use super::message::{IstioCertificateRequest, IstioCertificateResponse};
use crate::{Ca, CaError};

/// A request is a CSR and a name: far below this.
const MAX_REQUEST_BYTES: usize = 64 * 1024;

/// Said where nobody else says who is asked for.
pub(super) const MISSING: &str =
    "the metadata field ImpersonatedIdentity is missing: it names the identity that is asked for";

/// What a server answers.
pub(super) type Answer = Pin<Box<dyn Future<Output = Result<IstioCertificateResponse, Status>> + Send>>;

/// Answers requests for certificates.
pub(super) trait Answering: Send + Sync + 'static {
    /// Checks, signs, audits.
    fn answer(self: Arc<Self>, request: Request<IstioCertificateRequest>) -> Answer;
}

/// The gRPC service; everything but its one method is unimplemented.
pub(super) struct CertificateService<A>(Arc<A>);

impl<A> CertificateService<A> {
    pub(super) fn new(answering: Arc<A>) -> Self {
        Self(answering)
    }
}

impl<A> Clone for CertificateService<A> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<A: Answering> Service<http::Request<Body>> for CertificateService<A> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, req: http::Request<Body>) -> Self::Future {
        let answering = Arc::clone(&self.0);
        Box::pin(async move {
            if req.uri().path() != METHOD {
                let status = Status::unimplemented(format!("the CSR API has only the method {METHOD}"));
                return Ok(status.into_http());
            }
            let mut grpc = Grpc::new(ProstCodec::default()).max_decoding_message_size(MAX_REQUEST_BYTES);
            Ok(grpc.unary(CreateCertificate(answering), req).await)
        })
    }
}

/// The method.
struct CreateCertificate<A>(Arc<A>);

impl<A: Answering> UnaryService<IstioCertificateRequest> for CreateCertificate<A> {
    type Response = IstioCertificateResponse;
    type Future = BoxFuture<Response<IstioCertificateResponse>, Status>;

    fn call(&mut self, request: Request<IstioCertificateRequest>) -> Self::Future {
        let answer = Arc::clone(&self.0).answer(request);
        Box::pin(async move { answer.await.map(Response::new) })
    }
}

/// The life that a request asks for; what the CA gives, where it leaves that to it.
pub(super) fn lifetime(ca: &Ca, request: &IstioCertificateRequest) -> Result<Duration, Status> {
    let seconds = request.validity_duration;
    match u64::try_from(seconds) {
        Ok(0) => Ok(ca.max_lifetime()),
        Ok(seconds) => Ok(Duration::from_secs(seconds)),
        Err(_) => Err(Status::invalid_argument(format!("validity_duration is negative: {seconds}"))),
    }
}

/// The identity that a request names, if it names one.
pub(super) fn requested_identity(request: &IstioCertificateRequest) -> Result<Option<Identity>, Status> {
    let Some(identity) = request.impersonated_identity() else { return Ok(None) };
    identity.parse().map(Some).map_err(|error| {
        Status::invalid_argument(format!("the metadata field ImpersonatedIdentity: {error}"))
    })
}

pub(super) fn status(error: CaError) -> Status {
    let text = error.to_string();
    match error {
        CaError::Forbidden(_) => Status::permission_denied(text),
        CaError::InvalidRequest(_) => Status::invalid_argument(text),
        CaError::Internal(_) => Status::internal(text),
    }
}
