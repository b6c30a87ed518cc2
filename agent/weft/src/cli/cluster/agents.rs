//! The pods in which the agents run, and questions to all of them.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};

use anyhow::{Context, bail};
use futures_util::StreamExt;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Api;
use kube::api::ListParams;
use serde::Serialize;

use super::{AGENT, Cluster, reading};

/// Agents that are asked at the same time.
const AT_ONCE: usize = 16;

/// One agent's pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Agent {
    pub(in super::super) node: String,
    pub(in super::super) pod: String,
    pub(in super::super) container: String,
    /// Why it cannot be asked; `None` where it can.
    pub(in super::super) not_running: Option<String>,
}

/// What an agent said, or why it said nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(in super::super) struct Unanswered {
    pub(in super::super) node: String,
    pub(in super::super) pod: String,
    pub(in super::super) error: String,
}

/// What all agents said, sorted by node.
#[derive(Debug)]
pub(in super::super) struct Answered<T> {
    pub(in super::super) answers: Vec<(Agent, T)>,
    pub(in super::super) silent: Vec<Unanswered>,
}

impl Cluster {
    /// The agents' DaemonSet, if there is one.
    pub(in super::super) async fn daemon_set(&self) -> anyhow::Result<Option<DaemonSet>> {
        let sets: Api<DaemonSet> = Api::namespaced(self.client().clone(), self.system());
        sets.get_opt(AGENT)
            .await
            .map_err(|error| reading(&format!("the DaemonSet {}/{AGENT}", self.system()), &error))
    }

    /// One agent for each node that has one; with `node` only that.
    pub(in super::super) async fn agents(&self, node: Option<&str>) -> anyhow::Result<Vec<Agent>> {
        let set = self.daemon_set().await?.with_context(|| {
            format!(
                "Weft is not installed in this cluster: there is no DaemonSet {AGENT} in the namespace {}; install \
                 it with `weft install`, or name its namespace with --system-namespace",
                self.system()
            )
        })?;
        let agents = self.agents_of(&set).await?;
        let agents: Vec<Agent> =
            agents.into_iter().filter(|agent| node.is_none_or(|node| agent.node == node)).collect();
        match node {
            Some(node) if agents.is_empty() => bail!(
                "no agent runs on the node {node}; see `kubectl get pods --namespace {} -o wide` and `kubectl get nodes`",
                self.system()
            ),
            Some(_) | None => Ok(agents),
        }
    }

    /// The agents of a DaemonSet.
    pub(in super::super) async fn agents_of(&self, set: &DaemonSet) -> anyhow::Result<Vec<Agent>> {
        let labels =
            set.spec.as_ref().and_then(|spec| spec.selector.match_labels.clone()).unwrap_or_default();
        let selector: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let pods: Api<Pod> = Api::namespaced(self.client().clone(), self.system());
        let pods = pods.list(&ListParams::default().labels(&selector.join(","))).await;
        let pods = pods.map_err(|error| reading("the agents' pods", &error))?;
        Ok(one_per_node(&pods.items))
    }
}

/// While an update rolls out, a node has two: the one that runs counts, of several the youngest.
fn one_per_node(pods: &[Pod]) -> Vec<Agent> {
    let mut nodes: BTreeMap<String, (bool, Option<Time>, Agent)> = BTreeMap::new();
    for pod in pods {
        let Some(agent) = agent(pod) else { continue };
        let rank = (agent.not_running.is_none(), pod.metadata.creation_timestamp.clone());
        let better = nodes.get(&agent.node).is_none_or(|(runs, since, _)| (*runs, since) < (rank.0, &rank.1));
        if better {
            nodes.insert(agent.node.clone(), (rank.0, rank.1, agent));
        }
    }
    nodes.into_values().map(|(_, _, agent)| agent).collect()
}

fn agent(pod: &Pod) -> Option<Agent> {
    let spec = pod.spec.as_ref()?;
    let container = spec.containers.first()?.name.clone();
    Some(Agent {
        node: spec.node_name.clone()?,
        pod: pod.metadata.name.clone()?,
        not_running: not_running(pod, &container),
        container,
    })
}

