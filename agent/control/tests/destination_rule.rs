//! What DestinationRule accepts and refuses, rule by rule (D-1 to D-20).
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

const KIND: &str = "DestinationRule";

fn accepts(spec: &str) -> Vec<String> {
    common::accepts(KIND, spec)
}

fn refuses(spec: &str, field: &str) {
    common::refuses(KIND, spec, field);
}

fn accepts_policy(policy: &str) -> Vec<String> {
    let at_port = format!("{{portLevelSettings: [{{port: {{number: 80}}, {}", policy.trim_start_matches('{'));
    for spec in [
        format!("host: a\ntrafficPolicy: {policy}"),
        format!("host: a\nsubsets: [{{name: v1, trafficPolicy: {policy}}}]"),
        format!("host: a\ntrafficPolicy: {at_port}]}}"),
    ] {
        accepts(&spec);
    }
    accepts(&format!("host: a\ntrafficPolicy: {policy}"))
}

/// Refused at the destination, in a subset and at a port.
fn refuses_policy(policy: &str, field: &str) {
    refuses(&format!("host: a\ntrafficPolicy: {policy}"), &format!("spec.trafficPolicy{field}"));
    let subset = format!("host: a\nsubsets: [{{name: v1, trafficPolicy: {policy}}}]");
    refuses(&subset, &format!("spec.subsets[0].trafficPolicy{field}"));
    let port = format!("{{port: {{number: 80}}, {}", policy.trim_start_matches('{'));
    let port = format!("host: a\ntrafficPolicy: {{portLevelSettings: [{port}]}}");
    refuses(&port, &format!("spec.trafficPolicy.portLevelSettings[0]{field}"));
}

#[test]
fn d1_host() {
    for host in ["a", "a.b", "'*'", "'*.a.b'", "a.b.", "'*-x.b'"] {
        assert_eq!(accepts(&format!("host: {host}")), [""; 0], "{host}");
    }
    for host in ["''", "null", "10.0.0.1", "a_b", "a.*.b", "'a b'", "a/b"] {
        refuses(&format!("host: {host}"), "spec.host");
    }
    refuses("subsets: []", "spec.host");
}

#[test]
fn d3_workload_selectors() {
    let spec = |selector: &str| format!("host: a\nworkloadSelector: {selector}");
    assert_eq!(accepts(&spec("{matchLabels: {a: b}}")), [""; 0]);
    assert_eq!(accepts(&spec("{}")), ["IST0133 spec.workloadSelector"]);
    for (selector, field) in [
        ("{matchLabels: {'': b}}", "matchLabels"),
        ("{matchLabels: {'a*': b}}", "matchLabels"),
        ("{matchLabels: {a: '*'}}", "matchLabels"),
        ("{labels: {a: b}}", "labels"),
    ] {
        refuses(&spec(selector), &format!("spec.workloadSelector.{field}"));
    }
    let long = format!("{{matchLabels: {{a: {}}}}}", "b".repeat(64));
    refuses(&spec(&long), "spec.workloadSelector.matchLabels.a");
}

#[test]
fn d4_subsets() {
    let spec = |subsets: &str| format!("host: a\nsubsets: {subsets}");
    for subsets in ["~", "[]", "[{name: v1}]", "[{name: v1, labels: {a: b}}, {name: V-2}]"] {
        assert_eq!(accepts(&spec(subsets)), [""; 0], "{subsets}");
    }
    for (subsets, field) in [
        ("[{}]", "[0].name"),
        ("[{name: ''}]", "[0].name"),
        ("[{name: v.1}]", "[0].name"),
        ("[{name: a}, {name: a}]", "[1].name"),
        ("[{name: a, labels: {'a b': c}}]", "[0].labels"),
        ("[{name: a, labels: {a: 'b c'}}]", "[0].labels.a"),
        ("[{name: a, trafficPolicy: {}}]", "[0].trafficPolicy"),
        ("[{name: a, label: {}}]", "[0].label"),
        ("[null]", "[0]"),
    ] {
        refuses(&spec(subsets), &format!("spec.subsets{field}"));
    }
}

