//! A body of which the beginning is read before it is passed on.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame, SizeHint};

use super::body::{Body, BodyError, SMALL};

/// The body, and what was read of it.
pub(crate) struct Ahead {
    rest: Body,
    chunks: VecDeque<Bytes>,
    /// Small chunks behind them, put together: each alone would take more than its bytes.
    small: BytesMut,
    trailers: Option<HeaderMap>,
    /// The bytes of the chunks.
    bytes: usize,
    /// The whole body is here.
    ended: bool,
}

impl Ahead {
    /// A body of which nothing was read.
    pub(crate) fn new(body: Body) -> Self {
        let ended = body.is_end_stream();
        Self { rest: body, chunks: VecDeque::new(), small: BytesMut::new(), trailers: None, bytes: 0, ended }
    }

    /// Reads until the body is over, or larger than `most` bytes; answers whether it is no larger.
    pub(crate) async fn fits(&mut self, most: usize) -> Result<bool, BodyError> {
        // What the client says is enough: nothing is read in vain.
        let said = self.bytes as u64 + self.rest.size_hint().lower();
        if !self.ended && said > most as u64 {
            return Ok(false);
        }
        self.read(most.saturating_add(1)).await?;
        Ok(self.bytes <= most)
    }

    /// Reads until the body is over, or `least` bytes are here.
    async fn read(&mut self, least: usize) -> Result<(), BodyError> {
        while !self.ended && self.bytes < least {
            match self.rest.frame().await {
                Some(frame) => self.keep(frame?),
                None => self.ended = true,
            }
            self.ended |= self.rest.is_end_stream();
        }
        Ok(())
    }

    /// Whether the whole body is here and no larger.
    pub(crate) fn is_within(&self, most: usize) -> bool {
        self.ended && self.bytes <= most
    }

    fn keep(&mut self, frame: Frame<Bytes>) {
        match frame.into_data() {
            Ok(chunk) => {
                self.bytes += chunk.len();
                if chunk.len() < SMALL {
                    self.small.extend_from_slice(&chunk);
                    return;
                }
                if !self.small.is_empty() {
                    self.chunks.push_back(self.small.split().freeze());
                }
                self.chunks.push_back(chunk);
            }
            Err(frame) => {
                self.trailers = frame.into_trailers().ok();
                self.ended = true;
            }
        }
    }

    fn next_kept(&mut self) -> Option<Bytes> {
        let small = |small: &mut BytesMut| (!small.is_empty()).then(|| small.split().freeze());
        let chunk = self.chunks.pop_front().or_else(|| small(&mut self.small))?;
        self.bytes = self.bytes.saturating_sub(chunk.len());
        Some(chunk)
    }

    /// At most so many of the first bytes.
    pub(crate) async fn first(&mut self, most: usize) -> Result<Bytes, BodyError> {
        self.read(most).await?;
        let mut first = BytesMut::with_capacity(most.min(self.bytes));
        for chunk in self.chunks.iter().map(|chunk| &**chunk).chain([&*self.small]) {
            let room = most - first.len();
            first.extend_from_slice(chunk.get(..room.min(chunk.len())).unwrap_or_default());
        }
        Ok(first.freeze())
    }
}

impl From<Ahead> for Body {
    fn from(ahead: Ahead) -> Self {
        let untouched = ahead.bytes == 0 && ahead.trailers.is_none();
        if untouched { ahead.rest } else { Self::new(ahead) }
    }
}

impl HttpBody for Ahead {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(chunk) = self.next_kept() {
            return Poll::Ready(Some(Ok(Frame::data(chunk))));
        }
        if let Some(trailers) = self.trailers.take() {
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        if self.ended {
            return Poll::Ready(None);
        }
        let frame = ready!(Pin::new(&mut self.rest).poll_frame(cx));
        self.ended |= frame.is_none();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        let read = self.bytes == 0 && self.trailers.is_none();
        read && (self.ended || self.rest.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let (ahead, rest) = (self.bytes as u64, self.rest.size_hint());
        if self.ended {
            return SizeHint::with_exact(ahead);
        }
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(ahead));
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(ahead));
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use futures_util::stream::iter;
    use http_body_util::StreamBody;

    use super::*;

    fn ahead(chunks: &'static [&'static str], trailers: bool) -> Ahead {
        let mut frames: Vec<_> =
            chunks.iter().map(|chunk| Ok(Frame::data(Bytes::from_static(chunk.as_bytes())))).collect();
        if trailers {
            frames.push(Ok(Frame::trailers(
                [("a".parse().unwrap(), "b".parse().unwrap())].into_iter().collect(),
            )));
        }
        Ahead::new(Body::new(StreamBody::new(iter(frames))))
    }

    fn now<T>(future: impl Future<Output = Result<T, BodyError>>) -> T {
        future.now_or_never().expect("nothing waits").unwrap()
    }

    #[test]
    fn what_was_read_is_passed_on_with_the_rest() {
        for most in 0..12 {
            for trailers in [false, true] {
                let mut ahead = ahead(&["one", "two", "three"], trailers);
                assert_eq!(now(ahead.first(most)), "onetwothree".as_bytes()[..most.min(11)]);
                assert_eq!(now(ahead.fits(most)), most >= 11, "{most}");
                let all = now(Body::from(ahead).collect());
                assert_eq!(all.trailers().is_some(), trailers);
                assert_eq!(all.to_bytes(), "onetwothree", "{most}");
            }
        }
    }

    #[test]
    fn crumbs_are_put_together() {
        let crumbs = (0..3000).map(|at| Ok(Frame::data(Bytes::from(vec![at as u8; 1 + at % 2]))));
        let mut ahead = Ahead::new(Body::new(StreamBody::new(iter(crumbs))));
        assert!(now(ahead.fits(4500)));
        let first = ahead.frame().now_or_never().unwrap().unwrap().unwrap().into_data().unwrap();
        assert_eq!((first.len(), &first[..4]), (4500, &[0, 1, 1, 2][..]));
        assert!(ahead.is_end_stream());
    }

    #[test]
    fn a_body_of_which_the_length_is_known_is_not_read_to_see_that_it_is_too_large() {
        let mut ahead = Ahead::new(Body::full("hello"));
        assert!(!now(ahead.fits(4)));
        assert!(ahead.chunks.is_empty());
        assert_eq!(HttpBody::size_hint(&ahead).exact(), Some(5));
        assert!(now(ahead.fits(5)));
        assert_eq!(HttpBody::size_hint(&ahead).exact(), Some(5));
        assert!(!ahead.is_end_stream());
        assert!(now(Ahead::new(Body::empty()).fits(0)));
    }
}
