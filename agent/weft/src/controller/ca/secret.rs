//! The Secret with the CA's key: read, created once, followed, never overwritten, put back when it is deleted.
//!
//! Istio's names (`ca-cert.pem`, `ca-key.pem`, `cert-chain.pem`, `root-cert.pem`) and those of a Secret of type
//! `kubernetes.io/tls` (`tls.crt`, `tls.key`, `ca.crt`), which is what cert-manager makes of a Certificate with `isCA`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use futures_util::{StreamExt, TryStreamExt};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ObjectReference, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, PostParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Error, Resource};
use tokio::time::{Instant, sleep_until};
use weft_identity::{Ca, CaMaterial, LiveCa};

use crate::controller::{MANAGER, lease};
use crate::output;

const CERT: &str = "ca-cert.pem";
const KEY: &str = "ca-key.pem";
const CHAIN: &str = "cert-chain.pem";
const ROOT: &str = "root-cert.pem";
const TLS_CERT: &str = "tls.crt";
const TLS_KEY: &str = "tls.key";
const TLS_CA: &str = "ca.crt";

/// Pause before the API server is asked again at the start.
const RETRY: Duration = Duration::from_secs(2);
/// Pause before a deleted Secret is put back again.
const PAUSE: Duration = Duration::from_secs(5);
/// Whoever replaces the Secret by deleting it first has so long to make the new one.
const GRACE: Duration = Duration::from_secs(2);

/// Whether the Secret, as it is at the moment, is the CA that serves.
#[derive(Debug, Default)]
pub(in crate::controller) struct State {
    failed: AtomicBool,
    restored: AtomicU64,
}

impl State {
    /// The Secret is missing or damaged, and an earlier CA serves on.
    pub(in crate::controller) fn failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// How often this process has put the Secret back.
    pub(in crate::controller) fn restored(&self) -> u64 {
        self.restored.load(Ordering::Relaxed)
    }

    fn set_failed(&self, failed: bool) {
        self.failed.store(failed, Ordering::Relaxed);
    }
}

/// The one Secret.
pub(in crate::controller) struct Secrets {
    api: Api<Secret>,
    recorder: Recorder,
    /// For messages.
    place: String,
    namespace: String,
    name: String,
    trust_domain: String,
    max_lifetime: Duration,
    state: Arc<State>,
    /// What serves, and the Secret that it is from.
    taken: Option<(CaMaterial, Secret)>,
    /// The list that is being read has it.
    listed: bool,
    /// It was deleted, and is put back then.
    restore_at: Option<Instant>,
}

impl Secrets {
    pub(super) fn new(client: &Client, (namespace, name): (&str, &str), trust_domain: &str) -> Self {
        let reporter = Reporter { controller: MANAGER.to_owned(), instance: Some(lease::identity()) };
        Self {
            api: Api::namespaced(client.clone(), namespace),
            recorder: Recorder::new(client.clone(), reporter),
            place: format!("{namespace}/{name}"),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            trust_domain: trust_domain.to_owned(),
            max_lifetime: Duration::from_hours(24),
            state: Arc::default(),
            taken: None,
            listed: false,
            restore_at: None,
        }
    }

    pub(super) fn with_max_lifetime(mut self, lifetime: Duration) -> Self {
        self.max_lifetime = lifetime;
        self
    }

    pub(super) fn state(&self) -> Arc<State> {
        Arc::clone(&self.state)
    }

    /// The CA of the Secret; where there is none, of a new one. Of several who create it at the same time one
    /// succeeds, and the others take his.
    pub(super) async fn open(&mut self) -> anyhow::Result<Ca> {
        loop {
            match self.read_or_create().await {
                Ok(secret) => {
                    let (material, ca) = self.ca(&secret)?;
                    self.taken = Some((material, secret));
                    return Ok(ca);
                }
                Err(error) if is_passing(&error) => {
                    tracing::warn!(secret = self.place, error = %output::chain(&error), "the CA's Secret cannot be read yet");
                    tokio::time::sleep(RETRY).await;
                }
                Err(error) => {
                    return Err(error).with_context(|| {
                        format!("the CA's Secret {} can be neither read nor created", self.place)
                    });
                }
            }
        }
    }

