//! TLS over a TCP socket, with large reads and large writes.
//!
//! rustls' buffered connections read 4 to 18 KiB per system call, which halves a tunnel's throughput. Here
//! rustls does the handshake (see `handshake`) and the key schedule, and records are sealed and opened in the
//! very buffers that the socket is written from and read into (see `record`). Whoever reads sees the plaintext
//! where it lies ([`TlsStream::plaintext`]), and whoever writes puts it where it is sealed
//! ([`TlsStream::write_in_place`]): nothing is copied. `AsyncRead + AsyncWrite` is there as well, with one copy. The
//! buffers grow under load and are given back when the tunnel is quiet.

use std::io::{self, IoSlice, IoSliceMut};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustls::client::ClientConnectionData;
use rustls::kernel::KernelConnection;
use rustls::pki_types::CertificateDer;
use rustls::server::ServerConnectionData;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::buffers::{Incoming, Outgoing};
use crate::record::{self, Framed, Opener, RecordError, Sealer};

/// Plaintext taken by one `poll_write`.
const WRITE_BATCH: usize = 256 * 1024;
/// Records of a batch, with what is put before it.
const MOST_RECORDS: usize = WRITE_BATCH / record::MAX_PLAINTEXT + 1;
/// A record of full size.
const FULL_RECORD: usize = record::MAX_PLAINTEXT + record::OVERHEAD;
/// Ciphertext that may wait for the socket before `poll_write` makes the caller wait.
const WRITE_BACKLOG: usize = 288 * 1024;

/// Alerts (RFC 8446, section 6).
const CLOSE_NOTIFY: u8 = 0;
const USER_CANCELED: u8 = 90;
const BAD_RECORD_MAC: u8 = 20;
/// Handshake messages that may follow the handshake (section 4).
const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;
const UPDATE_NOT_REQUESTED: u8 = 0;
const UPDATE_REQUESTED: u8 = 1;
/// Key updates that a peer may send in a row, and records that earn it another one: each of them costs as much as
/// hundreds of records, and nobody needs one before millions of them.
pub(crate) const MOST_UPDATES: u64 = 32;
const RECORDS_PER_UPDATE: u64 = 1024;
/// Ciphertext without any plaintext that is read before others get their turn, in bytes.
const BARREN: usize = 64 * 1024;

/// rustls' key schedule of either side.
pub(crate) enum Schedule {
    /// We dialled.
    Client(KernelConnection<ClientConnectionData>),
    /// We accepted.
    Server(KernelConnection<ServerConnectionData>),
}

impl Schedule {
    fn next_sealer(&mut self) -> io::Result<Sealer> {
        let secrets = match self {
            Self::Client(schedule) => schedule.update_tx_secret(),
            Self::Server(schedule) => schedule.update_tx_secret(),
        };
        Sealer::new(secrets.map_err(invalid_data)?).map_err(invalid_data)
    }

    fn next_opener(&mut self) -> io::Result<Opener> {
        let secrets = match self {
            Self::Client(schedule) => schedule.update_rx_secret(),
            Self::Server(schedule) => schedule.update_rx_secret(),
        };
        Opener::new(secrets.map_err(invalid_data)?).map_err(invalid_data)
    }
}

/// A TLS 1.3 connection whose handshake is complete.
pub struct TlsStream {
    pub(crate) io: TcpStream,
    pub(crate) schedule: Schedule,
    pub(crate) sealer: Sealer,
    pub(crate) opener: Opener,
    pub(crate) incoming: Incoming,
    pub(crate) outgoing: Outgoing,
    /// Plaintext that came with the peer's last flight of the handshake.
    pub(crate) early: Vec<u8>,
    /// What ends the connection once everything before it was taken.
    pub(crate) failed: Option<io::Error>,
    pub(crate) peer_closed: bool,
    pub(crate) close_sent: bool,
    /// Key updates that the peer may send now.
    pub(crate) updates_left: u64,
    pub(crate) peer_certificates: Vec<CertificateDer<'static>>,
    pub(crate) alpn: Option<Vec<u8>>,
}

