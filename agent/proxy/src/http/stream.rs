//! A stream of a tunnel as something that HTTP can be spoken on.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use h2::Reason;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use weft_tls::scatter;

use crate::relay::{Broken, H2Stream};

/// The stream, with the chunk that was received last.
pub(crate) struct TunnelIo {
    stream: H2Stream,
    /// Still counted against the stream's window: released as it is taken.
    chunk: Bytes,
    ended: bool,
}

impl TunnelIo {
    /// Both directions of a stream that is open.
    pub(crate) fn new(stream: H2Stream) -> Self {
        Self { stream, chunk: Bytes::new(), ended: false }
    }

    /// What was received and not taken yet.
    pub(crate) fn received(&self) -> &Bytes {
        &self.chunk
    }

    /// Receives more in addition to what was not taken yet; `false` at the end of the stream.
    pub(crate) fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        match ready!(self.poll_chunk(cx)) {
            Ok(Some(more)) if self.chunk.is_empty() => self.chunk = more,
            Ok(Some(more)) => {
                let mut both = BytesMut::with_capacity(self.chunk.len() + more.len());
                both.extend_from_slice(&self.chunk);
                both.extend_from_slice(&more);
                self.chunk = both.freeze();
            }
            Ok(None) => return Poll::Ready(Ok(false)),
            Err(error) => return Poll::Ready(Err(error)),
        }
        Poll::Ready(Ok(true))
    }

    /// The stream, and what was received and not taken.
    pub(crate) fn into_parts(self) -> (H2Stream, Bytes) {
        (self.stream, self.chunk)
    }

    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        loop {
            let chunk = self.stream.lane.take();
            if !chunk.is_empty() {
                return Poll::Ready(Ok(Some(chunk)));
            }
            if self.ended {
                return Poll::Ready(Ok(None));
            }
            match self.stream.recv.poll_data(cx) {
                // HTTP/2 shows no payload: an end of stream may come in an empty frame.
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(error))) if is_clean(&error) => self.ended = true,
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(broken(error))),
                Poll::Ready(None) => self.ended = true,
                Poll::Pending => {
                    self.stream.lane.listen(cx);
                    return Poll::Pending;
                }
            }
        }
    }
}

/// NO_ERROR and CANCEL from a peer are a clean end, as ztunnel has it.
fn is_clean(error: &h2::Error) -> bool {
    let clean = |reason| reason == Reason::NO_ERROR || reason == Reason::CANCEL;
    error.is_remote() && error.is_reset() && error.reason().is_some_and(clean)
}

fn broken(error: h2::Error) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, error)
}

impl AsyncRead for TunnelIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.chunk.is_empty() {
            match ready!(this.poll_chunk(cx))? {
                Some(chunk) => this.chunk = chunk,
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = this.chunk.len().min(buf.remaining());
        buf.put_slice(this.chunk.get(..count).unwrap_or_default());
        this.chunk.advance(count);
        if this.chunk.is_empty() {
            // Also an empty chunk keeps the frame's buffer alive.
            this.chunk = Bytes::new();
        }
        this.stream.lane.release(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TunnelIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let wanted: usize = slices.iter().map(|slice| slice.len()).sum();
        if wanted == 0 {
            return Poll::Ready(Ok(0));
        }
        let room = ready!(this.stream.poll_room(wanted, cx)).map_err(|Broken| io::ErrorKind::BrokenPipe)?;
        Poll::Ready(this.stream.lane.send(room, |places| Ok(scatter(slices, places))))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Fails where the stream is over already.
        let _ = self.get_mut().stream.send.send_data(Bytes::new(), true);
        Poll::Ready(Ok(()))
    }
}
