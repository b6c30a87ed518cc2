//! One rule against one request: what only HTTP can answer (AP-8 to AP-12, AP-21).

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use http::{HeaderMap, HeaderName};
use smallvec::SmallVec;

use super::matcher::{holds, string};
use crate::decide::http::{Request, fields};
use crate::decide::request_authentication::{Authentication, Claim};
use crate::resource::{HttpKey, Match, Operation, PathMatch, StringMatch};

/// A request, prepared for many rules.
#[derive(Debug)]
pub(crate) struct HttpSubject<'a> {
    pub(super) request: &'a Request<'a>,
    authentication: &'a Authentication,
    /// In lower case, with the port if the client sent one (AP-9).
    pub(super) host: Cow<'a, str>,
    /// Without query.
    pub(super) path: &'a str,
}

impl<'a> HttpSubject<'a> {
    pub(crate) fn new(request: &'a Request<'a>, authentication: &'a Authentication) -> Self {
        let host = match request.authority.bytes().any(|byte| byte.is_ascii_uppercase()) {
            true => Cow::Owned(request.authority.to_ascii_lowercase()),
            false => Cow::Borrowed(request.authority),
        };
        let path = fields::path(request.target);
        Self { request, authentication, host, path }
    }

    /// `iss/sub` of the request's token.
    pub(super) fn principal(&self) -> Option<&str> {
        self.authentication.principal.as_deref()
    }

    /// A claim of the request's token.
    pub(super) fn claim(&self, path: &[Arc<str>]) -> Option<&Claim> {
        self.authentication.claims.first()?.at(path.iter().map(|name| &**name))
    }

    pub(super) fn operation(&self, operation: &Operation) -> bool {
        holds(&operation.methods, |pattern| string(pattern, self.request.method.as_bytes()))
            && holds(&operation.paths, |pattern| self.path(pattern))
            && holds(&operation.hosts, |pattern| host(pattern, &self.host))
    }

    fn path(&self, pattern: &PathMatch) -> bool {
        match pattern {
            PathMatch::Text(pattern) => string(pattern, self.path.as_bytes()),
            PathMatch::Template(template) => template.matches(self.path),
        }
    }

    pub(super) fn request_principals(&self, values: &Match<StringMatch>) -> bool {
        let claims = self.authentication.claims.first().filter(|_| self.principal().is_some());
        holds(values, |pattern| {
            claims.is_some_and(|claims| request_principal(pattern, &claims.issuer, &claims.subject))
        })
    }

    /// Every value is compared by itself (AP-21).
    pub(super) fn condition(&self, key: &HttpKey, values: &Match<StringMatch>) -> bool {
        match key {
            HttpKey::Header(name) => {
                let found = self.header(name);
                holds(values, |pattern| match pattern {
                    // A header without a value is there all the same (E12).
                    StringMatch::Present => !found.is_empty(),
                    StringMatch::Exact(_) | StringMatch::Prefix(_) | StringMatch::Suffix(_) => {
                        found.iter().any(|value| string(pattern, value))
                    }
                })
            }
            HttpKey::Principal => self.request_principals(values),
            HttpKey::Audiences | HttpKey::Presenter | HttpKey::Claim(_) => {
                let claim = self.claim(&claim_path(key));
                holds(values, |pattern| {
                    claim.is_some_and(|claim| claim.texts().any(|text| string(pattern, text.as_bytes())))
                })
            }
            HttpKey::FilterMetadata(_) => holds(values, |_| false),
        }
    }

    fn header(&self, name: &str) -> SmallVec<[&[u8]; 2]> {
        let Request { method, scheme, authority, target, headers } = self.request;
        let pseudo = match name {
            ":authority" | "host" => authority,
            ":method" => method,
            ":path" => target,
            ":scheme" => scheme,
            _ => return headers.get_all(name).iter().map(|value| value.as_bytes()).collect(),
        };
        SmallVec::from_iter([pseudo.as_bytes()])
    }
}

/// Issuer and subject are compared apart (RA-9): the last `/` of what a policy says parts them, for an issuer may be a
/// URL. Without a `/`, `x*` is about the issuer, `*x` about the subject, and `x` asks for no subject, which none has.
fn request_principal(pattern: &StringMatch, issuer: &str, subject: &str) -> bool {
    match pattern {
        StringMatch::Present => true,
        StringMatch::Exact(text) => text.rsplit_once('/') == Some((issuer, subject)),
        StringMatch::Prefix(text) => match text.rsplit_once('/') {
            Some((of, beginning)) => of == issuer && subject.starts_with(beginning),
            None => issuer.starts_with(&**text),
        },
        StringMatch::Suffix(text) => match text.rsplit_once('/') {
            Some((end, of)) => of == subject && issuer.ends_with(end),
            None => subject.ends_with(&**text),
        },
    }
}

