//! DestinationRule as it is written. Unknown fields are errors: a misspelt limit would limit nothing.

use serde::Deserialize;

use super::super::fields::{List, Pairs, Text, written_texts};
use super::super::networking::PortWire;
use super::super::networking::numbers::{Signed, Size, Unsigned, Whole};
use super::super::validate::SelectorWire;

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[serde(expecting = "a map of fields")]
pub(super) struct SpecWire<'a> {
    #[serde(borrow, default)]
    pub(super) host: Text<'a>,
    #[serde(borrow, default)]
    pub(super) traffic_policy: Option<PolicyWire<'a>>,
    #[serde(borrow, default)]
    pub(super) subsets: List<SubsetWire<'a>>,
    #[serde(borrow, default, deserialize_with = "written_texts")]
    pub(super) export_to: List<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) workload_selector: Option<SelectorWire<'a>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[serde(expecting = "a subset")]
pub(super) struct SubsetWire<'a> {
    #[serde(borrow, default)]
    pub(super) name: Text<'a>,
    #[serde(borrow, default)]
    pub(super) labels: Pairs<'a>,
    #[serde(borrow, default)]
    pub(super) traffic_policy: Option<PolicyWire<'a>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[serde(expecting = "a map of fields")]
pub(in super::super) struct PolicyWire<'a> {
    #[serde(borrow, default)]
    pub(super) load_balancer: Option<LoadBalancerWire<'a>>,
    #[serde(borrow, default)]
    pub(super) connection_pool: Option<PoolWire<'a>>,
    #[serde(borrow, default)]
    pub(super) outlier_detection: Option<OutlierWire<'a>>,
    #[serde(borrow, default)]
    pub(super) tls: Option<TlsWire<'a>>,
    #[serde(borrow, default)]
    pub(super) port_level_settings: List<PortPolicyWire<'a>>,
    #[serde(borrow, default)]
    pub(super) tunnel: Option<TunnelWire<'a>>,
    #[serde(borrow, default)]
    pub(super) proxy_protocol: Option<ProxyProtocolWire<'a>>,
    #[serde(borrow, default)]
    pub(super) retry_budget: Option<RetryBudgetWire<'a>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[serde(expecting = "a map of fields")]
pub(super) struct PortPolicyWire<'a> {
    #[serde(default)]
    pub(super) port: Option<PortWire>,
    #[serde(borrow, default)]
    pub(super) load_balancer: Option<LoadBalancerWire<'a>>,
    #[serde(borrow, default)]
    pub(super) connection_pool: Option<PoolWire<'a>>,
    #[serde(borrow, default)]
    pub(super) outlier_detection: Option<OutlierWire<'a>>,
    #[serde(borrow, default)]
    pub(super) tls: Option<TlsWire<'a>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[serde(expecting = "a map of fields")]
pub(super) struct LoadBalancerWire<'a> {
    #[serde(borrow, default)]
    pub(super) simple: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) consistent_hash: Option<HashWire<'a>>,
    #[serde(borrow, default)]
    pub(super) backend_utilization: Option<UtilizationWire<'a>>,
    #[serde(borrow, default)]
    pub(super) locality_lb_setting: Option<LocalityWire<'a>>,
    #[serde(borrow, default)]
    pub(super) zone_aware_lb_setting: Option<ZoneWire<'a>>,
    #[serde(borrow, default)]
    pub(super) warmup_duration_secs: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) warmup: Option<WarmupWire<'a>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[serde(expecting = "a map of fields")]
pub(super) struct HashWire<'a> {
    #[serde(borrow, default)]
    pub(super) http_header_name: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) http_cookie: Option<CookieWire<'a>>,
    #[serde(default)]
    pub(super) use_source_ip: Option<bool>,
    #[serde(borrow, default)]
    pub(super) http_query_parameter_name: Option<Text<'a>>,
    #[serde(default)]
    pub(super) ring_hash: Option<RingWire>,
    #[serde(default)]
    pub(super) maglev: Option<MaglevWire>,
    #[serde(default)]
    pub(super) minimum_ring_size: Size,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(expecting = "a map with `name`")]
