//! The body of a request on its way to the application: counted, kept for another try, copied for mirrors.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use http::HeaderMap;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Instant;

use super::body::{Body, BodyError, to_keep};
use super::traffic::Traffic;

/// Bytes that are kept for another try (E17), and that wait for a mirror.
const KEPT: usize = 1024 * 1024;

/// What a piece takes beside its bytes, about: a body of many small ones counts as the larger one that it is.
const OF_PIECE: usize = 64;

/// A body that can be sent more than once, as long as it is small.
pub(crate) enum Upload {
    /// There is none; it ended when the request's head did.
    None(Instant),
    /// There is one.
    Some(Rc<Source>),
}

/// Where the body comes from.
pub(crate) struct Source {
    body: RefCell<Body>,
    hint: SizeHint,
    traffic: Rc<Traffic>,
    keep_trailers: bool,
    /// What was read, for another try; `None` when nobody wants it or when it is too much.
    kept: RefCell<Option<Kept>>,
    mirrors: RefCell<Vec<Rc<Queue>>>,
    /// The newest try: older ones get nothing more.
    tries: Cell<u32>,
    ended: Cell<Option<Instant>>,
    waiting: RefCell<Option<Waker>>,
    /// Who asked for more.
    asking: RefCell<Option<Waker>>,
}

#[derive(Default)]
struct Kept {
    chunks: Vec<Bytes>,
    bytes: usize,
    trailers: Option<HeaderMap>,
}

impl Upload {
    /// Takes a request's body. `keep` says that it may be sent more than once; one that is empty has ended when the
    /// request `began`.
    pub(crate) fn new<'t>(
        body: Body,
        traffic: impl FnOnce() -> &'t Rc<Traffic>,
        (keep, keep_trailers): (bool, bool),
        began: Instant,
    ) -> Self {
        if body.is_end_stream() {
            return Self::None(began);
        }
        Self::Some(Rc::new(Source {
            hint: body.size_hint(),
            body: RefCell::new(body),
            traffic: traffic().clone(),
            keep_trailers,
            kept: RefCell::new(keep.then(Kept::default)),
            mirrors: RefCell::default(),
            tries: Cell::new(0),
            ended: Cell::new(None),
            waiting: RefCell::default(),
            asking: RefCell::default(),
        }))
    }

    /// The body for the next try, from its beginning.
    pub(crate) fn next_try(&self) -> Body {
        match self {
            Self::None(_) => Body::empty(),
            Self::Some(source) => {
                let number = source.tries.get() + 1;
                source.tries.set(number);
                Body::new(Try { source: source.clone(), number, position: 0 })
            }
        }
    }

    /// Whether another try can have the whole body.
    pub(crate) fn is_repeatable(&self) -> bool {
        match self {
            Self::None(_) => true,
            Self::Some(source) => source.kept.borrow().is_some(),
        }
    }

    /// No other try will come: nothing need be kept any more.
    pub(crate) fn forget(&self) {
        match self {
            Self::None(_) => {}
            Self::Some(source) => *source.kept.borrow_mut() = None,
        }
    }

    /// A copy for a mirror. Call before the first try.
    pub(crate) fn mirror(&self) -> Body {
        match self {
            Self::None(_) => Body::empty(),
            Self::Some(source) => {
                let queue = Rc::new(Queue::default());
                source.mirrors.borrow_mut().push(queue.clone());
                Body::new(Copy { queue, hint: source.hint })
            }
        }
    }

    /// Where it comes from; `None` when there is none.
    pub(crate) fn source(&self) -> Option<&Rc<Source>> {
        match self {
            Self::None(_) => None,
            Self::Some(source) => Some(source),
        }
    }

    /// When the client has sent everything, if it has.
    pub(crate) fn ended(&self) -> Option<Instant> {
        match self {
            Self::None(at) => Some(*at),
            Self::Some(source) => source.ended.get(),
        }
    }

    /// Waits until the client has sent everything.
    pub(crate) async fn until_ended(&self) -> Instant {
        poll_fn(|cx| match (self.ended(), self) {
            (Some(at), _) => Poll::Ready(at),
            (None, Self::None(at)) => Poll::Ready(*at),
            (None, Self::Some(source)) => {
                *source.waiting.borrow_mut() = Some(cx.waker().clone());
                Poll::Pending
            }
        })
        .await
    }
}

impl Source {
    /// The answer is over: nobody wants what the client has not sent yet.
    pub(crate) fn abandon(&self) {
        if self.ended.get().is_none() {
            self.tries.set(u32::MAX);
            *self.body.borrow_mut() = Body::empty();
            if let Some(waker) = self.asking.borrow_mut().take() {
                waker.wake();
            }
        }
    }

