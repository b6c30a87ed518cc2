//! A tunnel's payload goes past HTTP/2.
//!
//! h2 keeps what is state: streams and their ends, headers, settings, PINGs. It would copy payload once on its way out
//! and twice on its way in, into buffers that are new for every frame. So DATA frames are taken out of what a peer sends
//! before h2 sees it, and ours are put between the frames that h2 writes. Each stream has a [`Lane`] for that. h2 sees
//! and sends empty DATA frames only: the ends of streams.
//!
//! With payload goes flow control: h2 announces the windows with which a tunnel begins, and from then on both are kept
//! here. WINDOW_UPDATE frames of lanes are not shown to h2, SETTINGS are read by both.
//!
//! Payload is decrypted where it was received and written into the application's socket from there; what does not fit
//! waits in its lane, within the stream's window. In the other direction it is read from the socket to where it is
//! encrypted.
//!
//! The order of a stream's frames is kept because everything passes through here: a lane sends nothing before h2 has
//! written the stream's HEADERS, and an owner ends its stream through h2 after everything was sent.

mod demux;
mod frames;
mod lane;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::io::{self, IoSlice, IoSliceMut};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use weft_tls::{TlsStream, scatter};

use demux::{Batch, Demux, Role};
use frames::{HEAD, Head, Partial};
pub(crate) use lane::Lane;
use lane::Shared;

use super::{ACCEPTED_WINDOW, STREAMS, connection_window};

/// What comes first from a client (RFC 9113, section 3.4), in bytes.
const PREFACE: usize = 24;
/// Plaintext received before others get their turn, in bytes.
const TURN: usize = 1024 * 1024;
/// What a record and a delivery cost beside their bytes, counted as bytes.
const OF_RECORD: usize = 64;
const OF_DELIVERY: usize = 512;
/// Ciphertext that may wait for the socket before lanes wait, and before it is worth a system call of its own, in bytes.
const BACKLOG: usize = 64 * 1024;
/// The largest DATA frame that we send, in bytes of payload.
const LARGEST_FRAME: usize = 256 * 1024;
/// A TLS record's plaintext. Frames that fill records whole waste none.
const RECORD: usize = 16 * 1024;

/// A tunnel's connection, shared by h2, the lanes and the driver.
pub(crate) struct Socket(RefCell<State>);

struct State {
    /// `None` when HTTP/2 has let go of the connection.
    tls: Option<TlsStream>,
    demux: Demux,
    /// Follows what h2 writes.
    outgoing: Outgoing,
    /// The task that drives h2: it also flushes.
    driver: Option<Waker>,
    /// Received since the socket last ran dry, in bytes, with what it cost besides.
    moved: usize,
    /// A lane waits for the socket.
    stalled: bool,
}

/// What HTTP/2 reads and writes.
pub(crate) struct Conduit(Rc<Socket>);

/// The driver's and the pool's hold of a tunnel.
#[derive(Clone)]
pub(crate) struct Lanes(Rc<Socket>);

/// Splits a connection that we dialled.
pub(crate) fn client(tls: TlsStream) -> (Conduit, Lanes) {
    split(tls, Demux::new(Role::Client, connection_window(STREAMS as u32)), PREFACE)
}

/// Splits a connection that we accepted. The client's preface is h2's.
pub(crate) fn server(tls: TlsStream) -> (Conduit, Lanes) {
    split(tls, Demux::after_preface(PREFACE, ACCEPTED_WINDOW), 0)
}

fn split(tls: TlsStream, demux: Demux, skip: usize) -> (Conduit, Lanes) {
    let outgoing = Outgoing { skip, partial: Partial::default() };
    let state = State { tls: Some(tls), demux, outgoing, driver: None, moved: 0, stalled: false };
    let socket = Rc::new(Socket(RefCell::new(state)));
    (Conduit(socket.clone()), Lanes(socket))
}

fn ended() -> io::Error {
    io::ErrorKind::BrokenPipe.into()
}

impl Lanes {
    /// The lane of a stream that we opened, or that h2 has just shown.
    pub(crate) fn lane(&self, stream: h2::StreamId) -> Lane {
        self.own(stream.into())
    }

