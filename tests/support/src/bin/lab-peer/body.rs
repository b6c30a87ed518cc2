//! Bodies of requests and answers.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::HeaderMap;
use hyper::body::{Body, Frame, Incoming, SizeHint};

/// Any body that we send.
pub(crate) type Outgoing = UnsyncBoxBody<Bytes, hyper::Error>;

const BLOCK: &[u8] = &[b'p'; 64 * 1024];

/// So many bytes, made as they are sent.
pub(crate) struct Pattern(pub(crate) u64);

impl Body for Pattern {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.0 == 0 {
            return Poll::Ready(None);
        }
        let length = usize::try_from(self.0).unwrap_or(usize::MAX).min(BLOCK.len());
        self.0 -= length as u64;
        let block = BLOCK.get(..length).unwrap_or_default();
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(block)))))
    }

    fn is_end_stream(&self) -> bool {
        self.0 == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0)
    }
}

/// Sends back what comes, then trailers: a gRPC call that answers each message with itself.
pub(crate) struct Echo {
    pub(crate) incoming: Incoming,
    pub(crate) trailers: Option<HeaderMap>,
}

impl Body for Echo {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match Pin::new(&mut self.incoming).poll_frame(context) {
            Poll::Ready(None) => Poll::Ready(self.trailers.take().map(|it| Ok(Frame::trailers(it)))),
            Poll::Ready(Some(Ok(frame))) if frame.is_trailers() => {
                Poll::Ready(self.trailers.take().map(|it| Ok(Frame::trailers(it))))
            }
            other => other,
        }
    }
}

/// A body that is all there.
pub(crate) fn full(bytes: impl Into<Bytes>) -> Outgoing {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A body of so many bytes.
pub(crate) fn pattern(bytes: u64) -> Outgoing {
    Pattern(bytes).map_err(|never| match never {}).boxed_unsync()
}

/// gRPC messages: uncompressed, each with its length before it.
pub(crate) fn messages(count: u32, length: u32) -> Outgoing {
    let mut bytes = Vec::new();
    for _ in 0..count {
        bytes.push(0);
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.resize(bytes.len() + length as usize, b'm');
    }
    full(bytes)
}
