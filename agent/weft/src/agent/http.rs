//! HTTP for machines: metrics, readiness, admin. Small answers, no bodies in requests.

use std::convert::Infallible;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use anyhow::Context;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::exposition::{BrokenOff, Scraped};

/// Connections of one server at a time; more wait.
const CONNECTIONS: usize = 64;
/// For the head of the request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// For the whole of a connection: whoever does not read his answer must not occupy one for ever.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);
/// Pause after an accept that failed (no descriptors left, for example).
const PAUSE: Duration = Duration::from_millis(100);

/// What is answered.
pub(crate) type Answer = Response<Text>;
type Answering = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// Answers requests of one server.
pub(crate) type Handler = Arc<dyn Fn(Asked) -> Answering + Send + Sync>;

/// A request without its body.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) method: Method,
    pub(crate) path: String,
    query: Vec<(String, String)>,
}

impl Asked {
    fn of(request: &Request<Incoming>) -> Self {
        let query = request.uri().query().unwrap_or_default();
        Self {
            method: request.method().clone(),
            path: request.uri().path().to_owned(),
            query: query.split('&').filter(|pair| !pair.is_empty()).map(pair).collect(),
        }
    }

    /// All parameters of one name, in order.
    pub(crate) fn parameters(&self, name: &str) -> impl Iterator<Item = &str> {
        self.query.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// A parameter of the query.
    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

fn pair(text: &str) -> (String, String) {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    (decode(key), decode(value))
}

/// Undoes percent-encoding; what is not encoded properly stays as it is.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let hex = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        let value = hex.filter(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()));
        match (first, value.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = after.get(2..).unwrap_or_default();
            }
            (b'+', _) => {
                bytes.push(b' ');
                rest = after;
            }
            (other, _) => {
                bytes.push(other);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The body of an answer.
#[derive(Debug)]
pub(crate) enum Text {
    Whole(Full<Bytes>),
    Pieces(Scraped),
}

impl<T: Into<Bytes>> From<T> for Text {
    fn from(text: T) -> Self {
        Self::Whole(Full::new(text.into()))
    }
}

impl From<Scraped> for Text {
    fn from(text: Scraped) -> Self {
        Self::Pieces(text)
    }
}

impl Body for Text {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        match self.get_mut() {
            Self::Whole(text) => Pin::new(text).poll_frame(cx).map_err(|never| match never {}),
            Self::Pieces(text) => Pin::new(text).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(text) => text.is_end_stream(),
            Self::Pieces(text) => text.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(text) => text.size_hint(),
            Self::Pieces(text) => text.size_hint(),
        }
    }
}

/// Text with a status.
pub(crate) fn text(status: StatusCode, kind: &'static str, body: impl Into<Text>) -> Answer {
    let mut answer = Response::new(body.into());
    *answer.status_mut() = status;
    answer.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    answer
}

/// Plain words with a status, ended by a newline.
pub(crate) fn words(status: StatusCode, words: &str) -> Answer {
    text(status, "text/plain; charset=utf-8", format!("{words}\n"))
}

/// Binds a TCP address. Where there is no IPv6, "any address" is that of IPv4.
pub(crate) async fn bind(what: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listener = match TcpListener::bind(address).await {
        Err(error) if is_family(&error) && address.ip().is_unspecified() => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        other => other,
    };
    listener.with_context(|| {
        format!("the address {address} for {what} cannot be used: is another agent running, or is it to be given another one?")
    })
}

fn is_family(error: &std::io::Error) -> bool {
    rustix::io::Errno::from_io_error(error) == Some(rustix::io::Errno::AFNOSUPPORT)
}

/// Serves a TCP listener for ever.
pub(crate) async fn serve_tcp(listener: TcpListener, handler: Handler) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => spawn(stream, handler.clone(), permit),
            Err(error) => pause(&error).await,
        }
    }
}

/// Serves a Unix listener for ever.
pub(crate) async fn serve_unix(listener: UnixListener, handler: Handler) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => spawn(stream, handler.clone(), permit),
            Err(error) => pause(&error).await,
        }
    }
}

async fn pause(error: &std::io::Error) {
    tracing::warn!(%error, "a connection could not be accepted");
    tokio::time::sleep(PAUSE).await;
}

fn spawn(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    handler: Handler,
    permit: OwnedSemaphorePermit,
) {
    tokio::spawn(async move {
        let service = service_fn(|request: Request<Incoming>| {
            let answer = handler(Asked::of(&request));
            async move { Ok::<_, Infallible>(answer.await) }
        });
        let served = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            // Idle connections would take the places of those who ask.
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), service);
        match tokio::time::timeout(CONNECTION_TIMEOUT, served).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "a connection to the agent's own servers failed"),
            Err(_) => tracing::debug!("a connection to the agent's own servers took too long"),
        }
        drop(permit);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded() {
        assert_eq!(decode("a%2Fb+c%20d"), "a/b c d");
        assert_eq!(decode("100%"), "100%");
        assert_eq!(decode("%zz%4"), "%zz%4");
        assert_eq!(decode("%+1"), "% 1");
        assert_eq!(pair("from=shop%2Fcart"), ("from".into(), "shop/cart".into()));
        assert_eq!(pair("plaintext"), ("plaintext".into(), String::new()));
    }
}
