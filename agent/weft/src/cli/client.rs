//! Asks a running agent over its admin socket.

use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context, bail};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

const LIMIT: Duration = Duration::from_secs(10);

/// `GET path`; the body as JSON text. Any other answer than 200 is an error with the agent's own words.
pub(super) fn get(socket: &Path, path: &str) -> anyhow::Result<String> {
    let at = socket.display().to_string();
    within_limit(&at, async {
        let stream = UnixStream::connect(socket).await.with_context(|| {
            format!(
                "no agent answers at {at}: is it running, and is this its admin socket (`--socket`, in the agent \
                 `--admin-socket`)? To ask the agents of a cluster, give --kubeconfig or --context"
            )
        })?;
        ask(stream, path).await
    })
}

/// `GET path` of the agent that listens at a TCP address of this machine.
pub(super) fn get_tcp(address: &str, path: &str) -> anyhow::Result<String> {
    within_limit(address, async {
        let stream = TcpStream::connect(address).await;
        ask(stream.with_context(|| format!("no agent answers at {address}"))?, path).await
    })
}

fn within_limit(at: &str, ask: impl Future<Output = anyhow::Result<String>>) -> anyhow::Result<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answer = runtime.block_on(async { tokio::time::timeout(LIMIT, ask).await });
    answer.with_context(|| format!("the agent at {at} did not answer within {} s", LIMIT.as_secs()))?
}

async fn ask(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    path: &str,
) -> anyhow::Result<String> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request =
        Request::builder().method(Method::GET).uri(path).header("host", "weft").body(Empty::<Bytes>::new())?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        anyhow::Ok((status, String::from_utf8_lossy(&body).into_owned()))
    };
    let mut exchange = pin!(exchange);
    let (status, body) = tokio::select! {
        answer = &mut exchange => answer?,
        // The agent closes after its answer, which may be read by now but not taken yet.
        ended = connection => {
            ended?;
            exchange.await.context("the agent closed the connection without an answer")?
        }
    };
    if status != StatusCode::OK {
        bail!("{}", body.trim_end());
    }
    Ok(body)
}

/// Percent-encodes a value for a query string.
pub(super) fn encode(value: &str) -> String {
    use std::fmt::Write;

    let mut out = String::with_capacity(value.len());
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/:".contains(&byte) {
            out.push(byte.into());
        } else {
            // Writing to a String cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}
