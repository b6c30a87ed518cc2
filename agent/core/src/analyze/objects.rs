//! What the analyzers know of objects: only what they ask for, as it was written.
//!
//! Unlike [`crate::resource`] this also covers kinds that the mesh does not execute, objects that validation
//! refused (others refer to them all the same), and fields that the mesh ignores.

use std::collections::{BTreeMap, BTreeSet};

use crate::problem::Origin;

/// Labels, annotations, selectors.
pub type Pairs = BTreeMap<String, String>;

/// Kind, name, place and metadata of an object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Head {
    /// The kind.
    pub kind: &'static str,
    /// The namespace; empty for kinds without one.
    pub namespace: String,
    /// The name.
    pub name: String,
    /// Path of the object within its document: empty, or `items[3].`.
    pub prefix: String,
    /// Where it was read.
    pub origin: Option<Origin>,
    /// `metadata.labels`.
    pub labels: Pairs,
    /// `metadata.annotations`.
    pub annotations: Pairs,
}

impl Head {
    /// `namespace/name`, or the name of what has no namespace.
    pub fn full_name(&self) -> String {
        full_name(&self.namespace, &self.name)
    }
}

fn full_name(namespace: &str, name: &str) -> String {
    if namespace.is_empty() { name.to_owned() } else { format!("{namespace}/{name}") }
}

/// One object.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "each variant wraps the kind of the same name")]
pub enum Object {
    Namespace(Head),
    Node(Head),
    Pod(Pod),
    Deployment(Pod),
    Service(Service),
    Secret(Secret),
    Gateway(Gateway),
    KubernetesGateway(KubernetesGateway),
    ServiceEntry(ServiceEntry),
    WorkloadEntry(Head, Pairs),
    Sidecar(Sidecar),
    Telemetry(Telemetry),
    VirtualService(VirtualService),
    DestinationRule(DestinationRule),
    AuthorizationPolicy(AuthorizationPolicy),
    /// With its selector, if it has one and no targets.
    RequestAuthentication(Head, Option<Pairs>),
    /// With its selector, if it has one and no targets.
    WasmPlugin(Head, Option<Pairs>),
    Mesh(Mesh),
}

/// A Pod, or a Deployment with what it makes Pods of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pod {
    /// The object.
    pub head: Head,
    /// The labels of the pods.
    pub labels: Pairs,
    /// The annotations of the pods.
    pub annotations: Pairs,
    /// `nodeName`.
    pub node: String,
    /// `securityContext.runAsUser`.
    pub user: Option<i64>,
    /// `containers`.
    pub containers: Vec<Container>,
    /// Whether an Istio sidecar is among them.
    pub has_sidecar: bool,
    /// The sidecar's image is `auto`: what injects sidecars has to write the real one.
    pub awaits_sidecar: bool,
}

/// A container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Container {
    /// `name`.
    pub name: String,
    /// `securityContext.runAsUser`.
    pub user: Option<i64>,
}

/// A Service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Service {
    /// The object.
    pub head: Head,
    /// `type: ExternalName`.
    pub is_external_name: bool,
    /// `selector`.
    pub selector: Pairs,
    /// `ports`.
    pub ports: Vec<ServicePort>,
}

/// A port of a Service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServicePort {
    /// `name`.
    pub name: String,
    /// `port`.
    pub port: i64,
    /// `protocol`, TCP if it is absent.
    pub protocol: String,
    /// `appProtocol`.
    pub app_protocol: Option<String>,
    /// `targetPort` as text; the port itself if it is absent.
    pub target: String,
}

/// A Secret.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Secret {
    /// The object.
    pub head: Head,
    /// Why a server cannot use it as its certificate.
    pub unusable: Option<String>,
}

/// A Gateway of Istio.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Gateway {
    /// The object.
    pub head: Head,
    /// `selector`.
    pub selector: Pairs,
    /// `servers`.
    pub servers: Vec<Server>,
}

/// A server of a Gateway.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Server {
    /// `port.number`.
    pub port: i64,
    /// `hosts`, possibly with `namespace/` before them.
    pub hosts: Vec<String>,
    /// `bind`.
    pub bind: String,
    /// `tls`.
    pub tls: Option<ServerTls>,
}

