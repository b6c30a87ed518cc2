//! One thread that serves many connections: the servers whose speed is measured.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use anyhow::Result;
use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, epoll, poll};

use crate::dial::plain;

/// How a connection is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Service {
    /// Bytes are counted and thrown away; at the end of the stream the count is sent (8 bytes, big endian).
    Sink,
    /// What arrives is sent back at once; for messages that fit the socket's buffer.
    Small,
    /// HTTP/1.1 with keep-alive: 1 KiB for `/1k`, otherwise JSON that tells who asked.
    Http,
}

#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    received: u64,
    /// Bytes of an incomplete request.
    pending: Vec<u8>,
}

const LISTENER: u64 = 0;

/// Serves forever.
pub(crate) fn serve(listener: &TcpListener, service: Service) -> Result<()> {
    listener.set_nonblocking(true)?;
    let poller = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&poller, listener, epoll::EventData::new_u64(LISTENER), epoll::EventFlags::IN)?;
    let mut connections: HashMap<u64, Connection> = HashMap::new();
    let mut next = LISTENER + 1;
    let mut buffer = vec![0; 256 * 1024];
    let mut events = Vec::with_capacity(256);
    loop {
        match epoll::wait(&poller, spare_capacity(&mut events), None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        for event in events.drain(..) {
            let id = event.data.u64();
            if id == LISTENER {
                accept_all(listener, &poller, &mut connections, &mut next)?;
            } else if let Some(connection) = connections.get_mut(&id)
                && !connection.ready(service, &mut buffer)
            {
                connections.remove(&id);
            }
        }
    }
}

fn accept_all(
    listener: &TcpListener,
    poller: &impl std::os::fd::AsFd,
    connections: &mut HashMap<u64, Connection>,
    next: &mut u64,
) -> Result<()> {
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(true)?;
                stream.set_nodelay(true)?;
                epoll::add(poller, &stream, epoll::EventData::new_u64(*next), epoll::EventFlags::IN)?;
                connections.insert(*next, Connection { stream, received: 0, pending: Vec::new() });
                *next += 1;
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
            // The client has gone before we came to it.
            Err(e) if e.kind() == ErrorKind::ConnectionAborted => {}
            Err(e) => return Err(e.into()),
        }
    }
}

impl Connection {
    /// Reads once and answers; false when the connection is finished.
    fn ready(&mut self, service: Service, buffer: &mut [u8]) -> bool {
        let read = match self.stream.read(buffer) {
            Ok(read) => read,
            Err(e) => return matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
        };
        let bytes = buffer.get(..read).unwrap_or_default();
        self.received += u64::try_from(read).unwrap_or(u64::MAX);
        match service {
            Service::Sink if read == 0 => {
                let count = self.received.to_be_bytes();
                write_all(&mut self.stream, &count);
                false
            }
            Service::Sink => true,
            Service::Small | Service::Http if read == 0 => false,
            Service::Small => write_all(&mut self.stream, bytes),
            Service::Http => self.answer_requests(bytes),
        }
    }

    fn answer_requests(&mut self, bytes: &[u8]) -> bool {
        self.pending.extend_from_slice(bytes);
        while let Some(end) = self.pending.windows(4).position(|window| window == b"\r\n\r\n") {
            let head: Vec<u8> = self.pending.drain(..end + 4).collect();
            let response = respond(&self.stream, &head);
            if !write_all(&mut self.stream, &response) {
                return false;
            }
        }
        true
    }
}

fn respond(stream: &TcpStream, head: &[u8]) -> Vec<u8> {
    let body = if head.starts_with(b"GET /1k ") {
        "x".repeat(1024)
    } else {
        let peer = stream.peer_addr().map(|a| plain(a).to_string()).unwrap_or_default();
        let local = stream.local_addr().map(|a| plain(a).to_string()).unwrap_or_default();
        serde_json::json!({ "peer": peer, "local": local }).to_string()
    };
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// Writes everything, waiting for room for 5 s at most; false when that fails.
pub(crate) fn write_all(stream: &mut TcpStream, mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        match stream.write(bytes) {
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                let limit = Duration::from_secs(5).try_into().ok();
                let mut wanted = [PollFd::new(stream, PollFlags::OUT)];
                if !matches!(poll(&mut wanted, limit.as_ref()), Ok(1)) {
                    return false;
                }
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
    true
}
