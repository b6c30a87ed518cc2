//! Ciphertext buffers of a tunnel: small when quiet, large under load.

use std::cell::RefCell;
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Buffers of a quiet connection: room for one full record.
pub(crate) const SMALL: usize = 18 * 1024;
/// Buffers of a busy connection: one `read` or `write` moves this much.
const LARGE: usize = 288 * 1024;
/// Small batches in a row after which a connection counts as quiet: among large ones there are always some that
/// carry only window updates.
const QUIET_BATCHES: u8 = 64;

/// Ranges of plaintext that a quiet connection keeps room for.
const FEW_RANGES: usize = 32;

/// Buffers that a thread keeps for whichever of its connections has bytes on their way.
const SPARE: usize = 4;

thread_local! {
    /// Of [`SMALL`] bytes each. Nobody sees what they held: what is read is what was received or written last.
    static SPARES: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer that holds `size` bytes.
fn buffer(size: usize) -> Vec<u8> {
    // While a thread ends its spare ones may be gone already.
    let spare = || SPARES.try_with(|spares| spares.borrow_mut().pop()).ok().flatten();
    let small = (size == SMALL).then(spare).flatten();
    // Fresh zeros come from the allocator: memory that was never written is not touched here either.
    small.unwrap_or_else(|| vec![0; size])
}

/// Keeps a small buffer for others.
fn give_back(buffer: &mut Vec<u8>) {
    let buffer = std::mem::take(buffer);
    if buffer.len() == SMALL {
        // As above.
        let _ = SPARES.try_with(|spares| {
            let mut spares = spares.borrow_mut();
            if spares.len() < SPARE {
                spares.push(buffer);
            }
        });
    }
}

/// What came from the socket: at `start` records that were opened where they lie, behind them ciphertext.
#[derive(Default)]
pub(crate) struct Incoming {
    buffer: Vec<u8>,
    start: usize,
    /// Bytes of records that were opened.
    opened: usize,
    end: usize,
    /// Where their plaintext is, in the order in which it was sent; `next` is the first that was not taken.
    plaintext: Vec<Range<usize>>,
    next: usize,
    /// Largest read since the socket last ran dry.
    largest_read: usize,
}

impl Incoming {
    /// Ciphertext that waits to be opened.
    pub(crate) fn unopened(&self) -> &[u8] {
        self.buffer.get(self.start + self.opened..self.end).unwrap_or_default()
    }

    /// The same, to open it in place.
    pub(crate) fn unopened_mut(&mut self) -> &mut [u8] {
        self.buffer.get_mut(self.start + self.opened..self.end).unwrap_or_default()
    }

    /// The first `record` bytes of ciphertext are opened; `content`, relative to their beginning, is plaintext.
    pub(crate) fn mark_opened(&mut self, record: usize, content: Range<usize>) {
        let at = self.start + self.opened;
        self.opened += record;
        if !content.is_empty() {
            self.plaintext.push(at + content.start..at + content.end);
        }
    }

    /// Plaintext that was not taken yet, piece by piece.
    pub(crate) fn plaintext(&self) -> impl Iterator<Item = &[u8]> {
        let ranges = self.plaintext.get(self.next..).unwrap_or_default();
        ranges.iter().map(|range| self.buffer.get(range.clone()).unwrap_or_default())
    }

    /// Whether there is some.
    pub(crate) fn has_plaintext(&self) -> bool {
        self.next < self.plaintext.len()
    }

    /// Moves plaintext into `buf`.
    pub(crate) fn take_plaintext(&mut self, buf: &mut ReadBuf<'_>) {
        while buf.remaining() > 0
            && let Some(range) = self.plaintext.get_mut(self.next)
        {
            let count = range.len().min(buf.remaining());
            buf.put_slice(self.buffer.get(range.start..range.start + count).unwrap_or_default());
            range.start += count;
            if range.start == range.end {
                self.next += 1;
            }
        }
    }

    /// Forgets everything that was opened.
    pub(crate) fn forget_plaintext(&mut self) {
        self.plaintext.clear();
        self.next = 0;
        let opened = std::mem::take(&mut self.opened);
        self.discard(opened);
    }

    /// Forgets bytes at the front.
    pub(crate) fn discard(&mut self, bytes: usize) {
        self.start += bytes;
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        }
    }

    /// Reads once; 0 is the end of the stream. Call when no plaintext is left.
    pub(crate) fn poll_fill(&mut self, io: &mut TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.make_room();
        let mut buf = ReadBuf::new(self.buffer.get_mut(self.end..).unwrap_or_default());
        let result = Pin::new(io).poll_read(cx, &mut buf);
        let read = buf.filled().len();
        match result {
            Poll::Ready(Ok(())) => {
                self.end += read;
                self.largest_read = self.largest_read.max(read);
                Poll::Ready(Ok(read))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                self.ran_dry();
                Poll::Pending
            }
        }
    }

    /// Bytes that are held, for tests.
    #[cfg(test)]
    pub(crate) fn held(&self) -> usize {
        self.buffer.len()
    }

    /// Gives the buffer back when nothing is in it; a large one once reads have become small.
    fn ran_dry(&mut self) {
        if self.start == self.end && (self.buffer.len() <= SMALL || self.largest_read <= SMALL) {
            give_back(&mut self.buffer);
        }
        self.plaintext.shrink_to(FEW_RANGES);
        self.largest_read = 0;
    }

    /// Moves what is left of a record to the front, and grows when the last read filled the buffer.
    fn make_room(&mut self) {
        let was_full = self.end == self.buffer.len() && !self.buffer.is_empty();
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let size = if was_full || self.largest_read >= SMALL { LARGE } else { SMALL };
        if self.buffer.len() < size {
            grow(&mut self.buffer, size, self.end);
        }
    }
}

