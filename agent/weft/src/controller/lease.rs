//! Leader election: of several controllers one writes, the one that holds the Lease (coordination.k8s.io/v1).
//!
//! Clocks of different machines are never compared. Who waits measures with his own clock how long the Lease has
//! stood unchanged, and takes it over once that is as long as the Lease itself says. Who holds it stops writing at
//! two thirds of that time, counted from before his last renewal was sent: in between lies a third for requests
//! that are under way.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};
use tokio::sync::watch;

use crate::output;

/// What is agreed about time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Terms {
    duration: Duration,
}

impl Terms {
    /// Shorter Leases would be lost by an API server that is slow for a moment.
    const SHORTEST: Duration = Duration::from_secs(3);

    /// Terms of a Lease that others may take over after `duration` without a sign of life.
    pub(super) fn new(duration: Duration) -> Self {
        Self { duration: duration.max(Self::SHORTEST) }
    }

    /// How long a renewal lets its holder write.
    fn writes_for(self) -> Duration {
        self.duration * 2 / 3
    }

    /// How often the Lease is renewed, or looked at.
    fn every(self) -> Duration {
        self.duration * 2 / 15
    }

    /// For one request of the holder: what is sent while he may write has ended before another one may.
    pub(super) fn request(self) -> Duration {
        self.duration / 4
    }
}

/// What a Lease says about its holder.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Record {
    /// Empty when it was released.
    holder: String,
    duration: Duration,
    renewed: Option<Timestamp>,
    transitions: i32,
}

impl Record {
    fn of(lease: &Lease) -> Self {
        let spec = lease.spec.clone().unwrap_or_default();
        let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        Self {
            holder: spec.holder_identity.unwrap_or_default(),
            duration: Duration::from_secs(seconds.unwrap_or_default()),
            renewed: spec.renew_time.map(|time| time.0),
            transitions: spec.lease_transitions.unwrap_or_default(),
        }
    }
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// There is no Lease.
    Create,
    /// It is ours.
    Renew,
    /// It was released, or its holder has given no sign of life for as long as it says.
    TakeOver,
    /// Another one holds it.
    Wait,
}

/// What one candidate has seen.
#[derive(Debug)]
struct Election {
    identity: String,
    /// The last record, and when it was first seen like that. `None` while there is no Lease.
    seen: Option<(Record, Instant)>,
}

impl Election {
    fn new(identity: String) -> Self {
        Self { identity, seen: None }
    }

    /// Notes what the API server said at `now`.
    fn observe(&mut self, record: Option<Record>, now: Instant) {
        self.seen = match (record, self.seen.take()) {
            (None, _) => None,
            (Some(record), Some((before, since))) if record == before => Some((before, since)),
            (Some(record), _) => Some((record, now)),
        };
    }

    fn step(&self, now: Instant) -> Step {
        let Some((record, since)) = &self.seen else { return Step::Create };
        if record.holder == self.identity {
            Step::Renew
        } else if record.holder.is_empty() || now.duration_since(*since) >= record.duration {
            Step::TakeOver
        } else {
            Step::Wait
        }
    }

    /// Whose it is, for the log.
    fn holder(&self) -> &str {
        self.seen.as_ref().map_or("", |(record, _)| &record.holder)
    }
}

/// Whether we may write; clones look at the same election.
#[derive(Debug, Clone)]
pub(super) struct Leadership {
    /// The moment until which we may write.
    until: watch::Receiver<Option<Instant>>,
    terms: Terms,
}

impl Leadership {
    /// Whether a request may be sent now. It must end within [`Terms::request`].
    pub(super) fn holds(&self) -> bool {
        self.until.borrow().is_some_and(|until| Instant::now() < until)
    }

    /// The terms of the Lease.
    pub(super) fn terms(&self) -> Terms {
        self.terms
    }

