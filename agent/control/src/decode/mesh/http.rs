//! The part of MeshConfig that only HTTP uses (C-1).

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use weft_core::resource::destination_rule::PoolDefaults;
use weft_core::resource::virtual_service::Retries;
use weft_core::resource::{ExtAuthz, MeshHttp, PathNormalization};

use super::super::destination_rule::{self, KeepAliveWire, LocalityWire, PolicyWire};
use super::super::fields::{List, Pairs, PortOrName, Text, nullable};
use super::super::networking::Reader;
use super::super::networking::numbers::{Signed, Unsigned};
use super::super::report::Path;
use super::super::validate;

/// How long an authoriser may take by default (AP-17).
const AUTHORISER_TIMEOUT: Duration = Duration::from_secs(600);

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
#[serde(expecting = "a map of fields")]
pub(super) struct HttpWire<'a> {
    #[serde(borrow, default, deserialize_with = "nullable")]
    path_normalization: NormalizationWire<'a>,
    #[serde(borrow, default)]
    default_http_retry_policy: Option<RetriesWire<'a>>,
    #[serde(borrow, default)]
    extension_providers: List<ProviderWire<'a>>,
    #[serde(default, deserialize_with = "nullable")]
    default_config: DefaultConfigWire,
    #[serde(borrow, default)]
    connect_timeout: Option<Text<'a>>,
    #[serde(borrow, default)]
    tcp_keepalive: Option<KeepAliveWire<'a>>,
    #[serde(borrow, default)]
    h2_upgrade_policy: Option<Text<'a>>,
    #[serde(borrow, default)]
    locality_lb_setting: Option<LocalityWire<'a>>,
    #[serde(borrow, default)]
    default_traffic_policy: Option<PolicyWire<'a>>,
    #[serde(borrow, default)]
    protocol_detection_timeout: Option<Text<'a>>,
}

#[derive(Default, Deserialize)]
#[serde(expecting = "a map with `normalization`")]
struct NormalizationWire<'a> {
    #[serde(borrow, default)]
    normalization: Text<'a>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
#[serde(expecting = "a map of fields")]
struct RetriesWire<'a> {
    #[serde(default)]
    attempts: Signed,
    #[serde(borrow, default)]
    per_try_timeout: Option<Text<'a>>,
    #[serde(borrow, default)]
    retry_on: Text<'a>,
    #[serde(default)]
    retry_remote_localities: Option<bool>,
    #[serde(default)]
    retry_ignore_previous_hosts: Option<bool>,
    #[serde(borrow, default)]
    backoff: Option<Text<'a>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
