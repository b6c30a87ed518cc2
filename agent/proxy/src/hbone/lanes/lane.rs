//! The payload of one stream.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice, IoSliceMut};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncWrite;
use tokio::net::tcp::OwnedWriteHalf;

use super::Socket;
use crate::hbone::STREAM_WINDOW;

/// Taken bytes of a stream after which its window is opened again.
const ANNOUNCED_AFTER: u32 = STREAM_WINDOW / 2;

/// What a tunnel and the owner of a [`Lane`] share.
pub(super) struct Shared {
    pub(super) id: u32,
    /// Received and not taken, in bytes; also looked at by other threads.
    unread: Arc<AtomicUsize>,
    receiving: RefCell<Receiving>,
    /// What the peer lets us send in this stream, in bytes; a change of its settings may make it negative.
    pub(super) window: Cell<i64>,
    /// Whether its HEADERS are on the wire: payload may not come before them.
    pub(super) open: Cell<bool>,
    /// Whether it has an owner, who removes it.
    pub(super) owned: Cell<bool>,
    /// The owner has gone: what still comes is dropped.
    closed: Cell<bool>,
    writer: RefCell<Option<Waker>>,
}

struct Receiving {
    /// What the peer may still send, in bytes.
    window: u32,
    /// Taken and not announced.
    taken: u32,
    /// No payload may come any more.
    ended: bool,
    backlog: BytesMut,
    /// Where payload goes in the end.
    sink: Option<OwnedWriteHalf>,
    /// Nothing is ahead of what comes next: it may go into the sink at once.
    direct: bool,
    /// Bytes that went there at once and that nobody counted yet.
    delivered: u64,
    /// The sink has failed.
    broken: bool,
    reader: Option<Waker>,
}

impl Shared {
    pub(super) fn new(id: u32, window: i64) -> Rc<Self> {
        Rc::new(Self {
            id,
            unread: Arc::default(),
            receiving: RefCell::new(Receiving {
                window: STREAM_WINDOW,
                taken: 0,
                ended: false,
                backlog: BytesMut::new(),
                sink: None,
                direct: false,
                delivered: 0,
                broken: false,
                reader: None,
            }),
            window: Cell::new(window),
            open: Cell::new(false),
            owned: Cell::new(false),
            closed: Cell::new(false),
            writer: RefCell::new(None),
        })
    }

    /// Counts a DATA frame; `false` when the peer exceeds what it may send.
    pub(super) fn admit(&self, length: u32) -> bool {
        let mut receiving = self.receiving.borrow_mut();
        match receiving.window.checked_sub(length) {
            Some(left) => {
                receiving.window = left;
                true
            }
            None => false,
        }
    }

    /// Whether payload may still come.
    pub(super) fn has_ended(&self) -> bool {
        self.receiving.borrow().ended
    }

    /// No payload comes any more.
    pub(super) fn end(&self) {
        self.receiving.borrow_mut().ended = true;
    }

