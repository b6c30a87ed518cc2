//! Names of header fields that are frequent: found by length and first letter, without memory and without a search.

use http::HeaderName;
use http::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH,
    CONTENT_TYPE, COOKIE, DATE, ETAG, HOST, LAST_MODIFIED, SERVER, SET_COOKIE, TRANSFER_ENCODING, USER_AGENT,
    VARY,
};

use super::super::headers::{
    ATTEMPT_COUNT, EXPECTED_TIMEOUT, SERVICE_TIME, X_FORWARDED_CLIENT_CERT, X_FORWARDED_FOR,
    X_FORWARDED_PROTO, X_REQUEST_ID,
};

const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_B3_TRACEID: HeaderName = HeaderName::from_static("x-b3-traceid");
const X_B3_SPANID: HeaderName = HeaderName::from_static("x-b3-spanid");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The only frequent name that this may be, in whatever case.
pub(super) fn frequent(raw: &[u8]) -> Option<HeaderName> {
    Some(match (raw.len(), raw.first()?.to_ascii_lowercase()) {
        (4, b'h') => HOST,
        (4, b'd') => DATE,
        (4, b'e') => ETAG,
        (4, b'v') => VARY,
        (6, b'a') => ACCEPT,
        (6, b'c') => COOKIE,
        (6, b's') => SERVER,
        (10, b'c') => CONNECTION,
        (10, b's') => SET_COOKIE,
        (10, b'u') => USER_AGENT,
        (11, b't') => TRACEPARENT,
        (11, b'x') => X_B3_SPANID,
        (12, b'c') => CONTENT_TYPE,
        (12, b'x') if raw.get(2).is_some_and(|third| third.eq_ignore_ascii_case(&b'b')) => X_B3_TRACEID,
        (12, b'x') => X_REQUEST_ID,
        (13, b'a') => AUTHORIZATION,
        (13, b'c') => CACHE_CONTROL,
        (13, b'l') => LAST_MODIFIED,
        (14, b'c') => CONTENT_LENGTH,
        (15, b'a') => ACCEPT_ENCODING,
        (15, b'x') => X_FORWARDED_FOR,
        (16, b'c') => CONTENT_ENCODING,
        (16, b'x') => X_FORWARDED_HOST,
        (17, b't') => TRANSFER_ENCODING,
        (17, b'x') => X_FORWARDED_PROTO,
        (21, b'x') => ATTEMPT_COUNT,
        (23, b'x') => X_FORWARDED_CLIENT_CERT,
        (29, b'x') => SERVICE_TIME,
        (30, b'x') => EXPECTED_TIMEOUT,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequent_names_are_found_in_any_case() {
        for name in [
            "host",
            "date",
            "etag",
            "vary",
            "accept",
            "cookie",
            "server",
            "connection",
            "set-cookie",
            "user-agent",
            "traceparent",
            "x-b3-spanid",
            "content-type",
            "x-b3-traceid",
            "x-request-id",
            "authorization",
            "cache-control",
            "last-modified",
            "content-length",
            "accept-encoding",
            "x-forwarded-for",
            "content-encoding",
            "x-forwarded-host",
            "transfer-encoding",
            "x-forwarded-proto",
            "x-envoy-attempt-count",
            "x-forwarded-client-cert",
            "x-envoy-upstream-service-time",
            "x-envoy-expected-rq-timeout-ms",
        ] {
            for written in [name.to_owned(), name.to_ascii_uppercase()] {
                assert_eq!(frequent(written.as_bytes()).unwrap(), name, "{written}");
            }
        }
        for other in ["", "x", "via"] {
            assert_eq!(frequent(other.as_bytes()), None, "{other}");
        }
    }
}
