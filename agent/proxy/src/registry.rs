//! What is open on one worker, so that a change of policy, of pods or of the agent can reach it.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Waker};

use tokio::sync::Notify;
use weft_core::decide::inbound::inbound;
use weft_core::decide::{InboundConnection, Verdict};
use weft_core::{Identity, Snapshot};

use crate::pod::Pod;
use crate::refusal::Refusal;

/// Why something that was open is cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cut {
    /// The current snapshot denies it.
    Policy(Refusal),
    /// Its pod left the mesh and the grace is over.
    PodRemoved,
    /// The agent stops and the deadline is over.
    Drain,
    /// No byte has moved for as long as the client's policy allows (D-12).
    Idle,
    /// It is as old as the client's policy allows (D-12).
    TooOld,
}

/// What was asked about a connection that policy lets in, to ask it again.
#[derive(Debug, Clone)]
pub(crate) struct Admission {
    /// The destination pod.
    pub(crate) pod: Arc<Pod>,
    /// Who opened it: from TLS or from the kernel, never from an address.
    pub(crate) identity: Option<Arc<Identity>>,
    /// The client's address.
    pub(crate) source: IpAddr,
    /// The destination's address and port.
    pub(crate) destination: SocketAddr,
}

impl Admission {
    /// The question in `core`'s words.
    pub(crate) fn question(&self) -> InboundConnection<'_> {
        InboundConnection {
            identity: self.identity.as_deref(),
            source_ip: self.source,
            destination: self.destination,
            sni: None,
        }
    }
}

/// An open connection, stream or tunnel.
#[derive(Debug)]
pub(crate) struct Live {
    pod: Arc<Pod>,
    admission: Option<Admission>,
    /// Tunnels end by themselves once they were told to go away; connections are only waited for.
    tunnel: bool,
    going_away: Cell<bool>,
    cut: RefCell<Option<Cut>>,
    waker: RefCell<Option<Waker>>,
}

impl Live {
    /// Remembers whom to wake. Call in every poll before looking at the rest.
    pub(crate) fn listen(&self, cx: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
    }

    /// Why it is to be cut, if it is.
    pub(crate) fn cut(&self) -> Option<Cut> {
        self.cut.borrow().clone()
    }

    /// Whether it is to be cut.
    pub(crate) fn is_cut(&self) -> bool {
        self.cut.borrow().is_some()
    }

    /// Whether a tunnel is to accept no more streams.
    pub(crate) fn is_going_away(&self) -> bool {
        self.going_away.get()
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.borrow().as_ref() {
            waker.wake_by_ref();
        }
    }

    fn do_cut(&self, cut: Cut) {
        self.cut.borrow_mut().get_or_insert(cut);
        self.wake();
    }

    /// The pods at its ends, each once.
    fn pods(&self) -> impl Iterator<Item = &Arc<Pod>> {
        let destination = self.admission.as_ref().map(|admission| &admission.pod);
        std::iter::once(&self.pod).chain(destination.filter(|pod| !Arc::ptr_eq(pod, &self.pod)))
    }

    /// By identity, not by name: a pod of the same name may have come after it.
    fn concerns(&self, pod: &Arc<Pod>) -> bool {
        self.pods().any(|end| Arc::ptr_eq(end, pod))
    }
}

/// Everything open on one worker.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    next: Cell<u64>,
    /// What comes from now on is told to go away like the rest.
    going_away: Cell<bool>,
    /// Connections of all workers that are no tunnels.
    connections: Arc<AtomicUsize>,
    live: RefCell<HashMap<u64, Rc<Live>>>,
    /// How many of them concern each pod, by its address: an entry of `live` keeps the pod where it is.
    of_pods: RefCell<HashMap<*const Pod, usize>>,
    /// Told when a pod, or the worker, has nothing open any more.
    emptied: Notify,
}

/// An entry; removed when dropped.
pub(crate) struct Registered {
    registry: Rc<Registry>,
    id: u64,
    live: Rc<Live>,
}

impl std::ops::Deref for Registered {
    type Target = Live;

    fn deref(&self) -> &Live {
        &self.live
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        if !self.live.tunnel {
            self.registry.connections.fetch_sub(1, Ordering::Relaxed);
        }
        self.registry.remove(self.id, &self.live);
    }
}

impl Registry {
    /// One of several that count their connections together.
    pub(crate) fn counting(connections: Arc<AtomicUsize>) -> Self {
        Self { connections, ..Self::default() }
    }

    /// Adds a connection or stream.
    pub(crate) fn connection(self: &Rc<Self>, pod: &Arc<Pod>, admission: Option<Admission>) -> Registered {
        self.add(pod, admission, false)
    }

    /// Adds a tunnel that was accepted.
    pub(crate) fn tunnel(self: &Rc<Self>, pod: &Arc<Pod>) -> Registered {
        self.add(pod, None, true)
    }

