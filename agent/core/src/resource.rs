//! Objects as users write them, reduced to what the mesh uses.
//!
//! Sources (YAML directory, Kubernetes API) decode their wire formats into these types; nothing here knows
//! about YAML or JSON. Strings that repeat across many objects are `Arc<str>` so that a source can intern them.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::problem::Origin;

pub mod authorization;
pub mod destination_rule;
pub mod label_selector;
mod mesh;
mod policy;
pub mod request_authentication;
pub mod virtual_service;

pub use authorization::{HttpKey, PathMatch, PathTemplate};
pub use destination_rule::DestinationRule;
pub use label_selector::LabelSelector;
pub use mesh::{ExportDefaults, ExtAuthz, MeshConfig, MeshHttp, PathNormalization};
pub use policy::{
    AuthorizationPolicy, Condition, Match, NamespaceMatch, Operation, PolicyAction, Rule,
    ServiceAccountMatch, Source, StringMatch,
};
pub use request_authentication::RequestAuthentication;
pub use virtual_service::VirtualService;

/// Kinds that the mesh reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "each variant is the Kubernetes kind of the same name")]
pub enum Kind {
    Namespace,
    Node,
    Pod,
    Service,
    ServiceAccount,
    EndpointSlice,
    MeshConfig,
    AuthorizationPolicy,
    PeerAuthentication,
    RequestAuthentication,
    VirtualService,
    DestinationRule,
}

impl Kind {
    /// The kind as it stands in manifests. A MeshConfig is carried by a `ConfigMap`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::Pod => "Pod",
            Self::Service => "Service",
            Self::ServiceAccount => "ServiceAccount",
            Self::EndpointSlice => "EndpointSlice",
            Self::MeshConfig => "ConfigMap",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::PeerAuthentication => "PeerAuthentication",
            Self::RequestAuthentication => "RequestAuthentication",
            Self::VirtualService => "VirtualService",
            Self::DestinationRule => "DestinationRule",
        }
    }
}

/// The name of an object: kind, namespace (empty for cluster-scoped kinds), name.
///
/// `kind` is text so that findings can also name objects of kinds that the mesh does not read.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectRef {
    /// The kind as it stands in the manifest.
    pub kind: Arc<str>,
    /// The namespace; empty for cluster-scoped kinds.
    pub namespace: Arc<str>,
    /// The name.
    pub name: Arc<str>,
}

impl ObjectRef {
    /// Names an object of a kind that the mesh reads.
    pub fn new(kind: Kind, namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { kind: kind.as_str().into(), namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind, self.name)
        } else {
            write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}

/// Namespace and name, the key of every namespaced object.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamespacedName {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name.
    pub name: Arc<str>,
}

impl NamespacedName {
    /// Builds a key.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for NamespacedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A set of labels or annotations, sorted by key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Labels(Box<[(Arc<str>, Arc<str>)]>);

impl Labels {
    /// The value of one label.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.get_shared(key).map(|value| &**value)
    }

    /// The value of one label, to be kept without a copy.
    pub fn get_shared(&self, key: &str) -> Option<&Arc<str>> {
        let at = self.0.binary_search_by(|(k, _)| (**k).cmp(key)).ok()?;
        self.0.get(at).map(|(_, value)| value)
    }

    /// All labels in the order of their keys, to be kept without copies.
    pub fn iter_shared(&self) -> impl Iterator<Item = &(Arc<str>, Arc<str>)> {
        self.0.iter()
    }

    /// All labels in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (&**key, &**value))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `labels` has every label of this set: the meaning of a selector's `matchLabels`.
    pub fn is_subset_of(&self, labels: &Labels) -> bool {
        self.iter().all(|(key, value)| labels.get(key) == Some(value))
    }
}

impl<K: Into<Arc<str>>, V: Into<Arc<str>>> FromIterator<(K, V)> for Labels {
    fn from_iter<T: IntoIterator<Item = (K, V)>>(iter: T) -> Self {
        let mut labels: Vec<(Arc<str>, Arc<str>)> =
            iter.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
        labels.sort();
        labels.dedup_by(|a, b| a.0 == b.0);
        Self(labels.into_boxed_slice())
    }
}

/// What every namespaced object carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    /// Namespace and name.
    pub key: NamespacedName,
    /// Seconds since the Unix epoch; `None` means equal age (ruling 16).
    pub created: Option<i64>,
    /// Where it was read, for findings.
    pub origin: Option<Origin>,
}

