//! The parts of a request that rules look at.

use http::HeaderMap;
use smallvec::SmallVec;

use super::Request;

/// Up to so many fields a look at all of them costs less than the search for one.
const FEW_FIELDS: usize = 16;

/// Header values, one for each line (E9).
pub(crate) type Values<'a> = smallvec::IntoIter<[&'a [u8]; 2]>;

/// All values of a header, or of a pseudo header (V-6). `host` is the authority. `name` is in lower case.
pub(crate) fn values<'a>(request: &Request<'a>, name: &str) -> Values<'a> {
    let one = |value: &'a str| SmallVec::<[&'a [u8]; 2]>::from_iter([value.as_bytes()]).into_iter();
    match name {
        ":method" => one(request.method),
        ":authority" | "host" => one(request.authority),
        ":path" => one(request.target),
        ":scheme" => one(request.scheme),
        _ => lines(request.headers, name).into_iter(),
    }
}

/// Whether any of those values is accepted.
pub(crate) fn any(request: &Request<'_>, name: &str, accept: impl Fn(&[u8]) -> bool) -> bool {
    let is_plain = !name.starts_with(':') && name != "host";
    if !is_plain || request.headers.len() > FEW_FIELDS {
        return values(request, name).any(accept);
    }
    let mut fields = request.headers.iter();
    fields.any(|(field, value)| field.as_str() == name && accept(value.as_bytes()))
}

fn lines<'a>(headers: &'a HeaderMap, name: &str) -> SmallVec<[&'a [u8]; 2]> {
    headers.get_all(name).iter().map(http::HeaderValue::as_bytes).collect()
}

/// The path without query and fragment (V-5).
pub(crate) fn path(target: &str) -> &str {
    let end = target.bytes().position(|byte| matches!(byte, b'?' | b'#'));
    end.and_then(|end| target.get(..end)).unwrap_or(target)
}

/// The query without `?`; `None` where there is none.
pub(crate) fn query(target: &str) -> Option<&str> {
    target.split('#').next().unwrap_or_default().split_once('?').map(|(_, query)| query)
}

/// The first value of a query parameter, not decoded; its name has case (E13).
pub(crate) fn query_parameter<'a>(target: &'a str, name: &str) -> Option<&'a str> {
    let pairs = query(target)?.split('&').filter(|pair| !pair.is_empty());
    let mut pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
}

/// The host of an authority: without port and brackets, as it was written.
pub(crate) fn host(authority: &str) -> &str {
    if let Some(bracketed) = authority.strip_prefix('[') {
        return bracketed.split(']').next().unwrap_or_default();
    }
    match authority.rsplit_once(':') {
        // More than one colon and no brackets: an IPv6 address that someone forgot to bracket.
        Some((host, _)) if !host.contains(':') => host,
        Some(_) | None => authority,
    }
}

/// The port of an authority, with its colon; empty where there is none.
pub(crate) fn port(authority: &str) -> &str {
    let after = authority.rfind(']').map_or(0, |at| at + 1);
    let rest = authority.get(after..).unwrap_or_default();
    match rest.find(':') {
        Some(at) if after > 0 || rest.matches(':').count() == 1 => rest.get(at..).unwrap_or_default(),
        Some(_) | None => "",
    }
}

/// Whether it is a gRPC request (E47).
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(http::header::CONTENT_TYPE).map(http::HeaderValue::as_bytes);
    let rest = kind.and_then(|kind| kind.strip_prefix(b"application/grpc"));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"+") || rest.starts_with(b";"))
}
