//! Documents and objects that nobody would write: nothing panics, every refusal has a reason, and what is accepted
//! keeps what the compiler relies on. Bounded; `PROPTEST_CASES` makes it run longer.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod common;

use std::path::Path;
use std::sync::LazyLock;

use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Map, Value, json};
use weft_control::decode::documents::Format;
use weft_control::decode::{Decoded, Decoder, Outcome, Trust};
use weft_core::resource::Resource;
use weft_core::resource::destination_rule::{DestinationRule, HashAlgorithm, LoadBalancer};
use weft_core::resource::virtual_service::{HttpAction, HttpRule, TextMatch, VirtualService};
use weft_core::{Severity, re2};

/// The objects of all files with examples, of kinds that Istio has.
static EXAMPLES: LazyLock<Vec<Value>> = LazyLock::new(|| {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut examples = Vec::new();
    for folder in ["data", "seeds/printed", "seeds/corrected"] {
        let mut paths: Vec<_> =
            std::fs::read_dir(tests.join(folder)).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        for path in paths.iter().filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        {
            let Ok(text) = std::fs::read_to_string(path) else { continue };
            let documents = text.split("\n---\n").map(serde_saphyr::from_str::<Value>);
            examples.extend(documents.filter_map(Result::ok).filter(is_istio));
        }
    }
    assert!(examples.len() > 40, "only {} examples", examples.len());
    examples
});

/// Every name of a field in the examples.
static NAMES: LazyLock<Vec<String>> = LazyLock::new(|| {
    let mut names = Vec::new();
    EXAMPLES.iter().for_each(|example| collect_names(example, &mut names));
    names.sort();
    names.dedup();
    names
});

fn is_istio(value: &Value) -> bool {
    value["apiVersion"].as_str().is_some_and(|version| version.contains("istio.io/"))
}

fn collect_names(value: &Value, names: &mut Vec<String>) {
    match value {
        Value::Object(fields) => fields.iter().for_each(|(name, value)| {
            names.push(name.clone());
            collect_names(value, names);
        }),
        Value::Array(items) => items.iter().for_each(|item| collect_names(item, names)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Values at the edges of what is allowed.
fn edge() -> impl Strategy<Value = Value> {
    let texts = [
        "",
        "*",
        "*.",
        ".",
        "~",
        "a",
        "a.b",
        "*.a",
        "0",
        "-1",
        "0s",
        "1ms",
        "1us",
        "9223372036s",
        "99999999999999999999h",
        "5xx",
        "5xx,",
        "%",
        "%%",
        "%A(",
        "(",
        "(?i",
        "\\",
        "a{1000}{1000}",
        "[[:alpha:]",
        "\u{0}",
        "é",
        "@request.auth.claims.a",
        "@request.auth.claims[",
        "::1",
        "fe80::1%",
        "10.0.0.0/8",
        "/",
        "//",
        "a/b/c",
        "a/*",
        "outbound_",
        "outbound_.1_._.a",
        "ISTIO_MUTUAL",
        "MUTUAL",
        "configmap://",
        "mesh",
        "./",
        "OK",
        "SIMPLE",
        "GET",
    ];
    let numbers = [
        0,
        1,
        -1,
        100,
        101,
        599,
        600,
        65535,
        65536,
        i64::from(i32::MAX),
        1 << 31,
        i64::from(u32::MAX),
        1 << 32,
        i64::MAX,
        i64::MIN,
    ];
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        prop::sample::select(numbers.to_vec()).prop_map(Value::from),
        prop::sample::select(vec![0.5, -0.0, 100.00001, 1e300, 5.0, -2.5, 0.00001])
            .prop_map(|number| json!(number)),
        prop::sample::select(texts.to_vec()).prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        Just(json!({})),
        Just(json!([])),
        Just(json!([null])),
        Just(json!([{}])),
    ]
}

/// Any value that uses the names of the API.
fn value() -> impl Strategy<Value = Value> {
    edge().prop_recursive(5, 48, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            prop::collection::vec((any::<Index>(), inner), 0..5).prop_map(|fields| {
                Value::Object(
                    fields.into_iter().map(|(name, value)| (name.get(&NAMES).clone(), value)).collect(),
                )
            }),
        ]
    })
}

