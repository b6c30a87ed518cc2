//! Names of labels, annotations and well-known objects, in one place.

/// Label on a Namespace or Pod: opt in or out (ruling 15). For [`MESH_BYPASS`] also a label of a Node, and an
/// annotation of a Namespace or Pod.
pub const MESH: &str = "weft.dev/mesh";
/// Value of [`MESH`]: in the mesh.
pub const MESH_ENABLED: &str = "enabled";
/// Value of [`MESH`]: not in the mesh.
pub const MESH_DISABLED: &str = "disabled";
/// Value of the *annotation* [`MESH`] on a Pod, of the label on a Namespace or Node: capture is off at once
/// (ruling 12).
pub const MESH_BYPASS: &str = "bypass";

/// Annotation on a Namespace, Service or Pod: [`TRAFFIC_L4`] or [`TRAFFIC_L7`] (ruling 5).
pub const TRAFFIC: &str = "weft.dev/traffic";
/// Value of [`TRAFFIC`]: every port is plain TCP.
pub const TRAFFIC_L4: &str = "l4";
/// Value of [`TRAFFIC`]: every port goes through the node proxy.
pub const TRAFFIC_L7: &str = "l7";

/// Annotation on a Namespace: [`SAME_NODE_ENCRYPT`] (ruling 4).
pub const SAME_NODE: &str = "weft.dev/same-node";
/// Value of [`SAME_NODE`]: TLS also between pods of one node.
pub const SAME_NODE_ENCRYPT: &str = "encrypt";

/// Annotation on a Namespace: [`AGENT_GONE_PASS`] (ruling 1).
pub const AGENT_GONE: &str = "weft.dev/agent-gone";
/// Value of [`AGENT_GONE`]: with the agent gone, new inbound connections pass undecided.
pub const AGENT_GONE_PASS: &str = "pass";

/// Annotation that the agent writes to a Pod: [`STATE_ENROLLED`], [`STATE_FAILED`] or [`STATE_EXCLUDED`].
pub const STATE: &str = "weft.dev/state";
/// Annotation that the agent writes to a Pod: why it is not enrolled.
pub const STATE_REASON: &str = "weft.dev/state-reason";
/// Value of [`STATE`]: in the mesh.
pub const STATE_ENROLLED: &str = "enrolled";
/// Value of [`STATE`]: in the mesh by its labels, but it could not be enrolled.
pub const STATE_FAILED: &str = "failed";
/// Value of [`STATE`]: in the mesh by its labels, but it is not to be enrolled.
pub const STATE_EXCLUDED: &str = "excluded";
/// Istio's annotation on a Pod whose traffic is captured; consoles show it as in the mesh.
pub const ISTIO_REDIRECTION: &str = "ambient.istio.io/redirection";
/// Value of [`ISTIO_REDIRECTION`].
pub const ISTIO_REDIRECTION_ENABLED: &str = "enabled";
/// Annotation on the mirror of a static Pod: the uid under which the kubelet runs it.
pub const MIRROR: &str = "kubernetes.io/config.mirror";

/// Annotation on a Pod of the directory source: path of its network namespace (ruling 13).
pub const NETNS: &str = "weft.dev/netns";

/// Istio's label on a Namespace or Pod: `ambient` or `none`.
pub const ISTIO_DATAPLANE_MODE: &str = "istio.io/dataplane-mode";
/// Istio's label on a Namespace: `enabled` or `disabled`.
pub const ISTIO_INJECTION: &str = "istio-injection";
/// Istio's label (formerly annotation) on a Pod: `true` or `false`.
pub const ISTIO_SIDECAR_INJECT: &str = "sidecar.istio.io/inject";
/// Annotation that Istio's injector leaves on a Pod with a sidecar: it has a proxy already.
pub const ISTIO_SIDECAR_STATUS: &str = "sidecar.istio.io/status";
/// Annotation on an AuthorizationPolicy: `true` evaluates without enforcing (AP-18).
pub const ISTIO_DRY_RUN: &str = "istio.io/dry-run";