impl TlsStream {
    /// The peer's certificate chain, leaf first; it has been verified.
    pub fn peer_certificates(&self) -> &[CertificateDer<'static>] {
        &self.peer_certificates
    }

    /// The protocol that ALPN agreed on.
    pub fn alpn_protocol(&self) -> Option<&[u8]> {
        self.alpn.as_deref()
    }

    /// The socket beneath.
    pub fn socket(&self) -> &TcpStream {
        &self.io
    }

    /// Makes plaintext available ([`TlsStream::plaintext`]): whatever one read brings, opened where it lies. Answers
    /// `false` at the peer's end of the stream. What answering the peer took waits for the next flush.
    ///
    /// # Errors
    /// Socket errors, an end without `close_notify`, and [`RecordError`]s as [`io::ErrorKind::InvalidData`]; always
    /// after the plaintext that came before.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let mut barren = 0;
        loop {
            if self.has_plaintext() {
                return Poll::Ready(Ok(true));
            }
            if let Some(error) = self.failed.take() {
                return Poll::Ready(Err(error));
            }
            self.forget_plaintext();
            if let Err(error) = self.open_records() {
                // One try to tell the peer; the connection ends either way.
                let _ = self.alert(2, BAD_RECORD_MAC);
                let _ = self.try_flush();
                self.failed = Some(error);
                continue;
            }
            if self.has_plaintext() {
                continue;
            }
            if self.peer_closed {
                return Poll::Ready(Ok(false));
            }
            if barren > BARREN {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            match ready!(self.incoming.poll_fill(&mut self.io, cx))? {
                // Without close_notify the end may be an attacker's (section 6.1).
                0 => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                read => barren += read,
            }
        }
    }

    /// The plaintext that is available, piece by piece.
    pub fn plaintext(&self) -> impl Iterator<Item = &[u8]> {
        let early = Some(&*self.early).filter(|early| !early.is_empty());
        early.into_iter().chain(self.incoming.plaintext())
    }

    /// Says that all of it was taken.
    pub fn forget_plaintext(&mut self) {
        self.early = Vec::new();
        self.incoming.forget_plaintext();
    }

    fn has_plaintext(&self) -> bool {
        !self.early.is_empty() || self.incoming.has_plaintext()
    }

    /// Opens every whole record that was received.
    fn open_records(&mut self) -> io::Result<()> {
        while !self.peer_closed
            && let Some(framed) = Opener::frame(self.incoming.unopened()).map_err(invalid_data)?
        {
            self.open_record(framed)?;
        }
        Ok(())
    }

    fn open_record(&mut self, framed: Framed) -> io::Result<()> {
        let received = self.incoming.unopened_mut();
        let (content_type, len) = self.opener.open(framed, received).map_err(invalid_data)?;
        let content = record::HEADER_LEN..record::HEADER_LEN + len;
        if content_type == record::APPLICATION_DATA {
            self.incoming.mark_opened(framed.len(), content);
            return Ok(());
        }
        let control = received.get(content).unwrap_or_default().to_vec();
        self.incoming.mark_opened(framed.len(), 0..0);
        self.control(content_type, &control)
    }

    /// Everything that is not application data.
    fn control(&mut self, content_type: u8, content: &[u8]) -> io::Result<()> {
        match (content_type, content) {
            (record::ALERT, [_, CLOSE_NOTIFY]) => self.peer_closed = true,
            (record::ALERT, [_, USER_CANCELED]) => {}
            (record::ALERT, [_, description]) => {
                return Err(invalid_data(rustls::Error::AlertReceived((*description).into())));
            }
            (record::HANDSHAKE, message) => return self.post_handshake(message),
            _ => return Err(invalid_data(RecordError::UnexpectedType(content_type))),
        }
        Ok(())
    }

