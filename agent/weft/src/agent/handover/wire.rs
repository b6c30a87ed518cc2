//! Messages with descriptors between processes, over a Unix socket that keeps their boundaries.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_peercred};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, acceptfrom_with, connect,
    recvmsg, sendmsg, socket_with,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::agent::private_socket::listen_in_place;

/// Longest message, in bytes.
const LONGEST: usize = 64 * 1024;
/// Most descriptors with one message.
const DESCRIPTORS: usize = 16;

/// One end of a conversation.
#[derive(Debug)]
pub(super) struct Wire(OwnedFd);

/// Where conversations begin.
#[derive(Debug)]
pub(super) struct Listener(OwnedFd);

fn socket() -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

impl Listener {
    /// Listens at a path, for ourselves alone, in place of whoever did so before.
    pub(super) fn replace(path: &Path) -> anyhow::Result<Self> {
        Ok(Self(listen_in_place(path, SocketType::SEQPACKET)?))
    }

    /// The next conversation with a process of ours.
    pub(super) fn accept(&self) -> io::Result<Wire> {
        loop {
            let (wire, _) = rustix::io::retry_on_intr(|| acceptfrom_with(&self.0, SocketFlags::CLOEXEC))?;
            // The socket's mode says the same; a descriptor can be handed on.
            if socket_peercred(&wire)?.uid == rustix::process::geteuid() {
                return Ok(Wire(wire));
            }
        }
    }
}

impl Wire {
    /// Begins a conversation.
    pub(super) fn connect(path: &Path) -> io::Result<Self> {
        let wire = socket()?;
        connect(&wire, &SocketAddrUnix::new(path)?)?;
        Ok(Self(wire))
    }

    /// How long the other side may be silent; `None` for ever.
    pub(super) fn set_patience(&self, patience: Option<Duration>) -> io::Result<()> {
        set_socket_timeout(&self.0, Timeout::Send, patience)?;
        Ok(set_socket_timeout(&self.0, Timeout::Recv, patience)?)
    }

    /// Whether the other side has said something or ended.
    pub(super) fn has_news(&self) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut [PollFd::new(self, PollFlags::IN)], Some(&now)).is_ok_and(|ready| ready > 0)
    }

    /// Says something, with descriptors.
    pub(super) fn send(
        &self,
        message: &impl Serialize,
        descriptors: &[BorrowedFd<'_>],
    ) -> anyhow::Result<()> {
        let text = serde_json::to_vec(message)?;
        anyhow::ensure!(descriptors.len() <= DESCRIPTORS, "too many descriptors for one message");
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            anyhow::ensure!(
                control.push(SendAncillaryMessage::ScmRights(descriptors)),
                "there is no room for descriptors"
            );
        }
        let text = [IoSlice::new(&text)];
        rustix::io::retry_on_intr(|| sendmsg(&self.0, &text, &mut control, SendFlags::NOSIGNAL))?;
        Ok(())
    }

    /// Hears something; `None` when the other side has ended.
    pub(super) fn receive<T: DeserializeOwned>(&self) -> anyhow::Result<Option<(T, Vec<OwnedFd>)>> {
        let mut text = vec![0; LONGEST];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::io::retry_on_intr(|| {
            recvmsg(&self.0, &mut [IoSliceMut::new(&mut text)], &mut control, RecvFlags::CMSG_CLOEXEC)
        });
        let received = match received {
            Ok(received) if received.bytes == 0 => return Ok(None),
            Ok(received) => received,
            Err(rustix::io::Errno::CONNRESET) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        let torn = ReturnFlags::TRUNC | ReturnFlags::CTRUNC;
        anyhow::ensure!(!received.flags.intersects(torn), "a message is longer than this version expects");
        let message = serde_json::from_slice(text.get(..received.bytes).unwrap_or_default());
        Ok(Some((message.context("a message is not understood")?, descriptors)))
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
