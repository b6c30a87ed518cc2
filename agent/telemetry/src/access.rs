//! One line for each connection or request, at its end (ruling 18).

use std::cell::RefCell;
use std::fmt;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use serde::{Serialize, Serializer};
use weft_core::ObjectRef;
use weft_core::access_format::AccessFormat;
use weft_core::resource::NamespacedName;

use crate::custom::WantedHeaders;
use crate::format::{self, Fields};
use crate::lines::{BATCH_BYTES, Lines};

/// How long a few lines wait for more.
const GATHER: Duration = Duration::from_millis(10);

/// How lines look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccessLogFormat {
    /// Istio's default text format (L-2).
    Text,
    /// One JSON object per line (L-3), with source and destination principal, path and policy beside.
    Json,
    /// As the user wrote it (L-5).
    Custom(Arc<AccessFormat>),
}

/// Headers of a request and of its answer that the format prints, by their names in lower case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NotedHeaders {
    /// Of the request.
    pub request: Vec<(Arc<str>, String)>,
    /// Of the answer.
    pub response: Vec<(Arc<str>, String)>,
}

/// A text that is put together only where it is printed.
#[derive(Debug, Clone, Copy)]
pub enum LogText<'a> {
    /// This one.
    Plain(&'a str),
    /// `namespace/name`.
    Object(&'a NamespacedName),
    /// `inbound|PORT||` (L-4).
    InboundPort(u16),
    /// `ns[NS]-policy[NAME]-rule[I]` (AP-23).
    Policy(&'a ObjectRef, Option<usize>),
}

impl fmt::Display for LogText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(text) => f.write_str(text),
            Self::Object(name) => name.fmt(f),
            Self::InboundPort(port) => write!(f, "inbound|{port}||"),
            Self::Policy(ObjectRef { namespace, name, .. }, rule) => {
                write!(f, "ns[{namespace}]-policy[{name}]")?;
                rule.map_or(Ok(()), |rule| write!(f, "-rule[{rule}]"))
            }
        }
    }
}

impl Serialize for LogText<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
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
    /// The AUDIT policies that matched, with a comma between them: the line is written even where no access log was
    /// asked for.
    pub audit: Option<String>,
}

impl ConnectionLog {
    /// Whether the line is written even where no access log was asked for, and has room of its own: refusals and
    /// failures.
    pub fn is_failure(&self) -> bool {
        self.flags != "-"
    }
}

/// Everything that a line about a request may say (L-2, L-3). Absent facts are `None` and print as `-`.
#[derive(Debug, Clone)]
pub struct RequestLog<'a> {
    /// When its first byte came.
    pub start: SystemTime,
    /// From there to the answer's last byte.
    pub duration: Duration,
    /// Which side speaks.
    pub direction: Direction,
    /// The method.
    pub method: &'a str,
    /// Path and query as the client sent them.
    pub path: &'a str,
    /// `HTTP/1.1`, `HTTP/2`.
    pub protocol: &'static str,
    /// 0 where the client got no answer.
    pub response_code: u16,
    /// Envoy's response flags (H-16).
    pub flags: &'static str,
    /// `response_code_details`: `via_upstream`, `route_not_found`, ….
    pub response_code_details: Option<&'a str>,
    /// `connection_termination_details`.
    pub termination_details: Option<&'a str>,
    /// `upstream_transport_failure_reason`, for people.
    pub transport_failure: Option<&'a str>,
    /// Bytes of the request's body.
    pub bytes_received: u64,
    /// Bytes of the answer's body.
    pub bytes_sent: u64,
    /// From the request's last byte to the answer's head.
    pub upstream_service_time: Option<Duration>,
    /// The header, as it was sent.
    pub x_forwarded_for: Option<&'a [u8]>,
    /// The header.
    pub user_agent: Option<&'a [u8]>,
    /// `x-request-id`.
    pub request_id: Option<&'a [u8]>,
    /// Host or `:authority` as the client sent it.
    pub authority: Option<&'a [u8]>,
    /// The endpoint that it went to.
    pub upstream_host: Option<SocketAddr>,
    /// L-4.
    pub upstream_cluster: Option<LogText<'a>>,
    /// From which address.
    pub upstream_local: Option<SocketAddr>,
    /// What the connection was addressed to.
    pub downstream_local: SocketAddr,
    /// Who opened it.
    pub downstream_remote: SocketAddr,
    /// SNI.
    pub requested_server_name: Option<&'a str>,
    /// `default`, `allow_any`, `block_all`, or the rule's name (L-4, V-14).
    pub route_name: Option<&'a str>,
    /// `node`, `hbone`, `plaintext`, `passthrough`.
    pub mesh_path: &'static str,
    /// `spiffe://…`.
    pub source_principal: Option<&'a str>,
    /// `spiffe://…`.
    pub destination_principal: Option<&'a str>,
    /// Pod `namespace/name`, where it is known.
    pub source_pod: Option<LogText<'a>>,
    /// Pod `namespace/name`, where it is known.
    pub destination_pod: Option<LogText<'a>>,
    /// The policy that decided.
    pub policy: Option<LogText<'a>>,
    /// The gRPC status, where the caller speaks gRPC.
    pub grpc_status: Option<u8>,
    /// What [`AccessLog::wanted_headers`] asks for.
    pub headers: Option<&'a NotedHeaders>,
    /// The AUDIT policies that matched, with a comma between them: the line is written even where no access log was
    /// asked for.
    pub audit: Option<&'a str>,
    /// The mesh refused it: written even where no access log was asked for. Envoy has no flag for that.
    pub refused: bool,
}

