//! Hashing, CORS, faults, header changes, limits.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::compile::routing::policies::{Base, default_policy};
use crate::resource::destination_rule::HashAlgorithm;
use crate::resource::virtual_service::{AbortStatus, CorsPolicy as WrittenCors, Fault};

fn hashing(key: HashKey) -> ClusterPolicy {
    let algorithm = HashAlgorithm::Ring { minimum_size: 1024 };
    ClusterPolicy {
        load_balancer: LoadBalancer::ConsistentHash { key, algorithm },
        ..default_policy(&Base::default())
    }
}

fn hashed(key: HashKey, ask: &Ask, client: &str, fresh: u64) -> Hash {
    let client: IpAddr = ip(client);
    let snapshot = with([]);
    ask.with(&snapshot, |_, request| hash(&hashing(key), request, client, fresh))
}

fn cookie(path: Option<&str>, ttl: Option<u64>) -> HashKey {
    HashKey::Cookie {
        name: "sess".into(),
        path: path.map(Into::into),
        ttl: ttl.map(Duration::from_secs),
        attributes: Vec::new(),
    }
}

/// E33, D-7.
#[test]
fn headers_queries_and_addresses_are_hashed() {
    let header = |ask: &Ask| hashed(HashKey::Header("user".into()), ask, "10.0.0.1", 0).value;
    let jason = ask("b", "/").header("user", "jason");
    assert_eq!(header(&jason), header(&jason.clone().header("x", "y")));
    assert_ne!(header(&jason), header(&ask("b", "/").header("user", "jasom")));
    assert_eq!(header(&ask("b", "/")), None, "a missing header hashes to nothing");
    let query = |target: &str| hashed(HashKey::Query("u".into()), &ask("b", target), "10.0.0.1", 0).value;
    assert_eq!(query("/?u=1"), query("/x?a=b&u=1"));
    assert_eq!(query("/"), None);
    let source = |client: &str| hashed(HashKey::SourceIp, &ask("b", "/"), client, 0).value;
    assert!(source("10.0.0.1").is_some() && source("10.0.0.1") != source("10.0.0.2"));
}

/// E33: values spread evenly.
#[test]
fn hashes_spread() {
    let mut buckets = [0_usize; 3];
    for user in 0..300 {
        let asked = ask("b", "/").header("user", &format!("user-{user}"));
        let value = hashed(HashKey::Header("user".into()), &asked, "10.0.0.1", 0).value.expect("a hash");
        buckets[(value % 3) as usize] += 1;
    }
    assert!(buckets.iter().all(|bucket| (60..=140).contains(bucket)), "{buckets:?}");
}

/// E34.
#[test]
fn cookies_are_set_and_come_back_as_the_same_hash() {
    let ask0 = ask("b", "/");
    assert_eq!(hashed(cookie(None, None), &ask0, "10.0.0.1", 7), Hash::default());
    let first = hashed(cookie(None, Some(60)), &ask0, "10.0.0.1", 7);
    assert_eq!(first.set_cookie.as_deref(), Some("sess=\"0000000000000007\"; Max-Age=60; HttpOnly"));
    let session = hashed(cookie(Some("/p"), Some(0)), &ask0, "10.0.0.1", 7);
    assert_eq!(session.set_cookie.as_deref(), Some("sess=\"0000000000000007\"; Path=/p; HttpOnly"));
    let back = ask("b", "/").header("cookie", "a=b; sess=\"0000000000000007\"");
    let again = hashed(cookie(None, Some(60)), &back, "10.0.0.1", 9);
    assert_eq!(again, Hash { value: first.value, set_cookie: None });
}

pub(super) fn policy() -> WrittenCors {
    WrittenCors {
        allow_origins: vec![
            TextMatch::Exact("cors.com".into()),
            TextMatch::Regex(r"https://.*\.a\.com".into()),
        ],
        allow_methods: vec!["POST".into(), "GET".into()],
        allow_headers: vec!["X-A".into(), "X-B".into()],
        expose_headers: vec!["X-C".into()],
        max_age: Some(Duration::from_secs(86400)),
        allow_credentials: Some(true),
        ignore_unmatched_preflights: false,
    }
}

fn cors_of(policy: WrittenCors, ask: &Ask) -> Cors {
    let rule = HttpRule { cors: Some(policy), ..rule(vec![], &["b"]) };
    let snapshot = with([vs("default/b", &["b"], vec![rule])]);
    let decision = ask.route(&snapshot);
    let policy = decision.cors.expect("the policy");
    ask.with(&snapshot, |_, request| cors(&policy, request))
}

