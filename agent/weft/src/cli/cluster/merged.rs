//! What all agents of a cluster say, as one answer.

use std::fmt::Write;

use serde::Serialize;
use serde_json::Value;

use super::{Answered, Cluster, Unanswered, asked_all};
use crate::output::{or_dash, table};
use crate::view::Status;

/// `weft status` of a cluster.
#[derive(Debug, Serialize)]
pub(in super::super) struct ClusterStatus {
    /// What each agent says: as `weft status` on its node.
    nodes: Vec<Status>,
    /// Agents that said nothing.
    silent: Vec<Unanswered>,
}

impl ClusterStatus {
    /// Asks all agents, or that of one node; `namespace` limits the pods that are told.
    pub(in super::super) fn ask(
        cluster: &Cluster,
        node: Option<&str>,
        namespace: Option<&str>,
    ) -> anyhow::Result<Self> {
        let Answered { answers, silent } = cluster.block_on(async {
            let agents = cluster.agents(node).await?;
            let ask = async |agent| -> anyhow::Result<Status> {
                cluster.exec(&agent, &["weft", "status", "-o", "json"], None).await?.json()
            };
            anyhow::Ok(asked_all(agents, ask).await)
        })?;
        let nodes = answers.into_iter().map(|(_, mut status)| {
            status.workloads.retain(|pod| namespace.is_none_or(|namespace| pod.is_in(namespace)));
            status
        });
        Ok(Self { nodes: nodes.collect(), silent })
    }

    /// Every agent answered, and nothing is wrong anywhere.
    pub(in super::super) fn is_fine(&self) -> bool {
        self.silent.is_empty() && !self.nodes.is_empty() && self.nodes.iter().all(Status::is_fine)
    }

    /// For people: nodes first, then pods; all pods, or only those that are not simply in the mesh.
    pub(in super::super) fn render(&self, all_pods: bool) -> String {
        let nodes = self.nodes.iter().map(|status| {
            let count =
                |state: &str| status.workloads.iter().filter(|pod| pod.state == state).count().to_string();
            let connected = if status.config.connected == Some(false) { ", not connected" } else { "" };
            let ends = status.certificates.iter().filter_map(|one| one.not_after.as_deref()).min();
            [
                status.node.clone(),
                if status.break_glass {
                    "BREAK-GLASS"
                } else if status.ready {
                    "yes"
                } else {
                    "no"
                }
                .to_owned(),
                status.version.clone(),
                format!(
                    "revision {}, {} s old{connected}",
                    status.config.revision,
                    status.config.age_ms / 1000
                ),
                count("enrolled"),
                count("failed"),
                or_dash(ends),
                or_dash(status.not_ready.as_deref()),
            ]
        });
        let header = [
            "NODE",
            "READY",
            "VERSION",
            "CONFIGURATION",
            "ENROLLED",
            "FAILED",
            "FIRST CERTIFICATE ENDS",
            "WHY NOT",
        ];
        let mut out = table(header, nodes);
        let pods =
            self.nodes.iter().flat_map(|status| status.workloads.iter().map(|pod| (&status.node, pod)));
        let told = pods.filter(|(_, pod)| all_pods || pod.state != "enrolled");
        let rows: Vec<[String; 5]> = told
            .map(|(node, pod)| {
                let ips = pod.ip.join(",");
                [pod.pod.clone(), node.clone(), ips, pod.state.clone(), or_dash(pod.reason.as_deref())]
            })
            .collect();
        if !rows.is_empty() {
            // Writing to a String cannot fail.
            let _ = write!(out, "\n{}", table(["POD", "NODE", "IP", "STATE", "REASON"], rows));
        }
        out + &silent(&self.silent)
    }
}