/// One change somewhere in an object.
#[derive(Debug, Clone)]
enum Edit {
    Replace(Value),
    Remove,
    Repeat,
    Rename(Index),
    Insert(Index, Value),
}

fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        4 => value().prop_map(Edit::Replace),
        2 => Just(Edit::Remove),
        1 => Just(Edit::Repeat),
        1 => any::<Index>().prop_map(Edit::Rename),
        2 => (any::<Index>(), value()).prop_map(|(name, value)| Edit::Insert(name, value)),
    ]
}

/// Goes down to a random place below `spec` and changes it there.
fn apply(value: &mut Value, path: &[Index], edit: &Edit) {
    let Some((step, rest)) = path.split_first() else {
        change_here(value, edit);
        return;
    };
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            let name = fields.keys().nth(step.index(fields.len())).unwrap().clone();
            if rest.is_empty() {
                change_field(fields, &name, edit);
            } else {
                apply(&mut fields[&name], rest, edit);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            let at = step.index(items.len());
            if rest.is_empty() && matches!(edit, Edit::Repeat) {
                items.push(items[at].clone());
            } else {
                apply(&mut items[at], rest, edit);
            }
        }
        _ => change_here(value, edit),
    }
}

fn change_here(value: &mut Value, edit: &Edit) {
    match edit {
        Edit::Replace(new) | Edit::Insert(_, new) => *value = new.clone(),
        Edit::Remove => *value = Value::Null,
        Edit::Repeat => *value = Value::Array(vec![value.clone(), value.clone()]),
        Edit::Rename(_) => {}
    }
}

fn change_field(fields: &mut Map<String, Value>, name: &str, edit: &Edit) {
    match edit {
        Edit::Replace(new) => drop(fields.insert(name.to_owned(), new.clone())),
        Edit::Remove => drop(fields.remove(name)),
        Edit::Repeat => change_here(&mut fields[name], edit),
        Edit::Rename(new) => {
            let value = fields.remove(name).unwrap();
            fields.insert(new.get(&NAMES).clone(), value);
        }
        Edit::Insert(new, value) => drop(fields.insert(new.get(&NAMES).clone(), value.clone())),
    }
}

/// Both ways in say the same, every refusal has a reason, and what is accepted holds.
fn check(object: &Value) -> Result<(), TestCaseError> {
    let (mut parsed, mut read) = (Vec::new(), Vec::new());
    Decoder::new(Trust::Api).value(object, None, &mut parsed);
    Decoder::new(Trust::Api).json(&object.to_string(), None, &mut read);
    prop_assert_eq!(&parsed, &read);
    for Decoded { outcome, problems } in &parsed {
        let refused = problems.iter().any(|problem| problem.severity == Severity::Error);
        match outcome {
            Outcome::Accepted(resource) => {
                prop_assert!(!refused, "{problems:?}");
                check_resource(resource)?;
            }
            Outcome::Ignored => prop_assert!(!refused, "{problems:?}"),
            Outcome::Rejected(_) | Outcome::Refused => prop_assert!(refused),
        }
        for problem in problems {
            prop_assert!(problem.message.ends_with('.'), "{}", problem);
        }
    }
    Ok(())
}

fn check_resource(resource: &Resource) -> Result<(), TestCaseError> {
    match resource {
        Resource::VirtualService(service) => check_virtual_service(service),
        Resource::DestinationRule(rule) => check_destination_rule(rule),
        _ => Ok(()),
    }
}

fn check_virtual_service(service: &VirtualService) -> Result<(), TestCaseError> {
    prop_assert!(!service.gateways.is_empty());
    prop_assert!(service.http.len() + service.tls.len() + service.tcp.len() > 0);
    prop_assert!(!service.hosts.is_empty() || service.tls.len() + service.tcp.len() == 0);
    for rule in &service.http {
        check_http_rule(rule)?;
    }
    for rule in &service.tls {
        prop_assert!(!rule.routes.is_empty() && !rule.matches.is_empty());
        prop_assert!(rule.matches.iter().all(|condition| !condition.sni_hosts.is_empty()));
    }
    prop_assert!(service.tcp.iter().all(|rule| !rule.routes.is_empty()));
    Ok(())
}

