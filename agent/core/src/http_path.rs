//! Normalisation of request paths (H-10, E44): what rules and routes see is what the application gets.
//!
//! The query is never touched. Percent-encoded bytes are decoded only where they are unreserved characters, so a
//! path means the same before and after.

use std::borrow::Cow;

use crate::resource::PathNormalization;

/// A target that is refused with 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadPath {
    /// A fragment never belongs into a request (E42).
    #[error("the request's target has a fragment (`#`)")]
    Fragment,
    /// `%00` (E44).
    #[error("the request's path has an encoded NUL (`%00`)")]
    Nul,
}

/// Normalises path and query in origin form; `None` is the default level, BASE.
///
/// # Errors
///
/// Targets that cannot be normalised are to be answered with 400.
pub fn normalise(level: Option<PathNormalization>, target: &str) -> Result<Cow<'_, str>, BadPath> {
    if is_plain(target) {
        return Ok(Cow::Borrowed(target));
    }
    if target.contains('#') {
        return Err(BadPath::Fragment);
    }
    if target.starts_with('?') {
        // `GET http://host?query`: an empty path is the root (RFC 9110 4.2.3), which the application gets.
        return Ok(Cow::Owned(format!("/{target}")));
    }
    let (path, query) = match target.find('?') {
        Some(at) => target.split_at(at),
        None => (target, ""),
    };
    let Some(steps) = Steps::of(level.unwrap_or(PathNormalization::Base)) else {
        return Ok(Cow::Borrowed(target));
    };
    // `*` of OPTIONS is no path.
    if !path.starts_with('/') || !steps.change(path) {
        return Ok(Cow::Borrowed(target));
    }
    let decoded = steps.decode(path)?;
    let mut out = resolve_dots(&decoded);
    if steps.merge_slashes {
        out = merge_slashes(&out);
    }
    out.push_str(query);
    Ok(Cow::Owned(out))
}

/// Whether no level changes anything, as with most targets: one look at each byte says so.
fn is_plain(target: &str) -> bool {
    let (mut before, mut in_query) = (b' ', false);
    target.starts_with('/')
        && target.bytes().all(|byte| {
            in_query |= byte == b'?';
            let after_slash = std::mem::replace(&mut before, byte) == b'/';
            match byte {
                b'#' => false,
                _ if in_query => true,
                b'%' | b'\\' => false,
                b'.' | b'/' => !after_slash,
                _ => true,
            }
        })
}

/// What a level does beyond resolving dot segments.
#[derive(Debug, Clone, Copy)]
struct Steps {
    merge_slashes: bool,
    decode_slashes: bool,
}

impl Steps {
    fn of(level: PathNormalization) -> Option<Self> {
        match level {
            PathNormalization::None => None,
            PathNormalization::Base => Some(Self { merge_slashes: false, decode_slashes: false }),
            PathNormalization::MergeSlashes => Some(Self { merge_slashes: true, decode_slashes: false }),
            PathNormalization::DecodeAndMergeSlashes => {
                Some(Self { merge_slashes: true, decode_slashes: true })
            }
        }
    }

    /// Whether anything in the path could change; most paths are copied nowhere.
    fn change(self, path: &str) -> bool {
        let pairs = path.as_bytes().windows(2);
        path.bytes().any(|byte| matches!(byte, b'%' | b'\\'))
            || pairs.into_iter().any(|pair| pair == b"/." || (self.merge_slashes && pair == b"//"))
    }

