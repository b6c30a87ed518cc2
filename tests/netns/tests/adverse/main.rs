//! The mesh among programs, rules, packets and shortages that work against it.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests fail as tests do"
)]

mod agents;
mod balancer;
mod descriptors;
mod families;
mod filters;
mod icmp;
mod output;
mod packets;

use weft_lab::{Pod, output, run_with_input};
use weft_netns_tests::Path;

const PUPPET: &str = env!("CARGO_BIN_EXE_netns-puppet");
/// Pods that are reached directly, through the node's proxy, and by HBONE.
const PATHS: [(&str, Path); 3] = [("near", Path::Direct), ("seven", Path::Proxied), ("far", Path::Proxied)];

/// Whether pods can be given packet filters; says loudly when not.
fn has_nft(test: &str) -> bool {
    if output("nft", &["--version"]).is_ok() {
        return true;
    }
    assert!(std::env::var_os("CI").is_none(), "in CI nothing is skipped, but nft is missing");
    println!("SKIPPED {test}: nft is missing (apt-get install nftables)");
    false
}

/// Gives a pod's namespace rules of nftables, in place of all that it has.
fn set_rules(pod: &Pod, rules: &str) {
    let netns = format!("--net={}", pod.netns().display());
    run_with_input("nsenter", &[&netns, "--", "nft", "-f", "-"], &format!("flush ruleset\n{rules}\n"))
        .unwrap();
}

/// `ip` in a namespace.
fn ip(netns: &std::path::Path, args: &[&str]) {
    let netns = format!("--net={}", netns.display());
    output("nsenter", &[&[netns.as_str(), "--", "ip"], args].concat()).unwrap();
}
