//! Connections of a pool and the tasks that keep them going.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_util::future::OptionFuture;
use tokio::time::{Instant, sleep_until};

use super::super::h1::client::{Client, connect};
use super::dial::{Dial, Opened, Wire, open};
use super::exchange::Exchange;
use super::http2;
use super::limits::{Slot, Ticket};
use super::pool::{Pool, Settings};
use crate::account::Failure;
use crate::hbone::pool::Usage as Tunnel;
use crate::worker::Worker;

/// A timer that is set to no time.
const NEVER: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// What a connection's driver and its users share.
pub(super) struct Usage {
    /// Requests that are under way.
    streams: Cell<u32>,
    /// Requests so far.
    served: Cell<u32>,
    idle_since: Cell<Instant>,
    born: Instant,
    /// Our address.
    local: Option<SocketAddr>,
    idle_timeout: Cell<Option<Duration>>,
    max_age: Cell<Option<Duration>>,
    /// What carries it goes away: it ends with the requests that are under way.
    leaving: Cell<bool>,
    /// Wakes its driver.
    driver: RefCell<Option<Waker>>,
    /// Its place among the connections of a cluster.
    ticket: Option<Arc<Ticket>>,
    /// Ends with the connection, after its driver: the request that it was upgraded by.
    until_closed: RefCell<Option<Exchange>>,
}

impl Usage {
    fn new(slot: Option<Slot>, settings: &Settings, local: Option<SocketAddr>) -> Rc<Self> {
        let now = Instant::now();
        Rc::new(Self {
            streams: Cell::new(0),
            served: Cell::new(0),
            idle_since: Cell::new(now),
            born: now,
            local,
            idle_timeout: Cell::new(settings.idle_timeout),
            max_age: Cell::new(settings.max_age),
            leaving: Cell::new(false),
            driver: RefCell::new(None),
            ticket: slot.map(Ticket::new),
            until_closed: RefCell::new(None),
        })
    }

    /// From where its endpoint was dialled.
    pub(super) fn local(&self) -> Option<SocketAddr> {
        self.local
    }

    /// A request begins.
    pub(super) fn begin(&self) {
        self.streams.set(self.streams.get() + 1);
        self.served.set(self.served.get().saturating_add(1));
    }

    /// A request is over.
    pub(super) fn end(&self) {
        self.streams.set(self.streams.get().saturating_sub(1));
        if self.streams.get() == 0 {
            self.idle_since.set(Instant::now());
            if self.leaving.get() {
                self.driver.borrow().iter().for_each(Waker::wake_by_ref);
            }
        }
    }

    /// Requests that are under way.
    pub(super) fn streams(&self) -> u32 {
        self.streams.get()
    }

    /// Whether it takes no more requests.
    pub(super) fn is_retired(&self, settings: &Settings) -> bool {
        let old = self.max_age.get().is_some_and(|age| self.born.elapsed() >= age);
        old || self.leaving.get()
            || settings.max_requests_per_connection.is_some_and(|most| self.served.get() >= most)
    }

    /// Its place.
    pub(super) fn ticket(&self) -> Option<&Arc<Ticket>> {
        self.ticket.as_ref()
    }

    /// Keeps a request's accounts open until the connection is closed.
    pub(super) fn keep_until_closed(&self, exchange: Exchange) {
        *self.until_closed.borrow_mut() = Some(exchange);
    }

    /// When to look again whether it has been idle, or has lived, for too long; `Err` when it has.
    fn deadline(&self) -> Result<Instant, ()> {
        let now = Instant::now();
        let from = |since: Instant, time: Option<Duration>| since.checked_add(time.unwrap_or(NEVER));
        let old = from(self.born, self.max_age.get()).unwrap_or(now + NEVER);
        if self.streams.get() > 0 {
            // What is under way is finished, however old the connection is.
            let rest = self.idle_timeout.get().unwrap_or(NEVER);
            return Ok(now + rest.min(if old > now { old - now } else { rest }));
        }
        let over = from(self.idle_since.get(), self.idle_timeout.get()).unwrap_or(now + NEVER).min(old);
        if over <= now { Err(()) } else { Ok(over) }
    }
}

