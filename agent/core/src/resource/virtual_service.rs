//! VirtualService (`networking.istio.io`), reduced to what the mesh executes (V-1 to V-31).
//!
//! Other dialects (HTTPRoute, GRPCRoute) are decoded into the same rules.

use std::sync::Arc;
use std::time::Duration;

use super::{Labels, Meta};

/// A VirtualService that passed validation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VirtualService {
    /// Name, age, origin.
    pub meta: Meta,
    /// `spec.hosts` with short names completed, in lower case; empty for a delegate (V-29).
    pub hosts: Vec<Arc<str>>,
    /// `spec.gateways`: `mesh`, or `namespace/name`. Never empty: absent means `mesh`.
    pub gateways: Vec<Arc<str>>,
    /// `spec.exportTo`; empty leaves it to the mesh.
    pub export_to: Vec<ExportTo>,
    /// `spec.http`.
    pub http: Vec<HttpRule>,
    /// `spec.tls`.
    pub tls: Vec<TlsRule>,
    /// `spec.tcp`.
    pub tcp: Vec<TcpRule>,
}

/// One entry of `exportTo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExportTo {
    /// `*`.
    All,
    /// `.`: the object's own namespace.
    Own,
    /// A namespace.
    Namespace(Arc<str>),
    /// `~`: nobody.
    Nobody,
}

/// StringMatch of the networking API.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum TextMatch {
    /// `exact`.
    Exact(Arc<str>),
    /// `prefix`: plain text, not segments (V-5).
    Prefix(Arc<str>),
    /// `regex`: RE2, the whole value.
    Regex(Arc<str>),
    /// An empty StringMatch, or `regex: "*"` in `withoutHeaders`: present with any value (V-6, V-7).
    Present,
}

/// `http[].match[]`: all fields are ANDed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HttpMatch {
    /// `name`.
    pub name: Option<Arc<str>>,
    /// `uri`, without the query.
    pub uri: Option<TextMatch>,
    /// `ignoreUriCase`: for exact and prefix only.
    pub ignore_uri_case: bool,
    /// `scheme`.
    pub scheme: Option<TextMatch>,
    /// `method`.
    pub method: Option<TextMatch>,
    /// `authority`, compared with the port as it was sent (V-8).
    pub authority: Option<TextMatch>,
    /// `headers`: names in lower case, or pseudo headers.
    pub headers: Vec<(Arc<str>, TextMatch)>,
    /// `withoutHeaders` (V-7).
    pub without_headers: Vec<(Arc<str>, TextMatch)>,
    /// `queryParams`.
    pub query_params: Vec<(Arc<str>, TextMatch)>,
    /// `port`: the listener's, that is the Service's (V-10).
    pub port: Option<u16>,
    /// `sourceLabels` (V-11).
    pub source_labels: Labels,
    /// `sourceNamespace` (V-11).
    pub source_namespace: Option<Arc<str>>,
    /// `gateways`, in the form of [`VirtualService::gateways`]; empty inherits (V-12).
    pub gateways: Vec<Arc<str>>,
}

/// One entry of `spec.http`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HttpRule {
    /// `name`.
    pub name: Option<Arc<str>>,
    /// `match`; empty is a catch-all (V-3).
    pub matches: Vec<HttpMatch>,
    /// What is done with the request.
    pub action: HttpAction,
    /// `rewrite` (V-20).
    pub rewrite: Option<Rewrite>,
    /// `timeout`; `None` when absent, zero when it is switched off.
    pub timeout: Option<Duration>,
    /// `retries`; `None` takes the mesh's default (V-22).
    pub retries: Option<Retries>,
    /// `fault` (V-26).
    pub fault: Option<Fault>,
    /// `mirror` and `mirrors` (V-27).
    pub mirrors: Vec<Mirror>,
    /// `corsPolicy` (V-28).
    pub cors: Option<CorsPolicy>,
    /// `headers` (V-17).
    pub headers: HeaderOperations,
}

/// The target of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HttpAction {
    /// `route`: never empty, weights as written.
    Route(Vec<RouteDestination>),
    /// `redirect`.
    Redirect(Redirect),
    /// `directResponse`.
    DirectResponse(DirectResponse),
    /// `delegate`: namespace (own when absent) and name (V-29).
    Delegate(super::NamespacedName),
}

impl Default for HttpAction {
    fn default() -> Self {
        Self::Route(Vec::new())
    }
}

/// Where traffic goes: a Service (or another host) and a subset of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DestinationRef {
    /// `host`, completed.
    pub host: Arc<str>,
    /// `subset`.
    pub subset: Option<Arc<str>>,
    /// `port.number` (V-15).
    pub port: Option<u16>,
}

/// One entry of `http[].route`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteDestination {
    /// Where to.
    pub destination: DestinationRef,
    /// `weight` as written; 0 when absent.
    pub weight: u32,
    /// `headers` (E31).
    pub headers: HeaderOperations,
}

/// `headers.request` and `headers.response`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HeaderOperations {
    /// On the way to the application.
    pub request: HeaderChanges,
    /// On the way back.
    pub response: HeaderChanges,
}

