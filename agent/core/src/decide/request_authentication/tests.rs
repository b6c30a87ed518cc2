use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::*;
use crate::decide::http::Request;
use crate::resource::request_authentication::JwtRule;
use crate::resource::{Resource, request_authentication::RequestAuthentication};
use crate::snapshot::LocalWorkload;
use crate::testing::{self, jwt_rule as rule};

fn object(name: &str, selector: &str, rules: Vec<JwtRule>) -> Resource {
    Resource::RequestAuthentication(testing::request_authentication(name, selector, rules))
}

/// The pod `shop/web` under these rules.
fn workload(objects: Vec<Resource>) -> LocalWorkload {
    let pod = Resource::Pod(testing::pod("shop/web", &["10.0.0.1"], "app=web"));
    let snapshot = testing::compile(objects.into_iter().chain([pod]));
    (*snapshot.local()[0]).clone()
}

fn under(rules: Vec<JwtRule>) -> LocalWorkload {
    workload(vec![object("shop/tokens", "", rules)])
}

/// A token is `issuer:subject`, valid by a rule of that issuer unless the subject is `bad`; the keys of `far` are
/// not there yet.
fn verify(rule: &JwtRule, token: &str) -> Result<Claims, JwtFailure> {
    let (issuer, subject) = token.split_once(':').ok_or(JwtFailure::Form)?;
    if !rule.issuer.is_empty() && *rule.issuer != *issuer {
        return Err(JwtFailure::Issuer);
    }
    match (issuer, subject) {
        ("far", _) => Err(JwtFailure::KeysMissing),
        (_, "bad") => Err(JwtFailure::Signature),
        (_, "elsewhere") => Err(JwtFailure::Audience),
        _ => Ok(claims(issuer, subject)),
    }
}

fn claims(issuer: &str, subject: &str) -> Claims {
    let text = |text: &str| Claim::Text(text.into());
    let values = vec![
        ("scope".to_owned(), text("read write")),
        ("own".to_owned(), text("a  b")),
        ("plain".to_owned(), text("a b")),
        ("n".to_owned(), Claim::Number("7".into())),
        ("evil".to_owned(), text("x\r\ny: z")),
        ("deep".to_owned(), Claim::Map(vec![("list".to_owned(), Claim::List(vec![text("p\"q")]))])),
    ];
    let (issuer, subject) = (issuer.to_owned(), subject.to_owned());
    Claims { issuer, subject, values: Claim::Map(values), payload: "PAYLOAD".into() }
}

fn ask(workload: &LocalWorkload, target: &str, headers: &[(&str, &str)]) -> Authentication {
    ask_with("GET", workload, target, headers)
}

fn ask_with(
    method: &str,
    workload: &LocalWorkload,
    target: &str,
    headers: &[(&str, &str)],
) -> Authentication {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(HeaderName::try_from(*name).unwrap(), HeaderValue::from_str(value).unwrap());
    }
    let request = Request { method, scheme: "http", authority: "web", target, headers: &map };
    let answer = authenticate(workload, &request, &verify);
    assert_eq!(answer.refusal(&request).is_some(), matches!(answer.outcome, Outcome::Invalid(_)));
    answer
}

fn bearer(token: &str) -> (&'static str, String) {
    ("authorization", format!("Bearer {token}"))
}

fn with_bearer(workload: &LocalWorkload, token: &str) -> Authentication {
    let (name, value) = bearer(token);
    ask(workload, "/", &[(name, &value)])
}

#[test]
fn without_rules_nothing_is_looked_at() {
    assert_eq!(with_bearer(&workload(Vec::new()), "me:bad"), Authentication::default());
}

#[test]
fn a_token_is_valid_invalid_or_missing() {
    let local = under(vec![rule("me")]);
    let valid = with_bearer(&local, "me:x");
    assert_eq!((valid.outcome, valid.principal.as_deref()), (Outcome::Valid, Some("me/x")));
    assert_eq!(valid.object.unwrap().to_string(), "RequestAuthentication shop/tokens");
    assert_eq!(with_bearer(&local, "me:bad").outcome, Outcome::Invalid(JwtFailure::Signature));
    assert_eq!(with_bearer(&local, "nonsense").outcome, Outcome::Invalid(JwtFailure::Form));
    assert_eq!(with_bearer(&local, "you:x").outcome, Outcome::Invalid(JwtFailure::Issuer));
    assert_eq!(ask(&local, "/", &[]).outcome, Outcome::Missing);
    // E40: other schemes, and `bearer` in lower case, are no tokens.
    assert_eq!(ask(&local, "/", &[("authorization", "Basic me:bad")]).outcome, Outcome::Missing);
    assert_eq!(ask(&local, "/", &[("authorization", "bearer me:bad")]).outcome, Outcome::Missing);
    assert_eq!(ask(&local, "/?access_token=me:x", &[]).outcome, Outcome::Valid);
    assert_eq!(ask(&local, "/?access%5Ftoken=m%65%3ax", &[]).outcome, Outcome::Valid, "it is decoded");
}

