//! Near endpoints before far ones (D-10).

use crate::site::Site;

/// Of `reviews`, v1 is on the client's node, the others are not.
#[test]
fn what_is_near_serves_until_it_fails() {
    let Some(site) = Site::new() else { return };
    let many = ["--count", "100"];
    assert!(site.ask("reviews", &many).of_version("v1") < 100, "nothing is preferred without a rule");
    let policy = "{loadBalancer: {localityLbSetting: {failoverPriority: [kubernetes.io/hostname]}}, outlierDetection: \
                  {consecutive5xxErrors: 3, baseEjectionTime: 60s, maxEjectionPercent: 100}}";
    site.settled(|| site.traffic_policy("reviews", policy));
    let near = site.ask("reviews", &many);
    assert!(near.all_good() && near.of_version("v1") == 100, "{}", near.0);
    let failing = ["--path", "/?fail=3&key=near", "--count", "3"];
    assert_eq!(site.ask("reviews", &failing).with_status(503), 3);
    let after = site.ask("reviews", &many);
    let (v2, v3) = (after.of_version("v2"), after.of_version("v3"));
    assert!(after.all_good() && v2 > 0 && v3 > 0 && v2 + v3 == 100, "{}", after.0);
}
