//! What the task of a connection, or of a request on it, and the body of a message share.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite};

use super::super::body::{Body, BodyError};
use super::decoder::{Decoded, Decoder, Framing};
use super::wire::Wire;
use super::write::Encoder;
use super::{Broken, Progress};

/// A connection that carries one message in each direction at a time.
pub(super) struct Link<T> {
    state: RefCell<State<T>>,
    pub(super) progress: Rc<Progress>,
}

pub(super) struct State<T> {
    /// `None` when it was closed or given away.
    pub(super) wire: Option<Wire<T>>,
    /// Of the message that is read.
    pub(super) decoder: Decoder,
    /// Which message that is: bodies of earlier ones get nothing any more.
    message: u64,
    /// Who asks for the body is to be said to the sender first, who waits for it.
    expects: bool,
    /// That is on its way.
    saying: bool,
    /// Emptied memory for fields.
    pub(super) spare: HeaderMap,
}

impl<T> State<T> {
    /// The answer begins: 100 would stand in the midst of it.
    pub(super) fn forget_expectation(&mut self) {
        self.expects = false;
    }
}

impl<T> Link<T> {
    pub(super) fn new(io: T, progress: Rc<Progress>) -> Rc<Self>
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        let state = State {
            wire: Some(Wire::new(io)),
            decoder: Decoder::Length(0),
            message: 0,
            expects: false,
            saying: false,
            spare: HeaderMap::new(),
        };
        Rc::new(Self { state: RefCell::new(state), progress })
    }

    /// Everything at once. Never kept while anybody else's code runs.
    pub(super) fn state(&self) -> std::cell::RefMut<'_, State<T>> {
        self.state.borrow_mut()
    }

    /// Takes the connection; whoever still has a body of it learns that it is over.
    pub(super) fn take(&self) -> Option<Wire<T>> {
        self.state.borrow_mut().wire.take()
    }

    /// Whether there is a connection.
    pub(super) fn is_open(&self) -> bool {
        self.state.borrow().wire.is_some()
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin + 'static> Link<T> {
    /// The body of the message whose head was just taken. One that is here already needs nothing of the connection.
    pub(super) fn body(self: &Rc<Self>, framing: Option<Framing>, expects: bool) -> Body {
        let mut state = self.state.borrow_mut();
        let State { wire, decoder, message, .. } = &mut *state;
        *message += 1;
        *decoder = framing.map_or(Decoder::Length(0), Decoder::from);
        let Some(framing) = framing else { return Body::empty() };
        if let (Framing::Length(length), Some(wire)) = (framing, wire)
            && let Ok(length) = usize::try_from(length)
            && wire.ahead.len() >= length
        {
            *decoder = Decoder::Length(0);
            return Body::full(wire.ahead.split_to(length).freeze());
        }
        state.expects = expects;
        let left = match framing {
            Framing::Length(length) => Some(length),
            Framing::Chunked | Framing::UntilClose => None,
        };
        self.progress.in_body.set(true);
        let message = state.message;
        drop(state);
        Body::new(Receiving { link: self.clone(), message, left, over: false })
    }

    /// Ends the message that is read: what of its body is here already is thrown away. Answers whether that was all of it.
    pub(super) fn end_message(&self) -> bool {
        let mut state = self.state.borrow_mut();
        let State { wire, decoder, message, .. } = &mut *state;
        *message += 1;
        let Some(wire) = wire else { return false };
        while let Ok(Decoded::Data(_)) = decoder.decode(&mut wire.ahead) {}
        self.progress.in_body.set(false);
        decoder.is_over()
    }

    fn poll_body(&self, message: u64, cx: &mut Context<'_>) -> Poll<Result<Decoded, BodyError>> {
        let mut state = self.state.borrow_mut();
        let State { wire, decoder, expects, saying, message: current, .. } = &mut *state;
        let Some(wire) = wire.as_mut().filter(|_| *current == message) else {
            return Poll::Ready(Err(BodyError::Ended("the message is over")));
        };
        loop {
            let decoded = decoder.decode(&mut wire.ahead)?;
            if decoder.is_over() {
                self.progress.in_body.set(false);
            }
            if decoded != Decoded::More {
                return Poll::Ready(Ok(decoded));
            }
            if std::mem::take(expects) {
                wire.out.small().extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
                *saying = true;
            }
            // A connection to which that is gone tells it when it is read.
            *saying = *saying && wire.poll_flush(cx).is_pending();
            let read = ready!(wire.poll_fill(cx));
            if matches!(read, Ok(0)) && decoder.closed() {
                return Poll::Ready(Ok(Decoded::End));
            }
            if !matches!(read, Ok(1..)) {
                *decoder = Decoder::Unknown;
                let broken = read.map_or_else(Broken::from, |_| Broken::Incomplete);
                return Poll::Ready(Err(broken.into()));
            }
        }
    }

    /// Ready when the other side has closed the connection, while nothing of it is to be read. What it sends ahead is
    /// kept; then it is heard of when that is read.
    pub(super) fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state.borrow_mut();
        let State { wire, decoder, .. } = &mut *state;
        let Some(wire) = wire else { return Poll::Ready(()) };
        if !decoder.is_over() || !wire.ahead.is_empty() {
            return Poll::Pending;
        }
        match ready!(wire.poll_fill(cx)) {
            Ok(0) | Err(_) => Poll::Ready(()),
            Ok(_) => Poll::Pending,
        }
    }

    /// Writes what waits.
    pub(super) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        match &mut self.state.borrow_mut().wire {
            Some(wire) => wire.poll_flush(cx).map_err(Broken::from),
            None => Poll::Ready(Err(Broken::Incomplete)),
        }
    }
}

