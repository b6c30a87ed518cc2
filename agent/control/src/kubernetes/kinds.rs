//! Which kinds are watched, and where they are found.

use weft_core::resource::Kind;

/// A kind that the mesh wants to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wanted {
    /// As it stands in manifests.
    pub(super) kind: &'static str,
    /// As it stands in URLs.
    pub(super) plural: &'static str,
    /// Empty for the core group.
    pub(super) group: &'static str,
    /// Versions that can be decoded, the best first.
    pub(super) versions: &'static [&'static str],
    /// `None` for kinds that are only validated.
    pub(super) read: Option<Kind>,
    /// Namespace and name of the only object that counts.
    pub(super) only: Option<(&'static str, &'static str)>,
    /// Objects of a page when it is listed. Pages are held in memory as a whole.
    pub(super) page: u32,
}

const PAGE: u32 = 500;
/// An EndpointSlice can have a thousand endpoints.
const PAGE_OF_SLICES: u32 = 100;

const fn core(kind: &'static str, plural: &'static str, read: Kind) -> Wanted {
    Wanted { kind, plural, group: "", versions: &["v1"], read: Some(read), only: None, page: PAGE }
}

const fn mesh_config(namespace: &'static str, name: &'static str) -> Wanted {
    Wanted { only: Some((namespace, name)), ..core("ConfigMap", "configmaps", Kind::MeshConfig) }
}

/// Kinds that every cluster has.
pub(super) const BUILT_IN: &[Wanted] = &[
    core("Namespace", "namespaces", Kind::Namespace),
    core("Node", "nodes", Kind::Node),
    core("Pod", "pods", Kind::Pod),
    core("Service", "services", Kind::Service),
    core("ServiceAccount", "serviceaccounts", Kind::ServiceAccount),
    Wanted {
        group: "discovery.k8s.io",
        page: PAGE_OF_SLICES,
        ..core("EndpointSlice", "endpointslices", Kind::EndpointSlice)
    },
    mesh_config("weft-system", "weft"),
    mesh_config("istio-system", "istio"),
];

/// What tells of kinds that appear. Only the metadata is asked for: the schemas are large.
pub(super) const DEFINITIONS: Wanted = Wanted {
    kind: "CustomResourceDefinition",
    plural: "customresourcedefinitions",
    group: "apiextensions.k8s.io",
    versions: &["v1"],
    read: None,
    only: None,
    page: PAGE,
};

const SECURITY: &str = "security.istio.io";
const NETWORKING: &str = "networking.istio.io";
const OF_SECURITY: &[&str] = &["v1", "v1beta1"];
const OF_NETWORKING: &[&str] = &["v1", "v1beta1", "v1alpha3"];

const fn custom(
    kind: &'static str,
    plural: &'static str,
    group: &'static str,
    versions: &'static [&'static str],
    read: Option<Kind>,
) -> Wanted {
    Wanted { kind, plural, group, versions, read, only: None, page: PAGE }
}

/// Kinds that the mesh executes, where their definitions are installed.
const EXECUTED: &[Wanted] = &[
    custom(
        "AuthorizationPolicy",
        "authorizationpolicies",
        SECURITY,
        OF_SECURITY,
        Some(Kind::AuthorizationPolicy),
    ),
    custom(
        "PeerAuthentication",
        "peerauthentications",
        SECURITY,
        OF_SECURITY,
        Some(Kind::PeerAuthentication),
    ),
    custom(
        "RequestAuthentication",
        "requestauthentications",
        SECURITY,
        OF_SECURITY,
        Some(Kind::RequestAuthentication),
    ),
    custom("VirtualService", "virtualservices", NETWORKING, OF_NETWORKING, Some(Kind::VirtualService)),
    custom("DestinationRule", "destinationrules", NETWORKING, OF_NETWORKING, Some(Kind::DestinationRule)),
];

/// Kinds that are validated, so that their authors hear of mistakes.
const VALIDATED: &[Wanted] = &[
    custom("Gateway", "gateways", NETWORKING, OF_NETWORKING, None),
    custom("ServiceEntry", "serviceentries", NETWORKING, OF_NETWORKING, None),
    custom("Sidecar", "sidecars", NETWORKING, OF_NETWORKING, None),
    custom("WorkloadEntry", "workloadentries", NETWORKING, OF_NETWORKING, None),
    custom("WorkloadGroup", "workloadgroups", NETWORKING, OF_NETWORKING, None),
    custom("EnvoyFilter", "envoyfilters", NETWORKING, &["v1alpha3"], None),
    custom("ProxyConfig", "proxyconfigs", NETWORKING, &["v1beta1"], None),
    custom("Telemetry", "telemetries", "telemetry.istio.io", &["v1", "v1alpha1"], None),
    custom("WasmPlugin", "wasmplugins", "extensions.istio.io", &["v1alpha1"], None),
    custom("TrafficExtension", "trafficextensions", "extensions.istio.io", &["v1alpha1"], None),
];

const GATEWAY_API: &str = "gateway.networking.k8s.io";

