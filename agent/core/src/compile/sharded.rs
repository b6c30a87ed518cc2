//! A hash map in shards that snapshots share: changing one entry copies one shard, not the map.

use std::borrow::Borrow;
use std::hash::{BuildHasher, Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use crate::hashing::FastState;
use crate::resource::NamespacedName;

const SHARDS: usize = 256;

type Shard<K, V> = Arc<HashTable<(K, V)>>;

/// A persistent map: cloning is cheap, an update copies one of 256 shards.
#[derive(Debug, Clone)]
pub struct Sharded<K, V> {
    hasher: FastState,
    shards: Arc<[Shard<K, V>]>,
    len: usize,
}

impl<K, V> Default for Sharded<K, V> {
    fn default() -> Self {
        let empty = Arc::new(HashTable::new());
        Self { hasher: FastState::default(), shards: (0..SHARDS).map(|_| empty.clone()).collect(), len: 0 }
    }
}

impl<K: Hash + Eq + Clone, V: Clone> Sharded<K, V> {
    /// The hash of a key, and the number of its shard: bits that the tables do not look at.
    fn place_of<Q: Hash + ?Sized>(&self, key: &Q) -> (u64, usize) {
        let hash = self.hasher.hash_one(key);
        (hash, (hash >> 40) as usize % SHARDS)
    }

    /// Looks an entry up.
    pub fn get<Q>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.get_key_value(key).map(|(_, value)| value)
    }

    /// Looks an entry up with its key as it was inserted.
    pub fn get_key_value<Q>(&self, key: &Q) -> Option<(&K, &V)>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let (hash, at) = self.place_of(key);
        let found = self.shards.get(at)?.find(hash, |(known, _)| known.borrow() == key);
        found.map(|(key, value)| (key, value))
    }

    /// Inserts or replaces an entry.
    pub fn insert(&mut self, key: K, value: V) {
        let (hash, at) = self.place_of(&key);
        let hasher = &self.hasher;
        let Some(shard) = Arc::make_mut(&mut self.shards).get_mut(at) else { return };
        let rehash = |(key, _): &(K, V)| hasher.hash_one(key);
        match Arc::make_mut(shard).entry(hash, |(known, _)| *known == key, rehash) {
            Entry::Occupied(mut entry) => entry.get_mut().1 = value,
            Entry::Vacant(entry) => {
                entry.insert((key, value));
                self.len += 1;
            }
        }
    }

    /// Removes an entry.
    pub fn remove<Q>(&mut self, key: &Q)
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let (hash, at) = self.place_of(key);
        if self.get(key).is_some()
            && let Some(shard) = Arc::make_mut(&mut self.shards).get_mut(at)
            && let Ok(entry) = Arc::make_mut(shard).find_entry(hash, |(known, _)| known.borrow() == key)
        {
            entry.remove();
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

    /// All entries, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.shards.iter().flat_map(|shard| shard.iter()).map(|(key, value)| (key, value))
    }

    /// All values, in no particular order.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }
}

/// A value that carries its own key.
pub(crate) trait Named {
    /// Namespace and name.
    fn name(&self) -> &NamespacedName;
}

/// A shared value that stands for its name.
#[derive(Debug)]
struct ByName<V>(Arc<V>);

impl<V> Clone for ByName<V> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<V: Named> Hash for ByName<V> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.name().hash(state);
    }
}

impl<V: Named> PartialEq for ByName<V> {
    fn eq(&self, other: &Self) -> bool {
        self.0.name() == other.0.name()
    }
}

impl<V: Named> Eq for ByName<V> {}

impl<V: Named> Borrow<NamespacedName> for ByName<V> {
    fn borrow(&self) -> &NamespacedName {
        self.0.name()
    }
}

/// Values by their name, which is stored in the values only.
#[derive(Debug)]
pub(crate) struct Registry<V: Named>(Sharded<ByName<V>, ()>);

impl<V: Named> Clone for Registry<V> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<V: Named> Default for Registry<V> {
    fn default() -> Self {
        Self(Sharded::default())
    }
}

