//! Gateways: workloads, ports, secrets, and Gateways that contradict each other (G-2, G-8).

use std::collections::{BTreeMap, BTreeSet};

use super::objects::{Gateway, ObjectSet, Pairs, Pod, Server, ServerTls};
use super::workloads::selects;
use super::{Findings, codes, listed, shown};

/// Checks all Gateways.
pub(super) fn check(set: &ObjectSet, findings: &mut Findings) {
    let claims = Claims::new(set);
    for gateway in &set.gateways {
        let pods: Vec<&Pod> = claims.pods_of(gateway).iter().filter_map(|pod| set.pods.get(*pod)).collect();
        match pods.first() {
            Some(pod) => {
                ports(set, gateway, &pods, findings);
                secrets(set, gateway, &pod.head.namespace, findings);
            }
            None => {
                let message = format!(
                    "No pod has the labels {}, so nobody serves this Gateway.",
                    shown(&gateway.selector)
                );
                findings.add(
                    codes::NOT_FOUND,
                    (&gateway.head, "spec.selector"),
                    message,
                    "Correct the labels.",
                );
            }
        }
        certificates(set, gateway, findings);
        conflicts(set, gateway, &claims, findings);
    }
}

/// A Gateway's port is one on which its pods listen: a Service in front of them has to lead there.
fn ports(set: &ObjectSet, gateway: &Gateway, pods: &[&Pod], findings: &mut Findings) {
    let mut known = BTreeSet::new();
    for pod in pods {
        let services = set.services_in(&pod.head.namespace);
        let of_pod = services.filter(|service| selects(&service.selector, &pod.labels));
        let tcp = of_pod.flat_map(|service| &service.ports).filter(|port| port.protocol == "TCP");
        for port in tcp {
            // Where the target has a name the Service's own number stands for it.
            known.extend([port.port, port.target.parse().unwrap_or(port.port)]);
        }
    }
    // Validation tells of a server without port.
    let unknown = |server: &Server| server.port != 0 && !known.contains(&server.port);
    for (at, server) in gateway.servers.iter().enumerate().filter(|(_, server)| unknown(server)) {
        let field = format!("spec.servers[{at}].port.number");
        let message = format!(
            "No Service in front of the pods with the labels {} leads to port {}, so it cannot be reached \
             through a Service.",
            shown(&gateway.selector),
            server.port
        );
        let fix = "Add the port to the Service, or correct the number.";
        findings.add(codes::PORT_NOT_ON_SERVICE, (&gateway.head, &field), message, fix);
    }
}

/// Secrets are looked for in the namespace of the pods.
fn secrets(set: &ObjectSet, gateway: &Gateway, namespace: &str, findings: &mut Findings) {
    for (at, server) in gateway.servers.iter().enumerate() {
        let Some(credential) =
            server.tls.as_ref().map(|tls| tls.credential.as_str()).filter(|name| !name.is_empty())
        else {
            continue;
        };
        let (namespace, name) = credential.split_once('/').unwrap_or((namespace, credential));
        let secret =
            set.secrets.iter().find(|secret| secret.head.namespace == namespace && secret.head.name == name);
        let field = format!("spec.servers[{at}].tls.credentialName");
        let place = (&gateway.head, field.as_str());
        match secret.map(|secret| secret.unusable.as_deref()) {
            None => {
                let message = format!(
                    "There is no Secret `{name}` in the namespace `{namespace}` of the gateway's pods."
                );
                findings.add(
                    codes::NOT_FOUND,
                    place,
                    message,
                    "Create the Secret there, or correct its name.",
                );
            }
            Some(Some(why)) => {
                let message = format!("The Secret {namespace}/{name} is no certificate: {why}.");
                let fix = "Write `tls.crt` and `tls.key`, in PEM.";
                findings.add(codes::INVALID_CREDENTIAL, place, message, fix);
            }
            Some(None) => {}
        }
    }
}

/// One certificate in two Gateways: a client may send requests for the one over a connection to the other.
fn certificates(set: &ObjectSet, gateway: &Gateway, findings: &mut Findings) {
    for other in set.gateways.iter().filter(|other| !is_same(gateway, other)) {
        if !selects(&gateway.selector, &other.selector) {
            continue;
        }
        let pairs = tls(gateway).flat_map(|own| tls(other).map(move |others| (own, others)));
        if pairs.into_iter().any(|(own, others)| is_same_certificate(own, others)) {
            let message = format!(
                "The Gateways {} and {} have the same certificate, so a client that uses a connection again may \
                 get 404.",
                gateway.head.full_name(),
                other.head.full_name()
            );
            let fix = "Merge the Gateways, or use separate certificates.";
            findings.add(codes::DUPLICATE_CERTIFICATE, (&gateway.head, "spec.servers"), message, fix);
        }
    }
}

