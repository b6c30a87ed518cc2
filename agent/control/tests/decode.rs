//! What is read from text: golden files for every kind and every mistake.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod common;

use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use weft_control::decode::documents::Format;
use weft_control::decode::{Decoded, Outcome};
use weft_core::resource::{Labels, Resource};

fn render(decoded: &[Decoded]) -> String {
    let mut text = String::new();
    for Decoded { outcome, problems } in decoded {
        match outcome {
            Outcome::Accepted(resource) => writeln!(text, "accepted {resource:#?}").unwrap(),
            Outcome::Rejected(Some(key)) => writeln!(text, "rejected {:?} {}", key.kind, key.name).unwrap(),
            Outcome::Rejected(None) => writeln!(text, "rejected").unwrap(),
            Outcome::Refused => writeln!(text, "refused").unwrap(),
            Outcome::Ignored => writeln!(text, "ignored").unwrap(),
        }
        for problem in problems {
            writeln!(text, "  {problem}").unwrap();
        }
    }
    text
}

fn data(name: &str) -> (Vec<u8>, Format) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name);
    (std::fs::read(&path).unwrap(), Format::of(&path).unwrap())
}

fn golden(name: &str) {
    let (text, format) = data(name);
    insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!(name, render(&common::decode(&text, format)));
    });
}

#[test]
fn core_kinds() {
    golden("core.yaml");
}

#[test]
fn policies() {
    golden("policies.yaml");
}

#[test]
fn invalid_policies() {
    golden("invalid-policies.yaml");
}

#[test]
fn request_authentications() {
    golden("tokens.yaml");
}

#[test]
fn settings_of_http() {
    golden("mesh-http.yaml");
}

#[test]
fn validated_kinds() {
    golden("validated.yaml");
}

#[test]
fn invalid_core_kinds() {
    golden("invalid-core.yaml");
}

#[test]
fn separators_and_lists() {
    golden("separators.yaml");
}

#[test]
fn broken_documents() {
    golden("broken.yaml");
}

#[test]
fn json_lines() {
    golden("lines.jsonl");
}

#[test]
fn concatenated_json() {
    golden("concatenated.json");
}

#[test]
fn a_file_that_is_no_text_is_one_finding() {
    let decoded = common::decode(b"a: \xff\xfe\n", Format::Yaml);
    assert_eq!(decoded.len(), 1);
    assert_eq!(decoded[0].problems[0].code, "WEFT0001");
}

/// The same objects, written in YAML and in JSON, are the same.
#[test]
fn json_and_yaml_agree() {
    for name in ["core.yaml", "policies.yaml", "invalid-core.yaml", "invalid-policies.yaml", "validated.yaml"]
    {
        let (text, _) = data(name);
        let text = String::from_utf8(text).unwrap();
        for document in text.split("\n---\n") {
            let Ok(value) = serde_saphyr::from_str::<serde_json::Value>(document) else { continue };
            let from_yaml = common::decode(document.as_bytes(), Format::Yaml);
            let from_json = common::decode(value.to_string().as_bytes(), Format::JsonLines);
            let comparable = |decoded: &[Decoded]| {
                // A comment before the first document moves its line.
                without_lines(&render(decoded))
            };
            assert_eq!(comparable(&from_yaml), comparable(&from_json), "{document}");
        }
    }
}

/// Without the lines that tell where something stands.
fn without_lines(text: &str) -> String {
    text.lines()
        .filter(|line| !line.trim_start().starts_with("line: "))
        .collect::<Vec<_>>()
        .join("\n")
        .split(" (test.yaml, document 1, line ")
        .map(|part| part.split_once(')').map_or(part, |(_, rest)| rest))
        .collect()
}

fn every_example() -> Vec<(Vec<u8>, Format)> {
    let names = [
        "core.yaml",
        "policies.yaml",
        "invalid-policies.yaml",
        "broken.yaml",
        "lines.jsonl",
        "concatenated.json",
        "validated.yaml",
    ];
    names.into_iter().map(data).collect()
}

