//! Every finding of the analyzers: Istio's code and name for the condition, and how bad it is.

use crate::problem::Code;

/// A field or a provider that is on its way out.
pub const DEPRECATED: Code = Code::warning("IST0002", "Deprecated");
/// An object refers to one that is not there.
pub const NOT_FOUND: Code = Code::error("IST0101", "ReferencedResourceNotFound");
/// A namespace of which nothing is in the mesh.
pub const NOT_IN_MESH: Code = Code::info("IST0102", "NamespaceNotInjected");
/// An annotation on a kind that does not have it.
pub const MISPLACED_ANNOTATION: Code = Code::warning("IST0107", "MisplacedAnnotation");
/// An annotation of Istio's that nobody knows.
pub const UNKNOWN_ANNOTATION: Code = Code::warning("IST0108", "UnknownAnnotation");
/// Several VirtualServices for one host.
pub const CONFLICTING_HOSTS: Code = Code::error("IST0109", "ConflictingMeshGatewayVirtualServiceHosts");
/// Several Sidecars for one pod.
pub const CONFLICTING_SIDECARS: Code = Code::error("IST0110", "ConflictingSidecarWorkloadSelectors");
/// Several Sidecars for a whole namespace.
pub const SIDECARS_WITHOUT_SELECTOR: Code =
    Code::error("IST0111", "MultipleSidecarsWithoutWorkloadSelectors");
/// A destination without port whose host has several.
pub const PORT_REQUIRED: Code = Code::error("IST0112", "VirtualServiceDestinationPortSelectorRequired");
/// Services of one Deployment disagree about a port's protocol.
pub const MULTIPLE_SERVICES: Code = Code::warning("IST0116", "DeploymentAssociatedToMultipleServices");
/// A port whose name says nothing about its protocol.
pub const PORT_NAME: Code = Code::info("IST0118", "PortNameIsNotUnderNamingConvention");
/// Labels of a namespace that contradict each other.
pub const SEVERAL_LABELS: Code = Code::warning("IST0123", "NamespaceMultipleInjectionLabels");
/// An annotation with a value that it cannot have.
pub const INVALID_ANNOTATION: Code = Code::warning("IST0125", "InvalidAnnotation");
/// A policy that applies to no workload.
pub const NO_WORKLOADS: Code = Code::warning("IST0127", "NoMatchingWorkloadsFound");
/// TLS to servers whose certificates nobody verifies.
pub const UNVERIFIED_SERVER: Code =
    Code::warning("IST0128", "NoServerCertificateVerificationDestinationLevel");
/// The same for one port.
pub const UNVERIFIED_SERVER_PORT: Code = Code::warning("IST0129", "NoServerCertificateVerificationPortLevel");
/// A rule that no request reaches.
pub const UNREACHABLE_RULE: Code = Code::warning("IST0130", "VirtualServiceUnreachableRule");
/// A match that an earlier one covers.
pub const INEFFECTIVE_MATCH: Code = Code::info("IST0131", "VirtualServiceIneffectiveMatch");
/// A VirtualService whose hosts its Gateway does not have.
pub const HOST_NOT_IN_GATEWAY: Code = Code::warning("IST0132", "VirtualServiceHostNotFoundInGateway");
/// A TCP port of a ServiceEntry without addresses.
pub const ADDRESSES_REQUIRED: Code = Code::warning("IST0134", "ServiceEntryAddressesRequired");
/// An annotation that is on its way out.
pub const DEPRECATED_ANNOTATION: Code = Code::info("IST0135", "DeprecatedAnnotation");
/// Services of one Deployment send different ports to one.
pub const CONFLICTING_PORTS: Code = Code::warning("IST0137", "DeploymentConflictingPorts");
/// One certificate in several Gateways.
pub const DUPLICATE_CERTIFICATE: Code = Code::warning("IST0138", "GatewayDuplicateCertificate");
/// Subsets of a mesh-internal VirtualService that requests through a Gateway pass by.
pub const INGRESS_PASSES_BY: Code = Code::warning("IST0140", "IngressRouteRulesNotAffected");
/// A workload that runs as the sidecar's user.
pub const RESERVED_USER: Code = Code::warning("IST0144", "InvalidApplicationUID");
/// Several Gateways for one host on one port of one workload.
pub const CONFLICTING_GATEWAYS: Code = Code::error("IST0145", "ConflictingGateways");
/// A Deployment whose sidecar's image somebody has to fill in, and nobody does.
pub const UNFILLED_TEMPLATE: Code = Code::warning("IST0146", "ImageAutoWithoutInjectionWarning");
/// The same for a Pod: it cannot start.
pub const UNFILLED_POD: Code = Code::error("IST0147", "ImageAutoWithoutInjectionError");
/// Routing by claims at a Gateway that verifies no token.
pub const CLAIM_WITHOUT_TOKEN: Code = Code::error("IST0149", "JwtClaimBasedRoutingWithoutRequestAuthN");
/// A TCP port of a Service of the type ExternalName.
pub const EXTERNAL_NAME_PORT: Code = Code::warning("IST0150", "ExternalNameServiceTypeInvalidPortName");
/// An access log that goes nowhere.
pub const NO_PROVIDER: Code = Code::warning("IST0157", "InvalidTelemetryProvider");
/// Several Telemetries for one pod.
pub const CONFLICTING_TELEMETRIES: Code = Code::error("IST0159", "ConflictingTelemetryWorkloadSelectors");
/// Several Telemetries for a whole namespace.
pub const TELEMETRIES_WITHOUT_SELECTOR: Code =
    Code::error("IST0160", "MultipleTelemetriesWithoutWorkloadSelectors");
