//! Writes statuses while we lead: judges all objects whenever something has changed, and writes what differs.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::sync::watch;
use weft_control::writer::Published;
use weft_core::Problem;

use super::findings::{Context, Judged, Key, judge};
use super::objects::{self, Store, Tracked, View};
use super::report::{Current, Mode, Part, Standing, Verdict, says_rejected};
use super::surroundings;
use crate::controller::MANAGER;
use crate::controller::counters::{Counters, Write};
use crate::controller::lease::Leadership;
use crate::output;

/// Changes that follow one another closely are judged together.
const QUIET: Duration = Duration::from_millis(100);
/// Writes at once when there is much to write …
const BURST: f64 = 50.0;
/// … and then so many a second.
const PER_SECOND: f64 = 50.0;
/// What objects are compared with is looked at again after a change, but not sooner than this …
const SOONEST: Duration = Duration::from_secs(2);
/// … nor listed sooner than so many times as long as that took …
const RARELY: u32 = 20;
/// … and listed without a change after this.
const LATEST: Duration = Duration::from_secs(600);
/// Longest text of an event, in bytes (events.k8s.io/v1).
const LONGEST_NOTE: usize = 1000;

/// What the writer needs.
pub(in crate::controller) struct WriterOptions {
    pub(in crate::controller) mode: Mode,
    pub(in crate::controller) client: Client,
    pub(in crate::controller) published: Published,
    pub(in crate::controller) leadership: Leadership,
    pub(in crate::controller) counters: Arc<Counters>,
    /// Who writes events.
    pub(in crate::controller) identity: String,
}

/// The writer of statuses.
pub(in crate::controller) struct Writer {
    options: WriterOptions,
    recorder: Recorder,
}

impl Writer {
    pub(in crate::controller) fn new(options: WriterOptions) -> Self {
        let reporter = Reporter { controller: MANAGER.to_owned(), instance: Some(options.identity.clone()) };
        let recorder = Recorder::new(options.client.clone(), reporter);
        Self { options, recorder }
    }

    /// Writes whenever we lead, for ever. When it is dropped nothing more is sent.
    pub(in crate::controller) async fn run(self) {
        let Self { options, recorder } = self;
        if options.mode == Mode::Off {
            std::future::pending::<()>().await;
        }
        let mut leadership = options.leadership.clone();
        loop {
            leadership.won().await;
            let store = Arc::new(Store::default());
            let term = Term::new(&options, &recorder, store.clone());
            tokio::select! {
                () = leadership.lost() => {}
                () = objects::follow(options.client.clone(), store) => {}
                () = term.run() => {}
            }
        }
    }
}

/// What was written on an object.
#[derive(Debug, Clone, Default)]
struct Written {
    /// What was wanted, and what stood there afterwards: a schema may leave out a field of ours.
    part: Option<(Part, Part)>,
    /// Times that the same was written: somebody undoes it.
    again: u32,
    not_before: Option<Instant>,
}

/// The time for which we lead.
struct Term<'w> {
    options: &'w WriterOptions,
    recorder: &'w Recorder,
    store: Arc<Store>,
    changes: watch::Receiver<u64>,
    context: Context,
    /// What was noticed last.
    noticed: Around,
    looked: Option<Look>,
    judged: Judged,
    /// Of what `judged` tells.
    judged_of: Option<JudgedOf>,
    looks: u64,
    written: BTreeMap<Key, Written>,
    pace: Pace,
    /// What was told already.
    told: HashSet<String>,
}

/// What objects are compared with changes when one of these does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Around {
    /// Objects that are listed.
    listed: u64,
    /// Labels of pods.
    label_sets: u64,
}

/// A look at what objects are compared with.
#[derive(Debug, Clone, Copy)]
struct Look {
    around: Around,
    when: Instant,
    listed: Listing,
}

/// The last time that lists were read.
#[derive(Debug, Clone, Copy)]
struct Listing {
    when: Instant,
    took: Duration,
    failed: bool,
}

/// What decides about verdicts.
#[derive(Debug, PartialEq, Eq)]
struct JudgedOf {
    /// Revision of the objects' texts.
    texts: u64,
    looks: u64,
    compiled: Arc<[Problem]>,
}

