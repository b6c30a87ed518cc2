//! What the kernel maps must say, derived from a snapshot.
//!
//! The kernel only ever learns that a flow may go *direct*; everything that it does not know goes to the
//! proxy. So a view that lags behind costs speed, never safety.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::Snapshot;
use crate::resource::NamespacedName;
use crate::snapshot::{CaptureRules, Workload};

/// Ports that were not declared and were seen to speak something else than HTTP (ruling 5).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LearnedPorts(pub BTreeSet<(NamespacedName, u16)>);

/// An enrolled pod of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelPod {
    /// The pod.
    pub workload: Arc<Workload>,
    /// What capture leaves alone.
    pub capture: CaptureRules,
    /// Capture is off altogether (ruling 12).
    pub bypass: bool,
    /// With the agent gone, inbound connections to ports without an entry in `gone_ports` pass (ruling 1).
    pub gone_pass: bool,
    /// Ports for which the answer differs from `gone_pass`.
    pub gone_ports: Vec<u16>,
}

/// Source identity (by a pod that has it) → destination pod and port: may go direct.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DirectPair {
    /// Namespace and name of the destination pod.
    pub destination: NamespacedName,
    /// Principal of the source (`td/ns/x/sa/y`).
    pub source: Arc<str>,
    /// Target port of the destination.
    pub port: u16,
}

/// A virtual address whose endpoints the kernel may choose from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelService {
    /// Virtual address and port.
    pub vip: SocketAddr,
    /// All ready endpoints, local or not.
    pub endpoints: Vec<SocketAddr>,
}

/// The whole desired state of the kernel maps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KernelView {
    /// Enrolled pods of this node.
    pub pods: Vec<KernelPod>,
    /// Flows that need no proxy.
    pub direct: BTreeSet<DirectPair>,
    /// Services that have at least one endpoint in `direct`.
    pub services: Vec<KernelService>,
}

/// Derives the view.
///
/// `enrolled` are the pods whose network namespace is set up; only they can be source or destination of a
/// direct flow.
pub fn kernel_view(
    snapshot: &Snapshot,
    enrolled: &BTreeSet<NamespacedName>,
    learned: &LearnedPorts,
) -> KernelView {
    let _ = (snapshot, enrolled, learned);
    unimplemented!()
}

