//! Moves bytes between two connections until both directions have ended.
//!
//! One future polls both directions; nothing is spawned. A connection without bytes on their way holds no
//! buffer. What a slow reader has not taken is bounded: by the HTTP/2 windows on a tunnel, by one read
//! elsewhere, which becomes small when a thread holds much. To a tunnel bytes are read where they are encrypted; what
//! comes from one usually goes into the socket where it was decrypted, and is only counted here.
//!
//! An end of stream passes through as an end of stream, a reset as a reset. On tunnels a reset of the
//! application's connection is RST_STREAM with CONNECT_ERROR (RFC 9113 8.5); NO_ERROR and CANCEL from a peer
//! are a clean end, as ztunnel has it.

use std::future::{Future, poll_fn};
use std::io::{self, IoSlice, IoSliceMut};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedReadHalf;
use tokio_rustls::client::TlsStream;
use weft_tls::scatter;

use crate::account::Meter;
use crate::buffers::{self, Buffer, Held};
use crate::hbone::lanes::Lane;
use crate::net;
use crate::registry::{Cut, Live};

/// Reads of a connection that just began, in bytes.
const SMALLEST_READ: usize = 16 * 1024;
/// Reads of a busy connection, and the largest DATA frame that we send.
const LARGEST_READ: usize = 256 * 1024;
/// Bytes that one direction moves before other connections get their turn.
const TURN: usize = 1024 * 1024;

/// A stream of a tunnel, both directions.
pub(crate) struct H2Stream {
    /// To the peer.
    pub(crate) send: SendStream<Bytes>,
    /// From the peer.
    pub(crate) recv: RecvStream,
    /// Payload, both ways.
    pub(crate) lane: Lane,
}

impl H2Stream {
    /// How much of `wanted` may be sent now. Notices a reset while there is no room.
    pub(crate) fn poll_room(&mut self, wanted: usize, cx: &mut Context<'_>) -> Poll<Result<usize, Broken>> {
        match self.lane.poll_room(wanted, cx) {
            Poll::Ready(room) => Poll::Ready(room.map_err(Broken::from)),
            Poll::Pending => match ready!(self.send.poll_reset(cx)) {
                Ok(_) | Err(_) => Poll::Ready(Err(Broken)),
            },
        }
    }
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

/// Takes a value out of its box and frees that. Moved out of it in place, the value would leave the box where it is for
/// as long as the caller runs: for a connection, as long as it lasts.
#[expect(clippy::boxed_local, reason = "that is what it is for")]
pub(crate) fn unboxed<T>(value: Box<T>) -> T {
    *value
}

/// One side broke.
#[derive(Debug)]
pub(crate) struct Broken;

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

