//! What the files say, and how that changes.
//!
//! Nothing is kept of an object but its key: the objects themselves live in the compiler. Documents are known
//! by a hash of their text, so that only changed ones are decoded again.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::hash::BuildHasher;
use std::io::{self, BufRead, BufReader, ErrorKind};
use std::path::{Path, PathBuf};

use hashbrown::{DefaultHashBuilder, HashTable};
use weft_core::Problem;
use weft_core::analyze::ObjectSet;
use weft_core::problem::{Code, Origin};
use weft_core::resource::{Change, Kind, NamespacedName, ObjectRef, ResourceKey};

use super::notice::Noticed;
use super::state::{Claim, Entry, FileState, Others, Page, Standing, hash_of, length};
use super::tree::{FileKey, Signature, Tree};
use crate::codes;
use crate::decode::documents::{self, Document, Format};
use crate::decode::{Decoded, Decoder, ObjectCounts, Outcome, Trust};
use crate::writer::SourceReport;

/// Takes the changes.
type Emit<'e> = &'e mut dyn FnMut(Change);

/// Bytes that are read at once.
const READ_BUFFER: usize = 256 << 10;

/// All files.
#[derive(Debug)]
pub(super) struct Files {
    decoder: Decoder,
    hasher: DefaultHashBuilder,
    files: BTreeMap<u32, FileState>,
    numbers: BTreeMap<FileKey, u32>,
    next: u32,
    claims: HashTable<Claim>,
    kinds: BTreeMap<Kind, usize>,
    /// Counts by file, computed when the file is read.
    counts: HashMap<u32, ObjectCounts>,
}

impl Default for Files {
    fn default() -> Self {
        Self {
            decoder: Decoder::new(Trust::Files),
            hasher: DefaultHashBuilder::default(),
            files: BTreeMap::new(),
            numbers: BTreeMap::new(),
            next: 0,
            claims: HashTable::new(),
            kinds: BTreeMap::new(),
            counts: HashMap::new(),
        }
    }
}

/// A file that is being read again.
struct Reading {
    file: u32,
    /// Number of the first entry of the new version.
    begin: u32,
    pages: Vec<Page>,
    others: BTreeMap<u32, Others>,
    problems: Vec<(u32, Problem)>,
    by_hash: HashMap<u64, usize>,
    /// A document has no name: it may be any of the objects that are missing.
    broken: bool,
}

impl Files {
    /// Files of which the analyzers' questions are answered as well.
    pub(super) fn noting() -> Self {
        Self { decoder: Decoder::noting(Trust::Files), ..Self::default() }
    }

    /// What was noted for the analyzers.
    pub(super) fn into_facts(self) -> ObjectSet {
        self.decoder.into_facts()
    }

    /// Reads what may have changed.
    pub(super) fn scan(
        &mut self,
        tree: &mut Tree,
        noticed: &mut Noticed,
        watch: &mut dyn FnMut(&Path),
        emit: Emit<'_>,
    ) {
        let mut orphans = HashSet::new();
        if noticed.structure {
            self.compare(tree, noticed.everything, watch, (&mut orphans, emit));
        }
        for path in std::mem::take(&mut noticed.files) {
            self.visit(tree, path, (&mut orphans, emit));
        }
        while !orphans.is_empty() {
            self.adopt(std::mem::take(&mut orphans), (&mut orphans, emit));
        }
    }

    /// Compares the tree with what is known.
    fn compare(&mut self, tree: &mut Tree, everything: bool, watch: &mut dyn FnMut(&Path), out: Out<'_, '_>) {
        let (orphans, emit) = out;
        let walk = tree.walk(watch);
        let removed = |(key, number): (&FileKey, &u32)| {
            let gone = !walk.files.contains_key(key);
            let hidden = self.files.get(number).is_some_and(|file| walk.is_hidden(&file.path));
            (gone && !hidden && !file_is_text(key)).then_some(*number)
        };
        let removed: Vec<u32> = self.numbers.iter().filter_map(removed).collect();
        for number in removed {
            self.remove(number, (&mut *orphans, &mut *emit));
        }
        for (key, (path, signature)) in walk.files {
            let known = self.numbers.get(&key).and_then(|number| self.files.get(number)?.signature);
            let changed = match known {
                None => true,
                // A file that is written to tells when that is done.
                Some(known) => known.is_replaced_by(&signature) || (everything && known != signature),
            };
            if changed {
                self.read_path(key, path, (&mut *orphans, &mut *emit));
            }
        }
    }

