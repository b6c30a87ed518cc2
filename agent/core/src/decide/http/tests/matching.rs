//! Which requests does a match take?

use super::*;

/// Whether one match takes a request.
fn takes(entry: HttpMatch, ask: &Ask) -> bool {
    let snapshot = with([vs("default/b", &["b"], vec![answers(201, vec![entry])])]);
    match ask.goes(&snapshot).as_str() {
        "201 direct_response" => true,
        "404 no_route" => false,
        other => panic!("neither matched nor not: {other}"),
    }
}

fn headers(name: &str, text: Option<TextMatch>) -> HttpMatch {
    HttpMatch { headers: vec![(name.into(), text.expect("a match"))], ..HttpMatch::default() }
}

fn without(name: &str, text: Option<TextMatch>) -> HttpMatch {
    HttpMatch { without_headers: vec![(name.into(), text.expect("a match"))], ..HttpMatch::default() }
}

fn query(name: &str, text: Option<TextMatch>) -> HttpMatch {
    HttpMatch { query_params: vec![(name.into(), text.expect("a match"))], ..HttpMatch::default() }
}

/// E3, E4, E5, V-5, V-13.
#[test]
fn uri() {
    let takes = |entry: HttpMatch, target: &str| takes(entry, &ask("b", target));
    assert!(takes(super::uri(exact("/exact")), "/exact?q=1"));
    assert!(!takes(super::uri(exact("/exact")), "/exact/"));
    assert!(takes(super::uri(prefix("/foo")), "/foobar"));
    assert!(takes(super::uri(prefix("")), "/anything"));
    assert!(takes(super::uri(regex("/re[0-9]+")), "/re12?x=y"));
    assert!(!takes(super::uri(regex("/re[0-9]+")), "/re12x"));
    assert!(!takes(super::uri(regex("/re[0-9]+")), "/RE1"));
    assert!(takes(super::uri(Some(TextMatch::Present)), "/x"));
    let ignoring = |uri| HttpMatch { ignore_uri_case: true, ..super::uri(uri) };
    assert!(takes(ignoring(prefix("/AbC")), "/abc/x"));
    assert!(takes(ignoring(exact("/AbC")), "/aBc"));
    assert!(!takes(ignoring(exact("/AbC")), "/aBcd"));
    assert!(!takes(ignoring(regex("/AbC")), "/abc"), "expressions say for themselves");
}

/// V-6, E9, E10, E11, E12, E46, S-02, S-03.
#[test]
fn header_values_are_matched_one_by_one() {
    let two = ask("b", "/").header("x-a", "2").header("x-a", "1");
    assert!(takes(headers("x-a", exact("1")), &two));
    assert!(!takes(headers("x-a", exact("2,1")), &two));
    assert!(!takes(headers("x-a", exact("1")), &ask("b", "/").header("x-a", "1,2")));
    let cookie = |value: &str| ask("b", "/").header("cookie", value);
    assert!(takes(headers("cookie", exact("vip=false")), &cookie("vip=false")));
    assert!(!takes(headers("cookie", exact("vip=false")), &cookie("a=1; vip=false")));
    assert!(takes(headers("cookie", exact("vip=false")), &cookie("a=1").header("cookie", "vip=false")));
    assert!(!takes(headers("cookie", regex("^(.*?;)?(vip=false)(;.*)?$")), &cookie("a=1; vip=false")));
    assert!(takes(headers("cookie", regex("^(.*?;)?(vip=false)(;.*)?$")), &cookie("a=1;vip=false")));
    assert!(takes(headers("x-a", Some(TextMatch::Present)), &ask("b", "/").header("x-a", "")));
    assert!(!takes(headers("x-a", Some(TextMatch::Present)), &ask("b", "/")));
    let chrome = ask("b", "/").header("user-agent", "Mozilla Chrome/1");
    assert!(takes(headers("user-agent", regex(".*Chrome.*")), &chrome));
    assert!(!takes(headers("user-agent", regex("Chrome")), &chrome));
    assert!(!takes(headers("end-user", exact("jason")), &ask("b", "/").header("end-user", "Jason")));
    assert!(!takes(headers("@request.auth.claims.x", exact("1")), &ask("b", "/")), "claims are for gateways");
}

