//! What VirtualService accepts and refuses, rule by rule (V-1 to V-31).
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod common;

const KIND: &str = "VirtualService";

fn accepts(spec: &str) -> Vec<String> {
    common::accepts(KIND, spec)
}

fn refuses(spec: &str, field: &str) {
    common::refuses(KIND, spec, field);
}

/// A spec with one rule that has a route, and these fields besides.
fn rule(fields: &str) -> String {
    let fields = fields.replace('\n', "\n  ");
    format!("hosts: [a.b]\nhttp:\n- {fields}\n  route: [{{destination: {{host: c.d}}}}]")
}

fn accepts_rule(fields: &str) -> Vec<String> {
    accepts(&rule(fields))
}

fn refuses_rule(fields: &str, field: &str) {
    refuses(&rule(fields), &format!("spec.http[0].{field}"));
}

const ROUTE: &str = "http: [{route: [{destination: {host: c.d}}]}]";

#[test]
fn v1_hosts() {
    for hosts in [
        "[a]",
        "[a.b]",
        "['*.a.b']",
        "['*-x.b']",
        "['*x.b']",
        "[1.2.3.4]",
        "['fd00::1']",
        "['fe80::1%eth0']",
        "[a.b.]",
        "[A.B]",
        "['*.a', b]",
        "[a, b]",
        "['*.a.b', a.b]",
    ] {
        assert_eq!(accepts(&format!("hosts: {hosts}\n{ROUTE}")), [""; 0], "{hosts}");
    }
    for (hosts, index) in [
        ("['']", 0),
        ("['*']", 0),
        ("[a.b, 'a b']", 1),
        ("[a.*.b]", 0),
        ("[a_b]", 0),
        ("[a..b]", 0),
        ("[a.123]", 0),
        ("[null]", 0),
        ("[a, a]", 1),
        ("['*.a', x.a]", 1),
        ("[x.a, '*.a']", 1),
        ("['*.b.a', '*.a']", 1),
        ("['-a']", 0),
        ("[a:80]", 0),
    ] {
        refuses(&format!("hosts: {hosts}\n{ROUTE}"), &format!("spec.hosts[{index}]"));
    }
    assert_eq!(accepts(&format!("hosts: ['*']\ngateways: [gw]\n{ROUTE}")), [""; 0]);
    refuses(&format!("hosts: ['*']\ngateways: [gw, mesh]\n{ROUTE}"), "spec.hosts[0]");
    refuses("hosts: [a]", "spec");
    refuses("hosts: [a]\nhttp: []", "spec");
}

#[test]
fn v1_generated_server_names() {
    let tls = |host: &str, gateways: &str| {
        format!(
            "hosts: [{host}]\n{gateways}tls: [{{match: [{{sniHosts: [{host}]}}], route: [{{destination: {{host: c}}}}]}}]"
        )
    };
    assert_eq!(accepts(&tls("outbound_.80_._.a.b", "gateways: [gw]\n")), [""; 0]);
    for bad in ["outbound_.80", "outbound_.http_._.a", "outbound_.80_._.1"] {
        let problems = common::networking(KIND, &tls(bad, "gateways: [gw]\n"));
        assert!(problems.iter().any(|problem| problem.field == "spec.hosts[0]"), "{bad}");
    }
    let problems = common::networking(KIND, &tls("outbound_.80_._.a.b", ""));
    assert!(problems.iter().any(|problem| problem.field == "spec.hosts[0]"));
}

#[test]
fn v2_gateways() {
    let spec = |gateways: &str| format!("hosts: [a]\ngateways: {gateways}\n{ROUTE}");
    for gateways in ["~", "[]", "[mesh]", "[gw]", "[ns/gw]", "[./gw]", "[ns/gw, gw, mesh]"] {
        assert_eq!(accepts(&spec(gateways)), [""; 0], "{gateways}");
    }
    assert_eq!(accepts(&spec("[gw.ns.svc.cluster.local]")), ["IST0133 spec.gateways[0]"]);
    // What follows a plain name is not checked by Istio's admission either.
    assert_eq!(accepts(&spec("[mesh, ns/*]")), ["WEFT0013 spec.gateways[1]"]);
    for gateways in ["['']", "[a@b]", "[ns/*]", "[/gw]", "[ns/]", "['*/gw']", "[a/b/c]", "[n.s/gw]"] {
        refuses(&spec(gateways), "spec.gateways[0]");
    }
    refuses_rule("match: [{gateways: [a@b]}]", "match[0].gateways[0]");
}

