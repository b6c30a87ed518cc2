//! Where requests go, and how they are changed on the way.

use std::net::SocketAddr;

use weft_netns_tests::{Family, eventually, yaml};

use crate::site::{Answer, FAMILIES, NEAR_AND_FAR, SUBSETS, Site, WEB};

const CANARY: &str = "[{match: [{headers: {end-user: {exact: jason}}}], route: [{destination: {host: reviews, subset: v2}}]}, \
    {match: [{headers: {cookie: {regex: '^(.*?; ?)?(vip=true)(;.*)?$'}}}], route: [{destination: {host: reviews, subset: \
    v3}}]}, {route: [{destination: {host: reviews, subset: v1}, weight: 80}, {destination: {host: reviews, subset: v2}, \
    weight: 20}]}]";

#[test]
fn a_service_without_rules_is_reached_on_both_nodes_and_in_both_families() {
    let Some(site) = Site::new() else { return };
    for family in FAMILIES {
        for service in NEAR_AND_FAR {
            let args = ["--path", "/a/b?c=d", "--header", "x-own: 1", "--count", "20"];
            let answer = site.ask_from("client", family, (service, WEB), &args);
            assert!(answer.all_good(), "{}", answer.0);
            assert_eq!(answer.of_version(service), 20);
            let body = answer.body();
            assert_eq!((&body["path"], &body["method"]), (&"/a/b?c=d".into(), &"GET".into()), "{body}");
            assert_eq!(body["authority"], format!("{service}:{WEB}"));
            assert_eq!(body["headers"]["x-own"], "1");
            assert_eq!(
                body["client"],
                family.ip(site.mesh.pod("client")).to_string(),
                "the client's own address"
            );
        }
    }
}

/// A load balancer in `connect()` that comes before the agent leaves it no more than that.
#[test]
fn a_request_to_an_endpoint_follows_the_rules_of_the_service_that_it_names() {
    let Some(site) = Site::new() else { return };
    site.mesh.write("subsets.yaml", SUBSETS);
    site.routes("reviews", "[{route: [{destination: {host: reviews, subset: v3}}]}]");
    for family in FAMILIES {
        let endpoint = SocketAddr::new(family.ip(site.mesh.pod("reviews-v1")), WEB).to_string();
        let args = ["http", &endpoint, "--host", "reviews:9080", "--count", "8"];
        eventually("the rule holds", || {
            Answer(site.mesh.pod("client").peer(&args).unwrap()).of_version("v3") == 8
        });
    }
}

#[test]
fn requests_are_shared_by_weight_and_chosen_by_header_and_cookie() {
    let Some(site) = Site::new() else { return };
    site.mesh.write("subsets.yaml", SUBSETS);
    site.routes("reviews", CANARY);
    let vip = ["--header", "cookie: a=1; vip=true"];
    site.ask_until("the rules are there", "reviews", &vip, |answer| answer.of_version("v3") == 1);
    for family in FAMILIES {
        let ask = |args: &[&str]| site.ask_from("client", family, ("reviews", WEB), args);
        let many = ask(&["--count", "1000", "--concurrency", "4"]);
        assert!(many.all_good(), "{}", many.0);
        // More than 6 sigma of a binomial distribution with n = 1000 and p = 0.8.
        assert!((720..=880).contains(&many.of_version("v1")), "{}", many.0);
        assert_eq!(many.of_version("v1") + many.of_version("v2"), 1000, "{}", many.0);
        let jason = ask(&["--header", "end-user: jason", "--count", "30"]);
        assert_eq!(jason.of_version("v2"), 30, "{}", jason.0);
        let vip = ask(&["--header", "cookie: vip=true", "--count", "30"]);
        assert_eq!(vip.of_version("v3"), 30, "{}", vip.0);
    }
    site.mesh.remove("routes-reviews.yaml");
    site.ask_until("all versions share again", "reviews", &["--count", "60"], |answer| {
        ["v1", "v2", "v3"].iter().all(|version| answer.of_version(version) > 0)
    });
}

