//! Learning that an undeclared port does not speak HTTP and may go direct from now on (ruling 5).

use std::cell::RefCell;
use std::collections::HashSet;
use std::rc::Rc;

use tokio::sync::mpsc::UnboundedSender;
use weft_core::decide::protocol;
use weft_core::resource::{NamespacedName, PortProtocol};
use weft_core::snapshot::{LocalWorkload, TrafficHint};

use crate::sniff;

/// What this worker has learned.
#[derive(Debug)]
pub(crate) struct Learned {
    sender: UnboundedSender<(NamespacedName, u16)>,
    /// Already said; the rest of the agent remembers for good.
    said: RefCell<HashSet<(NamespacedName, u16)>>,
}

/// One connection from which something can be learned.
#[derive(Debug)]
pub(crate) struct Learning {
    learned: Rc<Learned>,
    pod: NamespacedName,
    port: u16,
    /// The pod says that all its ports are plain TCP: what is learned is that this one exists.
    plain: bool,
}

impl Learned {
    /// Nothing yet.
    pub(crate) fn new(sender: UnboundedSender<(NamespacedName, u16)>) -> Self {
        Self { sender, said: RefCell::default() }
    }

    /// Whether a connection to `port` of `local` can teach something.
    pub(crate) fn wanted(self: &Rc<Self>, local: &LocalWorkload, port: u16) -> Option<Box<Learning>> {
        let declared = protocol::declared(local, port);
        let open = declared.is_none_or(|protocol| protocol == PortProtocol::Undeclared);
        let plain = match local.traffic {
            Some(TrafficHint::L7) => return None,
            Some(TrafficHint::L4) => true,
            None => false,
        };
        if !open {
            return None;
        }
        let pod = local.workload.key.clone();
        let known = self.said.borrow().contains(&(pod.clone(), port));
        (!known).then(|| Box::new(Learning { learned: self.clone(), pod, port, plain }))
    }

    /// Forgets a pod: its successor may have another application.
    pub(crate) fn forget(&self, pod: &NamespacedName) {
        self.said.borrow_mut().retain(|(said, _)| said != pod);
    }
}

impl Learning {
    /// Looks at the first bytes of a connection, from whichever side they came.
    pub(crate) fn first_bytes(self, from_client: bool, bytes: &[u8]) {
        // A server that speaks first does not speak HTTP.
        let may_be_http = from_client && !self.plain;
        let is_http = if may_be_http { sniff::classify(bytes).is_http() } else { Some(false) };
        if is_http == Some(false) && self.learned.said.borrow_mut().insert((self.pod.clone(), self.port)) {
            // The receiver is gone only when the agent stops.
            let _ = self.learned.sender.send((self.pod, self.port));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn learning(learned: &Rc<Learned>, port: u16) -> Learning {
        Learning { learned: learned.clone(), pod: NamespacedName::new("shop", "cart"), port, plain: false }
    }

    #[test]
    fn says_once_what_is_not_http() {
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
        let learned = Rc::new(Learned::new(sender));
        learning(&learned, 80).first_bytes(true, b"GET / HTTP/1.1\r\n");
        learning(&learned, 81).first_bytes(true, b"G");
        learning(&learned, 6379).first_bytes(true, b"*1\r\n");
        learning(&learned, 6379).first_bytes(true, b"*1\r\n");
        learning(&learned, 22).first_bytes(false, b"SSH-2.0");
        let pod = NamespacedName::new("shop", "cart");
        assert_eq!(receiver.try_recv().unwrap(), (pod.clone(), 6379));
        assert_eq!(receiver.try_recv().unwrap(), (pod.clone(), 22));
        assert!(receiver.try_recv().is_err());
        learned.forget(&pod);
        learning(&learned, 22).first_bytes(false, b"SSH-2.0");
        assert_eq!(receiver.try_recv().unwrap(), (pod, 22));
    }
}