#[test]
fn d5_port_level_settings() {
    let spec = |ports: &str| format!("host: a\ntrafficPolicy: {{portLevelSettings: {ports}}}");
    assert_eq!(accepts(&spec("[{port: {number: 80}, tls: {mode: DISABLE}}]")), [""; 0]);
    for port in ["{}", "{number: 0}", "{number: 70000}"] {
        let findings = accepts(&spec(&format!("[{{port: {port}, tls: {{}}}}]")));
        assert_eq!(findings, ["WEFT0013 spec.trafficPolicy.portLevelSettings[0].port.number"]);
    }
    for (ports, field) in [
        ("[{tls: {}}]", ".portLevelSettings[0].port"),
        ("[{port: {number: 80}}]", ".portLevelSettings[0]"),
        ("[{port: {number: 80}, tunnel: {}}]", ".portLevelSettings[0].tunnel"),
        ("[null]", ".portLevelSettings[0]"),
        ("[]", ""),
    ] {
        refuses(&spec(ports), &format!("spec.trafficPolicy{field}"));
    }
    refuses("host: a\ntrafficPolicy: {}", "spec.trafficPolicy");
    let many = format!("[{}]", "{port: {number: 80}, tls: {}},".repeat(4097));
    refuses(&spec(&many), "spec.trafficPolicy.portLevelSettings");
}

#[test]
fn d6_load_balancers() {
    for simple in ["UNSPECIFIED", "LEAST_CONN", "LEAST_REQUEST", "RANDOM", "ROUND_ROBIN", "PASSTHROUGH"] {
        assert_eq!(accepts_policy(&format!("{{loadBalancer: {{simple: {simple}}}}}")), [""; 0]);
    }
    assert_eq!(accepts_policy("{loadBalancer: {}}"), [""; 0]);
    for (balancer, field) in [
        ("{simple: round_robin}", ".simple"),
        ("{simple: ''}", ".simple"),
        ("{simple: RANDOM, consistentHash: {useSourceIp: true}}", ""),
        ("{simple: RANDOM, backendUtilization: {}}", ""),
        ("{algorithm: RANDOM}", ".algorithm"),
    ] {
        refuses_policy(&format!("{{loadBalancer: {balancer}}}"), &format!(".loadBalancer{field}"));
    }
}

#[test]
fn d7_d8_consistent_hashes() {
    for hash in [
        "{httpHeaderName: X-User}",
        "{httpCookie: {name: s}}",
        "{httpCookie: {name: s, ttl: 0s, path: /, attributes: [{name: SameSite, value: Lax}, {name: Secure}]}}",
        "{httpCookie: {name: s, ttl: 500us}}",
        "{useSourceIp: true, maglev: {tableSize: 65537}}",
        "{httpQueryParameterName: q, ringHash: {minimumRingSize: 0}}",
        "{useSourceIp: true, maglev: {tableSize: 2}, minimumRingSize: 0}",
    ] {
        assert_eq!(
            accepts_policy(&format!("{{loadBalancer: {{consistentHash: {hash}}}}}")),
            [""; 0],
            "{hash}"
        );
    }
    for (hash, code) in [
        ("{}", "WEFT0013"),
        ("{useSourceIp: false}", "WEFT0013"),
        ("{httpHeaderName: ''}", "WEFT0013"),
        ("{useSourceIp: true, ringHash: {minimumRingSize: 9000000}}", "WEFT0013"),
        ("{useSourceIp: true, minimumRingSize: 5}", "IST0133"),
    ] {
        let findings = accepts_policy(&format!("{{loadBalancer: {{consistentHash: {hash}}}}}"));
        assert!(findings.len() == 1 && findings.iter().all(|finding| finding.starts_with(code)), "{hash}");
    }
    for (hash, field) in [
        ("{httpHeaderName: a, useSourceIp: true}", ""),
        ("{httpHeaderName: '', httpQueryParameterName: b}", ""),
        ("{httpCookie: {}}", ".httpCookie.name"),
        ("{httpCookie: {name: a, ttl: x}}", ".httpCookie.ttl"),
        ("{httpCookie: {name: a, attributes: [{value: b}]}}", ".httpCookie.attributes[0].name"),
        ("{httpCookie: {name: a, attributes: [{name: b}, {name: b}]}}", ".httpCookie.attributes[1].name"),
        ("{useSourceIp: true, maglev: {}}", ".maglev.tableSize"),
        ("{useSourceIp: true, maglev: {tableSize: 4}}", ".maglev.tableSize"),
        ("{useSourceIp: true, maglev: {tableSize: 5000011}}", ".maglev.tableSize"),
        ("{useSourceIp: true, maglev: {tableSize: -1}}", ".maglev.tableSize"),
        ("{useSourceIp: true, maglev: {tableSize: 5}, ringHash: {}}", ".maglev"),
        ("{useSourceIp: true, minimumRingSize: 5, ringHash: {}}", ".minimumRingSize"),
    ] {
        let policy = format!("{{loadBalancer: {{consistentHash: {hash}}}}}");
        refuses_policy(&policy, &format!(".loadBalancer.consistentHash{field}"));
    }
}

