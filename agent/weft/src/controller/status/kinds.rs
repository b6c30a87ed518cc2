//! The kinds of Istio whose objects get a status, and which of them a cluster has.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::APIResource;
use kube::Client;
use kube::core::{ApiResource, GroupVersionKind};

/// API group, kind, resource, and the versions that the decoder reads, the preferred one first.
const KINDS: &[(&str, &str, &str, &[&str])] = &[
    ("networking.istio.io", "VirtualService", "virtualservices", &["v1", "v1beta1", "v1alpha3"]),
    ("networking.istio.io", "DestinationRule", "destinationrules", &["v1", "v1beta1", "v1alpha3"]),
    ("networking.istio.io", "Gateway", "gateways", &["v1", "v1beta1", "v1alpha3"]),
    ("networking.istio.io", "ServiceEntry", "serviceentries", &["v1", "v1beta1", "v1alpha3"]),
    ("networking.istio.io", "Sidecar", "sidecars", &["v1", "v1beta1", "v1alpha3"]),
    ("networking.istio.io", "WorkloadEntry", "workloadentries", &["v1", "v1beta1", "v1alpha3"]),
    ("networking.istio.io", "WorkloadGroup", "workloadgroups", &["v1", "v1beta1", "v1alpha3"]),
    ("networking.istio.io", "EnvoyFilter", "envoyfilters", &["v1alpha3"]),
    ("networking.istio.io", "ProxyConfig", "proxyconfigs", &["v1beta1"]),
    ("security.istio.io", "AuthorizationPolicy", "authorizationpolicies", &["v1", "v1beta1"]),
    ("security.istio.io", "PeerAuthentication", "peerauthentications", &["v1", "v1beta1"]),
    ("security.istio.io", "RequestAuthentication", "requestauthentications", &["v1", "v1beta1"]),
    ("telemetry.istio.io", "Telemetry", "telemetries", &["v1", "v1alpha1"]),
    ("extensions.istio.io", "WasmPlugin", "wasmplugins", &["v1alpha1"]),
    ("extensions.istio.io", "TrafficExtension", "trafficextensions", &["v1alpha1"]),
];

/// The kind of this name, if its objects get a status.
pub(super) fn name(kind: &str) -> Option<&'static str> {
    KINDS.iter().map(|(_, known, ..)| *known).find(|known| *known == kind)
}

/// A kind as the cluster serves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Served {
    /// What requests need.
    pub(super) resource: ApiResource,
    /// Its objects have a status that can be written by itself.
    pub(super) has_status: bool,
}

/// Which of the kinds the cluster serves now, by kind.
pub(super) async fn served(client: &Client) -> Result<BTreeMap<&'static str, Served>, kube::Error> {
    let groups = client.list_api_groups().await?;
    let mut lists = BTreeMap::new();
    for group in groups.groups.iter().filter(|group| KINDS.iter().any(|(of, ..)| group.name == *of)) {
        for version in &group.versions {
            // A version that goes away in between is none.
            match client.list_api_group_resources(&version.group_version).await {
                Ok(list) => drop(lists.insert(version.group_version.clone(), list.resources)),
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(choose(&lists))
}

/// The preferred version of each kind, from the resources of each `group/version`.
fn choose(lists: &BTreeMap<String, Vec<APIResource>>) -> BTreeMap<&'static str, Served> {
    let mut chosen = BTreeMap::new();
    for (group, kind, plural, versions) in KINDS {
        let served = versions.iter().find_map(|version| {
            let resources = lists.get(&format!("{group}/{version}"))?;
            resources.iter().find(|resource| resource.name == *plural && resource.kind == *kind)?;
            let status = format!("{plural}/status");
            let has_status = resources.iter().any(|resource| resource.name == status);
            let gvk = GroupVersionKind::gvk(group, version, kind);
            Some(Served { resource: ApiResource::from_gvk_with_plural(&gvk, plural), has_status })
        });
        if let Some(served) = served {
            chosen.insert(*kind, served);
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(name: &str, kind: &str) -> APIResource {
        APIResource { name: name.to_owned(), kind: kind.to_owned(), ..APIResource::default() }
    }

    #[test]
    fn the_preferred_version_is_taken_and_a_missing_status_is_seen() {
        let service = || resource("virtualservices", "VirtualService");
        let lists = BTreeMap::from([
            (
                "networking.istio.io/v1alpha3".to_owned(),
                vec![service(), resource("envoyfilters", "EnvoyFilter")],
            ),
            (
                "networking.istio.io/v1".to_owned(),
                vec![service(), resource("virtualservices/status", "VirtualService")],
            ),
            ("networking.istio.io/v9".to_owned(), vec![resource("sidecars", "Sidecar")]),
        ]);
        let chosen = choose(&lists);
        assert_eq!(chosen.keys().copied().collect::<Vec<_>>(), ["EnvoyFilter", "VirtualService"]);
        assert_eq!(chosen["VirtualService"].resource.api_version, "networking.istio.io/v1");
        assert!(chosen["VirtualService"].has_status && !chosen["EnvoyFilter"].has_status);
    }

    #[test]
    fn every_kind_is_one_that_the_decoder_knows_in_all_its_versions() {
        use weft_control::decode::{Decoder, Trust};

        for (group, kind, _, versions) in KINDS {
            for version in *versions {
                let text = format!(
                    r#"{{"apiVersion":"{group}/{version}","kind":"{kind}","metadata":{{"name":"a","namespace":"b"}}}}"#
                );
                let mut out = Vec::new();
                Decoder::new(Trust::Api).json(&text, None, &mut out);
                let unknown = out[0].problems.iter().any(|problem| problem.code == "WEFT0004");
                assert!(!unknown, "{group}/{version} {kind}");
            }
        }
    }
}