/// What surrounds a spec is read alike for all kinds of Istio.
#[test]
fn fields_around_the_spec_are_the_same_for_all_kinds() {
    let unknown = "unknown field `sepc`, expected one of `apiVersion`, `kind`, `status`, `metadata`, `spec`";
    for (group, kind) in [
        ("security.istio.io", "AuthorizationPolicy"),
        ("security.istio.io", "PeerAuthentication"),
        ("security.istio.io", "RequestAuthentication"),
        ("networking.istio.io", "VirtualService"),
        ("networking.istio.io", "DestinationRule"),
    ] {
        let problems = |rest: &str| {
            let text = format!("apiVersion: {group}/v1\nkind: {kind}\n{rest}\n");
            let decoded = common::decode(text.as_bytes(), Format::Yaml);
            decoded.into_iter().flat_map(|decoded| decoded.problems).collect::<Vec<_>>()
        };
        for (rest, field, reason) in [
            ("metadata: {name: a}\nsepc: {}", "sepc", unknown),
            ("metadata: {name: a}\nspec: []", "spec", "invalid type: sequence, expected a map of fields"),
            ("metadata: a", "metadata", "invalid type: string \"a\", expected a map of fields"),
            ("spec: {}", "", "missing field `metadata`"),
        ] {
            let found = problems(rest);
            assert_eq!((found.len(), found[0].field.as_str()), (1, field), "{kind} {rest}");
            assert!(found[0].message.contains(reason), "{kind} {}", found[0].message);
        }
        let spec_only = |rest: &str| problems(rest).iter().all(|problem| problem.field.starts_with("spec"));
        for rest in ["status: {x: [1]}\nspec: ~", "status: ~", "spec: {}"] {
            assert!(spec_only(&format!("metadata: {{name: a}}\n{rest}")), "{kind} {rest}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), format in 0..3_usize) {
        let format = [Format::Yaml, Format::Json, Format::JsonLines][format];
        for decoded in common::decode(&bytes, format) {
            prop_assert!(!matches!(decoded.outcome, Outcome::Rejected(_)) || !decoded.problems.is_empty());
        }
    }

    #[test]
    fn no_mutation_makes_it_panic(
        example in 0..7_usize,
        edits in common::edits(),
    ) {
        let (mut text, format) = every_example().swap_remove(example);
        common::damage(&mut text, edits);
        for decoded in common::decode(&text, format) {
            prop_assert!(!matches!(decoded.outcome, Outcome::Rejected(_)) || !decoded.problems.is_empty());
        }
    }
}

fn mesh_config(settings: &str) -> Vec<Decoded> {
    let settings = settings.replace('\n', "\n    ");
    let text = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: weft, namespace: weft-system}}\ndata:\n  mesh: |\n    {settings}\n"
    );
    common::decode(text.as_bytes(), Format::Yaml)
}

/// L-5: a format that is not understood as a whole prints what it can, and says what it cannot.
#[test]
fn log_formats_name_what_nobody_knows() {
    for (settings, findings) in [
        ("accessLogFormat: '[%START_TIME%] %REQ(X-A?:PATH)% 100%%'", &[][..]),
        ("accessLogFormat: '%WEATHER% %WEATHER% %PROTOCOL%'", &["There is no operator `%WEATHER%`"][..]),
        ("accessLogFormat: '%CEL(a.b)%'", &["`%CEL%` is not applied"]),
        ("accessLogFormat: '50% of it'", &["A `%` begins no operator"]),
        (
            "accessLogEncoding: JSON\naccessLogFormat: '{\"a\": \"%PROTOCOL%\", \"b\": [1, \"%DEW%\"]}'",
            &["`%DEW%`"],
        ),
        ("accessLogEncoding: JSON\naccessLogFormat: '%PROTOCOL%'", &["not JSON"]),
    ] {
        let [decoded] = &mesh_config(settings)[..] else { panic!("one object") };
        let Outcome::Accepted(resource) = &decoded.outcome else { panic!("{settings}: {decoded:?}") };
        let Resource::MeshConfig(mesh) = &**resource else { panic!("a MeshConfig") };
        let told: Vec<_> = decoded.problems.iter().map(|problem| problem.message.as_str()).collect();
        assert_eq!(told.len(), findings.len(), "{settings}: {told:?}");
        assert!(told.iter().zip(findings).all(|(told, wanted)| told.contains(wanted)), "{told:?}");
        assert_eq!(mesh.access_log_format.is_none(), findings == ["not JSON"], "{settings}");
    }
}