#[test]
fn v3_v4_lists_and_unknown_fields() {
    assert_eq!(accepts_rule("match: []"), [""; 0]);
    assert_eq!(accepts_rule("match:"), [""; 0]);
    assert_eq!(accepts_rule("match: [{}]"), [""; 0]);
    refuses("hosts: [a]\nhttp: [null]", "spec.http[0]");
    refuses_rule("match: [null]", "match[0]");
    for (fields, field) in [
        ("matches: []", "matches"),
        ("match: [{url: {exact: /}}]", "match[0].url"),
        ("match: [{uri: {exactly: /}}]", "match[0].uri.exactly"),
        ("match: [{uri: /}]", "match[0].uri"),
        ("match: [{method: GET}]", "match[0].method"),
        ("timeout: 5", "timeout"),
        ("retries: {attempts: '3'}", "retries.attempts"),
        ("match: [{port: -1}]", "match[0].port"),
        ("match: [{ignoreUriCase: 'yes'}]", "match[0].ignoreUriCase"),
    ] {
        refuses_rule(fields, field);
    }
    refuses("hosts: a\nhttp: []", "spec.hosts");
}

#[test]
fn v5_to_v9_texts() {
    for condition in [
        "uri: {}",
        "uri: {prefix: ''}",
        "uri: {exact: ''}",
        "uri: {regex: '/a(b|c)'}",
        "method: {exact: GET}",
        "scheme: {}",
        "authority: {exact: ''}",
        "headers: {x: {}}",
        "headers: {x: {exact: ''}}",
        "headers: {':method': {exact: GET}}",
        "headers: {X-Y_z.a: {prefix: a}}",
        "withoutHeaders: {x: {}}",
        "withoutHeaders: {x: {regex: '*'}}",
        "queryParams: {a: {}}",
        "queryParams: {'a b': {exact: ''}}",
    ] {
        assert_eq!(accepts_rule(&format!("match: [{{{condition}}}]")), [""; 0], "{condition}");
    }
    for (condition, field) in [
        ("uri: {regex: ''}", "uri.regex"),
        ("uri: {regex: '['}", "uri.regex"),
        ("uri: {regex: 'a**'}", "uri.regex"),
        ("uri: {regex: '(?=a)'}", "uri.regex"),
        ("uri: {exact: a, prefix: a}", "uri"),
        ("uri: {exact: a, regex: ''}", "uri"),
        ("method: {prefix: ''}", "method.prefix"),
        ("scheme: {regex: ''}", "scheme.regex"),
        ("authority: {prefix: ''}", "authority.prefix"),
        ("headers: {x: {prefix: ''}}", "headers.x.prefix"),
        ("headers: {x: {regex: '*'}}", "headers.x.regex"),
        ("headers: {x: null}", "headers.x"),
        ("headers: {'': {}}", "headers."),
        ("headers: {':foo': {}}", "headers.:foo"),
        ("headers: {'a b': {}}", "headers.a b"),
        ("withoutHeaders: {x: {prefix: ''}}", "withoutHeaders.x.prefix"),
        ("withoutHeaders: {x: {regex: '?'}}", "withoutHeaders.x.regex"),
        ("withoutHeaders: {'a b': {}}", "withoutHeaders.a b"),
        ("queryParams: {q: {regex: ''}}", "queryParams.q.regex"),
        ("queryParams: {q: {prefix: ''}}", "queryParams.q.prefix"),
    ] {
        refuses_rule(&format!("match: [{{{condition}}}]"), &format!("match[0].{field}"));
    }
    let long = format!("match: [{{uri: {{regex: '{}'}}}}]", "a".repeat(1025));
    refuses_rule(&long, "match[0].uri.regex");
}

