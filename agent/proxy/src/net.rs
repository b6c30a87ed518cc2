//! All sockets that the proxy opens, and what every socket of it is set to.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::TcpStream;
use weft_core::resource::destination_rule;
use weft_ebpf_common::{CAPTURE_MARK, TUPLE_LIFETIME_NS};

use crate::pod::Pod;
use crate::ports::Lease;
use crate::worker::Kernel;

/// Quiet time before the first keep-alive probe, and between probes. As ztunnel's.
const KEEPALIVE: Duration = Duration::from_secs(180);
/// Probes before a peer counts as gone.
const KEEPALIVE_PROBES: u32 = 9;
/// How long a tunnel's bytes may stay unacknowledged. Tunnels are always read, so only a dead peer is silent.
///
/// Connections of applications have no such limit: Linux counts a closed window as silence, and a reader
/// may pause for as long as it likes.
const TUNNEL_USER_TIMEOUT: Duration = Duration::from_secs(30);
/// How often an onward connection is announced while it is being opened. The kernel honours an announcement for
/// [`TUPLE_LIFETIME_NS`]; a SYN that an application with a full queue lets us repeat later comes back to ourselves.
const ANNOUNCED_AGAIN: Duration = Duration::from_nanos(TUPLE_LIFETIME_NS / 3);
/// Ports that an onward connection tries when the kernel says that one is taken.
const PORT_ATTEMPTS: usize = 32;

/// Why a connection could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    /// A system call failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// No answer in time.
    #[error("no answer within {} s", .0.as_secs())]
    Timeout(Duration),
    /// Every port for onward connections from this client is in use.
    #[error("all ports from 2000 to 32767 for connections in the name of {0} are in use")]
    NoPort(IpAddr),
}

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> DialError {
    move |source| DialError::Io { what, source }
}

/// Sets what connections with somebody outside of the pod have. Accepted connections inherit it from their listener.
pub(crate) fn configure(socket: &impl AsFd) -> io::Result<()> {
    let socket = SockRef::from(socket);
    let keepalive =
        TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE).with_retries(KEEPALIVE_PROBES);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_nodelay(true)
}

/// Closes a connection so that the peer sees a reset.
pub(crate) fn reset(stream: TcpStream) {
    reset_when_closed(&stream);
    drop(stream);
}

/// Has the peer see a reset when the connection is closed.
pub(crate) fn reset_when_closed(stream: &TcpStream) {
    // Where setting the option fails the connection is gone already.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// What a connection that is being opened is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To an application or the outside, in the name of the pod.
    Plain,
    /// To the agent of another node.
    Tunnel,
}

/// Opens a connection from a pod's namespace; the kernel chooses address and port.
pub(crate) async fn dial(
    pod: &Pod,
    destination: SocketAddr,
    purpose: Purpose,
    limit: Duration,
) -> Result<Dialled, DialError> {
    let socket = socket_in(pod, destination)?;
    configure(&socket).map_err(failed("setting socket options"))?;
    if purpose == Purpose::Tunnel {
        socket.set_tcp_user_timeout(Some(TUNNEL_USER_TIMEOUT)).map_err(failed("setting TCP_USER_TIMEOUT"))?;
    }
    connect_ours(pod, socket, destination, limit).await
}

/// A connection that we opened, and its mark as ours.
#[derive(Debug)]
pub(crate) struct Dialled {
    /// The connection.
    pub(crate) stream: TcpStream,
    /// Occupies the source port. Drop after `stream`.
    pub(crate) lease: Lease,
}

/// Has the kernel probe an idle connection as a policy asks (D-12). What it refuses stays as it is.
pub(crate) fn keep_alive(stream: &TcpStream, asked: Option<destination_rule::TcpKeepalive>) {
    let Some(asked) = asked else { return };
    let mut settings = TcpKeepalive::new();
    if let Some(time) = asked.time {
        settings = settings.with_time(time);
    }
    if let Some(interval) = asked.interval {
        settings = settings.with_interval(interval);
    }
    if let Some(probes) = asked.probes {
        settings = settings.with_retries(probes);
    }
    if let Err(error) = SockRef::from(stream).set_tcp_keepalive(&settings) {
        tracing::debug!(%error, "tcpKeepalive is not what the policy asks for");
    }
}

/// Opens a connection to an application in its pod's namespace, in the name of `client`.
///
/// `own` says that `client` is one of the pod's own addresses: then a plain socket does.
pub(crate) async fn onward(
    pod: &Pod,
    kernel: &dyn Kernel,
    client: (IpAddr, bool),
    destination: SocketAddr,
    limit: Duration,
) -> Result<Dialled, DialError> {
    let (client, own) = client;
    if own {
        let socket = to_application(pod, destination)?;
        socket
            .bind(&SocketAddr::new(client, 0).into())
            .map_err(failed("binding to the pod's own address"))?;
        return connect_ours(pod, socket, destination, limit).await;
    }
    for _ in 0..PORT_ATTEMPTS {
        let lease = pod.ports.lease(client, destination).ok_or(DialError::NoPort(client))?;
        match onward_from(pod, kernel, SocketAddr::new(client, lease.port()), destination, limit).await {
            // The application listens on this port on all addresses, or a connection with this four-tuple
            // still exists, in TIME_WAIT or with an agent that was replaced: another port.
            Err(DialError::Io { source, .. })
                if matches!(source.kind(), io::ErrorKind::AddrNotAvailable | io::ErrorKind::AddrInUse) =>
            {
                pod.ports.leap(client);
            }
            other => return Ok(Dialled { stream: other?, lease }),
        }
    }
    Err(DialError::NoPort(client))
}

