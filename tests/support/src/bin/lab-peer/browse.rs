//! The HTTP client: one request or many, and what became of them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use clap::{Args, ValueEnum};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, TE, UPGRADE};
use hyper::{HeaderMap, Request, Response, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::LocalSet;

use crate::app::VERSION_HEADER;
use crate::body::{Outgoing, full, messages, pattern};
use crate::dial::outcome_of;

/// So much of a body is shown.
const SHOWN: usize = 4 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Version {
    /// HTTP/1.1.
    H1,
    /// HTTP/2 with prior knowledge.
    H2,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct HttpArgs {
    /// `ADDRESS:PORT` to connect to.
    address: SocketAddr,
    /// Host or `:authority`; otherwise the address.
    #[arg(long)]
    host: Option<String>,
    /// Path and query.
    #[arg(long, default_value = "/")]
    path: String,
    #[arg(long, default_value = "GET")]
    method: String,
    /// `NAME: VALUE`; may be repeated.
    #[arg(long = "header", short = 'H')]
    headers: Vec<String>,
    /// Requests.
    #[arg(long, default_value_t = 1)]
    count: u64,
    /// At the same time, each over a connection of its own.
    #[arg(long, default_value_t = 1)]
    concurrency: u64,
    /// A new connection for each request.
    #[arg(long)]
    close: bool,
    #[arg(long, value_enum, default_value_t = Version::H1)]
    protocol: Version,
    /// Size of the body.
    #[arg(long, default_value_t = 0)]
    body_bytes: u64,
    /// A gRPC call with so many messages of 100 bytes.
    #[arg(long)]
    grpc: Option<u32>,
    /// Asks for a WebSocket and sends this text, which must come back.
    #[arg(long)]
    upgrade: Option<String>,
    /// Goes on until standard input ends; `count` does not matter then.
    #[arg(long)]
    until_eof: bool,
    /// Pause after each request, in milliseconds.
    #[arg(long, default_value_t = 0)]
    pause_ms: u64,
    /// Give up a request after so many milliseconds.
    #[arg(long, default_value_t = 20_000)]
    timeout_ms: u64,
}

/// What became of all requests.
#[derive(Default)]
struct Tally {
    requests: u64,
    statuses: BTreeMap<String, u64>,
    versions: BTreeMap<String, u64>,
    errors: BTreeMap<String, u64>,
    received: u64,
    last: Value,
}

struct Job {
    args: HttpArgs,
    left: Cell<u64>,
    tally: RefCell<Tally>,
}

enum Sender {
    H1(http1::SendRequest<Outgoing>),
    H2(http2::SendRequest<Outgoing>),
}

impl Sender {
    async fn open(args: &HttpArgs) -> Result<Self> {
        let stream = TcpStream::connect(args.address).await?;
        stream.set_nodelay(true)?;
        let stream = TokioIo::new(stream);
        Ok(match args.protocol {
            Version::H1 => {
                let (sender, connection) = http1::handshake(stream).await?;
                tokio::spawn(connection.with_upgrades());
                Self::H1(sender)
            }
            Version::H2 => {
                let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await?;
                tokio::spawn(connection);
                Self::H2(sender)
            }
        })
    }

    async fn ready(&mut self) -> bool {
        match self {
            Self::H1(sender) => sender.ready().await.is_ok(),
            Self::H2(sender) => sender.ready().await.is_ok(),
        }
    }

    async fn send(
        &mut self,
        request: Request<Outgoing>,
    ) -> Result<Response<Incoming>, TrySendError<Request<Outgoing>>> {
        match self {
            Self::H1(sender) => sender.try_send_request(request).await,
            Self::H2(sender) => sender.try_send_request(request).await,
        }
    }
}

pub(crate) fn run(args: &HttpArgs) -> Result<()> {
    // Errors in the arguments are no outcome.
    request(args)?;
    let left = Cell::new(if args.until_eof { u64::MAX } else { args.count });
    let job = Rc::new(Job { args: args.clone(), left, tally: RefCell::default() });
    let started = Instant::now();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let tasks = LocalSet::new();
    if args.until_eof {
        end_at_eof(&tasks, job.clone());
    }
    let workers: Vec<_> = (0..args.concurrency).map(|_| tasks.spawn_local(work(job.clone()))).collect();
    tasks.block_on(&runtime, async {
        for worker in workers {
            let _ = worker.await;
        }
    });
    let tally = job.tally.take();
    let report = json!({
        "requests": tally.requests, "statuses": tally.statuses, "versions": tally.versions,
        "errors": tally.errors, "received_bytes": tally.received, "last": tally.last,
        "ms": started.elapsed().as_secs_f64() * 1e3,
    });
    println!("{report}");
    // A thread that still waits for the end of standard input does not hold us up.
    runtime.shutdown_background();
    Ok(())
}

fn end_at_eof(tasks: &LocalSet, job: Rc<Job>) {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        let _ = sender.send(());
    });
    tasks.spawn_local(async move {
        let _ = receiver.await;
        job.left.set(0);
    });
}

async fn work(job: Rc<Job>) {
    let mut sender = None;
    while job.left.get() > 0 {
        job.left.set(job.left.get() - 1);
        let limit = Duration::from_millis(job.args.timeout_ms);
        let started = Instant::now();
        let outcome = tokio::time::timeout(limit, exchange(&job.args, &mut sender)).await;
        let outcome = outcome.unwrap_or_else(|_| bail!("timeout"));
        if outcome.is_err() || job.args.close {
            sender = None;
        }
        job.tally.borrow_mut().add(outcome, started);
        if job.args.pause_ms > 0 {
            tokio::time::sleep(Duration::from_millis(job.args.pause_ms)).await;
        }
    }
}

