//! Circuit breakers and outlier detection.

use weft_netns_tests::eventually;

use crate::site::{NEAR_AND_FAR, SUBSETS, Site};

#[test]
fn what_exceeds_the_limits_is_refused_and_counted() {
    let Some(site) = Site::new() else { return };
    for service in NEAR_AND_FAR {
        let policy = "{connectionPool: {tcp: {maxConnections: 1}, http: {http1MaxPendingRequests: 1}}}";
        site.settled(|| site.traffic_policy(service, policy));
        let cluster = format!("outbound|9080||{service}.shop.svc.cluster.local");
        let overflows = || {
            let labels = [("cluster_name", cluster.as_str())];
            site.mesh.metric("a", "envoy_cluster_upstream_rq_pending_overflow", &labels)
        };
        let args = ["--path", "/crowd?delay_ms=100", "--count", "60", "--concurrency", "10"];
        let mut refused = 0;
        let answer = site.ask_until("requests are refused", service, &args, |answer| {
            refused += answer.with_status(503);
            answer.with_status(503) > 0
        });
        assert_eq!(answer.with_status(200) + answer.with_status(503), 60, "{}", answer.0);
        assert!(answer.with_status(200) > 0, "{}", answer.0);
        assert_eq!(overflows(), refused as f64, "each refusal is counted once");
        let other = site.ask_from("other", weft_netns_tests::Family::V4, (service, 9080), &["--count", "5"]);
        assert!(other.all_good(), "limits are each client's own: {}", other.0);
        let line = site.mesh.log_line("a", "a line about an overflow", |line| {
            line["response_flags"] == "UO" && line["upstream_cluster"] == cluster
        });
        assert_eq!(line["response_code"], 503, "{line}");
    }
}

#[test]
fn an_endpoint_that_fails_is_ejected_and_comes_back() {
    let Some(site) = Site::new() else { return };
    site.mesh.write(
        "subsets.yaml",
        &format!(
            "{SUBSETS}  trafficPolicy: {{loadBalancer: {{simple: ROUND_ROBIN}}, outlierDetection: {{consecutive5xxErrors: \
             3, interval: 1s, baseEjectionTime: 2s, maxEjectionPercent: 100}}}}\n"
        ),
    );
    let many = ["--count", "90", "--concurrency", "3"];
    site.ask_until("all three answer", "reviews", &many, |answer| {
        answer.all_good() && ["v1", "v2", "v3"].iter().all(|version| answer.of_version(version) > 0)
    });
    site.tell("reviews-v3", "/control?status=500");
    let cluster = [("cluster_name", "outbound|9080||reviews.shop.svc.cluster.local")];
    let ejections = |name: &str| {
        site.mesh.metric("a", &format!("envoy_cluster_outlier_detection_ejections_{name}"), &cluster)
    };
    let healthy = site.ask_until("v3 is ejected", "reviews", &many, |answer| answer.all_good());
    assert_eq!(healthy.of_version("v3"), 0, "{}", healthy.0);
    assert!(ejections("enforced_total") >= 1.0);
    site.tell("reviews-v3", "/control");
    site.ask_until("v3 is back", "reviews", &many, |answer| answer.all_good() && answer.of_version("v3") > 0);
    eventually("nothing is ejected any more", || ejections("active") == 0.0);
}
