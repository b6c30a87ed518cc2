//! How often somebody may ask.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

/// So many at once, so many per second for long.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limit {
    pub(super) burst: f64,
    pub(super) per_second: f64,
}

/// Requests of one node: when it starts it asks for all its pods.
pub(super) const NODE: Limit = Limit { burst: 100.0, per_second: 50.0 };
/// Tokens from one address that turned out to be worth nothing: each costs the API server a review.
pub(super) const FAILURES: Limit = Limit { burst: 20.0, per_second: 1.0 };

/// What is left of a limit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bucket {
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    pub(super) fn full(limit: Limit, now: Instant) -> Self {
        Self { tokens: limit.burst, filled: now }
    }

    pub(super) fn take(&mut self, limit: Limit, now: Instant) -> bool {
        self.fill(limit, now);
        if self.tokens < 1.0 {
            return false;
        }
        self.tokens -= 1.0;
        true
    }

    fn fill(&mut self, limit: Limit, now: Instant) {
        let elapsed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.tokens = (self.tokens + elapsed * limit.per_second).min(limit.burst);
        self.filled = now;
    }
}

/// The same limit for each of many, bounded: those who have not asked for a while are forgotten first.
pub(super) struct Buckets<K> {
    limit: Limit,
    most: usize,
    /// Held for a few instructions, never across an await.
    buckets: Mutex<HashMap<K, Bucket>>,
}

impl<K: Hash + Eq> Buckets<K> {
    pub(super) fn new(limit: Limit, most: usize) -> Self {
        Self { limit, most, buckets: Mutex::default() }
    }

    /// Takes one, if there is one.
    pub(super) fn take(&self, key: K, now: Instant) -> bool {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= self.most && !buckets.contains_key(&key) {
            let limit = self.limit;
            buckets.retain(|_, bucket| {
                bucket.fill(limit, now);
                bucket.tokens < limit.burst
            });
            if buckets.len() >= self.most {
                return false;
            }
        }
        buckets.entry(key).or_insert_with(|| Bucket::full(self.limit, now)).take(self.limit, now)
    }

    /// Whether there is one.
    pub(super) fn has(&self, key: &K, now: Instant) -> bool {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        match buckets.get_mut(key) {
            Some(bucket) => {
                bucket.fill(self.limit, now);
                bucket.tokens >= 1.0
            }
            None => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_node_gets_its_burst_and_then_its_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::full(NODE, start);
        assert_eq!((0..150).filter(|_| bucket.take(NODE, start)).count(), 100);
        let later = start + Duration::from_millis(100);
        assert_eq!((0..150).filter(|_| bucket.take(NODE, later)).count(), 5);
        let much_later = start + Duration::from_secs(3600);
        assert_eq!((0..150).filter(|_| bucket.take(NODE, much_later)).count(), 100);
    }

    #[test]
    fn many_are_limited_each_for_himself_and_the_table_is_bounded() {
        let start = Instant::now();
        let limit = Limit { burst: 2.0, per_second: 1.0 };
        let buckets = Buckets::new(limit, 3);
        for key in ["a", "b", "c"] {
            assert!(buckets.take(key, start));
        }
        assert!(buckets.take("a", start) && !buckets.take("a", start));
        assert!(!buckets.has(&"a", start) && buckets.has(&"b", start));
        assert!(!buckets.take("d", start), "no room while all have asked just now");
        assert!(buckets.take("d", start + Duration::from_secs(10)), "who is silent is forgotten");
    }
}
