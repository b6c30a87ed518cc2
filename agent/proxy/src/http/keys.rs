//! Keys that tokens are verified with: parsed once, fetched where the issuer publishes them (RA-5).
//!
//! Belongs to one worker. A request that waits for keys keeps nobody else waiting.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout};
use weft_core::Snapshot;
use weft_core::decide::request_authentication::{Claims, JwtFailure};
use weft_core::resource::request_authentication::{JwtRule, KeySource};
use weft_core::snapshot::LocalWorkload;
use weft_identity::jwt::{JwkSet, Unverified};

use super::outcall;
use crate::pod::Pod;
use crate::worker::Worker;

/// How long keys are good for.
const GOOD_FOR: Duration = Duration::from_secs(300);
/// How long keys are still used while no new ones can be had.
const AT_MOST: Duration = Duration::from_secs(3600);
/// How long keys are taken for all that the issuer has.
const ROTATION: Duration = Duration::from_secs(30);
/// How soon a failed attempt is repeated.
const AGAIN: Duration = Duration::from_secs(5);
/// Sources that a worker remembers.
const MOST: usize = 512;
/// A set of keys is not larger, in bytes.
const LARGEST: usize = 1024 * 1024;

/// The keys of all sources that this worker has met.
#[derive(Default)]
pub(crate) struct Keys(RefCell<HashMap<(KeySource, Arc<str>), Entry>>);

struct Entry {
    set: Option<(Rc<JwkSet>, Instant)>,
    failed: Option<(JwtFailure, Instant)>,
    /// Somebody is fetching.
    busy: Option<Rc<Notify>>,
}

impl Entry {
    const EMPTY: Self = Self { set: None, failed: None, busy: None };

    /// What is known, if it is known well enough.
    fn known(&self, remote: bool) -> Option<Result<Rc<JwkSet>, JwtFailure>> {
        let failed = self.failed.as_ref().filter(|(_, at)| !remote || at.elapsed() < AGAIN);
        match (&self.set, failed) {
            (Some((set, _)), _) if !remote => Some(Ok(set.clone())),
            (Some((set, at)), _) if at.elapsed() < GOOD_FOR => Some(Ok(set.clone())),
            (Some((set, at)), Some(_)) if at.elapsed() < AT_MOST => Some(Ok(set.clone())),
            (_, Some((failure, _))) => Some(Err(failure.clone())),
            (_, None) => None,
        }
    }
}

fn key(rule: &JwtRule) -> (KeySource, Arc<str>) {
    let issuer = match &rule.keys {
        KeySource::Inline(_) | KeySource::Uri(_) => "".into(),
        KeySource::Discovery => rule.issuer.clone(),
    };
    (rule.keys.clone(), issuer)
}

fn is_remote(source: &KeySource) -> bool {
    match source {
        KeySource::Inline(_) => false,
        KeySource::Uri(_) | KeySource::Discovery => true,
    }
}

impl Keys {
    /// Verifies a token; [`JwtFailure::KeysMissing`] asks for [`Keys::fetch`].
    pub(crate) fn verify(&self, rule: &JwtRule, token: &str, now: i64) -> Result<Claims, JwtFailure> {
        // What needs no key comes first: a token of another issuer waits for nobody's keys.
        let token = Unverified::read(rule, token, now)?;
        let verified = token.verify(&*self.of(rule)?);
        match verified {
            Err(JwtFailure::KeyNotFound) if self.may_have_rotated(rule) => Err(JwtFailure::KeysMissing),
            verified => verified,
        }
    }

    /// Whether an unknown key may be one that the issuer has published since its keys were fetched.
    fn may_have_rotated(&self, rule: &JwtRule) -> bool {
        let key = key(rule);
        let entries = self.0.borrow();
        let Some(Entry { set: Some((_, at)), failed, .. }) = entries.get(&key) else { return false };
        let failed_lately = failed.as_ref().is_some_and(|(_, at)| at.elapsed() < AGAIN);
        is_remote(&key.0) && at.elapsed() >= ROTATION && !failed_lately
    }

