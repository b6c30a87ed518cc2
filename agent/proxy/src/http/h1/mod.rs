//! HTTP/1.1 on a connection, for both sides: what is read becomes messages, and messages become bytes.
//!
//! Heads are parsed by `httparse`. Everything that decides where a message ends is here, and in doubt refuses
//! (RFC 9112 6.3). A connection belongs to one worker: the task of a request reads and writes it itself.

mod case;
pub(crate) mod client;
mod decoder;
mod head;
mod link;
mod names;
pub(crate) mod server;
mod switched;
#[cfg(test)]
mod tests;
mod wire;
mod write;

use std::cell::Cell;
use std::io;

pub(crate) use self::switched::{Duplex, Switched};

/// Why a connection is of no more use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    /// What came is no HTTP.
    #[error("{0}")]
    Malformed(&'static str),
    /// It ended too early.
    #[error("the connection was closed in the middle of a message")]
    Incomplete,
    /// The socket failed.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// A head that is refused without being understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub(crate) struct Malformed {
    /// The answer: 400, 414 or 431.
    pub(crate) status: u16,
    /// For people.
    pub(crate) reason: &'static str,
}

impl Malformed {
    const fn new(reason: &'static str) -> Self {
        Self { status: 400, reason }
    }
}

/// What is wrong with a head that is understood: it is answered as requests are, with a line in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Smell {
    /// Both `Content-Length` and `Transfer-Encoding` (E42).
    TwoLengths,
    /// A fragment in the request target (E42).
    Fragment,
}

/// How far a connection to a client is, and what is wanted of it.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// A head has begun and is not complete.
    pub(crate) in_head: Cell<bool>,
    /// A request's body has begun and is not complete.
    pub(crate) in_body: Cell<bool>,
    /// It is to end after the request that is on it.
    pub(crate) closing: Cell<bool>,
}
