//! May this connection reach that workload? PeerAuthentication, then AuthorizationPolicy.

use std::net::{IpAddr, SocketAddr};

use crate::Identity;
use crate::resource::{ObjectRef, PolicyAction};
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
    /// Dry-run policies that would have decided differently from no policy at all.
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
    let _ = (workload, connection);
    unimplemented!()
}
