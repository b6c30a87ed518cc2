//! The single writer: one thread that owns the compiler and publishes snapshots.
//!
//! A source sends [`Update`]s; what it calls complete is compiled and published as one snapshot. Where the
//! objects come from does not matter here: the directory is one source, the Kubernetes API another.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::watch;
use weft_core::compile::{CompileOptions, Compiler};
use weft_core::resource::{Change, Kind};
use weft_core::{Problem, Severity, Snapshot};

use crate::codes;
use crate::decode::ObjectCounts;
use crate::kubernetes::Freshness;

/// How many updates may wait while the compiler works; beyond that the source waits.
const WAITING_UPDATES: usize = 4;

/// What a source sends.
#[derive(Debug, Default)]
pub struct Update {
    /// Everything that was sent before is void: the source begins anew.
    pub reset: bool,
    /// What changed, in order.
    pub changes: Vec<Change>,
    /// With the report the source is consistent again, and a snapshot is published. Large changes are sent
    /// in several updates, of which only the last has one.
    pub report: Option<SourceReport>,
    /// Told when the update was dealt with, whatever came of it.
    pub done: Option<Sender<()>>,
}

/// The state of a source as a whole.
#[derive(Debug, Clone, Default)]
pub struct SourceReport {
    /// All findings of the source.
    pub problems: Arc<[Problem]>,
    /// All objects of the source.
    pub objects: ObjectCounts,
    /// Objects by kind.
    pub kinds: BTreeMap<Kind, usize>,
    /// The source has not been read to its end yet: its findings are told, but no snapshot is published.
    pub pending: bool,
    /// Counts up with changes of objects that analyzers compare Istio's objects with, pods left aside; only of the
    /// Kubernetes source.
    pub compared: u64,
    /// When the API server was last heard of; only of the Kubernetes source.
    pub freshness: Option<Freshness>,
}

/// The state of the configuration, for `weft status`.
#[derive(Debug, Clone)]
pub struct Status {
    /// The kind of source: `directory` or `kubernetes`.
    pub source: &'static str,
    /// The revision of the snapshot in force.
    pub revision: u64,
    /// When the source was last applied.
    pub applied: Instant,
    /// Objects of the source.
    pub objects: ObjectCounts,
    /// Objects by kind.
    pub kinds: BTreeMap<Kind, usize>,
    /// All findings: of the source, of the compiler, and of the writer itself.
    pub problems: Arc<[Problem]>,
    /// Whether everything was read once: before that there is no configuration that one may act upon.
    pub complete: bool,
    /// Counts up with changes of objects that analyzers compare Istio's objects with, pods left aside; only of the
    /// Kubernetes source.
    pub compared: u64,
    /// When the API server was last heard of; only of the Kubernetes source.
    pub freshness: Option<Freshness>,
}

impl Status {
    /// How long ago the source was last applied; with the Kubernetes source, since when something of it may be
    /// out of date because nothing was heard of the API server.
    pub fn age(&self) -> Duration {
        let heard = self.freshness.as_ref().and_then(Freshness::age);
        heard.unwrap_or_else(|| self.applied.elapsed())
    }

    /// Whether changes are heard of; `None` where the source is no server.
    pub fn is_connected(&self) -> Option<bool> {
        self.freshness.as_ref().map(Freshness::is_connected)
    }
}

/// A snapshot and what there is to say about it: nobody sees the one with another's status.
#[derive(Debug)]
struct InForce {
    snapshot: Arc<Snapshot>,
    status: Arc<Status>,
}

/// What readers see.
#[derive(Debug, Clone)]
pub struct Published {
    /// Acted upon before it is told of.
    cell: Arc<ArcSwap<Snapshot>>,
    in_force: Arc<ArcSwap<InForce>>,
    revision: watch::Receiver<u64>,
}

