//! Tunnels of one worker, shared by the connections of a pod to a peer.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::sync::Notify;
use tokio::time::Instant;
use weft_core::Identity;
use weft_core::resource::NamespacedName;

use super::STREAMS;
use super::lanes::Lanes;
use crate::account::Failure;

/// Where a tunnel leads and in whose name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Target {
    /// The source pod: its namespace, its address.
    pub(crate) pod: NamespacedName,
    /// Its identity.
    pub(crate) source: Arc<Identity>,
    /// The peer.
    pub(crate) peer: IpAddr,
    /// Who the peer must be.
    pub(crate) destination: Arc<Identity>,
}

/// Streams that begin at once in a new tunnel. Its driver gets its turn after each of them: HTTP/2 makes room for all
/// messages that wait at a time, for as long as the tunnel lasts.
const TOGETHER: usize = 16;

/// What a tunnel's driver and its streams share.
#[derive(Debug)]
pub(crate) struct Usage {
    born: Instant,
    /// Our address on the connection to the peer.
    local: Option<SocketAddr>,
    streams: Cell<usize>,
    idle_since: Cell<Instant>,
    gone: Cell<bool>,
    /// Told when it is gone.
    leaving: Notify,
}

impl Usage {
    /// No stream yet, on a connection from `local`.
    pub(crate) fn new(local: Option<SocketAddr>) -> Rc<Self> {
        let now = Instant::now();
        Rc::new(Self {
            born: now,
            local,
            streams: Cell::new(0),
            idle_since: Cell::new(now),
            gone: Cell::new(false),
            leaving: Notify::new(),
        })
    }

    /// From where the peer was dialled.
    pub(crate) fn local(&self) -> Option<SocketAddr> {
        self.local
    }

    /// No new streams from now on.
    pub(crate) fn close(&self) {
        if !self.gone.replace(true) {
            self.leaving.notify_waiters();
        }
    }

    /// Whether it takes no new streams.
    pub(crate) fn is_gone(&self) -> bool {
        self.gone.get()
    }

    /// Waits until it takes no new streams: those that rest in it are to end, so that its peer can.
    pub(crate) async fn until_gone(&self) {
        // Listens before it looks: an end in between is not missed.
        let leaving = self.leaving.notified();
        if !self.is_gone() {
            leaving.await;
        }
    }

    /// Since when it has no stream; `None` while it has.
    pub(crate) fn idle_since(&self) -> Option<Instant> {
        (self.streams.get() == 0).then(|| self.idle_since.get())
    }
}

/// A tunnel that takes streams.
#[derive(Debug)]
pub(crate) struct Tunnel {
    /// Opens streams.
    pub(crate) send: SendRequest<Bytes>,
    /// Their payload.
    pub(crate) lanes: Lanes,
    /// Who uses it.
    pub(crate) usage: Rc<Usage>,
}

impl Tunnel {
    fn has_room(&self) -> bool {
        !self.usage.is_gone() && self.usage.streams.get() < STREAMS.min(self.send.current_max_send_streams())
    }
}

/// A place for one stream in a tunnel; free again when dropped.
pub(crate) struct Permit {
    /// Opens the stream. `None` once it was used: a stream does not need it, and the last one ends the tunnel.
    send: Option<(SendRequest<Bytes>, Lanes)>,
    usage: Rc<Usage>,
}

impl Permit {
    fn new(tunnel: &Tunnel) -> Self {
        tunnel.usage.streams.set(tunnel.usage.streams.get() + 1);
        Self { send: Some((tunnel.send.clone(), tunnel.lanes.clone())), usage: tunnel.usage.clone() }
    }

    /// What opens the stream; once.
    pub(crate) fn take_sender(&mut self) -> Option<(SendRequest<Bytes>, Lanes)> {
        self.send.take()
    }

    /// The tunnel turned out to be of no use any more.
    pub(crate) fn tunnel_is_gone(&self) {
        self.usage.close();
    }

    /// Whether the tunnel was there before that moment.
    pub(crate) fn is_older_than(&self, moment: Instant) -> bool {
        self.usage.born < moment
    }

    /// The tunnel, for who rests in it.
    pub(crate) fn tunnel(&self) -> Rc<Usage> {
        self.usage.clone()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let streams = self.usage.streams.get().saturating_sub(1);
        self.usage.streams.set(streams);
        if streams == 0 {
            self.usage.idle_since.set(Instant::now());
        }
    }
}

/// One attempt to dial, for all who wait for it.
#[derive(Debug, Default)]
struct Attempt {
    outcome: RefCell<Option<Result<(), Failure>>>,
    over: Notify,
}

/// The duty to end an attempt. Dropped without a result, as by a panic, it has failed: nobody waits for ever.
pub(crate) struct Dialling {
    pool: Rc<Pool>,
    target: Target,
    over: bool,
}

impl Dialling {
    /// Where to.
    pub(crate) fn target(&self) -> &Target {
        &self.target
    }

    /// Ends the attempt.
    pub(crate) fn done(mut self, result: Result<Tunnel, Failure>) {
        self.over = true;
        self.pool.dialled(&self.target, result);
    }
}

impl Drop for Dialling {
    fn drop(&mut self) {
        if !self.over {
            let details = format!("no tunnel to {}: the attempt was abandoned", self.target.peer);
            self.pool.dialled(&self.target, Err(Failure::new("UF", "tunnel", details)));
        }
    }
}

#[derive(Debug, Default)]
struct Tunnels {
    open: Vec<Rc<Tunnel>>,
    attempt: Option<Rc<Attempt>>,
}

