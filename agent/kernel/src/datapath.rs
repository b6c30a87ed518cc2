//! The kernel's half of the data path, as the agent sees it.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;

use weft_core::kernel_view::KernelView;
use weft_core::resource::NamespacedName;

use crate::Netns;

/// Where the data path lives.
#[derive(Debug, Clone)]
pub struct DatapathConfig {
    /// cgroup2 directory under which the pods' processes run (`kubepods`, or the root of cgroup2).
    pub cgroup: PathBuf,
    /// cgroup2 directory of the kubelet, whose probes reach applications without the proxy (ruling 7).
    pub probe_cgroup: Option<PathBuf>,
    /// Directory on bpffs for links and maps; bpffs is mounted there when it is not one.
    pub pin_dir: PathBuf,
    /// Send an event for every direct flow (access log of direct flows).
    pub flow_events: bool,
}

/// A failure that keeps the data path from working at all.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// The kernel lacks something; the text names the feature and the version that brought it.
    #[error("{0}")]
    Unsupported(String),
    /// A pinned state that this version cannot take over; the text names the remedy.
    #[error("{0}")]
    IncompatiblePins(String),
    /// A system call failed.
    #[error("{what}")]
    Io {
        /// What was being done.
        what: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The eBPF library failed.
    #[error("{what}")]
    Bpf {
        /// What was being done.
        what: String,
        /// Why it failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Why one pod could not be enrolled. `Display` is the reason that `weft status` shows.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnrolError {
    /// Never enrolled, whatever happens: the host's namespace, the agent's, another pod's, wrong addresses, ….
    #[error("{0}")]
    Refused(String),
    /// May work later.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

/// A pod that is to be enrolled.
#[derive(Debug, Clone)]
pub struct PodToEnrol {
    /// Namespace and name.
    pub key: NamespacedName,
    /// Its network namespace.
    pub netns: PathBuf,
    /// `status.podIPs`; the namespace must hold each of them.
    pub ips: Vec<IpAddr>,
}

/// A pod whose network namespace is set up. Not steered to user space before `apply` has told the maps.
#[derive(Debug)]
pub struct Enrolled {
    /// The namespace.
    pub netns: Arc<Netns>,
    /// Non-blocking listeners that receive inbound connections of any port (IPv4, IPv6); the accepted
    /// socket's local address is the original destination.
    pub inbound: Vec<TcpListener>,
    /// The same for captured outbound connections.
    pub outbound: Vec<TcpListener>,
}

/// What one `apply` changed.
#[derive(Debug, Clone, Default)]
pub struct Applied {
    /// Map entries written.
    pub written: usize,
    /// Map entries removed.
    pub removed: usize,
    /// Established direct flows that are not permitted as direct any more: the caller decides (by asking
    /// `core`) which of them are denied, and [`Datapath::cut`]s those.
    pub revoked: Vec<FlowRecord>,
    /// Entries that did not fit; their flows go through the proxy.
    pub overflow: usize,
}

/// An established direct flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowRecord {
    /// Kernel's cookie of the source's socket.
    pub socket_cookie: u64,
    /// Source pod.
    pub source: NamespacedName,
    /// Destination pod.
    pub destination: NamespacedName,
    /// Source address and port.
    pub source_addr: SocketAddr,
    /// Destination address and port, as on the wire.
    pub destination_addr: SocketAddr,
    /// The address that the application dialled, when it was a Service's.
    pub vip: Option<SocketAddr>,
}

/// How a cut went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// The flow is gone.
    Done,
    /// It had gone already.
    AlreadyGone,
}

/// Totals of direct flows since the data path was loaded; never decrease while both pods stay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectFlowTotals {
    /// Source pod.
    pub source: NamespacedName,
    /// Destination pod.
    pub destination: NamespacedName,
    /// The address that was dialled: a Service's or the pod's.
    pub dialled: SocketAddr,
    /// Handshakes completed.
    pub opened: u64,
    /// Flows closed.
    pub closed: u64,
    /// Flows that failed before their handshake was complete.
    pub failed: u64,
    /// Bytes from source to destination, those of open flows included.
    pub sent_bytes: u64,
    /// Bytes from destination to source, those of open flows included.
    pub received_bytes: u64,
}

/// A reason counter of the programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CounterValue {
    /// Program (`out`, `tuple`, `probe`, `steer`).
    pub program: &'static str,
    /// Reason, in words separated by `_`.
    pub reason: &'static str,
    /// Sum over all CPUs.
    pub value: u64,
}

