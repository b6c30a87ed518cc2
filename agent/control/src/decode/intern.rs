//! Sharing of values that repeat across many objects.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::Arc;

use weft_core::resource::{ContainerPort, Labels, Owner};

use super::fields::Text;

type PortList = Vec<(Option<Arc<str>>, u16)>;

/// Gives out one `Arc` for equal values, so that 100,000 pods do not hold 100,000 copies of `app: web`.
///
/// Values that nothing else holds any more are let go from time to time.
#[derive(Debug, Default)]
pub(crate) struct Interner {
    texts: HashSet<Arc<str>>,
    labels: HashSet<Arc<Labels>>,
    owners: HashSet<Arc<Owner>>,
    ports: HashMap<PortList, Arc<[ContainerPort]>>,
    sweep_at: usize,
}

/// Below this many values a sweep is not worth its time.
const SWEEP_FLOOR: usize = 4096;

impl Interner {
    /// Text that is likely to repeat.
    pub(crate) fn text(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.texts.get(text) {
            return known.clone();
        }
        let new: Arc<str> = text.into();
        self.texts.insert(new.clone());
        new
    }

    /// The labels (or annotations) whose keys pass `keep`.
    pub(crate) fn labels(&mut self, pairs: &[(Text<'_>, Text<'_>)], keep: fn(&str) -> bool) -> Arc<Labels> {
        let mut kept = Vec::with_capacity(pairs.len());
        for (key, value) in pairs.iter().filter(|(key, _)| keep(key.as_str())) {
            kept.push((self.text(key.as_str()), self.text(value.as_str())));
        }
        shared(&mut self.labels, Labels::from_iter(kept))
    }

    /// The owner of a pod.
    pub(crate) fn owner(&mut self, kind: &str, name: &str) -> Arc<Owner> {
        let owner = Owner { kind: self.text(kind), name: self.text(name) };
        shared(&mut self.owners, owner)
    }

    /// The ports of a pod.
    pub(crate) fn ports(&mut self, ports: PortList) -> Arc<[ContainerPort]> {
        let shared = self.ports.entry(ports).or_insert_with_key(|ports| {
            ports.iter().map(|(name, port)| ContainerPort { name: name.clone(), port: *port }).collect()
        });
        shared.clone()
    }

    /// Lets go of what nothing else holds, once enough has been added since the last time.
    pub(crate) fn sweep(&mut self) {
        if self.len() < self.sweep_at.max(SWEEP_FLOOR) {
            return;
        }
        // Labels, owners and ports hold texts, so they go first.
        self.labels.retain(|labels| Arc::strong_count(labels) > 1);
        self.owners.retain(|owner| Arc::strong_count(owner) > 1);
        self.ports.retain(|_, ports| Arc::strong_count(ports) > 1);
        self.texts.retain(|text| Arc::strong_count(text) > 1);
        self.sweep_at = 2 * self.len();
    }

    fn len(&self) -> usize {
        self.texts.len() + self.labels.len() + self.owners.len() + self.ports.len()
    }
}

fn shared<T: Hash + Eq>(known: &mut HashSet<Arc<T>>, value: T) -> Arc<T> {
    if let Some(known) = known.get(&value) {
        return known.clone();
    }
    let new = Arc::new(value);
    known.insert(new.clone());
    new
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
        let ports = vec![(Some(interner.text("http")), 80), (None, 81)];
        assert!(Arc::ptr_eq(&interner.ports(ports.clone()), &interner.ports(ports)));
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
    }
}
