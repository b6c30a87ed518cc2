//! TLS over a TCP socket as one `AsyncRead + AsyncWrite`, with large reads and large writes.
//!
//! rustls' buffered connections read 4 to 18 KiB per system call, which halves a tunnel's throughput. Here
//! rustls does the handshake (see `handshake`) and the key schedule, and records are sealed and opened in the
//! very buffers that the socket is written from and read into (see `record`). The buffers grow under load and
//! are given back when the tunnel is quiet.

use std::io::{self, IoSlice};
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
    /// Decrypted bytes that did not fit the reader's buffer, and how many of them were delivered.
    pub(crate) overflow: Vec<u8>,
    pub(crate) delivered: usize,
    pub(crate) peer_closed: bool,
    pub(crate) close_sent: bool,
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

    fn deliver_overflow(&mut self, buf: &mut ReadBuf<'_>) {
        let waiting = self.overflow.get(self.delivered..).unwrap_or_default();
        let taken = waiting.len().min(buf.remaining());
        buf.put_slice(waiting.get(..taken).unwrap_or_default());
        self.delivered += taken;
        if self.delivered == self.overflow.len() && self.delivered > 0 {
            self.overflow = Vec::new();
            self.delivered = 0;
        }
    }

    /// Opens the record at the front of the received bytes, straight into `buf` when it fits.
    fn read_record(&mut self, framed: Framed, buf: &mut ReadBuf<'_>) -> io::Result<()> {
        let inner_len = framed.inner_len();
        let received = self.incoming.filled();
        if buf.remaining() >= inner_len {
            let out = buf.initialize_unfilled_to(inner_len);
            let (content_type, len) = self.opener.open(framed, received, out).map_err(invalid_data)?;
            if content_type == record::APPLICATION_DATA {
                buf.advance(len);
                self.incoming.discard(framed.len());
                return Ok(());
            }
            let control = out.get(..len).unwrap_or_default().to_vec();
            self.incoming.discard(framed.len());
            return self.control(content_type, &control);
        }
        let mut inner = vec![0; inner_len];
        let (content_type, len) = self.opener.open(framed, received, &mut inner).map_err(invalid_data)?;
        inner.truncate(len);
        self.incoming.discard(framed.len());
        if content_type != record::APPLICATION_DATA {
            return self.control(content_type, &inner);
        }
        self.overflow = inner;
        self.deliver_overflow(buf);
        Ok(())
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

    /// Messages after the handshake (section 4.6): tickets are not used, key updates are obeyed.
    fn post_handshake(&mut self, mut messages: &[u8]) -> io::Result<()> {
        while let [kind, l0, l1, l2, rest @ ..] = messages {
            let length = (usize::from(*l0) << 16) | (usize::from(*l1) << 8) | usize::from(*l2);
            let Some((body, behind)) = rest.split_at_checked(length) else { break };
            messages = behind;
            match (*kind, body) {
                (NEW_SESSION_TICKET, _) => {}
                (KEY_UPDATE, [request]) => {
                    self.opener = self.schedule.next_opener()?;
                    if *request == UPDATE_REQUESTED {
                        // A peer that asks on and on and never reads would make us hold its answers.
                        if self.outgoing.len() >= 2 * WRITE_BACKLOG {
                            return Err(invalid_data(RecordError::UnexpectedType(record::HANDSHAKE)));
                        }
                        self.update_sealer()?;
                    }
                }
                _ => return Err(invalid_data(RecordError::UnexpectedType(record::HANDSHAKE))),
            }
        }
        if messages.is_empty() { Ok(()) } else { Err(invalid_data(RecordError::Forged)) }
    }

    /// Announces and takes a new key for what we send.
    pub(crate) fn update_sealer(&mut self) -> io::Result<()> {
        self.seal(record::HANDSHAKE, &[IoSlice::new(&[KEY_UPDATE, 0, 0, 1, UPDATE_NOT_REQUESTED])])?;
        self.sealer = self.schedule.next_sealer()?;
        Ok(())
    }

    /// Seals `slices` as consecutive records of full size; answers how many bytes were taken.
    fn seal(&mut self, content_type: u8, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let total = slices.iter().map(|slice| slice.len()).sum::<usize>().min(WRITE_BATCH);
        let mut source = Gather { slices, at: 0 };
        let mut taken = 0;
        while taken < total {
            let length = (total - taken).min(record::MAX_PLAINTEXT);
            let space = self.outgoing.space(length + record::OVERHEAD);
            if let Some(plaintext) = space.get_mut(record::HEADER_LEN..record::HEADER_LEN + length) {
                source.copy_to(plaintext);
            }
            self.sealer.seal(content_type, space).map_err(invalid_data)?;
            self.outgoing.commit(length + record::OVERHEAD);
            taken += length;
        }
        Ok(taken)
    }

    /// A record as it would go out, without sending it.
    #[cfg(test)]
    pub(crate) fn sealed_for_test(&mut self, data: &[u8]) -> Vec<u8> {
        self.seal(record::APPLICATION_DATA, &[IoSlice::new(data)]).unwrap();
        std::mem::take(&mut self.outgoing).into_waiting()
    }

    fn alert(&mut self, level: u8, description: u8) -> io::Result<()> {
        self.seal(record::ALERT, &[IoSlice::new(&[level, description])]).map(drop)
    }
}

/// Reads across slices.
struct Gather<'a> {
    slices: &'a [IoSlice<'a>],
    /// Consumed bytes of the first slice.
    at: usize,
}

impl Gather<'_> {
    fn copy_to(&mut self, mut out: &mut [u8]) {
        while let Some((first, rest)) = self.slices.split_first()
            && !out.is_empty()
        {
            let available = first.get(self.at..).unwrap_or_default();
            let length = available.len().min(out.len());
            let (now, later) = std::mem::take(&mut out).split_at_mut(length);
            now.copy_from_slice(available.get(..length).unwrap_or_default());
            out = later;
            self.at += length;
            if self.at == first.len() {
                self.slices = rest;
                self.at = 0;
            }
        }
    }
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
        let before = buf.filled().len();
        this.deliver_overflow(buf);
        while buf.remaining() > 0 && !this.peer_closed {
            if let Some(framed) = Opener::frame(this.incoming.filled()).map_err(invalid_data)? {
                if let Err(error) = this.read_record(framed, buf) {
                    // One try to tell the peer; the connection ends either way.
                    let _ = this.alert(2, BAD_RECORD_MAC);
                    let _ = this.outgoing.poll_flush(&mut this.io, cx);
                    return Poll::Ready(Err(error));
                }
                continue;
            }
            if buf.filled().len() > before {
                break;
            }
            if ready!(this.incoming.poll_fill(&mut this.io, cx))? == 0 {
                // Without close_notify the end may be an attacker's (section 6.1).
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
        }
        // The answer to a key update leaves now if it can, else with the next write.
        if !this.outgoing.is_empty()
            && let Poll::Ready(Err(error)) = this.outgoing.poll_flush(&mut this.io, cx)
        {
            return Poll::Ready(Err(error));
        }
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
        if this.sealer.wants_new_key() {
            this.update_sealer()?;
        }
        Poll::Ready(this.seal(record::APPLICATION_DATA, slices))
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
