//! Gateways: workloads, ports, secrets, and Gateways that contradict each other (G-2, G-8).

use super::objects::{Gateway, ObjectSet, Server, ServerTls};
use super::workloads::selects;
use super::{Findings, codes, listed, shown};

/// Checks all Gateways.
pub(super) fn check(set: &ObjectSet, findings: &mut Findings) {
    for gateway in &set.gateways {
        let mut pods = set.pods.iter().filter(|pod| selects(&gateway.selector, &pod.labels));
        match pods.next() {
            Some(pod) => {
                ports(set, gateway, findings);
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
        conflicts(set, gateway, findings);
    }
}

/// A Gateway's port is one on which its pods listen: a Service in front of them has to lead there.
fn ports(set: &ObjectSet, gateway: &Gateway, findings: &mut Findings) {
    let mut known = Vec::new();
    for pod in set.pods.iter().filter(|pod| selects(&gateway.selector, &pod.labels)) {
        let of_pod = set.services.iter().filter(|service| {
            service.head.namespace == pod.head.namespace && selects(&service.selector, &pod.labels)
        });
        let tcp = of_pod.flat_map(|service| &service.ports).filter(|port| port.protocol == "TCP");
        for port in tcp {
            // Where the target has a name the Service's own number stands for it.
            known.extend([port.port, port.target.parse().unwrap_or(port.port)]);
        }
    }
    for (at, server) in gateway.servers.iter().enumerate().filter(|(_, server)| !known.contains(&server.port))
    {
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

/// Two Gateways of the same pods with the same host, port and address.
fn conflicts(set: &ObjectSet, gateway: &Gateway, findings: &mut Findings) {
    // Comparing servers is cheap, comparing pods is not.
    let contradicts = |other: &&Gateway| {
        gateway.servers.iter().any(|server| other.servers.iter().any(|known| collide(server, known)))
    };
    let others = set.gateways.iter().filter(|other| !is_same(gateway, other)).filter(contradicts);
    let neighbours: Vec<&Gateway> = others.filter(|other| share_pods(set, gateway, other)).collect();
    for (at, server) in gateway.servers.iter().enumerate() {
        let claims = |other: &&&Gateway| other.servers.iter().any(|known| collide(server, known));
        let names: Vec<String> =
            neighbours.iter().filter(claims).map(|other| other.head.full_name()).collect();
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

fn share_pods(set: &ObjectSet, one: &Gateway, other: &Gateway) -> bool {
    let both = |labels| selects(&one.selector, labels) && selects(&other.selector, labels);
    one.selector == other.selector || set.pods.iter().any(|pod| both(&pod.labels))
}

fn collide(one: &Server, other: &Server) -> bool {
    one.port == other.port
        && one.bind == other.bind
        && one.hosts.iter().any(|host| other.hosts.contains(host))
}