/// V-6: pseudo headers.
#[test]
fn pseudo_headers() {
    assert!(takes(headers(":method", exact("GET")), &ask("b", "/")));
    assert!(!takes(headers(":method", exact("GET")), &ask("b", "/").method("POST")));
    assert!(takes(headers(":path", prefix("/x?")), &ask("b", "/x?y")));
    assert!(takes(headers(":authority", exact("b:80")), &ask("b:80", "/")));
    assert!(takes(headers("host", exact("b")), &ask("b", "/")));
    assert!(takes(headers(":scheme", exact("http")), &ask("b", "/")));
}

/// V-7, E12.
#[test]
fn without_headers_takes_an_absent_one_as_empty() {
    let jason = ask("b", "/").header("end-user", "jason");
    assert!(!takes(without("end-user", exact("jason")), &jason));
    assert!(takes(without("end-user", exact("jason")), &ask("b", "/")));
    assert!(takes(without("end-user", exact("jason")), &ask("b", "/").header("end-user", "x")));
    assert!(!takes(without("end-user", exact("")), &ask("b", "/")), "absent is empty");
    assert!(!takes(without("end-user", regex(".*")), &ask("b", "/")));
    assert!(takes(without("end-user", Some(TextMatch::Present)), &ask("b", "/")));
    assert!(!takes(without("end-user", Some(TextMatch::Present)), &ask("b", "/").header("end-user", "")));
}

/// V-8, E14.
#[test]
fn method_authority_scheme() {
    let text = |method, authority, scheme| HttpMatch { method, authority, scheme, ..HttpMatch::default() };
    assert!(takes(text(exact("GET"), exact("b:80"), exact("http")), &ask("b:80", "/")));
    assert!(!takes(text(None, exact("b"), None), &ask("b:80", "/")), "the port is compared as it was sent");
    assert!(!takes(text(exact("get"), None, None), &ask("b", "/")));
    assert!(!takes(text(None, None, exact("https")), &ask("b", "/")));
    assert!(takes(text(regex("GET|HEAD"), prefix("b."), None), &ask("b.default", "/")));
}

/// V-9, E13.
#[test]
fn query_parameters() {
    let takes = |entry: HttpMatch, target: &str| takes(entry, &ask("b", target));
    assert!(takes(query("a", exact("1")), "/?a=1&a=2"));
    assert!(!takes(query("a", exact("1")), "/?a=2&a=1"));
    assert!(!takes(query("a", exact("1")), "/?A=1"));
    assert!(!takes(query("a", exact("1")), "/?a=%31"));
    assert!(takes(query("a", Some(TextMatch::Present)), "/?b=1&a"));
    assert!(!takes(query("a", Some(TextMatch::Present)), "/"));
    assert!(takes(query("a", regex("[0-9]+")), "/?a=12#f"));
}

/// V-4, V-10, V-11.
#[test]
fn conditions_of_one_match_are_anded_and_matches_ored() {
    let both = HttpMatch { uri: prefix("/x"), ..headers("k", exact("v")) };
    assert!(takes(both.clone(), &ask("b", "/x").header("k", "v")));
    assert!(!takes(both.clone(), &ask("b", "/y").header("k", "v")));
    assert!(!takes(both, &ask("b", "/x")));
    let either = vec![super::uri(exact("/x")), super::uri(exact("/y"))];
    let snapshot = with([vs("default/b", &["b"], vec![answers(201, either)])]);
    let matched = |target: &str| ask("b", target).route(&snapshot).rule.map(|rule| rule.matched);
    assert_eq!([matched("/x"), matched("/y"), matched("/z")], [Some(Some(0)), Some(Some(1)), None]);
}

