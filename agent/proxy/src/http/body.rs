//! The body of a message on its way through the proxy.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};

use super::h1::Broken;
use super::received::Received;

/// Why a body ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    /// The connection that it came from broke, or its sender reset it.
    #[error("the sender of the body broke off: {0}")]
    Sender(#[from] hyper::Error),
    /// The same over HTTP/2, where we are the client.
    #[error("the sender of the body broke off: {0}")]
    Stream(#[from] h2::Error),
    /// The same over HTTP/1.
    #[error("the sender of the body broke off: {0}")]
    Broken(#[from] Broken),
    /// We ended it ourselves; the text says why.
    #[error("the body was ended: {0}")]
    Ended(&'static str),
}

impl BodyError {
    /// Whether the sender has sent something that is no body, as opposed to having left.
    pub(crate) fn is_malformed(&self) -> bool {
        match self {
            Self::Broken(Broken::Malformed(_)) => true,
            Self::Broken(Broken::Incomplete | Broken::Io(_))
            | Self::Sender(_)
            | Self::Stream(_)
            | Self::Ended(_) => false,
        }
    }
}

/// Pieces of a body that are smaller are copied to be kept, in bytes.
pub(crate) const SMALL: usize = 1024;

/// A piece of a body for who keeps it. A small one would keep the buffer in which it came, which may be much larger.
pub(crate) fn to_keep(piece: &Bytes) -> Bytes {
    if piece.len() < SMALL { Bytes::copy_from_slice(piece) } else { piece.clone() }
}

/// A body. Belongs to one worker: what it holds until its end need not be `Send`.
///
/// The usual kinds take no allocation.
pub(crate) struct Body(Kind);

enum Kind {
    Full(Option<Bytes>),
    Incoming(Incoming),
    Stream(Received),
    Other(Pin<Box<dyn HttpBody<Data = Bytes, Error = BodyError>>>),
}

impl Body {
    /// No body.
    pub(crate) const fn empty() -> Self {
        Self(Kind::Full(None))
    }

    /// A body that is known already.
    pub(crate) fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self(Kind::Full((!bytes.is_empty()).then_some(bytes)))
    }

    /// A body that comes on an HTTP/2 stream.
    pub(crate) fn stream(stream: h2::RecvStream) -> Self {
        Self(Kind::Stream(Received::new(stream)))
    }

    /// Its bytes, where it needs nothing of anybody any more.
    pub(crate) fn complete(&self) -> Option<&[u8]> {
        match &self.0 {
            Kind::Full(bytes) => Some(bytes.as_deref().unwrap_or_default()),
            Kind::Incoming(_) | Kind::Stream(_) | Kind::Other(_) => None,
        }
    }

    /// A body that does something of its own, for example count until it is dropped.
    pub(crate) fn new(body: impl HttpBody<Data = Bytes, Error = BodyError> + 'static) -> Self {
        Self::boxed(Box::new(body))
    }

    /// The same for one that has its own memory already.
    pub(crate) fn boxed(body: Box<dyn HttpBody<Data = Bytes, Error = BodyError>>) -> Self {
        Self(Kind::Other(Box::into_pin(body)))
    }
}

impl From<Incoming> for Body {
    fn from(incoming: Incoming) -> Self {
        Self(if incoming.is_end_stream() { Kind::Full(None) } else { Kind::Incoming(incoming) })
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.0 {
            Kind::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Kind::Incoming(incoming) => {
                Pin::new(incoming).poll_frame(cx).map(|frame| frame.map(|frame| Ok(frame?)))
            }
            Kind::Stream(stream) => {
                Pin::new(stream).poll_frame(cx).map(|frame| frame.map(|frame| Ok(frame?)))
            }
            Kind::Other(body) => body.as_mut().poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Full(bytes) => bytes.is_none(),
            Kind::Incoming(incoming) => incoming.is_end_stream(),
            Kind::Stream(stream) => stream.is_end_stream(),
            Kind::Other(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Kind::Incoming(incoming) => incoming.size_hint(),
            Kind::Stream(stream) => stream.size_hint(),
            Kind::Other(body) => body.size_hint(),
        }
    }
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match &self.0 {
            Kind::Full(None) => "Body(empty)",
            Kind::Full(Some(_)) => "Body(full)",
            Kind::Incoming(_) => "Body(incoming)",
            Kind::Stream(_) => "Body(stream)",
            Kind::Other(_) => "Body(other)",
        })
    }
}