    /// Takes payload over, and writes what it can of it where it may do so at once; answers how much of it is out of the
    /// way already.
    pub(super) fn deliver(&self, slices: &mut [IoSlice<'_>], at_once: bool) -> usize {
        if self.closed.get() {
            return slices.iter().map(|slice| slice.len()).sum();
        }
        let mut receiving = self.receiving.borrow_mut();
        let mut rest = slices;
        let delivered = if at_once { receiving.write_now(&mut rest) } else { 0 };
        let length: usize = rest.iter().map(|slice| slice.len()).sum();
        if length > 0 {
            receiving.direct = false;
            receiving.backlog.reserve(length);
            rest.iter().for_each(|slice| receiving.backlog.extend_from_slice(slice));
            self.unread.fetch_add(length, Ordering::Relaxed);
        }
        if let Some(reader) = &receiving.reader {
            reader.wake_by_ref();
        }
        delivered
    }

    /// Notes that bytes were taken; the increment of the window when that is worth a frame.
    pub(super) fn credit(&self, bytes: usize) -> Option<u32> {
        let mut receiving = self.receiving.borrow_mut();
        receiving.taken = receiving.taken.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
        if receiving.taken < ANNOUNCED_AFTER || receiving.ended {
            return None;
        }
        let taken = std::mem::take(&mut receiving.taken);
        receiving.window = receiving.window.saturating_add(taken);
        Some(taken)
    }

    /// Nobody will take what is here: how much it was.
    pub(super) fn abandon(&self) -> usize {
        self.receiving.borrow_mut().backlog = BytesMut::new();
        self.unread.swap(0, Ordering::Relaxed)
    }

    /// What waits here.
    #[cfg(test)]
    pub(super) fn received(&self) -> Vec<u8> {
        self.receiving.borrow().backlog.to_vec()
    }

    pub(super) fn wake_writer(&self) {
        if let Some(writer) = self.writer.borrow_mut().take() {
            writer.wake();
        }
    }

    /// Wakes whoever waits for anything.
    pub(super) fn wake(&self) {
        self.wake_writer();
        if let Some(reader) = &self.receiving.borrow().reader {
            reader.wake_by_ref();
        }
    }

    pub(super) fn wait_to_write(&self, cx: &Context<'_>) {
        let mut writer = self.writer.borrow_mut();
        if !writer.as_ref().is_some_and(|writer| writer.will_wake(cx.waker())) {
            *writer = Some(cx.waker().clone());
        }
    }
}

impl Receiving {
    /// Writes what the sink takes at once, where nothing is ahead of it. What a broken sink gets is gone.
    fn write_now(&mut self, rest: &mut &mut [IoSlice<'_>]) -> usize {
        let mut written = 0;
        let Some(sink) = self.sink.as_ref().filter(|_| self.direct) else { return 0 };
        while !rest.is_empty() {
            match sink.try_write_vectored(rest) {
                Ok(count) => {
                    written += count;
                    IoSlice::advance_slices(rest, count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => {
                    self.broken = true;
                    written += rest.iter().map(|slice| slice.len()).sum::<usize>();
                    *rest = &mut [];
                }
            }
        }
        self.delivered += written as u64;
        written
    }
}

/// The payload of a stream, in both directions; of one task. HTTP/2 has the rest of the stream.
///
/// What the peer sends is either taken ([`Lane::take`]) and released, or goes straight into a sink.
pub(crate) struct Lane {
    pub(super) socket: Rc<Socket>,
    pub(super) shared: Rc<Shared>,
}

impl Lane {
    /// Bytes that wait here, for other threads to look at.
    pub(crate) fn unread(&self) -> Arc<AtomicUsize> {
        self.shared.unread.clone()
    }

    /// Everything that was received and not taken. It counts as unread until it is released.
    pub(crate) fn take(&self) -> Bytes {
        std::mem::take(&mut self.shared.receiving.borrow_mut().backlog).freeze()
    }

    /// Remembers whom to wake when something comes.
    pub(crate) fn listen(&self, cx: &Context<'_>) {
        let reader = &mut self.shared.receiving.borrow_mut().reader;
        if !reader.as_ref().is_some_and(|reader| reader.will_wake(cx.waker())) {
            *reader = Some(cx.waker().clone());
        }
    }

    /// Lets the peer send as much again as was taken and is out of the way.
    pub(crate) fn release(&self, bytes: usize) {
        self.shared.unread.fetch_sub(bytes, Ordering::Relaxed);
        self.socket.credit(&self.shared, bytes);
    }

    /// Where payload goes in the end.
    pub(crate) fn set_sink(&self, sink: OwnedWriteHalf) {
        self.shared.receiving.borrow_mut().sink = Some(sink);
    }

    /// From now on payload goes into the sink as it comes. Everything before it must be there already.
    pub(crate) fn go_direct(&self) {
        let mut receiving = self.shared.receiving.borrow_mut();
        receiving.direct = receiving.backlog.is_empty();
    }

    /// Bytes that went into the sink since the last call without having been taken.
    ///
    /// # Errors
    /// The sink has failed.
    pub(crate) fn delivered(&self) -> io::Result<u64> {
        let mut receiving = self.shared.receiving.borrow_mut();
        if receiving.broken {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        Ok(std::mem::take(&mut receiving.delivered))
    }

    /// Writes into the sink.
    pub(crate) fn poll_write(&self, bytes: &[u8], cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        match &mut self.shared.receiving.borrow_mut().sink {
            Some(sink) => Pin::new(sink).poll_write(cx, bytes),
            None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    /// Passes the end of the stream on to the sink.
    pub(crate) fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.shared.receiving.borrow_mut().sink {
            Some(sink) => Pin::new(sink).poll_shutdown(cx),
            None => Poll::Ready(Ok(())),
        }
    }

    /// How much of `wanted` may be sent now.
    ///
    /// # Errors
    /// The tunnel has ended.
    pub(crate) fn poll_room(&self, wanted: usize, cx: &Context<'_>) -> Poll<io::Result<usize>> {
        self.socket.poll_room(&self.shared, wanted, cx)
    }

    /// Sends what `fill` puts into the pieces that it is given: `room` bytes at most, which there must be. Answers how
    /// many; nothing is sent where there are none.
    ///
    /// # Errors
    /// Those of `fill` and of the tunnel.
    pub(crate) fn send(
        &self,
        room: usize,
        fill: impl FnOnce(&mut [IoSliceMut<'_>]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        self.socket.send(&self.shared, room, fill)
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.shared.closed.set(true);
        let mut receiving = self.shared.receiving.borrow_mut();
        // Not ended: a sink that is dropped closes its direction, which would look like a clean end.
        if let Some(sink) = receiving.sink.take() {
            sink.forget();
        }
        receiving.ended = true;
        drop(receiving);
        self.socket.close(&self.shared, self.shared.abandon());
    }
}
