//! Netlink, as little as is needed: a socket, messages with attributes, answers and dumps.
//!
//! Blocking: every request is answered by the kernel before `send` returns, so there is nothing to wait for.

use std::io::{self, Read};

use socket2::{Domain, Protocol, Socket, Type};

/// `NLMSG_*` of `linux/netlink.h`.
const MESSAGE_ERROR: u16 = 2;
const MESSAGE_DONE: u16 = 3;
const HEADER: usize = 16;
const BUFFER: usize = 32 * 1024;

/// `NLM_F_*`.
pub(crate) mod flag {
    pub(crate) const REQUEST: u16 = 1;
    pub(crate) const ACK: u16 = 4;
    pub(crate) const DUMP: u16 = 0x300;
    pub(crate) const EXCLUSIVE: u16 = 0x200;
    pub(crate) const CREATE: u16 = 0x400;
}

/// A netlink protocol.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Family {
    /// `NETLINK_ROUTE`.
    Route = 0,
    /// `NETLINK_SOCK_DIAG`.
    SocketDiag = 4,
}

/// A netlink socket. It belongs to the network namespace in which it was opened, wherever it is used.
#[derive(Debug)]
pub(crate) struct NetlinkSocket {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl NetlinkSocket {
    /// Opens a socket in the calling thread's network namespace.
    pub(crate) fn open(family: Family) -> io::Result<Self> {
        let protocol = Protocol::from(family as i32);
        let socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(protocol))?;
        Ok(Self { socket, sequence: 0, buffer: vec![0; BUFFER] })
    }

    /// Sends a request and waits for its acknowledgement.
    pub(crate) fn request(&mut self, message: Message) -> io::Result<()> {
        self.exchange(message, flag::ACK, |_, _| {})
    }

    /// Sends a dump request; `each` gets type and body of every message.
    pub(crate) fn dump(&mut self, message: Message, each: impl FnMut(u16, &[u8])) -> io::Result<()> {
        self.exchange(message, flag::DUMP, each)
    }

    fn exchange(&mut self, message: Message, flags: u16, mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        self.socket.send(&message.finish(flags | flag::REQUEST, self.sequence))?;
        loop {
            let length = (&self.socket).read(&mut self.buffer)?;
            let mut rest = self.buffer.get(..length).unwrap_or_default();
            while let Some((header, body, next)) = split_message(rest) {
                rest = next;
                if header.sequence != self.sequence {
                    continue;
                }
                match header.kind {
                    MESSAGE_ERROR => return acknowledgement(body),
                    MESSAGE_DONE => return acknowledgement(body),
                    kind => each(kind, body),
                }
            }
        }
    }
}

struct Header {
    kind: u16,
    sequence: u32,
}

/// First message of a buffer: header, body, and what follows.
fn split_message(buffer: &[u8]) -> Option<(Header, &[u8], &[u8])> {
    let length = u32_at(buffer, 0)? as usize;
    let header = Header { kind: u16_at(buffer, 4)?, sequence: u32_at(buffer, 8)? };
    let body = buffer.get(HEADER..length)?;
    Some((header, body, buffer.get(align(length)..).unwrap_or_default()))
}

/// The error code at the start of `NLMSG_ERROR` and `NLMSG_DONE`: zero or a negative errno.
fn acknowledgement(body: &[u8]) -> io::Result<()> {
    match u32_at(body, 0).unwrap_or_default() as i32 {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error.wrapping_neg())),
    }
}

/// A message under construction.
#[derive(Debug)]
pub(crate) struct Message {
    bytes: Vec<u8>,
    flags: u16,
}

impl Message {
    /// Starts a message of a type, with the fixed structure that follows the header.
    pub(crate) fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(128);
        bytes.extend([0; 4]);
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(fixed);
        let mut message = Self { bytes, flags };
        message.pad();
        message
    }

    /// Appends an attribute.
    pub(crate) fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        let length = (4 + value.len()) as u16;
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.pad();
        self
    }

    /// Appends a number.
    pub(crate) fn number(self, kind: u16, value: u32) -> Self {
        self.attribute(kind, &value.to_ne_bytes())
    }

    fn pad(&mut self) {
        self.bytes.resize(align(self.bytes.len()), 0);
    }

    fn finish(mut self, flags: u16, sequence: u32) -> Vec<u8> {
        let length = self.bytes.len() as u32;
        self.put(0, &length.to_ne_bytes());
        let flags = self.flags | flags;
        self.put(6, &flags.to_ne_bytes());
        self.put(8, &sequence.to_ne_bytes());
        self.bytes
    }

    fn put(&mut self, at: usize, value: &[u8]) {
        if let Some(place) = self.bytes.get_mut(at..at + value.len()) {
            place.copy_from_slice(value);
        }
    }
}

/// Attributes that follow the fixed structure of a message.
pub(crate) fn attributes(body: &[u8], fixed: usize) -> impl Iterator<Item = (u16, &[u8])> {
    /// `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER`.
    const TYPE_FLAGS: u16 = 0xc000;
    let mut rest = body.get(align(fixed)..).unwrap_or_default();
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(rest, 0)?);
        let kind = u16_at(rest, 2)? & !TYPE_FLAGS;
        let value = rest.get(4..length)?;
        rest = rest.get(align(length)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// A number of two bytes in the host's order.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// A number of four bytes in the host's order.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// A number of eight bytes in the host's order.
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn align(length: usize) -> usize {
    length.next_multiple_of(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_carries_its_length_flags_and_padded_attributes() {
        let message = Message::new(32, flag::CREATE, &[1, 2, 3]).attribute(7, &[9]).number(8, 5);
        let bytes = message.finish(flag::REQUEST, 77);
        assert_eq!(u32_at(&bytes, 0), Some(bytes.len() as u32));
        assert_eq!(u16_at(&bytes, 6), Some(flag::CREATE | flag::REQUEST));
        let (header, body, rest) = split_message(&bytes).unwrap();
        assert_eq!((header.kind, header.sequence, rest.len()), (32, 77, 0));
        let found: Vec<_> = attributes(body, 3).collect();
        assert_eq!(found, [(7, &[9_u8][..]), (8, &5_u32.to_ne_bytes()[..])]);
    }

    #[test]
    fn truncated_input_ends_instead_of_panicking() {
        let bytes = Message::new(1, 0, &[0; 8]).number(1, 1).finish(0, 1);
        for length in 0..bytes.len() {
            assert!(split_message(&bytes[..length]).is_none(), "{length}");
            let _ = attributes(&bytes[..length], 8).count();
        }
    }

    #[test]
    fn errors_of_the_kernel_become_errors_of_io() {
        let error = acknowledgement(&(-17_i32).to_ne_bytes()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert!(acknowledgement(&0_i32.to_ne_bytes()).is_ok());
    }
}
