//! Whether the API server asks the controller about objects before it stores them, and can believe its answers.

use k8s_openapi::api::admissionregistration::v1::{ValidatingWebhook, ValidatingWebhookConfiguration};
use k8s_openapi::api::apps::v1::Deployment;
use kube::Api;

use super::super::cluster::{CONTROLLER, Cluster, is_forbidden, reading};
use super::install::ready_endpoints;
use super::report::Check;

const NAME: &str = "webhook";
/// As in the manifest.
const CONFIGURATION: &str = "weft-validation";

/// One check, or one for each thing that is wrong. `root` is what agents trust, where it could be read.
pub(super) async fn check(
    cluster: &Cluster,
    deployment: Option<&Deployment>,
    root: Option<&str>,
) -> Vec<Check> {
    if deployment.is_some_and(is_off) {
        return vec![Check::skipped(
            NAME,
            "Objects are not validated before they are stored: that is turned off.",
        )];
    }
    let configurations: Api<ValidatingWebhookConfiguration> = Api::all(cluster.client().clone());
    let configuration = match configurations.get_opt(CONFIGURATION).await {
        Ok(Some(configuration)) => configuration,
        Ok(None) => return vec![missing()],
        Err(error) if is_forbidden(&error) => {
            return vec![Check::skipped(
                NAME,
                "You may not see how objects are validated before they are stored.",
            )];
        }
        Err(error) => return vec![Check::skipped(NAME, format!("{:#}.", reading("the webhook", &error)))],
    };
    let webhooks = configuration.webhooks.unwrap_or_default();
    let mut wrong: Vec<Check> = webhooks.iter().flat_map(|webhook| of_webhook(webhook, root)).collect();
    for service in webhooks.iter().filter_map(|webhook| webhook.client_config.service.as_ref()) {
        wrong.extend(unanswered(cluster, (&service.namespace, &service.name)).await);
    }
    match (webhooks.is_empty(), wrong.is_empty()) {
        (true, _) => vec![missing()],
        (false, true) => vec![Check::ok(NAME, "Objects are validated before they are stored.")],
        (false, false) => wrong,
    }
}

fn is_off(deployment: &Deployment) -> bool {
    let pod = deployment.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
    let containers = pod.map(|pod| pod.containers.as_slice()).unwrap_or_default();
    containers
        .iter()
        .flat_map(|container| container.args.iter().flatten())
        .any(|word| word == "--no-admission")
}

fn missing() -> Check {
    Check::warning(
        NAME,
        format!(
            "There is no ValidatingWebhookConfiguration {CONFIGURATION}: mistakes are told only after objects are stored."
        ),
        "Run `weft install` again, or turn validation off with the value admission.enabled=false.",
    )
}

/// What is wrong with the registration itself.
fn of_webhook(webhook: &ValidatingWebhook, root: Option<&str>) -> Vec<Check> {
    let mut wrong = Vec::new();
    let bundle =
        webhook.client_config.ca_bundle.as_ref().map(|bundle| bundle.0.trim_ascii()).unwrap_or_default();
    let fix = format!(
        "Look at the log of the controller that leads: `kubectl logs -n weft-system -l app={CONTROLLER}`; it writes the field."
    );
    if bundle.is_empty() {
        let text = "has no caBundle: the API server trusts nobody there, and stores objects unvalidated";
        wrong.push(Check::warning(NAME, format!("The webhook {} {text}.", webhook.name), fix));
    } else if root.is_some_and(|root| root.trim().as_bytes() != bundle) {
        let text = "has another caBundle than the mesh's root: the API server does not trust the controller";
        wrong.push(Check::warning(NAME, format!("The webhook {} {text}.", webhook.name), fix));
    }
    // `Fail` is also what the API server takes where nothing is said.
    if webhook.failure_policy.as_deref() != Some("Ignore") {
        wrong.push(Check::error(
            NAME,
            format!(
                "The webhook {} has failurePolicy Fail: without a controller no object of the mesh can be stored.",
                webhook.name
            ),
            "Run `weft install` again, which sets failurePolicy: Ignore.",
        ));
    }
    wrong
}

/// Whether nobody answers behind the Service.
async fn unanswered(cluster: &Cluster, (namespace, name): (&str, &str)) -> Option<Check> {
    match ready_endpoints(cluster, namespace, name).await {
        Ok(0) => Some(Check::warning(
            NAME,
            format!(
                "The webhook's Service {namespace}/{name} has no ready endpoint: objects are stored unvalidated."
            ),
            format!("Run `kubectl get endpointslices,pods --namespace {namespace}`."),
        )),
        // Whoever may not read them has heard of it already.
        Ok(_) | Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;
    use serde_json::json;

    use super::super::report::Outcome;
    use super::*;

    fn webhook(bundle: Option<&str>, policy: Option<&str>) -> ValidatingWebhook {
        let bundle = bundle.map(|bundle| ByteString(bundle.as_bytes().to_vec()));
        serde_json::from_value(json!({
            "name": "validation.weft.dev", "failurePolicy": policy, "clientConfig": {"caBundle": bundle},
            "admissionReviewVersions": ["v1"], "sideEffects": "None",
        }))
        .unwrap()
    }

    fn outcomes(webhook: &ValidatingWebhook, root: Option<&str>) -> Vec<(Outcome, String)> {
        of_webhook(webhook, root).into_iter().map(|check| (check.outcome, check.message)).collect()
    }

    #[test]
    fn a_registration_is_believed_only_with_our_root() {
        assert_eq!(outcomes(&webhook(Some("root"), Some("Ignore")), Some("root\n")), []);
        assert_eq!(outcomes(&webhook(Some("root"), Some("Ignore")), None), []);
        for (bundle, said) in [(None, "no caBundle"), (Some("other"), "another caBundle")] {
            let found = outcomes(&webhook(bundle, Some("Ignore")), Some("root"));
            assert!(found.len() == 1 && found[0].0 == Outcome::Warning, "{found:?}");
            assert!(found[0].1.contains(said), "{found:?}");
        }
    }

    #[test]
    fn one_that_fails_closed_is_an_error() {
        for policy in [None, Some("Fail")] {
            let found = outcomes(&webhook(Some("root"), policy), Some("root"));
            assert!(found.len() == 1 && found[0].0 == Outcome::Error, "{found:?}");
        }
    }

    #[test]
    fn what_is_turned_off_is_not_missed() {
        let deployment = |args: &[&str]| -> Deployment {
            serde_json::from_value(json!({
                "metadata": {}, "spec": {"selector": {}, "template": {"spec": {"containers": [{"name": "c", "args": args}]}}},
            }))
            .unwrap()
        };
        assert!(is_off(&deployment(&["controller", "--no-admission"])));
        assert!(!is_off(&deployment(&["controller"])));
    }
}