#[test]
fn d9_warmup() {
    for warmup in
        ["warmup: {duration: 5s, minimumPercent: 0, aggression: 0.1}", "warmupDurationSecs: 1.0000001s"]
    {
        assert_eq!(accepts_policy(&format!("{{loadBalancer: {{{warmup}}}}}")), [""; 0], "{warmup}");
    }
    let without_effect = accepts_policy("{loadBalancer: {simple: RANDOM, warmup: {duration: 5s}}}");
    assert_eq!(without_effect, ["WEFT0013 spec.trafficPolicy.loadBalancer.warmup"]);
    for (warmup, field) in [
        ("warmup: {}", "warmup.duration"),
        ("warmup: {duration: 0s}", "warmup.duration"),
        ("warmup: {duration: 1s, minimumPercent: 101}", "warmup.minimumPercent"),
        ("warmup: {duration: 1s, minimumPercent: -1}", "warmup.minimumPercent"),
        ("warmup: {duration: 1s, aggression: 0}", "warmup.aggression"),
        ("warmupDurationSecs: 0s", "warmupDurationSecs"),
        ("warmupDurationSecs: 30", "warmupDurationSecs"),
    ] {
        refuses_policy(&format!("{{loadBalancer: {{{warmup}}}}}"), &format!(".loadBalancer.{field}"));
    }
}

#[test]
fn d10_localities() {
    let policy = |locality: &str| {
        format!("{{outlierDetection: {{}}, loadBalancer: {{localityLbSetting: {locality}}}}}")
    };
    for locality in [
        "{distribute: [{from: a/*, to: {a/b: 20, c: 80}}, {from: d/e/f, to: {'*': 100}}]}",
        "{distribute: [{from: a/b, to: {c: 100}}, {from: a/*, to: {c: 100}}]}",
        "{failover: [{from: a, to: b}], failoverPriority: [topology.istio.io/network]}",
        "{failoverPriority: [topology.kubernetes.io/region]}",
    ] {
        assert_eq!(accepts_policy(&policy(locality)), [""; 0], "{locality}");
    }
    assert_eq!(accepts_policy(&policy("{enabled: false}")), [""; 0]);
    let alone =
        accepts_policy("{loadBalancer: {localityLbSetting: {enabled: false, failover: [{from: a, to: b}]}}}");
    assert_eq!(alone, ["IST0133 spec.trafficPolicy.loadBalancer.localityLbSetting"]);
    for (locality, field) in [
        ("{distribute: [{from: a, to: {b: 100}}], failover: [{from: a, to: b}]}", "failover"),
        (
            "{failover: [{from: a, to: b}], failoverPriority: [topology.kubernetes.io/zone]}",
            "failoverPriority",
        ),
        ("{distribute: [{from: a, to: {b: 0, c: 100}}]}", "distribute[0].to"),
        ("{distribute: [{from: a, to: {b: 101}}]}", "distribute[0].to"),
        ("{distribute: [{from: a, to: {b: 99}}]}", "distribute[0].to"),
        ("{distribute: [{from: a, to: {}}]}", "distribute[0].to"),
        ("{distribute: [{from: a, to: {'b//': 100}}]}", "distribute[0].to"),
        ("{distribute: [{from: '', to: {b: 100}}]}", "distribute"),
        ("{distribute: [{from: '*/a', to: {b: 100}}]}", "distribute"),
        ("{distribute: [{from: '*/*', to: {b: 100}}]}", "distribute"),
        ("{distribute: [{from: a, to: {b: 100}}, {from: a/c, to: {b: 100}}]}", "distribute"),
        ("{distribute: [{from: a/*, to: {b: 100}}, {from: a/c, to: {b: 100}}]}", "distribute"),
        ("{distribute: [{from: '*', to: {b: 100}}, {from: a, to: {b: 100}}]}", "distribute"),
        ("{failover: [{from: a, to: a}]}", "failover[0]"),
        ("{failover: [{from: a/b, to: c}]}", "failover[0]"),
        ("{failover: [{from: a, to: '*'}]}", "failover[0]"),
    ] {
        refuses_policy(&policy(locality), &format!(".loadBalancer.localityLbSetting.{field}"));
    }
}

