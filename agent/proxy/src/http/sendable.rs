//! A stream of a tunnel in the hands of a library that may only hold what could be sent to another thread.
//!
//! A stream belongs to its worker's thread and never leaves it; hyper, which asks for `Send` to be able to give an
//! upgraded connection away, does not know that. So the stream stays in a table of the thread, and what hyper holds is
//! its number.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use weft_core::hashing::FastMap;

use super::stream::TunnelIo;

thread_local! {
    static STREAMS: RefCell<FastMap<u64, Rc<RefCell<TunnelIo>>>> = RefCell::default();
}

/// Numbers are unique in the process: on another thread there is nothing behind them.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// The number of a stream. The stream ends when this is dropped.
pub(crate) struct Sendable(u64);

impl Sendable {
    /// Puts a stream into this thread's table.
    pub(crate) fn new(stream: TunnelIo) -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        STREAMS.with_borrow_mut(|streams| streams.insert(number, Rc::new(RefCell::new(stream))));
        Self(number)
    }

    fn with<T>(&self, poll: impl FnOnce(Pin<&mut TunnelIo>) -> Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        // The table is free again while the stream works.
        match STREAMS.with_borrow(|streams| streams.get(&self.0).cloned()) {
            Some(stream) => poll(Pin::new(&mut *stream.borrow_mut())),
            None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }
}

impl Drop for Sendable {
    fn drop(&mut self) {
        // While the thread ends its table may be gone, and the stream with it.
        let stream = STREAMS.try_with(|streams| streams.borrow_mut().remove(&self.0));
        drop(stream);
    }
}

impl AsyncRead for Sendable {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.with(|stream| stream.poll_read(cx, buf))
    }
}

impl AsyncWrite for Sendable {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.with(|stream| stream.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.with(|stream| stream.poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|stream| stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|stream| stream.poll_shutdown(cx))
    }
}
