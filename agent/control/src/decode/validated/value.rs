//! Reads fields of a parsed value whose types are known to be right; what is not there is empty.

use serde_json::Value;

static NOTHING: Value = Value::Null;

/// A field; [`Value::Null`] if it is absent.
pub(in crate::decode) fn get<'v>(value: &'v Value, name: &str) -> &'v Value {
    value.get(name).unwrap_or(&NOTHING)
}

/// Whether a field is written, with a value.
pub(in crate::decode) fn has(value: &Value, name: &str) -> bool {
    !get(value, name).is_null()
}

/// A text; empty if it is absent.
pub(in crate::decode) fn text<'v>(value: &'v Value, name: &str) -> &'v str {
    get(value, name).as_str().unwrap_or_default()
}

/// A whole number; 0 if it is absent.
pub(in crate::decode) fn number(value: &Value, name: &str) -> i64 {
    whole(get(value, name)).unwrap_or_default()
}

/// A whole number, which may be written with a fraction of zero.
pub(in crate::decode) fn whole(value: &Value) -> Option<i64> {
    let with_fraction = || value.as_f64().filter(|number| number.fract() == 0.0 && number.abs() < 9e15);
    // Exact within these bounds.
    value.as_i64().or_else(|| with_fraction().map(|number| number as i64))
}

/// A flag; false if it is absent.
pub(in crate::decode) fn flag(value: &Value, name: &str) -> bool {
    get(value, name).as_bool().unwrap_or_default()
}

/// A list; empty if it is absent.
pub(in crate::decode) fn items<'v>(value: &'v Value, name: &str) -> &'v [Value] {
    get(value, name).as_array().map(Vec::as_slice).unwrap_or_default()
}

/// The texts of a list.
pub(in crate::decode) fn texts<'v>(value: &'v Value, name: &str) -> impl Iterator<Item = &'v str> {
    items(value, name).iter().map(|item| item.as_str().unwrap_or_default())
}

/// The entries of a map that have a value: the API server leaves out those that are `null`.
pub(in crate::decode) fn entries<'v>(
    value: &'v Value,
    name: &str,
) -> impl Iterator<Item = (&'v str, &'v Value)> {
    let all = get(value, name).as_object().into_iter().flatten();
    all.filter(|(_, value)| !value.is_null()).map(|(name, value)| (name.as_str(), value))
}
