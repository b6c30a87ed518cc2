//! Why requests are refused, in the words of metrics; and the account of those that nobody could read.

use std::error::Error;

use http::request::Parts;
use http::{Method, Request, Uri, Version};

use super::flags::Reason;
use super::h1::Malformed;
use super::reply::Reply;
use crate::account::Failure;
use crate::labels::Service;

/// The reason that `weft_refused_total` names for an answer of the mesh; `None` where it is no refusal.
pub(crate) fn reason(reply: &Reply, service: &Service) -> Option<&'static str> {
    match reply.flags.reason {
        Some(Reason::DPE) if reply.status == 431 => return Some("head_too_large"),
        Some(Reason::DPE) => return Some("malformed_request"),
        Some(Reason::UO) => return Some("overflow"),
        Some(Reason::UAEX) => return Some("external_authorization"),
        // What the destination refuses is counted there.
        Some(
            Reason::DENY
            | Reason::UH
            | Reason::UF
            | Reason::NR
            | Reason::NC
            | Reason::UT
            | Reason::UC
            | Reason::UR
            | Reason::DC
            | Reason::LR
            | Reason::IH
            | Reason::UPE,
        ) => return None,
        None => {}
    }
    match (&*reply.details, service) {
        ("low_version", _) => Some("http_version"),
        ("upgrade_failed", _) => Some("connect_method"),
        ("request_payload_too_large", _) => Some("body_too_large"),
        (details, _) if details.starts_with("rbac_access_denied") => Some("authorization"),
        (details, _) if details.starts_with("jwt_authn_access_denied") => Some("request_authentication"),
        // E45.
        (_, Service::BlackHole) => Some("unknown_host"),
        (_, Service::Known { .. } | Service::Passthrough | Service::Unknown) => None,
    }
}

/// What stands for the head of a request that could not be read.
pub(crate) fn unread_head(http2: bool) -> Parts {
    let (mut parts, ()) = Request::new(()).into_parts();
    // A dash is a token, and an authority without a path.
    parts.method = Method::from_bytes(b"-").unwrap_or_default();
    parts.uri = Uri::from_static("-");
    parts.version = if http2 { Version::HTTP_2 } else { Version::HTTP_11 };
    parts
}

/// The answer that the connection has given to a head that it could not read (H-10).
pub(crate) fn unread(malformed: Malformed) -> Reply {
    let details = if malformed.status == 431 { "http1.headers_too_large" } else { "http1.codec_error" };
    Reply { failure: Some(malformed.to_string()), ..Reply::malformed(malformed.status, "", details) }
}

/// For a connection on which the client broke the rules of HTTP/2. Clients that just leave break none.
pub(crate) fn broken_http2(error: &hyper::Error) -> Option<Failure> {
    let error = error.source()?.downcast_ref::<h2::Error>()?;
    let ours = error.is_library() && error.reason() != Some(h2::Reason::NO_ERROR);
    let details = || format!("the client broke the rules of HTTP/2: {error}");
    ours.then(|| Failure::new("DPE", "malformed_request", details()))
}

/// For a connection whose client did not send a head to its end.
pub(crate) fn late_head() -> Failure {
    Failure::new("DPE", "head_timeout", "the head of a request did not come to its end within 60 s")
}

/// For a connection whose client did not send a body to its end.
pub(crate) fn late_body() -> Failure {
    Failure::new("DPE", "body_timeout", "nothing of a request's body came for an hour")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_have_a_reason_and_failures_have_none() {
        let of = |reply: &Reply| reason(reply, &Service::Unknown);
        assert_eq!(of(&Reply::malformed(400, "", "")), Some("malformed_request"));
        assert_eq!(of(&Reply::malformed(431, "", "")), Some("head_too_large"));
        assert_eq!(of(&Reply::flagged(503, "", "", Reason::UO)), Some("overflow"));
        assert_eq!(of(&Reply::flagged(503, "", "", Reason::UF)), None);
        assert_eq!(of(&Reply::flagged(503, "", "", Reason::DENY)), None);
        let denied = "rbac_access_denied_matched_policy[none]";
        assert_eq!(of(&Reply::text(403, "", denied)), Some("authorization"));
        assert_eq!(of(&Reply::text(403, "", "direct_response")), None, "a rule of the user's");
        assert_eq!(reason(&Reply::text(502, "", ""), &Service::BlackHole), Some("unknown_host"));
    }

    #[test]
    fn a_head_that_nobody_read_has_no_names() {
        let parts = unread_head(true);
        assert_eq!((parts.method.as_str(), parts.version), ("-", Version::HTTP_2));
        assert_eq!(parts.uri.path_and_query(), None);
    }
}
