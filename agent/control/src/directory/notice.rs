//! Hearing of changes: inotify by way of `notify`.

use std::collections::{BTreeSet, HashMap};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;

use notify::event::{AccessKind, AccessMode, CreateKind, EventKind, ModifyKind, RemoveKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use weft_core::Problem;

use super::files::Files;
use super::tree::Tree;
use crate::codes;
use crate::decode::documents::Format;

/// What wakes the thread that reads.
#[derive(Debug)]
pub(super) enum Wake {
    /// Something happened in a watched directory.
    Event(notify::Result<notify::Event>),
    /// The writer needs everything again.
    Resync,
    /// The end.
    Stop,
}

/// The watches. Each directory is watched by itself, before it is read: so nothing falls between reading and
/// watching.
#[derive(Debug)]
pub(super) struct Notice {
    watcher: Option<RecommendedWatcher>,
    /// Watched directories with what they were when the watch was set (device and inode).
    watched: HashMap<PathBuf, (u64, u64)>,
    /// Why changes are looked for every second.
    polling: Option<String>,
}

impl Notice {
    pub(super) fn new(wake: Sender<Wake>) -> Self {
        let watcher = notify::recommended_watcher(move |event| {
            if !says_nothing(&event) {
                // A thread that is gone needs no waking.
                drop(wake.send(Wake::Event(event)));
            }
        });
        let (watcher, polling) = match watcher {
            Ok(watcher) => (Some(watcher), None),
            Err(error) => (None, Some(error.to_string())),
        };
        Self { watcher, watched: HashMap::new(), polling }
    }

    #[cfg(test)]
    pub(super) fn without_watches(reason: &str) -> Self {
        Self { watcher: None, watched: HashMap::new(), polling: Some(reason.to_owned()) }
    }

    /// Watches a directory that is about to be read.
    pub(super) fn watch(&mut self, directory: &Path) {
        let Some(watcher) = &mut self.watcher else { return };
        // If it vanished in between, that is an event of the directory above.
        let Ok(metadata) = std::fs::metadata(directory) else { return };
        let identity = (metadata.dev(), metadata.ino());
        if self.watched.insert(directory.to_owned(), identity) == Some(identity) {
            return;
        }
        match watcher.watch(directory, RecursiveMode::NonRecursive) {
            Ok(()) => {}
            Err(_) if !directory.exists() => {}
            Err(error) => self.polling = Some(error.to_string()),
        }
    }

    /// Forgets the watches of directories that were removed or renamed: they are to be set anew.
    pub(super) fn heard(&mut self, event: &notify::Result<notify::Event>) {
        let Ok(event) = event else { return };
        if !matches!(
            event.kind,
            EventKind::Create(_) | EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_))
        ) {
            return;
        }
        for path in event.paths.iter().filter(|path| Format::of(path).is_none()) {
            self.watched.retain(|watched, _| !watched.starts_with(path));
        }
    }

    /// Whether changes are looked for every second.
    pub(super) fn is_polling(&self) -> bool {
        self.polling.is_some()
    }

    pub(super) fn problem(&self) -> Option<Problem> {
        let reason = self.polling.as_ref()?;
        let message =
            format!("Changes are found by looking every second, because watching failed: {reason}.");
        let fix =
            "Raise fs.inotify.max_user_instances and fs.inotify.max_user_watches, and restart the agent.";
        Some(codes::POLLING.of_source(message, fix))
    }
}

/// What may have changed.
#[derive(Debug, Default)]
pub(super) struct Noticed {
    /// These files.
    pub(super) files: BTreeSet<PathBuf>,
    /// Files or directories came, went or were replaced.
    pub(super) structure: bool,
    /// Anything: compare times and sizes.
    pub(super) everything: bool,
}

/// Whether nobody has to wake up for an event: a file is being written to, or was opened, most often by ourselves.
fn says_nothing(event: &notify::Result<notify::Event>) -> bool {
    event.as_ref().is_ok_and(|event| {
        let idle = match event.kind {
            EventKind::Access(access) => access != AccessKind::Close(AccessMode::Write),
            EventKind::Modify(ModifyKind::Data(_)) => true,
            EventKind::Any
            | EventKind::Create(_)
            | EventKind::Modify(_)
            | EventKind::Remove(_)
            | EventKind::Other => false,
        };
        idle && !event.need_rescan()
    })
}

impl Noticed {
    pub(super) fn everything() -> Self {
        Self { everything: true, structure: true, ..Self::default() }
    }

    pub(super) fn is_any(&self) -> bool {
        self.structure || self.everything || !self.files.is_empty()
    }

    /// Takes an event in.
    pub(super) fn add(&mut self, event: notify::Result<notify::Event>, tree: &Tree, files: &Files) {
        let Ok(event) = event else {
            *self = Self::everything();
            return;
        };
        if event.need_rescan() {
            *self = Self::everything();
            return;
        }
        for path in event.paths {
            match event.kind {
                EventKind::Access(AccessKind::Close(AccessMode::Write)) => self.written(path, tree),
                EventKind::Modify(ModifyKind::Name(_)) | EventKind::Remove(RemoveKind::File) => {
                    self.path(path, tree, files);
                }
                // A new file is read when it is closed; a link is complete at once.
                EventKind::Create(CreateKind::File) if is_link(&path) => self.path(path, tree, files),
                EventKind::Create(CreateKind::File) => {}
                EventKind::Create(_) | EventKind::Remove(_) => self.structure = true,
                // A file may have become readable.
                EventKind::Modify(ModifyKind::Metadata(_)) if files.is_unreadable(&path) => {
                    self.path(path, tree, files);
                }
                EventKind::Any | EventKind::Other | EventKind::Access(_) | EventKind::Modify(_) => {}
            }
        }
    }

    /// A file was written to and closed.
    fn written(&mut self, path: PathBuf, tree: &Tree) {
        if !tree.covers(&path) {
            self.outside(&path, tree);
        } else if tree.is_root(&path) || is_configuration(&path) {
            self.files.insert(path);
        }
    }

    /// The target of a link changed, or a neighbour of what is ours.
    fn outside(&mut self, path: &Path, tree: &Tree) {
        self.everything |= tree.concerns(path);
        self.structure |= self.everything;
    }

    /// A path came, went or was replaced.
    fn path(&mut self, path: PathBuf, tree: &Tree, files: &Files) {
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        if !tree.covers(&path) {
            self.outside(&path, tree);
        } else if tree.is_root(&path) || name.starts_with(b"..") || is_link(&path) || path.is_dir() {
            // A configured path itself, `..data` of a mounted ConfigMap, or a directory that was renamed.
            self.structure = true;
            if path.is_file() {
                self.files.insert(path);
            }
        } else if is_configuration(&path) {
            self.files.insert(path);
        } else {
            // What is gone may have been a directory of ours; other files are of no concern.
            self.structure |= files.has_below(&path);
        }
    }
}

/// Whether a file's name is one that is read: hidden files are editors' own.
fn is_configuration(path: &Path) -> bool {
    let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    !hidden && Format::of(path).is_some()
}

/// Whether a path is a link, of either kind.
fn is_link(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink() || metadata.nlink() > 1)
}
