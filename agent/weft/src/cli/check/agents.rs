//! Checks of what the running agents say.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::DaemonSet;

use super::super::client;
use super::super::cluster::{Agent, Answered, Cluster, SYSTEM_NAMESPACE, asked_all};
use super::api::clock;
use super::install::argument;
use super::node::MACHINE;
use super::report::{Check, Group, Outcome, Report};
use crate::view::{CertificateStatus, Status};

/// Where the agent's container sees the host's directory of CNI, unless its options say otherwise.
const CNI_CONF_DIR: &str = "--cni-conf-dir";

/// What one agent said.
#[derive(Debug)]
struct Said {
    status: Status,
    /// `weft check --node` in its container; an agent of another version may not know that.
    node: Result<Report, String>,
    /// How far our own clock was from the report's when it came.
    clock: Option<(Duration, bool)>,
}

/// All agents' answers as checks: one group for all, and one for each node of which there is more to say.
pub(super) async fn groups(cluster: &Cluster, set: &DaemonSet) -> Vec<Group> {
    let agents = match cluster.agents_of(set).await {
        Ok(agents) => agents,
        Err(error) => {
            return vec![Group::new("Agents", vec![Check::skipped("agents", format!("{error:#}."))])];
        }
    };
    let conf_dir = argument(set, CNI_CONF_DIR);
    let answered = asked_all(agents, |agent| ask(cluster, agent, conf_dir)).await;
    let mut groups = vec![Group::new("Agents", together(&answered, cluster.system()))];
    groups.extend(answered.answers.iter().map(|(agent, said)| of_node(agent, said)));
    groups
}

/// The agent of this machine; `None` where none has ever been.
pub(super) fn here(socket: &Path) -> Option<Group> {
    if !socket.exists() {
        return None;
    }
    let status = client::get(socket, "/status").and_then(|text| Ok(serde_json::from_str::<Status>(&text)?));
    let checks = match status {
        Ok(status) => vec![
            ready(&status),
            configuration(&status),
            order(&status),
            pods(&[&status]),
            certificates(&[&status], SYSTEM_NAMESPACE, SystemTime::now()),
        ],
        Err(error) => vec![Check::error(
            "agents-answer",
            format!("The agent of this machine does not answer: {error:#}."),
            "Start it, or run `weft cleanup` if it is gone for good.",
        )],
    };
    Some(Group::new("Agent", checks))
}

async fn ask(cluster: &Cluster, agent: Agent, cni_conf_dir: Option<&str>) -> anyhow::Result<Said> {
    let status: Status = cluster.exec(&agent, &["weft", "status", "-o", "json"], None).await?.json()?;
    let mut command = vec!["weft", "check", "--node", "-o", "json"];
    command.extend(cni_conf_dir.iter().flat_map(|dir| [CNI_CONF_DIR, dir, "--expect-cni"]));
    let node: Result<Report, _> = match cluster.exec(&agent, &command, None).await {
        Ok(ran) => ran.json().map_err(|error| format!("{error:#}")),
        Err(error) => Err(format!("{error:#}")),
    };
    let clock = node.as_ref().ok().and_then(|report| apart(&report.time, SystemTime::now()));
    Ok(Said { status, node, clock })
}

/// How far the writer of a report is from `now`, and whether it is ahead.
fn apart(written: &str, now: SystemTime) -> Option<(Duration, bool)> {
    let written = SystemTime::from(written.parse::<Timestamp>().ok()?);
    Some(match written.duration_since(now) {
        Ok(ahead) => (ahead, true),
        Err(behind) => (behind.duration(), false),
    })
}

fn together(answered: &Answered<Said>, system: &str) -> Vec<Check> {
    let mut checks = vec![answers(answered, system)];
    if !answered.answers.is_empty() {
        let statuses: Vec<&Status> = answered.answers.iter().map(|(_, said)| &said.status).collect();
        checks.push(versions(&statuses, system));
        checks.push(pods(&statuses));
        checks.push(certificates(&statuses, system, SystemTime::now()));
    }
    checks
}

