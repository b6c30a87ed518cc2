//! What a request says about itself, and whether it may come in at all (E42, E44, H-7, H-10).

use std::borrow::Cow;

use http::header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderValue, Method, Version};
use weft_core::decide::http::Request;
use weft_core::http_path::normalise;
use weft_core::resource::PathNormalization;

use super::h1::Smell;
use super::headers::{X_FORWARDED_PROTO, is_authority};
use super::reply::Reply;

/// Fields of a request (H-10). The parser counts those of HTTP/1 itself, and HTTP/2 bounds only their bytes.
const FIELDS: usize = 100;

/// Whom a request is addressed to.
#[derive(Debug, Clone)]
enum Named {
    Host(HeaderValue),
    Target(Authority),
}

/// The parts of a request that decisions read, beside its headers.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    method: Method,
    named: Named,
    scheme: Option<HeaderValue>,
    /// Path and query, normalised.
    target: PathAndQuery,
    /// Whoever reads the request once more, as it leaves, reads the same.
    stays: bool,
}

impl Message {
    /// Reads a request, or says how it is refused.
    pub(crate) fn read(
        parts: &Parts,
        smell: Option<Smell>,
        level: Option<PathNormalization>,
    ) -> Result<Self, Box<Reply>> {
        let seen = Seen::of(&parts.headers);
        refuse_malformed(parts, &seen, smell)?;
        let named = named(parts, &seen)?;
        let (target, normalised) = target(parts, level)?;
        let scheme = seen.scheme.cloned();
        // The authority of a target becomes Host, and a scheme may be taken away.
        let stays = matches!(named, Named::Host(_)) && scheme.is_none() && !normalised;
        Ok(Self { method: parts.method.clone(), named, scheme, target, stays })
    }

    /// The same for who reads the request as it leaves, where that is known to be the same.
    pub(crate) fn of_unchanged(&self) -> Option<Self> {
        self.stays.then(|| self.clone())
    }

    /// Host or `:authority`, as the client sent it.
    pub(crate) fn authority(&self) -> &str {
        match &self.named {
            Named::Host(value) => value.to_str().unwrap_or_default(),
            Named::Target(authority) => authority.as_str(),
        }
    }

    /// Path and query, normalised.
    pub(crate) fn target(&self) -> &PathAndQuery {
        &self.target
    }

    /// Another path and query, as rules say; left as it is where they do not make one.
    pub(crate) fn set_target(&mut self, target: &str) {
        if let Ok(target) = target.parse() {
            self.target = target;
        }
    }

    /// The request in `core`'s words.
    pub(crate) fn view<'a>(&'a self, parts: &'a Parts) -> Request<'a> {
        Request {
            method: self.method.as_str(),
            scheme: self.scheme.as_ref().and_then(|scheme| scheme.to_str().ok()).unwrap_or("http"),
            authority: self.authority(),
            target: self.target.as_str(),
            headers: &parts.headers,
        }
    }
}

/// The fields that are looked for, found with one look at all.
#[derive(Default)]
struct Seen<'a> {
    host: Option<&'a HeaderValue>,
    /// There is more than one.
    hosts: bool,
    scheme: Option<&'a HeaderValue>,
    length: bool,
    coding: bool,
}

impl<'a> Seen<'a> {
    fn of(headers: &'a HeaderMap) -> Self {
        let mut seen = Self::default();
        for (name, value) in headers {
            if *name == HOST {
                seen.hosts |= seen.host.is_some();
                seen.host.get_or_insert(value);
            } else if *name == X_FORWARDED_PROTO {
                seen.scheme.get_or_insert(value);
            }
            seen.length |= *name == CONTENT_LENGTH;
            seen.coding |= *name == TRANSFER_ENCODING;
        }
        seen
    }
}

fn refuse_malformed(parts: &Parts, seen: &Seen<'_>, smell: Option<Smell>) -> Result<(), Box<Reply>> {
    match smell {
        Some(Smell::TwoLengths) => {
            return Err(Box::new(Reply::malformed(
                400,
                "Bad Request",
                "http1.content_length_and_chunked_not_allowed",
            )));
        }
        Some(Smell::Fragment) => {
            return Err(Box::new(Reply::malformed(400, "", "path_normalization_failed")));
        }
        None => {}
    }
    if parts.version == Version::HTTP_2 && parts.headers.len() > FIELDS {
        return Err(Box::new(Reply::malformed(431, "", "http2.too_many_headers")));
    }
    if parts.version == Version::HTTP_10 || parts.version == Version::HTTP_09 {
        return Err(Box::new(Reply { close: true, ..Reply::text(426, "Upgrade Required", "low_version") }));
    }
    if parts.method == Method::CONNECT {
        return Err(Box::new(Reply { close: true, ..Reply::text(403, "", "upgrade_failed") }));
    }
    if seen.length && seen.coding {
        return Err(Box::new(Reply::malformed(
            400,
            "Bad Request",
            "http1.content_length_and_chunked_not_allowed",
        )));
    }
    // The parser has taken `chunked` away, and would lose what else was done to the body.
    if seen.coding && !is_chunked_alone(&parts.headers) {
        return Err(Box::new(Reply::malformed(501, "", "http1.transfer_encoding_not_allowed")));
    }
    Ok(())
}

