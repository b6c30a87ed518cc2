//! Sockets of a pod as `sock_diag` shows them: live byte counts, and their destruction.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use weft_ebpf_common::Tuple;
use weft_ebpf_common::classify::{is_v4, payload_received, payload_sent, tcp_state, to_octets};

use crate::maps::ip;
use crate::netlink::{Family, Message, NetlinkSocket, attributes, u32_at, u64_at};

/// `linux/sock_diag.h`, `linux/inet_diag.h`.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const INET_DIAG_INFO: u16 = 2;
const INET_DIAG_CGROUP_ID: u16 = 21;
const IPPROTO_TCP: u8 = 6;
const NO_COOKIE: u64 = u64::MAX;

/// States that the kernel programs do not deal with (`net/tcp_states.h`).
const SYN_SENT: u32 = 2;
const SYN_RECV: u32 = 3;
const LISTEN: u32 = 10;
/// `struct inet_diag_msg`: family and state, then `inet_diag_sockid` at 4, its cookie at 44.
const MESSAGE_LENGTH: usize = 72;
const STATE_AT: usize = 1;
const LOCAL_PORT_AT: usize = 4;
const REMOTE_PORT_AT: usize = 6;
const LOCAL_ADDRESS_AT: usize = 8;
const REMOTE_ADDRESS_AT: usize = 24;
const COOKIE_AT: usize = 44;
/// `struct tcp_info`.
const BYTES_ACKED_AT: usize = 120;
const BYTES_RECEIVED_AT: usize = 128;

/// Bytes of an open connection, seen from the end that opened it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Bytes {
    pub(crate) sent: u64,
    pub(crate) received: u64,
}

/// A TCP socket of a namespace. v4-mapped addresses are IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TcpSocket {
    pub(crate) listening: bool,
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    pub(crate) cookie: u64,
    /// cgroup of the process that made it; of an accepted socket that of its listener's. Unknown before the
    /// handshake is complete.
    pub(crate) cgroup: Option<u64>,
}

/// `sock_diag` of one network namespace.
#[derive(Debug)]
pub(crate) struct SocketDiag {
    socket: NetlinkSocket,
}

