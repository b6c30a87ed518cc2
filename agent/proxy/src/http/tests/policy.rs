//! Who may ask for what.

use weft_core::resource::request_authentication::{JwtRule, KeySource, RequestAuthentication};
use weft_core::resource::{AuthorizationPolicy, PolicyAction, Rule};

use super::*;
use crate::testbed::{deny_all, strict};

fn policy(change: impl FnOnce(&mut Rule)) -> Change {
    let mut rule = Rule::default();
    change(&mut rule);
    Change::Upsert(Box::new(Resource::AuthorizationPolicy(AuthorizationPolicy {
        meta: meta(name("no-admin")),
        selector: Some([("app", "server")].into_iter().collect()),
        targets_gateway: false,
        provider: None,
        action: PolicyAction::Deny,
        dry_run: false,
        rules: vec![rule],
    })))
}

fn authentication(jwks: &str) -> Change {
    let rule = JwtRule {
        issuer: "testing".into(),
        audiences: Vec::new(),
        keys: KeySource::Inline(jwks.into()),
        from_headers: Vec::new(),
        from_params: Vec::new(),
        from_cookies: Vec::new(),
        output_payload_to_header: None,
        output_claim_to_headers: Vec::new(),
        forward_original_token: false,
        timeout: std::time::Duration::from_secs(5),
        space_delimited_claims: Vec::new(),
        required: false,
    };
    Change::Upsert(Box::new(Resource::RequestAuthentication(RequestAuthentication {
        meta: meta(name("tokens")),
        selector: None,
        targets_gateway: false,
        rules: vec![rule],
    })))
}

const KEYS: &str =
    r#"{"keys":[{"kty":"oct","kid":"a","k":"c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA"}]}"#;

#[test]
fn a_request_that_policy_refuses_is_answered_and_the_connection_lives_on() {
    run(async {
        for node in ["a", "b"] {
            let bed = Bed::new(node);
            bed.serve_tunnels();
            let app = App::echo(&bed, false).await;
            let mut mesh = Mesh::near(bed, &app, PortProtocol::Http);
            let mut client = mesh.http1().await;
            assert_eq!(Reply::of(client.send_request(get("/admin")).await.unwrap()).await.status, 200);
            mesh.bed.change([deny_all()]);
            for _ in 0..2 {
                client.ready().await.unwrap();
                let reply = Reply::of(client.send_request(get("/admin")).await.unwrap()).await;
                assert_eq!((reply.status, reply.body.as_str()), (403, "RBAC: access denied"), "{node}");
            }
            assert_eq!(app.requests(), 1);
            mesh.logged("rbac_access_denied_matched_policy[ns[shop]-policy[nobody]-rule[0]]").await;
            mesh.bed.change([crate::testbed::allow_again()]);
            client.ready().await.unwrap();
            assert_eq!(Reply::of(client.send_request(get("/")).await.unwrap()).await.status, 200);
        }
    });
}

#[test]
fn a_grpc_caller_is_refused_in_its_own_words() {
    run(async {
        let bed = Bed::new("a");
        let app = App::echo(&bed, true).await;
        let mut mesh = Mesh::near(bed, &app, PortProtocol::Grpc);
        mesh.bed.change([deny_all()]);
        let request =
            Request::post(format!("http://{HOST}/a.B/C")).header("content-type", "application/grpc");
        let response = mesh.http2().await.send_request(request.body(Body::empty()).unwrap()).await.unwrap();
        let reply = Reply::of(response).await;
        assert_eq!((reply.status, reply.header("grpc-status")), (200, Some("7")));
        assert_eq!(reply.header("grpc-message"), Some("RBAC: access denied"));
    });
}

#[test]
fn a_token_that_is_none_is_refused_with_401() {
    run(async {
        let bed = Bed::new("a");
        let app = App::echo(&bed, false).await;
        let mut mesh = Mesh::near(bed, &app, PortProtocol::Http);
        mesh.bed.change([authentication(KEYS)]);
        assert_eq!(mesh.get("/").await.status, 200, "nobody asks for a token");
        let mut request = get("/x");
        request.headers_mut().insert("authorization", "Bearer nonsense".parse().unwrap());
        let reply = mesh.send(request).await;
        assert_eq!(reply.status, 401);
        assert_eq!(
            reply.body,
            "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections"
        );
        let challenge = reply.header("www-authenticate").unwrap();
        assert!(
            challenge.starts_with("Bearer realm=\"http://shop.shop.svc.cluster.local/x\""),
            "{challenge}"
        );
        assert!(challenge.ends_with("error=\"invalid_token\""), "{challenge}");
        mesh.logged("jwt_authn_access_denied").await;
    });
}

#[test]
fn plaintext_under_strict_is_closed_without_an_answer() {
    run(async {
        let bed = Bed::new("a");
        let app = App::echo(&bed, false).await;
        let inbound = bed.listen(&bed.server, Role::Inbound, SocketAddr::new(bed.other_ip, 0));
        let mut mesh = Mesh { bed, vip: inbound };
        mesh.bed.change([strict()]);
        let answer = mesh.raw(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n").as_bytes()).await;
        assert_eq!(answer, "");
        drop(app);
    });
}

#[test]
fn a_rule_without_conditions_is_a_rule_for_all() {
    // Guards the tests above: what they deny is denied by this policy, not by an accident.
    let Change::Upsert(resource) = policy(|_| {}) else { panic!("an upsert") };
    let Resource::AuthorizationPolicy(policy) = *resource else { panic!("a policy") };
    assert_eq!(policy.rules, vec![Rule::default()]);
}
