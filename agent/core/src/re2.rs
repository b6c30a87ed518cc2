//! Regular expressions as Istio's API writes them: the syntax of RE2 (Go's `regexp`), matched against a whole value.
//!
//! The engine behind it speaks another dialect. [`translate`] accepts exactly what RE2 accepts and writes it in
//! the engine's dialect, so that an expression never means something else here than in Istio: `\d`, `\w`, `\s` and
//! `\b` are ASCII, `[a&&b]` has no set operations, `{` may be a literal, `\Q…\E` quotes, and repetitions of
//! repetitions are errors. Both engines take time linear in the text.

mod class;
mod parse;

use regex::{Regex, RegexBuilder};

/// Longest expression, in bytes: Istio's limit.
pub const MAX_LENGTH: usize = 1024;
/// Most memory that one compiled expression may take.
const MAX_SIZE: usize = 1 << 20;

/// Why an expression is not valid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Re2Error {
    /// Longer than [`MAX_LENGTH`].
    #[error("the expression is longer than {MAX_LENGTH} bytes")]
    TooLong,
    /// It needs more memory than an expression may take.
    #[error("the expression is too large when it is compiled")]
    TooLarge,
    /// `*`, `+`, `?` or `{n}` with nothing before it.
    #[error("`{0}` has nothing to repeat")]
    NothingToRepeat(String),
    /// A repetition of a repetition.
    #[error("`{0}` repeats a repetition")]
    NestedRepeat(String),
    /// `{n,m}` beyond 1000, or with the larger number first.
    #[error("`{0}` is not a valid count of repetitions (at most 1000 in all)")]
    RepeatCount(String),
    /// `(` without `)`.
    #[error("a `)` is missing")]
    MissingParenthesis,
    /// `)` without `(`.
    #[error("there is a `)` too many")]
    UnexpectedParenthesis,
    /// `[` without `]`.
    #[error("a `]` is missing")]
    MissingBracket,
    /// A range that ends before it begins, or a class that does not exist.
    #[error("`{0}` is not a valid range or class")]
    Class(String),
    /// A sequence that RE2 does not have: also back-references and look-around.
    #[error("`{0}` is not an expression that RE2 knows")]
    Unknown(String),
    /// A backslash at the end.
    #[error("there is a backslash at the end")]
    TrailingBackslash,
}

/// `pattern` in the dialect of the `regex` crate, not anchored.
///
/// # Errors
///
/// What RE2 does not accept.
pub fn translate(pattern: &str) -> Result<String, Re2Error> {
    if pattern.len() > MAX_LENGTH {
        return Err(Re2Error::TooLong);
    }
    parse::Parser::new(pattern).run()
}

/// An expression that has to match the whole of a value (V-5, E4, E46).
///
/// # Errors
///
/// What RE2 does not accept, and what would take too much memory.
pub fn whole(pattern: &str) -> Result<Regex, Re2Error> {
    compile(&format!(r"\A(?:{})\z", translate(pattern)?))
}

/// An expression that may match anywhere in a value: for `uriRegexRewrite` (V-20). Groups keep their numbers.
///
/// # Errors
///
/// As for [`whole`].
pub fn anywhere(pattern: &str) -> Result<Regex, Re2Error> {
    compile(&translate(pattern)?)
}

fn compile(translated: &str) -> Result<Regex, Re2Error> {
    let built = RegexBuilder::new(translated).size_limit(MAX_SIZE).nest_limit(2 * MAX_LENGTH as u32).build();
    built.map_err(|error| match error {
        regex::Error::CompiledTooBig(_) => Re2Error::TooLarge,
        other => Re2Error::Unknown(last_line(&other.to_string())),
    })
}

/// The engine explains over several lines; the last one names the reason.
fn last_line(text: &str) -> String {
    text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned()
}

#[cfg(test)]
mod tests;