/// Changes of headers: `remove` first, then `set`, then `add` (E32).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HeaderChanges {
    /// `set`: overwrite. Names as written.
    pub set: Vec<(Arc<str>, Arc<str>)>,
    /// `add`: append.
    pub add: Vec<(Arc<str>, Arc<str>)>,
    /// `remove`.
    pub remove: Vec<Arc<str>>,
}

impl HeaderChanges {
    /// Whether nothing is changed.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.add.is_empty() && self.remove.is_empty()
    }
}

/// `redirect` (V-18).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect {
    /// `uri`: replaces the path.
    pub uri: Option<Arc<str>>,
    /// `prefixRewrite`: replaces the matched prefix.
    pub prefix_rewrite: Option<Arc<str>>,
    /// `authority`.
    pub authority: Option<Arc<str>>,
    /// `port` or `derivePort`.
    pub port: Option<RedirectPort>,
    /// `scheme`.
    pub scheme: Option<Arc<str>>,
    /// `redirectCode`, 301 when absent.
    pub code: u16,
}

/// The port of a redirect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RedirectPort {
    /// `port`.
    Number(u16),
    /// `derivePort: FROM_PROTOCOL_DEFAULT`.
    ProtocolDefault,
    /// `derivePort: FROM_REQUEST_PORT`.
    RequestPort,
}

/// `directResponse` (V-19).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectResponse {
    /// `status`.
    pub status: u16,
    /// `body`.
    pub body: Arc<[u8]>,
}

/// `rewrite` (V-20).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rewrite {
    /// `uri`.
    pub uri: Option<Arc<str>>,
    /// `uriRegexRewrite`: expression, and replacement with `\1`.
    pub regex: Option<(Arc<str>, Arc<str>)>,
    /// `authority`.
    pub authority: Option<Arc<str>>,
}

/// `retries` (V-22 to V-25).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retries {
    /// `attempts`: tries after the first one; 0 switches retrying off.
    pub attempts: u32,
    /// `perTryTimeout`.
    pub per_try_timeout: Option<Duration>,
    /// `retryOn`, cut at commas and trimmed; empty takes the default list.
    pub on: Vec<Arc<str>>,
    /// `retryIgnorePreviousHosts`.
    pub ignore_previous_hosts: Option<bool>,
    /// `retryRemoteLocalities`.
    pub remote_localities: Option<bool>,
    /// `backoff`.
    pub backoff: Option<Duration>,
}

/// A share of requests, in parts of a million (a percentage with four decimals).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PerMillion(pub u32);

impl PerMillion {
    /// All requests.
    pub const ALL: Self = Self(1_000_000);
}

/// `fault` (V-26).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fault {
    /// `delay`: share and how long.
    pub delay: Option<(PerMillion, Duration)>,
    /// `abort`: share and with what.
    pub abort: Option<(PerMillion, AbortStatus)>,
}

/// What an abort answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AbortStatus {
    /// `httpStatus`.
    Http(u16),
    /// `grpcStatus` by its number.
    Grpc(u8),
}

/// One entry of `mirrors`, or `mirror` with `mirrorPercentage`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// Where to.
    pub destination: DestinationRef,
    /// Share; absent is all.
    pub share: PerMillion,
}

/// `corsPolicy` (V-28).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CorsPolicy {
    /// `allowOrigins` (and the legacy `allowOrigin` as exact ones).
    pub allow_origins: Vec<TextMatch>,
    /// `allowMethods`.
    pub allow_methods: Vec<Arc<str>>,
    /// `allowHeaders`.
    pub allow_headers: Vec<Arc<str>>,
    /// `exposeHeaders`.
    pub expose_headers: Vec<Arc<str>>,
    /// `maxAge`.
    pub max_age: Option<Duration>,
    /// `allowCredentials`.
    pub allow_credentials: Option<bool>,
    /// `unmatchedPreflights: IGNORE`; absent and FORWARD are false.
    pub ignore_unmatched_preflights: bool,
}

/// One entry of `spec.tls` (V-30).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsRule {
    /// `match`: never empty.
    pub matches: Vec<TlsMatch>,
    /// `route`: weights as written.
    pub routes: Vec<(DestinationRef, u32)>,
}

/// `tls[].match[]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsMatch {
    /// `sniHosts`.
    pub sni_hosts: Vec<Arc<str>>,
    /// What it shares with `tcp[].match[]`.
    pub connection: ConnectionMatch,
}

/// One entry of `spec.tcp` (V-31).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpRule {
    /// `match`; empty matches all.
    pub matches: Vec<ConnectionMatch>,
    /// `route`: weights as written.
    pub routes: Vec<(DestinationRef, u32)>,
}

/// Conditions on a connection: all are ANDed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConnectionMatch {
    /// `destinationSubnets`.
    pub destination_subnets: Vec<ipnet::IpNet>,
    /// `port`.
    pub port: Option<u16>,
    /// `sourceLabels`.
    pub source_labels: Labels,
    /// `sourceNamespace`.
    pub source_namespace: Option<Arc<str>>,
    /// `gateways`; empty inherits.
    pub gateways: Vec<Arc<str>>,
}