impl Published {
    /// The snapshot in force.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.in_force.load().snapshot.clone()
    }

    /// The cell in which the snapshot in force stands, for readers that look often.
    pub fn cell(&self) -> &Arc<ArcSwap<Snapshot>> {
        &self.cell
    }

    /// The state of the configuration.
    pub fn status(&self) -> Arc<Status> {
        self.in_force.load().status.clone()
    }

    /// Tells of the revision of the snapshot in force whenever that, the findings, or [`Status::compared`] changed (a
    /// slow reader is told of the last one only). The channel ends when the writer does.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.revision.clone()
    }

    /// Waits for the first snapshot of everything; false if the source ended before.
    pub async fn completed(&self) -> bool {
        let mut revisions = self.subscribe();
        loop {
            revisions.mark_unchanged();
            if self.status().complete {
                return true;
            }
            if revisions.changed().await.is_err() {
                return self.status().complete;
            }
        }
    }
}

/// A running writer, for a source that feeds it.
#[derive(Debug)]
pub struct Writer {
    /// Where the source sends to; the writer ends when all senders are gone.
    pub updates: SyncSender<Update>,
    /// What readers see.
    pub published: Published,
    /// The thread.
    pub thread: JoinHandle<()>,
}

/// The writer could not begin.
#[derive(Debug, thiserror::Error)]
pub enum WriterError {
    /// No thread could be started.
    #[error("the thread that compiles the configuration could not be started; check the limit of processes")]
    Thread(#[from] io::Error),
    /// A fault of our own.
    #[error("compiling an empty configuration failed; this is a fault of Weft, please report it")]
    Compiler,
}

/// What compiles: [`Compiler`], or a stand-in in tests.
trait Engine: Send {
    fn apply(&mut self, changes: Vec<Change>);
    fn snapshot(&mut self) -> Arc<Snapshot>;
}

impl Engine for Compiler {
    fn apply(&mut self, changes: Vec<Change>) {
        Compiler::apply(self, changes);
    }

    fn snapshot(&mut self) -> Arc<Snapshot> {
        Compiler::snapshot(self)
    }
}

/// Makes an engine that knows no object yet.
type NewEngine = Box<dyn Fn() -> Box<dyn Engine> + Send>;

/// Starts the writer for a source of the kind `source`.
///
/// `resync` is called when the writer needs everything again (after a panic of the compiler): the source must
/// then send all it has, beginning with an update that says `reset`.
///
/// # Errors
///
/// When there can be no thread, or no snapshot even of an empty configuration.
pub fn start(
    source: &'static str,
    options: CompileOptions,
    resync: Box<dyn Fn() + Send>,
) -> Result<Writer, WriterError> {
    start_with(source, Box::new(move || Box::new(Compiler::new(options.clone()))), resync)
}

fn start_with(
    source: &'static str,
    new_engine: NewEngine,
    resync: Box<dyn Fn() + Send>,
) -> Result<Writer, WriterError> {
    let mut compiler = new_engine();
    let empty = guarded(|| compiler.snapshot()).ok_or(WriterError::Compiler)?;
    let status = Status {
        source,
        revision: empty.revision(),
        applied: Instant::now(),
        objects: ObjectCounts::default(),
        kinds: BTreeMap::new(),
        problems: Arc::new([]),
        complete: false,
        compared: 0,
        freshness: None,
    };
    let (revision, subscription) = watch::channel(empty.revision());
    let published = Published {
        cell: Arc::new(ArcSwap::new(empty.clone())),
        in_force: Arc::new(ArcSwap::from_pointee(InForce { snapshot: empty, status: Arc::new(status) })),
        revision: subscription,
    };
    let state = State {
        new_engine,
        compiler: Some(compiler),
        published: published.clone(),
        revision,
        resync,
        told: HashSet::new(),
    };
    let (updates, receiver) = sync_channel(WAITING_UPDATES);
    let thread =
        std::thread::Builder::new().name("weft-compile".to_owned()).spawn(move || state.run(&receiver))?;
    Ok(Writer { updates, published, thread })
}

/// Runs `work`; `None` if it panics (the panic hook has told of it).
fn guarded<T>(work: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(work)).ok()
}

struct State {
    new_engine: NewEngine,
    /// `None` after a panic, until the source begins anew.
    compiler: Option<Box<dyn Engine>>,
    published: Published,
    revision: watch::Sender<u64>,
    resync: Box<dyn Fn() + Send>,
    /// Problems that were logged already.
    told: HashSet<Problem>,
}