#[test]
fn d11_zones() {
    let zones = "{outlierDetection: {}, loadBalancer: {zoneAwareLbSetting: {failover: [{from: a, to: b}], minClusterSize: 1}}}";
    assert_eq!(accepts_policy(zones), ["WEFT0014 spec.trafficPolicy.loadBalancer.zoneAwareLbSetting"]);
    for (setting, field) in [
        ("{failoverPriority: [topology.istio.io/subzone]}", ".failoverPriority[0]"),
        ("{failover: [{from: a, to: a}]}", ".failover[0]"),
        ("{minClusterSize: 0}", ".minClusterSize"),
    ] {
        let policy = format!("{{outlierDetection: {{}}, loadBalancer: {{zoneAwareLbSetting: {setting}}}}}");
        refuses_policy(&policy, &format!(".loadBalancer.zoneAwareLbSetting{field}"));
    }
    let both = "{loadBalancer: {localityLbSetting: {}, zoneAwareLbSetting: {}}}";
    refuses_policy(both, ".loadBalancer.zoneAwareLbSetting");
}

#[test]
fn d12_d13_connection_pools() {
    for pool in [
        "{tcp: {}}",
        "{http: {}}",
        "{tcp: {maxConnections: 0, connectTimeout: 1ms, maxConnectionDuration: 1h, idleTimeout: 0s}}",
        "{tcp: {idleTimeout: 100us}}",
        "{tcp: {idleTimeout: 8s}}",
        "{tcp: {tcpKeepalive: {time: 1s, probes: 3}}}",
        "{http: {http2KeepAlive: {interval: 1s, timeout: 1s}}}",
        "{http: {http1MaxPendingRequests: 1, http2MaxRequests: 2147483647, maxRetries: 0, h2UpgradePolicy: DEFAULT, useClientProtocol: true}}",
    ] {
        assert_eq!(accepts_policy(&format!("{{connectionPool: {pool}}}")), [""; 0], "{pool}");
    }
    for (pool, field) in [
        ("{}", ""),
        ("{tcp: {maxConnections: -1}}", ".tcp.maxConnections"),
        ("{tcp: {maxConnections: 2147483648}}", ".tcp.maxConnections"),
        ("{tcp: {connectTimeout: 0s}}", ".tcp.connectTimeout"),
        ("{tcp: {maxConnectionDuration: 1us}}", ".tcp.maxConnectionDuration"),
        ("{tcp: {idleTimeout: -1s}}", ".tcp.idleTimeout"),
        ("{tcp: {idleTimeout: 1.0001s}}", ".tcp.idleTimeout"),
        ("{tcp: {tcpKeepalive: {time: 0s}}}", ".tcp.tcpKeepalive.time"),
        ("{tcp: {tcpKeepalive: {interval: x}}}", ".tcp.tcpKeepalive.interval"),
        ("{tcp: {tcpKeepalive: {probes: -1}}}", ".tcp.tcpKeepalive.probes"),
        ("{http: {http1MaxPendingRequests: -1}}", ".http.http1MaxPendingRequests"),
        ("{http: {http2MaxRequests: -1}}", ".http.http2MaxRequests"),
        ("{http: {maxRequestsPerConnection: -1}}", ".http.maxRequestsPerConnection"),
        ("{http: {maxRetries: -1}}", ".http.maxRetries"),
        ("{http: {maxConcurrentStreams: -1}}", ".http.maxConcurrentStreams"),
        ("{http: {idleTimeout: 0s}}", ".http.idleTimeout"),
        ("{http: {h2UpgradePolicy: YES}}", ".http.h2UpgradePolicy"),
        ("{http: {h2UpgradePolicy: UPGRADE, useClientProtocol: true}}", ".http.useClientProtocol"),
        ("{http: {http2KeepAlive: {interval: 1s}}}", ".http.http2KeepAlive.timeout"),
        ("{http: {http2KeepAlive: {timeout: 1s}}}", ".http.http2KeepAlive.interval"),
        ("{http: {http2KeepAlive: {timeout: 1s, interval: 0s}}}", ".http.http2KeepAlive.interval"),
        ("{http: {maxConnections: 1}}", ".http.maxConnections"),
    ] {
        refuses_policy(&format!("{{connectionPool: {pool}}}"), &format!(".connectionPool{field}"));
    }
}