    fn own(&self, stream: u32) -> Lane {
        let shared = self.0.0.borrow_mut().demux.lane(stream);
        shared.owned.set(true);
        Lane { socket: self.0.clone(), shared }
    }

    /// As [`Lanes::lane`], of a stream whose HEADERS are on the wire before anybody sends.
    pub(crate) fn opened(&self, stream: h2::StreamId) -> Lane {
        let lane = self.lane(stream);
        lane.shared.open.set(true);
        lane
    }

    /// Whether the peer has said that it takes no more streams.
    pub(crate) fn is_leaving(&self) -> bool {
        self.0.0.borrow().demux.leaving
    }

    /// Sends everything that was written.
    pub(crate) fn flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.0.borrow_mut();
        let state = &mut *state;
        let Some(tls) = &mut state.tls else { return Poll::Ready(Err(ended())) };
        let flushed = Pin::new(&mut *tls).poll_flush(cx);
        if state.stalled && tls.waiting() <= BACKLOG {
            state.stalled = false;
            state.demux.lanes.values().for_each(|lane| lane.wake_writer());
        }
        flushed
    }
}

impl std::fmt::Debug for Lanes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lanes").finish_non_exhaustive()
    }
}

impl Socket {
    fn credit(&self, lane: &Shared, bytes: usize) {
        let mut state = self.0.borrow_mut();
        state.demux.credit(lane, bytes);
        state.announce();
    }

    /// The owner of a lane has gone and leaves bytes behind.
    fn close(&self, lane: &Rc<Shared>, left: usize) {
        let mut state = self.0.borrow_mut();
        state.demux.lanes.remove(&lane.id);
        state.demux.credit(lane, left);
        state.announce();
    }

    fn poll_room(&self, lane: &Shared, wanted: usize, cx: &Context<'_>) -> Poll<io::Result<usize>> {
        let mut state = self.0.borrow_mut();
        let Some(tls) = &mut state.tls else { return Poll::Ready(Err(ended())) };
        if tls.waiting() > BACKLOG {
            tls.try_flush()?;
        }
        let full = tls.waiting() > BACKLOG;
        let window = state.demux.window.min(lane.window.get());
        let room =
            usize::try_from(window).unwrap_or(0).min(wanted).min(LARGEST_FRAME).min(state.demux.max_frame);
        if full || room == 0 || !lane.open.get() {
            lane.wait_to_write(cx);
            if full {
                state.stalled = true;
                state.wake_driver();
            }
            return Poll::Pending;
        }
        Poll::Ready(Ok(whole_records(room)))
    }

