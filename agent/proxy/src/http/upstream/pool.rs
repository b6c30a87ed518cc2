//! Connections of one worker to one endpoint, in the name of one client.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use weft_core::resource::destination_rule::ConnectionPool;

use super::connection::{self, Shared, Single};
use super::dial::Dial;
use super::limits::{Limits, Next, Place, Slot};
use super::state::ClusterState;
use crate::account::Failure;
use crate::worker::Worker;

/// Idle HTTP/1.1 connections that a pool keeps.
const MOST_IDLE: usize = 128;
/// How long a connection is kept without requests, unless a policy says otherwise (D-13).
const IDLE: Duration = Duration::from_secs(3600);
/// Requests at a time on an HTTP/2 connection, unless a policy says otherwise.
const STREAMS: u32 = 100;

/// Attempts to get a place on an HTTP/2 connection.
const ATTEMPTS: usize = 3;

/// What a policy says about connections.
#[derive(Debug, Clone, Copy)]
pub(super) struct Settings {
    /// How many.
    pub(super) limits: Limits,
    /// `http.idleTimeout`; `None` is for ever.
    pub(super) idle_timeout: Option<Duration>,
    /// `tcp.maxConnectionDuration`.
    pub(super) max_age: Option<Duration>,
    /// `http.maxRequestsPerConnection`.
    pub(super) max_requests_per_connection: Option<u32>,
    /// `http.maxConcurrentStreams`.
    pub(super) streams: u32,
    /// `http.http2KeepAlive`: interval and timeout.
    pub(super) pings: Option<(Duration, Duration)>,
}

impl Settings {
    /// Those of a policy.
    pub(super) fn of(pool: &ConnectionPool) -> Self {
        Self {
            limits: Limits::of(pool),
            idle_timeout: Some(pool.http_idle_timeout.unwrap_or(IDLE)).filter(|time| !time.is_zero()),
            max_age: pool.max_connection_duration.filter(|time| !time.is_zero()),
            max_requests_per_connection: pool.max_requests_per_connection.filter(|most| *most > 0),
            streams: pool.max_concurrent_streams.filter(|most| *most > 0).unwrap_or(STREAMS),
            pings: pool.http2_keep_alive,
        }
    }
}

/// One attempt to dial, for all who wait for it.
#[derive(Debug, Default)]
pub(super) struct Attempt {
    outcome: RefCell<Option<Result<(), Failure>>>,
    over: Notify,
}

impl Attempt {
    /// Waits until it is over.
    pub(super) async fn over(&self) -> Result<(), Failure> {
        let over = self.over.notified();
        if self.outcome.borrow().is_none() {
            over.await;
        }
        self.outcome.borrow().clone().unwrap_or(Ok(()))
    }
}

/// Connections to one endpoint.
#[derive(Default)]
pub(super) struct Pool {
    /// HTTP/1.1 connections without a request, the one used last at the end.
    idle: RefCell<Vec<Single>>,
    /// Connections that are for somebody who waits, by the waiter's number.
    handed: RefCell<HashMap<u64, Single>>,
    /// HTTP/2 connections that take requests.
    shared: RefCell<Vec<Rc<Shared>>>,
    attempt: RefCell<Option<Rc<Attempt>>>,
    /// All connections that are open, also those that take no more requests.
    live: Cell<usize>,
}

impl Pool {
    /// Its place in the queues of its cluster.
    pub(super) fn place(self: &Rc<Self>) -> Place {
        Place(Rc::as_ptr(self).addr())
    }

    /// An idle HTTP/1.1 connection.
    pub(super) fn take(&self, settings: &Settings) -> Option<Single> {
        loop {
            let connection = self.idle.borrow_mut().pop()?;
            let claimed = connection.usage.ticket().is_none_or(|ticket| ticket.claim());
            if claimed && connection.sender.is_ready() && !connection.usage.is_retired(settings) {
                return Some(connection);
            }
        }
    }

    /// The connection that somebody who waited was promised.
    pub(super) fn take_handed(&self, waiter: u64) -> Option<Single> {
        self.handed.borrow_mut().remove(&waiter)
    }

    /// Takes a connection back after a request.
    pub(super) fn put(
        self: &Rc<Self>,
        connection: Single,
        cluster: Option<&Arc<ClusterState>>,
        settings: &Settings,
    ) {
        connection.sender.rest();
        if !connection.sender.is_closed() && !connection.usage.is_retired(settings) {
            self.put_ready(connection, cluster, settings);
        }
    }

    fn put_ready(
        self: &Rc<Self>,
        connection: Single,
        cluster: Option<&Arc<ClusterState>>,
        settings: &Settings,
    ) {
        let Some(cluster) = cluster else { return self.keep(connection) };
        match cluster.next_for(self.place()) {
            Next::Keep => {}
            // Its place is free now, not when its driver has noticed: whoever else comes back is not one too many.
            Next::Close => return connection.usage.ticket().into_iter().for_each(|ticket| ticket.close()),
            Next::Hand(waiter) => {
                let id = waiter.id;
                self.handed.borrow_mut().insert(id, connection);
                if waiter.hand_connection() {
                    return;
                }
                let Some(back) = self.take_handed(id) else { return };
                return self.put_ready(back, Some(cluster), settings);
            }
        }
        // Also without a limit: there may be one tomorrow.
        let listed = connection.usage.ticket().inspect(|ticket| cluster.list_idle(ticket)).is_some();
        self.keep(connection);
        // Whoever began to wait meanwhile saw neither an idle connection nor was seen.
        if listed
            && cluster.is_waited_for()
            && let Some(back) = self.take(settings)
        {
            self.put_ready(back, Some(cluster), settings);
        }
    }

