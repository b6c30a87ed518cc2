//! The manifest.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use weft_kubernetes_tests::cluster::{Cluster, Node};
use weft_lab::poll_until;

use super::travel::{agents, plain};
use super::{OUTSIDE, SHOP};
use crate::suite::{LIMIT, describe};

const NAMESPACE: &str = "weft-system";

/// What must be the same after an uninstall: what is on the nodes …
const FILES: &str = r"
cd /etc/cni/net.d && sha256sum *
ls /opt/cni/bin
find /sys/fs/bpf
find /run/weft 2>/dev/null || true
";

/// … and in the pods' network.
const NETWORK: &str = r#"
for netns in /run/netns/cni-*; do
  echo "$netns"
  nsenter --net="$netns" sh -c 'ip rule; ip -6 rule; ip route show table all; iptables -S; iptables -t nat -S; ss -Hltn'
done
"#;

/// The nodes as they were.
#[derive(Debug, Default)]
pub(super) struct Before {
    nodes: Vec<String>,
    /// Of the first node, without the pods' network.
    pub(super) files: String,
}

/// What Weft puts on a node, apart from the pods' network.
pub(super) fn pins_and_plugin(node: &Node) -> Result<String> {
    node.sh(FILES)
}

fn state(node: &Node) -> Result<String> {
    node.sh(&[FILES, NETWORK].concat())
}

impl Before {
    pub(super) fn of(cluster: &Cluster) -> Result<Self> {
        let nodes: Result<Vec<String>> = cluster.nodes().iter().map(state).collect();
        Ok(Self { nodes: nodes?, files: pins_and_plugin(cluster.node("one")?)? })
    }
}

/// Applies definitions and manifest and waits.
pub(super) fn apply(cluster: &Cluster, manifest: &str) -> Result<()> {
    let definitions = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/crds").display().to_string();
    cluster.kubectl(&["apply", "--server-side", "-f", &definitions])?;
    cluster.plane().apply(manifest)?;
    rolled_out(cluster, "deployment", "weft-controller")?;
    rolled_out(cluster, "daemonset", "weft-agent")
}

/// Waits until every pod of it is new and ready.
pub(super) fn rolled_out(cluster: &Cluster, kind: &str, name: &str) -> Result<()> {
    let object = format!("{kind}/{name}");
    let limit = format!("--timeout={}s", LIMIT.as_secs());
    cluster
        .kubectl(&["rollout", "status", "-n", NAMESPACE, &object, &limit])
        .map(drop)
        .with_context(|| format!("{}\n{}", describe(cluster, NAMESPACE, &object), pods(cluster)))
}

fn pods(cluster: &Cluster) -> String {
    let said = |args: &[&str]| cluster.kubectl(args).unwrap_or_else(|e| format!("{e:#}"));
    let events = said(&["get", "events", "-n", NAMESPACE, "--sort-by=.lastTimestamp"]);
    format!("{}\n{events}\n{}", said(&["get", "pods", "-A", "-o=wide"]), agents(cluster))
}

/// Deletes what the manifest made and compares the nodes with what they were.
pub(super) fn remove(cluster: &Cluster, manifest: &str, before: &Before) -> Result<()> {
    let file = cluster.plane().dir().join("manifest.yaml");
    std::fs::write(&file, manifest)?;
    cluster.kubectl(&["delete", "-f", &file.display().to_string(), "--timeout=120s"])?;
    for (node, was) in cluster.nodes().iter().zip(&before.nodes) {
        poll_until(LIMIT, || {
            let is = state(node)?;
            let difference = difference(was, &is);
            ensure!(difference.is_empty(), "node {} is not as it was:\n{difference}", node.name());
            Ok(())
        })?;
    }
    plain(cluster, (OUTSIDE, "stranger"), (SHOP, "web"))?;
    plain(cluster, (SHOP, "client"), (SHOP, "web"))
}

/// Lines that only one of the texts has. Pods that have come or gone meanwhile are not Weft's.
fn difference(was: &str, is: &str) -> String {
    let (old, new) = (by_netns(was), by_netns(is));
    let mut different = String::new();
    for (netns, lines) in &old {
        let Some(now) = new.iter().find(|(other, _)| other == netns).map(|(_, now)| now) else { continue };
        different.extend(
            lines.iter().filter(|line| !now.contains(line)).map(|line| format!("- {netns} {line}\n")),
        );
        different.extend(
            now.iter().filter(|line| !lines.contains(line)).map(|line| format!("+ {netns} {line}\n")),
        );
    }
    different
}

fn by_netns(text: &str) -> Vec<(&str, Vec<&str>)> {
    let mut parts = vec![("", Vec::new())];
    for line in text.lines() {
        if line.starts_with("/run/netns/") {
            parts.push((line, Vec::new()));
        } else if let Some((_, lines)) = parts.last_mut() {
            lines.push(line);
        }
    }
    parts
}
