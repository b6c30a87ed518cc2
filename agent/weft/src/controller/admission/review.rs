//! Decides about an object before it is stored: a pure function over `admission.k8s.io/v1`.

use serde::Deserialize;
use serde_json::{Value, json};
use weft_control::codes;
use weft_control::decode::{Decoder, Trust};
use weft_core::Severity;
use weft_core::problem::Problem;

use crate::controller::counters::Decision;
use crate::controller::status::sentence;

/// Most warnings that are sent; the API server cuts them off as well.
const MOST_WARNINGS: usize = 10;
/// Longest warning in bytes: the API server asks for at most 256 characters when there are several.
const LONGEST_WARNING: usize = 250;
/// Most mistakes that are named when an object is denied.
const MOST_MISTAKES: usize = 10;

/// `AdmissionReview` with a request.
#[derive(Debug, Deserialize)]
struct Review {
    request: Request,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request {
    uid: String,
    #[serde(default)]
    operation: String,
    #[serde(default)]
    sub_resource: Option<String>,
    #[serde(default)]
    namespace: Option<String>,
    #[serde(default)]
    object: Value,
    #[serde(default)]
    old_object: Value,
}

/// The question is none.
#[derive(Debug, thiserror::Error)]
#[error("this is no AdmissionReview of admission.k8s.io/v1")]
pub(super) struct NoReview(#[from] serde_json::Error);

/// Answers an `AdmissionReview`.
pub(super) fn review(body: &[u8]) -> Result<(Value, Decision), NoReview> {
    let Review { request } = serde_json::from_slice(body)?;
    let problems = if is_ours(&request) { problems(&request) } else { Vec::new() };
    let is_mistake = |problem: &&Problem| problem.code == codes::SCHEMA_VALIDATION.code;
    let mistakes: Vec<&Problem> = problems.iter().filter(is_mistake).collect();
    // Whoever labels or deletes an object that was stored before we validated must not have to correct it.
    let is_new = request.object.get("spec") != request.old_object.get("spec");
    if mistakes.is_empty() || !is_new {
        let response = json!({"uid": request.uid, "allowed": true, "warnings": warnings(&problems)});
        return Ok((answer(response), Decision::Allowed));
    }
    let status = json!({"code": 422, "reason": "Invalid", "message": denial(&mistakes)});
    let warnings = warnings(problems.iter().filter(|problem| !is_mistake(problem)));
    let response = json!({"uid": request.uid, "allowed": false, "status": status, "warnings": warnings});
    Ok((answer(response), Decision::Denied))
}

fn answer(response: Value) -> Value {
    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})
}

fn is_ours(request: &Request) -> bool {
    let is_whole = request.sub_resource.as_deref().unwrap_or_default().is_empty();
    // An object on its way out only loses finalizers.
    let is_going = !request.object.pointer("/metadata/deletionTimestamp").unwrap_or(&Value::Null).is_null();
    matches!(request.operation.as_str(), "CREATE" | "UPDATE") && is_whole && !is_going
}

fn problems(request: &Request) -> Vec<Problem> {
    let mut object = request.object.clone();
    name(&mut object, request.namespace.as_deref());
    let mut decoded = Vec::new();
    Decoder::new(Trust::Api).value(&object, None, &mut decoded);
    let mut problems: Vec<Problem> = decoded.into_iter().flat_map(|one| one.problems).collect();
    problems.sort_by(|a, b| b.severity.cmp(&a.severity).then_with(|| a.cmp(b)));
    problems
}

/// What the API server has yet to fill in: the namespace of the request, and a name with `generateName`.
fn name(object: &mut Value, namespace: Option<&str>) {
    let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    if let Some(namespace) = namespace.filter(|namespace| !namespace.is_empty()) {
        metadata.insert("namespace".to_owned(), namespace.into());
    }
    if metadata.get("name").is_none_or(|name| name == "")
        && let Some(prefix) = metadata.get("generateName").and_then(Value::as_str)
    {
        let made = format!("{prefix}xxxxx");
        metadata.insert("name".to_owned(), made.into());
    }
}

fn denial(mistakes: &[&Problem]) -> String {
    let mut texts: Vec<String> =
        mistakes.iter().take(MOST_MISTAKES).map(|problem| sentence(problem)).collect();
    if let Some(left) = mistakes.len().checked_sub(MOST_MISTAKES).filter(|left| *left > 0) {
        texts.push(format!("… and {left} more."));
    }
    texts.join("\n")
}

fn warnings<'p>(problems: impl IntoIterator<Item = &'p Problem>) -> Vec<String> {
    let worth_telling = |problem: &&Problem| {
        let not_applied = [codes::KIND_NOT_APPLIED.code, codes::FIELD_NOT_APPLIED.code];
        problem.severity > Severity::Info || not_applied.contains(&problem.code)
    };
    let told = problems.into_iter().filter(worth_telling).take(MOST_WARNINGS);
    told.map(|problem| shortened(sentence(problem))).collect()
}

fn shortened(mut text: String) -> String {
    if text.len() > LONGEST_WARNING {
        let end = (0..=LONGEST_WARNING - 3).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default();
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
#[path = "review_tests.rs"]
mod tests;
