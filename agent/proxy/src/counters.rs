//! What the proxy counts beside the mesh's metrics: things that should not happen.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts of one proxy.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Tasks of connections that panicked; the panic stayed in its connection.
    pub(crate) panics: Counter,
    /// Captured connections from an address that is not the pod's (ruling 2).
    pub(crate) forged_sources: Counter,
    /// Connections of our own that came back to us.
    pub(crate) loops: Counter,
    /// Connections refused because their pod has too many.
    pub(crate) over_limit: Counter,
    /// Connections refused, or not opened, because the process had no descriptor left.
    pub(crate) no_descriptors: Counter,
}

/// One count.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Counters {
    /// All counts by name.
    pub(crate) fn all(&self) -> [(&'static str, u64); 5] {
        [
            ("panics", self.panics.get()),
            ("forged_sources", self.forged_sources.get()),
            ("loops", self.loops.get()),
            ("over_limit", self.over_limit.get()),
            ("no_descriptors", self.no_descriptors.get()),
        ]
    }
}
