//! Checks of the installed objects: the agents' DaemonSet, the controller, the root of trust.

use std::time::{Duration, SystemTime};

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use kube::Api;
use kube::api::ListParams;
use x509_parser::pem::Pem;

use super::super::cluster::{AGENT, CONTROLLER, Cluster, is_forbidden, reading};
use super::report::{Check, Group};
use super::webhook;

/// Roots are replaced by hand, by people who want to be told in time.
const ROOT_WARNING: Duration = Duration::from_secs(30 * 24 * 3600);
/// Holds the root that agents trust.
const ROOT_CONFIG_MAP: &str = "weft-ca-root-cert";
const ROOT_KEY: &str = "root-cert.pem";
/// Holds the key of the certificate authority.
const CA_SECRET: &str = "weft-ca";

/// The agents' set, and everything that they need in the cluster.
pub(super) async fn group(cluster: &Cluster, set: Option<&DaemonSet>) -> Group {
    let Some(set) = set else {
        return Group::new("Installation", vec![not_installed(cluster.system())]);
    };
    let mut checks = vec![daemon_set(set)];
    let (bundle, roots) = root(cluster).await;
    // With another authority there may be no controller, and the root is that authority's own.
    if uses_own_ca(set) {
        let (deployment, check) = controller(cluster).await;
        checks.push(check);
        checks.push(endpoints(cluster).await);
        checks.push(ca_secret(cluster).await);
        checks.extend(webhook::check(cluster, deployment.as_ref(), bundle.as_deref()).await);
    }
    checks.extend(roots);
    Group::new("Installation", checks)
}

fn not_installed(system: &str) -> Check {
    Check::error(
        "daemonset",
        format!("Weft is not installed: there is no DaemonSet {AGENT} in the namespace {system}."),
        "Run `weft check --pre`, then `weft install` (or name the namespace with --system-namespace).",
    )
}

/// Whether certificates come from our controller: the agents' `--ca-address` tells.
pub(super) fn uses_own_ca(set: &DaemonSet) -> bool {
    argument(set, "--ca-address").is_none_or(|address| address.contains(CONTROLLER))
}

/// The value of an option in the agents' command line.
pub(super) fn argument<'s>(set: &'s DaemonSet, name: &str) -> Option<&'s str> {
    let pod = set.spec.as_ref()?.template.spec.as_ref()?;
    let container = pod.containers.first()?;
    let mut words = container.command.iter().flatten().chain(container.args.iter().flatten());
    while let Some(word) = words.next() {
        if let Some(rest) = word.strip_prefix(name) {
            return match rest.strip_prefix('=') {
                Some(value) => Some(value),
                None if rest.is_empty() => words.next().map(String::as_str),
                None => continue,
            };
        }
    }
    None
}

fn daemon_set(set: &DaemonSet) -> Check {
    const NAME: &str = "daemonset";
    let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
    let status = set.status.clone().unwrap_or_default();
    let (wanted, ready) = (status.desired_number_scheduled, status.number_ready);
    let updated = status.updated_number_scheduled.unwrap_or_default();
    if wanted == 0 {
        return Check::error(
            NAME,
            "The agents' DaemonSet wants no node.",
            format!(
                "Look at its nodeSelector: `kubectl get daemonset --namespace {namespace} {AGENT} -o yaml`."
            ),
        );
    }
    if ready < wanted {
        return Check::error(
            NAME,
            format!("{ready} of {wanted} agents are ready."),
            format!(
                "Run `kubectl get pods --namespace {namespace} -o wide` and `kubectl describe` those that are not."
            ),
        );
    }
    if updated < wanted {
        return Check::warning(
            NAME,
            format!("All {wanted} agents are ready, {updated} of them of the newest revision."),
            format!("Wait for `kubectl rollout status --namespace {namespace} daemonset/{AGENT}`."),
        );
    }
    Check::ok(NAME, format!("All {wanted} agents are ready."))
}

async fn controller(cluster: &Cluster) -> (Option<Deployment>, Check) {
    const NAME: &str = "controller";
    let system = cluster.system();
    let deployments: Api<Deployment> = Api::namespaced(cluster.client().clone(), system);
    match deployments.get_opt(CONTROLLER).await {
        Ok(Some(deployment)) => {
            let check = deployment_ready(&deployment);
            (Some(deployment), check)
        }
        Ok(None) => {
            let text = format!("There is no Deployment {CONTROLLER} in {system}: nobody signs certificates.");
            (None, Check::error(NAME, text, "Run `weft install` again."))
        }
        Err(error) => (None, Check::skipped(NAME, format!("{:#}.", reading("the controller", &error)))),
    }
}

