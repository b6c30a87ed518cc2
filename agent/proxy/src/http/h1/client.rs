//! The client's side of a connection: a request is written, its answer read, and then the next one may come.
//!
//! The request that is on the connection drives it, in its own task. Between requests the connection's own task
//! ([`Own`]) waits for its end; it is not woken otherwise.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use http::{Method, Response, StatusCode};

use super::super::body::{Body, BodyError};
use super::super::call::Call;
use super::super::expectation::Gate;
use super::decoder::{Decoder, Framing};
use super::head::{self, Answered};
use super::link::{Link, Sending, State, Unsent};
use super::switched::{Duplex, Switched};
use super::wire::Wire;
use super::{Progress, write};

/// Answers with 1xx before the one that counts: nobody has so much to say.
const MOST_INFORMATIONAL: u32 = 100;

/// A connection, for who sends requests on it. Whoever has it has it alone; dropped, it is closed.
pub(crate) struct Client<T>(Rc<Line<T>>);

/// What the users of a connection share.
struct Line<T> {
    link: Rc<Link<T>>,
    /// The connection may have another request after this one.
    reusable: Cell<bool>,
    /// A request's body is not written to its end.
    uploading: Cell<bool>,
    /// Wakes the connection's own task.
    own: RefCell<Option<Waker>>,
    /// Wakes who writes the rest of a request's body.
    uploader: RefCell<Option<Waker>>,
}

/// An answer whose head has come.
pub(crate) struct Answer<T> {
    /// The answer.
    pub(crate) response: Response<Body>,
    /// What is left of the request's body: it has to go on while the answer waits to be read.
    pub(crate) rest: Option<Upload<T>>,
}

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum Failed {
    /// Nothing of the request was written.
    Unsent(Box<Call>),
    /// The request's body did not come to its end.
    Body(BodyError),
    /// The connection broke; nobody knows what became of the request.
    Reset(String),
}

impl<T> Line<T> {
    fn close(&self) {
        let wire = self.link.take();
        if wire.is_some() {
            self.wake();
        }
    }

    /// The connection is gone: nothing else would wake who waits for it.
    fn wake(&self) {
        let waiting = [self.own.borrow_mut().take(), self.uploader.borrow_mut().take()];
        waiting.into_iter().flatten().for_each(Waker::wake);
    }

    fn is_ready(&self) -> bool {
        let state = self.link.state();
        let at_rest = state.wire.as_ref().is_some_and(|wire| wire.ahead.is_empty());
        at_rest && state.decoder.is_over() && self.reusable.get() && !self.uploading.get()
    }
}

/// A connection on which nothing was sent yet.
pub(crate) fn connect<T>(io: T) -> (Client<T>, Own<T>)
where
    T: Duplex + 'static,
{
    let line = Rc::new(Line {
        link: Link::new(io, Rc::<Progress>::default()),
        reusable: Cell::new(true),
        uploading: Cell::new(false),
        own: RefCell::default(),
        uploader: RefCell::default(),
    });
    (Client(line.clone()), Own(line))
}

impl<T: Duplex + 'static> Client<T> {
    /// Whether it is closed, or given away to another protocol.
    pub(crate) fn is_closed(&self) -> bool {
        !self.0.link.is_open()
    }

    /// Whether it takes a request now.
    pub(crate) fn is_ready(&self) -> bool {
        self.0.is_ready()
    }

    /// Leaves the connection to its own task; closes it where it takes no other request.
    pub(crate) fn rest(&self) {
        let Self(line) = self;
        let own = line.own.borrow().clone();
        let over = match own.filter(|_| line.is_ready()) {
            Some(own) => line.poll_end(&mut Context::from_waker(&own)).is_ready(),
            None => !line.is_ready(),
        };
        if over {
            line.close();
        }
    }

    /// Sends a request.
    ///
    /// # Cancel safety
    /// Dropped, the connection takes no other request.
    pub(crate) async fn send(&self, call: Box<Call>) -> Result<Answer<T>, Failed> {
        let Self(line) = self;
        let mut waiting =
            match poll_fn(|cx| Poll::Ready(line.is_ready() && line.poll_end(cx).is_pending())).await {
                true => line.begin(call),
                false => {
                    line.close();
                    return Err(Failed::Unsent(call));
                }
            };
        let answer = poll_fn(|cx| waiting.poll(line, cx)).await;
        if answer.is_err() {
            line.close();
        }
        answer
    }
}

impl<T> Drop for Client<T> {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl<T: Duplex + 'static> Line<T> {
    /// Between requests: ready when the other side has closed, or says what nobody asked.
    fn poll_end(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.link.state();
        let Some(wire) = &mut state.wire else { return Poll::Ready(()) };
        wire.poll_fill(cx).map(drop)
    }

    fn begin(&self, mut call: Box<Call>) -> Waiting {
        let body = call.take_body();
        let parts = &mut call.parts;
        let mut state = self.link.state();
        let State { wire, decoder, spare, .. } = &mut *state;
        *decoder = Decoder::Unknown;
        let sending = wire.as_mut().map(|wire| {
            let (encoder, closes) = write::request(parts, &body, wire.out.small());
            self.reusable.set(!closes);
            Sending::new(body, encoder)
        });
        parts.headers.clear();
        *spare = std::mem::take(&mut parts.headers);
        let gate = parts.extensions.remove::<Arc<Gate>>();
        Waiting {
            to_head: parts.method == Method::HEAD,
            gate,
            sending,
            fresh: true,
            looked_at: 0,
            informational: 0,
        }
    }
}

