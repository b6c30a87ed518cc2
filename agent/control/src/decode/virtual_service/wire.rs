//! VirtualService as it is written. Unknown fields are errors: a misspelt condition would match everything.

use serde::Deserialize;

use super::super::fields::{List, Pairs, Text, written_texts};
use super::super::networking::PortWire;
use super::super::networking::numbers::{Signed, Unsigned};

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[serde(expecting = "a map of fields")]
pub(super) struct SpecWire<'a> {
    #[serde(borrow, default, deserialize_with = "written_texts")]
    pub(super) hosts: List<Text<'a>>,
    #[serde(borrow, default, deserialize_with = "written_texts")]
    pub(super) gateways: List<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) http: List<HttpWire<'a>>,
    #[serde(borrow, default)]
    pub(super) tls: List<TlsWire<'a>>,
    #[serde(borrow, default)]
    pub(super) tcp: List<TcpWire<'a>>,
    #[serde(borrow, default, deserialize_with = "written_texts")]
    pub(super) export_to: List<Text<'a>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[serde(expecting = "a rule")]
pub(super) struct HttpWire<'a> {
    #[serde(borrow, default)]
    pub(super) name: Text<'a>,
    #[serde(rename = "match", borrow, default)]
    pub(super) matches: List<HttpMatchWire<'a>>,
    #[serde(borrow, default)]
    pub(super) route: List<RouteWire<'a>>,
    #[serde(borrow, default)]
    pub(super) redirect: Option<RedirectWire<'a>>,
    #[serde(borrow, default)]
    pub(super) direct_response: Option<DirectResponseWire<'a>>,
    #[serde(borrow, default)]
    pub(super) delegate: Option<DelegateWire<'a>>,
    #[serde(borrow, default)]
    pub(super) rewrite: Option<RewriteWire<'a>>,
    #[serde(borrow, default)]
    pub(super) timeout: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) retries: Option<RetriesWire<'a>>,
    #[serde(borrow, default)]
    pub(super) fault: Option<FaultWire<'a>>,
    #[serde(borrow, default)]
    pub(super) mirror: Option<DestinationWire<'a>>,
    #[serde(borrow, default)]
    pub(super) mirrors: List<MirrorWire<'a>>,
    #[serde(alias = "mirror_percent", default)]
    pub(super) mirror_percent: Unsigned,
    #[serde(default)]
    pub(super) mirror_percentage: Option<PercentWire>,
    #[serde(borrow, default)]
    pub(super) cors_policy: Option<CorsWire<'a>>,
    #[serde(borrow, default)]
    pub(super) headers: Option<HeadersWire<'a>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[serde(expecting = "a map of conditions")]
pub(super) struct HttpMatchWire<'a> {
    #[serde(borrow, default)]
    pub(super) name: Text<'a>,
    #[serde(borrow, default)]
    pub(super) uri: Option<TextMatchWire<'a>>,
    #[serde(borrow, default)]
    pub(super) scheme: Option<TextMatchWire<'a>>,
    #[serde(borrow, default)]
    pub(super) method: Option<TextMatchWire<'a>>,
    #[serde(borrow, default)]
    pub(super) authority: Option<TextMatchWire<'a>>,
    #[serde(borrow, default)]
    pub(super) headers: Pairs<'a, TextMatchWire<'a>>,
    #[serde(borrow, default)]
    pub(super) without_headers: Pairs<'a, TextMatchWire<'a>>,
    #[serde(borrow, default)]
    pub(super) query_params: Pairs<'a, TextMatchWire<'a>>,
    #[serde(default)]
    pub(super) ignore_uri_case: Option<bool>,
    #[serde(default)]
    pub(super) port: Unsigned,
    #[serde(borrow, default)]
    pub(super) source_labels: Pairs<'a>,
    #[serde(borrow, default)]
    pub(super) source_namespace: Text<'a>,
    #[serde(borrow, default, deserialize_with = "written_texts")]
    pub(super) gateways: List<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) stat_prefix: Text<'a>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(expecting = "a map with `exact`, `prefix` or `regex`")]
