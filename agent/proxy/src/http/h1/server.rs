//! The server's side of a connection: one request after the other is read, answered, and its answer written.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};

use super::super::body::Body;
use super::head::{self, Asked};
use super::link::{self, Link, Sending};
use super::write::{self, Asker};
use super::{Malformed, Progress, Smell};

/// How a connection ended.
pub(crate) enum Ended<T> {
    /// It is closed.
    Over,
    /// The client sends on what nobody reads: to close at once might cost it the answer.
    Unread(T),
    /// The client was told that its head is not understood; the same holds.
    Malformed(Malformed, T),
    /// It speaks another protocol from now on; what was read ahead of that.
    Switched(T, Bytes),
}

/// Reads requests and writes what `answer` makes of them until the connection ends.
///
/// # Cancel safety
/// Dropped, it closes the connection.
pub(crate) async fn serve<T, A, F, E>(io: T, progress: &Rc<Progress>, mut answer: A) -> Ended<T>
where
    T: AsyncRead + AsyncWrite + Unpin + 'static,
    A: FnMut(Request<Body>, Option<Smell>) -> F,
    F: Future<Output = Result<Response<Body>, E>>,
{
    let link = Link::new(io, progress.clone());
    loop {
        let asked = match next_head(&link).await {
            Ok(asked) => asked,
            Err(None) => return Ended::Over,
            Err(Some(malformed)) => return refuse(&link, malformed).await,
        };
        let Asked { parts, framing, keep_alive, expects, smell } = asked;
        let asker = Asker::new(&parts, keep_alive);
        let body = link.body(framing, expects);
        let response = {
            let mut answering = pin!(answer(Request::from_parts(parts, body), smell));
            poll_fn(|cx| match answering.as_mut().poll(cx) {
                Poll::Ready(answer) => Poll::Ready(answer.ok()),
                Poll::Pending => link.poll_gone(cx).map(|()| None),
            })
            .await
        };
        // The client has left, or is to see a broken connection.
        let Some(response) = response else { return Ended::Over };
        if let Some(ended) = write_answer(&link, response, asker).await {
            return ended;
        }
    }
}

/// The next request; no error where there is none any more.
async fn next_head<T>(link: &Link<T>) -> Result<Asked, Option<Malformed>>
where
    T: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let mut looked_at = 0;
    let mut head = poll_fn(|cx| poll_head(link, &mut looked_at, cx)).await;
    if matches!(head, Err(None)) && link.progress.closing.get() {
        // A request may have come while this thread was busy: a close would break it.
        tokio::task::yield_now().await;
        head = poll_fn(|cx| poll_head(link, &mut looked_at, cx)).await;
    }
    link.progress.in_head.set(false);
    head
}

fn poll_head<T>(
    link: &Link<T>,
    looked_at: &mut usize,
    cx: &mut Context<'_>,
) -> Poll<Result<Asked, Option<Malformed>>>
where
    T: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let mut state = link.state();
    let link::State { wire, spare, .. } = &mut *state;
    let Some(wire) = wire else { return Poll::Ready(Err(None)) };
    loop {
        if *looked_at == 0 {
            head::skip_empty_lines(&mut wire.ahead);
        }
        let looks = head::may_be_complete(&wire.ahead, *looked_at) || wire.ahead.len() >= head::REQUEST_BYTES;
        if !wire.ahead.is_empty()
            && looks
            && let Some(asked) = head::request(&mut wire.ahead, spare).map_err(Some)?
        {
            return Poll::Ready(Ok(asked));
        }
        *looked_at = wire.ahead.len();
        link.progress.in_head.set(*looked_at > 0);
        match wire.poll_fill(cx) {
            Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Err(None)),
            Poll::Ready(Ok(_)) => {}
            Poll::Pending if wire.ahead.is_empty() && link.progress.closing.get() => {
                return Poll::Ready(Err(None));
            }
            Poll::Pending => return Poll::Pending,
        }
    }
}

async fn refuse<T>(link: &Link<T>, malformed: Malformed) -> Ended<T>
where
    T: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let Some(mut wire) = link.take() else { return Ended::Over };
    write::refusal(malformed.status, wire.out.small());
    link::close(&mut wire).await;
    Ended::Malformed(malformed, wire.io)
}

/// `None` where another request may come.
async fn write_answer<T>(link: &Link<T>, response: Response<Body>, mut asker: Asker) -> Option<Ended<T>>
where
    T: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let switching = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    let (mut parts, body) = response.into_parts();
    asker.keep_alive &= !link.progress.closing.get();
    let encoder = {
        let mut state = link.state();
        state.forget_expectation();
        let Some(wire) = &mut state.wire else { return Some(Ended::Over) };
        let encoder = write::answer(&parts, &body, &mut asker, wire.out.small());
        parts.headers.clear();
        state.spare = parts.headers;
        encoder
    };
    let mut sending = Sending::new(body, encoder);
    let written = poll_fn(|cx| match sending.poll(link, cx) {
        Poll::Ready(written) => Poll::Ready(written.is_ok()),
        // It may have left while there is nothing to write.
        Poll::Pending => link.poll_gone(cx).map(|()| false),
    });
    if !written.await {
        return Some(Ended::Over);
    }
    if switching {
        let wire = link.take()?;
        return Some(Ended::Switched(wire.io, wire.ahead.freeze()));
    }
    let read = link.end_message();
    if read && asker.keep_alive && !link.progress.closing.get() {
        return None;
    }
    let Some(mut wire) = link.take() else { return Some(Ended::Over) };
    link::close(&mut wire).await;
    Some(if read && wire.ahead.is_empty() { Ended::Over } else { Ended::Unread(wire.io) })
}
