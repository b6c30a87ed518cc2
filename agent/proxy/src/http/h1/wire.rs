//! Bytes that were read and not used yet, and bytes that wait to be written.

use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

/// Room that a read has at least, and what is taken at once when there is less, in bytes. Where more comes than there
/// was room for, as in large bodies, it grows.
const LEAST_ROOM: usize = 1024;
const SMALL_READS: usize = 8 * 1024;
const LARGE_READS: usize = 64 * 1024;
/// Bytes of a body that are copied so that they leave with what is before them.
const COPIED: usize = 4 * 1024;
/// Bytes that wait to be written before no more are taken.
const WAITING: usize = 16 * 1024;

/// A connection with its buffers.
pub(super) struct Wire<T> {
    pub(super) io: T,
    /// What was read and not used yet.
    pub(super) ahead: BytesMut,
    /// What waits to be written.
    pub(super) out: Out,
    reads: usize,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Wire<T> {
    /// A connection of which nothing was read yet.
    pub(super) fn new(io: T) -> Self {
        Self { io, ahead: BytesMut::new(), out: Out::default(), reads: SMALL_READS }
    }

    /// Reads more; 0 is the end.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.ahead.capacity() - self.ahead.len() < LEAST_ROOM {
            self.ahead.reserve(self.reads);
        }
        let room = self.ahead.capacity() - self.ahead.len();
        let count = ready!(pin!(self.io.read_buf(&mut self.ahead)).poll(cx))?;
        if count == room {
            self.reads = (self.reads * 2).min(LARGE_READS);
        } else if count < self.reads / 4 {
            self.reads = (self.reads / 2).max(SMALL_READS);
        }
        Poll::Ready(Ok(count))
    }

    /// Writes everything that waits.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.out.is_empty() && !self.out.unflushed {
            return Poll::Ready(Ok(()));
        }
        while !self.out.is_empty() {
            let count = ready!(self.out.poll_write(&mut self.io, cx))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.out.advance(count);
        }
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        self.out.unflushed = false;
        Poll::Ready(Ok(()))
    }
}

/// Bytes that wait to be written: small ones in one piece, then at most one large one.
#[derive(Debug, Default)]
pub(super) struct Out {
    small: Vec<u8>,
    /// Bytes of `small` that are written.
    written: usize,
    large: Bytes,
    /// Follows the large one.
    tail: &'static [u8],
    unflushed: bool,
}

impl Out {
    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.small.is_empty() && self.large.is_empty() && self.tail.is_empty()
    }

    /// Whether it takes more.
    pub(super) fn has_room(&self) -> bool {
        self.large.is_empty() && self.tail.is_empty() && self.small.len() < WAITING
    }

    /// Where heads are written. Only while it has room.
    pub(super) fn small(&mut self) -> &mut Vec<u8> {
        self.unflushed = true;
        &mut self.small
    }

    /// Takes bytes of a body. Only while it has room.
    pub(super) fn push(&mut self, bytes: Bytes, tail: &'static [u8]) {
        if bytes.len() <= COPIED {
            self.small().extend_from_slice(&bytes);
            self.small.extend_from_slice(tail);
        } else {
            (self.large, self.tail) = (bytes, tail);
        }
        self.unflushed = true;
    }

    /// Takes what ends a chunked body, after everything else.
    pub(super) fn end_chunks(&mut self) {
        if self.large.is_empty() && self.tail.is_empty() {
            self.small().extend_from_slice(b"0\r\n\r\n");
        } else {
            self.tail = b"\r\n0\r\n\r\n";
        }
    }

    fn poll_write<T: AsyncWrite + Unpin>(&self, io: &mut T, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let small = self.small.get(self.written..).unwrap_or_default();
        if self.large.is_empty() && self.tail.is_empty() {
            return Pin::new(io).poll_write(cx, small);
        }
        let slices = [IoSlice::new(small), IoSlice::new(&self.large), IoSlice::new(self.tail)];
        Pin::new(io).poll_write_vectored(cx, &slices)
    }

    fn advance(&mut self, count: usize) {
        let of_small = count.min(self.small.len() - self.written);
        self.written += of_small;
        if self.written == self.small.len() {
            self.small.clear();
            // What one large head needed is not kept for all time.
            self.small.shrink_to(WAITING);
            self.written = 0;
        }
        let of_large = (count - of_small).min(self.large.len());
        if of_large == self.large.len() {
            self.large = Bytes::new();
        } else {
            self.large.advance(of_large);
        }
        self.tail = self.tail.get(count - of_small - of_large..).unwrap_or_default();
    }
}
