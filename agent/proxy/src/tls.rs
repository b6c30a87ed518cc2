//! TLS of tunnels: the stream that HTTP/2 reads and writes, and the handshakes that make one.
//!
//! HTTP/2 asks for a flush after every frame. A tunnel carries many connections, so a [`Stream`] that is
//! corked ignores that: its driver calls [`Corked::flush`] once, when everything of one turn is written, and
//! many small frames share one system call.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use weft_tls::TlsStream;

/// The protocol that HBONE speaks inside TLS.
const ALPN: &[u8] = b"h2";

struct Inner {
    tls: RefCell<TlsStream>,
    corked: Cell<bool>,
}

/// The stream. One thread only.
pub(crate) struct Stream(Rc<Inner>);

/// Flushes a corked stream.
pub(crate) struct Corked(Rc<Inner>);

/// A finished handshake.
pub(crate) struct Secured {
    /// The encrypted stream.
    pub(crate) stream: Stream,
    /// The peer's verified certificates, leaf first.
    pub(crate) peer: Vec<CertificateDer<'static>>,
}

/// Accepts.
pub(crate) async fn accept(io: TcpStream, config: Arc<ServerConfig>) -> io::Result<Secured> {
    secured(TlsStream::accept(io, config).await?)
}

/// Dials. The configuration verifies the peer's identity; its address is only a formality.
pub(crate) async fn connect(io: TcpStream, config: Arc<ClientConfig>, peer: IpAddr) -> io::Result<Secured> {
    secured(TlsStream::connect(io, config, ServerName::IpAddress(peer.into())).await?)
}

fn secured(tls: TlsStream) -> io::Result<Secured> {
    if tls.alpn_protocol() != Some(ALPN) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the peer does not offer the protocol h2 (ALPN)",
        ));
    }
    let peer = tls.peer_certificates().to_vec();
    let stream = Stream(Rc::new(Inner { tls: RefCell::new(tls), corked: Cell::new(false) }));
    Ok(Secured { stream, peer })
}

impl Stream {
    /// From now on only the returned handle flushes.
    pub(crate) fn cork(&self) -> Corked {
        self.0.corked.set(true);
        Corked(self.0.clone())
    }
}

impl Corked {
    /// Sends everything that was written.
    pub(crate) fn flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.tls.borrow_mut()).poll_flush(cx)
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.tls.borrow_mut()).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0.tls.borrow_mut()).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0.tls.borrow_mut()).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.0.corked.get() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut *self.0.tls.borrow_mut()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.tls.borrow_mut()).poll_shutdown(cx)
    }
}
