//! A hash map in shards that snapshots share: changing one entry copies one shard, not the map.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Arc;

const SHARDS: usize = 256;

/// A persistent map: cloning is cheap, an update copies one of 256 shards.
#[derive(Debug, Clone)]
pub struct Sharded<K, V> {
    hasher: RandomState,
    shards: Arc<[Arc<HashMap<K, V>>]>,
    len: usize,
}

impl<K, V> Default for Sharded<K, V> {
    fn default() -> Self {
        let empty = Arc::new(HashMap::new());
        Self { hasher: RandomState::new(), shards: (0..SHARDS).map(|_| empty.clone()).collect(), len: 0 }
    }
}

impl<K: Hash + Eq + Clone, V: Clone> Sharded<K, V> {
    fn shard_of(&self, key: &K) -> usize {
        // The upper bits choose the shard; the shard's own hasher has other keys.
        (self.hasher.hash_one(key) >> 56) as usize
    }

    /// Looks an entry up.
    pub fn get(&self, key: &K) -> Option<&V> {
        self.shards.get(self.shard_of(key))?.get(key)
    }

    /// Inserts or replaces an entry.
    pub fn insert(&mut self, key: K, value: V) {
        let at = self.shard_of(&key);
        if let Some(shard) = Arc::make_mut(&mut self.shards).get_mut(at)
            && Arc::make_mut(shard).insert(key, value).is_none()
        {
            self.len += 1;
        }
    }

    /// Removes an entry.
    pub fn remove(&mut self, key: &K) {
        let at = self.shard_of(key);
        if self.get(key).is_some()
            && let Some(shard) = Arc::make_mut(&mut self.shards).get_mut(at)
        {
            Arc::make_mut(shard).remove(key);
            self.len -= 1;
        }
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All values, in no particular order.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.shards.iter().flat_map(|shard| shard.values())
    }
}
