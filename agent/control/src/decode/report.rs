//! Collects the problems of one object.

use std::fmt;

use weft_core::problem::{Code, Origin, Problem, Severity};
use weft_core::resource::{NamespacedName, ObjectRef};

/// Where in an object something is: a path that becomes text only when there is something to tell.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Path<'p> {
    /// The beginning, for example `spec.rules`.
    Root(&'p str),
    /// A field of the parent.
    Field(&'p Path<'p>, &'p str),
    /// An item of the parent.
    Index(&'p Path<'p>, usize),
}

impl<'p> Path<'p> {
    pub(crate) fn field(&'p self, name: &'p str) -> Path<'p> {
        Path::Field(self, name)
    }

    pub(crate) fn index(&'p self, at: usize) -> Path<'p> {
        Path::Index(self, at)
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root(text) => f.write_str(text),
            Self::Field(parent, name) => write!(f, "{parent}.{name}"),
            Self::Index(parent, at) => write!(f, "{parent}[{at}]"),
        }
    }
}

/// The problems of one object, and whether they keep it from being in force.
#[derive(Debug)]
pub(crate) struct Report<'a> {
    /// The code for fields that the API would reject.
    pub(crate) invalid: Code,
    /// The object's kind.
    pub(crate) kind: &'a str,
    /// The object's name.
    pub(crate) key: NamespacedName,
    /// Path of the object within its document: empty, or `items[3].`.
    pub(crate) prefix: &'a str,
    /// Where it was read.
    pub(crate) origin: Option<&'a Origin>,
    problems: Vec<Problem>,
    /// Errors beyond [`MOST_PROBLEMS`].
    errors_left_out: usize,
}

/// Most findings that are kept about one object: one that is wrong in every line must not fill the memory.
const MOST_PROBLEMS: usize = 200;

impl<'a> Report<'a> {
    pub(crate) fn new(invalid: Code, kind: &'a str, key: NamespacedName, place: Place<'a>) -> Self {
        let (prefix, origin) = (place.prefix, place.origin);
        Self { invalid, kind, key, prefix, origin, problems: Vec::new(), errors_left_out: 0 }
    }

    /// A field that the API would reject: the object is not in force.
    pub(crate) fn reject(
        &mut self,
        field: impl fmt::Display,
        message: impl Into<String>,
        fix: impl Into<String>,
    ) {
        self.add(self.invalid, field, message, fix);
    }

    /// Any finding.
    pub(crate) fn add(
        &mut self,
        code: Code,
        field: impl fmt::Display,
        message: impl Into<String>,
        fix: impl Into<String>,
    ) {
        if self.problems.len() >= MOST_PROBLEMS {
            self.errors_left_out += usize::from(code.severity == Severity::Error);
            return;
        }
        self.push(code, format!("{}{field}", self.prefix), message.into(), fix.into());
    }

    fn push(&mut self, code: Code, field: String, message: String, fix: String) {
        self.problems.push(Problem {
            severity: code.severity,
            code: code.code,
            name: code.name,
            object: Some(ObjectRef {
                kind: self.kind.into(),
                namespace: self.key.namespace.clone(),
                name: self.key.name.clone(),
            }),
            field,
            origin: self.origin.cloned(),
            message,
            fix,
        });
    }

    /// Whether the object is not in force.
    pub(crate) fn is_rejected(&self) -> bool {
        self.errors_left_out > 0 || self.problems.iter().any(|problem| problem.severity == Severity::Error)
    }

    /// What was found.
    pub(crate) fn into_problems(mut self) -> Vec<Problem> {
        if self.errors_left_out > 0 {
            let message = format!("There are {} more errors in this object.", self.errors_left_out);
            let fix = "Correct the ones above first.".to_owned();
            self.push(self.invalid, self.prefix.trim_end_matches('.').to_owned(), message, fix);
        }
        self.problems
    }
}

/// Where an object stands.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    /// Path of the object within its document: empty, or `items[3].`.
    pub(crate) prefix: &'a str,
    /// Where it was read.
    pub(crate) origin: Option<&'a Origin>,
}

impl Place<'_> {
    /// A finding about a document or an item that has no name.
    pub(crate) fn problem(&self, code: Code, message: impl Into<String>, fix: impl Into<String>) -> Problem {
        Problem {
            severity: code.severity,
            code: code.code,
            name: code.name,
            object: None,
            field: self.prefix.trim_end_matches('.').to_owned(),
            origin: self.origin.cloned(),
            message: message.into(),
            fix: fix.into(),
        }
    }
}
