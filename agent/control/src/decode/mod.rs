//! From text to [`Resource`]s and [`Problem`]s.
//!
//! [`documents`] cuts a file into documents, [`Decoder`] turns one document into objects. A document or an
//! object that is wrong becomes a problem and never takes another one down. The decoder also takes single
//! objects ([`Decoder::json`], [`Decoder::value`]), which is what a source that speaks to the Kubernetes API
//! needs.

mod destination_rule;
pub mod documents;
mod facts;
mod fields;
mod intern;
mod kinds;
mod mesh;
mod meta;
mod networking;
mod peer;
mod place;
mod place_in_text;
mod pod;
mod policy;
mod report;
mod request_authentication;
mod service;
mod strict;
mod validate;
mod validated;
mod virtual_service;
mod yaml;

use std::borrow::Cow;
use std::ops::AddAssign;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use weft_core::Problem;
use weft_core::analyze::ObjectSet;
use weft_core::problem::{Code, Origin};
use weft_core::resource::{Kind, Resource, ResourceKey};

use crate::codes;
use documents::{Document, Syntax};
use fields::{Body, FieldError, Parsed, Text};
use intern::Interner;
use kinds::{Class, classify};
use report::{Place, Report};
use strict::Unread;
pub(crate) use yaml::read as read_yaml;

/// What became of one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is in force.
    Accepted(Box<Resource>),
    /// It is not in force. With its key known, a version that was in force before stays so.
    Rejected(Option<ResourceKey>),
    /// It is invalid, and of a kind that the mesh has no use for.
    Refused,
    /// The mesh has no use for it.
    Ignored,
}

/// One object (or a document that is none) and what there is to say about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decoded {
    /// What became of it.
    pub outcome: Outcome,
    /// Findings about it.
    pub problems: Vec<Problem>,
}

/// How many objects became what. A document that is no object counts as read and rejected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ObjectCounts {
    /// All of them.
    pub read: usize,
    /// In force.
    pub accepted: usize,
    /// Not in force, or only in an earlier version.
    pub rejected: usize,
    /// Of kinds that the mesh has no use for.
    pub ignored: usize,
}

impl ObjectCounts {
    /// Counts one object.
    pub fn count(&mut self, outcome: &Outcome) {
        self.read += 1;
        match outcome {
            Outcome::Accepted(_) => self.accepted += 1,
            Outcome::Rejected(_) | Outcome::Refused => self.rejected += 1,
            Outcome::Ignored => self.ignored += 1,
        }
    }
}

impl AddAssign for ObjectCounts {
    fn add_assign(&mut self, other: Self) {
        self.read += other.read;
        self.accepted += other.accepted;
        self.rejected += other.rejected;
        self.ignored += other.ignored;
    }
}

/// Whose objects are decoded: some fields are honoured from one source only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// Files that the machine's administrator writes: may name network namespaces (ruling 13).
    Files,
    /// The Kubernetes API, where whoever may create a pod may write annotations.
    Api,
}

/// Decodes documents; equal parts of different objects share their memory.
#[derive(Debug)]
pub struct Decoder {
    interner: Interner,
    trust: Trust,
    /// What the analyzers want to know, where somebody wants to analyze.
    facts: Option<Box<ObjectSet>>,
}

/// `apiVersion` and `kind`.
#[derive(Deserialize)]
#[serde(expecting = "a map of fields")]
struct Header<'a> {
    #[serde(rename = "apiVersion", borrow, default)]
    api_version: Text<'a>,
    #[serde(borrow, default)]
    kind: Text<'a>,
}

/// The items of a `List`.
#[derive(Deserialize)]
#[serde(expecting = "a map of fields")]
struct RawItems<'a> {
    #[serde(borrow, default, deserialize_with = "fields::nullable")]
    items: Vec<&'a RawValue>,
}

const OBJECT_FIX: &str = "Every document needs `apiVersion`, `kind` and `metadata.name`.";

impl Decoder {
    /// A decoder for one source.
    pub fn new(trust: Trust) -> Self {
        Self { interner: Interner::default(), trust, facts: None }
    }

    /// A decoder that also notes what [`weft_core::analyze`] asks for.
    pub fn noting(trust: Trust) -> Self {
        Self::noting_beside(trust, ObjectSet::default())
    }

    /// As [`Decoder::noting`], beside what was noted before.
    pub fn noting_beside(trust: Trust, noted: ObjectSet) -> Self {
        Self { facts: Some(Box::new(noted)), ..Self::new(trust) }
    }

