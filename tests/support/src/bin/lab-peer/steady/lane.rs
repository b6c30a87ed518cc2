//! One kind of arrivals, and the connections that serve them.

use std::collections::{HashMap, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::epoll;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::Tally;
use crate::client::now_ns;
use crate::dial::outcome_of;
use crate::latency::Arrivals;

/// An arrival that was not served within so long has failed.
const LIMIT: Duration = Duration::from_secs(10);
/// Connections for requests.
const KEPT: usize = 64;
/// Connections that are open at the same time: each has a port.
const OPEN: usize = 4096;
/// Arrivals that are served before answers are looked at: whoever only asks is never answered.
const BATCH: usize = 64;
/// Tokens of the poller: lane and connection.
const LANES: u64 = 2;

/// What an arrival wants.
#[derive(Debug)]
pub(super) enum What {
    /// One byte there and back over a connection of its own.
    Byte,
    /// This request over a connection that is kept, and an answer of 1 KiB.
    Request(String),
}

/// An arrival that is being served.
#[derive(Debug, Clone, Copy)]
struct Ask {
    due: Instant,
    begun_ns: u64,
}

#[derive(Debug)]
struct Link {
    stream: TcpStream,
    /// What it waits for; none while it is kept for the next.
    ask: Option<Ask>,
    is_sent: bool,
    received: Vec<u8>,
}

/// What a connection has come to.
enum Step {
    Waiting,
    /// `true` when it serves others.
    Done(bool),
    /// It ended without anybody waiting for it.
    Gone,
    Failed(String),
}

/// A kind of arrivals.
pub(super) struct Lane {
    pub(super) what: What,
    address: SocketAddr,
    arrivals: Arrivals,
    waiting: VecDeque<Instant>,
    links: HashMap<u64, Link>,
    idle: Vec<u64>,
    next_id: u64,
    pub(super) tally: Tally,
}

/// Connection and lane of a token.
pub(super) fn of_token(token: u64) -> (u64, usize) {
    (token / LANES, usize::from(token % LANES == 1))
}

impl Lane {
    pub(super) fn new(what: What, address: SocketAddr, arrivals: Arrivals) -> Self {
        Self {
            what,
            address,
            arrivals,
            waiting: VecDeque::new(),
            links: HashMap::new(),
            idle: Vec::new(),
            next_id: 0,
            tally: Tally::default(),
        }
    }

    /// When the next arrival is due.
    pub(super) fn next(&self) -> Option<Instant> {
        if self.waiting.is_empty() || self.is_full() { self.arrivals.next() } else { Some(Instant::now()) }
    }

    fn is_full(&self) -> bool {
        let most = match self.what {
            What::Byte => OPEN,
            What::Request(_) => KEPT,
        };
        self.idle.is_empty() && self.links.len() >= most
    }

    /// Whether nobody waits.
    pub(super) fn is_quiet(&self) -> bool {
        self.waiting.is_empty() && self.links.values().all(|link| link.ask.is_none())
    }

    /// Serves what is due by now; nothing new arrives when it is not `open`.
    pub(super) fn arrive(&mut self, now: Instant, open: bool, poller: &OwnedFd, lane: u64) -> Result<()> {
        if open {
            self.arrivals.due(now, 0, &mut self.waiting);
        }
        for _ in 0..BATCH {
            let Some(due) = self.waiting.front().copied() else { break };
            let ask = Ask { due, begun_ns: now_ns() };
            if !self.reuse(ask) {
                if self.is_full() {
                    break;
                }
                self.open(ask, poller, lane)?;
            }
            self.waiting.pop_front();
        }
        Ok(())
    }

    /// Serves it by a connection that is kept; false when there is none.
    fn reuse(&mut self, ask: Ask) -> bool {
        while let Some(id) = self.idle.pop() {
            let Some(link) = self.links.get_mut(&id) else { continue };
            // A peer that has ended it meanwhile was not told of this arrival.
            if !matches!(link.read(&self.what), Step::Waiting) {
                self.links.remove(&id);
                continue;
            }
            link.ask = Some(ask);
            link.is_sent = false;
            self.ready(id, epoll::EventFlags::OUT);
            return true;
        }
        false
    }

    fn open(&mut self, ask: Ask, poller: &OwnedFd, lane: u64) -> Result<()> {
        let stream = match begin(self.address) {
            Ok(stream) => stream,
            Err(error) => {
                self.tally.failed(outcome_of(&error).to_owned(), ask.begun_ns);
                return Ok(());
            }
        };
        let id = self.next_id;
        self.next_id += 1;
        let (data, flags) = (
            epoll::EventData::new_u64(id * LANES + lane),
            epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET,
        );
        epoll::add(poller, &stream, data, flags).context("the poller takes no more connections")?;
        self.links.insert(id, Link { stream, ask: Some(ask), is_sent: false, received: Vec::new() });
        Ok(())
    }

    /// Something happened to a connection.
    pub(super) fn ready(&mut self, id: u64, flags: epoll::EventFlags) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let ask = link.ask;
        match (link.advance(&self.what, flags), ask) {
            (Step::Waiting, _) => {}
            (Step::Done(is_kept), Some(ask)) => {
                self.tally.done(ask.due.elapsed(), ask.begun_ns);
                link.ask = None;
                link.received.clear();
                if is_kept {
                    self.idle.push(id);
                } else {
                    self.links.remove(&id);
                }
            }
            (Step::Failed(outcome), Some(ask)) => {
                self.tally.failed(outcome, ask.begun_ns);
                self.links.remove(&id);
            }
            (Step::Gone | Step::Done(_) | Step::Failed(_), _) => {
                self.links.remove(&id);
            }
        }
    }

    /// Gives up what has waited for too long.
    pub(super) fn sweep(&mut self, now: Instant) {
        let is_late = |ask: &Ask| now.saturating_duration_since(ask.due) > LIMIT;
        let tally = &mut self.tally;
        self.links.retain(|_, link| match link.ask.filter(is_late) {
            Some(ask) => {
                tally.failed("timeout".to_owned(), ask.begun_ns);
                false
            }
            None => true,
        });
        while self.waiting.front().is_some_and(|due| now.saturating_duration_since(*due) > LIMIT) {
            self.waiting.pop_front();
            tally.failed("never begun".to_owned(), now_ns());
        }
    }
}

