//! The answer's JSON (spec: machine-readable contract of the commands).

use serde::{Deserialize, Serialize};
use weft_core::ObjectRef;

/// The name of an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ObjectView {
    pub(crate) kind: String,
    pub(crate) namespace: Option<String>,
    pub(crate) name: String,
}

impl From<&ObjectRef> for ObjectView {
    fn from(object: &ObjectRef) -> Self {
        let namespace = (!object.namespace.is_empty()).then(|| object.namespace.to_string());
        Self { kind: object.kind.to_string(), namespace, name: object.name.to_string() }
    }
}

/// An answer that the mesh gives itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ResponseView {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
    /// Who answers: `redirect`, `direct_response`, `fault`, `cors`, `authorization`, `jwt`, `no_route`, …
    pub(crate) by: String,
}

/// What the token said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RequestAuthenticationView {
    /// `none`, `valid`, `missing` or `invalid`.
    pub(crate) outcome: String,
    pub(crate) issuer: Option<String>,
    pub(crate) object: Option<ObjectView>,
    /// Why the token is invalid.
    pub(crate) error: Option<String>,
}

/// The answer to one question. Absent facts are null.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Explanation {
    /// `allow`, `deny`, `respond`, `passthrough` or `unreachable`.
    pub(crate) verdict: String,
    /// `http`, `grpc`, `tcp` or `tls`.
    pub(crate) protocol: String,
    pub(crate) path: Option<String>,
    pub(crate) service: Option<ServiceView>,
    pub(crate) route: Option<RouteView>,
    pub(crate) destinations: Vec<DestinationView>,
    /// As it leaves for the application; what is common to all destinations.
    pub(crate) request: Option<RequestView>,
    /// `None` where the connection is closed without a byte, and where the application answers.
    pub(crate) response: Option<ResponseView>,
    /// What the mesh changes in the application's answer; `None` as value removes.
    pub(crate) response_headers: Vec<(String, Option<String>)>,
    pub(crate) timeout_ms: Option<u64>,
    pub(crate) retry: Option<RetryView>,
    pub(crate) fault: Option<FaultView>,
    pub(crate) mirrors: Vec<MirrorView>,
    pub(crate) hash: Option<HashView>,
    pub(crate) source: SourceView,
    pub(crate) peer_authentication: Option<PeerAuthenticationView>,
    pub(crate) request_authentication: Option<RequestAuthenticationView>,
    pub(crate) authorization: AuthorizationView,
    pub(crate) steps: Vec<String>,
}

/// The rule that decided where to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RouteView {
    /// `http`, `tls` or `tcp`; `rules` for routes of the Gateway API.
    pub(crate) list: String,
    pub(crate) object: Option<ObjectView>,
    pub(crate) rule: usize,
    #[serde(rename = "match")]
    pub(crate) matched: Option<usize>,
    pub(crate) name: Option<String>,
}

/// A request as it leaves for the application. With several destinations, what differs is null.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RequestView {
    pub(crate) method: String,
    pub(crate) authority: Option<String>,
    pub(crate) path: Option<String>,
    pub(crate) headers: Vec<(String, String)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RetryView {
    pub(crate) attempts: u32,
    pub(crate) on: Vec<String>,
    pub(crate) per_try_timeout_ms: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct FaultView {
    pub(crate) delay: Option<DelayView>,
    pub(crate) abort: Option<AbortView>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct DelayView {
    pub(crate) percent: f64,
    pub(crate) ms: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct AbortView {
    pub(crate) percent: f64,
    pub(crate) http_status: Option<u16>,
    pub(crate) grpc_status: Option<u8>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct MirrorView {
    pub(crate) host: String,
    pub(crate) port: Option<u16>,
    pub(crate) subset: Option<String>,
    pub(crate) percent: f64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HashView {
    /// `header:NAME`, `cookie:NAME`, `query:NAME` or `source-ip`.
    pub(crate) source: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ServiceView {
    pub(crate) host: String,
    pub(crate) port: u16,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct DestinationView {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) subset: Option<String>,
    /// In per cent of the rule.
    #[serde(serialize_with = "whole_if_possible")]
    pub(crate) weight: f64,
    pub(crate) policy: Option<ObjectView>,
    pub(crate) load_balancer: String,
    pub(crate) tls: String,
    pub(crate) endpoints: Vec<EndpointView>,
    /// The verdict for this destination, where it differs from the whole answer's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) verdict: Option<String>,
    /// Its own, where it differs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) request: Option<RequestView>,
    /// Its own, where it differs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) response: Option<ResponseView>,
    /// Its own, where it differs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) response_headers: Option<Vec<(String, Option<String>)>>,
    /// Its own, where it differs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) hash: Option<HashView>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct EndpointView {
    pub(crate) address: String,
    pub(crate) pod: Option<String>,
    pub(crate) node: Option<String>,
    pub(crate) ready: bool,
    /// Relative to the other endpoints.
    pub(crate) weight: u32,
    pub(crate) path: Option<String>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct SourceView {
    /// Without `spiffe://`.
    pub(crate) principal: Option<String>,
    pub(crate) namespace: Option<String>,
    pub(crate) pod: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PeerAuthenticationView {
    pub(crate) mode: String,
    pub(crate) object: Option<ObjectView>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AuthorizationView {
    /// `allow`, `deny` or `none` (no policy was evaluated).
    pub(crate) outcome: String,
    pub(crate) action: Option<String>,
    pub(crate) object: Option<ObjectView>,
    pub(crate) rule: Option<usize>,
    pub(crate) dry_run: Vec<DryRunView>,
}

impl Default for AuthorizationView {
    fn default() -> Self {
        Self { outcome: "none".into(), action: None, object: None, rule: None, dry_run: Vec::new() }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DryRunView {
    pub(crate) object: ObjectView,
    pub(crate) outcome: String,
}

/// 20 rather than 20.0.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "only whole numbers up to 100")]
fn whole_if_possible<S: serde::Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    if value.fract() == 0.0 && (0.0..=100.0).contains(value) {
        serializer.serialize_u8(*value as u8)
    } else {
        serializer.serialize_f64(*value)
    }
}
