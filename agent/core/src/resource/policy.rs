//! AuthorizationPolicy: who may do what.

use std::sync::Arc;

use ipnet::IpNet;

use super::{HttpKey, Labels, Meta, PathMatch};

/// `spec.action` of an AuthorizationPolicy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PolicyAction {
    /// ALLOW.
    Allow,
    /// DENY.
    Deny,
    /// AUDIT: never decides.
    Audit,
    /// CUSTOM: an external authoriser; refused on L4 where it matches.
    Custom,
}

impl PolicyAction {
    /// The API's constant.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "ALLOW",
            Self::Deny => "DENY",
            Self::Audit => "AUDIT",
            Self::Custom => "CUSTOM",
        }
    }
}

/// A string pattern of AP-5: exact, `prefix*`, `*suffix`, or `*` (present).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum StringMatch {
    /// The whole value.
    Exact(Arc<str>),
    /// `prefix*`.
    Prefix(Arc<str>),
    /// `*suffix`.
    Suffix(Arc<str>),
    /// `*`: any non-empty value.
    Present,
}

/// Positive and negative values of one field: OR inside `any`, and none of `not`.
///
/// An empty `any` is no condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Match<T> {
    /// `x`: one of these.
    pub any: Box<[T]>,
    /// `notX`: none of these.
    pub not: Box<[T]>,
}

impl<T> Default for Match<T> {
    fn default() -> Self {
        Self { any: Box::default(), not: Box::default() }
    }
}

impl<T> Match<T> {
    /// Whether it constrains nothing.
    pub fn is_empty(&self) -> bool {
        self.any.is_empty() && self.not.is_empty()
    }
}

/// `ns/sa` of AP-7, already completed with the policy's own namespace.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServiceAccountMatch {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The service account.
    pub name: Arc<str>,
}

/// `from[].source`: fields are ANDed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Source {
    /// `principals` / `notPrincipals`, without `spiffe://`.
    pub principals: Match<StringMatch>,
    /// `namespaces` / `notNamespaces`. An inner `*` is legal here (AP-5): see [`StringMatch`] for the ends.
    pub namespaces: Match<NamespaceMatch>,
    /// `serviceAccounts` / `notServiceAccounts`.
    pub service_accounts: Match<ServiceAccountMatch>,
    /// `ipBlocks` / `notIpBlocks`: the direct peer.
    pub ip_blocks: Match<IpNet>,
    /// `remoteIpBlocks` / `notRemoteIpBlocks`: without HTTP the same as the direct peer.
    pub remote_ip_blocks: Match<IpNet>,
    /// `requestPrincipals` / `notRequestPrincipals`: HTTP only.
    pub request_principals: Match<StringMatch>,
}

/// A namespace pattern: text with any number of `*`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NamespaceMatch(pub Arc<str>);

/// `to[].operation`: fields are ANDed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Operation {
    /// `ports` / `notPorts`: target ports (AP-11).
    pub ports: Match<u16>,
    /// `hosts` / `notHosts`: HTTP only.
    pub hosts: Match<StringMatch>,
    /// `methods` / `notMethods`: HTTP only.
    pub methods: Match<StringMatch>,
    /// `paths` / `notPaths`: HTTP only.
    pub paths: Match<PathMatch>,
}

impl Operation {
    /// Whether a field is set that only HTTP can answer.
    pub fn has_http(&self) -> bool {
        !(self.hosts.is_empty() && self.methods.is_empty() && self.paths.is_empty())
    }
}

/// `when[]`: one key with its values. All conditions of a rule are ANDed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// `source.ip`.
    SourceIp(Match<IpNet>),
    /// `remote.ip`.
    RemoteIp(Match<IpNet>),
    /// `source.namespace`.
    SourceNamespace(Match<NamespaceMatch>),
    /// `source.principal`.
    SourcePrincipal(Match<StringMatch>),
    /// `source.serviceAccount`.
    SourceServiceAccount(Match<ServiceAccountMatch>),
    /// `source.trustDomain`.
    SourceTrustDomain(Match<StringMatch>),
    /// `destination.ip`.
    DestinationIp(Match<IpNet>),
    /// `destination.port`.
    DestinationPort(Match<u16>),
    /// `connection.sni`.
    Sni(Match<StringMatch>),
    /// A key that only HTTP can answer (`request.headers[x]`, `request.auth.claims[x]`, …).
    Http {
        /// The key.
        key: HttpKey,
        /// Its values.
        values: Match<StringMatch>,
    },
}

/// One rule: OR(from) AND OR(to) AND AND(when). Empty lists are no condition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rule {
    /// `from[].source`.
    pub from: Vec<Source>,
    /// `to[].operation`.
    pub to: Vec<Operation>,
    /// `when`.
    pub when: Vec<Condition>,
}

/// An AuthorizationPolicy that passed validation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorizationPolicy {
    /// Name, age, origin.
    pub meta: Meta,
    /// `spec.selector.matchLabels`; `None` when absent or empty.
    pub selector: Option<Labels>,
    /// `spec.targetRefs` (or `targetRef`) is set: ordinary workloads ignore the policy (AP-3).
    pub targets_gateway: bool,
    /// `spec.action`.
    pub action: PolicyAction,
    /// `spec.provider.name` (CUSTOM, AP-17).
    pub provider: Option<Arc<str>>,
    /// Annotation `istio.io/dry-run: "true"` (AP-18).
    pub dry_run: bool,
    /// `spec.rules`. An ALLOW without rules allows nothing (AP-2).
    pub rules: Vec<Rule>,
}
