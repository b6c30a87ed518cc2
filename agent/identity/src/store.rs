//! The certificates of this node's workloads, kept fresh.
//!
//! One task per identity fetches its certificate and renews it at half of its remaining life; at most eight
//! ask the CA at the same time. A failure leaves the certificate in use until it expires. Timers run on
//! tokio's clock; the wall clock decides only what is expired, and cuts a wait short when it has jumped
//! ahead (a suspended machine).
//!
//! Trusted are the roots of the answers in use and those of [`CertStore::trust`], for all identities alike and
//! from the next handshake on: a rotation of roots ends no connection.

mod fetch;
mod trust;

use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::{ArcSwap, ArcSwapOption};
use rustls_pki_types::CertificateDer;
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::AbortHandle;
use weft_core::Identity;

use crate::tls::{Hbone, date};

pub use trust::TrustedRoot;
pub(crate) use trust::read_bounded;

/// Requests to the CA under way at the same time.
const PARALLEL_FETCHES: usize = 8;

/// Failures on the way to a certificate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// The CA refuses for good.
    #[error("the CA refuses: {0}")]
    Refused(String),
    /// The CA cannot be asked now.
    #[error("the CA cannot be reached: {0}")]
    Unavailable(String),
    /// The answer is not usable.
    #[error("the CA's answer is not usable: {0}")]
    InvalidAnswer(String),
    /// No certificate for this identity (yet); the text says why.
    #[error("no certificate for {identity}: {reason}")]
    NoCertificate {
        /// The identity.
        identity: Identity,
        /// Why.
        reason: String,
    },
    /// Local failure.
    #[error("{0}")]
    Internal(String),
}

/// What a CA returns: PEM, leaf first, and the roots to trust.
#[derive(Debug, Clone)]
pub struct SignedCertificate {
    /// Leaf, then intermediates.
    pub chain_pem: Vec<String>,
    /// One or several roots.
    pub roots_pem: Vec<String>,
}

/// One interface for every CA.
pub trait CaClient: Send + Sync + 'static {
    /// Asks for a certificate.
    fn sign<'a>(
        &'a self,
        csr_pem: &'a str,
        identity: &'a Identity,
    ) -> Pin<Box<dyn Future<Output = Result<SignedCertificate, IdentityError>> + Send + 'a>>;
}

/// State of one identity, for status and metrics. No key material.
#[derive(Debug, Clone)]
pub struct CertInfo {
    /// The identity.
    pub identity: Identity,
    /// Expiry of the certificate in use.
    pub not_after: Option<SystemTime>,
    /// The last failure to get or renew one.
    pub error: Option<String>,
}

/// The certificates of this node. Cheap to clone; reads take no lock that a renewal holds.
///
/// Dropping the last clone ends its renewals.
#[derive(Clone)]
pub struct CertStore {
    owner: Arc<Owner>,
}

impl CertStore {
    /// A store that asks `ca`. Nothing is fetched before [`CertStore::want`]. `runtime` runs its renewals.
    pub fn new(ca: Arc<dyn CaClient>, runtime: tokio::runtime::Handle) -> Self {
        Self::with_trust_domain_aliases(ca, runtime, Vec::new())
    }

    /// The same; peers of the trust domains `aliases` are accepted as if they were of ours.
    pub fn with_trust_domain_aliases(
        ca: Arc<dyn CaClient>,
        runtime: tokio::runtime::Handle,
        aliases: Vec<Arc<str>>,
    ) -> Self {
        Self::with_clock(ca, &runtime, aliases, Arc::new(SystemTime::now))
    }

    fn with_clock(ca: Arc<dyn CaClient>, runtime: &Handle, aliases: Vec<Arc<str>>, clock: Clock) -> Self {
        let shared = Arc::new(Shared {
            entries: ArcSwap::default(),
            changes: watch::Sender::new(0),
            permits: Semaphore::new(PARALLEL_FETCHES),
            trust: Mutex::default(),
            ca,
            aliases,
            clock,
        });
        let (wanted, receiver) = watch::channel(Arc::default());
        let task = runtime.spawn(fetch::follow(Arc::clone(&shared), receiver)).abort_handle();
        let tasks = Mutex::new(vec![task]);
        Self { owner: Arc::new(Owner { shared, wanted, runtime: runtime.clone(), tasks }) }
    }

    /// The identities that pods of this node have; others are dropped, new ones fetched (8 at a time),
    /// all renewed at half life with jittered back-off on failure.
    pub fn want(&self, identities: BTreeSet<Identity>) {
        let shared = &self.owner.shared;
        let changed = self.owner.wanted.send_if_modified(|entries| {
            if entries.len() == identities.len() && identities.iter().all(|id| entries.contains_key(id)) {
                return false;
            }
            let kept = |id: Identity| {
                let entry = entries.get(&id).map_or_else(|| Arc::new(Entry::new(id.clone())), Arc::clone);
                (id, entry)
            };
            // Within the channel's lock, so that two callers cannot leave reads and fetches with
            // different sets.
            *entries = Arc::new(identities.into_iter().map(kept).collect());
            shared.entries.store(Arc::clone(entries));
            true
        });
        if changed {
            shared.changed();
        }
    }

