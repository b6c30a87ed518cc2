//! The agent's end of a holder: another process that keeps the listening sockets open when this one is killed.

use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;
use weft_core::resource::NamespacedName;
use weft_kernel::Listeners;

use super::wire::Wire;
use super::{Message, listeners};

/// A holder that does not take what it is given is done without.
const PATIENCE: Duration = Duration::from_secs(2);

/// The holder, as far as there is one.
#[derive(Debug, Default)]
pub(crate) struct Keeper {
    socket: Option<PathBuf>,
    wire: Option<Wire>,
}

impl Keeper {
    /// Meets the holder and takes what an earlier agent has left there.
    pub(in super::super) fn meet(socket: Option<PathBuf>) -> (Self, Vec<(NamespacedName, Listeners)>) {
        let mut keeper = Self { socket, wire: None };
        let found = keeper.begin().unwrap_or_else(|error| {
            tracing::warn!(
                error = format!("{error:#}"),
                "there is no holder: a restart will refuse connections"
            );
            Vec::new()
        });
        if !found.is_empty() {
            tracing::info!(pods = found.len(), "took listening sockets back that were held");
        }
        (keeper, found)
    }

    fn begin(&mut self) -> anyhow::Result<Vec<(NamespacedName, Listeners)>> {
        let Some(socket) = &self.socket else { return Ok(Vec::new()) };
        let wire = Wire::connect(socket)?;
        wire.set_patience(Some(PATIENCE))?;
        wire.send(&Message::Begin, &[])?;
        let mut found = Vec::new();
        loop {
            match wire.receive()? {
                Some((Message::Pod { namespace, name, inbound }, sockets)) => {
                    found.push((NamespacedName::new(namespace, name), listeners(sockets, inbound)));
                }
                Some((Message::Everything { .. }, _)) => break,
                Some(_) => bail!("the holder talks nonsense"),
                None => bail!("the holder has ended"),
            }
        }
        self.wire = Some(wire);
        Ok(found)
    }

    /// Whether a holder is wanted and not there, or not any more: it is to be met again, and told of all pods.
    pub(crate) fn is_missing(&mut self) -> bool {
        if self.wire.take_if(|wire| wire.has_news()).is_some() {
            // It only answers, so this is its end.
            tracing::warn!("the holder has ended: until it is back a crash would refuse connections");
        }
        self.socket.is_some() && self.wire.is_none()
    }

    /// Meets a holder that has been started again. True if it is there.
    pub(crate) fn meet_again(&mut self) -> bool {
        self.begin().is_ok()
    }

    /// A pod's sockets are to be held.
    pub(crate) fn keep(&mut self, pod: &NamespacedName, inbound: &[TcpListener], outbound: &[TcpListener]) {
        let sockets = inbound.iter().chain(outbound).map(AsFd::as_fd);
        let message = Message::Pod {
            namespace: pod.namespace.to_string(),
            name: pod.name.to_string(),
            inbound: inbound.len(),
        };
        self.say(&message, &sockets.collect::<Vec<_>>());
    }

    /// A pod's sockets are not needed any more.
    pub(crate) fn forget(&mut self, pod: &NamespacedName) {
        self.say(&Message::Forget { namespace: pod.namespace.to_string(), name: pod.name.to_string() }, &[]);
    }

    fn say(&mut self, message: &Message, descriptors: &[BorrowedFd<'_>]) {
        let Some(wire) = &self.wire else { return };
        if let Err(error) = wire.send(message, descriptors) {
            tracing::warn!(error = format!("{error:#}"), "the holder is gone");
            self.wire = None;
        }
    }
}
