//! Takes payload out of what a peer sends, and hands the rest to HTTP/2.

use std::io::{self, IoSlice};
use std::rc::Rc;

use bytes::{Buf, BytesMut};
use smallvec::SmallVec;
use weft_core::hashing::FastMap;

use super::frames::{self, HEAD, Head, Partial};
use super::lane::Shared;
use crate::hbone::{ACCEPTED_STREAMS, MAX_FRAME, STREAM_WINDOW};

/// What a peer lets us send before it says more (RFC 9113, section 6.9.2).
const INITIAL_WINDOW: i64 = 65_535;
/// The largest window (section 6.9.1).
const LARGEST_WINDOW: i64 = (1 << 31) - 1;
/// The largest frame that a peer accepts before it says more (section 6.5.2).
const INITIAL_FRAME: usize = 16 * 1024;
/// SETTINGS that are longer end the tunnel: nobody has so many.
const LONGEST_SETTINGS: usize = 4096;
/// Settings that concern payload (section 6.5.2).
const INITIAL_WINDOW_SIZE: u16 = 4;
const MAX_FRAME_SIZE: u16 = 5;
/// Lanes of one tunnel. More than streams may be open, since HTTP/2 decides about a stream later than a lane begins.
const MOST_LANES: usize = 4 * ACCEPTED_STREAMS as usize;
/// Deliveries of one read that are written into sockets at once. Where there are more they are crumbs, and a system call
/// for each would keep others waiting.
const MOST_WRITES: usize = 512;

/// Which side of HTTP/2 we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Client,
    Server,
}

/// Where in a frame the peer is.
enum At {
    Head(Partial),
    /// Bytes that HTTP/2 gets as they are.
    Forwarded(usize),
    /// A frame that is looked at when it is complete, and how much of it is missing.
    Held(Head, usize),
    Payload(Payload),
    /// Bytes for nobody.
    Dropped(usize),
}

/// A DATA frame of a lane.
struct Payload {
    lane: Rc<Shared>,
    /// Bytes of payload that are missing.
    left: usize,
    /// Bytes of padding behind them.
    padding: usize,
    /// The length of the padding is missing.
    padded: bool,
    /// It is the stream's last.
    last: bool,
}

/// Payload on its way to one lane, where it was decrypted.
#[derive(Default)]
pub(super) struct Batch<'a> {
    lane: Option<Rc<Shared>>,
    slices: SmallVec<[IoSlice<'a>; 32]>,
    /// How often something was delivered.
    pub(super) deliveries: usize,
}

/// The state of both directions.
pub(super) struct Demux {
    role: Role,
    at: At,
    /// HEADERS have begun and not ended: only CONTINUATION may come, which HTTP/2 checks.
    in_headers: bool,
    /// The last stream that was opened.
    newest: u32,
    /// The peer has said that it takes no more streams.
    pub(super) leaving: bool,
    pub(super) lanes: FastMap<u32, Rc<Shared>>,
    /// For HTTP/2; the last `held` bytes are not to be seen yet.
    control: BytesMut,
    held: usize,
    /// What the peer may still send in all lanes, and what was taken of that and not announced, in bytes.
    receive_window: u32,
    taken: u32,
    /// What we may send in all lanes, and in a new one, in bytes.
    pub(super) window: i64,
    initial_window: i64,
    pub(super) max_frame: usize,
    /// The peer lets us send more in all lanes, of which nobody was told yet.
    widened: bool,
    /// Increments to send: stream (0 is the tunnel) and bytes.
    pub(super) due: SmallVec<[(u32, u32); 4]>,
}

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

impl Demux {
    pub(super) fn new(role: Role, receive_window: u32) -> Self {
        Self {
            role,
            at: At::Head(Partial::default()),
            in_headers: false,
            newest: 0,
            leaving: false,
            lanes: FastMap::default(),
            control: BytesMut::new(),
            held: 0,
            receive_window,
            taken: 0,
            window: INITIAL_WINDOW,
            initial_window: INITIAL_WINDOW,
            max_frame: INITIAL_FRAME,
            widened: false,
            due: SmallVec::new(),
        }
    }

    /// A server's, which first hands the client's preface of so many bytes to HTTP/2.
    pub(super) fn after_preface(preface: usize, receive_window: u32) -> Self {
        Self { at: At::Forwarded(preface), ..Self::new(Role::Server, receive_window) }
    }