impl RequestLog<'_> {
    /// Whether the line is written even where no access log was asked for, and has room of its own: refusals and
    /// failures.
    pub fn is_failure(&self) -> bool {
        self.refused || self.flags != "-"
    }
}

/// How lines are written.
#[derive(Debug)]
struct Settings {
    format: AccessLogFormat,
    headers: Option<Arc<WantedHeaders>>,
}

impl Settings {
    fn new(format: AccessLogFormat) -> Arc<Self> {
        let headers = match &format {
            AccessLogFormat::Text | AccessLogFormat::Json => None,
            AccessLogFormat::Custom(format) => WantedHeaders::of(format),
        };
        Arc::new(Self { format, headers: headers.map(Arc::new) })
    }
}

/// What all handles have in common.
#[derive(Debug)]
struct Shared {
    everything: AtomicBool,
    settings: ArcSwap<Settings>,
    /// Whether those have headers.
    wants_headers: AtomicBool,
}

/// The writer. Cheap to clone; never blocks the caller.
#[derive(Clone)]
pub struct AccessLog {
    lines: Lines,
    shared: Arc<Shared>,
}

impl fmt::Debug for AccessLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessLog").field("lost", &self.lost()).finish_non_exhaustive()
    }
}

impl AccessLog {
    /// Starts the writer on standard output. Only failures and what is audited are written until [`AccessLog::configure`] says
    /// otherwise.
    pub fn stdout() -> Self {
        Self::to(Box::new(std::io::stdout()))
    }

    /// Starts the writer on any output.
    pub fn to(output: Box<dyn Write + Send>) -> Self {
        let shared = Arc::new(Shared {
            everything: AtomicBool::new(false),
            settings: ArcSwap::new(Settings::new(AccessLogFormat::Text)),
            wants_headers: AtomicBool::new(false),
        });
        Self { lines: Lines::to("access-log", output, GATHER), shared }
    }

    /// Writes only failures and what is audited, or everything, in a format. Takes effect at once.
    pub fn configure(&self, everything: bool, format: AccessLogFormat) {
        let shared = &self.shared;
        let settings = Settings::new(format);
        shared.wants_headers.store(settings.headers.is_some(), Ordering::Relaxed);
        shared.settings.store(settings);
        shared.everything.store(everything, Ordering::Relaxed);
    }

    /// Headers that the format prints and that lines have to bring along.
    pub fn wanted_headers(&self) -> Option<Arc<WantedHeaders>> {
        let shared = &self.shared;
        let wanted = shared.wants_headers.load(Ordering::Relaxed);
        if wanted { shared.settings.load().headers.clone() } else { None }
    }

    /// Whether lines of ordinary connections are written at all, so that the caller need not make them.
    pub fn wants_everything(&self) -> bool {
        self.shared.everything.load(Ordering::Relaxed)
    }

    /// Queues a line about a connection. Failures are kept when the queue is full as long as there is room for them.
    pub fn write(&self, line: ConnectionLog) {
        let failure = line.is_failure();
        if failure || line.audit.is_some() || self.wants_everything() {
            self.queue(&Fields::of_connection(&line), failure);
        }
    }

    /// Queues a line about a request, by the same rules.
    pub fn request(&self, line: &RequestLog<'_>) {
        let failure = line.is_failure();
        if failure || line.audit.is_some() || self.wants_everything() {
            self.queue(&Fields::of_request(line), failure);
        }
    }

    /// Puts a line into words here and now: it is shorter than what it is made of, and its facts need not be copied.
    fn queue(&self, fields: &Fields<'_>, failure: bool) {
        thread_local! {
            static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        LINE.with_borrow_mut(|line| {
            format::line(fields, &self.shared.settings.load().format, line);
            self.lines.push(line, failure);
            line.clear();
            // What one long line needed is not kept for all time.
            line.shrink_to(BATCH_BYTES);
        });
    }

    /// Lines that were lost because the queue was full or the output failed.
    pub fn lost(&self) -> u64 {
        self.lines.lost()
    }

    /// Blocks until everything queued so far is written, at most `limit`.
    pub fn flush(&self, limit: Duration) {
        self.lines.flush(limit);
    }
}

#[cfg(test)]
#[path = "access_tests.rs"]
pub(crate) mod tests;
