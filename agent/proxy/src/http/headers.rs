//! Headers that the mesh itself reads, adds and takes away (H-2, E42, E43).

use std::cell::RefCell;
use std::fmt::Write as _;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONNECTION, COOKIE, HOST, TE, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Uri, Version};

use crate::worker::Worker;

pub(crate) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub(crate) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub(crate) const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub(crate) const X_FORWARDED_CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
pub(crate) const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
pub(crate) const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
pub(crate) const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
pub(crate) const ATTEMPT_COUNT: HeaderName = HeaderName::from_static("x-envoy-attempt-count");
pub(crate) const EXPECTED_TIMEOUT: HeaderName = HeaderName::from_static("x-envoy-expected-rq-timeout-ms");
pub(crate) const SERVICE_TIME: HeaderName = HeaderName::from_static("x-envoy-upstream-service-time");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Controls of Envoy that applications may not set (E43, H-13).
const CONTROLS: [HeaderName; 15] = [
    HeaderName::from_static("x-envoy-decorator-operation"),
    HeaderName::from_static("x-envoy-expected-rq-timeout-ms"),
    HeaderName::from_static("x-envoy-force-trace"),
    HeaderName::from_static("x-envoy-hedge-on-per-try-timeout"),
    HeaderName::from_static("x-envoy-internal"),
    HeaderName::from_static("x-envoy-ip-tags"),
    HeaderName::from_static("x-envoy-is-timeout-retry"),
    HeaderName::from_static("x-envoy-max-retries"),
    HeaderName::from_static("x-envoy-original-url"),
    HeaderName::from_static("x-envoy-retriable-header-names"),
    HeaderName::from_static("x-envoy-retriable-status-codes"),
    HeaderName::from_static("x-envoy-retry-grpc-on"),
    HeaderName::from_static("x-envoy-retry-on"),
    HeaderName::from_static("x-envoy-upstream-rq-per-try-timeout-ms"),
    HeaderName::from_static("x-envoy-upstream-rq-timeout-ms"),
];

/// Whether a content type is gRPC's (E47): `application/grpc`, also with a suffix or parameters.
pub(crate) fn is_grpc_type(value: &HeaderValue) -> bool {
    let rest = value.as_bytes().strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// Whether an HTTP/1 request asks for another protocol on its connection (H-5).
///
/// HTTP itself is none: what is moved after an upgrade is decided by no rule any more, and `h2c` would be a way
/// to more requests. A server may ignore the wish (RFC 9110 7.8), so the request goes on without it.
pub(crate) fn wants_upgrade(headers: &HeaderMap) -> bool {
    let is_http = |protocol: &str| {
        let name = protocol.split('/').next().unwrap_or_default();
        ["h2c", "h2", "h3", "http", "tls"].iter().any(|other| name.eq_ignore_ascii_case(other))
    };
    headers.contains_key(UPGRADE)
        && elements(headers, &CONNECTION).any(|it| it.eq_ignore_ascii_case("upgrade"))
        && !elements(headers, &UPGRADE).any(is_http)
}

/// The elements of a list, of all its lines.
fn elements<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let lines = headers.get_all(name).into_iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim)
}

/// Puts the crumbs of an HTTP/2 client's cookies together (RFC 9113 8.2.3): rules, tokens and HTTP/1 applications
/// see one line, as the client meant it.
pub(crate) fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let crumbs: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    let joined = crumbs.join(&b"; "[..]);
    if let Ok(joined) = HeaderValue::try_from(joined) {
        headers.insert(COOKIE, joined);
    }
}

fn is_hop_by_hop(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection" | "keep-alive" | "proxy-connection" | "transfer-encoding" | "upgrade" | "te"
    )
}