    fn send(
        &self,
        lane: &Shared,
        room: usize,
        fill: impl FnOnce(&mut [IoSliceMut<'_>]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let mut state = self.0.borrow_mut();
        let tls = state.tls.as_mut().ok_or_else(ended)?;
        let head = |length| Head { length, kind: frames::DATA, flags: 0, stream: lane.id }.encode();
        let sent = tls.write_in_place::<HEAD>(room, fill, head)?;
        if sent == 0 {
            return Ok(0);
        }
        if tls.waiting() >= BACKLOG {
            tls.try_flush()?;
        }
        let waits = tls.waiting() > 0;
        let bytes = i64::try_from(sent).unwrap_or(i64::MAX);
        lane.window.set(lane.window.get() - bytes);
        state.demux.window -= bytes;
        if waits {
            state.wake_driver();
        }
        Ok(sent)
    }
}

/// Rounded down so that a frame ends with a record, where it has more than one.
fn whole_records(room: usize) -> usize {
    let records = (room + HEAD) / RECORD;
    if records == 0 { room } else { records * RECORD - HEAD }
}

impl State {
    fn wake_driver(&self) {
        if let Some(driver) = &self.driver {
            driver.wake_by_ref();
        }
    }

    /// Tells the peer what became due. Where that fails the tunnel has ended, which others find out.
    fn announce(&mut self) {
        let due = std::mem::take(&mut self.demux.due);
        let Some(tls) = self.tls.as_mut().filter(|_| !due.is_empty()) else { return };
        for (stream, increment) in due {
            let frame = frames::window_update(stream, increment);
            let slices = [IoSlice::new(&frame)];
            let _ = tls.write_in_place(frame.len(), |holes| Ok(scatter(&slices, holes)), |_| []);
        }
        self.wake_driver();
    }

    /// Receives once; `false` at the end.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let Some(tls) = &mut self.tls else { return Poll::Ready(Err(ended())) };
        if !ready!(tls.poll_fill(cx))? {
            return Poll::Ready(Ok(false));
        }
        let mut batch = Batch::default();
        for piece in tls.plaintext() {
            self.moved += piece.len() + OF_RECORD;
            self.demux.take(piece, &mut batch)?;
        }
        self.demux.deliver(&mut batch);
        self.demux.wake_writers();
        self.moved += batch.deliveries * OF_DELIVERY;
        drop(batch);
        tls.forget_plaintext();
        self.announce();
        Poll::Ready(Ok(true))
    }
}

/// Follows the frames that h2 writes.
struct Outgoing {
    /// Bytes that are no head.
    skip: usize,
    partial: Partial,
}

impl Outgoing {
    /// Calls `seen` with every head.
    fn follow(&mut self, mut bytes: &[u8], mut seen: impl FnMut(Head)) {
        while !bytes.is_empty() {
            let (skipped, rest) = bytes.split_at(bytes.len().min(self.skip));
            self.skip -= skipped.len();
            bytes = rest;
            if let Some(head) = self.partial.take(&mut bytes) {
                self.skip = head.length;
                seen(head);
            }
        }
    }
}

/// What a frame of h2's means for its lane.
fn written(demux: &mut Demux, head: Head) {
    let Some(lane) = demux.lanes.get(&head.stream) else { return };
    let is_last = head.kind == frames::RST_STREAM || head.has(frames::END_STREAM);
    match head.kind {
        // Refused before anybody saw it.
        frames::HEADERS | frames::RST_STREAM if is_last && !lane.owned.get() => demux.forget(head.stream),
        frames::HEADERS => {
            lane.open.set(true);
            lane.wake_writer();
        }
        _ => {}
    }
}

impl AsyncRead for Conduit {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.0.borrow_mut();
        let state = &mut *state;
        if !state.driver.as_ref().is_some_and(|driver| driver.will_wake(cx.waker())) {
            state.driver = Some(cx.waker().clone());
        }
        loop {
            let control = state.demux.control();
            if !control.is_empty() {
                let count = control.len().min(buf.remaining());
                buf.put_slice(control.get(..count).unwrap_or_default());
                state.demux.forget_control(count);
                return Poll::Ready(Ok(()));
            }
            if state.moved >= TURN {
                state.moved = 0;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let received = state.poll_receive(cx);
            if received.is_pending() {
                state.moved = 0;
            }
            if !ready!(received)? {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncWrite for Conduit {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.0.0.borrow_mut();
        let state = &mut *state;
        let Some(tls) = &mut state.tls else { return Poll::Ready(Err(ended())) };
        let count = ready!(Pin::new(tls).poll_write_vectored(cx, slices))?;
        let mut left = count;
        for slice in slices {
            let bytes = slice.get(..left.min(slice.len())).unwrap_or_default();
            state.outgoing.follow(bytes, |head| written(&mut state.demux, head));
            left -= bytes.len();
        }
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Only [`Lanes::flush`] flushes: a tunnel carries many connections, and its driver does that once, when everything
    /// of one turn is written, so that many small frames share one system call.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0.0.borrow_mut().tls {
            Some(tls) => Pin::new(tls).poll_shutdown(cx),
            None => Poll::Ready(Ok(())),
        }
    }
}

impl Drop for Conduit {
    fn drop(&mut self) {
        let mut state = self.0.0.borrow_mut();
        let connection = state.tls.take();
        state.demux.lanes.values().for_each(|lane| lane.wake());
        drop(state);
        drop(connection);
    }
}