impl Around {
    fn of(published: &Published) -> Self {
        Self { listed: published.status().compared, label_sets: published.snapshot().label_sets() }
    }
}

impl Look {
    /// When to look again.
    fn due(&self, now: Around) -> Instant {
        let Listing { when, took, failed } = self.listed;
        if failed || now.listed != self.around.listed {
            when + SOONEST.max(took * RARELY)
        } else if now != self.around {
            self.when + SOONEST
        } else {
            when + LATEST
        }
    }

    /// The lists, if they are still good.
    fn still_listed(&self, now: Around) -> Option<Listing> {
        let Listing { when, failed, .. } = self.listed;
        let good = !failed && now.listed == self.around.listed && when.elapsed() < LATEST;
        good.then_some(self.listed)
    }
}

impl<'w> Term<'w> {
    fn new(options: &'w WriterOptions, recorder: &'w Recorder, store: Arc<Store>) -> Self {
        Self {
            options,
            recorder,
            store,
            changes: options.published.subscribe(),
            context: Context::default(),
            noticed: Around::of(&options.published),
            looked: None,
            judged: Judged::new(),
            judged_of: None,
            looks: 0,
            written: BTreeMap::new(),
            pace: Pace::new(Instant::now()),
            told: HashSet::new(),
        }
    }

    async fn run(mut self) {
        loop {
            let mut next = LATEST;
            self.noticed = Around::of(&self.options.published);
            if let Some(view) = self.store.view() {
                next = next.min(self.look_around(view.all).await);
                self.judge(&view).await;
                next = next.min(self.write(view).await);
            }
            self.wait(next).await;
            tokio::time::sleep(QUIET).await;
        }
    }

    /// Waits until verdicts, or what is written of them, may be different. In a large cluster pods change all the time,
    /// and mostly nobody is judged by that.
    async fn wait(&mut self, longest: Duration) {
        let mut end = std::pin::pin!(tokio::time::sleep(longest));
        loop {
            tokio::select! {
                () = self.store.changed() => return,
                changed = self.changes.changed() => match changed {
                    Ok(()) if self.is_news() => return,
                    Ok(()) => {}
                    // The source has ended, and with it the process.
                    Err(_) => std::future::pending().await,
                },
                () = &mut end => return,
            }
        }
    }

    /// Whether a new configuration concerns verdicts.
    fn is_news(&self) -> bool {
        let compiled = self.options.published.snapshot().problems().clone();
        Around::of(&self.options.published) != self.noticed
            || self.judged_of.as_ref().is_none_or(|judged| judged.compiled != compiled)
    }

    /// Looks at what objects are compared with if it is time to; says when it is time again.
    async fn look_around(&mut self, all: bool) -> Duration {
        if !all {
            self.context.surroundings = None;
            self.looked = None;
            return LATEST;
        }
        let (now, around) = (Instant::now(), self.noticed);
        let due = self.looked.map_or(now, |looked| looked.due(around));
        if now < due {
            return due - now;
        }
        let listed = match self.looked.and_then(|looked| looked.still_listed(around)) {
            Some(listed) => listed,
            None => self.list(now).await,
        };
        self.looks += 1;
        let looked = Look { around, when: now, listed };
        self.looked = Some(looked);
        looked.due(around).saturating_duration_since(Instant::now())
    }

    async fn list(&mut self, when: Instant) -> Listing {
        match surroundings::read(&self.options.client).await {
            Ok(set) => self.context.surroundings = Some(set),
            Err(error) => {
                self.context.surroundings = None;
                let error = output::chain(&error);
                self.tell(format!("nothing is said to be missing in objects: {error}"));
            }
        }
        Listing { when, took: when.elapsed(), failed: self.context.surroundings.is_none() }
    }

    /// Judges all objects, if anything has changed.
    async fn judge(&mut self, view: &View) {
        let snapshot = self.options.published.snapshot();
        let compiled = snapshot.problems().clone();
        let of = JudgedOf { texts: view.revision, looks: self.looks, compiled: compiled.clone() };
        if self.judged_of.as_ref() == Some(&of) {
            return;
        }
        let context = Context { snapshot: Some(snapshot), compiled, ..std::mem::take(&mut self.context) };
        let objects = view.objects.iter().map(|(key, tracked)| (key.clone(), tracked.text.clone())).collect();
        // With thousands of objects this takes long.
        match tokio::task::spawn_blocking(move || judge(objects, context)).await {
            Ok((judged, context)) => {
                (self.judged, self.context) = (judged, context);
                self.judged_of = Some(of);
                self.count();
            }
            // The panic was logged. The surroundings are lost with it.
            Err(_) => self.looked = None,
        }
    }

