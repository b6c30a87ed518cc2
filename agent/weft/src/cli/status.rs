//! `weft status`.

use std::fmt::Write;

use anyhow::Context;
use clap::Args;

use super::{Ended, OutputOption, SocketOption, client};
use crate::output;
use crate::view::Status;

#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(flatten)]
    socket: SocketOption,
    #[command(flatten)]
    output: OutputOption,
}

pub(super) fn run(options: &Options) -> anyhow::Result<Ended> {
    let answer = client::get(&options.socket.socket, "/status")?;
    let status: Status =
        serde_json::from_str(&answer).context("the agent's answer is not of this version")?;
    let bad = !status.ready || status.break_glass || status.workloads.iter().any(|pod| pod.state == "failed");
    output::print(options.output.output, &status, render)?;
    Ok(if bad { Ended::BadNews } else { Ended::Fine })
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
    let config = &status.config;
    let objects: usize = config.objects.values().sum();
    let _ = writeln!(
        out,
        "Configuration: {}, revision {}, {objects} objects, {} problems, {} s old\n",
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
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::{CertificateStatus, ConfigStatus, KernelStatus, MapStatus, WorkloadStatus};

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
            config: ConfigStatus {
                source: "directory".into(),
                revision: "7".into(),
                age_ms: 12_345,
                objects: [("pods".to_owned(), 3), ("services".to_owned(), 2)].into(),
                problems: 1,
            },
            workloads: vec![pod("cart", "enrolled", None), pod("stock", "failed", Some("no such namespace"))],
            certificates: vec![CertificateStatus {
                principal: "cluster.local/ns/shop/sa/cart".into(),
                not_after: Some("2026-11-22T04:00:00Z".into()),
                error: None,
            }],
            kernel: KernelStatus {
                programs: vec!["out4".into(), "steer".into()],
                maps: vec![MapStatus { name: "PODS".into(), entries: 2, max: 4096 }],
            },
        };
        insta::assert_snapshot!(render(&status));
    }
}
