//! Requests with tokens that are signed.

use std::time::Duration;

use weft_core::resource::request_authentication::{JwtRule, KeySource};
use weft_core::resource::{Match, PolicyAction, Rule, Source, StringMatch};

use super::policy::{KEYS, jwt_rule, policy, tokens_by};
use super::*;

/// `{"iss":"testing","sub":"me","team":"blue"}` in base64url.
const PAYLOAD: &str = "eyJpc3MiOiJ0ZXN0aW5nIiwic3ViIjoibWUiLCJ0ZWFtIjoiYmx1ZSJ9";
/// `{"alg":"HS256","kid":"a"}`, and the signature by the key of [`KEYS`].
const A: [&str; 2] = ["eyJhbGciOiJIUzI1NiIsImtpZCI6ImEifQ", "CEawNhfsOJVmNmqdWxvpup12DSxjKFG8E95MS7aXQ-k"];
/// The same with `"kid":"b"`, by the key of [`NEW_KEYS`].
const B: [&str; 2] = ["eyJhbGciOiJIUzI1NiIsImtpZCI6ImIifQ", "Z0Ytm1KUBUnJKzv7w-zr7il8Zlug_mkXK7wqHF59juE"];

const NEW_KEYS: &str =
    r#"{"keys":[{"kty":"oct","kid":"b","k":"YW5vdGhlci1zZWNyZXQtYW5vdGhlci1zZWNyZXQteHg"}]}"#;

fn token([header, signature]: [&str; 2]) -> String {
    format!("{header}.{PAYLOAD}.{signature}")
}

fn with_authorization(target: &str, value: &str) -> Request<Body> {
    let mut request = get(target);
    request.headers_mut().insert("authorization", value.parse().unwrap());
    request
}

fn with_token(signed: [&str; 2]) -> Request<Body> {
    with_authorization("/", &format!("Bearer {}", token(signed)))
}

/// Lets in who has a token of `testing` for `me`.
fn only_me() -> Change {
    let principals = Match { any: [StringMatch::Exact("testing/me".into())].into(), not: Box::default() };
    let source = Source { request_principals: principals, ..Source::default() };
    let rule = Rule { from: vec![source], ..Rule::default() };
    policy("only-me", PolicyAction::Allow, None, rule)
}

#[test]
fn a_valid_token_is_taken_off_and_its_claims_are_passed_on() {
    run(async {
        for node in ["a", "b"] {
            let bed = Bed::new(node);
            bed.serve_tunnels();
            let app = App::echo(&bed, false).await;
            let mut mesh = Mesh::near(bed, &app, PortProtocol::Http);
            let rule = JwtRule {
                output_payload_to_header: Some("x-payload".into()),
                output_claim_to_headers: vec![("x-team".into(), "team".into())],
                ..jwt_rule(KeySource::Inline(KEYS.into()))
            };
            mesh.bed.change([tokens_by(rule.clone()), only_me()]);
            let mut request = with_token(A);
            request.headers_mut().insert("x-team", "forged".parse().unwrap());
            assert_eq!(mesh.send(request).await.status, 200, "{node}");
            let seen = app.next();
            assert_eq!(seen.header("authorization"), None);
            assert_eq!((seen.header("x-payload"), seen.header("x-team")), (Some(PAYLOAD), Some("blue")));
            assert_eq!(mesh.get("/").await.status, 403, "without a token there is no principal");
            let kept = JwtRule { forward_original_token: true, ..rule };
            mesh.bed.change([tokens_by(kept)]);
            assert_eq!(mesh.send(with_token(A)).await.status, 200);
            assert_eq!(app.next().header("authorization"), Some(&*format!("Bearer {}", token(A))));
        }
    });
}

#[test]
fn a_token_counts_where_and_as_it_is_signed() {
    run(async {
        let bed = Bed::new("a");
        let app = App::echo(&bed, false).await;
        let mut mesh = Mesh::near(bed, &app, PortProtocol::Http);
        mesh.bed.change([tokens_by(jwt_rule(KeySource::Inline(KEYS.into())))]);
        let forged = mesh.send(with_token([A[0], B[1]])).await;
        assert_eq!((forged.status, forged.body.as_str()), (401, "Jwt verification fails"));
        assert_eq!(app.requests(), 0);
        for value in ["Basic bWU6bWU=", &format!("bearer {}", token(A))] {
            assert_eq!(mesh.send(with_authorization("/", value)).await.status, 200, "{value}");
            assert_eq!(app.next().header("authorization"), Some(value), "it is not the mesh's to read");
        }
        assert_eq!(mesh.get(&format!("/?access_token={}", token(A))).await.status, 200);
        mesh.bed.change([only_me()]);
        assert_eq!(mesh.get(&format!("/?access_token={}", token(A))).await.status, 200);
        let lower = with_authorization("/", &format!("bearer {}", token(A)));
        assert_eq!(mesh.send(lower).await.status, 403, "no token was read");
    });
}

#[test]
fn keys_are_fetched_once_and_again_for_a_key_that_is_new() {
    run(async {
        let bed = Bed::new("a");
        let rotated = Rc::new(std::cell::Cell::new(false));
        let new = rotated.clone();
        let issuer = App::answering(&bed, false, move |_| {
            Response::new(Body::full(if new.get() { NEW_KEYS } else { KEYS }))
        })
        .await;
        let app = App::echo(&bed, false).await;
        let mut mesh = Mesh::near(bed, &app, PortProtocol::Http);
        let url = format!("http://{}/keys", issuer.addr);
        mesh.bed.change([tokens_by(jwt_rule(KeySource::Uri(url.into())))]);
        assert_eq!(mesh.get("/").await.status, 200);
        assert_eq!(issuer.requests(), 0, "nobody needed a key");
        for _ in 0..2 {
            assert_eq!(mesh.send(with_token(A)).await.status, 200);
        }
        assert_eq!(issuer.requests(), 1);
        assert_eq!(issuer.next().target(), "/keys");
        rotated.set(true);
        assert_eq!(mesh.send(with_token(B)).await.status, 401, "the keys are as good as new");
        assert_eq!(issuer.requests(), 0);
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(31)).await;
        tokio::time::resume();
        assert_eq!(mesh.send(with_token(B)).await.status, 200);
        assert_eq!(issuer.requests(), 1);
        assert_eq!(mesh.send(with_token(A)).await.status, 401, "the old key is withdrawn");
    });
}
