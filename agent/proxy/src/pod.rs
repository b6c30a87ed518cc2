//! A pod in service: its namespace, its ports, and how much of the agent it uses (admission).

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, SemaphorePermit};
use tokio::time::timeout;
use weft_core::resource::NamespacedName;
use weft_core::snapshot::Workload;
use weft_kernel::Netns;

use crate::ProxyConfig;
use crate::counters::Counters;
use crate::net::SharedPorts;
use crate::unread::Unread;

/// A pod that was given to the proxy. Shared by all workers.
#[derive(Debug)]
pub(crate) struct Pod {
    /// Namespace and name.
    pub(crate) key: NamespacedName,
    /// Where its sockets are opened.
    pub(crate) netns: Arc<Netns>,
    /// The addresses with which it was enrolled: known before the configuration shows them.
    ips: Vec<IpAddr>,
    /// Where it is counted that a connection from here could not be opened.
    pub(crate) counters: Arc<Counters>,
    /// Source ports of onward connections into it.
    pub(crate) ports: SharedPorts,
    /// What its applications have not taken from tunnels.
    pub(crate) unread: Unread,
    connections: AtomicUsize,
    handshakes: Semaphore,
    /// TLS handshakes of each peer, including those that wait for their turn.
    shaking: Mutex<HashMap<IpAddr, usize>>,
    /// Told when a connection ends while accepting may be waiting for that.
    room: Notify,
}

impl Pod {
    /// A pod without connections.
    pub(crate) fn new(key: NamespacedName, netns: Arc<Netns>, config: &ProxyConfig) -> Self {
        Self {
            key,
            netns,
            ips: Vec::new(),
            counters: Arc::default(),
            ports: SharedPorts::default(),
            unread: Unread::default(),
            connections: AtomicUsize::new(0),
            handshakes: Semaphore::new(config.handshakes_per_pod),
            shaking: Mutex::default(),
            room: Notify::new(),
        }
    }

    /// The same with addresses.
    pub(crate) fn with_ips(self, ips: Vec<IpAddr>) -> Self {
        Self { ips, ..self }
    }

    /// The same, counted with the proxy's other pods.
    pub(crate) fn with_counters(self, counters: Arc<Counters>) -> Self {
        Self { counters, ..self }
    }

    /// Whether an address is the pod's: as the configuration says, or as it was enrolled.
    pub(crate) fn has_address(&self, workload: &Workload, ip: &IpAddr) -> bool {
        workload.ips.contains(ip) || self.ips.contains(ip)
    }

    /// An address of the pod.
    pub(crate) fn address<'a>(&'a self, workload: &'a Workload) -> Option<&'a IpAddr> {
        workload.ips.first().or_else(|| self.ips.first())
    }

    /// Open connections.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Whether another connection may be accepted.
    pub(crate) fn has_room(&self, connections: usize) -> bool {
        self.connections.load(Ordering::Relaxed) < connections
    }

    fn shaking(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.shaking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a condition holds that the end of a connection may bring about.
    pub(crate) async fn until(&self, holds: impl Fn() -> bool) {
        loop {
            // Listens before it looks: an end in between is not missed.
            let ended = self.room.notified();
            if holds() {
                return;
            }
            ended.await;
        }
    }
}

/// One connection (or stream of a tunnel) counted for its pod and its worker.
#[derive(Debug)]
pub(crate) struct Admitted {
    pod: Arc<Pod>,
    loads: Arc<Loads>,
    worker: usize,
}

impl Admitted {
    /// Counts a connection.
    pub(crate) fn new(pod: &Arc<Pod>, loads: &Arc<Loads>, worker: usize) -> Self {
        pod.connections.fetch_add(1, Ordering::Relaxed);
        loads.add(worker);
        Self { pod: pod.clone(), loads: loads.clone(), worker }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.loads.remove(self.worker);
        self.pod.connections.fetch_sub(1, Ordering::Relaxed);
        // All of the pod's listeners: one alone might have nobody in its queue.
        self.pod.room.notify_waiters();
    }
}

/// TLS handshakes of one peer into one pod at a time. A peer that needs more has them one after the other.
pub(crate) const HANDSHAKES_PER_PEER: usize = 8;

/// One TLS handshake in progress.
pub(crate) struct Handshaking<'a> {
    _turn: SemaphorePermit<'a>,
    _peer: OfPeer<'a>,
}

impl<'a> Handshaking<'a> {
    /// Waits for a turn. `None` when the peer has too many handshakes, or when no turn came within `patience`.
    pub(crate) async fn begin(pod: &'a Pod, peer: IpAddr, patience: Duration) -> Option<Self> {
        let of_peer = OfPeer::new(pod, peer)?;
        let turn = timeout(patience, pod.handshakes.acquire()).await.ok()?;
        // The semaphore is never closed.
        Some(Self { _turn: turn.ok()?, _peer: of_peer })
    }
}

/// A handshake counted for its peer.
struct OfPeer<'a> {
    pod: &'a Pod,
    peer: IpAddr,
}

impl<'a> OfPeer<'a> {
    fn new(pod: &'a Pod, peer: IpAddr) -> Option<Self> {
        let mut shaking = pod.shaking();
        let count = shaking.entry(peer).or_default();
        if *count >= HANDSHAKES_PER_PEER {
            return None;
        }
        *count += 1;
        Some(Self { pod, peer })
    }
}

impl Drop for OfPeer<'_> {
    fn drop(&mut self) {
        let mut shaking = self.pod.shaking();
        if let Some(count) = shaking.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                shaking.remove(&self.peer);
            }
        }
    }
}

/// Open connections of each worker.
#[derive(Debug)]
pub(crate) struct Loads(Box<[AtomicUsize]>);

impl Loads {
    /// For so many workers.
    pub(crate) fn new(workers: usize) -> Self {
        Self((0..workers).map(|_| AtomicUsize::new(0)).collect())
    }

    fn add(&self, worker: usize) {
        if let Some(load) = self.0.get(worker) {
            load.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn remove(&self, worker: usize) {
        if let Some(load) = self.0.get(worker) {
            load.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Open connections of one worker.
    pub(crate) fn of(&self, worker: usize) -> usize {
        self.0.get(worker).map_or(0, |load| load.load(Ordering::Relaxed))
    }

    /// The worker that takes a connection that `home` accepted: `home`, unless another has clearly less.
    ///
    /// Clearly less is one less while numbers are small (so that four streams use two workers) and an
    /// eighth when they are large (so that churn does not move every connection).
    pub(crate) fn place(&self, home: usize) -> usize {
        let load = |worker: usize| self.0.get(worker).map_or(usize::MAX, |load| load.load(Ordering::Relaxed));
        let Some(idlest) = (0..self.0.len()).min_by_key(|worker| load(*worker)) else { return home };
        let least = load(idlest);
        if load(home) > least + least / 8 { idlest } else { home }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_connections_spread_and_many_stay() {
        let loads = Loads::new(2);
        let mut placed = Vec::new();
        for _ in 0..4 {
            let worker = loads.place(0);
            loads.add(worker);
            placed.push(worker);
        }
        assert_eq!(placed, [0, 1, 0, 1]);
        for _ in 0..100 {
            loads.add(0);
            loads.add(1);
        }
        loads.add(0);
        assert_eq!(loads.place(0), 0, "a difference of one in a hundred moves nothing");
        for _ in 0..20 {
            loads.add(0);
        }
        assert_eq!(loads.place(0), 1);
        assert_eq!(loads.place(1), 1);
    }
}
