//! The shape of objects: which fields there are, of which type and within which limits.
//!
//! This is what Kubernetes checks of a custom resource before anybody else sees it. Relations between fields are
//! checked by the kinds' own files, which can rely on the types then.

use serde_json::Value;

use super::super::report::{Path, Report};

/// What a field holds.
pub(super) enum Type {
    /// Text with lower and upper bound of its length in characters, and what else it must be.
    Text(usize, usize, Option<Check>),
    /// A whole number within bounds.
    Integer(i64, i64),
    /// A number within bounds.
    Number(f64, f64),
    /// `true` or `false`.
    Flag,
    /// One of some texts.
    OneOf(&'static [&'static str]),
    /// A list with lower and upper bound of its length.
    List(&'static Type, usize, usize),
    /// A map with keys of the user's choice, at most so many.
    Map(&'static Type, usize),
    /// A map with known fields.
    Object(&'static [Field]),
    /// A map of which nothing is known.
    Opaque,
}

/// A field of an object.
pub(super) struct Field {
    name: &'static str,
    required: bool,
    of: Type,
}

/// A further condition of a text: what is wrong (to follow "`text` "), and what to do.
pub(super) type Check = fn(&str) -> Option<(String, &'static str)>;

/// Text without limits.
pub(super) const TEXT: Type = Type::Text(0, usize::MAX, None);
/// Any list length.
pub(super) const MANY: usize = usize::MAX;
/// A number that Go holds in 32 bits without sign.
pub(super) const UNSIGNED: Type = Type::Integer(0, u32::MAX as i64);
/// A number that Go holds in 32 bits with sign.
pub(super) const SIGNED: Type = Type::Integer(i32::MIN as i64, i32::MAX as i64);
/// A number of 32 bits from 0 on.
pub(super) const NOT_NEGATIVE: Type = Type::Integer(0, i32::MAX as i64);
/// A list of texts.
pub(super) const TEXTS: Type = Type::List(&TEXT, 0, MANY);

/// Text of at most so many characters.
pub(super) const fn short(max: usize) -> Type {
    Type::Text(0, max, None)
}

/// Text of at least one and at most so many characters.
pub(super) const fn filled(max: usize) -> Type {
    Type::Text(1, max, None)
}

/// Text with a condition.
pub(super) const fn checked(max: usize, check: Check) -> Type {
    Type::Text(0, max, Some(check))
}

/// A field that may be left out.
pub(super) const fn may(name: &'static str, of: Type) -> Field {
    Field { name, required: false, of }
}

/// A field that must be there.
pub(super) const fn must(name: &'static str, of: Type) -> Field {
    Field { name, required: true, of }
}

/// Compares a value with its type.
pub(super) fn check(value: &Value, of: &Type, at: &Path<'_>, report: &mut Report<'_>) {
    match of {
        Type::Text(min, max, check) => text(value, (*min, *max, *check), at, report),
        Type::Integer(min, max) => integer(value, (*min, *max), at, report),
        Type::Number(min, max) => number(value, (*min, *max), at, report),
        Type::Flag => {
            expect(value.is_boolean(), value, ("true or false", "Write true or false."), at, report)
        }
        Type::OneOf(names) => one_of(value, names, at, report),
        Type::List(of, min, max) => list(value, of, (*min, *max), at, report),
        Type::Map(of, max) => map(value, of, *max, at, report),
        Type::Object(fields) => object(value, fields, at, report),
        Type::Opaque => expect(value.is_object(), value, A_MAP, at, report),
    }
}

const A_MAP: (&str, &str) = ("a map of fields", "Write fields with names here.");

/// Says that a value has another type than it should.
fn expect(holds: bool, value: &Value, wanted: (&str, &str), at: &Path<'_>, report: &mut Report<'_>) {
    if !holds {
        let (what, fix) = wanted;
        report.reject(at, format!("{} stands here, but this field is {what}.", told(value)), fix);
    }
}

/// A value in words.
fn told(value: &Value) -> String {
    match value {
        Value::Null => "Nothing".to_owned(),
        Value::Bool(flag) => format!("`{flag}`"),
        Value::Number(number) => format!("The number {number}"),
        Value::String(text) => format!("The text `{}`", shortened(text)),
        Value::Array(_) => "A list".to_owned(),
        Value::Object(_) => "A map of fields".to_owned(),
    }
}

/// The beginning of a text, so that messages stay readable.
pub(super) fn shortened(text: &str) -> String {
    const LONGEST: usize = 120;
    match text.char_indices().nth(LONGEST) {
        Some((at, _)) => format!("{}…", text.get(..at).unwrap_or_default()),
        None => text.to_owned(),
    }
}

fn text(value: &Value, rule: (usize, usize, Option<Check>), at: &Path<'_>, report: &mut Report<'_>) {
    let Some(text) = value.as_str() else {
        return expect(
            false,
            value,
            ("text", "Write text; a number or true and false need quotes."),
            at,
            report,
        );
    };
    let (min, max, check) = rule;
    let length = text.chars().count();
    if length < min {
        report.reject(at, "The text is empty.", "Write a value, or remove the field.");
    } else if length > max {
        report.reject(
            at,
            format!("The text has {length} characters; at most {max} are allowed."),
            "Shorten it.",
        );
    } else if let Some((what, fix)) = check.and_then(|check| check(text)) {
        report.reject(at, format!("`{}` {what}.", shortened(text)), fix);
    }
}

fn integer(value: &Value, (min, max): (i64, i64), at: &Path<'_>, report: &mut Report<'_>) {
    match super::value::whole(value) {
        Some(number) if (min..=max).contains(&number) => {}
        Some(number) => {
            let message = format!("{number} is out of range.");
            report.reject(at, message, format!("Write a number from {min} to {max}."));
        }
        None => expect(false, value, ("a whole number", "Write a whole number, without quotes."), at, report),
    }
}

fn number(value: &Value, (min, max): (f64, f64), at: &Path<'_>, report: &mut Report<'_>) {
    match value.as_f64() {
        Some(number) if (min..=max).contains(&number) => {}
        Some(number) => {
            let message = format!("{number} is out of range.");
            report.reject(at, message, format!("Write a number from {min} to {max}."));
        }
        None => expect(false, value, ("a number", "Write a number, without quotes."), at, report),
    }
}

fn one_of(value: &Value, names: &[&str], at: &Path<'_>, report: &mut Report<'_>) {
    match value.as_str() {
        Some(text) if names.contains(&text) => {}
        Some(text) => {
            let message = format!("`{}` is not a value of this field.", shortened(text));
            let names: Vec<&str> = names.iter().copied().filter(|name| !name.is_empty()).collect();
            report.reject(at, message, format!("Write one of {}.", names.join(", ")));
        }
        None => expect(false, value, ("one of some names", "Write one of its names."), at, report),
    }
}

fn list(value: &Value, of: &Type, (min, max): (usize, usize), at: &Path<'_>, report: &mut Report<'_>) {
    let Some(items) = value.as_array() else {
        return expect(false, value, ("a list", "Begin each item with `-`."), at, report);
    };
    if items.len() < min {
        report.reject(at, "The list is empty.", "Add an item, or remove the field.");
    } else if items.len() > max {
        let message = format!("The list has {} items; at most {max} are allowed.", items.len());
        return report.reject(at, message, "Remove some of them.");
    }
    for (index, item) in items.iter().enumerate() {
        if item.is_null() {
            report.reject(at.index(index), "The item is empty.", "Write a value, or remove the item.");
        } else {
            check(item, of, &at.index(index), report);
        }
    }
}

fn map(value: &Value, of: &Type, max: usize, at: &Path<'_>, report: &mut Report<'_>) {
    let Some(entries) = value.as_object() else {
        return expect(false, value, ("a map of names and values", "Write names with values."), at, report);
    };
    if entries.len() > max {
        let message = format!("The map has {} entries; at most {max} are allowed.", entries.len());
        return report.reject(at, message, "Remove some of them.");
    }
    // The API server leaves out entries that are `null`.
    for (name, value) in entries.iter().filter(|(_, value)| !value.is_null()) {
        check(value, of, &at.field(name), report);
    }
}

fn object(value: &Value, fields: &[Field], at: &Path<'_>, report: &mut Report<'_>) {
    let Some(entries) = value.as_object() else { return expect(false, value, A_MAP, at, report) };
    for (name, value) in entries {
        match fields.iter().find(|field| field.name == name) {
            // Go reads `null` as the zero value.
            Some(_) if value.is_null() => {}
            Some(field) => check(value, &field.of, &at.field(field.name), report),
            None => {
                let message = format!("There is no field `{}` here.", shortened(name));
                let fix = "Correct the spelling or the indentation, or remove the field.";
                report.reject(at.field(name), message, fix);
            }
        }
    }
    for field in fields.iter().filter(|field| field.required) {
        if entries.get(field.name).is_none_or(Value::is_null) {
            report.reject(at.field(field.name), "The field is missing.", format!("Add `{}`.", field.name));
        }
    }
}