fn check_http_rule(rule: &HttpRule) -> Result<(), TestCaseError> {
    match &rule.action {
        HttpAction::Route(routes) => {
            prop_assert!(!routes.is_empty());
            prop_assert!(routes.len() == 1 || routes.iter().any(|route| route.weight > 0));
            prop_assert!(routes.iter().all(|route| !route.destination.host.is_empty()));
        }
        HttpAction::Redirect(redirect) => prop_assert!((300..400).contains(&redirect.code)),
        HttpAction::DirectResponse(response) => prop_assert!((200..=600).contains(&response.status)),
        HttpAction::Delegate(_) => {}
    }
    for condition in &rule.matches {
        let texts = [&condition.uri, &condition.scheme, &condition.method, &condition.authority];
        let named = condition.headers.iter().chain(&condition.without_headers).chain(&condition.query_params);
        for text in texts.into_iter().flatten().chain(named.map(|(_, text)| text)) {
            if let TextMatch::Regex(expression) = text {
                prop_assert!(re2::whole(expression).is_ok(), "{expression}");
            }
        }
        prop_assert!(condition.headers.iter().all(|(name, _)| !name.is_empty()));
    }
    prop_assert!(rule.timeout.is_none_or(|timeout| timeout.as_millis() > 0));
    prop_assert!(rule.mirrors.iter().all(|mirror| mirror.share.0 <= 1_000_000));
    Ok(())
}

