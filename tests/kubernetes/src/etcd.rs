//! The few requests to etcd that no Kubernetes client makes, over its JSON gateway.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

/// Refuses until etcd serves.
pub(crate) fn healthy(address: SocketAddr) -> Result<()> {
    let answer = request(address, "GET", "/health", "")?;
    ensure!(answer.get("health").and_then(Value::as_str) == Some("true"), "etcd says {answer}");
    Ok(())
}

/// Forgets every revision but the newest.
pub(crate) fn compact(address: SocketAddr) -> Result<()> {
    let any_key = json!({ "key": "AA==", "limit": 1 });
    let answer = request(address, "POST", "/v3/kv/range", &any_key.to_string())?;
    let revision = answer.pointer("/header/revision").and_then(Value::as_str);
    let revision: u64 = revision.with_context(|| format!("etcd says {answer}"))?.parse()?;
    let order = json!({ "revision": revision, "physical": true });
    let answer = request(address, "POST", "/v3/kv/compaction", &order.to_string())?;
    ensure!(answer.get("header").is_some(), "etcd says {answer}");
    Ok(())
}

/// In HTTP/1.0, which has no chunks.
pub(crate) fn request(address: SocketAddr, method: &str, path: &str, body: &str) -> Result<Value> {
    let limit = Duration::from_secs(30);
    let mut stream = TcpStream::connect_timeout(&address, limit).context("etcd cannot be reached")?;
    stream.set_read_timeout(Some(limit))?;
    write!(stream, "{method} {path} HTTP/1.0\r\ncontent-length: {}\r\n\r\n{body}", body.len())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let body = answer.split_once("\r\n\r\n").context("etcd does not answer in HTTP")?.1;
    serde_json::from_str(body).with_context(|| format!("etcd does not answer in JSON: {body}"))
}
