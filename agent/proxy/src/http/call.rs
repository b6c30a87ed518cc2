//! A request on its way through the proxy.

use http::Request;
use http::request::Parts;

use super::body::Body;

/// A request, always in a box: it is handed on a dozen times, and would be moved each time.
pub(crate) struct Call {
    /// Its head.
    pub(crate) parts: Parts,
    /// Its body.
    pub(crate) body: Body,
}

impl Call {
    /// The same head without a body.
    pub(crate) fn copy(&self) -> Box<Self> {
        Box::new(Self { parts: self.parts.clone(), body: Body::empty() })
    }

    /// Takes the body.
    pub(crate) fn take_body(&mut self) -> Body {
        std::mem::replace(&mut self.body, Body::empty())
    }
}

impl From<Request<Body>> for Box<Call> {
    fn from(request: Request<Body>) -> Self {
        let (parts, body) = request.into_parts();
        Self::new(Call { parts, body })
    }
}

impl std::fmt::Debug for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Call").field("parts", &self.parts).field("body", &self.body).finish()
    }
}