impl Meta {
    /// Sorts the oldest object first, then by name, then by namespace. An object without a time of
    /// creation counts as the oldest.
    pub fn precedence(&self) -> (i64, &str, &str) {
        (self.created.unwrap_or(i64::MIN), &self.key.name, &self.key.namespace)
    }
}

/// A Namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    /// The name.
    pub name: Arc<str>,
    /// Its labels.
    pub labels: Arc<Labels>,
    /// Its annotations (only `weft.dev/…` and the Istio ones that the mesh reads).
    pub annotations: Arc<Labels>,
    /// Where it was read.
    pub origin: Option<Origin>,
}

/// A Node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// The name.
    pub name: Arc<str>,
    /// Its addresses (InternalIP and ExternalIP).
    pub addresses: Vec<IpAddr>,
    /// Its labels.
    pub labels: Arc<Labels>,
}

/// The workload that owns a pod, as metrics name it (`source_workload`).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Owner {
    /// `Deployment`, `StatefulSet`, … (a ReplicaSet is resolved to its Deployment by its name's suffix).
    pub kind: Arc<str>,
    /// The name.
    pub name: Arc<str>,
}

/// A container port of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ContainerPort {
    /// Its name, for Services whose `targetPort` is a name.
    pub name: Option<Arc<str>>,
    /// Its number.
    pub port: u16,
}

/// A Pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Name, age, origin.
    pub meta: Meta,
    /// Its labels (shared between pods that have the same).
    pub labels: Arc<Labels>,
    /// Its annotations (only those that the mesh reads).
    pub annotations: Arc<Labels>,
    /// `spec.nodeName`.
    pub node: Option<Arc<str>>,
    /// `status.podIPs`.
    pub ips: SmallVec<[IpAddr; 2]>,
    /// `spec.serviceAccountName`, `default` when absent.
    pub service_account: Arc<str>,
    /// `spec.hostNetwork`.
    pub host_network: bool,
    /// `spec.runtimeClassName`.
    pub runtime_class: Option<Arc<str>>,
    /// Ready condition; true when the pod has no such condition (ruling 16).
    pub ready: bool,
    /// `status.phase` is Succeeded or Failed. A pod that is being deleted is not ready, but still enforced.
    pub terminated: bool,
    /// Who owns it; `None` for a bare pod, which is then its own workload.
    pub owner: Option<Arc<Owner>>,
    /// Declared ports of all containers.
    pub ports: Arc<[ContainerPort]>,
    /// Annotation `weft.dev/netns`, only from the directory source (ruling 13).
    pub netns: Option<PathBuf>,
    /// The uid by which the kubelet names its cgroup: `metadata.uid`, for a static pod that of its manifest.
    pub uid: Option<Arc<str>>,
}

/// The application protocol of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PortProtocol {
    /// `http`: HTTP/1.1 to the application.
    Http,
    /// `http2`, `kubernetes.io/h2c`.
    Http2,
    /// `grpc`.
    Grpc,
    /// `grpc-web`.
    GrpcWeb,
    /// `https`, `tls`: opaque TLS of the application.
    Tls,
    /// `tcp`, `mongo`, `mysql`, `redis`, and the well-known server-first ports.
    Tcp,
    /// UDP: never captured.
    Udp,
    /// Not declared: found by sniffing.
    Undeclared,
}

impl PortProtocol {
    /// Whether a user would expect request metrics on this port.
    pub fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Http2 | Self::Grpc | Self::GrpcWeb)
    }
}

/// Where a Service port leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetPort {
    /// A number.
    Number(u16),
    /// The name of a container port.
    Name(Arc<str>),
}

/// A port of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name; `None` when the Service has one port without a name.
    pub name: Option<Arc<str>>,
    /// Its number.
    pub port: u16,
    /// Where it leads.
    pub target: TargetPort,
    /// What it speaks.
    pub protocol: PortProtocol,
}

/// `spec.trafficDistribution` of a Service: the endpoints that its clients prefer (D-11).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrafficDistribution {
    /// PreferSameZone, PreferClose.
    SameZone,
    /// PreferSameNode.
    SameNode,
}

/// A Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Name, age, origin.
    pub meta: Meta,
    /// Its annotations (only those that the mesh reads).
    pub annotations: Arc<Labels>,
    /// `spec.clusterIPs`; empty for a headless Service.
    pub vips: SmallVec<[IpAddr; 2]>,
    /// Its ports.
    pub ports: Arc<[ServicePort]>,
    /// `spec.selector`; `None` when the endpoints are the user's to write.
    pub selector: Option<Labels>,
    /// `spec.publishNotReadyAddresses`.
    pub publish_not_ready: bool,
    /// `spec.externalName` of the type ExternalName: the host that this is another name of, in lower case.
    pub external_name: Option<Arc<str>>,
    /// `spec.trafficDistribution`, else Istio's annotation.
    pub distribution: Option<TrafficDistribution>,
    /// Annotation `networking.istio.io/exportTo`; empty leaves it to the mesh.
    pub export_to: Vec<virtual_service::ExportTo>,
}