#[test]
fn answers_are_those_of_e40() {
    let local = under(vec![rule("me")]);
    let map = HeaderMap::new();
    let request =
        Request { method: "GET", scheme: "http", authority: "web\"", target: "/a?b=c", headers: &map };
    let refused = with_bearer(&local, "me:bad");
    let reply = refused.refusal(&request).unwrap();
    assert_eq!((reply.status, &*reply.body, reply.by), (401, &b"Jwt verification fails"[..], "jwt"));
    let challenge = r#"Bearer realm="http://web/a", error="invalid_token""#;
    assert_eq!(reply.headers, [("www-authenticate".into(), challenge.to_owned())]);
    assert_eq!(refused.details().unwrap(), "jwt_authn_access_denied{Jwt_verification_fails}");
    assert_eq!(with_bearer(&local, "me:elsewhere").refusal(&request).unwrap().status, 403);
}

#[test]
fn one_of_several_rules_must_accept_each_token() {
    let local = under(vec![rule("you"), rule("me"), rule("far")]);
    assert_eq!(with_bearer(&local, "me:x").principal.as_deref(), Some("me/x"));
    assert_eq!(with_bearer(&local, "you:x").principal.as_deref(), Some("you/x"));
    assert_eq!(with_bearer(&local, "they:x").outcome, Outcome::Invalid(JwtFailure::Issuer));
    // The failure that says most is told.
    assert_eq!(with_bearer(&local, "me:bad").outcome, Outcome::Invalid(JwtFailure::Signature));
    let two = [("authorization", "Bearer me:x"), ("authorization", "Bearer you:bad")];
    assert_eq!(ask(&local, "/", &two).outcome, Outcome::Invalid(JwtFailure::Signature));
    let (name, value) = bearer("me:x");
    let elsewhere = ask(&local, "/?access_token=me:bad", &[(name, &value)]);
    assert_eq!(elsewhere.outcome, Outcome::Invalid(JwtFailure::Signature));
    let hidden = ask(&local, "/?access_token=me:x&access_token=me:bad", &[]);
    assert_eq!(hidden.outcome, Outcome::Invalid(JwtFailure::Signature));
}

#[test]
fn only_the_issuers_own_keys_are_waited_for() {
    let local = under(vec![rule("far"), rule("me")]);
    assert_eq!(with_bearer(&local, "me:x").outcome, Outcome::Valid);
    let Outcome::KeysMissing(wanted) = with_bearer(&local, "far:x").outcome else { panic!("no keys wanted") };
    assert_eq!(wanted.iter().map(|policy| &*policy.rule.issuer).collect::<Vec<_>>(), ["far"]);
}

#[test]
fn locations_replace_the_defaults() {
    let own = JwtRule {
        from_headers: vec![("x-token".into(), "Token ".into()), ("x-bare".into(), "".into())],
        from_params: vec!["t".into()],
        from_cookies: vec!["jar".into()],
        ..rule("me")
    };
    let local = under(vec![own]);
    assert_eq!(with_bearer(&local, "me:bad").outcome, Outcome::Missing);
    assert_eq!(ask(&local, "/?access_token=me:bad", &[]).outcome, Outcome::Missing);
    for (target, headers) in [
        ("/", vec![("x-token", "Token me:x")]),
        ("/", vec![("x-bare", "me:x")]),
        ("/?a=b&t=me:x", vec![]),
        ("/", vec![("cookie", "a=b; jar=me:x; c")]),
        ("/", vec![("cookie", "a=b"), ("cookie", "jar=\"me:x\"")]),
    ] {
        assert_eq!(ask(&local, target, &headers).outcome, Outcome::Valid, "{target} {headers:?}");
    }
}

