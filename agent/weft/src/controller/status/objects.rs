//! The objects that get a status, followed while we lead.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use kube::Client;
use kube::api::{Api, DynamicObject};
use kube::core::TypeMeta;
use kube::runtime::{WatchStreamExt, watcher};
use serde_json::Value;
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinSet};

use super::findings::Key;
use super::kinds::{self, Served};
use super::report::{self, Current};
use crate::controller::MANAGER;
use crate::output;

/// How often to look for kinds that appear or vanish.
const DISCOVERY: Duration = Duration::from_secs(10);

/// An object as it was last seen.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tracked {
    /// The object as JSON, without status and the ballast of `metadata`.
    pub(super) text: Arc<str>,
    /// `metadata.resourceVersion`.
    pub(super) version: String,
    /// `metadata.uid`.
    pub(super) uid: String,
    /// What a status is written on.
    pub(super) current: Current,
}

impl Tracked {
    /// `status`.
    pub(super) fn status(&self) -> &Value {
        &self.current.status
    }

    fn of(mut object: DynamicObject, served: &Served) -> (Name, Self) {
        let status =
            object.data.as_object_mut().and_then(|fields| fields.remove("status")).unwrap_or_default();
        let metadata = &mut object.metadata;
        let managed = metadata.managed_fields.take();
        let managed = managed.and_then(|fields| serde_json::to_value(fields).ok()).unwrap_or_default();
        if let Some(annotations) = &mut metadata.annotations {
            annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
        }
        let version = metadata.resource_version.take().unwrap_or_default();
        let foreign = report::is_foreign(&managed, &status, MANAGER);
        let current = Current { generation: metadata.generation.unwrap_or_default(), status, foreign };
        let name = (
            metadata.namespace.as_deref().unwrap_or_default().into(),
            metadata.name.as_deref().unwrap_or_default().into(),
        );
        let uid = metadata.uid.clone().unwrap_or_default();
        let resource = &served.resource;
        // Items of a list do not say what they are.
        object.types =
            Some(TypeMeta { api_version: resource.api_version.clone(), kind: resource.kind.clone() });
        // What was parsed from JSON can be written as JSON.
        let text = serde_json::to_string(&object).unwrap_or_default().into();
        (name, Self { text, version, uid, current })
    }
}

/// Namespace and name.
type Name = (Arc<str>, Arc<str>);
type Objects = BTreeMap<Name, Tracked>;

#[derive(Debug)]
struct Followed {
    served: Served,
    objects: Objects,
    /// What a list has brought so far.
    listed: Objects,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Not read to its end yet.
    Reading,
    Complete,
    /// It cannot be read, for example because we may not.
    Failed,
}

#[derive(Debug, Default)]
struct Inner {
    kinds: BTreeMap<&'static str, Followed>,
    /// Which kinds there are was found out.
    discovered: bool,
    /// Counts changes of texts.
    revision: u64,
}

/// All objects. Watches write, the status writer reads; both for moments only.
#[derive(Debug, Default)]
pub(super) struct Store {
    inner: Mutex<Inner>,
    changed: Notify,
}

/// Everything at one moment.
pub(super) struct View {
    /// Counts changes of texts.
    pub(super) revision: u64,
    /// Every kind that exists can be read: what is not there does not exist.
    pub(super) all: bool,
    pub(super) objects: Vec<(Key, Tracked)>,
}

impl Store {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Nobody panics while he holds it; and if so, what stands there is still true.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a change; one that came since the last call counts.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Everything; `None` while it is being read for the first time.
    pub(super) fn view(&self) -> Option<View> {
        let inner = self.inner();
        let reading = inner.kinds.values().any(|followed| followed.state == State::Reading);
        if reading || !inner.discovered {
            return None;
        }
        let all = inner.kinds.values().all(|followed| followed.state == State::Complete);
        let objects = inner.kinds.iter().flat_map(|(kind, followed)| {
            followed.objects.iter().map(|((namespace, name), tracked)| {
                let key = Key { kind, namespace: namespace.clone(), name: name.clone() };
                (key, tracked.clone())
            })
        });
        Some(View { revision: inner.revision, all, objects: objects.collect() })
    }

    /// How a kind is served.
    pub(super) fn served(&self, kind: &str) -> Option<Served> {
        self.inner().kinds.get(kind).map(|followed| followed.served.clone())
    }

    /// Takes an object in the form in which the API server answered a request of ours.
    pub(super) fn answered(&self, kind: &'static str, object: DynamicObject) {
        self.edit(kind, |followed| {
            let (name, tracked) = Tracked::of(object, &followed.served);
            // Its watch event, or a later one, may have been faster.
            match followed.objects.get_mut(&name) {
                Some(known) if known.uid == tracked.uid && known.text == tracked.text => *known = tracked,
                Some(_) | None => {}
            }
            false
        });
    }

