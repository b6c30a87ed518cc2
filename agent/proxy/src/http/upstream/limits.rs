//! Limits of one cluster: what is open, what waits, and who gets the next place (D-12 to D-14, E26, E27).
//!
//! Shared by all workers. While a cluster has room, a request touches atomic counters and its own connection's lock;
//! the locks of the cluster are taken when a connection is idle for the first time, and where a cluster is full.
//!
//! A limit that is lowered applies to what is open already: idle connections above it are closed at once, others
//! when their request ends.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use futures_util::task::AtomicWaker;
use tokio::sync::oneshot;
use weft_core::resource::destination_rule::ConnectionPool;

use super::state::{ClusterState, Host};

/// The numbers of a `connectionPool`; without a limit the largest number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    /// `maxConnections`.
    pub(super) connections: u32,
    /// `http1MaxPendingRequests`.
    pub(super) pending: u32,
    /// `http2MaxRequests`, for both protocols (E27).
    pub(super) requests: u32,
    /// `maxRetries`.
    pub(super) retries: u32,
}

impl Limits {
    /// Zero is no limit, as absent (D-13).
    pub(super) fn of(pool: &ConnectionPool) -> Self {
        let number = |limit: Option<u32>| limit.filter(|limit| *limit > 0).unwrap_or(u32::MAX);
        Self {
            connections: number(pool.max_connections),
            pending: number(pool.max_pending_requests),
            requests: number(pool.max_requests),
            retries: number(pool.max_retries),
        }
    }
}

/// How many there are of something.
#[derive(Debug, Default)]
pub(super) struct Gauge(AtomicU32);

impl Gauge {
    /// One more, unless there are `limit` already.
    pub(super) fn try_add(&self, limit: u32) -> bool {
        let more = |count: u32| (count < limit).then(|| count.saturating_add(1));
        self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).is_ok()
    }

    /// One more, whatever the limit.
    pub(super) fn add(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    /// One less.
    pub(super) fn remove(&self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }

    /// How many.
    pub(super) fn get(&self) -> u32 {
        self.0.load(Ordering::SeqCst)
    }
}

/// What a [`Permit`] is one of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Counted {
    /// Requests that are outstanding.
    Request,
    /// Requests that wait for a connection.
    Pending,
    /// Retries that are outstanding.
    Retry,
}

/// One of what is counted; given back when dropped.
#[derive(Debug)]
pub(super) struct Permit {
    cluster: Arc<ClusterState>,
    counted: Counted,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.cluster.gauge(self.counted).remove();
    }
}

/// One connection of a cluster; given back when dropped, to the one who waits longest.
#[derive(Debug)]
pub(super) struct Slot {
    cluster: Arc<ClusterState>,
    host: Arc<Host>,
    /// Nobody is told: the caller looks for the next one itself.
    quiet: bool,
}

impl Slot {
    fn new(cluster: &Arc<ClusterState>, host: &Arc<Host>) -> Self {
        host.connections.add();
        Self { cluster: cluster.clone(), host: host.clone(), quiet: false }
    }

    /// The same place for a connection to another endpoint.
    fn moved_to(mut self, host: &Arc<Host>) -> Self {
        host.connections.add();
        std::mem::replace(&mut self.host, host.clone()).connections.remove();
        self
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.host.connections.remove();
        self.cluster.connections.remove();
        if !self.quiet {
            self.cluster.serve_waiting();
        }
    }
}

/// The pool of one worker to one endpoint, by address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place(pub(super) usize);

/// What somebody who waits gets.
#[derive(Debug)]
pub(super) enum Grant {
    /// A place for a new connection.
    Slot(Slot),
    /// A connection of its own pool, which keeps it under the waiter's number.
    Connection,
}

/// Somebody who waits for a connection.
#[derive(Debug)]
pub(super) struct Waiter {
    /// Its number in the cluster.
    pub(super) id: u64,
    place: Place,
    host: Arc<Host>,
    grant: oneshot::Sender<Grant>,
}

impl Waiter {
    /// Tells that its connection is there; `false` when nobody waits any more.
    pub(super) fn hand_connection(self) -> bool {
        self.grant.send(Grant::Connection).is_ok()
    }
}

