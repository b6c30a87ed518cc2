//! Which roots the store trusts: those of the answers in use, and those of a file that is followed.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest;
use rustls_pki_types::CertificateDer;

use super::{CertStore, Entry, IdentityError, Shared};
use crate::bundle;
use crate::tls::LiveRoots;

/// How often the file is looked at; kubelet takes a minute to bring a change.
const LOOK: Duration = Duration::from_secs(5);
/// A bundle of a hundred roots is below this.
const MAX_BUNDLE_BYTES: u64 = 256 * 1024;

/// A root that peers may come from, for status and metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustedRoot {
    /// SHA-256 of the certificate, the first 16 hexadecimal digits.
    pub fingerprint: String,
    /// Its subject, for people.
    pub subject: String,
    /// When it expires.
    pub not_after: SystemTime,
}

/// What the store trusts.
#[derive(Default)]
pub(super) struct StoreTrust {
    /// Besides the answers.
    given: Vec<CertificateDer<'static>>,
    /// All together; `None` before the first answer.
    live: Option<Arc<LiveRoots>>,
}

impl CertStore {
    /// Trusts these roots (PEM) besides those of the CA's answers, instead of the ones of an earlier call, from
    /// the next handshake on. Certificates whose answer has a root that is not among these are renewed within
    /// half a minute: the rotation has gone on since they were asked for.
    ///
    /// # Errors
    /// [`IdentityError::InvalidAnswer`] when the text has no certificate or a malformed one; then nothing
    /// changes.
    pub fn trust(&self, roots_pem: &str) -> Result<(), IdentityError> {
        let unusable = |reason| IdentityError::InvalidAnswer(format!("the roots are not usable: {reason}"));
        let blocks = bundle::merged(&[roots_pem]).map_err(unusable)?;
        let given: Vec<_> = blocks.into_iter().map(|block| block.der).collect();
        // Proves them before anything depends on them.
        LiveRoots::new(given.clone()).map_err(unusable)?;
        self.owner.shared.trust_given(given)
    }

    /// Keeps [`CertStore::trust`] with a file, for as long as the store lives. A file that is missing or damaged
    /// changes nothing and is told of once.
    pub fn follow_roots(&self, path: &Path) {
        let follower = follow(self.downgrade(), path.to_owned());
        let task = self.owner.runtime.spawn(follower).abort_handle();
        self.owner.tasks.lock().unwrap_or_else(PoisonError::into_inner).push(task);
    }

    /// The roots that are trusted at this moment.
    pub fn trusted_roots(&self) -> Vec<TrustedRoot> {
        let live = self.owner.shared.trust().live.clone();
        let certificates = live.map(|live| live.certificates()).unwrap_or_default();
        certificates.iter().filter_map(describe).collect()
    }
}

/// A root for people; `None` for one that cannot be read, which is never trusted either.
fn describe(der: &CertificateDer<'_>) -> Option<TrustedRoot> {
    let (_, root) = x509_parser::parse_x509_certificate(der).ok()?;
    let hash = digest::digest(&digest::SHA256, der);
    Some(TrustedRoot {
        fingerprint: hash.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect(),
        subject: root.subject().to_string(),
        not_after: root.validity().not_after.to_datetime().into(),
    })
}

async fn follow(store: WeakStore, path: PathBuf) {
    let mut seen = None;
    loop {
        let read = read_bounded(&path);
        if seen.as_ref() != Some(&read) {
            let Some(store) = store.upgrade() else { return };
            let taken = read.clone().and_then(|text| store.trust(&text).map_err(|error| error.to_string()));
            match taken {
                Ok(()) => tracing::info!(path = %path.display(), "roots of the file are trusted"),
                Err(error) => {
                    tracing::warn!(path = %path.display(), error, "the file of roots changes nothing");
                }
            }
            seen = Some(read);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// A small file, whole.
pub(crate) fn read_bounded(path: &Path) -> Result<String, String> {
    use std::io::Read;

    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    let read =
        file.take(MAX_BUNDLE_BYTES + 1).read_to_string(&mut text).map_err(|error| error.to_string())?;
    if read as u64 > MAX_BUNDLE_BYTES {
        return Err(format!("it is longer than {MAX_BUNDLE_BYTES} bytes"));
    }
    Ok(text)
}

impl Shared {
    fn trust(&self) -> std::sync::MutexGuard<'_, StoreTrust> {
        self.trust.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the roots of an answer that comes into use, and answers what is trusted with them.
    pub(super) fn trust_answer(
        &self,
        entry: &Entry,
        roots: Vec<CertificateDer<'static>>,
    ) -> Result<Arc<LiveRoots>, IdentityError> {
        let mut trust = self.trust();
        entry.set_roots(roots.clone());
        self.put_together(&mut trust, roots)?;
        match &trust.live {
            Some(live) => Ok(Arc::clone(live)),
            None => Err(IdentityError::Internal("an answer has no roots".to_owned())),
        }
    }

    fn trust_given(&self, given: Vec<CertificateDer<'static>>) -> Result<(), IdentityError> {
        let mut trust = self.trust();
        trust.given.clone_from(&given);
        if trust.live.is_some() {
            self.put_together(&mut trust, Vec::new())?;
        }
        drop(trust);
        for entry in self.entries.load().values() {
            if entry.roots().iter().any(|root| !given.contains(root)) {
                entry.renew.notify_one();
            }
        }
        self.changed();
        Ok(())
    }

    /// Given roots, those of an answer, and those of all other answers in use: each once.
    fn put_together(
        &self,
        trust: &mut StoreTrust,
        answer: Vec<CertificateDer<'static>>,
    ) -> Result<(), IdentityError> {
        let mut all = trust.given.clone();
        let entries = self.entries.load();
        for root in answer.into_iter().chain(entries.values().flat_map(|entry| entry.roots())) {
            if !all.contains(&root) {
                all.push(root);
            }
        }
        match &trust.live {
            Some(live) if live.certificates() == all => Ok(()),
            Some(live) => live.replace(all),
            None => LiveRoots::new(all).map(|live| trust.live = Some(Arc::new(live))),
        }
        .map_err(IdentityError::InvalidAnswer)
    }
}

impl Entry {
    fn roots(&self) -> Vec<CertificateDer<'static>> {
        self.roots.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_roots(&self, roots: Vec<CertificateDer<'static>>) {
        *self.roots.lock().unwrap_or_else(PoisonError::into_inner) = roots;
    }
}

/// A store that its own follower does not keep alive.
struct WeakStore(std::sync::Weak<super::Owner>);

impl WeakStore {
    fn upgrade(&self) -> Option<CertStore> {
        self.0.upgrade().map(|owner| CertStore { owner })
    }
}

impl CertStore {
    fn downgrade(&self) -> WeakStore {
        WeakStore(Arc::downgrade(&self.owner))
    }
}
