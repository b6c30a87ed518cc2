//! Where does a captured connection go?

use std::net::SocketAddr;
use std::sync::Arc;

use crate::Snapshot;
use crate::snapshot::{CompiledPort, CompiledService, LocalWorkload, Workload};

/// How bytes reach one endpoint.
#[derive(Debug, Clone)]
pub enum Path {
    /// A pod of this node that is enrolled: inside this process, both sides' rules, no TLS.
    SameNode(Arc<LocalWorkload>),
    /// A pod of the mesh: mTLS to its port 15008, expecting its identity.
    Hbone(Arc<Workload>),
    /// Outside the mesh: plain TCP.
    Plaintext,
}

/// One endpoint that may be dialled.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// Address and target port.
    pub addr: SocketAddr,
    /// How to reach it.
    pub path: Path,
    /// The pod behind the address, where it is known.
    pub workload: Option<Arc<Workload>>,
}

/// What a captured connection was addressed to.
#[derive(Debug, Clone)]
pub enum Destination {
    /// A Service's virtual address: any ready endpoint of the port will do.
    Service {
        /// The Service.
        service: Arc<CompiledService>,
        /// Index of the port in `service.ports`.
        port: usize,
    },
    /// The address of one pod.
    Pod(Arc<Workload>),
    /// Nobody the mesh knows.
    Unknown,
}

/// The answer for one captured connection.
#[derive(Debug, Clone)]
pub enum OutboundDecision {
    /// Dial one of these; on failure before any byte another may be tried (ruling 17).
    Endpoints {
        /// What was addressed.
        destination: Destination,
        /// Ready endpoints, each with how to reach it. Never empty.
        candidates: Vec<Candidate>,
    },
    /// Dial the original address as it stands.
    Passthrough {
        /// What was addressed.
        destination: Destination,
    },
    /// Close: nobody to send to, or not allowed out. The text says why.
    Unreachable {
        /// What was addressed.
        destination: Destination,
        /// Why, for people.
        reason: String,
        /// Envoy's response flag (H-16), for example `UH`.
        flag: &'static str,
    },
}

impl Destination {
    /// The Service's port, where a Service was addressed.
    pub fn service_port(&self) -> Option<(&Arc<CompiledService>, &CompiledPort)> {
        match self {
            Self::Service { service, port } => service.ports.get(*port).map(|port| (service, port)),
            Self::Pod(_) | Self::Unknown => None,
        }
    }
}

/// Decides where a connection that `source` made to `original` goes.
pub fn outbound(snapshot: &Snapshot, source: &Workload, original: SocketAddr) -> OutboundDecision {
    let _ = (snapshot, source, original);
    unimplemented!()
}

/// Least of two random by load (ruling 17).
///
/// `random(n)` answers a number below `n`; `load` answers the open connections to an endpoint; `tried` are
/// indices that must not be chosen again. `None` when all were tried.
pub fn pick(
    candidates: &[Candidate],
    tried: &[usize],
    random: &mut dyn FnMut(usize) -> usize,
    load: &dyn Fn(&SocketAddr) -> usize,
) -> Option<usize> {
    let _ = (candidates, tried, random, load);
    unimplemented!()
}