async fn onward_from(
    pod: &Pod,
    kernel: &dyn Kernel,
    source: SocketAddr,
    destination: SocketAddr,
    limit: Duration,
) -> Result<TcpStream, DialError> {
    let socket = transparent(pod, source)?;
    kernel.publish(source, destination).map_err(failed("announcing the connection to the kernel"))?;
    let _published = Published { kernel, source, destination };
    // Both ends are on this machine: the kernel has most often answered by now.
    let pending = start(&socket, destination)? && still_pending(&socket, destination)?;
    let announcing = async {
        loop {
            tokio::time::sleep(ANNOUNCED_AGAIN).await;
            // The first announcement succeeded; should this one fail, the connection does as well.
            let _ = kernel.publish(source, destination);
        }
    };
    tokio::select! {
        biased;
        connected = finish(socket, pending, limit) => connected,
        never = announcing => never,
    }
}

/// Takes an announcement back on every way out.
struct Published<'a> {
    kernel: &'a dyn Kernel,
    source: SocketAddr,
    destination: SocketAddr,
}

impl Drop for Published<'_> {
    fn drop(&mut self) {
        self.kernel.withdraw(self.source, self.destination);
    }
}

/// Whether the process, or the machine, has no descriptor left.
pub(crate) fn is_out_of_descriptors(error: Errno) -> bool {
    matches!(error, Errno::MFILE | Errno::NFILE)
}

/// A socket in the pod's namespace, not connected yet.
fn socket_in(pod: &Pod, destination: SocketAddr) -> Result<Socket, DialError> {
    let open =
        || Socket::new(Domain::for_address(destination), Type::STREAM.nonblocking(), Some(Protocol::TCP));
    let socket = pod
        .netns
        .run(open)
        .map_err(failed("entering the pod's network namespace"))?
        .inspect_err(|error| {
            // Accepting counts those that it refuses: of two that a connection needs, either may be the one too many.
            if Errno::from_io_error(error).is_some_and(is_out_of_descriptors) {
                pod.counters.no_descriptors.add();
            }
        })
        .map_err(failed("opening a socket"))?;
    Ok(socket)
}

/// A socket for a connection that stays in the pod. No keep-alive: both its ends are this kernel's, which knows.
fn to_application(pod: &Pod, destination: SocketAddr) -> Result<Socket, DialError> {
    let socket = socket_in(pod, destination)?;
    socket.set_tcp_nodelay(true).map_err(failed("setting socket options"))?;
    Ok(socket)
}

/// A socket bound to an address that is not the pod's, whose packets stay on `lo`.
fn transparent(pod: &Pod, source: SocketAddr) -> Result<Socket, DialError> {
    let socket = to_application(pod, source)?;
    let options = || {
        match source {
            SocketAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
            SocketAddr::V6(_) => socket.set_ip_transparent_v6(true)?,
        }
        socket.set_reuse_address(true)?;
        socket.set_mark(CAPTURE_MARK)?;
        socket.bind_device(Some(b"lo"))
    };
    options().map_err(failed("setting options for source preservation"))?;
    socket.bind(&source.into()).map_err(failed("binding to the client's address"))?;
    Ok(socket)
}

/// Connects a socket whose port the kernel chooses, and marks it as ours before the peer can have accepted.
async fn connect_ours(
    pod: &Pod,
    socket: Socket,
    destination: SocketAddr,
    limit: Duration,
) -> Result<Dialled, DialError> {
    let pending = start(&socket, destination)?;
    let local = socket.local_addr().map_err(failed("asking for the local address"))?;
    let local = local
        .as_socket()
        .ok_or(io::ErrorKind::Unsupported.into())
        .map_err(failed("reading the local address"))?;
    let lease = pod.ports.own(local, destination);
    Ok(Dialled { stream: finish(socket, pending, limit).await?, lease })
}

/// Begins to connect; answers whether that is still going on.
fn start(socket: &Socket, destination: SocketAddr) -> Result<bool, DialError> {
    match socket.connect(&destination.into()) {
        Ok(()) => Ok(false),
        Err(err) if Errno::from_io_error(&err) == Some(Errno::INPROGRESS) => Ok(true),
        Err(err) => Err(failed("connecting")(err)),
    }
}

/// Asks whether a connection that was begun is open: `connect` says so itself (connect(2), Linux).
fn still_pending(socket: &Socket, destination: SocketAddr) -> Result<bool, DialError> {
    match socket.connect(&destination.into()) {
        Ok(()) => Ok(false),
        Err(err) if Errno::from_io_error(&err) == Some(Errno::ALREADY) => Ok(true),
        Err(err) => Err(failed("connecting")(err)),
    }
}

async fn finish(socket: Socket, pending: bool, limit: Duration) -> Result<TcpStream, DialError> {
    let stream = TcpStream::from_std(socket.into()).map_err(failed("registering a socket"))?;
    if !pending {
        return Ok(stream);
    }
    match tokio::time::timeout(limit, stream.writable()).await {
        Err(_) => return Err(DialError::Timeout(limit)),
        Ok(ready) => ready.map_err(failed("connecting"))?,
    }
    match stream.take_error().map_err(failed("connecting"))? {
        Some(err) => Err(failed("connecting")(err)),
        None => Ok(stream),
    }
}

/// Turns `::ffff:a.b.c.d` into `a.b.c.d`.
pub(crate) fn unmapped(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// Shared so that a port lease can outlive the pod's entry.
pub(crate) type SharedPorts = Arc<crate::ports::Ports>;
