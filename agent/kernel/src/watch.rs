//! Notices that rules, routes or addresses of pods' namespaces changed (ruling 11).
//!
//! One netlink socket in each pod's namespace, subscribed to the kernel's multicast groups; one epoll descriptor
//! over all of them. It is edge-triggered, so that whoever waits need not read the messages: what they are about
//! is looked up when the rules are checked.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};

/// `RTNLGRP_*` of `linux/rtnetlink.h` as bits (groups count from 1): addresses (5, 9), routes (7, 11) and rules
/// (8, 19) of both families.
const GROUPS: u32 = 1 << 4 | 1 << 8 | 1 << 6 | 1 << 10 | 1 << 7 | 1 << 18;

/// Waits for changes in the namespaces of all enrolled pods. Clones wait for the same.
#[derive(Debug, Clone)]
pub struct NamespaceChanges(Arc<OwnedFd>);

impl NamespaceChanges {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC)?)))
    }

    /// Blocks until something changed in some pod's namespace, by whomever: our own changes count as well.
    ///
    /// # Errors
    /// The kernel refused to wait.
    pub fn wait(&self) -> io::Result<()> {
        // Which namespaces they were does not matter: checking one costs as little as finding it.
        let mut events = Vec::with_capacity(64);
        loop {
            match epoll::wait(&*self.0, rustix::buffer::spare_capacity(&mut events), None) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Watches the calling thread's network namespace until the answer is dropped.
    pub(crate) fn watch_here(&self) -> io::Result<Watch> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // Protocol 0 of this family is NETLINK_ROUTE.
        let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
        let interest = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&*self.0, &socket, epoll::EventData::new_u64(0), interest)?;
        Ok(Watch(socket))
    }
}

/// A watched namespace.
#[derive(Debug)]
pub(crate) struct Watch(OwnedFd);

impl Watch {
    /// Forgets what was reported, so that the socket's buffer never stays full.
    pub(crate) fn clear(&self) {
        let mut message = [0_u8; 4096];
        // An overrun is an error that is reported once; then come the messages that did fit.
        while !matches!(
            rustix::net::recv(&self.0, &mut message[..], RecvFlags::DONTWAIT),
            Err(error) if error != Errno::NOBUFS && error != Errno::INTR
        ) {}
    }
}
