//! Moves bytes between two connections until both directions have ended.
//!
//! One future polls both directions; nothing is spawned. A connection without bytes on their way holds no
//! buffer. What a slow reader has not taken is bounded: by the HTTP/2 windows on a tunnel, by one read
//! elsewhere, which becomes small when a thread holds much.
//!
//! An end of stream passes through as an end of stream, a reset as a reset. On tunnels a reset of the
//! application's connection is RST_STREAM with CONNECT_ERROR (RFC 9113 8.5); NO_ERROR and CANCEL from a peer
//! are a clean end, as ztunnel has it.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::account::Meter;
use crate::buffers::{self, Buffer, Filled, Held};
use crate::net;
use crate::registry::{Cut, Live};

/// Reads of a connection that just began, in bytes.
const SMALLEST_READ: usize = 16 * 1024;
/// Reads of a busy connection, and the largest DATA frame that we send.
const LARGEST_READ: usize = 256 * 1024;
/// Shorter reads are copied out, so that a few bytes do not occupy a large buffer.
const WORTH_KEEPING: usize = 32 * 1024;
/// Bytes that one direction moves before other connections get their turn.
const TURN: usize = 1024 * 1024;

/// A stream of a tunnel, both directions.
pub(crate) struct H2Stream {
    /// To the peer.
    pub(crate) send: SendStream<Bytes>,
    /// From the peer.
    pub(crate) recv: RecvStream,
}

/// A server's connection with TLS that the mesh has begun for its client.
pub(crate) type Secured = Box<TlsStream<TcpStream>>;

/// What is relayed.
pub(crate) enum Pair {
    /// The client's connection and the server's.
    Tcp(TcpStream, TcpStream),
    /// The same with TLS towards the server.
    ClientTls(TcpStream, Secured),
    /// A client of this node, its server behind a tunnel.
    ClientTcp(TcpStream, H2Stream),
    /// A client behind a tunnel, its server on this node.
    ServerTcp(TcpStream, H2Stream),
}

/// What was read to find out what a connection speaks.
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    /// From the client's socket.
    pub(crate) socket: Bytes,
    /// From the stream; not released to its window yet.
    pub(crate) stream: Bytes,
}

/// How a relay ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Both directions ended.
    Clean,
    /// One side broke; the other was reset.
    Reset,
    /// We ended it; both sides were reset.
    Cut(Cut),
}

/// One side broke.
struct Broken;

impl From<io::Error> for Broken {
    fn from(_: io::Error) -> Self {
        Self
    }
}

type Progress = Poll<Result<(), Broken>>;

/// Which way bytes flow.
#[derive(Clone, Copy)]
enum Way {
    FromClient,
    FromServer,
}

impl Way {
    fn count(self, meter: &Meter, bytes: &[u8]) {
        match self {
            Self::FromClient => meter.client_sent(bytes),
            Self::FromServer => meter.server_sent(bytes),
        }
    }
}

/// Adapts the size of reads to what a connection has to say.
#[derive(Clone, Copy)]
struct ReadSize(u32);

impl ReadSize {
    const fn new() -> Self {
        Self(SMALLEST_READ as u32)
    }

    fn get(self) -> usize {
        if buffers::under_pressure() { buffers::FRUGAL } else { self.0 as usize }
    }

    fn after(&mut self, read: usize) {
        let size = self.0 as usize;
        if read >= size && size < LARGEST_READ {
            self.0 = (self.0 * 4).min(LARGEST_READ as u32);
        } else if read < size / 8 {
            self.0 = (self.0 / 2).max(SMALLEST_READ as u32);
        }
    }
}

/// Relays until the end.
///
/// A plain function, like those below: an `async fn` would keep its arguments a second time, and this future
/// is most of what an idle connection costs.
pub(crate) fn relay<'a>(
    pair: Pair,
    ahead: Ahead,
    meter: &'a Meter,
    live: &'a Live,
) -> impl Future<Output = End> + 'a {
    let mut relay = Relay::new(pair, ahead, meter);
    poll_fn(move |cx| {
        live.listen(cx);
        let end = match live.cut() {
            Some(cut) => End::Cut(cut),
            None => match relay.poll(meter, cx) {
                Poll::Ready(end) => end,
                Poll::Pending => End::Cut(ready!(meter.poll_over(cx))),
            },
        };
        std::mem::replace(&mut relay, Relay::Over).end(end == End::Clean);
        Poll::Ready(end)
    })
}

