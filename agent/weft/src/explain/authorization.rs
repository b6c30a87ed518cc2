//! The server's side: may this connection, or this request, reach that workload?

use http::HeaderMap;
use weft_core::decide::http::{Request, apply};
use weft_core::decide::request_authentication::{self, Authentication, Claims, JwtFailure, authenticate};
use weft_core::decide::{
    AuthorizationDecision, AuthorizationOutcome, InboundConnection, InboundDecision, InboundRequest, Verdict,
    inbound,
};
use weft_core::resource::request_authentication::{JwtRule, KeySource};
use weft_core::snapshot::{EffectiveMode, LocalWorkload};
use weft_identity::jwt::{JwkSet, Unverified};

use super::hop::Outcome;
use super::reply;
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
    /// The path and query as the application receives them; `None` where no token leaves the query.
    pub(super) target: Option<String>,
    /// The decision in words.
    pub(super) sentences: Vec<String>,
}

/// Asks about a connection of which nothing but bytes is known.
pub(super) fn connection(local: &LocalWorkload, connection: &InboundConnection<'_>) -> Admission {
    let decision = inbound::inbound(local, connection);
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
    sentences.extend(audit_sentences(&decision.authorization));
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
        target: None,
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

fn audit_sentences(decision: &AuthorizationDecision) -> impl Iterator<Item = String> + '_ {
    decision.audits.iter().map(|audit| {
        format!("{} audits it: spec.rules[{}] matches. It is counted and logged.", audit.object, audit.rule)
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
    request: &Request<'_>,
) -> Admission {
    let opened = inbound::connection(local, connection);
    let port = connection.destination.port();
    let first = authentication_sentence(
        &opened.peer_authentication,
        port,
        connection.identity.is_some(),
        opened.verdict,
    );
    if opened.verdict == Verdict::DenyPeerAuthentication {
        return admission(&opened, vec![first]);
    }
    let authentication = authenticate(local, request, &|rule, token| verify(rule, token));
    let tokens = authentication_view(&authentication);
    let mut sentences = vec![first];
    sentences.extend(token_sentence(&authentication));
    if let Some(refusal) = authentication.refusal(request) {
        return Admission {
            outcome: Outcome::Deny,
            request_authentication: Some(tokens),
            response: Some(reply::view(&refusal, false)),
            ..admission(&opened, sentences)
        };
    }
    let asked =
        InboundRequest { connection: *connection, request: *request, authentication: &authentication };
    let decision = inbound::request(local, &asked);
    sentences.extend(decision.authorization.external.iter().map(|check| {
        format!(
            "{} wants the external authoriser `{}` asked (spec.rules[{}] matches): the request goes on only if it \
             allows it.",
            check.object, check.provider.name, check.rule
        )
    }));
    sentences.push(authorization_sentence(&decision.authorization));
    sentences.extend(dry_run_sentences(&decision.authorization));
    sentences.extend(audit_sentences(&decision.authorization));
    let mut headers = request.headers.clone();
    apply(&authentication.changes, &mut headers);
    Admission {
        request_authentication: Some(tokens),
        response: decision.refusal().map(|refusal| reply::view(&refusal, false)),
        headers: (headers != *request.headers).then_some(headers),
        target: authentication.target,
        ..admission(&decision, sentences)
    }
}

/// Verifies with the keys that stand in the configuration; nothing is fetched.
fn verify(rule: &JwtRule, token: &str) -> Result<Claims, JwtFailure> {
    let token = Unverified::read(rule, token, jiff::Timestamp::now().as_second())?;
    let keys = match &rule.keys {
        KeySource::Inline(text) => JwkSet::parse(text).map_err(|_| JwtFailure::KeysInvalid)?,
        KeySource::Uri(_) | KeySource::Discovery => return Err(JwtFailure::KeysUnavailable),
    };
    token.verify(&keys)
}

fn authentication_view(authentication: &Authentication) -> RequestAuthenticationView {
    let (outcome, error) = match &authentication.outcome {
        request_authentication::Outcome::None => ("none", None),
        request_authentication::Outcome::Missing => ("missing", None),
        request_authentication::Outcome::Valid => ("valid", None),
        request_authentication::Outcome::Invalid(JwtFailure::Missing) => {
            ("missing", Some(JwtFailure::Missing.to_string()))
        }
        request_authentication::Outcome::Invalid(failure) => ("invalid", Some(failure.to_string())),
        request_authentication::Outcome::KeysMissing(_) => {
            ("invalid", Some(JwtFailure::KeysUnavailable.to_string()))
        }
    };
    RequestAuthenticationView {
        outcome: outcome.into(),
        issuer: authentication.claims.first().map(|claims| claims.issuer.clone()),
        object: authentication.object.as_ref().map(ObjectView::from),
        error,
    }
}

fn token_sentence(authentication: &Authentication) -> Option<String> {
    let by = authentication.object.as_ref().map(ToString::to_string).unwrap_or_default();
    Some(match &authentication.outcome {
        request_authentication::Outcome::None => return None,
        request_authentication::Outcome::Missing => {
            "RequestAuthentication finds no token, which is no reason to refuse the request.".into()
        }
        request_authentication::Outcome::Valid => {
            let principal = authentication.principal.as_deref().unwrap_or("nobody (it lacks `iss` or `sub`)");
            format!("The token is valid by {by}: the request speaks for {principal}.")
        }
        request_authentication::Outcome::Invalid(JwtFailure::KeysUnavailable)
        | request_authentication::Outcome::KeysMissing(_) => {
            format!("The keys of {by} are not in the configuration, so the token cannot be verified here.")
        }
        request_authentication::Outcome::Invalid(failure) => {
            format!("{by} refuses the request: {failure}.")
        }
    })
}

#[cfg(test)]
#[path = "authorization_tests.rs"]
mod tests;