    /// Decodes what may be decoded and turns `\` into `/`.
    fn decode(self, path: &str) -> Result<String, BadPath> {
        let mut out = String::with_capacity(path.len());
        let mut rest = path;
        while let Some(at) = rest.find(['%', '\\']) {
            let (plain, special) = rest.split_at(at);
            out.push_str(plain);
            let (escape, after) = match escaped(special) {
                Some(byte) => (Some(byte), special.get(3..).unwrap_or_default()),
                None => (None, special.get(1..).unwrap_or_default()),
            };
            match escape {
                Some(0) => return Err(BadPath::Nul),
                Some(b'/' | b'\\') if self.decode_slashes => out.push('/'),
                Some(byte) if is_unreserved(byte) && !completes_an_escape(&out, byte) => {
                    out.push(char::from(byte));
                }
                Some(_) => out.push_str(special.get(..3).unwrap_or_default()),
                None if special.starts_with('\\') => out.push('/'),
                None => out.push('%'),
            }
            rest = after;
        }
        out.push_str(rest);
        Ok(out)
    }
}

/// A text with every `%XX` replaced by its byte, as far as that makes text.
pub(crate) fn decoded(text: &str) -> Cow<'_, str> {
    if !text.contains('%') {
        return Cow::Borrowed(text);
    }
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        let (plain, special) = rest.split_at(at);
        out.extend_from_slice(plain.as_bytes());
        let (byte, length) = escaped(special).map_or((b'%', 1), |byte| (byte, 3));
        out.push(byte);
        rest = special.get(length..).unwrap_or_default();
    }
    out.extend_from_slice(rest.as_bytes());
    String::from_utf8(out).map_or(Cow::Borrowed(text), Cow::Owned)
}

/// The byte that `%XX` at the beginning of `text` stands for.
fn escaped(text: &str) -> Option<u8> {
    let [b'%', high, low, ..] = text.as_bytes() else { return None };
    let digit = |byte: &u8| char::from(*byte).to_digit(16);
    u8::try_from(digit(high)? * 16 + digit(low)?).ok()
}

/// Whether a decoded digit would become part of an escape that was none before: of `%%32e` the application would get
/// `%2e`, and decode that. Such a digit stays encoded.
fn completes_an_escape(before: &str, byte: u8) -> bool {
    let is_open = match before.as_bytes() {
        [.., b'%'] => true,
        [.., b'%', digit] => digit.is_ascii_hexdigit(),
        _ => false,
    };
    is_open && byte.is_ascii_hexdigit()
}

/// RFC 3986 2.3: the same whether encoded or not.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// RFC 3986 5.2.4, with empty segments kept as segments of their own.
fn resolve_dots(path: &str) -> String {
    let mut segments: Vec<&str> = Vec::new();
    let mut parts = path.split('/').skip(1).peekable();
    while let Some(part) = parts.next() {
        let last = parts.peek().is_none();
        match part {
            "." | ".." => {
                if part == ".." {
                    segments.pop();
                }
                // A path that ends in a dot segment ends in a slash afterwards.
                if last {
                    segments.push("");
                }
            }
            _ => segments.push(part),
        }
    }
    let mut out = String::with_capacity(path.len());
    for segment in &segments {
        out.push('/');
        out.push_str(segment);
    }
    if segments.is_empty() {
        out.push('/');
    }
    out
}