    fn poll(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut asking = self.asking.borrow_mut();
        if !asking.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *asking = Some(cx.waker().clone());
        }
        drop(asking);
        loop {
            let polled = Pin::new(&mut *self.body.borrow_mut()).poll_frame(cx);
            let frame = match ready!(polled) {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => {
                    self.mirrors.borrow_mut().drain(..).for_each(|mirror| mirror.end(true));
                    return Poll::Ready(Some(Err(error)));
                }
                None => {
                    self.end();
                    return Poll::Ready(None);
                }
            };
            if let Some(bytes) = frame.data_ref() {
                self.traffic.add(bytes);
                self.keep(bytes);
                self.mirrors.borrow_mut().retain(|mirror| mirror.push(bytes));
                if self.body.borrow().is_end_stream() {
                    self.end();
                }
                return Poll::Ready(Some(Ok(frame)));
            }
            if !self.keep_trailers {
                continue;
            }
            if let (Some(kept), Some(trailers)) = (&mut *self.kept.borrow_mut(), frame.trailers_ref()) {
                kept.trailers = Some(trailers.clone());
            }
            self.end();
            return Poll::Ready(Some(Ok(frame)));
        }
    }

    fn keep(&self, bytes: &Bytes) {
        let mut kept = self.kept.borrow_mut();
        let Some(so_far) = &mut *kept else { return };
        so_far.bytes += bytes.len() + OF_PIECE;
        if so_far.bytes > KEPT {
            *kept = None;
        } else {
            so_far.chunks.push(to_keep(bytes));
        }
    }

    fn end(&self) {
        self.ended.set(self.ended.get().or_else(|| Some(Instant::now())));
        self.mirrors.borrow_mut().drain(..).for_each(|mirror| mirror.end(false));
        if let Some(waker) = self.waiting.borrow_mut().take() {
            waker.wake();
        }
    }

    /// What was kept at a place: a chunk, or the trailers after the last one.
    fn kept_at(&self, position: usize) -> Option<Frame<Bytes>> {
        let kept = self.kept.borrow();
        let kept = kept.as_ref()?;
        if let Some(chunk) = kept.chunks.get(position) {
            return Some(Frame::data(chunk.clone()));
        }
        let trailers = kept.trailers.as_ref().filter(|_| position == kept.chunks.len())?;
        Some(Frame::trailers(trailers.clone()))
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        // The client, or we, broke off: a mirror must not take what it has for the whole.
        self.mirrors.borrow_mut().drain(..).for_each(|mirror| mirror.end(true));
    }
}

/// The body of one try.
struct Try {
    source: Rc<Source>,
    number: u32,
    position: usize,
}

impl HttpBody for Try {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.source.tries.get() != self.number {
            return Poll::Ready(Some(Err(BodyError::Ended("this try is over"))));
        }
        if let Some(frame) = self.source.kept_at(self.position) {
            self.position += 1;
            return Poll::Ready(Some(Ok(frame)));
        }
        if self.source.ended.get().is_some() {
            return Poll::Ready(None);
        }
        let polled = ready!(self.source.poll(cx));
        self.position += 1;
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        self.source.ended.get().is_some() && self.source.kept_at(self.position).is_none()
    }

    fn size_hint(&self) -> SizeHint {
        if self.position == 0 { self.source.hint } else { SizeHint::default() }
    }
}