    /// Messages after the handshake (section 4.6): tickets are not used, key updates are obeyed. Nothing may follow a
    /// key update in its record (section 5.1).
    fn post_handshake(&mut self, mut messages: &[u8]) -> io::Result<()> {
        while let [kind, l0, l1, l2, rest @ ..] = messages {
            let length = (usize::from(*l0) << 16) | (usize::from(*l1) << 8) | usize::from(*l2);
            let Some((body, behind)) = rest.split_at_checked(length) else { break };
            messages = behind;
            match (*kind, body) {
                (NEW_SESSION_TICKET, _) => {}
                (KEY_UPDATE, [UPDATE_NOT_REQUESTED]) if messages.is_empty() => self.update_opener()?,
                (KEY_UPDATE, [UPDATE_REQUESTED]) if messages.is_empty() => {
                    self.update_opener()?;
                    // A peer that asks on and on and never reads would make us hold its answers.
                    if self.outgoing.len() >= 2 * WRITE_BACKLOG {
                        return Err(invalid_data(RecordError::TooManyUpdates));
                    }
                    self.update_sealer()?;
                }
                _ => return Err(invalid_data(RecordError::UnexpectedType(record::HANDSHAKE))),
            }
        }
        if messages.is_empty() { Ok(()) } else { Err(invalid_data(RecordError::Forged)) }
    }

    /// Takes the peer's new key.
    fn update_opener(&mut self) -> io::Result<()> {
        let earned = self.opener.opened() / RECORDS_PER_UPDATE;
        let left = self.updates_left.saturating_add(earned).min(MOST_UPDATES);
        self.updates_left = left.checked_sub(1).ok_or_else(|| invalid_data(RecordError::TooManyUpdates))?;
        self.opener = self.schedule.next_opener()?;
        Ok(())
    }

    /// Announces and takes a new key for what we send.
    pub(crate) fn update_sealer(&mut self) -> io::Result<()> {
        self.seal_slices(record::HANDSHAKE, &[IoSlice::new(&[KEY_UPDATE, 0, 0, 1, UPDATE_NOT_REQUESTED])])?;
        self.sealer = self.schedule.next_sealer()?;
        Ok(())
    }

