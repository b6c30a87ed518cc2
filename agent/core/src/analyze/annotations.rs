//! Istio's annotations: unknown ones, ones on the wrong kind, ones with values that they cannot have.

use ipnet::IpNet;

use super::objects::{Head, ObjectSet};
use super::{Findings, codes};
use crate::names;

/// Checks Namespaces, Services, Pods and Deployments.
pub(super) fn check(set: &ObjectSet, findings: &mut Findings) {
    let pods = set.pods.iter().chain(&set.deployments).map(|pod| &pod.head);
    let services = set.services.iter().map(|service| &service.head);
    for head in set.namespaces.iter().chain(services).chain(pods) {
        for (name, value) in &head.annotations {
            if is_istio(name) && !WRITTEN_BY_ISTIO.contains(&name.as_str()) {
                check_one(head, name, value, findings);
            }
        }
    }
}

fn is_istio(name: &str) -> bool {
    name == "kubernetes.io/ingress.class"
        || name.split('/').next().is_some_and(|domain| domain.ends_with("istio.io"))
}

/// Nobody writes these by hand.
const WRITTEN_BY_ISTIO: [&str; 3] =
    [names::ISTIO_SIDECAR_STATUS, "gateway.istio.io/controller-version", "istio.io/rev"];

/// Kinds that an annotation belongs to; no kinds stands for all.
type Kinds = &'static [&'static str];

const POD: Kinds = &["Pod"];
const SERVICE: Kinds = &["Service"];
const WORKLOAD_ENTRY: Kinds = &["WorkloadEntry"];

/// Annotations that do not belong to pods, and their kinds.
const OF_OTHER_KINDS: [(&str, Kinds); 18] = [
    ("alpha.istio.io/canonical-serviceaccounts", SERVICE),
    ("alpha.istio.io/kubernetes-serviceaccounts", SERVICE),
    ("ambient.istio.io/waypoint-inbound-binding", &["GatewayClass", "Gateway"]),
    ("galley.istio.io/analyze-suppress", &[]),
    ("gateway.istio.io/name-override", &["Gateway"]),
    ("gateway.istio.io/service-account", &["Gateway"]),
    ("istio.io/autoRegistrationGroup", WORKLOAD_ENTRY),
    ("istio.io/connectedAt", WORKLOAD_ENTRY),
    ("istio.io/disconnectedAt", WORKLOAD_ENTRY),
    ("istio.io/workloadController", WORKLOAD_ENTRY),
    (names::ISTIO_DRY_RUN, &["AuthorizationPolicy"]),
    ("istio.io/use-waypoint-canary-weight", &["Service", "ServiceEntry", "Namespace"]),
    ("kubernetes.io/ingress.class", &["Ingress"]),
    ("networking.istio.io/exportTo", SERVICE),
    ("networking.istio.io/service-type", &["Gateway"]),
    ("networking.istio.io/traffic-distribution", &["Namespace", "Service", "ServiceEntry"]),
    ("topology.istio.io/controlPlaneClusters", &["Namespace"]),
    ("traffic.istio.io/nodeSelector", SERVICE),
];

/// Annotations of pods, by what stands before the `/`.
const OF_PODS: [(&str, &[&str]); 9] = [
    ("ambient.istio.io", &["bypass-inbound-capture", "dns-capture", "redirection"]),
    ("inject.istio.io", &["templates"]),
    ("istio.io", &["reroute-virtual-interfaces"]),
    ("prometheus.istio.io", &["merge-metrics"]),
    ("proxy.istio.io", &["config", "overrides"]),
    (
        "readiness.status.sidecar.istio.io",
        &["applicationPorts", "failureThreshold", "initialDelaySeconds", "periodSeconds"],
    ),
    (
        "sidecar.istio.io",
        &[
            "agentLogLevel",
            "bootstrapOverride",
            "componentLogLevel",
            "discoveryAddress",
            "extraStatTags",
            "inject",
            "interceptionMode",
            "logLevel",
            "nativeSidecar",
            "proxyCPU",
            "proxyCPULimit",
            "proxyImage",
            "proxyImageType",
            "proxyMemory",
            "proxyMemoryLimit",
            "rewriteAppHTTPProbers",
            "statsCompression",
            "statsEvictionInterval",
            "statsFlushInterval",
            "statsHistogramBins",
            "statsHistogramBuckets",
            "statsInclusionPrefixes",
            "statsInclusionRegexps",
            "statsInclusionSuffixes",
            "userVolume",
            "userVolumeMount",
        ],
    ),
    ("status.sidecar.istio.io", &["port"]),
    (
        "traffic.sidecar.istio.io",
        &[
            "excludeInboundPorts",
            "excludeInterfaces",
            "excludeOutboundIPRanges",
            "excludeOutboundPorts",
            "includeInboundPorts",
            "includeOutboundIPRanges",
            "includeOutboundPorts",
            "kubevirtInterfaces",
        ],
    ),
];

