//! Opening connections in the ways that tests ask for.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

#[derive(Debug, Clone, Args)]
pub(crate) struct DialArgs {
    /// `ADDRESS:PORT`.
    pub(crate) address: SocketAddr,
    /// Give up after so many milliseconds, for each step.
    #[arg(long, default_value_t = 5000)]
    pub(crate) timeout_ms: u64,
    /// SO_MARK of the socket.
    #[arg(long)]
    mark: Option<u32>,
    /// Local address; without `--spoof` it must be one of the namespace's own.
    #[arg(long)]
    bind: Option<IpAddr>,
    /// Local port.
    #[arg(long, default_value_t = 0)]
    bind_port: u16,
    /// Allow a local address that is not ours (IP_TRANSPARENT; needs CAP_NET_RAW).
    #[arg(long)]
    spoof: bool,
    /// Bind to a device.
    #[arg(long)]
    device: Option<String>,
    /// Dial an IPv4 address through an IPv6 socket (`::ffff:a.b.c.d`).
    #[arg(long)]
    mapped: bool,
}

impl DialArgs {
    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }

    /// Connects, with the time-out set for reading and writing too.
    pub(crate) fn dial(&self) -> io::Result<TcpStream> {
        let target = self.target();
        let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))?;
        self.prepare(&socket, target)?;
        socket.connect_timeout(&SockAddr::from(target), self.timeout())?;
        let stream = TcpStream::from(socket);
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(self.timeout()))?;
        stream.set_write_timeout(Some(self.timeout()))?;
        Ok(stream)
    }

    fn target(&self) -> SocketAddr {
        match (self.mapped, self.address.ip()) {
            (true, IpAddr::V4(v4)) => SocketAddr::new(IpAddr::V6(v4.to_ipv6_mapped()), self.address.port()),
            (_, _) => self.address,
        }
    }

    fn prepare(&self, socket: &Socket, target: SocketAddr) -> io::Result<()> {
        if let Some(mark) = self.mark {
            socket.set_mark(mark)?;
        }
        if let Some(device) = &self.device {
            socket.bind_device(Some(device.as_bytes()))?;
        }
        if self.spoof {
            match target {
                SocketAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
                SocketAddr::V6(_) => socket.set_ip_transparent_v6(true)?,
            }
        }
        match (self.bind, self.bind_port) {
            (None, 0) => Ok(()),
            (None, port) => socket.bind(&SockAddr::from(SocketAddr::new(unspecified(target), port))),
            (Some(address), port) => socket.bind(&SockAddr::from(SocketAddr::new(address, port))),
        }
    }
}

fn unspecified(like: SocketAddr) -> IpAddr {
    match like {
        SocketAddr::V4(_) => IpAddr::from([0, 0, 0, 0]),
        SocketAddr::V6(_) => IpAddr::from([0; 16]),
    }
}

/// One word for what became of a connection.
pub(crate) fn outcome_of(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::ConnectionRefused => "refused",
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted => "reset",
        ErrorKind::TimedOut | ErrorKind::WouldBlock => "timeout",
        ErrorKind::PermissionDenied => "forbidden",
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => "unreachable",
        ErrorKind::UnexpectedEof => "closed",
        _ => "error",
    }
}

/// The congestion control of a socket, as the kernel tells it.
pub(crate) fn congestion_control(stream: &TcpStream) -> Result<String> {
    Ok(rustix::net::sockopt::tcp_congestion(stream)?)
}

/// The address without the wrapping of IPv4 in IPv6.
pub(crate) fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