impl SocketDiag {
    /// Opens a socket in the calling thread's network namespace.
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self { socket: NetlinkSocket::open(Family::SocketDiag)? })
    }

    /// Byte counts of all TCP connections of the namespace, by socket cookie. About 6 µs per socket.
    pub(crate) fn bytes(&mut self) -> io::Result<HashMap<u64, Bytes>> {
        let mut found = HashMap::new();
        self.dump(INET_DIAG_INFO as u8, CONNECTED, |body| found.extend(parse(body)))?;
        Ok(found)
    }

    /// All TCP sockets of the namespace that listen, are connected, or are in a handshake.
    pub(crate) fn sockets(&mut self) -> io::Result<Vec<TcpSocket>> {
        let mut found = Vec::new();
        let states = CONNECTED | 1 << SYN_SENT | 1 << SYN_RECV | 1 << LISTEN;
        self.dump(0, states, |body| found.extend(parse_socket(body)))?;
        Ok(found)
    }

    fn dump(&mut self, extensions: u8, states: u32, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        for family in [libc::AF_INET, libc::AF_INET6] {
            let fixed = request(family as u8, extensions, states, &[0; SOCKET_ID]);
            let message = Message::new(SOCK_DIAG_BY_FAMILY, 0, &fixed);
            let dumped = self.socket.dump(message, |kind, body| {
                if kind == SOCK_DIAG_BY_FAMILY {
                    each(body);
                }
            });
            match dumped {
                // A kernel without IPv6 knows no such family.
                Err(error) if family == libc::AF_INET6 && error.raw_os_error() == Some(libc::ENOENT) => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// Destroys the connection: its owner sees an error, the peer a reset. False when it has gone already, or
    /// when the socket with this tuple is another one.
    pub(crate) fn destroy(&mut self, tuple: &Tuple, cookie: u64) -> io::Result<bool> {
        let v4 = is_v4(&tuple.source);
        let family = if v4 { libc::AF_INET } else { libc::AF_INET6 };
        let message =
            Message::new(SOCK_DESTROY, 0, &request(family as u8, 0, CONNECTED, &socket_id(tuple, cookie)));
        match self.socket.request(message) {
            Ok(()) => Ok(true),
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESTALE)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether the kernel can destroy sockets (`CONFIG_INET_DIAG_DESTROY`): asks it to destroy one that cannot
    /// exist.
    pub(crate) fn can_destroy(&mut self) -> io::Result<bool> {
        let nowhere = Tuple { source: crate::maps::addr(IpAddr::from([127, 0, 0, 1])), ..Tuple::default() };
        match self.destroy(&nowhere, NO_COOKIE - 1) {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Length of `struct inet_diag_sockid`.
const SOCKET_ID: usize = 48;

/// States of sockets that have a peer, as a mask.
const CONNECTED: u32 = 1 << tcp_state::ESTABLISHED
    | 1 << tcp_state::FIN_WAIT1
    | 1 << tcp_state::FIN_WAIT2
    | 1 << tcp_state::CLOSE_WAIT
    | 1 << tcp_state::LAST_ACK
    | 1 << tcp_state::CLOSING;

/// `struct inet_diag_req_v2` for TCP.
fn request(family: u8, extensions: u8, states: u32, id: &[u8; SOCKET_ID]) -> Vec<u8> {
    let mut request = vec![family, IPPROTO_TCP, extensions, 0];
    request.extend(states.to_ne_bytes());
    request.extend(id);
    request
}

fn socket_id(tuple: &Tuple, cookie: u64) -> [u8; SOCKET_ID] {
    let mut id = Vec::with_capacity(SOCKET_ID);
    id.extend(tuple.source_port.to_be_bytes());
    id.extend(tuple.destination_port.to_be_bytes());
    for addr in [tuple.source, tuple.destination] {
        match ip(addr) {
            IpAddr::V4(v4) => {
                id.extend(v4.octets());
                id.extend([0; 12]);
            }
            IpAddr::V6(_) => id.extend(to_octets(addr)),
        }
    }
    id.extend([0; 4]);
    id.extend((cookie as u32).to_ne_bytes());
    id.extend(((cookie >> 32) as u32).to_ne_bytes());
    id.try_into().unwrap_or([0; SOCKET_ID])
}

fn cookie_of(body: &[u8]) -> Option<u64> {
    let (low, high) = (u32_at(body, COOKIE_AT)?, u32_at(body, COOKIE_AT + 4)?);
    Some(u64::from(high) << 32 | u64::from(low))
}

fn parse_socket(body: &[u8]) -> Option<TcpSocket> {
    let octets = |at: usize| <[u8; 16]>::try_from(body.get(at..at + 16)?).ok();
    let address = |at: usize| match i32::from(*body.first()?) {
        libc::AF_INET => <[u8; 4]>::try_from(body.get(at..at + 4)?).ok().map(|v4| Ipv4Addr::from(v4).into()),
        _ => octets(at).map(|v6| Ipv6Addr::from(v6).to_canonical()),
    };
    let port = |at: usize| Some(u16::from_be_bytes(body.get(at..at + 2)?.try_into().ok()?));
    let cgroup = attributes(body, MESSAGE_LENGTH).find(|(kind, _)| *kind == INET_DIAG_CGROUP_ID);
    Some(TcpSocket {
        listening: u32::from(*body.get(STATE_AT)?) == LISTEN,
        local: SocketAddr::new(address(LOCAL_ADDRESS_AT)?, port(LOCAL_PORT_AT)?),
        remote: SocketAddr::new(address(REMOTE_ADDRESS_AT)?, port(REMOTE_PORT_AT)?),
        cookie: cookie_of(body)?,
        cgroup: cgroup.and_then(|(_, id)| u64_at(id, 0)),
    })
}

fn parse(body: &[u8]) -> Option<(u64, Bytes)> {
    let state = u32::from(*body.get(STATE_AT)?);
    let (_, info) = attributes(body, MESSAGE_LENGTH).find(|(kind, _)| *kind == INET_DIAG_INFO)?;
    let (acked, received) = (u64_at(info, BYTES_ACKED_AT)?, u64_at(info, BYTES_RECEIVED_AT)?);
    // A live socket in LAST_ACK or CLOSING waits for the acknowledgement of its FIN.
    let sent_state = match state {
        tcp_state::LAST_ACK | tcp_state::CLOSING => tcp_state::ESTABLISHED,
        other => other,
    };
    let bytes = Bytes {
        sent: payload_sent(acked, sent_state),
        // In FIN-WAIT-2 the peer's FIN has not come yet: with it the socket would have been closed.
        received: payload_received(received, state, received as u32),
    };
    Some((cookie_of(body)?, bytes))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::os::fd::AsFd;

    use super::*;
    use crate::maps::tuple;

    fn pair(listen: &str) -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind(listen).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    fn addresses(stream: &TcpStream) -> (SocketAddr, SocketAddr) {
        (stream.local_addr().unwrap(), stream.peer_addr().unwrap())
    }

    #[test]
    fn bytes_of_an_open_connection_are_exact() {
        for listen in ["127.0.0.1:0", "[::1]:0"] {
            let (mut client, mut server) = pair(listen);
            client.write_all(&[1; 1000]).unwrap();
            std::io::Read::read_exact(&mut server, &mut [0; 1000]).unwrap();
            server.write_all(&[2; 300]).unwrap();
            std::io::Read::read_exact(&mut client, &mut [0; 300]).unwrap();
            let cookie = rustix::net::sockopt::socket_cookie(client.as_fd()).unwrap();
            let bytes = SocketDiag::open().unwrap().bytes().unwrap();
            assert_eq!(bytes.get(&cookie), Some(&Bytes { sent: 1000, received: 300 }), "{listen}");
        }
    }

    #[test]
    fn sockets_are_listed_with_both_ends_and_their_cgroup() {
        for listen in ["127.0.0.1:0", "[::1]:0"] {
            let (client, server) = pair(listen);
            let sockets = SocketDiag::open().unwrap().sockets().unwrap();
            let (local, remote) = addresses(&server);
            let found =
                sockets.iter().find(|socket| (socket.local, socket.remote) == (local, remote)).unwrap();
            assert_eq!(
                found.cookie,
                rustix::net::sockopt::socket_cookie(server.as_fd()).unwrap(),
                "{listen}"
            );
            let other = sockets.iter().find(|socket| socket.local == addresses(&client).0).unwrap();
            assert!(found.cgroup.is_some());
            assert_eq!(found.cgroup, other.cgroup);
        }
    }

    #[test]
    fn destroys_only_the_socket_with_this_cookie() {
        let (client, _server) = pair("127.0.0.1:0");
        let (local, peer) = addresses(&client);
        let cookie = rustix::net::sockopt::socket_cookie(client.as_fd()).unwrap();
        let mut diag = SocketDiag::open().unwrap();
        assert!(!diag.destroy(&tuple(local, peer), cookie + 1_000_000).unwrap());
        assert!(client.take_error().unwrap().is_none());
        assert!(diag.destroy(&tuple(local, peer), cookie).unwrap());
        assert!(client.take_error().unwrap().is_some());
        assert!(!diag.destroy(&tuple(local, peer), cookie).unwrap(), "gone");
    }

    #[test]
    fn this_kernel_can_destroy() {
        assert!(SocketDiag::open().unwrap().can_destroy().unwrap());
    }
}