fn deployment_ready(deployment: &Deployment) -> Check {
    const NAME: &str = "controller";
    let namespace = deployment.metadata.namespace.as_deref().unwrap_or_default();
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let ready = deployment.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or_default();
    let fix =
        format!("Run `kubectl describe pods --namespace {namespace}` and look at those of {CONTROLLER}.");
    match ready {
        0 => Check::error(
            NAME,
            format!("No controller is ready of {wanted}: certificates are not renewed."),
            fix,
        ),
        _ if ready < wanted => {
            Check::warning(NAME, format!("{ready} of {wanted} controllers are ready."), fix)
        }
        _ => Check::ok(NAME, format!("All {wanted} controllers are ready.")),
    }
}

/// Whether the name that agents dial leads anywhere.
async fn endpoints(cluster: &Cluster) -> Check {
    const NAME: &str = "ca-service";
    match ready_endpoints(cluster, cluster.system(), CONTROLLER).await {
        Err(error) => Check::skipped(NAME, format!("{:#}.", reading("the endpoints of the Service", &error))),
        Ok(0) => Check::error(
            NAME,
            format!(
                "The Service {CONTROLLER} has no ready endpoint: agents cannot reach the certificate authority."
            ),
            format!("Run `kubectl get endpointslices,pods --namespace {}`.", cluster.system()),
        ),
        Ok(ready) => Check::ok(NAME, format!("The certificate authority has {ready} ready endpoints.")),
    }
}

/// So many pods answer behind a Service.
pub(super) async fn ready_endpoints(
    cluster: &Cluster,
    namespace: &str,
    service: &str,
) -> Result<usize, kube::Error> {
    let slices: Api<EndpointSlice> = Api::namespaced(cluster.client().clone(), namespace);
    let of_service = ListParams::default().labels(&format!("kubernetes.io/service-name={service}"));
    let slices = slices.list(&of_service).await?;
    let endpoints = slices.items.iter().flat_map(|slice| &slice.endpoints);
    let is_ready = |endpoint: &&Endpoint| {
        endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true)
    };
    Ok(endpoints.filter(is_ready).count())
}

/// Only that it is there: what is in it is nobody's business.
async fn ca_secret(cluster: &Cluster) -> Check {
    const NAME: &str = "ca-secret";
    let secrets: Api<Secret> = Api::namespaced(cluster.client().clone(), cluster.system());
    match secrets.get_metadata_opt(CA_SECRET).await {
        Ok(Some(_)) => Check::ok(NAME, format!("The authority's key is kept in the Secret {CA_SECRET}.")),
        Ok(None) => Check::error(
            NAME,
            format!("There is no Secret {CA_SECRET}: the controller has not made its key yet."),
            format!("Run `kubectl logs --namespace {} deployment/{CONTROLLER}`.", cluster.system()),
        ),
        Err(error) if is_forbidden(&error) => Check::skipped(
            NAME,
            "You may not see whether the authority's Secret is there, which is as it should be.",
        ),
        Err(error) => Check::skipped(NAME, format!("{:#}.", reading("the authority's Secret", &error))),
    }
}

/// The roots that agents trust, and what there is to say of them.
async fn root(cluster: &Cluster) -> (Option<String>, Vec<Check>) {
    const NAME: &str = "root-certificate";
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client().clone(), cluster.system());
    let map = match maps.get_opt(ROOT_CONFIG_MAP).await {
        Ok(Some(map)) => map,
        Ok(None) => {
            let text = format!(
                "There is no ConfigMap {ROOT_CONFIG_MAP} in {}: agents trust nobody.",
                cluster.system()
            );
            let fix = format!("Run `kubectl logs --namespace {} deployment/{CONTROLLER}`.", cluster.system());
            return (None, vec![Check::error(NAME, text, fix)]);
        }
        Err(error) => {
            let text = format!("{:#}.", reading("the root certificate", &error));
            return (None, vec![Check::skipped(NAME, text)]);
        }
    };
    match map.data.unwrap_or_default().remove(ROOT_KEY) {
        Some(pem) => {
            let checks = roots(&pem, SystemTime::now());
            (Some(pem), checks)
        }
        None => {
            let text = format!("The ConfigMap {ROOT_CONFIG_MAP} has no key {ROOT_KEY}: agents trust nobody.");
            (None, vec![Check::error(NAME, text, "Restart the controller: it writes the key.")])
        }
    }
}