#[test]
fn tokens_are_taken_out_unless_they_are_to_be_forwarded() {
    let local = under(vec![rule("me")]);
    let removed: Vec<Arc<str>> = vec!["authorization".into()];
    assert_eq!(with_bearer(&local, "me:x").changes.remove, removed);
    let target = |target| ask(&local, target, &[]).target;
    assert_eq!(target("/a?access_token=me:x").as_deref(), Some("/a"));
    assert_eq!(target("/a?b=c&access_token=me:x&d").as_deref(), Some("/a?b=c&d"));
    assert_eq!(target("/a?b=%20&access%5ftoken=me%3Ax&d").as_deref(), Some("/a?b=%20&d"));
    assert_eq!(target("/a?b=c"), None);
    let forwarded = under(vec![JwtRule { forward_original_token: true, ..rule("me") }]);
    assert!(with_bearer(&forwarded, "me:x").changes.remove.is_empty());
    assert_eq!(ask(&forwarded, "/?access_token=me:x", &[]).target, None);
}

#[test]
fn payload_and_claims_go_to_headers_that_nobody_can_forge() {
    let outputs = [("x-n", "n"), ("x-deep", "deep.list"), ("x-none", "nothing"), ("x-evil", "evil")];
    let telling = JwtRule {
        output_payload_to_header: Some("x-payload".into()),
        output_claim_to_headers: outputs
            .iter()
            .map(|(header, claim)| ((*header).into(), (*claim).into()))
            .collect(),
        ..rule("me")
    };
    let local = under(vec![telling]);
    let changes = with_bearer(&local, "me:x").changes;
    let set: Vec<(&str, &str)> = changes.set.iter().map(|(name, value)| (&**name, &**value)).collect();
    assert_eq!(set, [("x-payload", "PAYLOAD"), ("x-n", "7"), ("x-deep", "WyJwXCJxIl0=")]);
    // Without a token they are removed as well.
    let names = ["x-deep", "x-evil", "x-n", "x-none", "x-payload"];
    let removed = ask(&local, "/", &[("x-payload", "forged")]).changes.remove;
    assert_eq!(removed.iter().map(|name| &**name).collect::<Vec<_>>(), names);
}

#[test]
fn words_become_lists() {
    let local = under(vec![JwtRule { space_delimited_claims: vec!["own".into()], ..rule("me") }]);
    let answer = with_bearer(&local, "me:x");
    let texts = |name: &str| answer.claims[0].at([name]).unwrap().texts().collect::<Vec<_>>();
    assert_eq!(texts("scope"), ["read", "write"]);
    assert_eq!(texts("own"), ["a", "b"]);
    assert_eq!(texts("plain"), ["a b"]);
}

#[test]
fn a_browsers_question_needs_no_token() {
    let local = under(vec![JwtRule { required: true, ..rule("me") }]);
    let cors = [("origin", "http://a"), ("access-control-request-method", "PUT")];
    assert_eq!(ask_with("OPTIONS", &local, "/", &cors).outcome, Outcome::Missing);
    assert_eq!(ask_with("OPTIONS", &local, "/", &cors[..1]).outcome, Outcome::Invalid(JwtFailure::Missing));
    assert_eq!(ask(&local, "/", &cors).outcome, Outcome::Invalid(JwtFailure::Missing));
}

#[test]
fn objects_of_root_namespace_and_selector_are_combined() {
    let issuers = |local: &LocalWorkload| {
        let rules = local.request_authentication.iter();
        rules.map(|policy| policy.rule.issuer.to_string()).collect::<Vec<_>>()
    };
    let gateway = match object("shop/gateway", "", vec![rule("g")]) {
        Resource::RequestAuthentication(object) => {
            Resource::RequestAuthentication(RequestAuthentication { targets_gateway: true, ..object })
        }
        other => other,
    };
    let local = workload(vec![
        object("shop/a", "", vec![rule("c"), rule("a")]),
        object("shop/b", "app=web", vec![rule("b")]),
        object("shop/c", "app=other", vec![rule("o")]),
        object("weft-system/all", "", vec![rule("d")]),
        object("weft-system/some", "app=web", vec![rule("e")]),
        object("bank/a", "", vec![rule("x")]),
        gateway,
    ]);
    assert_eq!(issuers(&local), ["a", "b", "c", "d", "e"]);
}

proptest::proptest! {
    /// Hostile requests neither panic nor get a principal.
    #[test]
    fn nothing_panics(target in ".{0,40}", cookie in "[ -~]{0,40}", authorization in "[ -~]{0,40}") {
        let local = under(vec![
            JwtRule { from_cookies: vec!["a".into()], from_params: vec!["a".into()], ..rule("me") },
            rule("you"),
        ]);
        let answer = ask(&local, &target, &[("cookie", &cookie), ("authorization", &authorization)]);
        proptest::prop_assert_eq!(answer.principal.is_some(), answer.outcome == Outcome::Valid);
    }
}