fn tls(gateway: &Gateway) -> impl Iterator<Item = &ServerTls> {
    gateway.servers.iter().filter_map(|server| server.tls.as_ref())
}

fn is_same(one: &Gateway, other: &Gateway) -> bool {
    (&one.head.namespace, &one.head.name) == (&other.head.namespace, &other.head.name)
}

fn is_same_certificate(one: &ServerTls, other: &ServerTls) -> bool {
    if !one.credential.is_empty() || !other.credential.is_empty() {
        return one.credential == other.credential;
    }
    !one.certificate.is_empty()
        && one.certificate == other.certificate
        && !one.key.is_empty()
        && one.key == other.key
}

/// Who has a host on a port, and who shares pods with whom.
struct Claims<'s> {
    /// Positions of Gateways by port, address and host.
    by_host: BTreeMap<(i64, &'s str, &'s str), Vec<usize>>,
    /// Positions of pods by selector: many Gateways have the same one.
    pods: BTreeMap<&'s Pairs, Vec<usize>>,
}

impl<'s> Claims<'s> {
    fn new(set: &'s ObjectSet) -> Self {
        let mut claims = Self { by_host: BTreeMap::new(), pods: BTreeMap::new() };
        let mut by_label: BTreeMap<(&str, &str), Vec<usize>> = BTreeMap::new();
        for (at, pod) in set.pods.iter().enumerate() {
            for (name, value) in &pod.labels {
                by_label.entry((name, value)).or_default().push(at);
            }
        }
        for (at, gateway) in set.gateways.iter().enumerate() {
            for server in &gateway.servers {
                for host in &server.hosts {
                    claims.by_host.entry((server.port, &server.bind, host)).or_default().push(at);
                }
            }
            claims.pods.entry(&gateway.selector).or_insert_with(|| {
                let Some((name, value)) = gateway.selector.first_key_value() else {
                    return (0..set.pods.len()).collect();
                };
                let candidates = by_label.get(&(name.as_str(), value.as_str())).into_iter().flatten();
                let selected =
                    |at: &usize| set.pods.get(*at).is_some_and(|pod| selects(&gateway.selector, &pod.labels));
                candidates.copied().filter(selected).collect()
            });
        }
        claims
    }

    /// The positions of the pods that a Gateway selects, in order.
    fn pods_of(&self, gateway: &Gateway) -> &[usize] {
        self.pods.get(&gateway.selector).map(Vec::as_slice).unwrap_or_default()
    }

    fn share_pods(&self, one: &Gateway, other: &Gateway) -> bool {
        let of = |gateway| self.pods_of(gateway);
        let (few, many) =
            if of(one).len() < of(other).len() { (of(one), of(other)) } else { (of(other), of(one)) };
        one.selector == other.selector || few.iter().any(|pod| many.binary_search(pod).is_ok())
    }
}

/// Two Gateways of the same pods with the same host, port and address.
fn conflicts(set: &ObjectSet, gateway: &Gateway, claims: &Claims<'_>, findings: &mut Findings) {
    for (at, server) in gateway.servers.iter().enumerate() {
        let keys = server.hosts.iter().map(|host| (server.port, server.bind.as_str(), host.as_str()));
        let others: BTreeSet<usize> =
            keys.filter_map(|key| claims.by_host.get(&key)).flatten().copied().collect();
        let others = others.iter().filter_map(|other| set.gateways.get(*other));
        let names: Vec<String> = others
            .filter(|other| !is_same(gateway, other) && claims.share_pods(gateway, other))
            .map(|other| other.head.full_name())
            .collect();
        if names.is_empty() {
            continue;
        }
        let message = format!(
            "Other Gateways of the same pods ({}) have port {} and hosts of {} as well; only the first is in force.",
            listed(names.iter().map(String::as_str)),
            server.port,
            listed(server.hosts.iter().map(String::as_str))
        );
        let field = format!("spec.servers[{at}]");
        let fix = "Merge the Gateways, or give them separate hosts.";
        findings.add(codes::CONFLICTING_GATEWAYS, (&gateway.head, &field), message, fix);
    }
}
