//! Latency of HTTP/1.1 requests: one after the other, or arriving like people do, whether the answers come or not.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use serde_json::json;

use crate::dial::congestion_control;
use crate::load::{LoadArgs, complete, request_text};

#[derive(Debug, Args)]
pub(crate) struct LatencyArgs {
    #[command(flatten)]
    load: LoadArgs,
    /// Requests per second, as a Poisson process; each counts from when it was due. 0: each follows the answer
    /// to the one before.
    #[arg(long, default_value_t = 0.0)]
    rate: f64,
}

/// A connection: what it waits for, and what has come of it.
struct Connection {
    stream: TcpStream,
    pending: Vec<u8>,
    due: Option<Instant>,
}

pub(crate) fn run(args: &LatencyArgs) -> Result<()> {
    let request = request_text(&args.load);
    let poller = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut connections = Vec::new();
    for index in 0..args.load.n.max(1) {
        let stream = args.load.dial()?;
        stream.set_nonblocking(true)?;
        let data = epoll::EventData::new_u64(u64::try_from(index)?);
        epoll::add(&poller, &stream, data, epoll::EventFlags::IN)?;
        connections.push(Connection { stream, pending: Vec::with_capacity(2048), due: None });
    }
    let algorithm = congestion_control(&connections.first().context("a connection is needed")?.stream)?;
    let mut arrivals = Arrivals::new(args.rate);
    let mut waiting: VecDeque<Instant> = VecDeque::new();
    let mut idle: Vec<usize> = (0..connections.len()).collect();
    let mut latencies = Vec::new();
    let mut events = Vec::with_capacity(connections.len());
    let end = args.load.end();
    while Instant::now() < end {
        arrivals.due(Instant::now(), idle.len(), &mut waiting);
        while let (Some(due), Some(index)) = (waiting.front().copied(), idle.last().copied()) {
            let connection = connections.get_mut(index).context("the index is ours")?;
            connection.stream.write_all(request.as_bytes())?;
            connection.due = Some(due);
            waiting.pop_front();
            idle.pop();
        }
        let until = arrivals.next.unwrap_or(end).min(end).saturating_duration_since(Instant::now());
        epoll::wait(&poller, spare_capacity(&mut events), Some(&Timespec::try_from(until)?))?;
        for event in events.drain(..) {
            let index = usize::try_from(event.data.u64())?;
            let connection = connections.get_mut(index).context("the index is ours")?;
            if let Some(latency) = receive(connection)? {
                latencies.push(latency);
                idle.push(index);
            }
        }
    }
    report(latencies, &algorithm)
}

/// When requests are due.
pub(crate) struct Arrivals {
    /// Mean time between two; `None` for one after the other.
    mean: Option<Duration>,
    next: Option<Instant>,
    /// State of an xorshift generator: arrivals need to be irregular, not unpredictable.
    random: u64,
}

impl Arrivals {
    pub(crate) fn new(rate: f64) -> Self {
        let mean = (rate > 0.0).then(|| Duration::from_secs_f64(1.0 / rate));
        Self { mean, next: mean.map(|_| Instant::now()), random: 0x9e37_79b9_7f4a_7c15 }
    }

    /// When the next is due.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.next
    }

    /// Moves what is due by now to the queue.
    pub(crate) fn due(&mut self, now: Instant, idle: usize, waiting: &mut VecDeque<Instant>) {
        let Some(mean) = self.mean else {
            waiting.extend(std::iter::repeat_n(now, idle));
            return;
        };
        while let Some(next) = self.next.filter(|next| *next <= now) {
            waiting.push_back(next);
            self.next = Some(next + mean.mul_f64(-self.uniform().ln()));
        }
    }

    /// Above 0 and at most 1.
    fn uniform(&mut self) -> f64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let bits = u32::try_from(self.random >> 32).unwrap_or(u32::MAX);
        (f64::from(bits) + 1.0) / (f64::from(u32::MAX) + 1.0)
    }
}

/// Takes what has come; the latency when the answer is complete.
fn receive(connection: &mut Connection) -> Result<Option<Duration>> {
    let mut buffer = [0; 16 * 1024];
    let read = match connection.stream.read(&mut buffer) {
        Ok(0) => bail!("the server closed a connection"),
        Ok(read) => read,
        Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    connection.pending.extend_from_slice(buffer.get(..read).unwrap_or_default());
    if !complete(&connection.pending)? {
        return Ok(None);
    }
    connection.pending.clear();
    Ok(connection.due.take().map(|due| due.elapsed()))
}

fn report(mut latencies: Vec<Duration>, algorithm: &str) -> Result<()> {
    latencies.sort_unstable();
    let at = |percent: usize| {
        let index = (latencies.len() * percent / 100).min(latencies.len().saturating_sub(1));
        latencies.get(index).map(|latency| latency.as_secs_f64() * 1e6).context("no request was answered")
    };
    let (p50, p99) = (at(50)?, at(99)?);
    let requests = latencies.len();
    println!(
        "{}",
        json!({ "requests": requests, "p50_us": p50, "p99_us": p99, "congestion_control": algorithm })
    );
    Ok(())
}
