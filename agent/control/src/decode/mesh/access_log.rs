//! `accessLogFormat` (L-5).

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::Value as Json;
use weft_core::access_format::{AccessFormat, Oddity, Template, Value};

use super::super::fields::Text;
use super::super::report::Report;
use crate::codes;

const FIELD: &str = "data.mesh.accessLogFormat";

/// Compiles the format. What nobody knows is told, and prints `-`.
pub(super) fn format(text: &Text<'_>, json: bool, report: &mut Report<'_>) -> Option<Arc<AccessFormat>> {
    let text = text.non_empty()?;
    let mut odd = Vec::new();
    let format = if json {
        match serde_json::from_str::<Json>(text) {
            Ok(object @ Json::Object(_)) => AccessFormat::Json(value(&object, &mut odd)),
            Ok(_) => return not_json("it is no object", report),
            Err(error) => return not_json(&error.to_string(), report),
        }
    } else {
        AccessFormat::text(text, &mut odd)
    };
    tell(&odd, report);
    Some(Arc::new(format))
}

fn not_json(why: &str, report: &mut Report<'_>) -> Option<Arc<AccessFormat>> {
    let message = format!("The format is not JSON, so lines have the default one: {why}.");
    report.add(codes::NO_EFFECT, FIELD, message, "Write a JSON object, or `accessLogEncoding: TEXT`.");
    None
}

fn value(json: &Json, odd: &mut Vec<Oddity>) -> Value {
    match json {
        Json::String(text) => Value::Template(Template::new(text, odd)),
        Json::Array(values) => Value::Array(values.iter().map(|json| value(json, odd)).collect()),
        Json::Object(members) => {
            let member = |(name, json): (&String, &Json)| (name.as_str().into(), value(json, odd));
            Value::Object(members.iter().map(member).collect())
        }
        Json::Null | Json::Bool(_) | Json::Number(_) => Value::Literal(json.to_string().into()),
    }
}

fn tell(odd: &[Oddity], report: &mut Report<'_>) {
    let mut told = BTreeSet::new();
    for oddity in odd {
        let (message, fix) = match oddity {
            Oddity::Unknown(name) => (
                format!("There is no operator `%{name}%`: it prints `-`."),
                "Check its spelling and its argument.",
            ),
            Oddity::Unanswered(name) => {
                (format!("`%{name}%` is not applied: it prints `-`."), "Remove it, or live with `-`.")
            }
            Oddity::Unclosed(_) => ("A `%` begins no operator: it prints as it is.".into(), "Write `%%`."),
        };
        if told.insert(message.clone()) {
            report.add(codes::NO_EFFECT, FIELD, message, fix);
        }
    }
}
