//! Shared by the tests of this crate.

use std::sync::Arc;

use proptest::prelude::{Strategy, any};
use proptest::sample::Index;
use weft_control::decode::documents::{self, Format};
use weft_control::decode::{Decoded, Decoder, Outcome, Trust};
use weft_core::problem::Origin;

/// Decodes a whole file.
pub(crate) fn decode(text: &[u8], format: Format) -> Vec<Decoded> {
    let file: Arc<str> = "test.yaml".into();
    let mut decoder = Decoder::new(Trust::Files);
    let mut decoded = Vec::new();
    documents::read(&mut &*text, format, &mut |document| {
        let origin = Origin { file: file.clone(), document: document.number, line: document.line };
        decoder.document(document, &origin, &mut decoded);
    })
    .unwrap();
    decoded
}

/// An object as text: one line for each rule, without what is absent or empty.
#[allow(dead_code, reason = "not every test needs it")]
pub(crate) fn compact(resource: &weft_core::resource::Resource) -> String {
    let mut text = format!("{resource:?}");
    let empty = [
        "headers: HeaderOperations { request: HeaderChanges { set: [], add: [], remove: [] }, \
         response: HeaderChanges { set: [], add: [], remove: [] } }",
        "source_labels: Labels([])",
    ];
    for part in empty {
        text = text.replace(part, "nothing: None");
    }
    let absent = |part: &str| {
        let value = part.rsplit_once(": ").map_or("", |(_, value)| value);
        matches!(value, "None" | "[]" | "false") && !part.contains(['{', '('])
    };
    let parts: Vec<&str> = text.split(", ").filter(|part| !absent(part)).collect();
    let text = parts.join(", ").replace("nothing: None ", "").replace(", nothing: None", "");
    ["HttpRule {", "TlsRule {", "TcpRule {", "Subset {", "TrafficPolicy {"]
        .iter()
        .fold(text, |text, part| text.replace(part, &format!("\n  {part}")))
}

/// The problems of one object of `networking.istio.io` in the namespace `shop` with this `spec`.
#[allow(dead_code, reason = "not every test needs it")]
pub(crate) fn networking(kind: &str, spec: &str) -> Vec<weft_core::Problem> {
    let spec = spec.replace('\n', "\n  ");
    let text = format!(
        "apiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: test, namespace: shop}}\nspec:\n  {spec}\n"
    );
    let decoded = decode(text.as_bytes(), Format::Yaml);
    assert_eq!(decoded.len(), 1, "{text}");
    decoded.into_iter().flat_map(|decoded| decoded.problems).collect()
}

/// `spec` is accepted; findings of lesser weight are returned as `code field`.
#[allow(dead_code, reason = "not every test needs it")]
pub(crate) fn accepts(kind: &str, spec: &str) -> Vec<String> {
    let problems = networking(kind, spec);
    let errors: Vec<_> =
        problems.iter().filter(|problem| problem.severity == weft_core::Severity::Error).collect();
    assert!(errors.is_empty(), "{spec}\n{errors:#?}");
    problems.iter().map(|problem| format!("{} {}", problem.code, problem.field)).collect()
}

/// `spec` is refused because of exactly this field, with a reason and a way out.
#[allow(dead_code, reason = "not every test needs it")]
pub(crate) fn refuses(kind: &str, spec: &str, field: &str) {
    let problems = networking(kind, spec);
    let errors: Vec<_> =
        problems.iter().filter(|problem| problem.severity == weft_core::Severity::Error).collect();
    assert!(!errors.is_empty(), "accepted: {spec}");
    for error in errors {
        assert_eq!((error.code, error.field.as_str()), ("IST0106", field), "{spec}\n{error}");
        assert!(!error.fix.is_empty() && error.message.ends_with('.'), "{error}");
    }
}

/// A whole file as text: what became of each object, and what there is to say about it.
#[allow(dead_code, reason = "not every test needs it")]
pub(crate) fn render_compact(text: &[u8]) -> String {
    let mut lines = Vec::new();
    for Decoded { outcome, problems } in decode(text, Format::Yaml) {
        lines.push(match outcome {
            Outcome::Accepted(resource) => format!("accepted {}", compact(&resource)),
            other => format!("{other:?}"),
        });
        lines.extend(problems.iter().map(|problem| format!("  {problem}")));
        lines.push(String::new());
    }
    lines.join("\n")
}

/// A change to the bytes of a file: where, in which way, with which byte.
type Edit = (Index, u8, u8);

/// A few changes.
#[allow(dead_code, reason = "not every test needs it")]
pub(crate) fn edits() -> impl Strategy<Value = Vec<Edit>> {
    proptest::collection::vec((any::<Index>(), 0..5_u8, any::<u8>()), 1..8)
}

/// Makes them.
#[allow(dead_code, clippy::indexing_slicing, reason = "not every test needs it; tests may panic")]
pub(crate) fn damage(text: &mut Vec<u8>, edits: Vec<Edit>) {
    for (at, edit, byte) in edits {
        let at = at.index(text.len().max(1)).min(text.len().saturating_sub(1));
        match edit {
            _ if text.is_empty() => {}
            0 => text[at] = byte,
            1 => drop(text.remove(at)),
            2 => text.insert(at, byte),
            3 => text.truncate(at),
            _ => {
                let piece = text[at..].to_vec();
                text.extend(piece);
            }
        }
    }
}