fn answers<T>(answered: &Answered<T>, system: &str) -> Check {
    const NAME: &str = "agents-answer";
    if answered.silent.is_empty() {
        return match answered.answers.len() {
            0 => Check::error(
                NAME,
                "There is no agent's pod.",
                format!("Run `kubectl describe daemonset --namespace {system} weft-agent`."),
            ),
            answers => Check::ok(NAME, format!("All {answers} agents answer.")),
        };
    }
    let silent: Vec<String> = answered
        .silent
        .iter()
        .map(|silent| format!("{} ({}): {}", silent.node, silent.pod, silent.error))
        .collect();
    Check::error(
        NAME,
        format!("{} agents do not answer. {}", silent.len(), silent.join("; ")),
        format!(
            "Run `kubectl describe pod --namespace {system} POD` and `kubectl logs --namespace {system} POD`."
        ),
    )
}

fn versions(statuses: &[&Status], system: &str) -> Check {
    const NAME: &str = "agents-version";
    let mut by_version: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for status in statuses {
        by_version.entry(&status.version).or_default().push(&status.node);
    }
    let ours = env!("CARGO_PKG_VERSION");
    match by_version.first_key_value() {
        Some((version, _)) if by_version.len() == 1 && *version == ours => {
            Check::ok(NAME, format!("All agents are {version}, as this command is."))
        }
        Some((version, _)) if by_version.len() == 1 => Check::warning(
            NAME,
            format!("All agents are {version}; this command is {ours}."),
            format!("Use weft {version}, or install {ours}: `weft install`."),
        ),
        _ => {
            let each = by_version.iter().map(|(version, nodes)| format!("{version} on {}", nodes.join(", ")));
            Check::warning(
                NAME,
                format!("The agents are not of one version: {}.", each.collect::<Vec<_>>().join("; ")),
                format!("Wait for `kubectl rollout status --namespace {system} daemonset/weft-agent`."),
            )
        }
    }
}

fn pods(statuses: &[&Status]) -> Check {
    const NAME: &str = "pods";
    let pods = || statuses.iter().flat_map(|status| &status.workloads);
    let count = |state: &str| pods().filter(|pod| pod.state == state).count();
    let failed: Vec<String> = pods()
        .filter(|pod| pod.state == "failed")
        .map(|pod| format!("{}: {}", pod.pod, pod.reason.as_deref().unwrap_or("no reason given")))
        .collect();
    if failed.is_empty() {
        let (enrolled, enrolling) = (count("enrolled"), count("enrolling"));
        let more = if enrolling > 0 { format!(", {enrolling} about to be") } else { String::new() };
        return Check::ok(NAME, format!("{enrolled} pods are in the mesh{more}."));
    }
    Check::error(
        NAME,
        format!("{} pods could not be enrolled. {}", failed.len(), failed.join("; ")),
        "Run `kubectl get events --field-selector involvedObject.kind=Pod --all-namespaces`, and `weft explain`.",
    )
}

fn certificates(statuses: &[&Status], system: &str, now: SystemTime) -> Check {
    const NAME: &str = "certificates";
    let all = statuses.iter().flat_map(|status| status.certificates.iter().map(|one| (one, &status.node)));
    let count = all.clone().count();
    let bad: Vec<(Outcome, String)> = all
        .filter_map(|(one, node)| {
            let (outcome, why) = certificate(one, now)?;
            Some((outcome, format!("{} on {node} {why}", one.principal)))
        })
        .collect();
    let Some(worst) = bad.iter().map(|(outcome, _)| *outcome).max() else {
        return Check::ok(NAME, format!("All {count} certificates are valid."));
    };
    let listed: Vec<&str> = bad.iter().map(|(_, why)| why.as_str()).collect();
    let fix = format!(
        "Run `kubectl logs --namespace {system} deployment/weft-controller`, and look for `certificate` in the \
         agents' logs."
    );
    Check { outcome: worst, ..Check::error(NAME, format!("{}.", listed.join("; ")), fix) }
}

