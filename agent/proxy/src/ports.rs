//! Source ports of onward connections (agent → application, bound to the client's address).
//!
//! The kernel must not choose them: an onward SYN whose four-tuple equals that of a live accepted connection
//! hits that socket and hangs, and ports left in TIME_WAIT run out. So they come from a range of their own,
//! below the ephemeral one, in turn, without the ports of live peers (`datapath.md` 2.2).

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// First port of the range.
pub(crate) const FIRST: u16 = 2000;
/// Last port of the range.
pub(crate) const LAST: u16 = 32767;

/// The ports of one pod, for all clients.
///
/// The lock is held for one look into a hash map. All workers take it, because two of them may serve the
/// same client; a channel to one owner would cost a wake-up for each connection.
#[derive(Debug, Default)]
pub(crate) struct Ports(Mutex<HashMap<IpAddr, Client>>);

#[derive(Debug, Default)]
struct Client {
    /// Where the next search begins, as an offset from [`FIRST`].
    next: u16,
    live: HashMap<u16, Use>,
}

/// Who has a port: peers of accepted connections, and at most one onward connection.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Use {
    peers: u16,
    onward: bool,
}

impl Ports {
    fn with<T>(&self, work: impl FnOnce(&mut HashMap<IpAddr, Client>) -> T) -> T {
        // A panic while the lock is held leaves the map consistent: every change is a single insertion.
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Leases a port for an onward connection from `client`; `None` when all 30,768 are in use.
    pub(crate) fn lease(self: &Arc<Self>, client: IpAddr) -> Option<Lease> {
        let port = self.with(|clients| clients.entry(client).or_default().choose())?;
        Some(Lease { ports: self.clone(), client, port, kind: Kind::Onward })
    }

    /// Marks the port of an accepted connection as one that must not be leased. `None` outside the range.
    pub(crate) fn peer(self: &Arc<Self>, client: IpAddr, port: u16) -> Option<Lease> {
        if !(FIRST..=LAST).contains(&port) {
            return None;
        }
        self.with(|clients| {
            let used = clients.entry(client).or_default().live.entry(port).or_default();
            used.peers = used.peers.saturating_add(1);
        });
        Some(Lease { ports: self.clone(), client, port, kind: Kind::Peer })
    }

    /// Marks the address of a connection of ours, whoever chose its port.
    pub(crate) fn own(self: &Arc<Self>, client: IpAddr, port: u16) -> Lease {
        self.with(|clients| clients.entry(client).or_default().live.entry(port).or_default().onward = true);
        Lease { ports: self.clone(), client, port, kind: Kind::Onward }
    }

    /// Whether a connection of ours has this source.
    pub(crate) fn is_ours(&self, client: IpAddr, port: u16) -> bool {
        self.with(|clients| clients.get(&client)?.live.get(&port).map(|used| used.onward)).unwrap_or(false)
    }
}

impl Client {
    fn choose(&mut self) -> Option<u16> {
        let span = LAST - FIRST + 1;
        for step in 0..span {
            let port = FIRST + (self.next + step) % span;
            if !self.live.contains_key(&port) {
                self.next = (port - FIRST + 1) % span;
                self.live.insert(port, Use { peers: 0, onward: true });
                return Some(port);
            }
        }
        None
    }
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Onward,
    Peer,
}

/// A port in use; free again when dropped. Drop it after the socket.
#[derive(Debug)]
pub(crate) struct Lease {
    ports: Arc<Ports>,
    client: IpAddr,
    port: u16,
    kind: Kind,
}

impl Lease {
    /// The port.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.ports.with(|clients| {
            let Some(client) = clients.get_mut(&self.client) else { return };
            let Some(used) = client.live.get_mut(&self.port) else { return };
            match self.kind {
                Kind::Onward => used.onward = false,
                Kind::Peer => used.peers = used.peers.saturating_sub(1),
            }
            if *used == Use::default() {
                client.live.remove(&self.port);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn client(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[test]
    fn goes_round_before_it_reuses_a_port() {
        let ports = Arc::new(Ports::default());
        let first = ports.lease(client(1)).unwrap().port();
        let second = ports.lease(client(1)).unwrap().port();
        assert_eq!((first, second), (FIRST, FIRST + 1));
        for _ in 2..=(LAST - FIRST) {
            drop(ports.lease(client(1)).unwrap());
        }
        assert_eq!(ports.lease(client(1)).unwrap().port(), FIRST);
    }

    #[test]
    fn skips_ports_of_live_peers_and_of_its_own_connections() {
        let ports = Arc::new(Ports::default());
        let peer = ports.peer(client(1), FIRST).unwrap();
        let twice = ports.peer(client(1), FIRST).unwrap();
        let lease = ports.lease(client(1)).unwrap();
        assert_eq!(lease.port(), FIRST + 1);
        assert!(ports.is_ours(client(1), FIRST + 1));
        assert!(!ports.is_ours(client(1), FIRST));
        assert_eq!(ports.lease(client(2)).unwrap().port(), FIRST, "clients do not share ports");
        drop(peer);
        assert!(ports.0.lock().unwrap()[&client(1)].live.contains_key(&FIRST));
        drop(twice);
        assert!(!ports.0.lock().unwrap()[&client(1)].live.contains_key(&FIRST));
        assert!(ports.peer(client(1), LAST + 1).is_none());
    }

    #[test]
    fn says_so_when_all_are_in_use() {
        let ports = Arc::new(Ports::default());
        let all: Vec<_> = (FIRST..=LAST).map(|_| ports.lease(client(1)).unwrap()).collect();
        assert!(ports.lease(client(1)).is_none());
        drop(all);
        assert!(ports.lease(client(1)).is_some());
    }

    proptest! {
        #[test]
        fn live_leases_never_share_a_port(keep in proptest::collection::vec(any::<bool>(), 1..200)) {
            let ports = Arc::new(Ports::default());
            let mut held = Vec::new();
            for keep in keep {
                let lease = ports.lease(client(1)).unwrap();
                prop_assert!(held.iter().all(|other: &Lease| other.port() != lease.port()));
                if keep {
                    held.push(lease);
                }
            }
        }
    }
}
