//! What is asked, and the request that it describes.

use http::{HeaderMap, HeaderName, HeaderValue, header};
use serde::{Deserialize, Serialize};
use weft_core::decide::http::Request;

use super::target::Target;

/// What is asked. As JSON it travels between commands of one version or the next.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Question {
    /// `NAMESPACE/POD`, an IP address, `spiffe://…` or `outside`.
    pub(crate) from: String,
    /// A URL, `HOST:PORT` or `IP:PORT`.
    pub(crate) to: String,
    /// The client does not use mTLS.
    pub(crate) plaintext: bool,
    /// Server name of the client's own TLS.
    pub(crate) sni: Option<String>,
    /// Protocols that the client's own TLS offers, cut at commas.
    pub(crate) alpn: Option<String>,
    /// GET where absent.
    pub(crate) method: Option<String>,
    /// `name: value`, one each.
    pub(crate) headers: Vec<String>,
    /// Bytes of the request's body.
    pub(crate) body_size: Option<u64>,
    /// A token, sent as `Authorization: Bearer`.
    pub(crate) token: Option<String>,
    /// The Gateway at which the request arrives.
    pub(crate) at: Option<String>,
    /// Picks one where a choice is random.
    pub(crate) seed: Option<u64>,
}

impl Question {
    /// Whether it can only be about a request, whatever the port speaks.
    pub(super) fn is_about_a_request(&self) -> bool {
        self.method.is_some() || !self.headers.is_empty() || self.body_size.is_some() || self.token.is_some()
    }
}

/// A question that cannot be answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Unanswerable(pub(crate) String);

/// The request of the question, as it stands on the wire.
#[derive(Debug, Clone)]
pub(super) struct AskedRequest {
    pub(super) method: String,
    pub(super) authority: String,
    pub(super) target: String,
    pub(super) headers: HeaderMap,
    /// Bytes, where the question says so.
    pub(super) body_size: Option<u64>,
    /// `x-forwarded-proto` of the client, else `http` (E14).
    scheme: String,
}

impl AskedRequest {
    pub(super) fn of(question: &Question, target: &Target) -> Result<Self, Unanswerable> {
        let mut asked = Self {
            method: question.method.clone().unwrap_or_else(|| "GET".into()),
            authority: target.authority.clone(),
            target: target.path.clone(),
            headers: HeaderMap::new(),
            body_size: question.body_size,
            scheme: "http".into(),
        };
        if http::Method::from_bytes(asked.method.as_bytes()).is_err() {
            return Err(Unanswerable(format!("-X {}: this is no method of HTTP.", asked.method)));
        }
        question.headers.iter().try_for_each(|line| asked.add(line))?;
        if let Some(token) = &question.token {
            let value = HeaderValue::from_str(&format!("Bearer {}", token.trim()));
            let value = value.map_err(|_| Unanswerable("--jwt: the file holds no token.".into()))?;
            asked.headers.append(header::AUTHORIZATION, value);
        }
        let proto = asked.headers.get("x-forwarded-proto").and_then(|value| value.to_str().ok());
        if let Some(proto) = proto {
            asked.scheme = proto.to_owned();
        }
        Ok(asked)
    }

    fn add(&mut self, line: &str) -> Result<(), Unanswerable> {
        let bad = |why: &str| Unanswerable(format!("-H '{line}': {why}; write 'name: value'."));
        let (name, value) = line.split_once(':').ok_or_else(|| bad("there is no colon"))?;
        let value = value.trim();
        if name.eq_ignore_ascii_case("host") {
            value.clone_into(&mut self.authority);
            return Ok(());
        }
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad("this is no name of a header"))?;
        let value = HeaderValue::from_bytes(value.as_bytes())
            .map_err(|_| bad("the value has forbidden characters"))?;
        self.headers.append(name, value);
        Ok(())
    }

    pub(super) fn as_request(&self) -> Request<'_> {
        Request {
            method: &self.method,
            scheme: &self.scheme,
            authority: &self.authority,
            target: &self.target,
            headers: &self.headers,
        }
    }

    /// Whether errors are answered in gRPC's way (E47).
    pub(super) fn is_grpc(&self) -> bool {
        let kind = self.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        let Some(rest) = kind.and_then(|kind| kind.strip_prefix("application/grpc")) else { return false };
        rest.is_empty() || rest.starts_with(['+', ';'])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(headers: &[&str]) -> Result<AskedRequest, Unanswerable> {
        let question =
            Question { headers: headers.iter().map(|line| (*line).into()).collect(), ..Question::default() };
        AskedRequest::of(&question, &Target::nowhere("shop:80", "/a"))
    }

    #[test]
    fn headers_stand_as_they_were_given() {
        let asked = asked(&["Host: other:81", "X-A: 1", "x-a:2", "x-empty:"]).unwrap();
        assert_eq!(asked.authority, "other:81");
        let values: Vec<_> = asked.headers.get_all("x-a").iter().collect();
        assert_eq!(values, ["1", "2"]);
        assert_eq!(asked.headers["x-empty"], "");
    }

    #[test]
    fn what_is_no_header_is_refused() {
        for line in ["no colon", ": x", "a b: c", "x: \u{7f}"] {
            assert!(asked(&[line]).is_err(), "{line}");
        }
    }

    #[test]
    fn grpc_is_told_by_its_content_type() {
        for (kind, grpc) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc; charset=x", true),
            ("application/grpc-web", false),
            ("application/json", false),
        ] {
            assert_eq!(asked(&[&format!("content-type: {kind}")]).unwrap().is_grpc(), grpc, "{kind}");
        }
    }
}
