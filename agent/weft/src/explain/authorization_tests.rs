use weft_core::kernel_view::LearnedPorts;

use super::super::{Explanation, Question, explain};
use crate::config;

const MESH: &str = r"
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {weft.dev/mesh: enabled}}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop}
spec: {nodeName: a, serviceAccountName: client}
status: {podIPs: [{ip: 10.0.0.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {nodeName: a, serviceAccountName: web}
status: {podIPs: [{ip: 10.0.0.2}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.2, selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: rpc, namespace: shop}
spec: {clusterIP: 10.96.0.3, selector: {app: web}, ports: [{name: grpc, port: 90, targetPort: 9090}]}
";

/// The secret is `thirty-two bytes of a test secret`.
const TOKENS: &str = r#"
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: tokens, namespace: shop}
spec:
  jwtRules:
  - issuer: me
    jwks: '{"keys": [{"kty": "oct", "k": "dGhpcnR5LXR3byBieXRlcyBvZiBhIHRlc3Qgc2VjcmV0"}]}'
    outputClaimToHeaders: [{header: x-subject, claim: sub}]
  - issuer: far
    jwksUri: https://far.example/keys
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: readers, namespace: shop}
spec:
  rules:
  - from: [{source: {requestPrincipals: [me/x]}}]
    to: [{operation: {methods: [GET], paths: [/items/*]}}]
    when: [{key: 'request.auth.claims[scope]', values: [write]}]
"#;

/// `{"iss":"me","sub":"x","exp":4733510400,"scope":"read write"}`
const GOOD: &str = "eyJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJtZSIsInN1YiI6IngiLCJleHAiOjQ3MzM1MTA0MDAsInNjb3BlIjoicmVhZCB3cml0ZSJ9.0nCL0FIUT9QJ_D4CCPdNaPaQX0Adg2B04ym19DzBi3k";
/// `{"iss":"me","sub":"x","exp":1000000000}`
const EXPIRED: &str = "eyJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJtZSIsInN1YiI6IngiLCJleHAiOjEwMDAwMDAwMDB9.iEJz0oebNwEk5VSVcQ5Y3Ex_Xhr40by8izcFOWK-Z18";
/// `{"iss":"far"}`, never verified.
const FAR: &str = "eyJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJmYXIifQ.AAAA";

fn ask(files: &[&str], to: &str, token: Option<&str>) -> Explanation {
    ask_with(files, to, token, &[])
}

fn ask_with(files: &[&str], to: &str, token: Option<&str>, headers: &[&str]) -> Explanation {
    let dir = tempfile::tempdir().unwrap();
    for (at, text) in files.iter().enumerate() {
        std::fs::write(dir.path().join(format!("{at}.yaml")), text).unwrap();
    }
    let snapshot = config::load(&[dir.path().to_owned()]).unwrap().snapshot;
    let question = Question {
        from: "shop/client".into(),
        to: to.into(),
        token: token.map(Into::into),
        headers: headers.iter().map(|line| (*line).into()).collect(),
        ..Question::default()
    };
    explain(&snapshot, &LearnedPorts::default(), &question).unwrap()
}

#[test]
fn a_token_opens_what_policy_gives_to_its_principal() {
    let answer = ask(&[MESH, TOKENS], "http://web/items/7", Some(GOOD));
    assert_eq!(answer.verdict, "allow", "{:#?}", answer.steps);
    let token = answer.request_authentication.unwrap();
    assert_eq!((token.outcome.as_str(), token.issuer.as_deref()), ("valid", Some("me")));
    assert_eq!(token.object.unwrap().name, "tokens");
    assert_eq!((answer.authorization.outcome.as_str(), answer.authorization.rule), ("allow", Some(0)));
    let headers = answer.request.unwrap().headers;
    assert!(headers.iter().any(|(name, value)| name == "x-subject" && value == "x"), "{headers:?}");
    assert!(headers.iter().all(|(name, _)| name != "authorization"), "{headers:?}");
}

#[test]
fn a_token_of_the_query_does_not_reach_the_application() {
    let answer = ask(&[MESH, TOKENS], &format!("http://web/items/7?access_token={GOOD}&page=2"), None);
    assert_eq!(answer.verdict, "allow", "{:#?}", answer.steps);
    assert_eq!(answer.request.unwrap().path.as_deref(), Some("/items/7?page=2"));
}

#[test]
fn refusals_say_by_whom_and_why() {
    for (to, token, outcome, status, by, error) in [
        ("http://web/items/7", None, "missing", 403, "authorization", None),
        ("http://web/other", Some(GOOD), "valid", 403, "authorization", None),
        ("http://web/items/7", Some(EXPIRED), "invalid", 401, "jwt", Some("Jwt is expired")),
        ("http://web/items/7", Some(FAR), "invalid", 401, "jwt", Some("Jwks remote fetch is failed")),
    ] {
        let answer = ask(&[MESH, TOKENS], to, token);
        assert_eq!(answer.verdict, "deny", "{to}");
        let response = answer.response.unwrap();
        assert_eq!((response.status, response.by.as_str()), (status, by), "{to}");
        let view = answer.request_authentication.unwrap();
        assert_eq!((view.outcome.as_str(), view.error.as_deref()), (outcome, error), "{to}");
    }
}

#[test]
fn callers_of_grpc_are_refused_in_their_terms() {
    let grpc = ["content-type: application/grpc"];
    let answer = ask_with(&[MESH, TOKENS], "http://rpc:90/pkg.Service/Method", None, &grpc);
    let response = answer.response.unwrap();
    assert_eq!(response.status, 200);
    assert!(response.headers.contains(&("grpc-status".into(), "7".into())), "{:?}", response.headers);
}

#[test]
fn an_external_authoriser_is_named() {
    const ASK: &str = r"
apiVersion: v1
kind: ConfigMap
metadata: {name: weft, namespace: weft-system}
data:
  mesh: |
    extensionProviders: [{name: authoriser, envoyExtAuthzHttp: {service: auth, port: 80}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: ask, namespace: shop}
spec:
  action: CUSTOM
  provider: {name: authoriser}
  rules: [{to: [{operation: {paths: [/items*]}}]}]
";
    let answer = ask(&[MESH, ASK], "http://web/items/7", None);
    assert_eq!(answer.verdict, "allow");
    assert!(
        answer.steps.iter().any(|step| step.contains("external authoriser `authoriser`")),
        "{:?}",
        answer.steps
    );
    let unknown = ASK.replace("provider: {name: authoriser}", "provider: {name: nobody}");
    let answer = ask(&[MESH, &unknown], "http://web/items/7", None);
    assert_eq!((answer.verdict.as_str(), answer.authorization.action.as_deref()), ("deny", Some("CUSTOM")));
}
