//! Which rules can possibly match a connection or a request?
//!
//! Every rule is filed under keys of which whatever it matches must have at least one: a principal, the beginning
//! or end of a path, a host, a service account, an address block, a port, the value of a header (see module `keys`).
//! A request has only a handful of keys, so it meets only the rules that mention it; these are then evaluated in
//! full. A rule without any such key (only negations, or nothing at all) is in the rest, which
//! every connection meets; it matches nearly everything and so ends the search.
//!
//! Of several possible ways to file a rule the one with the least crowded keys is taken, and a crowded key is
//! divided again by the rule's other keys: "one client, 10,000 ports" and "10,000 clients, one port" both end
//! with one candidate.
//!
//! Keys are hashes. Two keys with the same hash share a place, which costs an evaluation and changes nothing.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasherDefault, Hasher};

use smallvec::SmallVec;

use super::keys::{Filing, Keys, Reads, Way};
use super::matcher::Subject;
use crate::resource::Rule;

/// A place with more rules than this is divided by their other keys.
const CROWDED: usize = 16;

/// Position of a rule in the order in which rules are reported.
pub(super) type RuleId = u32;

/// The keys are hashes already.
#[derive(Debug, Clone, Default)]
struct Unhashed(u64);

impl Hasher for Unhashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

type KeyMap<V> = HashMap<u64, V, BuildHasherDefault<Unhashed>>;

#[derive(Debug)]
enum Place {
    Rules(Box<[RuleId]>),
    Divided(Box<Node>),
}

#[derive(Debug, Default)]
struct Node {
    places: KeyMap<Place>,
    rest: Box<[RuleId]>,
}

/// The index over a list of rules.
#[derive(Debug, Default)]
pub(super) struct Index {
    keys: Keys,
    root: Node,
}

/// A rule on its way into a node, with the ways that are used up.
#[derive(Debug, Clone, Copy)]
struct Filed {
    rule: RuleId,
    used: u32,
}

impl Index {
    /// Files `rules`; a rule's identifier is its position.
    pub(super) fn new<'r>(reads: Reads, rules: impl IntoIterator<Item = &'r Rule>) -> Self {
        let mut filing = Filing::new(reads);
        let ways: Vec<Vec<Way>> = rules.into_iter().map(|rule| filing.ways(rule)).collect();
        let all = (0..ways.len()).map(|at| Filed { rule: at as RuleId, used: 0 }).collect();
        let root = Node::new(all, &ways);
        Self { keys: filing.into_keys(), root }
    }

    /// The rules that may match, in order, each once.
    pub(super) fn candidates(&self, subject: &Subject<'_>) -> Candidates<'_> {
        let mut lists = SmallVec::new();
        self.root.collect(&self.keys.of(subject), &mut lists);
        Candidates { lists }
    }
}

impl Node {
    fn new(rules: Vec<Filed>, ways: &[Vec<Way>]) -> Self {
        let counts = count_keys(&rules, ways);
        let mut rest = Vec::new();
        let mut filed: KeyMap<Vec<Filed>> = KeyMap::default();
        for entry in rules {
            let Some((used, keys)) = best_way(entry, ways, &counts) else {
                rest.push(entry.rule);
                continue;
            };
            for key in keys {
                filed.entry(key).or_default().push(Filed { rule: entry.rule, used: entry.used | used });
            }
        }
        let places = filed.into_iter().map(|(key, rules)| (key, Place::new(rules, ways))).collect();
        Self { places, rest: rest.into() }
    }

    fn collect<'n>(&'n self, keys: &[u64], lists: &mut SmallVec<[&'n [RuleId]; 8]>) {
        if !self.rest.is_empty() {
            lists.push(&self.rest);
        }
        if self.places.is_empty() {
            return;
        }
        for key in keys {
            match self.places.get(key) {
                Some(Place::Rules(rules)) => lists.push(rules),
                Some(Place::Divided(node)) => node.collect(keys, lists),
                None => {}
            }
        }
    }
}

impl Place {
    fn new(rules: Vec<Filed>, ways: &[Vec<Way>]) -> Self {
        let divisible =
            rules.len() > CROWDED && rules.iter().any(|entry| open_ways(*entry, ways).next().is_some());
        if divisible {
            return Self::Divided(Box::new(Node::new(rules, ways)));
        }
        Self::Rules(rules.into_iter().map(|entry| entry.rule).collect())
    }
}

/// The ways of a rule that are not used up, each with its bit.
fn open_ways(entry: Filed, ways: &[Vec<Way>]) -> impl Iterator<Item = (u32, &Way)> {
    let ways = ways.get(entry.rule as usize).map(Vec::as_slice).unwrap_or_default();
    let with_bits = ways.iter().enumerate().map(|(at, way)| (1u32 << at, way));
    with_bits.filter(move |(bit, _)| entry.used & bit == 0)
}

fn count_keys(rules: &[Filed], ways: &[Vec<Way>]) -> KeyMap<usize> {
    let mut counts = KeyMap::default();
    for entry in rules {
        for (_, way) in open_ways(*entry, ways) {
            for key in way.members.iter().flatten().flatten() {
                *counts.entry(*key).or_default() += 1;
            }
        }
    }
    counts
}

/// The way whose keys have the fewest rules, with its keys, each once.
fn best_way(entry: Filed, ways: &[Vec<Way>], counts: &KeyMap<usize>) -> Option<(u32, BTreeSet<u64>)> {
    let crowd = |keys: &[u64]| keys.iter().filter_map(|key| counts.get(key)).sum::<usize>();
    let priced = open_ways(entry, ways).map(|(bit, way)| {
        let chosen = way.members.iter().filter_map(|lists| lists.iter().min_by_key(|keys| crowd(keys)));
        let chosen: Vec<&Vec<u64>> = chosen.collect();
        (chosen.iter().map(|keys| crowd(keys)).sum::<usize>(), bit, chosen)
    });
    let (_, bit, chosen) = priced.min_by_key(|(price, ..)| *price)?;
    Some((bit, chosen.into_iter().flatten().copied().collect()))
}

/// Rules of several sorted lists as one sorted list without repetitions.
#[derive(Debug)]
pub(super) struct Candidates<'i> {
    lists: SmallVec<[&'i [RuleId]; 8]>,
}

impl Iterator for Candidates<'_> {
    type Item = RuleId;

    fn next(&mut self) -> Option<RuleId> {
        let next = self.lists.iter().filter_map(|list| list.first()).min().copied()?;
        for list in &mut self.lists {
            if let [first, rest @ ..] = list
                && *first == next
            {
                *list = rest;
            }
        }
        Some(next)
    }
}