fn is_chunked_alone(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let chunked = codings.next().is_some_and(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"));
    chunked && codings.next().is_none()
}

/// The authority in the target wins over `Host` (E7); exactly one of them must be there.
fn named(parts: &Parts, seen: &Seen<'_>) -> Result<Named, Box<Reply>> {
    let host = seen.host;
    if seen.hosts {
        return Err(Box::new(Reply::malformed(400, "", "two_hosts")));
    }
    if let Some(authority) = parts.uri.authority() {
        // User information has no place in an authority that is asked for (RFC 9110 4.2.4).
        let bare = authority.as_str().rsplit('@').next().unwrap_or_default();
        let named =
            if bare.len() == authority.as_str().len() { Some(authority.clone()) } else { bare.parse().ok() };
        return named
            .map(Named::Target)
            .ok_or_else(|| Box::new(Reply::malformed(400, "", "missing_host_header")));
    }
    match host {
        Some(host) if host.to_str().is_ok_and(is_authority) => Ok(Named::Host(host.clone())),
        Some(host) if !host.is_empty() => Err(Box::new(Reply::malformed(400, "", "invalid_host_header"))),
        Some(_) | None => Err(Box::new(Reply::malformed(400, "", "missing_host_header"))),
    }
}

/// Path and query, and whether they are others than were sent.
fn target(parts: &Parts, level: Option<PathNormalization>) -> Result<(PathAndQuery, bool), Box<Reply>> {
    let bad = || Box::new(Reply::malformed(400, "", "path_normalization_failed"));
    let Some(sent) = parts.uri.path_and_query() else {
        // `OPTIONS http://host` without a path.
        return Ok((PathAndQuery::from_static("/"), true));
    };
    match normalise(level, sent.as_str()).map_err(|_| bad())? {
        Cow::Borrowed(_) => Ok((sent.clone(), false)),
        Cow::Owned(other) => Ok((PathAndQuery::try_from(other).map_err(|_| bad())?, true)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(build: http::request::Builder) -> Parts {
        build.body(()).unwrap().into_parts().0
    }

    fn refused(build: http::request::Builder) -> Option<u16> {
        Message::read(&parts(build), None, None).err().map(|reply| reply.status)
    }

    #[test]
    fn improper_requests_are_refused() {
        let get = |target: &str| http::Request::get(target);
        assert_eq!(refused(get("/")), Some(400));
        assert_eq!(refused(get("/").header("host", "")), Some(400));
        assert_eq!(refused(get("/").header("host", "a").header("host", "b")), Some(400));
        assert_eq!(refused(get("/").header("host", "a b")), Some(400));
        assert_eq!(refused(get("/%00").header("host", "a")), Some(400));
        assert_eq!(refused(get("/").version(Version::HTTP_10).header("host", "a")), Some(426));
        assert_eq!(refused(http::Request::connect("a:1").header("host", "a")), Some(403));
        let both =
            get("/").header("host", "a").header("content-length", "1").header("transfer-encoding", "chunked");
        assert_eq!(refused(both), Some(400));
        let coded = |coding| refused(get("/").header("host", "a").header("transfer-encoding", coding));
        assert_eq!((coded("gzip, chunked"), coded("Chunked")), (Some(501), None));
        let many = |count: usize| {
            let fields = (1..count).map(|at| format!("x-{at}"));
            let request = get("http://a/").version(Version::HTTP_2).header("x", "");
            refused(fields.fold(request, |request, name| request.header(name, "")))
        };
        assert_eq!((many(100), many(101)), (None, Some(431)));
        assert_eq!(refused(get("/").header("host", "a:80")), None);
        assert_eq!(refused(get("/").header("host", "[::1]:80")), None);
    }

    #[test]
    fn the_target_names_the_host_before_the_header() {
        let parts = parts(http::Request::get("http://one.test/a/../b?c=d").header("host", "two.test"));
        let message = Message::read(&parts, None, None).unwrap();
        assert_eq!((message.authority(), message.target().as_str()), ("one.test", "/b?c=d"));
        assert_eq!(message.view(&parts).scheme, "http");
    }
}
