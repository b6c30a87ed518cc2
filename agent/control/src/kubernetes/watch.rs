//! Follows one kind: lists it, watches it, and begins again whatever happens.
//!
//! The list comes as events of the watch where the API server can do that (which costs it and us the least memory), else in
//! pages. What is known stays in force while a list is under way, and only differences are sent. An ended watch
//! goes on from where it was; only when that is too long ago (410, in any of its forms) everything is listed again.

use std::rc::Rc;
use std::time::Duration;

use kube::Client;
use tokio::time::Instant;

use super::Shared;
use super::api::{self, Failure, Lines};
use super::backoff::{Backoff, jittered};
use super::contact::Noter;
use super::kinds::{DEFINITIONS, Target};
use super::wire::{Event, Page};

/// A watch is ended by the server after between half of this and the whole, so that connections spread over the servers.
const LONGEST_WATCH: Duration = Duration::from_secs(600);
/// Bookmarks come every minute or so: a connection on which nothing comes for longer may be dead.
const IDLE: Duration = Duration::from_secs(180);
/// While a list is being streamed.
const IDLE_LIST: Duration = Duration::from_secs(30);
/// A watch that lasted as long as this was a good one.
const CALM: Duration = Duration::from_secs(5);
/// When the API server is back, agents return within this time.
const RETURN: Duration = Duration::from_millis(500);
/// So many failures in a row are a finding: one may just be a server that is being restarted.
const TOLD_AFTER: u32 = 2;

/// The watch of one kind.
pub(super) struct Watch {
    shared: Rc<Shared>,
    target: Target,
    label: String,
    noter: Noter,
    /// Whether the server is believed to stream lists.
    streaming: bool,
    /// Where to go on; `None` when everything is to be listed.
    version: Option<String>,
    backoff: Backoff,
    failures: u32,
}

