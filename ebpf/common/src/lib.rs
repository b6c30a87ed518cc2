//! The only ABI between the kernel programs and the agent.
//!
//! Every type is `repr(C)` without implicit padding, its size is asserted, and [`ABI_MAJOR`] changes
//! whenever a layout or a meaning does. Addresses are 16 bytes in network order, as four words because that is
//! how the kernel's contexts hold them, IPv4 as v4-mapped (`::ffff:a.b.c.d`), so that one map serves both
//! families. Ports are in host order.
//!
//! [`classify`] holds the pure decision helpers that the programs call; they also compile for the host and
//! are unit-tested there.
#![no_std]

pub mod classify;

/// Layout and meaning of everything in this crate; part of the pin path.
pub const ABI_MAJOR: u32 = 2;
/// Additions that programs of the same major ignore.
pub const ABI_MINOR: u32 = 0;

/// Bit of `SO_MARK` that loops a captured connection to `lo`; the pods' policy rule selects on it.
pub const CAPTURE_MARK: u32 = 0x1000_0000;

/// How long the kernel trusts a published tuple: about the life of a SYN with its retransmissions.
pub const TUPLE_LIFETIME_NS: u64 = 5_000_000_000;
/// How long direct flows may be opened without a sign of life from the agent (ruling 1).
pub const HEARTBEAT_LIFETIME_NS: u64 = 30_000_000_000;

/// Capacities of the maps, and with them part of the layout that pinned maps must have.
///
/// Each slot takes 16 bytes of the kernel's memory, used or not, and those of `DIRECT` and `PROBES` over a hundred: they
/// are sized for what one node can have of each, not for what a cluster has.
pub mod capacity {
    /// `PODS`.
    pub const PODS: u32 = 4096;
    /// `LOCAL`.
    pub const LOCAL: u32 = 8192;
    /// `POLICY`.
    pub const POLICY: u32 = 131_072;
    /// `PORT_RULES`.
    pub const PORT_RULES: u32 = 16_384;
    /// `RANGE_RULES`.
    pub const RANGE_RULES: u32 = 65_536;
    /// `SERVICES`.
    pub const SERVICES: u32 = 16_384;
    /// `ENDPOINTS`.
    pub const ENDPOINTS: u32 = 65_536;
    /// `DIRECT`. A tuple is read within moments; what is evicted is that of a connection that was opened long before.
    pub const DIRECT: u32 = 16_384;
    /// `ONWARD`.
    pub const ONWARD: u32 = 65_536;
    /// `PROBES`.
    pub const PROBES: u32 = 4096;
    /// `FLOWS`.
    pub const FLOWS: u32 = 131_072;
    /// `AGGREGATES`.
    pub const AGGREGATES: u32 = 16_384;
    /// `EVENTS`, in bytes.
    pub const EVENTS: u32 = 512 * 1024;
    /// `COUNTERS`: room for more without a change of layout.
    pub const COUNTERS: u32 = 64;
    /// `CAPTURES`.
    pub const CAPTURES: u32 = 4096;
    /// `AGENTS`: agents that end their last connections while another one has taken over.
    pub const AGENTS: u32 = 64;
    /// `LISTENERS`: one slot per [`super::listener_slot`].
    pub const LISTENERS: u32 = 4;
}

/// An address: 16 bytes in network order, seen as four words of memory; IPv4 is v4-mapped.
pub type Addr = [u32; 4];

/// The one entry of map `META`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// [`ABI_MAJOR`] of the writer.
    pub abi_major: u32,
    /// [`ABI_MINOR`] of the writer.
    pub abi_minor: u32,
    /// `CLOCK_MONOTONIC` nanoseconds of the agent's last sign of life.
    pub heartbeat_ns: u64,
    /// cgroup id of the agent: its own connections are never captured (ruling 6).
    pub agent_cgroup: u64,
    /// [`meta_flags`].
    pub flags: u32,
    /// Zero.
    pub reserved: u32,
}

/// Flags of [`Meta`].
pub mod meta_flags {
    /// Send an event for every direct flow that opens or closes.
    pub const FLOW_EVENTS: u32 = 1;
    /// Map `AGENTS` (cgroup id → `CLOCK_MONOTONIC` nanoseconds) has further agents' cgroups, whose connections are
    /// never captured either.
    pub const PREDECESSORS: u32 = 2;
}

