//! What the conditions of a rule may be (V-5 to V-11).

use super::{accepts, accepts_rule, refuses, refuses_rule};

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