/// A secret that is no certificate.
pub const INVALID_CREDENTIAL: Code = Code::error("IST0161", "InvalidGatewayCredential");
/// A port of a Gateway that its Service does not have.
pub const PORT_NOT_ON_SERVICE: Code = Code::warning("IST0162", "GatewayPortNotDefinedOnService");
/// A reference to a Gateway that a controller made for itself.
pub const INTERNAL_GATEWAY: Code = Code::warning("IST0165", "ReferencedInternalGateway");
/// A selector that means the pods of a Gateway of the Gateway API.
pub const INEFFECTIVE_SELECTOR: Code = Code::warning("IST0166", "IneffectiveSelector");
/// A subset without pods.
pub const EMPTY_SUBSET: Code = Code::error("IST0173", "DestinationRuleSubsetNotSelectPods");
/// A DestinationRule for nobody.
pub const UNKNOWN_HOST: Code = Code::warning("IST0174", "UnknownDestinationRuleHost");
/// ServiceEntries that disagree about a port's protocol.
pub const CONFLICTING_PROTOCOLS: Code = Code::warning("IST0177", "ConflictingServiceEntryProtocol");

/// The whole table, for the reference documentation.
pub const ALL: &[Code] = &[
    DEPRECATED,
    NOT_FOUND,
    NOT_IN_MESH,
    MISPLACED_ANNOTATION,
    UNKNOWN_ANNOTATION,
    CONFLICTING_HOSTS,
    CONFLICTING_SIDECARS,
    SIDECARS_WITHOUT_SELECTOR,
    PORT_REQUIRED,
    MULTIPLE_SERVICES,
    PORT_NAME,
    SEVERAL_LABELS,
    INVALID_ANNOTATION,
    NO_WORKLOADS,
    UNVERIFIED_SERVER,
    UNVERIFIED_SERVER_PORT,
    UNREACHABLE_RULE,
    INEFFECTIVE_MATCH,
    HOST_NOT_IN_GATEWAY,
    ADDRESSES_REQUIRED,
    DEPRECATED_ANNOTATION,
    CONFLICTING_PORTS,
    DUPLICATE_CERTIFICATE,
    INGRESS_PASSES_BY,
    RESERVED_USER,
    CONFLICTING_GATEWAYS,
    UNFILLED_TEMPLATE,
    UNFILLED_POD,
    CLAIM_WITHOUT_TOKEN,
    EXTERNAL_NAME_PORT,
    NO_PROVIDER,
    CONFLICTING_TELEMETRIES,
    TELEMETRIES_WITHOUT_SELECTOR,
    INVALID_CREDENTIAL,
    PORT_NOT_ON_SERVICE,
    INTERNAL_GATEWAY,
    INEFFECTIVE_SELECTOR,
    EMPTY_SUBSET,
    UNKNOWN_HOST,
    CONFLICTING_PROTOCOLS,
];
