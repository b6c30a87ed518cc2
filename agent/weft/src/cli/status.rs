//! `weft status`.

use std::fmt::Write;
use std::io::IsTerminal;
use std::time::Duration;

use anyhow::Context;
use clap::Args;

use super::cluster::ClusterStatus;
use super::{Ended, NamespaceOptions, OutputOption, Target, TargetOptions, client};
use crate::output;
use crate::view::{ConfigStatus, Status};

#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(flatten)]
    target: TargetOptions,
    /// Only the agent of this node.
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    #[command(flatten)]
    namespaces: NamespaceOptions,
    /// Go on asking, every two seconds, until interrupted.
    #[arg(short, long)]
    watch: bool,
    #[command(flatten)]
    output: OutputOption,
}

/// Pause between two answers of `--watch`.
const PAUSE: Duration = Duration::from_secs(2);

pub(super) fn run(options: &Options) -> anyhow::Result<Ended> {
    let target = options.target.target()?;
    loop {
        let ended = once(options, &target)?;
        if !options.watch {
            return Ok(ended);
        }
        std::thread::sleep(PAUSE);
        if std::io::stdout().is_terminal() {
            output::write(b"\x1b[H\x1b[2J")?;
        }
    }
}

fn once(options: &Options, target: &Target) -> anyhow::Result<Ended> {
    let namespace = options.namespaces.namespace.as_deref();
    let fine = match target {
        Target::Cluster(cluster) => {
            let status = ClusterStatus::ask(cluster, options.node.as_deref(), namespace)?;
            let all_pods = namespace.is_some() || options.namespaces.all_namespaces;
            output::print(options.output.output, &status, |status| status.render(all_pods))?;
            status.is_fine()
        }
        Target::Socket(socket) => {
            let answer = client::get(socket, "/status")?;
            let mut status: Status =
                serde_json::from_str(&answer).context("the agent's answer is not of this version")?;
            status.workloads.retain(|pod| namespace.is_none_or(|namespace| pod.is_in(namespace)));
            output::print(options.output.output, &status, render)?;
            status.is_fine()
        }
    };
    Ok(if fine { Ended::Fine } else { Ended::BadNews })
}

/// The answer for people.
fn render(status: &Status) -> String {
    let mut out = String::new();
    let ready = match (&status.not_ready, status.ready) {
        (_, true) => "ready".to_owned(),
        (Some(why), false) => format!("not ready: {why}"),
        (None, false) => "not ready".to_owned(),
    };
    // Writing to a String cannot fail.
    let _ = writeln!(out, "Node {}, weft {}, {ready}", status.node, status.version);
    if status.break_glass {
        let _ = writeln!(out, "BREAK-GLASS: nothing is captured on this node");
    }
    if let Some(successor) = &status.handed_over_to {
        let _ = writeln!(out, "Handed over to {successor}: the last connections end here");
    }
    let config = &status.config;
    let objects: usize = config.objects.values().sum();
    let away = if config.connected == Some(false) { ", NOT CONNECTED" } else { "" };
    let _ = writeln!(
        out,
        "Configuration: {}, revision {}, {objects} objects, {} problems, {} s old{away}\n",
        config.source,
        config.revision,
        config.problems,
        config.age_ms / 1000
    );
    let pods = status.workloads.iter().map(|pod| {
        [
            pod.pod.clone(),
            pod.ip.join(","),
            pod.principal.clone(),
            pod.state.clone(),
            pod.connections.to_string(),
            output::or_dash(pod.reason.as_deref()),
        ]
    });
    out += &freshness(config);
    out += &output::table(["POD", "IP", "PRINCIPAL", "STATE", "CONNECTIONS", "REASON"], pods);
    let certificates = status.certificates.iter().map(|certificate| {
        [
            certificate.principal.clone(),
            output::or_dash(certificate.not_after.as_deref()),
            output::or_dash(certificate.error.as_deref()),
        ]
    });
    let _ = write!(out, "\n{}", output::table(["CERTIFICATE", "NOT AFTER", "ERROR"], certificates));
    let maps =
        status.kernel.maps.iter().map(|map| [map.name.clone(), map.entries.to_string(), map.max.to_string()]);
    let _ = write!(out, "\n{}", output::table(["KERNEL MAP", "ENTRIES", "MAX"], maps));
    let _ = writeln!(out, "\nKernel programs: {}", status.kernel.programs.join(", "));
    if !status.kernel.earlier.is_empty() {
        let _ = writeln!(out, "Of others, before them: {}", status.kernel.earlier.join(", "));
    }
    out
}

/// Kinds that are not heard of; nothing when all are.
fn freshness(config: &ConfigStatus) -> String {
    let behind = config.freshness.iter().filter(|kind| !kind.connected).map(|kind| {
        let age = kind.age_ms.map(|age| format!("{} s", age / 1000));
        [kind.kind.clone(), output::or_dash(age.as_deref()), output::or_dash(kind.failure.as_deref())]
    });
    let behind: Vec<_> = behind.collect();
    if behind.is_empty() {
        return String::new();
    }
    format!("{}\n", output::table(["NOT WATCHED", "LAST HEARD OF", "WHY"], behind.into_iter()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::view::{CertificateStatus, KernelStatus, KindFreshness, MapStatus, WorkloadStatus};

    #[test]
    fn status_for_people() {
        let pod = |name: &str, state: &str, reason: Option<&str>| WorkloadStatus {
            pod: format!("shop/{name}"),
            ip: vec!["10.0.0.1".into(), "fd00::1".into()],
            principal: format!("cluster.local/ns/shop/sa/{name}"),
            state: state.into(),
            reason: reason.map(Into::into),
            connections: 2,
        };
        let status = Status {
            version: "0.1.0".into(),
            node: "a".into(),
            ready: false,
            not_ready: Some("Pod shop/stock has been enrolling for 31 s".into()),
            break_glass: false,
            took_over_from: None,
            handed_over_to: None,
            config: ConfigStatus {
                source: "directory".into(),
                revision: "7".into(),
                age_ms: 12_345,
                objects: [("pods".to_owned(), 3), ("services".to_owned(), 2)].into(),
                problems: 1,
                connected: None,
                freshness: Vec::new(),
            },
            workloads: vec![pod("cart", "enrolled", None), pod("stock", "failed", Some("no such namespace"))],
            certificates: vec![CertificateStatus {
                principal: "cluster.local/ns/shop/sa/cart".into(),
                not_after: Some("2026-11-22T04:00:00Z".into()),
                error: None,
            }],
            kernel: KernelStatus {
                programs: vec!["out4".into(), "steer".into()],
                earlier: Vec::new(),
                maps: vec![MapStatus { name: "PODS".into(), entries: 2, max: 4096 }],
            },
        };
        insta::assert_snapshot!(render(&status));
    }

    #[test]
    fn what_is_not_heard_of_is_shown() {
        let kind = |kind: &str, connected, failure: Option<&str>| KindFreshness {
            kind: kind.into(),
            connected,
            synced: true,
            age_ms: Some(93_000),
            failure: failure.map(Into::into),
            watch_restarts: 7,
        };
        let config = ConfigStatus {
            source: "kubernetes".into(),
            revision: "7".into(),
            age_ms: 93_000,
            objects: BTreeMap::new(),
            problems: 1,
            connected: Some(false),
            freshness: vec![
                kind("Node", true, None),
                kind("Pod", false, Some("the server cannot be reached")),
            ],
        };
        let text = freshness(&config);
        assert!(
            text.contains("Pod") && text.contains("93 s") && text.contains("cannot be reached"),
            "{text}"
        );
        assert!(!text.contains("Node"), "{text}");
    }
}