fn pairs(headers: &[(Arc<str>, String)]) -> Vec<(&str, &str)> {
    headers.iter().map(|(name, value)| (&**name, value.as_str())).collect()
}

/// E38.
#[test]
fn preflights_of_allowed_origins_are_answered() {
    let preflight = |origin: &str| {
        let asked = ask("b", "/").method("OPTIONS").header("origin", origin);
        asked.header("access-control-request-method", "DELETE")
    };
    let Cors::Preflight(reply) = cors_of(policy(), &preflight("cors.com")) else { panic!("not answered") };
    let expected = [
        ("access-control-allow-origin", "cors.com"),
        ("access-control-allow-credentials", "true"),
        ("access-control-expose-headers", "X-C"),
        ("access-control-allow-methods", "POST,GET"),
        ("access-control-allow-headers", "X-A,X-B"),
        ("access-control-max-age", "86400"),
    ];
    assert_eq!((reply.status, reply.by, pairs(&reply.headers)), (200, "cors", expected.to_vec()));
    assert_eq!(cors_of(policy(), &preflight("evil.com")), Cors::None, "forwarded");
    let ignoring = WrittenCors { ignore_unmatched_preflights: true, ..policy() };
    let Cors::Preflight(reply) = cors_of(ignoring, &preflight("evil.com")) else { panic!("not answered") };
    assert_eq!((reply.status, reply.headers.len()), (200, 0));
}

/// V-28: what covers `*` itself allows every origin, and the answer names the one that asked.
#[test]
fn a_star_allows_every_origin() {
    let asked = ask("b", "/").header("origin", "https://any.example");
    for (origin, allowed) in [
        (TextMatch::Exact("*".into()), true),
        (TextMatch::Regex(".*".into()), true),
        (TextMatch::Exact("*.example".into()), false),
    ] {
        let policy = WrittenCors { allow_origins: vec![origin.clone()], ..policy() };
        let found = match cors_of(policy, &asked) {
            Cors::Headers(headers) => {
                pairs(&headers).contains(&("access-control-allow-origin", "https://any.example"))
            }
            Cors::Preflight(_) | Cors::None => false,
        };
        assert_eq!(found, allowed, "{origin:?}");
    }
}

/// E38.
#[test]
fn simple_requests_of_allowed_origins_get_headers() {
    let simple = |origin: &str| cors_of(policy(), &ask("b", "/").header("origin", origin));
    let Cors::Headers(headers) = simple("https://x.a.com") else { panic!("no headers") };
    let expected = [
        ("access-control-allow-origin", "https://x.a.com"),
        ("access-control-allow-credentials", "true"),
        ("access-control-expose-headers", "X-C"),
    ];
    assert_eq!(pairs(&headers), expected);
    assert_eq!(simple("https://x.a.com.evil"), Cors::None);
    assert_eq!(cors_of(policy(), &ask("b", "/")), Cors::None);
    let options = ask("b", "/").method("OPTIONS").header("origin", "cors.com");
    assert!(
        matches!(cors_of(policy(), &options), Cors::Headers(_)),
        "no preflight without a requested method"
    );
}

/// E20, E21, S-08.
#[test]
fn faults_are_drawn_independently() {
    let fault = Fault {
        delay: Some((PerMillion(500_000), Duration::from_secs(7))),
        abort: Some((PerMillion(250_000), AbortStatus::Grpc(14))),
    };
    let draw = |draws: &[u64]| {
        let mut draws = draws.iter();
        draw_fault(&fault, &mut |_| *draws.next().expect("one draw more"))
    };
    let delay = Some(Duration::from_secs(7));
    let abort = Some(AbortStatus::Grpc(14));
    assert_eq!(draw(&[0, 0]), FaultDraw { delay, abort });
    assert_eq!(draw(&[499_999, 250_000]), FaultDraw { delay, abort: None });
    assert_eq!(draw(&[500_000, 249_999]), FaultDraw { delay: None, abort });
    let mut never = |_| -> u64 { panic!("certain shares need no draw") };
    let certain = Fault {
        delay: Some((PerMillion(0), Duration::ZERO)),
        abort: Some((PerMillion::ALL, AbortStatus::Http(503))),
    };
    assert_eq!(
        draw_fault(&certain, &mut never),
        FaultDraw { delay: None, abort: Some(AbortStatus::Http(503)) }
    );
}

