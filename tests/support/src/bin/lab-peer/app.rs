//! An HTTP application: says who answers and what it was asked, and fails as it is told to.
//!
//! HTTP/1.1 with upgrades and HTTP/2 (prior knowledge, gRPC) on every port. What a request may ask for in its query:
//! `status=N`, `delay_ms=N`, `bytes=N` (size of the answer), `fail=N&key=K` (the first N requests with this key are
//! answered with 503). `/control?status=N` makes every later answer N until `/control` heals it; `/seen` tells how many
//! requests came for each path. Neither is counted itself.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderValue, UPGRADE};
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::body::{Echo, Outgoing, full, pattern};
use crate::dial::plain;
use crate::serve::listen;

/// Header of every answer: who gave it.
pub(crate) const VERSION_HEADER: &str = "x-app-version";

#[derive(Debug, Args)]
pub(crate) struct AppArgs {
    /// What answers say about who gave them.
    #[arg(long)]
    version: String,
    /// Ports to listen on.
    #[arg(required = true)]
    ports: Vec<u16>,
}

/// What the application remembers between requests.
struct App {
    version: String,
    /// Status of every answer; 0 for each request's own.
    ill: AtomicU16,
    memory: Mutex<Memory>,
}

#[derive(Default)]
struct Memory {
    seen: BTreeMap<String, u64>,
    failed: BTreeMap<String, u64>,
}

impl App {
    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) fn run(args: &AppArgs) -> Result<()> {
    let app = App { version: args.version.clone(), ill: AtomicU16::new(0), memory: Mutex::default() };
    let app = Arc::new(app);
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let mut listeners = tokio::task::JoinSet::new();
        for port in &args.ports {
            let listener = listen(*port)?;
            listener.set_nonblocking(true)?;
            listeners.spawn(accept(app.clone(), TcpListener::from_std(listener)?));
        }
        println!("{}", json!({ "listening": args.ports }));
        listeners.join_all().await;
        Ok(())
    })
}

async fn accept(app: Arc<App>, listener: TcpListener) {
    loop {
        if let Ok((stream, client)) = listener.accept().await {
            let _ = stream.set_nodelay(true);
            tokio::spawn(serve(app.clone(), stream, client));
        }
    }
}

/// What a client does to its connection is not the server's failure.
async fn serve(app: Arc<App>, stream: TcpStream, client: SocketAddr) {
    let mut first = [0; 4];
    let preface = stream.peek(&mut first).await.is_ok() && first == *b"PRI ";
    let service = service_fn(move |request| {
        let app = app.clone();
        async move { Ok::<_, Infallible>(answer(&app, client, request).await) }
    });
    let stream = TokioIo::new(stream);
    if preface {
        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        let _ = server.serve_connection(stream, service).await;
    } else {
        let server = hyper::server::conn::http1::Builder::new();
        let _ = server.serve_connection(stream, service).with_upgrades().await;
    }
}

async fn answer(app: &App, client: SocketAddr, request: Request<Incoming>) -> Response<Outgoing> {
    let query = Query(request.uri().query().unwrap_or_default().to_owned());
    let mut response = match request.uri().path() {
        "/control" => {
            app.ill.store(query.number("status").unwrap_or(0), Ordering::Relaxed);
            text(StatusCode::OK, "done")
        }
        "/seen" => document(StatusCode::OK, &json!({ "version": app.version, "paths": app.memory().seen })),
        path => {
            *app.memory().seen.entry(path.to_owned()).or_default() += 1;
            tokio::time::sleep(Duration::from_millis(query.number("delay_ms").unwrap_or(0))).await;
            ordinary(app, client, &query, request).await
        }
    };
    if let Ok(version) = HeaderValue::from_str(&app.version) {
        response.headers_mut().insert(VERSION_HEADER, version);
    }
    response
}

async fn ordinary(
    app: &App,
    client: SocketAddr,
    query: &Query,
    request: Request<Incoming>,
) -> Response<Outgoing> {
    let is = |name, wanted: &str| {
        request
            .headers()
            .get(name)
            .and_then(|value| value.to_str().ok())
            .is_some_and(|it| it.starts_with(wanted))
    };
    if is(UPGRADE, "websocket") {
        return switch_protocols(request);
    }
    let status = status(app, query);
    if is(CONTENT_TYPE, "application/grpc") {
        return grpc(status, request);
    }
    if let (StatusCode::OK, Some(bytes)) = (status, query.number("bytes")) {
        return Response::new(pattern(bytes));
    }
    let mut seen = description(app, client, &request);
    let bytes = count(request.into_body()).await;
    if let Some(seen) = seen.as_object_mut() {
        seen.insert("body_bytes".to_owned(), bytes.into());
    }
    document(status, &seen)
}