/// Both connections and how far both directions are.
enum Relay {
    Tcp(TcpStream, TcpStream, TcpToTcp, TcpToTcp),
    Tls(TcpStream, Secured, TcpToTcp, TcpToTcp),
    Tunnel(TcpStream, H2Stream, TcpToH2, H2ToTcp),
    Over,
}

impl Relay {
    fn new(pair: Pair, ahead: Ahead, meter: &Meter) -> Self {
        let (up, down) = (Way::FromClient, Way::FromServer);
        let Ahead { socket, stream: chunk } = ahead;
        match pair {
            Pair::Tcp(client, server) => {
                Self::Tcp(client, server, TcpToTcp::after(up, &socket, meter), TcpToTcp::new(down))
            }
            Pair::ClientTls(client, server) => {
                let [up, down] = [(up, socket), (down, chunk)];
                let [up, down] = [up, down].map(|(way, bytes)| TcpToTcp::after(way, &bytes, meter));
                Self::Tls(client, server, up, down)
            }
            Pair::ClientTcp(client, mut stream) => {
                if !socket.is_empty() {
                    up.count(meter, &socket);
                    // Fails where the stream is over, which the relay finds out by itself.
                    let _ = stream.send.send_data(socket, false);
                }
                Self::Tunnel(client, stream, TcpToH2::new(up), H2ToTcp::after(down, chunk, meter))
            }
            Pair::ServerTcp(server, stream) => {
                Self::Tunnel(server, stream, TcpToH2::new(down), H2ToTcp::after(up, chunk, meter))
            }
        }
    }

    fn poll(&mut self, meter: &Meter, cx: &mut Context<'_>) -> Poll<End> {
        match self {
            Self::Tcp(client, server, up, down) => {
                let sent = up.poll(client, server, meter, cx);
                let received = down.poll(server, client, meter, cx);
                both(sent, received)
            }
            Self::Tls(client, server, up, down) => {
                let sent = up.poll(client, server, meter, cx);
                let received = down.poll(server, client, meter, cx);
                both(sent, received)
            }
            Self::Tunnel(socket, stream, out, back) => {
                let received = back.poll(&mut stream.recv, socket, meter, cx);
                if back.peer_is_done {
                    // The peer has reset its stream without an error: nobody is left to send to.
                    return received.map(|result| result.map_or(End::Reset, |()| End::Clean));
                }
                let sent = out.poll(socket, &mut stream.send, back.done, meter, cx);
                both(sent, received)
            }
            Self::Over => Poll::Ready(End::Clean),
        }
    }

    /// Closes both connections; unless all went well, with a reset.
    fn end(self, clean: bool) {
        match self {
            Self::Tcp(client, server, ..) if !clean => {
                net::reset(client);
                net::reset(server);
            }
            Self::Tls(client, server, ..) if !clean => {
                net::reset(client);
                net::reset(server.into_inner().0);
            }
            Self::Tunnel(socket, mut stream, ..) if !clean => {
                stream.send.send_reset(Reason::CONNECT_ERROR);
                net::reset(socket);
            }
            Self::Tcp(..) | Self::Tls(..) | Self::Tunnel(..) | Self::Over => {}
        }
    }
}

