//! Deployments and Pods: Services that contradict each other (S-59), the sidecar's user and its image.

use std::collections::BTreeMap;

use super::objects::{ObjectSet, Pod, Service};
use super::{Findings, codes, listed, workloads};

/// The user that Istio's sidecar runs as.
const SIDECAR_USER: i64 = 1337;

/// Checks all Deployments and Pods.
pub(super) fn check(set: &ObjectSet, findings: &mut Findings) {
    for deployment in &set.deployments {
        let managed = deployment.head.labels.get("gateway.istio.io/managed");
        let waypoint = managed.is_some_and(|by| by == "istio.io-mesh-controller");
        if !waypoint && workloads::in_mesh(set, deployment) {
            let services = services_of(set, deployment);
            protocols(deployment, &services, findings);
            targets(deployment, &services, findings);
        }
    }
    for (pod, field) in set
        .pods
        .iter()
        .map(|pod| (pod, "spec"))
        .chain(set.deployments.iter().map(|deployment| (deployment, "spec.template.spec")))
    {
        users(pod, field, findings);
    }
    images(set, findings);
}

fn services_of<'s>(set: &'s ObjectSet, deployment: &Pod) -> Vec<&'s Service> {
    let is_its = |service: &&Service| {
        !service.selector.is_empty() && workloads::selects(&service.selector, &deployment.labels)
    };
    set.services_in(&deployment.head.namespace).filter(is_its).collect()
}

/// The same port, TCP for one Service and UDP for another.
fn protocols(deployment: &Pod, services: &[&Service], findings: &mut Findings) {
    let mut ports: BTreeMap<i64, BTreeMap<&str, Vec<String>>> = BTreeMap::new();
    for service in services {
        for port in &service.ports {
            let by_protocol = ports.entry(port.port).or_default();
            by_protocol.entry(&port.protocol).or_default().push(service.head.full_name());
        }
    }
    for (port, by_protocol) in ports.iter().filter(|(_, by_protocol)| by_protocol.len() > 1) {
        let names = listed(by_protocol.values().flatten().map(String::as_str));
        let message =
            format!("The Services {names} give port {port} of this Deployment different protocols.");
        let place = (&deployment.head, "spec.template.metadata.labels");
        findings.add(codes::MULTIPLE_SERVICES, place, message, "Let the Services agree on one protocol.");
    }
}

/// Different ports of Services that lead to the same port of the pods.
fn targets(deployment: &Pod, services: &[&Service], findings: &mut Findings) {
    let mut targets: BTreeMap<&str, BTreeMap<i64, String>> = BTreeMap::new();
    for service in services {
        for port in &service.ports {
            targets.entry(&port.target).or_default().insert(port.port, service.head.full_name());
        }
    }
    for (target, ports) in targets.iter().filter(|(_, ports)| ports.len() > 1) {
        let names = listed(ports.values().map(String::as_str));
        let numbers: Vec<String> = ports.keys().map(i64::to_string).collect();
        let message = format!(
            "The ports {} of the Services {names} lead to the same port {target} of this Deployment.",
            numbers.join(", ")
        );
        let place = (&deployment.head, "spec.template.metadata.labels");
        findings.add(codes::CONFLICTING_PORTS, place, message, "Let the Services have the same port.");
    }
}

/// `image: auto` is for Istio's injector to replace; a Pod that still has it cannot start.
fn images(set: &ObjectSet, findings: &mut Findings) {
    let message = "The image of `istio-proxy` is `auto`, and nothing will replace it: it cannot be pulled.";
    for pod in set.pods.iter().filter(|pod| pod.awaits_sidecar) {
        let fix = "Let Istio's injector make the pod anew, or remove the container.";
        findings.add(codes::UNFILLED_POD, (&pod.head, "spec.containers"), message, fix);
    }
    for deployment in set.deployments.iter().filter(|deployment| deployment.awaits_sidecar) {
        if !workloads::is_injected(set, deployment) {
            let place = (&deployment.head, "spec.template.spec.containers");
            let fix = "Label the namespace `istio-injection: enabled`, the pods `sidecar.istio.io/inject: \"true\"`, or remove the container.";
            findings.add(codes::UNFILLED_TEMPLATE, place, message, fix);
        }
    }
}

fn users(pod: &Pod, field: &str, findings: &mut Findings) {
    let labels = &pod.head.labels;
    if labels.contains_key("istio") || labels.get("release").is_some_and(|release| release == "istio") {
        return;
    }
    let message = "The user 1337 is reserved: connections of an Istio sidecar are told by it.";
    let fix = "Run as another user.";
    if pod.user == Some(SIDECAR_USER) {
        let field = format!("{field}.securityContext.runAsUser");
        findings.add(codes::RESERVED_USER, (&pod.head, &field), message, fix);
    }
    for (at, container) in pod.containers.iter().enumerate() {
        let of_istio = matches!(container.name.as_str(), "istio-proxy" | "istio-operator");
        if container.user == Some(SIDECAR_USER) && !of_istio {
            let field = format!("{field}.containers[{at}].securityContext.runAsUser");
            findings.add(codes::RESERVED_USER, (&pod.head, &field), message, fix);
        }
    }
}