fn status(app: &App, query: &Query) -> StatusCode {
    let ill = app.ill.load(Ordering::Relaxed);
    let asked = if ill == 0 { query.number("status").unwrap_or(200) } else { ill };
    let fails = query.number::<u64>("fail").is_some_and(|times| {
        let mut memory = app.memory();
        let failed = memory.failed.entry(query.get("key").unwrap_or_default().to_owned()).or_default();
        *failed += 1;
        *failed <= times
    });
    StatusCode::from_u16(if fails { 503 } else { asked }).unwrap_or(StatusCode::BAD_REQUEST)
}

fn description(app: &App, client: SocketAddr, request: &Request<Incoming>) -> Value {
    let mut headers: BTreeMap<&str, String> = BTreeMap::new();
    for (name, value) in request.headers() {
        let text = headers.entry(name.as_str()).or_default();
        *text = [text.as_str(), &String::from_utf8_lossy(value.as_bytes())]
            .into_iter()
            .filter(|it| !it.is_empty())
            .collect::<Vec<_>>()
            .join(", ");
    }
    let authority = request.uri().authority().map(ToString::to_string);
    let host = request.headers().get(HOST).map(|host| String::from_utf8_lossy(host.as_bytes()).into_owned());
    json!({
        "version": app.version,
        "method": request.method().as_str(),
        "path": request.uri().path_and_query().map(ToString::to_string),
        "protocol": format!("{:?}", request.version()),
        "authority": authority.or(host),
        "headers": headers,
        "client": plain(client).ip().to_string(),
    })
}

async fn count(mut body: Incoming) -> u64 {
    let mut bytes = 0;
    while let Some(Ok(frame)) = body.frame().await {
        bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
    }
    bytes
}

/// Echoes messages; a status that is not 200, or the header `x-grpc-status`, becomes one of gRPC in a head alone.
fn grpc(status: StatusCode, request: Request<Incoming>) -> Response<Outgoing> {
    let asked = request.headers().get("x-grpc-status").cloned();
    let failed = (status != StatusCode::OK).then(|| HeaderValue::from_static("14"));
    let streams = !request.body().is_end_stream();
    let mut response = match asked.or(failed) {
        Some(status) => {
            let mut response = Response::new(full(""));
            response.headers_mut().insert("grpc-status", status);
            response
        }
        None if streams => {
            let trailers = HeaderMap::from_iter([(
                hyper::header::HeaderName::from_static("grpc-status"),
                HeaderValue::from_static("0"),
            )]);
            let echo = Echo { incoming: request.into_body(), trailers: Some(trailers) };
            Response::new(echo.boxed_unsync())
        }
        None => text(StatusCode::OK, ""),
    };
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// Becomes an echo server. The answer to the key is that of RFC 6455 section 1.3, whose key the client sends.
fn switch_protocols(request: Request<Incoming>) -> Response<Outgoing> {
    tokio::spawn(async move {
        let Ok(upgraded) = hyper::upgrade::on(request).await else { return };
        let mut stream = TokioIo::new(upgraded);
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(read @ 1..) = stream.read(&mut buffer).await {
            if stream.write_all(buffer.get(..read).unwrap_or_default()).await.is_err() {
                return;
            }
        }
    });
    let mut response = text(StatusCode::SWITCHING_PROTOCOLS, "");
    let headers = response.headers_mut();
    headers.remove(CONTENT_TYPE);
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert("sec-websocket-accept", HeaderValue::from_static("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    response
}

fn document(status: StatusCode, value: &Value) -> Response<Outgoing> {
    let mut response = Response::new(full(value.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn text(status: StatusCode, body: &'static str) -> Response<Outgoing> {
    let mut response = Response::new(full(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

/// `name=value&…`; nothing is decoded.
struct Query(String);

impl Query {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.split('&').filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name).map(|it| it.1)
    }

    fn number<T: std::str::FromStr>(&self, name: &str) -> Option<T> {
        self.get(name)?.parse().ok()
    }
}