#[test]
fn d15_outlier_detection() {
    for outlier in [
        "{}",
        "{consecutive5xxErrors: 0, consecutiveGatewayErrors: 4294967295, interval: 1ms, baseEjectionTime: 3m, maxEjectionPercent: 100}",
        "{splitExternalLocalOriginErrors: true, consecutiveLocalOriginFailures: 3}",
        "{consecutiveLocalOriginFailures: 0}",
    ] {
        assert_eq!(accepts_policy(&format!("{{outlierDetection: {outlier}}}")), [""; 0], "{outlier}");
    }
    let legacy = accepts_policy("{outlierDetection: {consecutiveErrors: 1}}");
    assert_eq!(legacy, ["IST0133 spec.trafficPolicy.outlierDetection.consecutiveErrors"]);
    assert_eq!(accepts_policy("{outlierDetection: {outlierDetectionHttpErrorCodes: [429, 500]}}"), [""; 0]);
    for (outlier, field) in [
        ("{consecutive5xxErrors: -1}", "consecutive5xxErrors"),
        ("{consecutiveLocalOriginFailures: 1}", "consecutiveLocalOriginFailures"),
        ("{interval: 0s}", "interval"),
        ("{baseEjectionTime: 1us}", "baseEjectionTime"),
        ("{maxEjectionPercent: 101}", "maxEjectionPercent"),
        ("{maxEjectionPercent: -1}", "maxEjectionPercent"),
        ("{minHealthPercent: 101}", "minHealthPercent"),
        ("{outlierDetectionHttpErrorCodes: [99]}", "outlierDetectionHttpErrorCodes[0]"),
        ("{outlierDetectionHttpErrorCodes: [600]}", "outlierDetectionHttpErrorCodes[0]"),
        ("{consecutive5XXErrors: 1}", "consecutive5XXErrors"),
    ] {
        refuses_policy(&format!("{{outlierDetection: {outlier}}}"), &format!(".outlierDetection.{field}"));
    }
}

