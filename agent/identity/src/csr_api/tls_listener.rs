//! Accepting TLS connections: handshakes beside each other, bounded in number and time.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::codegen::tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use super::Counters;
use crate::ServingTls;

/// Connections at a time: one for each node of the largest cluster, and some of agents that restart.
const CONNECTIONS: usize = 10_000;
/// For a handshake, from the first byte to the last.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// After an accept that failed: no descriptors left, for example.
const PAUSE: Duration = Duration::from_millis(100);

/// A connection whose TLS stands.
pub(super) struct Connection {
    stream: TlsStream<TcpStream>,
    peer: SocketAddr,
    _permit: OwnedSemaphorePermit,
}

/// Whose connection it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(pub(super) SocketAddr);

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        Peer(self.peer)
    }
}

/// Accepts for as long as somebody takes the connections.
pub(super) fn accept(
    listener: TcpListener,
    tls: Arc<ServingTls>,
    counters: Arc<Counters>,
) -> ReceiverStream<io::Result<Connection>> {
    let (ready, connections) = mpsc::channel(16);
    tokio::spawn(async move {
        let permits = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = ready.closed() => return,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let shaking = handshake(stream, peer, Arc::clone(&tls), permit);
                    let (ready, counters) = (ready.clone(), Arc::clone(&counters));
                    tokio::spawn(async move {
                        match shaking.await {
                            // A receiver that is gone wants no connections any more.
                            Ok(connection) => drop(ready.send(Ok(connection)).await),
                            Err(error) => {
                                counters.handshake_failed();
                                tracing::debug!(%peer, %error, "no TLS connection");
                            }
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    });
    ReceiverStream::new(connections)
}

async fn handshake(
    stream: TcpStream,
    peer: SocketAddr,
    tls: Arc<ServingTls>,
    permit: OwnedSemaphorePermit,
) -> io::Result<Connection> {
    stream.set_nodelay(true)?;
    let shaking = TlsAcceptor::from(tls.config()).accept(stream);
    let stream = tokio::time::timeout(HANDSHAKE, shaking).await.map_err(|_| {
        io::Error::new(io::ErrorKind::TimedOut, format!("no handshake within {} s", HANDSHAKE.as_secs()))
    })??;
    Ok(Connection { stream, peer, _permit: permit })
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
