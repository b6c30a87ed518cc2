//! The reconciler of an agent whose place another one takes.

use std::sync::mpsc::{Receiver, channel};

use anyhow::Context;
use weft_core::resource::NamespacedName;
use weft_kernel::{Datapath, Listeners};
use weft_proxy::Proxy;

use super::{Event, Node, lock};
use crate::agent::handover::{Keeper, Offer, Take};
use crate::output;

impl Node {
    /// Offers everything to a successor and waits until it has taken over or failed; meanwhile nothing is changed.
    /// True when there is nothing left to do for this reconciler.
    pub(super) fn make_room(&mut self, take: &Take, events: &Receiver<Event>) -> bool {
        // What happened until now is told by this agent, what happens from now on by the other one.
        self.account();
        let (shared, reading) = (self.datapath.clone(), self.reading.clone());
        let _reading = lock(&reading);
        let mut datapath = lock(&shared);
        let listeners = self.listeners();
        let (taken_over, outcome) = channel();
        let offer = listeners.and_then(|listeners| {
            let lock = datapath.share_lock().context("the lock of the pins cannot be shared")?;
            Ok(Offer { lock, listeners, taken_over })
        });
        let offered = offer.is_ok();
        // One that has gone meanwhile drops the offer, and that is heard here.
        let _ = take.send(offer);
        if !offered {
            return false;
        }
        if outcome.recv().is_ok() {
            datapath.retire();
            drop(datapath);
            self.keeper = Keeper::default();
            self.serve_last(events);
            return true;
        }
        self.resume(&mut datapath)
    }

    fn listeners(&self) -> anyhow::Result<Vec<(NamespacedName, Listeners)>> {
        let proxy = lock(&self.proxy);
        let listeners = proxy.as_ref().map(|proxy| proxy.listeners()).transpose();
        Ok(listeners.context("the listeners cannot be shared")?.unwrap_or_default())
    }

    /// A holder that was started again has nothing.
    pub(super) fn look_for_holder(&mut self) {
        if !self.keeper.is_missing() || !self.keeper.meet_again() {
            return;
        }
        for (pod, listeners) in self.listeners().unwrap_or_default() {
            self.keeper.keep(&pod, &listeners.inbound, &listeners.outbound);
        }
        tracing::info!("the holder is back");
    }

    /// True when that is not possible.
    fn resume(&mut self, datapath: &mut Datapath) -> bool {
        tracing::warn!("the agent that was to take over has ended: this one goes on");
        let listeners = self.listeners().unwrap_or_default();
        if let Err(error) = datapath.resume(&listeners) {
            tracing::error!(error = %output::chain(&error), "the data path cannot be taken back");
            return true;
        }
        self.resumed = true;
        false
    }

    /// Another agent does everything in the kernel; this one only cuts what policy revokes among the connections that
    /// it still has.
    fn serve_last(&self, events: &Receiver<Event>) {
        while let Ok(event) = events.recv() {
            match event {
                Event::Config => self.with_proxy(Proxy::reevaluate),
                Event::Learned(..)
                | Event::Namespaces
                | Event::Places
                | Event::Successor(_)
                | Event::PredecessorEnded
                | Event::Uninstall(_)
                | Event::Stop => {}
            }
        }
    }
}
