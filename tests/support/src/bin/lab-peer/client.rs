//! Clients that do one thing and report it.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use serde_json::{Value, json};

use crate::dial::{DialArgs, congestion_control, outcome_of, plain};

#[derive(Debug, Args)]
pub(crate) struct GetArgs {
    /// `http://ADDRESS:PORT/PATH`.
    url: String,
    /// Give up after so many milliseconds.
    #[arg(long, default_value_t = 5000)]
    timeout_ms: u64,
}

/// Nanoseconds since the epoch: to be compared between processes of one machine.
pub(crate) fn now_ns() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

pub(crate) fn get(args: &GetArgs) -> Result<()> {
    let rest = args.url.strip_prefix("http://").context("the URL must begin with http://")?;
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let address: SocketAddr =
        authority.parse().with_context(|| format!("{authority:?} is not ADDRESS:PORT"))?;
    let started = Instant::now();
    let answer = request(address, path, Duration::from_millis(args.timeout_ms));
    let report = match answer {
        Ok((status, body)) => {
            let body = serde_json::from_str(&body).unwrap_or(Value::String(body));
            json!({ "outcome": "ok", "status": status, "body": body, "ms": ms(started) })
        }
        Err(e) => json!({ "outcome": outcome_of(&e), "error": e.to_string(), "ms": ms(started) }),
    };
    println!("{report}");
    Ok(())
}

fn request(address: SocketAddr, path: &str, limit: Duration) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, limit)?;
    stream.set_read_timeout(Some(limit))?;
    write!(stream, "GET /{path} HTTP/1.1\r\nhost: {address}\r\n\r\n")?;
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let read = stream.read(&mut buffer)?;
        bytes.extend_from_slice(buffer.get(..read).unwrap_or_default());
        if let Some(answer) = complete_answer(&bytes) {
            return Ok(answer);
        }
        if read == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Status and body, when the body is complete by its content-length.
fn complete_answer(bytes: &[u8]) -> Option<(u16, String)> {
    let text = String::from_utf8_lossy(bytes);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let lower = head.to_ascii_lowercase();
    let length: usize =
        lower.lines().find_map(|line| line.strip_prefix("content-length:"))?.trim().parse().ok()?;
    Some((status, body.get(..length)?.to_owned()))
}

#[derive(Debug, Args)]
pub(crate) struct ConnectArgs {
    #[command(flatten)]
    dial: DialArgs,
    /// Send this text.
    #[arg(long)]
    send: Option<String>,
    /// Close our direction after sending.
    #[arg(long)]
    half_close: bool,
    /// Stop reading after so many bytes (otherwise at the end of the stream or the time-out).
    #[arg(long)]
    expect: Option<usize>,
    /// Keep the connection, send a byte each 10 ms, and report when it ends.
    #[arg(long)]
    hold: bool,
    /// Close with RST.
    #[arg(long)]
    reset: bool,
}

pub(crate) fn connect(args: &ConnectArgs) -> Result<()> {
    let started = Instant::now();
    let mut stream = match args.dial.dial() {
        Ok(stream) => stream,
        Err(e) => {
            let outcome = outcome_of(&e);
            println!(
                "{}",
                json!({ "connected": false, "outcome": outcome, "error": e.to_string(), "ms": ms(started) })
            );
            return Ok(());
        }
    };
    let local = plain(stream.local_addr()?).to_string();
    let named = stream.peer_addr().map(|address| plain(address).to_string()).unwrap_or_default();
    let algorithm = congestion_control(&stream)?;
    if args.hold {
        return hold_one(stream, &local);
    }
    let (received, outcome) = exchange(&mut stream, args);
    if args.reset {
        socket2::Socket::from(stream).set_linger(Some(Duration::ZERO))?;
    }
    let report = json!({
        "connected": true, "outcome": outcome, "local": local, "peer": named,
        "received": String::from_utf8_lossy(&received), "bytes": received.len(),
        "congestion_control": algorithm, "ms": ms(started),
    });
    println!("{report}");
    Ok(())
}

/// Sends and reads; the outcome is `ok` (as many bytes as expected), `eof`, or that of an error.
fn exchange(stream: &mut TcpStream, args: &ConnectArgs) -> (Vec<u8>, &'static str) {
    let mut received = Vec::new();
    let outcome = match send_and_read(stream, args, &mut received) {
        Ok(outcome) => outcome,
        Err(e) => outcome_of(&e),
    };
    (received, outcome)
}

fn send_and_read(
    stream: &mut TcpStream,
    args: &ConnectArgs,
    received: &mut Vec<u8>,
) -> io::Result<&'static str> {
    if let Some(text) = &args.send {
        stream.write_all(text.as_bytes())?;
    }
    if args.half_close {
        stream.shutdown(Shutdown::Write)?;
    }
    let mut buffer = vec![0; 64 * 1024];
    while args.expect.is_none_or(|wanted| received.len() < wanted) {
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            return Ok("eof");
        }
        received.extend_from_slice(buffer.get(..read).unwrap_or_default());
    }
    Ok("ok")
}

