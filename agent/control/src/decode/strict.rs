//! A deserializer that takes no list where a map of fields is meant.
//!
//! What serde derives for a struct also reads a list, field by field in the order of declaration: `rules: [[]]`
//! would be one empty rule, which matches everything. Kubernetes refuses such objects, and so do we, for all kinds
//! in one place.
//!
//! It also finds out where an error happened, by counting: a list of numbers costs nothing while all is well, and is
//! turned into names only when there is something to tell ([`super::place_in_text`]).

use std::cell::RefCell;
use std::fmt;

use serde::de::{
    self, Deserialize, DeserializeSeed, Deserializer, EnumAccess, MapAccess, SeqAccess, VariantAccess,
    Visitor,
};

/// A text that could not be read.
#[derive(Debug)]
pub(super) struct Unread {
    /// The reason.
    pub(super) error: serde_json::Error,
    /// Where, from the outermost map or list to the innermost: which entry or item of it, from 0.
    pub(super) steps: Vec<usize>,
}

/// Reads the whole of a JSON text.
pub(super) fn from_str<'de, T: Deserialize<'de>>(text: &'de str) -> Result<T, Unread> {
    let mut json = serde_json::Deserializer::from_str(text);
    let trail = Trail::default();
    match T::deserialize(Strict { inner: &mut json, trail: &trail })
        .and_then(|read| json.end().map(|()| read))
    {
        Ok(read) => Ok(read),
        Err(error) => Err(trail.ends_in(error)),
    }
}

/// The way from an error outwards.
#[derive(Default)]
struct Trail(RefCell<Vec<usize>>);

impl Trail {
    #[cold]
    #[inline(never)]
    fn passes(&self, step: usize) {
        self.0.borrow_mut().push(step);
    }

    #[cold]
    fn ends_in(self, error: serde_json::Error) -> Unread {
        let mut steps = self.0.into_inner();
        steps.reverse();
        Unread { error, steps }
    }
}

/// Wraps a deserializer, and everything that it hands on.
struct Strict<'t, D> {
    inner: D,
    trail: &'t Trail,
}

/// Wraps the entries of a map or the items of a list.
struct Counted<'t, A> {
    inner: A,
    /// How many were begun.
    begun: usize,
    trail: &'t Trail,
}

/// Wraps a visitor; `fields` if it is a struct's.
struct Watch<'t, V> {
    visitor: V,
    fields: bool,
    trail: &'t Trail,
}

impl<'t, D> Strict<'t, D> {
    fn any<V>(&self, visitor: V) -> Watch<'t, V> {
        Watch { visitor, fields: false, trail: self.trail }
    }

    fn fields<V>(&self, visitor: V) -> Watch<'t, V> {
        Watch { visitor, fields: true, trail: self.trail }
    }
}

impl<'t, A> Counted<'t, A> {
    fn new(inner: A, trail: &'t Trail) -> Self {
        Self { inner, begun: 0, trail }
    }

    fn strict<T>(&self, seed: T) -> Strict<'t, T> {
        Strict { inner: seed, trail: self.trail }
    }

    /// Notes which one it was that could not be read.
    fn noted<T, E>(&self, read: Result<T, E>) -> Result<T, E> {
        if read.is_err() {
            self.trail.passes(self.begun.saturating_sub(1));
        }
        read
    }
}

macro_rules! hand_on {
    ($($method:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
            let watch = self.any(visitor);
            self.inner.$method(watch)
        })*
    };
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Strict<'_, D> {
    type Error = D::Error;

    hand_on! {
        deserialize_any deserialize_bool deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64
        deserialize_i128 deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128
        deserialize_f32 deserialize_f64 deserialize_char deserialize_str deserialize_string deserialize_bytes
        deserialize_byte_buf deserialize_option deserialize_unit deserialize_seq deserialize_map
        deserialize_identifier deserialize_ignored_any
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let watch = self.any(visitor);
        self.inner.deserialize_unit_struct(name, watch)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let watch = self.any(visitor);
        self.inner.deserialize_newtype_struct(name, watch)
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, D::Error> {
        let watch = self.any(visitor);
        self.inner.deserialize_tuple(len, watch)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let watch = self.any(visitor);
        self.inner.deserialize_tuple_struct(name, len, watch)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let watch = self.fields(visitor);
        self.inner.deserialize_struct(name, fields, watch)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let watch = self.any(visitor);
        self.inner.deserialize_enum(name, variants, watch)
    }

    fn is_human_readable(&self) -> bool {
        self.inner.is_human_readable()
    }
}

