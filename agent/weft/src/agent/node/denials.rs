//! What policy denies of what goes on already: direct flows, and connections that are older than their pods'
//! enrolment.

use std::time::{Duration, Instant};

use weft_core::Snapshot;
use weft_core::decide::inbound::inbound;
use weft_core::decide::{AuthorizationDecision, InboundConnection, InboundDecision, Verdict};
use weft_core::resource::NamespacedName;
use weft_kernel::{Cut, FlowRecord};
use weft_telemetry::Direction;

use super::{Node, lock};
use crate::agent::direct_metrics::{self, Ending};
use crate::agent::older;
use crate::output;

impl Node {
    /// Cuts direct flows that were being opened during the last revocation, when they are due.
    pub(super) fn sweep(&mut self) {
        if self.clocks.sweep.is_none_or(|due| due > Instant::now()) {
            return;
        }
        self.clocks.sweep = None;
        let late = lock(&self.datapath).sweep();
        match late {
            Ok(flows) => self.cut_denied(&self.config.snapshot(), &flows),
            Err(error) => tracing::warn!(error = %output::chain(&error), "cannot look at direct flows"),
        }
    }

    pub(super) fn cut_denied(&self, snapshot: &Snapshot, flows: &[FlowRecord]) {
        for flow in flows {
            let Some(decision) = denial(snapshot, flow) else { continue };
            // Flows have events, and so lines of their own, only where an access log was asked for.
            let logged = self.flow_events;
            if logged {
                self.cuts.announce(flow, ending(&decision));
            }
            let cut = lock(&self.datapath).cut(flow);
            match cut {
                Ok(Cut::Done) => self.tell_cut(snapshot, flow, &decision, logged),
                Ok(Cut::AlreadyGone) => drop(self.cuts.take(flow)),
                Err(error) => {
                    drop(self.cuts.take(flow));
                    tracing::error!(
                        source = %flow.source,
                        destination = %flow.destination,
                        error = %output::chain(&error),
                        "a direct flow that policy denies could not be cut"
                    );
                }
            }
        }
    }

    /// What the pod's applications have accepted already. Before the proxy accepts, and before flows go direct.
    pub(super) fn find_older(&mut self, pod: &NamespacedName) {
        let found = lock(&self.datapath).older_connections(pod);
        match found {
            Ok(connections) => self.older.found(pod, connections),
            Err(error) => {
                let error = output::chain(&error);
                tracing::error!(%pod, error, "its open connections stay, whatever policy says of them");
            }
        }
    }

    pub(super) fn cut_older(&mut self, snapshot: &Snapshot) {
        for (connection, decision) in self.older.take_denied(snapshot) {
            let cut = lock(&self.datapath).cut_older(&connection);
            match cut {
                Ok(Cut::Done) => {
                    let ending = ending(&decision);
                    self.metrics.policy_cut();
                    self.metrics.refused("policy_change", ending.policy.as_deref());
                    self.access_log.write(older::line(&connection, &ending, snapshot));
                }
                Ok(Cut::AlreadyGone) => {}
                Err(error) => {
                    let (client, error) = (connection.client, output::chain(&error));
                    tracing::error!(pod = %connection.pod, %client, error, "a connection that policy denies could not be cut");
                }
            }
        }
    }

    fn tell_cut(&self, snapshot: &Snapshot, flow: &FlowRecord, decision: &InboundDecision, logged: bool) {
        let ending = ending(decision);
        self.metrics.policy_cut();
        self.metrics.refused("policy_change", ending.policy.as_deref());
        if !logged {
            let facts = (Duration::ZERO, (0, 0));
            self.access_log.write(direct_metrics::line(flow, Direction::Inbound, facts, &ending, snapshot));
        }
    }
}

/// The decision, if it is that the flow must not be. Its identity is the kernel's word (ruling 4).
fn denial(snapshot: &Snapshot, flow: &FlowRecord) -> Option<InboundDecision> {
    let destination = snapshot.local_workload(&flow.destination)?;
    let source = snapshot.workload(&flow.source)?;
    let connection = InboundConnection {
        identity: Some(&source.identity),
        source_ip: flow.source_addr.ip(),
        destination: flow.destination_addr,
        sni: None,
    };
    let decision = inbound(destination, &connection);
    (decision.verdict != Verdict::Allow).then_some(decision)
}

/// What the log says of a flow that is cut.
fn ending(decision: &InboundDecision) -> Ending {
    let by = match (decision.verdict, &decision.authorization.object, &decision.peer_authentication.object) {
        (Verdict::DenyPeerAuthentication, _, Some(object)) => object.to_string(),
        (_, Some(object), _) => object.to_string(),
        (_, None, _) => "no ALLOW policy matches".into(),
    };
    let details = Some(format!("closed due to policy change: {by}"));
    Ending { flags: "DENY", details, policy: policy_name(&decision.authorization) }
}

/// The policy that decided, as metrics and logs name it.
fn policy_name(decision: &AuthorizationDecision) -> Option<String> {
    let object = decision.object.as_ref()?;
    let rule = decision.rule.map(|rule| format!("-rule[{rule}]")).unwrap_or_default();
    Some(format!("ns[{}]-policy[{}]{rule}", object.namespace, object.name))
}
