//! Answers the CNI plugin: a new pod of the mesh waits until it is enrolled.

use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};
use weft_cni::protocol::{Answer, Command, MESSAGE_LIMIT, Outcome, Request};
use weft_control::writer::Published;
use weft_core::Snapshot;
use weft_core::resource::NamespacedName;
use weft_core::snapshot::Membership;

use crate::agent::node::{Event, NodeState, lock};
use crate::agent::places::{Places, Told};

/// Requests that are dealt with at a time; more wait for their turn.
const CONCURRENCY: usize = 128;
/// For the request itself.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);
/// Longest that a plugin is kept waiting, whatever it asks for.
const PATIENCE: Duration = Duration::from_secs(120);
/// The plugin must have its answer before it gives up.
const MARGIN: Duration = Duration::from_millis(250);
/// How long a pod of a namespace that is not in the mesh is waited for: its own labels may say otherwise.
const STRANGER: Duration = Duration::from_secs(2);

/// What answers need.
pub(crate) struct Server {
    pub(crate) config: Published,
    pub(crate) state: Arc<ArcSwap<NodeState>>,
    pub(crate) changed: watch::Receiver<()>,
    pub(crate) places: Arc<Mutex<Places>>,
    /// `None` in break-glass: nothing is captured.
    pub(crate) reconciler: Option<Sender<Event>>,
    /// Where the machine's procfs is mounted.
    pub(crate) proc: PathBuf,
}

