//! The series of one kind: cells by their labels, with a limit and with eviction.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

/// Counters that belong together under one set of labels.
pub(crate) trait Cells: Default + Send + Sync {
    /// A number that changes whenever a counter does.
    fn fingerprint(&self) -> u64;
}

/// A single counter.
#[derive(Debug, Default)]
pub(crate) struct Single(pub(crate) AtomicU64);

impl Cells for Single {
    fn fingerprint(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Debug)]
struct Entry<C> {
    cells: Arc<C>,
    /// Fingerprint when it was last looked at, and since when it has been that.
    seen: u64,
    since: Instant,
}

/// Cells by label set.
///
/// The lock is taken for reading once per connection and for writing when a label set is new and at a sweep;
/// a channel or a snapshot would not let a new connection count at once. Counting itself takes no lock.
#[derive(Debug)]
pub(crate) struct Table<K, C> {
    entries: RwLock<HashMap<K, Entry<C>>>,
    limit: usize,
    overflow: AtomicU64,
}

impl<K: Hash + Eq + Clone, C: Cells> Table<K, C> {
    pub(crate) fn new(limit: usize) -> Self {
        Self { entries: RwLock::default(), limit, overflow: AtomicU64::new(0) }
    }

    /// The cells of `key`; those of `rest()` when `key` is new and the table is full.
    pub(crate) fn get(&self, key: &K, rest: impl FnOnce() -> K) -> Arc<C> {
        if let Some(entry) = self.read().get(key) {
            return entry.cells.clone();
        }
        let mut entries = self.write();
        let full = entries.len() >= self.limit && !entries.contains_key(key);
        let key = if full {
            self.overflow.fetch_add(1, Ordering::Relaxed);
            rest()
        } else {
            key.clone()
        };
        let fresh = || Entry { cells: Arc::default(), seen: 0, since: Instant::now() };
        entries.entry(key).or_insert_with(fresh).cells.clone()
    }

    /// The cells of `key`, whatever the limit says: for the few keys that stand for all others.
    pub(crate) fn reserved(&self, key: &K) -> Arc<C> {
        if let Some(entry) = self.read().get(key) {
            return entry.cells.clone();
        }
        let fresh = || Entry { cells: Arc::default(), seen: 0, since: Instant::now() };
        self.write().entry(key.clone()).or_insert_with(fresh).cells.clone()
    }

    /// Drops series that nobody holds and that have not changed for `idle`.
    pub(crate) fn sweep(&self, now: Instant, idle: Duration) {
        self.write().retain(|_, entry| {
            let fingerprint = entry.cells.fingerprint();
            if fingerprint != entry.seen {
                entry.seen = fingerprint;
                entry.since = now;
            }
            Arc::strong_count(&entry.cells) > 1 || now.saturating_duration_since(entry.since) < idle
        });
    }

    /// Drops series that nobody holds and for which `keep` says no.
    pub(crate) fn retain(&self, keep: impl Fn(&K) -> bool) {
        self.write().retain(|key, entry| Arc::strong_count(&entry.cells) > 1 || keep(key));
    }

    /// Shows all series.
    pub(crate) fn each(&self, mut show: impl FnMut(&K, &C)) {
        self.read().iter().for_each(|(key, entry)| show(key, &entry.cells));
    }

    /// How often the limit was met.
    pub(crate) fn overflow(&self) -> u64 {
        self.overflow.load(Ordering::Relaxed)
    }

    // A panic while the lock is held leaves a map of counters, which is as good as before.
    fn read(&self) -> RwLockReadGuard<'_, HashMap<K, Entry<C>>> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<K, Entry<C>>> {
        self.entries.write().unwrap_or_else(PoisonError::into_inner)
    }
}
