//! Lists and events as the API sends them, read without copying.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::api::{Failure, StatusWire};
use super::store::Head;

#[derive(Deserialize)]
struct EventWire<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Deserialize)]
struct PageWire<'a> {
    #[serde(default)]
    metadata: ListMeta,
    #[serde(borrow, default)]
    items: Option<Vec<&'a RawValue>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ListMeta {
    resource_version: String,
    #[serde(rename = "continue")]
    next: String,
}

#[derive(Deserialize)]
struct HeadWire<'a> {
    #[serde(borrow)]
    metadata: MetaWire<'a>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct MetaWire<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow, default)]
    namespace: Cow<'a, str>,
    #[serde(borrow)]
    resource_version: Cow<'a, str>,
}

#[derive(Deserialize)]
struct BookmarkWire {
    metadata: BookmarkMeta,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BookmarkMeta {
    resource_version: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// An object, with its name and version read ahead of the rest.
#[derive(Debug)]
pub(super) struct Object<'a> {
    namespace: Cow<'a, str>,
    name: Cow<'a, str>,
    version: Cow<'a, str>,
    /// The whole of it.
    pub(super) text: &'a str,
}

impl<'a> Object<'a> {
    fn of(text: &'a RawValue) -> Result<Self, Failure> {
        let text = text.get();
        let HeadWire { metadata } = serde_json::from_str(text).map_err(garbage)?;
        let MetaWire { name, namespace, resource_version } = metadata;
        if name.is_empty() || resource_version.is_empty() {
            return Err(Failure::Garbage("an object has no name or no version".to_owned()));
        }
        Ok(Self { namespace, name, version: resource_version, text })
    }

    pub(super) fn head(&self) -> Head<'_> {
        Head { namespace: &self.namespace, name: &self.name, version: &self.version }
    }
}

/// What a watch tells.
#[derive(Debug)]
pub(super) enum Event<'a> {
    /// An object is new or changed.
    Upsert(Object<'a>),
    /// An object is gone.
    Delete(Object<'a>),
    /// Everything up to this version was told; with `complete`, everything that there was at the beginning.
    Bookmark { version: String, complete: bool },
}

const COMPLETE: &str = "k8s.io/initial-events-end";

impl<'a> Event<'a> {
    /// Reads a line of a watch. An error that the server tells is one here.
    pub(super) fn read(line: &'a [u8]) -> Result<Self, Failure> {
        let EventWire { kind, object } = serde_json::from_slice(line).map_err(garbage)?;
        match &*kind {
            "ADDED" | "MODIFIED" => Ok(Self::Upsert(Object::of(object)?)),
            "DELETED" => Ok(Self::Delete(Object::of(object)?)),
            "BOOKMARK" => {
                let BookmarkWire { metadata } = serde_json::from_str(object.get()).map_err(garbage)?;
                let complete = metadata.annotations.get(COMPLETE).is_some_and(|value| value == "true");
                Ok(Self::Bookmark { version: metadata.resource_version, complete })
            }
            "ERROR" => {
                let status: StatusWire = serde_json::from_str(object.get()).map_err(garbage)?;
                Err(status.failure(None))
            }
            other => Err(Failure::Garbage(format!("there is an event `{}`", other.escape_debug()))),
        }
    }
}

/// A page of a list.
#[derive(Debug)]
pub(super) struct Page<'a> {
    /// The version of the list.
    pub(super) version: String,
    /// How to ask for the next page; empty at the last one.
    pub(super) next: String,
    pub(super) objects: Vec<Object<'a>>,
}

impl<'a> Page<'a> {
    pub(super) fn read(body: &'a [u8]) -> Result<Self, Failure> {
        let PageWire { metadata, items } = serde_json::from_slice(body).map_err(garbage)?;
        let ListMeta { resource_version: version, next } = metadata;
        // A page of an intermediary's may well be JSON, but it has no version.
        if version.is_empty() {
            return Err(Failure::Garbage("a list has no version".to_owned()));
        }
        let objects = items.unwrap_or_default().into_iter().map(Object::of).collect::<Result<_, _>>()?;
        Ok(Self { version, next, objects })
    }
}

fn garbage(error: serde_json::Error) -> Failure {
    // The position differs from try to try, and would make each a finding of its own.
    let text = error.to_string();
    let text = text.split(" at line ").next().unwrap_or_default();
    Failure::Garbage(text.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn events_are_read() {
        let line = br#"{"type":"ADDED","object":{"kind":"Pod","apiVersion":"v1","metadata":{"name":"a","namespace":"n","resourceVersion":"7","managedFields":[{}]}}}"#;
        let Ok(Event::Upsert(object)) = Event::read(line) else { panic!() };
        assert_eq!((object.head().namespace, object.head().name, object.head().version), ("n", "a", "7"));
        assert!(object.text.starts_with(r#"{"kind":"Pod""#));
        assert!(matches!(object.name, Cow::Borrowed(_)), "nothing is copied");
        let line = br#"{"object":{"metadata":{"name":"a","resourceVersion":"8"}},"type":"DELETED"}"#;
        assert!(matches!(Event::read(line), Ok(Event::Delete(_))));
    }

    #[test]
    fn bookmarks_and_errors_are_read() {
        let line = br#"{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"9","annotations":{"k8s.io/initial-events-end":"true"}}}}"#;
        let Ok(Event::Bookmark { version, complete }) = Event::read(line) else { panic!() };
        assert_eq!((version.as_str(), complete), ("9", true));
        let line = br#"{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"9"}}}"#;
        assert!(matches!(Event::read(line), Ok(Event::Bookmark { complete: false, .. })));
        let line = br#"{"type":"ERROR","object":{"kind":"Status","status":"Failure","message":"too old resource version: 1 (5)","reason":"Expired","code":410}}"#;
        assert_eq!(Event::read(line).err(), Some(Failure::Expired));
    }

    #[test]
    fn nonsense_is_told_the_same_each_time() {
        for text in [
            "<html>",
            "{}",
            "[]",
            r#"{"type":"X","object":1}"#,
            r#"{"type":"ADDED","object":{"metadata":{"name":"","resourceVersion":"1"}}}"#,
        ] {
            assert!(matches!(Event::read(text.as_bytes()), Err(Failure::Garbage(_))), "{text}");
            assert!(matches!(Page::read(text.as_bytes()), Err(Failure::Garbage(_))), "{text}");
        }
        assert_eq!(Event::read(b"<html>").err(), Event::read(b"   <html>").err());
    }

    #[test]
    fn pages_are_read() {
        let page = Page::read(br#"{"kind":"PodList","metadata":{"resourceVersion":"5","continue":"x"},"items":[{"metadata":{"name":"a","resourceVersion":"1"}}]}"#).unwrap();
        assert_eq!((page.version.as_str(), page.next.as_str(), page.objects.len()), ("5", "x", 1));
        assert!(
            Page::read(br#"{"metadata":{"resourceVersion":"5"},"items":null}"#).unwrap().objects.is_empty()
        );
    }

    proptest! {
        #[test]
        fn no_input_is_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (Event::read(&bytes).is_ok(), Page::read(&bytes).is_ok());
        }
    }
}
