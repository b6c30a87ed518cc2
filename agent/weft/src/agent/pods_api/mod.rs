//! Tells the API server how it stands with this node's pods: annotations for users and consoles, Events for failures.
//!
//! Only the API server's own pods are written to, through `pods/status`, which can change annotations and no spec. The
//! pace is limited: many nodes may have reason to write at the same moment.

mod order;
pub(super) mod removal;
mod selection;
mod wanted;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::api::{Api, ListParams, Patch, PatchParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Error, ResourceExt};
use serde_json::json;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};
use weft_control::writer::Published;
use weft_core::resource::NamespacedName;

use self::order::Order;
use self::wanted::{Annotations, KEYS, Wanted};
use super::node::NodeState;

/// Writes of one node: so many at once, and then one after each pause.
const BURST: u32 = 50;
const PAUSE: Duration = Duration::from_millis(50);
/// First and longest pause after the API server refused or failed.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// An Event about the same pod is not written more often than this.
const EVENT_PAUSE: Duration = Duration::from_secs(60);
/// How long the last words of an agent may take.
const FAREWELL: Duration = Duration::from_secs(5);

/// Why the writer ends: the agent leaves the node for good, and the annotations go with it.
pub(super) type Farewell = oneshot::Sender<()>;

/// Writes how it stands with the pods of one node.
pub(super) struct PodsApi {
    client: Client,
    node: Arc<str>,
    config: Published,
    state: Arc<ArcSwap<NodeState>>,
    changed: watch::Receiver<()>,
    recorder: Recorder,
    /// What the API server has, as far as known.
    written: BTreeMap<NamespacedName, Written>,
    /// When an Event was last written, and about what.
    told: BTreeMap<NamespacedName, (Instant, String)>,
    pace: Pace,
    order: Order,
}

/// What was written, on which pod of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Written {
    uid: Option<String>,
    annotations: Annotations,
}

impl PodsApi {
    pub(super) fn new(
        client: Client,
        node: Arc<str>,
        config: Published,
        state: Arc<ArcSwap<NodeState>>,
        changed: watch::Receiver<()>,
    ) -> Self {
        let instance = std::env::var("POD_NAME").unwrap_or_else(|_| node.to_string());
        let reporter = Reporter { controller: "weft.dev/agent".into(), instance: Some(instance) };
        Self {
            recorder: Recorder::new(client.clone(), reporter),
            client,
            node,
            config,
            state,
            changed,
            written: BTreeMap::new(),
            told: BTreeMap::new(),
            pace: Pace::new(Instant::now()),
            order: Order::default(),
        }
    }

    /// Runs until the agent ends; told to, it removes what was written.
    pub(super) async fn follow(mut self, mut farewell: oneshot::Receiver<Farewell>) {
        let done = tokio::select! {
            asked = &mut farewell => asked,
            // The node's state is followed no more, and the last word is still to come.
            () = self.write_for_ever() => (&mut farewell).await,
        };
        let Ok(done) = done else {
            // Without a word it is an ordinary end: what is pinned goes on to be true.
            return self.order.settle().await;
        };
        in_time(async {
            self.order.settle().await;
            self.remove_all().await;
        })
        .await;
        let _ = done.send(());
    }

    /// Removes what earlier agents wrote, for one that ends before it has begun.
    pub(super) async fn clear(client: Client, node: Arc<str>, config: Published) {
        let (_, unchanged) = watch::channel(());
        let mut api = Self::new(client, node, config, Arc::default(), unchanged);
        in_time(api.remove_all()).await;
    }