#[test]
fn v6_claims_at_gateways_only() {
    let spec = |gateways: &str, field: &str, name: &str| {
        format!(
            "hosts: [a]\n{gateways}http:\n- match: [{{{field}: {{'{name}': {{exact: x}}}}}}]\n  route: [{{destination: {{host: c}}}}]"
        )
    };
    for name in ["@request.auth.claims.sub", "@request.auth.claims[a][b]", "@Request.Auth.Claims.Sub"] {
        assert_eq!(accepts(&spec("gateways: [gw]\n", "headers", name)), [""; 0]);
        for gateways in ["", "gateways: [mesh]\n", "gateways: [ns/gw, mesh]\n"] {
            for field in ["headers", "withoutHeaders"] {
                refuses(&spec(gateways, field, name), &format!("spec.http[0].match[0].{field}.{name}"));
            }
        }
    }
    refuses(
        &spec("gateways: [gw]\n", "headers", "@request.auth.claims"),
        "spec.http[0].match[0].headers.@request.auth.claims",
    );
}

#[test]
fn v10_v11_ports_and_sources() {
    for condition in [
        "port: 0",
        "port: 65535",
        "port: 80.0",
        "sourceLabels: {a.b/c: d, e: ''}",
        "sourceNamespace: ''",
        "sourceNamespace: A-b",
    ] {
        assert_eq!(accepts_rule(&format!("match: [{{{condition}}}]")), [""; 0], "{condition}");
    }
    for (condition, field) in [
        ("port: 65536", "port"),
        ("sourceLabels: {-a: b}", "sourceLabels"),
        ("sourceLabels: {a: -b}", "sourceLabels.a"),
        ("sourceLabels: {a: 'b c'}", "sourceLabels.a"),
        ("sourceNamespace: a.b", "sourceNamespace"),
    ] {
        refuses_rule(&format!("match: [{{{condition}}}]"), &format!("match[0].{field}"));
    }
    assert_eq!(accepts_rule("match: [{statPrefix: a}]"), ["WEFT0014 spec.http[0].match[0].statPrefix"]);
}

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
fn v18_redirects() {
    let spec = |redirect: &str, condition: &str| {
        format!("hosts: [a]\nhttp: [{{match: [{{{condition}}}], redirect: {redirect}}}]")
    };
    for redirect in [
        "{uri: /x}",
        "{authority: b}",
        "{scheme: https}",
        "{port: 80}",
        "{port: 0}",
        "{derivePort: FROM_REQUEST_PORT}",
        "{derivePort: FROM_PROTOCOL_DEFAULT, redirectCode: 308}",
        "{prefixRewrite: /, redirectCode: 304}",
        "{uri: /, redirectCode: 0}",
    ] {
        assert_eq!(accepts(&spec(redirect, "uri: {prefix: /}")), [""; 0], "{redirect}");
    }
    for (redirect, condition, field) in [
        ("{}", "", ""),
        ("{redirectCode: 302}", "", ""),
        ("{uri: a, prefixRewrite: b}", "", ".prefixRewrite"),
        ("{prefixRewrite: b}", "uri: {exact: /}", ".prefixRewrite"),
        ("{prefixRewrite: b}", "uri: {regex: /}", ".prefixRewrite"),
        ("{prefixRewrite: b}", "uri: {}", ".prefixRewrite"),
        ("{uri: a, redirectCode: 299}", "", ".redirectCode"),
        ("{uri: a, redirectCode: 400}", "", ".redirectCode"),
        ("{uri: a, scheme: ftp}", "", ".scheme"),
        ("{port: 65536}", "", ".port"),
        ("{port: 80, derivePort: FROM_REQUEST_PORT}", "", ".derivePort"),
        ("{derivePort: SOME}", "", ".derivePort"),
    ] {
        refuses(&spec(redirect, condition), &format!("spec.http[0].redirect{field}"));
    }
    assert_eq!(accepts(&spec("{prefixRewrite: b}", "headers: {x: {exact: a}}")), [""; 0]);
}