    fn count(&self) {
        let rejected = self.judged.values().filter(|(_, verdict)| verdict.standing == Standing::Rejected);
        self.options.counters.judged(self.judged.len(), rejected.count());
    }

    /// Writes what differs; says when to try again.
    async fn write(&mut self, view: View) -> Duration {
        self.written.retain(|key, _| self.judged.contains_key(key));
        let mut next = LATEST;
        for (key, tracked) in &view.objects {
            let verdict = match self.judged.get(key) {
                Some((text, verdict)) if *text == tracked.text => verdict.clone(),
                // It has changed since: the next round judges it.
                Some(_) | None => continue,
            };
            let Some(part) = self.missing(key, tracked, &verdict) else { continue };
            let wait = self.written.get(key).and_then(|written| written.not_before);
            if let Some(wait) = wait.map(|when| when.saturating_duration_since(Instant::now()))
                && !wait.is_zero()
            {
                next = next.min(wait);
                continue;
            }
            tokio::time::sleep(self.pace.take(Instant::now())).await;
            if !self.options.leadership.holds() {
                return next;
            }
            let Some(later) = self.patch(key, tracked, &part).await else {
                self.publish_event(key, tracked, &verdict).await;
                continue;
            };
            next = next.min(later.wait);
            if later.hopeless {
                return next;
            }
        }
        next
    }

    /// What the status does not say yet.
    fn missing(&self, key: &Key, tracked: &Tracked, verdict: &Verdict) -> Option<Part> {
        let part = Part::wanted(verdict, &tracked.current, self.options.mode)?;
        let standing = part.standing(&tracked.current);
        let known = self.written.get(key).and_then(|written| written.part.as_ref());
        let as_written = known.is_some_and(|(wanted, stood)| *wanted == part && *stood == standing);
        (standing != part && !as_written).then_some(part)
    }