#[test]
fn redirects_rewrites_and_headers() {
    let Some(site) = Site::new() else { return };
    site.routes(
        "far",
        "[{match: [{uri: {prefix: /old}}], redirect: {uri: /new, authority: elsewhere}}, {match: [{uri: {prefix: \
         /api/}}], rewrite: {uri: /, authority: inner}, headers: {request: {set: {x-set: 'yes'}, remove: [x-own]}, \
         response: {add: {x-added: 'too'}}}, route: [{destination: {host: far}}]}, {match: [{uri: {exact: /}}], route: \
         [{destination: {host: far}}]}]",
    );
    let moved = site
        .ask_until("the redirect is there", "far", &["--path", "/old?x=1"], |answer| answer.status() == 301);
    assert_eq!(moved.header("location"), "http://elsewhere/new?x=1");
    let rewritten = site.ask("far", &["--path", "/api/books?x=1", "--header", "x-own: 1"]);
    let body = rewritten.body();
    assert_eq!((&body["path"], &body["authority"]), (&"/books?x=1".into(), &"inner".into()), "{body}");
    assert_eq!(body["headers"]["x-set"], "yes");
    assert_eq!(body["headers"]["x-own"], serde_json::Value::Null);
    assert_eq!(rewritten.header("x-added"), "too");
    let none = site.ask("far", &["--path", "/other"]);
    assert_eq!((none.status(), none.text()), (404, ""), "no rule matches");
}

#[test]
fn a_mirror_sees_every_request_and_changes_nothing() {
    let Some(site) = Site::new() else { return };
    site.mesh.write("subsets.yaml", SUBSETS);
    site.routes(
        "reviews",
        "[{route: [{destination: {host: reviews, subset: v1}}], mirror: {host: reviews, subset: v3}, mirrorPercentage: \
         {value: 100}}]",
    );
    site.ask_until("the mirror is there", "reviews", &["--path", "/warm"], |answer| {
        answer.of_version("v1") == 1 && site.seen("reviews-v3", "/warm") > 0
    });
    let args = ["--path", "/mirrored", "--count", "50", "--method", "POST", "--body-bytes", "20000"];
    let answer = site.ask("reviews", &args);
    assert_eq!(answer.of_version("v1"), 50, "{}", answer.0);
    eventually("the mirror saw all of them", || site.seen("reviews-v3", "/mirrored") == 50);
    assert_eq!(site.seen("reviews-v2", "/mirrored"), 0);
}

#[test]
fn rules_are_the_callers_and_who_is_not_in_the_mesh_is_not_routed() {
    let Some(site) = Site::new() else { return };
    site.routes(
        "near",
        "[{match: [{sourceLabels: {app: other}}], directResponse: {status: 418, body: {string: 'not for you'}}}, {route: \
         [{destination: {host: near}}]}]",
    );
    eventually("the rule is there", || {
        site.ask_from("other", Family::V4, ("near", WEB), &[]).status() == 418
    });
    assert_eq!(site.ask("near", &[]).of_version("near"), 1);
    let address = format!("{}:{WEB}", site.mesh.pod("near").ipv4());
    let outside = site.mesh.lab().outside().peer(&["http", &address]).unwrap();
    assert_eq!(outside["versions"]["near"], 1, "{outside}");
}

#[test]
fn hosts_that_nobody_knows_are_passed_through_unless_that_is_forbidden() {
    let Some(site) = Site::new() else { return };
    let outside = site.mesh.lab().outside();
    let _app = outside.app("outside", &[WEB]).unwrap();
    let address = format!("{}:{WEB}", outside.ipv4());
    let ask = || Answer(site.mesh.pod("client").peer(&["http", &address, "--host", "example.com"]).unwrap());
    let answer = ask();
    assert_eq!(
        (answer.of_version("outside"), &answer.body()["authority"]),
        (1, &"example.com".into()),
        "{}",
        answer.0
    );
    let labels = [("reporter", "source"), ("destination_service_name", "PassthroughCluster")];
    eventually("it is counted", || site.mesh.metric("a", "istio_requests_total", &labels) == 1.0);

    let strict = yaml::LOG_EVERYTHING.to_owned() + "    outboundTrafficPolicy: {mode: REGISTRY_ONLY}\n";
    site.mesh.write("mesh.yaml", &strict);
    eventually("it is forbidden", || ask().status() == 502);
    let line = site.mesh.log_line("a", "a line about the refusal", |line| line["response_code"] == 502);
    assert_eq!(line["route_name"], "block_all", "{line}");
    assert!(site.ask("far", &[]).all_good(), "who is known is reached");
}

#[test]
fn on_one_node_requests_travel_encrypted_where_the_namespace_wants_it() {
    let Some(site) = Site::new() else { return };
    site.mesh
        .write("namespace-shop.yaml", &yaml::namespace("shop", true, &[("weft.dev/same-node", "encrypt")]));
    let labels = [
        ("reporter", "destination"),
        ("connection_security_policy", "mutual_tls"),
        ("destination_workload", "near"),
    ];
    eventually("requests are encrypted", || {
        assert!(site.ask("near", &[]).all_good());
        site.mesh.metric("a", "istio_requests_total", &labels) >= 1.0
    });
}
