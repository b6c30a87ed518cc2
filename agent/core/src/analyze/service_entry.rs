//! ServiceEntries: addresses, and protocols that contradict each other.

use std::collections::BTreeMap;

use super::hosts::{EVERYWHERE, scopes};
use super::objects::{ObjectSet, ServiceEntry};
use super::{Findings, codes, listed};

/// Checks all ServiceEntries.
pub(super) fn check(set: &ObjectSet, findings: &mut Findings) {
    if !set.mesh.as_ref().is_some_and(|mesh| mesh.allocates_addresses) {
        set.service_entries.iter().for_each(|entry| addresses(entry, findings));
    }
    protocols(set, findings);
}

/// Plain TCP does not name its host: without an address of its own, a connection cannot be told from others to
/// the same port.
fn addresses(entry: &ServiceEntry, findings: &mut Findings) {
    if entry.has_addresses {
        return;
    }
    for (at, (port, protocol)) in entry.ports.iter().enumerate() {
        if protocol.is_empty() || protocol.eq_ignore_ascii_case("TCP") {
            let field = format!("spec.ports[{at}]");
            let message =
                format!("Port {port} carries TCP, but the ServiceEntry has no addresses to know it by.");
            let fix = "Add `addresses`, or name the protocol.";
            findings.add(codes::ADDRESSES_REQUIRED, (&entry.head, &field), message, fix);
        }
    }
}

/// Protocols of a host's port, with who says so.
type Claims<'s> = BTreeMap<(&'s str, &'s str, i64), Vec<(&'s str, &'s ServiceEntry)>>;

fn protocols(set: &ObjectSet, findings: &mut Findings) {
    let mut claims = Claims::new();
    for entry in &set.service_entries {
        for scope in scopes(&entry.export_to, &entry.head.namespace) {
            for host in &entry.hosts {
                for (port, protocol) in &entry.ports {
                    claims.entry((scope, host, *port)).or_default().push((protocol, entry));
                }
            }
        }
    }
    for ((scope, host, port), own) in &claims {
        let mut all = own.clone();
        if *scope != EVERYWHERE {
            all.extend(claims.get(&(EVERYWHERE, *host, *port)).into_iter().flatten());
        }
        let mut names: Vec<String> = all.iter().map(|(protocol, _)| protocol.to_ascii_uppercase()).collect();
        names.sort();
        names.dedup();
        if names.len() > 1 {
            let entries: Vec<String> = all.iter().map(|(_, entry)| entry.head.full_name()).collect();
            let message = format!(
                "The ServiceEntries {} give port {port} of `{host}` different protocols: {}.",
                listed(entries.iter().map(String::as_str)),
                names.join(", ")
            );
            for (_, entry) in &all {
                let place = (&entry.head, "spec.ports");
                findings.add(codes::CONFLICTING_PROTOCOLS, place, message.as_str(), "Agree on one protocol.");
            }
        }
    }
}
