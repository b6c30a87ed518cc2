//! Decisions of `core` in the words of log and metrics.

use std::fmt::Write;

use weft_core::decide::{AuthorizationOutcome, InboundDecision, Verdict};
use weft_telemetry::{LogText, Metrics};

/// Why policy does not let a connection in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// Name of the reason in metrics.
    pub(crate) reason: &'static str,
    /// For people: names object and rule.
    pub(crate) details: String,
    /// `ns[NS]-policy[NAME]-rule[I]`, where a policy decided (AP-23).
    pub(crate) policy: Option<String>,
}

impl Refusal {
    /// Puts a decision that denies into words.
    pub(crate) fn of(decision: &InboundDecision) -> Self {
        match decision.verdict {
            Verdict::DenyPeerAuthentication => {
                let mut details = "peer authentication STRICT".to_owned();
                if let Some(object) = &decision.peer_authentication.object {
                    // Writing to a String cannot fail.
                    let _ = write!(details, " ({object})");
                }
                details.push_str(" refuses plaintext");
                Self { reason: "peer_authentication", details, policy: None }
            }
            Verdict::DenyAuthorization | Verdict::Allow => {
                let policy = policy_id(decision);
                let details =
                    policy.clone().unwrap_or_else(|| "no ALLOW policy of the workload matched".to_owned());
                Self { reason: "authorization", details, policy }
            }
        }
    }
}

/// The policy that decided, dry runs included; `None` where none did.
pub(crate) fn policy_id(decision: &InboundDecision) -> Option<String> {
    let authorization = &decision.authorization;
    if let Some(object) = &authorization.object {
        return Some(LogText::Policy(object, authorization.rule).to_string());
    }
    let would_deny = authorization.dry_run.iter().find(|dry| dry.outcome == AuthorizationOutcome::Deny);
    let dry = would_deny.or(authorization.dry_run.first())?;
    Some(format!("dry-run:ns[{}]-policy[{}]", dry.object.namespace, dry.object.name))
}

/// What dry-run policies would have answered (AP-18): each with its id.
fn dry_runs(decision: &InboundDecision) -> impl Iterator<Item = (String, &'static str)> {
    decision.authorization.dry_run.iter().filter_map(|dry| {
        let outcome = match dry.outcome {
            AuthorizationOutcome::Allow => "allow",
            AuthorizationOutcome::Deny => "deny",
            AuthorizationOutcome::None => return None,
        };
        Some((format!("ns[{}]-policy[{}]", dry.object.namespace, dry.object.name), outcome))
    })
}

/// Counts what the policies say that decide nothing: dry runs (AP-18).
pub(crate) fn count_dry_runs(metrics: &Metrics, decision: &InboundDecision) {
    for (policy, outcome) in dry_runs(decision) {
        metrics.dry_run(&policy, outcome);
    }
}

/// Counts the AUDIT policies that matched, and names them for the log; `None` where none did (AP-1).
pub(crate) fn audit(metrics: &Metrics, decision: &InboundDecision) -> Option<String> {
    let audited: Vec<String> = decision.authorization.audited().collect();
    audited.iter().for_each(|policy| metrics.audited(policy));
    (!audited.is_empty()).then(|| audited.join(","))
}

#[cfg(test)]
mod tests {
    use weft_core::ObjectRef;
    use weft_core::decide::{AuthorizationDecision, DryRun};
    use weft_core::resource::{Kind, MtlsMode};
    use weft_core::snapshot::EffectiveMode;

    use super::*;

    fn decision(verdict: Verdict) -> InboundDecision {
        let object = Some(ObjectRef::new(Kind::PeerAuthentication, "shop", "strict"));
        InboundDecision {
            verdict,
            peer_authentication: EffectiveMode { mode: MtlsMode::Strict, object },
            authorization: AuthorizationDecision {
                outcome: AuthorizationOutcome::None,
                external: Vec::new(),
                action: None,
                object: None,
                rule: None,
                dry_run: Vec::new(),
                audits: Vec::new(),
            },
        }
    }

    #[test]
    fn strict_names_the_peer_authentication() {
        let refusal = Refusal::of(&decision(Verdict::DenyPeerAuthentication));
        assert_eq!(
            refusal.details,
            "peer authentication STRICT (PeerAuthentication shop/strict) refuses plaintext"
        );
        assert_eq!(refusal.policy, None);
    }

    #[test]
    fn a_denial_names_policy_and_rule() {
        let mut denied = decision(Verdict::DenyAuthorization);
        assert_eq!(Refusal::of(&denied).details, "no ALLOW policy of the workload matched");
        denied.authorization.object = Some(ObjectRef::new(Kind::AuthorizationPolicy, "shop", "no-cart"));
        denied.authorization.rule = Some(2);
        assert_eq!(Refusal::of(&denied).policy.as_deref(), Some("ns[shop]-policy[no-cart]-rule[2]"));
    }

    #[test]
    fn a_dry_run_says_that_it_is_one() {
        let mut allowed = decision(Verdict::Allow);
        assert_eq!(policy_id(&allowed), None);
        let object = ObjectRef::new(Kind::AuthorizationPolicy, "shop", "trial");
        allowed.authorization.dry_run = vec![DryRun { object, outcome: AuthorizationOutcome::Deny }];
        assert_eq!(policy_id(&allowed).as_deref(), Some("dry-run:ns[shop]-policy[trial]"));
    }
}
