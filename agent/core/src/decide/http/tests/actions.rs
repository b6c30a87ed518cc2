//! What becomes of a request that a rule takes?

use std::time::Duration;

use super::*;
use crate::resource::virtual_service::{
    AbortStatus, Fault, Mirror, Redirect, RedirectPort, Retries, Rewrite,
};

fn only(rule: HttpRule) -> Arc<Snapshot> {
    with([vs("default/b", &["b"], vec![rule])])
}

fn weighted(destinations: &[(&str, u32)]) -> HttpRule {
    let routes = destinations.iter().map(|(host, weight)| RouteDestination { weight: *weight, ..to(host) });
    HttpRule { action: HttpAction::Route(routes.collect()), ..HttpRule::default() }
}

/// V-15.
#[test]
fn the_port_of_a_destination() {
    let at = |host: &str, port: Option<u16>, dialled: &str| {
        let mut destination = to(host);
        destination.destination.port = port;
        let rule = HttpRule { action: HttpAction::Route(vec![destination]), ..HttpRule::default() };
        ask("b", "/").dials(dialled).goes(&only(rule))
    };
    assert_eq!(at("one", None, "10.96.0.2:80"), "7000||one.default", "a single port is the port");
    assert_eq!(at("c", None, "10.96.0.2:80"), "80||c.default");
    assert_eq!(at("c", None, "10.96.0.2:9090"), "9090||c.default", "the listener's");
    assert_eq!(at("two", Some(8001), "10.96.0.2:80"), "8001||two.default");
    assert_eq!(at("two", None, "10.96.0.2:80"), "NC 80||two.default");
    assert_eq!(at("two", Some(1), "10.96.0.2:80"), "NC 1||two.default");
    assert_eq!(at("gone.example.com", None, "10.96.0.2:80"), "NC 80||gone.example.com");
}

/// V-16, E30.
#[test]
fn weights_are_relative_and_zero_is_none() {
    let shares = |destinations: &[(&str, u32)]| {
        let decision = ask("b", "/").route(&only(weighted(destinations)));
        let targets = &forward_of(&decision).targets;
        targets.iter().map(|target| target.weight).collect::<Vec<_>>()
    };
    assert_eq!(shares(&[("a", 80), ("b", 20)]), [80, 20]);
    assert_eq!(shares(&[("a", 100), ("b", 0)]), [100]);
    assert_eq!(shares(&[("a", 0)]), [1], "a single destination needs none");
    assert_eq!(shares(&[("a", 7)]), [1]);
    assert_eq!(shares(&[("a", 0), ("b", 0)]), [1, 1], "never nobody");
}

/// E2, E36, V-20.
#[test]
fn rewrites() {
    let rewritten = |uri: Option<TextMatch>, rewrite: Rewrite, target: &str| {
        let rule = HttpRule { rewrite: Some(rewrite), ..rule(vec![super::uri(uri)], &["c"]) };
        ask("b", target).leaves(&only(rule))
    };
    let to_uri = |uri: &str| Rewrite { uri: Some(uri.into()), ..Rewrite::default() };
    let path = |uri, to: &str, target| rewritten(uri, to_uri(to), target).target.expect("a rewritten path");
    assert_eq!(path(prefix("/usrv"), "/", "/usrv/abc?x=1"), "//abc?x=1");
    assert_eq!(path(prefix("/usrv"), "/", "/usrv"), "/");
    assert_eq!(path(prefix("/usrv"), "/", "/usrv-expand/z"), "/-expand/z");
    assert_eq!(path(exact("/a"), "/b", "/a?x"), "/b?x");
    assert_eq!(path(regex("/a/.*"), "/b", "/a/c?x"), "/b?x");
    assert_eq!(path(None, "/v1/", "/a"), "/v1/a", "no uri is the prefix /");
    let regex_rewrite = Rewrite {
        regex: Some((r"^/service/([^/]+)(/.*)$".into(), r"\2/instance/\1".into())),
        ..Rewrite::default()
    };
    let outgoing = rewritten(prefix("/"), regex_rewrite, "/service/foo/v1/api?x=1");
    assert_eq!(outgoing.target.as_deref(), Some("/v1/api/instance/foo?x=1"), "E37");
    let both = Rewrite { authority: Some("c.example.com".into()), ..to_uri("/new") };
    let outgoing = rewritten(prefix("/old"), both, "/old/50%25");
    assert_eq!(outgoing.authority.as_deref(), Some("c.example.com"));
    let mut headers = HeaderMap::new();
    outgoing.request_headers.iter().for_each(|changes| apply(&changes.request, &mut headers));
    assert_eq!(headers["x-envoy-original-path"], "/old/50%25");
    assert_eq!(headers["x-envoy-original-host"], "b");
}