/// V-11.
#[test]
fn source_labels_and_namespace() {
    let acts = |entry: HttpMatch, from: &'static str| {
        let snapshot = with([vs("default/b", &["b"], vec![answers(201, vec![entry])])]);
        ask("b.default", "/").from(from).goes(&snapshot) == "201 direct_response"
    };
    let labelled = |text: &str| HttpMatch { source_labels: labels(text), ..HttpMatch::default() };
    let in_namespace = |name: &str| HttpMatch { source_namespace: Some(name.into()), ..HttpMatch::default() };
    assert!(acts(labelled("app=client"), "default/client"));
    assert!(!acts(labelled("app=x"), "default/client"));
    assert!(acts(in_namespace("other"), "other/client"));
    assert!(!acts(in_namespace("other"), "default/client"));
    let overridden = HttpMatch { gateways: vec!["mesh".into()], ..labelled("app=x") };
    assert!(acts(overridden, "default/client"), "with gateways the source does not count");
}

/// V-3, E1, S-04, S-05.
#[test]
fn the_first_rule_wins() {
    let rules = vec![
        answers(201, vec![super::uri(prefix("/usrv"))]),
        answers(202, vec![super::uri(prefix("/usrv-expand"))]),
        answers(203, vec![super::uri(exact("/"))]),
    ];
    let snapshot = with([vs("default/b", &["b"], rules)]);
    assert_eq!(ask("b", "/usrv-expand/z").goes(&snapshot), "201 direct_response");
    assert_eq!(ask("b", "/").goes(&snapshot), "203 direct_response");
    let decision = ask("b", "/other").route(&snapshot);
    assert_eq!(short(&decision), "404 no_route", "not the Service's default");
    assert_eq!(decision.owner.map(|owner| owner.name), Some("b".into()));
    let rules = vec![answers(201, vec![]), answers(202, vec![super::uri(exact("/x"))])];
    let snapshot = with([vs("default/b", &["b"], rules)]);
    assert_eq!(ask("b", "/x").goes(&snapshot), "201 direct_response", "a catch-all ends the list");
}

/// An expression that does not compile takes nothing, is reported, and leaves the other rules in force.
#[test]
fn an_invalid_expression_never_matches() {
    let rules = vec![answers(201, vec![super::uri(regex("/(a"))]), answers(202, vec![])];
    let snapshot = with([vs("default/b", &["b"], rules)]);
    assert_eq!(ask("b", "/(a").goes(&snapshot), "202 direct_response");
    let problem = snapshot.problems().iter().find(|problem| problem.code == "WEFT0130").expect("a finding");
    assert_eq!(problem.field, "spec.http[0].match[0].uri");
}

/// The trace names the first field that failed of each match before the one that matched.
#[test]
fn the_trace_names_the_first_field_that_failed() {
    let rules = vec![
        answers(201, vec![super::uri(exact("/x")), headers("k", exact("v"))]),
        answers(202, vec![HttpMatch { port: Some(81), ..HttpMatch::default() }]),
        answers(203, vec![without("cookie", Some(TextMatch::Present))]),
        answers(204, vec![]),
    ];
    let snapshot = with([vs("default/b", &["b"], rules)]);
    let asked = ask("b", "/").header("cookie", "a=b");
    let (decision, trace) = asked.traced(&snapshot);
    assert_eq!(short(&decision), "204 direct_response");
    let skipped: Vec<_> =
        trace.skipped.iter().map(|skip| (skip.rule, skip.matched, skip.field.as_str())).collect();
    let expected = [
        (0, Some(0), "uri"),
        (0, Some(1), "headers[k]"),
        (1, Some(0), "port"),
        (2, Some(0), "withoutHeaders[cookie]"),
    ];
    assert_eq!(skipped, expected);
    assert_eq!(short(&asked.route(&snapshot)), short(&decision));
}