#[serde(expecting = "a map of fields")]
struct DefaultConfigWire {
    #[serde(default, deserialize_with = "nullable")]
    gateway_topology: TopologyWire,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
#[serde(expecting = "a map of fields")]
struct TopologyWire {
    #[serde(default)]
    num_trusted_proxies: Unsigned,
}

/// Providers of other kinds (tracing, access logs) are not read here.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[serde(expecting = "a provider")]
struct ProviderWire<'a> {
    #[serde(borrow, default)]
    name: Text<'a>,
    #[serde(borrow, default)]
    envoy_ext_authz_http: Option<AuthoriserWire<'a>>,
    #[serde(borrow, default)]
    envoy_ext_authz_grpc: Option<AuthoriserWire<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[serde(expecting = "a map of fields")]
struct AuthoriserWire<'a> {
    #[serde(borrow, default)]
    service: Text<'a>,
    // Numbers in quotes are numbers too, as Istio's documents write them.
    #[serde(borrow, default)]
    port: PortOrName<'a>,
    #[serde(borrow, default)]
    timeout: Option<Text<'a>>,
    #[serde(default, deserialize_with = "nullable")]
    fail_open: bool,
    #[serde(borrow, default)]
    status_on_error: Text<'a>,
    #[serde(borrow, default)]
    path_prefix: Text<'a>,
    // The second spelling is deprecated, and still common.
    #[serde(borrow, default)]
    include_request_headers_in_check: List<Text<'a>>,
    #[serde(borrow, default)]
    include_headers_in_check: List<Text<'a>>,
    #[serde(borrow, default)]
    include_additional_headers_in_check: Pairs<'a>,
    #[serde(default)]
    include_request_body_in_check: Option<BodyWire>,
    #[serde(borrow, default)]
    headers_to_upstream_on_allow: List<Text<'a>>,
    #[serde(borrow, default)]
    headers_to_downstream_on_deny: List<Text<'a>>,
    #[serde(borrow, default)]
    headers_to_downstream_on_allow: List<Text<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[serde(expecting = "a map of fields")]
struct BodyWire {
    #[serde(default)]
    max_request_bytes: Unsigned,
    #[serde(default, deserialize_with = "nullable")]
    allow_partial_message: bool,
}

/// Reads the settings; `at` is the place of the MeshConfig.
pub(super) fn settings(wire: &HttpWire<'_>, at: &Path<'_>, reader: &mut Reader<'_, '_>) -> MeshHttp {
    let retries = wire.default_http_retry_policy.as_ref();
    let trusted = wire.default_config.gateway_topology.num_trusted_proxies.get();
    MeshHttp {
        path_normalization: normalization(&wire.path_normalization, at, reader),
        default_retries: retries
            .map(|wire| default_retries(wire, &at.field("defaultHttpRetryPolicy"), reader)),
        ext_authz: authorisers(&wire.extension_providers, &at.field("extensionProviders"), reader),
        trusted_proxies: u32::try_from(trusted).unwrap_or(u32::MAX),
        locality: wire
            .locality_lb_setting
            .as_ref()
            .map(|wire| destination_rule::locality(wire, None, &at.field("localityLbSetting"), reader)),
        pool: pool(wire, at, reader),
        traffic_policy: wire.default_traffic_policy.as_ref().map(|wire| {
            Arc::new(destination_rule::traffic_policy(wire, &at.field("defaultTrafficPolicy"), reader))
        }),
        detection_timeout: detection_timeout(wire, at, reader),
    }
}

/// Zero switches the limit off, as in Istio.
fn detection_timeout(wire: &HttpWire<'_>, at: &Path<'_>, reader: &mut Reader<'_, '_>) -> Option<Duration> {
    let text = wire.protocol_detection_timeout.as_ref();
    let at = at.field("protocolDetectionTimeout");
    match reader.any_duration(text, &at)? {
        0 => Some(Duration::ZERO),
        _ => reader.duration(text, &at),
    }
}

/// What stands behind every connection pool.
fn pool(wire: &HttpWire<'_>, at: &Path<'_>, reader: &mut Reader<'_, '_>) -> PoolDefaults {
    let keepalive = wire.tcp_keepalive.as_ref();
    PoolDefaults {
        connect_timeout: reader.duration(wire.connect_timeout.as_ref(), &at.field("connectTimeout")),
        tcp_keepalive: keepalive
            .map(|wire| destination_rule::keep_alive(wire, &at.field("tcpKeepalive"), reader)),
        h2_upgrade: destination_rule::upgrade(
            wire.h2_upgrade_policy.as_ref(),
            &at.field("h2UpgradePolicy"),
            reader,
        ),
    }
}

fn normalization(
    wire: &NormalizationWire<'_>,
    at: &Path<'_>,
    reader: &mut Reader<'_, '_>,
) -> Option<PathNormalization> {
    match wire.normalization.as_str() {
        "" | "DEFAULT" => None,
        "NONE" => Some(PathNormalization::None),
        "BASE" => Some(PathNormalization::Base),
        "MERGE_SLASHES" => Some(PathNormalization::MergeSlashes),
        "DECODE_AND_MERGE_SLASHES" => Some(PathNormalization::DecodeAndMergeSlashes),
        other => {
            let message = format!("`{other}` is not a level of normalisation.");
            let fix = "Write NONE, BASE, MERGE_SLASHES or DECODE_AND_MERGE_SLASHES.";
            reader.report.reject(at.field("pathNormalization").field("normalization"), message, fix);
            None
        }
    }
}

fn default_retries(wire: &RetriesWire<'_>, at: &Path<'_>, reader: &mut Reader<'_, '_>) -> Retries {
    let attempts = wire.attempts.get();
    let on = wire.retry_on.as_str().split(',').map(str::trim).filter(|condition| !condition.is_empty());
    let on = on.map(|condition| reader.text(condition)).collect();
    Retries {
        attempts: u32::try_from(attempts).unwrap_or_else(|_| {
            let message = format!("{attempts} is not a number of attempts.");
            reader.report.reject(at.field("attempts"), message, "Write 0 or more.");
            0
        }),
        per_try_timeout: reader.duration(wire.per_try_timeout.as_ref(), &at.field("perTryTimeout")),
        on,
        ignore_previous_hosts: wire.retry_ignore_previous_hosts,
        remote_localities: wire.retry_remote_localities,
        backoff: reader.duration(wire.backoff.as_ref(), &at.field("backoff")),
    }
}

fn authorisers(
    wires: &List<ProviderWire<'_>>,
    at: &Path<'_>,
    reader: &mut Reader<'_, '_>,
) -> Vec<Arc<ExtAuthz>> {
    let mut found: Vec<Arc<ExtAuthz>> = Vec::new();
    for (index, wire) in wires.items.iter().enumerate() {
        let at = at.index(index);
        let (authoriser, field, grpc) = match (&wire.envoy_ext_authz_http, &wire.envoy_ext_authz_grpc) {
            (Some(authoriser), _) => (authoriser, "envoyExtAuthzHttp", false),
            (None, Some(authoriser)) => (authoriser, "envoyExtAuthzGrpc", true),
            (None, None) => continue,
        };
        if let Some(read) = authoriser.read(grpc, &at.field(field), reader) {
            let name = reader.text(wire.name.as_str());
            if found.iter().any(|known| known.name == name) {
                let message = format!("There are two providers `{name}`.");
                reader.report.reject(at.field("name"), message, "Give each a name of its own.");
            }
            found.push(Arc::new(ExtAuthz { name, ..read }));
        }
    }
    found
}

impl AuthoriserWire<'_> {
    /// `None` after a rejection.
    fn read(&self, grpc: bool, at: &Path<'_>, reader: &mut Reader<'_, '_>) -> Option<ExtAuthz> {
        let Some(service) = self.service.non_empty() else {
            reader.report.reject(at.field("service"), "The provider has no service.", "Name its host.");
            return None;
        };
        let service = reader.text(service);
        let port = self.port(at, reader)?;
        let body = self.include_request_body_in_check.as_ref();
        let names = |list: &List<Text<'_>>| -> Vec<Arc<str>> {
            list.items.iter().map(|name| name.as_str().to_ascii_lowercase().into()).collect()
        };
        let mut include = names(&self.include_request_headers_in_check);
        include.extend(names(&self.include_headers_in_check));
        let additional = self.include_additional_headers_in_check.0.iter();
        Some(ExtAuthz {
            name: Arc::default(),
            grpc,
            service,
            port,
            timeout: reader
                .duration(self.timeout.as_ref(), &at.field("timeout"))
                .unwrap_or(AUTHORISER_TIMEOUT),
            fail_open: self.fail_open,
            status_on_error: self.status_on_error(at, reader),
            path_prefix: reader.optional(&self.path_prefix),
            include_request_headers: include,
            include_additional_headers: additional
                .map(|(name, value)| (name.as_str().to_ascii_lowercase().into(), value.as_str().into()))
                .collect(),
            include_body: body.map(|body| {
                let most = u32::try_from(body.max_request_bytes.get()).unwrap_or(u32::MAX);
                (most, body.allow_partial_message)
            }),
            headers_to_upstream_on_allow: names(&self.headers_to_upstream_on_allow),
            headers_to_downstream_on_deny: names(&self.headers_to_downstream_on_deny),
            headers_to_downstream_on_allow: names(&self.headers_to_downstream_on_allow),
        })
    }

    fn port(&self, at: &Path<'_>, reader: &mut Reader<'_, '_>) -> Option<u16> {
        let port = match &self.port {
            PortOrName::Absent => None,
            PortOrName::Number(port) => Some(*port),
            PortOrName::Name(text) => validate::port(text.as_str()),
        };
        if port.is_none() {
            let message = "The provider has no port.";
            reader.report.reject(at.field("port"), message, "Write a number from 1 to 65535.");
        }
        port
    }

    fn status_on_error(&self, at: &Path<'_>, reader: &mut Reader<'_, '_>) -> u16 {
        const DEFAULT: u16 = 403;
        let Some(text) = self.status_on_error.non_empty() else { return DEFAULT };
        let status = text.parse().ok().filter(|status| (200..=599).contains(status));
        status.unwrap_or_else(|| {
            let message = format!("`{text}` is not an HTTP status.");
            reader.report.reject(at.field("statusOnError"), message, "Write for example \"503\".");
            DEFAULT
        })
    }
}
