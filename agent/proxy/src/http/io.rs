//! What a client's HTTP connection is read from and written to, and the watch over it.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use super::h1::Progress;
use super::stream::TunnelIo;

/// How long a request's head may take from its first byte on.
const HEAD: Duration = Duration::from_secs(60);
/// How long a connection may be idle, also in the middle of a request's body; up to twice as long before it is
/// noticed (H-11).
const IDLE: Duration = Duration::from_secs(3600);
/// How long a connection that was idle may take to close when its client was told.
const CLOSING: Duration = Duration::from_secs(5);
/// One read while the protocol is not known yet, in bytes.
const FIRST_READ: usize = 2048;

/// A connection to a client.
pub(crate) struct Io {
    transport: Transport,
    watch: Option<Rc<Watch>>,
}

/// What carries it.
pub(crate) enum Transport {
    /// A socket, with what was read ahead.
    Tcp(TcpStream, Bytes),
    /// A stream of a tunnel.
    Tunnel(TunnelIo),
}

impl Transport {
    /// What was read ahead.
    pub(crate) fn first_bytes(&self) -> &[u8] {
        match self {
            Self::Tcp(_, first) => first,
            Self::Tunnel(tunnel) => tunnel.received(),
        }
    }

    /// Reads more ahead; `false` at the end.
    pub(crate) fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let (stream, first) = match self {
            Self::Tcp(stream, first) => (stream, first),
            Self::Tunnel(tunnel) => return tunnel.poll_receive(cx),
        };
        let mut room = [0; FIRST_READ];
        let mut buf = ReadBuf::new(&mut room);
        ready!(Pin::new(stream).poll_read(cx, &mut buf))?;
        if buf.filled().is_empty() {
            return Poll::Ready(Ok(false));
        }
        let mut both = BytesMut::with_capacity(first.len() + buf.filled().len());
        both.extend_from_slice(first);
        both.extend_from_slice(buf.filled());
        *first = both.freeze();
        Poll::Ready(Ok(true))
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(_, first) if !first.is_empty() => {
                let count = first.len().min(buf.remaining());
                buf.put_slice(first.get(..count).unwrap_or_default());
                first.advance(count);
                Poll::Ready(Ok(()))
            }
            Self::Tcp(stream, _) => Pin::new(stream).poll_read(cx, buf),
            Self::Tunnel(tunnel) => Pin::new(tunnel).poll_read(cx, buf),
        }
    }
}

/// Follows what arrives on a connection: its requests, and for HTTP/1 all that is read and written.
#[derive(Debug)]
pub(crate) struct Watch {
    /// Of HTTP/1.
    pub(crate) progress: Rc<Progress>,
    /// Something has arrived that does not tell the version yet: a head, or the preface, has begun.
    opening: Cell<bool>,
    /// Reads and writes.
    moves: Cell<u64>,
    /// Requests that were given to us, and those that are not over.
    requests: Cell<u64>,
    open: Cell<u64>,
}

impl Watch {
    /// Of a connection of which nothing was read yet.
    pub(crate) fn new() -> Rc<Self> {
        Rc::new(Self {
            progress: Rc::default(),
            opening: Cell::new(false),
            moves: Cell::new(0),
            requests: Cell::new(0),
            open: Cell::new(0),
        })
    }

    /// Says whether the client has begun and not yet told which version it speaks.
    pub(crate) fn set_opening(&self, opening: bool) {
        self.opening.set(opening);
    }

    fn in_head(&self) -> bool {
        self.opening.get() || self.progress.in_head.get()
    }

    /// Whether a request is not over.
    pub(crate) fn is_busy(&self) -> bool {
        self.open.get() > 0
    }

    /// Counts a request until the guard is dropped.
    pub(crate) fn request(self: &Rc<Self>) -> Busy {
        self.requests.set(self.requests.get() + 1);
        self.open.set(self.open.get() + 1);
        Busy(self.clone())
    }
}

/// A request that is not over.
#[derive(Debug)]
pub(crate) struct Busy(Rc<Watch>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get().saturating_sub(1));
    }
}

/// What a connection has taken too long for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Late {
    /// The rest of a head.
    Head,
    /// The rest of a request's body, with nothing sent to the client either.
    Body,
    /// Another request.
    Idle,
}

/// Ends connections on which nothing happens.
pub(crate) struct Deadline {
    watch: Rc<Watch>,
    timer: Pin<Box<Sleep>>,
    /// Since when a head is incomplete, if that is what the timer waits for.
    head: Option<Instant>,
    seen: u64,
    /// The timer wakes this task: it need not be told again before it does.
    armed: bool,
}