pub(super) struct CookieWire<'a> {
    #[serde(borrow, default)]
    pub(super) name: Text<'a>,
    #[serde(borrow, default)]
    pub(super) path: Text<'a>,
    #[serde(borrow, default)]
    pub(super) ttl: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) attributes: List<AttributeWire<'a>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(expecting = "a map with `name` and `value`")]
pub(super) struct AttributeWire<'a> {
    #[serde(borrow, default)]
    pub(super) name: Text<'a>,
    #[serde(borrow, default)]
    pub(super) value: Text<'a>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[serde(expecting = "a map with `minimumRingSize`")]
pub(super) struct RingWire {
    #[serde(default)]
    pub(super) minimum_ring_size: Size,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[serde(expecting = "a map with `tableSize`")]
pub(super) struct MaglevWire {
    #[serde(default)]
    pub(super) table_size: Size,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[serde(expecting = "a map of fields")]
pub(super) struct UtilizationWire<'a> {
    #[serde(borrow, default)]
    pub(super) weight_expiration_period: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) weight_stabilization_period: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) weight_update_period: Option<Text<'a>>,
    #[serde(rename = "errorUtilizationPenaltyPercent", default)]
    pub(super) _penalty: Unsigned,
    #[serde(
        rename = "metricNamesForComputingUtilization",
        borrow,
        default,
        deserialize_with = "written_texts"
    )]
    pub(super) _metrics: List<Text<'a>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[serde(expecting = "a map of fields")]
pub(in super::super) struct LocalityWire<'a> {
    #[serde(borrow, default)]
    pub(super) distribute: List<DistributeWire<'a>>,
    #[serde(borrow, default)]
    pub(super) failover: List<FailoverWire<'a>>,
    #[serde(borrow, default, deserialize_with = "written_texts")]
    pub(super) failover_priority: List<Text<'a>>,
    #[serde(default)]
    pub(super) enabled: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(expecting = "a map with `from` and `to`")]
pub(super) struct DistributeWire<'a> {
    #[serde(borrow, default)]
    pub(super) from: Text<'a>,
    #[serde(borrow, default)]
    pub(super) to: Pairs<'a, Unsigned>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(expecting = "a map with `from` and `to`")]
pub(super) struct FailoverWire<'a> {
    #[serde(borrow, default)]
    pub(super) from: Text<'a>,
    #[serde(borrow, default)]
    pub(super) to: Text<'a>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[serde(expecting = "a map of fields")]
pub(super) struct ZoneWire<'a> {
    #[serde(borrow, default)]
    pub(super) failover: List<FailoverWire<'a>>,
    #[serde(borrow, default, deserialize_with = "written_texts")]
    pub(super) failover_priority: List<Text<'a>>,
    #[serde(default)]
    pub(super) enabled: Option<bool>,
    #[serde(rename = "minClusterSize", default)]
    pub(super) _min_cluster_size: Whole<1, { u32::MAX as i64 }>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[serde(expecting = "a map with `duration`")]
pub(super) struct WarmupWire<'a> {
    #[serde(borrow, default)]
    pub(super) duration: Option<Text<'a>>,
    #[serde(default)]
    pub(super) minimum_percent: Option<f64>,
    #[serde(default)]
    pub(super) aggression: Option<f64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(expecting = "a map with `tcp` and `http`")]
pub(super) struct PoolWire<'a> {
    #[serde(borrow, default)]
    pub(super) tcp: Option<TcpWire<'a>>,
    #[serde(borrow, default)]
    pub(super) http: Option<HttpWire<'a>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[serde(expecting = "a map of fields")]
pub(super) struct TcpWire<'a> {
    #[serde(default)]
    pub(super) max_connections: Signed,
    #[serde(borrow, default)]
    pub(super) connect_timeout: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) max_connection_duration: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) idle_timeout: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) tcp_keepalive: Option<KeepAliveWire<'a>>,
}

