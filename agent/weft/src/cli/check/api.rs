//! Checks of the cluster that Weft is, or is going to be, installed in.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use http::{Request, header};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::version::Info;
use kube::Api;
use kube::api::{ListParams, PostParams};

use super::super::cluster::{Cluster, is_forbidden, reading};
use super::node::kernel_version;
use super::report::{Check, Group, Outcome};

/// From here on a token says on which node its pod runs, which is what the certificate authority checks.
const OLDEST_KUBERNETES: u32 = 30;
/// Certificates begin two minutes before they are made: a clock that is further behind refuses them.
const CLOCK_LIMIT: Duration = Duration::from_secs(60);
/// A clock that is off by this much is not being set.
const CLOCK_WARNING: Duration = Duration::from_secs(5);
/// The kinds that Weft reads, by the groups that define them.
const GROUPS: [(&str, &str); 3] = [
    ("networking.istio.io", "VirtualService, DestinationRule, Gateway, ServiceEntry, Sidecar"),
    ("security.istio.io", "AuthorizationPolicy, PeerAuthentication, RequestAuthentication"),
    ("telemetry.istio.io", "Telemetry"),
];

/// What an installer, or a reader, has to be allowed.
struct Need {
    verb: &'static str,
    group: &'static str,
    resource: &'static str,
    subresource: Option<&'static str>,
    in_system: bool,
}

const fn need(verb: &'static str, group: &'static str, resource: &'static str, in_system: bool) -> Need {
    Need { verb, group, resource, subresource: None, in_system }
}

/// For `weft install`.
const TO_INSTALL: [Need; 7] = [
    need("create", "", "namespaces", false),
    need("create", "rbac.authorization.k8s.io", "clusterroles", false),
    need("create", "rbac.authorization.k8s.io", "clusterrolebindings", false),
    need("create", "apps", "daemonsets", true),
    need("create", "apps", "deployments", true),
    need("create", "", "serviceaccounts", true),
    need("create", "", "configmaps", true),
];

/// For `weft status`, `explain`, `dump` and `check`.
const TO_ASK: [Need; 5] = [
    need("list", "", "pods", true),
    need("get", "apps", "daemonsets", true),
    Need { subresource: Some("exec"), ..need("create", "", "pods", true) },
    need("list", "", "nodes", false),
    need("list", "", "pods", false),
];

/// The API server and its nodes; `pre` asks for the permissions of an installer.
pub(super) async fn group(cluster: &Cluster, pre: bool) -> Group {
    let mut checks = vec![version(cluster.version())];
    checks.push(match skew(cluster).await {
        Ok((skew, ahead)) => clock(skew, ahead, "this machine"),
        Err(error) => Check::skipped("clock", format!("The clocks could not be compared: {error:#}.")),
    });
    let (name, needs): (_, &[Need]) = if pre { ("may-install", &TO_INSTALL) } else { ("may-ask", &TO_ASK) };
    checks.push(access(name, allowed(cluster, needs).await));
    checks.push(match cluster.client().list_api_groups().await {
        Ok(groups) => definitions(&groups.groups.into_iter().map(|group| group.name).collect()),
        Err(error) => Check::skipped("definitions", format!("{:#}.", reading("the API's groups", &error))),
    });
    let nodes: Api<Node> = Api::all(cluster.client().clone());
    match nodes.list(&ListParams::default()).await {
        Ok(nodes) => checks.extend(self::nodes(&nodes.items)),
        Err(error) if is_forbidden(&error) => checks.push(Check::skipped("nodes", "You may not list nodes.")),
        Err(error) => checks.push(Check::skipped("nodes", format!("{:#}.", reading("the nodes", &error)))),
    }
    Group::new("Kubernetes", checks)
}

fn version(info: &Info) -> Check {
    const NAME: &str = "api-server";
    let version = &info.git_version;
    let minor: Option<u32> = info.minor.trim_end_matches(|c: char| !c.is_ascii_digit()).parse().ok();
    match minor {
        Some(minor) if info.major == "1" && minor < OLDEST_KUBERNETES => Check::error(
            NAME,
            format!(
                "The API server answers and is {version}; tokens name their node from 1.{OLDEST_KUBERNETES} on."
            ),
            "Upgrade Kubernetes, or run Weft with another certificate authority (--ca-address).",
        ),
        Some(_) | None => Check::ok(NAME, format!("The API server answers and is {version}.")),
    }
}

/// How far our clock is from the API server's, and whether it is ahead. HTTP tells time in whole seconds.
async fn skew(cluster: &Cluster) -> anyhow::Result<(Duration, bool)> {
    let request = Request::get("/version").body(kube::client::Body::empty())?;
    let before = SystemTime::now();
    let answer = cluster.client().send(request).await?;
    let ours = before + before.elapsed().unwrap_or_default() / 2;
    let date = answer.headers().get(header::DATE).and_then(|date| date.to_str().ok());
    let date = date.context("the API server tells no time")?;
    let theirs = jiff::fmt::rfc2822::parse(date).context("the API server's time cannot be read")?.timestamp();
    let theirs = SystemTime::from(theirs) + Duration::from_millis(500);
    Ok(match ours.duration_since(theirs) {
        Ok(ahead) => (ahead, true),
        Err(behind) => (behind.duration(), false),
    })
}