impl Tunnels {
    /// A place in the fullest tunnel that has one: streams of one tunnel share records and system calls, and tunnels
    /// that only a burst needed fall idle and end.
    fn place(&mut self) -> Option<Permit> {
        self.open.retain(|tunnel| !tunnel.usage.is_gone());
        let free = self.open.iter().filter(|tunnel| tunnel.has_room());
        free.max_by_key(|tunnel| tunnel.usage.streams.get()).map(|tunnel| Permit::new(tunnel))
    }
}

/// All tunnels that a worker dialled.
#[derive(Debug, Default)]
pub(crate) struct Pool(RefCell<HashMap<Target, Tunnels>>);

impl Pool {
    /// A place for a stream. Dials when no tunnel has room; callers that come meanwhile wait for the same attempt.
    ///
    /// `start` must begin the dialling in a task of its own, which ends with [`Dialling::done`]: the attempt
    /// belongs to all who wait, not to the one who came first.
    pub(crate) async fn checkout(
        self: &Rc<Self>,
        target: &Target,
        start: impl Fn(Dialling),
    ) -> Result<Permit, Failure> {
        loop {
            let (attempt, fresh) = {
                let mut targets = self.0.borrow_mut();
                let tunnels = targets.entry(target.clone()).or_default();
                if let Some(permit) = tunnels.place() {
                    return Ok(permit);
                }
                let fresh = tunnels.attempt.is_none();
                (tunnels.attempt.get_or_insert_default().clone(), fresh)
            };
            let over = attempt.over.notified();
            if fresh {
                start(Dialling { pool: self.clone(), target: target.clone(), over: false });
            }
            if attempt.outcome.borrow().is_none() {
                over.await;
                // In place of those that were woken go those that come after them.
                attempt.over.notify_one();
            }
            if let Some(Err(failure)) = attempt.outcome.borrow().as_ref() {
                return Err(failure.clone());
            }
        }
    }

    /// Ends an attempt.
    fn dialled(&self, target: &Target, result: Result<Tunnel, Failure>) {
        let mut targets = self.0.borrow_mut();
        let Some(tunnels) = targets.get_mut(target) else { return };
        let attempt = tunnels.attempt.take();
        let outcome = result.map(|tunnel| tunnels.open.push(Rc::new(tunnel)));
        if tunnels.open.is_empty() {
            targets.remove(target);
        }
        if let Some(attempt) = attempt {
            *attempt.outcome.borrow_mut() = Some(outcome);
            (0..TOGETHER).for_each(|_| attempt.over.notify_one());
        }
    }

    /// Lets go of tunnels that take no more streams: they end with their last one.
    pub(crate) fn sweep(&self, target: &Target) {
        let mut targets = self.0.borrow_mut();
        let Some(tunnels) = targets.get_mut(target) else { return };
        tunnels.open.retain(|tunnel| !tunnel.usage.is_gone());
        if tunnels.open.is_empty() && tunnels.attempt.is_none() {
            targets.remove(target);
        }
    }

    /// Lets go of all tunnels of a pod.
    pub(crate) fn forget(&self, pod: &NamespacedName) {
        self.0.borrow_mut().retain(|target, tunnels| {
            if target.pod != *pod {
                return true;
            }
            tunnels.open.drain(..).for_each(|tunnel| tunnel.usage.close());
            tunnels.attempt.is_some()
        });
    }

    /// Tunnels that have streams.
    #[cfg(test)]
    pub(crate) fn busy(&self) -> usize {
        let targets = self.0.borrow();
        let open = targets.values().flat_map(|tunnels| &tunnels.open);
        open.filter(|tunnel| tunnel.usage.idle_since().is_none()).count()
    }

    /// Open tunnels.
    #[cfg(test)]
    pub(crate) fn open(&self) -> usize {
        self.0.borrow().values().map(|tunnels| tunnels.open.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::testbed::{identity, name, run};

    #[test]
    fn an_attempt_that_panics_fails_and_the_next_one_is_new() {
        run(async {
            let pool = Rc::new(Pool::default());
            let target = Target {
                pod: name("client"),
                source: Arc::new(identity("client")),
                peer: "10.0.0.1".parse().unwrap(),
                destination: Arc::new(identity("server")),
            };
            let attempts = Cell::new(0);
            for attempt in 1..=2 {
                let start = |dialling: Dialling| {
                    attempts.set(attempts.get() + 1);
                    tokio::task::spawn_local(async move {
                        let _dialling = dialling;
                        panic!("on purpose");
                    });
                };
                let failure = pool.checkout(&target, start).await.err().unwrap();
                assert!(failure.details.contains("abandoned"), "{}", failure.details);
                assert_eq!(attempts.get(), attempt);
            }
        });
    }

    #[test]
    fn all_who_wait_for_an_attempt_hear_of_its_end() {
        run(async {
            let pool = Rc::new(Pool::default());
            let target = Target {
                pod: name("client"),
                source: Arc::new(identity("client")),
                peer: "10.0.0.1".parse().unwrap(),
                destination: Arc::new(identity("server")),
            };
            let attempts = Cell::new(0);
            let start = |dialling: Dialling| {
                attempts.set(attempts.get() + 1);
                tokio::task::spawn_local(async move {
                    tokio::task::yield_now().await;
                    drop(dialling);
                });
            };
            let waiting = (0..3 * TOGETHER + 1).map(|_| pool.checkout(&target, start));
            let ends = futures_util::future::join_all(waiting);
            let ends = tokio::time::timeout(std::time::Duration::from_secs(20), ends).await.unwrap();
            assert!(ends.iter().all(Result::is_err));
            assert_eq!(attempts.get(), 1);
        });
    }
}