    fn of(&self, rule: &JwtRule) -> Result<Rc<JwkSet>, JwtFailure> {
        let key = key(rule);
        let remote = is_remote(&key.0);
        let mut entries = self.0.borrow_mut();
        if let Some(known) = entries.get(&key).and_then(|entry| entry.known(remote)) {
            return known;
        }
        let KeySource::Inline(text) = &rule.keys else { return Err(JwtFailure::KeysMissing) };
        let parsed = JwkSet::parse(text).map(Rc::new).map_err(|_| JwtFailure::KeysInvalid);
        if entries.len() >= MOST {
            entries.clear();
        }
        let entry = entries.entry(key).or_insert(Entry::EMPTY);
        match &parsed {
            Ok(set) => entry.set = Some((set.clone(), Instant::now())),
            Err(failure) => entry.failed = Some((failure.clone(), Instant::now())),
        }
        parsed
    }

    /// Fetches the keys of a rule, or waits for somebody who does.
    pub(crate) async fn fetch(
        &self,
        worker: &Rc<Worker>,
        snapshot: &Arc<Snapshot>,
        (pod, local): (&Arc<Pod>, &Arc<LocalWorkload>),
        rule: &JwtRule,
    ) {
        let key = key(rule);
        let busy = {
            let mut entries = self.0.borrow_mut();
            if entries.len() >= MOST && !entries.contains_key(&key) {
                entries.retain(|_, entry| entry.busy.is_some());
            }
            let entry = entries.entry(key.clone()).or_insert(Entry::EMPTY);
            match &entry.busy {
                Some(busy) => Some(busy.clone()),
                None => {
                    let busy = Rc::new(Notify::new());
                    entry.busy = Some(busy.clone());
                    let (task, snapshot) = (worker.clone(), snapshot.clone());
                    let (pod, local, rule, source) = (pod.clone(), local.clone(), rule.clone(), key.clone());
                    worker.spawn(async move {
                        let fetched = timeout(rule.timeout, fetch(&task, &snapshot, (&pod, &local), &rule));
                        let fetched = fetched.await.unwrap_or(Err(JwtFailure::KeysUnavailable));
                        task.keys.fetched(&source, fetched);
                    });
                    Some(busy)
                }
            }
        };
        if let Some(busy) = busy {
            // The task may die by a panic: nobody waits for ever.
            let _ = timeout(rule.timeout + Duration::from_secs(1), busy.notified()).await;
        }
    }

    fn fetched(&self, key: &(KeySource, Arc<str>), fetched: Result<JwkSet, JwtFailure>) {
        let mut entries = self.0.borrow_mut();
        let entry = entries.entry(key.clone()).or_insert(Entry::EMPTY);
        match fetched {
            Ok(set) => {
                entry.set = Some((Rc::new(set), Instant::now()));
                entry.failed = None;
            }
            Err(failure) => entry.failed = Some((failure, Instant::now())),
        }
        if let Some(busy) = entry.busy.take() {
            busy.notify_waiters();
        }
    }
}

async fn fetch(
    worker: &Rc<Worker>,
    snapshot: &Arc<Snapshot>,
    of: (&Arc<Pod>, &Arc<LocalWorkload>),
    rule: &JwtRule,
) -> Result<JwkSet, JwtFailure> {
    let get = async |url: &str| {
        let bytes = outcall::get(worker, snapshot, of, url, LARGEST).await;
        let bytes = bytes.inspect_err(|error| {
            tracing::warn!(issuer = %rule.issuer, url, %error, "keys for JWTs could not be fetched");
        });
        String::from_utf8(bytes.map_err(|_| JwtFailure::KeysUnavailable)?)
            .map_err(|_| JwtFailure::KeysInvalid)
    };
    let text = match &rule.keys {
        KeySource::Inline(text) => text.to_string(),
        KeySource::Uri(url) => get(url).await?,
        KeySource::Discovery => {
            let issuer = rule.issuer.trim_end_matches('/');
            let document = get(&format!("{issuer}/.well-known/openid-configuration")).await?;
            let url = jwks_uri(&document).ok_or(JwtFailure::KeysInvalid)?;
            get(&url).await?
        }
    };
    JwkSet::parse(&text).map_err(|_| JwtFailure::KeysInvalid)
}

