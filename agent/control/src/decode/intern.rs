//! Sharing of values that repeat across many objects.

use std::hash::{BuildHasher, Hash};
use std::sync::Arc;

use hashbrown::{DefaultHashBuilder, HashTable};
use smallvec::SmallVec;
use weft_core::resource::{ContainerPort, Labels, Owner};

use super::fields::Text;

/// A port as it is written: name (empty for none) and number.
pub(crate) type WrittenPort<'a> = (&'a str, u16);

/// Gives out one `Arc` for equal values, so that 100,000 pods do not hold 100,000 copies of `app: web`.
///
/// A value that is known already is found without building it first. Values that nothing else holds any
/// more are let go from time to time.
#[derive(Debug, Default)]
pub(crate) struct Interner {
    hasher: DefaultHashBuilder,
    texts: HashTable<Arc<str>>,
    labels: HashTable<Arc<Labels>>,
    owners: HashTable<Arc<Owner>>,
    ports: HashTable<Arc<[ContainerPort]>>,
    sweep_at: usize,
}

/// Below this many values a sweep is not worth its time.
const SWEEP_FLOOR: usize = 4096;

impl Interner {
    /// Text that is likely to repeat.
    pub(crate) fn text(&mut self, text: &str) -> Arc<str> {
        let Self { hasher, texts, .. } = self;
        let hash = hasher.hash_one(text);
        let entry = texts.entry(hash, |known| **known == *text, |known| hasher.hash_one(&**known));
        entry.or_insert_with(|| text.into()).get().clone()
    }

    /// The labels (or annotations) whose keys pass `keep`.
    pub(crate) fn labels(&mut self, pairs: &[(Text<'_>, Text<'_>)], keep: fn(&str) -> bool) -> Arc<Labels> {
        let kept =
            pairs.iter().map(|(key, value)| (key.as_str(), value.as_str())).filter(|(key, _)| keep(key));
        let mut kept: SmallVec<[(&str, &str); 16]> = kept.collect();
        kept.sort_unstable();
        let hash = hash_all(&self.hasher, kept.iter().copied());
        if let Some(known) = self.labels.find(hash, |known| known.iter().eq(kept.iter().copied())) {
            return known.clone();
        }
        let texts: Vec<_> = kept.iter().map(|(key, value)| (self.text(key), self.text(value))).collect();
        let new = Arc::new(Labels::from_iter(texts));
        let hasher = &self.hasher;
        self.labels.insert_unique(hash, new.clone(), |known| hash_all(hasher, known.iter()));
        new
    }

    /// The owner of a pod.
    pub(crate) fn owner(&mut self, kind: &str, name: &str) -> Arc<Owner> {
        let hash = self.hasher.hash_one((kind, name));
        if let Some(known) = self.owners.find(hash, |known| *known.kind == *kind && *known.name == *name) {
            return known.clone();
        }
        let new = Arc::new(Owner { kind: self.text(kind), name: self.text(name) });
        let hasher = &self.hasher;
        self.owners.insert_unique(hash, new.clone(), |known| hasher.hash_one((&*known.kind, &*known.name)));
        new
    }

    /// The ports of a pod.
    pub(crate) fn ports(&mut self, ports: &[WrittenPort<'_>]) -> Arc<[ContainerPort]> {
        let hash = hash_all(&self.hasher, ports.iter().copied());
        if let Some(known) =
            self.ports.find(hash, |known| known.iter().map(written).eq(ports.iter().copied()))
        {
            return known.clone();
        }
        let named = |(name, port): &WrittenPort<'_>| ContainerPort {
            name: (!name.is_empty()).then(|| self.text(name)),
            port: *port,
        };
        let new: Arc<[ContainerPort]> = ports.iter().map(named).collect();
        let hasher = &self.hasher;
        self.ports.insert_unique(hash, new.clone(), |known| hash_all(hasher, known.iter().map(written)));
        new
    }

    /// Lets go of what nothing else holds, once enough has been added since the last time.
    pub(crate) fn sweep(&mut self) {
        if self.len() < self.sweep_at.max(SWEEP_FLOOR) {
            return;
        }
        self.let_go();
        self.sweep_at = 2 * self.len();
    }

    /// Lets go of what nothing else holds, and of the room that it took: after very much was decoded.
    pub(crate) fn shrink(&mut self) {
        self.let_go();
        let Self { hasher, texts, labels, owners, ports, .. } = self;
        texts.shrink_to_fit(|known| hasher.hash_one(&**known));
        labels.shrink_to_fit(|known| hash_all(hasher, known.iter()));
        owners.shrink_to_fit(|known| hasher.hash_one((&*known.kind, &*known.name)));
        ports.shrink_to_fit(|known| hash_all(hasher, known.iter().map(written)));
        self.sweep_at = 2 * self.len();
    }

    fn let_go(&mut self) {
        // Labels, owners and ports hold texts, so they go first.
        self.labels.retain(|labels| Arc::strong_count(labels) > 1);
        self.owners.retain(|owner| Arc::strong_count(owner) > 1);
        self.ports.retain(|ports| Arc::strong_count(ports) > 1);
        self.texts.retain(|text| Arc::strong_count(text) > 1);
    }

    fn len(&self) -> usize {
        self.texts.len() + self.labels.len() + self.owners.len() + self.ports.len()
    }
}

fn written(port: &ContainerPort) -> WrittenPort<'_> {
    (port.name.as_deref().unwrap_or_default(), port.port)
}

fn hash_all<T: Hash>(hasher: &DefaultHashBuilder, items: impl Iterator<Item = T>) -> u64 {
    use std::hash::Hasher as _;
    let mut hash = hasher.build_hasher();
    items.for_each(|item| item.hash(&mut hash));
    hash.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(app: &str) -> Vec<(Text<'_>, Text<'_>)> {
        let text = |text| Text(std::borrow::Cow::Borrowed(text));
        vec![(text("app"), text(app)), (text("version"), text("v1"))]
    }

    #[test]
    fn equal_values_are_the_same_allocation() {
        let mut interner = Interner::default();
        let (a, b) = (interner.labels(&pairs("web"), |_| true), interner.labels(&pairs("web"), |_| true));
        assert!(Arc::ptr_eq(&a, &b));
        let (a, b) = (interner.owner("Deployment", "web"), interner.owner("Deployment", "web"));
        assert!(Arc::ptr_eq(&a, &b) && Arc::ptr_eq(&a.name, &interner.text("web")));
        let ports = [("http", 80), ("", 81)];
        let (a, b) = (interner.ports(&ports), interner.ports(&ports));
        assert!(Arc::ptr_eq(&a, &b) && a[0].name.as_deref() == Some("http") && a[1].name.is_none());
    }

    #[test]
    fn values_that_nobody_holds_are_let_go() {
        let mut interner = Interner::default();
        let held = interner.text("held");
        for number in 0..SWEEP_FLOOR {
            drop(interner.labels(&pairs(&number.to_string()), |_| true));
        }
        interner.sweep();
        assert_eq!((interner.len(), &*held), (1, "held"));
        drop(interner.labels(&pairs("web"), |_| true));
        interner.shrink();
        assert_eq!((interner.len(), &*interner.text("held")), (1, "held"));
    }
}
