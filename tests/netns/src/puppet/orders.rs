//! What puppets are told, and what they answer.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// What a server does with each connection. Every TCP server but `Silent` and `Deaf` greets first with a line
/// `<peer> <local>`, so that tests see which addresses the application sees.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub enum Role {
    /// Greets, then echoes until the client's end, then closes.
    Greet,
    /// Says nothing first; echoes until the client's end, then closes.
    Silent,
    /// Greets, reads to the client's end, then says how many bytes it got as a decimal line and closes.
    Count,
    /// Greets and keeps the socket without reading from it.
    Hold,
    /// Never accepts, and lets one connection wait for it.
    Deaf,
    /// Greets, reads one byte, then resets the connection.
    Abort,
    /// Greets, writes so many pattern bytes, ends its direction, and reads to the client's end.
    Talk(u64),
    /// A UDP socket that answers `<peer> <payload>`.
    Udp,
}

/// How to connect.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Connect {
    /// Whereto.
    pub to: SocketAddr,
    /// The source address and port; SO_REUSEADDR is set.
    pub bind: Option<SocketAddr>,
    /// SO_BINDTODEVICE.
    pub device: Option<String>,
    /// SO_MARK.
    pub mark: Option<u32>,
    /// An IPv6 socket that connects to the v4-mapped form of an IPv4 address.
    pub mapped: bool,
    /// IPPROTO_MPTCP.
    pub multipath: bool,
    /// IP_TRANSPARENT: `bind` may be foreign.
    pub transparent: bool,
    /// Longest wait for the handshake.
    pub wait_ms: u64,
}

impl Connect {
    /// An ordinary connection.
    pub fn to(to: SocketAddr) -> Self {
        Self {
            to,
            bind: None,
            device: None,
            mark: None,
            mapped: false,
            multipath: false,
            transparent: false,
            wait_ms: 20_000,
        }
    }
}

/// One order.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Order {
    /// Start a server. → `Serving`
    Serve {
        /// Where; port 0 lets the kernel choose.
        address: SocketAddr,
        /// What it does.
        role: Role,
    },
    /// How much a server has seen. → `Tally`
    Tally {
        /// Which one.
        server: usize,
    },
    /// Send one byte on every connection that a `Hold` server keeps. → `Count`
    Broadcast {
        /// Which one.
        server: usize,
    },
    /// Stop listening; connections stay. → `Done`
    Stop {
        /// Which one.
        server: usize,
    },
    /// Open a connection. → `Connected`
    Connect(Connect),
    /// Send everything. → `Done`
    Send {
        /// On which connection.
        connection: u64,
        /// What.
        bytes: Vec<u8>,
    },
    /// Send a byte of urgent data. → `Done`
    SendUrgent {
        /// On which connection.
        connection: u64,
        /// What.
        byte: u8,
    },
    /// Send pattern bytes until the socket takes no more for now. → `Count`
    Stuff {
        /// On which connection.
        connection: u64,
    },
    /// Receive until there are so many bytes, or the end. → `Received`
    Receive {
        /// On which connection.
        connection: u64,
        /// How many bytes suffice.
        at_least: usize,
        /// Longest wait.
        wait_ms: u64,
    },
    /// Send so many pattern bytes while receiving and comparing as many. → `Count` of received bytes
    Exchange {
        /// On which connection.
        connection: u64,
        /// How many.
        length: u64,
    },
    /// End the sending direction. → `Done`
    Shutdown {
        /// Of which connection.
        connection: u64,
    },
    /// Close. → `Done`
    Close {
        /// Which one.
        connection: u64,
        /// With a reset instead of an orderly end.
        abort: bool,
    },
    /// What the application sees of its own socket. → `Options`
    Options {
        /// Of which connection.
        connection: u64,
    },
    /// Open so many connections to a `Hold` server and keep them. → `Held`
    Hold {
        /// Whereto.
        to: SocketAddr,
        /// How many.
        count: usize,
    },
    /// Read the byte of one `Broadcast` from every held connection. → `Held`
    HeldAlive,
    /// Open, use and close so many connections to a `Silent` server. → `Held`
    Churn {
        /// Whereto.
        to: SocketAddr,
        /// How many in all.
        count: usize,
        /// How many at a time.
        parallel: usize,
    },
    /// Open a connection by hand, with raw packets, and collect the first line of the server. → `Received`
    Handshake {
        /// Our end, which may be foreign. For a local address the kernel answers besides, and resets what it does not
        /// know: a packet filter must keep it from that (our own packets have 77 hops to live).
        source: SocketAddr,
        /// Whereto.
        to: SocketAddr,
        /// SO_MARK.
        mark: Option<u32>,
        /// Longest wait.
        wait_ms: u64,
    },
    /// Send the first packets of so many connections from addresses that are nobody's. → `Count`
    Flood {
        /// Whereto.
        to: SocketAddr,
        /// How many.
        count: u32,
    },
    /// Ask a `Udp` server. → `Received`
    AskUdp {
        /// Whereto.
        to: SocketAddr,
        /// What.
        payload: String,
    },
}

/// How receiving ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// There were enough bytes.
    Enough,
    /// The peer ended its direction.
    Eof,
    /// The connection was reset.
    Reset,
    /// Nothing more came in time.
    Silence,
}

/// What became of many connections.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Held {
    /// Did what they should.
    pub good: usize,
    /// Could not be opened, or failed later.
    pub failed: usize,
    /// The server saw another peer than the client is.
    pub mistaken: usize,
    /// The first failure or mistake, in words.
    pub first: Option<String>,
}

/// Why an order failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// `ConnectionRefused`, `ConnectionReset`, `PermissionDenied`, `TimedOut`, ….
    pub kind: String,
    /// In words.
    pub text: String,
}

impl Failure {
    /// Whether the failure is of this kind.
    pub fn is(&self, kind: ErrorKind) -> bool {
        self.kind == format!("{kind:?}")
    }
}

impl From<&io::Error> for Failure {
    fn from(error: &io::Error) -> Self {
        Self { kind: format!("{:?}", error.kind()), text: error.to_string() }
    }
}

/// One answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Answer {
    /// It is done.
    Done,
    /// The order failed.
    Failed(Failure),
    /// A server listens.
    Serving {
        /// Its number.
        server: usize,
        /// Its address, with the port.
        address: SocketAddr,
    },
    /// What a server has seen so far.
    Tally {
        /// Accepted connections.
        accepted: u64,
        /// Bytes received on all of them.
        bytes: u64,
        /// Connections that were reset by the client.
        resets: u64,
    },
    /// A connection is open.
    Connected {
        /// Its number.
        connection: u64,
        /// `getsockname`.
        local: SocketAddr,
        /// `getpeername`.
        remote: SocketAddr,
    },
    /// What came.
    Received {
        /// The bytes.
        bytes: Vec<u8>,
        /// Why there are not more.
        end: End,
    },
    /// A number of bytes or connections.
    Count(u64),
    /// Options of a socket.
    Options {
        /// SO_MARK.
        mark: u32,
        /// SO_BINDTODEVICE.
        device: Option<String>,
    },
    /// What became of many connections.
    Held(Held),
}
