//! A connection that speaks another protocol after an answer with 101 (H-5).

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use http::Response;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Both directions of a connection.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// The connection, for whoever takes it first out of the answer. Extensions of messages are cloned, and go between
/// threads as far as their type says: hence the lock, which nobody ever waits for.
#[derive(Clone)]
pub(crate) struct Switched(Arc<Mutex<Option<Box<dyn Duplex>>>>);

impl Switched {
    /// A connection, with what was read ahead of the other protocol.
    pub(super) fn new(io: impl Duplex + 'static, ahead: Bytes) -> Self {
        Self(Arc::new(Mutex::new(Some(Box::new(Rewound { ahead, io })))))
    }

    /// Takes the connection out of an answer.
    pub(crate) fn take<B>(answer: &mut Response<B>) -> Option<Box<dyn Duplex>> {
        let Self(place) = answer.extensions_mut().remove::<Self>()?;
        place.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A connection of which something was read already.
struct Rewound<T> {
    ahead: Bytes,
    io: T,
}

impl<T: AsyncRead + Unpin> AsyncRead for Rewound<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.ahead.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buf);
        }
        let count = self.ahead.len().min(buf.remaining());
        buf.put_slice(self.ahead.get(..count).unwrap_or_default());
        self.ahead.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Rewound<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
