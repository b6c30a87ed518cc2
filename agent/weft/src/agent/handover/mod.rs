//! How one agent takes the place of another that runs, so that nobody is refused meanwhile.
//!
//! ```text
//! successor                                    predecessor (owner of locks, pins and sockets)
//!   reads configuration, has certificates        serves
//!   Hello ─────────────────────────────────────► changes nothing in the kernel any more, goes on to accept
//!   ◄──────────────── locks, listening sockets
//!   opens the data path, enrols, accepts as well
//!   Commit ────────────────────────────────────► accepts nothing any more, ends its connections in good order
//!   ◄───────────────────────────────── Retired
//!   is ready                                     ends when nothing is open, or its time is over
//! ```
//!
//! The listening sockets are the same ones throughout, so no connection that waits in one of their queues is lost.
//! A successor that fails before `Commit` closes the connection, and the predecessor takes up its work again.

mod giving;
mod holder;
mod keeper;
mod seat;
mod taking;
mod wire;

use std::net::TcpListener;
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

pub(super) use self::giving::{Giver, Offer, Retirement, Take};
pub(crate) use self::holder::{HoldOptions, hold};
pub(super) use self::keeper::Keeper;
pub(super) use self::seat::{SOCKET, Seat};
pub(super) use self::taking::{Refused, Taken};

/// Version of the conversation: changes when an agent would misunderstand another one.
const PROTOCOL: u32 = 1;
/// Agents that are remembered as replaced: more than there are at any time on a node.
const REMEMBERED: usize = 32;

/// Which agent this is; for its pod the same when its container is started again.
pub(super) fn instance() -> String {
    let pod = std::env::var("POD_NAME").ok().filter(|name| !name.is_empty());
    pod.unwrap_or_else(|| {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        format!("process {} ({}.{:09})", std::process::id(), now.tv_sec, now.tv_nsec)
    })
}

/// Who wants to take over.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Hello {
    pub(super) protocol: u32,
    pub(super) version: String,
    pub(super) instance: String,
    pub(super) node: String,
    /// Cookie of its network namespace: in the same one it needs the same ports.
    pub(super) netns: u64,
}

impl Hello {
    pub(super) fn of(node: &str, instance: &str) -> anyhow::Result<Self> {
        Ok(Self {
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION").into(),
            instance: instance.into(),
            node: node.into(),
            netns: weft_kernel::Netns::current()?.cookie(),
        })
    }
}

/// What is said, in the order of the conversation.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Message {
    Hello(Hello),
    Refused {
        why: String,
    },
    /// With the locks of the state directory and, where there are pins, of these.
    Locks,
    /// With the listening sockets of one pod, the inbound ones first.
    Pod {
        namespace: String,
        name: String,
        inbound: usize,
    },
    Everything {
        version: String,
        instance: String,
        /// Agents that were replaced before.
        predecessors: Vec<String>,
    },
    Commit,
    Retired,
    /// To a holder: what is held is to be given back.
    Begin,
    /// To a holder: the pod has left the mesh.
    Forget {
        namespace: String,
        name: String,
    },
}

fn listeners(descriptors: Vec<OwnedFd>, inbound: usize) -> weft_kernel::Listeners {
    let mut sockets: Vec<TcpListener> = descriptors.into_iter().map(TcpListener::from).collect();
    let outbound = sockets.split_off(inbound.min(sockets.len()));
    weft_kernel::Listeners { inbound: sockets, outbound }
}

#[cfg(test)]
mod tests;
