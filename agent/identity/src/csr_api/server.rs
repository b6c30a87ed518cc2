//! The server of a node's Unix socket.

use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;
use tonic::codegen::tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::{Request, Status};

use super::limits::{Bucket, NODE};
use super::message::{IstioCertificateRequest, IstioCertificateResponse};
use super::service::{Answer, Answering, CertificateService, MISSING, lifetime, requested_identity, status};
use super::{NodeAuthority, audit_refusal, issue, socket};
use crate::{Ca, IdentityError};

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
    let bucket = Mutex::new(Bucket::full(NODE, Instant::now()));
    let service = CertificateService::new(Arc::new(Issuing { node, ca, authority, bucket }));
    let served = Server::builder()
        .serve_with_incoming_shutdown(service, UnixListenerStream::new(bound.listener), shutdown)
        .await;
    drop(bound.file);
    served.map_err(|error| {
        IdentityError::Internal(format!("serving the CSR API on {} failed: {error}", socket.display()))
    })
}

/// What it takes to answer one node.
struct Issuing {
    node: Arc<str>,
    ca: Arc<Ca>,
    authority: Arc<dyn NodeAuthority>,
    bucket: Mutex<Bucket>,
}

impl Answering for Issuing {
    fn answer(self: Arc<Self>, request: Request<IstioCertificateRequest>) -> Answer {
        Box::pin(std::future::ready(self.issue(request.get_ref())))
    }
}

impl Issuing {
    fn issue(&self, request: &IstioCertificateRequest) -> Result<IstioCertificateResponse, Status> {
        let refuse = |status: Status| {
            audit_refusal((&self.node, "-"), None, status.message());
            status
        };
        self.admit().map_err(refuse)?;
        let identity = match requested_identity(request).map_err(refuse)? {
            Some(identity) => identity,
            None => return Err(refuse(Status::invalid_argument(MISSING))),
        };
        let asked = (request.csr.as_str(), lifetime(&self.ca, request).map_err(refuse)?);
        let signed = issue(&self.ca, &*self.authority, &self.node, &identity, asked).map_err(status)?;
        Ok(signed.into())
    }

    fn admit(&self) -> Result<(), Status> {
        // A plain lock: held for a few instructions, never across an await.
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        if bucket.take(NODE, Instant::now()) {
            return Ok(());
        }
        Err(Status::resource_exhausted(format!(
            "node {} asks for more than {} certificates a second; ask again later",
            self.node, NODE.per_second
        )))
    }
}