/// V-17: `rewrite.authority`, the rule's Host, the destination's.
#[test]
fn the_rules_host_wins_over_its_destinations() {
    let host = |rewrite: Option<&str>, by_rule: Option<&str>, by_destination: Option<&str>, several: bool| {
        let mut destinations = vec![to("b")];
        destinations[0].weight = 50;
        destinations[0].headers = by_destination.map(|host| set("Host", host)).unwrap_or_default();
        if several {
            destinations.push(RouteDestination { weight: 50, ..to("c") });
        }
        let rule = HttpRule {
            action: HttpAction::Route(destinations),
            headers: by_rule.map(|host| set(":authority", host)).unwrap_or_default(),
            rewrite: rewrite
                .map(|authority| Rewrite { authority: Some(authority.into()), ..Rewrite::default() }),
            ..HttpRule::default()
        };
        ask("b", "/").leaves(&only(rule)).authority
    };
    for several in [false, true] {
        assert_eq!(host(Some("w"), Some("r"), Some("d"), several).as_deref(), Some("w"));
        assert_eq!(host(None, Some("r"), Some("d"), several).as_deref(), Some("r"));
        assert_eq!(host(None, None, Some("d"), several).as_deref(), Some("d"));
        assert_eq!(host(None, None, None, several), None);
    }
}

/// E31, E32.
#[test]
fn header_changes_of_rule_and_destination() {
    let headers = |by_rule: HeaderChanges, by_destination: HeaderChanges, several: bool| {
        let operations = |request| HeaderOperations { request, response: HeaderChanges::default() };
        let mut destinations = vec![to("b")];
        destinations[0].weight = 1;
        destinations[0].headers = operations(by_destination);
        if several {
            destinations.push(RouteDestination { weight: 1, ..to("c") });
        }
        let action = HttpAction::Route(destinations);
        let rule = HttpRule { action, headers: operations(by_rule), ..HttpRule::default() };
        let headers = ask("b", "/").header("x-a", "old").leaves_with(&only(rule));
        headers
            .get_all("x-a")
            .iter()
            .map(|value| value.to_str().expect("text").to_owned())
            .collect::<Vec<_>>()
    };
    let pair = |value: &str| vec![(Arc::from("x-a"), Arc::from(value))];
    let sets = |value: &str| HeaderChanges { set: pair(value), ..HeaderChanges::default() };
    let adds = |value: &str| HeaderChanges { add: pair(value), ..HeaderChanges::default() };
    let removes = || HeaderChanges { remove: vec!["x-a".into()], ..HeaderChanges::default() };
    assert_eq!(headers(sets("rule"), sets("destination"), false), ["destination"]);
    assert_eq!(headers(sets("rule"), sets("destination"), true), ["rule"]);
    assert_eq!(headers(adds("rule"), adds("destination"), false), ["old", "rule", "destination"]);
    assert_eq!(headers(adds("rule"), adds("destination"), true), ["old", "destination", "rule"]);
    assert_eq!(headers(HeaderChanges { remove: removes().remove, ..adds("new") }, sets("x"), true), ["new"]);
    assert_eq!(
        headers(HeaderChanges { remove: removes().remove, ..adds("new") }, adds("d"), false),
        ["new", "d"]
    );
    assert_eq!(
        headers(adds("rule"), removes(), false),
        ["rule"],
        "with one destination all removals come first"
    );
    assert_eq!(headers(removes(), adds("destination"), true), Vec::<String>::new());
}

