//! The directory source: files of YAML and JSON, watched for changes.
//!
//! - `tree` finds the files, `files` keeps what they say and turns differences into changes, `notice` hears of
//!   changes, and this module drives them on a thread of its own.
//! - A file that is broken keeps its last good objects in force, and so does a configured path that vanishes:
//!   a mistake must not switch policies off. A file that is deleted takes its objects along.
//! - Files are read when their writer closes them or renames them into place, never half written.

mod each;
mod files;
mod notice;
mod state;
mod tree;

use std::collections::HashSet;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel};
use std::time::{Duration, Instant};

use weft_core::compile::{CompileOptions, Compiler};
use weft_core::resource::Change;
use weft_core::{Problem, Snapshot};

use crate::decode::ObjectCounts;
use crate::handle::Handle;
use crate::writer::{self, Update, Writer, WriterError};
pub(crate) use each::each_document;
use files::Files;
use notice::{Notice, Noticed, Wake};
use tree::Tree;

/// What to read.
#[derive(Debug, Clone)]
pub struct DirectoryOptions {
    /// Directories (read recursively) and files. Of an object that stands in several, the first wins.
    pub paths: Vec<PathBuf>,
}

/// The source could not begin.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A path cannot be read.
    #[error("the configuration {path} cannot be read: {source}; check the path given with --config")]
    Unreadable {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No thread could be started.
    #[error("the thread that reads the configuration could not be started; check the limit of processes")]
    Thread(#[source] io::Error),
    /// The writer could not begin.
    #[error(transparent)]
    Writer(#[from] WriterError),
    /// A thread ended before the first snapshot.
    #[error("the configuration could not be read to its end; this is a fault of Weft, please report it")]
    Stopped,
}

/// Reads everything, publishes the first snapshot, and goes on watching.
///
/// # Errors
///
/// When a path does not exist or cannot be read at all. Broken files are no error: they are in the status.
pub fn start(options: DirectoryOptions, compile: CompileOptions) -> Result<Handle, StartError> {
    check_readable(&options.paths)?;
    let (wake, woken) = channel();
    let resync = wake.clone();
    // A source that is gone needs no resync.
    let resync = Box::new(move || drop(resync.send(Wake::Resync)));
    let Writer { updates, published, thread } = writer::start("directory", compile, resync)?;
    let (first, applied) = channel();
    let source = Source::new(options.paths, Notice::new(wake.clone()), updates);
    let reader = std::thread::Builder::new().name("weft-config".to_owned());
    let reader = reader.spawn(move || source.run(&woken, first)).map_err(StartError::Thread)?;
    let stop = Box::new(move || wake.send(Wake::Stop).is_ok());
    let handle = Handle::new(published, stop, vec![reader, thread]);
    applied.recv().map_err(|_| StartError::Stopped)?;
    Ok(handle)
}

fn check_readable(paths: &[PathBuf]) -> Result<(), StartError> {
    for path in paths {
        let readable = std::fs::metadata(path).and_then(|metadata| match metadata.is_dir() {
            true => std::fs::read_dir(path).map(drop),
            false => std::fs::File::open(path).map(drop),
        });
        readable.map_err(|source| StartError::Unreadable { path: path.clone(), source })?;
    }
    Ok(())
}

/// A configuration that was read once.
#[derive(Debug)]
pub struct Loaded {
    /// Everything, compiled.
    pub snapshot: Arc<Snapshot>,
    /// Findings of reading and of compiling.
    pub problems: Vec<Problem>,
    /// How many objects became what.
    pub objects: ObjectCounts,
}

/// Reads directories and files once, without watching them. The path `-` is standard input.
///
/// # Errors
///
/// When a path does not exist or cannot be read at all. Broken files are no error: they are findings.
pub fn load(paths: &[PathBuf], compile: CompileOptions) -> Result<Loaded, StartError> {
    load_into(&mut Files::default(), paths, compile)
}

/// Reads as [`load`] does, and adds what the analyzers find ([`weft_core::analyze`]).
///
/// # Errors
///
/// As for [`load`].
pub fn analyze(paths: &[PathBuf], compile: CompileOptions) -> Result<Loaded, StartError> {
    let mut files = Files::noting();
    let mut loaded = load_into(&mut files, paths, compile)?;
    let found = weft_core::analyze::analyze(&files.into_facts());
    let place = |problem: &Problem| (problem.code, problem.object.clone(), problem.field.clone());
    // The compiler tells some of it already, of the pods that it enrols.
    let known: HashSet<_> = loaded.problems.iter().map(place).collect();
    loaded.problems.extend(found.into_iter().filter(|problem| !known.contains(&place(problem))));
    Ok(loaded)
}

fn load_into(files: &mut Files, paths: &[PathBuf], compile: CompileOptions) -> Result<Loaded, StartError> {
    let is_stdin = |path: &&PathBuf| path.as_path() == Path::new("-");
    let on_disk: Vec<PathBuf> = paths.iter().filter(|path| !is_stdin(path)).cloned().collect();
    check_readable(&on_disk)?;
    let mut compiler = Compiler::new(compile);
    let mut emit = |change: Change| compiler.apply([change]);
    if paths.iter().any(|path| is_stdin(&path)) {
        let mut text = Vec::new();
        let unreadable = |source| StartError::Unreadable { path: "-".into(), source };
        io::stdin().lock().read_to_end(&mut text).map_err(unreadable)?;
        files.read_text("stdin", &text, &mut emit);
    }
    let mut tree = Tree::new(on_disk);
    files.scan(&mut tree, &mut Noticed::everything(), &mut |_| {}, &mut emit);
    let report = files.report(Vec::new());
    let snapshot = compiler.snapshot();
    let problems = report.problems.iter().chain(snapshot.problems().iter()).cloned().collect();
    Ok(Loaded { snapshot, problems, objects: report.objects })
}

/// Changes are sent in portions of this size, so that reading and compiling go hand in hand.
const PORTION: usize = 1024;
/// How often to look when nothing tells of changes, and for paths that are gone.
const POLL: Duration = Duration::from_secs(1);
/// Several changes that follow one another closely are applied as one: they end when nothing came for so long …
const QUIET: Duration = Duration::from_micros(150);
/// … or after this time, whatever comes.
const PATIENCE: Duration = Duration::from_millis(5);

/// The thread that reads.
struct Source {
    tree: Tree,
    files: Files,
    notice: Notice,
    updates: SyncSender<Update>,
    /// The writer is gone.
    over: bool,
}

impl Source {
    fn new(paths: Vec<PathBuf>, notice: Notice, updates: SyncSender<Update>) -> Self {
        Self { tree: Tree::new(paths), files: Files::default(), notice, updates, over: false }
    }

    fn run(mut self, woken: &Receiver<Wake>, first: Sender<()>) {
        self.apply(&mut Noticed::everything(), false, Some(first));
        while !self.over {
            let Some(wakes) = self.wait(woken) else { return };
            let mut noticed = Noticed::default();
            let mut resync = false;
            for wake in wakes {
                match wake {
                    Wake::Stop => return,
                    Wake::Resync => resync = true,
                    Wake::Event(event) => {
                        self.notice.heard(&event);
                        noticed.add(event, &self.tree, &self.files);
                    }
                }
            }
            if resync {
                self.files = Files::default();
                noticed = Noticed::everything();
            }
            if noticed.is_any() {
                self.apply(&mut noticed, resync, None);
            }
        }
    }

    /// The next wakes; an interval without any while polling. `None` when nobody can wake us any more.
    fn wait(&self, woken: &Receiver<Wake>) -> Option<Vec<Wake>> {
        let first = if self.notice.is_polling() || self.tree.has_gone_roots() {
            match woken.recv_timeout(POLL) {
                Ok(wake) => wake,
                Err(RecvTimeoutError::Timeout) => {
                    return Some(vec![Wake::Event(Err(notify::Error::generic("poll")))]);
                }
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        } else {
            woken.recv().ok()?
        };
        let mut wakes = vec![first];
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE
            && let Ok(wake) = woken.recv_timeout(QUIET)
        {
            wakes.push(wake);
        }
        Some(wakes)
    }

    fn apply(&mut self, noticed: &mut Noticed, reset: bool, done: Option<Sender<()>>) {
        let Self { tree, files, notice, updates, over } = self;
        let mut update = Update { reset, ..Update::default() };
        let mut emit = |change| {
            update.changes.push(change);
            if update.changes.len() == PORTION {
                *over |= updates.send(std::mem::take(&mut update)).is_err();
            }
        };
        files.scan(tree, noticed, &mut |directory| notice.watch(directory), &mut emit);
        let mut problems = tree.problems();
        problems.extend(notice.problem());
        update.report = Some(files.report(problems));
        update.done = done;
        *over |= updates.send(update).is_err();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::*;

    const NAMESPACE: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n";

    #[test]
    fn without_watches_it_looks_every_second() {
        let dir = tempfile::TempDir::new().unwrap();
        let (updates, received) = sync_channel(16);
        let (wake, woken) = channel();
        let (first, _ready) = channel();
        let notice = Notice::without_watches("none are left");
        let source = Source::new(vec![dir.path().to_owned()], notice, updates);
        let thread = std::thread::spawn(move || source.run(&woken, first));
        let next = || received.recv_timeout(Duration::from_secs(20)).unwrap();
        let problems = next().report.unwrap().problems;
        assert_eq!(problems[0].code, "WEFT0010");
        assert!(problems[0].message.contains("none are left"), "{}", problems[0].message);
        std::fs::write(dir.path().join("a.yaml"), NAMESPACE).unwrap();
        let found = std::iter::repeat_with(next).take(20).find(|update| !update.changes.is_empty()).unwrap();
        assert!(matches!(found.changes.as_slice(), [Change::Upsert(_)]));
        std::fs::remove_file(dir.path().join("a.yaml")).unwrap();
        let found = std::iter::repeat_with(next).take(20).find(|update| !update.changes.is_empty()).unwrap();
        assert!(matches!(found.changes.as_slice(), [Change::Delete(_)]));
        wake.send(Wake::Stop).unwrap();
        thread.join().unwrap();
    }

    #[test]
    fn a_resync_sends_everything_again() {
        let dir = tempfile::TempDir::new().unwrap();
        std::fs::write(dir.path().join("a.yaml"), NAMESPACE).unwrap();
        let (updates, received) = sync_channel(16);
        let (wake, woken) = channel();
        let (first, _ready) = channel();
        let source = Source::new(vec![dir.path().to_owned()], Notice::new(wake.clone()), updates);
        let thread = std::thread::spawn(move || source.run(&woken, first));
        let begin = received.recv().unwrap();
        assert!(!begin.reset && begin.changes.len() == 1);
        wake.send(Wake::Resync).unwrap();
        let again = received.recv().unwrap();
        assert!(again.reset && again.changes == begin.changes);
        wake.send(Wake::Stop).unwrap();
        thread.join().unwrap();
    }
}