/// What is on its way out, and what to use instead.
const DEPRECATED: [(&str, &str); 10] = [
    ("alpha.istio.io/canonical-serviceaccounts", ""),
    ("alpha.istio.io/kubernetes-serviceaccounts", ""),
    ("sidecar.istio.io/discoveryAddress", ""),
    ("sidecar.istio.io/extraStatTags", ""),
    (names::ISTIO_SIDECAR_INJECT, "Use the label of the same name."),
    ("sidecar.istio.io/statsCompression", ""),
    ("sidecar.istio.io/statsInclusionPrefixes", ""),
    ("sidecar.istio.io/statsInclusionRegexps", ""),
    ("sidecar.istio.io/statsInclusionSuffixes", ""),
    ("traffic.sidecar.istio.io/kubevirtInterfaces", "Use istio.io/reroute-virtual-interfaces."),
];

/// The kinds that an annotation belongs to; `None` if nobody knows it.
fn kinds(name: &str) -> Option<Kinds> {
    let other = OF_OTHER_KINDS.iter().find(|(known, _)| *known == name).map(|(_, kinds)| *kinds);
    other.or_else(|| {
        let (domain, rest) = name.split_once('/')?;
        let (_, names) = OF_PODS.iter().find(|(known, _)| *known == domain)?;
        names.contains(&rest).then_some(POD)
    })
}

fn check_one(head: &Head, name: &str, value: &str, findings: &mut Findings) {
    let field = format!("metadata.annotations[{name}]");
    let place = (head, field.as_str());
    let Some(kinds) = kinds(name) else {
        let message = format!("There is no annotation `{name}`, so it has no effect.");
        findings.add(codes::UNKNOWN_ANNOTATION, place, message, "Correct the spelling, or remove it.");
        return;
    };
    // Who has the label as well knows.
    let replaced = name == names::ISTIO_SIDECAR_INJECT && head.labels.contains_key(name);
    if let Some((_, instead)) = DEPRECATED.iter().find(|(known, _)| *known == name && !replaced) {
        let message = format!("The annotation `{name}` is deprecated and may lose its effect.");
        let fix = if instead.is_empty() { "Remove it." } else { instead };
        findings.add(codes::DEPRECATED_ANNOTATION, place, message, fix);
    }
    if !kinds.is_empty() && !kinds.contains(&head.kind) {
        let message = format!(
            "The annotation `{name}` belongs to {}; on a {} it has no effect.",
            kinds.join(" or "),
            head.kind
        );
        let fix = match (head.kind, kinds) {
            ("Deployment", ["Pod"]) => "Move it to `spec.template.metadata.annotations`.",
            _ => "Move it there, or remove it.",
        };
        findings.add(codes::MISPLACED_ANNOTATION, place, message, fix);
    } else if let Some(wanted) = wrong(name, value) {
        let message = format!("`{value}` is not {wanted}, so the annotation has no effect.");
        findings.add(codes::INVALID_ANNOTATION, place, message, "Correct the value.");
    }
}