fn not_running(pod: &Pod, container: &str) -> Option<String> {
    if pod.metadata.deletion_timestamp.is_some() {
        return Some("its pod is being deleted".into());
    }
    let status = pod.status.as_ref();
    let containers = status.and_then(|status| status.container_statuses.as_deref()).unwrap_or_default();
    let state =
        containers.iter().find(|status| status.name == container).and_then(|status| status.state.as_ref());
    let Some(state) = state else {
        let phase = status.and_then(|status| status.phase.as_deref()).unwrap_or("unknown");
        return Some(format!("its pod is {phase}"));
    };
    let reason = |reason: Option<&str>, message: Option<&str>| {
        let message = message.map(|message| format!(": {message}")).unwrap_or_default();
        format!("its container is not running ({}{message})", reason.unwrap_or("no reason given"))
    };
    match (&state.running, &state.waiting, &state.terminated) {
        (Some(_), _, _) => None,
        (None, Some(waiting), _) => Some(reason(waiting.reason.as_deref(), waiting.message.as_deref())),
        (None, None, Some(ended)) => Some(reason(ended.reason.as_deref(), ended.message.as_deref())),
        (None, None, None) => Some(reason(None, None)),
    }
}

/// Asks all agents, several at a time, and says on a terminal how far it is.
pub(in super::super) async fn asked_all<T, F: Future<Output = anyhow::Result<T>>>(
    agents: Vec<Agent>,
    ask: impl Fn(Agent) -> F,
) -> Answered<T> {
    let all = agents.len();
    let questions = agents.into_iter().map(|agent| {
        let question = agent.not_running.is_none().then(|| ask(agent.clone()));
        async move {
            let answer = match question {
                Some(question) => question.await.map_err(|error| format!("{error:#}")),
                None => Err(agent.not_running.clone().unwrap_or_default()),
            };
            (agent, answer)
        }
    });
    let mut asked = futures_util::stream::iter(questions).buffer_unordered(AT_ONCE);
    let mut answered = Answered { answers: Vec::new(), silent: Vec::new() };
    let progress = std::io::stderr().is_terminal() && all > 1;
    while let Some((agent, answer)) = asked.next().await {
        match answer {
            Ok(answer) => answered.answers.push((agent, answer)),
            Err(error) => answered.silent.push(Unanswered { node: agent.node, pod: agent.pod, error }),
        }
        if progress {
            let done = answered.answers.len() + answered.silent.len();
            let _ = write!(std::io::stderr(), "\r{done} of {all} agents asked\x1b[K");
        }
    }
    if progress {
        let _ = write!(std::io::stderr(), "\r\x1b[K");
    }
    answered.answers.sort_by(|(a, _), (b, _)| a.node.cmp(&b.node));
    answered.silent.sort_by(|a, b| a.node.cmp(&b.node));
    answered
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, node: &str, created: &str, state: &str) -> Pod {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": name, "creationTimestamp": created},
            "spec": {"nodeName": node, "containers": [{"name": "agent"}]},
            "status": {"phase": "Running", "containerStatuses": [{
                "name": "agent", "ready": true, "restartCount": 0, "image": "", "imageID": "",
                "state": serde_json::from_str::<serde_json::Value>(state).unwrap(),
            }]},
        }))
        .unwrap()
    }

    #[test]
    fn of_two_agents_on_a_node_the_one_that_runs_is_asked() {
        const RUNS: &str = r#"{"running": {"startedAt": "2026-11-21T10:00:00Z"}}"#;
        const WAITS: &str = r#"{"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}"#;
        let agents = one_per_node(&[
            pod("old", "a", "2026-11-21T10:00:00Z", RUNS),
            pod("new", "a", "2026-11-21T11:00:00Z", RUNS),
            pod("broken", "a", "2026-11-21T12:00:00Z", WAITS),
            pod("alone", "b", "2026-11-21T12:00:00Z", WAITS),
        ]);
        let found: Vec<_> = agents.iter().map(|agent| (&*agent.node, &*agent.pod)).collect();
        assert_eq!(found, [("a", "new"), ("b", "alone")]);
        assert_eq!(
            agents[1].not_running.as_deref(),
            Some("its container is not running (ImagePullBackOff: no such image)")
        );
    }

    #[tokio::test]
    async fn agents_that_do_not_answer_do_not_hide_the_others() {
        let agent = |node: &str, not_running: Option<&str>| Agent {
            node: node.into(),
            pod: format!("weft-agent-{node}"),
            container: "agent".into(),
            not_running: not_running.map(Into::into),
        };
        let agents = vec![
            agent("b", None),
            agent("a", None),
            agent("c", Some("its pod is Pending")),
            agent("d", None),
        ];
        let answered = asked_all(agents, async |agent| match agent.node.as_str() {
            "d" => bail!("refused"),
            node => Ok(node.to_owned()),
        })
        .await;
        let said: Vec<_> = answered.answers.iter().map(|(_, said)| said.as_str()).collect();
        assert_eq!(said, ["a", "b"]);
        let silent: Vec<_> = answered.silent.iter().map(|silent| (&*silent.node, &*silent.error)).collect();
        assert_eq!(silent, [("c", "its pod is Pending"), ("d", "refused")]);
    }
}
