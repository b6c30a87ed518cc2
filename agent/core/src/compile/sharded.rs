//! A hash map in shards that snapshots share: changing one entry copies one shard, not the map.

use std::borrow::Borrow;
use std::hash::{BuildHasher, Hash, Hasher};
use std::marker::PhantomData;
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

/// A value that carries its own addresses.
pub(crate) trait Addressed {
    /// All of them.
    fn addresses(&self) -> &[IpAddr];
}

/// The address of one family, if there is one and no other.
fn only<'a, A: 'a>(mut addresses: impl Iterator<Item = &'a A>) -> Option<&'a A> {
    let first = addresses.next();
    first.filter(|_| addresses.next().is_none())
}

/// The only IPv4 address of a value.
fn only_v4(value: &impl Addressed) -> Option<&Ipv4Addr> {
    only(value.addresses().iter().filter_map(|ip| match ip {
        IpAddr::V4(ip) => Some(ip),
        IpAddr::V6(_) => None,
    }))
}

/// The only IPv6 address of a value.
fn only_v6(value: &impl Addressed) -> Option<&Ipv6Addr> {
    only(value.addresses().iter().filter_map(|ip| match ip {
        IpAddr::V4(_) => None,
        IpAddr::V6(ip) => Some(ip),
    }))
}

/// A shared value that stands for its only address of one family.
#[derive(Debug)]
struct ByAddress<V, A>(Arc<V>, PhantomData<A>);

impl<V, A> Clone for ByAddress<V, A> {
    fn clone(&self) -> Self {
        Self(self.0.clone(), PhantomData)
    }
}

impl<V: Addressed> Borrow<Ipv4Addr> for ByAddress<V, Ipv4Addr> {
    fn borrow(&self) -> &Ipv4Addr {
        only_v4(&*self.0).unwrap_or(&Ipv4Addr::UNSPECIFIED)
    }
}

impl<V: Addressed> Borrow<Ipv6Addr> for ByAddress<V, Ipv6Addr> {
    fn borrow(&self) -> &Ipv6Addr {
        only_v6(&*self.0).unwrap_or(&Ipv6Addr::UNSPECIFIED)
    }
}

impl<V, A: Hash> Hash for ByAddress<V, A>
where
    Self: Borrow<A>,
{
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.borrow().hash(state);
    }
}

impl<V, A: Eq> PartialEq for ByAddress<V, A>
where
    Self: Borrow<A>,
{
    fn eq(&self, other: &Self) -> bool {
        self.borrow() == other.borrow()
    }
}

impl<V, A: Eq> Eq for ByAddress<V, A> where Self: Borrow<A> {}

/// Values by address. Nearly all have one address of each family: these are stored without it.
#[derive(Debug)]
pub(crate) struct IpMap<V: Addressed> {
    v4: Sharded<ByAddress<V, Ipv4Addr>, ()>,
    v6: Sharded<ByAddress<V, Ipv6Addr>, ()>,
    /// Those filed under one of several addresses of a family.
    others: Sharded<IpAddr, Arc<V>>,
}

impl<V: Addressed> Clone for IpMap<V> {
    fn clone(&self) -> Self {
        Self { v4: self.v4.clone(), v6: self.v6.clone(), others: self.others.clone() }
    }
}

impl<V: Addressed> Default for IpMap<V> {
    fn default() -> Self {
        Self { v4: Sharded::default(), v6: Sharded::default(), others: Sharded::default() }
    }
}

impl<V: Addressed> IpMap<V> {
    pub(crate) fn get(&self, ip: &IpAddr) -> Option<&Arc<V>> {
        let found = match ip {
            IpAddr::V4(ip) => self.v4.get_key_value(ip).map(|(value, ())| &value.0),
            IpAddr::V6(ip) => self.v6.get_key_value(ip).map(|(value, ())| &value.0),
        };
        found.or_else(|| if self.others.is_empty() { None } else { self.others.get(ip) })
    }

    pub(crate) fn insert(&mut self, ip: IpAddr, value: Arc<V>) {
        // Inserting alone would keep the former value where that is the key.
        self.remove(&ip);
        match ip {
            IpAddr::V4(ip) if only_v4(&*value) == Some(&ip) => {
                self.v4.insert(ByAddress(value, PhantomData), ());
            }
            IpAddr::V6(ip) if only_v6(&*value) == Some(&ip) => {
                self.v6.insert(ByAddress(value, PhantomData), ());
            }
            IpAddr::V4(_) | IpAddr::V6(_) => self.others.insert(ip, value),
        }
    }

    pub(crate) fn remove(&mut self, ip: &IpAddr) {
        match ip {
            IpAddr::V4(ip) => self.v4.remove(ip),
            IpAddr::V6(ip) => self.v6.remove(ip),
        }
        self.others.remove(ip);
    }

    #[cfg(test)]
    pub(crate) fn iter(&self) -> impl Iterator<Item = (IpAddr, &Arc<V>)> {
        let v4 = self.v4.iter().map(|(value, ())| (IpAddr::V4(*value.borrow()), &value.0));
        let v6 = self.v6.iter().map(|(value, ())| (IpAddr::V6(*value.borrow()), &value.0));
        v4.chain(v6).chain(self.others.iter().map(|(ip, value)| (*ip, value)))
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

    #[derive(Debug)]
    struct Host(Vec<IpAddr>);

    impl Addressed for Host {
        fn addresses(&self) -> &[IpAddr] {
            &self.0
        }
    }

    #[test]
    fn values_are_found_by_each_of_their_addresses() {
        let host = |ips: &[&str]| Arc::new(Host(ips.iter().map(|ip| ip.parse().unwrap()).collect()));
        let dual = host(&["10.0.0.1", "fd00::1"]);
        let many = host(&["10.0.0.2", "10.0.0.3", "fd00::2"]);
        let heir = host(&["10.0.0.1", "10.0.0.2"]);
        let mut map = IpMap::default();
        for value in [&dual, &many] {
            value.0.iter().for_each(|ip| map.insert(*ip, value.clone()));
        }
        let owners = |map: &IpMap<Host>, ips: &[&str]| -> Vec<Option<Vec<IpAddr>>> {
            ips.iter().map(|ip| map.get(&ip.parse().unwrap()).map(|value| value.0.clone())).collect()
        };
        let asked = ["10.0.0.1", "fd00::1", "10.0.0.2", "10.0.0.3", "fd00::2", "10.0.0.4", "0.0.0.0", "::"];
        let (one, two) = (Some(dual.0.clone()), Some(many.0.clone()));
        let both = [one.clone(), one.clone(), two.clone(), two.clone(), two.clone(), None, None, None];
        assert_eq!(owners(&map, &asked), both);
        assert_eq!(map.iter().count(), 5);
        // An address passes to a value that is stored in the other way, and back.
        let before = map.clone();
        heir.0.iter().for_each(|ip| map.insert(*ip, heir.clone()));
        let third = Some(heir.0.clone());
        let changed = [third.clone(), one, third, two.clone(), two, None, None, None];
        assert_eq!(owners(&map, &asked), changed);
        assert_eq!((owners(&before, &asked), map.iter().count()), (both.to_vec(), 5));
        map.insert(dual.0[0], dual.clone());
        map.insert(many.0[0], many.clone());
        assert_eq!(owners(&map, &asked), both);
        for ip in asked {
            map.remove(&ip.parse().unwrap());
        }
        assert_eq!((owners(&map, &asked), map.iter().count()), (vec![None; 8], 0));
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
