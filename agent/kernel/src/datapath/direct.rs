//! Direct flows and connections that are older than their pods' enrolment: counted, looked at, cut.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;

use weft_core::resource::NamespacedName;
use weft_ebpf_common::{Flow, PolicyKey, TUPLE_LIFETIME_NS, Tuple};

use super::{Cut, Datapath};
use crate::diag::{Bytes, SocketDiag};
use crate::enrol::EnrolledPod;
use crate::error::{Doing, KernelError};
use crate::flows::{self, DirectFlowTotals, FlowRecord};
use crate::maps::ip;
use crate::older::{self, OlderConnection};
use crate::sys::monotonic_ns;

impl Datapath {
    pub(super) fn take_back(&mut self) -> Result<Vec<FlowRecord>, KernelError> {
        self.sweep_due_ns = Some(monotonic_ns() + TUPLE_LIFETIME_NS);
        self.not_permitted()
    }

    /// Flows that were being opened while permissions were taken back: one tuple's lifetime after that, those
    /// that are established and not permitted, once. Empty at any other time; cheap then.
    ///
    /// # Errors
    /// The map of flows could not be read.
    pub fn sweep(&mut self) -> Result<Vec<FlowRecord>, KernelError> {
        if self.sweep_due_ns.is_none_or(|due| monotonic_ns() < due) {
            return Ok(Vec::new());
        }
        self.sweep_due_ns = None;
        self.not_permitted()
    }

    fn not_permitted(&self) -> Result<Vec<FlowRecord>, KernelError> {
        let flows = self.flows.established().doing(|| "read map FLOWS")?;
        let revoked = flows.iter().filter(|(_, flow)| !self.is_permitted(flow));
        Ok(revoked.filter_map(|(cookie, flow)| flows::record(*cookie, flow, &self.directory)).collect())
    }

    fn is_permitted(&self, flow: &Flow) -> bool {
        let source = self.tables.pods.get(&flow.source_cookie);
        let set = self.ids.known_set(flow.destination_cookie);
        let (Some(source), Some(set)) = (source, set) else { return false };
        let port = flow.tuple.destination_port;
        let key = PolicyKey { set, identity: source.identity, port, reserved: [0; 3] };
        self.tables.policy.contains(&key)
    }

    /// All established direct flows.
    pub fn direct_flows(&self) -> Vec<FlowRecord> {
        let flows = self.flows.established().unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot read map FLOWS");
            HashMap::new()
        });
        flows.iter().filter_map(|(cookie, flow)| flows::record(*cookie, flow, &self.directory)).collect()
    }

    /// Connections to applications of an enrolled pod that nobody decided on. To be asked for between the pod's
    /// enrolment and the next [`apply`](Self::apply), which permits direct flows.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn older_connections(&self, pod: &NamespacedName) -> Result<Vec<OlderConnection>, KernelError> {
        let Some(enrolled) = self.enrolled.get(pod) else { return Ok(Vec::new()) };
        let list = || {
            let listed = enrolled.netns.run(|| SocketDiag::open()?.sockets()).and_then(|result| result);
            listed.doing(|| format!("list the connections of pod {pod}"))
        };
        let sockets = list()?;
        // All that follows can only take some of them away, and costs milliseconds for each pod.
        if older::find(pod, (&sockets, &[]), &HashSet::new(), &HashSet::new()).is_empty() {
            return Ok(Vec::new());
        }
        let later = list()?;
        let flows = self.flows.established().doing(|| "read map FLOWS")?;
        let direct = flows.values().map(|flow| {
            let Tuple { source, destination, source_port, destination_port } = flow.tuple;
            ((ip(source), source_port).into(), (ip(destination), destination_port).into())
        });
        let ours = sockets.iter().filter(|socket| socket.listening && enrolled.listens_at(&socket.local));
        // What is accepted from a listener has the cgroup of the agent that made it, an earlier one perhaps.
        let agents = self.agents.all()?.into_iter().chain(ours.filter_map(|socket| socket.cgroup)).collect();
        Ok(older::find(pod, (&sockets, &later), &agents, &direct.collect()))
    }

    /// Ends such a connection: the application sees an error, the client a reset.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn cut_older(&self, connection: &OlderConnection) -> Result<Cut, KernelError> {
        let OlderConnection { pod, client, application, socket_cookie } = connection;
        let Some(pod) = self.enrolled.get(pod) else { return Ok(Cut::AlreadyGone) };
        destroy(pod, (*application, *client), *socket_cookie)
    }

    /// Ends a direct flow: the client sees an error, the server a reset.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn cut(&self, flow: &FlowRecord) -> Result<Cut, KernelError> {
        let Some(pod) = self.enrolled.get(&flow.source) else { return Ok(Cut::AlreadyGone) };
        destroy(pod, (flow.source_addr, flow.destination_addr), flow.socket_cookie)
    }

    /// Totals for metrics. Reads per-CPU maps and `sock_diag`: milliseconds, so not more than once a second.
    ///
    /// # Errors
    /// A map could not be read.
    pub fn totals(&mut self) -> Result<Vec<DirectFlowTotals>, KernelError> {
        let by_cookie = by_cookie(&self.enrolled);
        let live = |source| by_cookie.get(&source).map(|pod| live_bytes(pod)).unwrap_or_default();
        let is_present = |cookie| by_cookie.contains_key(&cookie);
        // Flows of pods that are yet to be enrolled may have to be cut.
        let is_known = |cookie| is_present(cookie) || self.leftovers.iter().any(|pins| pins.cookie == cookie);
        let sums = self.flows.totals(is_present, is_known, live)?;
        let totals = sums.iter().filter_map(|(key, sum)| {
            let destination = by_cookie.get(&key.destination_cookie)?;
            let dialled = if key.vip == [0; 4] { *destination.ips.first()? } else { ip(key.vip) };
            Some(DirectFlowTotals {
                source: by_cookie.get(&key.source_cookie)?.key.clone(),
                destination: destination.key.clone(),
                dialled: (dialled, key.port).into(),
                opened: sum.opened,
                closed: sum.closed,
                failed: sum.failed,
                sent_bytes: sum.sent_bytes,
                received_bytes: sum.received_bytes,
            })
        });
        Ok(totals.collect())
    }
}

pub(super) fn by_cookie(enrolled: &HashMap<NamespacedName, EnrolledPod>) -> HashMap<u64, &EnrolledPod> {
    enrolled.values().map(|pod| (pod.cookie(), pod)).collect()
}

/// Destroys a socket of a pod, which has the first of these ends.
fn destroy(
    pod: &EnrolledPod,
    ends: (SocketAddr, SocketAddr),
    socket_cookie: u64,
) -> Result<Cut, KernelError> {
    let tuple = crate::maps::tuple(ends.0, ends.1);
    let destroyed = pod
        .netns
        .run(|| SocketDiag::open()?.destroy(&tuple, socket_cookie))
        .and_then(|result| result)
        .doing(|| format!("cut the flow from {} to {}", ends.0, ends.1))?;
    Ok(if destroyed { Cut::Done } else { Cut::AlreadyGone })
}

pub(super) fn live_bytes(pod: &EnrolledPod) -> HashMap<u64, Bytes> {
    let bytes = pod.netns.run(|| SocketDiag::open()?.bytes()).and_then(|result| result);
    bytes.unwrap_or_else(|error| {
        tracing::warn!(pod = %pod.key, %error, "cannot read the byte counts of open connections");
        HashMap::new()
    })
}
