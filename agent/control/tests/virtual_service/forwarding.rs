//! Where requests go, and what happens to them on the way (V-15 to V-17, V-20 to V-25, V-27).

use super::{accepts, accepts_rule, refuses, refuses_rule};

#[test]
fn v15_v16_destinations() {
    let spec = |routes: &str| format!("hosts: [a]\nhttp: [{{route: {routes}}}]");
    for routes in [
        "[{destination: {host: a}}]",
        "[{destination: {host: a, subset: v1, port: {number: 80}}, weight: 0}]",
        "[{destination: {host: '*.a'}, weight: 5}, {destination: {host: b}}]",
        "[{destination: {host: a, port: null}}]",
        "[{destination: {host: a}, weight: 2147483647}, {destination: {host: b}, weight: 1}]",
    ] {
        assert_eq!(accepts(&spec(routes)), [""; 0], "{routes}");
    }
    for (routes, field) in [
        ("[{}]", "route[0].destination"),
        ("[{destination: null}]", "route[0].destination"),
        ("[{destination: {}}]", "route[0].destination.host"),
        ("[{destination: {host: '*'}}]", "route[0].destination.host"),
        ("[{destination: {host: a/b}}]", "route[0].destination.host"),
        ("[{destination: {host: 10.0.0.1}}]", "route[0].destination.host"),
        ("[{destination: {host: a, subset: v_1}}]", "route[0].destination.subset"),
        ("[{destination: {host: a, port: {}}}]", "route[0].destination.port.number"),
        ("[{destination: {host: a, port: {number: 65536}}}]", "route[0].destination.port.number"),
        ("[{destination: {host: a, port: 80}}]", "route[0].destination.port"),
        ("[{destination: {host: a}, weight: -1}]", "route[0].weight"),
        ("[{destination: {host: a}, weight: 2147483648}]", "route[0].weight"),
        ("[{destination: {host: a}}, {destination: {host: b}}]", "route"),
        ("[{destination: {host: a}}, null]", "route[1]"),
        ("[{destination: {host: a}, host: b}]", "route[0].host"),
    ] {
        refuses(&spec(routes), &format!("spec.http[0].{field}"));
    }
}

#[test]
fn v17_headers() {
    for (headers, findings) in [
        ("{request: {set: {x: a, Host: b}, add: {y: '100%%'}, remove: [z]}}", 0),
        ("{request: {set: {':authority': b}}, response: {set: {x: '%HOSTNAME%'}}}", 0),
        ("{request: {set: {x: ''}}}", 0),
        ("{request: {set: {x: '%DOWNSTREAM_REMOTE_ADDRESS% %START_TIME(%Y)%'}}}", 0),
        ("{response: {add: {x: '%WEATHER% %TRACE_ID%'}}}", 2),
        ("{request: {set: {'a b': c}}}", 1),
        ("{}", 0),
        ("{request: null}", 0),
    ] {
        assert_eq!(accepts_rule(&format!("headers: {headers}")).len(), findings, "{headers}");
        let route =
            format!("hosts: [a]\nhttp: [{{route: [{{destination: {{host: c}}, headers: {headers}}}]}}]");
        assert_eq!(accepts(&route).len(), findings, "{headers}");
    }
    for (headers, field) in [
        ("{request: {set: {'': a}}}", "request.set."),
        ("{request: {set: {':path': a}}}", "request.set.:path"),
        ("{request: {add: {x: '%'}}}", "request.add.x"),
        ("{request: {add: {x: \"a\\nb\"}}}", "request.add.x"),
        ("{request: {remove: ['']}}", "request.remove[0]"),
        ("{request: {remove: [Host]}}", "request.remove[0]"),
        ("{request: {remove: [':authority']}}", "request.remove[0]"),
        ("{response: {set: {host: a}}}", "response.set.host"),
        ("{response: {add: {':status': a}}}", "response.add.:status"),
        ("{response: {remove: ['']}}", "response.remove[0]"),
        ("{request: {delete: [a]}}", "request.delete"),
    ] {
        refuses_rule(&format!("headers: {headers}"), &format!("headers.{field}"));
    }
    for fields in [
        "headers: {request: {set: {host: a, ':authority': b}}}",
        "headers: {request: {set: {host: a}, add: {HOST: b}}}",
        "headers: {request: {add: {host: a}}}\nrewrite: {authority: b}",
    ] {
        refuses_rule(fields, "headers.request");
    }
}