/// Entry of map `PODS`, keyed by network namespace cookie: an enrolled pod as a source.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PodConfig {
    /// Its IPv4 address, v4-mapped; zero when it has none.
    pub ip4: Addr,
    /// Its IPv6 address; zero when it has none.
    pub ip6: Addr,
    /// Its identity, as numbered by the agent.
    pub identity: u32,
    /// [`pod_flags`].
    pub flags: u32,
}

/// Flags of [`PodConfig`].
pub mod pod_flags {
    /// Never capture (break-glass).
    pub const BYPASS: u32 = 1;
    /// `PORT_RULES` or `RANGE_RULES` have entries for outbound connections of this pod.
    pub const OUTBOUND_RULES: u32 = 2;
    /// Outbound destinations are captured only where a rule includes them.
    pub const OUTBOUND_DEFAULT_SKIP: u32 = 4;
    /// Direct flows are permitted from this pod.
    pub const DIRECT: u32 = 8;
}

/// Entry of map `LOCAL`, keyed by [`Addr`]: an enrolled pod as a destination.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LocalPod {
    /// Network namespace cookie of the pod.
    pub cookie: u64,
    /// Its policy set: first part of [`PolicyKey`].
    pub set: u32,
    /// Zero.
    pub reserved: u32,
}

/// Key of map `POLICY`. An entry means: may go direct. No entry means: through the proxy.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyKey {
    /// Policy set of the destination.
    pub set: u32,
    /// Identity of the source.
    pub identity: u32,
    /// Destination port, host order.
    pub port: u16,
    /// Zero.
    pub reserved: [u16; 3],
}

/// Key of map `PORT_RULES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PortRuleKey {
    /// Network namespace cookie of the pod.
    pub cookie: u64,
    /// Port, host order.
    pub port: u16,
    /// [`port_rule`].
    pub kind: u16,
    /// Zero.
    pub reserved: u32,
}

/// What a [`PortRuleKey`] is about.
pub mod port_rule {
    /// Outbound port: value [`super::RULE_SKIP`] or [`super::RULE_CAPTURE`].
    pub const OUTBOUND: u16 = 0;
    /// Inbound port: value [`super::RULE_SKIP`] or [`super::RULE_CAPTURE`].
    pub const INBOUND: u16 = 1;
    /// Inbound port whose answer with the agent gone is the opposite of the pod's default.
    pub const GONE_EXCEPTION: u16 = 2;
}

/// The rule leaves the connection alone.
pub const RULE_SKIP: u8 = 0;
/// The rule captures the connection.
pub const RULE_CAPTURE: u8 = 1;

/// Data part of a key of the LPM trie `RANGE_RULES` (outbound ranges). The cookie is a big-endian prefix,
/// so a rule for `10.0.0.0/8` of a pod has prefix length 64 + 96 + 8.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RangeKey {
    /// Network namespace cookie, big-endian.
    pub cookie: [u8; 8],
    /// Address.
    pub addr: Addr,
}

/// Key of the maps of tuples: a connection as its first SYN shows it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Source address.
    pub source: Addr,
    /// Destination address.
    pub destination: Addr,
    /// Source port, host order.
    pub source_port: u16,
    /// Destination port, host order.
    pub destination_port: u16,
}

/// Value of the maps of tuples: who opened the connection, and when.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TupleInfo {
    /// `CLOCK_MONOTONIC` nanoseconds of publication.
    pub published_ns: u64,
    /// Network namespace cookie of the source (zero for a probe).
    pub cookie: u64,
    /// Identity of the source (zero for a probe).
    pub identity: u32,
    /// Zero.
    pub reserved: u32,
}

/// Entry of map `SERVICES`, keyed by [`ServiceKey`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceInfo {
    /// First part of [`EndpointKey`].
    pub id: u32,
    /// Number of endpoints; never zero.
    pub count: u32,
}

/// Key of map `SERVICES`: a virtual address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ServiceKey {
    /// Virtual address.
    pub vip: Addr,
    /// Service port, host order.
    pub port: u16,
    /// Zero.
    pub reserved: u16,
}

/// Key of map `ENDPOINTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct EndpointKey {
    /// [`ServiceInfo::id`].
    pub service: u32,
    /// 0 … [`ServiceInfo::count`] − 1.
    pub index: u32,
}