pub(super) struct TextMatchWire<'a> {
    #[serde(borrow, default)]
    pub(super) exact: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) prefix: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) regex: Option<Text<'a>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(expecting = "a map with `host`")]
pub(super) struct DestinationWire<'a> {
    #[serde(borrow, default)]
    pub(super) host: Text<'a>,
    #[serde(borrow, default)]
    pub(super) subset: Text<'a>,
    #[serde(default)]
    pub(super) port: Option<PortWire>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(expecting = "a map with `destination`")]
pub(super) struct RouteWire<'a> {
    #[serde(borrow, default)]
    pub(super) destination: Option<DestinationWire<'a>>,
    #[serde(default)]
    pub(super) weight: Signed,
    #[serde(borrow, default)]
    pub(super) headers: Option<HeadersWire<'a>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(expecting = "a map with `request` and `response`")]
pub(super) struct HeadersWire<'a> {
    #[serde(borrow, default)]
    pub(super) request: Option<ChangesWire<'a>>,
    #[serde(borrow, default)]
    pub(super) response: Option<ChangesWire<'a>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(expecting = "a map with `set`, `add` and `remove`")]
pub(super) struct ChangesWire<'a> {
    #[serde(borrow, default)]
    pub(super) set: Pairs<'a>,
    #[serde(borrow, default)]
    pub(super) add: Pairs<'a>,
    #[serde(borrow, default, deserialize_with = "written_texts")]
    pub(super) remove: List<Text<'a>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[serde(expecting = "a map of fields")]
pub(super) struct RedirectWire<'a> {
    #[serde(borrow, default)]
    pub(super) uri: Text<'a>,
    #[serde(borrow, default)]
    pub(super) prefix_rewrite: Text<'a>,
    #[serde(borrow, default)]
    pub(super) authority: Text<'a>,
    #[serde(default)]
    pub(super) port: Unsigned,
    #[serde(borrow, default)]
    pub(super) derive_port: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) scheme: Text<'a>,
    #[serde(default)]
    pub(super) redirect_code: Unsigned,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(expecting = "a map with `status` and `body`")]
pub(super) struct DirectResponseWire<'a> {
    #[serde(default)]
    pub(super) status: Unsigned,
    #[serde(borrow, default)]
    pub(super) body: Option<BodyWire<'a>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(expecting = "a map with `string` or `bytes`")]
pub(super) struct BodyWire<'a> {
    #[serde(borrow, default)]
    pub(super) string: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) bytes: Option<Text<'a>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(expecting = "a map with `name`")]
pub(super) struct DelegateWire<'a> {
    #[serde(borrow, default)]
    pub(super) name: Text<'a>,
    #[serde(borrow, default)]
    pub(super) namespace: Text<'a>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[serde(expecting = "a map of fields")]
pub(super) struct RewriteWire<'a> {
    #[serde(borrow, default)]
    pub(super) uri: Text<'a>,
    #[serde(borrow, default)]
    pub(super) uri_regex_rewrite: Option<RegexRewriteWire<'a>>,
    #[serde(borrow, default)]
    pub(super) authority: Text<'a>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(expecting = "a map with `match` and `rewrite`")]
pub(super) struct RegexRewriteWire<'a> {
    #[serde(rename = "match", borrow, default)]
    pub(super) matches: Text<'a>,
    #[serde(borrow, default)]
    pub(super) rewrite: Text<'a>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[serde(expecting = "a map of fields")]
pub(super) struct RetriesWire<'a> {
    #[serde(default)]
    pub(super) attempts: Signed,
    #[serde(borrow, default)]
    pub(super) per_try_timeout: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) retry_on: Text<'a>,
    #[serde(default)]
    pub(super) retry_remote_localities: Option<bool>,
    #[serde(default)]
    pub(super) retry_ignore_previous_hosts: Option<bool>,
    #[serde(borrow, default)]
    pub(super) backoff: Option<Text<'a>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(expecting = "a map with `delay` and `abort`")]
pub(super) struct FaultWire<'a> {
    #[serde(borrow, default)]
    pub(super) delay: Option<DelayWire<'a>>,
    #[serde(borrow, default)]
    pub(super) abort: Option<AbortWire<'a>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[serde(expecting = "a map with `fixedDelay`")]
