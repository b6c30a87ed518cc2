//! Objects past the API server, for tests that need very many of them.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::etcd::request;

/// The value of a key.
///
/// # Errors
/// There is no such key.
pub fn read(address: SocketAddr, key: &str) -> Result<Vec<u8>> {
    let answer =
        request(address, "POST", "/v3/kv/range", &json!({ "key": STANDARD.encode(key) }).to_string())?;
    let value = answer.pointer("/kvs/0/value").and_then(Value::as_str);
    Ok(STANDARD.decode(value.with_context(|| format!("etcd has no {key}"))?)?)
}

/// Writes some values in one transaction, at most 128.
///
/// # Errors
/// etcd refuses.
pub fn write(address: SocketAddr, pairs: &[(String, Vec<u8>)]) -> Result<()> {
    let put = |(key, value): &(String, Vec<u8>)| json!({ "requestPut": { "key": STANDARD.encode(key), "value": STANDARD.encode(value) } });
    let puts: Vec<Value> = pairs.iter().map(put).collect();
    let answer = request(address, "POST", "/v3/kv/txn", &json!({ "success": puts }).to_string())?;
    ensure!(answer.get("succeeded").is_some(), "etcd says {answer}");
    Ok(())
}