fn merge_slashes(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for character in path.chars() {
        if character != '/' || !out.ends_with('/') {
            out.push(character);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LEVELS: [PathNormalization; 3] =
        [PathNormalization::Base, PathNormalization::MergeSlashes, PathNormalization::DecodeAndMergeSlashes];

    fn of(level: PathNormalization, target: &str) -> String {
        normalise(Some(level), target).unwrap().into_owned()
    }

    #[test]
    fn base_resolves_dots_and_decodes_what_is_unreserved() {
        for (target, expected) in [
            ("/", "/"),
            ("/a/../b?x=/../y", "/b?x=/../y"),
            ("/a/./b/.", "/a/b/"),
            ("/a/b/..", "/a/"),
            ("/..", "/"),
            ("/../../a", "/a"),
            ("/a/%2E./b", "/b"),
            ("/a\\b", "/a/b"),
            ("/a//b", "/a//b"),
            ("/a//../b", "/a/b"),
            ("/a//../../b", "/b"),
            ("/%61dmin%30..//x", "/admin0..//x"),
            ("/a%2fb%5Cc%25", "/a%2fb%5Cc%25"),
            ("/%252e%252e/a", "/%252e%252e/a"),
            ("/a%", "/a%"),
            ("/a%zz/%4", "/a%zz/%4"),
            ("/a/%%32e%%32e/b", "/a/%%32e%%32e/b"),
            ("/a/%2%65%2%65/b", "/a/%2%65%2%65/b"),
            ("/%%30%30/%%67%30", "/%%300/%g0"),
            ("?a=b", "/?a=b"),
            ("/…/%2e%2E/b", "/b"),
            ("/..;/admin", "/..;/admin"),
            ("*", "*"),
        ] {
            assert_eq!(of(PathNormalization::Base, target), expected, "{target}");
            assert_eq!(normalise(None, target).unwrap(), expected, "{target}");
        }
    }

    #[test]
    fn parameters_are_decoded() {
        for (text, expected) in [
            ("a.b_c", "a.b_c"),
            ("%61%2Eb%2e", "a.b."),
            ("a+b%20", "a+b "),
            ("%", "%"),
            ("%4", "%4"),
            ("%zz%41", "%zzA"),
            ("…%e2%80%a6", "……"),
            ("%41%ff", "%41%ff"),
        ] {
            assert_eq!(decoded(text), expected, "{text}");
        }
    }

    #[test]
    fn further_levels_merge_and_decode_slashes() {
        for (target, merged, decoded) in [
            ("/a//b///", "/a/b/", "/a/b/"),
            ("/a/%2f", "/a/%2f", "/a/"),
            ("/%5Ca%2f%5c%2F%2e%2e%2fb%5c\\c", "/%5Ca%2f%5c%2F..%2fb%5c/c", "/a/b/c"),
            ("/a//../../b", "/b", "/b"),
        ] {
            assert_eq!(of(PathNormalization::MergeSlashes, target), merged, "{target}");
            assert_eq!(of(PathNormalization::DecodeAndMergeSlashes, target), decoded, "{target}");
        }
    }

    #[test]
    fn none_leaves_everything_but_refuses_fragments() {
        assert_eq!(of(PathNormalization::None, "/a/..\\%00//"), "/a/..\\%00//");
        assert_eq!(of(PathNormalization::None, "?x"), "/?x");
        assert_eq!(normalise(Some(PathNormalization::None), "/a#b"), Err(BadPath::Fragment));
        assert_eq!(normalise(None, "/a%00b"), Err(BadPath::Nul));
        assert_eq!(normalise(None, "/a?%00").unwrap(), "/a?%00");
    }

    #[test]
    fn what_is_normal_is_not_copied() {
        for target in ["/", "/a/b.c?d=%20//..", "/reviews/1"] {
            assert!(matches!(normalise(None, target), Ok(Cow::Borrowed(_))), "{target}");
        }
    }

    proptest! {
        /// Once normalised is normalised for good: nothing hides behind a second pass.
        #[test]
        fn is_idempotent_and_leaves_no_dot_segments(target in r"/([/.\\a%2eEfF5cC;?=…]|%2e|%2f|%5c|%7e|%3[0256]|%4[56c]|%6[56]){0,24}") {
            for level in LEVELS {
                let Ok(once) = normalise(Some(level), &target) else { continue };
                let path = once.split('?').next().unwrap();
                prop_assert!(path.starts_with('/'));
                prop_assert!(!path.contains('\\'));
                prop_assert!(path.split('/').all(|segment| segment != "." && segment != ".."), "{path}");
                if level != PathNormalization::Base {
                    prop_assert!(!path.contains("//"), "{path}");
                }
                prop_assert_eq!(normalise(Some(level), &once).unwrap(), once.as_ref());
            }
        }

        #[test]
        fn never_panics(target in any::<String>()) {
            for level in LEVELS {
                let _ = normalise(Some(level), &target);
            }
        }
    }
}
