//! What the kernel maps must say, derived from a snapshot.
//!
//! The kernel only ever learns that a flow may go *direct*; everything that it does not know goes to the
//! proxy. So a view that lags behind costs speed, never safety.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::compile::policy::PolicySet;
use crate::compile::routing::rules::CompiledVirtualService;
use crate::decide::inbound::inbound;
use crate::decide::{InboundConnection, Verdict, protocol};
use crate::resource::{MtlsMode, NamespacedName, PortProtocol};
use crate::snapshot::{CaptureRules, CompiledService, EffectiveMode, LocalWorkload, TrafficHint, Workload};
use crate::visibility::Visibility;
use crate::{Identity, Snapshot};

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
/// `enrolled` are the pods of one node whose network namespace is set up; only they can be source or destination of
/// a direct flow.
pub fn kernel_view(
    snapshot: &Snapshot,
    enrolled: &BTreeSet<NamespacedName>,
    learned: &LearnedPorts,
) -> KernelView {
    let local: Vec<_> = enrolled.iter().filter_map(|key| snapshot.local_workload(key)).collect();
    let pods = local.iter().map(|local| kernel_pod(local)).collect();
    let encrypted =
        |local: &LocalWorkload| snapshot.mesh().encrypt_same_node || local.workload.encrypt_same_node;
    let eligible =
        |local: &&&Arc<LocalWorkload>| local.workload.in_mesh() && !local.bypass && !encrypted(local);
    let eligible: Vec<_> = local.iter().filter(eligible).copied().collect();
    let mut judge = Judge::new(&eligible);
    let mut direct = Vec::new();
    for destination in &eligible {
        let mut ports = l4_ports(destination, learned);
        ports.retain(|port| is_left_to_kernel(snapshot, &destination.workload, *port));
        judge.judge(destination, &ports, &mut direct);
    }
    let direct: BTreeSet<DirectPair> = direct.into_iter().collect();
    let services = kernel_services(snapshot, &eligible, &direct);
    KernelView { pods, direct, services }
}

fn kernel_pod(local: &LocalWorkload) -> KernelPod {
    let passes = |mode: &EffectiveMode| {
        local.pass_when_agent_gone || (mode.mode != MtlsMode::Strict && !local.policies.enforces())
    };
    let modes = &local.peer_authentication;
    let gone_pass = passes(&modes.default);
    let others = modes.ports.iter().filter(|(_, mode)| passes(mode) != gone_pass);
    KernelPod {
        workload: local.workload.clone(),
        capture: local.capture.clone(),
        bypass: local.bypass,
        gone_pass,
        gone_ports: others.map(|(port, _)| *port).collect(),
    }
}

/// The ports of a pod that carry no HTTP as far as anybody knows (ruling 5).
fn l4_ports(local: &LocalWorkload, learned: &LearnedPorts) -> Vec<u16> {
    let key = &local.workload.key;
    let first = (key.clone(), u16::MIN);
    let last = (key.clone(), u16::MAX);
    let learned: BTreeSet<u16> = learned.0.range(first..=last).map(|(_, port)| *port).collect();
    let is_l4 = |port: &u16| match local.traffic {
        Some(TrafficHint::L7) => false,
        Some(TrafficHint::L4) => true,
        None => match protocol::declared(local, *port) {
            Some(PortProtocol::Tcp | PortProtocol::Tls) => true,
            Some(PortProtocol::Undeclared) | None => learned.contains(port),
            Some(PortProtocol::Http | PortProtocol::Http2 | PortProtocol::Grpc | PortProtocol::GrpcWeb) => {
                false
            }
            Some(PortProtocol::Udp) => false,
        },
    };
    let ports: BTreeSet<u16> =
        local.declared_ports.iter().map(|(port, _)| *port).chain(learned.iter().copied()).collect();
    ports.into_iter().filter(is_l4).collect()
}

/// Whether clients of a port need no proxy: not where they dial a headless Service whose connections have rules.
fn is_left_to_kernel(snapshot: &Snapshot, destination: &Workload, port: u16) -> bool {
    let endpoints = destination.ips.iter().map(|ip| SocketAddr::new(*ip, port));
    let mut services = endpoints.flat_map(|endpoint| snapshot.headless_owners(&endpoint).collect::<Vec<_>>());
    services.all(|service| kernel_chooses(snapshot, service))
}

/// All pods that speak with one identity.
struct Sources<'s> {
    identity: &'s Identity,
    principal: Arc<str>,
    pods: Vec<&'s Workload>,
}

/// Answers which sources may go direct, and remembers answers that hold for many destinations.
struct Judge<'s> {
    sources: Vec<Sources<'s>>,
    /// Answers of policy sets that read no address, by set, source and port.
    known: HashMap<(*const PolicySet, usize, u16), bool>,
}

