//! Which rules can possibly match a connection?
//!
//! Every rule is filed under keys of which a matching connection must have at least one: a principal, the
//! beginning or end of a principal, a namespace, a service account, an address block, a port, a server name.
//! A connection has only a handful of keys, so it meets only the rules that mention it; these are then
//! evaluated in full. A rule without any such key (only negations, or nothing at all) is in the rest, which
//! every connection meets; it matches nearly everything and so ends the search.
//!
//! Of several possible ways to file a rule the one with the least crowded keys is taken, and a crowded key is
//! divided again by the rule's other keys: "one client, 10,000 ports" and "10,000 clients, one port" both end
//! with one candidate.
//!
//! Keys are hashes. Two keys with the same hash share a place, which costs an evaluation and changes nothing.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};
use std::net::IpAddr;

use ipnet::IpNet;
use smallvec::SmallVec;

use super::matcher::Subject;
use crate::resource::{Condition, Match, NamespaceMatch, Operation, Rule, Source, StringMatch};

/// A place with more rules than this is divided by their other keys.
const CROWDED: usize = 16;
/// Ways to file one rule that are looked at; more conditions than this only cost selectivity.
const WAYS: usize = 32;

/// Position of a rule in the order in which rules are reported.
pub(super) type RuleId = u32;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum KeyKind {
    Principal,
    PrincipalPrefix,
    PrincipalSuffix,
    Namespace,
    NamespacePrefix,
    NamespaceSuffix,
    ServiceAccount,
    Identified,
    Net,
    Port,
    Sni,
    HasSni,
}

impl KeyKind {
    fn bit(self) -> u16 {
        1 << (self as u16)
    }
}

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

/// Which keys occur at all, so that a connection is asked for no others.
#[derive(Debug, Clone, Default)]
struct Shape {
    kinds: u16,
    principal_prefixes: BTreeSet<usize>,
    principal_suffixes: BTreeSet<usize>,
    namespace_prefixes: BTreeSet<usize>,
    namespace_suffixes: BTreeSet<usize>,
    v4_lengths: BTreeSet<u8>,
    v6_lengths: BTreeSet<u8>,
}

impl Shape {
    fn has(&self, kind: KeyKind) -> bool {
        self.kinds & kind.bit() != 0
    }
}

