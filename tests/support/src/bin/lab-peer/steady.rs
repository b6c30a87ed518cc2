//! A steady load, whatever happens to the mesh meanwhile: requests, new connections and held ones, and what became
//! of each. Arrivals are those of people: they come whether answers come or not.

mod lane;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use serde_json::{Value, json};

use self::lane::{Lane, What};
use crate::latency::Arrivals;

/// Longest sleep: the end of standard input is not an event.
const TICK: Duration = Duration::from_millis(20);
/// How often it is looked for what has waited for too long.
const SWEEP: Duration = Duration::from_millis(500);
/// How long whatever is open at the end may take.
const END: Duration = Duration::from_secs(12);

#[derive(Debug, Args)]
pub(crate) struct SteadyArgs {
    /// An `http` server that is asked for 1 KiB over connections that are kept.
    #[arg(long)]
    http: Option<SocketAddr>,
    /// Host of the requests; otherwise the address.
    #[arg(long)]
    host: Option<String>,
    /// Requests per second.
    #[arg(long, default_value_t = 1000.0)]
    requests: f64,
    /// A `small` server to which connections are made for one byte there and back.
    #[arg(long)]
    conn: Option<SocketAddr>,
    /// Connections per second.
    #[arg(long, default_value_t = 1000.0)]
    connections: f64,
    /// A `small` server to which connections are held, without a byte until the end.
    #[arg(long)]
    hold: Option<SocketAddr>,
    /// How many are held.
    #[arg(long, default_value_t = 1000)]
    held: usize,
}

/// Says `steady` when everything has begun, and goes on until standard input ends.
pub(crate) fn run(args: &SteadyArgs) -> Result<()> {
    raise_descriptor_limit()?;
    let mut held = hold(args)?;
    let mut load = Load { poller: epoll::create(epoll::CreateFlags::CLOEXEC)?, lanes: lanes(args) };
    let is_over = end_of_input();
    println!("{}", json!({ "event": "steady", "held": held.len() }));
    load.run(&is_over)?;
    // All of them are asked before any of them is waited for.
    let asked: Vec<bool> = held.iter_mut().map(|stream| stream.write_all(b"h").is_ok()).collect();
    let answers = held.iter_mut().map(|stream| stream.read_exact(&mut [0]).is_ok());
    let alive = answers.zip(asked).filter(|both| *both == (true, true)).count();
    let mut report = json!({ "held": { "opened": held.len(), "alive": alive } });
    for lane in &load.lanes {
        let name = match lane.what {
            What::Byte => "connections",
            What::Request(_) => "requests",
        };
        report.as_object_mut().context("a report is an object")?.insert(name.to_owned(), lane.tally.report());
    }
    println!("{report}");
    Ok(())
}

fn lanes(args: &SteadyArgs) -> Vec<Lane> {
    let requests = args.http.map(|address| {
        let host = args.host.clone().unwrap_or_else(|| address.to_string());
        let text = format!("GET /1k HTTP/1.1\r\nhost: {host}\r\n\r\n");
        Lane::new(What::Request(text), address, Arrivals::new(args.requests))
    });
    let connections =
        args.conn.map(|address| Lane::new(What::Byte, address, Arrivals::new(args.connections)));
    requests.into_iter().chain(connections).collect()
}

/// Opens what is held; each carries a byte.
fn hold(args: &SteadyArgs) -> Result<Vec<TcpStream>> {
    let Some(address) = args.hold else { return Ok(Vec::new()) };
    let open = |_| {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        speak(&mut stream)?;
        Ok(stream)
    };
    let streams: std::io::Result<Vec<_>> = (0..args.held).map(open).collect();
    streams.with_context(|| format!("connections to {address} cannot be held"))
}

fn speak(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"h")?;
    stream.read_exact(&mut [0])
}

fn end_of_input() -> Arc<AtomicBool> {
    let is_over = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&is_over);
    std::thread::spawn(move || {
        // An error is an end as well.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        told.store(true, Ordering::Relaxed);
    });
    is_over
}

fn raise_descriptor_limit() -> Result<()> {
    use rustix::process::{Resource, getrlimit, setrlimit};

    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).context("the limit of descriptors cannot be raised")
}

struct Load {
    poller: std::os::fd::OwnedFd,
    lanes: Vec<Lane>,
}

impl Load {
    fn run(&mut self, is_over: &AtomicBool) -> Result<()> {
        let mut events = Vec::with_capacity(1024);
        let (mut ending, mut sweep) = (None, Instant::now() + SWEEP);
        loop {
            let now = Instant::now();
            if ending.is_none() && is_over.load(Ordering::Relaxed) {
                ending = Some(now + END);
            }
            if ending.is_some_and(|end| now >= end || self.lanes.iter().all(Lane::is_quiet)) {
                return Ok(());
            }
            for (index, lane) in (0u64..).zip(&mut self.lanes) {
                lane.arrive(now, ending.is_none(), &self.poller, index)?;
                if sweep <= now {
                    lane.sweep(now);
                }
            }
            sweep = if sweep <= now { now + SWEEP } else { sweep };
            let next = self.lanes.iter().filter_map(Lane::next).min();
            let pause = next.map_or(TICK, |next| next.saturating_duration_since(Instant::now()).min(TICK));
            epoll::wait(&self.poller, spare_capacity(&mut events), Some(&Timespec::try_from(pause)?))?;
            for event in events.drain(..) {
                let (id, lane) = lane::of_token(event.data.u64());
                if let Some(lane) = self.lanes.get_mut(lane) {
                    lane.ready(id, event.flags);
                }
            }
        }
    }
}

/// Most failures that are told one by one.
const TOLD: usize = 2000;

/// What became of a lane's arrivals.
#[derive(Debug, Default)]
struct Tally {
    done: u64,
    /// How long each took from when it was due, in microseconds.
    waits: Vec<u32>,
    longest: (u32, u64),
    failed: u64,
    failures: Vec<(String, u64)>,
}

impl Tally {
    fn done(&mut self, wait: Duration, begun_ns: u64) {
        let micros = u32::try_from(wait.as_micros()).unwrap_or(u32::MAX);
        self.done += 1;
        self.waits.push(micros);
        self.longest = self.longest.max((micros, begun_ns));
    }

    fn failed(&mut self, outcome: String, begun_ns: u64) {
        self.failed += 1;
        if self.failures.len() < TOLD {
            self.failures.push((outcome, begun_ns));
        }
    }

    fn report(&self) -> Value {
        let mut waits = self.waits.clone();
        waits.sort_unstable();
        let at = |permille: usize| {
            let index = (waits.len() * permille / 1000).min(waits.len().saturating_sub(1));
            waits.get(index).map_or(0.0, |micros| f64::from(*micros) / 1e3)
        };
        let failures: Vec<Value> = self
            .failures
            .iter()
            .map(|(outcome, begun)| json!({ "outcome": outcome, "begun_ns": begun }))
            .collect();
        json!({
            "done": self.done, "failed": self.failed, "failures": failures, "p50_ms": at(500), "p99_ms": at(990),
            "longest_ms": f64::from(self.longest.0) / 1e3, "longest_begun_ns": self.longest.1,
        })
    }
}