/// D-10, D-21: what holds where no DestinationRule says otherwise, as strictly as there.
#[test]
fn the_mesh_has_a_policy_of_its_own() {
    let settings = "localityLbSetting: {distribute: [{from: 'a/*', to: {'a/b': 20, c: 80}}], enabled: false}\n\
                    defaultTrafficPolicy: {connectionPool: {tcp: {maxConnections: 7}}, retryBudget: {percent: 5}}";
    let [decoded] = &mesh_config(settings)[..] else { panic!("one object") };
    let Outcome::Accepted(resource) = &decoded.outcome else { panic!("{decoded:?}") };
    let Resource::MeshConfig(mesh) = &**resource else { panic!("a MeshConfig") };
    let locality = mesh.http.locality.as_ref().unwrap();
    assert!(!locality.enabled && locality.distribute.len() == 1 && locality.distribute[0].to.len() == 2);
    let blocks = &mesh.http.traffic_policy.as_ref().unwrap().blocks;
    assert_eq!(blocks.connection_pool.as_ref().unwrap().max_connections, Some(7));
    assert_eq!(blocks.retry_budget.unwrap().share.0, 50_000);
    let wrong = mesh_config("defaultTrafficPolicy: {connectionPool: {tcp: {maxConnections: -1}}}");
    assert!(matches!(wrong[0].outcome, Outcome::Rejected(_)), "{wrong:?}");
}

/// D-11: the field, else Istio's older annotation.
#[test]
fn services_say_which_endpoints_they_prefer() {
    use weft_core::resource::{Resource, TrafficDistribution};
    for (metadata, spec, expected) in [
        ("", "trafficDistribution: PreferClose", Some(TrafficDistribution::SameZone)),
        ("", "trafficDistribution: PreferSameZone", Some(TrafficDistribution::SameZone)),
        ("", "trafficDistribution: PreferSameNode", Some(TrafficDistribution::SameNode)),
        ("", "trafficDistribution: Anything", None),
        ("PreferClose", "{}", Some(TrafficDistribution::SameZone)),
        ("PreferClose", "trafficDistribution: PreferSameNode", Some(TrafficDistribution::SameNode)),
        ("", "{}", None),
    ] {
        let annotations = match metadata {
            "" => String::new(),
            value => format!(", annotations: {{networking.istio.io/traffic-distribution: {value}}}"),
        };
        let spec = spec.trim_matches(['{', '}']);
        let text =
            format!("apiVersion: v1\nkind: Service\nmetadata: {{name: a{annotations}}}\nspec: {{{spec}}}\n");
        let decoded = common::decode(text.as_bytes(), Format::Yaml);
        let Outcome::Accepted(resource) = &decoded[0].outcome else { panic!("{text}: {decoded:?}") };
        let Resource::Service(service) = &**resource else { panic!("a Service") };
        assert_eq!(service.distribution, expected, "{text}");
    }
}

/// `kind` of another type is no kind: the one of the List does not stand in for it, however the List arrives.
#[test]
fn items_inherit_a_kind_that_is_absent_and_no_other() {
    for (kind, inherits) in [("null", true), ("''", true), ("5", false), ("[Service]", false)] {
        let yaml = format!(
            "apiVersion: v1\nkind: ServiceList\nitems: [{{apiVersion: v1, kind: {kind}, metadata: {{name: a}}}}]\n"
        );
        let value: serde_json::Value = serde_saphyr::from_str(&yaml).unwrap();
        for decoded in [
            common::decode(yaml.as_bytes(), Format::Yaml),
            common::decode(value.to_string().as_bytes(), Format::JsonLines),
        ] {
            assert_eq!(matches!(decoded[0].outcome, Outcome::Accepted(_)), inherits, "{kind}: {decoded:?}");
        }
    }
}

/// The annotations of an object of `security.istio.io` or `networking.istio.io` decide whether it is refused.
fn refused_with(kind: &str, annotations: &str, spec: &str) -> bool {
    let group = if kind == "Gateway" { "networking.istio.io" } else { "security.istio.io" };
    let text = format!(
        "apiVersion: {group}/v1\nkind: {kind}\nmetadata: {{name: a, annotations: {{{annotations}}}}}\nspec: {spec}\n"
    );
    let decoded = common::decode(text.as_bytes(), Format::Yaml);
    matches!(decoded[0].outcome, Outcome::Rejected(_) | Outcome::Refused)
}