    /// What was noted of all objects so far, valid or not; empty without [`Decoder::noting`].
    pub fn into_facts(self) -> ObjectSet {
        self.facts.map(|facts| *facts).unwrap_or_default()
    }

    /// Decodes one document of a file. Empty documents yield nothing.
    pub fn document(&mut self, document: &Document<'_>, origin: &Origin, out: &mut Vec<Decoded>) {
        let place = Place { prefix: "", origin: Some(origin) };
        let Ok(text) = std::str::from_utf8(document.text) else {
            let message = "The document is not UTF-8 text.";
            out.push(nameless(place, codes::INVALID_DOCUMENT, message, "Save the file as UTF-8."));
            return;
        };
        match document.syntax {
            Syntax::Json => self.json(text, Some(origin), out),
            Syntax::Yaml => match yaml::read(text, document.line) {
                Ok(Value::Null) => {}
                Ok(value) => self.value(&value, Some(origin), out),
                Err(error) => {
                    let message = format!("The document is not valid YAML: {error}.");
                    out.push(nameless(place, codes::INVALID_DOCUMENT, message, fix_of_yaml(text)));
                }
            },
        }
        self.interner.sweep();
    }

    /// Decodes one object (or List) from JSON text. This is the fast way: nothing is copied that is not kept.
    pub fn json(&mut self, text: &str, origin: Option<&Origin>, out: &mut Vec<Decoded>) {
        let place = Place { prefix: "", origin };
        if let Some((api_version, kind)) = quick_header(text) {
            self.object(Body::Text(text), (api_version, kind), place, out);
            return;
        }
        match strict::from_str::<Header<'_>>(text) {
            Ok(header) => {
                let header = (header.api_version.as_str(), header.kind.as_str());
                self.object(Body::Text(text), header, place, out);
            }
            Err(Unread { error, .. }) if error.is_data() => out.push(no_object(place)),
            Err(Unread { error, .. }) => out.push(invalid_json(&error, place)),
        }
    }

    /// Decodes one object whose `apiVersion` and `kind` are known, whatever its text says or leaves out: items of the
    /// API's lists have neither. Always yields one.
    pub fn known(&mut self, text: &str, header: (&str, &str), out: &mut Vec<Decoded>) {
        self.object(Body::Text(text), header, Place { prefix: "", origin: None }, out);
        self.interner.sweep();
    }

    /// Gives back memory that decoding very many objects took.
    pub(crate) fn settle(&mut self) {
        self.interner.shrink();
    }

    /// Decodes one object (or List) that is parsed already.
    pub fn value(&mut self, value: &Value, origin: Option<&Origin>, out: &mut Vec<Decoded>) {
        self.parsed(value, ("", ""), Place { prefix: "", origin }, out);
    }

    /// A parsed object; `inherited` stands in for a missing `apiVersion` and `kind`.
    fn parsed(&mut self, value: &Value, inherited: (&str, &str), place: Place<'_>, out: &mut Vec<Decoded>) {
        let text = |name: &str, inherited| match value.get(name).unwrap_or(&Value::Null) {
            Value::Null => Some(inherited),
            Value::String(text) => Some(if text.is_empty() { inherited } else { text.as_str() }),
            Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => None,
        };
        match (text("apiVersion", inherited.0), text("kind", inherited.1)) {
            (Some(api_version), Some(kind)) if value.is_object() => {
                self.object(Body::Value(&Parsed::new(value)), (api_version, kind), place, out);
            }
            _ => out.push(no_object(place)),
        }
    }

    fn object(&mut self, body: Body<'_>, header: (&str, &str), place: Place<'_>, out: &mut Vec<Decoded>) {
        let (api_version, kind) = header;
        if api_version.is_empty() || kind.is_empty() {
            out.push(no_object(place));
            return;
        }
        if let Some(item_kind) = kind.strip_suffix("List")
            && let Some(result) = self.list(body, (api_version, item_kind), place, out)
        {
            out.extend(result.err().map(|error| unreadable(body, kind, place, error)));
            return;
        }
        if let Some(set) = &mut self.facts {
            facts::add(set, body, header, place);
        }
        out.push(match classify(api_version, kind) {
            Class::Read(kind) => self.read(kind, body, place),
            Class::ConfigMap if mesh::is_mesh_config(body) => self.read(Kind::MeshConfig, body, place),
            Class::ConfigMap | Class::Ignored => Decoded { outcome: Outcome::Ignored, problems: Vec::new() },
            Class::Validated(of) => validated::decode(of, kind, body, place),
            Class::NotApplied => not_applied(body, kind, place),
            Class::UnknownVersion(known) => {
                let message =
                    format!("{kind} does not exist in `{api_version}`, so the object is not in force.");
                refused(body, kind, place, message, format!("Write `apiVersion: {known}`."))
            }
            Class::UnknownKind => {
                let message =
                    format!("There is no kind `{kind}` in `{api_version}`, so the object is not in force.");
                refused(
                    body,
                    kind,
                    place,
                    message,
                    "Check the spelling of `kind` and `apiVersion`.".to_owned(),
                )
            }
        });
    }

    /// The items of a List; `None` if the object has no items and is a thing of its own.
    fn list(
        &mut self,
        body: Body<'_>,
        header: (&str, &str),
        place: Place<'_>,
        out: &mut Vec<Decoded>,
    ) -> Option<Result<(), FieldError>> {
        match body {
            Body::Value(parsed) => {
                let items = parsed.value.get("items")?.as_array()?;
                for (at, item) in items.iter().enumerate() {
                    let prefix = format!("{}items[{at}].", place.prefix);
                    self.parsed(item, header, Place { prefix: &prefix, ..place }, out);
                }
                Some(Ok(()))
            }
            Body::Text(_) => Some(body.read::<RawItems<'_>>().map(|list| {
                for (at, item) in list.items.into_iter().enumerate() {
                    let prefix = format!("{}items[{at}].", place.prefix);
                    self.item(item.get(), header, Place { prefix: &prefix, ..place }, out);
                }
            })),
        }
    }

    fn item(&mut self, text: &str, inherited: (&str, &str), place: Place<'_>, out: &mut Vec<Decoded>) {
        let Ok(header) = strict::from_str::<Header<'_>>(text) else {
            out.push(no_object(place));
            return;
        };
        let api_version = header.api_version.non_empty().unwrap_or(inherited.0);
        let kind = header.kind.non_empty().unwrap_or(inherited.1);
        self.object(Body::Text(text), (api_version, kind), place, out);
    }

    fn read(&mut self, kind: Kind, body: Body<'_>, place: Place<'_>) -> Decoded {
        let interner = &mut self.interner;
        let result = match kind {
            Kind::Namespace => place::namespace(body, place, interner),
            Kind::Node => place::node(body, place, interner),
            Kind::Pod => pod::pod(body, place, interner, self.trust),
            Kind::Service => service::service(body, place, interner),
            Kind::ServiceAccount => place::service_account(body, place, interner),
            Kind::EndpointSlice => service::endpoint_slice(body, place, interner),
            Kind::MeshConfig => mesh::mesh_config(body, place, interner),
            Kind::AuthorizationPolicy => policy::authorization_policy(body, place, interner),
            Kind::PeerAuthentication => peer::peer_authentication(body, place, interner),
            Kind::RequestAuthentication => {
                request_authentication::request_authentication(body, place, interner)
            }
            Kind::VirtualService => virtual_service::virtual_service(body, place, interner),
            Kind::DestinationRule => destination_rule::destination_rule(body, place, interner),
        };
        match result {
            Ok((resource, report)) if report.is_rejected() => {
                Decoded { outcome: Outcome::Rejected(Some(resource.key())), problems: report.into_problems() }
            }
            Ok((resource, report)) => {
                Decoded { outcome: Outcome::Accepted(Box::new(resource)), problems: report.into_problems() }
            }
            Err(error) => unreadable_object(body, kind, place, error),
        }
    }
}

