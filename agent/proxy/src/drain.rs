//! Ending in good order: tell tunnels to go away, wait for what is open, cut what is left.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use crate::pod::Pod;
use crate::registry::Cut;
use crate::worker::Worker;

/// How long connections that were cut get to say so.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// How often it is looked whether a connection that was accepted has become one of those that are known as open.
const LOOK: Duration = Duration::from_millis(20);

/// Drains one pod, or everything. The caller has stopped accepting.
pub(crate) async fn drain(worker: &Rc<Worker>, pod: Option<&Arc<Pod>>, limit: Duration, cut: Cut) {
    worker.live.go_away(pod);
    if timeout(limit, until_empty(worker, pod)).await.is_ok() {
        return;
    }
    worker.live.cut(pod, &cut);
    // Who has not ended by now is ended with the worker or by its peer.
    let _ = timeout(LAST_WORDS, worker.live.until_empty(pod)).await;
}

/// Waits until nothing is open; at the end of the worker also for what was accepted and is not decided on yet.
async fn until_empty(worker: &Rc<Worker>, pod: Option<&Arc<Pod>>) {
    worker.live.until_empty(pod).await;
    while pod.is_none() && worker.shared.loads.of(worker.index) > 0 {
        tokio::time::sleep(LOOK).await;
        worker.live.until_empty(pod).await;
    }
}
