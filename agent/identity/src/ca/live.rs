//! The CA of the moment: replaced when its key or its roots change, while servers go on.

use std::sync::Arc;

use tokio::sync::watch;

use super::Ca;

/// A CA that can be exchanged while it is being asked.
#[derive(Debug)]
pub struct LiveCa(watch::Sender<Arc<Ca>>);

impl LiveCa {
    /// Begins with `ca`.
    pub fn new(ca: Ca) -> Self {
        Self(watch::Sender::new(Arc::new(ca)))
    }

    /// The CA of the moment. Requests that have begun keep the one that they began with.
    pub fn current(&self) -> Arc<Ca> {
        Arc::clone(&self.0.borrow())
    }

    /// Everything that is signed from now on is signed by `ca`.
    pub fn replace(&self, ca: Ca) {
        self.0.send_replace(Arc::new(ca));
    }

    /// Ticks with every exchange.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Ca>> {
        self.0.subscribe()
    }
}
