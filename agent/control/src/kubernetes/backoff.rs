//! How long to wait before the next try.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(30);

/// Waits that double, up to half a minute, each between half and the whole of what it is: thousands of agents
/// must not come back in step.
#[derive(Debug)]
pub(super) struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: FIRST }
    }
}

impl Backoff {
    /// The wait before the next try.
    pub(super) fn wait(&mut self) -> Duration {
        let wait = jittered(self.next);
        self.next = (self.next * 2).min(LONGEST);
        wait
    }

    /// A try succeeded.
    pub(super) fn reset(&mut self) {
        self.next = FIRST;
    }
}

/// Something between half and the whole of `most`.
pub(super) fn jittered(most: Duration) -> Duration {
    // Each hasher has other keys: that is random enough, and needs no generator.
    let random = RandomState::new().hash_one(0) % 1024;
    let half = most / 2;
    half + half.mul_f64(random as f64 / 1023.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_up_to_a_limit_and_begin_anew() {
        let mut backoff = Backoff::default();
        let mut expected = FIRST;
        for _ in 0..20 {
            let wait = backoff.wait();
            assert!(wait >= expected / 2 && wait <= expected, "{wait:?} of {expected:?}");
            expected = (expected * 2).min(LONGEST);
        }
        assert_eq!(expected, LONGEST);
        backoff.reset();
        assert!(backoff.wait() <= FIRST);
    }

    #[test]
    fn waits_differ() {
        let waits: std::collections::BTreeSet<_> = (0..50).map(|_| jittered(LONGEST)).collect();
        assert!(waits.len() > 10);
    }
}
