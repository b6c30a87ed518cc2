//! Building blocks of the wire formats: how Kubernetes' JSON is read into Rust.
//!
//! Go reads `null` as the zero value, so every type here takes `null` for "absent". Text borrows from the
//! document where it can.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::fmt;
use std::marker::PhantomData;
use std::net::IpAddr;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::place_in_text;
use super::strict::{self, Unread};

/// A value that could not be read: where and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FieldError {
    /// Path of the field; empty for the whole object.
    pub(crate) path: String,
    /// The reason.
    pub(crate) message: String,
}

/// An object in one of the two forms in which it arrives.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Body<'a> {
    /// JSON text.
    Text(&'a str),
    /// A parsed value.
    Value(&'a Parsed<'a>),
}

/// A parsed value. Whoever wants it as a Rust type reads it from text like all others: a way of its own would double
/// the code of every kind.
#[derive(Debug)]
pub(crate) struct Parsed<'v> {
    pub(crate) value: &'v Value,
    text: OnceCell<String>,
}

impl<'v> Parsed<'v> {
    pub(crate) fn new(value: &'v Value) -> Self {
        Self { value, text: OnceCell::new() }
    }
}

impl<'a> Body<'a> {
    /// Reads the object as `T`.
    pub(crate) fn read<T: Deserialize<'a>>(self) -> Result<T, FieldError> {
        let text = match self {
            Self::Text(text) => text,
            Self::Value(parsed) => parsed.text.get_or_init(|| parsed.value.to_string()),
        };
        strict::from_str(text).map_err(|unread| field_error(text, &unread))
    }
}

#[cold]
fn field_error(text: &str, unread: &Unread) -> FieldError {
    FieldError { path: place_in_text::path(text, &unread.steps), message: reason(&unread.error) }
}

/// Without the position: it counts within the object and would mislead, for the origin names the line.
fn reason(error: &serde_json::Error) -> String {
    let mut message = error.to_string();
    if let Some(at) = message.rfind(" at line ") {
        message.truncate(at);
    }
    message
}

/// `null` as the default value of any type.
pub(crate) fn nullable<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// Text; `null` is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Text<'a>(pub(crate) Cow<'a, str>);

impl Text<'_> {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The text, unless it is empty.
    pub(crate) fn non_empty(&self) -> Option<&str> {
        Some(self.as_str()).filter(|text| !text.is_empty())
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_option(TextVisitor(PhantomData))
    }
}

struct TextVisitor<'a>(PhantomData<&'a str>);

impl<'de: 'a, 'a> Visitor<'de> for TextVisitor<'a> {
    type Value = Text<'a>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_none<E: de::Error>(self) -> Result<Self::Value, E> {
        Ok(Text::default())
    }

    fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
        Ok(Text::default())
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }

    fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Text(Cow::Borrowed(text)))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Text(Cow::Owned(text.to_owned())))
    }

    fn visit_string<E: de::Error>(self, text: String) -> Result<Self::Value, E> {
        Ok(Text(Cow::Owned(text)))
    }
}

/// A map from text to `V`, in the order of the document; `null` is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pairs<'a, V = Text<'a>>(pub(crate) Vec<(Text<'a>, V)>);

impl<V> Default for Pairs<'_, V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<V> Pairs<'_, V> {
    /// The value of one key.
    pub(crate) fn get(&self, key: &str) -> Option<&V> {
        self.0.iter().find(|(name, _)| name.as_str() == key).map(|(_, value)| value)
    }
}

impl<'de: 'a, 'a, V: Deserialize<'de>> Deserialize<'de> for Pairs<'a, V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_option(PairsVisitor(PhantomData))
    }
}

struct PairsVisitor<'a, V>(PhantomData<(&'a str, V)>);

impl<'de: 'a, 'a, V: Deserialize<'de>> Visitor<'de> for PairsVisitor<'a, V> {
    type Value = Pairs<'a, V>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of names and values")
    }

    fn visit_none<E: de::Error>(self) -> Result<Self::Value, E> {
        Ok(Pairs::default())
    }

    fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
        Ok(Pairs::default())
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut pairs = Vec::with_capacity(map.size_hint().unwrap_or_default().min(64));
        while let Some(key) = map.next_key_seed(KeySeed(PhantomData))? {
            pairs.push((key, map.next_value()?));
        }
        Ok(Pairs(pairs))
    }
}

/// A key is text and never `null`; asking for text outright lets errors name it.
struct KeySeed<'a>(PhantomData<&'a str>);

impl<'de: 'a, 'a> de::DeserializeSeed<'de> for KeySeed<'a> {
    type Value = Text<'a>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(TextVisitor(PhantomData))
    }
}

/// A map of a custom resource: the API server leaves out entries that are `null`.
pub(crate) fn without_nulls<'de: 'a, 'a, D, V>(deserializer: D) -> Result<Pairs<'a, V>, D::Error>
where
    D: Deserializer<'de>,
    V: Deserialize<'de>,
{
    let pairs = Pairs::<Option<V>>::deserialize(deserializer)?;
    Ok(Pairs(pairs.0.into_iter().filter_map(|(key, value)| Some((key, value?))).collect()))
}

