//! What tunnels brought for a pod and its applications have not taken yet.
//!
//! Bytes wait in two places: in their stream's lane, and in the one chunk that a relay is writing. Both count as
//! unread until the relay releases them. A stream holds at most
//! [`STREAM_WINDOW`], a tunnel at most [`ACCEPTED_WINDOW`](crate::hbone::ACCEPTED_WINDOW); a pod that holds more
//! than its budget gets no new streams. So a pod's memory is bounded by its budget and by what the windows of
//! the streams that are open already still allow.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::hbone::STREAM_WINDOW;
use crate::pod::Pod;

/// How long a sum is good for: adding up thousands of streams for each new one would cost more than it saves.
const GOOD_FOR: Duration = Duration::from_millis(100);

/// The streams into one pod, of all workers.
#[derive(Debug, Default)]
pub(crate) struct Unread(Mutex<Streams>);

#[derive(Debug, Default)]
struct Streams {
    next: u64,
    open: HashMap<u64, Arc<AtomicUsize>>,
    /// The last sum in bytes, and when it was made.
    sum: Option<(Instant, usize)>,
}

impl Unread {
    /// Whether more than `budget` bytes wait.
    pub(crate) fn exceeds(&self, budget: usize) -> bool {
        let mut streams = self.streams();
        if streams.open.len().saturating_mul(STREAM_WINDOW as usize) <= budget {
            return false;
        }
        let known = streams.sum.filter(|(made, _)| made.elapsed() < GOOD_FOR);
        let bytes = match known {
            Some((_, bytes)) => bytes,
            None => streams.open.values().map(|unread| unread.load(Ordering::Relaxed)).sum(),
        };
        if known.is_none() {
            streams.sum = Some((Instant::now(), bytes));
        }
        bytes > budget
    }

    fn streams(&self) -> MutexGuard<'_, Streams> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One stream that is counted. Drop it together with the stream.
pub(crate) struct Counted {
    pod: Arc<Pod>,
    id: u64,
}

impl Counted {
    /// Counts the bytes of a stream into `pod` that wait.
    pub(crate) fn new(pod: &Arc<Pod>, unread: Arc<AtomicUsize>) -> Self {
        let mut streams = pod.unread.streams();
        let id = streams.next;
        streams.next += 1;
        streams.open.insert(id, unread);
        drop(streams);
        Self { pod: pod.clone(), id }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.pod.unread.streams().open.remove(&self.id);
    }
}