impl<V: Named> Registry<V> {
    pub(crate) fn get(&self, name: &NamespacedName) -> Option<&Arc<V>> {
        self.0.get_key_value(name).map(|(value, ())| &value.0)
    }

    pub(crate) fn insert(&mut self, value: Arc<V>) {
        // Inserting alone would keep the former value: it is the key.
        self.0.remove(value.name());
        self.0.insert(ByName(value), ());
    }

    pub(crate) fn remove(&mut self, name: &NamespacedName) {
        self.0.remove(name);
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &Arc<V>> {
        self.0.iter().map(|(value, ())| &value.0)
    }
}

/// Values by address. One map for each family: an entry with an `IpAddr` would be twice as large.
#[derive(Debug, Clone)]
pub(crate) struct IpMap<V> {
    v4: Sharded<Ipv4Addr, Arc<V>>,
    v6: Sharded<Ipv6Addr, Arc<V>>,
}

impl<V> Default for IpMap<V> {
    fn default() -> Self {
        Self { v4: Sharded::default(), v6: Sharded::default() }
    }
}

impl<V> IpMap<V> {
    pub(crate) fn get(&self, ip: &IpAddr) -> Option<&Arc<V>> {
        match ip {
            IpAddr::V4(ip) => self.v4.get(ip),
            IpAddr::V6(ip) => self.v6.get(ip),
        }
    }

    pub(crate) fn insert(&mut self, ip: IpAddr, value: Arc<V>) {
        match ip {
            IpAddr::V4(ip) => self.v4.insert(ip, value),
            IpAddr::V6(ip) => self.v6.insert(ip, value),
        }
    }

    pub(crate) fn remove(&mut self, ip: &IpAddr) {
        match ip {
            IpAddr::V4(ip) => self.v4.remove(ip),
            IpAddr::V6(ip) => self.v6.remove(ip),
        }
    }

    #[cfg(test)]
    pub(crate) fn iter(&self) -> impl Iterator<Item = (IpAddr, &Arc<V>)> {
        let v4 = self.v4.iter().map(|(ip, value)| (IpAddr::V4(*ip), value));
        v4.chain(self.v6.iter().map(|(ip, value)| (IpAddr::V6(*ip), value)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Insert(u16, u32),
        Remove(u16),
        Remember,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..600u16, any::<u32>()).prop_map(|(key, value)| Step::Insert(key, value)),
            3 => (0..600u16).prop_map(Step::Remove),
            1 => Just(Step::Remember),
        ]
    }

    fn contents(map: &Sharded<u16, u32>) -> HashMap<u16, u32> {
        map.iter().map(|(key, value)| (*key, *value)).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn behaves_as_a_hash_map_and_leaves_copies_alone(steps in prop::collection::vec(step(), 0..800)) {
            let mut map = Sharded::default();
            let mut model = HashMap::new();
            let mut remembered = Vec::new();
            for step in steps {
                match step {
                    Step::Insert(key, value) => {
                        map.insert(key, value);
                        model.insert(key, value);
                    }
                    Step::Remove(key) => {
                        map.remove(&key);
                        model.remove(&key);
                    }
                    Step::Remember => remembered.push((map.clone(), model.clone())),
                }
                prop_assert_eq!(map.len(), model.len());
                prop_assert_eq!(map.is_empty(), model.is_empty());
            }
            remembered.push((map, model));
            for (map, model) in remembered {
                prop_assert_eq!(contents(&map), model.clone());
                prop_assert_eq!(map.values().count(), model.len());
                for key in 0..600 {
                    prop_assert_eq!(map.get(&key), model.get(&key));
                }
            }
        }
    }

    #[test]
    fn a_change_copies_one_shard_only() {
        let mut map = Sharded::default();
        (0..100_000u32).for_each(|key| map.insert(key, key));
        let before = map.clone();
        map.insert(7, 8);
        let shared = before.shards.iter().zip(map.shards.iter()).filter(|(a, b)| Arc::ptr_eq(a, b));
        assert_eq!(shared.count(), SHARDS - 1);
        assert_eq!((before.get(&7), map.get(&7)), (Some(&7), Some(&8)));
    }
}