    async fn write_for_ever(&mut self) {
        let mut backoff = BACKOFF.0;
        loop {
            let result = self.read_and_write().await;
            match result {
                Ok(()) => return,
                Err(error) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(error = %crate::output::chain(error), "the states of pods cannot be written to the API server");
                }
            }
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF.1);
        }
    }

    /// Ends without an error only with the agent.
    async fn read_and_write(&mut self) -> Result<(), Error> {
        self.written = self.read().await?;
        loop {
            self.changed.mark_unchanged();
            self.write().await?;
            if self.changed.changed().await.is_err() {
                return Ok(());
            }
        }
    }

    /// What earlier agents wrote.
    async fn read(&self) -> Result<BTreeMap<NamespacedName, Written>, Error> {
        let of_node = ListParams::default().fields(&format!("spec.nodeName={}", self.node));
        let pods = Api::<Pod>::all(self.client.clone()).list_metadata(&of_node).await?;
        let written = pods.items.iter().filter_map(|pod| {
            let key = NamespacedName::new(pod.namespace()?, pod.name_any());
            let written = Written { uid: pod.uid(), annotations: Annotations::of(pod.annotations()) };
            (!written.annotations.is_empty()).then_some((key, written))
        });
        Ok(written.collect())
    }

    async fn write(&mut self) -> Result<(), Error> {
        let wanted = Wanted::all(&self.config.snapshot(), &self.state.load());
        self.told.retain(|key, _| wanted.contains_key(key));
        self.clear_ended(&wanted).await?;
        for (key, wanted) in wanted {
            let Some(annotations) = &wanted.annotations else { continue };
            let written = Written { uid: wanted.uid.clone(), annotations: annotations.clone() };
            let known = self.written.get(&key);
            if known.map_or(!annotations.is_empty(), |known| *known != written) {
                self.patch(&key, wanted.uid.as_deref(), annotations).await?;
                self.written.insert(key.clone(), written);
            }
            if let Some(event) = wanted.event {
                self.tell(&key, wanted.uid.as_deref(), event).await?;
            }
        }
        Ok(())
    }

    /// Pods that have ended, or are gone altogether, are in the mesh no more.
    async fn clear_ended(&mut self, wanted: &BTreeMap<NamespacedName, Wanted>) -> Result<(), Error> {
        let is_over = |key: &&NamespacedName| !wanted.contains_key(*key);
        let over: Vec<_> = self.written.keys().filter(is_over).cloned().collect();
        for key in over {
            let Some(Written { uid, annotations }) = self.written.remove(&key) else { continue };
            if !annotations.is_empty() {
                self.patch(&key, uid.as_deref(), &Annotations::default()).await?;
            }
        }
        Ok(())
    }

    async fn patch(
        &mut self,
        key: &NamespacedName,
        uid: Option<&str>,
        annotations: &Annotations,
    ) -> Result<(), Error> {
        sleep_until(self.pace.next(Instant::now())).await;
        let values: BTreeMap<_, _> = KEYS.iter().map(|name| (*name, annotations.get(name))).collect();
        let mut metadata = json!({ "annotations": values });
        if let (Some(uid), Some(metadata)) = (uid.filter(|uid| is_of_api(uid)), metadata.as_object_mut()) {
            // Not to another pod that has taken the name.
            metadata.insert("uid".into(), uid.into());
        }
        let patch = Patch::Merge(json!({ "metadata": metadata }));
        let pods = Api::<Pod>::namespaced(self.client.clone(), &key.namespace);
        let name = key.name.to_string();
        let sending =
            async move { pods.patch_status(&name, &PatchParams::default(), &patch).await.map(drop) };
        match self.order.send(sending).await {
            Ok(()) => Ok(()),
            // Gone, or another one by now.
            Err(Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn tell(
        &mut self,
        key: &NamespacedName,
        uid: Option<&str>,
        event: wanted::Told,
    ) -> Result<(), Error> {
        let now = Instant::now();
        let note = event.note.as_str();
        if self.told.get(key).is_some_and(|(at, said)| said == note || *at + EVENT_PAUSE > now) {
            return Ok(());
        }
        sleep_until(self.pace.next(now)).await;
        self.told.insert(key.clone(), (now, event.note.clone()));
        let pod = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            namespace: Some(key.namespace.to_string()),
            name: Some(key.name.to_string()),
            uid: uid.map(str::to_owned),
            ..ObjectReference::default()
        };
        let event = Event {
            type_: EventType::Warning,
            reason: event.reason.into(),
            note: Some(shortened(&event.note)),
            action: "Enrolling".into(),
            secondary: None,
        };
        match self.recorder.publish(&event, &pod).await {
            // A namespace that is being deleted takes none.
            Err(Error::Api(status)) if matches!(status.code, 403 | 404) => {
                tracing::debug!(pod = %key, message = status.message, "an Event was refused");
                Ok(())
            }
            other => other,
        }
    }

    /// Of all pods that have any: an agent that ends soon may not have read yet what the one before it wrote.
    async fn remove_all(&mut self) {
        match self.read().await {
            Ok(written) => self.written = written,
            Err(error) => tracing::warn!(%error, "the annotations of pods cannot be read"),
        }
        for (key, Written { uid, .. }) in std::mem::take(&mut self.written) {
            if let Err(error) = self.patch(&key, uid.as_deref(), &Annotations::default()).await {
                tracing::warn!(pod = %key, %error, "its annotations cannot be removed");
                return;
            }
        }
    }
}

async fn in_time(removal: impl Future<Output = ()>) {
    if timeout(FAREWELL, removal).await.is_err() {
        tracing::warn!("not all annotations of pods could be removed in time");
    }
}

/// The API's own uids are UUIDs; a static pod is known by another one on its node.
fn is_of_api(uid: &str) -> bool {
    uid.len() == 36
}

/// A note may have a kilobyte.
fn shortened(note: &str) -> String {
    const LIMIT: usize = 1000;
    let end = note.char_indices().map(|(at, _)| at).take_while(|at| *at <= LIMIT).last().unwrap_or(0);
    if note.len() <= LIMIT { note.to_owned() } else { note.get(..end).unwrap_or_default().to_owned() + "…" }
}

/// Spreads writes over time.
#[derive(Debug)]
struct Pace {
    /// When the next one would be due if none had come early.
    due: Instant,
}

impl Pace {
    fn new(now: Instant) -> Self {
        Self { due: now }
    }

    /// When the next write may be made.
    fn next(&mut self, now: Instant) -> Instant {
        let credit = PAUSE * BURST;
        self.due = self.due.max(now) + PAUSE;
        self.due.checked_sub(credit).unwrap_or(now).max(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_let_through_and_then_one_after_each_pause() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        let waits: Vec<_> = (0..BURST + 3).map(|_| pace.next(now) - now).collect();
        assert!(waits.iter().take(BURST as usize).all(Duration::is_zero));
        assert_eq!(waits[BURST as usize + 1] - waits[BURST as usize], PAUSE);
        let later = now + Duration::from_secs(60);
        assert_eq!(pace.next(later), later);
    }

    #[test]
    fn long_notes_are_cut_between_characters() {
        assert_eq!(shortened("short"), "short");
        let long = "é".repeat(800);
        let cut = shortened(&long);
        assert!(cut.len() <= 1006 && cut.ends_with('…'), "{}", cut.len());
    }
}
