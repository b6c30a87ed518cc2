use proptest::prelude::*;

use super::*;

const GOOD: &str = r#"{"hosts": ["cart"], "http": [{"route": [{"destination": {"host": "cart"}}]}]}"#;
const BAD: &str =
    r#"{"hosts": ["cart"], "http": [{"timeout": "soon", "route": [{"destination": {"host": "cart"}}]}]}"#;

fn service(spec: &str) -> Value {
    let spec: Value = serde_json::from_str(spec).unwrap();
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": {"name": "cart", "namespace": "shop"}, "spec": spec,
    })
}

fn request(operation: &str, object: Value, old: Value) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "u-1", "operation": operation, "namespace": "shop", "name": "cart",
            "object": object, "oldObject": old,
        },
    })
}

fn decide(request: &Value) -> (Value, Decision) {
    let (answer, decision) = review(request.to_string().as_bytes()).unwrap();
    assert_eq!(answer["apiVersion"], "admission.k8s.io/v1");
    assert_eq!(answer["kind"], "AdmissionReview");
    assert_eq!(answer["response"]["uid"], "u-1");
    assert_eq!(answer["response"]["allowed"], decision == Decision::Allowed);
    (answer["response"].clone(), decision)
}

#[test]
fn a_good_object_is_allowed_without_a_word() {
    let (response, decision) = decide(&request("CREATE", service(GOOD), Value::Null));
    assert_eq!(decision, Decision::Allowed);
    assert_eq!(response["warnings"], json!([]));
}

#[test]
fn a_mistake_is_denied_with_field_and_fix() {
    for (operation, old) in [("CREATE", Value::Null), ("UPDATE", service(GOOD))] {
        let (response, decision) = decide(&request(operation, service(BAD), old));
        assert_eq!(decision, Decision::Denied);
        let text = response["status"]["message"].as_str().unwrap();
        assert!(text.starts_with("[IST0106] spec.http[0].timeout: "), "{text}");
        assert!(text.contains("soon"), "{text}");
    }
}

#[test]
fn an_object_that_was_wrong_before_may_be_labelled_and_deleted() {
    let mut labelled = service(BAD);
    labelled["metadata"]["labels"] = json!({"a": "b"});
    let (response, decision) = decide(&request("UPDATE", labelled, service(BAD)));
    assert_eq!(decision, Decision::Allowed);
    assert!(response["warnings"][0].as_str().unwrap().contains("IST0106"), "but he is told");
    let mut going = service(BAD);
    going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    assert_eq!(decide(&request("UPDATE", going, service(GOOD))).1, Decision::Allowed);
    assert_eq!(decide(&request("DELETE", Value::Null, service(BAD))).1, Decision::Allowed);
}

#[test]
fn a_status_is_not_ours_to_judge() {
    let mut asked = request("UPDATE", service(BAD), service(GOOD));
    asked["request"]["subResource"] = "status".into();
    assert_eq!(decide(&asked).1, Decision::Allowed);
}

#[test]
fn what_is_not_applied_is_warned_about() {
    let filter = json!({
        "apiVersion": "networking.istio.io/v1alpha3", "kind": "EnvoyFilter",
        "metadata": {"name": "lua", "namespace": "shop"}, "spec": {},
    });
    let (response, decision) = decide(&request("CREATE", filter, Value::Null));
    assert_eq!(decision, Decision::Allowed);
    let warnings = response["warnings"].as_array().unwrap();
    assert!(warnings.iter().any(|text| text.as_str().unwrap().contains("not applied")), "{warnings:?}");
}

#[test]
fn a_name_that_is_yet_to_be_made_is_no_mistake() {
    let mut object = service(GOOD);
    object["metadata"] = json!({"generateName": "cart-"});
    assert_eq!(decide(&request("CREATE", object, Value::Null)).1, Decision::Allowed);
}

#[test]
fn many_mistakes_fit_into_an_answer() {
    let rule = json!({"timeout": "ü".repeat(300), "route": [{"destination": {"host": "cart"}}]});
    let mut object = service(GOOD);
    object["spec"]["http"] = Value::Array(vec![rule; 100]);
    let (response, decision) = decide(&request("CREATE", object.clone(), Value::Null));
    assert_eq!(decision, Decision::Denied);
    assert!(response["status"]["message"].as_str().unwrap().ends_with("more."));
    let (response, _) = decide(&request("UPDATE", object.clone(), object));
    let warnings = response["warnings"].as_array().unwrap();
    assert_eq!(warnings.len(), MOST_WARNINGS);
    assert!(warnings.iter().all(|text| text.as_str().unwrap().len() <= LONGEST_WARNING));
}

#[test]
fn what_is_no_review_is_an_error() {
    for text in ["", "{}", "[]", "null", r#"{"request": 1}"#, r#"{"request": {}}"#, "\u{0}"] {
        assert!(review(text.as_bytes()).is_err(), "{text}");
    }
}

/// Any JSON of some depth.
fn any_value() -> impl Strategy<Value = Value> {
    let names = prop::sample::select(vec![
        "apiVersion",
        "kind",
        "metadata",
        "name",
        "namespace",
        "spec",
        "items",
        "hosts",
        "http",
        "route",
        "labels",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[a-z.*/]{0,8}".prop_map(Value::from),
        Just(Value::from("networking.istio.io/v1")),
        Just(Value::from("VirtualService")),
    ];
    leaf.prop_recursive(5, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((names.clone(), inner), 0..5).prop_map(|fields| fields
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect()),
        ]
    })
}

proptest! {
    #[test]
    fn no_object_is_too_strange(spec in any_value(), object in any_value()) {
        let mut routed = service(GOOD);
        routed["spec"] = spec;
        for object in [routed, object] {
            decide(&request("CREATE", object, Value::Null));
        }
    }
}