/// Certificates of a server; what is absent is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerTls {
    /// `credentialName`.
    pub credential: String,
    /// `serverCertificate`.
    pub certificate: String,
    /// `privateKey`.
    pub key: String,
}

/// A Gateway of the Gateway API.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KubernetesGateway {
    /// The object.
    pub head: Head,
    /// `listeners[].hostname`; empty for all hosts.
    pub hosts: Vec<String>,
}

/// A ServiceEntry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceEntry {
    /// The object.
    pub head: Head,
    /// `hosts`.
    pub hosts: Vec<String>,
    /// `exportTo`.
    pub export_to: Vec<String>,
    /// `addresses` are written, or were given to it.
    pub has_addresses: bool,
    /// Numbers and protocols of `ports`.
    pub ports: Vec<(i64, String)>,
    /// `workloadSelector.labels`.
    pub selector: Option<Pairs>,
    /// `endpoints[].labels`.
    pub endpoints: Vec<Pairs>,
}

/// A Sidecar.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sidecar {
    /// The object.
    pub head: Head,
    /// `workloadSelector.labels`.
    pub selector: Pairs,
    /// `outboundTrafficPolicy.egressProxy` is written.
    pub has_egress_proxy: bool,
}

/// A Telemetry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Telemetry {
    /// The object.
    pub head: Head,
    /// `selector.matchLabels`.
    pub selector: Option<Pairs>,
    /// It is attached to objects by `targetRefs`.
    pub has_targets: bool,
    /// Entries of `accessLogging` that are on and name no provider.
    pub logs_without_provider: Vec<usize>,
    /// Providers of `tracing`, with the index of their entry.
    pub tracers: Vec<(usize, String)>,
}

/// A VirtualService.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VirtualService {
    /// The object.
    pub head: Head,
    /// `hosts`.
    pub hosts: Vec<String>,
    /// `gateways`.
    pub gateways: Vec<String>,
    /// `exportTo`.
    pub export_to: Vec<String>,
    /// `http`, `tls` and `tcp`, with their names.
    pub lists: Vec<(&'static str, Vec<Rule>)>,
    /// Where traffic is sent or mirrored to.
    pub destinations: Vec<Destination>,
    /// The first header of a match that stands for a claim of a token.
    pub claim: Option<String>,
    /// Rules of `http` with `fault.delay.percent`.
    pub delays_in_percent: Vec<usize>,
}

/// A rule of a VirtualService.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rule {
    /// `name`.
    pub name: String,
    /// `match`.
    pub matches: Vec<RuleMatch>,
}

/// A match of a rule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RuleMatch {
    /// `name`.
    pub name: String,
    /// Everything but the name, in a form in which equal matches are equal texts.
    pub text: String,
    /// What a match of a path's prefix is compared by.
    pub prefix: Option<PrefixMatch>,
}

/// A match of a path's prefix. Values begin with `exact:` or `prefix:`; others are empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PrefixMatch {
    /// `uri.prefix`.
    pub path: String,
    /// `port`; 0 if it is absent.
    pub port: i64,
    /// `method`; GET if it is absent.
    pub method: String,
    /// `authority`.
    pub authority: String,
    /// `headers`.
    pub headers: Pairs,
    /// `queryParams`.
    pub query: Pairs,
    /// `withoutHeaders`.
    pub without_headers: Pairs,
}

/// A destination of a VirtualService.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Destination {
    /// Path of the destination.
    pub field: String,
    /// Where it stands.
    pub list: DestinationList,
    /// `host`.
    pub host: String,
    /// `subset`; empty if it is absent.
    pub subset: String,
    /// `port.number`, if `port` is written.
    pub port: Option<i64>,
}

/// Where a destination stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DestinationList {
    /// `http[].route`.
    #[default]
    Http,
    /// `http[].mirror` and `http[].mirrors`.
    Mirror,
    /// `tls[].route` and `tcp[].route`.
    Connection,
}