/// Annotation on a Pod: only these destinations are captured; `*` is all (C-3).
pub const INCLUDE_OUTBOUND_RANGES: &str = "traffic.sidecar.istio.io/includeOutboundIPRanges";
/// Annotation on a Pod: these destinations are not captured (C-3).
pub const EXCLUDE_OUTBOUND_RANGES: &str = "traffic.sidecar.istio.io/excludeOutboundIPRanges";
/// Annotation on a Pod: these destination ports are captured whatever the ranges say (C-3).
pub const INCLUDE_OUTBOUND_PORTS: &str = "traffic.sidecar.istio.io/includeOutboundPorts";
/// Annotation on a Pod: these destination ports are not captured (C-3).
pub const EXCLUDE_OUTBOUND_PORTS: &str = "traffic.sidecar.istio.io/excludeOutboundPorts";
/// Annotation on a Pod: only these of its ports are captured; `*` is all (C-3).
pub const INCLUDE_INBOUND_PORTS: &str = "traffic.sidecar.istio.io/includeInboundPorts";
/// Annotation on a Pod: these of its ports are not captured (C-3).
pub const EXCLUDE_INBOUND_PORTS: &str = "traffic.sidecar.istio.io/excludeInboundPorts";

/// Pod label that names the canonical service (M-5).
pub const CANONICAL_NAME: &str = "service.istio.io/canonical-name";
/// Pod label that names the canonical revision (M-5).
pub const CANONICAL_REVISION: &str = "service.istio.io/canonical-revision";
/// Kubernetes' recommended label for the application's name (M-5).
pub const KUBERNETES_NAME: &str = "app.kubernetes.io/name";
/// Kubernetes' recommended label for the application's version (M-5).
pub const KUBERNETES_VERSION: &str = "app.kubernetes.io/version";
/// Pod label `app` (M-3).
pub const APP: &str = "app";
/// Pod label `version` (M-3).
pub const VERSION: &str = "version";

/// Label of a Node: its region.
pub const TOPOLOGY_REGION: &str = "topology.kubernetes.io/region";
/// Label of a Node: its zone.
pub const TOPOLOGY_ZONE: &str = "topology.kubernetes.io/zone";
/// Label of a Node: its part of a zone.
pub const TOPOLOGY_SUBZONE: &str = "topology.istio.io/subzone";
/// Label that stands for the name of a pod's node.
pub const HOSTNAME: &str = "kubernetes.io/hostname";
/// Istio's label of a Pod: where it is, whatever its node says.
pub const ISTIO_LOCALITY: &str = "topology.istio.io/locality";
/// The former name of [`ISTIO_LOCALITY`].
pub const ISTIO_LOCALITY_OLD: &str = "istio-locality";
/// Annotation on a Service, where `spec.trafficDistribution` is absent (D-11).
pub const TRAFFIC_DISTRIBUTION: &str = "networking.istio.io/traffic-distribution";

/// Annotation on a Service: the namespaces whose clients see it.
pub const EXPORT_TO: &str = "networking.istio.io/exportTo";

/// Namespace of Weft itself, the last choice of root namespace (ruling 14).
pub const WEFT_NAMESPACE: &str = "weft-system";
/// ConfigMap with mesh-wide settings in [`WEFT_NAMESPACE`].
pub const WEFT_CONFIG_MAP: &str = "weft";
/// Namespace of Istio, the second choice of root namespace (ruling 14).
pub const ISTIO_NAMESPACE: &str = "istio-system";
/// ConfigMap with mesh-wide settings in [`ISTIO_NAMESPACE`].
pub const ISTIO_CONFIG_MAP: &str = "istio";

/// Trust domain where none is set; in a policy also a name for the mesh's own trust domain (AP-16).
pub const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";
/// DNS domain of the cluster.
pub const CLUSTER_DOMAIN: &str = "cluster.local";
/// What metrics and logs say for an absent value (M-4).
pub const UNKNOWN: &str = "unknown";
