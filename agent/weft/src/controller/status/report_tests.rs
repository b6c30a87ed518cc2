use weft_core::problem::Code;

use super::*;

const NOW: &str = "2026-01-02T03:04:05Z";

fn now() -> Timestamp {
    "2026-01-02T03:04:05.678Z".parse().unwrap()
}

fn problem(code: Code, field: &str, message: &str) -> Problem {
    Problem {
        severity: code.severity,
        code: code.code,
        name: code.name,
        object: None,
        field: field.to_owned(),
        origin: None,
        message: message.to_owned(),
        fix: "Correct it.".to_owned(),
    }
}

fn invalid() -> Verdict {
    let problem = problem(codes::SCHEMA_VALIDATION, "spec.http[0].timeout", "It is no time.");
    Verdict::new(Standing::Rejected, vec![problem])
}

fn fine() -> Verdict {
    Verdict::new(Standing::InForce, Vec::new())
}

/// Applies a merge patch to a status, as the API server does.
fn apply(status: &Value, patch: &Value) -> Value {
    let mut fields = status.as_object().cloned().unwrap_or_default();
    for (name, value) in patch["status"].as_object().unwrap() {
        if value.is_null() {
            fields.remove(name);
        } else {
            fields.insert(name.clone(), value.clone());
        }
    }
    Value::Object(fields)
}

fn current(generation: i64, status: Value) -> Current {
    Current { generation, status, foreign: false }
}

#[test]
fn a_broken_object_gets_condition_and_message() {
    let object = current(3, Value::Null);
    let part = Part::wanted(&invalid(), &object, Mode::Istio).unwrap();
    let patch = part.patch(&object, "77", now());
    let text = "The object is not in force:\n[IST0106] spec.http[0].timeout: It is no time. Correct it.";
    let condition = |kind: &str| {
        json!({"type": kind, "status": "False", "reason": "Invalid", "message": text,
               "observedGeneration": 3, "lastTransitionTime": NOW})
    };
    let expected = json!({
        "metadata": {"resourceVersion": "77"},
        "status": {
            "conditions": [condition("weft.dev/Accepted"), condition("Reconciled")],
            "validationMessages": [{
                "type": {"name": "SchemaValidationError", "code": "IST0106"}, "level": "ERROR",
                "documentationUrl": "https://istio.io/latest/docs/reference/config/analysis/ist0106/",
            }],
        },
    });
    assert_eq!(patch, expected);
    assert!(says_rejected(&patch["status"]));
}

#[test]
fn a_status_that_says_it_already_equals_what_is_wanted() {
    let object = current(1, Value::Null);
    for verdict in [invalid(), fine()] {
        for mode in [Mode::Own, Mode::Istio] {
            let part = Part::wanted(&verdict, &object, mode).unwrap();
            assert_ne!(part.standing(&object), part);
            let written = apply(&object.status, &part.patch(&object, "1", now()));
            let written = current(1, written);
            assert_eq!(part.standing(&written), part, "{mode:?}");
            let newer = Part::wanted(&verdict, &current(2, written.status.clone()), mode).unwrap();
            assert_ne!(newer.standing(&written), newer, "a new generation is observed");
        }
    }
}

#[test]
fn a_corrected_object_loses_its_messages_and_the_moment_changes_with_the_status_only() {
    let broken = current(1, Value::Null);
    let part = Part::wanted(&invalid(), &broken, Mode::Istio).unwrap();
    let first = apply(&Value::Null, &part.patch(&Current::default(), "1", now()));
    let still = Part::wanted(&invalid(), &current(2, first.clone()), Mode::Istio).unwrap();
    let later: Timestamp = "2026-02-02T00:00:00Z".parse().unwrap();
    let second = apply(&first, &still.patch(&current(1, first.clone()), "2", later));
    assert_eq!(second["conditions"][0]["lastTransitionTime"], NOW);
    let corrected = Part::wanted(&fine(), &current(3, second.clone()), Mode::Istio).unwrap();
    let third = apply(&second, &corrected.patch(&current(2, second.clone()), "3", later));
    assert_eq!(third["conditions"][0]["lastTransitionTime"], "2026-02-02T00:00:00Z");
    assert_eq!(third["conditions"][0]["status"], "True");
    assert!(third.get(MESSAGES).is_none());
}

#[test]
fn what_others_write_stays() {
    let status = json!({
        "conditions": [{"type": "Reconciled", "status": "True"}, {"type": "Healthy", "status": "True"}],
        "validationMessages": [{"level": "INFO"}],
        "addresses": [{"value": "240.240.0.1"}],
    });
    let foreign = Current { generation: 1, status: status.clone(), foreign: true };
    let part = Part::wanted(&invalid(), &foreign, Mode::Istio).unwrap();
    let written = apply(&status, &part.patch(&foreign, "1", now()));
    assert_eq!(written["conditions"][0], status["conditions"][0]);
    assert_eq!(written["conditions"][1], status["conditions"][1]);
    assert_eq!(written["conditions"][2]["type"], CONDITION);
    assert_eq!(written[MESSAGES], status[MESSAGES]);
    assert_eq!(written["addresses"], status["addresses"]);
    assert_eq!(Part::wanted(&invalid(), &foreign, Mode::Off), None);
}

