//! What consistent hashing hashes of a request (D-7, E33, E34).

use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::Duration;

use super::fields;
use super::{ClusterPolicy, Request};
use crate::resource::destination_rule::HashKey;

/// What a request hashes to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hash {
    /// The hash; `None` where nothing is hashed or the request lacks it: then any endpoint will do (E33).
    pub value: Option<u64>,
    /// `set-cookie` for the answer, where the client has no cookie yet (E34).
    pub set_cookie: Option<String>,
}

/// Hashes what the policy says. `client` is the client's address, `fresh` a random number for a new cookie.
pub fn hash(policy: &ClusterPolicy, request: &Request<'_>, client: IpAddr, fresh: u64) -> Hash {
    let plain = |value: Option<u64>| Hash { value, set_cookie: None };
    match policy.hash_key() {
        None => Hash::default(),
        Some(HashKey::Header(name)) => plain(header_hash(request, name)),
        Some(HashKey::SourceIp) => plain(Some(source_ip_hash(client))),
        Some(HashKey::Query(name)) => {
            plain(fields::query_parameter(request.target, name).map(|value| bytes_hash(value.as_bytes())))
        }
        Some(HashKey::Cookie { name, path, ttl, attributes }) => {
            if let Some(value) = cookie(request, name) {
                return plain(Some(bytes_hash(value.as_bytes())));
            }
            let Some(ttl) = ttl else { return Hash::default() };
            let value = format!("{fresh:016x}");
            let cookie = set_cookie(name, &value, path.as_deref(), *ttl, attributes);
            Hash { value: Some(bytes_hash(value.as_bytes())), set_cookie: Some(cookie) }
        }
    }
}

/// The hash of a client's address, for connections as well (`useSourceIp`).
pub fn source_ip_hash(client: IpAddr) -> u64 {
    match client {
        IpAddr::V4(ip) => bytes_hash(&ip.octets()),
        IpAddr::V6(ip) => bytes_hash(&ip.octets()),
    }
}

/// A hash that is the same in every process and on every node.
pub(crate) fn bytes_hash(bytes: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in bytes {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    // The sum alone keeps similar values close to each other on a ring.
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

/// All values of the header, in an order that does not depend on that of their lines.
fn header_hash(request: &Request<'_>, name: &str) -> Option<u64> {
    let mut values: Vec<&[u8]> = fields::values(request, name).collect();
    values.sort_unstable();
    (!values.is_empty()).then(|| bytes_hash(&values.join(&b'\n')))
}

/// The value of a cookie without its quotes.
fn cookie<'a>(request: &Request<'a>, name: &str) -> Option<&'a str> {
    let lines = request.headers.get_all(http::header::COOKIE).iter();
    let pairs = lines.filter_map(|line| line.to_str().ok()).flat_map(|line| line.split(';'));
    let mut values = pairs.filter_map(|pair| pair.trim().split_once('='));
    let (_, value) = values.find(|(key, _)| *key == name)?;
    let value = value.trim();
    Some(value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value))
}

fn set_cookie(
    name: &str,
    value: &str,
    path: Option<&str>,
    ttl: Duration,
    attributes: &[(std::sync::Arc<str>, std::sync::Arc<str>)],
) -> String {
    let mut cookie = format!("{name}=\"{value}\"");
    // Writing into a string cannot fail.
    if !ttl.is_zero() {
        let _ = write!(cookie, "; Max-Age={}", ttl.as_secs());
    }
    if let Some(path) = path.filter(|path| !path.is_empty()) {
        let _ = write!(cookie, "; Path={path}");
    }
    for (name, value) in attributes {
        let _ =
            if value.is_empty() { write!(cookie, "; {name}") } else { write!(cookie, "; {name}={value}") };
    }
    cookie.push_str("; HttpOnly");
    cookie
}