#[test]
fn d18_tls() {
    for tls in ["{}", "{mode: DISABLE, subjectAltNames: [a]}", "{mode: ISTIO_MUTUAL, sni: a}"] {
        assert_eq!(accepts_policy(&format!("{{tls: {tls}}}")), [""; 0], "{tls}");
    }
    let names = |mode: &str| accepts_policy(&format!("{{tls: {{mode: {mode}, subjectAltNames: [a]}}}}"));
    assert_eq!(names("ISTIO_MUTUAL"), [""; 0]);
    assert_eq!(names("SIMPLE"), ["WEFT0013 spec.trafficPolicy.tls.subjectAltNames"]);
    for (tls, findings) in [
        ("{mode: SIMPLE, insecureSkipVerify: false}", 0),
        ("{mode: SIMPLE, caCertificates: c}", 0),
        ("{mode: SIMPLE, caCertificates: c, caCrl: d, subjectAltNames: [a]}", 0),
        ("{mode: SIMPLE, insecureSkipVerify: true}", 0),
        ("{mode: MUTUAL, clientCertificate: c, privateKey: k}", 0),
        ("{mode: MUTUAL, credentialName: c, insecureSkipVerify: true}", 1),
        ("{mode: SIMPLE, credentialName: 'configmap://shop/c'}", 1),
        // Istio looks at certificates in these two modes only.
        ("{mode: ISTIO_MUTUAL, credentialName: c, privateKey: k}", 2),
    ] {
        assert_eq!(accepts_policy(&format!("{{tls: {tls}}}")).len(), findings, "{tls}");
    }
    for (tls, field) in [
        ("{mode: OPTIONAL}", "mode"),
        ("{mode: MUTUAL, privateKey: k}", "clientCertificate"),
        ("{mode: MUTUAL, clientCertificate: c}", "privateKey"),
        ("{mode: SIMPLE, credentialName: c, caCertificates: d}", "credentialName"),
        ("{mode: MUTUAL, credentialName: c, caCrl: d}", "credentialName"),
        ("{mode: SIMPLE, insecureSkipVerify: true, credentialName: c}", "insecureSkipVerify"),
        ("{mode: SIMPLE, insecureSkipVerify: true, subjectAltNames: [a]}", "insecureSkipVerify"),
        (
            "{mode: MUTUAL, clientCertificate: c, privateKey: k, insecureSkipVerify: true, caCertificates: d}",
            "insecureSkipVerify",
        ),
        ("{mode: SIMPLE, credentialName: 'configmap://other/c'}", "credentialName"),
        ("{mode: SIMPLE, credentialName: 'configmap://c'}", "credentialName"),
        ("{mode: SIMPLE, caCertificate: c}", "caCertificate"),
    ] {
        refuses_policy(&format!("{{tls: {tls}}}"), &format!(".tls.{field}"));
    }
}

#[test]
fn d19_tunnels_and_budgets() {
    let spec = |policy: &str| format!("host: a\ntrafficPolicy: {policy}");
    for policy in [
        "{tunnel: {targetHost: a.b, targetPort: 80, protocol: POST}}",
        "{tunnel: {targetHost: 10.0.0.1, targetPort: 80}}",
        "{proxyProtocol: {}}",
        "{proxyProtocol: {version: V2}}",
        "{retryBudget: {percent: 100, minRetryConcurrency: 0, budgetInterval: 0s}}",
    ] {
        let findings = accepts(&spec(policy));
        assert!(
            findings.len() == 1 && findings.iter().all(|finding| finding.starts_with("WEFT0014")),
            "{policy}"
        );
    }
    assert_eq!(accepts(&spec("{retryBudget: {percent: 0.5, minRetryConcurrency: 1}}")), [""; 0]);
    for (policy, field) in [
        ("{tunnel: {targetHost: a, targetPort: 80}, proxyProtocol: {}}", "proxyProtocol"),
        ("{tunnel: {targetPort: 80}}", "tunnel.targetHost"),
        ("{tunnel: {targetHost: '*.a', targetPort: 80}}", "tunnel.targetHost"),
        ("{tunnel: {targetHost: a}}", "tunnel.targetPort"),
        ("{tunnel: {targetHost: a, targetPort: 80, protocol: GET}}", "tunnel.protocol"),
        ("{proxyProtocol: {version: V3}}", "proxyProtocol.version"),
        ("{retryBudget: {percent: 101}}", "retryBudget.percent"),
        ("{retryBudget: {budgetInterval: soon}}", "retryBudget.budgetInterval"),
    ] {
        refuses(&spec(policy), &format!("spec.trafficPolicy.{field}"));
    }
}

#[test]
fn d20_export_to() {
    let selector = "host: a\nworkloadSelector: {matchLabels: {a: b}}\nexportTo: ";
    for export in ["[]", "[.]", "[shop]"] {
        assert_eq!(accepts(&format!("{selector}{export}")), [""; 0], "{export}");
    }
    for export in ["['*']", "[other]", "[., other]"] {
        refuses(&format!("{selector}{export}"), "spec.exportTo");
    }
    assert_eq!(accepts("host: a\nexportTo: [., other]"), [""; 0]);
    refuses("host: a\nexportTo: ['~']", "spec.exportTo[0]");
}

/// What the fields mean, and how mistakes are told.
#[test]
fn golden() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/destination-rule.yaml");
    let text = common::render_compact(&std::fs::read(path).unwrap());
    insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!("destination-rule", text);
    });
}
