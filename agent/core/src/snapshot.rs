//! The compiled configuration: everything that a decision needs, immutable.
//!
//! One writer publishes a new [`Snapshot`] for each change; readers keep the one they began with for the
//! whole of a connection's set-up. Unchanged parts are shared with the snapshot before.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::IpNet;
use smallvec::SmallVec;

use crate::access_format::AccessFormat;
use crate::compile::policy::PolicySet;
use crate::compile::routing::Routing;
use crate::compile::sharded::{Addressed, IpMap, Named, Registry};
use crate::locality::Localities;
use crate::resource::request_authentication::JwtRule;
use crate::resource::{
    ExportDefaults, LabelSelector, Labels, MeshHttp, MtlsMode, NamespacedName, ObjectRef, PortProtocol,
    TrafficDistribution,
};
use crate::visibility::Visibility;
use crate::{Identity, Problem};

/// Mesh-wide settings with their defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeshSettings {
    /// Trust domain of this mesh; `cluster.local` by default.
    pub trust_domain: Arc<str>,
    /// Other names of the same trust domain (AP-16).
    pub trust_domain_aliases: Vec<Arc<str>>,
    /// Where mesh-wide objects live (ruling 14).
    pub root_namespace: Arc<str>,
    /// Log every connection, not only refusals and failures (ruling 18).
    pub access_log: bool,
    /// Log lines as JSON.
    pub access_log_json: bool,
    /// A format of the user's own for them (L-5).
    pub access_log_format: Option<Arc<AccessFormat>>,
    /// Unknown destinations are refused instead of passed through.
    pub registry_only: bool,
    /// Same-node flows use TLS as well, mesh-wide (ruling 4).
    pub encrypt_same_node: bool,
    /// Who sees objects that do not say it.
    pub exports: ExportDefaults,
    /// Which namespaces count (C-1); empty is all.
    pub discovery_selectors: Arc<[LabelSelector]>,
    /// What only HTTP uses.
    pub http: Arc<MeshHttp>,
}

/// Whether a pod belongs to the mesh, decided from labels alone (the same on every node).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Membership {
    /// Opted in: its node's agent enrols it, and peers reach it by HBONE.
    InMesh,
    /// Not opted in (or opted out).
    OutOfMesh,
    /// Opted in, but cannot be enrolled; the text says why (host network, gVisor, …).
    ///
    /// A thin pointer: with a wider one each [`Workload`] would take 32 bytes more.
    Excluded(Arc<String>),
}

/// The text that metrics and logs use for a workload (M-3, M-5, M-6), shared between its pods.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct WorkloadLabels {
    /// Name of the owning Deployment, StatefulSet, …; the pod's own name for a bare pod.
    pub workload: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// `spiffe://…`.
    pub principal: Arc<str>,
    /// Pod label `app`, else `unknown`.
    pub app: Arc<str>,
    /// Pod label `version`, else `unknown`.
    pub version: Arc<str>,
    /// M-5.
    pub canonical_service: Arc<str>,
    /// M-5.
    pub canonical_revision: Arc<str>,
}

/// A pod of the cluster, on whatever node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// Namespace and name of the pod.
    pub key: NamespacedName,
    /// Its addresses.
    pub ips: SmallVec<[IpAddr; 2]>,
    /// The node that it runs on.
    pub node: Option<Arc<str>>,
    /// Its identity.
    pub identity: Arc<Identity>,
    /// Text for metrics and logs.
    pub labels: Arc<WorkloadLabels>,
    /// Pod labels as written (selectors).
    pub pod_labels: Arc<Labels>,
    /// In the mesh or not.
    pub membership: Membership,
    /// Ready to receive connections.
    pub ready: bool,
    /// Namespace annotation `weft.dev/same-node: encrypt` (ruling 4).
    pub encrypt_same_node: bool,
}

impl Workload {
    /// Whether peers reach it by HBONE.
    pub fn in_mesh(&self) -> bool {
        self.membership == Membership::InMesh
    }
}

impl Named for Workload {
    fn name(&self) -> &NamespacedName {
        &self.key
    }
}

impl Addressed for Workload {
    fn addresses(&self) -> &[IpAddr] {
        &self.ips
    }
}

/// Annotation `weft.dev/traffic` (ruling 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TrafficHint {
    /// Treat every port as plain TCP: direct where policy allows.
    L4,
    /// Treat every port as HTTP: through the node proxy.
    L7,
}