#[test]
fn a_change_of_style_removes_what_we_wrote_in_the_other_one() {
    let object = current(1, Value::Null);
    let istio = Part::wanted(&invalid(), &object, Mode::Istio).unwrap();
    let both = apply(&Value::Null, &istio.patch(&object, "1", now()));
    assert!(both["conditions"].as_array().unwrap().len() == 2 && both[MESSAGES].is_array());

    let object = current(1, both);
    let own = Part::wanted(&invalid(), &object, Mode::Own).unwrap();
    assert_ne!(own.standing(&object), own, "the former style is still there");
    let written = apply(&object.status, &own.patch(&object, "2", now()));
    let kinds: Vec<_> = written["conditions"].as_array().unwrap().iter().map(|one| &one["type"]).collect();
    assert_eq!(kinds, [CONDITION]);
    assert!(written.get(MESSAGES).is_none());
    assert_eq!(own.standing(&current(1, written)), own);

    // What looks the same and is another controller's stays.
    let theirs = Current { foreign: true, ..object };
    let own = Part::wanted(&invalid(), &theirs, Mode::Own).unwrap();
    assert_eq!(own.standing(&theirs), own);
    let written = apply(&theirs.status, &own.patch(&theirs, "2", now()));
    assert_eq!(written["conditions"].as_array().unwrap().len(), 2);
    assert!(written[MESSAGES].is_array());
}

#[test]
fn reasons_tell_how_much_of_an_object_is_in_force() {
    let field = problem(codes::FIELD_NOT_APPLIED, "spec.x", "x is not applied.");
    let kind = problem(codes::KIND_NOT_APPLIED, "", "EnvoyFilter is not applied.");
    let warning = problem(codes::SCHEMA_WARNING, "spec.y", "y is odd.");
    let reason = |standing, problems: &[&Problem]| {
        Verdict::new(standing, problems.iter().map(|problem| (*problem).clone()).collect()).reason()
    };
    assert_eq!(reason(Standing::InForce, &[]), "Accepted");
    assert_eq!(reason(Standing::InForce, &[&field]), "PartlyApplied");
    assert_eq!(reason(Standing::InForce, &[&field, &warning]), "HasFindings");
    assert_eq!(reason(Standing::NotApplied, &[&kind]), "NotApplied");
    assert_eq!(reason(Standing::Rejected, &[&warning]), "Invalid");
}

#[test]
fn texts_and_lists_are_bounded() {
    let many =
        (0..2000).map(|at| problem(codes::SCHEMA_VALIDATION, &format!("spec.a[{at}]"), "It is wrong."));
    let verdict = Verdict::new(Standing::Rejected, many.collect());
    let text = verdict.message();
    assert!(text.len() < LONGEST + 100, "{}", text.len());
    assert!(text.contains("more findings"));
    assert_eq!(verdict.messages().len(), 1, "without texts they would all be the same");
}

#[test]
fn the_order_of_findings_does_not_matter() {
    let (a, b) = (problem(codes::SCHEMA_WARNING, "a", "a"), problem(codes::SCHEMA_VALIDATION, "b", "b"));
    let one = Verdict::new(Standing::InForce, vec![a.clone(), b.clone()]);
    assert_eq!(one, Verdict::new(Standing::InForce, vec![b, a.clone(), a]));
    assert_eq!(one.problems[0].severity, Severity::Error);
}

#[test]
fn the_manager_of_a_status_is_seen_in_the_managed_fields() {
    let entry = |manager: &str, subresource: Option<&str>, field: &str| {
        let mut entry = json!({"manager": manager, "fieldsV1": {"f:status": {field: {}}}});
        if let Some(name) = subresource {
            entry["subresource"] = name.into();
        }
        Value::Array(vec![entry])
    };
    let status = Some("status");
    assert!(is_foreign(
        &entry("pilot-discovery", status, "f:validationMessages"),
        &Value::Null,
        "weft-controller"
    ));
    assert!(is_foreign(&entry("pilot-discovery", status, "f:conditions"), &Value::Null, "weft-controller"));
    assert!(!is_foreign(&entry("weft-controller", status, "f:conditions"), &Value::Null, "weft-controller"));
    assert!(!is_foreign(&entry("pilot-discovery", status, "f:addresses"), &Value::Null, "weft-controller"));
    assert!(!is_foreign(&entry("kubectl", None, "f:conditions"), &Value::Null, "weft-controller"));
    assert!(!is_foreign(&Value::Null, &Value::Null, "weft-controller"));
}

#[test]
fn the_status_of_another_controller_stays_his_when_we_have_written_beside_it() {
    let theirs =
        json!({"conditions": [{"type": "Reconciled", "status": "True", "message": "59/71 proxies"}]});
    assert!(is_foreign(&Value::Null, &theirs, "weft-controller"));
    let object = Current { generation: 1, status: theirs.clone(), foreign: true };
    let beside = Part::wanted(&fine(), &object, Mode::Istio).unwrap();
    let written = apply(&theirs, &beside.patch(&object, "1", now()));
    assert!(is_foreign(&Value::Null, &written, "weft-controller"));
    let ours = Part::wanted(&fine(), &current(1, Value::Null), Mode::Istio).unwrap();
    let written = apply(&Value::Null, &ours.patch(&Current::default(), "1", now()));
    assert!(!is_foreign(&Value::Null, &written, "weft-controller"));
}
