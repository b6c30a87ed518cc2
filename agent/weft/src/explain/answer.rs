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
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Explanation {
    /// `allow`, `deny`, `passthrough` or `unreachable`.
    pub(crate) verdict: String,
    pub(crate) protocol: String,
    pub(crate) path: Option<String>,
    pub(crate) service: Option<ServiceView>,
    /// No routing object takes part in plain TCP.
    pub(crate) route: Option<serde_json::Value>,
    pub(crate) destinations: Vec<DestinationView>,
    /// A refused TCP connection is closed without an answer.
    pub(crate) response: Option<serde_json::Value>,
    pub(crate) source: SourceView,
    pub(crate) peer_authentication: Option<PeerAuthenticationView>,
    pub(crate) authorization: AuthorizationView,
    pub(crate) steps: Vec<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ServiceView {
    pub(crate) host: String,
    pub(crate) port: u16,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct DestinationView {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) subset: Option<String>,
    /// In per cent of the rule.
    pub(crate) weight: u32,
    pub(crate) policy: Option<ObjectView>,
    pub(crate) load_balancer: String,
    pub(crate) tls: String,
    pub(crate) endpoints: Vec<EndpointView>,
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

#[derive(Debug, Clone, Serialize, Deserialize)]
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
