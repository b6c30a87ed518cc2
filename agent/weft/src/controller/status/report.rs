//! What the status of an object says: pure functions from findings to conditions and messages.

use clap::ValueEnum;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Map, Value, json};
use weft_control::codes;
use weft_core::Severity;
use weft_core::problem::Problem;

/// Our condition.
pub(super) const CONDITION: &str = "weft.dev/Accepted";
/// Istio's condition.
const ISTIO_CONDITION: &str = "Reconciled";
/// Istio's messages.
const MESSAGES: &str = "validationMessages";
/// Of the text of all findings, in bytes: a status is no place for an essay.
const LONGEST: usize = 4096;
/// Most messages in a status.
const MOST_MESSAGES: usize = 50;

/// What is written into the status of objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Mode {
    /// Only our own condition.
    Own,
    /// What Istio writes as well, unless another controller does.
    #[default]
    Istio,
    /// Nothing.
    Off,
}

/// What became of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// It is in force, as far as it is honoured.
    InForce,
    /// It is valid and has no effect.
    NotApplied,
    /// It is not in force.
    Rejected,
}

/// What there is to say about an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) standing: Standing,
    /// Worst first.
    pub(super) problems: Vec<Problem>,
}

impl Verdict {
    /// Sorts the findings so that equal ones give equal texts.
    pub(super) fn new(standing: Standing, mut problems: Vec<Problem>) -> Self {
        problems.sort_by(|a, b| b.severity.cmp(&a.severity).then_with(|| a.cmp(b)));
        problems.dedup();
        Self { standing, problems }
    }

    /// The `reason` of our condition.
    pub(super) fn reason(&self) -> &'static str {
        let worst = self.problems.first().map(|problem| problem.severity);
        let partly = self.problems.iter().any(|problem| problem.code == codes::FIELD_NOT_APPLIED.code);
        match (self.standing, worst) {
            (Standing::Rejected, _) => "Invalid",
            (Standing::NotApplied, _) => "NotApplied",
            (Standing::InForce, Some(Severity::Error | Severity::Warning)) => "HasFindings",
            (Standing::InForce, _) if partly => "PartlyApplied",
            (Standing::InForce, _) => "Accepted",
        }
    }

    fn is_true(&self) -> bool {
        self.standing == Standing::InForce
    }

    /// The `message` of our condition: all findings, as long as there is room.
    pub(super) fn message(&self) -> String {
        let mut text = match self.standing {
            Standing::InForce if self.problems.is_empty() => "The object is in force.",
            Standing::InForce => "The object is in force, but:",
            Standing::NotApplied => "The object has no effect:",
            Standing::Rejected => "The object is not in force:",
        }
        .to_owned();
        for (at, problem) in self.problems.iter().enumerate() {
            let one = sentence(problem);
            if text.len() + one.len() >= LONGEST {
                let left = self.problems.len() - at;
                text.push_str(&format!("\n… and {left} more findings: see `weft analyze`."));
                break;
            }
            text.push('\n');
            text.push_str(&one);
        }
        text
    }

    /// Istio's messages. They have no text, so each code stands there once.
    fn messages(&self) -> Vec<Value> {
        let mut known = std::collections::BTreeSet::new();
        let once = self.problems.iter().filter(|problem| known.insert(problem.code));
        once.take(MOST_MESSAGES).map(message).collect()
    }
}

/// A finding for people: code, field, what is wrong, what to do.
pub(in crate::controller) fn sentence(problem: &Problem) -> String {
    let Problem { code, field, message, fix, .. } = problem;
    let mut text = format!("[{code}]");
    if !field.is_empty() {
        text.push(' ');
        text.push_str(field);
        text.push(':');
    }
    text.push(' ');
    text.push_str(message);
    if !fix.is_empty() {
        text.push(' ');
        text.push_str(fix);
    }
    text
}

/// One of `status.validationMessages` (Istio's `AnalysisMessageBase`).
fn message(problem: &Problem) -> Value {
    let level = match problem.severity {
        Severity::Error => "ERROR",
        Severity::Warning => "WARNING",
        Severity::Info => "INFO",
    };
    let mut made = json!({"type": {"name": problem.name, "code": problem.code}, "level": level});
    if problem.code.starts_with("IST")
        && let Some(fields) = made.as_object_mut()
    {
        let page = problem.code.to_lowercase();
        let url = format!("https://istio.io/latest/docs/reference/config/analysis/{page}/");
        fields.insert("documentationUrl".to_owned(), url.into());
    }
    made
}

/// What is known of an object on which a status is written.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Current {
    /// `metadata.generation`.
    pub(super) generation: i64,
    /// `status`.
    pub(super) status: Value,
    /// Another controller writes Istio's part of the status.
    pub(super) foreign: bool,
}

/// Our part of a status, without moments: what is compared.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Part {
    conditions: Vec<Value>,
    /// `None`: not ours to write.
    messages: Option<Vec<Value>>,
    /// Nothing of Istio's part that we wrote is there, where it is not to be.
    cleared: bool,
}