/// A request whose answer has not come.
struct Waiting {
    to_head: bool,
    /// Told when the application wants the body.
    gate: Option<Arc<Gate>>,
    /// Not written to its end.
    sending: Option<Sending>,
    /// Whoever wakes this task is known already.
    fresh: bool,
    looked_at: usize,
    /// Answers with 1xx so far.
    informational: u32,
}

impl Waiting {
    fn poll<T: Duplex + 'static>(
        &mut self,
        line: &Rc<Line<T>>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Answer<T>, Failed>> {
        if let Some(sending) = &mut self.sending {
            match sending.poll(&line.link, cx) {
                Poll::Ready(Ok(())) => self.sending = None,
                Poll::Ready(Err(Unsent::Body(error))) => return Poll::Ready(Err(Failed::Body(error))),
                // The answer may be on its way all the same.
                Poll::Ready(Err(Unsent::Connection)) => {
                    self.sending = None;
                    line.reusable.set(false);
                }
                Poll::Pending => {}
            }
        }
        if std::mem::take(&mut self.fresh) && line.reusable.get() {
            return Poll::Pending;
        }
        let Answered { parts, framing, keep_alive } = loop {
            let mut answered = ready!(self.poll_head(&line.link, cx)).map_err(Failed::Reset)?;
            match answered.parts.status {
                StatusCode::SWITCHING_PROTOCOLS => return Poll::Ready(switched(line, answered.parts)),
                StatusCode::CONTINUE => self.gate.iter().for_each(|gate| gate.open()),
                status if status.is_informational() => {}
                _ => break answered,
            }
            self.informational += 1;
            if self.informational > MOST_INFORMATIONAL {
                return Poll::Ready(Err(Failed::Reset("the server says 1xx again and again".to_owned())));
            }
            answered.parts.headers.clear();
            line.link.state().spare = answered.parts.headers;
        };
        let until_close = framing == Some(Framing::UntilClose);
        line.reusable.set(line.reusable.get() && keep_alive && !until_close);
        let body = line.link.body(framing, false);
        let rest = self.sending.take().map(|sending| {
            line.uploading.set(true);
            Upload { line: line.clone(), sending }
        });
        Poll::Ready(Ok(Answer { response: Response::from_parts(parts, body), rest }))
    }

    fn poll_head<T: Duplex + 'static>(
        &mut self,
        link: &Link<T>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Answered, String>> {
        let mut state = link.state();
        let State { wire, spare, .. } = &mut *state;
        let Some(wire) = wire else { return Poll::Ready(Err("the connection was closed".to_owned())) };
        loop {
            let looks = head::may_be_complete(&wire.ahead, self.looked_at);
            if !wire.ahead.is_empty() && (looks || wire.ahead.len() >= head::ANSWER_BYTES) {
                let answered = head::answer(&mut wire.ahead, self.to_head, spare);
                if let Some(answered) = answered.map_err(|malformed| malformed.to_string())? {
                    self.looked_at = 0;
                    return Poll::Ready(Ok(answered));
                }
            }
            self.looked_at = wire.ahead.len();
            match ready!(wire.poll_fill(cx)) {
                Ok(0) => return Poll::Ready(Err("the connection was closed before the answer".to_owned())),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Err(error.to_string())),
            }
        }
    }
}

/// The connection belongs to who takes it out of the answer.
fn switched<T: Duplex + 'static>(line: &Line<T>, parts: http::response::Parts) -> Result<Answer<T>, Failed> {
    let Some(Wire { io, ahead, .. }) = line.link.take() else {
        return Err(Failed::Reset("the connection was closed".to_owned()));
    };
    line.wake();
    let mut response = Response::from_parts(parts, Body::empty());
    response.extensions_mut().insert(Switched::new(io, ahead.freeze()));
    Ok(Answer { response, rest: None })
}

/// The rest of a request's body.
pub(crate) struct Upload<T> {
    line: Rc<Line<T>>,
    sending: Sending,
}

impl<T: Duplex + 'static> Upload<T> {
    /// Writes it to its end. Where it has none, the connection is closed: nobody is to take it for the whole. A server
    /// that reads no more may still be telling why.
    pub(crate) async fn run(mut self) {
        let Self { line, sending } = &mut self;
        let written = poll_fn(|cx| {
            *line.uploader.borrow_mut() = Some(cx.waker().clone());
            sending.poll(&line.link, cx)
        });
        match written.await {
            Ok(()) => line.uploading.set(false),
            Err(Unsent::Connection) => {
                line.reusable.set(false);
                line.uploading.set(false);
            }
            Err(Unsent::Body(_)) => {}
        }
    }
}

impl<T> Drop for Upload<T> {
    fn drop(&mut self) {
        if self.line.uploading.get() {
            self.line.close();
        }
    }
}

/// The connection's own task has this. Dropped, it closes the connection.
pub(crate) struct Own<T>(Rc<Line<T>>);

impl<T: Duplex + 'static> Own<T> {
    /// Ready when the connection is over.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Self(line) = self;
        if !line.link.is_open() {
            return Poll::Ready(());
        }
        let mut own = line.own.borrow_mut();
        if !own.as_ref().is_some_and(|own| own.will_wake(cx.waker())) {
            *own = Some(cx.waker().clone());
        }
        drop(own);
        // Otherwise a request drives it.
        if line.is_ready() && line.poll_end(cx).is_ready() {
            line.close();
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

impl<T> Drop for Own<T> {
    fn drop(&mut self) {
        self.0.close();
    }
}