/// What one request brought.
struct Answer {
    head: hyper::http::response::Parts,
    shown: Vec<u8>,
    received: u64,
    trailers: HeaderMap,
}

/// Sends a request. As every HTTP client does, it takes another connection when the server said goodbye (GOAWAY)
/// before any of the request was sent (RFC 9113, 6.8): the server cannot prevent that the two cross.
async fn send(args: &HttpArgs, sender: &mut Option<Sender>) -> Result<Response<Incoming>> {
    let mut request = request(args)?;
    loop {
        let usable = match sender {
            Some(sender) => sender.ready().await,
            None => false,
        };
        let mut open = match sender.take() {
            Some(open) if usable => open,
            _ => Sender::open(args).await?,
        };
        let mut error = match open.send(request).await {
            Ok(response) => {
                *sender = Some(open);
                return Ok(response);
            }
            Err(error) => error,
        };
        request = match error.take_message() {
            Some(unsent) if usable => unsent,
            _ => return Err(error.into_error().into()),
        };
    }
}

async fn exchange(args: &HttpArgs, sender: &mut Option<Sender>) -> Result<Answer> {
    let response = send(args, sender).await?;
    if let Some(text) = &args.upgrade {
        return converse(response, text).await;
    }
    let (head, mut body) = response.into_parts();
    let mut answer = Answer { head, shown: Vec::new(), received: 0, trailers: HeaderMap::new() };
    while let Some(frame) = body.frame().await {
        let frame = frame?;
        match frame.into_data() {
            Ok(data) => answer.keep(&data),
            Err(frame) => answer.trailers = frame.into_trailers().unwrap_or_default(),
        }
    }
    Ok(answer)
}

impl Answer {
    fn keep(&mut self, data: &Bytes) {
        self.received += data.len() as u64;
        let room = SHOWN.saturating_sub(self.shown.len()).min(data.len());
        self.shown.extend_from_slice(data.get(..room).unwrap_or_default());
    }
}

/// After 101 the text must come back; the answer's body is what came.
async fn converse(response: Response<Incoming>, text: &str) -> Result<Answer> {
    if response.status() != hyper::StatusCode::SWITCHING_PROTOCOLS {
        bail!("not upgraded: {}", response.status());
    }
    let head = Response::builder().status(response.status()).body(())?.into_parts().0;
    let mut stream = TokioIo::new(hyper::upgrade::on(response).await?);
    stream.write_all(text.as_bytes()).await?;
    let mut came = vec![0; text.len()];
    stream.read_exact(&mut came).await?;
    Ok(Answer { head, received: came.len() as u64, shown: came, trailers: HeaderMap::new() })
}

fn request(args: &HttpArgs) -> Result<Request<Outgoing>> {
    let host = args.host.clone().unwrap_or_else(|| args.address.to_string());
    let mut builder = Request::builder().method(args.method.as_str());
    builder = match args.protocol {
        Version::H1 => builder.uri(&args.path).header(HOST, host),
        Version::H2 => builder
            .uri(Uri::builder().scheme("http").authority(host).path_and_query(args.path.as_str()).build()?),
    };
    for header in &args.headers {
        let (name, value) = header.split_once(':').context("a header is NAME: VALUE")?;
        builder = builder.header(name.trim(), value.trim());
    }
    if args.grpc.is_some() {
        builder = builder.method("POST").header(CONTENT_TYPE, "application/grpc").header(TE, "trailers");
    }
    if args.upgrade.is_some() {
        builder = builder.header(UPGRADE, "websocket").header(CONNECTION, "upgrade");
        builder = builder
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
    }
    Ok(builder.body(match (args.grpc, args.body_bytes) {
        (Some(count), _) => messages(count, 100),
        (None, 0) => full(""),
        (None, bytes) => pattern(bytes),
    })?)
}

impl Tally {
    fn add(&mut self, outcome: Result<Answer>, started: Instant) {
        self.requests += 1;
        match outcome {
            Ok(answer) => self.answered(&answer, started),
            Err(error) => {
                let io = error.downcast_ref::<std::io::Error>();
                let text = io.map_or_else(|| format!("{error:#}"), |error| outcome_of(error).to_owned());
                *self.errors.entry(text).or_default() += 1;
            }
        }
    }

    fn answered(&mut self, answer: &Answer, started: Instant) {
        *self.statuses.entry(answer.head.status.as_u16().to_string()).or_default() += 1;
        self.received += answer.received;
        if let Some(version) = answer.head.headers.get(VERSION_HEADER) {
            *self.versions.entry(String::from_utf8_lossy(version.as_bytes()).into_owned()).or_default() += 1;
        }
        let text = String::from_utf8_lossy(&answer.shown);
        self.last = json!({
            "status": answer.head.status.as_u16(),
            "headers": shown(&answer.head.headers),
            "body": serde_json::from_str(&text).unwrap_or_else(|_| Value::String(text.into_owned())),
            "trailers": shown(&answer.trailers),
            "ms": started.elapsed().as_secs_f64() * 1e3,
        });
    }
}

/// Of a repeated header, the last line.
fn shown(headers: &HeaderMap) -> BTreeMap<&str, String> {
    let text = |value: &hyper::header::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    headers.iter().map(|(name, value)| (name.as_str(), text(value))).collect()
}