    async fn read_or_create(&self) -> Result<Secret, Error> {
        if let Some(secret) = self.api.get_opt(&self.name).await? {
            return Ok(secret);
        }
        let created = match CaMaterial::generate(&self.trust_domain) {
            Ok(material) => self.create(&material).await,
            Err(error) => return Err(Error::Service(error.into())),
        };
        match created {
            // Somebody else was quicker.
            Err(Error::Api(status)) if status.is_already_exists() => self.api.get(&self.name).await,
            Ok(secret) => {
                tracing::info!(
                    secret = self.place,
                    "a new CA: its key is in this Secret and nowhere else; keep a copy of it"
                );
                Ok(secret)
            }
            Err(error) => Err(error),
        }
    }

    async fn create(&self, material: &CaMaterial) -> Result<Secret, Error> {
        let entry = |key: &str, pem: &str| (key.to_owned(), ByteString(pem.as_bytes().to_vec()));
        let secret = Secret {
            metadata: ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
            data: Some(BTreeMap::from([
                entry(CERT, &material.certificate_pem),
                entry(KEY, &material.key_pem),
                entry(CHAIN, &material.certificate_pem),
                entry(ROOT, &material.roots_pem),
            ])),
            ..Secret::default()
        };
        self.store(&secret).await
    }

    async fn store(&self, secret: &Secret) -> Result<Secret, Error> {
        let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
        self.api.create(&params, secret).await
    }

    fn ca(&self, secret: &Secret) -> anyhow::Result<(CaMaterial, Ca)> {
        let unusable = || {
            format!(
                "the CA's Secret {} is not usable; it is never replaced: repair it, or delete it while no controller runs \
                 to begin with a new root",
                self.place
            )
        };
        let material = material(secret).map_err(anyhow::Error::msg).with_context(unusable)?;
        let ca = Ca::from_material(&material, &self.trust_domain).with_context(unusable)?;
        Ok((material, ca.with_max_lifetime(self.max_lifetime)))
    }