/// Takes away what belongs to one connection only, and what it names (RFC 9110 7.6.1).
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap, upgrade: bool) {
    // Most messages have none of them, which one look at all names shows.
    if !upgrade && !headers.keys().any(is_hop_by_hop) {
        return;
    }
    if headers.contains_key(CONNECTION) {
        let keep = |name: &str| upgrade && name.eq_ignore_ascii_case("upgrade");
        let named: Vec<HeaderName> = elements(headers, &CONNECTION)
            .filter(|name| !keep(name) && !name.eq_ignore_ascii_case("te"))
            .filter_map(|name| name.parse().ok())
            .collect();
        for name in named {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    for name in [KEEP_ALIVE, PROXY_CONNECTION, TRANSFER_ENCODING] {
        headers.remove(name);
    }
    if upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    } else {
        headers.remove(UPGRADE);
    }
    if headers.get(TE).is_some_and(|value| !value.as_bytes().eq_ignore_ascii_case(b"trailers")) {
        headers.remove(TE);
    }
}

/// Takes away the controls that only Envoy's own configuration may set.
pub(crate) fn strip_controls(headers: &mut HeaderMap) {
    if headers.keys().any(|name| name.as_str().starts_with("x-envoy-")) {
        for name in CONTROLS {
            headers.remove(name);
        }
    }
}

/// Takes away what a client says about its own certificate. Most say nothing, which one look at all names shows.
pub(crate) fn strip_certificate(headers: &mut HeaderMap) {
    if headers.keys().any(|name| *name == X_FORWARDED_CLIENT_CERT) {
        headers.remove(X_FORWARDED_CLIENT_CERT);
    }
}

/// Adds what every request has: an id, and the scheme that the client used. Answers the id where it is new.
pub(crate) fn identify(worker: &Worker, headers: &mut HeaderMap) -> Option<HeaderValue> {
    // One look at all names costs less than two at the table.
    let (mut has_id, mut has_proto) = (false, false);
    for name in headers.keys() {
        has_id |= *name == X_REQUEST_ID;
        has_proto |= *name == X_FORWARDED_PROTO;
    }
    let id = (!has_id).then(|| {
        let id = request_id([worker.random(), worker.random()]);
        // Digits and hyphens are always valid.
        let value = HeaderValue::from_maybe_shared(worker.ids.copy(&id));
        value.unwrap_or_else(|_| HeaderValue::from_static("-"))
    });
    if let Some(id) = &id {
        headers.insert(X_REQUEST_ID, id.clone());
    }
    if !has_proto {
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static("http"));
    }
    id
}

/// A random UUID (RFC 9562 5.4).
fn request_id([high, low]: [u64; 2]) -> [u8; 36] {
    let high = (high & 0xFFFF_FFFF_FFFF_0FFF) | 0x4000;
    let low = (low & 0x3FFF_FFFF_FFFF_FFFF) | 0x8000_0000_0000_0000;
    let words = [high >> 32, high & 0xFFFF_FFFF, low >> 32, low & 0xFFFF_FFFF];
    let [first, second, third, fourth] = words.map(digits);
    let ((middle, version), (variant, node)) = (second.split_at(4), third.split_at(4));
    let mut text = [b'-'; 36];
    let groups = [(0, &first[..]), (9, middle), (14, version), (19, variant), (24, node), (28, &fourth[..])];
    for (at, group) in groups {
        if let Some(place) = text.get_mut(at..at + group.len()) {
            place.copy_from_slice(group);
        }
    }
    text
}

/// The eight digits of a number of 32 bits, all of them at once.
fn digits(word: u64) -> [u8; 8] {
    let halves = (word | (word << 16)) & 0x0000_FFFF_0000_FFFF;
    let bytes = (halves | (halves << 8)) & 0x00FF_00FF_00FF_00FF;
    let nibbles = (bytes | (bytes << 4)) & 0x0F0F_0F0F_0F0F_0F0F;
    // Six more than nine carry into the bit above a nibble.
    let letters = ((nibbles + 0x0606_0606_0606_0606) >> 4) & 0x0101_0101_0101_0101;
    let above_digits = u64::from(b'a' - b'9' - 1);
    (nibbles + 0x3030_3030_3030_3030 + letters * above_digits).to_be_bytes()
}

/// Short texts that share memory: one allocation for a hundred of them.
#[derive(Debug, Default)]
pub(crate) struct Texts(RefCell<BytesMut>);

impl Texts {
    /// Bytes that are taken at once. They are kept as long as any text in them.
    const BLOCK: usize = 4096;