/// V-17: operators in values.
#[test]
fn operators_in_header_values() {
    let value = |value: &str| {
        let rule = HttpRule { headers: set("x-new", value), ..rule(vec![], &["b"]) };
        let headers = ask("b", "/p?q").header("x-a", "one").header("x-a", "two").leaves_with(&only(rule));
        headers.get("x-new").map(|value| value.to_str().expect("text").to_owned())
    };
    for (written, expected) in [
        ("%REQ(X-A)%", Some("one,two")),
        ("<%REQ(x-none?:path)%>", Some("</p?q>")),
        ("%REQ(:path):2%", Some("/p")),
        ("%REQ_WITHOUT_QUERY(:path)%", Some("/p")),
        ("%REQ(x-none)%", None),
        ("100%%", Some("100%")),
        ("%FUTURE(x)%", None),
        ("%UPSTREAM_CLUSTER%", Some("outbound|80||b.default.svc.cluster.local")),
        ("%DOWNSTREAM_REMOTE_ADDRESS%", Some("10.244.0.9:40000")),
        ("for=%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", Some("for=10.244.0.9")),
        ("%DOWNSTREAM_LOCAL_PORT%", Some("80")),
        ("%PROTOCOL% %HOSTNAME%", Some("HTTP/1.1 client")),
        ("%START_TIME% %START_TIME(%Y-%m-%d)%", Some("<now> <%Y-%m-%d>")),
        ("%RESPONSE_CODE%", None),
        ("%UPSTREAM_HOST%", None),
    ] {
        assert_eq!(value(written).as_deref(), expected, "{written}");
    }
}

fn answered(headers: &HeaderMap) -> Answered<'_> {
    Answered {
        status: 418,
        headers,
        upstream: Some(addr("10.244.0.7:8080")),
        flags: "DI",
        details: "via_upstream",
        duration: Duration::from_millis(7),
    }
}

/// V-17: what only the answer knows; what a client writes is no operator.
#[test]
fn operators_in_values_of_the_answer() {
    let mut headers = HeaderMap::new();
    headers.insert("x-from", "%REQ(cookie)%".parse().expect("a value"));
    let value = |value: &str| {
        let mut rule = rule(vec![], &["b"]);
        rule.headers.response = set("x-new", value).request;
        let ask = ask("b", "/").header("x-a", "%RESPONSE_CODE% 100%").header("cookie", "secret");
        let outgoing = ask.leaves(&only(rule));
        let changes = complete(&outgoing.response_headers[0].response, &answered(&headers)).into_owned();
        changes.set.first().map(|(_, value)| value.to_string())
    };
    for (written, expected) in [
        ("%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%", Some("418 DI via_upstream")),
        ("%UPSTREAM_HOST% after %DURATION% ms", Some("10.244.0.7:8080 after 7 ms")),
        ("%RESP(X-None?X-From)%", Some("%REQ(cookie)%")),
        ("%RESP(X-From):4%", Some("%REQ")),
        ("%RESP(x-none)%", None),
        ("%REQ(x-a)%", Some("%RESPONSE_CODE% 100%")),
        ("100%% of %DOWNSTREAM_REMOTE_ADDRESS%", Some("100% of 10.244.0.9:40000")),
        ("plain", Some("plain")),
    ] {
        assert_eq!(value(written).as_deref(), expected, "{written}");
    }
}

fn location(redirect: Redirect, uri: Option<TextMatch>, ask: Ask) -> String {
    let action = HttpAction::Redirect(redirect);
    let rule = HttpRule { matches: vec![super::uri(uri)], action, ..HttpRule::default() };
    let decision = ask.route(&with([vs("default/two", &["b", "two"], vec![rule])]));
    let Action::Respond(reply) = decision.action else { panic!("not answered") };
    assert_eq!((reply.by, &*reply.headers[0].0), ("redirect", "location"));
    reply.headers[0].1.clone()
}

