//! The server's side: may this connection, or this request, reach that workload?

use http::HeaderMap;
use weft_core::decide::inbound::inbound;
use weft_core::decide::{
    AuthorizationDecision, AuthorizationOutcome, InboundConnection, InboundDecision, Verdict,
};
use weft_core::snapshot::{EffectiveMode, LocalWorkload};

use super::hop::Outcome;
use super::{
    AuthorizationView, DryRunView, ObjectView, PeerAuthenticationView, RequestAuthenticationView,
    ResponseView,
};

/// What the server's side of one endpoint answers.
#[derive(Debug, Clone)]
pub(super) struct Admission {
    /// `Allow`, or `Deny` (also where a token is refused).
    pub(super) outcome: Outcome,
    pub(super) peer_authentication: PeerAuthenticationView,
    /// `None` for connections, and where PeerAuthentication refused already.
    pub(super) request_authentication: Option<RequestAuthenticationView>,
    pub(super) authorization: AuthorizationView,
    /// The answer to a refused request; `None` where the connection is closed without a byte.
    pub(super) response: Option<ResponseView>,
    /// The headers as the application receives them; `None` where the server's side changes nothing.
    pub(super) headers: Option<HeaderMap>,
    /// The decision in words.
    pub(super) sentences: Vec<String>,
}

/// Asks about a connection of which nothing but bytes is known.
pub(super) fn connection(local: &LocalWorkload, connection: &InboundConnection<'_>) -> Admission {
    let decision = inbound(local, connection);
    let mut sentences = Vec::new();
    sentences.push(authentication_sentence(
        &decision.peer_authentication,
        connection.destination.port(),
        connection.identity.is_some(),
        decision.verdict,
    ));
    if decision.verdict != Verdict::DenyPeerAuthentication {
        sentences.push(authorization_sentence(&decision.authorization));
    }
    sentences.extend(dry_run_sentences(&decision.authorization));
    admission(&decision, sentences)
}

fn admission(decision: &InboundDecision, sentences: Vec<String>) -> Admission {
    Admission {
        outcome: match decision.verdict {
            Verdict::Allow => Outcome::Allow,
            Verdict::DenyPeerAuthentication | Verdict::DenyAuthorization => Outcome::Deny,
        },
        peer_authentication: PeerAuthenticationView {
            mode: decision.peer_authentication.mode.as_str().into(),
            object: decision.peer_authentication.object.as_ref().map(ObjectView::from),
        },
        request_authentication: None,
        authorization: authorization_view(&decision.authorization),
        response: None,
        headers: None,
        sentences,
    }
}

fn authentication_sentence(mode: &EffectiveMode, port: u16, identified: bool, verdict: Verdict) -> String {
    let by = match &mode.object {
        Some(object) => format!("by {object}"),
        None => "by default, as no PeerAuthentication says otherwise".into(),
    };
    let mode = mode.mode.as_str();
    let so = match (verdict, identified) {
        (Verdict::DenyPeerAuthentication, _) => "and the client proves no identity: denied",
        (Verdict::Allow | Verdict::DenyAuthorization, true) => "and the client's identity is proven",
        (Verdict::Allow | Verdict::DenyAuthorization, false) => "so a client without an identity may try",
    };
    format!("Port {port} is {mode} {by}, {so}.")
}

fn authorization_sentence(decision: &AuthorizationDecision) -> String {
    match (decision.outcome, &decision.object, decision.rule) {
        (AuthorizationOutcome::None, _, _) => "No AuthorizationPolicy selects the workload: allowed.".into(),
        (AuthorizationOutcome::Allow, Some(object), Some(rule)) => {
            format!("{object} allows it: spec.rules[{rule}] matches.")
        }
        (AuthorizationOutcome::Allow, _, _) => {
            "Only DENY policies select the workload and none of them matches: allowed.".into()
        }
        (AuthorizationOutcome::Deny, Some(object), Some(rule)) => {
            let action = decision.action.map_or("DENY", |action| action.as_str());
            format!("{object} (action {action}) denies it: spec.rules[{rule}] matches.")
        }
        (AuthorizationOutcome::Deny, _, _) => {
            "ALLOW policies select the workload and no rule of theirs matches: denied.".into()
        }
    }
}

fn dry_run_sentences(decision: &AuthorizationDecision) -> impl Iterator<Item = String> + '_ {
    decision.dry_run.iter().map(|dry| {
        format!("{} is a dry run: it would {} and decides nothing.", dry.object, outcome_text(dry.outcome))
    })
}

fn outcome_text(outcome: AuthorizationOutcome) -> &'static str {
    match outcome {
        AuthorizationOutcome::Allow => "allow",
        AuthorizationOutcome::Deny => "deny",
        AuthorizationOutcome::None => "none",
    }
}

fn authorization_view(decision: &AuthorizationDecision) -> AuthorizationView {
    AuthorizationView {
        outcome: outcome_text(decision.outcome).into(),
        action: decision.action.map(|action| action.as_str().into()),
        object: decision.object.as_ref().map(ObjectView::from),
        rule: decision.rule,
        dry_run: decision
            .dry_run
            .iter()
            .map(|dry| DryRunView {
                object: ObjectView::from(&dry.object),
                outcome: outcome_text(dry.outcome).into(),
            })
            .collect(),
    }
}

/// Asks about one request, as it leaves the client's side.
pub(super) fn request(
    local: &LocalWorkload,
    connection: &InboundConnection<'_>,
    _request: &weft_core::decide::http::Request<'_>,
) -> Admission {
    self::connection(local, connection)
}
