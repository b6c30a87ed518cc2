//! Who may ask for what.

use std::time::Duration;

use http_body_util::StreamBody;
use hyper::body::Frame;
use weft_core::resource::request_authentication::{JwtRule, KeySource, RequestAuthentication};
use weft_core::resource::virtual_service::ExportTo;
use weft_core::resource::{
    AuthorizationPolicy, ExportDefaults, ExtAuthz, Match, MeshConfig, MeshHttp, NamespacedName, Operation,
    PathMatch, PolicyAction, Rule, StringMatch,
};

use super::*;
use crate::testbed::{deny_all, strict};

/// A policy for the server pod.
pub(super) fn policy(name_: &str, action: PolicyAction, provider: Option<&str>, rule: Rule) -> Change {
    Change::Upsert(Box::new(Resource::AuthorizationPolicy(AuthorizationPolicy {
        meta: meta(name(name_)),
        selector: Some([("app", "server")].into_iter().collect()),
        targets_gateway: false,
        provider: provider.map(Into::into),
        action,
        dry_run: false,
        rules: vec![rule],
    })))
}

/// A rule for paths that begin so.
pub(super) fn of_path(path: &str) -> Rule {
    let paths =
        Match { any: [PathMatch::Text(StringMatch::Prefix(path.into()))].into(), not: Box::default() };
    let operation = Operation { paths, ..Operation::default() };
    Rule { to: vec![operation], ..Rule::default() }
}

fn authentication(keys: KeySource) -> Change {
    tokens_by(jwt_rule(keys))
}

/// A rule for tokens of `testing`.
pub(super) fn jwt_rule(keys: KeySource) -> JwtRule {
    JwtRule {
        issuer: "testing".into(),
        audiences: Vec::new(),
        keys,
        from_headers: Vec::new(),
        from_params: Vec::new(),
        from_cookies: Vec::new(),
        output_payload_to_header: None,
        output_claim_to_headers: Vec::new(),
        forward_original_token: false,
        timeout: Duration::from_secs(5),
        space_delimited_claims: Vec::new(),
        required: false,
    }
}

/// The namespace's RequestAuthentication.
pub(super) fn tokens_by(rule: JwtRule) -> Change {
    Change::Upsert(Box::new(Resource::RequestAuthentication(RequestAuthentication {
        meta: meta(name("tokens")),
        selector: None,
        targets_gateway: false,
        rules: vec![rule],
    })))
}

pub(super) const KEYS: &str =
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
            let refused =
                "weft_refused_total{reason=\"authorization\",policy=\"ns[shop]-policy[nobody]-rule[0]\"} 2\n";
            assert!(mesh.bed.metrics().contains(refused), "each once: {}", mesh.bed.metrics());
            mesh.bed.change([crate::testbed::allow_again()]);
            client.ready().await.unwrap();
            assert_eq!(Reply::of(client.send_request(get("/")).await.unwrap()).await.status, 200);
        }
    });
}