fn both(one: Progress, other: Progress) -> Poll<End> {
    match (one, other) {
        (Poll::Ready(Err(Broken)), _) | (_, Poll::Ready(Err(Broken))) => Poll::Ready(End::Reset),
        (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Poll::Ready(End::Clean),
        (Poll::Pending, _) | (_, Poll::Pending) => Poll::Pending,
    }
}

/// Lets other connections run, then goes on.
fn yield_turn(cx: &Context<'_>) -> Progress {
    cx.waker().wake_by_ref();
    Poll::Pending
}

/// What is read from.
trait Source: AsyncRead + Unpin {
    /// Whether there is certainly nothing to read. Then the task is woken when there may be.
    fn is_idle(&self, cx: &mut Context<'_>) -> bool;
}

impl Source for TcpStream {
    fn is_idle(&self, cx: &mut Context<'_>) -> bool {
        self.poll_read_ready(cx).is_pending()
    }
}

/// What was received may wait to be decrypted: only a read tells.
impl Source for Secured {
    fn is_idle(&self, _: &mut Context<'_>) -> bool {
        false
    }
}

struct TcpToTcp {
    way: Way,
    size: ReadSize,
    done: bool,
    ended: bool,
    written: usize,
    rest: Held,
}

impl TcpToTcp {
    fn new(way: Way) -> Self {
        Self { way, size: ReadSize::new(), done: false, ended: false, written: 0, rest: Held::default() }
    }

    /// Begins with what was received already.
    fn after(way: Way, bytes: &[u8], meter: &Meter) -> Self {
        let mut this = Self::new(way);
        if !bytes.is_empty() {
            way.count(meter, bytes);
            this.rest = Held::new(bytes);
        }
        this
    }

    fn poll(
        &mut self,
        from: &mut impl Source,
        to: &mut (impl AsyncWrite + Unpin),
        meter: &Meter,
        cx: &mut Context<'_>,
    ) -> Progress {
        let mut moved = 0;
        while !self.done {
            ready!(self.write_rest(to, cx))?;
            // TLS keeps what its socket does not take; a socket keeps nothing.
            ready!(Pin::new(&mut *to).poll_flush(cx))?;
            if self.ended {
                ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                self.done = true;
                break;
            }
            if moved >= TURN {
                return yield_turn(cx);
            }
            if from.is_idle(cx) {
                return Poll::Pending;
            }
            let mut buffer = Buffer::take();
            let mut buf = ReadBuf::new(buffer.get_mut(..self.size.get()).unwrap_or_default());
            ready!(Pin::new(&mut *from).poll_read(cx, &mut buf))?;
            moved += buf.filled().len();
            self.forward(buf.filled(), to, meter, cx)?;
        }
        Poll::Ready(Ok(()))
    }

    /// Writes what it can and keeps the rest.
    fn forward(
        &mut self,
        bytes: &[u8],
        to: &mut (impl AsyncWrite + Unpin),
        meter: &Meter,
        cx: &mut Context<'_>,
    ) -> Result<(), Broken> {
        if bytes.is_empty() {
            self.ended = true;
            return Ok(());
        }
        self.way.count(meter, bytes);
        self.size.after(bytes.len());
        let mut rest = bytes;
        while !rest.is_empty() {
            match Pin::new(&mut *to).poll_write(cx, rest) {
                Poll::Ready(count) => rest = rest.get(count?..).unwrap_or_default(),
                Poll::Pending => {
                    self.rest = Held::new(rest);
                    self.written = 0;
                    break;
                }
            }
        }
        Ok(())
    }

    fn write_rest(&mut self, to: &mut (impl AsyncWrite + Unpin), cx: &mut Context<'_>) -> Progress {
        while let Some(rest) = self.rest.get(self.written..).filter(|rest| !rest.is_empty()) {
            self.written += ready!(Pin::new(&mut *to).poll_write(cx, rest))?;
        }
        if !self.rest.is_empty() {
            self.rest = Held::default();
        }
        Poll::Ready(Ok(()))
    }
}

struct TcpToH2 {
    way: Way,
    size: ReadSize,
    done: bool,
}

impl TcpToH2 {
    fn new(way: Way) -> Self {
        Self { way, size: ReadSize::new(), done: false }
    }

    /// `watch` asks to notice a reset of the stream also while the socket is silent.
    fn poll(
        &mut self,
        from: &mut TcpStream,
        to: &mut SendStream<Bytes>,
        watch: bool,
        meter: &Meter,
        cx: &mut Context<'_>,
    ) -> Progress {
        let mut moved = 0;
        while !self.done {
            if moved >= TURN {
                return yield_turn(cx);
            }
            if from.poll_read_ready(cx).is_pending() {
                return if watch { watch_reset(to, cx) } else { Poll::Pending };
            }
            // Room first: what has no room stays in the kernel, and a stalled stream holds no memory of ours.
            let room = ready!(self.poll_room(to, cx))?;
            let mut buffer = Buffer::take();
            let mut buf = ReadBuf::new(buffer.get_mut(..room).unwrap_or_default());
            let read = Pin::new(&mut *from).poll_read(cx, &mut buf);
            let count = buf.filled().len();
            if read.is_pending() {
                // Room that is not used belongs to the other streams of the tunnel.
                to.reserve_capacity(0);
                continue;
            }
            ready!(read)?;
            moved += count;
            self.forward(buffer, count, to, meter)?;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_room(&self, to: &mut SendStream<Bytes>, cx: &mut Context<'_>) -> Poll<Result<usize, Broken>> {
        let wanted = self.size.get();
        to.reserve_capacity(wanted);
        while to.capacity() == 0 {
            match ready!(to.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Poll::Ready(Err(Broken)),
            }
        }
        Poll::Ready(Ok(to.capacity().min(wanted)))
    }

    fn forward(
        &mut self,
        buffer: Buffer,
        count: usize,
        to: &mut SendStream<Bytes>,
        meter: &Meter,
    ) -> Result<(), Broken> {
        let bytes = buffer.get(..count).unwrap_or_default();
        self.way.count(meter, bytes);
        self.size.after(count);
        self.done = count == 0;
        let chunk = if count < WORTH_KEEPING {
            Bytes::copy_from_slice(bytes)
        } else {
            Bytes::from_owner(Filled::new(buffer, count))
        };
        to.send_data(chunk, self.done).map_err(|_| Broken)?;
        to.reserve_capacity(0);
        Ok(())
    }
}

/// Pending until the peer resets the stream; a reset without an error ends the direction.
fn watch_reset(to: &mut SendStream<Bytes>, cx: &mut Context<'_>) -> Progress {
    match ready!(to.poll_reset(cx)) {
        Ok(reason) if is_clean(reason) => Poll::Ready(Ok(())),
        Ok(_) | Err(_) => Poll::Ready(Err(Broken)),
    }
}

fn is_clean(reason: Reason) -> bool {
    reason == Reason::NO_ERROR || reason == Reason::CANCEL
}

struct H2ToTcp {
    way: Way,
    done: bool,
    ended: bool,
    /// The peer has reset the stream without an error: the other direction is over as well.
    peer_is_done: bool,
    chunk: Bytes,
}

impl H2ToTcp {
    /// Begins with what was received already.
    fn after(way: Way, chunk: Bytes, meter: &Meter) -> Self {
        if !chunk.is_empty() {
            way.count(meter, &chunk);
        }
        Self { way, done: false, ended: false, peer_is_done: false, chunk }
    }

    fn poll(
        &mut self,
        from: &mut RecvStream,
        to: &mut TcpStream,
        meter: &Meter,
        cx: &mut Context<'_>,
    ) -> Progress {
        let mut moved = 0;
        while !self.done {
            while !self.chunk.is_empty() {
                let count = ready!(Pin::new(&mut *to).poll_write(cx, &self.chunk))?;
                self.chunk.advance(count);
                moved += count;
                // Fails only for more than was received.
                let _ = from.flow_control().release_capacity(count);
            }
            // Also an empty chunk keeps the frame's buffer alive.
            self.chunk = Bytes::new();
            if self.ended {
                ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                self.done = true;
                break;
            }
            if moved >= TURN {
                return yield_turn(cx);
            }
            match ready!(from.poll_data(cx)) {
                Some(Ok(chunk)) => {
                    if !chunk.is_empty() {
                        self.way.count(meter, &chunk);
                    }
                    self.chunk = chunk;
                }
                None => self.ended = true,
                Some(Err(err)) if err.is_remote() && err.is_reset() && err.reason().is_some_and(is_clean) => {
                    self.ended = true;
                    self.peer_is_done = true;
                }
                Some(Err(_)) => return Poll::Ready(Err(Broken)),
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests;
