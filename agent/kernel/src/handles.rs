//! Handles that other threads use while connections are made: one system call each.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, PoisonError, RwLock};

use weft_core::resource::NamespacedName;
use weft_ebpf_common::classify::tuple_fresh;
use weft_ebpf_common::{Tuple, TupleInfo};

use crate::maps::{count, tuple};
use crate::sys::{self, monotonic_ns};

/// Which pod has which cookie; shared with the handles.
#[derive(Debug, Clone, Default)]
pub(crate) struct Directory(Arc<RwLock<HashMap<u64, NamespacedName>>>);

impl Directory {
    pub(crate) fn get(&self, cookie: u64) -> Option<NamespacedName> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&cookie).cloned()
    }

    pub(crate) fn insert(&self, cookie: u64, pod: NamespacedName) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(cookie, pod);
    }

    pub(crate) fn remove(&self, cookie: u64) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(&cookie);
    }
}

/// Tuples of the agent's onward connections: `steer` passes them to the application.
///
/// Publish before `connect()`, withdraw when it has returned. One system call each; usable from any thread.
#[derive(Debug, Clone)]
pub struct OnwardTuples {
    map: Arc<OwnedFd>,
}

impl OnwardTuples {
    pub(crate) fn new(map: OwnedFd) -> Self {
        Self { map: Arc::new(map) }
    }

    pub(crate) fn count(&self) -> io::Result<usize> {
        count::<Tuple>(self.map.as_fd())
    }

    /// Announces a connection from `source` to `destination` that the agent is about to open. The kernel
    /// honours it for five seconds.
    ///
    /// # Errors
    /// The map is full: too many connections are being opened at once.
    pub fn publish(&self, source: SocketAddr, destination: SocketAddr) -> io::Result<()> {
        sys::map_update(self.map.as_fd(), &tuple(source, destination), &monotonic_ns())
    }

    /// Takes the announcement back.
    pub fn withdraw(&self, source: SocketAddr, destination: SocketAddr) {
        if let Err(error) = sys::map_delete(self.map.as_fd(), &tuple(source, destination)) {
            tracing::warn!(%error, %source, %destination, "cannot withdraw the tuple of an onward connection");
        }
    }
}

/// Who this kernel says opened a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttestedPeer {
    /// The pod.
    pub pod: NamespacedName,
}

/// Tuples that pods of this node published for direct flows: how the inbound side learns, for a connection
/// that turned out not to be direct, which pod opened it.
#[derive(Debug, Clone)]
pub struct Tuples {
    map: Arc<OwnedFd>,
    pods: Directory,
}

impl Tuples {
    pub(crate) fn count(&self) -> io::Result<usize> {
        count::<Tuple>(self.map.as_fd())
    }

    pub(crate) fn new(map: OwnedFd, pods: Directory) -> Self {
        Self { map: Arc::new(map), pods }
    }

    /// The pod that opened the connection, if it did so a moment ago and this kernel vouches for it.
    pub fn attested(&self, source: SocketAddr, destination: SocketAddr) -> Option<AttestedPeer> {
        let info: TupleInfo = sys::map_lookup(self.map.as_fd(), &tuple(source, destination)).ok()??;
        let pod = self.pods.get(info.cookie)?;
        tuple_fresh(monotonic_ns(), info.published_ns).then_some(AttestedPeer { pod })
    }
}