    /// Counts bytes that nobody has seen: never the first ones.
    fn add(self, meter: &Meter, bytes: u64) {
        match self {
            Self::FromClient => meter.add_client_sent(bytes),
            Self::FromServer => meter.add_server_sent(bytes),
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

    /// Of `room` bytes that there might have been, so many were there.
    fn after(&mut self, read: usize, room: usize) {
        let size = self.0 as usize;
        if read >= room && size < LARGEST_READ {
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
    /// The socket's other half is the lane's sink.
    Tunnel(OwnedReadHalf, H2Stream, TcpToH2, H2ToTcp),
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
            Pair::ClientTcp(client, stream) => {
                if !socket.is_empty() {
                    up.count(meter, &socket);
                }
                let sending = TcpToH2 { first: Held::new(&socket), ..TcpToH2::new(up) };
                Self::tunnel(client, stream, sending, H2ToTcp::after(down, chunk, meter))
            }
            Pair::ServerTcp(server, stream) => {
                Self::tunnel(server, stream, TcpToH2::new(down), H2ToTcp::after(up, chunk, meter))
            }
        }
    }

    fn tunnel(socket: TcpStream, stream: H2Stream, sending: TcpToH2, receiving: H2ToTcp) -> Self {
        let (socket, sink) = socket.into_split();
        stream.lane.set_sink(sink);
        Self::Tunnel(socket, stream, sending, receiving)
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
                let received = back.poll(stream, meter, cx);
                if back.peer_is_done {
                    // The peer has reset its stream without an error: nobody is left to send to.
                    return received.map(|result| result.map_or(End::Reset, |()| End::Clean));
                }
                let sent = out.poll(socket, stream, back.done, meter, cx);
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
                // Before the lane lets go of the other half.
                net::reset_when_closed(socket.as_ref());
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
        self.size.after(bytes.len(), self.size.get());
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
    /// Read already, and goes before everything else.
    first: Held,
}

impl TcpToH2 {
    fn new(way: Way) -> Self {
        Self { way, size: ReadSize::new(), done: false, first: Held::default() }
    }

    /// `watch` asks to notice a reset of the stream also while the socket is silent.
    fn poll(
        &mut self,
        from: &mut OwnedReadHalf,
        to: &mut H2Stream,
        watch: bool,
        meter: &Meter,
        cx: &mut Context<'_>,
    ) -> Progress {
        ready!(self.send_first(to, cx))?;
        let mut moved = 0;
        while !self.done {
            if moved >= TURN {
                return yield_turn(cx);
            }
            if from.as_ref().poll_read_ready(cx).is_pending() {
                return if watch { watch_reset(&mut to.send, cx) } else { Poll::Pending };
            }
            // Room first: what has no room stays in the kernel, and a stalled stream holds no memory of ours.
            let room = ready!(to.poll_room(self.size.get(), cx))?;
            match to.lane.send(room, |places| self.read(from, places, meter, cx)) {
                Ok(0) => {
                    self.done = true;
                    to.send.send_data(Bytes::new(), true).map_err(|_| Broken)?;
                }
                Ok(count) => {
                    self.size.after(count, room);
                    moved += count;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return Poll::Ready(Err(Broken)),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Reads once to where the bytes are encrypted.
    fn read(
        &self,
        from: &mut OwnedReadHalf,
        places: &mut [IoSliceMut<'_>],
        meter: &Meter,
        cx: &mut Context<'_>,
    ) -> io::Result<usize> {
        // One place is the usual case of a quiet connection. `poll_read` spares it a further read that finds nothing.
        let [only] = places else {
            let count = from.try_read_vectored(places)?;
            self.count(meter, places.first().map_or(&[], |place| &**place), count);
            return Ok(count);
        };
        let mut buf = ReadBuf::new(only);
        match Pin::new(from).poll_read(cx, &mut buf) {
            Poll::Ready(read) => read?,
            Poll::Pending => return Err(io::ErrorKind::WouldBlock.into()),
        }
        self.count(meter, buf.filled(), buf.filled().len());
        Ok(buf.filled().len())
    }

    /// Counts `count` bytes of which `front` is the beginning: all that is looked at.
    fn count(&self, meter: &Meter, front: &[u8], count: usize) {
        let front = front.get(..count).unwrap_or(front);
        if !front.is_empty() {
            self.way.count(meter, front);
            self.way.add(meter, (count - front.len()) as u64);
        }
    }

    fn send_first(&mut self, to: &mut H2Stream, cx: &mut Context<'_>) -> Progress {
        while !self.first.is_empty() {
            let room = ready!(to.poll_room(self.first.len(), cx))?;
            let sent = to.lane.send(room, |places| Ok(scatter(&[IoSlice::new(&self.first)], places)))?;
            self.first = Held::new(self.first.get(sent..).unwrap_or_default());
        }
        Poll::Ready(Ok(()))
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

    fn poll(&mut self, stream: &mut H2Stream, meter: &Meter, cx: &mut Context<'_>) -> Progress {
        let mut moved = 0;
        while !self.done {
            match stream.lane.delivered()? {
                0 => {}
                delivered => self.way.add(meter, delivered),
            }
            ready!(self.write_chunk(&stream.lane, &mut moved, cx))?;
            if self.ended {
                ready!(stream.lane.poll_shutdown(cx))?;
                self.done = true;
                break;
            }
            if moved >= TURN {
                return yield_turn(cx);
            }
            self.chunk = stream.lane.take();
            if !self.chunk.is_empty() {
                self.way.count(meter, &self.chunk);
                continue;
            }
            match stream.recv.poll_data(cx) {
                // HTTP/2 shows no payload.
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(None) => self.ended = true,
                Poll::Ready(Some(Err(err)))
                    if err.is_remote() && err.is_reset() && err.reason().is_some_and(is_clean) =>
                {
                    self.ended = true;
                    self.peer_is_done = true;
                }
                Poll::Ready(Some(Err(_))) => return Poll::Ready(Err(Broken)),
                Poll::Pending => {
                    stream.lane.listen(cx);
                    // The first bytes are looked at; those that follow need not pass through here.
                    if meter.has_counted() {
                        stream.lane.go_direct();
                    }
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    fn write_chunk(&mut self, lane: &Lane, moved: &mut usize, cx: &mut Context<'_>) -> Progress {
        while !self.chunk.is_empty() {
            let count = ready!(lane.poll_write(&self.chunk, cx))?;
            self.chunk.advance(count);
            *moved += count;
            lane.release(count);
        }
        // Also an empty chunk keeps its buffer alive.
        self.chunk = Bytes::new();
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests;
