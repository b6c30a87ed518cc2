//! `weft hold`: keeps the agent's listening sockets open while the agent is started again.
//!
//! It knows nothing and accepts nothing. Connections wait in the queues of the sockets, and the next agent accepts
//! them. Without one they are refused after a while, as without a holder (ruling 1).

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::Message;
use super::wire::{Listener, Wire};

/// An agent that does not take what it is given within so long is done without.
const HEARING: Duration = Duration::from_secs(2);

/// Settings of `weft hold`.
#[derive(Debug, Args)]
pub(crate) struct HoldOptions {
    /// Socket at which the agent is served, the same as its --holder-socket.
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// How long connections may wait for the next agent before they are refused.
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    patience_seconds: u64,
}

/// Holds until it is killed.
pub(crate) fn hold(options: &HoldOptions) -> anyhow::Result<()> {
    // Two or four sockets for each pod.
    crate::agent::raise_descriptor_limit();
    let listener = Listener::replace(&options.socket)?;
    let mut holder = Holder::new(Duration::from_secs(options.patience_seconds));
    loop {
        holder.step(&listener)?;
    }
}

/// The sockets of one pod, and how many of them are for connections to the pod.
struct Held {
    inbound: usize,
    sockets: Vec<OwnedFd>,
}

/// What is held, and for whom.
pub(super) struct Holder {
    patience: Duration,
    held: BTreeMap<(String, String), Held>,
    agent: Option<Wire>,
    /// When patience is over; only without an agent.
    until: Option<Instant>,
}

/// After an agent could not be accepted.
const AGAIN: Duration = Duration::from_secs(1);

impl Holder {
    pub(super) fn new(patience: Duration) -> Self {
        Self { patience, held: BTreeMap::new(), agent: None, until: None }
    }

    /// How many pods have sockets here.
    #[cfg(test)]
    pub(super) fn pods(&self) -> usize {
        self.held.len()
    }

    /// Waits for the next thing that happens, and deals with it.
    pub(super) fn step(&mut self, listener: &Listener) -> anyhow::Result<()> {
        let limit = self.until.map(|until| until.saturating_duration_since(Instant::now()));
        if limit.is_some_and(|limit| limit.is_zero()) {
            // No agent has come. What waits is refused.
            self.held.clear();
            self.until = None;
            return Ok(());
        }
        let (comes, speaks) = ready(listener, self.agent.as_ref(), limit)?;
        if speaks {
            // To its end, before anybody else: an agent that was killed may have given something just before.
            self.hear();
        } else if comes {
            self.meet(listener);
        }
        Ok(())
    }

    /// An agent comes: the one before has ended, or is being replaced.
    fn meet(&mut self, listener: &Listener) {
        let met = listener.accept().map_err(anyhow::Error::from).and_then(|agent| {
            agent.set_patience(Some(HEARING))?;
            Ok(agent)
        });
        match met {
            Ok(agent) => {
                self.agent = Some(agent);
                self.until = None;
            }
            // No descriptors are left, say. To end would be worse: what is held here would be refused.
            Err(error) => {
                eprintln!(
                    "weft hold: an agent could not be heard ({error:#}); it is tried again in a second"
                );
                std::thread::sleep(AGAIN);
            }
        }
    }

    fn hear(&mut self) {
        let Some(agent) = &self.agent else { return };
        let obeyed = match agent.receive() {
            Ok(Some((message, sockets))) => self.obey(message, sockets),
            Ok(None) => Err(anyhow::anyhow!("it has ended")),
            Err(error) => Err(error),
        };
        if let Err(error) = obeyed {
            eprintln!(
                "weft hold: the agent is gone ({error:#}); waiting {} s for another",
                self.patience.as_secs()
            );
            self.agent = None;
            self.until = Some(Instant::now() + self.patience);
        }
    }

    fn obey(&mut self, message: Message, sockets: Vec<OwnedFd>) -> anyhow::Result<()> {
        match message {
            Message::Begin => self.give(),
            Message::Pod { namespace, name, inbound } => {
                self.held.insert((namespace, name), Held { inbound, sockets });
                Ok(())
            }
            Message::Forget { namespace, name } => {
                self.held.remove(&(namespace, name));
                Ok(())
            }
            Message::Hello(_)
            | Message::Refused { .. }
            | Message::Locks
            | Message::Everything { .. }
            | Message::Commit
            | Message::Retired => anyhow::bail!("it talks nonsense"),
        }
    }

    fn give(&self) -> anyhow::Result<()> {
        let Some(agent) = &self.agent else { return Ok(()) };
        for ((namespace, name), Held { inbound, sockets }) in &self.held {
            let message =
                Message::Pod { namespace: namespace.clone(), name: name.clone(), inbound: *inbound };
            agent.send(&message, &sockets.iter().map(AsFd::as_fd).collect::<Vec<_>>())?;
        }
        let instance = format!("holder {}", std::process::id());
        let version = env!("CARGO_PKG_VERSION").into();
        agent.send(&Message::Everything { version, instance, predecessors: Vec::new() }, &[])
    }
}

/// Whether an agent comes, and whether the one that is there says something.
fn ready(listener: &Listener, agent: Option<&Wire>, limit: Option<Duration>) -> anyhow::Result<(bool, bool)> {
    let mut watched = vec![PollFd::new(listener, PollFlags::IN)];
    watched.extend(agent.map(|agent| PollFd::new(agent, PollFlags::IN)));
    let limit =
        limit.map(|limit| Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: limit.subsec_nanos().into() });
    match poll(&mut watched, limit.as_ref()) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let mut is_ready = watched.iter().map(|watched| !watched.revents().is_empty());
    Ok((is_ready.next().unwrap_or(false), is_ready.next().unwrap_or(false)))
}