/// One check for each root in the bundle.
fn roots(bundle: &str, now: SystemTime) -> Vec<Check> {
    const NAME: &str = "root-certificate";
    let broken = |why: String| {
        Check::error(
            NAME,
            format!("A root certificate cannot be read: {why}."),
            "Restore the ConfigMap's content.",
        )
    };
    let mut checks: Vec<Check> = Pem::iter_from_buffer(bundle.as_bytes())
        .map(|pem| match pem {
            Ok(pem) => match pem.parse_x509() {
                Ok(certificate) => root_expiry(certificate.validity().not_after.timestamp(), now),
                Err(error) => broken(error.to_string()),
            },
            Err(error) => broken(error.to_string()),
        })
        .collect();
    if checks.is_empty() {
        checks.push(broken("there is none".into()));
    }
    checks
}

/// `not_after` in seconds since 1970.
fn root_expiry(not_after: i64, now: SystemTime) -> Check {
    const NAME: &str = "root-certificate";
    const FIX: &str = "Replace the root: README, \"Rotate the root\".";
    let ends = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(not_after).unwrap_or_default());
    let Ok(left) = ends.duration_since(now) else {
        return Check::error(
            NAME,
            "A root certificate has expired: no connection between nodes can be made.",
            FIX,
        );
    };
    let message = format!("A root certificate ends in {} days.", left.as_secs() / 86_400);
    if left < ROOT_WARNING { Check::warning(NAME, message, FIX) } else { Check::ok(NAME, message) }
}

#[cfg(test)]
mod tests {
    use super::super::report::Outcome;
    use super::*;

    fn set(status: serde_json::Value) -> DaemonSet {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": AGENT, "namespace": "weft-system"},
            "spec": {"selector": {}, "template": {"spec": {"containers": [{
                "name": "agent", "command": ["weft", "agent"],
                "args": ["--ca-address", "https://weft-controller.weft-system.svc:15012", "--cni-conf-dir=/host/net.d", "--log-level-x"],
            }]}}},
            "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn agents_are_counted() {
        let status = |wanted: i32, ready: i32, updated: i32| {
            let status = serde_json::json!({
                "desiredNumberScheduled": wanted, "numberReady": ready, "updatedNumberScheduled": updated,
                "currentNumberScheduled": wanted, "numberMisscheduled": 0,
            });
            daemon_set(&set(status))
        };
        assert_eq!(status(3, 3, 3).outcome, Outcome::Ok);
        assert_eq!(status(3, 3, 2).outcome, Outcome::Warning);
        let missing = status(3, 2, 3);
        assert!(missing.outcome == Outcome::Error && missing.message.contains("2 of 3"), "{missing:?}");
        assert_eq!(status(0, 0, 0).outcome, Outcome::Error);
    }

    #[test]
    fn the_command_line_of_the_agents_is_read() {
        let set = set(serde_json::Value::Null);
        assert_eq!(argument(&set, "--ca-address"), Some("https://weft-controller.weft-system.svc:15012"));
        assert_eq!(argument(&set, "--cni-conf-dir"), Some("/host/net.d"));
        assert_eq!(argument(&set, "--log-level"), None);
        assert!(uses_own_ca(&set));
    }

    #[test]
    fn controllers_are_counted() {
        let of = |wanted: i32, ready: i32| {
            let deployment = serde_json::json!({
                "spec": {"replicas": wanted, "selector": {}, "template": {}}, "status": {"readyReplicas": ready},
            });
            deployment_ready(&serde_json::from_value(deployment).unwrap()).outcome
        };
        assert_eq!((of(2, 2), of(2, 1), of(2, 0)), (Outcome::Ok, Outcome::Warning, Outcome::Error));
    }

    #[test]
    fn roots_end_some_day() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let after = |days: i64| root_expiry(1_800_000_000 + days * 86_400, now);
        assert_eq!(after(400).outcome, Outcome::Ok);
        assert_eq!(after(20).outcome, Outcome::Warning);
        assert_eq!(after(-1).outcome, Outcome::Error);
        assert_eq!(roots("", now)[0].outcome, Outcome::Error);
        assert_eq!(
            roots("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", now)[0].outcome,
            Outcome::Error
        );
    }
}