/// Kinds of the Gateway API: the analyzers look at them, and nothing in them is executed.
const OF_GATEWAY_API: &[Wanted] = &[
    custom("GatewayClass", "gatewayclasses", GATEWAY_API, &["v1", "v1beta1"], None),
    custom("Gateway", "gateways", GATEWAY_API, &["v1", "v1beta1"], None),
    custom("HTTPRoute", "httproutes", GATEWAY_API, &["v1", "v1beta1"], None),
    custom("GRPCRoute", "grpcroutes", GATEWAY_API, &["v1", "v1alpha2"], None),
    custom("TLSRoute", "tlsroutes", GATEWAY_API, &["v1", "v1alpha3", "v1alpha2"], None),
    custom("TCPRoute", "tcproutes", GATEWAY_API, &["v1alpha2"], None),
    custom("ReferenceGrant", "referencegrants", GATEWAY_API, &["v1", "v1beta1"], None),
    custom("BackendTLSPolicy", "backendtlspolicies", GATEWAY_API, &["v1", "v1alpha3"], None),
];

/// Kinds whose definitions may be installed or not.
pub(super) fn custom_kinds(validated: bool) -> impl Iterator<Item = Wanted> + Clone {
    let more: [&[Wanted]; 2] = if validated { [VALIDATED, OF_GATEWAY_API] } else { [&[], &[]] };
    EXECUTED.iter().chain(more.into_iter().flatten()).copied()
}

/// Whether the analyzers compare Istio's objects with objects of this kind. Pods are not meant: they come and go, and
/// whoever wants to know of them looks into the snapshot.
pub(super) fn is_compared_with(wanted: &Wanted) -> bool {
    let of_gateway_api = wanted.group == GATEWAY_API && wanted.kind == "Gateway";
    of_gateway_api || matches!(wanted.read, Some(Kind::Namespace | Kind::Service | Kind::MeshConfig))
}

/// A kind in the version in which the cluster serves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) wanted: Wanted,
    pub(super) version: &'static str,
}

impl Target {
    /// The kind in its best version.
    pub(super) fn of(wanted: Wanted) -> Self {
        Self { wanted, version: wanted.versions.first().copied().unwrap_or("v1") }
    }

    /// What it is called in status, findings and metrics.
    pub(super) fn label(&self) -> String {
        match self.wanted.only {
            Some((namespace, name)) => format!("{} {namespace}/{name}", self.wanted.kind),
            // Istio has a kind of the same name.
            None if self.wanted.group == GATEWAY_API => format!("{}.{GATEWAY_API}", self.wanted.kind),
            None => self.wanted.kind.to_owned(),
        }
    }

    /// `apiVersion` of its objects.
    pub(super) fn api_version(&self) -> String {
        match self.wanted.group {
            "" => self.version.to_owned(),
            group => format!("{group}/{}", self.version),
        }
    }

    /// As RBAC names it: `pods`, `authorizationpolicies.security.istio.io`.
    pub(super) fn resource(&self) -> String {
        match self.wanted.group {
            "" => self.wanted.plural.to_owned(),
            group => format!("{}.{group}", self.wanted.plural),
        }
    }

    /// The URL's path with the selector; ends in `?` or `&`.
    pub(super) fn path(&self) -> String {
        let Wanted { plural, group, only, .. } = self.wanted;
        let root = match group {
            "" => format!("/api/{}", self.version),
            group => format!("/apis/{group}/{}", self.version),
        };
        match only {
            Some((namespace, name)) => {
                format!("{root}/namespaces/{namespace}/{plural}?fieldSelector=metadata.name%3D{name}&")
            }
            None => format!("{root}/{plural}?"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::{Decoder, Outcome, Trust};

    #[test]
    fn every_kind_and_version_that_is_watched_can_be_decoded() {
        let mut decoder = Decoder::new(Trust::Api);
        for wanted in BUILT_IN.iter().copied().chain(custom_kinds(true)) {
            for version in wanted.versions {
                let target = Target { wanted, version };
                let (namespace, name) = wanted.only.unwrap_or(("shop", "a"));
                let text =
                    format!(r#"{{"metadata":{{"name":"{name}","namespace":"{namespace}"}},"spec":{{}}}}"#);
                let mut decoded = Vec::new();
                decoder.known(&text, (&target.api_version(), wanted.kind), &mut decoded);
                let kind = match &decoded[0].outcome {
                    Outcome::Accepted(resource) => Some(resource.key().kind),
                    Outcome::Rejected(key) => key.as_ref().map(|key| key.kind),
                    Outcome::Refused | Outcome::Ignored => None,
                };
                assert_eq!(kind, wanted.read, "{wanted:?}: {decoded:?}");
                assert!(decoded[0].problems.iter().all(|problem| problem.code != "WEFT0004"), "{decoded:?}");
            }
        }
    }

    #[test]
    fn no_two_kinds_are_called_the_same() {
        let all = BUILT_IN.iter().copied().chain(custom_kinds(true)).map(|wanted| Target::of(wanted).label());
        let mut seen = std::collections::BTreeSet::new();
        for label in all {
            assert!(seen.insert(label.clone()), "{label}");
        }
        assert!(seen.contains("Gateway") && seen.contains("Gateway.gateway.networking.k8s.io"));
    }

    #[test]
    fn paths_are_those_of_the_api() {
        let paths: Vec<_> = BUILT_IN.iter().map(|wanted| Target::of(*wanted).path()).collect();
        assert_eq!(paths[2], "/api/v1/pods?");
        assert_eq!(paths[5], "/apis/discovery.k8s.io/v1/endpointslices?");
        assert_eq!(paths[6], "/api/v1/namespaces/weft-system/configmaps?fieldSelector=metadata.name%3Dweft&");
    }
}
