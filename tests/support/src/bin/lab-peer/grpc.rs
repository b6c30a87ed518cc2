//! Unary gRPC calls over one HTTP/2 connection, many at a time.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::client::conn::http2::{self, SendRequest};
use hyper::header::{CONTENT_TYPE, TE};
use hyper::{Request, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::net::TcpStream;

use crate::body::{Outgoing, messages};
use crate::dial::congestion_control;
use crate::load::LoadArgs;

pub(crate) fn run(args: &LoadArgs) -> Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(calls(args))
}

async fn calls(args: &LoadArgs) -> Result<()> {
    let stream = args.dial()?;
    let algorithm = congestion_control(&stream)?;
    stream.set_nonblocking(true)?;
    let stream = TokioIo::new(TcpStream::from_std(stream)?);
    let (sender, connection) =
        http2::handshake(TokioExecutor::new(), stream).await.context("HTTP/2 is not spoken")?;
    tokio::spawn(connection);
    let started = Instant::now();
    let end = args.end();
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..args.n.max(1) {
        let (sender, authority) = (sender.clone(), args.authority());
        callers.spawn(async move {
            let mut count = 0_u64;
            while Instant::now() < end {
                call(sender.clone(), &authority).await?;
                count += 1;
            }
            anyhow::Ok(count)
        });
    }
    let mut requests = 0;
    for count in callers.join_all().await {
        requests += count?;
    }
    let seconds = started.elapsed().as_secs_f64();
    println!("{}", json!({ "requests": requests, "seconds": seconds, "congestion_control": algorithm }));
    Ok(())
}

async fn call(mut sender: SendRequest<Outgoing>, authority: &str) -> Result<()> {
    let request = Request::post(format!("http://{authority}/bench.Echo/Say"))
        .version(Version::HTTP_2)
        .header(CONTENT_TYPE, "application/grpc")
        .header(TE, "trailers")
        .body(messages(1, 100))?;
    sender.ready().await?;
    let answer = sender.send_request(request).await?;
    let early = answer.headers().get("grpc-status").cloned();
    let body = answer.into_body().collect().await?;
    let status = body.trailers().and_then(|trailers| trailers.get("grpc-status").cloned()).or(early);
    ensure!(status.as_ref().is_some_and(|status| status == "0"), "the call ended with status {status:?}");
    let _: Bytes = body.to_bytes();
    Ok(())
}
