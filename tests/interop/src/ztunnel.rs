//! What ztunnel makes of the policies that istiod sends to it, from their description in `istio.security.Authorization`.
//!
//! A DENY that matches denies; without an ALLOW everybody is allowed; else an ALLOW has to match. A policy matches with
//! one of its groups, a group with all of its rules, a rule with one of its matches, a match with all of its fields.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

/// A connection as ztunnel sees it at the server's side.
#[derive(Debug, Clone)]
pub struct Connection {
    /// Namespace and service account of the client's certificate.
    pub identity: Option<(String, String)>,
    /// Address of the client.
    pub source: IpAddr,
    /// Address and port of the workload.
    pub destination: SocketAddr,
}

impl Connection {
    /// The identity as it stands in policies, without `spiffe://`.
    pub fn principal(&self) -> Option<String> {
        let (namespace, account) = self.identity.as_ref()?;
        Some(format!("cluster.local/ns/{namespace}/sa/{account}"))
    }
}

/// What a ztunnel was told in one case.
#[derive(Debug)]
pub struct Told {
    policies: Vec<Value>,
    workloads: BTreeMap<String, Vec<String>>,
}

/// Names of the policies into which istiod converts PeerAuthentications.
const CONVERTED: [&str; 2] = ["istio_converted_static_strict", "converted_peer_authentication_"];

impl Told {
    /// Reads a recorded case.
    pub fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path).expect("a case is recorded; see `cargo xtask record`");
        let told: Value = serde_json::from_str(&text).expect("it is JSON");
        let part = |name: &str| told.get(name).cloned().expect("it has all parts");
        Self {
            policies: serde_json::from_value(part("policies")).expect("policies are a list"),
            workloads: serde_json::from_value(part("workloads")).expect("workloads are a map"),
        }
    }

    /// The policies of a workload (`namespace/name`).
    fn of<'t>(&'t self, workload: &'t str) -> impl Iterator<Item = &'t Value> {
        let namespace = workload.split('/').next().unwrap_or_default();
        let listed = self.workloads.get(workload).expect("the workload is known");
        self.policies.iter().filter(move |policy| match text(policy, "scope") {
            "NAMESPACE" => text(policy, "namespace") == namespace,
            "WORKLOAD_SELECTOR" => listed.contains(&key(policy)),
            // The zero value is not written.
            _ => true,
        })
    }

    /// Whether the workload lets the connection in.
    pub fn allows(&self, workload: &str, connection: &Connection) -> bool {
        let enforced =
            || self.of(workload).filter(|policy| policy.get("dry_run") != Some(&Value::Bool(true)));
        let denies = |policy: &&Value| text(policy, "action") == "DENY";
        if enforced().filter(denies).any(|policy| matches(policy, connection)) {
            return false;
        }
        let mut allowing = enforced().filter(|policy| !denies(policy)).peekable();
        allowing.peek().is_none() || allowing.any(|policy| matches(policy, connection))
    }

    /// The AuthorizationPolicies of a workload in words: name, action, and for each rule how many alternatives each of
    /// its clauses has.
    pub fn outline(&self, workload: &str) -> Vec<String> {
        let own = self
            .of(workload)
            .filter(|policy| !CONVERTED.iter().any(|converted| text(policy, "name").starts_with(converted)));
        let mut lines: Vec<String> = own.map(outline).collect();
        lines.sort_unstable();
        lines
    }

    /// Blocks of addresses that policies name, as the first address of each.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let mut found = Vec::new();
        self.policies.iter().for_each(|policy| collect_addresses(policy, &mut found));
        found
    }
}