/// A list that remembers whether it was written at all: `from: []` and `from: null` are written, and match
/// everything all the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct List<T> {
    pub(crate) written: bool,
    /// Written as a list, which `null` is not: the API server leaves that out.
    pub(crate) listed: bool,
    pub(crate) items: Vec<T>,
}

impl<T> Default for List<T> {
    fn default() -> Self {
        Self { written: false, listed: false, items: Vec::new() }
    }
}

impl<T> List<T> {
    /// Written, but without a single item.
    pub(crate) fn is_hollow(&self) -> bool {
        self.written && self.items.is_empty()
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let items = deserializer.deserialize_option(ListVisitor(PhantomData))?;
        Ok(Self { written: true, listed: items.is_some(), items: items.unwrap_or_default() })
    }
}

struct ListVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ListVisitor<T> {
    type Value = Option<Vec<T>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_none<E: de::Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut items = Vec::with_capacity(seq.size_hint().unwrap_or_default().min(64));
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Some(items))
    }
}

/// A list of texts in a custom resource: the API server leaves out fields that are `null`, but no items.
pub(crate) fn written_texts<'de: 'a, 'a, D>(deserializer: D) -> Result<List<Text<'a>>, D::Error>
where
    D: Deserializer<'de>,
{
    let List { written, listed, items } = List::<WrittenText<'a>>::deserialize(deserializer)?;
    Ok(List { written, listed, items: items.into_iter().map(|WrittenText(text)| text).collect() })
}

/// Text that is not `null`.
struct WrittenText<'a>(Text<'a>);

impl<'de: 'a, 'a> Deserialize<'de> for WrittenText<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(TextVisitor(PhantomData)).map(Self)
    }
}

/// A value that is a text of a certain form; empty text and `null` are `None`.
macro_rules! parsed_text {
    ($(#[$doc:meta])* $name:ident, $inner:ty, $expecting:literal, $parse:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub(crate) struct $name(pub(crate) Option<$inner>);

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = Text::deserialize(deserializer)?;
                let Some(text) = text.non_empty() else { return Ok(Self(None)) };
                let parse: fn(&str) -> Result<Option<$inner>, ()> = $parse;
                let invalid = || de::Error::invalid_value(de::Unexpected::Str(text), &$expecting);
                parse(text).map(Self).map_err(|()| invalid())
            }
        }
    };
}

parsed_text!(
    /// An IP address.
    Ip, IpAddr, "an IP address",
    |text| text.parse().map(|ip: IpAddr| Some(ip.to_canonical())).map_err(drop)
);

parsed_text!(
    /// `spec.clusterIP`: an address, or `None` for a headless Service.
    ClusterIp, IpAddr, "an IP address or `None`",
    |text| match text {
        "None" => Ok(None),
        _ => text.parse().map(|ip: IpAddr| Some(ip.to_canonical())).map_err(drop),
    }
);

parsed_text!(
    /// A moment, in seconds since the Unix epoch.
    Moment, i64, "a time such as 2024-05-01T12:00:00Z",
    |text| text.parse().map(|at: jiff::Timestamp| Some(at.as_second())).map_err(drop)
);

/// A port number from 1 to 65535; absent and `null` are `None`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Port(pub(crate) Option<u16>);

const A_PORT: &str = "a port number from 1 to 65535";

impl<'de> Deserialize<'de> for Port {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Some(number) = Option::<i64>::deserialize(deserializer)? else { return Ok(Self(None)) };
        match u16::try_from(number) {
            Ok(port) if port != 0 => Ok(Self(Some(port))),
            _ => Err(de::Error::invalid_value(de::Unexpected::Signed(number), &A_PORT)),
        }
    }
}

/// `targetPort`: a number or a name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum PortOrName<'a> {
    /// Absent, `null`, 0 or empty: the port itself.
    #[default]
    Absent,
    /// A number.
    Number(u16),
    /// The name of a container port.
    Name(Text<'a>),
}

impl<'de: 'a, 'a> Deserialize<'de> for PortOrName<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PortOrNameVisitor(PhantomData))
    }
}

struct PortOrNameVisitor<'a>(PhantomData<&'a str>);

impl<'de: 'a, 'a> Visitor<'de> for PortOrNameVisitor<'a> {
    type Value = PortOrName<'a>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a port number from 1 to 65535 or the name of a container port")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
        Ok(PortOrName::Absent)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Self::Value, E> {
        match u16::try_from(number) {
            Ok(0) => Ok(PortOrName::Absent),
            Ok(port) => Ok(PortOrName::Number(port)),
            Err(_) => Err(E::invalid_value(de::Unexpected::Unsigned(number), &self)),
        }
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        self.visit_string(text.to_owned())
    }

    fn visit_string<E: de::Error>(self, text: String) -> Result<Self::Value, E> {
        Ok(if text.is_empty() { PortOrName::Absent } else { PortOrName::Name(Text(Cow::Owned(text))) })
    }

    fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(if text.is_empty() { PortOrName::Absent } else { PortOrName::Name(Text(Cow::Borrowed(text))) })
    }
}