    /// TLS configurations of the moment for one identity.
    ///
    /// # Errors
    /// [`IdentityError::NoCertificate`] when no pod of this node has the identity, the certificate has not
    /// arrived yet, or it has expired; with the last failure of the CA.
    pub fn get(&self, identity: &Identity) -> Result<Arc<Hbone>, IdentityError> {
        let entries = self.owner.shared.entries.load();
        match entries.get(identity) {
            Some(entry) => entry.current((self.owner.shared.clock)()),
            None => Err(no_certificate(identity, "no pod of this node has this identity".to_owned())),
        }
    }

    /// The same, waiting for a fetch that is under way, at most `limit`.
    ///
    /// # Cancel safety
    /// Safe: the fetch goes on.
    pub async fn wait(&self, identity: &Identity, limit: Duration) -> Result<Arc<Hbone>, IdentityError> {
        let mut changes = self.subscribe();
        let arrival = async {
            loop {
                changes.borrow_and_update();
                if let Ok(hbone) = self.get(identity) {
                    return Ok(hbone);
                }
                let dropped = !self.owner.shared.entries.load().contains_key(identity);
                if dropped || changes.changed().await.is_err() {
                    return self.get(identity);
                }
            }
        };
        match tokio::time::timeout(limit, arrival).await {
            Ok(answer) => answer,
            Err(_) => self.get(identity),
        }
    }

    /// All identities with their state, in their order.
    pub fn infos(&self) -> Vec<CertInfo> {
        let entries = self.owner.shared.entries.load();
        let mut infos: Vec<_> = entries.values().map(|entry| entry.info()).collect();
        infos.sort_by(|a, b| a.identity.cmp(&b.identity));
        infos
    }

    /// Ticks whenever an identity comes, goes, gets a certificate or fails to; the value only counts.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.owner.shared.changes.subscribe()
    }
}

impl std::fmt::Debug for CertStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CertStore").field("infos", &self.infos()).finish()
    }
}

type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;
type Entries = HashMap<Identity, Arc<Entry>>;

/// What the clones of a store own together: the state and the task that fetches.
struct Owner {
    shared: Arc<Shared>,
    /// The set of identities, for the task. Its lock orders the callers of [`CertStore::want`].
    wanted: watch::Sender<Arc<Entries>>,
    runtime: Handle,
    /// What ends with the store. Locked when a task is added.
    tasks: Mutex<Vec<AbortHandle>>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        for task in self.tasks.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            task.abort();
        }
    }
}

/// State that readers and renewals share. It does not keep the store alive.
struct Shared {
    entries: ArcSwap<Entries>,
    changes: watch::Sender<u64>,
    permits: Semaphore,
    /// Locked by renewals and by whoever changes the roots; handshakes read what it points to.
    trust: Mutex<trust::StoreTrust>,
    ca: Arc<dyn CaClient>,
    aliases: Vec<Arc<str>>,
    clock: Clock,
}

impl Shared {
    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }
}

/// One identity.
struct Entry {
    identity: Identity,
    hbone: ArcSwapOption<Hbone>,
    /// The last failure, cleared by success. Written by the identity's one task, read for messages only.
    failure: Mutex<Option<String>>,
    /// The roots that came with the certificate in use. Locked when the store's trust is put together.
    roots: Mutex<Vec<CertificateDer<'static>>>,
    /// The certificate is to be renewed before its time.
    renew: Notify,
}

impl Entry {
    fn new(identity: Identity) -> Self {
        Self {
            identity,
            hbone: ArcSwapOption::empty(),
            failure: Mutex::new(None),
            roots: Mutex::default(),
            renew: Notify::new(),
        }
    }

    fn failure(&self) -> Option<String> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_failure(&self, failure: Option<String>) {
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = failure;
    }

    fn current(&self, now: SystemTime) -> Result<Arc<Hbone>, IdentityError> {
        let hbone = self.hbone.load();
        match hbone.as_ref() {
            Some(hbone) if now < hbone.not_after() => Ok(Arc::clone(hbone)),
            expired => Err(no_certificate(&self.identity, self.absence(expired))),
        }
    }

    fn absence(&self, expired: Option<&Arc<Hbone>>) -> String {
        match (expired, self.failure()) {
            (Some(hbone), Some(failure)) => {
                format!("expired since {} and not renewed: {failure}", date(hbone.not_after()))
            }
            (Some(hbone), None) => format!("expired since {}", date(hbone.not_after())),
            (None, Some(failure)) => failure,
            (None, None) => "asked for, not arrived yet".to_owned(),
        }
    }

    fn info(&self) -> CertInfo {
        CertInfo {
            identity: self.identity.clone(),
            not_after: self.hbone.load().as_ref().map(|hbone| hbone.not_after()),
            error: self.failure(),
        }
    }
}

fn no_certificate(identity: &Identity, reason: String) -> IdentityError {
    IdentityError::NoCertificate { identity: identity.clone(), reason }
}

#[cfg(test)]
mod tests;