#[test]
fn an_audit_policy_is_counted_and_logged_and_decides_nothing() {
    run(async {
        for node in ["a", "b"] {
            let bed = Bed::new(node);
            bed.serve_tunnels();
            let app = App::echo(&bed, false).await;
            let mut mesh = Mesh::near(bed, &app, PortProtocol::Http);
            mesh.bed.change([policy("watch", PolicyAction::Audit, None, of_path("/admin"))]);
            assert_eq!(mesh.get("/admin/x").await.status, 200);
            assert_eq!(mesh.get("/shop").await.status, 200);
            let audited =
                |count| format!("weft_audit_total{{policy=\"ns[shop]-policy[watch]-rule[0]\"}} {count}\n");
            assert!(mesh.bed.metrics().contains(&audited(1)), "{node}: {}", mesh.bed.metrics());
            mesh.logged("GET /admin/x").await;
            assert!(!mesh.bed.log().contains("/shop"), "{}", mesh.bed.log());
            // What another policy refuses is audited as well.
            mesh.bed.change([deny_all()]);
            assert_eq!(mesh.get("/admin/y").await.status, 403);
            assert!(mesh.bed.metrics().contains(&audited(2)), "{node}: {}", mesh.bed.metrics());
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
        mesh.bed.change([authentication(KeySource::Inline(KEYS.into()))]);
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
        let refused = "weft_refused_total{reason=\"request_authentication\",policy=\"\"} 1";
        assert!(mesh.bed.metrics().contains(refused), "{}", mesh.bed.metrics());
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
fn keys_that_cannot_be_fetched_refuse_tokens() {
    run(async {
        let bed = Bed::new("a");
        let app = App::echo(&bed, false).await;
        let mut mesh = Mesh::near(bed, &app, PortProtocol::Http);
        let dead = std::net::TcpListener::bind((mesh.bed.server_ip, 0)).unwrap().local_addr().unwrap();
        mesh.bed.change([authentication(KeySource::Uri(format!("http://{dead}/keys").into()))]);
        // {"alg":"RS256"}.{"iss":"testing","sub":"me"}
        let token = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJ0ZXN0aW5nIiwic3ViIjoibWUifQ.c2ln";
        for _ in 0..2 {
            let mut request = get("/");
            request.headers_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
            let reply = mesh.send(request).await;
            assert_eq!((reply.status, reply.body.as_str()), (401, "Jwks remote fetch is failed"));
        }
        assert_eq!(mesh.get("/").await.status, 200, "others are not concerned");
    });
}

#[test]
fn a_policy_about_paths_decides_requests_also_on_an_undeclared_port() {
    run(async {
        for node in ["a", "b"] {
            let bed = Bed::new(node);
            bed.serve_tunnels();
            let app = App::echo(&bed, false).await;
            let mut mesh = Mesh::near(bed, &app, PortProtocol::Undeclared);
            mesh.bed.change([policy("paths", PolicyAction::Allow, None, of_path("/open"))]);
            assert_eq!(mesh.get("/open").await.status, 200, "{node}");
            assert_eq!(mesh.get("/closed").await.status, 403, "{node}");
            // What is no HTTP has no path, and nothing else allows it (AP-13).
            assert_eq!(mesh.raw(b"\0something else").await, "", "{node}");
            assert_eq!(app.requests(), 1);
        }
    });
}

/// MeshConfig with one authoriser, at an address outside the mesh.
fn authoriser(addr: SocketAddr) -> Change {
    authoriser_at(&addr.ip().to_string(), addr.port(), false)
}

fn authoriser_at(service: &str, port: u16, grpc: bool) -> Change {
    authorised_by(provider(service, port, grpc))
}

fn authorised_by(provider: ExtAuthz) -> Change {
    mesh_config(false, MeshHttp { ext_authz: vec![provider.into()], ..MeshHttp::default() })
}

fn provider(service: &str, port: u16, grpc: bool) -> ExtAuthz {
    ExtAuthz {
        name: "guard".into(),
        grpc,
        service: service.into(),
        port,
        timeout: Duration::from_secs(5),
        fail_open: false,
        status_on_error: 503,
        path_prefix: Some("/check".into()),
        include_request_headers: vec!["x-key".into()],
        include_additional_headers: Vec::new(),
        include_body: None,
        headers_to_upstream_on_allow: vec!["x-user".into()],
        headers_to_downstream_on_deny: vec!["x-why".into()],
        headers_to_downstream_on_allow: vec!["x-seen".into()],
    }
}

pub(super) fn mesh_config(registry_only: bool, http: MeshHttp) -> Change {
    settings(registry_only, ExportDefaults::default(), http)
}

/// Only registered hosts are reached, and Services are seen by these namespaces.
pub(super) fn exporting(services: Vec<ExportTo>) -> Change {
    settings(true, ExportDefaults { services, ..ExportDefaults::default() }, MeshHttp::default())
}

fn settings(registry_only: bool, exports: ExportDefaults, http: MeshHttp) -> Change {
    let config = MeshConfig {
        registry_only,
        exports,
        http,
        ..MeshConfig::new(NamespacedName::new("istio-system", "istio"))
    };
    Change::Upsert(Box::new(Resource::MeshConfig(config)))
}

#[test]
fn an_external_authoriser_is_asked_first_and_silence_is_a_refusal() {
    run(async {
        let bed = Bed::new("a");
        let guard = App::answering(&bed, false, |seen| {
            let allowed = seen.header("x-key") == Some("open");
            let mut response = Response::new(Body::full(if allowed { "" } else { "who are you?" }));
            let header = |text: &'static str| http::HeaderValue::from_static(text);
            if allowed {
                response.headers_mut().insert("x-user", header("me"));
                response.headers_mut().insert("x-seen", header("yes"));
            } else {
                *response.status_mut() = http::StatusCode::UNAUTHORIZED;
                response.headers_mut().insert("x-why", header("no key"));
            }
            response
        })
        .await;
        let app = App::echo(&bed, false).await;
        let mut mesh = Mesh::near(bed, &app, PortProtocol::Http);
        let custom = policy("guarded", PolicyAction::Custom, Some("guard"), of_path("/guarded"));
        mesh.bed.change([authoriser(guard.addr), custom]);
        assert_eq!(mesh.get("/free").await.status, 200);
        assert_eq!((guard.requests(), app.next().target().to_owned()), (0, "/free".to_owned()));
        let reply = mesh.get("/guarded").await;
        assert_eq!((reply.status, reply.body.as_str()), (401, "who are you?"));
        assert_eq!(reply.header("x-why"), Some("no key"));
        assert_eq!((guard.next().target(), app.requests()), ("/check/guarded", 0));
        mesh.logged("UAEX ext_authz_denied").await;
        let mut request = get("/guarded");
        request.headers_mut().insert("x-key", "open".parse().unwrap());
        let reply = mesh.send(request).await;
        assert_eq!((reply.status, reply.header("x-seen")), (200, Some("yes")));
        assert_eq!(app.next().header("x-user"), Some("me"));
        let dead = std::net::TcpListener::bind((mesh.bed.server_ip, 0)).unwrap().local_addr().unwrap();
        mesh.bed.change([authoriser(dead)]);
        assert_eq!(mesh.get("/guarded").await.status, 503);
        mesh.logged("ext_authz_error").await;
    });
}

#[test]
fn an_external_authoriser_of_the_mesh_is_asked_over_grpc() {
    run(async {
        let bed = Bed::new("a");
        let asked = Rc::new(std::cell::Cell::new(0));
        let count = asked.clone();
        let app = App::handling(&bed, true, move |request| {
            let check = request.uri().path() == weft_core::decide::ext_authz::GRPC_PATH;
            count.set(count.get() + u32::from(check));
            // The first time code 7, PERMISSION_DENIED, then no status, which is OK.
            let message: &[u8] =
                if count.get() == 1 { b"\0\0\0\0\x04\x0a\x02\x08\x07" } else { b"\0\0\0\0\0" };
            Box::pin(async move {
                if !check {
                    return Response::new(Body::full("hello"));
                }
                request.into_body().collect().await.unwrap();
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", "0".parse().unwrap());
                let frames = [Ok(Frame::data(Bytes::from_static(message))), Ok(Frame::trailers(trailers))];
                Response::new(Body::new(StreamBody::new(futures_util::stream::iter(frames))))
            })
        })
        .await;
        let mut mesh = Mesh::near(bed, &app, PortProtocol::Grpc);
        // It guards itself as well: it must not be asked about being asked.
        let custom = policy("guarded", PolicyAction::Custom, Some("guard"), Rule::default());
        mesh.bed.change([authoriser_at(HOST, mesh.vip.port(), true), custom]);
        let reply = mesh.get("/").await;
        assert_eq!((reply.status, asked.get()), (503, 0), "nobody is asked about the question");
        let custom = policy("guarded", PolicyAction::Custom, Some("guard"), of_path("/guarded"));
        mesh.bed.change([custom]);
        assert_eq!((mesh.get("/guarded").await.status, asked.get()), (403, 1));
        let reply = mesh.get("/guarded").await;
        assert_eq!((reply.status, reply.body.as_str(), asked.get()), (200, "hello", 2));
    });
}

#[test]
fn an_external_authoriser_sees_as_much_of_the_body_as_it_is_to_see() {
    run(async {
        for http2 in [false, true] {
            let bed = Bed::new("a");
            let guard = App::answering(&bed, false, |seen| {
                let mut response = Response::new(Body::empty());
                if seen.body.starts_with(b"bad") {
                    *response.status_mut() = http::StatusCode::FORBIDDEN;
                }
                response
            })
            .await;
            let app = App::echo(&bed, http2).await;
            let protocol = if http2 { PortProtocol::Http2 } else { PortProtocol::Http };
            let mut mesh = Mesh::near(bed, &app, protocol);
            let shown = |most, partial| {
                let provider = provider(&guard.addr.ip().to_string(), guard.addr.port(), false);
                authorised_by(ExtAuthz { include_body: Some((most, partial)), ..provider })
            };
            let custom = policy("guarded", PolicyAction::Custom, Some("guard"), Rule::default());
            mesh.bed.change([shown(8, false), custom]);
            assert_eq!(mesh.send(post("/", "bad one")).await.status, 403);
            assert_eq!(mesh.send(post("/", "good one")).await.status, 200);
            assert_eq!(mesh.get("/").await.status, 200);
            let reply = mesh.send(post("/", "good one?")).await;
            assert_eq!((reply.status, reply.body.as_str()), (413, "Payload Too Large"));
            mesh.logged("request_payload_too_large").await;
            let parts =
                ["good", " one", "?"].map(|part| Ok(Frame::data(Bytes::from_static(part.as_bytes()))));
            let body = Body::new(StreamBody::new(futures_util::stream::iter(parts)));
            let request = Request::post("/").header("host", HOST).body(body).unwrap();
            assert_eq!(mesh.send(request).await.status, 413, "nobody said how long it is");
            let asked: Vec<_> = (0..guard.requests()).map(|_| guard.next()).collect();
            let bodies: Vec<_> = asked.iter().map(|seen| &*seen.body).collect();
            assert_eq!(bodies, [&b"bad one"[..], b"good one", b""], "nobody was asked about the large one");
            assert_eq!(asked[1].header("x-envoy-auth-partial-body"), Some("false"));
            assert_eq!(&*app.next().body, b"good one");
            assert_eq!(&*app.next().body, b"");
            mesh.bed.change([shown(8, true)]);
            let large = crate::testbed::pattern(300_000);
            assert_eq!(mesh.send(post("/", large.clone())).await.status, 200);
            let seen = guard.next();
            assert_eq!((&*seen.body, seen.header("x-envoy-auth-partial-body")), (&large[..8], Some("true")));
            assert_eq!(&*app.next().body, large, "the application has it whole");
            assert_eq!(app.requests(), 0);
        }
    });
}
