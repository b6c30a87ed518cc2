//! Ending in good order: tell tunnels to go away, wait for what is open, cut what is left.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::pod::Pod;
use crate::registry::Cut;
use crate::worker::Worker;

/// How often a drain looks whether it is over.
const LOOK: Duration = Duration::from_millis(20);
/// How long connections that were cut get to say so.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Drains one pod, or everything. The caller has stopped accepting.
pub(crate) async fn drain(worker: &Rc<Worker>, pod: Option<&Arc<Pod>>, limit: Duration, cut: Cut) {
    worker.live.go_away(pod);
    if until_empty(worker, pod, limit).await {
        return;
    }
    worker.live.cut(pod, &cut);
    until_empty(worker, pod, LAST_WORDS).await;
}

async fn until_empty(worker: &Rc<Worker>, pod: Option<&Arc<Pod>>, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    while !worker.live.is_empty(pod) {
        let now = Instant::now();
        if now >= deadline {
            return false;
        }
        tokio::time::sleep(LOOK.min(deadline - now)).await;
    }
    true
}