    /// A lane for a stream, unless it has one.
    pub(super) fn lane(&mut self, stream: u32) -> Rc<Shared> {
        let window = self.initial_window;
        self.newest = self.newest.max(stream);
        self.lanes.entry(stream).or_insert_with(|| Shared::new(stream, window)).clone()
    }

    /// HTTP/2 has ended a stream that it never showed to anybody.
    pub(super) fn forget(&mut self, stream: u32) {
        if let Some(lane) = self.lanes.remove(&stream) {
            lane.end();
            self.credit(&lane, lane.abandon());
        }
    }

    /// What HTTP/2 may read.
    pub(super) fn control(&self) -> &[u8] {
        self.control.get(..self.control.len() - self.held).unwrap_or_default()
    }

    /// HTTP/2 has read so much of it.
    pub(super) fn forget_control(&mut self, bytes: usize) {
        self.control.advance(bytes);
        if self.control.is_empty() {
            // A quiet tunnel keeps nothing.
            self.control = BytesMut::new();
        }
    }

    /// Takes one piece of what the peer sends. Payload is gathered in `batch`, for [`Demux::deliver`].
    pub(super) fn take<'a>(&mut self, mut piece: &'a [u8], batch: &mut Batch<'a>) -> io::Result<()> {
        while !piece.is_empty() {
            match &mut self.at {
                At::Head(partial) => {
                    if let Some(head) = partial.take(&mut piece) {
                        self.begin(head)?;
                    }
                }
                At::Forwarded(left) => {
                    let (now, later) = piece.split_at(piece.len().min(*left));
                    *left -= now.len();
                    piece = later;
                    if *left == 0 {
                        self.at = At::Head(Partial::default());
                    }
                    self.control.extend_from_slice(now);
                }
                At::Held(head, left) => {
                    let (now, later) = piece.split_at(piece.len().min(*left));
                    *left -= now.len();
                    piece = later;
                    let complete = (*left == 0).then_some(*head);
                    self.control.extend_from_slice(now);
                    self.held += now.len();
                    if let Some(head) = complete {
                        self.held_is_complete(head)?;
                    }
                }
                At::Payload(_) => piece = self.payload(piece, batch)?,
                At::Dropped(left) => {
                    let dropped = piece.len().min(*left);
                    *left -= dropped;
                    piece = piece.get(dropped..).unwrap_or_default();
                    if *left == 0 {
                        self.at = At::Head(Partial::default());
                    }
                }
            }
        }
        Ok(())
    }

    /// Decides what becomes of a frame.
    fn begin(&mut self, head: Head) -> io::Result<()> {
        self.at = match head.kind {
            frames::DATA if !self.in_headers => match self.lanes.get(&head.stream) {
                Some(lane) if !lane.has_ended() => {
                    let lane = lane.clone();
                    return self.begin_payload(lane, head);
                }
                None if self.is_over(head.stream) => self.discard(head)?,
                // HTTP/2 knows what that means.
                Some(_) | None => self.forward(head),
            },
            frames::SETTINGS if !head.has(frames::ACK) && head.length > LONGEST_SETTINGS => {
                return Err(invalid("the peer's SETTINGS are too long"));
            }
            frames::SETTINGS if !head.has(frames::ACK) && head.length > 0 => self.hold(head),
            frames::WINDOW_UPDATE if head.length == 4 => self.hold(head),
            frames::HEADERS => {
                self.in_headers = !head.has(frames::END_HEADERS);
                self.headers(head)?;
                self.forward(head)
            }
            frames::CONTINUATION => {
                self.in_headers &= !head.has(frames::END_HEADERS);
                self.forward(head)
            }
            frames::RST_STREAM => {
                self.end(head.stream);
                self.forward(head)
            }
            frames::GOAWAY => {
                self.leaving = true;
                self.forward(head)
            }
            _ => self.forward(head),
        };
        Ok(())
    }

    /// Whether a stream had a lane, and has none any more. Clients open odd ones.
    fn is_over(&self, stream: u32) -> bool {
        stream % 2 == 1 && stream <= self.newest
    }

    /// Payload that was on its way when its stream ended. HTTP/2 would count it as a mistake of the peer's, and end the
    /// tunnel after many of them.
    fn discard(&mut self, head: Head) -> io::Result<At> {
        self.admit(head)?;
        self.give_back(head.length);
        Ok(if head.length == 0 { At::Head(Partial::default()) } else { At::Dropped(head.length) })
    }

    fn forward(&mut self, head: Head) -> At {
        self.control.extend_from_slice(&head.encode());
        if head.length == 0 { At::Head(Partial::default()) } else { At::Forwarded(head.length) }
    }

    fn hold(&mut self, head: Head) -> At {
        self.control.extend_from_slice(&head.encode());
        self.held = HEAD;
        At::Held(head, head.length)
    }

    /// A stream begins, or its trailers come.
    fn headers(&mut self, head: Head) -> io::Result<()> {
        if self.role == Role::Server && head.stream > self.newest && head.stream % 2 == 1 {
            self.newest = head.stream;
            if self.lanes.len() >= MOST_LANES {
                return Err(invalid("the peer opens more streams than it may"));
            }
            self.lane(head.stream);
        }
        if head.has(frames::END_STREAM) {
            self.end(head.stream);
        }
        Ok(())
    }

    fn end(&self, stream: u32) {
        if let Some(lane) = self.lanes.get(&stream) {
            lane.end();
        }
    }

    /// Counts a DATA frame against what the peer may send in all lanes; answers its length.
    fn admit(&mut self, head: Head) -> io::Result<u32> {
        let length = u32::try_from(head.length).unwrap_or(u32::MAX);
        if length > MAX_FRAME {
            return Err(invalid("the peer sends a larger frame than it may"));
        }
        let left = self.receive_window.checked_sub(length);
        self.receive_window = left.ok_or_else(|| invalid("the peer sends more than it may"))?;
        Ok(length)
    }

    fn begin_payload(&mut self, lane: Rc<Shared>, head: Head) -> io::Result<()> {
        let length = self.admit(head)?;
        if !lane.admit(length) {
            return Err(invalid("the peer sends more in a stream than it may"));
        }
        let padded = head.has(frames::PADDED);
        if padded && head.length == 0 {
            return Err(invalid("a padded frame has no length of its padding"));
        }
        let last = head.has(frames::END_STREAM);
        self.at = At::Payload(Payload { lane, left: head.length, padding: 0, padded, last });
        self.finish_payload();
        Ok(())
    }

    fn payload<'a>(&mut self, mut piece: &'a [u8], batch: &mut Batch<'a>) -> io::Result<&'a [u8]> {
        let At::Payload(payload) = &mut self.at else { return Ok(piece) };
        if payload.padded
            && let Some((length, rest)) = piece.split_first()
        {
            piece = rest;
            payload.padded = false;
            payload.padding = usize::from(*length);
            let of_payload = payload.left.checked_sub(1 + payload.padding);
            payload.left = of_payload.ok_or_else(|| invalid("a frame's padding is longer than the frame"))?;
            // Padding is nobody's to take.
            let (lane, all) = (payload.lane.clone(), 1 + payload.padding);
            self.credit(&lane, all);
            self.finish_payload();
            return Ok(piece);
        }
        let (now, later) = piece.split_at(piece.len().min(payload.left));
        payload.left -= now.len();
        let (lane, padding) = (payload.lane.clone(), later.len().min(payload.padding));
        payload.padding -= if payload.left == 0 { padding } else { 0 };
        let later = if payload.left == 0 { later.get(padding..).unwrap_or_default() } else { later };
        if !now.is_empty() {
            self.gather(lane, now, batch);
        }
        self.finish_payload();
        Ok(later)
    }

    /// Ends a DATA frame that is complete.
    fn finish_payload(&mut self) {
        let At::Payload(payload) = &self.at else { return };
        if payload.left > 0 || payload.padding > 0 || payload.padded {
            return;
        }
        if payload.last {
            payload.lane.end();
            let (kind, flags, stream) = (frames::DATA, frames::END_STREAM, payload.lane.id);
            self.control.extend_from_slice(&Head { length: 0, kind, flags, stream }.encode());
        }
        self.at = At::Head(Partial::default());
    }

    fn gather<'a>(&mut self, lane: Rc<Shared>, piece: &'a [u8], batch: &mut Batch<'a>) {
        if batch.lane.as_ref().is_some_and(|other| !Rc::ptr_eq(other, &lane)) {
            self.deliver(batch);
        }
        batch.lane = Some(lane);
        batch.slices.push(IoSlice::new(piece));
        if batch.slices.len() == batch.slices.inline_size() {
            self.deliver(batch);
        }
    }

    /// Gives what was gathered to its lane.
    pub(super) fn deliver(&mut self, batch: &mut Batch<'_>) {
        if let Some(lane) = batch.lane.take() {
            let out_of_the_way = lane.deliver(&mut batch.slices, batch.deliveries < MOST_WRITES);
            batch.deliveries += 1;
            batch.slices.clear();
            if out_of_the_way > 0 {
                self.credit(&lane, out_of_the_way);
            }
        }
    }

    /// Notes that bytes of a lane are out of the way; what the peer is to be told of that becomes due.
    pub(super) fn credit(&mut self, lane: &Shared, bytes: usize) {
        if let Some(increment) = lane.credit(bytes) {
            self.due.push((lane.id, increment));
        }
        self.give_back(bytes);
    }

    /// The part of [`Demux::credit`] that is about all lanes.
    fn give_back(&mut self, bytes: usize) {
        self.taken = self.taken.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
        if self.taken >= STREAM_WINDOW {
            let taken = std::mem::take(&mut self.taken);
            self.receive_window = self.receive_window.saturating_add(taken);
            self.due.push((0, taken));
        }
    }

    fn held_is_complete(&mut self, head: Head) -> io::Result<()> {
        self.at = At::Head(Partial::default());
        let held = std::mem::take(&mut self.held);
        let begin = self.control.len() - held;
        let body: SmallVec<[u8; 64]> =
            self.control.get(begin + HEAD..).unwrap_or_default().iter().copied().collect();
        if head.kind == frames::SETTINGS {
            return self.settings(&body);
        }
        if self.window_update(head.stream, &body)? {
            self.control.truncate(begin);
        }
        Ok(())
    }

    /// Settings are HTTP/2's, too: whatever is wrong with them it finds.
    fn settings(&mut self, body: &[u8]) -> io::Result<()> {
        let mut initial_window = self.initial_window;
        for setting in body.chunks_exact(6) {
            let [i0, i1, v0, v1, v2, v3] = *setting else { continue };
            let value = u32::from_be_bytes([v0, v1, v2, v3]);
            match u16::from_be_bytes([i0, i1]) {
                INITIAL_WINDOW_SIZE if i64::from(value) <= LARGEST_WINDOW => initial_window = value.into(),
                MAX_FRAME_SIZE => {
                    self.max_frame = usize::try_from(value).unwrap_or(INITIAL_FRAME).max(INITIAL_FRAME)
                }
                _ => {}
            }
        }
        // Once, however often it is in there: all lanes have to be changed.
        let change = initial_window - std::mem::replace(&mut self.initial_window, initial_window);
        if change != 0 {
            self.lanes.values().try_for_each(|lane| widen(&lane.window, change))?;
            self.widened = true;
        }
        Ok(())
    }

    /// Tells everybody who waits to send, where all may send more.
    pub(super) fn wake_writers(&mut self) {
        if std::mem::take(&mut self.widened) {
            self.lanes.values().for_each(|lane| lane.wake_writer());
        }
    }

    /// Whether it was about payload; HTTP/2 sends none. What is zero is a mistake that HTTP/2 answers.
    fn window_update(&mut self, stream: u32, body: &[u8]) -> io::Result<bool> {
        let [v0, v1, v2, v3] = *body else { return Ok(false) };
        let increment = i64::from(u32::from_be_bytes([v0 & 0x7f, v1, v2, v3]));
        if increment == 0 {
            return Ok(false);
        }
        if stream == 0 {
            self.window += increment;
            if self.window > LARGEST_WINDOW {
                return Err(invalid("the peer opens the tunnel's window too far"));
            }
            self.widened = true;
            return Ok(true);
        }
        let Some(lane) = self.lanes.get(&stream) else { return Ok(false) };
        widen(&lane.window, increment)?;
        lane.wake_writer();
        Ok(true)
    }
}

fn widen(window: &std::cell::Cell<i64>, change: i64) -> io::Result<()> {
    window.set(window.get() + change);
    if window.get() > LARGEST_WINDOW {
        return Err(invalid("the peer opens a stream's window too far"));
    }
    Ok(())
}
