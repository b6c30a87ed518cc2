//! May this connection reach that workload? PeerAuthentication, then AuthorizationPolicy.

use std::net::{IpAddr, SocketAddr};

use crate::Identity;
use crate::compile::policy::{Class, Hit, PolicySet, Subject};
use crate::resource::{AuthorizationPolicy, Kind, MtlsMode, ObjectRef, PolicyAction};
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

/// What becomes of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It reaches the application.
    Allow,
    /// Closed without a byte: plaintext where STRICT asks for an identity.
    DenyPeerAuthentication,
    /// Closed without a byte: an AuthorizationPolicy says so.
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

/// The policies' part of a decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorizationDecision {
    /// The outcome.
    pub outcome: AuthorizationOutcome,
    /// Action of the policy that decided; ALLOW for "ALLOW policies exist and none matched".
    pub action: Option<PolicyAction>,
    /// The policy that decided; `None` where the lack of a match did.
    pub object: Option<ObjectRef>,
    /// Index of its rule that matched.
    pub rule: Option<usize>,
    /// What the dry-run policies would have answered: each one that matched, and for ALLOW policies of which
    /// none matched the first, with `Deny`. Empty where STRICT refused already.
    pub dry_run: Vec<DryRun>,
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

/// Decides on a new (or, after a change of policy, an established) connection.
pub fn inbound(workload: &LocalWorkload, connection: &InboundConnection<'_>) -> InboundDecision {
    let peer_authentication = workload.peer_authentication.of_port(connection.destination.port()).clone();
    let authenticated = match peer_authentication.mode {
        MtlsMode::Strict => connection.identity.is_some(),
        // PA-6: nothing here tells DISABLE from PERMISSIVE.
        MtlsMode::Permissive | MtlsMode::Disable => true,
    };
    if !authenticated {
        let authorization = AuthorizationDecision::without_policy();
        return InboundDecision {
            verdict: Verdict::DenyPeerAuthentication,
            peer_authentication,
            authorization,
        };
    }
    let authorization = authorize(&workload.policies, connection);
    let verdict = match authorization.outcome {
        AuthorizationOutcome::Allow | AuthorizationOutcome::None => Verdict::Allow,
        AuthorizationOutcome::Deny => Verdict::DenyAuthorization,
    };
    InboundDecision { verdict, peer_authentication, authorization }
}

impl AuthorizationDecision {
    fn without_policy() -> Self {
        Self {
            outcome: AuthorizationOutcome::None,
            action: None,
            object: None,
            rule: None,
            dry_run: Vec::new(),
        }
    }

    fn by(outcome: AuthorizationOutcome, hit: Hit<'_>) -> Self {
        Self {
            outcome,
            action: Some(hit.policy.action),
            object: Some(object_of(hit.policy)),
            rule: Some(hit.rule),
            dry_run: Vec::new(),
        }
    }
}

/// Evaluates the policies of a workload.
fn authorize(policies: &PolicySet, connection: &InboundConnection<'_>) -> AuthorizationDecision {
    if policies.is_empty() {
        return AuthorizationDecision::without_policy();
    }
    let subject = Subject::new(connection, policies.trust_domains());
    let mut decision = enforced(policies, &subject);
    decision.dry_run = dry_run(policies, &subject);
    decision
}

/// CUSTOM, then DENY, then ALLOW (AP-1).
fn enforced(policies: &PolicySet, subject: &Subject<'_>) -> AuthorizationDecision {
    for action in [PolicyAction::Custom, PolicyAction::Deny] {
        if let Some(hit) = policies.first_match(Class::Enforced(action), subject) {
            return AuthorizationDecision::by(AuthorizationOutcome::Deny, hit);
        }
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

fn object_of(policy: &AuthorizationPolicy) -> ObjectRef {
    let key = &policy.meta.key;
    ObjectRef::new(Kind::AuthorizationPolicy, key.namespace.clone(), key.name.clone())
}
