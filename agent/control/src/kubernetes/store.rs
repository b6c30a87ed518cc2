//! What is known of the cluster's objects, and how that changes.
//!
//! Nothing is kept of an object but its name, its version and what is wrong with it: the objects themselves live
//! in the compiler.

use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use hashbrown::DefaultHashBuilder;
use weft_core::Problem;
use weft_core::resource::{Change, Kind, NamespacedName, ResourceKey};

use super::contact::{Freshness, Noter};
use super::entries::{Entries, Entry};
use super::findings;
use super::kinds::{Target, is_compared_with};
use crate::decode::{Decoded, Decoder, ObjectCounts, Outcome, Trust};
use crate::writer::{SourceReport, Update};

/// Changes are sent in portions of this size, so that reading and compiling go hand in hand.
const PORTION: usize = 1024;

/// What became of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// This version of it is in force.
    Accepted,
    /// This version is invalid; an earlier one may be in force.
    Rejected,
    /// The mesh has no use for it.
    Ignored,
}

/// Whether a kind has been read.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Reading {
    /// Not to its end.
    Begun,
    /// To its end, once at least.
    Done,
    /// It is forbidden.
    Denied,
}

/// One kind.
#[derive(Debug)]
struct Table {
    target: Target,
    api_version: String,
    entries: Entries,
    epoch: u16,
    reading: Reading,
    counts: ObjectCounts,
    problems: HashMap<NamespacedName, Vec<Problem>>,
    /// Why it is not followed at present.
    failure: Option<String>,
    noter: Noter,
}

/// The name and version of an object, read before the whole of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Head<'a> {
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
    pub(super) version: &'a str,
}

/// All kinds.
#[derive(Debug)]
pub(super) struct Store {
    decoder: Decoder,
    hasher: DefaultHashBuilder,
    tables: BTreeMap<String, Table>,
    freshness: Freshness,
    updates: SyncSender<Update>,
    pending: Vec<Change>,
    /// The next update begins anew.
    reset: bool,
    /// It is known which kinds there are.
    discovered: bool,
    /// Every kind was read (or denied) once since the beginning.
    complete: bool,
    /// Why it cannot be asked which kinds there are.
    discovery_failure: Option<String>,
    /// Kinds that appear are found by asking again and again.
    polling: bool,
    /// Changes so far of objects that others are compared with.
    compared: u64,
    /// All findings, unless they changed since they were put together.
    problems: Option<Arc<[Problem]>>,
    decoded: Vec<Decoded>,
}

impl Store {
    pub(super) fn new(decoder: Decoder, freshness: Freshness, updates: SyncSender<Update>) -> Self {
        Self {
            decoder,
            hasher: DefaultHashBuilder::default(),
            tables: BTreeMap::new(),
            freshness,
            updates,
            pending: Vec::new(),
            reset: false,
            discovered: false,
            complete: false,
            discovery_failure: None,
            polling: false,
            compared: 0,
            problems: None,
            decoded: Vec::new(),
        }
    }

    /// A decoder for objects of the API.
    pub(super) fn decoder() -> Decoder {
        Decoder::new(Trust::Api)
    }

    /// A kind that is read from now on, perhaps in another version than before.
    pub(super) fn add(&mut self, target: Target) {
        let label = target.label();
        let api_version = target.api_version();
        if let Some(table) = self.tables.get_mut(&label) {
            table.target = target;
            table.api_version = api_version;
            return;
        }
        let table = Table {
            target,
            api_version,
            entries: Entries::default(),
            epoch: 0,
            reading: Reading::Begun,
            counts: ObjectCounts::default(),
            problems: HashMap::new(),
            failure: None,
            noter: self.freshness.contact(&label),
        };
        self.tables.insert(label, table);
        self.problems = None;
    }

    /// A kind does not exist any more, nor do its objects.
    pub(super) fn remove(&mut self, label: &str) {
        self.begin(label);
        self.end(label);
        self.tables.remove(label);
        self.freshness.forget(label);
        self.problems = None;
    }

    /// What to note about a kind.
    pub(super) fn noter(&self, label: &str) -> Noter {
        self.freshness.contact(label)
    }

