//! Policies that select the pods of a Gateway of the Gateway API, whose proxies look at `targetRefs` only.

use super::objects::{Head, ObjectSet, Pairs};
use super::{Findings, codes, workloads};

/// Label of a pod: the Gateway for which it runs.
const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";

/// Checks all policies with a selector.
pub(super) fn check(set: &ObjectSet, findings: &mut Findings) {
    let authorizations = set.authorization_policies.iter().filter(|policy| !policy.has_targets);
    let authorizations = authorizations.filter_map(|policy| Some((&policy.head, policy.selector.as_ref()?)));
    let telemetries = set.telemetries.iter().filter(|telemetry| !telemetry.has_targets);
    let telemetries =
        telemetries.filter_map(|telemetry| Some((&telemetry.head, telemetry.selector.as_ref()?)));
    let others = set.request_authentications.iter().chain(&set.wasm_plugins);
    let others = others.filter_map(|(head, selector)| Some((head, selector.as_ref()?)));
    for (head, selector) in authorizations.chain(telemetries).chain(others) {
        selected(set, head, selector, findings);
    }
}

fn selected(set: &ObjectSet, head: &Head, selector: &Pairs, findings: &mut Findings) {
    for pod in workloads::selected(set, &head.namespace, selector) {
        let Some(gateway) = pod.labels.get(GATEWAY_NAME) else { continue };
        let message = format!(
            "The selector means pods of Gateway `{gateway}`, whose proxies look at `targetRefs` only."
        );
        let fix = "Write `targetRefs` with the Gateway in place of the selector.";
        findings.add(codes::INEFFECTIVE_SELECTOR, (head, "spec.selector"), message, fix);
    }
}