    fn copy(&self, text: &[u8]) -> Bytes {
        let mut block = self.0.borrow_mut();
        if block.capacity() < text.len() {
            block.reserve(Self::BLOCK.max(text.len()));
        }
        block.extend_from_slice(text);
        block.split().freeze()
    }
}

/// Which try this is, counted from 1 (E16).
pub(crate) fn set_attempt(headers: &mut HeaderMap, attempt: u32) {
    let value = match attempt {
        1 => HeaderValue::from_static("1"),
        other => HeaderValue::from(other),
    };
    headers.insert(ATTEMPT_COUNT, value);
}

/// How long the client's side waits for the answer (E19).
pub(crate) fn set_expected_timeout(headers: &mut HeaderMap, timeout: Duration) {
    let ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
    headers.insert(EXPECTED_TIMEOUT, number(ms));
}

/// How long the application took (H-1).
pub(crate) fn set_service_time(headers: &mut HeaderMap, time: Duration) {
    let ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    headers.insert(SERVICE_TIME, number(ms));
}

/// A number as a value. Small ones, which are most, take no memory, others take it from a block.
fn number(number: u64) -> HeaderValue {
    const SMALL: [&str; 10] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];
    thread_local! {
        static OTHERS: Texts = Texts::default();
    }
    if let Some(text) = usize::try_from(number).ok().and_then(|at| SMALL.get(at)) {
        return HeaderValue::from_static(text);
    }
    let text = decimal(number, |digits| OTHERS.with(|others| others.copy(digits)));
    // Digits are always valid.
    HeaderValue::from_maybe_shared(text).unwrap_or_else(|_| HeaderValue::from(number))
}

/// The digits of a number by hand: every message has one, and `write!` costs several times as much.
pub(crate) fn decimal<T>(value: u64, take: impl FnOnce(&[u8]) -> T) -> T {
    // 20 digits are the most that there can be.
    let (mut digits, mut rest, mut from) = ([b'0'; 20], value, 20);
    for digit in digits.iter_mut().rev() {
        *digit += u8::try_from(rest % 10).unwrap_or_default();
        rest /= 10;
        from -= 1;
        if rest == 0 {
            break;
        }
    }
    take(digits.get(from..).unwrap_or_default())
}

/// `grpc-timeout` (the gRPC specification: up to eight digits and a unit).
pub(crate) fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(GRPC_TIMEOUT)?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

/// Tells the application how long its caller waits, as [`grpc_timeout`] reads it.
pub(crate) fn set_grpc_timeout(headers: &mut HeaderMap, timeout: Duration) {
    let ms = timeout.as_millis();
    let units = [(1, "m"), (1000, "S"), (60_000, "M"), (3_600_000, "H")];
    let fitting = units.into_iter().find(|(unit, _)| ms / unit <= 99_999_999);
    let text = fitting.map_or_else(|| "99999999H".to_owned(), |(unit, name)| format!("{}{name}", ms / unit));
    if let Ok(value) = HeaderValue::try_from(text) {
        headers.insert(GRPC_TIMEOUT, value);
    }
}

/// Gives a request the form in which it is handed on: target in origin form, authority in `Host`.
pub(crate) fn address(parts: &mut Parts, target: &PathAndQuery, authority: &str) {
    parts.version = Version::HTTP_11;
    if parts.uri.authority().is_some() || parts.uri.path_and_query() != Some(target) {
        parts.uri = Uri::from(target.clone());
    }
    let known = parts.headers.get(HOST).is_some_and(|host| host.as_bytes() == authority.as_bytes());
    if !known && let Ok(host) = HeaderValue::from_str(authority) {
        parts.headers.insert(HOST, host);
    }
}

/// Whether a text is a host, with or without a port: what HTTP/1 allows in `Host` (RFC 9110 7.2).
pub(crate) fn is_authority(text: &str) -> bool {
    let allowed = |byte: u8| {
        byte.is_ascii_alphanumeric()
            || matches!(byte, b'-' | b'.' | b'_' | b'~' | b':' | b'[' | b']' | b'%')
            || b"!$&'()*+,;=".contains(&byte)
    };
    !text.is_empty() && text.bytes().all(allowed)
}

