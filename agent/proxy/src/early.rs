//! Connections that were opened before it was known that HTTP is spoken on them.
//!
//! On a port that nobody declares, the way to the server is open before the client's first byte, so that a server that
//! speaks first need not wait. Where the client then begins to speak HTTP, its requests find their own way; most often
//! it is the same one, and what is open is used. What nobody uses is closed after a second.

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Context;
use std::time::Duration;

use bytes::Bytes;
use futures_util::task::noop_waker_ref;
use tokio::io::{AsyncRead, ReadBuf};
use weft_core::Identity;
use weft_core::resource::NamespacedName;
use weft_core::resource::destination_rule::TcpKeepalive;

use crate::hbone::pool::Permit;
use crate::http::stream::TunnelIo;
use crate::net::{self, Dialled};
use crate::ports::Lease;
use crate::relay::Secured;
use crate::worker::Worker;

/// How long a connection waits for its first request.
const PATIENCE: Duration = Duration::from_secs(1);
/// Connections that wait, of one worker; further ones are closed.
const MOST: usize = 256;
/// What is read of a TLS connection to see whether the server speaks first, in bytes.
const FIRST_READ: usize = 1024;

/// The server's side of a connection.
pub(crate) enum Upstream {
    /// A socket.
    Socket(Dialled),
    /// A stream of a tunnel.
    Tunnel(TunnelIo, Permit),
    /// A socket with TLS of the client's own, and what was read ahead.
    Secured(Secured, Bytes, Lease),
}

impl Upstream {
    /// Has the kernel probe it as a policy asks (D-12); tunnels are many clients' and probe themselves.
    pub(crate) fn keep_alive(&self, asked: Option<TcpKeepalive>) {
        match self {
            Self::Socket(dialled) => net::keep_alive(&dialled.stream, asked),
            Self::Secured(stream, ..) => net::keep_alive(stream.get_ref().0, asked),
            Self::Tunnel(..) => {}
        }
    }

    /// Whether the server has sent something, or has left.
    pub(crate) fn has_spoken(&mut self, cx: &mut Context<'_>) -> bool {
        match self {
            Self::Socket(dialled) => dialled.stream.poll_read_ready(cx).is_ready(),
            Self::Tunnel(tunnel, _) => tunnel.poll_receive(cx).is_ready(),
            Self::Secured(stream, ahead, _) => !ahead.is_empty() || has_sent(stream, ahead, cx),
        }
    }
}

/// Reads ahead: what arrives on a TLS connection may be its own affair.
fn has_sent(stream: &mut Secured, ahead: &mut Bytes, cx: &mut Context<'_>) -> bool {
    let mut room = [0; FIRST_READ];
    let mut buf = ReadBuf::new(&mut room);
    let read = Pin::new(stream).poll_read(cx, &mut buf);
    *ahead = Bytes::copy_from_slice(buf.filled());
    read.is_ready()
}

/// What a connection is good for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Purpose {
    /// In whose network namespace it was opened.
    pub(crate) pod: NamespacedName,
    /// Where it leads.
    pub(crate) endpoint: SocketAddr,
    /// How.
    pub(crate) how: How,
}

/// How a connection was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum How {
    /// As the pod itself would.
    Plain,
    /// With TLS of the client's own, for something that is not HTTP: no request is sent there.
    Secured,
    /// To an application of this node, in the name of this client.
    Onward(IpAddr),
    /// Through a tunnel of the first identity to a pod of the second.
    Tunnel(Arc<Identity>, Arc<Identity>),
}

struct Waiting {
    number: u64,
    purpose: Purpose,
    upstream: Upstream,
}

/// The connections of one worker that wait for their first request.
#[derive(Default)]
pub(crate) struct Early {
    waiting: RefCell<Vec<Waiting>>,
    next: Cell<u64>,
}

impl Early {
    /// Keeps a connection for a moment.
    pub(crate) fn keep(worker: &Rc<Worker>, purpose: Purpose, upstream: Upstream) {
        let early = &worker.early;
        let mut waiting = early.waiting.borrow_mut();
        if waiting.len() >= MOST {
            return;
        }
        let number = early.next.replace(early.next.get().wrapping_add(1));
        waiting.push(Waiting { number, purpose, upstream });
        let worker = worker.clone();
        tokio::task::spawn_local(async move {
            tokio::time::sleep(PATIENCE).await;
            worker.early.waiting.borrow_mut().retain(|waiting| waiting.number != number);
        });
    }

    /// Takes a connection on which nothing has come and that is still open.
    pub(crate) fn take(&self, purpose: &Purpose) -> Option<Upstream> {
        let mut waiting = self.waiting.borrow_mut();
        let mut cx = Context::from_waker(noop_waker_ref());
        while let Some(at) = waiting.iter().position(|waiting| waiting.purpose == *purpose) {
            let mut found = waiting.swap_remove(at).upstream;
            if !found.has_spoken(&mut cx) {
                return Some(found);
            }
        }
        None
    }
}
