//! TCP by hand, as a process with `CAP_NET_RAW` can speak it: no `connect()` that a hook could see.

use std::io::{self, ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use super::orders::{Answer, End};

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;
/// Without options.
const HEADER: usize = 20;
/// Where our side begins to count.
const FIRST: u32 = 1_000;
/// By this packets of ours are told from what the kernel sends by itself.
const HOPS: u32 = 77;
/// `ENOBUFS`.
const NO_BUFFERS: i32 = 105;
/// Longest wait for one segment.
const TURN: Duration = Duration::from_millis(200);

/// The two ends of a connection, ours first.
#[derive(Debug, Clone, Copy)]
struct Ends {
    source: SocketAddr,
    to: SocketAddr,
}

/// A segment of the peer.
#[derive(Debug)]
struct Segment {
    flags: u8,
    sequence: u32,
    payload: Vec<u8>,
}

/// Opens a connection by hand, collects what the server says up to the end of a line, and resets it.
pub(super) fn handshake(
    source: SocketAddr,
    to: SocketAddr,
    mark: Option<u32>,
    wait_ms: u64,
) -> io::Result<Answer> {
    let ends = Ends { source, to };
    let socket = open(ends, mark)?;
    let until = Instant::now() + Duration::from_millis(wait_ms);
    send(&socket, ends, (SYN, FIRST, 0))?;
    let Some(answer) = receive(&socket, ends, until)? else { return Ok(received(Vec::new(), End::Silence)) };
    if answer.flags & (SYN | RST) != SYN {
        return Ok(received(Vec::new(), End::Reset));
    }
    let next = answer.sequence.wrapping_add(1);
    send(&socket, ends, (ACK, FIRST + 1, next))?;
    let (bytes, end, next) = first_line(&socket, ends, (next, until))?;
    send(&socket, ends, (RST | ACK, FIRST + 1, next))?;
    Ok(received(bytes, end))
}

/// What the server says first, how that ended, and what would be next.
fn first_line(
    socket: &Socket,
    ends: Ends,
    (mut next, until): (u32, Instant),
) -> io::Result<(Vec<u8>, End, u32)> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\n") {
        let Some(segment) = receive(socket, ends, until)? else { return Ok((bytes, End::Silence, next)) };
        if segment.flags & RST != 0 {
            return Ok((bytes, End::Reset, next));
        }
        if segment.sequence == next && segment.flags & SYN == 0 {
            next = next.wrapping_add(u32::try_from(segment.payload.len()).unwrap_or(0));
            bytes.extend_from_slice(&segment.payload);
            send(socket, ends, (ACK, FIRST + 1, next))?;
            if segment.flags & FIN != 0 {
                return Ok((bytes, End::Eof, next));
            }
        }
    }
    Ok((bytes, End::Enough, next))
}

/// Sends the first segment of so many connections, each from another address that is nobody's.
pub(super) fn flood(to: SocketAddr, count: u32) -> io::Result<Answer> {
    for number in 0..count {
        let [_, a, b, c] = number.to_be_bytes();
        let ip: IpAddr = match to {
            SocketAddr::V4(_) => Ipv4Addr::new(198, 18 + (a & 1), b, c).into(),
            SocketAddr::V6(_) => {
                Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, u16::from(a), u16::from_be_bytes([b, c])).into()
            }
        };
        let ends = Ends { source: SocketAddr::new(ip, 40_000), to };
        match send(&open(ends, None)?, ends, (SYN, FIRST, 0)) {
            // The link's queue is full: as good as sent.
            Err(error) if error.raw_os_error() == Some(NO_BUFFERS) => {}
            other => other?,
        }
    }
    Ok(Answer::Count(u64::from(count)))
}

fn received(bytes: Vec<u8>, end: End) -> Answer {
    Answer::Received { bytes, end }
}

/// A raw socket that sees only what is between both addresses. Its source may be foreign.
fn open(ends: Ends, mark: Option<u32>) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(ends.to), Type::RAW, Some(Protocol::TCP))?;
    match ends.source {
        SocketAddr::V4(_) => {
            socket.set_ip_transparent_v4(true)?;
            socket.set_ttl_v4(HOPS)?;
        }
        SocketAddr::V6(_) => {
            socket.set_ip_transparent_v6(true)?;
            socket.set_unicast_hops_v6(HOPS)?;
        }
    }
    if let Some(mark) = mark {
        socket.set_mark(mark)?;
    }
    socket.bind(&SocketAddr::new(ends.source.ip(), 0).into())?;
    socket.connect(&SocketAddr::new(ends.to.ip(), 0).into())?;
    socket.set_read_timeout(Some(TURN))?;
    Ok(socket)
}

fn send(socket: &Socket, ends: Ends, (flags, sequence, acknowledged): (u8, u32, u32)) -> io::Result<()> {
    let mut segment = Vec::with_capacity(HEADER);
    segment.extend_from_slice(&ends.source.port().to_be_bytes());
    segment.extend_from_slice(&ends.to.port().to_be_bytes());
    segment.extend_from_slice(&sequence.to_be_bytes());
    segment.extend_from_slice(&acknowledged.to_be_bytes());
    // Five words of header, a window of all that fits, no checksum yet, nothing urgent.
    segment.extend_from_slice(&[5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
    let checksum = checksum(ends, &segment).to_be_bytes();
    for (place, byte) in segment.iter_mut().skip(16).zip(checksum) {
        *place = byte;
    }
    socket.send(&segment).map(drop)
}

/// RFC 9293, 3.1: over a pseudo header and the segment, whose length is even.
fn checksum(ends: Ends, segment: &[u8]) -> u16 {
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let length = u16::try_from(segment.len()).unwrap_or(u16::MAX).to_be_bytes();
    let pseudo = [octets(ends.source.ip()), octets(ends.to.ip()), vec![0, 6], length.to_vec()].concat();
    let words = pseudo.chunks(2).chain(segment.chunks(2));
    let mut sum: u32 = words.map(|word| word.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(!sum & 0xffff).unwrap_or(0)
}

/// The next segment of this connection; `None` when none comes in time.
fn receive(mut socket: &Socket, ends: Ends, until: Instant) -> io::Result<Option<Segment>> {
    let mut buffer = [0; 4096];
    while Instant::now() < until {
        match socket.read(&mut buffer) {
            Ok(length) => {
                if let Some(segment) = parse(buffer.get(..length).unwrap_or_default(), ends) {
                    return Ok(Some(segment));
                }
            }
            // The last is an ICMP error about an earlier segment.
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::HostUnreachable
                ) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// A segment of this connection. Of IPv4 the header of the packet is before it, of IPv6 it is not.
fn parse(bytes: &[u8], ends: Ends) -> Option<Segment> {
    let start = match ends.to {
        SocketAddr::V4(_) => usize::from(bytes.first()? & 15) * 4,
        SocketAddr::V6(_) => 0,
    };
    let segment = bytes.get(start..)?;
    let number = |at: usize| Some(u16::from_be_bytes([*segment.get(at)?, *segment.get(at + 1)?]));
    if (number(0)?, number(2)?) != (ends.to.port(), ends.source.port()) {
        return None;
    }
    let sequence = u32::from(number(4)?) << 16 | u32::from(number(6)?);
    let payload = segment.get(usize::from(*segment.get(12)? >> 4) * 4..)?.to_vec();
    Some(Segment { flags: *segment.get(13)?, sequence, payload })
}
