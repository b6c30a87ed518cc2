//! The place of a node's agent: free, or made free by the agent that has it.

use std::collections::BTreeSet;
use std::fs::File;
use std::sync::mpsc::Sender;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use weft_control::writer::Published;
use weft_core::resource::NamespacedName;
use weft_identity::CertStore;
use weft_kernel::{Inheritance, Listeners};

use super::Agent;
use super::handover::{self, Giver, Hello, Refused, Retirement, SOCKET, Seat, Taken};
use super::node::Event;
use super::options::Options;
use super::standing::Standing;
use super::starting::Running;
use crate::shutdown::Signals;

/// How long certificates may take before an agent takes over without them: its predecessor's expire as well.
const CERTIFICATES: Duration = Duration::from_secs(10);

/// What an agent has that may serve its node.
pub(super) struct Place {
    instance: String,
    /// Of the state directory.
    lock: File,
    /// From an agent that runs.
    taken: Option<Taken>,
    /// Agents that were replaced.
    replaced: Vec<String>,
}

impl Agent {
    /// Waits for everything that can be had beforehand, and takes the place. `None` when it is not to be had, for a pod
    /// that was replaced and is going to be deleted.
    pub(super) async fn take_place(
        &self,
        seat: Seat,
        certs: &CertStore,
        config: &Published,
        signals: &mut Signals,
    ) -> anyhow::Result<Option<Place>> {
        let instance = handover::instance();
        let free = |instance, lock| Place { instance, lock, taken: None, replaced: Vec::new() };
        if let Seat::Free(lock) = seat {
            return Ok(Some(free(instance, lock)));
        }
        tracing::info!("another agent serves this node: taking over from it");
        certificates(certs, config).await;
        let hello = Hello::of(&self.options.node, &instance)?;
        let directory = self.options.state_dir.clone();
        match tokio::task::spawn_blocking(move || Seat::take(&directory, &hello)).await? {
            Ok(Ok(taken)) => {
                let lock = taken.lock.try_clone().context("the lock cannot be kept")?;
                let replaced = taken.replaced.clone();
                Ok(Some(Place { instance, lock, taken: Some(taken), replaced }))
            }
            Ok(Err(lock)) => Ok(Some(free(instance, lock))),
            Err(error) if error.is::<Refused>() && self.is_pod() => {
                tracing::error!(
                    error = format!("{error:#}"),
                    "this pod is not needed any more; waiting to be deleted"
                );
                signals.next().await;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

/// Waits until there are certificates for all pods of the node.
async fn certificates(certs: &CertStore, config: &Published) {
    let snapshot = config.snapshot();
    let in_mesh = snapshot.local().iter().filter(|local| local.workload.in_mesh());
    let identities: BTreeSet<_> = in_mesh.map(|local| (*local.workload.identity).clone()).collect();
    certs.want(identities.clone());
    let all = async {
        for identity in &identities {
            if let Err(error) = certs.wait(identity, CERTIFICATES).await {
                tracing::warn!(%error, "taking over without a certificate");
            }
        }
    };
    if tokio::time::timeout(CERTIFICATES, all).await.is_err() {
        tracing::warn!("taking over without all certificates");
    }
}

impl Place {
    /// What the predecessor gives to the data path, else what was held; once.
    pub(super) fn inheritance(&mut self, held: Vec<(NamespacedName, Listeners)>) -> Inheritance {
        let given = self.taken.as_mut().map(|taken| std::mem::take(&mut taken.inheritance));
        given.unwrap_or(Inheritance { lock: None, listeners: held })
    }

    /// Everything is in our hands once the first pass is over: the predecessor, if there is one, is to end.
    pub(super) async fn commit(
        &mut self,
        running: Option<&mut Running>,
        standing: &Standing,
    ) -> anyhow::Result<()> {
        let Some(taken) = self.taken.take() else { return Ok(()) };
        let mut reconciler = None;
        if let Some(running) = running {
            if let Some(began) = running.began.take() {
                began.await.context("the reconciler has ended in its first pass")?;
            }
            reconciler = Some(running.events.clone());
        }
        let from = taken.from.clone();
        standing.took_over(&from.instance);
        match tokio::task::spawn_blocking(move || taken.commit()).await? {
            Ok(ending) => match reconciler {
                Some(reconciler) => ending.tell(reconciler)?,
                None => drop(ending),
            },
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "the predecessor has ended before it was told");
                let _ = reconciler.map(|reconciler| reconciler.send(Event::PredecessorEnded));
            }
        }
        tracing::info!(predecessor = from.instance, version = from.version, "took over");
        Ok(())
    }

    /// Offers the place to a successor from now on.
    pub(super) fn offer(
        self,
        options: &Options,
        reconciler: Option<Sender<Event>>,
    ) -> anyhow::Result<UnboundedReceiver<Retirement>> {
        let (retired, retirement) = unbounded_channel();
        let giver = Giver {
            node: options.node.clone(),
            instance: self.instance,
            replaced: self.replaced,
            lock: self.lock,
            reconciler,
            retired,
        };
        giver.start(&options.state_dir.join(SOCKET)).context("no successor could take over")?;
        Ok(retirement)
    }
}
