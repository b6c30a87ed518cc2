//! Answers that no application gives: redirects, direct responses, faults, CORS (V-18, V-19, V-26, V-28, V-29).

use super::{accepts, accepts_rule, refuses, refuses_rule};

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