fn text<'v>(value: &'v Value, name: &str) -> &'v str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn list<'v>(value: &'v Value, name: &str) -> &'v [Value] {
    value.get(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn key(policy: &Value) -> String {
    format!("{}/{}", text(policy, "namespace"), text(policy, "name"))
}

fn outline(policy: &Value) -> String {
    let action = if text(policy, "action") == "DENY" { "DENY" } else { "ALLOW" };
    let mut rules: Vec<Vec<usize>> = list(policy, "groups")
        .iter()
        .map(|group| list(group, "rules").iter().map(|rule| list(rule, "matches").len()).collect())
        .collect();
    // istiod sorts them in its own way.
    rules.iter_mut().for_each(|rule| rule.sort_unstable());
    rules.sort_unstable();
    let dry_run = if policy.get("dry_run").is_some() { " dry-run" } else { "" };
    format!("{} {action}{dry_run} {rules:?}", key(policy))
}

fn collect_addresses(value: &Value, found: &mut Vec<IpAddr>) {
    match value {
        Value::Object(fields) => {
            found.extend(value.get("address").and_then(|_| address(value)));
            fields.values().for_each(|value| collect_addresses(value, found));
        }
        Value::Array(values) => values.iter().for_each(|value| collect_addresses(value, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn address(block: &Value) -> Option<IpAddr> {
    let bytes = STANDARD.decode(text(block, "address")).ok()?;
    let v4 = <[u8; 4]>::try_from(bytes.as_slice()).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes.as_slice()).map(IpAddr::from)).ok()
}

fn matches(policy: &Value, connection: &Connection) -> bool {
    list(policy, "groups").iter().any(|group| {
        list(group, "rules").iter().all(|rule| {
            let alternatives = list(rule, "matches");
            alternatives.is_empty() || alternatives.iter().any(|one| is_match(one, connection))
        })
    })
}

fn is_match(fields: &Value, connection: &Connection) -> bool {
    // A match that asks for nothing matches nothing.
    fields.as_object().is_some_and(|fields| !fields.is_empty())
        && both(fields, "namespaces", |wanted| {
            is_text(wanted, connection.identity.as_ref().map(|(namespace, _)| namespace.as_str()))
        })
        && both(fields, "principals", |wanted| is_text(wanted, connection.principal().as_deref()))
        && both(fields, "service_accounts", |wanted| {
            connection.identity.as_ref().is_some_and(|(namespace, account)| {
                text(wanted, "namespace") == namespace && text(wanted, "serviceAccount") == account
            })
        })
        && both(fields, "source_ips", |block| contains(block, connection.source))
        && both(fields, "destination_ips", |block| contains(block, connection.destination.ip()))
        && both(fields, "destination_ports", |port| port == connection.destination.port())
}

/// One of the values, where there are any; none of those that must not be.
fn both(fields: &Value, name: &str, is: impl Fn(&Value) -> bool) -> bool {
    let wanted = list(fields, name);
    let unwanted = list(fields, &format!("not_{name}")).iter().any(&is);
    (wanted.is_empty() || wanted.iter().any(&is)) && !unwanted
}

fn is_text(wanted: &Value, value: Option<&str>) -> bool {
    let Some(value) = value else { return false };
    let part = |name: &str| wanted.get(name).and_then(Value::as_str);
    wanted.get("presence").is_some()
        || part("exact").is_some_and(|exact| value == exact)
        || part("prefix").is_some_and(|prefix| value.starts_with(prefix))
        || part("suffix").is_some_and(|suffix| value.ends_with(suffix))
}

fn contains(block: &Value, ip: IpAddr) -> bool {
    let length = block.get("length").and_then(Value::as_u64).unwrap_or(0);
    let length = u32::try_from(length).expect("a length is small");
    match (address(block), ip) {
        (Some(IpAddr::V4(base)), IpAddr::V4(ip)) => {
            (base.to_bits() ^ ip.to_bits()).checked_shr(32 - length).unwrap_or(0) == 0
        }
        (Some(IpAddr::V6(base)), IpAddr::V6(ip)) => {
            (base.to_bits() ^ ip.to_bits()).checked_shr(128 - length).unwrap_or(0) == 0
        }
        _ => false,
    }
}
