//! The objects of one kind: their names and versions, in as little room as a large cluster asks for.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::Arc;

use hashbrown::{DefaultHashBuilder, HashTable};
use weft_core::resource::NamespacedName;

use super::store::{Head, Standing};

/// What is kept of an object. Its namespace is that of the table in which it stands.
#[derive(Debug)]
pub(super) struct Entry {
    name: Arc<str>,
    /// A hash of its resource version: what did not change is not decoded again.
    pub(super) version: u64,
    /// The list in which it was last seen.
    pub(super) epoch: u16,
    pub(super) standing: Standing,
}

impl Entry {
    pub(super) fn new(name: Arc<str>, version: u64, epoch: u16, standing: Standing) -> Self {
        Self { name, version, epoch, standing }
    }
}

/// Objects by namespace and name.
#[derive(Debug, Default)]
pub(super) struct Entries {
    hasher: DefaultHashBuilder,
    /// None of the tables is empty.
    namespaces: HashMap<Arc<str>, HashTable<Entry>>,
    len: usize,
}

impl Entries {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn find_mut(&mut self, head: Head<'_>) -> Option<&mut Entry> {
        let hash = self.hasher.hash_one(head.name);
        self.namespaces.get_mut(head.namespace)?.find_mut(hash, |entry| *entry.name == *head.name)
    }

    /// Puts an entry into the place of its former version, which is returned.
    pub(super) fn replace(&mut self, namespace: &Arc<str>, new: Entry) -> Option<Entry> {
        let Self { hasher, namespaces, len } = self;
        let hash = hasher.hash_one(&*new.name);
        let table = match namespaces.get_mut(namespace) {
            Some(table) => table,
            None => namespaces.entry(namespace.clone()).or_default(),
        };
        if let Some(known) = table.find_mut(hash, |entry| entry.name == new.name) {
            return Some(std::mem::replace(known, new));
        }
        table.insert_unique(hash, new, |entry| hasher.hash_one(&*entry.name));
        *len += 1;
        None
    }

    /// Takes an object out.
    pub(super) fn remove(&mut self, head: Head<'_>) -> Option<(NamespacedName, Entry)> {
        let (namespace, _) = self.namespaces.get_key_value(head.namespace)?;
        let namespace = namespace.clone();
        let table = self.namespaces.get_mut(&namespace)?;
        let hash = self.hasher.hash_one(head.name);
        let (entry, _) = table.find_entry(hash, |entry| *entry.name == *head.name).ok()?.remove();
        if table.is_empty() {
            self.namespaces.remove(&namespace);
        }
        self.len -= 1;
        Some((NamespacedName::new(namespace, entry.name.clone()), entry))
    }

    /// Takes out what was not seen in a list.
    pub(super) fn remove_others(&mut self, epoch: u16) -> Vec<(NamespacedName, Entry)> {
        let mut missing = Vec::new();
        self.namespaces.retain(|namespace, table| {
            let others = table.extract_if(|entry| entry.epoch != epoch);
            missing.extend(
                others.map(|entry| (NamespacedName::new(namespace.clone(), entry.name.clone()), entry)),
            );
            !table.is_empty()
        });
        self.len -= missing.len();
        missing
    }

    pub(super) fn clear(&mut self) {
        self.namespaces.clear();
        self.len = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head<'a>(namespace: &'a str, name: &'a str) -> Head<'a> {
        Head { namespace, name, version: "1" }
    }

    #[test]
    fn objects_are_found_by_namespace_and_name() {
        let mut entries = Entries::default();
        for (namespace, name, epoch) in [("a", "x", 1), ("b", "x", 1), ("a", "y", 2)] {
            let entry = Entry::new(name.into(), 7, epoch, Standing::Accepted);
            assert!(entries.replace(&namespace.into(), entry).is_none());
        }
        let again = Entry::new("y".into(), 8, 2, Standing::Rejected);
        assert_eq!(entries.replace(&"a".into(), again).map(|old| old.version), Some(7));
        assert_eq!(entries.len(), 3);
        assert_eq!(entries.find_mut(head("a", "y")).map(|entry| entry.version), Some(8));
        assert!(entries.find_mut(head("c", "y")).is_none() && entries.remove(head("b", "y")).is_none());

        let missing: Vec<_> =
            entries.remove_others(2).into_iter().map(|(name, _)| name.to_string()).collect();
        assert_eq!((missing.len(), entries.len()), (2, 1), "{missing:?}");
        assert!(entries.remove(head("a", "y")).is_some() && entries.namespaces.is_empty());
    }

    #[test]
    fn an_entry_takes_half_a_cache_line() {
        assert_eq!(size_of::<Entry>(), 32);
    }
}