    /// Exchanges the CA whenever the Secret has another one, and puts back one that is deleted, for ever.
    pub(super) async fn follow(mut self, live: Arc<LiveCa>) {
        let only = watcher::Config::default().fields(&format!("metadata.name={}", self.name));
        let mut events = watcher(self.api.clone(), only).default_backoff().boxed();
        loop {
            let restore_at = self.restore_at;
            let due = async {
                match restore_at {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                event = events.try_next() => match event {
                    Ok(Some(event)) => self.notice(&event, &live),
                    Ok(None) => return,
                    Err(error) => {
                        tracing::debug!(secret = self.place, error = %output::chain(&error), "the CA's Secret is not being followed");
                    }
                },
                () = due => self.restore().await,
            }
        }
    }

    fn notice(&mut self, event: &watcher::Event<Secret>, live: &LiveCa) {
        match event {
            watcher::Event::Apply(secret) | watcher::Event::InitApply(secret) => {
                (self.listed, self.restore_at) = (true, None);
                self.take(secret, live);
            }
            watcher::Event::Init => self.listed = false,
            watcher::Event::InitDone if self.listed => {}
            watcher::Event::InitDone | watcher::Event::Delete(_) => self.missed(),
        }
    }

    fn take(&mut self, secret: &Secret, live: &LiveCa) {
        match self.ca(secret) {
            Ok((material, ca)) => {
                if self.taken.as_ref().map(|(taken, _)| taken) != Some(&material) {
                    tracing::info!(
                        secret = self.place,
                        "the CA's Secret has changed: what it holds now signs and is trusted"
                    );
                    live.replace(ca);
                }
                self.taken = Some((material, secret.clone()));
                self.state.set_failed(false);
            }
            Err(error) => self.tell_damaged(&format!("{error:#}")),
        }
    }

    /// It is not there any more.
    fn missed(&mut self) {
        tracing::error!(
            secret = self.place,
            "the CA's Secret was deleted: its key is now in the running controllers only, which put it back"
        );
        self.state.set_failed(true);
        self.restore_at = Some(Instant::now() + GRACE);
    }

    /// Makes it again as it was: another key would be one that no agent trusts. Of several controllers one succeeds.
    async fn restore(&mut self) {
        self.restore_at = None;
        let Some((_, taken)) = &self.taken else { return };
        match self.store(&copy_of(taken)).await {
            Ok(secret) => {
                self.state.restored.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(secret = self.place, "the CA's Secret is back, with the same key and root");
                self.tell_restored(&secret).await;
            }
            // Somebody else was quicker, and the watch brings what he made.
            Err(Error::Api(status)) if status.is_already_exists() => {}
            Err(error) => {
                tracing::error!(secret = self.place, error = %output::chain(&error), "the CA's Secret cannot be put back yet");
                self.restore_at = Some(Instant::now() + PAUSE);
            }
        }
    }

    async fn tell_restored(&self, secret: &Secret) {
        let event = Event {
            type_: EventType::Warning,
            reason: "Restored".to_owned(),
            note: Some(
                "The Secret was deleted; a running controller has put it back with the same key and root. \
                        To begin with a new root, see \"Rotate the root\" in the README."
                    .to_owned(),
            ),
            action: "Restore".to_owned(),
            secondary: None,
        };
        let reference = ObjectReference { namespace: Some(self.namespace.clone()), ..secret.object_ref(&()) };
        if let Err(error) = self.recorder.publish(&event, &reference).await {
            tracing::debug!(error = %output::chain(&error), "an event about the CA's Secret could not be written");
        }
    }

    fn tell_damaged(&self, error: &str) {
        tracing::error!(
            secret = self.place,
            error,
            "the CA's Secret is damaged: what was in it before serves on, until a restart"
        );
        self.state.set_failed(true);
    }
}

/// What a Secret is made of, without what the API server adds.
fn copy_of(secret: &Secret) -> Secret {
    let ObjectMeta { name, labels, annotations, .. } = secret.metadata.clone();
    Secret {
        metadata: ObjectMeta { name, labels, annotations, ..ObjectMeta::default() },
        data: secret.data.clone(),
        type_: secret.type_.clone(),
        immutable: secret.immutable,
        string_data: None,
    }
}

/// Whether it may be different in a while.
fn is_passing(error: &Error) -> bool {
    match error {
        Error::Api(status) => status.code >= 500 || status.code == 429 || status.code == 404,
        Error::HyperError(_) | Error::Service(_) => true,
        _ => false,
    }
}

/// What a Secret holds, by either set of names.
pub(super) fn material(secret: &Secret) -> Result<CaMaterial, String> {
    let empty = BTreeMap::new();
    let data = secret.data.as_ref().unwrap_or(&empty);
    let of_istio = data.contains_key(KEY) || data.contains_key(CERT);
    let (certificate, key) = if of_istio { (CERT, KEY) } else { (TLS_CERT, TLS_KEY) };
    if !of_istio && !data.contains_key(TLS_KEY) && !data.contains_key(TLS_CERT) {
        return Err(format!("it has neither {CERT} and {KEY} nor {TLS_CERT} and {TLS_KEY}"));
    }
    // Both may bring roots: what cert-manager renews is extended by hand during a rotation.
    let roots: Vec<String> =
        [TLS_CA, ROOT].into_iter().filter_map(|key| text(data, key).transpose()).collect::<Result<_, _>>()?;
    if roots.iter().all(String::is_empty) {
        return Err(format!("it has no root certificate: {ROOT} or {TLS_CA}"));
    }
    let needed = |key: &str| text(data, key)?.ok_or_else(|| format!("the key {key} is missing"));
    Ok(CaMaterial {
        certificate_pem: needed(certificate)?,
        key_pem: needed(key)?,
        chain_pem: text(data, CHAIN)?.unwrap_or_default(),
        roots_pem: roots.join("\n"),
    })
}

fn text(data: &BTreeMap<String, ByteString>, key: &str) -> Result<Option<String>, String> {
    match data.get(key) {
        Some(bytes) => match String::from_utf8(bytes.0.clone()) {
            Ok(text) => Ok(Some(text)),
            Err(_) => Err(format!("the key {key} holds no text")),
        },
        None => Ok(None),
    }
}