/// What capture leaves alone (C-2, C-3), from labels and annotations of the pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CaptureRules {
    /// Only these outbound destinations are captured; `None` means all.
    pub include_outbound_ranges: Option<Vec<IpNet>>,
    /// These outbound destinations are not captured.
    pub exclude_outbound_ranges: Vec<IpNet>,
    /// These outbound ports are captured whatever the ranges say.
    pub include_outbound_ports: Vec<u16>,
    /// These outbound ports are not captured.
    pub exclude_outbound_ports: Vec<u16>,
    /// Only these inbound ports are captured; `None` means all.
    pub include_inbound_ports: Option<Vec<u16>>,
    /// These inbound ports are not captured.
    pub exclude_inbound_ports: Vec<u16>,
}

/// What the kernel does by these rules, for explanations.
impl CaptureRules {
    /// Whether connections to a port are captured; `None` where that depends on the address. An excluded port wins
    /// over an included one.
    pub fn captures_outbound_port(&self, port: u16) -> Option<bool> {
        let excluded = self.exclude_outbound_ports.contains(&port);
        (excluded || self.include_outbound_ports.contains(&port)).then_some(!excluded)
    }

    /// Whether connections to an address are captured, where no rule for the port says it. An excluded range wins
    /// over an included one.
    pub fn captures_outbound_address(&self, address: &IpAddr) -> bool {
        let within = |ranges: &[IpNet]| ranges.iter().any(|range| range.contains(address));
        let included = self.include_outbound_ranges.as_deref().is_none_or(within);
        included && !within(&self.exclude_outbound_ranges)
    }

    /// Whether connections to the pod on this port are captured.
    pub fn captures_inbound(&self, port: u16) -> bool {
        let included = self.include_inbound_ports.as_ref().is_none_or(|ports| ports.contains(&port));
        included && !self.exclude_inbound_ports.contains(&port)
    }
}

/// The effective mTLS mode of one workload: PA-1 to PA-3 already resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerAuthenticationModes {
    /// For ports without an entry of their own.
    pub default: EffectiveMode,
    /// Target port → mode, sorted by port.
    pub ports: Vec<(u16, EffectiveMode)>,
}

/// A mode and the object that set it (`None`: the default, PERMISSIVE).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EffectiveMode {
    /// The mode.
    pub mode: MtlsMode,
    /// Who set it.
    pub object: Option<ObjectRef>,
}

impl PeerAuthenticationModes {
    /// The mode of one target port.
    pub fn of_port(&self, port: u16) -> &EffectiveMode {
        let found = self.ports.binary_search_by_key(&port, |(port, _)| *port);
        found.ok().and_then(|at| self.ports.get(at)).map_or(&self.default, |(_, mode)| mode)
    }
}

/// A pod on this node, with everything that its inbound side and its capture need.
#[derive(Debug, Clone)]
pub struct LocalWorkload {
    /// The pod.
    pub workload: Arc<Workload>,
    /// Path of its network namespace, where the source names it (ruling 13).
    pub netns: Option<PathBuf>,
    /// The uid by which the kubelet names its cgroup.
    pub uid: Option<Arc<str>>,
    /// Its AuthorizationPolicies, compiled.
    pub policies: Arc<PolicySet>,
    /// Its PeerAuthentication, resolved.
    pub peer_authentication: PeerAuthenticationModes,
    /// What capture leaves alone.
    pub capture: CaptureRules,
    /// Annotation `weft.dev/traffic` of pod, Service or namespace.
    pub traffic: Option<TrafficHint>,
    /// Namespace annotation `weft.dev/agent-gone: pass` (ruling 1).
    pub pass_when_agent_gone: bool,
    /// Pod annotation `weft.dev/mesh: bypass` (ruling 12).
    pub bypass: bool,
    /// Target ports that a Service declares, with what they speak, sorted by port.
    pub declared_ports: Vec<(u16, PortProtocol)>,
    /// Its RequestAuthentications' rules, sorted by issuer (RA-1).
    pub request_authentication: Arc<[Arc<JwtPolicy>]>,
    /// Mesh-wide settings that decisions on requests need.
    pub http: Arc<MeshHttp>,
}

/// A rule of a RequestAuthentication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JwtPolicy {
    /// The object.
    pub object: ObjectRef,
    /// The rule.
    pub rule: JwtRule,
}

/// One address behind a Service port. A cluster has several for each of its pods: a `SocketAddr` would take twice as much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoint {
    ip: IpAddr,
    port: u16,
    /// Whether it takes new connections.
    pub ready: bool,
}

impl Endpoint {
    /// An endpoint at an address (of IPv6 without scope or flow).
    pub fn new(addr: SocketAddr, ready: bool) -> Self {
        Self { ip: addr.ip(), port: addr.port(), ready }
    }

    /// Pod (or other) address and target port.
    pub fn addr(&self) -> SocketAddr {
        SocketAddr::new(self.ip, self.port)
    }
}

/// A port of a Service with its endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompiledPort {
    /// The Service's port.
    pub port: u16,
    /// Its name.
    pub name: Option<Arc<str>>,
    /// What it speaks.
    pub protocol: PortProtocol,
    /// Its endpoints, ready or not, sorted by address.
    pub endpoints: Arc<[Endpoint]>,
}

