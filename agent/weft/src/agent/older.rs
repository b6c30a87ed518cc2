//! Connections that applications accepted before the agent could decide on them (ruling 8): kept while nothing
//! forbids them, cut as soon as something does. Nobody vouches for their clients.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use weft_core::Snapshot;
use weft_core::decide::inbound::inbound;
use weft_core::decide::protocol::inbound_cluster;
use weft_core::decide::{InboundConnection, InboundDecision, Verdict};
use weft_core::resource::NamespacedName;
use weft_core::snapshot::{CaptureRules, LocalWorkload};
use weft_kernel::OlderConnection;
use weft_telemetry::{ConnectionLog, Direction};

use super::direct_metrics::Ending;

/// All of them that may still be open, by pod.
#[derive(Debug, Default)]
pub(crate) struct Older(BTreeMap<NamespacedName, Vec<OlderConnection>>);

impl Older {
    /// Remembers those of a pod that has been enrolled.
    pub(super) fn found(&mut self, pod: &NamespacedName, connections: Vec<OlderConnection>) {
        if connections.is_empty() {
            self.0.remove(pod);
        } else {
            tracing::info!(%pod, connections = connections.len(), "has connections that nobody decided on");
            self.0.insert(pod.clone(), connections);
        }
    }

    /// Forgets those of a pod that is out of the mesh.
    pub(super) fn forget(&mut self, pod: &NamespacedName) {
        self.0.remove(pod);
    }

    /// Takes out those that must not be.
    pub(super) fn take_denied(&mut self, snapshot: &Snapshot) -> Vec<(OlderConnection, InboundDecision)> {
        let mut denied = Vec::new();
        for (pod, connections) in &mut self.0 {
            let Some(local) = snapshot.local_workload(pod) else { continue };
            connections.retain(|connection| match denial(local, connection) {
                Some(decision) => {
                    denied.push((connection.clone(), decision));
                    false
                }
                None => true,
            });
        }
        self.0.retain(|_, connections| !connections.is_empty());
        denied
    }
}

fn denial(local: &LocalWorkload, connection: &OlderConnection) -> Option<InboundDecision> {
    if local.bypass || !is_captured(&local.capture, connection.application.port()) {
        return None;
    }
    let question = InboundConnection {
        identity: None,
        source_ip: connection.client.ip(),
        destination: connection.application,
        sni: None,
    };
    let decision = inbound(local, &question);
    (decision.verdict != Verdict::Allow).then_some(decision)
}

/// What is excluded from capture is nobody's to cut (C-3).
fn is_captured(rules: &CaptureRules, port: u16) -> bool {
    let included = rules.include_inbound_ports.as_ref().is_none_or(|ports| ports.contains(&port));
    included && !rules.exclude_inbound_ports.contains(&port)
}

/// The line about one that was cut.
pub(super) fn line(connection: &OlderConnection, ending: &Ending, snapshot: &Snapshot) -> ConnectionLog {
    let local = snapshot.local_workload(&connection.pod).map(|local| &**local);
    let principal = snapshot.workload(&connection.pod).map(|workload| workload.labels.principal.clone());
    ConnectionLog {
        start: SystemTime::now(),
        duration: Duration::ZERO,
        direction: Direction::Inbound,
        flags: ending.flags,
        details: ending.details.clone(),
        bytes_received: 0,
        bytes_sent: 0,
        downstream_remote: connection.client,
        downstream_local: connection.application,
        upstream_remote: Some(connection.application),
        upstream_local: Some(connection.client),
        upstream_cluster: inbound_cluster(local, connection.application.port()),
        path: "plaintext",
        source_principal: None,
        destination_principal: principal,
        source_pod: None,
        destination_pod: Some(connection.pod.to_string()),
        policy: ending.policy.clone(),
        audit: None,
    }
}