/// The body of a message that is read off its connection by whoever wants it.
struct Receiving<T> {
    link: Rc<Link<T>>,
    message: u64,
    /// Bytes to come, where that is known.
    left: Option<u64>,
    over: bool,
}

impl<T: AsyncRead + AsyncWrite + Unpin + 'static> HttpBody for Receiving<T> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.over {
            return Poll::Ready(None);
        }
        let decoded = ready!(self.link.poll_body(self.message, cx));
        self.over = !matches!(decoded, Ok(Decoded::Data(_)));
        Poll::Ready(match decoded {
            Ok(Decoded::Data(bytes)) => {
                if let Some(left) = &mut self.left {
                    *left -= bytes.len() as u64;
                    self.over = *left == 0;
                }
                Some(Ok(Frame::data(bytes)))
            }
            Ok(Decoded::Trailers(trailers)) => Some(Ok(Frame::trailers(trailers))),
            Ok(Decoded::End | Decoded::More) => None,
            Err(error) => Some(Err(error)),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.over
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// A body on its way out.
pub(super) struct Sending {
    pub(super) body: Body,
    pub(super) encoder: Encoder,
    pub(super) ended: bool,
}

/// Why a body did not get out.
pub(super) enum Unsent {
    /// It did not come to its end itself.
    Body(BodyError),
    /// The connection broke.
    Connection,
}

impl Sending {
    /// A body that follows its head.
    pub(super) fn new(body: Body, encoder: Encoder) -> Self {
        Self { ended: body.is_end_stream(), body, encoder }
    }

    /// Writes until everything is written.
    pub(super) fn poll<T: AsyncRead + AsyncWrite + Unpin + 'static>(
        &mut self,
        link: &Link<T>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Unsent>> {
        loop {
            let waits = self.poll_take(link, cx)?.is_pending();
            ready!(link.poll_flush(cx)).map_err(|_| Unsent::Connection)?;
            if self.ended {
                return Poll::Ready(Ok(()));
            }
            if waits {
                return Poll::Pending;
            }
        }
    }

    /// Takes as much of the body as there is room for.
    fn poll_take<T: AsyncRead + AsyncWrite + Unpin + 'static>(
        &mut self,
        link: &Link<T>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Unsent>> {
        let closed = || Unsent::Connection;
        while !self.ended && link.state().wire.as_ref().ok_or_else(closed)?.out.has_room() {
            let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
            let mut state = link.state();
            let out = &mut state.wire.as_mut().ok_or_else(closed)?.out;
            match frame {
                Some(Ok(frame)) => {
                    // HTTP/1 has trailers where both sides agree on them, which they do not here.
                    if let Ok(bytes) = frame.into_data() {
                        self.encoder.data(bytes, out);
                    }
                    self.ended = self.body.is_end_stream();
                }
                Some(Err(error)) => return Poll::Ready(Err(Unsent::Body(error))),
                None => self.ended = true,
            }
            if self.ended {
                self.encoder.end(out).map_err(|_| Unsent::Connection)?;
                drop(state);
                // What it holds is given back before anybody can see its end.
                self.body = Body::empty();
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// Writes everything that waits, then ends the direction.
pub(super) async fn close<T: AsyncRead + AsyncWrite + Unpin + 'static>(wire: &mut Wire<T>) {
    let closing = poll_fn(|cx| {
        ready!(wire.poll_flush(cx))?;
        Pin::new(&mut wire.io).poll_shutdown(cx)
    });
    // Whoever is gone need not be told.
    let _ = closing.await;
}
