//! The parts of AuthorizationPolicy rules that only HTTP can answer (AP-9, AP-10, AP-12).

use std::fmt;
use std::sync::Arc;

use super::StringMatch;

/// `paths`: a pattern of AP-5, or a template.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PathMatch {
    /// A pattern.
    Text(StringMatch),
    /// A template with `{*}` or `{**}` (AP-10).
    Template(PathTemplate),
}

/// A part of a template.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Token {
    /// Text that stands there as it is.
    Literal(Arc<str>),
    /// `{*}`: the rest of one segment, not empty.
    Segment,
    /// `{**}`: anything, also nothing.
    Rest,
}

/// A path in which `{*}` stands for one segment and `{**}` for any number (AP-10).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PathTemplate(Vec<Token>);

impl PathTemplate {
    /// Reads a template; `None` for text without `{*}` and `{**}`.
    pub fn parse(text: &str) -> Option<Self> {
        let mut tokens = Vec::new();
        let mut rest = text;
        while let Some(at) = rest.find("{*") {
            let (literal, after) = rest.split_at(at);
            let (token, after) = match (after.strip_prefix("{*}"), after.strip_prefix("{**}")) {
                (Some(after), _) => (Token::Segment, after),
                (None, Some(after)) => (Token::Rest, after),
                (None, None) => return None,
            };
            if !literal.is_empty() {
                tokens.push(Token::Literal(literal.into()));
            }
            tokens.push(token);
            rest = after;
        }
        if tokens.is_empty() {
            return None;
        }
        if !rest.is_empty() {
            tokens.push(Token::Literal(rest.into()));
        }
        Some(Self(tokens))
    }

    /// The text with which every matching path begins.
    pub fn beginning(&self) -> &str {
        match self.0.first() {
            Some(Token::Literal(text)) => text,
            Some(Token::Segment | Token::Rest) | None => "",
        }
    }

    /// Whether a path, without its query, is of this form.
    pub fn matches(&self, path: &str) -> bool {
        match_tokens(&self.0, path)
    }
}

fn match_tokens(tokens: &[Token], path: &str) -> bool {
    let Some((first, others)) = tokens.split_first() else {
        return path.is_empty();
    };
    match first {
        Token::Literal(text) => path.strip_prefix(&**text).is_some_and(|rest| match_tokens(others, rest)),
        Token::Segment => {
            let end = path.find('/').unwrap_or(path.len());
            end > 0 && match_tokens(others, path.get(end..).unwrap_or_default())
        }
        // Validation lets only text follow.
        Token::Rest => match others {
            [] => true,
            [Token::Literal(text)] => path.ends_with(&**text),
            _ => path
                .char_indices()
                .any(|(at, _)| path.get(at..).is_some_and(|rest| match_tokens(others, rest))),
        },
    }
}

impl fmt::Display for PathTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|token| match token {
            Token::Literal(text) => f.write_str(text),
            Token::Segment => f.write_str("{*}"),
            Token::Rest => f.write_str("{**}"),
        })
    }
}

/// A key of `when` that only HTTP can answer (AP-12).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum HttpKey {
    /// `request.headers[name]`, in lower case; `:authority`, `:method` and `:path` are headers as well.
    Header(Arc<str>),
    /// `request.auth.principal`.
    Principal,
    /// `request.auth.audiences`.
    Audiences,
    /// `request.auth.presenter`.
    Presenter,
    /// `request.auth.claims[a][b]`.
    Claim(Arc<[Arc<str>]>),
    /// `experimental.envoy.filters.…`: what no filter here ever sets.
    FilterMetadata(Arc<str>),
}

