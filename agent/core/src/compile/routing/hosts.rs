//! Values by host: exact ones and wildcards.

use std::collections::BTreeMap;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::compile::sharded::Sharded;

/// What is filed under a host that covers the one looked for.
#[derive(Debug)]
pub(crate) struct Found<'a, V> {
    /// What follows the `*`; `None` where the host itself was filed.
    pub(crate) suffix: Option<&'a str>,
    /// What was filed.
    pub(crate) value: &'a V,
}

/// A persistent map by host. Cloning is cheap, an update copies one shard.
#[derive(Debug, Clone)]
pub(crate) struct HostIndex<V> {
    exact: Sharded<Arc<str>, V>,
    /// By what follows the `*`.
    wildcards: Sharded<Arc<str>, V>,
    /// How many wildcards have a length and do not begin a label (`*-x.example.com`, `*`).
    odd: Arc<BTreeMap<usize, usize>>,
}

impl<V> Default for HostIndex<V> {
    fn default() -> Self {
        Self { exact: Sharded::default(), wildcards: Sharded::default(), odd: Arc::default() }
    }
}

impl<V: Clone> HostIndex<V> {
    /// What is filed under a host or wildcard as it is written.
    pub(crate) fn get(&self, host: &str) -> Option<&V> {
        match host.strip_prefix('*') {
            Some(suffix) => self.wildcards.get(suffix),
            None => self.exact.get(host),
        }
    }

    /// Files a value under a host or wildcard, or removes it.
    pub(crate) fn set(&mut self, host: &Arc<str>, value: Option<V>) {
        let Some(suffix) = host.strip_prefix('*') else {
            match value {
                Some(value) => self.exact.insert(host.clone(), value),
                None => self.exact.remove(&**host),
            }
            return;
        };
        let before = self.wildcards.get(suffix).is_some();
        let after = value.is_some();
        match value {
            Some(value) => self.wildcards.insert(suffix.into(), value),
            None => self.wildcards.remove(suffix),
        }
        if before != after && !suffix.starts_with('.') {
            let odd = Arc::make_mut(&mut self.odd);
            let count = odd.entry(suffix.len()).or_default();
            *count = if after { *count + 1 } else { count.saturating_sub(1) };
            odd.retain(|_, count| *count > 0);
        }
    }

    /// Everything filed, by host or wildcard, in no particular order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (String, &V)> {
        let exact = self.exact.iter().map(|(host, value)| (host.to_string(), value));
        exact.chain(self.wildcards.iter().map(|(suffix, value)| (format!("*{suffix}"), value)))
    }

    /// Everything filed that covers a host, the most specific first: the host itself, then longer wildcards before
    /// shorter ones. `*.a` covers `x.a` and `y.x.a`, not `a`.
    pub(crate) fn covering<'a>(&'a self, host: &'a str) -> SmallVec<[Found<'a, V>; 4]> {
        let mut found = SmallVec::new();
        found.extend(self.exact.get(host).map(|value| Found { suffix: None, value }));
        if self.wildcards.is_empty() {
            return found;
        }
        let dotted = host.match_indices('.').filter(|(at, _)| *at > 0).map(|(at, _)| at);
        let odd = self.odd.keys().filter_map(|length| host.len().checked_sub(*length)).filter(|at| *at > 0);
        let mut starts: SmallVec<[usize; 16]> = dotted.chain(odd).collect();
        starts.sort_unstable();
        starts.dedup();
        found.extend(starts.into_iter().filter_map(|at| {
            let suffix = host.get(at..)?;
            let value = self.wildcards.get(suffix)?;
            Some(Found { suffix: Some(suffix), value })
        }));
        found
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Set(String, u8),
        Remove(String),
    }

    fn host() -> impl Strategy<Value = String> {
        "(\\*|\\*\\.|\\*-|)([ab]{1,2}\\.){0,2}[ab]"
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (host(), any::<u8>()).prop_map(|(host, value)| Step::Set(host, value)),
            1 => host().prop_map(Step::Remove),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn finds_what_a_list_finds(steps in prop::collection::vec(step(), 0..40), asked in "([ab]{1,2}[.-]){0,3}[ab]") {
            let mut index = HostIndex::default();
            let mut list = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Set(host, value) => {
                        index.set(&host.as_str().into(), Some(value));
                        list.insert(host, value);
                    }
                    Step::Remove(host) => {
                        index.set(&host.as_str().into(), None);
                        list.remove(&host);
                    }
                }
            }
            let covers = |host: &str| match host.strip_prefix('*') {
                Some(suffix) => asked.len() > suffix.len() && asked.ends_with(suffix),
                None => asked == host,
            };
            let mut naive: Vec<_> = list.iter().filter(|(host, _)| covers(host)).collect();
            naive.sort_by_key(|(host, _)| (host.starts_with('*'), std::cmp::Reverse(host.len())));
            let naive: Vec<u8> = naive.into_iter().map(|(_, value)| *value).collect();
            let found: Vec<u8> = index.covering(&asked).iter().map(|found| *found.value).collect();
            prop_assert_eq!(found, naive);
            for (host, value) in &list {
                prop_assert_eq!(index.get(host), Some(value));
            }
        }
    }

    #[test]
    fn a_bare_wildcard_covers_every_host() {
        let mut index = HostIndex::default();
        index.set(&"*".into(), Some(1));
        index.set(&"*.com".into(), Some(2));
        let found = |host: &str| index.covering(host).iter().map(|found| *found.value).collect::<Vec<_>>();
        assert_eq!(found("a.com"), [2, 1]);
        assert_eq!(found("com"), [1]);
    }
}