    /// Seals what `fill` puts into the pieces that it is given, `most` bytes at most, behind the bytes that `head`
    /// makes of their number. Answers that number; nothing is sealed where it is zero. Everything waits for a flush:
    /// see [`TlsStream::waiting`].
    ///
    /// # Errors
    /// Those of `fill`, and of sealing.
    pub fn write_in_place<const HEAD: usize>(
        &mut self,
        most: usize,
        fill: impl FnOnce(&mut [IoSliceMut<'_>]) -> io::Result<usize>,
        head: impl FnOnce(usize) -> [u8; HEAD],
    ) -> io::Result<usize> {
        if self.sealer.wants_new_key() {
            self.update_sealer()?;
        }
        self.seal(record::APPLICATION_DATA, most, fill, head)
    }

    /// Ciphertext that waits for a flush, in bytes.
    pub fn waiting(&self) -> usize {
        self.outgoing.len()
    }

    /// Sends what the socket takes at once. Who wants to know when it takes more flushes.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn try_flush(&mut self) -> io::Result<()> {
        self.outgoing.try_flush(&self.io)
    }

    fn seal<const HEAD: usize>(
        &mut self,
        content_type: u8,
        most: usize,
        fill: impl FnOnce(&mut [IoSliceMut<'_>]) -> io::Result<usize>,
        head: impl FnOnce(usize) -> [u8; HEAD],
    ) -> io::Result<usize> {
        let most = most.min(WRITE_BATCH);
        let records = (HEAD + most).div_ceil(record::MAX_PLAINTEXT);
        let space = self.outgoing.space(HEAD + most + records * record::OVERHEAD);
        let mut pieces: [IoSliceMut<'_>; MOST_RECORDS] = std::array::from_fn(|_| IoSliceMut::new(&mut []));
        let filled = fill(holes(space, HEAD, most, &mut pieces))?.min(most);
        if filled == 0 {
            return Ok(0);
        }
        if let Some(front) = space.get_mut(record::HEADER_LEN..record::HEADER_LEN + HEAD) {
            front.copy_from_slice(&head(filled));
        }
        let (mut left, mut sealed) = (HEAD + filled, 0);
        for record in space.chunks_mut(FULL_RECORD) {
            let length = left.min(record::MAX_PLAINTEXT);
            let Some(record) = record.get_mut(..length + record::OVERHEAD).filter(|_| length > 0) else {
                break;
            };
            self.sealer.seal(content_type, record).map_err(invalid_data)?;
            left -= length;
            sealed += record.len();
        }
        self.outgoing.commit(sealed);
        Ok(filled)
    }

    /// Seals bytes that are at hand.
    fn seal_slices(&mut self, content_type: u8, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let total = slices.iter().map(|slice| slice.len()).sum();
        self.seal(content_type, total, |holes| Ok(scatter(slices, holes)), |_| [])
    }

    /// A record as it would go out, without sending it.
    #[cfg(test)]
    pub(crate) fn sealed_for_test(&mut self, content_type: u8, data: &[u8]) -> Vec<u8> {
        self.seal_slices(content_type, &[IoSlice::new(data)]).unwrap();
        std::mem::take(&mut self.outgoing).into_waiting()
    }

    fn alert(&mut self, level: u8, description: u8) -> io::Result<()> {
        self.seal_slices(record::ALERT, &[IoSlice::new(&[level, description])]).map(drop)
    }
}

/// The places of plaintext in `space`, which is cut into records of full size: `most` bytes behind the first `head`.
fn holes<'a, 'b>(
    space: &'a mut [u8],
    head: usize,
    most: usize,
    pieces: &'b mut [IoSliceMut<'a>; MOST_RECORDS],
) -> &'b mut [IoSliceMut<'a>] {
    let (mut used, mut left, mut skip) = (0, most, head);
    for (piece, record) in pieces.iter_mut().zip(space.chunks_mut(FULL_RECORD)) {
        let length = (record::MAX_PLAINTEXT - skip).min(left);
        let from = record::HEADER_LEN + skip;
        *piece = IoSliceMut::new(record.get_mut(from..from + length).unwrap_or_default());
        (left, skip) = (left - length, 0);
        used += 1;
    }
    pieces.get_mut(..used).unwrap_or_default()
}

/// Copies slices into places one after the other; answers how many bytes.
pub fn scatter(slices: &[IoSlice<'_>], places: &mut [IoSliceMut<'_>]) -> usize {
    let mut places = places.iter_mut().map(|place| &mut **place);
    let (mut place, mut copied): (&mut [u8], usize) = (&mut [], 0);
    for slice in slices {
        let mut rest: &[u8] = slice;
        while !rest.is_empty() {
            if place.is_empty() {
                let Some(next) = places.next() else { return copied };
                place = next;
                continue;
            }
            let length = rest.len().min(place.len());
            let (now, later) = std::mem::take(&mut place).split_at_mut(length);
            let (front, back) = rest.split_at(length);
            now.copy_from_slice(front);
            (place, rest) = (later, back);
            copied += length;
        }
    }
    copied
}

pub(crate) fn invalid_data(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

impl AsyncRead for TlsStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if buf.remaining() > 0 && ready!(this.poll_fill(cx))? {
            let taken = this.early.len().min(buf.remaining());
            buf.put_slice(this.early.get(..taken).unwrap_or_default());
            this.early.drain(..taken);
            this.incoming.take_plaintext(buf);
        }
        // The answer to a key update leaves now if it can, else with the next write.
        this.try_flush()?;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(data)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        while this.outgoing.len() >= WRITE_BACKLOG {
            ready!(this.outgoing.poll_write(&mut this.io, cx))?;
        }
        let total = slices.iter().map(|slice| slice.len()).sum();
        Poll::Ready(this.write_in_place(total, |holes| Ok(scatter(slices, holes)), |_| []))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        this.outgoing.poll_flush(&mut this.io, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.close_sent {
            this.close_sent = true;
            this.alert(1, CLOSE_NOTIFY)?;
        }
        ready!(this.outgoing.poll_flush(&mut this.io, cx))?;
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}
