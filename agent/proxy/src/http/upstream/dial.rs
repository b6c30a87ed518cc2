//! Opens what HTTP is spoken on: a socket or a stream of a tunnel.

use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use weft_core::Identity;
use weft_core::resource::destination_rule::TcpKeepalive;
use weft_core::snapshot::Workload;

use super::super::sendable::Sendable;
use super::super::stream::TunnelIo;
use super::origination::Tls;
use crate::account::{Facts, Failure, Route, Side};
use crate::early::{How, Purpose, Upstream};
use crate::hbone::client::{self, TunnelStream};
use crate::hbone::pool;
use crate::labels::Service;
use crate::net;
use crate::outbound::Setback;
use crate::pod::Pod;
use crate::ports::Lease;
use crate::worker::Worker;

/// How an endpoint is reached.
#[derive(Debug, Clone)]
pub(super) enum Way {
    /// Plain TCP from the client's pod.
    Plaintext,
    /// TLS of the client's own.
    Tls(Tls),
    /// A stream of a tunnel to this pod.
    Hbone(Arc<Workload>),
    /// An application of this node, in the name of a client; says whether that is the pod itself.
    Onward(IpAddr, bool),
}

impl Way {
    /// Whether connections of one serve for the other: what was verified must be the same.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Plaintext, Self::Plaintext) => true,
            (Self::Hbone(one), Self::Hbone(other)) => one.identity == other.identity,
            (Self::Onward(one, own), Self::Onward(other, others_own)) => (one, own) == (other, others_own),
            (Self::Tls(one), Self::Tls(other)) => one.is_same(other),
            (Self::Plaintext | Self::Tls(_) | Self::Hbone(_) | Self::Onward(..), _) => false,
        }
    }
}

/// Everything that a new connection depends on.
#[derive(Debug, Clone)]
pub(super) struct Dial {
    /// In whose namespace it is opened.
    pub(super) pod: Arc<Pod>,
    /// The client's workload; nobody's where an application is reached.
    pub(super) source: Option<Arc<Workload>>,
    /// The client, and what it dialled.
    pub(super) client: (SocketAddr, SocketAddr),
    /// Where to.
    pub(super) endpoint: SocketAddr,
    /// How.
    pub(super) way: Way,
    /// For whom, where a Service was asked for.
    pub(super) service: Service,
    /// `connectTimeout`, where the policy has one.
    pub(super) limit: Option<Duration>,
    /// `tcpKeepalive`, where the policy has one.
    pub(super) keepalive: Option<TcpKeepalive>,
}

impl Dial {
    /// In whose name a tunnel is opened.
    pub(super) fn identity(&self) -> Option<&Arc<Identity>> {
        self.source.as_ref().map(|source| &source.identity)
    }

    /// What a connection that is open already must be good for; `None` where there is none such.
    fn purpose(&self) -> Option<Purpose> {
        let how = match &self.way {
            Way::Plaintext => How::Plain,
            Way::Onward(client, _) => How::Onward(*client),
            Way::Hbone(destination) => How::Tunnel(self.identity()?.clone(), destination.identity.clone()),
            Way::Tls(_) => return None,
        };
        Some(Purpose { pod: self.pod.key.clone(), endpoint: self.endpoint, how })
    }
}

/// A connection, and what it occupies until it is closed.
pub(super) struct Opened {
    /// The connection.
    pub(super) wire: Wire,
    /// Our address on it; a tunnel's is that on the connection to its peer, which is what Envoy sees of its own.
    pub(super) local: Option<SocketAddr>,
    /// What it occupies.
    pub(super) held: Held,
    /// Told when the connection is closed, whoever has it then.
    pub(super) closed: oneshot::Receiver<()>,
}

impl Opened {
    fn of((transport, held): (Transport, Held)) -> Self {
        let (alive, closed) = oneshot::channel();
        let local = match &transport {
            Transport::Tcp(stream) => stream.local_addr().ok(),
            Transport::Tls(stream) => stream.get_ref().0.local_addr().ok(),
            Transport::Tunnel(_) => held.tunnel().and_then(|tunnel| tunnel.local()),
        };
        Self { wire: Wire { transport, _alive: alive }, local, held, closed }
    }
}

