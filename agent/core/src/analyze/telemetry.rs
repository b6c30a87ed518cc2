//! Telemetries: whom they select, and where they send (T-1, T-5).

use std::collections::BTreeMap;

use super::objects::{ObjectSet, Telemetry};
use super::{Findings, codes, listed, shown, workloads};

/// Checks all Telemetries.
pub(super) fn check(set: &ObjectSet, findings: &mut Findings) {
    selectors(set, findings);
    without_selector(set, findings);
    let mesh = set.mesh.as_ref();
    if !mesh.is_some_and(|mesh| mesh.has_default_access_log) {
        set.telemetries.iter().for_each(|telemetry| providers(telemetry, findings));
    }
    let lightstep = mesh.map(|mesh| mesh.lightstep.as_slice()).unwrap_or_default();
    for telemetry in &set.telemetries {
        for (at, provider) in telemetry.tracers.iter().filter(|(_, name)| lightstep.contains(name)) {
            let field = format!("spec.tracing[{at}].providers");
            let message = format!("The provider `{provider}` sends to Lightstep, which is no more.");
            let fix = "Use a provider of the type OpenTelemetry.";
            findings.add(codes::DEPRECATED, (&telemetry.head, &field), message, fix);
        }
    }
}

fn selectors(set: &ObjectSet, findings: &mut Findings) {
    let mut of_pods: BTreeMap<String, Vec<&Telemetry>> = BTreeMap::new();
    for telemetry in &set.telemetries {
        let Some(selector) = telemetry.selector.as_ref().filter(|selector| !selector.is_empty()) else {
            continue;
        };
        let namespace = telemetry.head.namespace.as_str();
        let mut pods = workloads::selected(set, namespace, selector).peekable();
        if pods.peek().is_none() {
            let message = format!(
                "No pod of `{namespace}` has the labels {}, so the Telemetry applies to nobody.",
                shown(selector)
            );
            let place = (&telemetry.head, "spec.selector.matchLabels");
            findings.add(codes::NOT_FOUND, place, message, "Correct the labels.");
        }
        for pod in pods {
            of_pods.entry(pod.head.full_name()).or_default().push(telemetry);
        }
    }
    for (pod, telemetries) in of_pods.iter().filter(|(_, telemetries)| telemetries.len() > 1) {
        let names = listed(telemetries.iter().map(|telemetry| telemetry.head.name.as_str()));
        let message =
            format!("The Telemetries {names} select the same pod {pod}; only the oldest is in force for it.");
        for telemetry in telemetries {
            let place = (&telemetry.head, "spec.selector");
            findings.add(
                codes::CONFLICTING_TELEMETRIES,
                place,
                message.as_str(),
                "Let one of them select the pod.",
            );
        }
    }
}

fn without_selector(set: &ObjectSet, findings: &mut Findings) {
    let mut of_namespaces: BTreeMap<&str, Vec<&Telemetry>> = BTreeMap::new();
    let whole = |telemetry: &&Telemetry| telemetry.selector.is_none() && !telemetry.has_targets;
    for telemetry in set.telemetries.iter().filter(whole) {
        of_namespaces.entry(&telemetry.head.namespace).or_default().push(telemetry);
    }
    for (namespace, telemetries) in of_namespaces.iter().filter(|(_, telemetries)| telemetries.len() > 1) {
        let names = listed(telemetries.iter().map(|telemetry| telemetry.head.name.as_str()));
        let message = format!(
            "The Telemetries {names} of `{namespace}` select every workload; only the oldest is in force."
        );
        for telemetry in telemetries {
            let place = (&telemetry.head, "spec.selector");
            let fix = "Keep one without `selector`.";
            findings.add(codes::TELEMETRIES_WITHOUT_SELECTOR, place, message.as_str(), fix);
        }
    }
}

fn providers(telemetry: &Telemetry, findings: &mut Findings) {
    for at in &telemetry.logs_without_provider {
        let field = format!("spec.accessLogging[{at}].providers");
        let message = "The access log names no provider, and MeshConfig has no default one: it is ignored.";
        let fix = "Add `providers`, or `defaultProviders.accessLogging` in MeshConfig.";
        findings.add(codes::NO_PROVIDER, (&telemetry.head, &field), message, fix);
    }
}
