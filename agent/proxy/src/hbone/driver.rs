//! Keeps a tunnel alive, and notices when its peer is not.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep};

/// How often a PING goes out; as ztunnel's.
const INTERVAL: Duration = Duration::from_secs(10);
/// How long its answer may take; as ztunnel's.
const TIMEOUT: Duration = Duration::from_secs(20);

/// The PINGs of one tunnel.
pub(crate) struct Keepalive {
    pings: PingPong,
    tick: Pin<Box<Sleep>>,
    interval: Duration,
    sent: Option<Instant>,
}

impl Keepalive {
    /// Ticks at least every `at_most`, so that the owner can look at other things as well.
    pub(crate) fn new(pings: PingPong, at_most: Duration) -> Self {
        let interval = INTERVAL.min(at_most);
        Self { pings, tick: Box::pin(tokio::time::sleep(interval)), interval, sent: None }
    }

    /// Ready when the peer is dead. Poll before the connection: it carries the PINGs.
    pub(crate) fn poll_dead(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.sent.is_some() {
            match self.pings.poll_pong(cx) {
                Poll::Ready(Ok(_)) => self.sent = None,
                // The connection itself reports its end.
                Poll::Ready(Err(_)) | Poll::Pending => {}
            }
        }
        while self.tick.as_mut().poll(cx).is_ready() {
            match self.sent {
                Some(sent) if sent.elapsed() >= TIMEOUT => return Poll::Ready(()),
                Some(_) => {}
                None => {
                    // Fails only once the connection has ended, which its own poll reports.
                    let _ = self.pings.send_ping(Ping::opaque());
                    self.sent = Some(Instant::now());
                }
            }
            let next = Instant::now() + self.interval;
            self.tick.as_mut().reset(next);
        }
        Poll::Pending
    }
}