/// `whose` clock is `skew` from the API server's.
pub(super) fn clock(skew: Duration, ahead: bool, whose: &str) -> Check {
    const NAME: &str = "clock";
    if skew < CLOCK_WARNING {
        return Check::ok(NAME, format!("The clock of {whose} agrees with the API server's."));
    }
    let where_to = if ahead { "ahead of" } else { "behind" };
    let message = format!("The clock of {whose} is {} s {where_to} the API server's.", skew.as_secs());
    let fix = "Set it by NTP: `timedatectl set-ntp true` (or `chronyc makestep`).";
    if skew < CLOCK_LIMIT {
        return Check::warning(NAME, message, fix);
    }
    let message = format!("{message} Certificates are refused before they begin and after they end.");
    Check::error(NAME, message, fix)
}

/// Asks the API server itself what this user may do; the answers stand in the order of the questions.
async fn allowed(cluster: &Cluster, needs: &'static [Need]) -> Vec<(String, Option<bool>)> {
    let reviews: Api<SelfSubjectAccessReview> = Api::all(cluster.client().clone());
    let questions = needs.iter().map(|need| {
        let attributes = ResourceAttributes {
            verb: Some(need.verb.into()),
            group: Some(need.group.into()),
            resource: Some(need.resource.into()),
            subresource: need.subresource.map(Into::into),
            namespace: need.in_system.then(|| cluster.system().to_owned()),
            ..ResourceAttributes::default()
        };
        let spec =
            SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() };
        let review = SelfSubjectAccessReview { spec, ..Default::default() };
        let reviews = reviews.clone();
        async move {
            let answer = reviews.create(&PostParams::default(), &review).await;
            (spelt(need, cluster.system()), answer.ok().and_then(|review| Some(review.status?.allowed)))
        }
    });
    futures_util::future::join_all(questions).await
}

fn spelt(need: &Need, system: &str) -> String {
    let sub = need.subresource.map(|sub| format!("/{sub}")).unwrap_or_default();
    let group = if need.group.is_empty() { String::new() } else { format!(".{}", need.group) };
    let place = if need.in_system { format!(" in {system}") } else { String::new() };
    format!("{} {}{sub}{group}{place}", need.verb, need.resource)
}

fn access(name: &str, answers: Vec<(String, Option<bool>)>) -> Check {
    let doing = if name == "may-install" { "install Weft" } else { "ask the agents" };
    if answers.iter().all(|(_, answer)| answer.is_none()) {
        return Check::skipped(name, "The API server does not tell what you may do.");
    }
    let denied: Vec<&str> =
        answers.iter().filter(|(_, answer)| *answer == Some(false)).map(|(need, _)| need.as_str()).collect();
    if denied.is_empty() {
        return Check::ok(name, format!("You may {doing}."));
    }
    Check::error(
        name,
        format!("You may not {}: that is needed to {doing}.", denied.join(", ")),
        "Ask the cluster's administrator for these permissions, or use another --context; `kubectl auth can-i --list`.",
    )
}

fn definitions(groups: &BTreeSet<String>) -> Check {
    const NAME: &str = "definitions";
    let missing: Vec<String> = GROUPS
        .iter()
        .filter(|(group, _)| !groups.contains(*group))
        .map(|(group, kinds)| format!("{group} ({kinds})"))
        .collect();
    if missing.is_empty() {
        return Check::ok(NAME, "The kinds of Istio's API are defined.");
    }
    Check::warning(
        NAME,
        format!("This cluster does not know {}: rules of these kinds cannot be written.", missing.join(", ")),
        "Run `kubectl apply --server-side -f deploy/crds/`; nothing has to be restarted.",
    )
}

/// Nodes that the agent cannot serve, told once for all that are alike.
fn nodes(nodes: &[Node]) -> Vec<Check> {
    const NAME: &str = "nodes";
    let mut bad = Vec::new();
    let mut served = 0_usize;
    for node in nodes {
        let name = node.metadata.name.as_deref().unwrap_or("?");
        let Some(info) = node.status.as_ref().and_then(|status| status.node_info.as_ref()) else { continue };
        if info.operating_system != "linux" {
            continue;
        }
        served += 1;
        let kernel = kernel_version(&info.kernel_version);
        if kernel.outcome > Outcome::Ok {
            bad.push(Check {
                name: NAME.into(),
                message: format!("Node {name}: {}", kernel.message),
                ..kernel
            });
        }
        if !matches!(info.architecture.as_str(), "amd64" | "arm64") {
            bad.push(Check::error(
                NAME,
                format!(
                    "Node {name} is of the architecture {}; there is no image for it.",
                    info.architecture
                ),
                "Keep Weft off this node with the DaemonSet's nodeSelector.",
            ));
        }
    }
    if bad.is_empty() {
        bad.push(match served {
            0 => Check::warning(NAME, "There is no Linux node.", "Add one: `kubectl get nodes`."),
            served => Check::ok(NAME, format!("All {served} Linux nodes have a kernel that is new enough.")),
        });
    }
    bad
}

#[cfg(test)]
#[path = "api_tests.rs"]
mod tests;
