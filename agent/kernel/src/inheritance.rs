//! What one agent receives from the one before it: the lock of the pins and the listening sockets of the pods.
//!
//! A listening socket lives as long as anybody has it open, and with it the queue of connections that nobody has
//! accepted yet. So an agent that goes on with the sockets of its predecessor loses none of them.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;

use socket2::SockRef;
use weft_core::resource::NamespacedName;

use crate::route::IpFamily;
use crate::sys;

/// The listening sockets of one pod.
#[derive(Debug, Default)]
pub struct Listeners {
    /// For connections to the pod.
    pub inbound: Vec<TcpListener>,
    /// For captured connections of the pod.
    pub outbound: Vec<TcpListener>,
}

/// What an agent begins with.
#[derive(Debug, Default)]
pub struct Inheritance {
    /// The locked pin directory, shared by an agent that still serves connections; without it nobody does, and the
    /// lock has to be taken.
    pub lock: Option<OwnedFd>,
    /// The listening sockets of pods.
    pub listeners: Vec<(NamespacedName, Listeners)>,
}

/// Sockets by the cookie of the network namespace in which they really are, until their pods are enrolled.
#[derive(Debug, Default)]
pub(crate) struct Inherited(HashMap<u64, Listeners>);

impl Inherited {
    /// Sorts sockets by namespace. What is no listener of ours is closed.
    pub(crate) fn new(listeners: Vec<(NamespacedName, Listeners)>) -> Self {
        let mut inherited = Self::default();
        for (pod, Listeners { inbound, outbound }) in listeners {
            for (socket, is_inbound) in inbound
                .into_iter()
                .map(|socket| (socket, true))
                .chain(outbound.into_iter().map(|s| (s, false)))
            {
                let Some(cookie) = namespace_of(&socket) else {
                    tracing::warn!(%pod, "was handed a socket that does not listen for a pod");
                    continue;
                };
                let of_pod = inherited.0.entry(cookie).or_default();
                if is_inbound { of_pod.inbound.push(socket) } else { of_pod.outbound.push(socket) }
            }
        }
        inherited
    }

    /// Those of one namespace.
    pub(crate) fn take(&mut self, cookie: u64) -> Listeners {
        self.0.remove(&cookie).unwrap_or_default()
    }
}

/// The namespace of a socket that is as [`crate::enrol`] makes them: listening, and bound to loopback.
fn namespace_of(socket: &TcpListener) -> Option<u64> {
    let ours = SockRef::from(socket).is_listener().ok()? && socket.local_addr().ok()?.ip().is_loopback();
    ours.then(|| sys::netns_cookie(socket).ok())?
}

impl Listeners {
    /// The socket for one family and direction, if there is one.
    pub(crate) fn take(&mut self, family: IpFamily, is_inbound: bool) -> Option<TcpListener> {
        let sockets = if is_inbound { &mut self.inbound } else { &mut self.outbound };
        let of_family =
            |socket: &TcpListener| socket.local_addr().is_ok_and(|at| IpFamily::of(at.ip()) == family);
        let at = sockets.iter().position(of_family)?;
        Some(sockets.swap_remove(at))
    }

    /// Where they listen.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.inbound.iter().chain(&self.outbound).filter_map(|socket| socket.local_addr().ok()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Netns;

    #[test]
    fn sockets_are_sorted_by_where_they_are() {
        let here = Netns::current().unwrap().cookie();
        let listener = || TcpListener::bind("127.0.0.1:0").unwrap();
        let everywhere = TcpListener::bind("0.0.0.0:0").unwrap();
        let v6 = TcpListener::bind("[::1]:0").ok();
        let has_v6 = v6.is_some();
        let (inbound, outbound) = (listener(), listener());
        let wanted = outbound.local_addr().unwrap();
        let listeners = Listeners {
            inbound: [inbound, everywhere].into_iter().chain(v6).collect(),
            outbound: vec![outbound],
        };
        let mut inherited = Inherited::new(vec![(NamespacedName::new("shop", "cart"), listeners)]);
        assert!(inherited.take(here + 1).addresses().is_empty());
        let mut mine = inherited.take(here);
        assert_eq!(mine.take(IpFamily::V4, false).unwrap().local_addr().unwrap(), wanted);
        assert!(mine.take(IpFamily::V4, false).is_none(), "each once");
        assert_eq!(mine.inbound.len(), 1 + usize::from(has_v6), "one that is open to others is not ours");
        assert_eq!(mine.take(IpFamily::V6, true).is_some(), has_v6);
        assert!(inherited.take(here).addresses().is_empty());
    }
}
