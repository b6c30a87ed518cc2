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

/// Drains one pod, or everything. The caller has stopped accepting.
pub(crate) async fn drain(worker: &Rc<Worker>, pod: Option<&Arc<Pod>>, limit: Duration, cut: Cut) {
    worker.live.go_away(pod);
    if timeout(limit, worker.live.until_empty(pod)).await.is_ok() {
        return;
    }
    worker.live.cut(pod, &cut);
    // Who has not ended by now is ended with the worker or by its peer.
    let _ = timeout(LAST_WORDS, worker.live.until_empty(pod)).await;
}