/// Value of map `ENDPOINTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndpointInfo {
    /// Address.
    pub addr: Addr,
    /// Port, host order.
    pub port: u16,
    /// Zero.
    pub reserved: u16,
}

/// A direct flow, in socket storage from `connect()` and in map `FLOWS` (keyed by socket cookie) while it is
/// established, so that user space can find and cut it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// Source and destination, as on the wire.
    pub tuple: Tuple,
    /// Identity of the source.
    pub identity: u32,
    /// Network namespace cookie of the source.
    pub source_cookie: u64,
    /// Network namespace cookie of the destination.
    pub destination_cookie: u64,
    /// `CLOCK_MONOTONIC` nanoseconds of `connect()`.
    pub opened_ns: u64,
    /// The virtual address that the application dialled; zero when it dialled the pod.
    pub vip: Addr,
    /// The port that the application dialled, host order.
    pub vip_port: u16,
    /// [`flow_state`].
    pub state: u16,
    /// Low half of the socket's received byte count when it entered FIN-WAIT-2; tells later whether the
    /// peer's FIN was counted (see [`classify::payload_received`]).
    pub fin_wait_received: u32,
}

/// States of a [`Flow`].
pub mod flow_state {
    /// `connect()` was allowed; the SYN has not left.
    pub const CONNECTING: u16 = 0;
    /// The tuple is published.
    pub const PUBLISHED: u16 = 1;
    /// The handshake is complete.
    pub const ESTABLISHED: u16 = 2;
}

/// Key of the per-CPU map `AGGREGATES`: what direct flows are summed by.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct AggregateKey {
    /// Network namespace cookie of the source.
    pub source_cookie: u64,
    /// Network namespace cookie of the destination.
    pub destination_cookie: u64,
    /// The virtual address that was dialled; zero when it was the pod's.
    pub vip: Addr,
    /// The port that was dialled, host order.
    pub port: u16,
    /// Zero.
    pub reserved: [u16; 3],
}

/// Value of map `AGGREGATES`. Bytes are added when a flow closes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Aggregate {
    /// Handshakes completed.
    pub opened: u64,
    /// Flows closed after their handshake.
    pub closed: u64,
    /// Flows that failed before their handshake was complete.
    pub failed: u64,
    /// Bytes from source to destination, acknowledged.
    pub sent_bytes: u64,
    /// Bytes from destination to source.
    pub received_bytes: u64,
}

/// Record of ring buffer `EVENTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowEvent {
    /// The flow.
    pub flow: Flow,
    /// Bytes from source to destination so far.
    pub sent_bytes: u64,
    /// Bytes from destination to source so far.
    pub received_bytes: u64,
    /// `CLOCK_MONOTONIC` nanoseconds.
    pub at_ns: u64,
    /// [`event_kind`].
    pub kind: u32,
    /// Zero.
    pub reserved: u32,
}

/// Kinds of [`FlowEvent`].
pub mod event_kind {
    /// Handshake complete.
    pub const OPENED: u32 = 0;
    /// Closed after a handshake.
    pub const CLOSED: u32 = 1;
    /// Closed before the handshake was complete.
    pub const FAILED: u32 = 2;
}

/// Number of own addresses that a pod's `steer` program knows.
pub const MAX_OWN_ADDRS: usize = 16;

/// The one entry of a pod's map `STEER`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SteerConfig {
    /// Network namespace cookie of the pod.
    pub cookie: u64,
    /// Policy set of the pod.
    pub set: u32,
    /// [`steer_flags`].
    pub flags: u32,
    /// Number of valid entries in `addrs`.
    pub addr_count: u32,
    /// The sysctls that the agent turns on, as they were found, one bit each: restored at un-enrolment, also
    /// by a later agent. The programs do not read it.
    pub saved_sysctls: u32,
    /// The pod's own addresses.
    pub addrs: [Addr; MAX_OWN_ADDRS],
}

/// Flags of [`SteerConfig`].
pub mod steer_flags {
    /// With the agent gone, inbound connections pass unless the port is an exception (ruling 1).
    pub const GONE_PASS: u32 = 1;
    /// `PORT_RULES` has inbound entries for this pod.
    pub const INBOUND_RULES: u32 = 2;
    /// Inbound ports are captured only where a rule includes them.
    pub const INBOUND_DEFAULT_SKIP: u32 = 4;
    /// Nothing is steered (break-glass).
    pub const BYPASS: u32 = 8;
    /// `PORT_RULES` has gone-exceptions for this pod.
    pub const GONE_EXCEPTIONS: u32 = 16;
}