    /// Writes one status. `None` if that is done, else when to try again.
    async fn patch(&mut self, key: &Key, tracked: &Tracked, part: &Part) -> Option<Later> {
        let served = self.store.served(key.kind)?;
        if !served.has_status {
            self.tell(format!(
                "{} has no status that could be written: its definition lacks the subresource",
                key.kind
            ));
            return Some(self.later(key, Duration::from_secs(600)));
        }
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.options.client.clone(), &key.namespace, &served.resource);
        let patch = part.patch(&tracked.current, &tracked.version, Timestamp::now());
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        let patch = Patch::Merge(&patch);
        let request = api.patch_status(&key.name, &params, &patch);
        match tokio::time::timeout(self.options.leadership.terms().request(), request).await {
            Ok(Ok(object)) => {
                self.options.counters.wrote(Write::Done);
                let status = object.data.get("status").cloned().unwrap_or_default();
                self.note(key, part, part.standing(&Current { status, ..tracked.current.clone() }));
                self.store.answered(key.kind, object);
                None
            }
            Ok(Err(error)) => Some(self.failed(key, &error)),
            Err(_) => {
                self.options.counters.wrote(Write::Failed);
                Some(Later { hopeless: true, ..self.later(key, Duration::from_secs(2)) })
            }
        }
    }

    fn note(&mut self, key: &Key, part: &Part, stood: Part) {
        let written = self.written.entry(key.clone()).or_default();
        let same = written.part.as_ref().is_some_and(|(before, _)| before == part);
        written.again = if same { written.again.saturating_add(1) } else { 0 };
        written.part = Some((part.clone(), stood));
        let patience = Duration::from_secs(1 << written.again.min(8));
        written.not_before = (written.again > 0).then(|| Instant::now() + patience);
        if written.again == 3 {
            tracing::warn!(?key, "another controller undoes this status again and again");
        }
    }

    fn failed(&mut self, key: &Key, error: &kube::Error) -> Later {
        let code = match error {
            kube::Error::Api(status) => status.code,
            _ => 0,
        };
        let result = if code == 409 { Write::Conflict } else { Write::Failed };
        self.options.counters.wrote(result);
        match code {
            // It has changed: the watch brings the new version.
            409 => self.later(key, Duration::from_millis(500)),
            404 => self.later(key, Duration::from_secs(10)),
            401 | 403 | 422 => {
                let error = output::chain(error);
                self.tell(format!("the status of {} cannot be written: {error}", key.kind));
                self.later(key, Duration::from_secs(60))
            }
            _ => {
                tracing::debug!(?key, error = output::chain(error), "a status could not be written");
                Later { hopeless: true, ..self.later(key, Duration::from_secs(2)) }
            }
        }
    }

    fn later(&mut self, key: &Key, wait: Duration) -> Later {
        self.written.entry(key.clone()).or_default().not_before = Some(Instant::now() + wait);
        Later { wait, hopeless: false }
    }

    /// An event when an object is rejected, for those who look there.
    async fn publish_event(&mut self, key: &Key, tracked: &Tracked, verdict: &Verdict) {
        if verdict.standing != Standing::Rejected || says_rejected(tracked.status()) {
            return;
        }
        let Some(served) = self.store.served(key.kind) else { return };
        let reference = ObjectReference {
            api_version: Some(served.resource.api_version),
            kind: Some(key.kind.to_owned()),
            namespace: Some(key.namespace.to_string()),
            name: Some(key.name.to_string()),
            uid: Some(tracked.uid.clone()),
            ..ObjectReference::default()
        };
        let event = Event {
            type_: EventType::Warning,
            reason: "Invalid".to_owned(),
            note: Some(shortened(verdict.message())),
            action: "Validate".to_owned(),
            secondary: None,
        };
        let published = self.recorder.publish(&event, &reference);
        match tokio::time::timeout(self.options.leadership.terms().request(), published).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                self.tell(format!("events cannot be written: {}", output::chain(&error)));
            }
            Err(_) => tracing::debug!("an event could not be written in time"),
        }
    }

    /// Tells of something that stays as it is, once.
    fn tell(&mut self, text: String) {
        // Texts of the API server may differ each time.
        if self.told.len() < 100 && !self.told.contains(&text) {
            tracing::warn!("{text}");
            self.told.insert(text);
        }
    }
}

/// A write that has to wait.
#[derive(Debug, Clone, Copy)]
struct Later {
    wait: Duration,
    /// The others would fare no better.
    hopeless: bool,
}

fn shortened(mut text: String) -> String {
    if text.len() > LONGEST_NOTE {
        let end = (0..=LONGEST_NOTE).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default();
        text.truncate(end);
        text.push('…');
    }
    text
}

/// A bucket that fills with time.
#[derive(Debug)]
struct Pace {
    left: f64,
    when: Instant,
}

impl Pace {
    fn new(now: Instant) -> Self {
        Self { left: BURST, when: now }
    }

    /// Takes one; says how long to wait before.
    fn take(&mut self, now: Instant) -> Duration {
        let filled = now.duration_since(self.when).as_secs_f64() * PER_SECOND;
        self.left = (self.left + filled).min(BURST) - 1.0;
        self.when = now;
        Duration::from_secs_f64((-self.left).max(0.0) / PER_SECOND)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn much_is_written_slowly() {
        let begin = Instant::now();
        let mut pace = Pace::new(begin);
        for at in 0..50 {
            assert_eq!(pace.take(begin), Duration::ZERO, "{at}");
        }
        assert_eq!(pace.take(begin), Duration::from_millis(20));
        assert_eq!(pace.take(begin), Duration::from_millis(40));
        let later = begin + Duration::from_secs(3600);
        assert_eq!(pace.take(later), Duration::ZERO, "time has filled it up, but not beyond the brim");
        let at_once = (0..100).filter(|_| pace.take(later).is_zero()).count();
        assert_eq!(at_once, 49);
    }

    #[test]
    fn notes_are_cut_between_characters() {
        let text = shortened("ü".repeat(1000));
        assert!(text.len() <= LONGEST_NOTE + '…'.len_utf8() && text.ends_with("ü…"));
        assert_eq!(shortened("short".to_owned()), "short");
    }
}