/// What a mirror has not taken yet.
#[derive(Default)]
pub(crate) struct Queue {
    chunks: RefCell<VecDeque<Bytes>>,
    bytes: Cell<usize>,
    ended: Cell<bool>,
    /// The mirror is too slow, or the request was broken off.
    broken: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Queue {
    /// `false` when the mirror is not worth waiting for.
    fn push(&self, bytes: &Bytes) -> bool {
        self.bytes.set(self.bytes.get() + bytes.len() + OF_PIECE);
        if self.bytes.get() > KEPT {
            self.end(true);
            return false;
        }
        self.chunks.borrow_mut().push_back(to_keep(bytes));
        self.wake();
        true
    }

    fn end(&self, broken: bool) {
        self.ended.set(true);
        self.broken.set(broken);
        self.wake();
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

/// The body of a mirrored request.
struct Copy {
    queue: Rc<Queue>,
    hint: SizeHint,
}

impl HttpBody for Copy {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let queue = &self.queue;
        if queue.broken.get() {
            return Poll::Ready(Some(Err(BodyError::Ended("the request is not mirrored to its end"))));
        }
        if let Some(chunk) = queue.chunks.borrow_mut().pop_front() {
            queue.bytes.set(queue.bytes.get().saturating_sub(chunk.len() + OF_PIECE));
            return Poll::Ready(Some(Ok(Frame::data(chunk))));
        }
        if queue.ended.get() {
            return Poll::Ready(None);
        }
        *queue.waker.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        self.queue.ended.get() && !self.queue.broken.get() && self.queue.chunks.borrow().is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        self.hint
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use http_body_util::BodyExt;

    use super::*;

    struct Chunks(VecDeque<Bytes>);

    impl HttpBody for Chunks {
        type Data = Bytes;
        type Error = BodyError;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
            Poll::Ready(self.0.pop_front().map(|chunk| Ok(Frame::data(chunk))))
        }
    }

    fn upload(chunks: &[&[u8]], keep: bool) -> Upload {
        let chunks = chunks.iter().map(|chunk| Bytes::copy_from_slice(chunk)).collect();
        let traffic = Rc::default();
        Upload::new(Body::new(Chunks(chunks)), || &traffic, (keep, true), Instant::now())
    }

    fn all(body: Body) -> Result<Vec<u8>, BodyError> {
        let whole = body.collect().now_or_never().expect("nothing waits")?;
        Ok(whole.to_bytes().to_vec())
    }

    #[test]
    fn another_try_has_the_whole_body_also_when_the_first_had_a_part() {
        let upload = upload(&[b"one", b"two", b"three"], true);
        let mut first = upload.next_try();
        let frame = first.frame().now_or_never().flatten().unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), "one");
        assert_eq!(upload.ended(), None);
        let second = upload.next_try();
        assert!(first.frame().now_or_never().flatten().unwrap().is_err(), "the first one gets no more");
        assert_eq!(all(second).unwrap(), b"onetwothree");
        assert!(upload.ended().is_some());
        assert_eq!(all(upload.next_try()).unwrap(), b"onetwothree");
    }

    #[test]
    fn a_large_body_cannot_be_repeated_and_is_not_kept() {
        let half = vec![7; KEPT / 2 + 1];
        let upload = upload(&[&half, &half], true);
        assert_eq!(all(upload.next_try()).unwrap().len(), 2 * half.len());
        assert!(!upload.is_repeatable());
        assert!(!self::upload(&[b"x"], false).is_repeatable());
    }

    /// A client that cuts its body into crumbs makes us keep no more of it, nor the buffers in which they came.
    #[test]
    fn crumbs_take_no_more_than_whole_bodies() {
        let crumb = Bytes::from(vec![7; 64 * 1024]).slice(..1);
        let crumbs = |count| Body::new(Chunks(std::iter::repeat_n(crumb.clone(), count).collect()));
        let traffic = Rc::default();
        let upload = |count| Upload::new(crumbs(count), || &traffic, (true, true), Instant::now());
        let few = upload(100);
        let mirror = few.mirror();
        all(few.next_try()).unwrap();
        assert_eq!(all(few.next_try()).unwrap().len(), 100);
        let kept = |frame: Option<Frame<Bytes>>| frame.unwrap().into_data().unwrap();
        let source = few.source().unwrap();
        assert!(!std::ptr::eq(kept(source.kept_at(0)).as_ptr(), crumb.as_ptr()), "the buffer is kept");
        assert_eq!(all(mirror).unwrap().len(), 100);
        let many = upload(KEPT / OF_PIECE);
        let mirror = many.mirror();
        all(many.next_try()).unwrap();
        assert!(!many.is_repeatable());
        assert!(all(mirror).is_err());
    }

    #[test]
    fn a_mirror_gets_a_copy_unless_it_is_too_slow() {
        let upload = upload(&[b"one", b"two"], false);
        let mirror = upload.mirror();
        assert_eq!(all(upload.next_try()).unwrap(), b"onetwo");
        assert_eq!(all(mirror).unwrap(), b"onetwo");
        let half = vec![7; KEPT / 2 + 1];
        let upload = self::upload(&[&half, &half, b"x"], false);
        let mirror = upload.mirror();
        all(upload.next_try()).unwrap();
        assert!(all(mirror).is_err());
    }

    #[test]
    fn a_request_that_breaks_off_is_not_mirrored_as_if_it_were_whole() {
        let upload = upload(&[b"one", b"two"], false);
        let mirror = upload.mirror();
        let mut first = upload.next_try();
        first.frame().now_or_never().flatten().unwrap().unwrap();
        drop((first, upload));
        assert!(all(mirror).is_err());
    }
}