impl State {
    fn run(mut self, updates: &Receiver<Update>) {
        while let Ok(mut update) = updates.recv() {
            let done = update.done.take();
            self.take(update);
            if let Some(done) = done
                && done.send(()).is_err()
            {
                tracing::debug!("nobody waits for the update any more");
            }
        }
    }

    fn take(&mut self, update: Update) {
        let Update { reset, changes, report, .. } = update;
        if reset {
            self.compiler = Some((self.new_engine)());
        }
        let is_complete = report.as_ref().is_some_and(|report| !report.pending);
        let Some(compiler) = &mut self.compiler else {
            if is_complete {
                (self.resync)();
            }
            return;
        };
        let compiled = guarded(|| {
            compiler.apply(changes);
            is_complete.then(|| compiler.snapshot())
        });
        match (compiled, report) {
            (Some(Some(snapshot)), Some(report)) => self.publish(snapshot, report),
            (Some(None), Some(report)) => self.wait(report),
            (Some(_), None) => {}
            (None, report) => self.fail(report.unwrap_or_default()),
        }
    }

    /// The source is still being read: its findings are told, the snapshot stays.
    fn wait(&mut self, report: SourceReport) {
        let snapshot = self.published.snapshot();
        let problems = report.problems.iter().chain(snapshot.problems().iter()).cloned().collect();
        self.tell(report, snapshot, problems);
    }

    fn publish(&mut self, snapshot: Arc<Snapshot>, report: SourceReport) {
        let problems = report.problems.iter().chain(snapshot.problems().iter()).cloned().collect();
        self.published.cell.store(snapshot.clone());
        self.tell(report, snapshot, problems);
    }

    /// The last snapshot stays in force; the next change makes us begin anew.
    fn fail(&mut self, report: SourceReport) {
        self.compiler = None;
        let failure = Problem {
            severity: codes::COMPILER_FAILED.severity,
            code: codes::COMPILER_FAILED.code,
            name: codes::COMPILER_FAILED.name,
            object: None,
            field: String::new(),
            origin: None,
            message: "Compiling the configuration failed: the configuration before stays in force."
                .to_owned(),
            fix: "This is a fault of Weft: please report it. Undo the last change to go on.".to_owned(),
        };
        let problems = std::iter::once(failure).chain(report.problems.iter().cloned()).collect();
        self.tell(report, self.published.snapshot(), problems);
    }