/// One way to file a rule: for each of `members` (alternatives of an OR) one of its key lists.
#[derive(Debug, Default)]
struct Way {
    members: Vec<Vec<Vec<u64>>>,
}

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
    hasher: RandomState,
    shape: Shape,
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
    pub(super) fn new<'r>(rules: impl IntoIterator<Item = &'r Rule>) -> Self {
        let mut filing = Filing { hasher: RandomState::new(), shape: Shape::default() };
        let ways: Vec<Vec<Way>> = rules.into_iter().map(|rule| filing.ways(rule)).collect();
        let all = (0..ways.len()).map(|at| Filed { rule: at as RuleId, used: 0 }).collect();
        let root = Node::new(all, &ways);
        Self { hasher: filing.hasher, shape: filing.shape, root }
    }

    /// The rules that may match, in order, each once.
    pub(super) fn candidates(&self, subject: &Subject<'_>) -> Candidates<'_> {
        let mut keys = Keys { index: self, found: SmallVec::new() };
        keys.of_identity(subject);
        keys.of_source_ip(subject.connection.source_ip);
        keys.add(KeyKind::Port, &subject.connection.destination.port());
        if let Some(sni) = subject.connection.sni {
            keys.add(KeyKind::Sni, sni.as_bytes());
            keys.add(KeyKind::HasSni, &());
        }
        let mut lists = SmallVec::new();
        self.root.collect(&keys.found, &mut lists);
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

/// Turns rules into keys and notes which kinds occur.
struct Filing {
    hasher: RandomState,
    shape: Shape,
}

impl Filing {
    fn ways(&mut self, rule: &Rule) -> Vec<Way> {
        let mut ways = self.source_ways(&rule.from);
        ways.extend(self.operation_way(&rule.to));
        for condition in &rule.when {
            let keys = self.condition_keys(condition);
            ways.extend(keys.map(|keys| Way { members: vec![vec![keys]] }));
        }
        ways.truncate(WAYS);
        ways
    }

    /// Several sources are alternatives and must be filed together; the fields of a single one are not.
    fn source_ways(&mut self, from: &[Source]) -> Vec<Way> {
        let members: Vec<_> = from.iter().map(|source| self.source_keys(source)).collect();
        match members.as_slice() {
            [] => Vec::new(),
            [single] => single.iter().map(|keys| Way { members: vec![vec![keys.clone()]] }).collect(),
            _ if members.iter().any(Vec::is_empty) => Vec::new(),
            _ => vec![Way { members }],
        }
    }

    fn operation_way(&mut self, to: &[Operation]) -> Option<Way> {
        if to.is_empty() {
            return None;
        }
        let members: Option<Vec<_>> =
            to.iter().map(|operation| Some(vec![self.port_keys(&operation.ports)?])).collect();
        members.map(|members| Way { members })
    }

    fn source_keys(&mut self, source: &Source) -> Vec<Vec<u64>> {
        let lists = [
            self.principal_keys(&source.principals),
            self.namespace_keys(&source.namespaces),
            self.account_keys(&source.service_accounts),
            self.net_keys(&source.ip_blocks),
            self.net_keys(&source.remote_ip_blocks),
        ];
        lists.into_iter().flatten().collect()
    }

    fn condition_keys(&mut self, condition: &Condition) -> Option<Vec<u64>> {
        match condition {
            Condition::SourceIp(blocks) | Condition::RemoteIp(blocks) => self.net_keys(blocks),
            Condition::SourceNamespace(values) => self.namespace_keys(values),
            Condition::SourcePrincipal(values) => self.principal_keys(values),
            Condition::SourceServiceAccount(values) => self.account_keys(values),
            Condition::SourceTrustDomain(values) => {
                (!values.any.is_empty()).then(|| vec![self.key(KeyKind::Identified, &())])
            }
            Condition::DestinationPort(ports) => self.port_keys(ports),
            Condition::Sni(values) => self.sni_keys(values),
            Condition::DestinationIp(_) | Condition::Http { .. } => None,
        }
    }

    fn key<T: std::hash::Hash + ?Sized>(&mut self, kind: KeyKind, value: &T) -> u64 {
        self.shape.kinds |= kind.bit();
        self.hasher.hash_one((kind, value))
    }

    fn each<T>(values: &Match<T>, mut key: impl FnMut(&T) -> u64) -> Option<Vec<u64>> {
        (!values.any.is_empty()).then(|| values.any.iter().map(&mut key).collect())
    }

    fn principal_keys(&mut self, values: &Match<StringMatch>) -> Option<Vec<u64>> {
        Self::each(values, |pattern| match pattern {
            StringMatch::Exact(text) => self.key(KeyKind::Principal, text.as_bytes()),
            StringMatch::Prefix(text) => {
                self.shape.principal_prefixes.insert(text.len());
                self.key(KeyKind::PrincipalPrefix, text.as_bytes())
            }
            StringMatch::Suffix(text) => {
                self.shape.principal_suffixes.insert(text.len());
                self.key(KeyKind::PrincipalSuffix, text.as_bytes())
            }
            StringMatch::Present => self.key(KeyKind::Identified, &()),
        })
    }

    fn namespace_keys(&mut self, values: &Match<NamespaceMatch>) -> Option<Vec<u64>> {
        Self::each(values, |pattern| {
            let Some((head, rest)) = pattern.0.split_once('*') else {
                return self.key(KeyKind::Namespace, pattern.0.as_bytes());
            };
            let tail = rest.rsplit_once('*').map_or(rest, |(_, tail)| tail);
            if !head.is_empty() {
                self.shape.namespace_prefixes.insert(head.len());
                self.key(KeyKind::NamespacePrefix, head.as_bytes())
            } else if !tail.is_empty() {
                self.shape.namespace_suffixes.insert(tail.len());
                self.key(KeyKind::NamespaceSuffix, tail.as_bytes())
            } else {
                self.key(KeyKind::Identified, &())
            }
        })
    }

    fn account_keys(&mut self, values: &Match<crate::resource::ServiceAccountMatch>) -> Option<Vec<u64>> {
        Self::each(values, |account| {
            self.key(KeyKind::ServiceAccount, &(account.namespace.as_bytes(), account.name.as_bytes()))
        })
    }

    fn net_keys(&mut self, values: &Match<IpNet>) -> Option<Vec<u64>> {
        Self::each(values, |block| {
            match block {
                IpNet::V4(block) => self.shape.v4_lengths.insert(block.prefix_len()),
                IpNet::V6(block) => self.shape.v6_lengths.insert(block.prefix_len()),
            };
            self.key(KeyKind::Net, &block.trunc())
        })
    }

    fn port_keys(&mut self, values: &Match<u16>) -> Option<Vec<u64>> {
        Self::each(values, |port| self.key(KeyKind::Port, port))
    }

    fn sni_keys(&mut self, values: &Match<StringMatch>) -> Option<Vec<u64>> {
        Self::each(values, |pattern| match pattern {
            StringMatch::Exact(text) => self.key(KeyKind::Sni, text.as_bytes()),
            StringMatch::Prefix(_) | StringMatch::Suffix(_) | StringMatch::Present => {
                self.key(KeyKind::HasSni, &())
            }
        })
    }
}

/// Turns a connection into keys.
struct Keys<'i> {
    index: &'i Index,
    found: SmallVec<[u64; 16]>,
}

impl Keys<'_> {
    fn add<T: std::hash::Hash + ?Sized>(&mut self, kind: KeyKind, value: &T) {
        if self.index.shape.has(kind) {
            self.found.push(self.index.hasher.hash_one((kind, value)));
        }
    }

    fn of_identity(&mut self, subject: &Subject<'_>) {
        let Some(identity) = subject.connection.identity else {
            return;
        };
        let shape = &self.index.shape;
        for principal in &subject.principals {
            let principal = principal.as_bytes();
            self.add(KeyKind::Principal, principal);
            self.add_beginnings(KeyKind::PrincipalPrefix, principal, &shape.principal_prefixes);
            self.add_ends(KeyKind::PrincipalSuffix, principal, &shape.principal_suffixes);
        }
        let namespace = identity.namespace().as_bytes();
        self.add(KeyKind::Namespace, namespace);
        self.add_beginnings(KeyKind::NamespacePrefix, namespace, &shape.namespace_prefixes);
        self.add_ends(KeyKind::NamespaceSuffix, namespace, &shape.namespace_suffixes);
        self.add(KeyKind::ServiceAccount, &(namespace, identity.service_account().as_bytes()));
        self.add(KeyKind::Identified, &());
    }

    fn add_beginnings(&mut self, kind: KeyKind, text: &[u8], lengths: &BTreeSet<usize>) {
        for length in lengths {
            if let Some(beginning) = text.get(..*length) {
                self.add(kind, beginning);
            }
        }
    }

    fn add_ends(&mut self, kind: KeyKind, text: &[u8], lengths: &BTreeSet<usize>) {
        for length in lengths {
            if let Some(end) = text.len().checked_sub(*length).and_then(|at| text.get(at..)) {
                self.add(kind, end);
            }
        }
    }

    fn of_source_ip(&mut self, ip: IpAddr) {
        let lengths = match ip {
            IpAddr::V4(_) => &self.index.shape.v4_lengths,
            IpAddr::V6(_) => &self.index.shape.v6_lengths,
        };
        for length in lengths {
            if let Ok(block) = IpNet::new(ip, *length) {
                self.add(KeyKind::Net, &block.trunc());
            }
        }
    }
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
