//! May this connection, or this request, reach that workload? PeerAuthentication, then AuthorizationPolicy.
//!
//! On a port that speaks HTTP the connection is only asked for its identity ([`connection`]), and each request is
//! decided by itself ([`request`]); everywhere else the connection is decided as a whole ([`inbound`]).

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, LazyLock};

use super::http::{LocalReply, Request};
use super::request_authentication::Authentication;
use crate::Identity;
use crate::compile::policy::{Class, Hit, PolicySet, Subject};
use crate::resource::{
    AuthorizationPolicy, ExtAuthz, Kind, MeshHttp, MtlsMode, NamespacedName, ObjectRef, PolicyAction,
};
use crate::snapshot::{EffectiveMode, LocalWorkload};

/// A new connection as the inbound side sees it.
#[derive(Debug, Clone, Copy)]
pub struct InboundConnection<'a> {
    /// The peer's identity: from its certificate, or attested by this kernel for a pod of this node (ruling 4).
    pub identity: Option<&'a Identity>,
    /// The direct peer's address, v4-mapped already unmapped.
    pub source_ip: IpAddr,
    /// The workload's address and target port, v4-mapped already unmapped.
    pub destination: SocketAddr,
    /// Server name of the peer's TLS, where there is one.
    pub sni: Option<&'a str>,
}

/// A request as the inbound side sees it.
#[derive(Debug, Clone, Copy)]
pub struct InboundRequest<'a> {
    /// The connection that it came on.
    pub connection: InboundConnection<'a>,
    /// The request, its path normalised.
    pub request: Request<'a>,
    /// What its tokens say.
    pub authentication: &'a Authentication,
}

/// What becomes of the connection or the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It reaches the application, unless an external authoriser that is to be asked refuses.
    Allow,
    /// Closed without a byte: plaintext where STRICT asks for an identity.
    DenyPeerAuthentication,
    /// An AuthorizationPolicy says so: a connection is closed without a byte, a request answered with 403.
    DenyAuthorization,
}

/// How the policies decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthorizationOutcome {
    /// Allowed (also where only DENY policies exist and none matched).
    Allow,
    /// Denied.
    Deny,
    /// No enforcing policy selects the workload, or none was asked because STRICT refused already.
    None,
}

/// What a dry-run policy would have done (AP-18).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DryRun {
    /// The policy.
    pub object: ObjectRef,
    /// What it would have answered.
    pub outcome: AuthorizationOutcome,
}

/// An AUDIT policy that matched: it is counted and logged, and decides nothing (AP-1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Audit {
    /// The policy.
    pub object: ObjectRef,
    /// Index of its first rule that matched.
    pub rule: usize,
}

/// An external authoriser that has to be asked about a request (AP-17).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalCheck {
    /// Whom to ask.
    pub provider: Arc<ExtAuthz>,
    /// The policy that wants it asked.
    pub object: ObjectRef,
    /// Index of its rule that matched.
    pub rule: usize,
}

/// The policies' part of a decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorizationDecision {
    /// What DENY and ALLOW say; Deny as well where a CUSTOM policy names a provider that does not exist.
    pub outcome: AuthorizationOutcome,
    /// The authorisers that CUSTOM policies want asked, each once, before the outcome counts (AP-1): all must
    /// allow. Always empty for connections.
    pub external: Vec<ExternalCheck>,
    /// Action of the policy that decided; ALLOW for "ALLOW policies exist and none matched".
    pub action: Option<PolicyAction>,
    /// The policy that decided; `None` where the lack of a match did.
    pub object: Option<ObjectRef>,
    /// Index of its rule that matched.
    pub rule: Option<usize>,
    /// What the dry-run policies would have answered: each one that matched, and for ALLOW policies of which
    /// none matched the first, with `Deny`. Empty where STRICT refused already.
    pub dry_run: Vec<DryRun>,
    /// The AUDIT policies that matched, whatever was decided; they come before DENY, as Istio has it, so that
    /// nothing but an external authoriser keeps a request from being audited.
    pub audits: Vec<Audit>,
}

/// The whole answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InboundDecision {
    /// What becomes of the connection.
    pub verdict: Verdict,
    /// The mTLS mode of the port and who set it.
    pub peer_authentication: EffectiveMode,
    /// The policies' part.
    pub authorization: AuthorizationDecision,
}

