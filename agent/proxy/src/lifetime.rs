//! How long a connection may last, by the client's policy (D-12).

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};
use weft_core::resource::destination_rule::ConnectionPool;

use crate::registry::Cut;

/// The limits of a policy.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Limits {
    idle: Option<Duration>,
    total: Option<Duration>,
}

impl Limits {
    /// `tcp.idleTimeout` and `tcp.maxConnectionDuration`; zero is no limit.
    pub(crate) fn of(pool: &ConnectionPool) -> Self {
        let some = |limit: Option<Duration>| limit.filter(|limit| !limit.is_zero());
        Self { idle: some(pool.tcp_idle_timeout), total: some(pool.max_connection_duration) }
    }

    /// For a connection that began so; `None` where nothing limits it.
    pub(crate) fn begin(self, began: Instant) -> Option<Box<Lifetime>> {
        let ends = self.total.map(|total| began + total);
        let first = [self.idle.map(|idle| began + idle), ends].into_iter().flatten().min()?;
        let timer = Box::pin(sleep_until(first));
        Some(Box::new(Lifetime { idle: self.idle, ends, moved: 0, since: began, timer }))
    }
}

/// The time that is left to one connection.
#[derive(Debug)]
pub(crate) struct Lifetime {
    idle: Option<Duration>,
    ends: Option<Instant>,
    /// Bytes that had moved when it was last looked at, and since when that has been so.
    moved: u64,
    since: Instant,
    timer: Pin<Box<Sleep>>,
}

impl Lifetime {
    /// Ready with the reason when the time is over. To be polled whenever bytes may have moved; `moved` is how many
    /// have so far.
    pub(crate) fn poll_over(&mut self, moved: u64, cx: &mut Context<'_>) -> Poll<Cut> {
        if moved != self.moved {
            self.moved = moved;
            self.since = Instant::now();
        }
        loop {
            ready!(self.timer.as_mut().poll(cx));
            let now = Instant::now();
            let idle = self.idle.map(|idle| self.since + idle);
            if self.ends.is_some_and(|end| end <= now) {
                return Poll::Ready(Cut::TooOld);
            }
            if idle.is_some_and(|end| end <= now) {
                return Poll::Ready(Cut::Idle);
            }
            // It was set before bytes moved.
            let Some(next) = [idle, self.ends].into_iter().flatten().min() else { return Poll::Pending };
            self.timer.as_mut().reset(next);
        }
    }
}
