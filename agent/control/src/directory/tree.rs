//! Finds the files below the configured paths.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::Metadata;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use weft_core::Problem;

use crate::codes;
use crate::decode::documents::Format;

/// Deeper directories are not read: something is wrong with them.
const MAX_DEPTH: usize = 32;

/// A file's place in the order that decides which of two equal objects wins.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct FileKey {
    /// The configured path, by its number.
    pub(super) root: usize,
    /// The file below it; empty where the configured path is the file.
    pub(super) relative: PathBuf,
}

/// What tells one state of a file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Signature {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Signature {
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }

    /// Whether it is another file altogether, not the same one written to.
    pub(super) fn is_replaced_by(&self, other: &Self) -> bool {
        (self.device, self.inode) != (other.device, other.inode)
    }
}

#[derive(Debug)]
struct Root {
    path: PathBuf,
    gone: bool,
}

/// The configured paths and what is known about them.
#[derive(Debug)]
pub(super) struct Tree {
    roots: Vec<Root>,
    /// Directories outside of the roots in which files lie that links lead to.
    outside: HashSet<PathBuf>,
    /// Directories that cannot be read, with the reason.
    unreadable: BTreeMap<PathBuf, String>,
}

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Walk {
    /// The files.
    pub(super) files: BTreeMap<FileKey, (PathBuf, Signature)>,
    /// Below these nothing could be seen: their files are not gone, they are unknown.
    hidden: Vec<PathBuf>,
    /// Directories that were entered (links can lead in circles).
    entered: BTreeSet<(u64, u64)>,
}

impl Walk {
    /// Whether it is unknown if the file is still there.
    pub(super) fn is_hidden(&self, path: &Path) -> bool {
        self.hidden.iter().any(|hidden| path.starts_with(hidden))
    }
}

impl Tree {
    pub(super) fn new(paths: Vec<PathBuf>) -> Self {
        let absolute = |path: PathBuf| std::path::absolute(&path).unwrap_or(path);
        let root = |path| Root { path: absolute(path), gone: false };
        Self {
            roots: paths.into_iter().map(root).collect(),
            outside: HashSet::new(),
            unreadable: BTreeMap::new(),
        }
    }

    /// Looks at everything. `watch` is called for each directory before it is read.
    pub(super) fn walk(&mut self, watch: &mut dyn FnMut(&Path)) -> Walk {
        let mut walk = Walk::default();
        self.unreadable.clear();
        self.outside.clear();
        for number in 0..self.roots.len() {
            self.walk_root(number, &mut walk, watch);
        }
        walk
    }

    fn walk_root(&mut self, number: usize, walk: &mut Walk, watch: &mut dyn FnMut(&Path)) {
        let Some(root) = self.roots.get_mut(number) else { return };
        let path = root.path.clone();
        let is_link = std::fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_symlink());
        // A directory does not tell when a link to it is turned elsewhere, nor a file when it is replaced.
        if (is_link || !path.is_dir())
            && let Some(parent) = path.parent()
        {
            watch(parent);
        }
        let metadata = std::fs::metadata(&path);
        root.gone = metadata.is_err();
        match metadata {
            Err(_) => walk.hidden.push(path),
            Ok(metadata) if metadata.is_dir() => {
                self.walk_directory((number, Path::new("")), &path, walk, watch)
            }
            Ok(metadata) => {
                let key = FileKey { root: number, relative: PathBuf::new() };
                walk.files.insert(key, (path, Signature::of(&metadata)));
            }
        }
    }

    fn walk_directory(
        &mut self,
        at: (usize, &Path),
        directory: &Path,
        walk: &mut Walk,
        watch: &mut dyn FnMut(&Path),
    ) {
        let (number, relative) = at;
        let identity = std::fs::metadata(directory).map(|metadata| (metadata.dev(), metadata.ino()));
        let entered = identity.is_ok_and(|identity| walk.entered.insert(identity));
        if !entered || relative.components().count() > MAX_DEPTH {
            return;
        }
        watch(directory);
        let entries = match std::fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return,
            Err(error) => {
                walk.hidden.push(directory.to_owned());
                self.unreadable.insert(directory.to_owned(), error.to_string());
                return;
            }
        };
        for entry in entries {
            let Ok(entry) = entry else {
                // What else is there is unknown, not gone: a failing disk must not switch policies off.
                walk.hidden.push(directory.to_owned());
                continue;
            };
            let name = entry.file_name();
            // Hidden files are editors' temporary files; `..data` and its like hold what links lead to.
            if name.as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let (path, relative) = (entry.path(), relative.join(&name));
            // It is read in its own place in the order.
            if self.is_root(&path) {
                continue;
            }
            let is_link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
            let metadata = match std::fs::metadata(&path) {
                Ok(metadata) => metadata,
                Err(error) => {
                    if error.kind() != ErrorKind::NotFound {
                        walk.hidden.push(path);
                    }
                    continue;
                }
            };
            if metadata.is_dir() {
                self.walk_directory((number, &relative), &path, walk, watch);
            } else if metadata.is_file() && Format::of(&path).is_some() {
                if is_link {
                    self.watch_target(&path, watch);
                }
                walk.files.insert(FileKey { root: number, relative }, (path, Signature::of(&metadata)));
            }
        }
    }

    /// A link's target may change without the link's directory noticing.
    fn watch_target(&mut self, link: &Path, watch: &mut dyn FnMut(&Path)) {
        let Ok(target) = std::fs::canonicalize(link) else { return };
        let Some(parent) = target.parent() else { return };
        if self.outside.insert(parent.to_owned()) {
            watch(parent);
        }
    }

    /// The key of a file, if it lies below a configured path.
    pub(super) fn key_of(&self, path: &Path) -> Option<FileKey> {
        let covering = self.roots.iter().enumerate().filter(|(_, root)| path.starts_with(&root.path));
        // Of nested paths the inner one reads the file.
        let (number, root) = covering.max_by_key(|(_, root)| root.path.as_os_str().len())?;
        let relative = path.strip_prefix(&root.path).ok()?;
        Some(FileKey { root: number, relative: relative.to_owned() })
    }

    /// Whether the path is a configured one itself.
    pub(super) fn is_root(&self, path: &Path) -> bool {
        self.roots.iter().any(|root| root.path == path)
    }

    /// Whether a path lies below a configured path.
    pub(super) fn covers(&self, path: &Path) -> bool {
        self.roots.iter().any(|root| path.starts_with(&root.path))
    }

    /// Whether a path outside of the configured ones lies where links lead to.
    pub(super) fn concerns(&self, path: &Path) -> bool {
        path.parent().is_some_and(|parent| self.outside.contains(parent))
    }

    /// Whether a configured path is gone.
    pub(super) fn has_gone_roots(&self) -> bool {
        self.roots.iter().any(|root| root.gone)
    }

    /// Findings about the paths themselves.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let gone = self.roots.iter().filter(|root| root.gone).map(|root| {
            let message = format!(
                "The configuration {} is gone; what was read from it stays in force.",
                root.path.display()
            );
            codes::SOURCE_GONE.of_source(message, "Put it back, or start the agent with another path.")
        });
        let unreadable = self.unreadable.iter().map(|(path, reason)| {
            let path = path.display();
            let message = format!(
                "The directory {path} cannot be read ({reason}); what was read from it stays in force."
            );
            codes::UNREADABLE_FILE.of_source(message, "Let the agent's user read it.")
        });
        gone.chain(unreadable).collect()
    }
}