/// What a connection occupies.
pub(super) enum Held {
    /// A port.
    Port(#[expect(dead_code, reason = "held until it is dropped")] Lease),
    /// A place in a tunnel.
    Place(pool::Permit),
}

impl Held {
    /// The tunnel.
    pub(super) fn tunnel(&self) -> Option<Rc<pool::Usage>> {
        match self {
            Self::Port(_) => None,
            Self::Place(permit) => Some(permit.tunnel()),
        }
    }
}

/// Opens a connection.
pub(super) async fn open(worker: &Rc<Worker>, dial: &Dial) -> Result<Opened, Failure> {
    let limit = dial.limit.unwrap_or(worker.shared.config.connect_timeout);
    let failed = |error: &dyn std::fmt::Display| {
        Failure::new("UF", "connect", format!("{} cannot be reached: {error}", dial.endpoint))
    };
    if let Some(opened) = dial.purpose().and_then(|purpose| worker.early.take(&purpose)) {
        opened.keep_alive(dial.keepalive);
        return Ok(Opened::of(match opened {
            Upstream::Socket(dialled) => (Transport::Tcp(dialled.stream), Held::Port(dialled.lease)),
            Upstream::Tunnel(tunnel, permit) => {
                (Transport::Tunnel(Sendable::new(tunnel)), Held::Place(permit))
            }
            Upstream::Secured(stream, _, lease) => (Transport::Tls(stream), Held::Port(lease)),
        }));
    }
    let opened = match &dial.way {
        Way::Plaintext => {
            let dialled = net::dial(&dial.pod, dial.endpoint, net::Purpose::Plain, limit).await;
            let dialled = dialled.map_err(|error| failed(&error))?;
            net::keep_alive(&dialled.stream, dial.keepalive);
            (Transport::Tcp(dialled.stream), Held::Port(dialled.lease))
        }
        Way::Tls(tls) => {
            let dialled = net::dial(&dial.pod, dial.endpoint, net::Purpose::Plain, limit).await;
            let dialled = dialled.map_err(|error| failed(&error))?;
            net::keep_alive(&dialled.stream, dial.keepalive);
            let limit = dial.limit.unwrap_or(worker.shared.config.handshake_timeout);
            let stream = tls.begin(dialled.stream, dial.endpoint, limit).await?;
            (Transport::Tls(stream), Held::Port(dialled.lease))
        }
        Way::Onward(client, own) => {
            let kernel = &*worker.shared.kernel;
            let dialled = net::onward(&dial.pod, kernel, (*client, *own), dial.endpoint, limit).await;
            let dialled = dialled.map_err(|error| failed(&error))?;
            (Transport::Tcp(dialled.stream), Held::Port(dialled.lease))
        }
        Way::Hbone(destination) => {
            let tunnel = tunnel(worker, dial, destination);
            let TunnelStream { stream, permit } = match dial.limit {
                // A tunnel's own steps have limits; the policy's is for all of them.
                Some(limit) => timeout(limit, tunnel)
                    .await
                    .map_err(|_| failed(&format!("no answer within {} ms", limit.as_millis())))??,
                None => tunnel.await?,
            };
            (Transport::Tunnel(Sendable::new(TunnelIo::new(stream))), Held::Place(permit))
        }
    };
    Ok(Opened::of(opened))
}

async fn tunnel(
    worker: &Rc<Worker>,
    dial: &Dial,
    destination: &Arc<Workload>,
) -> Result<TunnelStream, Failure> {
    let source = dial
        .source
        .as_ref()
        .ok_or_else(|| Failure::new("UF", "connect", "a tunnel is only opened in the name of a client"))?;
    let (client, addressed) = dial.client;
    let mut facts = Facts::new(Side::Source, Route::Hbone, client, addressed);
    facts.ends.service = dial.service.clone();
    let opened = client::open(worker, &dial.pod, source, destination, (dial.endpoint, &facts)).await;
    opened.map_err(|setback| match setback {
        Setback::Endpoint(failure) | Setback::Final(failure) => failure,
    })
}

/// What HTTP is read from and written to.
pub(super) struct Wire {
    transport: Transport,
    /// Dropped with the connection, which may outlive its driver: an upgraded one belongs to somebody else.
    _alive: oneshot::Sender<()>,
}

enum Transport {
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    Tunnel(Sendable),
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().transport {
            Transport::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Transport::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
            Transport::Tunnel(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().transport {
            Transport::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Transport::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
            Transport::Tunnel(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().transport {
            Transport::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Transport::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Transport::Tunnel(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().transport {
            Transport::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Transport::Tls(stream) => Pin::new(stream).poll_flush(cx),
            Transport::Tunnel(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().transport {
            Transport::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Transport::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            Transport::Tunnel(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