    fn keep(&self, connection: Single) {
        let mut idle = self.idle.borrow_mut();
        if idle.len() < MOST_IDLE {
            idle.push(connection);
        }
    }

    /// Lets HTTP/2 connections that are one too many take no more requests: they end with those they have. One stays.
    pub(super) fn shed(&self, cluster: &ClusterState, limit: u32) {
        let mut shared = self.shared.borrow_mut();
        let ending = self.live.get().saturating_sub(shared.len());
        let over = usize::try_from(cluster.connections.get().saturating_sub(limit)).unwrap_or(usize::MAX);
        let kept = shared.len().saturating_sub(over.saturating_sub(ending)).max(1);
        shared.truncate(kept);
    }

    /// An HTTP/2 connection with room for a request; where all are full and `full` says so, the least full one.
    pub(super) fn share(&self, settings: &Settings, full: bool) -> Option<Rc<Shared>> {
        let mut shared = self.shared.borrow_mut();
        shared.retain(|connection| !connection.sender.is_closed() && !connection.usage.is_retired(settings));
        let least = shared.iter().min_by_key(|connection| connection.usage.streams())?;
        (full || least.usage.streams() < settings.streams).then(|| least.clone())
    }

    /// The HTTP/2 connection that is being opened. It belongs to all who wait for it.
    pub(super) fn attempt(&self) -> Option<Rc<Attempt>> {
        self.attempt.borrow().clone()
    }

    /// A connection is open until [`Self::closed`].
    pub(super) fn opened(&self) {
        self.live.set(self.live.get() + 1);
    }

    /// A connection has been closed.
    pub(super) fn closed(&self) {
        self.live.set(self.live.get().saturating_sub(1));
    }

    /// Whether any connection is open, also one that takes no more requests.
    pub(super) fn is_live(&self) -> bool {
        self.live.get() > 0
    }

    /// An HTTP/2 connection without regard to limits.
    pub(super) async fn share_or_dial(
        self: &Rc<Self>,
        worker: &Rc<Worker>,
        dial: &Dial,
        settings: &Settings,
    ) -> Result<Rc<Shared>, Failure> {
        for _ in 0..ATTEMPTS {
            if let Some(connection) = self.share(settings, false) {
                return Ok(connection);
            }
            let attempt = self.attempt().unwrap_or_else(|| self.start(worker, dial, None, settings));
            attempt.over().await?;
        }
        let details = format!("{} closes every connection at once", dial.endpoint);
        self.share(settings, true).ok_or_else(|| Failure::new("UF", "connect", details))
    }

    /// Begins to open an HTTP/2 connection.
    pub(super) fn start(
        self: &Rc<Self>,
        worker: &Rc<Worker>,
        dial: &Dial,
        slot: Option<Slot>,
        settings: &Settings,
    ) -> Rc<Attempt> {
        let attempt = Rc::new(Attempt::default());
        *self.attempt.borrow_mut() = Some(attempt.clone());
        let duty = Duty { pool: Rc::downgrade(self), attempt: attempt.clone() };
        let (task, pool, dial, settings) = (worker.clone(), self.clone(), dial.clone(), *settings);
        worker.spawn(async move {
            let opened = connection::shared(&task, &pool, &dial, (slot, &settings)).await;
            let outcome = opened.map(|connection| pool.shared.borrow_mut().push(Rc::new(connection)));
            *duty.attempt.outcome.borrow_mut() = Some(outcome);
            drop(duty);
        });
        attempt
    }

    /// Lets go of connections that are closed.
    pub(super) fn sweep(&self) {
        self.idle.borrow_mut().retain(|connection| !connection.sender.is_closed());
        self.shared.borrow_mut().retain(|connection| !connection.sender.is_closed());
    }

    /// Whether it has nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.idle.borrow().is_empty()
            && self.shared.borrow().is_empty()
            && self.handed.borrow().is_empty()
            && self.attempt.borrow().is_none()
    }
}

/// The duty to end an attempt. Dropped without an outcome, as by a panic, it has failed: nobody waits for ever.
struct Duty {
    pool: Weak<Pool>,
    attempt: Rc<Attempt>,
}

impl Drop for Duty {
    fn drop(&mut self) {
        let abandoned = || Err(Failure::new("UF", "connect", "the attempt to connect was abandoned"));
        self.attempt.outcome.borrow_mut().get_or_insert_with(abandoned);
        if let Some(pool) = self.pool.upgrade() {
            pool.attempt.borrow_mut().take();
        }
        self.attempt.over.notify_waiters();
    }
}
