//! When the API server was last heard of, for each kind.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The state of all watches, read at any time: by `weft status` and by metrics.
///
/// One thread writes it, and each value stands for itself: relaxed order is enough.
#[derive(Debug, Clone)]
pub struct Freshness {
    begin: Instant,
    kinds: Arc<Mutex<BTreeMap<String, Arc<Contact>>>>,
}

/// The state of the watch of one kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KindFreshness {
    /// The kind; a ConfigMap with namespace and name.
    pub kind: String,
    /// Whether a watch is open.
    pub connected: bool,
    /// Whether everything was read once.
    pub synced: bool,
    /// Since when nothing has been heard of the API server about this kind; `None` if nothing ever was. An
    /// open watch is heard of at least once a minute or so.
    pub age: Option<Duration>,
    /// Why there is no watch.
    pub failure: Option<String>,
    /// Requests that read everything.
    pub lists: u64,
    /// Requests that wait for changes. With the API server's streaming lists one request is both.
    pub watches: u64,
    /// Watches that were opened again, whyever the one before ended.
    pub restarts: u64,
    /// Objects and events that could not be decoded.
    pub undecodable: u64,
}

/// What one watch notes.
#[derive(Debug, Default)]
pub(super) struct Contact {
    /// Milliseconds from the beginning to the last sign of life, plus one; 0 for never.
    last: AtomicU64,
    connected: AtomicBool,
    synced: AtomicBool,
    lists: AtomicU64,
    watches: AtomicU64,
    restarts: AtomicU64,
    undecodable: AtomicU64,
    failure: Mutex<Option<String>>,
}

impl Default for Freshness {
    fn default() -> Self {
        Self { begin: Instant::now(), kinds: Arc::default() }
    }
}

impl Freshness {
    /// All kinds that are watched, by name.
    pub fn kinds(&self) -> Vec<KindFreshness> {
        let now = self.now();
        lock(&self.kinds).iter().map(|(kind, contact)| contact.view(kind, now)).collect()
    }

    /// Since when something of the configuration may be out of date; `None` before everything was read once. A
    /// kind that may not be read has no age.
    pub fn age(&self) -> Option<Duration> {
        let now = self.now();
        let kinds = lock(&self.kinds);
        kinds
            .values()
            .filter(|contact| contact.synced.load(Ordering::Relaxed))
            .map(|contact| contact.age(now))
            .max()?
    }

    /// Whether every kind that was ever read is being watched.
    pub fn is_connected(&self) -> bool {
        let kinds = lock(&self.kinds);
        let mut synced = kinds.values().filter(|contact| contact.synced.load(Ordering::Relaxed)).peekable();
        synced.peek().is_some() && synced.all(|contact| contact.connected.load(Ordering::Relaxed))
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begin.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The notes of a kind, which is shown from now on.
    pub(super) fn contact(&self, kind: &str) -> Noter {
        let contact = lock(&self.kinds).entry(kind.to_owned()).or_default().clone();
        Noter { freshness: self.clone(), contact }
    }

    /// A kind does not exist any more.
    pub(super) fn forget(&self, kind: &str) {
        lock(&self.kinds).remove(kind);
    }
}

impl Contact {
    fn age(&self, now: u64) -> Option<Duration> {
        let last = self.last.load(Ordering::Relaxed).checked_sub(1)?;
        Some(Duration::from_millis(now.saturating_sub(last)))
    }

    fn view(&self, kind: &str, now: u64) -> KindFreshness {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        KindFreshness {
            kind: kind.to_owned(),
            connected: self.connected.load(Ordering::Relaxed),
            synced: self.synced.load(Ordering::Relaxed),
            age: self.age(now),
            failure: lock(&self.failure).clone(),
            lists: count(&self.lists),
            watches: count(&self.watches),
            restarts: count(&self.restarts),
            undecodable: count(&self.undecodable),
        }
    }
}

/// Notes what happens to one watch.
#[derive(Debug)]
pub(super) struct Noter {
    freshness: Freshness,
    contact: Arc<Contact>,
}

impl Noter {
    /// The API server was heard of.
    pub(super) fn heard(&self) {
        self.contact.last.store(self.freshness.now().saturating_add(1), Ordering::Relaxed);
    }

    /// A list is asked for.
    pub(super) fn lists(&self) {
        self.contact.lists.fetch_add(1, Ordering::Relaxed);
    }

    /// A watch is asked for.
    pub(super) fn watches(&self) {
        if self.contact.watches.fetch_add(1, Ordering::Relaxed) > 0 {
            self.contact.restarts.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The watch is open.
    pub(super) fn connected(&self) {
        self.heard();
        self.contact.connected.store(true, Ordering::Relaxed);
        *lock(&self.contact.failure) = None;
    }

    /// Everything was read.
    pub(super) fn synced(&self) {
        self.contact.synced.store(true, Ordering::Relaxed);
    }

    /// There is no watch for now.
    pub(super) fn disconnected(&self, failure: Option<String>) {
        self.contact.connected.store(false, Ordering::Relaxed);
        if failure.is_some() {
            *lock(&self.contact.failure) = failure;
        }
    }

    /// Something could not be decoded.
    pub(super) fn undecodable(&self) {
        self.contact.undecodable.fetch_add(1, Ordering::Relaxed);
    }
}

/// Locks, whatever happened to an earlier holder: every value is consistent by itself.
fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_age_is_that_of_the_kind_that_was_not_heard_of_for_longest() {
        let freshness = Freshness::default();
        assert_eq!((freshness.age(), freshness.is_connected()), (None, false));
        let (pods, nodes, denied) =
            (freshness.contact("Pod"), freshness.contact("Node"), freshness.contact("Service"));
        for noter in [&pods, &nodes] {
            noter.watches();
            noter.connected();
            noter.synced();
        }
        denied.disconnected(Some("denied".into()));
        assert!(freshness.is_connected(), "what may not be read does not count");
        nodes.disconnected(Some("refused".into()));
        pods.watches();
        pods.heard();
        let kinds = freshness.kinds();
        assert_eq!(
            kinds.iter().map(|kind| kind.kind.as_str()).collect::<Vec<_>>(),
            ["Node", "Pod", "Service"]
        );
        assert_eq!(
            (kinds[0].failure.as_deref(), kinds[1].restarts, kinds[2].age),
            (Some("refused"), 1, None)
        );
        assert!(freshness.age() >= kinds[0].age && !freshness.is_connected());
        freshness.forget("Node");
        assert!(freshness.is_connected());
    }
}
