//! URLs as Istio's admission reads them, which is how Go does.

/// What a URL begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::decode) struct Scheme<'u>(pub(in crate::decode) &'u str);

impl Scheme<'_> {
    /// Whether it is one of these (written in lower case): upper and lower case mean the same.
    pub(in crate::decode) fn is_one_of(self, names: &[&str]) -> bool {
        names.iter().any(|name| name.eq_ignore_ascii_case(self.0))
    }
}

/// The scheme (empty where there is none) of a URL that stands alone; `None` if the text is no such URL.
pub(in crate::decode) fn scheme(text: &str) -> Option<Scheme<'_>> {
    if text.is_empty() || text.bytes().any(|c| c.is_ascii_control()) {
        return None;
    }
    let (scheme, rest) = split_scheme(text)?;
    if !rest.starts_with('/') {
        // `mailto:…`: nothing more is known of what follows.
        return (!scheme.is_empty() && has_whole_escapes(fragment_of(rest))).then_some(Scheme(scheme));
    }
    let (rest, fragment) = rest.split_once('#').unwrap_or((rest, ""));
    let rest = rest.split_once('?').map_or(rest, |(rest, _)| rest);
    let path = match rest.strip_prefix("//").filter(|_| !scheme.is_empty()) {
        None => rest,
        Some(rest) => {
            let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            if !is_authority(authority) {
                return None;
            }
            path
        }
    };
    (has_whole_escapes(path) && has_whole_escapes(fragment)).then_some(Scheme(scheme))
}

/// `None` where the text begins with a colon.
fn split_scheme(text: &str) -> Option<(&str, &str)> {
    for (at, c) in text.bytes().enumerate() {
        match c {
            b':' if at == 0 => return None,
            b':' => return Some((text.get(..at)?, text.get(at + 1..)?)),
            b'a'..=b'z' | b'A'..=b'Z' => {}
            b'0'..=b'9' | b'+' | b'-' | b'.' if at > 0 => {}
            _ => break,
        }
    }
    Some(("", text))
}

fn fragment_of(text: &str) -> &str {
    text.split_once('#').map_or("", |(_, fragment)| fragment)
}

/// Whether each `%` is followed by two hexadecimal digits.
fn has_whole_escapes(text: &str) -> bool {
    text.split('%').skip(1).all(|rest| rest.as_bytes().get(..2).is_some_and(is_hex))
}

fn is_hex(digits: &[u8]) -> bool {
    digits.iter().all(u8::is_ascii_hexdigit)
}

/// `[user[:password]@]host[:port]`.
fn is_authority(text: &str) -> bool {
    let (user, host) = text.rsplit_once('@').map_or((None, text), |(user, host)| (Some(user), host));
    let in_user = |c: u8| c.is_ascii_alphanumeric() || b"-._:~!$&'()*+,;=%@".contains(&c);
    user.is_none_or(|user| user.bytes().all(in_user) && has_whole_escapes(user)) && is_host_and_port(host)
}

fn is_host_and_port(text: &str) -> bool {
    if let Some(rest) = text.strip_prefix('[') {
        let Some((address, port)) = rest.rsplit_once(']') else { return false };
        let (address, zone) = address.split_once("%25").unwrap_or((address, "-"));
        return address.parse::<std::net::Ipv6Addr>().is_ok()
            && !zone.is_empty()
            && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port));
    }
    let (host, port) = text.rsplit_once(':').unwrap_or((text, ""));
    let in_host = |c: u8| !c.is_ascii() || c.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=<>\"%".contains(&c);
    // Only what is no ASCII can be escaped in a host.
    let escapes = |rest: &str| {
        rest.as_bytes().get(..2).is_some_and(is_hex)
            && matches!(rest.as_bytes().first(), Some(b'8'..=b'9' | b'a'..=b'f' | b'A'..=b'F'))
    };
    is_port(port) && host.bytes().all(in_host) && host.split('%').skip(1).all(escapes)
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|c| c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_have_schemes() {
        for (text, wanted) in [
            ("https://issuer.example/keys?x=%zz#a", "https"),
            ("http://issuer.example:8080", "http"),
            ("http://user:secret@[fd00::1]:80/", "http"),
            ("oci://", "oci"),
            ("mailto:a", "mailto"),
            ("/keys", ""),
            ("http://a b.example".get(..8).unwrap(), "http"),
            ("http://a/b c", "http"),
        ] {
            assert_eq!(scheme(text), Some(Scheme(wanted)), "{text}");
        }
    }

    #[test]
    fn the_case_of_a_scheme_does_not_matter() {
        assert!(scheme("HttpS://a").unwrap().is_one_of(&["http", "https"]));
        assert!(!scheme("ftp://a").unwrap().is_one_of(&["http", "https"]));
    }

    #[test]
    fn what_go_cannot_parse_is_none() {
        for text in [
            "",
            "keys",
            ":80/keys",
            "http://a:port/",
            "http://a:80:80/",
            "http://[fd00::1/",
            "http://[a]/",
            "http://a b/",
            "http://a%41/",
            "http://a/%4",
            "http://a/\n",
            "http://us er@a/",
        ] {
            assert_eq!(scheme(text), None, "{text}");
        }
    }
}
