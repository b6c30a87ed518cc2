//! The servers of a puppet.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use socket2::SockRef;

use super::orders::{Answer, Role};
use super::pattern::Pattern;

/// Stack of the thread that serves one connection, beside its buffer.
const STACK: usize = 256 * 1024;
const BUFFER: usize = 64 * 1024;
/// Connections that may wait for a server that accepts.
const BACKLOG: i32 = 4096;

/// What one server has seen.
#[derive(Debug, Default)]
struct Seen {
    accepted: AtomicU64,
    bytes: AtomicU64,
    resets: AtomicU64,
    stopped: AtomicBool,
    /// Sockets of `Hold`.
    kept: Mutex<Vec<TcpStream>>,
}

#[derive(Debug)]
struct Running {
    address: SocketAddr,
    seen: Arc<Seen>,
}

/// All servers of the puppet.
#[derive(Debug, Default)]
pub(super) struct Servers {
    running: Vec<Running>,
    /// Listeners from which nobody accepts.
    deaf: Vec<TcpListener>,
}

impl Servers {
    pub(super) fn start(&mut self, address: SocketAddr, role: Role) -> io::Result<Answer> {
        let seen = Arc::new(Seen::default());
        let address = match role {
            Role::Udp => serve_udp(UdpSocket::bind(address)?, seen.clone())?,
            Role::Deaf => {
                let listener = listen(address, 0)?;
                let address = listener.local_addr()?;
                self.deaf.push(listener);
                address
            }
            Role::Greet | Role::Silent | Role::Count | Role::Hold | Role::Abort | Role::Talk(_) => {
                serve_tcp(listen(address, BACKLOG)?, role, seen.clone())?
            }
        };
        self.running.push(Running { address, seen });
        Ok(Answer::Serving { server: self.running.len() - 1, address })
    }

    fn get(&self, server: usize) -> io::Result<&Running> {
        self.running.get(server).ok_or_else(|| io::Error::other("there is no such server"))
    }

    pub(super) fn tally(&self, server: usize) -> io::Result<Answer> {
        let seen = &self.get(server)?.seen;
        let load = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
        Ok(Answer::Tally {
            accepted: load(&seen.accepted),
            bytes: load(&seen.bytes),
            resets: load(&seen.resets),
        })
    }

    pub(super) fn broadcast(&self, server: usize) -> io::Result<Answer> {
        let kept = self.get(server)?.seen.kept.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Answer::Count(kept.iter().filter(|stream| (&**stream).write_all(b"!").is_ok()).count() as u64))
    }

    pub(super) fn stop(&self, server: usize) -> io::Result<Answer> {
        let running = self.get(server)?;
        running.seen.stopped.store(true, Ordering::SeqCst);
        // Wakes the accepting thread, which then sees that it is over. In a steered pod a connection to the
        // own address reaches the application directly.
        let _ = TcpStream::connect(running.address);
        Ok(Answer::Done)
    }
}

/// `TcpListener::bind` does not let one choose the backlog.
fn listen(address: SocketAddr, backlog: i32) -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(backlog)?;
    Ok(socket.into())
}

fn serve_udp(socket: UdpSocket, seen: Arc<Seen>) -> io::Result<SocketAddr> {
    let address = socket.local_addr()?;
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
            seen.accepted.fetch_add(1, Ordering::SeqCst);
            seen.bytes.fetch_add(length as u64, Ordering::SeqCst);
            let payload = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned();
            // A lost answer is the client's failure to report.
            let _ = socket.send_to(format!("{peer} {payload}").as_bytes(), peer);
        }
    });
    Ok(address)
}

fn serve_tcp(listener: TcpListener, role: Role, seen: Arc<Seen>) -> io::Result<SocketAddr> {
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for stream in listener.incoming() {
            if seen.stopped.load(Ordering::SeqCst) {
                return;
            }
            let Ok(stream) = stream else { continue };
            seen.accepted.fetch_add(1, Ordering::SeqCst);
            take_care_of(stream, role, &seen);
        }
    });
    Ok(address)
}

fn take_care_of(mut stream: TcpStream, role: Role, seen: &Arc<Seen>) {
    match role {
        Role::Hold => {
            if greet(&mut stream).is_ok() {
                seen.kept.lock().unwrap_or_else(PoisonError::into_inner).push(stream);
            }
        }
        Role::Greet | Role::Silent | Role::Count | Role::Abort | Role::Talk(_) | Role::Deaf | Role::Udp => {
            let seen = seen.clone();
            let serve = move || {
                if serve_one(stream, role, &seen).is_err_and(|e| e.kind() == ErrorKind::ConnectionReset) {
                    seen.resets.fetch_add(1, Ordering::SeqCst);
                }
            };
            // Without a thread the stream is dropped, and the client sees a reset.
            let _ = thread::Builder::new().stack_size(STACK).spawn(serve);
        }
    }
}

fn greet(stream: &mut TcpStream) -> io::Result<()> {
    let line = format!("{} {}\n", stream.peer_addr()?, stream.local_addr()?);
    stream.write_all(line.as_bytes())
}

fn serve_one(mut stream: TcpStream, role: Role, seen: &Seen) -> io::Result<()> {
    match role {
        Role::Silent => drop(each_piece(&mut stream, seen, |stream, piece| stream.write_all(piece))?),
        Role::Greet => {
            greet(&mut stream)?;
            each_piece(&mut stream, seen, |stream, piece| stream.write_all(piece))?;
        }
        Role::Count => {
            greet(&mut stream)?;
            let count = each_piece(&mut stream, seen, |_, _| Ok(()))?;
            stream.write_all(format!("{count}\n").as_bytes())?;
        }
        Role::Abort => {
            greet(&mut stream)?;
            stream.read_exact(&mut [0])?;
            SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO))?;
        }
        Role::Talk(length) => {
            greet(&mut stream)?;
            talk(&mut stream, length)?;
            stream.shutdown(Shutdown::Write)?;
            each_piece(&mut stream, seen, |_, _| Ok(()))?;
        }
        Role::Hold | Role::Deaf | Role::Udp => {}
    }
    Ok(())
}

/// Hands over every piece that comes until the peer's end; gives the number of bytes.
fn each_piece(
    stream: &mut TcpStream,
    seen: &Seen,
    mut take: impl FnMut(&mut TcpStream, &[u8]) -> io::Result<()>,
) -> io::Result<u64> {
    let mut buffer = vec![0; BUFFER];
    let mut total = 0;
    loop {
        let length = match stream.read(&mut buffer) {
            Ok(0) => return Ok(total),
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        total += length as u64;
        seen.bytes.fetch_add(length as u64, Ordering::SeqCst);
        take(stream, buffer.get(..length).unwrap_or_default())?;
    }
}

fn talk(stream: &mut TcpStream, length: u64) -> io::Result<()> {
    let pattern = Pattern::default();
    let mut sent = 0;
    while sent < length {
        let left = usize::try_from(length - sent).unwrap_or(usize::MAX);
        let piece = pattern.at(sent, left.min(BUFFER));
        stream.write_all(piece)?;
        sent += piece.len() as u64;
    }
    Ok(())
}