/// Hosts have no case (AP-9); `value` is in lower case already.
fn host(pattern: &StringMatch, value: &str) -> bool {
    let value = value.as_bytes();
    match pattern {
        StringMatch::Exact(text) => text.as_bytes().eq_ignore_ascii_case(value),
        StringMatch::Prefix(text) => {
            value.get(..text.len()).is_some_and(|head| head.eq_ignore_ascii_case(text.as_bytes()))
        }
        StringMatch::Suffix(text) => {
            let tail = value.len().checked_sub(text.len()).and_then(|at| value.get(at..));
            tail.is_some_and(|tail| tail.eq_ignore_ascii_case(text.as_bytes()))
        }
        StringMatch::Present => !value.is_empty(),
    }
}

/// The names that lead to the claim of a key.
pub(super) fn claim_path(key: &HttpKey) -> Arc<[Arc<str>]> {
    static AUDIENCES: LazyLock<Arc<[Arc<str>]>> = LazyLock::new(|| Arc::new(["aud".into()]));
    static PRESENTER: LazyLock<Arc<[Arc<str>]>> = LazyLock::new(|| Arc::new(["azp".into()]));
    match key {
        HttpKey::Audiences => AUDIENCES.clone(),
        HttpKey::Presenter => PRESENTER.clone(),
        HttpKey::Claim(path) => path.clone(),
        HttpKey::Header(_) | HttpKey::Principal | HttpKey::FilterMetadata(_) => Arc::default(),
    }
}

/// The client's address (AP-8): what the nearest proxy that is trusted saw, else the direct peer.
///
/// The last entry of `x-forwarded-for` was written by whoever sent the request here; each trusted proxy in front
/// of the mesh moves the answer one entry to the left.
pub(crate) fn remote_ip(headers: &HeaderMap, peer: IpAddr, trusted_proxies: u32) -> IpAddr {
    const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
    let mut lines = headers.get_all(FORWARDED_FOR).into_iter().peekable();
    if lines.peek().is_none() {
        return peer;
    }
    let entries = lines.filter_map(|value| value.to_str().ok()).flat_map(|line| line.split(','));
    // Only as many entries from the end are kept as can matter.
    let wanted = usize::try_from(trusted_proxies).unwrap_or(usize::MAX);
    let entries: SmallVec<[&str; 8]> = entries.collect();
    let found = entries.iter().rev().nth(wanted).and_then(|text| text.trim().parse::<IpAddr>().ok());
    found.map_or(peer, |ip| ip.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_entry_that_a_trusted_proxy_wrote_counts() {
        let peer: IpAddr = "10.0.0.9".parse().unwrap();
        let of = |lines: &[&str], trusted| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append("x-forwarded-for", line.parse().unwrap());
            }
            remote_ip(&headers, peer, trusted).to_string()
        };
        assert_eq!(of(&[], 0), "10.0.0.9");
        assert_eq!(of(&["1.1.1.1, 2.2.2.2"], 0), "2.2.2.2");
        assert_eq!(of(&["1.1.1.1", "2.2.2.2,3.3.3.3"], 1), "2.2.2.2");
        assert_eq!(of(&["1.1.1.1"], 1), "10.0.0.9");
        assert_eq!(of(&["1.1.1.1, nobody"], 0), "10.0.0.9");
        assert_eq!(of(&["::ffff:1.2.3.4"], 0), "1.2.3.4");
    }

    #[test]
    fn issuer_and_subject_are_compared_apart() {
        let exact = |text: &str| StringMatch::Exact(text.into());
        let prefix = |text: &str| StringMatch::Prefix(text.into());
        let suffix = |text: &str| StringMatch::Suffix(text.into());
        for (pattern, issuer, subject, expected) in [
            (exact("me/x"), "me", "x", true),
            (exact("https://me.example/x"), "https://me.example", "x", true),
            (exact("me/a/b"), "me", "a/b", false),
            (exact("me/a/b"), "me/a", "b", true),
            (exact("me"), "me", "x", false),
            (prefix("me/"), "me", "a/b", true),
            (prefix("me/a"), "me", "ab", true),
            (prefix("me/a/"), "me", "a/b", false),
            (prefix("m"), "me", "x", true),
            (prefix("https://m"), "https://me", "x", false),
            (suffix("/x"), "me", "x", true),
            (suffix("e/x"), "me", "x", true),
            (suffix("/x"), "me", "xx", false),
            (suffix("x"), "me", "a/xx", true),
            (suffix("me"), "me", "x", false),
            (StringMatch::Present, "me", "x", true),
        ] {
            assert_eq!(
                request_principal(&pattern, issuer, subject),
                expected,
                "{pattern:?} {issuer} {subject}"
            );
        }
    }

    #[test]
    fn hosts_have_no_case() {
        let matches = |pattern, value| host(&pattern, value);
        assert!(matches(StringMatch::Exact("Shop.Example".into()), "shop.example"));
        assert!(matches(StringMatch::Suffix(".EXAMPLE".into()), "shop.example"));
        assert!(matches(StringMatch::Prefix("SHOP.".into()), "shop.example"));
        assert!(!matches(StringMatch::Exact("shop.example".into()), "shop.example:80"));
        assert!(!matches(StringMatch::Present, ""));
        assert!(!matches(StringMatch::Suffix("x.shop.example".into()), "shop.example"));
    }
}