/// What decoding one kind yields: the object with findings, or the field that could not be read at all.
type Read<'a> = Result<(Resource, Report<'a>), FieldError>;

/// The code for a field of this kind that the API would reject.
fn invalid_code(kind: Kind) -> Code {
    match kind {
        Kind::AuthorizationPolicy
        | Kind::PeerAuthentication
        | Kind::RequestAuthentication
        | Kind::VirtualService
        | Kind::DestinationRule => codes::SCHEMA_VALIDATION,
        Kind::Namespace
        | Kind::Node
        | Kind::Pod
        | Kind::Service
        | Kind::ServiceAccount
        | Kind::EndpointSlice
        | Kind::MeshConfig => codes::INVALID_FIELD,
    }
}

/// `apiVersion` and `kind` where they stand first, as Kubernetes' own tools write them: no need to read the
/// whole object for them.
fn quick_header(text: &str) -> Option<(&str, &str)> {
    let string =
        |text: &'_ str| -> Option<usize> { text.find(['"', '\\']).filter(|at| text[*at..].starts_with('"')) };
    if let Some(rest) = text.strip_prefix(r#"{"apiVersion":""#) {
        let (api_version, rest) = rest.split_at_checked(string(rest)?)?;
        let rest = rest.strip_prefix(r#"","kind":""#)?;
        return Some((api_version, rest.get(..string(rest)?)?));
    }
    let rest = text.strip_prefix(r#"{"kind":""#)?;
    let (kind, rest) = rest.split_at_checked(string(rest)?)?;
    let rest = rest.strip_prefix(r#"","apiVersion":""#)?;
    Some((rest.get(..string(rest)?)?, kind))
}

fn nameless(place: Place<'_>, code: Code, message: impl Into<String>, fix: impl Into<String>) -> Decoded {
    Decoded { outcome: Outcome::Rejected(None), problems: vec![place.problem(code, message, fix)] }
}

fn no_object(place: Place<'_>) -> Decoded {
    let message = "This is not a Kubernetes object: it has no `apiVersion` and `kind`.";
    nameless(place, codes::NOT_AN_OBJECT, message, OBJECT_FIX)
}

fn invalid_json(error: &serde_json::Error, place: Place<'_>) -> Decoded {
    let mut reason = error.to_string();
    if let Some(at) = reason.rfind(" at line ") {
        reason.truncate(at);
    }
    let line = place.origin.map_or(1, |origin| origin.line as usize) + error.line().saturating_sub(1);
    let message =
        format!("The document is not valid JSON: {reason} (line {line}, column {}).", error.column());
    nameless(place, codes::INVALID_DOCUMENT, message, "Correct the JSON there.")
}

fn fix_of_yaml(text: &str) -> &'static str {
    if text.lines().any(|line| line.trim_start_matches(' ').starts_with('\t')) {
        "Indent with spaces; YAML does not allow tabs."
    } else {
        "Correct the YAML there."
    }
}

fn unreadable_object(body: Body<'_>, kind: Kind, place: Place<'_>, error: FieldError) -> Decoded {
    let key = meta::rescued_key(body);
    let mut report = Report::new(invalid_code(kind), kind.as_str(), key.clone(), place);
    reject_field(&mut report, error);
    let cluster_scoped = matches!(kind, Kind::Namespace | Kind::Node);
    let namespace = if cluster_scoped { "".into() } else { key.namespace };
    let known = (!key.name.is_empty()).then_some(ResourceKey {
        kind,
        name: weft_core::resource::NamespacedName { namespace, name: key.name },
    });
    Decoded { outcome: Outcome::Rejected(known), problems: report.into_problems() }
}

fn unreadable(body: Body<'_>, kind: &str, place: Place<'_>, error: FieldError) -> Decoded {
    let mut report = Report::new(codes::INVALID_FIELD, kind, meta::rescued_key(body), place);
    reject_field(&mut report, error);
    Decoded { outcome: Outcome::Rejected(None), problems: report.into_problems() }
}

/// Tells of a field that serde could not read.
fn reject_field(report: &mut Report<'_>, error: FieldError) {
    let FieldError { path, message } = error;
    let fix = if message.starts_with("unknown field") {
        "Correct the spelling or the indentation, or remove the field.".into()
    } else if message.ends_with("expected a string") {
        Cow::Borrowed("Put the value in quotes.")
    } else if message.starts_with("duplicate field") {
        "Keep only one of them.".into()
    } else {
        "Correct the value.".into()
    };
    report.reject(path, format!("The object cannot be read: {message}."), fix);
}

fn refused(body: Body<'_>, kind: &str, place: Place<'_>, message: String, fix: String) -> Decoded {
    let mut report = Report::new(codes::UNKNOWN_KIND, kind, meta::rescued_key(body), place);
    report.reject("", message, fix);
    Decoded { outcome: Outcome::Rejected(None), problems: report.into_problems() }
}

fn not_applied(body: Body<'_>, kind: &str, place: Place<'_>) -> Decoded {
    let mut report = Report::new(codes::UNKNOWN_KIND, kind, meta::rescued_key(body), place);
    let message = format!("{kind} is not applied by this version of Weft; the object has no effect.");
    report.add(codes::KIND_NOT_APPLIED, "", message, "");
    Decoded { outcome: Outcome::Ignored, problems: report.into_problems() }
}