/// How full a map is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapUse {
    /// Name of the map.
    pub name: String,
    /// Entries in use, where that can be counted.
    pub entries: usize,
    /// Capacity.
    pub max_entries: usize,
}

/// Tuples of the agent's onward connections: `steer` passes them to the application.
///
/// Publish before `connect()`, withdraw when it has returned. One system call each; usable from any thread.
#[derive(Debug, Clone)]
pub struct OnwardTuples {}

impl OnwardTuples {
    /// Announces a connection from `source` to `destination` that the agent is about to open.
    pub fn publish(&self, source: SocketAddr, destination: SocketAddr) -> io::Result<()> {
        let _ = (source, destination);
        unimplemented!()
    }

    /// Takes the announcement back.
    pub fn withdraw(&self, source: SocketAddr, destination: SocketAddr) {
        let _ = (source, destination);
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
pub struct Tuples {}

impl Tuples {
    /// The pod that opened the connection, if it did so a moment ago and this kernel vouches for it.
    pub fn attested(&self, source: SocketAddr, destination: SocketAddr) -> Option<AttestedPeer> {
        let _ = (source, destination);
        None
    }
}

/// What `cleanup` removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CleanupReport {
    /// Links detached.
    pub links: usize,
    /// Maps unpinned.
    pub maps: usize,
    /// Namespaces from which rules, routes and sysctls were removed.
    pub namespaces: usize,
    /// What could not be removed, and why.
    pub failures: Vec<String>,
}

/// The loaded data path. One owner (the agent's node task); not used on the path of a connection.
#[derive(Debug)]
pub struct Datapath {}

impl Datapath {
    /// Probes the kernel, mounts bpffs if needed, takes over a pinned state of the same schema or starts
    /// afresh, loads and attaches the programs.
    pub fn open(config: DatapathConfig) -> Result<Self, KernelError> {
        let _ = config;
        unimplemented!()
    }

    /// Sets a pod's namespace up: listeners, policy rule and route per family, sysctls, `steer` link.
    pub fn enrol(&mut self, pod: &PodToEnrol) -> Result<Enrolled, EnrolError> {
        let _ = pod;
        unimplemented!()
    }

    /// Takes everything out of a pod's namespace again. Succeeds when the namespace is gone already.
    pub fn unenrol(&mut self, pod: &NamespacedName) -> Result<(), KernelError> {
        let _ = pod;
        unimplemented!()
    }

    /// Enrolled pods whose network namespace has lost its last device or process (the pod is gone).
    pub fn vanished(&self) -> Vec<NamespacedName> {
        Vec::new()
    }

    /// Makes the maps say what the view says: revocations first, then pods, then permissions.
    pub fn apply(&mut self, view: &KernelView) -> Result<Applied, KernelError> {
        let _ = view;
        unimplemented!()
    }

    /// Signs of life: call at least every 10 s.
    pub fn heartbeat(&mut self) -> Result<(), KernelError> {
        Ok(())
    }

    /// Handle for the proxy's onward connections.
    pub fn onward(&self) -> OnwardTuples {
        OnwardTuples {}
    }

    /// Handle for the proxy's inbound side.
    pub fn tuples(&self) -> Tuples {
        Tuples {}
    }

    /// All established direct flows.
    pub fn direct_flows(&self) -> Vec<FlowRecord> {
        Vec::new()
    }

    /// Ends a direct flow: both ends see a reset.
    pub fn cut(&self, flow: &FlowRecord) -> Result<Cut, KernelError> {
        let _ = flow;
        Ok(Cut::AlreadyGone)
    }

    /// Totals for metrics. Reads per-CPU maps and `sock_diag`: milliseconds, so not more than once a second.
    pub fn totals(&mut self) -> Result<Vec<DirectFlowTotals>, KernelError> {
        Ok(Vec::new())
    }

    /// Reason counters.
    pub fn counters(&self) -> Vec<CounterValue> {
        Vec::new()
    }

    /// How full the maps are.
    pub fn maps(&self) -> Vec<MapUse> {
        Vec::new()
    }

    /// Names of the attached programs.
    pub fn programs(&self) -> Vec<String> {
        Vec::new()
    }

    /// Removes everything that any agent with this configuration left: works without a running agent.
    pub fn cleanup(config: &DatapathConfig, pod: Option<&NamespacedName>) -> Result<CleanupReport, KernelError> {
        let _ = (config, pod);
        unimplemented!()
    }
}
