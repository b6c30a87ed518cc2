//! Numbers and bytes as the API's schema has them.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, Visitor};
use weft_core::resource::virtual_service::PerMillion;

/// A percentage as a share; beyond its ends it is none or all.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the value is clamped before")]
pub(in crate::decode) fn share(percent: f64) -> PerMillion {
    PerMillion((percent.clamp(0.0, 100.0) * 10_000.0).round() as u32)
}

/// A whole number within bounds; `null` is absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::decode) struct Whole<const MIN: i64, const MAX: i64>(pub(in crate::decode) Option<i64>);

/// `int32`.
pub(in crate::decode) type Signed = Whole<{ i32::MIN as i64 }, { i32::MAX as i64 }>;
/// `uint32`.
pub(in crate::decode) type Unsigned = Whole<0, { u32::MAX as i64 }>;
/// `uint64`, as far as the schema lets it.
pub(in crate::decode) type Size = Whole<0, { i64::MAX }>;

impl<const MIN: i64, const MAX: i64> Whole<MIN, MAX> {
    /// The number; 0 when absent, as Go reads it.
    pub(in crate::decode) fn get(self) -> i64 {
        self.0.unwrap_or_default()
    }

    pub(in crate::decode) fn is_written(self) -> bool {
        self.0.is_some()
    }
}

impl<'de, const MIN: i64, const MAX: i64> Deserialize<'de> for Whole<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_option(WholeVisitor::<MIN, MAX>).map(Self)
    }
}

struct WholeVisitor<const MIN: i64, const MAX: i64>;

impl<const MIN: i64, const MAX: i64> WholeVisitor<MIN, MAX> {
    fn within<E: de::Error>(&self, number: i64, unexpected: de::Unexpected<'_>) -> Result<Option<i64>, E> {
        if (MIN..=MAX).contains(&number) { Ok(Some(number)) } else { Err(E::invalid_value(unexpected, self)) }
    }
}

impl<'de, const MIN: i64, const MAX: i64> Visitor<'de> for WholeVisitor<MIN, MAX> {
    type Value = Option<i64>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a whole number from {MIN} to {MAX}")
    }

    fn visit_none<E: de::Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Self::Value, E> {
        self.within(number, de::Unexpected::Signed(number))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Self::Value, E> {
        let unexpected = de::Unexpected::Unsigned(number);
        match i64::try_from(number) {
            Ok(number) => self.within(number, unexpected),
            Err(_) => Err(E::invalid_value(unexpected, &self)),
        }
    }

    /// `5.0` is a whole number in JSON schema.
    #[expect(clippy::cast_possible_truncation, reason = "the bounds are checked before")]
    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Self::Value, E> {
        let unexpected = de::Unexpected::Float(number);
        // Beyond 2^53 not every whole number has a float of its own.
        let exact = number.fract() == 0.0 && number.abs() < 9_007_199_254_740_992.0;
        if exact { self.within(number as i64, unexpected) } else { Err(E::invalid_value(unexpected, &self)) }
    }
}

/// Base64 as JSON carries bytes: the standard alphabet with padding.
pub(in crate::decode) fn base64(text: &str) -> Option<Vec<u8>> {
    let symbols = text.trim_end_matches('=');
    let padding = text.len() - symbols.len();
    if padding > 2 || !text.len().is_multiple_of(4) {
        return None;
    }
    let mut bytes = Vec::with_capacity(symbols.len() / 4 * 3 + 2);
    let (mut held, mut bits) = (0_u32, 0_u32);
    for symbol in symbols.bytes() {
        held = held << 6 | u32::from(sextet(symbol)?);
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push(u8::try_from(held >> bits & 0xff).unwrap_or_default());
        }
    }
    Some(bytes)
}

fn sextet(symbol: u8) -> Option<u8> {
    match symbol {
        b'A'..=b'Z' => Some(symbol - b'A'),
        b'a'..=b'z' => Some(symbol - b'a' + 26),
        b'0'..=b'9' => Some(symbol - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers_have_bounds() {
        let read = |text: &str| serde_json::from_str::<Unsigned>(text).ok().map(|number| number.0);
        assert_eq!((read("5"), read("5.0"), read("null")), (Some(Some(5)), Some(Some(5)), Some(None)));
        for bad in ["-1", "4294967296", "5.5", "\"5\"", "true", "1e300", "18446744073709551615"] {
            assert_eq!(read(bad), None, "{bad}");
        }
        assert_eq!(serde_json::from_str::<Signed>("-2147483648").ok().map(Signed::get), Some(-2_147_483_648));
    }

    #[test]
    fn base64_is_padded() {
        for (text, bytes) in [("", ""), ("aGVsbG8=", "hello"), ("YQ==", "a"), ("YWI=", "ab"), ("YWJj", "abc")]
        {
            assert_eq!(base64(text).as_deref(), Some(bytes.as_bytes()), "{text}");
        }
        for bad in ["a", "YQ", "YQ=", "Y===", "YW-j", "YQ==YQ==", "YWJ\n"] {
            assert_eq!(base64(bad), None, "{bad}");
        }
    }
}
