//! Settings for the whole mesh (MeshConfig, C-1).

use std::sync::Arc;
use std::time::Duration;

use super::NamespacedName;
use super::destination_rule::{LocalitySetting, PoolDefaults, TrafficPolicy};
use super::label_selector::LabelSelector;
use super::virtual_service::{ExportTo, Retries};
use crate::access_format::AccessFormat;

/// Mesh-wide settings (C-1), the part that L4 uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeshConfig {
    /// Namespace and name of the ConfigMap.
    pub key: NamespacedName,
    /// `trustDomain`.
    pub trust_domain: Option<Arc<str>>,
    /// `trustDomainAliases`.
    pub trust_domain_aliases: Vec<Arc<str>>,
    /// `rootNamespace`.
    pub root_namespace: Option<Arc<str>>,
    /// `accessLogFile` is set (to anything but the empty string), or `envoy` is the default provider of access logs.
    pub access_log: bool,
    /// `accessLogEncoding: JSON`.
    pub access_log_json: bool,
    /// `accessLogFormat` (L-5).
    pub access_log_format: Option<Arc<AccessFormat>>,
    /// `outboundTrafficPolicy.mode: REGISTRY_ONLY`.
    pub registry_only: bool,
    /// Own extension `weft.sameNode: encrypt` (ruling 4).
    pub encrypt_same_node: bool,
    /// Who sees objects that do not say it.
    pub exports: ExportDefaults,
    /// `discoverySelectors`: only namespaces that one of them selects count; empty is all.
    pub discovery_selectors: Arc<[LabelSelector]>,
    /// What HTTP uses.
    pub http: MeshHttp,
}

impl MeshConfig {
    /// Settings that say nothing: what a mesh without any has.
    pub fn new(key: NamespacedName) -> Self {
        Self {
            key,
            trust_domain: None,
            trust_domain_aliases: Vec::new(),
            root_namespace: None,
            access_log: false,
            access_log_json: false,
            access_log_format: None,
            registry_only: false,
            encrypt_same_node: false,
            exports: ExportDefaults::default(),
            discovery_selectors: Arc::default(),
            http: MeshHttp::default(),
        }
    }
}

/// Who sees objects without an `exportTo` of their own; an empty list is everybody.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExportDefaults {
    /// `defaultServiceExportTo`.
    pub services: Vec<ExportTo>,
    /// `defaultVirtualServiceExportTo`.
    pub virtual_services: Vec<ExportTo>,
    /// `defaultDestinationRuleExportTo`.
    pub destination_rules: Vec<ExportTo>,
}

/// Settings of MeshConfig that only HTTP uses (C-1).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MeshHttp {
    /// `pathNormalization.normalization`; `None` is the default, BASE.
    pub path_normalization: Option<PathNormalization>,
    /// `defaultHttpRetryPolicy`.
    pub default_retries: Option<Retries>,
    /// `extensionProviders` of ext_authz, by name (AP-17).
    pub ext_authz: Vec<Arc<ExtAuthz>>,
    /// `defaultConfig.gatewayTopology.numTrustedProxies`: addresses of `x-forwarded-for` that proxies in front of
    /// the mesh added (AP-8).
    pub trusted_proxies: u32,
    /// `localityLbSetting` (D-10).
    pub locality: Option<Arc<LocalitySetting>>,
    /// `connectTimeout`, `tcpKeepalive`, `h2UpgradePolicy`.
    pub pool: PoolDefaults,
    /// `defaultTrafficPolicy`: what holds where a DestinationRule leaves a block out (D-21).
    pub traffic_policy: Option<Arc<TrafficPolicy>>,
    /// `protocolDetectionTimeout`: how long both sides of a connection of which nobody says what it speaks may be
    /// silent before it counts as something else than HTTP; zero is for ever, and `None` the agent's own.
    pub detection_timeout: Option<Duration>,
}

/// `pathNormalization.normalization` (H-10, E44).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathNormalization {
    /// NONE.
    None,
    /// BASE, DEFAULT.
    Base,
    /// MERGE_SLASHES.
    MergeSlashes,
    /// DECODE_AND_MERGE_SLASHES.
    DecodeAndMergeSlashes,
}

/// An entry of `extensionProviders` with `envoyExtAuthzHttp` or `envoyExtAuthzGrpc`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtAuthz {
    /// `name`.
    pub name: Arc<str>,
    /// gRPC instead of HTTP.
    pub grpc: bool,
    /// `service`: host, also as `namespace/host`.
    pub service: Arc<str>,
    /// `port`.
    pub port: u16,
    /// `timeout`, 600 s by default.
    pub timeout: Duration,
    /// `failOpen`.
    pub fail_open: bool,
    /// `statusOnError`, 403 by default.
    pub status_on_error: u16,
    /// `pathPrefix` (HTTP).
    pub path_prefix: Option<Arc<str>>,
    /// `includeRequestHeadersInCheck` (HTTP): names in lower case, `*` at an end as in AP-5.
    pub include_request_headers: Vec<Arc<str>>,
    /// `includeAdditionalHeadersInCheck` (HTTP).
    pub include_additional_headers: Vec<(Arc<str>, Arc<str>)>,
    /// `includeRequestBodyInCheck`: most bytes, and whether a larger body is cut instead of refused.
    pub include_body: Option<(u32, bool)>,
    /// `headersToUpstreamOnAllow` (HTTP).
    pub headers_to_upstream_on_allow: Vec<Arc<str>>,
    /// `headersToDownstreamOnDeny` (HTTP).
    pub headers_to_downstream_on_deny: Vec<Arc<str>>,
    /// `headersToDownstreamOnAllow` (HTTP).
    pub headers_to_downstream_on_allow: Vec<Arc<str>>,
}