macro_rules! visit {
    ($($method:ident: $type:ty,)*) => {
        $(fn $method<E: de::Error>(self, value: $type) -> Result<V::Value, E> {
            self.visitor.$method(value)
        })*
    };
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Watch<'_, V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.visitor.expecting(f)
    }

    visit! {
        visit_bool: bool, visit_i8: i8, visit_i16: i16, visit_i32: i32, visit_i64: i64, visit_i128: i128,
        visit_u8: u8, visit_u16: u16, visit_u32: u32, visit_u64: u64, visit_u128: u128, visit_f32: f32,
        visit_f64: f64, visit_char: char, visit_str: &str, visit_borrowed_str: &'de str, visit_string: String,
        visit_bytes: &[u8], visit_borrowed_bytes: &'de [u8], visit_byte_buf: Vec<u8>,
    }

    fn visit_none<E: de::Error>(self) -> Result<V::Value, E> {
        self.visitor.visit_none()
    }

    fn visit_unit<E: de::Error>(self) -> Result<V::Value, E> {
        self.visitor.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<V::Value, D::Error> {
        self.visitor.visit_some(Strict { inner: deserializer, trail: self.trail })
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<V::Value, D::Error> {
        self.visitor.visit_newtype_struct(Strict { inner: deserializer, trail: self.trail })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<V::Value, A::Error> {
        if self.fields {
            return Err(de::Error::invalid_type(de::Unexpected::Seq, &self));
        }
        self.visitor.visit_seq(Counted::new(items, self.trail))
    }

    fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<V::Value, A::Error> {
        self.visitor.visit_map(Counted::new(entries, self.trail))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, variant: A) -> Result<V::Value, A::Error> {
        self.visitor.visit_enum(Strict { inner: variant, trail: self.trail })
    }
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Counted<'_, A> {
    type Error = A::Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, A::Error> {
        self.begun += 1;
        let item = self.strict(seed);
        let read = self.inner.next_element_seed(item);
        self.noted(read)
    }

    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint()
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Counted<'_, A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, A::Error> {
        self.begun += 1;
        let read = self.inner.next_key_seed(seed);
        self.noted(read)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, A::Error> {
        let value = self.strict(seed);
        let read = self.inner.next_value_seed(value);
        self.noted(read)
    }

    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint()
    }
}

impl<'de, 't, A: EnumAccess<'de>> EnumAccess<'de> for Strict<'t, A> {
    type Error = A::Error;
    type Variant = Strict<'t, A::Variant>;

    fn variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<(T::Value, Self::Variant), A::Error> {
        let Self { inner, trail } = self;
        inner.variant_seed(seed).map(|(value, variant)| (value, Strict { inner: variant, trail }))
    }
}

impl<'de, A: VariantAccess<'de>> VariantAccess<'de> for Strict<'_, A> {
    type Error = A::Error;

    fn unit_variant(self) -> Result<(), A::Error> {
        self.inner.unit_variant()
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, A::Error> {
        self.inner.newtype_variant_seed(Strict { inner: seed, trail: self.trail })
    }

    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, A::Error> {
        let watch = self.any(visitor);
        self.inner.tuple_variant(len, watch)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, A::Error> {
        let watch = self.fields(visitor);
        self.inner.struct_variant(fields, watch)
    }
}

impl<'de, T: DeserializeSeed<'de>> DeserializeSeed<'de> for Strict<'_, T> {
    type Value = T::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<T::Value, D::Error> {
        self.inner.deserialize(Strict { inner: deserializer, trail: self.trail })
    }
}
