//! The servers.

use std::io::{Read, Write};
use std::net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Domain, Protocol, Socket, Type};

use crate::dial::{congestion_control, plain};
use crate::reactor::{self, Service};

#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// `KIND:PORT`.
    #[arg(required = true)]
    services: Vec<Served>,
}

#[derive(Debug, Clone)]
struct Served {
    kind: Kind,
    port: u16,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    /// One thread for all connections.
    Reactor(Service),
    /// A thread for each connection.
    Threads(fn(TcpStream) -> std::io::Result<()>),
}

impl FromStr for Served {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, port) = text.split_once(':').ok_or("a service is KIND:PORT")?;
        let kind = match kind {
            "sink" => Kind::Reactor(Service::Sink),
            "small" => Kind::Reactor(Service::Small),
            "http" => Kind::Reactor(Service::Http),
            "echo" => Kind::Threads(echo),
            "who" => Kind::Threads(who),
            "server-first" => Kind::Threads(server_first),
            "source" => Kind::Threads(source),
            "stall" => Kind::Threads(stall),
            "reset" => Kind::Threads(reset),
            "urgent" => Kind::Threads(urgent),
            "drain" => Kind::Threads(drain),
            other => return Err(format!("there is no service {other:?}")),
        };
        Ok(Self { kind, port: port.parse().map_err(|e| format!("port {port:?}: {e}"))? })
    }
}

pub(crate) fn run(args: &ServeArgs) -> Result<()> {
    let mut threads = Vec::new();
    let mut ports = Vec::new();
    let mut algorithm = String::new();
    for served in &args.services {
        let listener =
            listen(served.port).with_context(|| format!("port {} cannot be listened on", served.port))?;
        algorithm = rustix::net::sockopt::tcp_congestion(&listener)?;
        ports.push(served.port);
        let kind = served.kind;
        threads.push(std::thread::spawn(move || match kind {
            Kind::Reactor(service) => reactor::serve(&listener, service),
            Kind::Threads(handler) => accept_forever(&listener, handler),
        }));
    }
    println!("{}", serde_json::json!({ "listening": ports, "congestion_control": algorithm }));
    threads.into_iter().try_for_each(|thread| thread.join().unwrap_or(Ok(())))
}

/// A listener for both families.
pub(crate) fn listen(port: u16) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_only_v6(false)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
    socket.listen(4096)?;
    Ok(socket.into())
}

fn accept_forever(listener: &TcpListener, handler: fn(TcpStream) -> std::io::Result<()>) -> Result<()> {
    loop {
        let Ok((stream, _)) = listener.accept() else { continue };
        let serve = move || {
            // What a client does to its connection is not the server's failure.
            let _ = stream.set_nodelay(true).and_then(|()| handler(stream));
        };
        // A small stack, because tests hold thousands of connections.
        std::thread::Builder::new().stack_size(64 * 1024).spawn(serve)?;
    }
}

fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    let mut buffer = vec![0; 32 * 1024];
    loop {
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            return stream.shutdown(Shutdown::Write);
        }
        stream.write_all(buffer.get(..read).unwrap_or_default())?;
    }
}

/// Tells the client how it is seen, then what it has sent up to its end of stream.
fn who(mut stream: TcpStream) -> std::io::Result<()> {
    let algorithm = congestion_control(&stream).unwrap_or_default();
    let seen = serde_json::json!({
        "peer": plain(stream.peer_addr()?).to_string(),
        "local": plain(stream.local_addr()?).to_string(),
        "congestion_control": algorithm,
    });
    stream.write_all(format!("{seen}\n").as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    std::io::copy(&mut stream, &mut std::io::sink()).map(drop)
}

/// Speaks first, as SMTP and MySQL do, then echoes.
fn server_first(mut stream: TcpStream) -> std::io::Result<()> {
    stream.write_all(b"220 ready\r\n")?;
    echo(stream)
}

/// Sends a pattern until the client has enough.
fn source(mut stream: TcpStream) -> std::io::Result<()> {
    let block = vec![b's'; 128 * 1024];
    loop {
        stream.write_all(&block)?;
    }
}

/// Accepts and never reads.
fn stall(stream: TcpStream) -> std::io::Result<()> {
    loop {
        std::thread::sleep(Duration::from_secs(3600));
        stream.take_error()?;
    }
}

/// Reads what comes first and answers with RST.
fn reset(mut stream: TcpStream) -> std::io::Result<()> {
    let mut first = [0; 64];
    let _ = stream.read(&mut first)?;
    Socket::from(stream).set_linger(Some(Duration::ZERO))
}

/// Waits for an urgent byte, then reads the stream, and tells what came on either way.
fn urgent(mut stream: TcpStream) -> std::io::Result<()> {
    // Reading past the mark would throw the byte away.
    let limit = Timespec { tv_sec: 5, tv_nsec: 0 };
    poll(&mut [PollFd::new(&stream, PollFlags::PRI)], Some(&limit))?;
    let mut byte = [std::mem::MaybeUninit::uninit()];
    let urgent = Socket::from(stream.try_clone()?).recv_out_of_band(&mut byte).unwrap_or(0);
    let mut in_stream = Vec::new();
    stream.read_to_end(&mut in_stream)?;
    let seen = serde_json::json!({ "stream": String::from_utf8_lossy(&in_stream), "urgent": urgent });
    stream.write_all(format!("{seen}\n").as_bytes())
}

/// Reads to the end of the stream, then says how much it was: data flows after the client's half-close.
fn drain(mut stream: TcpStream) -> std::io::Result<()> {
    let bytes = std::io::copy(&mut stream, &mut std::io::sink())?;
    stream.write_all(format!("{{\"drained\":{bytes}}}\n").as_bytes())
}
