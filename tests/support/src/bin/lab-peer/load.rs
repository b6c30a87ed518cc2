//! Measuring clients. Each uses one thread and reads the congestion control back from its sockets.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use serde_json::json;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::dial::congestion_control;
use crate::{grpc, latency};

#[derive(Debug, Subcommand)]
pub(crate) enum LoadMode {
    /// Bytes to a `sink` server over N streams.
    Bulk(LoadArgs),
    /// 64 bytes there and back with a `small` server, one at a time.
    Rtt(LoadArgs),
    /// Connect, one byte there and back with a `small` server, close; N at a time.
    Conn(LoadArgs),
    /// HTTP/1.1 keep-alive with an `http` server over N connections, 1 KiB bodies.
    Http(LoadArgs),
    /// HTTP/1.1 keep-alive as above; how long answers take.
    Latency(latency::LatencyArgs),
    /// Unary gRPC calls to an `app` over one connection, N at a time.
    Grpc(LoadArgs),
    /// Connect, one byte there and back, once; how long that takes.
    First(LoadArgs),
}

#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    /// `ADDRESS:PORT`.
    address: SocketAddr,
    /// Streams, or connections at a time.
    #[arg(short, default_value_t = 1)]
    pub(crate) n: usize,
    /// Host or `:authority`; otherwise the address.
    #[arg(long)]
    host: Option<String>,
    /// How long.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
}

impl LoadArgs {
    pub(crate) fn end(&self) -> Instant {
        Instant::now() + Duration::from_secs_f64(self.seconds)
    }

    pub(crate) fn authority(&self) -> String {
        self.host.clone().unwrap_or_else(|| self.address.to_string())
    }

    pub(crate) fn dial(&self) -> Result<TcpStream> {
        let stream = TcpStream::connect_timeout(&self.address, Duration::from_secs(5))
            .with_context(|| format!("{} cannot be reached", self.address))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        Ok(stream)
    }
}

pub(crate) fn run(mode: &LoadMode) -> Result<()> {
    match mode {
        LoadMode::Bulk(args) => bulk(args),
        LoadMode::Rtt(args) => rtt(args),
        LoadMode::Conn(args) => conn(args),
        LoadMode::Http(args) => http(args),
        LoadMode::Latency(args) => latency::run(args),
        LoadMode::Grpc(args) => grpc::run(args),
        LoadMode::First(args) => first(args),
    }
}

/// Writes to all streams from one thread; the time ends when the server has told how much it has received.
fn bulk(args: &LoadArgs) -> Result<()> {
    let mut streams = (0..args.n).map(|_| args.dial()).collect::<Result<Vec<_>>>()?;
    let algorithm = congestion_control(streams.first().context("bulk needs a stream")?)?;
    let started = Instant::now();
    if let [stream] = streams.as_mut_slice() {
        write_blocking(stream, args.end())?;
    } else {
        write_in_turn(&mut streams, args.end())?;
    }
    for stream in &streams {
        stream.set_nonblocking(false)?;
        stream.shutdown(Shutdown::Write)?;
    }
    let mut bytes = 0;
    for stream in &mut streams {
        let mut count = [0; 8];
        stream.read_exact(&mut count).context("the server did not tell how much it received")?;
        bytes += u64::from_be_bytes(count);
    }
    let seconds = started.elapsed().as_secs_f64();
    println!("{}", json!({ "bytes": bytes, "seconds": seconds, "congestion_control": algorithm }));
    Ok(())
}

const BLOCK: usize = 128 * 1024;

fn write_blocking(stream: &mut TcpStream, end: Instant) -> Result<()> {
    let block = vec![b'b'; BLOCK];
    while Instant::now() < end {
        stream.write_all(&block)?;
    }
    Ok(())
}