impl Part {
    /// What the status is to say of the object.
    pub(super) fn wanted(verdict: &Verdict, current: &Current, mode: Mode) -> Option<Self> {
        let istio = match mode {
            Mode::Off => return None,
            Mode::Own => false,
            Mode::Istio => !current.foreign,
        };
        let condition = |kind: &str| {
            json!({
                "type": kind,
                "status": if verdict.is_true() { "True" } else { "False" },
                "reason": verdict.reason(),
                "message": verdict.message(),
                "observedGeneration": current.generation,
            })
        };
        let mut conditions = vec![condition(CONDITION)];
        if istio {
            conditions.push(condition(ISTIO_CONDITION));
        }
        Some(Self { conditions, messages: istio.then(|| verdict.messages()), cleared: mode == Mode::Own })
    }

    /// What the status says now, of the things that this part says.
    pub(super) fn standing(&self, current: &Current) -> Self {
        let status = &current.status;
        let kinds: Vec<&Value> = self.conditions.iter().map(kind).collect();
        let conditions = kinds.iter().filter_map(|of| {
            let mut found = conditions(status).iter().find(|condition| kind(condition) == *of)?.clone();
            let fields = found.as_object_mut()?;
            fields.remove("lastTransitionTime");
            Some(found)
        });
        let messages = || status.get(MESSAGES).and_then(Value::as_array).cloned().unwrap_or_default();
        Self {
            conditions: conditions.collect(),
            messages: self.messages.as_ref().map(|_| messages()),
            cleared: self.cleared && !has_former(current),
        }
    }

    /// A JSON merge patch that brings the status there. `version` keeps it from meeting another object than the
    /// one that was looked at.
    pub(super) fn patch(&self, current: &Current, version: &str, now: Timestamp) -> Value {
        let before = conditions(&current.status);
        let clears = self.cleared && has_former(current);
        let replaced = |condition: &&Value| {
            (clears && kind(condition) == ISTIO_CONDITION)
                || self.conditions.iter().any(|own| kind(own) == kind(condition))
        };
        let mut all: Vec<Value> = before.iter().filter(|condition| !replaced(condition)).cloned().collect();
        all.extend(self.conditions.iter().map(|condition| with_moment(condition, before, now)));
        let mut patched = Map::new();
        patched.insert("conditions".to_owned(), Value::Array(all));
        if let Some(messages) = &self.messages {
            let value = if messages.is_empty() { Value::Null } else { Value::Array(messages.clone()) };
            patched.insert(MESSAGES.to_owned(), value);
        }
        if clears {
            patched.insert(MESSAGES.to_owned(), Value::Null);
        }
        json!({"metadata": {"resourceVersion": version}, "status": patched})
    }
}

fn conditions(status: &Value) -> &[Value] {
    status.get("conditions").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// Whether Istio's part of the status is there and from us: under another setting we wrote it.
fn has_former(current: &Current) -> bool {
    !current.foreign && conditions(&current.status).iter().any(|condition| kind(condition) == ISTIO_CONDITION)
}

fn kind(condition: &Value) -> &Value {
    condition.get("type").unwrap_or(&Value::Null)
}

/// `lastTransitionTime` changes with `status` only.
fn with_moment(condition: &Value, before: &[Value], now: Timestamp) -> Value {
    let same =
        |other: &&Value| kind(other) == kind(condition) && other.get("status") == condition.get("status");
    let kept = before.iter().find(same).and_then(|other| other.get("lastTransitionTime")).cloned();
    let mut made = condition.clone();
    if let Some(fields) = made.as_object_mut() {
        let now = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        fields.insert("lastTransitionTime".to_owned(), kept.unwrap_or(Value::String(now)));
    }
    made
}

/// Whether the status says already that the object is rejected.
pub(super) fn says_rejected(status: &Value) -> bool {
    let ours = conditions(status).iter().find(|condition| kind(condition) == CONDITION);
    ours.and_then(|condition| condition.get("reason")).is_some_and(|reason| reason == "Invalid")
}

/// Whether somebody other than `manager` writes Istio's part of the status: by `metadata.managedFields`, or because
/// Istio's condition does not say what ours says. The latter stays true when we have written the list of conditions,
/// which makes it ours as a whole.
pub(super) fn is_foreign(managed: &Value, status: &Value, manager: &str) -> bool {
    let find = |of: &str| conditions(status).iter().find(|condition| kind(condition) == of);
    let text = |condition: &Value| condition.get("message").cloned();
    let others = find(ISTIO_CONDITION).is_some_and(|theirs| find(CONDITION).and_then(text) != text(theirs));
    others || is_managed_by_another(managed, manager)
}

fn is_managed_by_another(managed: &Value, manager: &str) -> bool {
    let entries = managed.as_array().map(Vec::as_slice).unwrap_or_default();
    entries.iter().any(|entry| {
        let of_status = entry.get("subresource").is_some_and(|name| name == "status");
        let other = entry.get("manager").is_some_and(|name| name != manager);
        let fields = entry.pointer("/fieldsV1/f:status");
        let istio = fields.is_some_and(|fields| {
            ["f:validationMessages", "f:conditions"].iter().any(|name| fields.get(*name).is_some())
        });
        of_status && other && istio
    })
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