/// `tcpKeepalive`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(expecting = "a map of fields")]
pub(in super::super) struct KeepAliveWire<'a> {
    #[serde(default)]
    pub(super) probes: Unsigned,
    #[serde(borrow, default)]
    pub(super) time: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) interval: Option<Text<'a>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(expecting = "a map with `interval` and `timeout`")]
pub(super) struct Http2KeepAliveWire<'a> {
    #[serde(borrow, default)]
    pub(super) interval: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) timeout: Option<Text<'a>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[serde(expecting = "a map of fields")]
pub(super) struct HttpWire<'a> {
    #[serde(default)]
    pub(super) http1_max_pending_requests: Signed,
    #[serde(default)]
    pub(super) http2_max_requests: Signed,
    #[serde(default)]
    pub(super) max_requests_per_connection: Signed,
    #[serde(default)]
    pub(super) max_retries: Signed,
    #[serde(borrow, default)]
    pub(super) idle_timeout: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) h2_upgrade_policy: Option<Text<'a>>,
    #[serde(default)]
    pub(super) use_client_protocol: Option<bool>,
    #[serde(default)]
    pub(super) max_concurrent_streams: Signed,
    #[serde(rename = "http2KeepAlive", borrow, default)]
    pub(super) http2_keep_alive: Option<Http2KeepAliveWire<'a>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[serde(expecting = "a map of fields")]
pub(super) struct OutlierWire<'a> {
    #[serde(default)]
    pub(super) consecutive_errors: Signed,
    #[serde(rename = "consecutive5xxErrors", default)]
    pub(super) consecutive_5xx_errors: Unsigned,
    #[serde(default)]
    pub(super) consecutive_gateway_errors: Unsigned,
    #[serde(default)]
    pub(super) consecutive_local_origin_failures: Unsigned,
    #[serde(default)]
    pub(super) split_external_local_origin_errors: Option<bool>,
    #[serde(borrow, default)]
    pub(super) interval: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) base_ejection_time: Option<Text<'a>>,
    #[serde(default)]
    pub(super) max_ejection_percent: Signed,
    #[serde(default)]
    pub(super) min_health_percent: Signed,
    #[serde(default)]
    pub(super) outlier_detection_http_error_codes: List<Whole<100, 599>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[serde(expecting = "a map of fields")]
pub(super) struct TlsWire<'a> {
    #[serde(borrow, default)]
    pub(super) mode: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) client_certificate: Text<'a>,
    #[serde(borrow, default)]
    pub(super) private_key: Text<'a>,
    #[serde(borrow, default)]
    pub(super) ca_certificates: Text<'a>,
    #[serde(borrow, default)]
    pub(super) ca_crl: Text<'a>,
    #[serde(borrow, default)]
    pub(super) credential_name: Text<'a>,
    #[serde(borrow, default, deserialize_with = "written_texts")]
    pub(super) subject_alt_names: List<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) sni: Text<'a>,
    #[serde(default)]
    pub(super) insecure_skip_verify: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[serde(expecting = "a map of fields")]
pub(super) struct TunnelWire<'a> {
    #[serde(borrow, default)]
    pub(super) protocol: Text<'a>,
    #[serde(borrow, default)]
    pub(super) target_host: Text<'a>,
    #[serde(default)]
    pub(super) target_port: Unsigned,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(expecting = "a map with `version`")]
pub(super) struct ProxyProtocolWire<'a> {
    #[serde(borrow, default)]
    pub(super) version: Option<Text<'a>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[serde(expecting = "a map of fields")]
pub(super) struct RetryBudgetWire<'a> {
    #[serde(default)]
    pub(super) percent: Option<f64>,
    #[serde(default)]
    pub(super) min_retry_concurrency: Unsigned,
    #[serde(borrow, default)]
    pub(super) budget_interval: Option<Text<'a>>,
}
