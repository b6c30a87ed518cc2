//! How the clients connect: to where they were made for, whatever the URI says.

use std::future::Future;
use std::io;
use std::task::{Context, Poll};

use hyper_util::rt::TokioIo;
use tonic::codegen::{BoxFuture, Service};
use tonic::transport::Uri;

/// Opens each connection by calling the function.
#[derive(Clone)]
pub(super) struct Connector<C>(pub(super) C);

impl<C, F, S> Service<Uri> for Connector<C>
where
    C: Fn() -> F,
    F: Future<Output = io::Result<S>> + Send + 'static,
{
    type Response = TokioIo<S>;
    type Error = io::Error;
    type Future = BoxFuture<Self::Response, io::Error>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _uri: Uri) -> Self::Future {
        let opening = (self.0)();
        Box::pin(async move { opening.await.map(TokioIo::new) })
    }
}