impl HttpKey {
    /// Reads a key; `None` where there is no such attribute.
    pub fn parse(key: &str) -> Option<Self> {
        match key {
            "request.auth.principal" => return Some(Self::Principal),
            "request.auth.audiences" => return Some(Self::Audiences),
            "request.auth.presenter" => return Some(Self::Presenter),
            _ => {}
        }
        if let Some(rest) = key.strip_prefix("request.headers") {
            let [name] = entries(rest)?.try_into().ok()?;
            return Some(Self::Header(name.to_ascii_lowercase().into()));
        }
        if let Some(rest) = key.strip_prefix("request.auth.claims") {
            return Some(Self::Claim(entries(rest)?.into_iter().map(Arc::from).collect()));
        }
        let filter = key.strip_prefix("experimental.envoy.filters.")?;
        let open = filter.find('[').filter(|at| *at > 0)?;
        entries(filter.get(open..)?)?;
        Some(Self::FilterMetadata(key.into()))
    }
}

/// The names of `[a][b]`: at least one, none of them empty.
fn entries(text: &str) -> Option<Vec<&str>> {
    let inner = text.strip_prefix('[')?.strip_suffix(']')?;
    let names: Vec<&str> = inner.split("][").collect();
    names.iter().all(|name| !name.is_empty() && !name.contains(['[', ']'])).then_some(names)
}

impl fmt::Display for HttpKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(name) => write!(f, "request.headers[{name}]"),
            Self::Principal => f.write_str("request.auth.principal"),
            Self::Audiences => f.write_str("request.auth.audiences"),
            Self::Presenter => f.write_str("request.auth.presenter"),
            Self::Claim(path) => {
                f.write_str("request.auth.claims")?;
                path.iter().try_for_each(|name| write!(f, "[{name}]"))
            }
            Self::FilterMetadata(key) => f.write_str(key),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_match_whole_segments() {
        for (template, path, expected) in [
            ("/a/{*}", "/a/b", true),
            ("/a/{*}", "/a/", false),
            ("/a/{*}", "/a/b/c", false),
            ("/a/{*}/c", "/a/b/c", true),
            ("/a/{*}/c", "/a/b/d", false),
            ("/{*}/{*}", "/a/b", true),
            ("/{*}/{*}", "/a", false),
            ("/a/{**}", "/a/", true),
            ("/a/{**}", "/a/b/c", true),
            ("/a/{**}", "/a", false),
            ("/{**}/z", "/a/b/z", true),
            ("/{**}/z", "/z", false),
            ("/{**}/z", "/a/zz", false),
            ("/{*}/{**}", "/a/", true),
            ("/{*}/{**}", "/a", false),
            ("{**}", "", true),
        ] {
            let parsed = PathTemplate::parse(template).unwrap();
            assert_eq!(parsed.matches(path), expected, "{template} {path}");
            assert_eq!(parsed.to_string(), template);
        }
        assert_eq!(PathTemplate::parse("/a/*"), None);
        assert_eq!(PathTemplate::parse("/a/{*"), None);
        assert_eq!(PathTemplate::parse("/a/{*}").unwrap().beginning(), "/a/");
    }

    #[test]
    fn keys_are_read_and_written() {
        for key in [
            "request.headers[x-foo]",
            "request.auth.principal",
            "request.auth.audiences",
            "request.auth.presenter",
            "request.auth.claims[a]",
            "request.auth.claims[a][b-c]",
            "experimental.envoy.filters.network.mysql_proxy[db.table]",
        ] {
            assert_eq!(HttpKey::parse(key).unwrap().to_string(), key);
        }
        assert_eq!(HttpKey::parse("request.headers[X-Foo]"), Some(HttpKey::Header("x-foo".into())));
        for bad in [
            "",
            "request.headers",
            "request.headers[]",
            "request.headers[a][b]",
            "request.headers[a]b",
            "request.auth.claims",
            "request.auth.claims[a][]",
            "request.auth.claims[a]x[b]",
            "request.auth.claimsx[a]",
            "request.auth.issuer",
            "experimental.envoy.filters.[a]",
            "experimental.envoy.filters.x",
        ] {
            assert_eq!(HttpKey::parse(bad), None, "{bad}");
        }
    }
}
