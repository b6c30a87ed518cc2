//! Fetching and renewing: one task per wanted identity, all owned by one that follows the wanted set.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;
use weft_core::Identity;

use super::{Entries, Entry, IdentityError, Shared};
use crate::random;
use crate::tls::{Parts, date};

/// Back-off after the first failure; doubled with each further one.
const FIRST_BACK_OFF: Duration = Duration::from_millis(500);
/// Longest back-off.
const MAX_BACK_OFF: Duration = Duration::from_secs(150);
/// A certificate whose life is shorter than a few of these is not renewed more often.
const MIN_RENEWAL: Duration = Duration::from_secs(1);
/// Longest wait for one answer; a CA that never answers must not hold a permit for ever.
const FETCH_TIMEOUT: Duration = Duration::from_secs(30);
/// Renewals before their time are spread over this long, so that a fleet does not ask at once.
const RENEWAL_SPREAD: Duration = Duration::from_secs(30);
/// How often a long wait looks at the wall clock.
const CLOCK_CHECK: Duration = Duration::from_secs(60);

/// Starts a task for every new entry and ends those of entries that are gone. Ends with the store, and all
/// tasks with it.
pub(super) async fn follow(shared: Arc<Shared>, mut wanted: watch::Receiver<Arc<Entries>>) {
    let mut tasks = JoinSet::new();
    let mut running: HashMap<Identity, (Arc<Entry>, AbortHandle)> = HashMap::new();
    while wanted.changed().await.is_ok() {
        let entries = Arc::clone(&wanted.borrow_and_update());
        running.retain(|identity, (entry, task)| {
            // An identity that went and came back between two looks has a new entry.
            let kept = entries.get(identity).is_some_and(|wanted| Arc::ptr_eq(wanted, entry));
            if !kept {
                task.abort();
            }
            kept
        });
        for (identity, entry) in entries.iter() {
            running.entry(identity.clone()).or_insert_with(|| {
                (Arc::clone(entry), tasks.spawn(keep_fresh(Arc::clone(&shared), Arc::clone(entry))))
            });
        }
        // Forgets the tasks that were aborted earlier, so that the set does not grow with churn.
        while tasks.try_join_next().is_some() {}
    }
}

/// Fetches a certificate and renews it for as long as the identity is wanted.
async fn keep_fresh(shared: Arc<Shared>, entry: Arc<Entry>) {
    let mut failures = 0;
    loop {
        let fetched = fetch(&shared, &entry.identity).await;
        match &fetched {
            Ok(_) => failures = 0,
            Err(_) => failures += 1,
        }
        record(&shared, &entry, fetched);
        shared.changed();
        let remaining = remaining_life(&shared, &entry);
        tokio::select! {
            () = wait(&shared, pause(failures, remaining)) => {}
            () = entry.renew.notified() => {
                let spread = RENEWAL_SPREAD.min(remaining / 10);
                wait(&shared, spread.mul_f64(random::fraction())).await;
            }
        }
    }
}

fn record(shared: &Shared, entry: &Entry, fetched: Result<Parts, IdentityError>) {
    let built = fetched.and_then(|parts| {
        let roots = shared.trust_answer(entry, parts.roots())?;
        parts.trusting(roots).build()
    });
    match built {
        Ok(hbone) => {
            tracing::debug!(identity = %entry.identity, not_after = date(hbone.not_after()), "certificate in use");
            entry.set_failure(None);
            entry.hbone.store(Some(Arc::new(hbone)));
        }
        Err(error) => {
            tracing::warn!(identity = %entry.identity, %error, "no new certificate");
            entry.set_failure(Some(error.to_string()));
        }
    }
}

