//! Accepting. A pod's home worker polls its listeners; a connection goes to the least loaded worker.
//!
//! Admission is back-pressure first: a pod with too many connections is not accepted from, so that its
//! clients wait in the kernel's queue. When nothing ends for a while they are refused and counted,
//! because a client that hangs is worse off than one that is told.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::SocketFlags;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::TcpStream;

use crate::net;
use crate::pod::{Admitted, Pod};
use crate::worker::{Command, Worker};

/// What a listener is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Connections to the pod.
    Inbound,
    /// Captured connections of the pod.
    Outbound,
}

/// A connection on its way to the worker that serves it.
pub(crate) struct Handed {
    pod: Arc<Pod>,
    role: Role,
    stream: std::net::TcpStream,
    ends: Ends,
    admitted: Admitted,
}

/// Both addresses of an accepted connection.
#[derive(Clone, Copy)]
struct Ends {
    peer: SocketAddr,
    local: SocketAddr,
}

/// An accepted connection on the worker that serves it.
pub(crate) struct Accepted {
    /// The pod whose listener accepted.
    pub(crate) pod: Arc<Pod>,
    /// The connection.
    pub(crate) stream: TcpStream,
    /// Who opened it.
    pub(crate) peer: SocketAddr,
    /// The original destination.
    pub(crate) local: SocketAddr,
    /// Counts it.
    pub(crate) admitted: Admitted,
}

impl Handed {
    /// Joins this thread's runtime.
    pub(crate) fn register(self) -> io::Result<(Accepted, Role)> {
        let stream = TcpStream::from_std(self.stream)?;
        let Self { pod, role, ends: Ends { peer, local }, admitted, .. } = self;
        Ok((Accepted { pod, stream, peer, local, admitted }, role))
    }
}

/// Waits after an error, in milliseconds: begins here, doubles, ends there. Jittered by half.
const BACKOFF_MS: (u64, u64) = (5, 100);
/// How long a full pod is not accepted from before clients are refused.
const PATIENCE: Duration = Duration::from_secs(5);
/// Connections accepted in a row before others run.
const BURST: usize = 64;

/// Accepts until the task is aborted or the listener is broken.
pub(crate) async fn accept_loop(worker: Rc<Worker>, pod: Arc<Pod>, role: Role, listener: Arc<TcpListener>) {
    if let Err(error) = net::configure(&listener) {
        tracing::warn!(pod = %pod.key, ?role, %error, "a listener's options could not be set");
    }
    let listener = match watched(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(pod = %pod.key, ?role, %error, "a listener could not be registered; the pod is not served");
            return;
        }
    };
    let own = listener.get_ref().local_addr().ok().map(net::unmapped).filter(|own| is_localhost(own.ip()));
    let mut spare = Spare::new();
    let mut backoff = BACKOFF_MS.0;
    loop {
        wait_for_room(&worker, &pod).await;
        match accept(&listener).await {
            // Nobody is steered here: somebody in the pod has found the listener and dialled it.
            Ok((stream, ends)) if own == Some(ends.local) => {
                worker.shared.counters.loops.add();
                refuse_stream(&stream);
            }
            Ok((stream, ends)) => {
                backoff = BACKOFF_MS.0;
                if has_room(&worker, &pod) {
                    hand(&worker, &pod, (role, ends), stream);
                } else {
                    worker.shared.counters.over_limit.add();
                    refuse_stream(&stream);
                }
            }
            Err(error) => match triage(error) {
                Trouble::Connection => {}
                Trouble::Descriptors => {
                    if spare.refuse_one(listener.get_ref()) {
                        worker.shared.counters.no_descriptors.add();
                    }
                    pause(&worker, &mut backoff).await;
                }
                Trouble::Passing => pause(&worker, &mut backoff).await,
                Trouble::Listener => {
                    tracing::error!(pod = %pod.key, ?role, %error, "a listener is broken; the pod is not served");
                    return;
                }
            },
        }
    }
}

/// The addresses to which the listeners of enrolled pods are bound; nothing is ever captured on its way there.
fn is_localhost(ip: IpAddr) -> bool {
    ip == Ipv4Addr::LOCALHOST || ip == Ipv6Addr::LOCALHOST
}

/// Watches a listener without accepting through it: accepted sockets may belong to another thread's runtime.
#[expect(
    deprecated,
    reason = "the successor is unsafe because a type could change its descriptor; a TcpListener never does"
)]
fn watched(listener: Arc<TcpListener>) -> io::Result<AsyncFd<Arc<TcpListener>>> {
    AsyncFd::with_interest(listener, Interest::READABLE)
}