/// What the value of an annotation is not, if it is wrong.
fn wrong(name: &str, value: &str) -> Option<&'static str> {
    let (domain, rest) = name.split_once('/')?;
    let (valid, wanted) = match (domain, rest) {
        ("sidecar.istio.io", "interceptionMode") => {
            (matches!(value, "REDIRECT" | "TPROXY" | "NONE"), "REDIRECT, TPROXY or NONE")
        }
        ("sidecar.istio.io", "proxyCPU" | "proxyMemory" | "proxyCPULimit" | "proxyMemoryLimit") => {
            (is_quantity(value), "an amount such as 100m or 128Mi")
        }
        ("status.sidecar.istio.io", "port") => (is_port(value), "a port"),
        (
            "readiness.status.sidecar.istio.io",
            "initialDelaySeconds" | "periodSeconds" | "failureThreshold",
        ) => (is_number(value) && value.parse::<u32>().is_ok(), "a number from 0 on"),
        (TRAFFIC, "includeOutboundIPRanges") => {
            (value == "*" || are(value, is_range), "`*` or ranges of addresses, with commas")
        }
        (TRAFFIC, "excludeOutboundIPRanges") => (are(value, is_range), "ranges of addresses, with commas"),
        (TRAFFIC, "includeInboundPorts") => {
            (value == "*" || are(value, is_port), "`*` or ports, with commas")
        }
        (TRAFFIC, "excludeInboundPorts" | "excludeOutboundPorts") => {
            (are(value.trim(), is_port), "ports, with commas")
        }
        (TRAFFIC, "excludeInterfaces" | "kubevirtInterfaces")
        | ("istio.io", "reroute-virtual-interfaces") => {
            (are(value, is_interface), "names of network interfaces, with commas")
        }
        ("prometheus.istio.io", "merge-metrics") => {
            let spellings = ["1", "t", "T", "true", "TRUE", "True", "0", "f", "F", "false", "FALSE", "False"];
            (spellings.contains(&value), "true or false")
        }
        _ => return None,
    };
    (!valid).then_some(wanted)
}

const TRAFFIC: &str = "traffic.sidecar.istio.io";

/// Items between commas; nothing at all is fine.
fn are(list: &str, is_it: fn(&str) -> bool) -> bool {
    list.is_empty() || list.split(',').all(is_it)
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit())
}

fn is_port(text: &str) -> bool {
    is_number(text.trim()) && text.trim().parse::<u16>().is_ok()
}

fn is_range(text: &str) -> bool {
    text.parse::<IpNet>().is_ok()
}

fn is_interface(text: &str) -> bool {
    let name = text.trim();
    let allowed = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-' | b'@' | b':');
    !name.is_empty() && name.len() <= 15 && name.bytes().all(allowed)
}

/// A quantity of Kubernetes: a decimal number with a suffix or an exponent.
fn is_quantity(text: &str) -> bool {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at(end);
    let exponent = suffix.strip_prefix(['e', 'E']).map(|rest| rest.strip_prefix(['+', '-']).unwrap_or(rest));
    number.contains(|c: char| c.is_ascii_digit())
        && number.matches('.').count() <= 1
        && (matches!(
            suffix,
            "" | "n"
                | "u"
                | "m"
                | "k"
                | "M"
                | "G"
                | "T"
                | "P"
                | "E"
                | "Ki"
                | "Mi"
                | "Gi"
                | "Ti"
                | "Pi"
                | "Ei"
        ) || exponent.is_some_and(is_number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_judged_by_their_annotation() {
        for (name, good, bad) in [
            ("sidecar.istio.io/interceptionMode", "TPROXY", "tproxy"),
            ("sidecar.istio.io/proxyCPU", "1.5e3", "lots"),
            ("sidecar.istio.io/proxyMemory", "128Mi", "128MB"),
            ("status.sidecar.istio.io/port", "15020", "70000"),
            ("readiness.status.sidecar.istio.io/periodSeconds", "5", "-5"),
            ("traffic.sidecar.istio.io/includeOutboundIPRanges", "*", "10.0.0.0/8,*"),
            ("traffic.sidecar.istio.io/excludeOutboundIPRanges", "10.0.0.0/8,fd00::/8", "10.0.0.1"),
            ("traffic.sidecar.istio.io/includeInboundPorts", "80, 81", "80,http"),
            ("traffic.sidecar.istio.io/excludeOutboundPorts", "", "*"),
            ("istio.io/reroute-virtual-interfaces", "eth0,net1", "an-interface-with-a-long-name"),
            ("prometheus.istio.io/merge-metrics", "true", "yes"),
        ] {
            assert_eq!(wrong(name, good), None, "{name}: {good}");
            assert!(wrong(name, bad).is_some(), "{name}: {bad}");
        }
    }

    #[test]
    fn kinds_are_known_by_name() {
        assert_eq!(kinds("sidecar.istio.io/inject"), Some(POD));
        assert_eq!(kinds("galley.istio.io/analyze-suppress"), Some([].as_slice()));
        assert_eq!((kinds("sidecar.istio.io/none-such"), kinds("istio.io")), (None, None));
    }
}
