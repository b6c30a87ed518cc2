//! The server side: one node's socket, one method.

use std::convert::Infallible;
use std::future::{Future, Ready, ready};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;
use tonic::body::Body;
use tonic::codegen::tokio_stream::wrappers::UnixListenerStream;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::{Grpc, UnaryService};
use tonic::transport::Server;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;
use weft_core::Identity;

use super::message::{IstioCertificateRequest, IstioCertificateResponse};
use super::{METHOD, NodeAuthority, audit_refusal, issue, socket};
use crate::{Ca, CaError, IdentityError};

/// A request is a CSR and a name: far below this.
const MAX_REQUEST_BYTES: usize = 64 * 1024;
/// Requests that a node may send at once, for example when it starts with all its pods.
const BURST: f64 = 100.0;
/// Requests per second that a node may send for long.
const RATE: f64 = 50.0;

/// Serves the API for `node` on `socket` (mode 0600) until `shutdown` completes.
///
/// The socket is bound when the future is first polled, and its file is removed at the end.
///
/// # Errors
/// [`IdentityError::Internal`] when others could write the socket's directory, another process serves it
/// already, or the socket cannot be made.
pub async fn serve(
    socket: PathBuf,
    node: Arc<str>,
    ca: Arc<Ca>,
    authority: Arc<dyn NodeAuthority>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), IdentityError> {
    let bound = socket::bind(&socket)?;
    let bucket = Mutex::new(Bucket { tokens: BURST, filled: Instant::now() });
    let service = CertificateService(Arc::new(Issuing { node, ca, authority, bucket }));
    let served = Server::builder()
        .serve_with_incoming_shutdown(service, UnixListenerStream::new(bound.listener), shutdown)
        .await;
    drop(bound.file);
    served.map_err(|error| {
        IdentityError::Internal(format!("serving the CSR API on {} failed: {error}", socket.display()))
    })
}

/// The gRPC service; everything but its one method is unimplemented.
#[derive(Clone)]
struct CertificateService(Arc<Issuing>);

impl Service<http::Request<Body>> for CertificateService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, req: http::Request<Body>) -> Self::Future {
        let issuing = Arc::clone(&self.0);
        Box::pin(async move {
            if req.uri().path() != METHOD {
                let status = Status::unimplemented(format!("the CSR API has only the method {METHOD}"));
                return Ok(status.into_http());
            }
            let mut grpc = Grpc::new(ProstCodec::default()).max_decoding_message_size(MAX_REQUEST_BYTES);
            Ok(grpc.unary(CreateCertificate(issuing), req).await)
        })
    }
}

/// The method.
struct CreateCertificate(Arc<Issuing>);

impl UnaryService<IstioCertificateRequest> for CreateCertificate {
    type Response = IstioCertificateResponse;
    type Future = Ready<Result<Response<IstioCertificateResponse>, Status>>;

    fn call(&mut self, request: Request<IstioCertificateRequest>) -> Self::Future {
        ready(self.0.answer(request.get_ref()).map(Response::new))
    }
}

/// What it takes to answer one node.
struct Issuing {
    node: Arc<str>,
    ca: Arc<Ca>,
    authority: Arc<dyn NodeAuthority>,
    bucket: Mutex<Bucket>,
}

impl Issuing {
    fn answer(&self, request: &IstioCertificateRequest) -> Result<IstioCertificateResponse, Status> {
        let refuse = |status: Status| {
            audit_refusal(&self.node, None, status.message());
            status
        };
        self.admit().map_err(refuse)?;
        let identity = requested_identity(request).map_err(refuse)?;
        let asked = (request.csr.as_str(), self.lifetime(request.validity_duration).map_err(refuse)?);
        let signed = issue(&self.ca, &*self.authority, &self.node, &identity, asked).map_err(status)?;
        let mut cert_chain = signed.chain_pem;
        cert_chain.push(signed.roots_pem.concat());
        Ok(IstioCertificateResponse { cert_chain })
    }

    fn admit(&self) -> Result<(), Status> {
        // A plain lock: held for a few instructions, never across an await.
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        if bucket.take(Instant::now()) {
            return Ok(());
        }
        Err(Status::resource_exhausted(format!(
            "node {} asks for more than {RATE} certificates a second; ask again later",
            self.node
        )))
    }

    fn lifetime(&self, seconds: i64) -> Result<Duration, Status> {
        match u64::try_from(seconds) {
            Ok(0) => Ok(self.ca.max_lifetime()),
            Ok(seconds) => Ok(Duration::from_secs(seconds)),
            Err(_) => Err(Status::invalid_argument(format!("validity_duration is negative: {seconds}"))),
        }
    }
}

fn requested_identity(request: &IstioCertificateRequest) -> Result<Identity, Status> {
    let Some(identity) = request.impersonated_identity() else {
        return Err(Status::invalid_argument(
            "the metadata field ImpersonatedIdentity is missing: it names the identity that is asked for",
        ));
    };
    identity.parse().map_err(|error| {
        Status::invalid_argument(format!("the metadata field ImpersonatedIdentity: {error}"))
    })
}

fn status(error: CaError) -> Status {
    let text = error.to_string();
    match error {
        CaError::Forbidden(_) => Status::permission_denied(text),
        CaError::InvalidRequest(_) => Status::invalid_argument(text),
        CaError::Internal(_) => Status::internal(text),
    }
}

/// Tokens of one node: [`BURST`] at most, [`RATE`] new ones a second.
struct Bucket {
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    fn take(&mut self, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.tokens = (self.tokens + elapsed * RATE).min(BURST);
        self.filled = now;
        if self.tokens < 1.0 {
            return false;
        }
        self.tokens -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_gets_its_burst_and_then_its_rate() {
        let start = Instant::now();
        let mut bucket = Bucket { tokens: BURST, filled: start };
        assert_eq!((0..150).filter(|_| bucket.take(start)).count(), 100);
        let later = start + Duration::from_millis(100);
        assert_eq!((0..150).filter(|_| bucket.take(later)).count(), 5);
        let much_later = start + Duration::from_secs(3600);
        assert_eq!((0..150).filter(|_| bucket.take(much_later)).count(), 100);
    }
}
