use std::time::Duration;

use super::*;
use crate::testing;

fn provider() -> ExtAuthz {
    ExtAuthz {
        name: "auth".into(),
        grpc: false,
        service: "auth".into(),
        port: 80,
        timeout: Duration::from_secs(1),
        fail_open: false,
        status_on_error: 503,
        path_prefix: Some("/check".into()),
        include_request_headers: vec!["x-want".into(), "cook*".into(), "*-id".into()],
        include_additional_headers: vec![("x-from".into(), "mesh".into())],
        include_body: None,
        headers_to_upstream_on_allow: vec!["x-user".into(), "x-group".into()],
        headers_to_downstream_on_deny: Vec::new(),
        headers_to_downstream_on_allow: vec!["x-seen".into()],
    }
}

fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    let pairs = pairs.iter();
    pairs.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
}

fn request(headers: &HeaderMap) -> Request<'_> {
    Request { method: "PUT", scheme: "http", authority: "shop:80", target: "/a?b", headers }
}

fn pairs(changes: &[(Arc<str>, Arc<str>)]) -> Vec<(&str, &str)> {
    changes.iter().map(|(name, value)| (&**name, &**value)).collect()
}

#[test]
fn an_http_provider_gets_what_it_wants_and_no_more() {
    let sent = headers(&[
        ("authorization", "Bearer t"),
        ("x-want", "1"),
        ("x-other", "2"),
        ("cookie", "c=d"),
        ("x-request-id", "7"),
        ("connection", "close"),
        ("x-from", "client"),
    ]);
    let check = http_check(&provider(), &request(&sent));
    assert_eq!((&*check.method, &*check.target, &*check.authority), ("PUT", "/check/a?b", "shop:80"));
    let expected = headers(&[
        ("authorization", "Bearer t"),
        ("x-want", "1"),
        ("cookie", "c=d"),
        ("x-request-id", "7"),
        ("x-from", "mesh"),
    ]);
    assert_eq!(check.headers, expected);
}

#[test]
fn only_200_allows() {
    let answer =
        headers(&[("x-user", "me"), ("x-group", "a"), ("x-group", "b"), ("x-seen", "1"), ("x-no", "2")]);
    let Answer::Allow(allowed) = http_answer(&provider(), 200, &answer, b"") else { panic!("denied") };
    assert_eq!(pairs(&allowed.request.set), [("x-user", "me"), ("x-group", "a")]);
    assert_eq!(pairs(&allowed.request.add), [("x-group", "b")]);
    assert_eq!(pairs(&allowed.response.set), [("x-seen", "1")]);
    for status in [204, 302, 401, 404] {
        let Answer::Deny(reply) = http_answer(&provider(), status, &answer, b"no") else {
            panic!("{status}")
        };
        assert_eq!((reply.status, &*reply.body, reply.details), (status, &b"no"[..], "ext_authz_denied"));
    }
}

#[test]
fn a_denial_passes_on_the_headers_that_are_configured() {
    let answer =
        headers(&[("location", "/login"), ("set-cookie", "a"), ("x-why", "b"), ("content-length", "2")]);
    let told = |provider: &ExtAuthz| {
        let Answer::Deny(reply) = http_answer(provider, 302, &answer, b"") else { panic!("allowed") };
        reply.headers.into_iter().map(|(name, _)| name.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(told(&provider()), ["location", "set-cookie", "x-why"]);
    let some = ExtAuthz { headers_to_downstream_on_deny: vec!["set-*".into()], ..provider() };
    assert_eq!(told(&some), ["location", "set-cookie"]);
}

#[test]
fn a_failure_is_a_denial_unless_it_may_be_none() {
    for answer in [failure(&provider()), http_answer(&provider(), 500, &HeaderMap::new(), b"x")] {
        let Answer::Deny(reply) = answer else { panic!("allowed") };
        assert_eq!(
            (reply.status, reply.details, reply.flag, reply.body.len()),
            (503, "ext_authz_error", "UAEX", 0)
        );
    }
    let open = ExtAuthz { fail_open: true, ..provider() };
    assert_eq!(failure(&open), Answer::Allow(Allowed::default()));
    assert_eq!(grpc_answer(&open, 14, b""), Answer::Allow(Allowed::default()));
    // Even an open provider may refuse.
    assert!(matches!(http_answer(&open, 403, &HeaderMap::new(), b""), Answer::Deny(_)));
}

#[test]
fn a_grpc_provider_answers() {
    use wire::tests::{allowed, denied, option};
    let message = denied(401, &[option("WWW-Authenticate", "x", false)], "who?");
    let Answer::Deny(reply) = grpc_answer(&provider(), 0, &message) else { panic!("allowed") };
    assert_eq!((reply.status, &*reply.body), (401, &b"who?"[..]));
    assert_eq!(reply.headers, [("www-authenticate".into(), "x".to_owned())]);
    let Answer::Deny(reply) = grpc_answer(&provider(), 0, &denied(0, &[], "")) else { panic!("allowed") };
    assert_eq!(reply.status, 403);
    let options = [option("X-User", "me", false), option("x-group", "a", true)];
    let message = allowed(&options, &["X-Secret"], &[option("x-seen", "1", false)]);
    let Answer::Allow(allowed) = grpc_answer(&provider(), 0, &message) else { panic!("denied") };
    assert_eq!(pairs(&allowed.request.set), [("x-user", "me")]);
    assert_eq!(pairs(&allowed.request.add), [("x-group", "a")]);
    assert_eq!(allowed.request.remove, ["x-secret".into()]);
    assert_eq!(pairs(&allowed.response.set), [("x-seen", "1")]);
    // No status at all is OK (0), as protobuf has it; a call that failed is not.
    assert_eq!(grpc_answer(&provider(), 0, b""), Answer::Allow(Allowed::default()));
    assert!(matches!(grpc_answer(&provider(), 2, b""), Answer::Deny(_)));
    assert!(matches!(grpc_answer(&provider(), 0, b"\xff"), Answer::Deny(_)));
}

#[test]
fn a_grpc_provider_is_told_who_asks_for_what() {
    let sent = headers(&[("x-a", "1"), ("x-a", "2"), ("x-request-id", "7")]);
    let id = testing::identity("cluster.local/ns/shop/sa/client");
    let check = GrpcCheck {
        connection: testing::connection(Some(&id), "10.0.0.9", "10.0.0.1:8080"),
        source_port: 4711,
        destination_principal: "spiffe://cluster.local/ns/shop/sa/web",
        request: request(&sent),
        protocol: "HTTP/2",
        body: b"hello",
        now: 1_800_000_000,
    };
    let message = grpc_check(&check);
    let has = |text: &str| message.windows(text.len()).any(|window| window == text.as_bytes());
    for text in [
        "spiffe://cluster.local/ns/shop/sa/client",
        "spiffe://cluster.local/ns/shop/sa/web",
        "10.0.0.9",
        "10.0.0.1",
        "PUT",
        "/a?b",
        "shop:80",
        "HTTP/2",
        "hello",
        "1,2",
        ":path",
    ] {
        assert!(has(text), "{text}");
    }
}
