//! Answers that the mesh gives itself (H-4, H-9).

use std::borrow::Cow;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, LOCATION, SERVER, WWW_AUTHENTICATE};
use http::{HeaderName, HeaderValue, Response, StatusCode};
use weft_core::decide::http::{LocalReply, grpc_status};

use super::body::Body;
use super::flags::{Flags, Reason};
use super::headers::{GRPC_MESSAGE, GRPC_STATUS, percent_encoded};

/// What `server` says (H-1).
pub(crate) const SERVER_NAME: HeaderValue = HeaderValue::from_static("envoy");

/// An answer that did not come from an application.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reply {
    /// HTTP status.
    pub(crate) status: u16,
    /// The status for gRPC callers, where it does not follow from the other one.
    pub(crate) grpc: Option<u8>,
    /// Headers.
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    /// Body.
    pub(crate) body: Bytes,
    /// Response flags.
    pub(crate) flags: Flags,
    /// `response_code_details`.
    pub(crate) details: Cow<'static, str>,
    /// The policy that decided.
    pub(crate) policy: Option<String>,
    /// For people: more than the client is told.
    pub(crate) failure: Option<String>,
    /// The connection ends with it.
    pub(crate) close: bool,
}

impl Reply {
    /// An answer with a text.
    pub(crate) fn text(status: u16, body: &'static str, details: &'static str) -> Self {
        Self { status, body: Bytes::from_static(body.as_bytes()), details: details.into(), ..Self::default() }
    }

    /// The same with a flag.
    pub(crate) fn flagged(status: u16, body: &'static str, details: &'static str, reason: Reason) -> Self {
        let flags = Flags { reason: Some(reason), ..Flags::default() };
        Self { flags, ..Self::text(status, body, details) }
    }

    /// An answer that refuses a request which is not proper HTTP; the connection ends with it.
    pub(crate) fn malformed(status: u16, body: &'static str, details: &'static str) -> Self {
        Self { close: true, ..Self::flagged(status, body, details, Reason::DPE) }
    }

    /// Adds a header; a value that no header can have is left out.
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        if let (Ok(name), Ok(value)) = (name.parse(), HeaderValue::from_str(value)) {
            self.headers.push((name, value));
        }
        self
    }

    /// The answer as it is sent: HTTP, or what gRPC callers understand (E47).
    pub(crate) fn response(&self, grpc: bool) -> Response<Body> {
        if grpc { self.grpc_response() } else { self.http_response() }
    }

    fn http_response(&self) -> Response<Body> {
        let mut response = Response::new(Body::full(self.body.clone()));
        *response.status_mut() =
            StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        if !self.body.is_empty() {
            headers.insert(CONTENT_LENGTH, HeaderValue::from(self.body.len()));
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        }
        for (name, value) in &self.headers {
            if name == CONTENT_TYPE {
                headers.insert(name.clone(), value.clone());
            } else {
                headers.append(name.clone(), value.clone());
            }
        }
        headers.insert(SERVER, SERVER_NAME);
        if self.close {
            headers.insert(http::header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    /// The gRPC status of the answer.
    pub(crate) fn grpc_status(&self) -> u8 {
        self.grpc.unwrap_or_else(|| grpc_status(self.status))
    }

    fn grpc_response(&self) -> Response<Body> {
        let mut response = Response::new(Body::empty());
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(GRPC_STATUS, HeaderValue::from(u16::from(self.grpc_status())));
        if !self.body.is_empty()
            && let Ok(message) = HeaderValue::try_from(percent_encoded(&String::from_utf8_lossy(&self.body)))
        {
            headers.insert(GRPC_MESSAGE, message);
        }
        for (name, value) in &self.headers {
            if name == LOCATION || name == WWW_AUTHENTICATE {
                headers.append(name.clone(), value.clone());
            }
        }
        headers.insert(SERVER, SERVER_NAME);
        response
    }
}

impl From<&LocalReply> for Reply {
    fn from(local: &LocalReply) -> Self {
        let headers = local.headers.iter().filter_map(|(name, value)| {
            Some((name.parse::<HeaderName>().ok()?, HeaderValue::from_str(value).ok()?))
        });
        Self {
            status: local.status,
            headers: headers.collect(),
            body: Bytes::copy_from_slice(&local.body),
            flags: Flags { reason: Flags::reason_of(local.flag), ..Flags::default() },
            details: local.details.into(),
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http_callers_get_status_and_text() {
        let response = Reply::text(403, "RBAC: access denied", "rbac_access_denied").response(false);
        assert_eq!(response.status(), 403);
        assert_eq!(response.headers()["content-type"], "text/plain");
        assert_eq!(response.headers()["content-length"], "19");
    }

    #[test]
    fn grpc_callers_get_the_status_in_headers_only() {
        for (status, grpc) in [(400, "13"), (401, "16"), (403, "7"), (404, "12"), (503, "14"), (301, "2")] {
            let reply = Reply::text(status, "why", "").with("location", "http://a/");
            let response = reply.response(true);
            assert_eq!(response.status(), 200);
            assert_eq!(response.headers()["grpc-status"], grpc, "{status}");
            assert_eq!(response.headers()["grpc-message"], "why");
            assert_eq!(response.headers()["location"], "http://a/");
        }
    }

    #[test]
    fn a_reply_of_core_keeps_its_headers_and_its_flag() {
        let local = LocalReply {
            status: 301,
            headers: vec![("location".into(), "http://a/b".to_owned())],
            body: [].into(),
            flag: "NR",
            details: "direct_response",
            by: "redirect",
        };
        let reply = Reply::from(&local);
        assert_eq!(reply.flags.text(), "NR");
        assert_eq!(reply.response(false).headers()["location"], "http://a/b");
    }
}