fn redirect() -> Redirect {
    Redirect { uri: None, prefix_rewrite: None, authority: None, port: None, scheme: None, code: 301 }
}

/// V-18, E35.
#[test]
fn redirects() {
    let to_uri = |uri: &str| Redirect { uri: Some(uri.into()), ..redirect() };
    let both = Redirect { authority: Some("newhost".into()), ..to_uri("/new") };
    assert_eq!(location(both, prefix("/"), ask("b", "/old?q=1")), "http://newhost/new?q=1");
    assert_eq!(location(to_uri("/new?own=1"), prefix("/"), ask("b", "/old?q=1")), "http://b/new?own=1");
    let https = Redirect { scheme: Some("https".into()), ..redirect() };
    assert_eq!(location(https.clone(), prefix("/"), ask("b", "/old?q=1")), "https://b/old?q=1");
    assert_eq!(location(https.clone(), prefix("/"), ask("b:8080", "/")), "https://b:8080/");
    assert_eq!(location(https, prefix("/"), ask("b:80", "/")), "https://b/", "the former scheme's default");
    let prefixed = Redirect { prefix_rewrite: Some("/new/".into()), ..redirect() };
    assert_eq!(location(prefixed, prefix("/foo/"), ask("b", "/foo/bar?x")), "http://b/new/bar?x");
}

/// V-18: ports.
#[test]
fn ports_of_redirects() {
    let port = |port: RedirectPort| Redirect { port: Some(port), ..redirect() };
    let number = |number, scheme: &str| {
        let redirect = Redirect { scheme: Some(scheme.into()), ..port(RedirectPort::Number(number)) };
        location(redirect, prefix("/"), ask("b:8080", "/"))
    };
    assert_eq!(number(8443, "https"), "https://b:8443/");
    assert_eq!(number(443, "https"), "https://b:8080/", "none is set, so the client's stays");
    let request = port(RedirectPort::RequestPort);
    assert_eq!(location(request.clone(), prefix("/"), ask("b", "/foo")), "http://b/foo");
    assert_eq!(location(request.clone(), prefix("/"), ask("b:80", "/foo")), "http://b:80/foo");
    let dialled = ask("two:8000", "/foo").dials("10.96.0.5:8000");
    assert_eq!(location(request.clone(), prefix("/"), dialled), "http://two:8000/foo");
    let dialled = ask("two", "/foo").dials("10.96.0.5:8000");
    assert_eq!(location(request, prefix("/"), dialled), "http://two:8000/foo");
    let default = port(RedirectPort::ProtocolDefault);
    assert_eq!(location(default, prefix("/"), ask("b:9", "/")), "http://b:9/");
}

/// V-19.
#[test]
fn direct_responses_carry_the_rules_headers() {
    let mut rule = answers(418, vec![]);
    rule.headers.response.set = vec![("X-Tea".into(), "pot at 100%%, %REQ(:path)%".into())];
    rule.headers.response.add = vec![("x-status".into(), "%RESPONSE_CODE%".into())];
    let (ask, snapshot) = (ask("b", "/%25"), only(rule));
    let decision = ask.route(&snapshot);
    let Action::Respond(reply) = &decision.action else { panic!("not answered") };
    assert_eq!((reply.status, reply.by), (418, "direct_response"));
    let none = HeaderMap::new();
    let facts = (&circumstances(), &answered(&none));
    let headers = ask.with(&snapshot, |_, request| added(&decision, request, facts));
    let pair = |name: &str, value: &str| (Arc::from(name), value.to_owned());
    assert_eq!(headers, [pair("x-tea", "pot at 100%, /%25"), pair("x-status", "418")]);
}

