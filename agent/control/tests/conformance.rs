//! Which objects are accepted and rejected, compared with the verdicts of Istio's own admission.
//!
//! The cases lie outside this repository; the test is skipped where they are not at hand.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod common;

use std::path::Path;

use serde_json::Value;
use weft_control::decode::Outcome;
use weft_control::decode::documents::Format;

fn run(kind: &str) {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../../shared/conformance/analyze/validation")
        .join(format!("{kind}.json"));
    let Ok(text) = std::fs::read_to_string(&cases) else {
        eprintln!("SKIPPED: no conformance cases at {}; put them there to run this test", cases.display());
        return;
    };
    let cases: Vec<Value> = serde_json::from_str(&text).unwrap();
    assert!(!cases.is_empty());
    let failed: Vec<String> = cases.iter().filter_map(failure).collect();
    assert!(failed.is_empty(), "{} of {} failed:\n{}", failed.len(), cases.len(), failed.join("\n"));
}

fn failure(case: &Value) -> Option<String> {
    let mut text = case["yaml"].as_str().unwrap().to_owned();
    if let Some(repeat) = case.get("repeat") {
        let times = usize::try_from(repeat["times"].as_u64().unwrap()).unwrap();
        text = text.replace("@REPEAT@", &repeat["text"].as_str().unwrap().repeat(times));
    }
    let decoded = common::decode(text.as_bytes(), Format::Yaml);
    let rejected = decoded.iter().any(|object| matches!(object.outcome, Outcome::Rejected(_)));
    let valid = case["valid"].as_bool().unwrap();
    let problems: Vec<_> =
        decoded.iter().flat_map(|object| &object.problems).map(ToString::to_string).collect();
    (valid == rejected || decoded.is_empty())
        .then(|| format!("{}: valid {valid}, rejected {rejected}: {problems:?}", case["id"]))
}

#[test]
fn authorization_policies_are_judged_as_by_istio() {
    run("AuthorizationPolicy");
}

#[test]
fn peer_authentications_are_judged_as_by_istio() {
    run("PeerAuthentication");
}
