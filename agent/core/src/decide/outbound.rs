//! Where does a captured connection go?

use std::net::SocketAddr;
use std::sync::Arc;

use smallvec::SmallVec;

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
    /// A Service's virtual address: any ready endpoint of the port will do. Or an endpoint of a headless Service.
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
///
/// A VIP of a Service that the client sees leads to the ready endpoints of its port; an endpoint of a headless Service to
/// itself; the address of a pod to that pod, on any port; both whether they are ready or not. Anything else is
/// passed through, or refused under REGISTRY_ONLY.
/// A client outside the mesh sees every Service.
pub fn outbound(snapshot: &Snapshot, source: &Workload, original: SocketAddr) -> OutboundDecision {
    let client = source.in_mesh().then_some(&*source.key.namespace);
    let sees = |service: &&Arc<CompiledService>| client.is_none_or(|name| service.visibility.reaches(name));
    if let Some(service) = snapshot.service_by_vip(&original.ip()).filter(sees) {
        return to_service(snapshot, source, service, original);
    }
    if let Some((service, port)) = snapshot.registered(&original, client) {
        return OutboundDecision::Endpoints {
            destination: Destination::Service { service: service.clone(), port },
            candidates: vec![candidate(snapshot, source, original)],
        };
    }
    if let Some(workload) = snapshot.workload_by_ip(&original.ip()) {
        return OutboundDecision::Endpoints {
            destination: Destination::Pod(workload.clone()),
            candidates: vec![candidate(snapshot, source, original)],
        };
    }
    if snapshot.mesh().registry_only {
        return OutboundDecision::Unreachable {
            destination: Destination::Unknown,
            reason: format!(
                "{original} belongs to no Service and no Pod, and outboundTrafficPolicy is REGISTRY_ONLY"
            ),
            flag: "UH",
        };
    }
    OutboundDecision::Passthrough { destination: Destination::Unknown }
}

fn to_service(
    snapshot: &Snapshot,
    source: &Workload,
    service: &Arc<CompiledService>,
    original: SocketAddr,
) -> OutboundDecision {
    let number = original.port();
    let Some((at, port)) = service.ports.iter().enumerate().find(|(_, port)| port.port == number) else {
        return OutboundDecision::Unreachable {
            destination: Destination::Unknown,
            reason: format!("Service {} has no port {number}", service.key),
            flag: "NR",
        };
    };
    let destination = Destination::Service { service: service.clone(), port: at };
    // A client of one address family may have no route in the other.
    let dialable = |addr: &SocketAddr| addr.is_ipv4() == original.is_ipv4();
    let ready = port.endpoints.iter().filter(|endpoint| endpoint.ready && dialable(&endpoint.addr()));
    let candidates: Vec<_> = ready.map(|endpoint| candidate(snapshot, source, endpoint.addr())).collect();
    if candidates.is_empty() {
        let reason = format!("port {number} of Service {} has no ready endpoint", service.key);
        return OutboundDecision::Unreachable { destination, reason, flag: "UH" };
    }
    OutboundDecision::Endpoints { destination, candidates }
}

/// An address with how `source` reaches it.
pub fn candidate(snapshot: &Snapshot, source: &Workload, addr: SocketAddr) -> Candidate {
    let workload = snapshot.workload_by_ip(&addr.ip()).cloned();
    let path = workload.as_ref().map_or(Path::Plaintext, |workload| path_to(snapshot, source, workload));
    Candidate { addr, path, workload }
}

fn path_to(snapshot: &Snapshot, source: &Workload, destination: &Arc<Workload>) -> Path {
    // A bypassed pod has no listener for tunnels.
    if !destination.in_mesh() || snapshot.bypassed(&destination.key) {
        return Path::Plaintext;
    }
    let same_node = source.node.is_some() && source.node == destination.node;
    let encrypt =
        snapshot.mesh().encrypt_same_node || source.encrypt_same_node || destination.encrypt_same_node;
    match snapshot.local_workload(&destination.key) {
        Some(local) if same_node && !encrypt => Path::SameNode(local.clone()),
        Some(_) | None => Path::Hbone(destination.clone()),
    }
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
    let left: SmallVec<[usize; 16]> = (0..candidates.len()).filter(|at| !tried.contains(at)).collect();
    if left.len() < 2 {
        return left.first().copied();
    }
    let first = random(left.len());
    // The second draw skips the first one, so that the two always differ.
    let second = random(left.len() - 1);
    let second = second + usize::from(second >= first);
    let with_load = |at: usize| {
        let chosen = left.get(at).copied()?;
        Some((load(&candidates.get(chosen)?.addr), chosen))
    };
    match (with_load(first), with_load(second)) {
        (Some((first_load, first)), Some((second_load, second))) => {
            Some(if second_load < first_load { second } else { first })
        }
        (first, second) => first.or(second).map(|(_, chosen)| chosen),
    }
}

#[cfg(test)]
mod tests;