#[test]
fn v20_rewrites() {
    for rewrite in
        ["{uri: /}", "{authority: a}", r"{uriRegexRewrite: {match: '^/(a)$', rewrite: '\1'}, authority: a}"]
    {
        assert_eq!(accepts_rule(&format!("rewrite: {rewrite}")), [""; 0], "{rewrite}");
    }
    for (rewrite, field) in [
        ("{}", ""),
        ("{uri: ''}", ""),
        ("{uri: /, uriRegexRewrite: {match: a, rewrite: b}}", ".uriRegexRewrite"),
        ("{uriRegexRewrite: {match: a}}", ".uriRegexRewrite"),
        ("{uriRegexRewrite: {rewrite: a}}", ".uriRegexRewrite"),
        ("{uriRegexRewrite: {match: '[', rewrite: a}}", ".uriRegexRewrite.match"),
    ] {
        refuses_rule(&format!("rewrite: {rewrite}"), &format!("rewrite{field}"));
    }
}

#[test]
fn v21_x15_timeouts() {
    for timeout in ["1ms", "100ms", "5s", "1m30s", "1h", "0.001s", "1.5s", "1000us"] {
        assert_eq!(accepts_rule(&format!("timeout: {timeout}")), [""; 0], "{timeout}");
    }
    for timeout in ["0s", "999us", "-1s", "1.0001s", "5", "''", "1d", "1 s", "s", "9999999999h"] {
        refuses_rule(&format!("timeout: {timeout}"), "timeout");
    }
    assert_eq!(accepts_rule("timeout: null"), [""; 0]);
}

#[test]
fn v22_to_v25_retries() {
    for retries in [
        "{}",
        "{attempts: 0}",
        "{attempts: 3}",
        "{attempts: 0, backoff: 1s}",
        "{attempts: 0, retryIgnorePreviousHosts: true}",
        "{attempts: 1, perTryTimeout: 2s, retryOn: '5xx,gateway-error,503,425,unavailable'}",
        "{attempts: 1, retryOn: ''}",
        "{attempts: 1, retryRemoteLocalities: true}",
    ] {
        assert_eq!(accepts_rule(&format!("retries: {retries}")), [""; 0], "{retries}");
    }
    for (retries, field) in [
        ("{attempts: -1}", "attempts"),
        ("{perTryTimeout: 1s}", "attempts"),
        ("{retryOn: 5xx}", "attempts"),
        ("{retryRemoteLocalities: false}", "attempts"),
        ("{attempts: 1, perTryTimeout: 0s}", "perTryTimeout"),
        ("{attempts: 1, backoff: 1us}", "backoff"),
        ("{attempts: 1, retryOn: '5xx, reset'}", "retryOn"),
        ("{attempts: 1, retryOn: '5xx,'}", "retryOn"),
        ("{attempts: 1, retryOn: sometimes}", "retryOn"),
        ("{attempts: 1, retryOn: '499'}", "retryOn"),
        ("{attempts: 1, retryOn: '306'}", "retryOn"),
    ] {
        refuses_rule(&format!("retries: {retries}"), &format!("retries.{field}"));
    }
}

#[test]
fn v27_mirrors() {
    for fields in [
        "mirror: {host: m}",
        "mirror: {host: m, subset: v1, port: {number: 80}}\nmirrorPercentage: {value: 0}",
        "mirrors: [{destination: {host: m}}, {destination: {host: o}, percentage: {value: 0.00001}}]",
        "mirrorPercentage: {value: 5}",
    ] {
        assert_eq!(accepts_rule(fields), [""; 0], "{fields}");
    }
    for name in ["mirrorPercent", "mirror_percent"] {
        let findings = accepts_rule(&format!("mirror: {{host: m}}\n{name}: 50"));
        assert_eq!(findings, ["IST0133 spec.http[0].mirrorPercent"]);
    }
    for (fields, field) in [
        ("mirror: {}", "mirror.host"),
        ("mirror: {host: '*'}", "mirror.host"),
        ("mirror: {host: m}\nmirrorPercentage: {value: 101}", "mirrorPercentage.value"),
        ("mirror: {host: m}\nmirrorPercentage: {value: -0.1}", "mirrorPercentage.value"),
        ("mirror: {host: m}\nmirrorPercent: 101", "mirrorPercent"),
        ("mirrors: [{}]", "mirrors[0].destination"),
        ("mirrors: [null]", "mirrors[0]"),
        ("mirrors: [{destination: {host: m}, percentage: {value: 101}}]", "mirrors[0].percentage.value"),
    ] {
        refuses_rule(fields, field);
    }
}
