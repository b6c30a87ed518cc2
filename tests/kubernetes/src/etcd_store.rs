//! Objects past the API server, for tests that need very many of them.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::etcd::request;

/// A change of one key.
#[derive(Debug, Clone)]
pub enum Write {
    /// The key gets a value.
    Put(String, Vec<u8>),
    /// The key goes.
    Delete(String),
}

impl Write {
    fn operation(&self) -> Value {
        match self {
            Self::Put(key, value) => json!({
                "requestPut": { "key": STANDARD.encode(key), "value": STANDARD.encode(value) },
            }),
            Self::Delete(key) => json!({ "requestDeleteRange": { "key": STANDARD.encode(key) } }),
        }
    }
}

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

/// Makes some changes of different keys in one transaction, at most 128.
///
/// # Errors
/// etcd refuses.
pub fn write(address: SocketAddr, writes: &[Write]) -> Result<()> {
    let operations: Vec<Value> = writes.iter().map(Write::operation).collect();
    let answer = request(address, "POST", "/v3/kv/txn", &json!({ "success": operations }).to_string())?;
    ensure!(answer.get("succeeded").is_some(), "etcd says {answer}");
    Ok(())
}