/// Agents that said nothing.
fn silent(silent: &[Unanswered]) -> String {
    if silent.is_empty() {
        return String::new();
    }
    let rows = silent.iter().map(|agent| [agent.node.clone(), agent.pod.clone(), agent.error.clone()]);
    format!("\n{}", table(["NODE WITHOUT AN ANSWER", "AGENT", "WHY"], rows))
}

/// `weft dump` of a cluster.
#[derive(Debug, Serialize)]
pub(in super::super) struct ClusterDump {
    nodes: Vec<NodeDump>,
    silent: Vec<Unanswered>,
}

/// What one agent has compiled.
#[derive(Debug, Serialize)]
struct NodeDump {
    node: String,
    dump: Value,
}

impl ClusterDump {
    /// Asks all agents, or that of one node.
    pub(in super::super) fn ask(cluster: &Cluster, node: Option<&str>) -> anyhow::Result<Self> {
        let Answered { answers, silent } = cluster.block_on(async {
            let agents = cluster.agents(node).await?;
            let ask = async |agent| -> anyhow::Result<Value> {
                cluster.exec(&agent, &["weft", "dump", "-o", "json"], None).await?.json()
            };
            anyhow::Ok(asked_all(agents, ask).await)
        })?;
        let nodes = answers.into_iter().map(|(agent, dump)| NodeDump { node: agent.node, dump });
        Ok(Self { nodes: nodes.collect(), silent })
    }

    pub(in super::super) fn is_complete(&self) -> bool {
        self.silent.is_empty()
    }

    /// For people: one node after the other.
    pub(in super::super) fn render(&self, one: impl Fn(&Value) -> String) -> String {
        let mut out = String::new();
        for NodeDump { node, dump } in &self.nodes {
            // Writing to a String cannot fail.
            let _ = writeln!(out, "NODE {node}\n\n{}", one(dump));
        }
        out + &silent(&self.silent)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status(node: &str, state: &str) -> Status {
        let reason = (state == "failed").then_some("no such namespace");
        serde_json::from_value(json!({
            "version": "0.1.0", "node": node, "ready": true, "not_ready": null, "break_glass": false,
            "config": {"source": "kubernetes", "revision": "7", "age_ms": 1000, "objects": {}, "problems": 0},
            "workloads": [{"pod": format!("shop/cart-{node}"), "ip": ["10.0.0.1"], "principal": "p",
                "state": state, "reason": reason, "connections": 0}],
            "certificates": [{"principal": "p", "not_after": "2026-11-22T04:00:00Z", "error": null}],
            "kernel": {"programs": [], "maps": []},
        }))
        .unwrap()
    }

    #[test]
    fn a_cluster_for_people() {
        let silent =
            Unanswered { node: "c".into(), pod: "weft-agent-c".into(), error: "its pod is Pending".into() };
        let status = ClusterStatus {
            nodes: vec![status("a", "enrolled"), status("b", "failed")],
            silent: vec![silent],
        };
        insta::assert_snapshot!([status.render(false), status.render(true)].join("\n====\n"));
        assert!(!status.is_fine());
    }

    #[test]
    fn a_cluster_is_fine_when_all_of_it_is() {
        let of = |nodes| ClusterStatus { nodes, silent: Vec::new() }.is_fine();
        assert!(of(vec![status("a", "enrolled")]));
        assert!(!of(vec![status("a", "failed")]));
        assert!(!of(Vec::new()));
    }

    #[test]
    fn pods_are_of_one_namespace() {
        let pod = &status("a", "enrolled").workloads[0];
        assert!(pod.is_in("shop") && !pod.is_in("sho"));
    }

    #[test]
    fn dumps_follow_one_another() {
        let nodes = vec![
            NodeDump { node: "a".into(), dump: json!(1) },
            NodeDump { node: "b".into(), dump: json!(2) },
        ];
        let dump = ClusterDump { nodes, silent: Vec::new() };
        assert_eq!(dump.render(ToString::to_string), "NODE a\n\n1\nNODE b\n\n2\n");
        assert!(dump.is_complete());
    }
}
