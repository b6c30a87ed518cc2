//! A running source.

use std::fmt;
use std::sync::Arc;
use std::thread::JoinHandle;

use weft_core::Snapshot;

use crate::writer::Published;

/// A running source with its writer. Dropping it ends both threads.
pub struct Handle {
    published: Published,
    /// Asks the source to end; false if it has ended, or cannot be asked.
    stop: Box<dyn Fn() -> bool + Send + Sync>,
    threads: Vec<JoinHandle<()>>,
}

impl Handle {
    pub(crate) fn new(
        published: Published,
        stop: Box<dyn Fn() -> bool + Send + Sync>,
        threads: Vec<JoinHandle<()>>,
    ) -> Self {
        Self { published, stop, threads }
    }

    /// What readers see; may be cloned and kept.
    pub fn published(&self) -> &Published {
        &self.published
    }

    /// The snapshot in force.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.published.snapshot()
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("published", &self.published).finish_non_exhaustive()
    }
}

impl std::ops::Deref for Handle {
    type Target = Published;

    fn deref(&self) -> &Published {
        &self.published
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // The source's end drops its sender, which ends the writer.
        let stopped = (self.stop)();
        for thread in self.threads.drain(..) {
            if stopped && thread.join().is_err() {
                tracing::error!("a thread of the configuration source panicked");
            }
        }
    }
}
