//! The successor's side.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::mpsc::Sender;

use anyhow::{Context, bail, ensure};
use weft_core::resource::NamespacedName;
use weft_kernel::{Inheritance, Listeners};

use super::wire::Wire;
use super::{Hello, Message, REMEMBERED, listeners};
use crate::agent::node::Event;

/// The agent that makes room.
#[derive(Debug, Clone)]
pub(in super::super) struct Predecessor {
    pub(in super::super) version: String,
    pub(in super::super) instance: String,
}

/// What was handed over. Dropped before [`Taken::commit`], the predecessor takes up its work again.
#[derive(Debug)]
pub(in super::super) struct Taken {
    pub(in super::super) from: Predecessor,
    /// It and those before it.
    pub(in super::super) replaced: Vec<String>,
    /// Lock of the state directory.
    pub(in super::super) lock: File,
    /// For the data path; to be taken.
    pub(in super::super) inheritance: Inheritance,
    wire: Wire,
}

/// The agent that runs does not make room.
#[derive(Debug, thiserror::Error)]
#[error("the agent that is to be replaced refuses: {0}")]
pub(in super::super) struct Refused(String);

/// Asks the agent at the other end.
pub(super) fn take(wire: Wire, hello: &Hello) -> anyhow::Result<Taken> {
    wire.send(&Message::Hello(hello.clone()), &[])?;
    let mut locks: Option<Vec<OwnedFd>> = None;
    let mut pods: Vec<(NamespacedName, Listeners)> = Vec::new();
    loop {
        let Some((message, descriptors)) = wire.receive()? else {
            bail!("the agent that is to be replaced has broken off")
        };
        match message {
            Message::Refused { why } => return Err(Refused(why).into()),
            Message::Locks => locks = Some(descriptors),
            Message::Pod { namespace, name, inbound } => {
                pods.push((NamespacedName::new(namespace, name), listeners(descriptors, inbound)));
            }
            Message::Everything { version, instance, predecessors } => {
                let mut locks = locks.context("no lock was handed over")?.into_iter();
                let lock = locks.next().context("no lock of the state directory was handed over")?;
                let mut replaced = predecessors;
                replaced.push(instance.clone());
                replaced.drain(..replaced.len().saturating_sub(REMEMBERED));
                return Ok(Taken {
                    from: Predecessor { version, instance },
                    replaced,
                    lock: lock.into(),
                    inheritance: Inheritance { lock: locks.next(), listeners: pods },
                    wire,
                });
            }
            Message::Hello(_)
            | Message::Commit
            | Message::Retired
            | Message::Begin
            | Message::Forget { .. } => {
                bail!("the agent that is to be replaced talks nonsense")
            }
        }
    }
}

impl Taken {
    /// Everything is in our hands: the predecessor is to end. Blocks until it has stopped to accept. Gives what tells
    /// when it has ended.
    pub(in super::super) fn commit(self) -> anyhow::Result<Ending> {
        self.wire.send(&Message::Commit, &[])?;
        let answer = self.wire.receive()?;
        ensure!(
            matches!(answer, Some((Message::Retired, _))),
            "the agent that was replaced has broken off: it has ended, or it goes on to serve"
        );
        Ok(Ending(self.wire))
    }
}

/// The connection to the predecessor, which lasts as long as it does.
#[derive(Debug)]
pub(in super::super) struct Ending(Wire);

impl Ending {
    /// Tells the reconciler when the predecessor has ended, from a thread of its own.
    pub(in super::super) fn tell(self, reconciler: Sender<Event>) -> std::io::Result<()> {
        let wait = move || {
            // It has nothing more to say; whatever comes is its end.
            drop(self.0.receive::<Message>());
            // Without a reconciler there is nobody to tell.
            let _ = reconciler.send(Event::PredecessorEnded);
        };
        std::thread::Builder::new().name("predecessor".into()).spawn(wait).map(drop)
    }
}
