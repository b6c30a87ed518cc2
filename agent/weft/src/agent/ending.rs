//! How an agent ends: replaced, stopped for a while, or removed for good.

use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use anyhow::bail;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::oneshot;

use super::doors::Doors;
use super::handover::Retirement;
use super::node::{Event, Farewell, SharedProxy, lock};
use super::outside::{self, Outside};
use super::standing::Standing;
use super::starting::{Running, ended};
use crate::shutdown::Signals;

/// The last part of the time for an end, in which nothing is accepted any more.
const LAST: Duration = Duration::from_secs(5);
/// How long connections may end while nobody accepts new ones, because there is no successor: a stream that never ends
/// must not shut everybody else out.
const UNSERVED: Duration = Duration::from_secs(30);
/// How long connections may go on in a pod that was replaced and not deleted yet.
const UNASKED: Duration = Duration::from_secs(24 * 3600);
/// How often it is looked whether connections that would be cut are open.
const LOOK: Duration = Duration::from_millis(50);

/// What an end needs.
pub(super) struct End {
    pub(super) reconciler: Option<Sender<Event>>,
    pub(super) proxy: SharedProxy,
    pub(super) outside: Outside,
    pub(super) doors: Doors,
    pub(super) signals: Signals,
    pub(super) retired: UnboundedReceiver<Retirement>,
    pub(super) standing: Standing,
    /// How long connections may go on.
    pub(super) limit: Duration,
    /// The kubelet starts a container again that ends by itself.
    pub(super) is_pod: bool,
}

impl End {
    /// Waits for the end and brings it about. True when the agent leaves its node for good.
    ///
    /// # Errors
    /// The reconciler has ended.
    pub(super) async fn wait(mut self, mut running: Option<Running>) -> anyhow::Result<bool> {
        let retirement = tokio::select! {
            () = self.signals.next() => None,
            Some(retirement) = self.retired.recv() => Some(retirement),
            () = ended(running.as_mut()) => bail!("the reconciler has ended: ending as well, so that a new agent takes over"),
        };
        if let Some(retirement) = retirement {
            self.hand_over(retirement, false).await;
            return Ok(false);
        }
        let removed = self.outside.is_removed().await;
        if removed {
            self.leave_for_good().await
        } else {
            self.stop().await
        }
        Ok(removed)
    }

    /// The agent is taken out of the cluster: the node is to be as it was before it came. A second signal hurries.
    pub(super) async fn leave_for_good(mut self) {
        /// The kubelet kills after its grace period; without open connections all is done long before.
        const LIMIT: Duration = Duration::from_secs(15);
        tracing::info!("the agent is being removed from this node: all pods leave the mesh");
        self.outside.remove_plugin();
        if let Some(reconciler) = &self.reconciler {
            let until = Instant::now() + self.limit.min(LIMIT);
            let (done, report) = oneshot::channel();
            // A reconciler that has ended does not answer.
            let _ = reconciler.send(Event::Uninstall(Farewell { until, done }));
            tokio::select! {
                report = report => match report {
                    Ok(report) => outside::tell(&report),
                    Err(_) => tracing::error!("the reconciler has ended; run `weft cleanup` on the node"),
                },
                () = self.signals.next() => tracing::warn!("ending at once; run `weft cleanup` on the node"),
            }
        }
        self.outside.remove_annotations().await;
    }

    /// The first signal came: serves on until a successor is there, nothing is open that would be cut, or time is
    /// nearly over; then connections end. A second signal ends them at once.
    pub(super) async fn stop(mut self) {
        let (begun, last) = (Instant::now(), LAST.min(self.limit / 2));
        tracing::info!(
            seconds = self.limit.as_secs(),
            "stopping: connections may end, and a successor may take over; signal again to stop now"
        );
        tokio::select! {
            () = quiet(&self.proxy, self.limit.saturating_sub(last)) => {}
            Some(retirement) = self.retired.recv() => return self.hand_over(retirement, true).await,
            () = self.signals.next() => return tracing::info!("stopping now"),
        }
        // A reconciler that has ended needs no telling.
        let _ = self.reconciler.take().map(|reconciler| reconciler.send(Event::Stop));
        tokio::select! {
            () = drain(&self.proxy, self.limit.saturating_sub(begun.elapsed()).min(UNSERVED)) => {}
            Some(retirement) = self.retired.recv() => return self.hand_over(retirement, true).await,
            () = self.signals.next() => tracing::info!("stopping now"),
        }
        tracing::info!("the agent ends; what it pinned stays in force, `weft cleanup` removes it");
    }

    /// Another agent has taken over: ends what is open, and touches nothing else any more. `is_asked` says that a
    /// signal asked for the end before.
    pub(super) async fn hand_over(mut self, retirement: Retirement, is_asked: bool) {
        let Retirement { by, same_netns, done } = retirement;
        tracing::info!(
            successor = by.instance,
            version = by.version,
            seconds = self.limit.as_secs(),
            "handed over"
        );
        self.standing.handed_over(&by.instance);
        self.outside.retire().await;
        self.doors.give_up(same_netns).await;
        let proxy = lock(&self.proxy).clone();
        if let Some(proxy) = &proxy {
            proxy.stop_accepting().await;
        }
        // A successor that has ended is not told.
        let _ = done.send(());
        // A pod is ended by the kubelet, and connections may go on until then.
        let limit = if self.is_pod { UNASKED } else { self.limit };
        let drained = tokio::spawn(async move {
            if let Some(proxy) = proxy {
                proxy.drain(limit).await;
            }
        });
        let is_over = tokio::select! {
            _ = drained => true,
            () = self.signals.next() => false,
        };
        match (is_over, is_asked) {
            // The kubelet's word that the pod was deleted: from now on time counts.
            (false, false) => self.drain_on().await,
            (true, false) if self.is_pod => {
                tracing::info!("no connection is left; waiting to be deleted");
                self.signals.next().await;
            }
            (true, _) | (false, true) => {}
        }
        tracing::info!("the agent ends; its successor serves the pods");
    }

    async fn drain_on(mut self) {
        tokio::select! {
            () = drain(&self.proxy, self.limit) => {}
            () = self.signals.next() => tracing::info!("stopping now"),
        }
    }
}

/// Waits until nothing is open that would be cut, at most so long.
async fn quiet(proxy: &SharedProxy, limit: Duration) {
    let is_quiet = || lock(proxy).as_ref().is_none_or(|proxy| proxy.is_quiet());
    let looking = async {
        while !is_quiet() {
            tokio::time::sleep(LOOK).await;
        }
    };
    // Time is over otherwise.
    let _ = tokio::time::timeout(limit, looking).await;
}

/// Ends connections in good order. The proxy stays where the reconciler finds it: what policy revokes meanwhile ends.
async fn drain(proxy: &SharedProxy, limit: Duration) {
    let draining = lock(proxy).clone();
    if let Some(proxy) = draining {
        proxy.drain(limit).await;
    }
}