/// Waits while the pod is full, but not for too long.
async fn wait_for_room(worker: &Worker, pod: &Pod) {
    if !has_room(worker, pod) {
        // Whether it was in vain is seen when the next connection is there.
        let _ = tokio::time::timeout(PATIENCE, pod.until(|| has_room(worker, pod))).await;
    }
}

fn has_room(worker: &Worker, pod: &Pod) -> bool {
    pod.has_room(worker.shared.config.connections_per_pod)
}

async fn accept(listener: &AsyncFd<Arc<TcpListener>>) -> Result<(std::net::TcpStream, Ends), Errno> {
    thread_local! {
        static ACCEPTED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
    }
    let row = ACCEPTED.get() + 1;
    ACCEPTED.set(row % BURST);
    if row >= BURST {
        tokio::task::yield_now().await;
    }
    loop {
        let mut ready =
            listener.readable().await.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        match accept_now(ready.get_inner()) {
            Err(Errno::WOULDBLOCK) => ready.clear_ready(),
            result => return result,
        }
    }
}

fn accept_now(listener: &TcpListener) -> Result<(std::net::TcpStream, Ends), Errno> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let (fd, peer) = rustix::net::acceptfrom_with(listener, flags)?;
    let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok()).ok_or(Errno::CONNABORTED)?;
    let stream = std::net::TcpStream::from(fd);
    let local = stream.local_addr().map_err(|_| Errno::CONNABORTED)?;
    Ok((stream, Ends { peer: net::unmapped(peer), local: net::unmapped(local) }))
}

/// Gives a connection to the worker that serves it.
fn hand(worker: &Rc<Worker>, pod: &Arc<Pod>, (role, ends): (Role, Ends), stream: std::net::TcpStream) {
    let place = worker.shared.loads.place(worker.index);
    let admitted = Admitted::new(pod, &worker.shared.loads, place);
    let handed = Handed { pod: pod.clone(), role, stream, ends, admitted };
    match worker.shared.workers.get(place) {
        // A worker that has ended drops the connection; it ends together with this one.
        Some(other) if place != worker.index => drop(other.send(Command::Serve(handed))),
        _ => worker.serve(handed),
    }
}

fn refuse_stream(stream: &std::net::TcpStream) {
    // Where setting the option fails the connection is gone already.
    let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

async fn pause(worker: &Worker, backoff: &mut u64) {
    let half = *backoff / 2;
    let jitter = worker.random() % (half + 1);
    tokio::time::sleep(Duration::from_millis(half + jitter)).await;
    *backoff = (*backoff * 2).min(BACKOFF_MS.1);
}

/// Whose trouble an error of `accept` is.
#[derive(Debug, PartialEq, Eq)]
enum Trouble {
    /// The connection's: the next one may be fine.
    Connection,
    /// The process or the system is out of descriptors.
    Descriptors,
    /// Something else is short for the moment.
    Passing,
    /// The listener's: it will never accept again.
    Listener,
}

/// `accept(2)`: errors of the new connection are reported by accept, too.
fn triage(error: Errno) -> Trouble {
    match error {
        out if net::is_out_of_descriptors(out) => Trouble::Descriptors,
        Errno::BADF | Errno::INVAL | Errno::NOTSOCK | Errno::OPNOTSUPP | Errno::FAULT => Trouble::Listener,
        Errno::NOBUFS | Errno::NOMEM => Trouble::Passing,
        _ => Trouble::Connection,
    }
}

/// A descriptor in reserve: with none left, a client is refused instead of hanging in the queue.
struct Spare(Option<File>);

impl Spare {
    fn new() -> Self {
        Self(File::open("/dev/null").ok())
    }

    fn refuse_one(&mut self, listener: &TcpListener) -> bool {
        drop(self.0.take());
        let refused = accept_now(listener).map(|(stream, _)| refuse_stream(&stream)).is_ok();
        *self = Self::new();
        refused
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_told_apart() {
        for (error, trouble) in [
            (Errno::CONNABORTED, Trouble::Connection),
            (Errno::PROTO, Trouble::Connection),
            (Errno::NETUNREACH, Trouble::Connection),
            (Errno::PERM, Trouble::Connection),
            (Errno::INTR, Trouble::Connection),
            (Errno::MFILE, Trouble::Descriptors),
            (Errno::NFILE, Trouble::Descriptors),
            (Errno::NOBUFS, Trouble::Passing),
            (Errno::INVAL, Trouble::Listener),
        ] {
            assert_eq!(triage(error), trouble, "{error:?}");
        }
    }

    #[test]
    fn the_spare_descriptor_refuses_with_a_reset() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(Spare::new().refuse_one(&listener));
        let error = io::Read::read(&mut client, &mut [0]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}
