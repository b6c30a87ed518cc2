//! Rules for TLS and TCP (V-30, V-31).

use super::{accepts, refuses};

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
