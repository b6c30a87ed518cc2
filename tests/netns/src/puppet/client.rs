//! The clients of a puppet.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::orders::{Answer, Connect, End, Held};
use super::pattern::Pattern;

/// Longest silence on a connection before an exchange counts as failed.
const SILENCE: Duration = Duration::from_secs(30);
const PIECE: usize = 32 * 1024;

/// The connections of the puppet.
#[derive(Debug)]
pub(super) struct Clients {
    pub(super) sockets: HashMap<u64, TcpStream>,
    pub(super) held: Vec<TcpStream>,
    pub(super) next: u64,
}

impl Clients {
    fn get(&self, connection: u64) -> io::Result<&TcpStream> {
        self.sockets.get(&connection).ok_or_else(|| io::Error::other("there is no such connection"))
    }

    pub(super) fn connect(&mut self, how: &Connect) -> io::Result<Answer> {
        let stream = connect(how)?;
        let (local, remote) = (stream.local_addr()?, stream.peer_addr()?);
        self.next += 1;
        self.sockets.insert(self.next, stream);
        Ok(Answer::Connected { connection: self.next, local, remote })
    }

    pub(super) fn send(&self, connection: u64, bytes: &[u8]) -> io::Result<Answer> {
        let mut stream = self.get(connection)?;
        stream.set_write_timeout(Some(SILENCE))?;
        stream.write_all(bytes)?;
        Ok(Answer::Done)
    }

    pub(super) fn send_urgent(&self, connection: u64, byte: u8) -> io::Result<Answer> {
        SockRef::from(self.get(connection)?).send_out_of_band(&[byte])?;
        Ok(Answer::Done)
    }

    pub(super) fn stuff(&self, connection: u64) -> io::Result<Answer> {
        let mut stream = self.get(connection)?;
        stream.set_nonblocking(true)?;
        let pattern = Pattern::default();
        let mut sent = 0;
        let end = loop {
            match stream.write(pattern.at(sent, PIECE)) {
                Ok(length) => sent += length as u64,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break Ok(Answer::Count(sent)),
                Err(error) => break Err(error),
            }
        };
        stream.set_nonblocking(false)?;
        end
    }

    pub(super) fn receive(&self, connection: u64, at_least: usize, wait_ms: u64) -> io::Result<Answer> {
        let (bytes, end) = receive(self.get(connection)?, at_least, Duration::from_millis(wait_ms))?;
        Ok(Answer::Received { bytes, end })
    }

    pub(super) fn exchange(&self, connection: u64, length: u64) -> io::Result<Answer> {
        exchange(self.get(connection)?, length).map(Answer::Count)
    }

    pub(super) fn shutdown(&self, connection: u64) -> io::Result<Answer> {
        self.get(connection)?.shutdown(Shutdown::Write)?;
        Ok(Answer::Done)
    }

    pub(super) fn close(&mut self, connection: u64, abort: bool) -> io::Result<Answer> {
        if abort {
            SockRef::from(self.get(connection)?).set_linger(Some(Duration::ZERO))?;
        }
        self.sockets.remove(&connection);
        Ok(Answer::Done)
    }

    pub(super) fn options(&self, connection: u64) -> io::Result<Answer> {
        let socket = SockRef::from(self.get(connection)?);
        let device = socket.device()?.map(|name| String::from_utf8_lossy(&name).into_owned());
        Ok(Answer::Options { mark: socket.mark()?, device })
    }

    pub(super) fn hold(&mut self, to: SocketAddr, count: usize) -> Answer {
        let mut result = Held::default();
        for _ in 0..count {
            match connect(&Connect::to(to)).and_then(|stream| Ok((greeted_as(&stream)?, stream))) {
                Ok((seen, stream)) => {
                    result.judge(stream.local_addr().ok(), &seen);
                    self.held.push(stream);
                }
                Err(error) => result.fail(&error),
            }
        }
        Answer::Held(result)
    }

    pub(super) fn held_alive(&self) -> Answer {
        let mut result = Held::default();
        for mut stream in &self.held {
            let mut byte = [0];
            let read = stream.set_read_timeout(Some(SILENCE)).and_then(|()| stream.read_exact(&mut byte));
            match read {
                Ok(()) => result.good += 1,
                Err(error) => result.fail(&error),
            }
        }
        Answer::Held(result)
    }
}

impl Held {
    fn fail(&mut self, error: &io::Error) {
        self.failed += 1;
        let number = self.good + self.failed + self.mistaken;
        self.first.get_or_insert_with(|| format!("number {number}: {error}"));
    }

    fn judge(&mut self, client: Option<SocketAddr>, seen: &str) {
        let seen_ip = seen.parse::<SocketAddr>().map(|seen| seen.ip().to_canonical());
        if client.is_some_and(|client| seen_ip == Ok(client.ip().to_canonical())) {
            self.good += 1;
        } else {
            self.mistaken += 1;
            self.first.get_or_insert_with(|| format!("the client is {client:?}, the server saw {seen}"));
        }
    }

    fn add(&mut self, other: Self) {
        self.good += other.good;
        self.failed += other.failed;
        self.mistaken += other.mistaken;
        self.first = self.first.take().or(other.first);
    }
}