#[test]
fn v18_v19_v29_one_way_to_answer() {
    let spec = |fields: &str| format!("hosts: [a]\nhttp: [{{{fields}}}]");
    let (route, redirect) = ("route: [{destination: {host: c}}]", "redirect: {uri: /x}");
    let (response, fault) = ("directResponse: {status: 200}", "fault: {abort: {httpStatus: 500}}");
    let (rewrite, delegate) = ("rewrite: {uri: /x}", "delegate: {name: d, namespace: ns}");
    for fields in [
        route,
        redirect,
        response,
        delegate,
        "delegate: {}",
        &format!("{delegate}, {fault}"),
        &format!("{delegate}, {response}"),
    ] {
        assert_eq!(accepts(&spec(fields)), [""; 0], "{fields}");
    }
    for (fields, field) in [
        (format!("{redirect}, {route}"), ".route"),
        (format!("{redirect}, {fault}"), ".fault"),
        (format!("{redirect}, {rewrite}"), ".rewrite"),
        (format!("{redirect}, {response}"), ".directResponse"),
        (format!("{response}, {route}"), ".route"),
        (format!("{response}, {fault}"), ".fault"),
        (format!("{response}, {rewrite}"), ".rewrite"),
        (format!("{delegate}, {route}"), ".route"),
        (format!("{delegate}, {redirect}"), ".redirect"),
        (fault.to_owned(), ""),
        ("retries: {attempts: 0}".to_owned(), ""),
        ("route: []".to_owned(), ""),
        ("name: a".to_owned(), ""),
        (format!("{route}, mirror: {{host: m}}, mirrors: [{{destination: {{host: m}}}}]"), ".mirrors"),
    ] {
        refuses(&spec(&fields), &format!("spec.http[0]{field}"));
    }
}