/// Reads a list page by page. `visit` is given each page; returns the version of the list.
pub(super) async fn pages(
    client: &Client,
    target: &Target,
    visit: &mut dyn FnMut(&Page<'_>),
) -> Result<String, Failure> {
    let metadata_only = target.wanted == DEFINITIONS;
    let mut next = String::new();
    loop {
        let mut path = format!("{}limit={}", target.path(), target.wanted.page);
        if !next.is_empty() {
            path = format!("{path}&continue={}", escaped(&next));
        }
        let body = api::read(client, &path, metadata_only).await?;
        let page = Page::read(&body)?;
        visit(&page);
        if page.next.is_empty() {
            return Ok(page.version);
        }
        next = page.next;
    }
}

/// Escapes what is not allowed in the query of a URL.
fn escaped(text: &str) -> String {
    let unreserved = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().fold(String::with_capacity(text.len()), |mut out, byte| {
        if unreserved(byte) {
            out.push(char::from(byte));
        } else {
            out += &format!("%{byte:02X}");
        }
        out
    })
}

impl Watch {
    pub(super) fn new(shared: Rc<Shared>, target: Target) -> Self {
        let label = target.label();
        let noter = shared.store.borrow().noter(&label);
        let streaming = shared.streaming;
        Self {
            shared,
            target,
            label,
            noter,
            streaming,
            version: None,
            backoff: Backoff::default(),
            failures: 0,
        }
    }

    /// Runs until it is dropped.
    pub(super) async fn run(mut self) {
        let mut anew = self.shared.anew.subscribe();
        loop {
            let began = Instant::now();
            let ended = tokio::select! {
                ended = self.round() => ended,
                _ = anew.changed() => {
                    self.version = None;
                    continue;
                }
            };
            let wait = self.after(ended, began.elapsed());
            if let Some(wait) = wait {
                self.pause(wait).await;
            }
        }
    }

    /// What to do after the end of a round, and how long to wait.
    fn after(&mut self, ended: Result<(), Failure>, lasted: Duration) -> Option<Duration> {
        if lasted >= CALM {
            self.backoff.reset();
        }
        let Err(failure) = ended else {
            self.noter.disconnected(None);
            // A server that ends its watches at once must not be asked in a circle.
            return (lasted < CALM).then(|| self.backoff.wait());
        };
        tracing::debug!(kind = self.label, %failure, "a watch ended");
        let listing = self.version.is_none();
        let mut least = Duration::ZERO;
        match &failure {
            // The server is well: what we had was too old.
            Failure::Expired | Failure::AheadOfServer => self.version = None,
            Failure::NotUnderstood(_) | Failure::Stalled if listing && self.streaming => {
                self.streaming = false;
                return None;
            }
            Failure::NotUnderstood(_) => self.version = None,
            // A watch on which nothing came may be one of a kind that knows no bookmarks.
            Failure::Stalled if !listing => {
                self.noter.disconnected(None);
                return None;
            }
            Failure::NotFound => self.shared.rediscover.notify_one(),
            Failure::Busy(wait) => least = wait.unwrap_or_default(),
            Failure::Denied(_)
            | Failure::Unauthorized(_)
            | Failure::Unreachable(_)
            | Failure::Server(_)
            | Failure::Garbage(_)
            | Failure::Stalled
            | Failure::Cut => {}
        }
        self.failed(&failure);
        Some(self.backoff.wait().max(jittered(least * 2)))
    }

    fn failed(&mut self, failure: &Failure) {
        self.failures = self.failures.saturating_add(1);
        let text = failure.to_string();
        self.noter.disconnected(Some(text.clone()));
        let mut store = self.shared.store.borrow_mut();
        match failure {
            Failure::Denied(_) if self.is_of_definitions() => store.set_polling(true),
            Failure::Denied(_) => store.denied(&self.label, text),
            _ if self.failures >= TOLD_AFTER => store.failed(&self.label, Some(text)),
            _ => return,
        }
        self.shared.changed.notify_one();
    }

    /// Waits; less if another watch finds the server well again.
    async fn pause(&self, wait: Duration) {
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = self.shared.reachable.notified() => tokio::time::sleep(jittered(RETURN)).await,
        }
    }

    fn is_of_definitions(&self) -> bool {
        self.target.wanted == DEFINITIONS
    }

    /// Lists if that is necessary, and watches to the watch's end.
    async fn round(&mut self) -> Result<(), Failure> {
        if self.version.is_none() && !self.streaming {
            self.list().await?;
        }
        self.watch().await
    }

    async fn list(&mut self) -> Result<(), Failure> {
        self.noter.lists();
        self.shared.store.borrow_mut().begin(&self.label);
        let Self { shared, target, label, noter, .. } = self;
        let objects = *target != Target::of(DEFINITIONS);
        let version = pages(&shared.client, target, &mut |page| {
            noter.heard();
            let mut store = shared.store.borrow_mut();
            for object in page.objects.iter().filter(|_| objects) {
                store.upsert(label, object.head(), object.text);
            }
        })
        .await?;
        self.complete(version);
        Ok(())
    }

    /// Everything was listed.
    fn complete(&mut self, version: String) {
        self.version = Some(version);
        self.noter.synced();
        self.shared.store.borrow_mut().end(&self.label);
        self.shared.changed.notify_one();
        if self.is_of_definitions() {
            self.shared.rediscover.notify_one();
        }
    }

    async fn watch(&mut self) -> Result<(), Failure> {
        let from = match &self.version {
            Some(version) => format!("resourceVersion={}", escaped(version)),
            None => "sendInitialEvents=true&resourceVersionMatch=NotOlderThan".to_owned(),
        };
        let mut listing = self.version.is_none();
        let path = format!(
            "{}watch=true&allowWatchBookmarks=true&timeoutSeconds={}&{from}",
            self.target.path(),
            jittered(LONGEST_WATCH).as_secs()
        );
        if listing {
            self.noter.lists();
        }
        self.noter.watches();
        let answer = api::get(&self.shared.client, &path, self.is_of_definitions()).await?;
        let mut lines = Lines::new(answer);
        if listing {
            self.shared.store.borrow_mut().begin(&self.label);
        } else {
            self.connected();
        }
        while let Some(line) = lines.next(if listing { IDLE_LIST } else { IDLE }).await? {
            self.noter.heard();
            let event = Event::read(&line).inspect_err(|failure| {
                if matches!(failure, Failure::Garbage(_)) {
                    self.noter.undecodable();
                }
            })?;
            listing = self.take(event, listing);
        }
        if listing { Err(Failure::Cut) } else { Ok(()) }
    }

    /// Takes an event in; whether the list is still under way.
    fn take(&mut self, event: Event<'_>, listing: bool) -> bool {
        let (object, is_gone) = match event {
            Event::Bookmark { version, complete } if listing => {
                if complete {
                    self.complete(version);
                    self.connected();
                }
                return !complete;
            }
            Event::Bookmark { version, .. } => {
                self.version = Some(version);
                return false;
            }
            Event::Upsert(object) => (object, false),
            Event::Delete(object) => (object, true),
        };
        let head = object.head();
        if !listing {
            self.version = Some(head.version.to_owned());
        }
        if self.is_of_definitions() {
            if !listing && self.shared.concerns(head.name) {
                self.shared.rediscover.notify_one();
            }
            return listing;
        }
        let mut store = self.shared.store.borrow_mut();
        if is_gone {
            store.delete(&self.label, head);
        } else {
            store.upsert(&self.label, head, object.text);
        }
        if !listing {
            self.shared.changed.notify_one();
        }
        listing
    }

    /// The watch is open.
    fn connected(&mut self) {
        self.noter.connected();
        if self.failures == 0 {
            return;
        }
        self.failures = 0;
        let mut store = self.shared.store.borrow_mut();
        if self.is_of_definitions() {
            store.set_polling(false);
        }
        store.failed(&self.label, None);
        self.shared.changed.notify_one();
        self.shared.reachable.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_escaped() {
        assert_eq!(escaped("eyJ2-_.~/+="), "eyJ2-_.~%2F%2B%3D");
    }
}
