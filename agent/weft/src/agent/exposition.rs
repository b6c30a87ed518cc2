//! The text of `/metrics` on its way to whoever scrapes: made piece by piece, as fast as it is read.
//!
//! With many series the text is hundreds of megabytes, of which only a piece or two are in memory. The port is open
//! to every pod, so what scrapes may cost is bounded: few at a time, one piece made at a time, a pause between
//! their beginnings, and none of them waits for a reader that has stopped.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::{Body, Bytes, Frame};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;
use weft_telemetry::{Metrics, Pieces};

/// Scrapes at a time; more wait for their turn. Each may hold the samples of one family and two pieces of text.
const SCRAPES: usize = 4;
/// Pause between the beginnings of two scrapes: reading the kernel's counters holds up the reconciler.
const PAUSE: Duration = Duration::from_millis(100);
/// A reader who takes nothing for this long is given up: he would keep others waiting.
const STALLED: Duration = Duration::from_secs(5);

/// Serves scrapes of one set of metrics.
#[derive(Debug)]
pub(crate) struct Exposition {
    metrics: Metrics,
    places: Arc<Semaphore>,
    /// When the last scrape began.
    last: Mutex<Option<Instant>>,
    /// Held while a piece is made: that takes a core.
    making: Mutex<()>,
}

impl Exposition {
    pub(crate) fn new(metrics: Metrics) -> Arc<Self> {
        let places = Arc::new(Semaphore::new(SCRAPES));
        Arc::new(Self { metrics, places, last: Mutex::default(), making: Mutex::default() })
    }

    /// Begins a scrape; waits for a place and for the pause after the one before.
    pub(crate) async fn scrape(self: Arc<Self>) -> Scraped {
        let (pieces, text) = mpsc::channel(1);
        // The semaphore is never closed.
        let place = self.places.clone().acquire_owned().await.ok();
        let mut last = self.last.lock().await;
        if let Some(began) = *last {
            tokio::time::sleep_until(began + PAUSE).await;
        }
        *last = Some(Instant::now());
        drop(last);
        tokio::spawn(self.produce(pieces, place));
        Scraped { text, complete: false }
    }

    async fn produce(self: Arc<Self>, to: mpsc::Sender<Part>, _place: Option<OwnedSemaphorePermit>) {
        let metrics = self.metrics.clone();
        // Reading the kernel's counters takes milliseconds, and so does a piece.
        let Some(mut pieces) = self.make(move || metrics.pieces()).await else { return };
        loop {
            let next = self.make(move || next(pieces)).await;
            let Some((piece, rest)) = next else { return };
            let part = piece.map_or(Part::End, |text| Part::Text(text.into()));
            let last = matches!(part, Part::End);
            match to.send_timeout(part, STALLED).await {
                Ok(()) if !last => pieces = rest,
                Ok(()) | Err(_) => return,
            }
        }
    }

    /// `None` where it panicked.
    async fn make<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let _alone = self.making.lock().await;
        tokio::task::spawn_blocking(work).await.ok()
    }
}

fn next(mut pieces: Pieces) -> (Option<String>, Pieces) {
    (pieces.next(), pieces)
}

#[derive(Debug)]
enum Part {
    Text(Bytes),
    /// All of it was sent: without this a scrape that broke off would look like a whole one.
    End,
}

/// The text of a scrape ended before it was whole.
#[derive(Debug, thiserror::Error)]
#[error("the scrape broke off")]
pub(crate) struct BrokenOff;

/// The text of one scrape, as a body.
#[derive(Debug)]
pub(crate) struct Scraped {
    text: mpsc::Receiver<Part>,
    complete: bool,
}

impl Body for Scraped {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        if self.complete {
            return Poll::Ready(None);
        }
        match ready!(self.text.poll_recv(cx)) {
            Some(Part::Text(text)) => Poll::Ready(Some(Ok(Frame::data(text)))),
            Some(Part::End) => {
                self.complete = true;
                Poll::Ready(None)
            }
            None => {
                self.complete = true;
                Poll::Ready(Some(Err(BrokenOff)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    /// Each name makes a piece of its own.
    fn metrics() -> Metrics {
        let metrics = Metrics::new();
        metrics.refused("authorization", Some("ns[a]-policy[b]-rule[0]"));
        metrics.dry_run("ns[a]-policy[c]", "deny");
        metrics
    }

    #[tokio::test]
    async fn a_scrape_is_the_whole_text_in_pieces() {
        let metrics = metrics();
        let mut body = Exposition::new(metrics.clone()).scrape().await;
        let (mut text, mut pieces) = (String::new(), 0);
        while let Some(frame) = body.frame().await {
            text.push_str(std::str::from_utf8(&frame.unwrap().into_data().unwrap()).unwrap());
            pieces += 1;
        }
        assert_eq!(text, metrics.render());
        assert!(pieces > 2, "{pieces}");
    }

    #[tokio::test(start_paused = true)]
    async fn readers_that_stop_keep_no_place_and_see_that_text_is_missing() {
        let exposition = Exposition::new(metrics());
        let mut stopped = Vec::new();
        for _ in 0..SCRAPES {
            stopped.push(exposition.clone().scrape().await);
        }
        let whole = exposition.scrape().await.collect().await;
        assert!(whole.is_ok(), "there was a place again");
        tokio::time::sleep(2 * STALLED).await;
        for body in stopped {
            assert!(body.collect().await.is_err(), "it broke off");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn scrapes_begin_one_pause_after_the_other() {
        let exposition = Exposition::new(metrics());
        let began = Instant::now();
        for _ in 0..3 {
            exposition.clone().scrape().await.collect().await.unwrap();
        }
        assert!(began.elapsed() >= 2 * PAUSE);
    }
}
