//! Whether a DaemonSet wants a pod on a node, as its controller decides it for pods that run already
//! (kubernetes.io, "DaemonSet", "How Daemon Pods are scheduled"). In doubt it does.

use k8s_openapi::api::core::v1::{
    Node, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Taint, Toleration,
};

/// Taints that every pod of a DaemonSet tolerates; others of its own do not end a pod.
const ALWAYS_TOLERATED: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];

/// Whether pods of this spec belong on the node.
pub(super) fn selects(spec: &PodSpec, node: &Node) -> bool {
    has_labels(spec, node) && has_affinity(spec, node) && is_tolerated(spec, node)
}

fn label<'n>(node: &'n Node, key: &str) -> Option<&'n str> {
    node.metadata.labels.as_ref()?.get(key).map(String::as_str)
}

fn has_labels(spec: &PodSpec, node: &Node) -> bool {
    let mut wanted = spec.node_selector.iter().flatten();
    wanted.all(|(key, value)| label(node, key) == Some(value))
}

/// Of the terms one suffices; of a term everything must be true, and an empty one selects nothing.
fn has_affinity(spec: &PodSpec, node: &Node) -> bool {
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required =
        affinity.and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    required.is_none_or(|required| required.node_selector_terms.iter().any(|term| matches(term, node)))
}

fn matches(term: &NodeSelectorTerm, node: &Node) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let name = node.metadata.name.as_deref();
    let is_something = !expressions.is_empty() || !fields.is_empty();
    is_something
        && expressions.iter().all(|wanted| meets(wanted, label(node, &wanted.key)))
        && fields.iter().all(|wanted| wanted.key != "metadata.name" || meets(wanted, name))
}

fn meets(wanted: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = wanted.values.as_deref().unwrap_or_default();
    let is_listed = || value.is_some_and(|value| values.iter().any(|listed| listed == value));
    let compared = || {
        let number = |text: &str| text.parse::<i64>().ok();
        Some(number(value?)?.cmp(&number(values.first()?)?))
    };
    match wanted.operator.as_str() {
        "In" => is_listed(),
        "NotIn" => !is_listed(),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compared().is_some_and(std::cmp::Ordering::is_gt),
        "Lt" => compared().is_some_and(std::cmp::Ordering::is_lt),
        _ => true,
    }
}

/// Only this effect ends a pod that runs.
fn is_tolerated(spec: &PodSpec, node: &Node) -> bool {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    taints.iter().filter(|taint| taint.effect == "NoExecute").all(|taint| {
        ALWAYS_TOLERATED.contains(&taint.key.as_str())
            || tolerations.iter().any(|toleration| tolerates(toleration, taint))
    })
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let (key, effect) = (text(&toleration.key), text(&toleration.effect));
    let concerns = (effect.is_empty() || effect == taint.effect) && (key.is_empty() || key == taint.key);
    concerns
        && match text(&toleration.operator).as_str() {
            "" | "Equal" => text(&toleration.value) == text(&taint.value),
            // `Exists`, and what later versions have.
            _ => true,
        }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn is_selected(spec: Value) -> bool {
        let mut whole = json!({"containers": []});
        whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        let node = json!({
            "metadata": {"name": "one", "labels": {"role": "mesh", "cores": "8"}},
            "spec": {"taints": [
                {"key": "draining", "value": "soon", "effect": "NoSchedule"},
                {"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"},
                {"key": "spot", "value": "yes", "effect": "NoExecute"},
            ]},
        });
        selects(&serde_json::from_value(whole).unwrap(), &serde_json::from_value(node).unwrap())
    }

    fn tolerant(mut spec: Value) -> Value {
        spec["tolerations"] = json!([{"operator": "Exists"}]);
        spec
    }

    #[test]
    fn labels_select() {
        for (selector, expected) in [
            (json!({}), true),
            (json!({"role": "mesh"}), true),
            (json!({"role": "mesh", "zone": "a"}), false),
        ] {
            assert_eq!(is_selected(tolerant(json!({"nodeSelector": selector}))), expected, "{selector}");
        }
    }

    #[test]
    fn terms_select_as_the_scheduler_reads_them() {
        let expression = |key: &str, operator: &str, values: &[&str]| json!([{"matchExpressions": [{"key": key, "operator": operator, "values": values}]}]);
        let field = |value: &str| json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": [value]}]}]);
        for (terms, expected) in [
            (expression("role", "In", &["other", "mesh"]), true),
            (expression("role", "In", &["other"]), false),
            (expression("role", "NotIn", &["mesh"]), false),
            (expression("zone", "NotIn", &["a"]), true),
            (expression("role", "Exists", &[]), true),
            (expression("zone", "Exists", &[]), false),
            (expression("role", "DoesNotExist", &[]), false),
            (expression("cores", "Gt", &["4"]), true),
            (expression("cores", "Lt", &["4"]), false),
            (expression("role", "Gt", &["4"]), false),
            (expression("role", "Resembles", &["m"]), true),
            (field("one"), true),
            (field("two"), false),
            (json!([{}]), false),
            (json!([{}, field("one")[0]]), true),
        ] {
            let required =
                json!({"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}});
            let spec = tolerant(json!({"affinity": {"nodeAffinity": required}}));
            assert_eq!(is_selected(spec), expected, "{terms}");
        }
    }

    #[test]
    fn only_taints_that_end_pods_count() {
        for (toleration, expected) in [
            (json!({"operator": "Exists"}), true),
            (json!({"key": "spot", "operator": "Exists", "effect": "NoExecute"}), true),
            (json!({"key": "spot", "operator": "Exists", "effect": "NoSchedule"}), false),
            (json!({"key": "spot", "value": "yes"}), true),
            (json!({"key": "spot", "value": "no"}), false),
            (json!({"key": "draining", "operator": "Exists"}), false),
        ] {
            assert_eq!(is_selected(json!({"tolerations": [toleration]})), expected, "{toleration}");
        }
    }
}