/// Speaks with an echo server until the connection ends.
fn hold_one(mut stream: TcpStream, local: &str) -> Result<()> {
    let mut byte = [0];
    let mut bytes = 0_u64;
    let ended = loop {
        let exchanged = stream.write_all(b"h").and_then(|()| stream.read_exact(&mut byte));
        if let Err(e) = exchanged {
            break e;
        }
        bytes += 1;
        if bytes == 1 {
            println!("{}", json!({ "event": "established", "local": local, "at_ns": now_ns() }));
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    println!(
        "{}",
        json!({ "event": "ended", "outcome": outcome_of(&ended), "at_ns": now_ns(), "bytes": bytes })
    );
    Ok(())
}

#[derive(Debug, Args)]
pub(crate) struct EchoArgs {
    #[command(flatten)]
    dial: DialArgs,
    /// How many bytes.
    #[arg(long, default_value_t = 65_536)]
    bytes: u64,
}

/// A pattern whose every byte depends on its position, so that loss, doubling and reordering show.
fn pattern(from: u64, into: &mut [u8]) {
    for (at, byte) in (from..).zip(into) {
        let mixed = (at / 8).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23) ^ at;
        let [low, ..] = mixed.to_le_bytes();
        *byte = low;
    }
}

pub(crate) fn echo(args: &EchoArgs) -> Result<()> {
    let started = Instant::now();
    let stream = args.dial.dial().with_context(|| format!("{} cannot be reached", args.dial.address))?;
    let mut sender = stream.try_clone()?;
    let total = args.bytes;
    let received = std::thread::scope(|scope| {
        let sending = scope.spawn(move || send_pattern(&mut sender, total));
        let received = compare_pattern(&stream, total);
        sending.join().unwrap_or_else(|_| Err(anyhow!("the sender panicked")))?;
        received
    })?;
    println!("{}", json!({ "outcome": "ok", "bytes": received, "ms": ms(started) }));
    Ok(())
}

fn send_pattern(stream: &mut TcpStream, total: u64) -> Result<()> {
    let mut block = vec![0; 64 * 1024];
    let mut sent = 0;
    while sent < total {
        let size = usize::try_from(total - sent)?.min(block.len());
        let part = block.get_mut(..size).context("the block is as large as that")?;
        pattern(sent, part);
        stream.write_all(part).with_context(|| format!("sending failed after {sent} bytes"))?;
        sent += u64::try_from(size)?;
    }
    stream.shutdown(Shutdown::Write)?;
    Ok(())
}

fn compare_pattern(mut stream: &TcpStream, total: u64) -> Result<u64> {
    let mut block = vec![0; 64 * 1024];
    let mut wanted = vec![0; 64 * 1024];
    let mut received = 0;
    loop {
        let read =
            stream.read(&mut block).with_context(|| format!("receiving failed after {received} bytes"))?;
        if read == 0 {
            break;
        }
        let expected = wanted.get_mut(..read).context("both blocks are of one size")?;
        pattern(received, expected);
        if block.get(..read) != Some(&*expected) {
            bail!("the bytes that came back differ from those sent, near byte {received}");
        }
        received += u64::try_from(read)?;
    }
    if received != total {
        bail!("{received} of {total} bytes came back");
    }
    Ok(received)
}

#[derive(Debug, Args)]
pub(crate) struct UrgentArgs {
    #[command(flatten)]
    dial: DialArgs,
}

pub(crate) fn urgent(args: &UrgentArgs) -> Result<()> {
    let mut stream = args.dial.dial()?;
    stream.write_all(b"before")?;
    let socket = socket2::Socket::from(stream.try_clone()?);
    socket.send_out_of_band(b"!")?;
    stream.write_all(b"after")?;
    stream.shutdown(Shutdown::Write)?;
    let mut seen = String::new();
    stream.read_to_string(&mut seen)?;
    println!("{}", json!({ "outcome": "ok", "seen": serde_json::from_str::<Value>(seen.trim())? }));
    Ok(())
}

#[derive(Debug, Args)]
pub(crate) struct ChurnArgs {
    #[command(flatten)]
    dial: DialArgs,
    /// How many connections.
    #[arg(long, default_value_t = 10_000)]
    count: u64,
    /// How many at a time.
    #[arg(long, default_value_t = 16)]
    concurrency: u64,
}

/// Connects, sends a byte, reads it back, closes; again and again.
pub(crate) fn churn(args: &ChurnArgs) -> Result<()> {
    let started = Instant::now();
    let (left, ok) = (AtomicU64::new(args.count), AtomicU64::new(0));
    let failures = std::sync::Mutex::new(std::collections::BTreeMap::<&'static str, u64>::new());
    let take = || left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok();
    std::thread::scope(|scope| {
        for _ in 0..args.concurrency {
            scope.spawn(|| {
                while take() {
                    match one_byte(&args.dial) {
                        Ok(()) => drop(ok.fetch_add(1, Ordering::Relaxed)),
                        Err(e) => {
                            let mut failures =
                                failures.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                            *failures.entry(outcome_of(&e)).or_default() += 1;
                        }
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    println!("{}", json!({ "ok": ok.into_inner(), "failed": failures, "ms": ms(started) }));
    Ok(())
}

/// One connection that carries one byte there and back.
pub(crate) fn one_byte(dial: &DialArgs) -> io::Result<()> {
    let mut stream = dial.dial()?;
    stream.write_all(b"b")?;
    stream.read_exact(&mut [0])
}