fn check_destination_rule(rule: &DestinationRule) -> Result<(), TestCaseError> {
    prop_assert!(!rule.host.is_empty());
    let policies = rule.subsets.iter().map(|subset| &subset.policy).chain([&rule.policy]);
    for policy in policies.flatten() {
        for blocks in policy.ports.iter().map(|(_, blocks)| blocks).chain([&policy.blocks]) {
            match blocks.load_balancer.as_ref().map(|balancing| &balancing.balancer) {
                Some(LoadBalancer::ConsistentHash {
                    algorithm: HashAlgorithm::Ring { minimum_size },
                    ..
                }) => {
                    prop_assert!((1..=8 << 20).contains(minimum_size));
                }
                Some(LoadBalancer::ConsistentHash {
                    algorithm: HashAlgorithm::Maglev { table_size },
                    ..
                }) => {
                    prop_assert!((1..5_000_011).contains(table_size));
                }
                _ => {}
            }
            let outlier = blocks.outlier_detection.as_ref();
            prop_assert!(outlier.is_none_or(|outlier| (1..=100).contains(&outlier.max_ejection_percent)));
            prop_assert!(outlier.is_none_or(|outlier| !outlier.interval.is_zero()));
        }
        prop_assert!(policy.ports.iter().all(|(port, _)| *port > 0));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, max_shrink_iters: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// A valid object with a few things changed: the way users make mistakes.
    #[test]
    fn changed_examples(
        example in any::<Index>(),
        edits in prop::collection::vec((prop::collection::vec(any::<Index>(), 1..9), edit()), 1..4),
    ) {
        let mut object = example.get(&EXAMPLES).clone();
        for (path, edit) in &edits {
            // The version and the kind stay, or most objects would be of no kind at all.
            apply(&mut object["spec"], path, edit);
        }
        check(&object)?;
    }

    /// Any spec under any kind.
    #[test]
    fn arbitrary_specs(example in any::<Index>(), spec in value()) {
        let mut object = example.get(&EXAMPLES).clone();
        object["spec"] = spec;
        check(&object)?;
    }

    /// Any value as a whole object, as an item of a List, and as metadata.
    #[test]
    fn arbitrary_objects(example in any::<Index>(), any in value()) {
        check(&any)?;
        let mut object = example.get(&EXAMPLES).clone();
        check(&json!({"apiVersion": "v1", "kind": "List", "items": [any, object]}))?;
        object["metadata"] = any;
        check(&object)?;
    }

    /// Pieces of YAML in any order: separators, indentation, anchors, comments, tabs.
    #[test]
    fn documents_of_pieces(pieces in prop::collection::vec(prop::sample::select(PIECES.to_vec()), 0..24)) {
        let text = pieces.concat();
        for format in [Format::Yaml, Format::Json, Format::JsonLines] {
            for decoded in common::decode(text.as_bytes(), format) {
                let refused = decoded.problems.iter().any(|problem| problem.severity == Severity::Error);
                prop_assert_eq!(matches!(decoded.outcome, Outcome::Rejected(_) | Outcome::Refused), refused, "{}", text);
            }
        }
    }
}

const PIECES: &[&str] = &[
    "---\n",
    "...\n",
    "    ---\n",
    "--- # c\n",
    "\n",
    "\t",
    "# c\n",
    "\u{feff}",
    "apiVersion: networking.istio.io/v1\n",
    "kind: VirtualService\n",
    "kind: DestinationRule\n",
    "metadata: {name: a}\n",
    "metadata:\n",
    "  name: a\n",
    "  name: &x a\n",
    "  namespace: *x\n",
    "spec:\n",
    "spec: {host: a}\n",
    "  hosts: [a]\n",
    "  hosts:\n",
    "  - a\n",
    "  http:\n",
    "  - route:\n",
    "    - destination: {host: a}\n",
    "      weight: 0x10\n",
    "    timeout: 5s\t# c\n",
    "    timeout: !!str 5\n",
    "{",
    "}",
    "[",
    "]",
    "{\"kind\":\"List\",\"apiVersion\":\"v1\",\"items\":",
    "\"\\u0000\"",
    "'",
    "\"",
    "|\n",
    ">-\n",
    "<<: *x\n",
    "? a\n",
    ": b\n",
    "\u{85}",
    "\r\n",
];

/// A struct's fields are not read from a list in the order of their declaration.
#[test]
fn a_list_is_no_map_of_fields() {
    let object = |kind: &str, spec: Value| {
        let group = if kind == "AuthorizationPolicy" { "security" } else { "networking" };
        json!({"apiVersion": format!("{group}.istio.io/v1"), "kind": kind, "metadata": {"name": "a"}, "spec": spec})
    };
    for (object, field) in [
        (object("AuthorizationPolicy", json!({"rules": [[]]})), "spec.rules[0]"),
        (object("DestinationRule", json!({"host": "a", "trafficPolicy": []})), "spec.trafficPolicy"),
        (object("DestinationRule", json!([])), "spec"),
        (
            object("VirtualService", json!({"hosts": ["a"], "http": [{"match": [["a"]]}]})),
            "spec.http[0].match[0]",
        ),
    ] {
        for text in [object.to_string(), serde_json::to_string_pretty(&object).unwrap()] {
            let mut decoded = Vec::new();
            Decoder::new(Trust::Api).json(&text, None, &mut decoded);
            assert_eq!(decoded[0].problems[0].field, field, "{text}");
            assert!(decoded[0].problems[0].message.contains("sequence"), "{}", decoded[0].problems[0]);
        }
    }
}

/// An object may be as long as Kubernetes lets it: the time must not grow with the square of its lists, nor the
/// findings with their length.
#[test]
fn long_lists_are_read_in_passing() {
    const LENGTH: usize = 30_000;
    let object = |kind: &str, spec: Value| json!({"apiVersion": "networking.istio.io/v1", "kind": kind, "metadata": {"name": "a"}, "spec": spec});
    let names: Vec<Value> = (0..LENGTH).map(|number| json!(format!("h{number}.a"))).collect();
    let subsets: Vec<Value> = (0..LENGTH).map(|number| json!({"name": format!("s{number}")})).collect();
    let routes = json!([{"route": [{"destination": {"host": "c"}}]}]);
    let long = [
        (object("VirtualService", json!({"hosts": names, "http": routes})), 0),
        (object("VirtualService", json!({"hosts": vec!["a.b"; LENGTH], "http": routes})), 201),
        (object("VirtualService", json!({"hosts": vec!["a b"; LENGTH], "http": routes})), 201),
        (object("VirtualService", json!({"hosts": ["a"], "http": routes, "exportTo": names})), 201),
        (object("DestinationRule", json!({"host": "a", "subsets": subsets})), 0),
        (object("DestinationRule", json!({"host": "a", "subsets": vec![json!({"name": "s"}); LENGTH]})), 201),
    ];
    for (at, (object, findings)) in long.iter().enumerate() {
        let mut decoded = Vec::new();
        Decoder::new(Trust::Api).value(object, None, &mut decoded);
        assert_eq!(decoded[0].problems.len(), *findings, "object {at}");
        assert_eq!(matches!(decoded[0].outcome, Outcome::Rejected(_)), *findings > 0, "object {at}");
    }
}