/// Those who wait, first come first served.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Length of the queue, to look at without the lock.
    len: AtomicUsize,
    next: Mutex<Waiters>,
    /// Idle connections, also those from before there was a limit; some of them may be in use or closed meanwhile.
    idle: Mutex<Vec<Weak<Ticket>>>,
}

#[derive(Debug, Default)]
struct Waiters {
    queue: VecDeque<Waiter>,
    next_id: u64,
}

impl Queue {
    /// Locked by workers whose cluster is full, for one push or pop; a channel could not tell who waits longest.
    fn waiters(&self) -> MutexGuard<'_, Waiters> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_length(&self, waiters: &Waiters) {
        self.len.store(waiters.queue.len(), Ordering::SeqCst);
    }
}

/// What becomes of a connection that has nothing to do.
pub(super) enum Next {
    /// It stays for the next request.
    Keep,
    /// It is for somebody who waits in its own pool.
    Hand(Waiter),
    /// Somebody waits for a connection to elsewhere, or there are too many: it is closed, which gives its place away.
    Close,
}

impl ClusterState {
    /// One more request, pending request or retry.
    pub(super) fn permit(self: &Arc<Self>, counted: Counted, limit: u32) -> Option<Permit> {
        self.gauge(counted).try_add(limit).then(|| Permit { cluster: self.clone(), counted })
    }

    /// A place for a connection to `host`: within the limit, or in place of an idle one, or because the
    /// endpoint has none at all (as Envoy does, so that no request waits for a connection that never comes).
    pub(super) fn connect(self: &Arc<Self>, limit: u32, host: &Arc<Host>) -> Option<Slot> {
        if self.connections.try_add(limit) {
            return Some(Slot::new(self, host));
        }
        if let Some(slot) = self.evict() {
            return Some(slot.moved_to(host));
        }
        (host.connections.get() == 0).then(|| self.connect_anyway(host))
    }

    /// A place within the limit and nothing else.
    pub(super) fn connect_within(self: &Arc<Self>, limit: u32, host: &Arc<Host>) -> Option<Slot> {
        self.connections.try_add(limit).then(|| Slot::new(self, host))
    }

    /// A place beyond the limit.
    pub(super) fn connect_anyway(self: &Arc<Self>, host: &Arc<Host>) -> Slot {
        self.connections.add();
        Slot::new(self, host)
    }

    /// `maxConnections` as the newest request knows it.
    fn limit(&self) -> u32 {
        self.limit.load(Ordering::SeqCst)
    }

    /// Whether more connections are open than there may be.
    pub(super) fn is_over(&self) -> bool {
        self.connections.get() > self.limit()
    }

    /// Keeps the connections within `limit`, which may be another than before.
    pub(super) fn keep_within(self: &Arc<Self>, limit: u32) {
        // Written only when it changes: all workers read it.
        let before = self.limit();
        if before != limit {
            self.limit.store(limit, Ordering::SeqCst);
        }
        while self.is_over() {
            let Some(slot) = self.evict() else { break };
            drop(slot);
        }
        if before < limit {
            self.serve_waiting();
        }
    }

    /// Takes the place of an idle connection, on whichever worker.
    fn evict(&self) -> Option<Slot> {
        let mut idle = self.queue.idle.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(ticket) = idle.pop() {
            let slot = ticket.upgrade().and_then(|ticket| ticket.evict());
            if slot.is_some() {
                return slot;
            }
        }
        None
    }

    /// Makes an idle connection known to [`Self::evict`].
    pub(super) fn list_idle(&self, ticket: &Arc<Ticket>) {
        if ticket.idle() {
            let mut idle = self.queue.idle.lock().unwrap_or_else(PoisonError::into_inner);
            if idle.len() > 2 * self.connections.get() as usize + 16 {
                idle.retain(|ticket| ticket.strong_count() > 0);
            }
            idle.push(Arc::downgrade(ticket));
        }
    }

    /// Joins those who wait. Answers the waiter's number and what it gets in the end.
    pub(super) fn wait(self: &Arc<Self>, place: Place, host: &Arc<Host>) -> (u64, oneshot::Receiver<Grant>) {
        let (grant, granted) = oneshot::channel();
        let id = {
            let mut waiters = self.queue.waiters();
            let id = waiters.next_id;
            waiters.next_id += 1;
            waiters.queue.push_back(Waiter { id, place, host: host.clone(), grant });
            self.queue.note_length(&waiters);
            id
        };
        // A place that became free, or a connection that became idle, before the length was visible has told nobody.
        self.serve_waiting();
        (id, granted)
    }

