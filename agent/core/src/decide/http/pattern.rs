//! Text matches, compiled.

use std::fmt;
use std::sync::Arc;

use regex::Regex;

use crate::compile::routing::expressions::Expressions;
use crate::resource::virtual_service::TextMatch;

/// A [`TextMatch`] that can be asked.
#[derive(Clone)]
pub(crate) enum Pattern {
    /// The whole value.
    Exact(Arc<str>),
    /// Its beginning.
    Prefix(Arc<str>),
    /// The whole value, by an expression.
    Regex(Arc<Regex>),
    /// Any value.
    Present,
    /// None: the expression does not compile.
    Never,
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(text) => write!(f, "exact {text:?}"),
            Self::Prefix(text) => write!(f, "prefix {text:?}"),
            Self::Regex(regex) => write!(f, "regex {:?}", regex.as_str()),
            Self::Present => f.write_str("present"),
            Self::Never => f.write_str("never"),
        }
    }
}

impl Pattern {
    /// Compiles a match. An expression that does not compile never matches: the compiler reports it.
    pub(crate) fn new(text: &TextMatch, expressions: &mut Expressions) -> Self {
        match text {
            TextMatch::Exact(text) => Self::Exact(text.clone()),
            TextMatch::Prefix(text) => Self::Prefix(text.clone()),
            TextMatch::Present => Self::Present,
            TextMatch::Regex(expression) => expressions.whole(expression).map_or(Self::Never, Self::Regex),
        }
    }

    /// Whether any value matches: then only being there counts.
    pub(crate) fn is_present(&self) -> bool {
        matches!(self, Self::Present)
    }

    /// Whether a value matches.
    pub(crate) fn matches(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(text) => value == text.as_bytes(),
            Self::Prefix(text) => value.starts_with(text.as_bytes()),
            // No expression matches what is not UTF-8, as with RE2.
            Self::Regex(regex) => std::str::from_utf8(value).is_ok_and(|value| regex.is_match(value)),
            Self::Present => true,
            Self::Never => false,
        }
    }

    /// The same, with ASCII letters of either case alike; expressions say for themselves (V-13).
    pub(crate) fn matches_ignoring_case(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(text) => value.eq_ignore_ascii_case(text.as_bytes()),
            Self::Prefix(text) => {
                value.get(..text.len()).is_some_and(|start| start.eq_ignore_ascii_case(text.as_bytes()))
            }
            Self::Regex(_) | Self::Present | Self::Never => self.matches(value),
        }
    }
}
