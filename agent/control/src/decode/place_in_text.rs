//! The path of a place in a JSON text, such as `spec.rules[0].from`.

use std::fmt::{self, Write as _};

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// Follows steps inwards: each says which entry of a map or item of a list, from 0. Ends early where the text is
/// broken.
pub(super) fn path(text: &str, steps: &[usize]) -> String {
    let mut path = String::new();
    let mut rest = Some(text);
    for step in steps {
        let mut found = Found::default();
        let step = Step { number: *step, found: &mut found };
        // That the text is broken, or goes on, is of no interest here.
        drop(step.deserialize(&mut serde_json::Deserializer::from_str(rest.unwrap_or_default())));
        match found.at {
            Some(At::Field(name)) if path.is_empty() => path = name,
            Some(At::Field(name)) => drop(write!(path, ".{name}")),
            Some(At::Item(number)) => drop(write!(path, "[{number}]")),
            None => break,
        }
        rest = found.value;
    }
    path
}

enum At {
    Field(String),
    Item(usize),
}

/// What a step leads to.
#[derive(Default)]
struct Found<'de> {
    at: Option<At>,
    value: Option<&'de str>,
}

/// Looks for one entry or item, and reads no further.
struct Step<'f, 'de> {
    number: usize,
    found: &'f mut Found<'de>,
}

impl<'de> DeserializeSeed<'de> for Step<'_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Step<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map or a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        for _ in 0..self.number {
            items.next_element::<IgnoredAny>()?;
        }
        self.found.at = Some(At::Item(self.number));
        self.found.value = items.next_element::<&RawValue>()?.map(RawValue::get);
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        for _ in 0..self.number {
            entries.next_entry::<IgnoredAny, IgnoredAny>()?;
        }
        self.found.at = entries.next_key::<String>()?.map(At::Field);
        self.found.value = Some(entries.next_value::<&RawValue>()?.get());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::path;

    #[test]
    fn steps_are_named() {
        let text = r#"{"a": 1, "b": [{}, {"c.d": null, "\u0065": [[7]]}]}"#;
        for (steps, expected) in [
            (&[][..], ""),
            (&[0], "a"),
            (&[1], "b"),
            (&[1, 1], "b[1]"),
            (&[1, 1, 0], "b[1].c.d"),
            (&[1, 1, 1, 0, 0], "b[1].e[0][0]"),
        ] {
            assert_eq!(path(text, steps), expected);
        }
        assert_eq!(path("[[1]]", &[0, 0]), "[0][0]");
    }

    #[test]
    fn a_broken_text_is_followed_as_far_as_it_goes() {
        assert_eq!(path(r#"{"a": {"b": [1, }"#, &[0, 0, 1]), "a");
        for text in ["", "7", "{", "[", r#"{"a"}"#, r#"{"a": 1}"#] {
            assert!(path(text, &[3, 3]).len() <= "[3]".len(), "{text}");
        }
    }
}