/// What is wrong with a certificate, if anything is.
fn certificate(one: &CertificateStatus, now: SystemTime) -> Option<(Outcome, String)> {
    let left = one.not_after.as_ref().and_then(|time| {
        let ends = SystemTime::from(time.parse::<Timestamp>().ok()?);
        Some(ends.duration_since(now).ok())
    });
    match (left, &one.error) {
        (None, error) => Some((
            Outcome::Error,
            format!("has none ({})", error.as_deref().unwrap_or("it is being fetched")),
        )),
        (Some(None), error) => {
            let why = error.as_deref().map(|error| format!(" ({error})")).unwrap_or_default();
            Some((Outcome::Error, format!("has one that has expired{why}")))
        }
        (Some(Some(left)), Some(error)) => Some((
            Outcome::Warning,
            format!("cannot be renewed ({error}), and ends in {} min", left.as_secs() / 60),
        )),
        (Some(Some(_)), None) => None,
    }
}

fn of_node(agent: &Agent, said: &Said) -> Group {
    let mut checks = vec![ready(&said.status), configuration(&said.status), order(&said.status)];
    if let Some((skew, ahead)) = said.clock {
        checks.push(clock(skew, ahead, &format!("the node {}", agent.node)));
    }
    match &said.node {
        Ok(report) => {
            let of_machine = report.groups.iter().filter(|group| group.name == MACHINE);
            checks.extend(of_machine.flat_map(|group| group.checks.clone()));
        }
        Err(error) => checks.push(Check::skipped("node", format!("The node was not looked at: {error}."))),
    }
    let mut group = Group::new(MACHINE, checks);
    group.node = Some(agent.node.clone());
    group
}

fn ready(status: &Status) -> Check {
    const NAME: &str = "agent-ready";
    if status.break_glass {
        return Check::error(
            NAME,
            "The agent runs with --break-glass: nothing is captured on this node.",
            "Remove --break-glass from its options when the emergency is over.",
        );
    }
    match (&status.not_ready, status.ready) {
        (_, true) => Check::ok(NAME, "The agent is ready."),
        (why, false) => Check::error(
            NAME,
            format!("The agent is not ready: {}.", why.as_deref().unwrap_or("it does not say why")),
            "Run `weft status` with this --node, and read the agent's log.",
        ),
    }
}

fn configuration(status: &Status) -> Check {
    const NAME: &str = "configuration";
    let config = &status.config;
    let age = config.age_ms / 1000;
    let behind: Vec<String> = config
        .freshness
        .iter()
        .filter(|kind| !kind.connected)
        .map(|kind| match &kind.failure {
            Some(failure) => format!("{} ({failure})", kind.kind),
            None => kind.kind.clone(),
        })
        .collect();
    if config.connected == Some(false) || !behind.is_empty() {
        let which = if behind.is_empty() { String::new() } else { format!(" of {}", behind.join(", ")) };
        return Check::error(
            NAME,
            format!("It hears of no changes{which}; traffic goes on with the configuration of {age} s ago."),
            "Check that the node reaches the API server, and the agent's permissions: `kubectl auth can-i --list \
             --as system:serviceaccount:weft-system:weft-agent`.",
        );
    }
    let message = format!("Its configuration is revision {}, heard of {age} s ago.", config.revision);
    match config.problems {
        0 => Check::ok(NAME, message),
        problems => {
            Check::warning(NAME, format!("{message} It has {problems} findings."), "Run `weft analyze`.")
        }
    }
}

/// Whether the agent sees the addresses for which applications ask.
fn order(status: &Status) -> Check {
    const NAME: &str = "connect-order";
    let earlier = &status.kernel.earlier;
    if earlier.is_empty() {
        return Check::ok(NAME, "The agent is the first to see the connections of pods.");
    }
    Check::warning(
        NAME,
        format!(
            "Programs of others see the connections of pods before the agent does: {}. One that translates the addresses of \
             Services hides them: such connections are encrypted and authorised, but rules of Services hold only for HTTP \
             on ports that are the same at Service and pod.",
            earlier.join(", ")
        ),
        "Let it translate for the host alone (Cilium: socketLB.hostNamespaceOnly=true; Calico: \
         bpfConnectTimeLoadBalancing: Disabled), then restart the agent.",
    )
}

#[cfg(test)]
#[path = "agents_tests.rs"]
mod tests;