    /// Waits until we may write. Never returns when the election is over.
    pub(super) async fn won(&mut self) {
        while !self.holds() {
            if self.until.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Waits until we may not write any more.
    ///
    /// # Cancel safety
    ///
    /// May be dropped and called again.
    pub(super) async fn lost(&mut self) {
        loop {
            let until = *self.until.borrow_and_update();
            let Some(until) = until.filter(|until| Instant::now() < *until) else { return };
            tokio::select! {
                () = tokio::time::sleep_until(until.into()) => {}
                // The election is over: what was won holds until it runs out.
                changed = self.until.changed() => if changed.is_err() {
                    tokio::time::sleep_until(until.into()).await;
                },
            }
        }
    }
}

/// A candidate.
pub(super) struct Candidate {
    leases: Api<Lease>,
    name: String,
    terms: Terms,
    election: Election,
    /// As it was last read or written, for its resourceVersion.
    lease: Option<Lease>,
    until: watch::Sender<Option<Instant>>,
    /// An error that was told already.
    told: bool,
}

impl Candidate {
    /// A candidate for the Lease `name`, and what tells whether it leads.
    pub(super) fn new(leases: Api<Lease>, name: &str, identity: String, terms: Terms) -> (Self, Leadership) {
        let (until, receiver) = watch::channel(None);
        let election = Election::new(identity);
        let candidate =
            Self { leases, name: name.to_owned(), terms, election, lease: None, until, told: false };
        (candidate, Leadership { until: receiver, terms })
    }

    /// Runs for election until `stop` ends. The Lease stays as it is: [`Candidate::release`] gives it back.
    pub(super) async fn run(&mut self, stop: impl Future<Output = ()>) {
        let mut stop = std::pin::pin!(stop);
        loop {
            let round = tokio::time::timeout(self.terms.request(), self.round());
            tokio::select! {
                () = &mut stop => return,
                result = round => self.tell(result),
            }
            self.give_up_if_late();
            tokio::select! {
                () = &mut stop => return,
                () = tokio::time::sleep(self.terms.every()) => {}
            }
        }
    }

    /// Gives the Lease back, so that nobody has to wait for its end. Call it when all writing has ended.
    pub(super) async fn release(mut self) {
        if self.until.send_replace(None).is_none() {
            return;
        }
        let Some(mut lease) = self.lease.take() else { return };
        let spec = lease.spec.get_or_insert_default();
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        spec.renew_time = Some(MicroTime(Timestamp::now()));
        let params = PostParams::default();
        let release = self.leases.replace(&self.name, &params, &lease);
        match tokio::time::timeout(self.terms.request(), release).await {
            Ok(Ok(_)) => tracing::info!(lease = self.name, "leadership given back"),
            Ok(Err(_)) | Err(_) => tracing::debug!(lease = self.name, "leadership ends by itself"),
        }
    }

    async fn round(&mut self) -> Result<(), kube::Error> {
        // Who leads knows the Lease; where it has changed all the same, the API server tells of a conflict.
        if self.until.borrow().is_none() || self.lease.is_none() {
            let lease = self.leases.get_opt(&self.name).await?;
            self.election.observe(lease.as_ref().map(Record::of), Instant::now());
            self.lease = lease;
        }
        let step = self.election.step(Instant::now());
        let sent = Instant::now();
        let written = match step {
            Step::Wait => return self.follow(),
            Step::Create => self.leases.create(&PostParams::default(), &self.next(step)).await,
            Step::Renew | Step::TakeOver => {
                self.leases.replace(&self.name, &PostParams::default(), &self.next(step)).await
            }
        };
        match written {
            Ok(lease) => {
                self.election.observe(Some(Record::of(&lease)), Instant::now());
                self.lease = Some(lease);
                self.lead(sent, step);
                Ok(())
            }
            // Another one was faster: the next round looks at what he wrote.
            Err(kube::Error::Api(status)) if status.code == 409 => {
                self.lease = None;
                Ok(())
            }
            Err(error) => {
                // Perhaps it was written: the next round looks.
                self.lease = None;
                Err(error)
            }
        }
    }

    /// The Lease as we would have it.
    fn next(&self, step: Step) -> Lease {
        let now = MicroTime(Timestamp::now());
        let mut lease = self.lease.clone().unwrap_or_else(|| Lease {
            metadata: ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
            spec: None,
        });
        let before = lease.spec.take().unwrap_or_default();
        let taken = step != Step::Renew;
        let transitions = before.lease_transitions.unwrap_or_default();
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(self.election.identity.clone()),
            lease_duration_seconds: i32::try_from(self.terms.duration.as_secs()).ok(),
            renew_time: Some(now.clone()),
            acquire_time: if taken { Some(now) } else { before.acquire_time },
            lease_transitions: Some(if taken { transitions.saturating_add(1) } else { transitions }),
            ..LeaseSpec::default()
        });
        lease
    }

    fn lead(&mut self, sent: Instant, step: Step) {
        let before = self.until.send_replace(Some(sent + self.terms.writes_for()));
        if before.is_none() {
            tracing::info!(lease = self.name, identity = self.election.identity, ?step, "leading");
        }
    }

    fn follow(&mut self) -> Result<(), kube::Error> {
        if self.until.send_replace(None).is_some() {
            tracing::warn!(lease = self.name, leader = self.election.holder(), "another one leads");
        }
        Ok(())
    }

    /// Once too late, we have to look at the Lease before we may write again.
    fn give_up_if_late(&mut self) {
        let late = self.until.borrow().is_some_and(|until| Instant::now() >= until);
        if late && self.until.send_replace(None).is_some() {
            tracing::warn!(
                lease = self.name,
                "leadership was not renewed in time: nothing is written any more"
            );
        }
    }

    fn tell(&mut self, result: Result<Result<(), kube::Error>, tokio::time::error::Elapsed>) {
        let error = match result {
            Ok(Ok(())) => {
                self.told = false;
                return;
            }
            Ok(Err(error)) => output::chain(&error),
            Err(_) => {
                self.lease = None;
                "the API server does not answer in time".to_owned()
            }
        };
        if !std::mem::replace(&mut self.told, true) {
            tracing::warn!(lease = self.name, error, "the Lease of the leader cannot be read or written");
        }
    }
}

/// A name that no other process has: host (in a pod that is the pod), process, and something random.
pub(super) fn identity() -> String {
    use std::hash::{BuildHasher, Hasher};

    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = Some(host.trim()).filter(|host| !host.is_empty()).unwrap_or("unknown");
    let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
    format!("{host}_{}_{:08x}", std::process::id(), random & 0xffff_ffff)
}

#[cfg(test)]
#[path = "lease_tests.rs"]
mod tests;
