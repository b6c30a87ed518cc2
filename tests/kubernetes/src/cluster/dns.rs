//! The cluster's name server: Services by name, as much of it as the agent and the tests ask for.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use super::ADDRESS;
use crate::ControlPlane;

const PORT: u16 = 53;
const ZONE: &str = ".svc.cluster.local";
/// Names that were not there are looked for again so often.
const PATIENCE: Duration = Duration::from_millis(500);

const HEADER: usize = 12;
const TYPE_A: [u8; 4] = [0, 1, 0, 1];
/// An answer, recursion available, no error.
const FOUND: [u8; 2] = [0x81, 0x80];
/// The same with NXDOMAIN.
const UNKNOWN: [u8; 2] = [0x81, 0x83];

/// Serves on the bridge until the process ends.
pub(super) fn serve(plane: Arc<ControlPlane>) -> Result<()> {
    let socket =
        UdpSocket::bind(SocketAddr::from((ADDRESS, PORT))).context("the name server cannot listen")?;
    std::thread::spawn(move || {
        let mut names = Names { plane, known: HashMap::new(), asked: None };
        let mut buffer = [0; 1500];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let reply = buffer.get(..length).and_then(|query| answer(query, |name| names.find(name)));
            if let Some(reply) = reply {
                // A client that has gone asks again or not at all.
                let _ = socket.send_to(&reply, from);
            }
        }
    });
    Ok(())
}

struct Names {
    plane: Arc<ControlPlane>,
    known: HashMap<String, Ipv4Addr>,
    asked: Option<Instant>,
}

impl Names {
    fn find(&mut self, name: &str) -> Option<Ipv4Addr> {
        let name = name.to_ascii_lowercase();
        let service = name.strip_suffix(ZONE)?.to_owned();
        // `SERVICE.NAMESPACE`; longer names come from search lists.
        if service.split('.').count() != 2 {
            return None;
        }
        if !self.known.contains_key(&service) && self.asked.is_none_or(|at| at.elapsed() > PATIENCE) {
            self.known = services(&self.plane).unwrap_or_default();
            self.asked = Some(Instant::now());
        }
        self.known.get(&service).copied()
    }
}

fn services(plane: &ControlPlane) -> Result<HashMap<String, Ipv4Addr>> {
    let list: Value = serde_json::from_str(&plane.kubectl(&["get", "services", "-A", "-o=json"])?)?;
    let items = list.get("items").and_then(Value::as_array).into_iter().flatten();
    let text = |item: &Value, at: &str| item.pointer(at).and_then(Value::as_str).map(str::to_owned);
    Ok(items
        .filter_map(|item| {
            let name = format!("{}.{}", text(item, "/metadata/name")?, text(item, "/metadata/namespace")?);
            Some((name, text(item, "/spec/clusterIP")?.parse().ok()?))
        })
        .collect())
}

/// The reply to a query (RFC 1035, section 4): A records; other types of a name that is there have none.
fn answer(query: &[u8], find: impl FnOnce(&str) -> Option<Ipv4Addr>) -> Option<Vec<u8>> {
    let (name, after_name) = read_name(query)?;
    let kind = query.get(after_name..after_name + 4)?;
    let address = find(&name);
    let record = address.filter(|_| kind == TYPE_A);
    let mut reply = query.get(..2)?.to_vec();
    reply.extend(if address.is_some() { FOUND } else { UNKNOWN });
    reply.extend([0, 1, 0, u8::from(record.is_some()), 0, 0, 0, 0]);
    reply.extend(query.get(HEADER..after_name + 4)?);
    if let Some(address) = record {
        // The name is that of the question; 1 second to live; 4 bytes.
        reply.extend([0xc0, 12]);
        reply.extend(TYPE_A);
        reply.extend([0, 0, 0, 1, 0, 4]);
        reply.extend(address.octets());
    }
    Some(reply)
}

/// The name in the question, and where it ends.
fn read_name(query: &[u8]) -> Option<(String, usize)> {
    let mut at = HEADER;
    let mut labels = Vec::new();
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            return Some((labels.join("."), at));
        }
        labels.push(String::from_utf8_lossy(query.get(at..at + length)?).into_owned());
        at += length;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(kind: u8) -> Vec<u8> {
        let mut query = vec![7, 8, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in ["web", "shop", "svc", "cluster", "local"] {
            query.push(u8::try_from(label.len()).unwrap());
            query.extend(label.as_bytes());
        }
        query.extend([0, 0, kind, 0, 1]);
        query
    }

    #[test]
    fn addresses_are_given_to_those_who_ask_for_them() {
        let find = |name: &str| (name == "web.shop.svc.cluster.local").then_some(Ipv4Addr::new(10, 96, 0, 7));
        let reply = answer(&query(1), find).unwrap();
        assert_eq!(reply[..4], [7, 8, 0x81, 0x80]);
        assert_eq!(reply[reply.len() - 4..], [10, 96, 0, 7]);
        let other = answer(&query(28), find).unwrap();
        assert_eq!(other[2..8], [0x81, 0x80, 0, 1, 0, 0], "there is a name, but no such record");
        let unknown = answer(&query(1), |_| None).unwrap();
        assert_eq!(unknown[3] & 15, 3);
    }

    #[test]
    fn cut_queries_get_no_answer() {
        let whole = query(1);
        for length in 0..whole.len() {
            assert_eq!(answer(&whole[..length], |_| None), None);
        }
    }
}