/// Decides on a new (or, after a change of policy, an established) connection that speaks something but HTTP.
pub fn inbound(workload: &LocalWorkload, connection: &InboundConnection<'_>) -> InboundDecision {
    decide(workload, connection, |policies| {
        let subject = Subject::new(connection, policies.trust_domains());
        let custom = || policies.first_match(Class::Enforced(PolicyAction::Custom), &subject);
        // Nobody outside can be asked about a connection.
        let refused = custom().map(|hit| AuthorizationDecision::by(AuthorizationOutcome::Deny, hit));
        let decision = refused.unwrap_or_else(|| enforced(policies, &subject));
        (subject, decision)
    })
}

/// Decides on a connection that speaks HTTP, before its first request: PeerAuthentication alone.
pub fn connection(workload: &LocalWorkload, connection: &InboundConnection<'_>) -> InboundDecision {
    let peer_authentication = workload.peer_authentication.of_port(connection.destination.port()).clone();
    let verdict = match admits(&peer_authentication, connection) {
        true => Verdict::Allow,
        false => Verdict::DenyPeerAuthentication,
    };
    InboundDecision { verdict, peer_authentication, authorization: AuthorizationDecision::without_policy() }
}

/// Decides on a request.
pub fn request(workload: &LocalWorkload, request: &InboundRequest<'_>) -> InboundDecision {
    let mesh = &workload.http;
    decide(workload, &request.connection, |policies| {
        let subject = Subject::of_request(request, policies.trust_domains(), mesh.trusted_proxies);
        let decision = match external(policies, &subject, mesh) {
            Err(unknown) => AuthorizationDecision::by(AuthorizationOutcome::Deny, unknown),
            Ok(external) => AuthorizationDecision { external, ..enforced(policies, &subject) },
        };
        (subject, decision)
    })
}

fn decide<'s>(
    workload: &'s LocalWorkload,
    connection: &InboundConnection<'_>,
    authorize: impl FnOnce(&'s PolicySet) -> (Subject<'s>, AuthorizationDecision),
) -> InboundDecision {
    let peer_authentication = workload.peer_authentication.of_port(connection.destination.port()).clone();
    let policies = &*workload.policies;
    let admitted = admits(&peer_authentication, connection);
    let authorization = if admitted && !policies.is_empty() {
        let (subject, decision) = authorize(policies);
        AuthorizationDecision {
            dry_run: dry_run(policies, &subject),
            audits: audits(policies, &subject),
            ..decision
        }
    } else {
        AuthorizationDecision::without_policy()
    };
    let verdict = match authorization.outcome {
        _ if !admitted => Verdict::DenyPeerAuthentication,
        AuthorizationOutcome::Allow | AuthorizationOutcome::None => Verdict::Allow,
        AuthorizationOutcome::Deny => Verdict::DenyAuthorization,
    };
    InboundDecision { verdict, peer_authentication, authorization }
}

/// Whether PeerAuthentication lets the connection in.
fn admits(mode: &EffectiveMode, connection: &InboundConnection<'_>) -> bool {
    match mode.mode {
        MtlsMode::Strict => connection.identity.is_some(),
        // PA-6: nothing here tells DISABLE from PERMISSIVE.
        MtlsMode::Permissive | MtlsMode::Disable => true,
    }
}

impl InboundDecision {
    /// The answer to a request that policy refuses (AP-19); `None` where it does not.
    pub fn refusal(&self) -> Option<LocalReply> {
        match self.verdict {
            Verdict::Allow | Verdict::DenyPeerAuthentication => None,
            Verdict::DenyAuthorization => Some(LocalReply {
                status: 403,
                headers: Vec::new(),
                body: Arc::from(&b"RBAC: access denied"[..]),
                flag: "-",
                details: "rbac_access_denied",
                by: "authorization",
            }),
        }
    }
}

impl AuthorizationDecision {
    fn without_policy() -> Self {
        Self {
            outcome: AuthorizationOutcome::None,
            external: Vec::new(),
            action: None,
            object: None,
            rule: None,
            dry_run: Vec::new(),
            audits: Vec::new(),
        }
    }

    fn by(outcome: AuthorizationOutcome, hit: Hit<'_>) -> Self {
        Self {
            outcome,
            external: Vec::new(),
            action: Some(hit.policy.action),
            object: Some(object_of(hit.policy)),
            rule: Some(hit.rule),
            dry_run: Vec::new(),
            audits: Vec::new(),
        }
    }

    /// The AUDIT policies that matched, as access logs name policies (AP-23).
    pub fn audited(&self) -> impl Iterator<Item = String> {
        self.audits.iter().map(|audit| named(&audit.object, audit.rule))
    }