impl Deadline {
    /// Watches from now on.
    pub(crate) fn new(watch: Rc<Watch>) -> Self {
        Self { watch, timer: Box::pin(tokio::time::sleep(IDLE)), head: None, seen: 0, armed: false }
    }

    /// Ready when the connection is to be ended; [`Late::Idle`] for the first time, it may end in its own way for
    /// some seconds more. Call after the connection was polled, always in the same task.
    pub(crate) fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<Late> {
        let in_head = self.watch.in_head();
        if in_head && self.head.is_none() {
            let now = Instant::now();
            self.head = Some(now);
            self.timer.as_mut().reset(now + HEAD);
            self.armed = false;
        }
        if !in_head {
            self.head = None;
        }
        if self.armed && !self.timer.is_elapsed() {
            return Poll::Pending;
        }
        self.armed = true;
        ready!(self.timer.as_mut().poll(cx));
        self.armed = false;
        let moves = self.watch.moves.get() + self.watch.requests.get();
        if self.head.is_some() {
            return Poll::Ready(Late::Head);
        }
        if self.seen == moves {
            if self.watch.open.get() == 0 {
                self.timer.as_mut().reset(Instant::now() + CLOSING);
                return Poll::Ready(Late::Idle);
            }
            if self.watch.progress.in_body.get() {
                return Poll::Ready(Late::Body);
            }
        }
        self.seen = moves;
        self.timer.as_mut().reset(Instant::now() + IDLE);
        // Registers the new deadline.
        self.timer.as_mut().poll(cx).map(|()| Late::Idle)
    }
}

impl Io {
    /// A connection; an HTTP/1 one is watched.
    pub(crate) fn new(transport: Transport, watch: Option<Rc<Watch>>) -> Self {
        Self { transport, watch }
    }

    fn moved(&self) {
        if let Some(watch) = &self.watch {
            watch.moves.set(watch.moves.get() + 1);
        }
    }
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.transport.poll_read(cx, buf))?;
        this.moved();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.moved();
        match &mut this.transport {
            Transport::Tcp(stream, _) => Pin::new(stream).poll_write(cx, bytes),
            Transport::Tunnel(tunnel) => Pin::new(tunnel).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.moved();
        match &mut this.transport {
            Transport::Tcp(stream, _) => Pin::new(stream).poll_write_vectored(cx, slices),
            Transport::Tunnel(tunnel) => Pin::new(tunnel).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().transport {
            Transport::Tcp(stream, _) => Pin::new(stream).poll_flush(cx),
            Transport::Tunnel(tunnel) => Pin::new(tunnel).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().transport {
            Transport::Tcp(stream, _) => Pin::new(stream).poll_shutdown(cx),
            Transport::Tunnel(tunnel) => Pin::new(tunnel).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_begins_and_does_not_go_on_is_late_as_with_a_head() {
        let watch = Watch::new();
        let mut deadline = Deadline::new(watch.clone());
        let began = Instant::now();
        watch.set_opening(true);
        assert_eq!(poll_fn(|cx| deadline.poll_over(cx)).await, Late::Head);
        assert_eq!(began.elapsed().as_secs(), HEAD.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_go_on_is_not_waited_for_for_ever() {
        let watch = Watch::new();
        let mut deadline = Deadline::new(watch.clone());
        watch.progress.in_body.set(true);
        let _busy = watch.request();
        let began = Instant::now();
        assert_eq!(poll_fn(|cx| deadline.poll_over(cx)).await, Late::Body);
        assert_eq!(began.elapsed().as_secs(), 2 * IDLE.as_secs());
        // What is complete may take as long as it likes.
        watch.progress.in_body.set(false);
        let mut deadline = Deadline::new(watch);
        tokio::time::timeout(10 * IDLE, poll_fn(|cx| deadline.poll_over(cx))).await.unwrap_err();
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_without_requests_is_idle_and_one_with_them_is_not() {
        let watch = Watch::new();
        let mut deadline = Deadline::new(watch.clone());
        let began = Instant::now();
        // In the first hour there was a request, the second one passes with one that is open.
        drop(watch.request());
        let busy = watch.request();
        tokio::time::timeout(3 * IDLE - HEAD, poll_fn(|cx| deadline.poll_over(cx))).await.unwrap_err();
        drop(busy);
        assert_eq!(poll_fn(|cx| deadline.poll_over(cx)).await, Late::Idle);
        assert_eq!(began.elapsed().as_secs(), 3 * IDLE.as_secs());
        assert_eq!(poll_fn(|cx| deadline.poll_over(cx)).await, Late::Idle);
        assert_eq!(began.elapsed().as_secs(), (3 * IDLE + CLOSING).as_secs());
    }
}
