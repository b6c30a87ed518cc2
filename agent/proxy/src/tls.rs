//! TLS of tunnels: the handshakes.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use weft_tls::TlsStream;

/// The protocol that HBONE speaks inside TLS.
const ALPN: &[u8] = b"h2";

/// A finished handshake.
pub(crate) struct Secured {
    /// The encrypted stream.
    pub(crate) stream: TlsStream,
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
    Ok(Secured { stream: tls, peer })
}
