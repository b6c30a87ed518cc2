//! The network of a lab.
//!
//! Every node is a router for its pods. A pod has `/32` and `/128` addresses and a default route by
//! `169.254.1.1` or `fe80::1`, as with most CNI plugins. Nodes are linked pairwise. Namespace `outside` is
//! no pod and not in the mesh; it is linked to the first node.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};

use crate::command::{run, run_with_input};
use crate::id::LabId;

/// The addresses of something, one for each family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Addresses {
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Ipv6Addr,
}

/// Addresses of pod number `pod` of node number `node`.
pub(crate) fn pod_addresses(node: u8, pod: u16) -> Addresses {
    let [high, low] = (pod + 10).to_be_bytes();
    Addresses {
        v4: Ipv4Addr::new(10, 96 + node * 4 + high, 0, low),
        v6: Ipv6Addr::new(0xfd00, 0x244, u16::from(node), 0, 0, 0, 0, pod + 10),
    }
}

/// Addresses of node number `node`.
pub(crate) fn node_addresses(node: u8) -> Addresses {
    Addresses {
        v4: Ipv4Addr::new(10, 10, 0, node + 1),
        v6: Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, 0, u16::from(node) + 1),
    }
}

/// Addresses of namespace `outside`.
pub(crate) fn outside_addresses() -> Addresses {
    Addresses { v4: Ipv4Addr::new(192, 168, 77, 2), v6: Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, 2) }
}

const NODE_SETTINGS: &[&str] = &[
    "net.ipv4.ip_forward=1",
    "net.ipv6.conf.all.forwarding=1",
    "net.ipv4.conf.all.rp_filter=0",
    "net.ipv4.conf.default.rp_filter=0",
];
const EVERY_NAMESPACE: &[&str] = &[
    "net.ipv6.conf.all.accept_dad=0",
    "net.ipv6.conf.default.accept_dad=0",
    "net.ipv6.conf.all.disable_ipv6=0",
    "net.ipv6.conf.default.disable_ipv6=0",
];
/// Ports below belong to the agent's onward connections; `tcp_tw_reuse` lets a client outlive its TIME_WAIT.
const BENCH_SETTINGS: &[&str] =
    &["net.ipv4.tcp_tw_reuse=1", "net.ipv4.ip_local_port_range=33000 65500", "net.core.somaxconn=4096"];

/// A namespace that is connected like a pod.
pub(crate) struct Leaf {
    /// Name of the namespace within the lab.
    pub(crate) what: String,
    /// Number of its node.
    pub(crate) node: u8,
    /// Name of the node's end of its link.
    pub(crate) link: String,
    pub(crate) addresses: Addresses,
}

/// Makes all namespaces and links. `nodes` are namespace names within the lab.
pub(crate) fn build(id: &LabId, nodes: &[String], leaves: &[Leaf], for_bench: bool) -> Result<()> {
    let all: Vec<&str> =
        nodes.iter().map(String::as_str).chain(leaves.iter().map(|l| l.what.as_str())).collect();
    let made: String = all.iter().map(|what| format!("netns add {}\n", id.netns_name(what))).collect();
    run_with_input("ip", &["-batch", "-"], &made)?;
    for what in &all {
        let node_settings = if nodes.iter().any(|node| node == what) { NODE_SETTINGS } else { &[] };
        let bench_settings = if for_bench { BENCH_SETTINGS } else { &[] };
        set_sysctls(id, what, &[EVERY_NAMESPACE, node_settings, bench_settings].concat())?;
    }
    run_with_input("ip", &["-batch", "-"], &links(id, nodes, leaves)?)?;
    for (what, batch) in configuration(nodes, leaves)? {
        run_with_input("ip", &["-n", &id.netns_name(&what), "-batch", "-"], &batch)?;
    }
    Ok(())
}

fn set_sysctls(id: &LabId, what: &str, settings: &[&str]) -> Result<()> {
    let net = format!("--net={}", id.netns_path(what).display());
    let mut args = vec![net.as_str(), "--", "sysctl", "-q", "-w"];
    args.extend(settings);
    run("nsenter", &args).with_context(|| format!("the sysctls of namespace {what} cannot be set"))
}

fn name_of(nodes: &[String], index: u8) -> Result<&String> {
    nodes.get(usize::from(index)).with_context(|| format!("the lab has no node number {index}"))
}