/// A Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompiledService {
    /// Namespace and name.
    pub key: NamespacedName,
    /// `name.namespace.svc.cluster.local`.
    pub host: Arc<str>,
    /// Its virtual addresses.
    pub vips: SmallVec<[IpAddr; 2]>,
    /// Its ports.
    pub ports: Arc<[CompiledPort]>,
    /// The host that this is another name of.
    pub alias: Option<Arc<str>>,
    /// Endpoints that are preferred (D-11).
    pub distribution: Option<TrafficDistribution>,
    /// Whose clients know it. To others its names and addresses are a stranger's.
    pub visibility: Visibility,
}

impl CompiledService {
    /// One port by its number.
    pub fn port(&self, number: u16) -> Option<&CompiledPort> {
        self.ports.iter().find(|port| port.port == number)
    }

    /// The index of the port that has this endpoint.
    pub(crate) fn port_of_endpoint(&self, endpoint: &SocketAddr) -> Option<usize> {
        let has = |port: &CompiledPort| port.endpoints.binary_search_by_key(endpoint, Endpoint::addr).is_ok();
        self.ports.iter().position(has)
    }
}

impl Named for CompiledService {
    fn name(&self) -> &NamespacedName {
        &self.key
    }
}

impl Addressed for CompiledService {
    fn addresses(&self) -> &[IpAddr] {
        &self.vips
    }
}

/// Everything that decisions read. See the module's description.
#[derive(Debug, Clone)]
pub struct Snapshot {
    pub(crate) revision: u64,
    pub(crate) mesh: Arc<MeshSettings>,
    pub(crate) workloads: Registry<Workload>,
    pub(crate) by_ip: IpMap<Workload>,
    pub(crate) services: Registry<CompiledService>,
    pub(crate) by_vip: IpMap<CompiledService>,
    pub(crate) local: Arc<[Arc<LocalWorkload>]>,
    pub(crate) local_services: Arc<[NamespacedName]>,
    pub(crate) bypassed: Arc<BTreeSet<NamespacedName>>,
    pub(crate) opted_namespaces: Arc<BTreeSet<Arc<str>>>,
    pub(crate) routing: Arc<Routing>,
    pub(crate) localities: Arc<Localities>,
    pub(crate) problems: Arc<[Problem]>,
    pub(crate) objects: usize,
    pub(crate) label_sets: u64,
}

impl Snapshot {
    /// Counts up with every published snapshot.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Mesh-wide settings.
    pub fn mesh(&self) -> &Arc<MeshSettings> {
        &self.mesh
    }

    /// A pod by namespace and name.
    pub fn workload(&self, key: &NamespacedName) -> Option<&Arc<Workload>> {
        self.workloads.get(key)
    }

    /// A pod by one of its addresses (v4-mapped addresses are the caller's to unmap).
    pub fn workload_by_ip(&self, ip: &IpAddr) -> Option<&Arc<Workload>> {
        self.by_ip.get(ip)
    }

    /// A Service by namespace and name.
    pub fn service(&self, key: &NamespacedName) -> Option<&Arc<CompiledService>> {
        self.services.get(key)
    }

    /// The Service that `service` is another name of: itself, unless it is of the type ExternalName. `None` where that
    /// name is no Service's.
    pub fn concrete<'a>(&'a self, service: &'a Arc<CompiledService>) -> Option<&'a Arc<CompiledService>> {
        match &service.alias {
            None => Some(service),
            Some(host) => self.routing.services.get(&**host).filter(|service| service.alias.is_none()),
        }
    }

    /// A Service by one of its virtual addresses, if clients of namespace `client` see it.
    pub fn visible_by_vip(&self, ip: &IpAddr, client: &str) -> Option<&Arc<CompiledService>> {
        self.by_vip.get(ip).filter(|service| service.visibility.reaches(client))
    }

    /// The Service that clients of namespace `client` address with `original`, and the index of its port: by a virtual
    /// address, or by an endpoint of a headless Service. `None` for `client` is one who sees everything.
    pub fn addressed(
        &self,
        original: &SocketAddr,
        client: Option<&str>,
    ) -> Option<(&Arc<CompiledService>, usize)> {
        let owner = self.by_vip.get(&original.ip());
        match owner.filter(|service| client.is_none_or(|client| service.visibility.reaches(client))) {
            Some(service) => {
                let port = service.ports.iter().position(|port| port.port == original.port())?;
                Some((service, port))
            }
            None => self.headless(original, client),
        }
    }

