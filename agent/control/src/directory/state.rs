//! What is remembered of a file.

use std::collections::BTreeMap;
use std::hash::BuildHasher;
use std::path::PathBuf;
use std::sync::Arc;

use weft_core::Problem;
use weft_core::resource::{Kind, NamespacedName, ResourceKey};

use super::tree::{FileKey, Signature};
use crate::decode::ObjectCounts;

/// What became of an object that a file names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// This version of it is in force.
    Accepted,
    /// This version is invalid; an earlier one may be in force.
    Rejected,
    /// Another document has the same object and comes first.
    Lost,
    /// It was in the file before a document became unreadable, and stays in force.
    Kept,
}

/// An object that a file names. There is one for each object of the cluster: every byte counts.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) name: NamespacedName,
    pub(super) document: u32,
    pub(super) kind: Kind,
    pub(super) standing: Standing,
}

impl Entry {
    pub(super) fn key(&self) -> ResourceKey {
        ResourceKey { kind: self.kind, name: self.name.clone() }
    }

    /// The hash by which its claim is found.
    pub(super) fn hash(&self, hasher: &impl BuildHasher) -> u64 {
        hash_of(hasher, self.kind, &self.name)
    }
}

/// As [`Entry::hash`], of an object.
pub(super) fn hash_of(hasher: &impl BuildHasher, kind: Kind, name: &NamespacedName) -> u64 {
    hasher.hash_one((kind, name))
}

/// A document: how it is recognised, and which entries are its own.
#[derive(Debug, Clone, Copy)]
pub(super) struct Page {
    pub(super) hash: u64,
    pub(super) number: u32,
    pub(super) line: u32,
    pub(super) first: u32,
    pub(super) entries: u32,
}

/// What else a document has, in numbers; nearly all documents have nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Others {
    pub(super) ignored: u32,
    /// Invalid objects of kinds that the mesh has no use for: nothing of the mesh's hides behind them.
    pub(super) refused: u32,
    pub(super) nameless: u32,
}

/// A file.
#[derive(Debug)]
pub(super) struct FileState {
    pub(super) key: FileKey,
    pub(super) path: PathBuf,
    pub(super) name: Arc<str>,
    pub(super) signature: Option<Signature>,
    pub(super) pages: Vec<Page>,
    /// By the number of the page.
    pub(super) others: BTreeMap<u32, Others>,
    pub(super) entries: Vec<Entry>,
    /// Number of the first of `entries`. Numbers only grow, so that claims stay valid while a file is read again.
    pub(super) base: u32,
    /// Findings with the number of their page.
    pub(super) problems: Vec<(u32, Problem)>,
    pub(super) unreadable: Option<Problem>,
}

impl FileState {
    pub(super) fn entry(&self, number: u32) -> Option<&Entry> {
        self.entries.get(number.wrapping_sub(self.base) as usize)
    }

    pub(super) fn counts(&self) -> ObjectCounts {
        let mut counts = ObjectCounts::default();
        for others in self.others.values() {
            counts.ignored += others.ignored as usize;
            counts.rejected += (others.nameless + others.refused) as usize;
        }
        for entry in &self.entries {
            match entry.standing {
                Standing::Accepted => counts.accepted += 1,
                Standing::Rejected | Standing::Lost => counts.rejected += 1,
                Standing::Kept => {}
            }
        }
        counts.read = counts.accepted + counts.rejected + counts.ignored;
        counts
    }
}

/// Which file an object belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) file: u32,
    pub(super) entry: u32,
}

/// The number of items, as entries and pages are numbered.
pub(super) fn length<T>(items: &[T]) -> u32 {
    // A file with more than 4 billion objects does not fit into memory.
    u32::try_from(items.len()).unwrap_or(u32::MAX)
}