/// An HTTP/1.1 connection. Whoever has it has it alone; dropped, it is closed.
pub(super) struct Single {
    /// Takes the requests.
    pub(super) sender: Client<Wire>,
    /// How it is used.
    pub(super) usage: Rc<Usage>,
}

/// An HTTP/2 connection.
pub(super) struct Shared {
    /// Takes the requests.
    pub(super) sender: http2::Sender,
    /// How it is used.
    pub(super) usage: Rc<Usage>,
}

/// Opens an HTTP/1.1 connection.
pub(super) async fn single(
    worker: &Rc<Worker>,
    pool: &Rc<Pool>,
    dial: &Dial,
    (slot, settings): (Option<Slot>, &Settings),
) -> Result<Single, Failure> {
    let opened = open(worker, dial).await?;
    let (sender, mut own) = connect(opened.wire);
    let usage = Usage::new(slot, settings, opened.local);
    let rest = Rest { held: opened.held, closed: opened.closed, usage: usage.clone() };
    drive(worker, pool, move |cx| own.poll(cx), rest);
    Ok(Single { sender, usage })
}

/// Opens an HTTP/2 connection.
pub(super) async fn shared(
    worker: &Rc<Worker>,
    pool: &Rc<Pool>,
    dial: &Dial,
    (slot, settings): (Option<Slot>, &Settings),
) -> Result<Shared, Failure> {
    let Opened { wire, local, held, closed } = open(worker, dial).await?;
    let (sender, mut driver) = http2::handshake(wire, settings.pings).await.map_err(|error| {
        Failure::new("UF", "http", format!("{} does not speak HTTP/2: {error}", dial.endpoint))
    })?;
    let usage = Usage::new(slot, settings, local);
    drive(worker, pool, move |cx| driver.poll(cx), Rest { held, closed, usage: usage.clone() });
    Ok(Shared { sender, usage })
}

/// What is left to do when a connection's driver has ended.
struct Rest {
    held: super::dial::Held,
    closed: tokio::sync::oneshot::Receiver<()>,
    usage: Rc<Usage>,
}

/// Keeps a connection going until it ends, is idle for too long, or its place is taken away.
fn drive(
    worker: &Rc<Worker>,
    pool: &Rc<Pool>,
    poll: impl FnMut(&mut Context<'_>) -> Poll<()> + 'static,
    rest: Rest,
) {
    pool.opened();
    let pool = Rc::downgrade(pool);
    worker.spawn(async move {
        until_over(poll, &rest.usage, rest.held.tunnel()).await;
        pool.upgrade().inspect(|pool| pool.sweep());
        // Also an upgraded connection ends; the sender is only ever dropped.
        let _ = rest.closed.await;
        if let Some(ticket) = rest.usage.ticket() {
            ticket.close();
        }
        pool.upgrade().inspect(|pool| pool.closed());
        drop(rest.usage.until_closed.take());
        drop(rest.held);
    });
}

/// `tunnel` is what carries it, where that can go away: its peer waits for whatever rests in it.
async fn until_over(
    mut poll: impl FnMut(&mut Context<'_>) -> Poll<()>,
    usage: &Usage,
    tunnel: Option<Rc<Tunnel>>,
) {
    let mut timer = pin!(sleep_until(usage.deadline().unwrap_or_else(|()| Instant::now())));
    let mut leaving = pin!(OptionFuture::from(tunnel.as_ref().map(|tunnel| tunnel.until_gone())));
    poll_fn(|cx| {
        if poll(cx).is_ready() {
            return Poll::Ready(());
        }
        if !usage.leaving.get() && matches!(leaving.as_mut().poll(cx), Poll::Ready(Some(()))) {
            usage.leaving.set(true);
            *usage.driver.borrow_mut() = Some(cx.waker().clone());
        }
        if usage.leaving.get() && usage.streams() == 0 {
            return Poll::Ready(());
        }
        if usage.ticket.as_ref().is_some_and(|ticket| ticket.poll_evicted(cx)) {
            return Poll::Ready(());
        }
        while timer.as_mut().poll(cx).is_ready() {
            match usage.deadline() {
                Ok(next) => timer.as_mut().reset(next),
                Err(()) => return Poll::Ready(()),
            }
        }
        Poll::Pending
    })
    .await;
}