    fn tell(&mut self, report: SourceReport, snapshot: Arc<Snapshot>, problems: Arc<[Problem]>) {
        for problem in problems.iter().filter(|problem| !self.told.contains(*problem)) {
            match problem.severity {
                Severity::Error => tracing::error!("{problem}"),
                Severity::Warning => tracing::warn!("{problem}"),
                Severity::Info => tracing::info!("{problem}"),
            }
        }
        self.told = problems.iter().cloned().collect();
        let SourceReport { objects, kinds, pending, compared, freshness, .. } = report;
        let before = self.published.status();
        let (revision, complete) = (snapshot.revision(), before.complete || !pending);
        let changed = before.revision != revision
            || before.problems != problems
            || before.complete != complete
            || before.compared != compared;
        let source = before.source;
        let applied = Instant::now();
        let status =
            Status { source, revision, applied, objects, kinds, problems, complete, compared, freshness };
        self.published.in_force.store(Arc::new(InForce { snapshot, status: Arc::new(status) }));
        // A source that only looked wakes nobody.
        if changed {
            self.revision.send_replace(revision);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use weft_core::resource::{NamespacedName, ResourceKey};

    use super::*;
    use crate::decode::{Decoder, Outcome, Trust};

    /// Panics when told to delete the Namespace `poison`.
    struct Fragile(Compiler);

    impl Engine for Fragile {
        fn apply(&mut self, changes: Vec<Change>) {
            assert!(!changes.contains(&poison()), "the compiler fails, as the test wants it to");
            self.0.apply(changes);
        }

        fn snapshot(&mut self) -> Arc<Snapshot> {
            self.0.snapshot()
        }
    }

    fn poison() -> Change {
        Change::Delete(ResourceKey { kind: Kind::Namespace, name: NamespacedName::new("", "poison") })
    }

    fn pod(name: &str) -> Change {
        let text = format!(
            r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"{name}","namespace":"shop"}},"status":{{"podIP":"10.0.0.1"}}}}"#
        );
        let mut decoded = Vec::new();
        Decoder::new(Trust::Api).json(&text, None, &mut decoded);
        match decoded.remove(0).outcome {
            Outcome::Accepted(resource) => Change::Upsert(resource),
            other => panic!("{other:?}"),
        }
    }

    fn has(published: &Published, name: &str) -> bool {
        published.snapshot().workload(&NamespacedName::new("shop", name)).is_some()
    }

    /// Sends an update that is complete, and waits until it is dealt with.
    fn send(writer: &Writer, reset: bool, changes: Vec<Change>) {
        let (done, dealt_with) = channel();
        let update = Update { reset, changes, report: Some(SourceReport::default()), done: Some(done) };
        writer.updates.send(update).unwrap();
        dealt_with.recv().unwrap();
    }

    fn options() -> CompileOptions {
        CompileOptions { node: None, adopt_istio_labels: false, endpoints_from_pods: true }
    }

    #[test]
    fn a_large_change_is_published_once() {
        let writer = start("test", options(), Box::new(|| ())).unwrap();
        let subscription = writer.published.subscribe();
        let (done, dealt_with) = channel();
        let part = Update { changes: vec![pod("a")], done: Some(done), ..Update::default() };
        writer.updates.send(part).unwrap();
        dealt_with.recv().unwrap();
        assert!(!has(&writer.published, "a") && !subscription.has_changed().unwrap());
        send(&writer, false, vec![pod("b")]);
        assert!(has(&writer.published, "a") && has(&writer.published, "b"));
        assert_eq!(*subscription.borrow(), writer.published.snapshot().revision());
    }

    #[test]
    fn a_reset_forgets_what_was_before() {
        let writer = start("test", options(), Box::new(|| ())).unwrap();
        send(&writer, false, vec![pod("a")]);
        send(&writer, true, vec![pod("b")]);
        assert!(!has(&writer.published, "a") && has(&writer.published, "b"));
    }

    #[test]
    fn a_panic_keeps_the_last_snapshot_until_the_source_begins_anew() {
        let (asked, resyncs) = channel();
        let resync = Box::new(move || asked.send(()).unwrap());
        let engine: NewEngine = Box::new(|| Box::new(Fragile(Compiler::new(options()))));
        let writer = start_with("test", engine, resync).unwrap();
        send(&writer, false, vec![pod("a")]);
        send(&writer, false, vec![poison()]);
        assert!(has(&writer.published, "a"), "what was in force stays so");
        assert_eq!(writer.published.status().problems[0].code, "WEFT0011");
        assert!(resyncs.try_recv().is_err(), "trying the same again would fail again");
        send(&writer, false, vec![pod("b")]);
        resyncs.try_recv().unwrap();
        assert!(!has(&writer.published, "b"));
        send(&writer, true, vec![pod("a"), pod("b")]);
        assert!(has(&writer.published, "a") && has(&writer.published, "b"));
        assert!(writer.published.status().problems.iter().all(|problem| problem.code != "WEFT0011"));
    }

    #[test]
    fn what_is_still_being_read_is_not_published() {
        let writer = start("test", options(), Box::new(|| ())).unwrap();
        let (done, dealt_with) = channel();
        let report = SourceReport { pending: true, ..SourceReport::default() };
        let update =
            Update { changes: vec![pod("a")], report: Some(report), done: Some(done), ..Update::default() };
        writer.updates.send(update).unwrap();
        dealt_with.recv().unwrap();
        assert!(!has(&writer.published, "a") && !writer.published.status().complete);
        send(&writer, false, vec![pod("b")]);
        assert!(has(&writer.published, "a") && writer.published.status().complete);
    }

    #[test]
    fn the_writer_ends_with_its_source() {
        let Writer { updates, published, thread } = start("test", options(), Box::new(|| ())).unwrap();
        drop(updates);
        thread.join().unwrap();
        assert!(published.subscribe().has_changed().is_err(), "subscribers are told");
    }
}
