//! The policies that istiod sends to a ztunnel (recorded, see `cargo xtask record`) and what we make of the same YAML:
//! the same connections get in. What differs must be listed in `ztunnel-differences.txt`.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use weft_core::compile::CompileOptions;
use weft_core::decide::inbound::{InboundConnection, Verdict, inbound};
use weft_core::resource::{AuthorizationPolicy, PolicyAction};
use weft_core::snapshot::{LocalWorkload, Snapshot};
use weft_core::{Identity, Severity};
use weft_interop_tests::{Connection, Difference, Differences, Told};

const DIFFERENCES: &str = include_str!("../ztunnel-differences.txt");
/// Clients; the last ones are nobody's.
const CLIENTS: [(&str, &str); 7] = [
    ("shop", "web"),
    ("shop", "db"),
    ("shop", "admin"),
    ("other", "web"),
    ("other", "db"),
    ("third", "web"),
    ("shopping", "web"),
];
const ADDRESSES: [&str; 8] = [
    "10.1.0.10",
    "10.1.0.130",
    "10.1.0.200",
    "10.2.0.5",
    "192.168.1.1",
    "203.0.113.7",
    "2001:db8::5",
    "fd00::1",
];
const PORTS: [u16; 5] = [80, 443, 8080, 9090, 9091];

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/ztunnel")
}

/// Our view of a case.
fn snapshot(case: &Path) -> Arc<Snapshot> {
    let options = CompileOptions { node: None, adopt_istio_labels: true, endpoints_from_pods: true };
    let loaded = weft_control::load(&[directory().join("world"), case.to_owned()], options).unwrap();
    let refused = loaded.problems.iter().find(|problem| problem.severity == Severity::Error);
    assert!(refused.is_none(), "{}: {}", case.display(), refused.unwrap());
    loaded.snapshot
}

/// Every client, address and port that may make a difference.
fn connections(told: &Told, to: &LocalWorkload) -> Vec<Connection> {
    let addresses = ADDRESSES.iter().map(|text| text.parse().unwrap()).chain(told.addresses());
    let addresses: BTreeSet<IpAddr> = addresses.collect();
    let owned = |(namespace, account): &(&str, &str)| (namespace.to_string(), account.to_string());
    let identities: Vec<_> = CLIENTS.iter().map(|client| Some(owned(client))).chain([None]).collect();
    let destination = to.workload.ips.first().copied().unwrap();
    let mut all = Vec::new();
    for identity in &identities {
        for source in &addresses {
            for port in PORTS {
                let destination = SocketAddr::new(destination, port);
                all.push(Connection { identity: identity.clone(), source: *source, destination });
            }
        }
    }
    all
}

fn admitted(to: &LocalWorkload, connection: &Connection) -> bool {
    let identity = connection.identity.as_ref();
    let identity =
        identity.map(|(namespace, account)| Identity::new("cluster.local", &**namespace, &**account));
    let decision = inbound(
        to,
        &InboundConnection {
            identity: identity.as_ref(),
            source_ip: connection.source,
            destination: connection.destination,
            sni: None,
        },
    );
    decision.verdict == Verdict::Allow
}

/// As [`Told::outline`].
fn outline(policy: &AuthorizationPolicy) -> String {
    let action = match policy.action {
        PolicyAction::Allow => "ALLOW",
        PolicyAction::Deny => "DENY",
        PolicyAction::Audit => "AUDIT",
        PolicyAction::Custom => "CUSTOM",
    };
    let mut rules: Vec<Vec<usize>> = Vec::new();
    for rule in &policy.rules {
        let clauses = [rule.from.len(), rule.to.len()].into_iter().filter(|number| *number > 0);
        let mut clauses: Vec<usize> = clauses.chain(rule.when.iter().map(|_| 1)).collect();
        clauses.sort_unstable();
        rules.push(clauses);
    }
    rules.sort_unstable();
    let dry_run = if policy.dry_run { " dry-run" } else { "" };
    format!("{} {action}{dry_run} {rules:?}", policy.meta.key)
}

fn differences(case: &str, told: &Told, to: &LocalWorkload) -> Vec<Difference> {
    let workload = to.workload.key.to_string();
    let name = format!("{case}/{workload}");
    let mut ours: Vec<String> = to.policies.policies().map(|policy| outline(policy)).collect();
    ours.sort_unstable();
    let theirs = told.outline(&workload);
    let mut found = Vec::new();
    if ours != theirs {
        let text = |lines: Vec<String>| Some(lines.join(", ")).filter(|text| !text.is_empty());
        let (theirs, own) = (text(theirs), text(ours));
        found.push(Difference { case: name.clone(), field: "policies".to_owned(), theirs, own });
    }
    // One line for each direction, however many connections there are.
    let mut seen = BTreeSet::new();
    for connection in connections(told, to) {
        let (theirs, own) = (told.allows(&workload, &connection), admitted(to, &connection));
        let who = if connection.identity.is_some() { "verdict" } else { "verdict.plaintext" };
        if theirs != own && seen.insert((who, theirs)) {
            let word = |allowed: bool| Some(if allowed { "allow" } else { "deny" }.to_owned());
            let (theirs, own) = (word(theirs), word(own));
            println!("{name}: {connection:?}");
            found.push(Difference { case: name.clone(), field: who.to_owned(), theirs, own });
        }
    }
    found
}

#[test]
fn what_ztunnel_lets_in_we_let_in() {
    let mut found = Vec::new();
    let mut cases = 0;
    for entry in fs::read_dir(directory()).unwrap().flatten() {
        let path = entry.path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let case = path.file_stem().unwrap().to_string_lossy().into_owned();
        let told = Told::read(&path.with_extension("json"));
        let snapshot = snapshot(&path);
        assert_eq!(snapshot.local().len(), 3, "{case}");
        cases += 1;
        found.extend(snapshot.local().iter().flat_map(|to| differences(&case, &told, to)));
    }
    assert!(cases >= 30, "only {cases} cases");
    let wrong = Differences::read(DIFFERENCES).judge(&found);
    assert!(wrong.is_empty(), "{wrong}");
}
