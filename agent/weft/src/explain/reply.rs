//! Answers that the mesh gives itself, as the client receives them.

use std::fmt::Write;

use weft_core::decide::http::{LocalReply, grpc_status};
use weft_core::resource::virtual_service::AbortStatus;

use super::ResponseView;

/// A local reply; callers of gRPC get its terms (E47).
pub(super) fn view(reply: &LocalReply, grpc: bool) -> ResponseView {
    let headers = reply.headers.iter().map(|(name, value)| (name.to_string(), value.clone())).collect();
    let plain = ResponseView {
        status: reply.status,
        headers,
        body: String::from_utf8_lossy(&reply.body).into_owned(),
        by: reply.by.into(),
    };
    in_terms_of_client(plain, grpc)
}

/// An answer without headers of its own.
pub(super) fn plain(status: u16, body: &str, by: &str, grpc: bool) -> ResponseView {
    let plain = ResponseView { status, headers: Vec::new(), body: body.into(), by: by.into() };
    in_terms_of_client(plain, grpc)
}

/// An injected abort (E20, E24).
pub(super) fn abort(status: AbortStatus, grpc: bool) -> ResponseView {
    const BODY: &str = "fault filter abort";
    match status {
        AbortStatus::Http(status) => plain(status, BODY, "fault", grpc),
        AbortStatus::Grpc(code) if grpc => with_grpc_status(plain(200, BODY, "fault", false), code),
        AbortStatus::Grpc(_) => plain(200, BODY, "fault", false),
    }
}

/// In words.
pub(super) fn told(response: &ResponseView) -> String {
    let find = |name: &str| response.headers.iter().find(|(header, _)| header.eq_ignore_ascii_case(name));
    let mut text = format!("status {}", response.status);
    for name in ["location", "grpc-status", "grpc-message"] {
        if let Some((_, value)) = find(name) {
            let _ = write!(text, ", {name} {value}");
        }
    }
    if !response.body.is_empty() {
        let _ = write!(text, ", body `{}`", response.body);
    }
    text
}

/// E47: status 200, headers only, the body moves to `grpc-message`.
pub(super) fn in_terms_of_client(response: ResponseView, grpc: bool) -> ResponseView {
    let told = response.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("grpc-status"));
    if !grpc || told {
        return response;
    }
    let code = grpc_status(response.status);
    with_grpc_status(response, code)
}

fn with_grpc_status(response: ResponseView, code: u8) -> ResponseView {
    let mut headers = response.headers;
    headers.push(("content-type".into(), "application/grpc".into()));
    headers.push(("grpc-status".into(), code.to_string()));
    if !response.body.is_empty() {
        headers.push(("grpc-message".into(), percent_encode(&response.body)));
    }
    ResponseView { status: 200, headers, body: String::new(), by: response.by }
}

/// As gRPC encodes its messages: everything but printable ASCII, and `%`.
fn percent_encode(message: &str) -> String {
    let mut out = String::with_capacity(message.len());
    for byte in message.bytes() {
        if (b' '..=b'~').contains(&byte) && byte != b'%' {
            out.push(byte.into());
        } else {
            // Writing to a String cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header<'a>(response: &'a ResponseView, name: &str) -> Option<&'a str> {
        response.headers.iter().find(|(header, _)| header == name).map(|(_, value)| value.as_str())
    }

    #[test]
    fn grpc_callers_get_a_status_of_theirs() {
        let response = plain(403, "RBAC: access denied", "authorization", true);
        assert_eq!((response.status, response.body.as_str()), (200, ""));
        assert_eq!(header(&response, "grpc-status"), Some("7"));
        assert_eq!(header(&response, "grpc-message"), Some("RBAC: access denied"));
        assert_eq!(in_terms_of_client(response.clone(), true), response);
    }

    #[test]
    fn an_abort_speaks_as_the_caller_does() {
        assert_eq!(abort(AbortStatus::Http(418), false).status, 418);
        assert_eq!(header(&abort(AbortStatus::Http(503), true), "grpc-status"), Some("14"));
        assert_eq!(header(&abort(AbortStatus::Grpc(8), true), "grpc-status"), Some("8"));
        let plain = abort(AbortStatus::Grpc(14), false);
        assert_eq!((plain.status, plain.body.as_str()), (200, "fault filter abort"));
    }

    #[test]
    fn messages_are_printable() {
        assert_eq!(percent_encode("50% für"), "50%25 f%C3%BCr");
    }
}