    /// The compiler needs everything again.
    pub(super) fn begin_anew(&mut self) {
        for table in self.tables.values_mut() {
            table.entries.clear();
            table.counts = ObjectCounts::default();
            table.problems.clear();
            if table.reading == Reading::Done {
                table.reading = Reading::Begun;
            }
        }
        self.pending.clear();
        self.problems = None;
        self.reset = true;
        self.complete = false;
    }

    /// A list of a kind begins.
    pub(super) fn begin(&mut self, label: &str) {
        if let Some(table) = self.tables.get_mut(label) {
            table.epoch = table.epoch.wrapping_add(1);
        }
    }

    /// An object of a list, or one that is new or changed.
    pub(super) fn upsert(&mut self, label: &str, head: Head<'_>, text: &str) {
        let Some(table) = self.tables.get_mut(label) else { return };
        let version = self.hasher.hash_one(head.version);
        let known = table.entries.find_mut(head);
        let in_force = known.as_ref().is_some_and(|entry| entry.standing != Standing::Ignored);
        if let Some(entry) = known
            && entry.version == version
        {
            entry.epoch = table.epoch;
            return;
        }
        self.decoder.known(text, (&table.api_version, table.target.wanted.kind), &mut self.decoded);
        let Some(Decoded { outcome, problems }) = self.decoded.pop() else { return };
        self.decoded.clear();
        self.compared += u64::from(is_compared_with(&table.target.wanted));
        let (standing, name, resource) = match outcome {
            Outcome::Accepted(resource) => (Standing::Accepted, resource.key().name, Some(resource)),
            Outcome::Rejected(_) | Outcome::Refused => (Standing::Rejected, head.key(), None),
            Outcome::Ignored => (Standing::Ignored, head.key(), None),
        };
        if standing == Standing::Rejected {
            table.noter.undecodable();
        }
        let entry = Entry::new(name.name.clone(), version, table.epoch, standing);
        if table.note(&name, entry, problems) {
            self.problems = None;
        }
        match (resource, table.target.wanted.read) {
            (Some(resource), _) => self.push(Change::Upsert(resource)),
            (None, Some(kind)) if standing == Standing::Ignored && in_force => {
                self.push(Change::Delete(ResourceKey { kind, name }));
            }
            (None, _) => {}
        }
    }

    /// An object is gone.
    pub(super) fn delete(&mut self, label: &str, head: Head<'_>) {
        let Some(table) = self.tables.get_mut(label) else { return };
        let Some((name, entry)) = table.entries.remove(head) else { return };
        self.gone(label, name, entry.standing);
    }

    /// The list of a kind is complete: what was not in it is gone.
    pub(super) fn end(&mut self, label: &str) {
        let Some(table) = self.tables.get_mut(label) else { return };
        let missing = table.entries.remove_others(table.epoch);
        table.reading = Reading::Done;
        table.noter.synced();
        for (name, entry) in missing {
            self.gone(label, name, entry.standing);
        }
        self.note_progress();
    }

    fn gone(&mut self, label: &str, name: NamespacedName, standing: Standing) {
        let Some(table) = self.tables.get_mut(label) else { return };
        count(&mut table.counts, standing, false);
        self.compared += u64::from(is_compared_with(&table.target.wanted));
        if table.problems.remove(&name).is_some() {
            self.problems = None;
        }
        if let Some(kind) = table.target.wanted.read
            && standing != Standing::Ignored
        {
            self.push(Change::Delete(ResourceKey { kind, name }));
        }
    }

    /// What comes of asking which kinds there are.
    pub(super) fn discovered(&mut self, failure: Option<String>) {
        if failure != self.discovery_failure {
            self.problems = None;
        }
        self.discovered |= failure.is_none();
        self.discovery_failure = failure;
        self.note_progress();
    }

    /// The kinds of the cluster may not be listed, for good.
    pub(super) fn undiscoverable(&mut self, failure: String) {
        self.discovered(Some(failure));
        self.discovered = true;
        self.note_progress();
    }

    /// Whether kinds that appear are found by asking only.
    pub(super) fn set_polling(&mut self, polling: bool) {
        if self.polling != polling {
            self.polling = polling;
            self.problems = None;
        }
    }