/// A connection that is being made.
fn begin(address: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    match socket.connect(&SockAddr::from(address)) {
        Ok(()) => {}
        Err(e) if e.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {}
        Err(e) => return Err(e),
    }
    Ok(socket.into())
}

impl Link {
    fn advance(&mut self, what: &What, flags: epoll::EventFlags) -> Step {
        let has_ended = flags.intersects(epoll::EventFlags::ERR | epoll::EventFlags::HUP);
        if self.ask.is_some() && !self.is_sent && (has_ended || flags.contains(epoll::EventFlags::OUT)) {
            let bytes = match what {
                What::Byte => b"b".as_slice(),
                What::Request(text) => text.as_bytes(),
            };
            match self.stream.write(bytes) {
                Ok(written) if written == bytes.len() => self.is_sent = true,
                Ok(_) => return Step::Failed("half of it was sent".to_owned()),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Step::Waiting,
                Err(e) => return Step::Failed(outcome_of(&e).to_owned()),
            }
        }
        self.read(what)
    }

    /// Takes what has come.
    fn read(&mut self, what: &What) -> Step {
        let mut buffer = [0; 16 * 1024];
        loop {
            let failure = match self.stream.read(&mut buffer) {
                Ok(0) => "closed".to_owned(),
                Ok(read) => {
                    self.received.extend_from_slice(buffer.get(..read).unwrap_or_default());
                    match verdict(what, &self.received) {
                        Step::Waiting => continue,
                        step @ (Step::Done(_) | Step::Gone | Step::Failed(_)) => return step,
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Step::Waiting,
                Err(e) => outcome_of(&e).to_owned(),
            };
            return if self.ask.is_some() { Step::Failed(failure) } else { Step::Gone };
        }
    }
}

/// Whether what has come is all.
fn verdict(what: &What, received: &[u8]) -> Step {
    let What::Request(_) = what else { return Step::Done(false) };
    let Some(end) = received.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Step::Waiting;
    };
    let head = String::from_utf8_lossy(received.get(..end).unwrap_or_default()).to_ascii_lowercase();
    if !head.starts_with("http/1.1 200 ") {
        let status = head.split(' ').nth(1).unwrap_or("none");
        return Step::Failed(format!("status {status}"));
    }
    if received.len() < end + 4 + 1024 {
        return Step::Waiting;
    }
    Step::Done(!head.contains("\r\nconnection: close"))
}