/// A text as `grpc-message` (percent-encoded, as the gRPC specification has it).
pub(crate) fn percent_encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'%' => out.push_str("%25"),
            0x20..=0x7E => out.push(char::from(byte)),
            other => {
                // Writing to a String cannot fail.
                let _ = write!(out, "%{other:02X}");
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let line = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        lines.iter().map(line).collect()
    }

    #[test]
    fn what_belongs_to_one_connection_is_taken_away() {
        let mut map = headers(&[
            ("connection", "x-hop, keep-alive, TE"),
            ("x-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("upgrade", "h2c"),
            ("x_under", "1"),
        ]);
        strip_hop_by_hop(&mut map, false);
        assert_eq!(map, headers(&[("te", "trailers"), ("x_under", "1")]));
        let mut map = headers(&[("connection", "Upgrade"), ("upgrade", "websocket"), ("te", "gzip")]);
        assert!(wants_upgrade(&map));
        strip_hop_by_hop(&mut map, true);
        assert_eq!(map, headers(&[("connection", "upgrade"), ("upgrade", "websocket")]));
    }

    #[test]
    fn http_is_no_protocol_to_upgrade_to() {
        for (upgrade, wanted) in [
            ("websocket", true),
            ("foo/2", true),
            ("h2c", false),
            ("H2C", false),
            ("websocket, h2c", false),
            ("HTTP/2.0", false),
            ("TLS/1.2", false),
        ] {
            assert_eq!(
                wants_upgrade(&headers(&[("connection", "Upgrade"), ("upgrade", upgrade)])),
                wanted,
                "{upgrade}"
            );
        }
    }

    #[test]
    fn crumbs_become_one_cookie() {
        let mut map = headers(&[("cookie", "a=1"), ("x", "y"), ("cookie", "b=2"), ("cookie", "c=3")]);
        join_cookies(&mut map);
        assert_eq!(map, headers(&[("cookie", "a=1; b=2; c=3"), ("x", "y")]));
        join_cookies(&mut map);
        assert_eq!(map.get_all("cookie").iter().count(), 1);
    }

    #[test]
    fn controls_are_taken_away_and_nothing_else() {
        let mut map = headers(&[
            ("x-envoy-retry-on", "5xx"),
            ("x-envoy-upstream-rq-timeout-ms", "1"),
            ("x-envoy-other", "1"),
        ]);
        strip_controls(&mut map);
        assert_eq!(map, headers(&[("x-envoy-other", "1")]));
    }

    #[test]
    fn request_ids_are_random_uuids() {
        let id = request_id([u64::MAX, 0]);
        assert_eq!(&id, b"ffffffff-ffff-4fff-8000-000000000000");
        let id = request_id([0x0123_4567_89AB_CDEF, 0xFEDC_BA98_7654_3210]);
        assert_eq!(&id, b"01234567-89ab-4def-bedc-ba9876543210");
        let texts = Texts::default();
        let copies: Vec<Bytes> = (0..300).map(|_| texts.copy(&id)).collect();
        assert!(copies.iter().all(|copy| **copy == id));
    }

    #[test]
    fn grpc_is_told_by_its_content_type() {
        for (value, grpc) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc;x=y", true),
            ("application/grpc-web", false),
            ("text/plain", false),
        ] {
            assert_eq!(is_grpc_type(&HeaderValue::from_static(value)), grpc, "{value}");
        }
    }

    #[test]
    fn numbers_are_written_as_numbers() {
        for value in (0..120).chain([15_000, u64::MAX]) {
            assert_eq!(number(value), HeaderValue::from(value), "{value}");
        }
    }

    #[test]
    fn grpc_timeouts_are_read() {
        for (value, timeout) in [
            ("300m", Some(Duration::from_millis(300))),
            ("2S", Some(Duration::from_secs(2))),
            ("1H", Some(Duration::from_secs(3600))),
            ("99999999n", Some(Duration::from_nanos(99_999_999))),
            ("123456789m", None),
            ("m", None),
            ("", None),
            ("+1S", None),
        ] {
            assert_eq!(grpc_timeout(&headers(&[("grpc-timeout", value)])), timeout, "{value}");
        }
    }

    #[test]
    fn messages_for_grpc_are_encoded() {
        assert_eq!(percent_encoded("100% \u{e4}\n"), "100%25 %C3%A4%0A");
    }
}