/// A DestinationRule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DestinationRule {
    /// The object.
    pub head: Head,
    /// `host`.
    pub host: String,
    /// `exportTo`.
    pub export_to: Vec<String>,
    /// Names and labels of `subsets`.
    pub subsets: Vec<(String, Pairs)>,
    /// `workloadSelector` is written.
    pub selects_workloads: bool,
    /// `tls` of the whole and of ports.
    pub tls: Vec<ClientTls>,
}

/// TLS settings of a DestinationRule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientTls {
    /// Path of the settings.
    pub field: String,
    /// The port; `None` for the whole.
    pub port: Option<i64>,
    /// `mode`.
    pub mode: String,
    /// `caCertificates` is written.
    pub has_authority: bool,
    /// `credentialName` is written.
    pub has_credential: bool,
}

/// An AuthorizationPolicy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuthorizationPolicy {
    /// The object.
    pub head: Head,
    /// `selector.matchLabels`.
    pub selector: Option<Pairs>,
    /// It is attached to objects by `targetRefs`.
    pub has_targets: bool,
    /// Namespaces that it names, with their paths.
    pub namespaces: Vec<(String, String)>,
}

/// MeshConfig.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mesh {
    /// `rootNamespace`; empty if it is absent.
    pub root_namespace: String,
    /// Hosts of ServiceEntries without addresses get some.
    pub allocates_addresses: bool,
    /// `defaultProviders.accessLogging` has entries.
    pub has_default_access_log: bool,
    /// Names of `extensionProviders` for Lightstep, which is no more.
    pub lightstep: Vec<String>,
}

/// Everything that was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObjectSet {
    pub(super) namespaces: Vec<Head>,
    pub(super) nodes: Vec<Head>,
    pub(super) pods: Vec<Pod>,
    pub(super) deployments: Vec<Pod>,
    pub(super) services: Vec<Service>,
    pub(super) secrets: Vec<Secret>,
    pub(super) gateways: Vec<Gateway>,
    pub(super) kubernetes_gateways: Vec<KubernetesGateway>,
    pub(super) service_entries: Vec<ServiceEntry>,
    pub(super) workload_entries: Vec<(Head, Pairs)>,
    pub(super) sidecars: Vec<Sidecar>,
    pub(super) telemetries: Vec<Telemetry>,
    pub(super) virtual_services: Vec<VirtualService>,
    pub(super) destination_rules: Vec<DestinationRule>,
    pub(super) authorization_policies: Vec<AuthorizationPolicy>,
    pub(super) request_authentications: Vec<(Head, Option<Pairs>)>,
    pub(super) wasm_plugins: Vec<(Head, Option<Pairs>)>,
    pub(super) mesh: Option<Mesh>,
    known: BTreeSet<(&'static str, bool, String)>,
    /// Positions of pods, of Services and of the Namespace itself, by namespace.
    by_namespace: BTreeMap<String, Members>,
}

/// What is in a namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Members {
    itself: Option<usize>,
    pods: Vec<usize>,
    services: Vec<usize>,
}

impl ObjectSet {
    /// Adds an object. Of the same object twice the first stays, as everywhere.
    pub fn add(&mut self, object: Object) {
        if let Some(head) = object.head() {
            let of_gateway_api = matches!(object, Object::KubernetesGateway(_));
            if !self.known.insert((head.kind, of_gateway_api, head.full_name())) {
                return;
            }
        }
        match object {
            Object::Namespace(head) => {
                let at = self.namespaces.len();
                self.members(&head.name).itself = Some(at);
                self.namespaces.push(head);
            }
            Object::Node(head) => self.nodes.push(head),
            Object::Pod(pod) => {
                let at = self.pods.len();
                self.members(&pod.head.namespace).pods.push(at);
                self.pods.push(pod);
            }
            Object::Deployment(deployment) => self.deployments.push(deployment),
            Object::Service(service) => {
                let at = self.services.len();
                self.members(&service.head.namespace).services.push(at);
                self.services.push(service);
            }
            Object::Secret(secret) => self.secrets.push(secret),
            Object::Gateway(gateway) => self.gateways.push(gateway),
            Object::KubernetesGateway(gateway) => self.kubernetes_gateways.push(gateway),
            Object::ServiceEntry(entry) => self.service_entries.push(entry),
            Object::WorkloadEntry(head, labels) => self.workload_entries.push((head, labels)),
            Object::Sidecar(sidecar) => self.sidecars.push(sidecar),
            Object::Telemetry(telemetry) => self.telemetries.push(telemetry),
            Object::VirtualService(service) => self.virtual_services.push(service),
            Object::DestinationRule(rule) => self.destination_rules.push(rule),
            Object::AuthorizationPolicy(policy) => self.authorization_policies.push(policy),
            Object::RequestAuthentication(head, selector) => {
                self.request_authentications.push((head, selector));
            }
            Object::WasmPlugin(head, selector) => self.wasm_plugins.push((head, selector)),
            Object::Mesh(mesh) => {
                self.mesh.get_or_insert(mesh);
            }
        }
    }

