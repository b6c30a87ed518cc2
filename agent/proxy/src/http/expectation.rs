//! `Expect: 100-continue` from end to end (H-6): the client sends its body when the application wants it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http::header::EXPECT;
use http::{HeaderValue, Request, Version};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Sleep;

use super::body::{Body, BodyError};
use super::call::Call;

/// How long an application may be silent: some never say 100, and wait for the body (RFC 9110 10.1.1).
const PATIENCE: Duration = Duration::from_secs(1);

/// Told by the connection to the application, which has it as an extension of the request.
#[derive(Default)]
pub(crate) struct Gate {
    open: AtomicBool,
    waker: AtomicWaker,
}

impl Gate {
    /// The application wants the body.
    pub(crate) fn open(&self) {
        self.open.store(true, Ordering::Release);
        self.waker.wake();
    }
}

/// Holds the body back until the application says 100, if the client waits for that.
///
/// Reading the body is what makes the client's connection say 100.
pub(crate) fn wait(call: &mut Call) {
    let expects = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"100-continue");
    let waits = call.parts.version == Version::HTTP_11 && !call.body.is_end_stream();
    if !waits || !call.parts.headers.get(EXPECT).is_some_and(expects) {
        return;
    }
    let gate = Arc::new(Gate::default());
    let opener = gate.clone();
    let mut informed = Request::new(());
    std::mem::swap(informed.extensions_mut(), &mut call.parts.extensions);
    hyper::ext::on_informational(&mut informed, move |response| {
        if response.status() == http::StatusCode::CONTINUE {
            opener.open();
        }
    });
    std::mem::swap(informed.extensions_mut(), &mut call.parts.extensions);
    // Connections of HTTP/1 are ours.
    call.parts.extensions.insert(gate.clone());
    let body = call.take_body();
    call.body = Body::new(Held { body, gate, patience: None, open: false });
}

struct Held {
    body: Body,
    gate: Arc<Gate>,
    /// Begins with the first question.
    patience: Option<Pin<Box<Sleep>>>,
    open: bool,
}

impl Held {
    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.gate.waker.register(cx.waker());
        if self.gate.open.load(Ordering::Acquire) {
            return Poll::Ready(());
        }
        self.patience.get_or_insert_with(|| Box::pin(tokio::time::sleep(PATIENCE))).as_mut().poll(cx)
    }
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if !self.open {
            ready!(self.poll_open(cx));
            self.open = true;
            self.patience = None;
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
