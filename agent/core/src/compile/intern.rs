//! Equal values that many objects carry are kept once.

use std::borrow::Borrow;
use std::hash::Hash;
use std::sync::Arc;

use crate::hashing::FastSet;

/// A set of shared values. Values that nobody else holds any more are dropped when the set has doubled.
#[derive(Debug)]
pub(super) struct Interner<T: ?Sized> {
    values: FastSet<Arc<T>>,
    sweep_at: usize,
}

const SMALLEST_SWEEP: usize = 1024;

impl<T: Eq + Hash + ?Sized> Default for Interner<T> {
    fn default() -> Self {
        Self { values: FastSet::default(), sweep_at: SMALLEST_SWEEP }
    }
}

impl<T: Eq + Hash + ?Sized> Interner<T> {
    /// The shared value that equals `value`; `value` itself becomes it when it is the first.
    pub(super) fn share<Q>(&mut self, value: Q) -> Arc<T>
    where
        Q: Borrow<T> + Into<Arc<T>>,
    {
        if let Some(known) = self.values.get(value.borrow()) {
            return known.clone();
        }
        let value = value.into();
        self.values.insert(value.clone());
        if self.values.len() >= self.sweep_at {
            self.values.retain(|value| Arc::strong_count(value) > 1);
            self.sweep_at = (self.values.len() * 2).max(SMALLEST_SWEEP);
        }
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_equal_values_once_and_forgets_unused_ones() {
        let mut interner = Interner::<str>::default();
        let first = interner.share(Arc::from("a"));
        assert!(Arc::ptr_eq(&first, &interner.share(Arc::from("a"))));
        for at in 0..SMALLEST_SWEEP * 3 {
            interner.share(Arc::from(at.to_string()));
        }
        assert!(interner.values.len() <= SMALLEST_SWEEP);
        assert!(Arc::ptr_eq(&first, &interner.share(Arc::from("a"))));
    }
}