/// Serves for ever.
pub(crate) async fn serve(listener: UnixListener, server: Arc<Server>) {
    let permits = Arc::new(Semaphore::new(CONCURRENCY));
    // They end with this task: a plugin that gets no answer asks again, and the agent's successor then.
    let mut conversations = JoinSet::new();
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        while conversations.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                let server = server.clone();
                conversations.spawn(async move {
                    if let Err(error) = server.converse(stream).await {
                        tracing::debug!(%error, "a call of weft-cni broke off");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a call of weft-cni could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

impl Server {
    async fn converse(&self, mut stream: UnixStream) -> std::io::Result<()> {
        // The socket's mode says the same; a descriptor can be handed on.
        let answer = if stream.peer_cred()?.uid() == rustix::process::geteuid().as_raw() {
            match read(&mut stream).await? {
                Ok(request) => self.answer(request).await,
                Err(why) => Answer::because(Outcome::Failed, why),
            }
        } else {
            Answer::because(Outcome::Failed, "only the container runtime may ask")
        };
        let mut text = serde_json::to_vec(&answer)?;
        text.push(b'\n');
        timeout(REQUEST_LIMIT, stream.write_all(&text)).await?
    }

    async fn answer(&self, request: Request) -> Answer {
        match request.command {
            Command::Add => match told(&request, &self.proc) {
                Ok(told) => self.add(told, patience(&request)).await,
                Err(why) => Answer::because(Outcome::Failed, why),
            },
            Command::Check => self.check(&request),
            Command::Del => {
                if lock(&self.places).remove(&request.container_id).is_some() {
                    self.wake();
                }
                Answer::new(Outcome::Done)
            }
            Command::Gc => {
                let gone = lock(&self.places).keep(&request.keep);
                tracing::debug!(gone, "the runtime told which sandboxes exist");
                Answer::new(Outcome::Done)
            }
        }
    }

    fn wake(&self) {
        if let Some(reconciler) = &self.reconciler {
            // At the end there is nobody to wake.
            let _ = reconciler.send(Event::Places);
        }
    }

    async fn add(&self, told: Told, patience: Duration) -> Answer {
        let begun = Instant::now();
        if let Err(error) = lock(&self.places).insert(told.clone()) {
            tracing::warn!(pod = %told.key(), %error, "a new agent will have to look for this pod");
        }
        if self.reconciler.is_none() {
            return Answer::because(Outcome::NotInMesh, "the agent runs with --break-glass");
        }
        // Before the first look, so that no change is missed.
        let mut changed = self.changed.clone();
        self.wake();
        loop {
            changed.mark_unchanged();
            let standing = standing(&told, &self.config.snapshot(), &self.state.load());
            let (limit, last) = match standing {
                Standing::Decided(answer) => return answer,
                Standing::Waits(why) => (patience, Answer::because(Outcome::Failed, why)),
                Standing::Stranger => (patience.min(STRANGER), Answer::because(Outcome::NotInMesh, UNSEEN)),
                Standing::Unseen => (patience, Answer::because(Outcome::Failed, UNSEEN)),
            };
            match timeout_at(begun + limit, changed.changed()).await {
                Ok(Ok(())) => {}
                // Time is up, or the reconciler has ended.
                Ok(Err(_)) | Err(_) => return last,
            }
        }
    }

    fn check(&self, request: &Request) -> Answer {
        let key = NamespacedName::new(request.namespace.as_str(), request.pod.as_str());
        match self.state.load().pods.get(&key) {
            Some(pod) if pod.state == "failed" => {
                Answer::because(Outcome::Failed, pod.reason.clone().unwrap_or_default())
            }
            Some(_) | None => Answer::new(Outcome::Done),
        }
    }
}

const UNSEEN: &str =
    "the agent has not seen the pod in its configuration: look at `weft status` for how old that is";

/// How it stands with a new pod.
#[derive(Debug, PartialEq, Eq)]
enum Standing {
    Decided(Answer),
    /// It belongs to the mesh; what is missing.
    Waits(String),
    /// The configuration does not know it yet, and its namespace is in the mesh.
    Unseen,
    /// Nor is its namespace.
    Stranger,
}

fn standing(told: &Told, snapshot: &Snapshot, state: &NodeState) -> Standing {
    let key = told.key();
    let same = |uid: Option<&str>| match (uid, &told.uid) {
        (Some(one), Some(other)) => one == other,
        (Some(_) | None, None) | (None, Some(_)) => true,
    };
    let Some(local) = snapshot.local_workload(&key).filter(|local| same(local.uid.as_deref())) else {
        let opted = snapshot.opted_namespaces().contains(&key.namespace);
        return if opted { Standing::Unseen } else { Standing::Stranger };
    };
    match &local.workload.membership {
        Membership::OutOfMesh => Standing::Decided(Answer::new(Outcome::NotInMesh)),
        Membership::Excluded(why) => Standing::Decided(Answer::because(Outcome::NotInMesh, why.as_str())),
        Membership::InMesh => match state.pods.get(&key) {
            Some(pod) if pod.state == "enrolled" && pod.netns.as_deref() == Some(&*told.netns) => {
                Standing::Decided(Answer::new(Outcome::Enrolled))
            }
            Some(pod) => Standing::Waits(pod.reason.clone().unwrap_or_else(|| "it is being enrolled".into())),
            None => Standing::Waits("it is about to be enrolled".into()),
        },
    }
}

/// Reads one line; the inner error is for the one who wrote it.
async fn read(stream: &mut UnixStream) -> std::io::Result<Result<Request, String>> {
    let mut line = Vec::new();
    let mut limited = BufReader::new(stream.take(MESSAGE_LIMIT));
    timeout(REQUEST_LIMIT, limited.read_until(b'\n', &mut line)).await??;
    Ok(serde_json::from_slice(&line).map_err(|error| format!("the request cannot be read: {error}")))
}

fn patience(request: &Request) -> Duration {
    let told = Duration::from_millis(request.patience_ms).min(PATIENCE);
    told.saturating_sub(MARGIN)
}

/// What the plugin says of a sandbox, if it is well-formed: paths are made from it.
fn told(request: &Request, proc: &Path) -> Result<Told, String> {
    let Request { container_id, netns, namespace, pod, uid, ips, .. } = request;
    let id = container_id.as_bytes();
    let in_id = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    if !id.first().is_some_and(u8::is_ascii_alphanumeric) || id.len() > 128 || !id.iter().all(in_id) {
        return Err("the container id is not one of the CNI".into());
    }
    let in_name =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
    let is_name = |name: &str| !name.is_empty() && name.len() <= 253 && name.bytes().all(in_name);
    if !is_name(namespace) || !is_name(pod) {
        return Err("namespace or name of the pod are not those of an object".into());
    }
    let in_uid = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    if uid.as_ref().is_some_and(|uid| uid.is_empty() || uid.len() > 64 || !uid.bytes().all(in_uid)) {
        return Err("the uid of the pod is not one".into());
    }
    if !netns.starts_with('/') || netns.len() > 4096 || netns.contains('\0') {
        return Err("the path of the network namespace is not an absolute one".into());
    }
    if ips.len() > 32 || ips.iter().any(|ip| ip.is_unspecified() || ip.is_loopback() || ip.is_multicast()) {
        return Err("the addresses are not those of a pod".into());
    }
    Ok(Told {
        container_id: container_id.clone(),
        namespace: namespace.clone(),
        pod: pod.clone(),
        uid: uid.clone(),
        netns: visible(netns, proc),
        ips: ips.clone(),
    })
}

/// The same namespace as the agent sees it: the node may have `/var/run` where the agent's image has `/run`, and its
/// procfs elsewhere.
fn visible(netns: &str, proc: &Path) -> PathBuf {
    if let Some(below) = netns.strip_prefix("/proc/") {
        return proc.join(below);
    }
    let other = match netns.strip_prefix("/var/run/") {
        Some(below) => Some(Path::new("/run").join(below)),
        None => netns.strip_prefix("/run/").map(|below| Path::new("/var/run").join(below)),
    };
    match other {
        Some(other) if !Path::new(netns).exists() && other.exists() => other,
        Some(_) | None => netns.into(),
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