    fn add(self: &Rc<Self>, pod: &Arc<Pod>, admission: Option<Admission>, tunnel: bool) -> Registered {
        let live = Rc::new(Live {
            pod: pod.clone(),
            admission,
            tunnel,
            going_away: Cell::new(tunnel && self.going_away.get()),
            cut: RefCell::new(None),
            waker: RefCell::new(None),
        });
        if !tunnel {
            self.connections.fetch_add(1, Ordering::Relaxed);
        }
        let id = self.next.get();
        self.next.set(id + 1);
        self.live.borrow_mut().insert(id, live.clone());
        for pod in live.pods() {
            *self.of_pods.borrow_mut().entry(Arc::as_ptr(pod)).or_default() += 1;
        }
        Registered { registry: self.clone(), id, live }
    }

    fn remove(&self, id: u64, live: &Live) {
        self.live.borrow_mut().remove(&id);
        let mut of_pods = self.of_pods.borrow_mut();
        for pod in live.pods() {
            let Some(count) = of_pods.get_mut(&Arc::as_ptr(pod)) else { continue };
            *count -= 1;
            if *count == 0 {
                of_pods.remove(&Arc::as_ptr(pod));
                self.emptied.notify_waiters();
            }
        }
    }

    /// Asks again about every connection that policy let in, and cuts those that are denied now.
    ///
    /// A pod that the snapshot does not know any more is left to its removal.
    pub(crate) fn reevaluate(&self, snapshot: &Snapshot) {
        for live in self.live.borrow().values() {
            let Some(admission) = &live.admission else { continue };
            let Some(local) = snapshot.local_workload(&admission.pod.key) else { continue };
            let decision = inbound(local, &admission.question());
            match decision.verdict {
                Verdict::Allow => {}
                Verdict::DenyPeerAuthentication | Verdict::DenyAuthorization => {
                    live.do_cut(Cut::Policy(Refusal::of(&decision)));
                }
            }
        }
    }

    /// Tells tunnels, all or those into one pod, to accept no more streams. When all are told, so are those that are
    /// just being made of connections that were accepted before.
    pub(crate) fn go_away(&self, pod: Option<&Arc<Pod>>) {
        if pod.is_none() {
            self.going_away.set(true);
        }
        for live in self.live.borrow().values() {
            if live.tunnel && pod.is_none_or(|pod| live.concerns(pod)) {
                live.going_away.set(true);
                live.wake();
            }
        }
    }

    /// Cuts everything, or everything of one pod.
    pub(crate) fn cut(&self, pod: Option<&Arc<Pod>>, why: &Cut) {
        for live in self.live.borrow().values() {
            if pod.is_none_or(|pod| live.concerns(pod)) {
                live.do_cut(why.clone());
            }
        }
    }

    /// Whether nothing is open, for all or for one pod.
    pub(crate) fn is_empty(&self, pod: Option<&Arc<Pod>>) -> bool {
        let of_pods = self.of_pods.borrow();
        pod.map_or(of_pods.is_empty(), |pod| !of_pods.contains_key(&Arc::as_ptr(pod)))
    }

    /// Waits until nothing is open, for all or for one pod.
    pub(crate) async fn until_empty(&self, pod: Option<&Arc<Pod>>) {
        loop {
            // Listens before it looks: an end in between is not missed.
            let emptied = self.emptied.notified();
            if self.is_empty(pod) {
                return;
            }
            emptied.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::testbed::{Bed, run};

    #[test]
    fn what_was_accepted_before_the_end_and_is_made_after_it_goes_away_as_well() {
        run(async {
            let bed = Bed::new("a");
            let count = Arc::new(AtomicUsize::new(0));
            let registry = Rc::new(Registry::counting(count.clone()));
            let before = registry.tunnel(&bed.client);
            registry.go_away(None);
            let after = registry.tunnel(&bed.client);
            assert!(before.is_going_away() && after.is_going_away());
            let connection = registry.connection(&bed.client, None);
            assert!(!connection.is_going_away(), "bytes are not told anything");
            assert_eq!(count.load(Ordering::Relaxed), 1, "tunnels end by themselves and are not counted");
            drop(connection);
            assert_eq!(count.load(Ordering::Relaxed), 0);
        });
    }

    #[test]
    fn a_pod_is_empty_when_the_last_connection_at_either_end_is_over() {
        run(async {
            let bed = Bed::new("a");
            let registry = Rc::new(Registry::default());
            let admission = Admission {
                pod: bed.server.clone(),
                identity: None,
                source: bed.client_ip,
                destination: SocketAddr::new(bed.server_ip, 80),
            };
            let between = registry.connection(&bed.client, Some(admission.clone()));
            let within = registry.connection(&bed.server, Some(admission));
            let mut server_empty = std::pin::pin!(registry.until_empty(Some(&bed.server)));
            let mut all_empty = std::pin::pin!(registry.until_empty(None));
            assert!(server_empty.as_mut().now_or_never().is_none());
            assert!(all_empty.as_mut().now_or_never().is_none());
            drop(within);
            assert!(!registry.is_empty(Some(&bed.server)), "the destination counts as well");
            assert!(server_empty.as_mut().now_or_never().is_none());
            drop(between);
            server_empty.await;
            all_empty.await;
            assert!(registry.is_empty(Some(&bed.client)));
        });
    }
}