/// Asks the CA once, with a key that is used for nothing else.
async fn fetch(shared: &Shared, identity: &Identity) -> Result<Parts, IdentityError> {
    let _permit = shared.permits.acquire().await.map_err(|error| internal(error.to_string()))?;
    let (key, csr_pem) = request(identity)?;
    let answer = tokio::time::timeout(FETCH_TIMEOUT, shared.ca.sign(&csr_pem, identity)).await;
    let signed = answer.map_err(|_| {
        IdentityError::Unavailable(format!("no answer within {} seconds", FETCH_TIMEOUT.as_secs()))
    })??;
    // Not every CA ends its elements with a newline.
    let (chain, roots) = (signed.chain_pem.join("\n"), signed.roots_pem.join("\n"));
    let parts = Parts::parse(identity, &chain, key, &roots, &shared.aliases)?;
    parts.check((shared.clock)())?;
    Ok(parts)
}

/// A new key and a request for it: one URI name, no subject.
fn request(identity: &Identity) -> Result<(PrivateKeyDer<'static>, String), IdentityError> {
    let failed = |error: rcgen::Error| internal(format!("no certificate request could be made: {error}"));
    let key = KeyPair::generate().map_err(failed)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let uri = identity.to_string().as_str().try_into().map_err(failed)?;
    params.subject_alt_names = vec![SanType::URI(uri)];
    let csr_pem = params.serialize_request(&key).and_then(|request| request.pem()).map_err(failed)?;
    Ok((PrivatePkcs8KeyDer::from(key.serialize_der()).into(), csr_pem))
}

/// Life left in the certificate in use; zero without one.
fn remaining_life(shared: &Shared, entry: &Entry) -> Duration {
    let hbone = entry.hbone.load();
    let not_after = hbone.as_ref().map(|hbone| hbone.not_after());
    not_after.and_then(|not_after| not_after.duration_since((shared.clock)()).ok()).unwrap_or(Duration::ZERO)
}

/// How long to wait after so many failures in a row, with so much life left in the certificate in use.
fn pause(failures: u32, remaining: Duration) -> Duration {
    if failures == 0 {
        return (remaining / 2).mul_f64(random::jitter(0.1)).max(MIN_RENEWAL);
    }
    let doubled = FIRST_BACK_OFF.saturating_mul(2_u32.saturating_pow(failures - 1)).min(MAX_BACK_OFF);
    // A certificate that is about to expire is tried for more often than the back-off alone would: what
    // counts for its pods is the time between the CA's return and the expiry.
    let bound = if remaining.is_zero() { MAX_BACK_OFF } else { (remaining / 4).max(FIRST_BACK_OFF) };
    doubled.min(bound).mul_f64(random::jitter(0.2))
}

/// Waits on tokio's clock, but no longer than the wall clock says.
async fn wait(shared: &Shared, pause: Duration) {
    let (deadline, due) = (Instant::now() + pause, (shared.clock)() + pause);
    while Instant::now() < deadline && (shared.clock)() < due {
        tokio::time::sleep_until(deadline.min(Instant::now() + CLOCK_CHECK)).await;
    }
}

fn internal(reason: String) -> IdentityError {
    IdentityError::Internal(reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn within(pause: Duration, seconds: f64, spread: f64) -> bool {
        (seconds * (1.0 - spread) - 0.001..=seconds * (1.0 + spread) + 0.001).contains(&pause.as_secs_f64())
    }

    #[test]
    fn renewal_is_at_half_life() {
        for (life, expected) in [(86_400, 43_200.0), (60, 30.0)] {
            let pause = pause(0, Duration::from_secs(life));
            assert!(within(pause, expected, 0.1), "{life}: {pause:?}");
        }
        assert_eq!(pause(0, Duration::ZERO), MIN_RENEWAL);
    }

    #[test]
    fn back_off_doubles_to_its_limit() {
        for (failures, expected) in
            [(1, 0.5), (2, 1.0), (3, 2.0), (8, 64.0), (9, 128.0), (10, 150.0), (99, 150.0)]
        {
            let pause = pause(failures, Duration::ZERO);
            assert!(within(pause, expected, 0.2), "{failures}: {pause:?}");
        }
    }

    #[test]
    fn back_off_shrinks_with_the_life_that_is_left() {
        assert!(within(pause(10, Duration::from_secs(40)), 10.0, 0.2));
        assert!(within(pause(10, Duration::from_millis(10)), 0.5, 0.2));
        assert!(within(pause(10, Duration::from_secs(43_200)), 150.0, 0.2));
    }
}