#[test]
fn x16_nobody_sets_annotations_of_istio_itself() {
    for kind in ["AuthorizationPolicy", "PeerAuthentication", "RequestAuthentication"] {
        assert!(!refused_with(kind, "a: b", "{}"), "{kind}");
        for name in ["webhook-always-reject", "parents", "parent-namespace"] {
            assert!(refused_with(kind, &format!("internal.istio.io/{name}: a"), "{}"), "{kind} {name}");
        }
    }
}

/// A Gateway that stands for one of the Gateway API may have hosts that are nobody's.
#[test]
fn gateways_of_the_gateway_api_have_wider_rules() {
    let of = |host: &str| {
        format!("{{servers: [{{port: {{number: 80, name: a, protocol: HTTP}}, hosts: ['{host}']}}]}}")
    };
    let made = "internal.istio.io/gateway-semantics: gateway";
    assert!(refused_with("Gateway", "a: b", &of("~/a.b")));
    assert!(refused_with("Gateway", "internal.istio.io/gateway-semantics: other", &of("~/a.b")));
    assert!(!refused_with("Gateway", made, &of("~/a.b")));
    assert!(refused_with("Gateway", made, &of("~/a..b")) && refused_with("Gateway", made, &of("~/")));
}

/// Each line is a verdict, a kind and a `spec`: Istio's admission (schema and webhook) decides so.
#[test]
fn corners_are_judged_as_by_istio() {
    let text = include_str!("data/verdicts.txt");
    let mut lines = 0;
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let [verdict, kind, spec] = line.splitn(3, ' ').collect::<Vec<_>>().try_into().unwrap();
        let group = match kind {
            "AuthorizationPolicy" | "PeerAuthentication" | "RequestAuthentication" => "security.istio.io/v1",
            "WasmPlugin" => "extensions.istio.io/v1alpha1",
            "EnvoyFilter" => "networking.istio.io/v1alpha3",
            _ => "networking.istio.io/v1",
        };
        let object =
            format!("apiVersion: {group}\nkind: {kind}\nmetadata: {{name: a, namespace: b}}\nspec: {spec}\n");
        let decoded = common::decode(object.as_bytes(), Format::Yaml);
        let refused = |object: &Decoded| matches!(object.outcome, Outcome::Rejected(_) | Outcome::Refused);
        assert_eq!(decoded.iter().any(refused), verdict == "refused", "{line}: {decoded:?}");
        lines += 1;
    }
    assert!(lines > 40);
}

/// C-1: selectors are read as Kubernetes has them, and one that is wrong refuses the whole instead of selecting more.
#[test]
fn discovery_selectors_are_read_or_refused() {
    let read = |settings: &str| match &mesh_config(settings)[0].outcome {
        Outcome::Accepted(resource) => match &**resource {
            Resource::MeshConfig(mesh) => mesh.discovery_selectors.clone(),
            other => panic!("{other:?}"),
        },
        other => panic!("{settings}: {other:?}"),
    };
    let selectors = read(
        "discoverySelectors: [{matchLabels: {env: prod}, matchExpressions: [\
         {key: region, operator: In, values: [eu, us]}, {key: a.b/c, operator: NotIn, values: [x]}, \
         {key: team, operator: Exists}]}, {matchExpressions: [{key: \"off\", operator: DoesNotExist, values: []}]}]",
    );
    let labels = |text: &[(&str, &str)]| {
        text.iter().map(|(key, value)| (Arc::from(*key), Arc::from(*value))).collect::<Labels>()
    };
    for (on, first, second) in [
        (&[("env", "prod"), ("region", "eu"), ("team", "")][..], true, true),
        (&[("env", "prod"), ("region", "eu"), ("team", ""), ("a.b/c", "x")], false, true),
        (&[("env", "prod"), ("region", "cn"), ("team", "")], false, true),
        (&[("env", "prod"), ("region", "us"), ("off", "")], false, false),
    ] {
        let selects = [0, 1].map(|at: usize| selectors[at].selects(&labels(on)));
        assert_eq!(selects, [first, second], "{on:?}");
    }
    for none in ["discoverySelectors: []", "discoverySelectors: null", "{}"] {
        assert!(read(none).is_empty(), "{none}");
    }
    assert!(read("discoverySelectors: [{}]")[0].selects(&labels(&[])));
    for (wrong, field) in [
        ("[null]", "[0]"),
        ("[{matchLabel: {a: b}}]", "[0].matchLabel"),
        ("[{matchLabels: {a b: c}}]", "[0].matchLabels"),
        ("[{matchExpressions: [{key: a, operator: in, values: [b]}]}]", "[0].matchExpressions[0].operator"),
        ("[{matchExpressions: [{key: a, operator: In}]}]", "[0].matchExpressions[0].values"),
        ("[{matchExpressions: [{key: a, operator: Exists, values: [b]}]}]", "[0].matchExpressions[0].values"),
        ("[{matchExpressions: [{operator: Exists}]}]", "[0].matchExpressions[0].key"),
        ("[{matchExpressions: [{key: a, operator: In, values: [b c]}]}]", "[0].matchExpressions[0].values"),
    ] {
        let [decoded] = &mesh_config(&format!("discoverySelectors: {wrong}"))[..] else {
            panic!("one object")
        };
        assert!(matches!(decoded.outcome, Outcome::Rejected(_)), "{wrong}: {decoded:?}");
        let told: Vec<_> = decoded.problems.iter().map(|problem| problem.field.as_str()).collect();
        assert_eq!(told, [format!("data.mesh.discoverySelectors{field}")], "{wrong}");
    }
}

