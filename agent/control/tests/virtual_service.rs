//! What VirtualService accepts and refuses, rule by rule (V-1 to V-31).
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

#[path = "virtual_service/answers.rs"]
mod answers;
mod common;
#[path = "virtual_service/connections.rs"]
mod connections;
#[path = "virtual_service/forwarding.rs"]
mod forwarding;
#[path = "virtual_service/matches.rs"]
mod matches;

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
fn v29_delegates() {
    assert_eq!(accepts(ROUTE), [""; 0]);
    refuses(&format!("gateways: [gw]\n{ROUTE}"), "spec.gateways");
    refuses(&format!("tcp: [{{route: [{{destination: {{host: c}}}}]}}]\n{ROUTE}"), "spec.tcp");
    refuses("http: [{delegate: {name: d}, route: [{destination: {host: c}}]}]", "spec.http[0].delegate");
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