fn connect(how: &Connect) -> io::Result<TcpStream> {
    let to = if how.mapped { mapped(how.to) } else { how.to };
    let protocol = if how.multipath { Protocol::MPTCP } else { Protocol::TCP };
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(protocol))?;
    if let Some(mark) = how.mark {
        socket.set_mark(mark)?;
    }
    if let Some(device) = &how.device {
        socket.bind_device(Some(device.as_bytes()))?;
    }
    if how.transparent {
        if to.is_ipv4() { socket.set_ip_transparent_v4(true)? } else { socket.set_ip_transparent_v6(true)? }
    }
    if let Some(bind) = how.bind {
        socket.set_reuse_address(true)?;
        socket.bind(&if how.mapped { mapped(bind) } else { bind }.into())?;
    }
    socket.connect_timeout(&to.into(), Duration::from_millis(how.wait_ms))?;
    Ok(socket.into())
}

fn mapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    }
}

/// Reads the greeting of a server; gives the peer that it saw.
fn greeted_as(stream: &TcpStream) -> io::Result<String> {
    stream.set_read_timeout(Some(SILENCE))?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    let peer = line.split(' ').next().filter(|peer| !peer.is_empty());
    peer.map(str::to_owned).ok_or_else(|| io::Error::other("the server closed without a greeting"))
}

fn receive(mut stream: &TcpStream, at_least: usize, wait: Duration) -> io::Result<(Vec<u8>, End)> {
    let end_of_wait = Instant::now() + wait;
    let mut bytes = Vec::new();
    let mut buffer = vec![0; PIECE];
    while bytes.len() < at_least {
        let left = end_of_wait.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut buffer) {
            Ok(0) => return Ok((bytes, End::Eof)),
            Ok(length) => bytes.extend_from_slice(buffer.get(..length).unwrap_or_default()),
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut => return Ok((bytes, End::Silence)),
                ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted => return Ok((bytes, End::Reset)),
                ErrorKind::Interrupted => {}
                _ => return Err(error),
            },
        }
    }
    Ok((bytes, End::Enough))
}

fn exchange(stream: &TcpStream, length: u64) -> io::Result<u64> {
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    let pattern = Pattern::default();
    thread::scope(|scope| {
        let sender = scope.spawn(|| send_pattern(stream, &pattern, length));
        let received = compare_pattern(stream, &pattern, length);
        let sent = sender.join().unwrap_or_else(|_| Err(io::Error::other("the sender panicked")));
        sent.and(received)
    })
}

fn send_pattern(mut stream: &TcpStream, pattern: &Pattern, length: u64) -> io::Result<()> {
    let mut sent = 0;
    while sent < length {
        let left = usize::try_from(length - sent).unwrap_or(usize::MAX);
        let piece = pattern.at(sent, left.min(PIECE));
        stream.write_all(piece)?;
        sent += piece.len() as u64;
    }
    Ok(())
}

fn compare_pattern(mut stream: &TcpStream, pattern: &Pattern, length: u64) -> io::Result<u64> {
    let mut buffer = vec![0; PIECE];
    let mut received = 0;
    while received < length {
        let read = stream.read(&mut buffer)?;
        let piece = buffer.get(..read).unwrap_or_default();
        if piece.is_empty() || !pattern.matches(received, piece) {
            return Err(io::Error::other(format!("the echo is wrong or over after {received} bytes")));
        }
        received += piece.len() as u64;
    }
    Ok(received)
}

pub(super) fn churn(to: SocketAddr, count: usize, parallel: usize) -> Answer {
    let left = AtomicUsize::new(count);
    let total = Mutex::new(Held::default());
    let work = || {
        let mut mine = Held::default();
        while left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
            match one_visit(to) {
                Ok(()) => mine.good += 1,
                Err(error) => mine.fail(&error),
            }
        }
        if let Ok(mut total) = total.lock() {
            total.add(mine);
        }
    };
    thread::scope(|scope| {
        for _ in 0..parallel {
            scope.spawn(work);
        }
    });
    Answer::Held(total.into_inner().unwrap_or_default())
}

fn one_visit(to: SocketAddr) -> io::Result<()> {
    let mut stream = connect(&Connect::to(to))?;
    stream.set_read_timeout(Some(SILENCE))?;
    stream.write_all(b"eight by")?;
    let mut answer = [0; 8];
    stream.read_exact(&mut answer)?;
    if &answer == b"eight by" { Ok(()) } else { Err(io::Error::other("the echo is wrong")) }
}

pub(super) fn ask_udp(to: SocketAddr, payload: &str) -> io::Result<Answer> {
    let any: IpAddr = if to.is_ipv4() { [0, 0, 0, 0].into() } else { [0_u16; 8].into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    socket.connect(to)?;
    let mut buffer = vec![0; 2048];
    // Datagrams may be lost while neighbours are being resolved.
    for _ in 0..10 {
        socket.send(payload.as_bytes())?;
        match socket.recv(&mut buffer) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(Answer::Received { bytes: buffer, end: End::Enough });
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Answer::Received { bytes: Vec::new(), end: End::Silence })
}