    /// Gives free places to those who wait.
    pub(super) fn serve_waiting(self: &Arc<Self>) {
        while self.is_waited_for() {
            let Some((waiter, slot)) = self.next_with_slot() else { return };
            if let Err(Grant::Slot(mut unwanted)) = waiter.grant.send(Grant::Slot(slot)) {
                unwanted.quiet = true;
            }
        }
    }

    fn next_with_slot(self: &Arc<Self>) -> Option<(Waiter, Slot)> {
        let mut waiters = self.queue.waiters();
        waiters.queue.retain(|waiter| !waiter.grant.is_closed());
        let next = match self.place_for_one_of(&waiters.queue) {
            Some((at, slot)) => waiters.queue.remove(at).map(|waiter| (waiter, slot)),
            None => None,
        };
        self.queue.note_length(&waiters);
        next
    }

    /// A place, and whose it is: that of the first, or of one whose endpoint has no connection that it could wait for.
    fn place_for_one_of(self: &Arc<Self>, queue: &VecDeque<Waiter>) -> Option<(usize, Slot)> {
        let first = queue.front()?;
        if let Some(slot) = self.connect(self.limit(), &first.host) {
            return Some((0, slot));
        }
        let stranded = queue.iter().enumerate().find(|(_, waiter)| waiter.host.connections.get() == 0);
        stranded.map(|(at, waiter)| (at, self.connect_anyway(&waiter.host)))
    }

    /// Whether anybody waits.
    pub(super) fn is_waited_for(&self) -> bool {
        self.queue.len.load(Ordering::SeqCst) > 0
    }

    /// What becomes of a connection of the pool `place` that has nothing to do.
    pub(super) fn next_for(&self, place: Place) -> Next {
        if self.is_over() {
            return Next::Close;
        }
        if !self.is_waited_for() {
            return Next::Keep;
        }
        let mut waiters = self.queue.waiters();
        waiters.queue.retain(|waiter| !waiter.grant.is_closed());
        let next = match waiters.queue.front().map(|first| first.place == place) {
            None => Next::Keep,
            Some(false) => Next::Close,
            Some(true) => waiters.queue.pop_front().map_or(Next::Keep, Next::Hand),
        };
        self.queue.note_length(&waiters);
        next
    }
}

/// A connection's hold on its place. Another worker may take the place away while the connection is idle.
#[derive(Debug, Default)]
pub(super) struct Ticket {
    /// Locked for an assignment, by the connection's worker and by workers whose cluster is full.
    state: Mutex<TicketState>,
    evicted: AtomicWaker,
}

#[derive(Debug, Default)]
struct TicketState {
    slot: Option<Slot>,
    idle: bool,
    listed: bool,
}

impl Ticket {
    /// A connection in use.
    pub(super) fn new(slot: Slot) -> Arc<Self> {
        let state = TicketState { slot: Some(slot), idle: false, listed: false };
        Arc::new(Self { state: Mutex::new(state), evicted: AtomicWaker::new() })
    }

    fn state(&self) -> MutexGuard<'_, TicketState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It has nothing to do; answers whether it has to be listed.
    fn idle(&self) -> bool {
        let mut state = self.state();
        state.idle = true;
        !std::mem::replace(&mut state.listed, true)
    }

    /// It is used again; `false` when its place was taken away.
    pub(super) fn claim(&self) -> bool {
        let mut state = self.state();
        state.idle = false;
        state.slot.is_some()
    }

    fn evict(&self) -> Option<Slot> {
        let mut state = self.state();
        state.listed = false;
        let slot = if state.idle { state.slot.take() } else { None };
        drop(state);
        if slot.is_some() {
            self.evicted.wake();
        }
        slot
    }

    /// Whether its place was taken away; whoever asks is woken when that happens.
    pub(super) fn poll_evicted(&self, cx: &std::task::Context<'_>) -> bool {
        self.evicted.register(cx.waker());
        self.state().slot.is_none()
    }

    /// The connection is closed: its place is free.
    pub(super) fn close(&self) {
        let slot = self.state().slot.take();
        drop(slot);
    }
}