    /// The headless Service whose endpoint clients of namespace `client` address, and the index of its port.
    /// `None` for `client` is one who sees everything.
    ///
    /// EndpointSlices name whatever address their author likes. So that nobody's rules come between others and what they
    /// dial, a pod belongs to Services of its own namespace, and any other address to those of the client's and the
    /// root namespace.
    pub(crate) fn headless(
        &self,
        endpoint: &SocketAddr,
        client: Option<&str>,
    ) -> Option<(&Arc<CompiledService>, usize)> {
        let pod = self.by_ip.get(&endpoint.ip());
        let counts = |service: &&Arc<CompiledService>| {
            let of = |namespace: &str| *service.key.namespace == *namespace;
            match (pod, client) {
                (Some(_), _) | (None, None) => true,
                (None, Some(client)) => of(client) || of(&self.mesh.root_namespace),
            }
        };
        self.first_seen(endpoint, client, counts)
    }

    /// As [`Snapshot::headless`], but of any namespace: for the name of an address that is no pod's, and nothing else.
    pub(crate) fn registered(
        &self,
        endpoint: &SocketAddr,
        client: Option<&str>,
    ) -> Option<(&Arc<CompiledService>, usize)> {
        self.first_seen(endpoint, client, |_| true)
    }

    fn first_seen(
        &self,
        endpoint: &SocketAddr,
        client: Option<&str>,
        counts: impl Fn(&&Arc<CompiledService>) -> bool,
    ) -> Option<(&Arc<CompiledService>, usize)> {
        let sees =
            |service: &&Arc<CompiledService>| client.is_none_or(|client| service.visibility.reaches(client));
        let foreign = |service: &&Arc<CompiledService>| client != Some(&*service.key.namespace);
        let service = self.headless_owners(endpoint).filter(sees).filter(counts).min_by_key(foreign)?;
        Some((service, service.port_of_endpoint(endpoint)?))
    }

    /// All headless Services that an endpoint belongs to, sorted by name: of a pod those of its own namespace.
    pub(crate) fn headless_owners(
        &self,
        endpoint: &SocketAddr,
    ) -> impl Iterator<Item = &Arc<CompiledService>> {
        let home = self.by_ip.get(&endpoint.ip()).map(|pod| &*pod.key.namespace);
        self.routing.endpoints.owners(endpoint, home)
    }

    /// A Service by one of its virtual addresses, whoever sees it.
    pub fn service_by_vip(&self, ip: &IpAddr) -> Option<&Arc<CompiledService>> {
        self.by_vip.get(ip)
    }

    /// As [`Snapshot::concrete`], if clients of namespace `client` see both.
    pub fn concrete_for<'a>(
        &'a self,
        service: &'a Arc<CompiledService>,
        client: &str,
    ) -> Option<&'a Arc<CompiledService>> {
        let sees = |service: &&Arc<CompiledService>| service.visibility.reaches(client);
        Some(service).filter(sees).and_then(|service| self.concrete(service)).filter(sees)
    }

    /// All pods.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.values()
    }

    /// All Services.
    pub fn services(&self) -> impl Iterator<Item = &Arc<CompiledService>> {
        self.services.values()
    }

    /// The pods of this node (all pods, when compiled without a node), sorted by namespace and name.
    pub fn local(&self) -> &[Arc<LocalWorkload>] {
        &self.local
    }

    /// One pod of this node.
    pub fn local_workload(&self, key: &NamespacedName) -> Option<&Arc<LocalWorkload>> {
        let at = self.local.binary_search_by(|local| local.workload.key.cmp(key)).ok()?;
        self.local.get(at)
    }

    /// The Services that select a pod of this node, and those without selector of its namespace whose EndpointSlices name
    /// one, sorted by namespace and name. (A slice that names a pod which its Service's selector does not match, or of
    /// another namespace, is not looked at: such a Service only misses the direct path.)
    pub fn local_services(&self) -> impl Iterator<Item = &Arc<CompiledService>> {
        self.local_services.iter().filter_map(|key| self.services.get(key))
    }

    /// Whether capture is off for a pod, of whatever node (ruling 12).
    pub fn bypassed(&self, key: &NamespacedName) -> bool {
        self.bypassed.contains(key)
    }

    /// Where nodes and pods are.
    pub fn localities(&self) -> &Arc<Localities> {
        &self.localities
    }

    /// Namespaces whose labels put their pods into the mesh.
    pub fn opted_namespaces(&self) -> &Arc<BTreeSet<Arc<str>>> {
        &self.opted_namespaces
    }

    /// What the compiler found wrong.
    pub fn problems(&self) -> &Arc<[Problem]> {
        &self.problems
    }

    /// Counts up whenever pods with labels come that no pod of their namespace had, and when the last such pod goes.
    pub fn label_sets(&self) -> u64 {
        self.label_sets
    }

    /// Number of objects that it was compiled from.
    pub fn objects(&self) -> usize {
        self.objects
    }
}
