//! What is wrong with an object, told to the person who wrote it.

use std::fmt;
use std::sync::Arc;

use crate::ObjectRef;

/// How bad a [`Problem`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Worth knowing; everything is in force as written.
    Info,
    /// In force, but probably not what the author meant.
    Warning,
    /// The object, or the named part of it, is not in force.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

/// One kind of finding. Each crate that has findings lists its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Code {
    /// The code, for example `IST0106`.
    pub code: &'static str,
    /// The code's name, for example `SchemaValidationError`.
    pub name: &'static str,
    /// How bad it is.
    pub severity: Severity,
}

impl Code {
    /// Something that keeps an object, or a part of it, out of force.
    pub const fn error(code: &'static str, name: &'static str) -> Self {
        Self { code, name, severity: Severity::Error }
    }

    /// Something that is in force, but probably not meant so.
    pub const fn warning(code: &'static str, name: &'static str) -> Self {
        Self { code, name, severity: Severity::Warning }
    }

    /// Something worth knowing.
    pub const fn info(code: &'static str, name: &'static str) -> Self {
        Self { code, name, severity: Severity::Info }
    }

    /// A finding about the source of the configuration itself, which is no object's.
    pub fn of_source(self, message: String, fix: impl Into<String>) -> Problem {
        let Self { code, name, severity } = self;
        Problem {
            severity,
            code,
            name,
            object: None,
            field: String::new(),
            origin: None,
            message,
            fix: fix.into(),
        }
    }
}

/// Where an object was read. Documents count from 1, lines from 1.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Origin {
    /// The file, relative to the directory that was read.
    pub file: Arc<str>,
    /// The document within the file.
    pub document: u32,
    /// The line on which the document begins.
    pub line: u32,
}

/// One finding about one object (or about a document that is no object).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// Istio's message code (`IST0106`) where Istio has one for the condition, else ours (`WEFT0001`).
    pub code: &'static str,
    /// The code's name, for example `SchemaValidationError`.
    pub name: &'static str,
    /// The object; `None` for a document that could not be read as one.
    pub object: Option<ObjectRef>,
    /// Path of the field, for example `spec.rules[0].from[1].source.ipBlocks[0]`; empty for the whole object.
    pub field: String,
    /// Where it was read; `None` where the source has no files.
    pub origin: Option<Origin>,
    /// What is wrong, with the values.
    pub message: String,
    /// What to do about it; empty when the message says it all.
    pub fix: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}]", self.severity, self.code)?;
        if let Some(object) = &self.object {
            write!(f, " {object}")?;
        }
        if !self.field.is_empty() {
            write!(f, " {}", self.field)?;
        }
        if let Some(origin) = &self.origin {
            write!(f, " ({}, document {}, line {})", origin.file, origin.document, origin.line)?;
        }
        write!(f, ": {}", self.message)?;
        if !self.fix.is_empty() {
            write!(f, " ({})", self.fix)?;
        }
        Ok(())
    }
}