    /// Forgets all objects of Istio's kinds, Pods and Nodes. The others of Kubernetes stay, and MeshConfig: whoever
    /// analyzes again need not read them again.
    pub fn forget_istio_and_pods(&mut self) {
        (self.pods, self.nodes) = (Vec::new(), Vec::new());
        self.by_namespace.values_mut().for_each(|members| members.pods = Vec::new());
        self.by_namespace.retain(|_, members| *members != Members::default());
        let Self { gateways, service_entries, workload_entries, sidecars, telemetries, .. } = self;
        *gateways = Vec::new();
        *service_entries = Vec::new();
        *workload_entries = Vec::new();
        *sidecars = Vec::new();
        *telemetries = Vec::new();
        self.virtual_services = Vec::new();
        self.destination_rules = Vec::new();
        self.authorization_policies = Vec::new();
        self.request_authentications = Vec::new();
        self.wasm_plugins = Vec::new();
        self.known.retain(|(kind, of_gateway_api, _)| {
            *of_gateway_api || matches!(*kind, "Namespace" | "Deployment" | "Service" | "Secret")
        });
    }

    fn members(&mut self, namespace: &str) -> &mut Members {
        self.by_namespace.entry(namespace.to_owned()).or_default()
    }

    /// The pods of a namespace.
    pub(super) fn pods_in(&self, namespace: &str) -> impl Iterator<Item = &Pod> {
        let members = self.by_namespace.get(namespace);
        members.into_iter().flat_map(|members| &members.pods).filter_map(|at| self.pods.get(*at))
    }

    /// The Services of a namespace.
    pub(super) fn services_in(&self, namespace: &str) -> impl Iterator<Item = &Service> {
        let members = self.by_namespace.get(namespace);
        members.into_iter().flat_map(|members| &members.services).filter_map(|at| self.services.get(*at))
    }

    /// A Namespace.
    pub(super) fn namespace(&self, name: &str) -> Option<&Head> {
        self.namespaces.get(self.by_namespace.get(name)?.itself?)
    }

    /// MeshConfig's root namespace, or Istio's.
    pub(super) fn root_namespace(&self) -> &str {
        let named = self.mesh.as_ref().map(|mesh| mesh.root_namespace.as_str());
        named.filter(|name| !name.is_empty()).unwrap_or("istio-system")
    }
}

impl Object {
    /// Who it is; MeshConfig is nobody.
    fn head(&self) -> Option<&Head> {
        Some(match self {
            Self::Namespace(head) | Self::Node(head) => head,
            Self::WorkloadEntry(head, _) => head,
            Self::RequestAuthentication(head, _) | Self::WasmPlugin(head, _) => head,
            Self::Pod(pod) | Self::Deployment(pod) => &pod.head,
            Self::Service(service) => &service.head,
            Self::Secret(secret) => &secret.head,
            Self::Gateway(gateway) => &gateway.head,
            Self::KubernetesGateway(gateway) => &gateway.head,
            Self::ServiceEntry(entry) => &entry.head,
            Self::Sidecar(sidecar) => &sidecar.head,
            Self::Telemetry(telemetry) => &telemetry.head,
            Self::VirtualService(service) => &service.head,
            Self::DestinationRule(rule) => &rule.head,
            Self::AuthorizationPolicy(policy) => &policy.head,
            Self::Mesh(_) => return None,
        })
    }
}