    fn take(&self, kind: &'static str, event: watcher::Event<DynamicObject>) {
        self.edit(kind, |followed| match event {
            watcher::Event::Apply(object) => {
                let (name, tracked) = Tracked::of(object, &followed.served);
                let text = tracked.text.clone();
                let before = followed.objects.insert(name, tracked);
                before.is_none_or(|before| before.text != text)
            }
            watcher::Event::Delete(object) => {
                let (name, _) = Tracked::of(object, &followed.served);
                followed.objects.remove(&name).is_some()
            }
            watcher::Event::Init => {
                followed.listed = Objects::new();
                false
            }
            watcher::Event::InitApply(object) => {
                let (name, tracked) = Tracked::of(object, &followed.served);
                followed.listed.insert(name, tracked);
                false
            }
            watcher::Event::InitDone => {
                followed.objects = std::mem::take(&mut followed.listed);
                followed.state = State::Complete;
                true
            }
        });
    }

    /// Changes a kind and wakes the writer. `edit` tells whether texts, or what can be read, are different now.
    fn edit(&self, kind: &str, edit: impl FnOnce(&mut Followed) -> bool) {
        let mut inner = self.inner();
        let Some(followed) = inner.kinds.get_mut(kind) else { return };
        if edit(followed) {
            inner.revision += 1;
        }
        drop(inner);
        self.changed.notify_one();
    }

    /// Tells whether that was news.
    fn fail(&self, kind: &str) -> bool {
        let mut news = false;
        self.edit(kind, |followed| {
            // What was read once goes on to count while the API server is away.
            news = followed.state == State::Reading;
            if news {
                followed.state = State::Failed;
            }
            news
        });
        news
    }

    /// Replaces the kinds that are followed; tells which are new, or served in another way.
    fn discover(&self, found: &BTreeMap<&'static str, Served>) -> Vec<&'static str> {
        let mut inner = self.inner();
        let before = inner.kinds.len();
        inner.kinds.retain(|kind, _| found.contains_key(kind));
        let gone = before != inner.kinds.len();
        let mut new = Vec::new();
        for (kind, served) in found {
            if inner.kinds.get(kind).is_some_and(|followed| followed.served == *served) {
                continue;
            }
            let (objects, listed) = Default::default();
            let followed = Followed { served: served.clone(), objects, listed, state: State::Reading };
            inner.kinds.insert(kind, followed);
            new.push(*kind);
        }
        if gone || !new.is_empty() || !inner.discovered {
            inner.revision += 1;
            inner.discovered = true;
            drop(inner);
            self.changed.notify_one();
        }
        new
    }
}

/// Follows all kinds that the cluster has, for ever. Dropping it ends all watches.
pub(super) async fn follow(client: Client, store: Arc<Store>) {
    let mut tasks = JoinSet::new();
    let mut watches: BTreeMap<&'static str, AbortHandle> = BTreeMap::new();
    let mut told = false;
    loop {
        match kinds::served(&client).await {
            Ok(found) => {
                told = false;
                let new = store.discover(&found);
                watches.retain(|kind, watch| {
                    let stays = found.contains_key(kind) && !new.contains(kind);
                    if !stays {
                        watch.abort();
                    }
                    stays
                });
                for (kind, served) in found.into_iter().filter(|(kind, _)| new.contains(kind)) {
                    let watch = watch(client.clone(), kind, served, store.clone());
                    watches.insert(kind, tasks.spawn(watch));
                }
            }
            Err(error) if !std::mem::replace(&mut told, true) => {
                tracing::warn!(
                    error = output::chain(&error),
                    "which kinds the cluster has cannot be found out"
                );
            }
            Err(_) => {}
        }
        tokio::time::sleep(DISCOVERY).await;
    }
}

/// Follows one kind, for ever.
async fn watch(client: Client, kind: &'static str, served: Served, store: Arc<Store>) {
    let api: Api<DynamicObject> = Api::all_with(client, &served.resource);
    let mut events = std::pin::pin!(watcher(api, watcher::Config::default()).default_backoff());
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => store.take(kind, event),
            Err(error) if store.fail(kind) => {
                tracing::warn!(
                    kind,
                    error = output::chain(&error),
                    "objects cannot be read and get no status; nothing is said to be missing any more"
                );
            }
            Err(error) => tracing::debug!(kind, %error, "a watch has ended and begins anew"),
        }
    }
}
