//! Timeouts, faults and retries.

use serde_json::Value;
use weft_netns_tests::{Family, eventually};

use crate::site::{FAMILIES, NEAR_AND_FAR, Site, WEB};

#[test]
fn a_slow_answer_is_cut_by_the_timeout() {
    let Some(site) = Site::new() else { return };
    for service in NEAR_AND_FAR {
        site.routes(service, &format!("[{{timeout: 1.5s, route: [{{destination: {{host: {service}}}}}]}}]"));
        let slow = ["--path", "/slow?delay_ms=15000"];
        site.ask_until("the timeout is there", service, &slow, |answer| answer.status() == 504);
        for family in FAMILIES {
            let answer = site.ask_from("client", family, (service, WEB), &slow);
            assert_eq!((answer.status(), answer.text()), (504, "upstream request timeout"), "{}", answer.0);
            assert!((1500.0..15000.0).contains(&answer.ms()), "{}", answer.0);
        }
        site.ask_until("who is quick is answered", service, &["--path", "/quick"], |it| it.all_good());
        let line = site.mesh.log_line("a", "a line about the timeout", |line| {
            line["response_flags"] == "UT" && line["direction"] == "outbound"
        });
        assert_eq!(
            (&line["response_code"], &line["response_code_details"]),
            (&504.into(), &"response_timeout".into())
        );
    }
}

#[test]
fn injected_faults_delay_and_abort() {
    let Some(site) = Site::new() else { return };
    for service in NEAR_AND_FAR {
        let fault = "{abort: {percentage: {value: 100}, httpStatus: 503}}";
        let delay = "{delay: {percentage: {value: 100}, fixedDelay: 0.4s}}";
        site.routes(
            service,
            &format!(
                "[{{match: [{{uri: {{prefix: /abort}}}}], fault: {fault}, route: [{{destination: {{host: \
                 {service}}}}}]}}, {{fault: {delay}, route: [{{destination: {{host: {service}}}}}]}}]"
            ),
        );
        let aborted = ["--path", "/abort", "--count", "5"];
        site.ask_until("the abort is there", service, &["--path", "/abort"], |it| it.status() == 503);
        for family in FAMILIES {
            let before = site.seen(service, "/abort");
            let answer = site.ask_from("client", family, (service, WEB), &aborted);
            assert_eq!((answer.with_status(503), answer.text()), (5, "fault filter abort"), "{}", answer.0);
            assert_eq!(site.seen(service, "/abort"), before, "the application never saw them");
            let delayed = site.ask_from("client", family, (service, WEB), &[]);
            assert!(delayed.all_good() && delayed.ms() >= 400.0, "{}", delayed.0);
        }
        let flags = |line: &Value| line["response_flags"] == "FI" && line["response_code"] == 503;
        let line = site.mesh.log_line("a", "a line about the abort", flags);
        assert_eq!(line["response_code_details"], "fault_filter_abort", "{line}");
    }
}

#[test]
fn a_request_is_tried_again_as_often_as_the_rule_says() {
    let Some(site) = Site::new() else { return };
    for service in NEAR_AND_FAR {
        let retries = "{attempts: 3, perTryTimeout: 15s, retryOn: 5xx}";
        site.routes(
            service,
            &format!("[{{retries: {retries}, route: [{{destination: {{host: {service}}}}}]}}]"),
        );
        let mut key = 0;
        eventually("the retries are there", || {
            key += 1;
            site.ask(service, &["--path", &format!("/warm?fail=1&key=warm{key}")]).status() == 200
        });
        for family in FAMILIES {
            let ask = |path: &str, more: &[&str]| {
                site.ask_from("client", family, (service, WEB), &[&["--path", path], more].concat())
            };
            let path = format!("/twice-{family:?}");
            let body = ["--method", "POST", "--body-bytes", "3000"];
            let answer = ask(&format!("{path}?fail=2&key={path}"), &body);
            assert!(answer.all_good(), "{}", answer.0);
            assert_eq!(answer.body()["body_bytes"], 3000, "the body is sent again");
            assert_eq!(answer.body()["headers"]["x-envoy-attempt-count"], "3", "{}", answer.0);
            assert_eq!(site.seen(service, &path), 3);
            let path = format!("/never-{family:?}");
            let answer = ask(&format!("{path}?fail=100&key={path}"), &[]);
            assert_eq!(answer.status(), 503, "{}", answer.0);
            assert_eq!(site.seen(service, &path), 4, "the first one and three more");
        }
        site.mesh.log_line("a", "a line about exhausted retries", |line| {
            line["response_flags"].as_str().is_some_and(|flags| flags.contains("URX"))
        });
    }
}

#[test]
fn nothing_is_repeated_that_an_application_has_seen_unless_a_rule_says_so() {
    let Some(site) = Site::new() else { return };
    for service in NEAR_AND_FAR {
        let answer = site.ask(service, &["--path", "/once?fail=1&key=once"]);
        assert_eq!(answer.status(), 503, "{}", answer.0);
        assert_eq!(site.seen(service, "/once"), 1);
    }
    let nobody = site.ask_from("client", Family::V4, ("near", 9999), &["--timeout-ms", "3000"]);
    assert_ne!(nobody.status(), 200, "{}", nobody.0);
}