/// `jwks_uri` of an OpenID provider's configuration.
fn jwks_uri(document: &str) -> Option<String> {
    let document: serde_json::Value = serde_json::from_str(document).ok()?;
    Some(document.get("jwks_uri")?.as_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_of_a_provider_names_its_keys() {
        assert_eq!(
            jwks_uri(r#"{"issuer":"a","jwks_uri":"https://a/keys"}"#).as_deref(),
            Some("https://a/keys")
        );
        assert_eq!(jwks_uri("{}"), None);
        assert_eq!(jwks_uri("<html>"), None);
    }

    /// `{"alg":"ES256","kid":"new"}`, `{"iss":"a"}` and a signature that is none.
    const TOKEN: &str = "eyJhbGciOiJFUzI1NiIsImtpZCI6Im5ldyJ9.eyJpc3MiOiJhIn0.AA";

    fn rule(issuer: &str, keys: KeySource) -> JwtRule {
        JwtRule {
            issuer: issuer.into(),
            audiences: Vec::new(),
            keys,
            from_headers: Vec::new(),
            from_params: Vec::new(),
            from_cookies: Vec::new(),
            output_payload_to_header: None,
            output_claim_to_headers: Vec::new(),
            forward_original_token: false,
            timeout: Duration::from_secs(5),
            space_delimited_claims: Vec::new(),
            required: false,
        }
    }

    #[test]
    fn keys_that_are_none_refuse_tokens() {
        let keys = Keys::default();
        let inline = rule("a", KeySource::Inline("nonsense".into()));
        assert_eq!(keys.verify(&inline, TOKEN, 0), Err(JwtFailure::KeysInvalid));
        let remote = rule("a", KeySource::Uri("http://a/".into()));
        assert_eq!(keys.verify(&remote, TOKEN, 0), Err(JwtFailure::KeysMissing));
        keys.fetched(&key(&remote), Err(JwtFailure::KeysUnavailable));
        assert_eq!(keys.verify(&remote, TOKEN, 0), Err(JwtFailure::KeysUnavailable));
    }

    #[test]
    fn nobody_waits_for_keys_that_cannot_help() {
        let keys = Keys::default();
        let other = rule("b", KeySource::Uri("http://b/".into()));
        assert_eq!(keys.verify(&other, TOKEN, 0), Err(JwtFailure::Issuer));
        assert_eq!(keys.verify(&other, "a.b.c", 0), Err(JwtFailure::HeaderEncoding));
    }

    #[tokio::test(start_paused = true)]
    async fn an_unknown_key_may_be_a_new_one() {
        let keys = Keys::default();
        let remote = rule("a", KeySource::Uri("http://a/".into()));
        let set = || JwkSet::parse(r#"{"keys": [{"kty": "oct", "kid": "old", "k": "AAAA"}]}"#);
        keys.fetched(&key(&remote), Ok(set().unwrap()));
        assert_eq!(keys.verify(&remote, TOKEN, 0), Err(JwtFailure::KeyNotFound));
        tokio::time::advance(ROTATION).await;
        assert_eq!(keys.verify(&remote, TOKEN, 0), Err(JwtFailure::KeysMissing));
        keys.fetched(&key(&remote), Ok(set().unwrap()));
        assert_eq!(keys.verify(&remote, TOKEN, 0), Err(JwtFailure::KeyNotFound));
    }
}