/// V-21, V-22, V-23.
#[test]
fn timeouts_and_retries() {
    let retries = Retries {
        attempts: 3,
        per_try_timeout: Some(Duration::from_secs(2)),
        on: vec!["5xx".into(), "418".into()],
        ignore_previous_hosts: None,
        remote_localities: None,
        backoff: None,
    };
    let with_all = HttpRule {
        timeout: Some(Duration::from_secs(10)),
        retries: Some(retries.clone()),
        ..rule(vec![], &["b"])
    };
    let decision = ask("b", "/").route(&only(with_all));
    let forward = forward_of(&decision);
    assert_eq!(forward.timeout, Some(Duration::from_secs(10)));
    assert_eq!(forward.retry.attempts, 3);
    assert_eq!(forward.retry.per_try_timeout, Some(Duration::from_secs(2)));
    assert_eq!(forward.retry.backoff, Duration::from_millis(25));
    assert!(!forward.retry.default && forward.retry.repeats(&TryOutcome::Status(418)));
    let off = Retries { attempts: 0, on: vec![], per_try_timeout: None, ..retries };
    let rule = HttpRule { timeout: Some(Duration::ZERO), retries: Some(off), ..rule(vec![], &["b"]) };
    let decision = ask("b", "/").route(&only(rule));
    assert_eq!((forward_of(&decision).timeout, forward_of(&decision).retry.attempts), (None, 0));
}

/// S-11: the mesh's default, for rules and for Services without one.
#[test]
fn default_retries_come_from_the_mesh() {
    let retries = Retries {
        attempts: 5,
        per_try_timeout: None,
        on: vec!["503".into()],
        ignore_previous_hosts: None,
        remote_localities: None,
        backoff: None,
    };
    let http = MeshHttp { default_retries: Some(retries), ..MeshHttp::default() };
    let config = MeshConfig { http, ..MeshConfig::new(key("weft-system/weft")) };
    let virtual_service = vs("default/b", &["b"], vec![rule(vec![], &["b"])]);
    let mut compiler = compiler();
    let before = applied(&mut compiler, world().into_iter().chain([virtual_service]).map(upsert));
    let attempts = |snapshot: &Snapshot, host: &str| {
        let decision = ask(host, "/").route(snapshot);
        let retry = &forward_of(&decision).retry;
        (retry.attempts, retry.default)
    };
    assert_eq!([attempts(&before, "b"), attempts(&before, "c")], [(2, true); 2]);
    let after = applied(&mut compiler, [upsert(Resource::MeshConfig(config))]);
    assert_eq!([attempts(&after, "b"), attempts(&after, "c")], [(5, false); 2]);
}

/// V-26, V-27, V-28.
#[test]
fn faults_mirrors_and_cors_are_handed_on() {
    let mirror = |host: &str, share| Mirror { destination: to(host).destination, share };
    let rule = HttpRule {
        fault: Some(Fault { delay: None, abort: Some((PerMillion::ALL, AbortStatus::Http(503))) }),
        mirrors: vec![
            mirror("c", PerMillion(500_000)),
            mirror("a", PerMillion(0)),
            mirror("gone", PerMillion::ALL),
        ],
        cors: Some(small::policy()),
        ..rule(vec![], &["b"])
    };
    let decision = ask("b", "/").route(&only(rule));
    let forward = forward_of(&decision);
    assert!(forward.fault.is_some() && decision.cors.is_some());
    let mirrors: Vec<_> =
        forward.mirrors.iter().map(|mirror| (mirror.cluster.is_ok(), mirror.share.0)).collect();
    assert_eq!(mirrors, [(true, 500_000), (false, 1_000_000)], "a share of 0 is none (V-27)");
}

/// V-14.
#[test]
fn route_names() {
    let name = |rule_name: Option<&str>, match_name: Option<&str>| {
        let entry = HttpMatch { name: match_name.map(Into::into), ..HttpMatch::default() };
        let rule = HttpRule { name: rule_name.map(Into::into), ..rule(vec![entry], &["b"]) };
        ask("b", "/").route(&only(rule)).route_name().map(str::to_owned)
    };
    assert_eq!(name(Some("r"), Some("m")).as_deref(), Some("r.m"));
    assert_eq!(name(Some("r"), None).as_deref(), Some("r"));
    assert_eq!(name(None, None), None);
}