    /// The rule that refused, as access logs name it (AP-23): `ns[foo]-policy[deny-admin]-rule[0]`, or `none` where
    /// no ALLOW policy matched.
    pub fn matched_policy(&self) -> String {
        match (&self.object, self.rule) {
            (Some(object), Some(rule)) => named(object, rule),
            (Some(_) | None, _) => "none".into(),
        }
    }

    /// `response_code_details` of a refused request (E39).
    pub fn details(&self) -> String {
        format!("rbac_access_denied_matched_policy[{}]", self.matched_policy())
    }
}

/// A rule as access logs name it (AP-23).
fn named(object: &ObjectRef, rule: usize) -> String {
    format!("ns[{}]-policy[{}]-rule[{rule}]", object.namespace, object.name)
}

/// The providers that CUSTOM policies want asked; the hit whose provider nobody knows is the error (AP-17).
fn external<'p>(
    policies: &'p PolicySet,
    subject: &Subject<'_>,
    mesh: &MeshHttp,
) -> Result<Vec<ExternalCheck>, Hit<'p>> {
    let mut checks: Vec<ExternalCheck> = Vec::new();
    for hit in policies.first_matches(Class::Enforced(PolicyAction::Custom), subject) {
        let wanted = hit.policy.provider.as_deref().unwrap_or_default();
        let Some(provider) = mesh.ext_authz.iter().find(|provider| *provider.name == *wanted) else {
            return Err(hit);
        };
        if !checks.iter().any(|check| check.provider.name == provider.name) {
            let (provider, object) = (provider.clone(), object_of(hit.policy));
            checks.push(ExternalCheck { provider, object, rule: hit.rule });
        }
    }
    Ok(checks)
}

/// DENY, then ALLOW (AP-1).
fn enforced(policies: &PolicySet, subject: &Subject<'_>) -> AuthorizationDecision {
    if let Some(hit) = policies.first_match(Class::Enforced(PolicyAction::Deny), subject) {
        return AuthorizationDecision::by(AuthorizationOutcome::Deny, hit);
    }
    let allow = Class::Enforced(PolicyAction::Allow);
    if let Some(hit) = policies.first_match(allow, subject) {
        return AuthorizationDecision::by(AuthorizationOutcome::Allow, hit);
    }
    let mut decision = AuthorizationDecision::without_policy();
    if policies.has(allow) {
        decision.outcome = AuthorizationOutcome::Deny;
        decision.action = Some(PolicyAction::Allow);
    } else if policies.enforces() {
        decision.outcome = AuthorizationOutcome::Allow;
    }
    decision
}

/// AP-18: each action by itself, as if there were no other policies.
fn dry_run(policies: &PolicySet, subject: &Subject<'_>) -> Vec<DryRun> {
    let entry = |policy: &AuthorizationPolicy, outcome| DryRun { object: object_of(policy), outcome };
    let classes = [PolicyAction::Custom, PolicyAction::Deny, PolicyAction::Allow].map(Class::DryRun);
    if !classes.into_iter().any(|class| policies.has(class)) {
        return Vec::new();
    }
    let mut found = Vec::new();
    for action in [PolicyAction::Custom, PolicyAction::Deny] {
        let matching = policies.matching_policies(Class::DryRun(action), subject);
        found.extend(matching.into_iter().map(|policy| entry(policy, AuthorizationOutcome::Deny)));
    }
    let allow = Class::DryRun(PolicyAction::Allow);
    let matching = policies.matching_policies(allow, subject);
    if matching.is_empty() {
        let unmet = policies.first_policy(allow);
        found.extend(unmet.map(|policy| entry(policy, AuthorizationOutcome::Deny)));
    }
    found.extend(matching.into_iter().map(|policy| entry(policy, AuthorizationOutcome::Allow)));
    found
}

fn audits(policies: &PolicySet, subject: &Subject<'_>) -> Vec<Audit> {
    let hits = policies.first_matches(Class::Enforced(PolicyAction::Audit), subject);
    hits.into_iter().map(|hit| Audit { object: object_of(hit.policy), rule: hit.rule }).collect()
}

fn object_of(policy: &AuthorizationPolicy) -> ObjectRef {
    // Every decision names one.
    static KIND: LazyLock<Arc<str>> = LazyLock::new(|| Kind::AuthorizationPolicy.as_str().into());
    let NamespacedName { namespace, name } = &policy.meta.key;
    ObjectRef { kind: KIND.clone(), namespace: namespace.clone(), name: name.clone() }
}
