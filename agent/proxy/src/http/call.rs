//! A request on its way through the proxy.

use http::Request;
use http::request::Parts;

use super::body::Body;
use super::message::Message;

/// A request, always in a box: it is handed on a dozen times, and would be moved each time.
pub(crate) struct Call {
    /// Its head.
    pub(crate) parts: Parts,
    /// Its body.
    pub(crate) body: Body,
    /// What was read of a request that no rule changes: a server's side in this process need not read it again, and what
    /// it writes on the answer is written over by the client's side.
    pub(crate) plain: Option<Message>,
}

impl Call {
    /// The same head without a body. Copies are changed, those for mirrors for example.
    pub(crate) fn copy(&self) -> Box<Self> {
        Box::new(Self { parts: self.parts.clone(), body: Body::empty(), plain: None })
    }

    /// Takes the body.
    pub(crate) fn take_body(&mut self) -> Body {
        std::mem::replace(&mut self.body, Body::empty())
    }
}

impl From<Request<Body>> for Box<Call> {
    fn from(request: Request<Body>) -> Self {
        let (parts, body) = request.into_parts();
        Self::new(Call { parts, body, plain: None })
    }
}

impl std::fmt::Debug for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Call").field("parts", &self.parts).field("body", &self.body).finish()
    }
}
