//! Settings of Istio's that people write, and that mean nothing here: said, instead of silently passed over.
//!
//! What only concerns sidecars themselves (their resources, their start, their tags) is not among them.

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::super::networking::Reader;
use super::super::report::Path;

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
#[serde(expecting = "a map of fields")]
pub(super) struct UnappliedWire {
    #[serde(default)]
    enable_auto_mtls: Option<bool>,
    #[serde(default)]
    default_inbound_http_retry_policy: Option<IgnoredAny>,
    #[serde(rename = "meshMTLS", default)]
    mesh_mtls: Option<IgnoredAny>,
    #[serde(default)]
    tls_defaults: Option<IgnoredAny>,
    #[serde(default)]
    inbound_traffic_policy: Option<IgnoredAny>,
    #[serde(default)]
    service_settings: Option<IgnoredAny>,
    #[serde(default)]
    default_config: Option<DefaultConfigWire>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
#[serde(expecting = "a map of fields")]
struct DefaultConfigWire {
    #[serde(default)]
    proxy_headers: Option<IgnoredAny>,
}

/// Reports them; `at` is the place of the MeshConfig.
pub(super) fn report(wire: &UnappliedWire, at: &Path<'_>, reader: &mut Reader<'_, '_>) {
    if wire.enable_auto_mtls == Some(false) {
        let at = at.field("enableAutoMtls");
        reader.not_applied(
            at,
            "pods of the mesh speak mTLS with each other unless a DestinationRule says DISABLE",
        );
    }
    let tunnels = "tunnels speak TLS 1.3 with AES-GCM";
    let fields = [
        (
            "defaultInboundHttpRetryPolicy",
            &wire.default_inbound_http_retry_policy,
            "the server's side leaves retries to the client's",
        ),
        ("meshMTLS", &wire.mesh_mtls, tunnels),
        ("tlsDefaults", &wire.tls_defaults, tunnels),
        (
            "inboundTrafficPolicy",
            &wire.inbound_traffic_policy,
            "ports that no Service declares are passed through",
        ),
        ("serviceSettings", &wire.service_settings, "there is one cluster"),
    ];
    for (name, _, why) in fields.into_iter().filter(|(_, written, _)| written.is_some()) {
        reader.not_applied(at.field(name), why);
    }
    if wire.default_config.as_ref().is_some_and(|config| config.proxy_headers.is_some()) {
        let at = at.field("defaultConfig");
        reader.not_applied(at.field("proxyHeaders"), "all of Envoy's usual headers are set (H-3)");
    }
}
