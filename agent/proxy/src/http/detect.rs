//! Does a connection speak HTTP? From what is declared, else from whoever speaks first (ruling 5, X-9, X-10).

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::Duration;

use weft_core::Snapshot;
use weft_core::decide::protocol;
use weft_core::resource::PortProtocol;
use weft_core::snapshot::LocalWorkload;

use super::inbound::Arrival;
use super::io::Transport;
use crate::sniff::{self, Protocol};

/// How long both sides may be silent before the connection counts as something else than HTTP, unless MeshConfig says
/// it.
const PATIENCE: Duration = Duration::from_millis(100);
/// Longer than any connection lasts.
const FOR_EVER: Duration = Duration::from_secs(30 * 365 * 24 * 3600);
/// A request line that is longer is HTTP nevertheless.
const LONGEST_LINE: usize = 8 * 1024;

/// What is known about a connection before a byte has moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Speaks {
    /// HTTP.
    Http,
    /// Something that the mesh does not look into.
    Opaque,
    /// Nobody says.
    Unknown,
}

impl From<PortProtocol> for Speaks {
    fn from(protocol: PortProtocol) -> Self {
        match protocol {
            PortProtocol::Http | PortProtocol::Http2 | PortProtocol::Grpc | PortProtocol::GrpcWeb => {
                Self::Http
            }
            PortProtocol::Tls | PortProtocol::Tcp | PortProtocol::Udp => Self::Opaque,
            PortProtocol::Undeclared => Self::Unknown,
        }
    }
}

impl Speaks {
    /// A port of a pod of this node.
    pub(crate) fn inbound(local: &LocalWorkload, port: u16) -> Self {
        protocol::inbound(local, port).into()
    }

    /// The same for a connection that has arrived.
    pub(crate) fn inbound_of(snapshot: &Snapshot, arrival: &Arrival) -> Self {
        let local = snapshot.local_workload(&arrival.pod.key);
        local.map_or(Self::Opaque, |local| Self::inbound(local, arrival.destination.port()))
    }

    /// What a pod of this node, in namespace `client`, dialled.
    pub(crate) fn outbound(snapshot: &Snapshot, client: &str, addressed: SocketAddr) -> Self {
        protocol::outbound(snapshot, client, addressed).into()
    }
}

/// What was heard.
#[derive(Debug)]
pub(crate) enum Heard<T> {
    /// The client speaks HTTP. The way that is open already may serve its first request.
    Http(Option<T>),
    /// It is something else, and this is the way.
    Opaque(T),
}

/// How long [`listen`] may listen.
pub(crate) fn patience(snapshot: &Snapshot) -> Duration {
    match snapshot.mesh().http.detection_timeout {
        None => PATIENCE,
        Some(Duration::ZERO) => FOR_EVER,
        Some(limit) => limit.min(FOR_EVER),
    }
}

/// Opens a way to the server and listens meanwhile. `server_spoke` says whether the server has sent something.
///
/// # Errors
///
/// The way cannot be opened, and the client has not begun to speak HTTP.
pub(crate) async fn listen<T, E>(
    client: &mut Transport,
    patience: Duration,
    open: impl Future<Output = Result<T, E>>,
    mut server_spoke: impl FnMut(&mut T, &mut Context<'_>) -> bool,
) -> Result<Heard<T>, E> {
    let mut open = pin!(open);
    let mut patience = pin!(tokio::time::sleep(patience));
    let mut way: Option<Result<T, E>> = None;
    let mut client_spoke = false;
    poll_fn(|cx| {
        if !client_spoke {
            match poll_client(client, cx) {
                Poll::Ready(true) => {
                    return Poll::Ready(Ok(Heard::Http(way.take().and_then(Result::ok))));
                }
                Poll::Ready(false) => client_spoke = true,
                Poll::Pending => {}
            }
        }
        if way.is_none()
            && let Poll::Ready(opened) = open.as_mut().poll(cx)
        {
            way = Some(opened);
        }
        let decided = client_spoke || patience.as_mut().poll(cx).is_ready();
        match way.take() {
            Some(Ok(mut opened)) => {
                if decided || server_spoke(&mut opened, cx) {
                    return Poll::Ready(Ok(Heard::Opaque(opened)));
                }
                way = Some(Ok(opened));
            }
            Some(Err(error)) if decided => return Poll::Ready(Err(error)),
            other => way = other,
        }
        Poll::Pending
    })
    .await
}

/// Whether the client's first bytes are HTTP.
fn poll_client(client: &mut Transport, cx: &mut Context<'_>) -> Poll<bool> {
    loop {
        let first = client.first_bytes();
        match sniff::classify(first) {
            Protocol::Http2 => return Poll::Ready(true),
            Protocol::Http1 => match first.iter().position(|byte| *byte == b'\n') {
                Some(end) => return Poll::Ready(!is_old(first.get(..end).unwrap_or_default())),
                None if first.len() >= LONGEST_LINE => return Poll::Ready(true),
                None => {}
            },
            Protocol::Tls | Protocol::Other => return Poll::Ready(false),
            Protocol::Undecided => {}
        }
        match client.poll_more(cx) {
            Poll::Ready(Ok(true)) => {}
            Poll::Ready(Ok(false) | Err(_)) => return Poll::Ready(false),
            Poll::Pending => return Poll::Pending,
        }
    }
}

/// HTTP/1.0, which passes where nobody declares HTTP (H-7).
fn is_old(line: &[u8]) -> bool {
    line.strip_suffix(b"\r").unwrap_or(line).ends_with(b" HTTP/1.0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_http_is_told_by_its_request_line() {
        assert!(is_old(b"GET / HTTP/1.0\r"));
        assert!(!is_old(b"GET / HTTP/1.1\r"));
    }
}
