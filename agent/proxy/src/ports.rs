//! Source ports of onward connections (agent → application, bound to the client's address).
//!
//! The kernel must not choose them: an onward SYN whose four-tuple equals that of a live accepted connection
//! hits that socket and hangs, and ports left in TIME_WAIT run out. So they come from a range of their own,
//! below the ephemeral one, in turn, without the ports of live peers (`datapath.md` 2.2).

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use smallvec::SmallVec;

/// First port of the range.
pub(crate) const FIRST: u16 = 2000;
/// Last port of the range.
pub(crate) const LAST: u16 = 32767;
/// How far to go on from a port that the kernel refuses. Those after it may be in use as well, by connections of an agent
/// that was replaced and still serves them; no multiple of it is the length of the range.
const LEAP: u16 = 4397;
/// Clients without a connection whose place in the round is remembered.
const REMEMBERED: usize = 1024;

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

/// Who has a port: peers of accepted connections, and connections of ours, by their destinations. Of leased ports
/// there is one at most; where the kernel chooses, several may share a port.
#[derive(Debug, Default, PartialEq, Eq)]
struct Use {
    peers: u16,
    ours: SmallVec<[SocketAddr; 1]>,
}

impl Ports {
    fn with<T>(&self, work: impl FnOnce(&mut HashMap<IpAddr, Client>) -> T) -> T {
        // A panic while the lock is held leaves the map consistent: every change is a single insertion.
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Leases a port for an onward connection from `client` to `destination`; `None` when all 30,768 are in use.
    pub(crate) fn lease(self: &Arc<Self>, client: IpAddr, destination: SocketAddr) -> Option<Lease> {
        let port = self.with(|clients| clients.entry(client).or_default().choose(destination))?;
        Some(Lease { ports: self.clone(), client, port, kind: Kind::Ours(destination) })
    }

    /// The kernel has refused a port: the next one is to be found somewhere else.
    pub(crate) fn leap(&self, client: IpAddr) {
        self.with(|clients| {
            if let Some(client) = clients.get_mut(&client) {
                client.next = (client.next + LEAP) % (LAST - FIRST + 1);
            }
        });
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

    /// Marks the address of a connection of ours to `destination`, whoever chose its port.
    pub(crate) fn own(self: &Arc<Self>, source: SocketAddr, destination: SocketAddr) -> Lease {
        let (client, port) = (source.ip(), source.port());
        self.with(|clients| {
            clients.entry(client).or_default().live.entry(port).or_default().ours.push(destination);
        });
        Lease { ports: self.clone(), client, port, kind: Kind::Ours(destination) }
    }

    /// Whether a connection of ours goes from `source` to `destination`. The port alone says nothing: the kernel
    /// gives an application the port of a tunnel when their destinations differ.
    pub(crate) fn is_ours(&self, source: SocketAddr, destination: SocketAddr) -> bool {
        let ours = |clients: &mut HashMap<IpAddr, Client>| {
            Some(clients.get(&source.ip())?.live.get(&source.port())?.ours.contains(&destination))
        };
        self.with(ours).unwrap_or(false)
    }
}

impl Client {
    fn choose(&mut self, destination: SocketAddr) -> Option<u16> {
        let span = LAST - FIRST + 1;
        for step in 0..span {
            let port = FIRST + (self.next + step) % span;
            if !self.live.contains_key(&port) {
                self.next = (port - FIRST + 1) % span;
                self.live.insert(port, Use { peers: 0, ours: SmallVec::from([destination]) });
                return Some(port);
            }
        }
        None
    }
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Ours(SocketAddr),
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
                Kind::Ours(destination) => {
                    if let Some(at) = used.ours.iter().position(|ours| *ours == destination) {
                        used.ours.swap_remove(at);
                    }
                }
                Kind::Peer => used.peers = used.peers.saturating_sub(1),
            }
            if *used == Use::default() {
                client.live.remove(&self.port);
            }
            // Anybody with a prefix of IPv6 has more addresses than we have memory.
            if client.live.is_empty() && clients.len() > REMEMBERED {
                clients.remove(&self.client);
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

    fn app() -> SocketAddr {
        SocketAddr::new(client(9), 80)
    }

    #[test]
    fn goes_round_before_it_reuses_a_port() {
        let ports = Arc::new(Ports::default());
        let first = ports.lease(client(1), app()).unwrap().port();
        let second = ports.lease(client(1), app()).unwrap().port();
        assert_eq!((first, second), (FIRST, FIRST + 1));
        for _ in 2..=(LAST - FIRST) {
            drop(ports.lease(client(1), app()).unwrap());
        }
        assert_eq!(ports.lease(client(1), app()).unwrap().port(), FIRST);
    }

    #[test]
    fn leaps_over_what_others_use() {
        let ports = Arc::new(Ports::default());
        let mut tried = std::collections::BTreeSet::new();
        for _ in 0..32 {
            tried.insert(ports.lease(client(1), app()).unwrap().port());
            ports.leap(client(1));
        }
        assert_eq!(tried.len(), 32);
        let far = |port: &u16| *port > FIRST + 2 * LEAP;
        assert!(
            tried.iter().filter(|port| far(port)).count() > 16,
            "a block of them is soon left: {tried:?}"
        );
    }

    #[test]
    fn skips_ports_of_live_peers_and_of_its_own_connections() {
        let ports = Arc::new(Ports::default());
        let peer = ports.peer(client(1), FIRST).unwrap();
        let twice = ports.peer(client(1), FIRST).unwrap();
        let lease = ports.lease(client(1), app()).unwrap();
        assert_eq!(lease.port(), FIRST + 1);
        assert!(ports.is_ours((client(1), FIRST + 1).into(), app()));
        assert!(!ports.is_ours((client(1), FIRST).into(), app()));
        assert_eq!(ports.lease(client(2), app()).unwrap().port(), FIRST, "clients do not share ports");
        drop(peer);
        assert!(ports.0.lock().unwrap()[&client(1)].live.contains_key(&FIRST));
        drop(twice);
        assert!(!ports.0.lock().unwrap()[&client(1)].live.contains_key(&FIRST));
        assert!(ports.peer(client(1), LAST + 1).is_none());
    }

    #[test]
    fn an_application_may_have_the_port_of_a_tunnel() {
        let ports = Arc::new(Ports::default());
        let source = SocketAddr::new(client(1), 40_000);
        let peers = [15008, 15009].map(|port| SocketAddr::new(client(2), port));
        let [first, second] = peers.map(|peer| ports.own(source, peer));
        assert!(peers.iter().all(|peer| ports.is_ours(source, *peer)));
        assert!(!ports.is_ours(source, app()));
        drop(first);
        assert_eq!(peers.map(|peer| ports.is_ours(source, peer)), [false, true]);
        drop(second);
        assert!(ports.0.lock().unwrap()[&client(1)].live.is_empty());
    }

    #[test]
    fn says_so_when_all_are_in_use() {
        let ports = Arc::new(Ports::default());
        let all: Vec<_> = (FIRST..=LAST).map(|_| ports.lease(client(1), app()).unwrap()).collect();
        assert!(ports.lease(client(1), app()).is_none());
        drop(all);
        assert!(ports.lease(client(1), app()).is_some());
    }

    #[test]
    fn clients_that_are_gone_are_forgotten_in_the_end() {
        let ports = Arc::new(Ports::default());
        for client in 0..2 * REMEMBERED as u128 {
            drop(ports.peer(IpAddr::from(client.to_be_bytes()), FIRST).unwrap());
        }
        assert!(ports.0.lock().unwrap().len() <= REMEMBERED + 1);
    }

    proptest! {
        #[test]
        fn live_leases_never_share_a_port(keep in proptest::collection::vec(any::<bool>(), 1..200)) {
            let ports = Arc::new(Ports::default());
            let mut held = Vec::new();
            for keep in keep {
                let lease = ports.lease(client(1), app()).unwrap();
                prop_assert!(held.iter().all(|other: &Lease| other.port() != lease.port()));
                if keep {
                    held.push(lease);
                }
            }
        }
    }
}