    /// Reads a file of which something was heard.
    fn visit(&mut self, tree: &Tree, path: PathBuf, out: Out<'_, '_>) {
        let Some(key) = tree.key_of(&path) else { return };
        let is_unknown =
            |error: &io::Error| !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory);
        // What cannot be looked at is not gone: reading it says why, and keeps what it had.
        let metadata = std::fs::metadata(&path);
        if metadata.as_ref().map_or_else(is_unknown, |metadata| metadata.is_file()) {
            self.read_path(key, path, out);
        } else if let Some(number) = self.numbers.get(&key).copied()
            && !tree.is_root(&path)
        {
            self.remove(number, out);
        }
    }

    /// Lets files take over objects that lost their owner.
    fn adopt(&mut self, keys: HashSet<ResourceKey>, out: Out<'_, '_>) {
        let (orphans, emit) = out;
        let heirs = |(key, number): (&FileKey, &u32)| {
            // An object that was lost counts as rejected: most files need no closer look.
            self.counts.get(number).filter(|counts| counts.rejected > 0)?;
            let file = self.files.get(number)?;
            let lost = |entry: &Entry| entry.standing == Standing::Lost && keys.contains(&entry.key());
            file.entries.iter().any(lost).then(|| (key.clone(), file.path.clone()))
        };
        let heirs: Vec<_> = self.numbers.iter().filter_map(heirs).collect();
        for (key, path) in heirs {
            self.read_path(key, path, (&mut *orphans, &mut *emit));
        }
    }

    fn read_path(&mut self, key: FileKey, path: PathBuf, out: Out<'_, '_>) {
        let opened = File::open(&path).and_then(|file| Ok((Signature::of(&file.metadata()?), file)));
        let number = self.number(&key, &path);
        let read = opened.and_then(|(signature, file)| {
            if let Some(state) = self.files.get_mut(&number) {
                state.signature = Some(signature);
                state.unreadable = None;
            }
            let mut reader = BufReader::with_capacity(READ_BUFFER, file);
            let format = match Format::of(&path) {
                Some(format) => format,
                None => Format::sniff(reader.fill_buf()?),
            };
            self.read(number, &mut reader, format, out)
        });
        let Err(error) = read else { return };
        let Some(state) = self.files.get_mut(&number) else { return };
        if error.kind() == ErrorKind::NotFound && state.entries.is_empty() {
            self.forget(number);
            return;
        }
        let message =
            format!("The file cannot be read ({error}); what was read from it before stays in force.");
        let mut problem = codes::UNREADABLE_FILE.of_source(message, "Let the agent's user read it.");
        problem.origin = Some(Origin { file: state.name.clone(), document: 1, line: 1 });
        state.unreadable = Some(problem);
        // Whatever happens to it next is to be noticed.
        state.signature = None;
    }

    /// Reads text that is in no file.
    pub(super) fn read_text(&mut self, name: &str, text: &[u8], emit: Emit<'_>) {
        let key = FileKey { root: usize::MAX, relative: name.into() };
        let number = self.number(&key, Path::new(name));
        let mut orphans = HashSet::new();
        let read = self.read(number, &mut &*text, Format::sniff(text), (&mut orphans, emit));
        debug_assert!(read.is_ok(), "reading from memory cannot fail");
    }

    /// The number of a file, which is known from now on.
    fn number(&mut self, key: &FileKey, path: &Path) -> u32 {
        if let Some(number) = self.numbers.get(key) {
            return *number;
        }
        let number = self.next;
        self.next += 1;
        let name = if key.relative.as_os_str().is_empty() {
            path.file_name().unwrap_or(path.as_os_str()).to_string_lossy()
        } else {
            key.relative.as_os_str().to_string_lossy()
        };
        let state = FileState {
            key: key.clone(),
            path: path.to_owned(),
            name: name.into(),
            signature: None,
            pages: Vec::new(),
            others: BTreeMap::new(),
            entries: Vec::new(),
            base: 0,
            problems: Vec::new(),
            unreadable: None,
        };
        self.files.insert(number, state);
        self.numbers.insert(key.clone(), number);
        number
    }

    fn forget(&mut self, number: u32) {
        if let Some(state) = self.files.remove(&number) {
            self.numbers.remove(&state.key);
        }
        self.counts.remove(&number);
    }

    /// A file is gone, and its objects with it.
    fn remove(&mut self, number: u32, out: Out<'_, '_>) {
        let reading = self.begin(number);
        self.finish(reading, out);
        self.forget(number);
    }

    fn read(
        &mut self,
        number: u32,
        reader: &mut dyn BufRead,
        format: Format,
        out: Out<'_, '_>,
    ) -> io::Result<()> {
        let (orphans, emit) = out;
        let mut reading = self.begin(number);
        let mut decoded = Vec::new();
        let read = documents::read(reader, format, &mut |document| {
            let hash = self.hash(document, format);
            if !self.carry_over(&mut reading, hash, document) {
                self.decode(&mut reading, hash, document, (&mut decoded, &mut *emit));
            }
        });
        // A file that could be read in part only keeps what it had.
        reading.broken |= read.is_err();
        self.finish(reading, (orphans, emit));
        read
    }

    /// Lines of a `.jsonl` file are known by their text alone: a line that is added before 100,000 others does
    /// not change them. Elsewhere a document that moves is read again, so that findings name its new line.
    fn hash(&self, document: &Document<'_>, format: Format) -> u64 {
        match format {
            Format::JsonLines => self.hasher.hash_one(document.text),
            Format::Yaml | Format::Json => {
                self.hasher.hash_one((document.text, document.number, document.line))
            }
        }
    }

    fn begin(&mut self, number: u32) -> Reading {
        let Some(file) = self.files.get_mut(&number) else {
            return Reading {
                file: number,
                begin: 0,
                pages: Vec::new(),
                others: BTreeMap::new(),
                problems: Vec::new(),
                by_hash: HashMap::new(),
                broken: false,
            };
        };
        let pages = std::mem::take(&mut file.pages);
        Reading {
            file: number,
            begin: file.base.wrapping_add(length(&file.entries)),
            by_hash: pages.iter().enumerate().map(|(at, page)| (page.hash, at)).collect(),
            pages,
            others: std::mem::take(&mut file.others),
            problems: std::mem::take(&mut file.problems),
            broken: false,
        }
    }

    /// Takes a document over that has not changed, without decoding it. False if it must be decoded.
    fn carry_over(&mut self, reading: &mut Reading, hash: u64, document: &Document<'_>) -> bool {
        let Some(old) =
            reading.by_hash.get(&hash).and_then(|at| reading.pages.get(*at).map(|page| (*at, *page)))
        else {
            return false;
        };
        let (at, page) = old;
        let numbers = (0..page.entries).map(|entry| page.first.wrapping_add(entry));
        if !numbers.clone().all(|number| self.stands(reading, number)) {
            return false;
        }
        reading.by_hash.remove(&hash);
        let Some(file) = self.files.get_mut(&reading.file) else { return false };
        let new_page = length(&file.pages);
        let first = file.base.wrapping_add(length(&file.entries));
        file.pages.push(Page { number: document.number, line: document.line, first, ..page });
        let from = reading.problems.partition_point(|(page, _)| (*page as usize) < at);
        let problems = reading.problems.get(from..).unwrap_or_default().iter();
        let problems = problems.take_while(|(page, _)| *page as usize == at);
        file.problems.extend(problems.map(|(_, problem)| (new_page, problem.clone())));
        if let Some(others) = u32::try_from(at).ok().and_then(|at| reading.others.get(&at)) {
            file.others.insert(new_page, *others);
            // A document without a name hides what else it may be, changed or not.
            reading.broken |= others.nameless > 0;
        }
        for number in numbers {
            self.carry_entry(reading.file, number, new_page);
        }
        true
    }

    fn carry_entry(&mut self, number: u32, old: u32, page: u32) {
        let Some(file) = self.files.get_mut(&number) else { return };
        let Some(entry) = file.entry(old).cloned() else { return };
        let new = file.base.wrapping_add(length(&file.entries));
        let (hash, standing) = (entry.hash(&self.hasher), entry.standing);
        file.entries.push(Entry { document: page, ..entry });
        if standing != Standing::Lost
            && let Some(claim) =
                self.claims.find_mut(hash, |claim| *claim == Claim { file: number, entry: old })
        {
            claim.entry = new;
        }
    }

    /// Whether an entry of the old version has the standing that it would have in the new one.
    fn stands(&self, reading: &Reading, number: u32) -> bool {
        let Some(entry) = self.files.get(&reading.file).and_then(|file| file.entry(number)) else {
            return false;
        };
        let claim = self.claim_of(entry.kind, &entry.name);
        match entry.standing {
            Standing::Accepted | Standing::Rejected => {
                claim == Some(Claim { file: reading.file, entry: number })
            }
            Standing::Lost => claim.is_some_and(|claim| {
                claim.file != reading.file || claim.entry.wrapping_sub(reading.begin) < u32::MAX / 2
            }),
            Standing::Kept => false,
        }
    }

    fn claim_of(&self, kind: Kind, name: &NamespacedName) -> Option<Claim> {
        let is_it =
            |claim: &Claim| self.entry(*claim).is_some_and(|entry| entry.kind == kind && entry.name == *name);
        self.claims.find(hash_of(&self.hasher, kind, name), is_it).copied()
    }

    fn entry(&self, claim: Claim) -> Option<&Entry> {
        self.files.get(&claim.file)?.entry(claim.entry)
    }

    fn decode(
        &mut self,
        reading: &mut Reading,
        hash: u64,
        document: &Document<'_>,
        out: (&mut Vec<Decoded>, Emit<'_>),
    ) {
        let (decoded, emit) = out;
        let Some(file) = self.files.get_mut(&reading.file) else { return };
        let origin = Origin { file: file.name.clone(), document: document.number, line: document.line };
        let at = length(&file.pages);
        let first = file.base.wrapping_add(length(&file.entries));
        self.decoder.document(document, &origin, decoded);
        let mut page = Page { hash, number: document.number, line: document.line, first, entries: 0 };
        let mut others = Others::default();
        for Decoded { outcome, problems } in decoded.drain(..) {
            if let Some(file) = self.files.get_mut(&reading.file) {
                file.problems.extend(problems.into_iter().map(|problem| (at, problem)));
            }
            match outcome {
                Outcome::Ignored => others.ignored += 1,
                Outcome::Refused => others.refused += 1,
                Outcome::Rejected(None) => others.nameless += 1,
                Outcome::Rejected(Some(key)) => {
                    page.entries += 1;
                    let ResourceKey { kind, name } = key;
                    self.claim(reading, Entry { name, document: at, kind, standing: Standing::Rejected });
                }
                Outcome::Accepted(resource) => {
                    page.entries += 1;
                    let ResourceKey { kind, name } = resource.key();
                    let entry = Entry { name, document: at, kind, standing: Standing::Accepted };
                    if self.claim(reading, entry) {
                        emit(Change::Upsert(resource));
                    }
                }
            }
        }
        reading.broken |= others.nameless > 0;
        if let Some(file) = self.files.get_mut(&reading.file) {
            file.pages.push(page);
            if others != Others::default() {
                file.others.insert(at, others);
            }
        }
    }

    /// Adds an entry; false if the object belongs to an earlier document.
    fn claim(&mut self, reading: &Reading, entry: Entry) -> bool {
        let hash = entry.hash(&self.hasher);
        let current = self.claim_of(entry.kind, &entry.name);
        let wins = match current {
            None => true,
            Some(claim) if claim.file == reading.file => {
                claim.entry.wrapping_sub(reading.begin) >= u32::MAX / 2
            }
            Some(claim) => self.order(reading.file) < self.order(claim.file),
        };
        let kind = entry.kind;
        let Some(file) = self.files.get_mut(&reading.file) else { return false };
        let new = Claim { file: reading.file, entry: file.base.wrapping_add(length(&file.entries)) };
        let standing = if wins { entry.standing } else { Standing::Lost };
        file.entries.push(Entry { standing, ..entry });
        if !wins {
            return false;
        }
        let Self { claims, files, hasher, .. } = self;
        match current {
            Some(current) => {
                if let Some(claim) = claims.find_mut(hash, |claim| *claim == current) {
                    *claim = new;
                }
                if current.file != reading.file {
                    self.lose(current);
                }
            }
            None => {
                claims.insert_unique(hash, new, |claim| {
                    let entry = files.get(&claim.file).and_then(|file| file.entry(claim.entry));
                    entry.map_or(0, |entry| entry.hash(hasher))
                });
                *self.kinds.entry(kind).or_default() += 1;
            }
        }
        true
    }

    fn order(&self, number: u32) -> Option<&FileKey> {
        self.files.get(&number).map(|file| &file.key)
    }

    /// Another file took the object.
    fn lose(&mut self, claim: Claim) {
        let Some(file) = self.files.get_mut(&claim.file) else { return };
        let at = claim.entry.wrapping_sub(file.base) as usize;
        if let Some(entry) = file.entries.get_mut(at) {
            entry.standing = Standing::Lost;
        }
        self.counts.insert(claim.file, file.counts());
    }

    /// What the old version had and the new one has not is deleted, or kept if a document is unreadable.
    fn finish(&mut self, reading: Reading, out: Out<'_, '_>) {
        let (orphans, emit) = out;
        let number = reading.file;
        let Some(file) = self.files.get(&number) else { return };
        let old = reading.begin.wrapping_sub(file.base);
        for offset in 0..old {
            let claim = Claim { file: number, entry: reading.begin.wrapping_sub(old).wrapping_add(offset) };
            let Some(entry) = self.entry(claim).filter(|entry| entry.standing != Standing::Lost).cloned()
            else {
                continue;
            };
            let hash = entry.hash(&self.hasher);
            let Ok(found) = self.claims.find_entry(hash, |other| *other == claim) else { continue };
            if reading.broken {
                let Some(file) = self.files.get_mut(&number) else { continue };
                let kept = file.base.wrapping_add(length(&file.entries));
                file.entries.push(Entry { standing: Standing::Kept, ..entry });
                *found.into_mut() = Claim { file: number, entry: kept };
                continue;
            }
            found.remove();
            if let Some(count) = self.kinds.get_mut(&entry.kind) {
                *count -= 1;
            }
            orphans.insert(entry.key());
            emit(Change::Delete(entry.key()));
        }
        if let Some(file) = self.files.get_mut(&number) {
            file.entries.drain(..(old as usize).min(file.entries.len()));
            file.base = reading.begin;
            file.entries.shrink_to_fit();
            file.pages.shrink_to_fit();
            self.counts.insert(number, file.counts());
        }
    }

    /// Whether a file could not be read.
    pub(super) fn is_unreadable(&self, path: &Path) -> bool {
        self.files.values().any(|file| file.unreadable.is_some() && file.path == path)
    }

    /// Whether files are known below a directory.
    pub(super) fn has_below(&self, directory: &Path) -> bool {
        self.files.values().any(|file| file.path.starts_with(directory))
    }

    /// The state of all files; `problems` are those of the source itself.
    pub(super) fn report(&self, mut problems: Vec<Problem>) -> SourceReport {
        let mut objects = ObjectCounts::default();
        for number in self.numbers.values() {
            let Some(file) = self.files.get(number) else { continue };
            let counts = self.counts.get(number).copied().unwrap_or_default();
            objects += counts;
            problems.extend(file.unreadable.clone());
            problems.extend(file.problems.iter().map(|(_, problem)| problem.clone()));
            if counts.rejected > 0 {
                let lost = file.entries.iter().filter(|entry| entry.standing == Standing::Lost);
                problems.extend(lost.map(|entry| self.duplicate(file, entry)));
            }
        }
        let kinds =
            self.kinds.iter().filter(|(_, count)| **count > 0).map(|(kind, count)| (*kind, *count)).collect();
        SourceReport { problems: problems.into(), objects, kinds, ..SourceReport::default() }
    }

    fn duplicate(&self, file: &FileState, entry: &Entry) -> Problem {
        let Code { code, name, severity } = codes::DUPLICATE_OBJECT;
        let first = self.claim_of(entry.kind, &entry.name).and_then(|claim| {
            let file = self.files.get(&claim.file)?;
            let page = file.pages.get(file.entry(claim.entry)?.document as usize)?;
            Some(format!("{}, document {}, line {}", file.name, page.number, page.line))
        });
        let first = first.unwrap_or_else(|| "another document".to_owned());
        let page = file.pages.get(entry.document as usize);
        Problem {
            severity,
            code,
            name,
            object: Some(ObjectRef {
                kind: entry.kind.as_str().into(),
                namespace: entry.name.namespace.clone(),
                name: entry.name.name.clone(),
            }),
            field: String::new(),
            origin: page.map(|page| Origin {
                file: file.name.clone(),
                document: page.number,
                line: page.line,
            }),
            message: format!(
                "The same object stands in {first} as well; that one is in force, this one is not."
            ),
            fix: "Keep only one of them.".to_owned(),
        }
    }
}

/// Where objects without an owner and changes go.
type Out<'o, 'e> = (&'o mut HashSet<ResourceKey>, Emit<'e>);

/// Standard input is no file that could vanish.
fn file_is_text(key: &FileKey) -> bool {
    key.root == usize::MAX
}