/// Makes room for `size` bytes and keeps the first `used`.
fn grow(held: &mut Vec<u8>, size: usize, used: usize) {
    let mut larger = buffer(size);
    if let (Some(to), Some(from)) = (larger.get_mut(..used), held.get(..used)) {
        to.copy_from_slice(from);
    }
    give_back(held);
    *held = larger;
}

/// Ciphertext for the socket; `sent..end` is waiting.
#[derive(Default)]
pub(crate) struct Outgoing {
    buffer: Vec<u8>,
    sent: usize,
    end: usize,
    /// Small batches since the last large one.
    small_batches: u8,
}

impl Outgoing {
    pub(crate) fn len(&self) -> usize {
        self.end - self.sent
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// `size` writable bytes behind what waits; [`Outgoing::commit`] makes them wait too.
    pub(crate) fn space(&mut self, size: usize) -> &mut [u8] {
        if self.sent > 0 && self.buffer.len() < self.end + size {
            self.buffer.copy_within(self.sent..self.end, 0);
            self.end -= self.sent;
            self.sent = 0;
        }
        if self.buffer.len() < self.end + size {
            let wanted = self.end + size;
            // More than a record that waits says that the connection is busy. Small ones, as those of a handshake, say
            // nothing: what is large is paid for with every tunnel, and by the client that waits for it.
            let room = if self.end > 0 && wanted > SMALL { wanted.max(LARGE) } else { wanted.max(SMALL) };
            grow(&mut self.buffer, room, self.end);
        }
        self.buffer.get_mut(self.end..self.end + size).unwrap_or_default()
    }

    pub(crate) fn commit(&mut self, bytes: usize) {
        self.end += bytes;
    }

    /// Writes what the socket takes at once.
    pub(crate) fn try_flush(&mut self, io: &TcpStream) -> io::Result<()> {
        let waiting = self.buffer.get(self.sent..self.end).unwrap_or_default();
        if waiting.is_empty() {
            return Ok(());
        }
        if waiting.len() > SMALL {
            self.small_batches = 0;
        }
        match io.try_write(waiting) {
            Ok(0) => Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                self.wrote(written);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn wrote(&mut self, bytes: usize) {
        self.sent += bytes;
        if self.is_empty() {
            self.sent = 0;
            self.end = 0;
            if self.buffer.len() == SMALL {
                give_back(&mut self.buffer);
            }
        }
    }

    /// Bytes that are held, waiting or not, for tests.
    #[cfg(test)]
    pub(crate) fn held(&self) -> usize {
        self.buffer.len()
    }

    /// What waits, for tests.
    #[cfg(test)]
    pub(crate) fn into_waiting(self) -> Vec<u8> {
        self.buffer.get(self.sent..self.end).unwrap_or_default().to_vec()
    }

    /// Writes once.
    pub(crate) fn poll_write(&mut self, io: &mut TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let waiting = self.buffer.get(self.sent..self.end).unwrap_or_default();
        let written = ready!(Pin::new(io).poll_write(cx, waiting))?;
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.wrote(written);
        Poll::Ready(Ok(()))
    }

    /// Writes everything; gives a large buffer back once the connection is quiet.
    pub(crate) fn poll_flush(&mut self, io: &mut TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let batch = self.len();
        while !self.is_empty() {
            ready!(self.poll_write(io, cx))?;
        }
        if batch > SMALL {
            self.small_batches = 0;
        } else if batch > 0 && self.buffer.len() > SMALL {
            self.small_batches += 1;
            if self.small_batches == QUIET_BATCHES {
                *self = Self::default();
            }
        }
        Poll::Ready(Ok(()))
    }
}