/// V-17: Host is not a header here, and what HTTP does not allow is left out.
#[test]
fn changes_of_headers_leave_the_authority_alone() {
    let pair = |name: &str, value: &str| (Arc::from(name), Arc::from(value));
    let changes = HeaderChanges {
        set: vec![
            pair("Host", "x"),
            pair(":authority", "x"),
            pair("bad name", "x"),
            pair("x-nl", "a\nb"),
            pair("X-Ok", "1"),
        ],
        add: vec![pair("x-ok", "2")],
        remove: vec!["host".into(), "x-gone".into()],
    };
    let mut headers = HeaderMap::new();
    headers.insert("host", HeaderValue::from_static("b"));
    headers.insert("x-gone", HeaderValue::from_static("1"));
    apply(&changes, &mut headers);
    let names: BTreeSet<_> = headers.keys().map(|name| name.as_str()).collect();
    assert_eq!(names, BTreeSet::from(["host", "x-ok"]));
    assert_eq!((headers["host"].as_bytes(), headers.get_all("x-ok").iter().count()), (&b"b"[..], 2));
}

/// H-9, E47.
#[test]
fn a_grpc_timeout_counts_up_to_the_rules() {
    let limit = |timeout: Option<u64>, header: Option<&str>, grpc: bool| {
        let rule = HttpRule { timeout: timeout.map(Duration::from_millis), ..rule(vec![], &["b"]) };
        let snapshot = with([vs("default/b", &["b"], vec![rule])]);
        let mut asked = ask("b", "/");
        if grpc {
            asked = asked.header("content-type", "application/grpc+proto");
        }
        if let Some(header) = header {
            asked = asked.header("grpc-timeout", header);
        }
        let decision = asked.route(&snapshot);
        asked
            .with(&snapshot, |_, request| forward_of(&decision).limit(request))
            .map(|limit| limit.as_millis())
    };
    assert_eq!(limit(Some(200), None, true), Some(200));
    assert_eq!(limit(Some(200), Some("900m"), true), Some(200));
    assert_eq!(limit(Some(200), Some("100m"), true), Some(100));
    assert_eq!(limit(None, Some("300m"), true), Some(300));
    assert_eq!(limit(None, None, true), None);
    assert_eq!(limit(Some(200), Some("100m"), false), Some(200), "only gRPC has it");
    for bad in ["", "m", "100", "123456789m", "1x", "-1m", "1 m", "0m"] {
        assert_eq!(limit(None, Some(bad), true), None, "{bad}");
    }
    assert_eq!(limit(None, Some("99999999H"), true), Some(99_999_999 * 3_600_000));
}

fn target(weight: u32) -> Target {
    Target { cluster: Err("none".into()), weight, headers: Arc::default() }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// V-16: each number below the sum leads to one target, and each target gets as many as its weight.
    #[test]
    fn choice_follows_the_weights(weights in prop::collection::vec(0..20_u32, 2..6)) {
        let targets: Vec<_> = weights.iter().map(|weight| target(*weight)).collect();
        let total: u32 = weights.iter().sum();
        let mut counts = vec![0_u32; weights.len()];
        for draw in 0..u64::from(total) {
            let chosen = choose(&targets, &mut |below| { assert_eq!(below, u64::from(total)); draw });
            let chosen = chosen.expect("a target");
            let at = targets.iter().position(|target| std::ptr::eq(target, chosen)).expect("one of them");
            counts[at] += 1;
        }
        prop_assert_eq!(&counts, &weights);
        if total == 0 {
            prop_assert!(choose(&targets, &mut |_| 0).is_none());
        }
    }

    /// No text panics, and host and port together are the authority.
    #[test]
    fn authorities_of_any_form(authority in "[a-z0-9.:\\[\\]]{0,12}") {
        let (host, port) = (fields::host(&authority), fields::port(&authority));
        prop_assert!(authority.contains(host) && authority.ends_with(port));
        let snapshot = with([]);
        ask(&authority, "/").route(&snapshot);
    }
}

#[test]
fn parts_of_an_authority() {
    let parts = |authority| (fields::host(authority), fields::port(authority));
    assert_eq!(parts("b"), ("b", ""));
    assert_eq!(parts("b:80"), ("b", ":80"));
    assert_eq!(parts("[::1]:80"), ("::1", ":80"));
    assert_eq!(parts("[::1]"), ("::1", ""));
    assert_eq!(parts("::1"), ("::1", ""));
}