/// Pairs of node numbers, each pair once.
fn pairs(nodes: &[String]) -> impl Iterator<Item = (u8, u8)> {
    let count = u8::try_from(nodes.len()).unwrap_or(u8::MAX);
    (0..count).flat_map(move |a| (a + 1..count).map(move |b| (a, b)))
}

fn links(id: &LabId, nodes: &[String], leaves: &[Leaf]) -> Result<String> {
    let mut batch = String::new();
    for leaf in leaves {
        let node = id.netns_name(name_of(nodes, leaf.node)?);
        let netns = id.netns_name(&leaf.what);
        writeln!(batch, "link add name eth0 netns {netns} type veth peer name {} netns {node}", leaf.link)?;
    }
    for (a, b) in pairs(nodes) {
        let (first, second) = (id.netns_name(name_of(nodes, a)?), id.netns_name(name_of(nodes, b)?));
        writeln!(batch, "link add name to-{b} netns {first} type veth peer name to-{a} netns {second}")?;
    }
    Ok(batch)
}

/// Commands of `ip -batch` for each namespace.
fn configuration(nodes: &[String], leaves: &[Leaf]) -> Result<BTreeMap<String, String>> {
    let mut batches: BTreeMap<String, String> = BTreeMap::new();
    for leaf in leaves {
        batches.insert(leaf.what.clone(), leaf_commands(&leaf.addresses));
        let batch = batches.entry(name_of(nodes, leaf.node)?.clone()).or_default();
        let (link, Addresses { v4, v6 }) = (&leaf.link, leaf.addresses);
        writeln!(batch, "link set {link} up\naddr add 169.254.1.1/32 dev {link}")?;
        writeln!(batch, "addr add fe80::1/64 dev {link} nodad")?;
        writeln!(batch, "route add {v4}/32 dev {link}\nroute add {v6}/128 dev {link}")?;
    }
    for (index, name) in (0u8..).zip(nodes) {
        let Addresses { v4, v6 } = node_addresses(index);
        let batch = batches.entry(name.clone()).or_default();
        writeln!(batch, "link set lo up\naddr add {v4}/32 dev lo\naddr add {v6}/128 dev lo nodad")?;
    }
    for (a, b) in pairs(nodes) {
        let reach_first = leaves.iter().filter(|leaf| leaf.what == "outside" && leaf.node == a);
        let towards_first: Vec<Addresses> = reach_first.map(|leaf| leaf.addresses).collect();
        batches.entry(name_of(nodes, a)?.clone()).or_default().push_str(&node_link(a, b, &[]));
        batches.entry(name_of(nodes, b)?.clone()).or_default().push_str(&node_link(b, a, &towards_first));
    }
    Ok(batches)
}

fn leaf_commands(addresses: &Addresses) -> String {
    let Addresses { v4, v6 } = addresses;
    format!(
        "link set lo up\nlink set eth0 up\naddr add {v4}/32 dev eth0\naddr add {v6}/128 dev eth0 nodad\n\
         route add 169.254.1.1/32 dev eth0 scope link\nroute add default via 169.254.1.1 dev eth0\n\
         route add ::/0 via fe80::1 dev eth0\n"
    )
}

/// One end of the link between two nodes, and the routes to what lies behind the other end.
fn node_link(own: u8, other: u8, also: &[Addresses]) -> String {
    let (low, high) = (own.min(other), own.max(other));
    let (own_end, other_end) = if own < other { (1, 2) } else { (2, 1) };
    let via4 = format!("172.31.{}.{other_end}", low * 16 + high);
    let via6 = format!("fd00:31:{low:x}{high:x}::{other_end}");
    let node = node_addresses(other);
    let pods = Ipv4Addr::new(10, 96 + other * 4, 0, 0);
    let mut commands = format!(
        "link set to-{other} up\naddr add 172.31.{}.{own_end}/30 dev to-{other}\n\
         addr add fd00:31:{low:x}{high:x}::{own_end}/64 dev to-{other} nodad\n\
         route add {pods}/14 via {via4}\nroute add fd00:244:{other:x}::/48 via {via6}\n\
         route add {}/32 via {via4}\nroute add {}/128 via {via6}\n",
        low * 16 + high,
        node.v4,
        node.v6
    );
    for Addresses { v4, v6 } in also {
        commands.push_str(&format!("route add {v4}/32 via {via4}\nroute add {v6}/128 via {via6}\n"));
    }
    commands
}
