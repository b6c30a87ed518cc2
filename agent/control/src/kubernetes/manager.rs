//! Starts and ends the watches, as kinds come and go.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::Shared;
use super::api::Failure;
use super::backoff::{Backoff, jittered};
use super::discovery::discover;
use super::kinds::{BUILT_IN, DEFINITIONS, Target, custom_kinds};
use super::watch::Watch;

/// Changes that follow one another as closely as this are handed over together.
const QUIET: Duration = Duration::from_millis(2);
/// Between two times that changes are handed over: each makes everybody look.
const SPACING: Duration = Duration::from_millis(50);
/// How often is asked which kinds there are when definitions cannot be watched …
const ASK_OFTEN: Duration = Duration::from_secs(30);
/// … and when they can.
const ASK_SELDOM: Duration = Duration::from_secs(600);
/// A definition is known some time before what it defines is served: one asks again after these times.
const ASK_AGAIN: [Duration; 4] =
    [Duration::from_millis(200), Duration::from_millis(500), Duration::from_secs(2), Duration::from_secs(8)];
/// A kind is believed to be gone after so long: a server that is starting may know less than there is.
const GONE: Duration = Duration::from_secs(10);

/// Hands over what the watches saw, for ever.
pub(super) async fn hand_over(shared: Rc<Shared>) {
    loop {
        shared.changed.notified().await;
        tokio::time::sleep(QUIET).await;
        shared.store.borrow_mut().flush();
        tokio::time::sleep(SPACING).await;
    }
}

struct Running {
    target: Target,
    task: JoinHandle<()>,
    /// Since when the cluster says that there is no such kind.
    absent: Option<Instant>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// All watches.
pub(super) struct Manager {
    shared: Rc<Shared>,
    running: BTreeMap<String, Running>,
}

impl Manager {
    pub(super) fn new(shared: Rc<Shared>) -> Self {
        Self { shared, running: BTreeMap::new() }
    }

    /// Runs until it is dropped.
    pub(super) async fn run(&mut self) {
        for wanted in BUILT_IN {
            self.keep(Target::of(*wanted));
        }
        self.keep_definitions();
        let mut backoff = Backoff::default();
        let mut again = ASK_AGAIN.iter();
        loop {
            let wait = match self.discover().await {
                Ok(()) => {
                    backoff.reset();
                    self.restart_ended();
                    again.next().copied().unwrap_or_else(|| self.interval())
                }
                Err(failure) => {
                    self.failed(&failure);
                    backoff.wait()
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.shared.reachable.notified() => {}
                () = self.shared.rediscover.notified() => again = ASK_AGAIN.iter(),
            }
        }
    }

    async fn discover(&mut self) -> Result<(), Failure> {
        let wanted = custom_kinds(self.shared.validated_kinds);
        let found = discover(&self.shared.client, wanted).await?;
        for target in &found {
            self.keep(*target);
        }
        self.drop_absent(&found);
        self.shared.store.borrow_mut().discovered(None);
        self.shared.changed.notify_one();
        Ok(())
    }

    fn failed(&self, failure: &Failure) {
        tracing::debug!(%failure, "the kinds of the cluster cannot be asked for");
        let mut store = self.shared.store.borrow_mut();
        match failure {
            Failure::Denied(_) => store.undiscoverable(failure.to_string()),
            _ => store.discovered(Some(failure.to_string())),
        }
        self.shared.changed.notify_one();
    }

    /// How long until one asks again.
    fn interval(&self) -> Duration {
        if self.running.values().any(|running| running.absent.is_some()) {
            return GONE / 2;
        }
        let watched = self.shared.store.borrow().is_told_of_kinds();
        jittered(if watched { ASK_SELDOM } else { ASK_OFTEN })
    }

    /// Watches a kind in this version.
    fn keep(&mut self, target: Target) {
        if let Some(running) = self.running.get_mut(&target.label())
            && running.target == target
        {
            running.absent = None;
            return;
        }
        self.shared.store.borrow_mut().add(target);
        self.watch(target);
    }

    /// The definitions are no objects of the mesh: the store does not know them.
    fn keep_definitions(&mut self) {
        self.watch(Target::of(DEFINITIONS));
    }

    fn watch(&mut self, target: Target) {
        let task = tokio::task::spawn_local(Watch::new(self.shared.clone(), target).run());
        self.running.insert(target.label(), Running { target, task, absent: None });
    }

    /// Ends the watches of kinds that are gone for good, and with them what was read of them.
    fn drop_absent(&mut self, found: &[Target]) {
        let now = Instant::now();
        let shared = &self.shared;
        self.running.retain(|label, running| {
            let wanted = &running.target.wanted;
            let optional = custom_kinds(true).any(|custom| custom == *wanted);
            if !optional || found.contains(&running.target) {
                return true;
            }
            let since = *running.absent.get_or_insert(now);
            if now.duration_since(since) < GONE {
                return true;
            }
            tracing::info!(kind = label, "the cluster has no such kind any more");
            shared.store.borrow_mut().remove(label);
            false
        });
    }

    /// A watch never ends by itself: one that did panicked, and is begun again.
    fn restart_ended(&mut self) {
        let ended: Vec<Target> = self
            .running
            .values()
            .filter(|running| running.task.is_finished())
            .map(|running| running.target)
            .collect();
        for target in ended {
            tracing::error!(kind = target.label(), "a watch panicked, and is begun again");
            self.watch(target);
        }
    }
}
