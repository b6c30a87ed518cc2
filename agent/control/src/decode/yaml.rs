//! The one place that knows the YAML library.
//!
//! YAML is read as `kubectl` reads it: YAML 1.1 booleans (`yes`, `on`), octal numbers with a leading zero,
//! map keys that are numbers as strings, merge keys. A key that stands twice is an error: which of the two
//! the author meant cannot be known, and in a policy it matters.

use std::net::Ipv6Addr;

use serde_json::Value;
use serde_saphyr::{DuplicateKeyPolicy, NonFiniteFloatPolicy, RenderOptions, UserMessageFormatter};

/// Upper bound of nodes in one document: a List of about 50,000 pods.
const MAX_NODES: usize = 20_000_000;
/// Upper bound of text in one document, in bytes.
const MAX_TEXT_BYTES: usize = 512 << 20;

/// Reads one document. `line` is where it begins in its file, so that errors name the file's lines.
///
/// An empty document is `Value::Null`. The error is a text that names line and column.
pub(crate) fn read(text: &str, line: u32) -> Result<Value, String> {
    let budget = serde_saphyr::budget! {
        max_reader_input_bytes: None,
        max_events: 2 * MAX_NODES,
        max_nodes: MAX_NODES,
        max_total_scalar_bytes: MAX_TEXT_BYTES,
    };
    let options = serde_saphyr::options! {
        budget: budget,
        duplicate_keys: DuplicateKeyPolicy::Error,
        legacy_octal_numbers: true,
        non_finite_float_policy: NonFiniteFloatPolicy::AsString,
        with_snippet: false,
    };
    let mut value = serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let mut render = RenderOptions::new(&UserMessageFormatter);
        render.line_offset = u64::from(line.saturating_sub(1));
        error.render_with_options(render)
    })?;
    if text.contains("::]") || text.contains("::,") {
        addresses_in_lists(&mut value);
    }
    Ok(value)
}

/// In `[fd00::]` the standard sees a map with the key `fd00:`; `kubectl` sees the address that is meant.
fn addresses_in_lists(value: &mut Value) {
    match value {
        Value::Array(items) => {
            for item in items {
                match address_in_map(item) {
                    Some(address) => *item = Value::String(address),
                    None => addresses_in_lists(item),
                }
            }
        }
        Value::Object(fields) => fields.values_mut().for_each(addresses_in_lists),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn address_in_map(value: &Value) -> Option<String> {
    let fields = value.as_object().filter(|fields| fields.len() == 1)?;
    let (key, value) = fields.iter().next()?;
    let address = format!("{key}:");
    (value.is_null() && key.ends_with(':') && address.parse::<Ipv6Addr>().is_ok()).then_some(address)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_address_in_a_list_is_text() {
        assert_eq!(
            read("a: [fd00::, x, {b: [::]}, 1::]", 1),
            Ok(json!({"a": ["fd00::", "x", {"b": ["::"]}, "1::"]}))
        );
        assert_eq!(read("- {fd00: null}\n- [x::]", 1), Ok(json!([{"fd00": null}, [{"x:": null}]])));
    }
}
