//! Where tokens stand in a request, and taking them out of it (RA-4).

use std::borrow::Cow;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::decide::http::Request;
use crate::http_path::decoded;
use crate::resource::request_authentication::JwtRule;
use crate::snapshot::JwtPolicy;

/// Where a token stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Location<'a> {
    Header(&'a str),
    Parameter(&'a str),
    Cookie(&'a str),
}

/// A token and the rules that look for one there.
#[derive(Debug)]
pub(super) struct Token<'a> {
    location: Location<'a>,
    pub(super) text: Cow<'a, str>,
    /// Indices into the list of rules.
    pub(super) rules: SmallVec<[usize; 2]>,
}

impl Token<'_> {
    /// The header that it makes up.
    pub(super) fn header(&self) -> Option<&str> {
        match self.location {
            Location::Header(name) => Some(name),
            Location::Parameter(_) | Location::Cookie(_) => None,
        }
    }
}

/// Every token in the request, each once.
pub(super) fn tokens<'a>(rules: &'a [Arc<JwtPolicy>], request: &Request<'a>) -> SmallVec<[Token<'a>; 1]> {
    let mut found: SmallVec<[Token<'a>; 1]> = SmallVec::new();
    for (at, policy) in rules.iter().enumerate() {
        of_rule(&policy.rule, request, &mut |location, text| {
            let known = found.iter_mut().find(|token| token.location == location && token.text == text);
            match known {
                Some(token) if token.rules.last() == Some(&at) => {}
                Some(token) => token.rules.push(at),
                None => found.push(Token { location, text, rules: SmallVec::from_iter([at]) }),
            }
        });
    }
    found
}

fn of_rule<'a>(rule: &'a JwtRule, request: &Request<'a>, add: &mut dyn FnMut(Location<'a>, Cow<'a, str>)) {
    let JwtRule { from_headers, from_params, from_cookies, .. } = rule;
    if from_headers.is_empty() && from_params.is_empty() && from_cookies.is_empty() {
        of_header(request, "authorization", "Bearer ", add);
        of_parameter(request, "access_token", add);
        return;
    }
    for (name, prefix) in from_headers {
        of_header(request, name, prefix, add);
    }
    for name in from_params {
        of_parameter(request, name, add);
    }
    for name in from_cookies {
        of_cookie(request, name, add);
    }
}

/// The prefix is compared exactly: `bearer` is no `Bearer` (E40).
fn of_header<'a>(
    request: &Request<'a>,
    name: &'a str,
    prefix: &str,
    add: &mut dyn FnMut(Location<'a>, Cow<'a, str>),
) {
    for value in request.headers.get_all(name) {
        let text = std::str::from_utf8(value.as_bytes()).ok().and_then(|text| text.strip_prefix(prefix));
        if let Some(text) = text {
            add(Location::Header(name), text.trim().into());
        }
    }
}

/// Every parameter of the name, decoded: the application may read the last one.
fn of_parameter<'a>(request: &Request<'a>, name: &'a str, add: &mut dyn FnMut(Location<'a>, Cow<'a, str>)) {
    let Some((_, query)) = request.target.split_once('?') else { return };
    for (key, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
        if decoded(key) == name && !value.is_empty() {
            add(Location::Parameter(name), decoded(value));
        }
    }
}

fn of_cookie<'a>(request: &Request<'a>, name: &'a str, add: &mut dyn FnMut(Location<'a>, Cow<'a, str>)) {
    let lines = request.headers.get_all("cookie").into_iter();
    for line in lines.filter_map(|value| std::str::from_utf8(value.as_bytes()).ok()) {
        for (key, value) in line.split(';').filter_map(|pair| pair.trim().split_once('=')) {
            let value = value.trim_matches('"');
            if key == name && !value.is_empty() {
                add(Location::Cookie(name), value.into());
            }
        }
    }
}

/// The target without the parameters that were tokens; `None` where none was.
pub(super) fn without(target: &str, tokens: &[&Token<'_>]) -> Option<String> {
    let is_token = |pair: &str| {
        let Some((key, value)) = pair.split_once('=') else { return false };
        let (key, value) = (decoded(key), decoded(value));
        tokens.iter().any(|token| token.location == Location::Parameter(&key) && token.text == value)
    };
    let (path, query) = target.split_once('?')?;
    let kept: Vec<&str> = query.split('&').filter(|pair| !is_token(pair)).collect();
    if kept.len() == query.split('&').count() {
        return None;
    }
    Some(if kept.is_empty() { path.to_owned() } else { format!("{path}?{}", kept.join("&")) })
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// RFC 4648 4, with padding.
pub(super) fn base64(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |at: usize| u32::from(chunk.get(at).copied().unwrap_or_default());
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for at in 0..4 {
            let index = (bits >> (18 - 6 * at)) & 63;
            let letter = ALPHABET.get(index as usize).copied().unwrap_or(b'=');
            out.push(if at <= chunk.len() { char::from(letter) } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_padded() {
        for (plain, encoded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("ÿþ", "w7/Dvg=="),
        ] {
            assert_eq!(base64(plain.as_bytes()), encoded);
        }
    }
}