/// One address of an EndpointSlice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// The addresses (usually one).
    pub addresses: SmallVec<[IpAddr; 1]>,
    /// `conditions.ready`, true when absent.
    pub ready: bool,
    /// `targetRef` when it is a Pod.
    pub pod: Option<NamespacedName>,
    /// `nodeName`.
    pub node: Option<Arc<str>>,
}

/// An EndpointSlice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Name, age, origin.
    pub meta: Meta,
    /// Label `kubernetes.io/service-name`.
    pub service: Option<Arc<str>>,
    /// Port name (empty for an unnamed port) and number.
    pub ports: Vec<(Arc<str>, u16)>,
    /// The endpoints.
    pub endpoints: Vec<SliceEndpoint>,
}

/// `mtls.mode` of a PeerAuthentication, without UNSET (which is absence).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MtlsMode {
    /// Plaintext only in Istio's sidecars; treated as PERMISSIVE (PA-6).
    Disable,
    /// Both.
    Permissive,
    /// mTLS (or a kernel-attested identity on the same node, ruling 4) only.
    Strict,
}

impl MtlsMode {
    /// The API's constant.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disable => "DISABLE",
            Self::Permissive => "PERMISSIVE",
            Self::Strict => "STRICT",
        }
    }
}

/// A PeerAuthentication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerAuthentication {
    /// Name, age, origin.
    pub meta: Meta,
    /// `spec.selector.matchLabels`; `None` when absent (an empty one selects all and is not a selector).
    pub selector: Option<Labels>,
    /// `spec.mtls.mode`; `None` inherits.
    pub mode: Option<MtlsMode>,
    /// `spec.portLevelMtls`: workload (target) port → mode; `None` inherits.
    pub ports: Vec<(u16, Option<MtlsMode>)>,
}

/// Any object that the mesh reads.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "each variant wraps the kind of the same name")]
#[allow(clippy::large_enum_variant, reason = "changes box them, and the compiler takes them apart")]
pub enum Resource {
    Namespace(Namespace),
    Node(Node),
    Pod(Pod),
    Service(Service),
    /// Only its existence matters.
    ServiceAccount(Meta),
    EndpointSlice(EndpointSlice),
    MeshConfig(MeshConfig),
    AuthorizationPolicy(AuthorizationPolicy),
    PeerAuthentication(PeerAuthentication),
    RequestAuthentication(RequestAuthentication),
    VirtualService(VirtualService),
    DestinationRule(DestinationRule),
}

/// The key under which a source keeps one object.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ResourceKey {
    /// The kind.
    pub kind: Kind,
    /// Namespace (empty for cluster-scoped kinds) and name.
    pub name: NamespacedName,
}

impl Resource {
    /// The key of the object.
    pub fn key(&self) -> ResourceKey {
        let cluster = |name: &Arc<str>| NamespacedName::new("", name.clone());
        let (kind, name) = match self {
            Self::Namespace(namespace) => (Kind::Namespace, cluster(&namespace.name)),
            Self::Node(node) => (Kind::Node, cluster(&node.name)),
            Self::Pod(pod) => (Kind::Pod, pod.meta.key.clone()),
            Self::Service(service) => (Kind::Service, service.meta.key.clone()),
            Self::ServiceAccount(meta) => (Kind::ServiceAccount, meta.key.clone()),
            Self::EndpointSlice(slice) => (Kind::EndpointSlice, slice.meta.key.clone()),
            Self::MeshConfig(mesh) => (Kind::MeshConfig, mesh.key.clone()),
            Self::AuthorizationPolicy(policy) => (Kind::AuthorizationPolicy, policy.meta.key.clone()),
            Self::PeerAuthentication(policy) => (Kind::PeerAuthentication, policy.meta.key.clone()),
            Self::RequestAuthentication(policy) => (Kind::RequestAuthentication, policy.meta.key.clone()),
            Self::VirtualService(service) => (Kind::VirtualService, service.meta.key.clone()),
            Self::DestinationRule(rule) => (Kind::DestinationRule, rule.meta.key.clone()),
        };
        ResourceKey { kind, name }
    }
}

/// One change that a source reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The object is new or different.
    Upsert(Box<Resource>),
    /// The object is gone.
    Delete(ResourceKey),
}
