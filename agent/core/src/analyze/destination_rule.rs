//! DestinationRules: hosts and subsets without anybody, and servers that nobody verifies (D-4, D-18, S-58).

use super::hosts::{Hosts, Target};
use super::objects::{DestinationRule, ObjectSet, Pairs, Pod};
use super::workloads::{self, selects};
use super::{Findings, codes, shown};

/// Checks all DestinationRules.
pub(super) fn check(set: &ObjectSet, findings: &mut Findings) {
    let hosts = Hosts::new(set);
    for rule in &set.destination_rules {
        authorities(rule, findings);
        subsets(set, &hosts, rule, findings);
    }
}

fn authorities(rule: &DestinationRule, findings: &mut Findings) {
    for tls in rule.tls.iter().filter(|tls| matches!(tls.mode.as_str(), "SIMPLE" | "MUTUAL")) {
        // A credential may contain the authority; it counts only where workloads are named that can fetch it.
        if tls.has_authority || (tls.has_credential && rule.selects_workloads) {
            continue;
        }
        let (code, of_port) = match tls.port {
            None => (codes::UNVERIFIED_SERVER, String::new()),
            Some(port) => (codes::UNVERIFIED_SERVER_PORT, format!(" on port {port}")),
        };
        let message = format!(
            "The mode {} has no `caCertificates`, so nobody verifies who answers for `{}`{of_port}.",
            tls.mode, rule.host
        );
        let field = format!("{}.caCertificates", tls.field);
        findings.add(code, (&rule.head, &field), message, "Add `caCertificates`.");
    }
}

fn subsets(set: &ObjectSet, hosts: &Hosts<'_>, rule: &DestinationRule, findings: &mut Findings) {
    let target = hosts.find(&rule.head.namespace, &rule.export_to, &rule.host);
    let covers_some = rule.host.starts_with('*') && hosts.any_below(&rule.host);
    if target.is_none() && !covers_some {
        let message = format!("There is no Service and no ServiceEntry with the host `{}`.", rule.host);
        findings.add(codes::UNKNOWN_HOST, (&rule.head, "spec.host"), message, "Correct the host.");
        return;
    }
    for (at, (name, labels)) in rule.subsets.iter().enumerate() {
        if !has_members(set, target, labels) {
            let which =
                if labels.is_empty() { String::new() } else { format!(" has the labels {}", shown(labels)) };
            let message =
                format!("No pod behind `{}`{which}: requests to the subset `{name}` get 503.", rule.host);
            let field = format!("spec.subsets[{at}].labels");
            findings.add(
                codes::EMPTY_SUBSET,
                (&rule.head, &field),
                message,
                "Correct the labels, or add pods.",
            );
        }
    }
}

fn has_members(set: &ObjectSet, target: Option<Target<'_>>, subset: &Pairs) -> bool {
    let outside = match target {
        Some(Target::Entry(entry)) => {
            entry.endpoints.iter().any(|labels| selects(subset, labels))
                || entry.selector.as_ref().is_some_and(|selector| {
                    let entries = set.workload_entries.iter();
                    let mut own = entries.filter(|(head, _)| head.namespace == entry.head.namespace);
                    own.any(|(_, labels)| selects(selector, labels) && selects(subset, labels))
                })
        }
        Some(Target::Service(_)) | None => false,
    };
    outside || pods_behind(set, target).iter().any(|pod| is_in(set, pod, subset))
}

/// The pods that requests to a host can reach; all of them where nobody can know.
fn pods_behind<'s>(set: &'s ObjectSet, target: Option<Target<'s>>) -> Vec<&'s Pod> {
    match target {
        Some(Target::Service(service)) => {
            workloads::selected(set, &service.head.namespace, &service.selector).collect()
        }
        Some(Target::Entry(entry)) => match &entry.selector {
            Some(selector) => workloads::selected(set, &entry.head.namespace, selector).collect(),
            None => set.pods.iter().collect(),
        },
        None => set.pods.iter().collect(),
    }
}

/// Whether a pod has the labels of a subset; where it runs counts as labels as well.
fn is_in(set: &ObjectSet, pod: &Pod, subset: &Pairs) -> bool {
    const PLACES: [&str; 3] =
        ["topology.kubernetes.io/region", "topology.kubernetes.io/zone", "topology.istio.io/subzone"];
    let of_node = |place: &str| {
        let node = set.nodes.iter().find(|node| node.name == pod.node)?;
        node.labels.get(place).filter(|value| !value.is_empty())
    };
    let value_of = |label: &str| match label {
        "kubernetes.io/hostname" if !pod.node.is_empty() => Some(&pod.node),
        _ if PLACES.contains(&label) => of_node(label).or_else(|| pod.labels.get(label)),
        _ => pod.labels.get(label),
    };
    subset.iter().all(|(label, value)| value_of(label) == Some(value))
}
