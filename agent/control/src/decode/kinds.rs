//! Which kinds there are, and what the mesh does with them.

use weft_core::resource::Kind;

use super::validated::Validated;

/// What becomes of an object of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// It is decoded.
    Read(Kind),
    /// It is a ConfigMap: only the one with the mesh's settings is decoded.
    ConfigMap,
    /// The mesh has no use for it.
    Ignored,
    /// An Istio kind that this version does not execute, and validates all the same (C-4).
    Validated(Validated),
    /// An Istio kind that this version does not execute (C-4).
    NotApplied,
    /// The kind exists, but not in this version; the text names the ones that do.
    UnknownVersion(&'static str),
    /// The API group has no such kind.
    UnknownKind,
}

/// Kinds of the core group that the mesh has no use for.
const OTHER_CORE_KINDS: &[&str] = &[
    "Binding",
    "ComponentStatus",
    "Endpoints",
    "Event",
    "LimitRange",
    "PersistentVolume",
    "PersistentVolumeClaim",
    "PodTemplate",
    "ReplicationController",
    "ResourceQuota",
    "Secret",
];

/// Decides by `apiVersion` and `kind`.
pub(crate) fn classify(api_version: &str, kind: &str) -> Class {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    if let Some(validated) = Validated::of(group, kind) {
        let (versions, known) = validated.versions();
        return if versions.contains(&version) {
            Class::Validated(validated)
        } else {
            Class::UnknownVersion(known)
        };
    }
    match group {
        "" => core(version, kind),
        "discovery.k8s.io" => match (kind, version) {
            ("EndpointSlice", "v1") => Class::Read(Kind::EndpointSlice),
            ("EndpointSlice", _) => Class::UnknownVersion("discovery.k8s.io/v1"),
            _ => Class::UnknownKind,
        },
        "security.istio.io" => security(version, kind),
        "networking.istio.io" => networking(version, kind),
        _ if group.ends_with(".istio.io") => Class::NotApplied,
        _ => Class::Ignored,
    }
}

fn core(version: &str, kind: &str) -> Class {
    let class = match kind {
        "Namespace" => Class::Read(Kind::Namespace),
        "Node" => Class::Read(Kind::Node),
        "Pod" => Class::Read(Kind::Pod),
        "Service" => Class::Read(Kind::Service),
        "ServiceAccount" => Class::Read(Kind::ServiceAccount),
        "ConfigMap" => Class::ConfigMap,
        _ if OTHER_CORE_KINDS.contains(&kind) => Class::Ignored,
        _ => Class::UnknownKind,
    };
    if version == "v1" || class == Class::UnknownKind { class } else { Class::UnknownVersion("v1") }
}

fn networking(version: &str, kind: &str) -> Class {
    let class = match kind {
        "DestinationRule" => Class::Read(Kind::DestinationRule),
        "VirtualService" => Class::Read(Kind::VirtualService),
        _ => return Class::UnknownKind,
    };
    match version {
        "v1" | "v1beta1" | "v1alpha3" => class,
        _ => Class::UnknownVersion("networking.istio.io/v1, v1beta1 or v1alpha3"),
    }
}

fn security(version: &str, kind: &str) -> Class {
    let class = match kind {
        "AuthorizationPolicy" => Class::Read(Kind::AuthorizationPolicy),
        "PeerAuthentication" => Class::Read(Kind::PeerAuthentication),
        "RequestAuthentication" => Class::Read(Kind::RequestAuthentication),
        _ => return Class::UnknownKind,
    };
    match version {
        "v1" | "v1beta1" => class,
        _ => Class::UnknownVersion("security.istio.io/v1 or security.istio.io/v1beta1"),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::decode::yaml;

    fn is_known(group: &str, version: &str, kind: &str) -> bool {
        let class = classify(&format!("{group}/{version}"), kind);
        matches!(class, Class::Read(_) | Class::Validated(_))
    }

    /// A cluster without Istio gets its kinds from `deploy/crds`, in just the versions that are read here.
    #[test]
    fn definitions_for_clusters_without_istio_serve_what_is_decoded() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/crds");
        let mut definitions = 0;
        for file in std::fs::read_dir(&folder).unwrap() {
            let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
            let crd = yaml::read(&text, 1).unwrap();
            let spec = &crd["spec"];
            let (group, kind) = (spec["group"].as_str().unwrap(), spec["names"]["kind"].as_str().unwrap());
            for version in ["v1", "v1beta1", "v1alpha3", "v1alpha1"] {
                let is_served = spec["versions"].as_array().unwrap().iter().any(|v| v["name"] == version);
                assert_eq!(is_served, is_known(group, version, kind), "{kind} {group}/{version}");
            }
            definitions += 1;
        }
        assert_eq!(definitions, 15, "a kind was added or removed: the same belongs in xtask/src/crd.rs");
    }
}