    /// Whether kinds that appear are told of.
    pub(super) fn is_told_of_kinds(&self) -> bool {
        !self.polling
    }

    /// A kind may not be read.
    pub(super) fn denied(&mut self, label: &str, failure: String) {
        if let Some(table) = self.tables.get_mut(label)
            && table.reading == Reading::Begun
        {
            table.reading = Reading::Denied;
        }
        self.failed(label, Some(failure));
        self.note_progress();
    }

    /// A kind is not followed at present, or is again.
    pub(super) fn failed(&mut self, label: &str, failure: Option<String>) {
        if let Some(table) = self.tables.get_mut(label)
            && table.failure != failure
        {
            table.failure = failure;
            self.problems = None;
        }
    }

    fn note_progress(&mut self) {
        let complete = self.discovered && self.tables.values().all(|table| table.reading != Reading::Begun);
        if complete && !self.complete {
            self.complete = true;
            self.decoder.settle();
        }
    }

    fn push(&mut self, change: Change) {
        self.pending.push(change);
        if self.pending.len() == PORTION {
            let changes = std::mem::take(&mut self.pending);
            self.send(changes, None);
        }
    }

    /// Hands over what changed.
    pub(super) fn flush(&mut self) {
        let changes = std::mem::take(&mut self.pending);
        let report = self.report();
        self.send(changes, Some(report));
    }

    fn send(&mut self, changes: Vec<Change>, report: Option<SourceReport>) {
        let update = Update { reset: std::mem::take(&mut self.reset), changes, report, done: None };
        // This waits while the writer is behind, and with us the API server: that is what bounds memory. A writer
        // that is gone needs nothing.
        if self.updates.send(update).is_err() {
            tracing::debug!("nobody takes the configuration any more");
        }
    }

    fn report(&mut self) -> SourceReport {
        let mut objects = ObjectCounts::default();
        let mut kinds: BTreeMap<Kind, usize> = BTreeMap::new();
        for table in self.tables.values() {
            objects += table.counts;
            if let Some(kind) = table.target.wanted.read
                && table.entries.len() > 0
            {
                *kinds.entry(kind).or_default() += table.entries.len();
            }
        }
        SourceReport {
            problems: self.problems(),
            objects,
            kinds,
            pending: !self.complete,
            compared: self.compared,
            freshness: Some(self.freshness.clone()),
        }
    }

    fn problems(&mut self) -> Arc<[Problem]> {
        if let Some(known) = &self.problems {
            return known.clone();
        }
        let failing = self.tables.values().filter_map(|table| {
            let failure = table.failure.as_deref()?;
            Some((table.target, failure, table.reading == Reading::Denied))
        });
        let mut problems = findings::of_source(failing, self.discovery_failure.as_deref(), self.polling);
        for table in self.tables.values() {
            let mut names: Vec<_> = table.problems.iter().collect();
            names.sort_unstable_by_key(|(name, _)| *name);
            problems.extend(names.into_iter().flat_map(|(_, problems)| problems.iter().cloned()));
        }
        let problems: Arc<[Problem]> = problems.into();
        self.problems = Some(problems.clone());
        problems
    }
}

impl Head<'_> {
    fn key(self) -> NamespacedName {
        NamespacedName::new(self.namespace, self.name)
    }
}

impl Table {
    /// Notes what became of an object; true if that changes the findings.
    fn note(&mut self, name: &NamespacedName, new: Entry, problems: Vec<Problem>) -> bool {
        count(&mut self.counts, new.standing, true);
        let had = self.problems.remove(name).is_some();
        let has = !problems.is_empty();
        if has {
            self.problems.insert(name.clone(), problems);
        }
        if let Some(old) = self.entries.replace(&name.namespace, new) {
            count(&mut self.counts, old.standing, false);
        }
        had || has
    }
}

fn count(counts: &mut ObjectCounts, standing: Standing, one_more: bool) {
    let ObjectCounts { read, accepted, rejected, ignored } = counts;
    let of = match standing {
        Standing::Accepted => accepted,
        Standing::Rejected => rejected,
        Standing::Ignored => ignored,
    };
    let by = if one_more { 1 } else { -1 };
    *of = of.saturating_add_signed(by);
    *read = read.saturating_add_signed(by);
}