#[test]
fn v19_direct_responses() {
    let spec = |response: &str| format!("hosts: [a]\nhttp: [{{directResponse: {response}}}]");
    for response in [
        "{status: 200}",
        "{status: 600}",
        "{status: 503, body: {}}",
        "{status: 200, body: {bytes: aGVsbG8=}}",
    ] {
        assert_eq!(accepts(&spec(response)), [""; 0], "{response}");
    }
    for (response, field) in [
        ("{}", "status"),
        ("{status: 199}", "status"),
        ("{status: 601}", "status"),
        ("{status: 200, body: {string: a, bytes: YQ==}}", "body"),
        ("{status: 200, body: {bytes: '?'}}", "body.bytes"),
        ("{status: 200, body: a}", "body"),
    ] {
        refuses(&spec(response), &format!("spec.http[0].directResponse.{field}"));
    }
    let body = |length: usize| spec(&format!("{{status: 200, body: {{string: {}}}}}", "a".repeat(length)));
    assert_eq!(accepts(&body(100 << 10)), [""; 0]);
    assert_eq!(accepts(&body((100 << 10) + 1)), ["IST0133 spec.http[0].directResponse.body"]);
    assert_eq!(accepts(&body(1 << 20)).len(), 1);
    refuses(&body((1 << 20) + 1), "spec.http[0].directResponse.body");
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
    ] {
        assert_eq!(accepts_rule(&format!("retries: {retries}")), [""; 0], "{retries}");
    }
    let remote = "{attempts: 1, retryRemoteLocalities: true}";
    assert_eq!(
        accepts_rule(&format!("retries: {remote}")),
        ["WEFT0014 spec.http[0].retries.retryRemoteLocalities"]
    );
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
fn v26_faults() {
    for fault in [
        "{delay: {fixedDelay: 1s}}",
        "{delay: {fixedDelay: 1s, percentage: {value: 0}}}",
        "{delay: {}}",
        "{delay: {fixedDelay: 1s, percent: 500}}",
        "{delay: {fixedDelay: 1s, percentage: {}}}",
        "{abort: {httpStatus: 200, percentage: {value: 0.0001}}}",
        "{abort: {grpcStatus: DATA_LOSS}}",
    ] {
        assert_eq!(accepts_rule(&format!("fault: {fault}")), [""; 0], "{fault}");
    }
    assert_eq!(accepts_rule("fault: {abort: {}}"), ["IST0133 spec.http[0].fault.abort"]);
    for (fault, field) in [
        ("{}", ""),
        ("{delay: {fixedDelay: 0s}}", ".delay.fixedDelay"),
        ("{delay: {exponentialDelay: 1s}}", ".delay.exponentialDelay"),
        ("{delay: {fixedDelay: 1s, percentage: {value: 100.1}}}", ".delay.percentage.value"),
        ("{delay: {fixedDelay: 1s, percentage: {value: 0.00001}}}", ".delay.percentage.value"),
        ("{delay: {fixedDelay: 1s, percentage: 5}}", ".delay.percentage"),
        ("{abort: {httpStatus: 199}}", ".abort.httpStatus"),
        ("{abort: {httpStatus: 601}}", ".abort.httpStatus"),
        ("{abort: {httpStatus: 500, grpcStatus: OK}}", ".abort"),
        ("{abort: {grpcStatus: '14'}}", ".abort.grpcStatus"),
        ("{abort: {grpcStatus: unavailable}}", ".abort.grpcStatus"),
        ("{abort: {http2Error: REFUSED_STREAM}}", ".abort.http2Error"),
        ("{abort: {httpStatus: 500, percentage: {value: -1}}}", ".abort.percentage.value"),
    ] {
        refuses_rule(&format!("fault: {fault}"), &format!("fault{field}"));
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

#[test]
fn v28_cors() {
    for cors in [
        "{}",
        "{allowOrigin: ['*']}",
        "{allowOrigins: [{exact: a}, {regex: 'a.*'}], allowMethods: [GET, '*'], allowHeaders: ['*', x-y]}",
        "{maxAge: 24h, allowCredentials: true, unmatchedPreflights: IGNORE}",
        "{unmatchedPreflights: UNSPECIFIED}",
    ] {
        assert_eq!(accepts_rule(&format!("corsPolicy: {cors}")), [""; 0], "{cors}");
    }
    for (cors, field) in [
        ("{allowOrigins: [{}]}", "allowOrigins[0]"),
        ("{allowOrigins: [{prefix: ''}]}", "allowOrigins[0]"),
        ("{allowOrigins: [{regex: '['}]}", "allowOrigins[0].regex"),
        ("{allowOrigins: [{exact: a, prefix: b}]}", "allowOrigins[0]"),
        ("{allowMethods: [get]}", "allowMethods[0]"),
        ("{allowMethods: ['']}", "allowMethods[0]"),
        ("{allowHeaders: ['a b']}", "allowHeaders[0]"),
        ("{exposeHeaders: ['']}", "exposeHeaders[0]"),
        ("{maxAge: 0s}", "maxAge"),
        ("{maxAge: 1500ms}", "maxAge"),
        ("{unmatchedPreflights: MAYBE}", "unmatchedPreflights"),
    ] {
        refuses_rule(&format!("corsPolicy: {cors}"), &format!("corsPolicy.{field}"));
    }
}

#[test]
fn v29_delegates() {
    assert_eq!(accepts(ROUTE), [""; 0]);
    refuses(&format!("gateways: [gw]\n{ROUTE}"), "spec.gateways");
    refuses(&format!("tcp: [{{route: [{{destination: {{host: c}}}}]}}]\n{ROUTE}"), "spec.tcp");
    refuses("http: [{delegate: {name: d}, route: [{destination: {host: c}}]}]", "spec.http[0].delegate");
}

#[test]
fn v30_tls() {
    let spec = |condition: &str| {
        format!(
            "hosts: ['*.a.b', c.d]\ntls: [{{match: [{condition}], route: [{{destination: {{host: c}}}}]}}]"
        )
    };
    for condition in [
        "{sniHosts: [x.a.b]}",
        "{sniHosts: ['*.x.a.b', c.d], port: 443, destinationSubnets: [10.0.0.0/8, '::1', 10.1.1.1]}",
        "{sniHosts: [c.d], sourceLabels: {a: b}, sourceNamespace: ns, gateways: [mesh]}",
    ] {
        assert_eq!(accepts(&spec(condition)), [""; 0], "{condition}");
    }
    assert_eq!(accepts(&spec("{sniHosts: [1.1.1.1]}")), ["IST0133 spec.tls[0].match[0].sniHosts[0]"]);
    for (condition, field) in [
        ("{}", "match[0].sniHosts"),
        ("{sniHosts: [a.b]}", "match[0].sniHosts[0]"),
        ("{sniHosts: ['*.b']}", "match[0].sniHosts[0]"),
        ("{sniHosts: ['x y']}", "match[0].sniHosts[0]"),
        ("{sniHosts: [c.d], destinationSubnets: [10.0.0.0/33]}", "match[0].destinationSubnets[0]"),
        ("{sniHosts: [c.d], destinationSubnets: [a.b]}", "match[0].destinationSubnets[0]"),
        ("{sniHosts: [c.d], port: 70000}", "match[0].port"),
        ("{sniHosts: [c.d], sourceLabels: {'': b}}", "match[0].sourceLabels"),
        ("null", "match[0]"),
    ] {
        refuses(&spec(condition), &format!("spec.tls[0].{field}"));
    }
    refuses("hosts: [c.d]\ntls: [{route: [{destination: {host: c}}]}]", "spec.tls[0].match");
    refuses("hosts: [c.d]\ntls: [{match: [{sniHosts: [c.d]}]}]", "spec.tls[0].route");
}

#[test]
fn v31_tcp() {
    let spec = |rule: &str| format!("hosts: [a]\ntcp: [{{{rule}}}]");
    for rule in [
        "route: [{destination: {host: c}}]",
        "match: [{port: 1, destinationSubnets: ['fd00::/8'], sourceNamespace: 'not checked'}], route: [{destination: {host: c}, weight: 1}]",
    ] {
        assert_eq!(accepts(&spec(rule)), [""; 0], "{rule}");
    }
    let subnet = "match: [{sourceSubnet: 10.0.0.0/8}], route: [{destination: {host: c}}]";
    assert_eq!(accepts(&spec(subnet)), ["WEFT0014 spec.tcp[0].match[0].sourceSubnet"]);
    for (rule, field) in [
        ("match: []", "route"),
        ("route: [{}]", "route[0].destination"),
        ("route: [{destination: {host: c}}, {destination: {host: d}}]", "route"),
        ("route: [{destination: {host: c}, headers: {}}]", "route[0].headers"),
        ("match: [{sniHosts: [a]}], route: [{destination: {host: c}}]", "match[0].sniHosts"),
    ] {
        refuses(&spec(rule), &format!("spec.tcp[0].{field}"));
    }
}

#[test]
fn x7_export_to() {
    let spec = |export: &str| format!("hosts: [a]\nexportTo: {export}\n{ROUTE}");
    for export in ["~", "[]", "['*']", "[.]", "[., other]", "[a, B-c]", "[shop]"] {
        assert_eq!(accepts(&spec(export)), [""; 0], "{export}");
    }
    for (export, field) in [
        ("['~']", "[0]"),
        ("[., shop]", "[1]"),
        ("[a, a]", "[1]"),
        ("['*', a]", ""),
        ("[a_b]", "[0]"),
        ("['']", "[0]"),
    ] {
        refuses(&spec(export), &format!("spec.exportTo{field}"));
    }
}

#[test]
fn x16_annotations() {
    for name in ["istio.io/dry-run", "internal.istio.io/webhook-always-reject", "internal.istio.io/parents"] {
        let text = format!(
            "{{\"apiVersion\": \"networking.istio.io/v1\", \"kind\": \"VirtualService\", \"metadata\": {{\"name\": \"a\", \
             \"annotations\": {{\"{name}\": \"true\"}}}}, \"spec\": {{\"hosts\": [\"a\"], \"http\": [{{\"route\": \
             [{{\"destination\": {{\"host\": \"c\"}}}}]}}]}}}}"
        );
        let decoded = common::decode(text.as_bytes(), weft_control::decode::documents::Format::Json);
        assert_eq!(decoded[0].problems[0].field, format!("metadata.annotations[{name}]"));
    }
}

/// What the fields mean, and how mistakes are told.
#[test]
fn golden() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/virtual-service.yaml");
    let text = common::render_compact(&std::fs::read(path).unwrap());
    insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!("virtual-service", text);
    });
}