impl<'s> Judge<'s> {
    fn new(local: &[&'s Arc<LocalWorkload>]) -> Self {
        let mut by_identity = BTreeMap::<&Identity, Vec<&Workload>>::new();
        for local in local {
            by_identity.entry(&*local.workload.identity).or_default().push(&local.workload);
        }
        let sources = by_identity.into_iter().map(|(identity, pods)| Sources {
            identity,
            principal: identity.principal().into(),
            pods,
        });
        Self { sources: sources.collect(), known: HashMap::new() }
    }

    fn judge(&mut self, destination: &LocalWorkload, ports: &[u16], direct: &mut Vec<DirectPair>) {
        let key = &destination.workload.key;
        for (at, source) in self.sources.iter().enumerate() {
            if source.pods.iter().all(|pod| pod.key == *key) {
                continue;
            }
            for port in ports {
                if allowed(&mut self.known, destination, (at, source), *port) {
                    let (destination, source) = (key.clone(), source.principal.clone());
                    direct.push(DirectPair { destination, source, port: *port });
                }
            }
        }
    }
}

/// Whether every pod of the source may go direct to the port, whichever addresses the two use.
fn allowed(
    known: &mut HashMap<(*const PolicySet, usize, u16), bool>,
    destination: &LocalWorkload,
    (at, source): (usize, &Sources<'_>),
    port: u16,
) -> bool {
    let policies = &destination.policies;
    // The kernel attests the identity, which satisfies every mode; so without policies nothing can deny.
    if policies.is_empty() {
        return true;
    }
    // The kernel sees no handshake.
    if policies.reads_sni() {
        return false;
    }
    let decide = || {
        let addresses = destination.workload.ips.iter().map(|ip| SocketAddr::new(*ip, port));
        addresses.into_iter().all(|to| {
            let ips = source.pods.iter().flat_map(|pod| &pod.ips);
            let mut ips = ips.filter(|ip| ip.is_ipv4() == to.is_ipv4());
            ips.all(|ip| goes_direct(destination, source.identity, *ip, to))
        })
    };
    if policies.reads_source_ip() || policies.reads_destination_ip() {
        return decide();
    }
    *known.entry((Arc::as_ptr(policies), at, port)).or_insert_with(|| {
        let unspecified = IpAddr::from([0, 0, 0, 0]);
        goes_direct(destination, source.identity, unspecified, SocketAddr::new(unspecified, port))
    })
}

/// A flow that a dry-run or AUDIT policy speaks about is proxied, so that it is counted (AP-18).
fn goes_direct(destination: &LocalWorkload, identity: &Identity, source_ip: IpAddr, to: SocketAddr) -> bool {
    let connection = InboundConnection { identity: Some(identity), source_ip, destination: to, sni: None };
    let decision = inbound(destination, &connection);
    let policies = &decision.authorization;
    decision.verdict == Verdict::Allow && policies.dry_run.is_empty() && policies.audits.is_empty()
}

/// The virtual addresses that lead, among others, to a pod and port that somebody may reach directly.
fn kernel_services(
    snapshot: &Snapshot,
    eligible: &[&Arc<LocalWorkload>],
    direct: &BTreeSet<DirectPair>,
) -> Vec<KernelService> {
    let addresses: HashMap<&NamespacedName, &[IpAddr]> =
        eligible.iter().map(|local| (&local.workload.key, &*local.workload.ips)).collect();
    let mut reachable = BTreeSet::new();
    for pair in direct {
        let ips = addresses.get(&pair.destination).copied().unwrap_or_default();
        reachable.extend(ips.iter().map(|ip| SocketAddr::new(*ip, pair.port)));
    }
    snapshot.local_services().flat_map(|service| service_vips(snapshot, service, &reachable)).collect()
}

fn service_vips(
    snapshot: &Snapshot,
    service: &Arc<CompiledService>,
    reachable: &BTreeSet<SocketAddr>,
) -> Vec<KernelService> {
    let mut found = Vec::new();
    if !kernel_chooses(snapshot, service) {
        return found;
    }
    let owned = |vip: &&IpAddr| snapshot.service_by_vip(vip).is_some_and(|owner| owner.key == service.key);
    for vip in service.vips.iter().filter(owned) {
        for port in service.ports.iter() {
            let ready = port.endpoints.iter().filter(|endpoint| endpoint.ready);
            let same_family = ready.filter(|endpoint| endpoint.addr().is_ipv4() == vip.is_ipv4());
            let endpoints: Vec<SocketAddr> = same_family.map(|endpoint| endpoint.addr()).collect();
            if endpoints.iter().any(|endpoint| reachable.contains(endpoint)) {
                found.push(KernelService { vip: SocketAddr::new(*vip, port.port), endpoints });
            }
        }
    }
    found
}

/// Whether the kernel may choose one of a Service's endpoints: not where somebody says which ones a client gets, or how
/// many connections, or which clients. It knows neither shares nor limits nor clients, so the proxy chooses there.
pub fn kernel_chooses(snapshot: &Snapshot, service: &CompiledService) -> bool {
    let routing = &snapshot.routing;
    let rules = routing.virtual_services.covering(&service.host).into_iter();
    let routed =
        |rules: &CompiledVirtualService| !(rules.source.tcp.is_empty() && rules.source.tls.is_empty());
    service.distribution.is_none()
        && service.visibility == Visibility::Everywhere
        && routing.rules.covering(&service.host).is_empty()
        && !rules.flat_map(|found| found.value.iter()).any(|rules| routed(rules))
}

#[cfg(test)]
mod tests;
