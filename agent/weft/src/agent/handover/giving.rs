//! The predecessor's side: a thread that waits for a successor.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use anyhow::{Context, bail};
use weft_core::resource::NamespacedName;
use weft_kernel::{Listeners, Netns};

use super::wire::{Listener, Wire};
use super::{Hello, Message, PROTOCOL};
use crate::agent::node::Event;

/// For the first word of a successor: others wait meanwhile.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the reconciler gives away. It does nothing until it hears the end: a word, or that nobody will say one.
#[derive(Debug)]
pub(in super::super) struct Offer {
    /// Lock of the pins.
    pub(in super::super) lock: OwnedFd,
    pub(in super::super) listeners: Vec<(NamespacedName, Listeners)>,
    /// A word when the successor has taken over; dropped without one when it failed.
    pub(in super::super) taken_over: Sender<()>,
}

/// Asks the reconciler for its offer.
pub(in super::super) type Take = Sender<anyhow::Result<Offer>>;

/// This agent was replaced.
#[derive(Debug)]
pub(in super::super) struct Retirement {
    pub(in super::super) by: Hello,
    /// The successor needs the ports of this one.
    pub(in super::super) same_netns: bool,
    /// To be told when nothing is accepted any more.
    pub(in super::super) done: Sender<()>,
}

/// What a successor is given.
pub(in super::super) struct Giver {
    pub(in super::super) node: String,
    pub(in super::super) instance: String,
    /// Agents that were replaced: they do not come back.
    pub(in super::super) replaced: Vec<String>,
    /// Lock of the state directory.
    pub(in super::super) lock: File,
    /// `None` in break-glass.
    pub(in super::super) reconciler: Option<Sender<Event>>,
    pub(in super::super) retired: tokio::sync::mpsc::UnboundedSender<Retirement>,
}

impl Giver {
    /// Waits for a successor on a thread of its own, which ends with the process or its replacement.
    pub(in super::super) fn start(self, socket: &Path) -> anyhow::Result<()> {
        let listener = Listener::replace(socket)?;
        std::thread::Builder::new().name("handover".into()).spawn(move || self.serve(&listener))?;
        Ok(())
    }

    fn serve(mut self, listener: &Listener) {
        loop {
            let wire = match listener.accept() {
                Ok(wire) => wire,
                Err(error) => {
                    tracing::warn!(%error, "a successor could not be heard");
                    std::thread::sleep(Duration::from_secs(1));
                    continue;
                }
            };
            match self.converse(&wire) {
                Ok(true) => {
                    // The end of this process tells the successor that it is alone.
                    std::mem::forget(wire);
                    return;
                }
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(error = format!("{error:#}"), "the hand-over to a successor failed")
                }
            }
        }
    }

    /// True when this agent was replaced.
    fn converse(&mut self, wire: &Wire) -> anyhow::Result<bool> {
        // Somebody who only looks whether an agent is there says nothing.
        wire.set_patience(Some(PATIENCE))?;
        let Some((Message::Hello(hello), _)) = wire.receive()? else { return Ok(false) };
        wire.set_patience(None)?;
        if let Some(why) = self.objection(&hello) {
            wire.send(&Message::Refused { why: why.clone() }, &[])?;
            bail!("{} was refused: {why}", hello.instance);
        }
        tracing::info!(
            successor = hello.instance,
            version = hello.version,
            "another agent begins to take over"
        );
        let offer = match &self.reconciler {
            Some(reconciler) => Some(ask(reconciler)?),
            None => None,
        };
        self.hand_over(wire, offer.as_ref())?;
        match wire.receive()? {
            Some((Message::Commit, _)) => {}
            Some(_) => bail!("it talks nonsense"),
            None => bail!("it has ended before it had taken over"),
        }
        if let Some(Offer { taken_over, .. }) = offer {
            taken_over.send(()).context("the reconciler has ended")?;
        }
        self.retire(hello)?;
        // A successor that has ended at this moment is not told.
        let _ = wire.send(&Message::Retired, &[]);
        Ok(true)
    }

    fn objection(&self, hello: &Hello) -> Option<String> {
        if hello.protocol != PROTOCOL {
            return Some(format!(
                "it speaks version {} of the hand-over, this agent {PROTOCOL}",
                hello.protocol
            ));
        }
        if hello.node != self.node {
            return Some(format!(
                "it is for node {} and this agent for node {}: give it its own --state-dir",
                hello.node, self.node
            ));
        }
        let was_replaced = self.replaced.contains(&hello.instance) || hello.instance == self.instance;
        was_replaced.then(|| format!("{} was replaced by this agent", hello.instance))
    }

    fn hand_over(&self, wire: &Wire, offer: Option<&Offer>) -> anyhow::Result<()> {
        let pins = offer.map(|offer| offer.lock.as_fd());
        let locks: Vec<_> = std::iter::once(self.lock.as_fd()).chain(pins).collect();
        wire.send(&Message::Locks, &locks)?;
        for (pod, listeners) in offer.into_iter().flat_map(|offer| &offer.listeners) {
            let sockets = listeners.inbound.iter().chain(&listeners.outbound);
            let message = Message::Pod {
                namespace: pod.namespace.to_string(),
                name: pod.name.to_string(),
                inbound: listeners.inbound.len(),
            };
            wire.send(&message, &sockets.map(AsFd::as_fd).collect::<Vec<_>>())?;
        }
        let everything = Message::Everything {
            version: env!("CARGO_PKG_VERSION").into(),
            instance: self.instance.clone(),
            predecessors: self.replaced.clone(),
        };
        wire.send(&everything, &[])
    }

    /// Waits until this agent accepts nothing any more.
    fn retire(&self, by: Hello) -> anyhow::Result<()> {
        let (done, over) = channel();
        let same_netns = Netns::current()?.cookie() == by.netns;
        self.retired.send(Retirement { by, same_netns, done }).ok().context("the agent has ended")?;
        // An agent that ends at this moment says nothing more.
        let _ = over.recv();
        Ok(())
    }
}

fn ask(reconciler: &Sender<Event>) -> anyhow::Result<Offer> {
    let (take, offer) = channel();
    reconciler.send(Event::Successor(take)).ok().context("the reconciler has ended")?;
    offer.recv().context("the reconciler has ended")?
}
