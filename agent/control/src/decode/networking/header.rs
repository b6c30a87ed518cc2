//! Names and values of HTTP headers (V-6, V-17).

/// The beginning of a name that stands for a claim of a token (V-6).
const CLAIMS: &str = "@request.auth.claims";
/// What HTTP/2 has instead of a request line.
const PSEUDO: [&str; 5] = [":method", ":scheme", ":authority", ":path", ":status"];

/// A token: what HTTP allows as the name of a header.
pub(in crate::decode) fn is_token(name: &str) -> bool {
    let symbol = |c: u8| b"!#$%&'*+-.^_`|~".contains(&c);
    !name.is_empty() && name.bytes().all(|c| c.is_ascii_alphanumeric() || symbol(c))
}

/// A name that can be matched on.
pub(in crate::decode) fn is_matchable(name: &str) -> bool {
    is_claim(name) || PSEUDO.contains(&name) || is_token(name)
}

/// `@request.auth.claims.x` or `@request.auth.claims[x][y]`.
pub(in crate::decode) fn is_claim(name: &str) -> bool {
    let Some((start, claim)) = name.split_at_checked(CLAIMS.len()) else { return false };
    let dotted = claim.starts_with('.') && claim.len() > 1;
    let bracketed = claim.starts_with('[') && claim.ends_with(']') && claim.len() > 2;
    start.eq_ignore_ascii_case(CLAIMS) && (dotted || bracketed)
}

/// `Host`, by either name.
pub(in crate::decode) fn is_authority(name: &str) -> bool {
    name.eq_ignore_ascii_case(":authority") || name.eq_ignore_ascii_case("host")
}

/// Why a value cannot be set: control characters, and `%` that is neither doubled nor encloses a variable.
pub(in crate::decode) fn bad_value(value: &str) -> Option<&'static str> {
    if value.chars().any(|c| matches!(c, '\0'..='\x08' | '\x0a'..='\x1f' | '\x7f')) {
        return Some("it has control characters");
    }
    let mut state = State::Text;
    for byte in value.bytes() {
        match state.next(byte) {
            Some(next) => state = next,
            None => return Some("a variable between `%` signs is not written as Envoy reads it"),
        }
    }
    match state {
        State::Text => None,
        State::Percent => Some("there is a single `%` at the end"),
        _ => Some("a variable has no closing `%`"),
    }
}

/// Where a reader of `text %NAME% %NAME(argument)% %NAME(["a", "b"])%` stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// In text.
    Text,
    /// Behind a `%` in text, which another one doubles.
    Percent,
    /// In the name of a variable.
    Name,
    /// Behind `(`.
    Arguments,
    /// In an argument, with or without quotes.
    Argument,
    /// In an argument, behind a backslash.
    Escaped,
    /// In a list, before a quoted argument.
    Item,
    /// In a list, behind a quoted argument.
    ItemEnd,
    /// Behind `]`.
    ListEnd,
    /// Behind `)`.
    ArgumentsEnd,
}

impl State {
    /// `None` is an error.
    fn next(self, byte: u8) -> Option<Self> {
        Some(match (self, byte) {
            (Self::Text, b'%') => Self::Percent,
            (Self::Text, _) | (Self::Percent | Self::Name | Self::ArgumentsEnd, b'%') => Self::Text,
            (Self::Percent | Self::Name, b'(') => Self::Arguments,
            (Self::Percent | Self::Name, _) => Self::Name,
            (Self::Arguments, b'[') => Self::Item,
            (Self::Argument, b'\\') => Self::Escaped,
            (Self::Argument, b')') | (Self::ListEnd, b')') => Self::ArgumentsEnd,
            (Self::Argument, b'"') => Self::ItemEnd,
            (Self::Item, b'"') | (Self::Escaped, _) => Self::Argument,
            (Self::ItemEnd, b',') => Self::Item,
            (Self::ItemEnd, b']') => Self::ListEnd,
            (Self::Arguments | Self::Item | Self::ItemEnd | Self::ListEnd | Self::ArgumentsEnd, b' ') => self,
            (Self::Arguments | Self::Argument, _) => Self::Argument,
            (Self::Item | Self::ItemEnd | Self::ListEnd | Self::ArgumentsEnd, _) => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_can_be_matched() {
        for good in ["x", "X-Y", ":method", "a.b", "@request.auth.claims.a", "@Request.Auth.Claims[a][b]"] {
            assert!(is_matchable(good), "{good}");
        }
        for bad in [
            "",
            "::",
            ":foo",
            "a b",
            "@request.auth.claims",
            "@request.auth.claims.",
            "@request.auth.claims[]",
        ] {
            assert!(!is_matchable(bad), "{bad}");
        }
    }

    #[test]
    fn variables_are_closed_and_percent_signs_doubled() {
        for good in [
            "",
            "foo",
            "100%%",
            "%HOSTNAME%",
            "a %HOSTNAME% b",
            "%REQ(x)%",
            r#"%M(["a", "b\"c"])%"#,
            "%A( x )%",
            "a\tb",
            "%A(x) %",
        ] {
            assert_eq!(bad_value(good), None, "{good}");
        }
        for bad in [
            "%",
            "abc%",
            "abc%123",
            "%START_TIME%%",
            "%A(x",
            "%A(x)y%",
            "%A([x])%",
            r#"%A(["x" y])%"#,
            "a\nb",
            "\x7f",
        ] {
            assert!(bad_value(bad).is_some(), "{bad}");
        }
    }
}