/// Slots of a pod's socket map `LISTENERS`.
pub mod listener_slot {
    /// Inbound, IPv4.
    pub const INBOUND4: u32 = 0;
    /// Inbound, IPv6.
    pub const INBOUND6: u32 = 1;
    /// Outbound, IPv4.
    pub const OUTBOUND4: u32 = 2;
    /// Outbound, IPv6.
    pub const OUTBOUND6: u32 = 3;
}

/// Reason counters: indices into the per-CPU array `COUNTERS`, one place for all programs.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// `out`: marked for the proxy.
    OutCaptured = 0,
    /// `out`: left alone as a direct flow.
    OutDirect,
    /// `out`: own address, loopback, link-local or multicast.
    OutSelf,
    /// `out`: excluded by a rule of the pod.
    OutExcluded,
    /// `out`: the agent's own connection.
    OutAgent,
    /// `out`: break-glass.
    OutBypass,
    /// `out`: refused because the socket could not be marked.
    OutMarkFailed,
    /// `out`: direct flows suspended because the agent gives no sign of life.
    OutStale,
    /// `tuple`: published.
    TuplePublished,
    /// `tuple`: not published, because the source address is not the pod's (forged).
    TupleForged,
    /// `tuple`: the flow could not be recorded in `FLOWS` (full).
    FlowsFull,
    /// `tuple`: the flow could not be summed in `AGGREGATES` (full).
    AggregatesFull,
    /// `tuple`: event lost, ring buffer full.
    EventsLost,
    /// `probe`: published.
    ProbePublished,
    /// `steer`: to the outbound listener.
    SteerOutbound,
    /// `steer`: to the inbound listener.
    SteerInbound,
    /// `steer`: passed, own onward connection of the agent.
    SteerOnward,
    /// `steer`: passed, direct flow that policy allows.
    SteerDirect,
    /// `steer`: a direct tuple that policy does not allow (any more): to the inbound listener.
    SteerDirectRefused,
    /// `steer`: passed, probe.
    SteerProbe,
    /// `steer`: passed, the pod to itself.
    SteerSelf,
    /// `steer`: passed, excluded by a rule of the pod.
    SteerExcluded,
    /// `steer`: passed with the agent gone.
    SteerGonePassed,
    /// `steer`: dropped with the agent gone.
    SteerGoneDropped,
    /// `steer`: break-glass.
    SteerBypass,
    /// `out`: refused because no agent would accept the captured connection.
    OutGone,
    /// Not a counter: how many there are.
    Count,
}

const _: () = {
    assert!(Counter::Count as u32 <= capacity::COUNTERS);
    assert!(size_of::<Meta>() == 32);
    assert!(size_of::<PodConfig>() == 40);
    assert!(size_of::<LocalPod>() == 16);
    assert!(size_of::<PolicyKey>() == 16);
    assert!(size_of::<PortRuleKey>() == 16);
    assert!(size_of::<RangeKey>() == 24);
    assert!(size_of::<Tuple>() == 36);
    assert!(size_of::<TupleInfo>() == 24);
    assert!(size_of::<ServiceKey>() == 20);
    assert!(size_of::<EndpointInfo>() == 20);
    assert!(size_of::<Flow>() == 88);
    assert!(size_of::<AggregateKey>() == 40);
    assert!(size_of::<Aggregate>() == 40);
    assert!(size_of::<FlowEvent>() == 120);
    assert!(size_of::<SteerConfig>() == 24 + 16 * MAX_OWN_ADDRS);
};

#[cfg(feature = "user")]
mod user {
    use super::*;

    macro_rules! pod {
        ($($type:ty),*) => {$(
            // SAFETY: `repr(C)`, only integers and arrays of them, sizes asserted above (no padding).
            unsafe impl aya::Pod for $type {}
        )*};
    }
    pod!(
        Meta,
        PodConfig,
        LocalPod,
        PolicyKey,
        PortRuleKey,
        RangeKey,
        Tuple,
        TupleInfo,
        ServiceKey,
        ServiceInfo,
        EndpointKey,
        EndpointInfo,
        Flow,
        AggregateKey,
        Aggregate,
        FlowEvent,
        SteerConfig
    );
}
