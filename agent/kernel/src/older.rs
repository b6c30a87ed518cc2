//! Connections that reached an application before the agent could decide on them (ruling 8).

use std::collections::HashSet;
use std::net::SocketAddr;

use weft_core::resource::NamespacedName;

use crate::diag::TcpSocket;

/// A connection to an application of an enrolled pod that nobody decided on: older than the pod's enrolment, or
/// made while no agent ran. Nothing is known of its client but the address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OlderConnection {
    /// The pod.
    pub pod: NamespacedName,
    /// The client's end.
    pub client: SocketAddr,
    /// The application's end.
    pub application: SocketAddr,
    /// Kernel's cookie of the application's socket.
    pub socket_cookie: u64,
}

/// Those among the sockets of a pod's namespace. `later` are the sockets a moment later: a list is no picture of one
/// moment, so that of two ends that come while it is made one may be missing. `direct` are the two ends, client's first, of flows that the
/// kernel authorised; `agents` are the cgroups of agents and of their listeners.
///
/// What an application accepted on a port on which it does not listen any more is taken for a connection that it
/// opened.
pub(crate) fn find(
    pod: &NamespacedName,
    (sockets, later): (&[TcpSocket], &[TcpSocket]),
    agents: &HashSet<u64>,
    direct: &HashSet<(SocketAddr, SocketAddr)>,
) -> Vec<OlderConnection> {
    let theirs =
        || sockets.iter().filter(|socket| socket.cgroup.is_none_or(|cgroup| !agents.contains(&cgroup)));
    let ports: HashSet<u16> =
        theirs().filter(|socket| socket.listening).map(|socket| socket.local.port()).collect();
    // A connection with both ends here is the pod's to itself, or one that the agent made for a client.
    let ends: HashSet<_> = sockets.iter().chain(later).map(|socket| (socket.local, socket.remote)).collect();
    let inbound = theirs().filter(|socket| {
        let (client, application) = (socket.remote, socket.local);
        !socket.listening
            && ports.contains(&application.port())
            && !ends.contains(&(client, application))
            && !direct.contains(&(client, application))
    });
    let record = |socket: &TcpSocket| OlderConnection {
        pod: pod.clone(),
        client: socket.remote,
        application: socket.local,
        socket_cookie: socket.cookie,
    };
    inbound.map(record).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGENT: u64 = 7;

    fn socket(local: &str, remote: &str, cgroup: u64) -> TcpSocket {
        let (local, remote) = (local.parse().unwrap(), remote.parse().unwrap());
        TcpSocket { listening: false, local, remote, cookie: 1, cgroup: Some(cgroup) }
    }

    #[test]
    fn only_connections_that_nobody_decided_on() {
        let listening = TcpSocket { listening: true, ..socket("0.0.0.0:80", "0.0.0.0:0", 1) };
        let sockets = [
            listening,
            socket("10.0.0.1:80", "10.0.0.9:40000", 1),
            // Opened by the application.
            socket("10.0.0.1:41000", "10.0.0.9:80", 1),
            // Accepted by the agent; the agent's to the application in the name of a client, and its other end.
            socket("10.0.0.1:80", "10.0.0.9:40001", AGENT),
            socket("10.0.0.9:2000", "10.0.0.1:80", AGENT),
            socket("10.0.0.1:80", "10.0.0.9:2000", 1),
            // The pod to itself.
            socket("127.0.0.1:80", "127.0.0.1:50000", 1),
            socket("127.0.0.1:50000", "127.0.0.1:80", 1),
            // Direct.
            socket("10.0.0.1:80", "10.0.0.2:42000", 1),
        ];
        let direct = ("10.0.0.2:42000".parse().unwrap(), "10.0.0.1:80".parse().unwrap());
        let (pod, agents) = (NamespacedName::new("shop", "cart"), HashSet::from([AGENT]));
        let found = |later: &[TcpSocket]| -> Vec<String> {
            let found = find(&pod, (&sockets, later), &agents, &HashSet::from([direct]));
            found.iter().map(|found| found.client.to_string()).collect()
        };
        assert_eq!(found(&sockets), ["10.0.0.9:40000"]);
        // The agent's end was not listed before the application's.
        assert_eq!(found(&[socket("10.0.0.9:40000", "10.0.0.1:80", AGENT)]), Vec::<String>::new());
    }
}