fn write_in_turn(streams: &mut [TcpStream], end: Instant) -> Result<()> {
    let block = vec![b'b'; BLOCK];
    let poller = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    for (index, stream) in (0u64..).zip(&*streams) {
        stream.set_nonblocking(true)?;
        epoll::add(&poller, stream, epoll::EventData::new_u64(index), epoll::EventFlags::OUT)?;
    }
    let mut events = Vec::with_capacity(streams.len());
    while Instant::now() < end {
        epoll::wait(&poller, spare_capacity(&mut events), None)?;
        for event in events.drain(..) {
            let stream = streams
                .get_mut(usize::try_from(event.data.u64())?)
                .context("the poller knows our streams")?;
            match stream.write(&block) {
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
    Ok(())
}

fn rtt(args: &LoadArgs) -> Result<()> {
    let mut stream = args.dial()?;
    let algorithm = congestion_control(&stream)?;
    let mut message = [b'r'; 64];
    let mut times = Vec::with_capacity(1 << 20);
    // The first exchanges pay for the tunnel, the caches and the wake-ups.
    for _ in 0..200 {
        stream.write_all(&message)?;
        stream.read_exact(&mut message)?;
    }
    let end = args.end();
    while Instant::now() < end {
        let sent = Instant::now();
        stream.write_all(&message)?;
        stream.read_exact(&mut message)?;
        times.push(sent.elapsed());
    }
    times.sort_unstable();
    let report = json!({
        "exchanges": times.len(), "p50_us": percentile(&times, 50), "p99_us": percentile(&times, 99),
        "congestion_control": algorithm,
    });
    println!("{report}");
    Ok(())
}

fn percentile(sorted: &[Duration], percent: usize) -> f64 {
    let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).map_or(0.0, |time| time.as_secs_f64() * 1e6)
}

/// A connection of the `conn` mode that waits for its byte, or for its handshake.
fn begin(address: SocketAddr) -> Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    match socket.connect(&SockAddr::from(address)) {
        Ok(()) => {}
        Err(e) if e.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {}
        Err(e) => return Err(e).with_context(|| format!("{address} cannot be dialled")),
    }
    Ok(socket.into())
}

fn conn(args: &LoadArgs) -> Result<()> {
    let algorithm = congestion_control(&args.dial()?)?;
    let poller = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let watch = |stream: &TcpStream, index: usize, flags| -> Result<()> {
        epoll::add(&poller, stream, epoll::EventData::new_u64(u64::try_from(index)?), flags)?;
        Ok(())
    };
    let mut slots = Vec::with_capacity(args.n);
    for index in 0..args.n {
        let stream = begin(args.address)?;
        watch(&stream, index, epoll::EventFlags::OUT)?;
        slots.push(stream);
    }
    let started = Instant::now();
    let end = args.end();
    let (mut per_second, mut failed) = (Vec::<u64>::new(), 0_u64);
    let mut events = Vec::with_capacity(args.n);
    let tick = Duration::from_secs(1).try_into()?;
    while Instant::now() < end {
        epoll::wait(&poller, spare_capacity(&mut events), Some(&tick))?;
        for event in events.drain(..) {
            let index = usize::try_from(event.data.u64())?;
            let slot = slots.get_mut(index).context("the poller knows our connections")?;
            let flags = event.flags;
            let writable = flags.contains(epoll::EventFlags::OUT);
            match advance(slot, writable) {
                Progress::Sent => epoll::modify(&poller, &*slot, event.data, epoll::EventFlags::IN)?,
                Progress::Waiting => {}
                ended @ (Progress::Done | Progress::Failed) => {
                    if matches!(ended, Progress::Done) {
                        count(&mut per_second, started);
                    } else {
                        failed += 1;
                    }
                    *slot = begin(args.address)?;
                    watch(slot, index, epoll::EventFlags::OUT)?;
                }
            }
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    let connections: u64 = per_second.iter().sum();
    let report = json!({ "connections": connections, "failed": failed, "seconds": seconds, "per_second": per_second,
                         "congestion_control": algorithm });
    println!("{report}");
    Ok(())
}

enum Progress {
    Sent,
    Waiting,
    Done,
    Failed,
}

fn advance(stream: &mut TcpStream, writable: bool) -> Progress {
    let moved = if writable { stream.write(b"b") } else { stream.read(&mut [0]) };
    match moved {
        Ok(0) => Progress::Failed,
        Ok(_) if writable => Progress::Sent,
        Ok(_) => Progress::Done,
        Err(e) if e.kind() == ErrorKind::WouldBlock => Progress::Waiting,
        Err(_) => Progress::Failed,
    }
}

fn count(per_second: &mut Vec<u64>, started: Instant) {
    let second = usize::try_from(started.elapsed().as_secs()).unwrap_or(usize::MAX - 1);
    if per_second.len() <= second {
        per_second.resize(second + 1, 0);
    }
    if let Some(count) = per_second.last_mut() {
        *count += 1;
    }
}

fn http(args: &LoadArgs) -> Result<()> {
    let request = request_text(args);
    let poller = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut connections = Vec::new();
    for index in 0..args.n {
        let mut stream = args.dial()?;
        stream.write_all(request.as_bytes())?;
        stream.set_nonblocking(true)?;
        epoll::add(
            &poller,
            &stream,
            epoll::EventData::new_u64(u64::try_from(index)?),
            epoll::EventFlags::IN,
        )?;
        connections.push((stream, Vec::<u8>::with_capacity(2048)));
    }
    let algorithm = congestion_control(&connections.first().context("http needs a connection")?.0)?;
    let started = Instant::now();
    let end = args.end();
    let mut requests = 0_u64;
    let mut buffer = vec![0; 64 * 1024];
    let mut events = Vec::with_capacity(args.n);
    while Instant::now() < end {
        epoll::wait(&poller, spare_capacity(&mut events), None)?;
        for event in events.drain(..) {
            let found = connections.get_mut(usize::try_from(event.data.u64())?);
            let (stream, pending) = found.context("the poller knows our connections")?;
            let read = match stream.read(&mut buffer) {
                Ok(0) => bail!("the server closed a connection"),
                Ok(read) => read,
                Err(e) if e.kind() == ErrorKind::WouldBlock => continue,
                Err(e) => return Err(e.into()),
            };
            pending.extend_from_slice(buffer.get(..read).unwrap_or_default());
            if complete(pending)? {
                pending.clear();
                requests += 1;
                stream.write_all(request.as_bytes())?;
            }
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    println!("{}", json!({ "requests": requests, "seconds": seconds, "congestion_control": algorithm }));
    Ok(())
}

/// A GET whose answer [`complete`] knows.
pub(crate) fn request_text(args: &LoadArgs) -> String {
    format!("GET /1k HTTP/1.1\r\nhost: {}\r\n\r\n", args.authority())
}

/// Whether the answer (status 200, 1 KiB) is complete.
pub(crate) fn complete(pending: &[u8]) -> Result<bool> {
    let Some(end) = pending.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(false) };
    if !pending.starts_with(b"HTTP/1.1 200 ") {
        bail!("the server did not answer with 200: {:?}", String::from_utf8_lossy(pending));
    }
    Ok(pending.len() >= end + 4 + 1024)
}

fn first(args: &LoadArgs) -> Result<()> {
    let started = Instant::now();
    let mut stream = args.dial()?;
    stream.write_all(b"f")?;
    stream.read_exact(&mut [0]).context("no byte came back")?;
    let ms = started.elapsed().as_secs_f64() * 1e3;
    println!("{}", json!({ "ms": ms, "congestion_control": congestion_control(&stream)? }));
    Ok(())
}