pub(super) struct DelayWire<'a> {
    #[serde(borrow, default)]
    pub(super) fixed_delay: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) exponential_delay: Option<Text<'a>>,
    #[serde(default)]
    pub(super) percentage: Option<PercentWire>,
    #[serde(default)]
    pub(super) percent: Signed,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[serde(expecting = "a map with `httpStatus` or `grpcStatus`")]
pub(super) struct AbortWire<'a> {
    #[serde(default)]
    pub(super) http_status: Signed,
    #[serde(borrow, default)]
    pub(super) grpc_status: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) http2_error: Option<Text<'a>>,
    #[serde(default)]
    pub(super) percentage: Option<PercentWire>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(expecting = "a map with `value`")]
pub(super) struct PercentWire {
    #[serde(default)]
    pub(super) value: Option<f64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(expecting = "a map with `destination`")]
pub(super) struct MirrorWire<'a> {
    #[serde(borrow, default)]
    pub(super) destination: Option<DestinationWire<'a>>,
    #[serde(default)]
    pub(super) percentage: Option<PercentWire>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[serde(expecting = "a map of fields")]
pub(super) struct CorsWire<'a> {
    #[serde(borrow, default, deserialize_with = "written_texts")]
    pub(super) allow_origin: List<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) allow_origins: List<TextMatchWire<'a>>,
    #[serde(borrow, default, deserialize_with = "written_texts")]
    pub(super) allow_methods: List<Text<'a>>,
    #[serde(borrow, default, deserialize_with = "written_texts")]
    pub(super) allow_headers: List<Text<'a>>,
    #[serde(borrow, default, deserialize_with = "written_texts")]
    pub(super) expose_headers: List<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) max_age: Option<Text<'a>>,
    #[serde(default)]
    pub(super) allow_credentials: Option<bool>,
    #[serde(borrow, default)]
    pub(super) unmatched_preflights: Option<Text<'a>>,
}

/// A rule of `tls` or `tcp`, whose matches are `M`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(expecting = "a rule")]
pub(super) struct ConnectionWire<'a, M> {
    #[serde(rename = "match", default = "List::default")]
    pub(super) matches: List<M>,
    #[serde(borrow, default)]
    pub(super) route: List<ConnectionRouteWire<'a>>,
}

pub(super) type TlsWire<'a> = ConnectionWire<'a, TlsMatchWire<'a>>;
pub(super) type TcpWire<'a> = ConnectionWire<'a, TcpMatchWire<'a>>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(expecting = "a map with `destination`")]
pub(super) struct ConnectionRouteWire<'a> {
    #[serde(borrow, default)]
    pub(super) destination: Option<DestinationWire<'a>>,
    #[serde(default)]
    pub(super) weight: Signed,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[serde(expecting = "a map of conditions")]
pub(super) struct TlsMatchWire<'a> {
    #[serde(borrow, default, deserialize_with = "written_texts")]
    pub(super) sni_hosts: List<Text<'a>>,
    #[serde(borrow, default, deserialize_with = "written_texts")]
    pub(super) destination_subnets: List<Text<'a>>,
    #[serde(default)]
    pub(super) port: Unsigned,
    #[serde(borrow, default)]
    pub(super) source_labels: Pairs<'a>,
    #[serde(borrow, default, deserialize_with = "written_texts")]
    pub(super) gateways: List<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) source_namespace: Text<'a>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[serde(expecting = "a map of conditions")]
pub(super) struct TcpMatchWire<'a> {
    #[serde(borrow, default, deserialize_with = "written_texts")]
    pub(super) destination_subnets: List<Text<'a>>,
    #[serde(default)]
    pub(super) port: Unsigned,
    #[serde(borrow, default)]
    pub(super) source_subnet: Text<'a>,
    #[serde(borrow, default)]
    pub(super) source_labels: Pairs<'a>,
    #[serde(borrow, default, deserialize_with = "written_texts")]
    pub(super) gateways: List<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) source_namespace: Text<'a>,
}