/// C-1: what stands behind every pool, and what means nothing here.
#[test]
fn settings_of_the_mesh_are_applied_or_named() {
    let settings = "connectTimeout: 3s\ntcpKeepalive: {time: 60s, probes: 9}\nh2UpgradePolicy: UPGRADE\n\
                    enableAutoMtls: false\nserviceSettings: []\nmeshMTLS: {minProtocolVersion: TLSV1_3}\n\
                    defaultProviders: {accessLogging: [envoy], metrics: [prometheus], tracing: [zipkin]}\nprotocolDetectionTimeout: 1s\n\
                    defaultConfig: {proxyHeaders: {server: {disabled: true}}, concurrency: 2}";
    let [decoded] = &mesh_config(settings)[..] else { panic!("one object") };
    let Outcome::Accepted(resource) = &decoded.outcome else { panic!("{decoded:?}") };
    let Resource::MeshConfig(mesh) = &**resource else { panic!("a MeshConfig") };
    assert!(mesh.access_log, "`envoy` is standard output (L-1)");
    assert_eq!(mesh.http.detection_timeout.unwrap().as_secs(), 1);
    let pool = mesh.http.pool;
    assert_eq!((pool.connect_timeout.unwrap().as_secs(), pool.h2_upgrade), (3, Some(true)));
    let keepalive = pool.tcp_keepalive.unwrap();
    assert_eq!(
        (keepalive.time.unwrap().as_secs(), keepalive.probes, keepalive.interval),
        (60, Some(9), None)
    );
    let mut told: Vec<_> = decoded.problems.iter().map(|problem| problem.field.as_str()).collect();
    told.sort_unstable();
    let names = [
        "defaultConfig.proxyHeaders",
        "defaultProviders.tracing",
        "enableAutoMtls",
        "meshMTLS",
        "serviceSettings",
    ];
    assert_eq!(told, names.map(|name| format!("data.mesh.{name}")));
    let elsewhere = mesh_config("defaultProviders: {accessLogging: [collector], metrics: [collector]}");
    let told: Vec<_> = elsewhere[0].problems.iter().map(|problem| problem.field.as_str()).collect();
    assert_eq!(told, ["accessLogging", "metrics"].map(|name| format!("data.mesh.defaultProviders.{name}")));
    let Outcome::Accepted(resource) = &elsewhere[0].outcome else { panic!("{elsewhere:?}") };
    assert!(matches!(&**resource, Resource::MeshConfig(mesh) if !mesh.access_log));
    let endless = mesh_config("protocolDetectionTimeout: 0s");
    let Outcome::Accepted(resource) = &endless[0].outcome else { panic!("{endless:?}") };
    let Resource::MeshConfig(mesh) = &**resource else { panic!("a MeshConfig") };
    assert!(mesh.http.detection_timeout.unwrap().is_zero());
    for wrong in [
        "protocolDetectionTimeout: 1us",
        "connectTimeout: 0s",
        "connectTimeout: soon",
        "h2UpgradePolicy: MAYBE",
        "tcpKeepalive: {time: x}",
    ] {
        let decoded = mesh_config(wrong);
        assert!(matches!(decoded[0].outcome, Outcome::Rejected(_)), "{wrong}: {decoded:?}");
    }
}
