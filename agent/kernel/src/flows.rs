//! Direct flows: which there are, what they carried, what happens to them.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use aya::maps::{Map, MapData, PerCpuHashMap, RingBuf};
use weft_core::resource::NamespacedName;
use weft_ebpf_common::{Addr, Aggregate, AggregateKey, Flow, FlowEvent, event_kind};

use crate::diag::Bytes;
use crate::error::{Doing, KernelError};
use crate::handles::Directory;
use crate::maps::{entries, ip};
use crate::sys;

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

/// Totals of direct flows since this agent enrolled both pods; never decrease while they stay. Of a flow that an
/// earlier agent saw open, only the bytes since then: that agent has reported the others.
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

/// What happened to a direct flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlowEventKind {
    /// The handshake is complete.
    Opened,
    /// Closed after a handshake.
    Closed,
    /// Closed before the handshake was complete.
    Failed,
}

/// One event of a direct flow, for the access log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectFlowEvent {
    /// The flow. Its socket cookie is zero: the event is the last that is heard of it, or `FLOWS` has it.
    pub flow: FlowRecord,
    /// What happened.
    pub kind: FlowEventKind,
    /// Bytes from source to destination.
    pub sent_bytes: u64,
    /// Bytes from destination to source.
    pub received_bytes: u64,
    /// `CLOCK_MONOTONIC` nanoseconds of `connect()`.
    pub opened_ns: u64,
    /// `CLOCK_MONOTONIC` nanoseconds of the event.
    pub at_ns: u64,
}

/// Reader of the kernel's ring buffer. Its descriptor becomes readable when there is an event; [`next`]
/// until it says `None`, then wait again.
///
/// [`next`]: FlowEvents::next
pub struct FlowEvents {
    ring: RingBuf<MapData>,
    pods: Directory,
}

impl fmt::Debug for FlowEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlowEvents").finish_non_exhaustive()
    }
}

impl FlowEvents {
    pub(crate) fn open(pin: &Path, pods: Directory) -> Result<Self, KernelError> {
        let describe = || "open the ring buffer of events";
        let map = Map::RingBuf(MapData::from_pin(pin).doing(describe)?);
        Ok(Self { ring: RingBuf::try_from(map).doing(describe)?, pods })
    }

    /// The next event, if there is one. Events of pods that have gone are skipped.
    #[expect(clippy::should_implement_trait, reason = "`None` is not the end")]
    pub fn next(&mut self) -> Option<DirectFlowEvent> {
        loop {
            let item = self.ring.next()?;
            let event = read_event(&item);
            drop(item);
            if let Some(event) = event.and_then(|event| describe(&event, &self.pods)) {
                return Some(event);
            }
        }
    }
}

impl AsFd for FlowEvents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring owns the descriptor and outlives the borrow.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }
}

impl AsRawFd for FlowEvents {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.ring.as_raw_fd()
    }
}

fn read_event(bytes: &[u8]) -> Option<FlowEvent> {
    if bytes.len() < size_of::<FlowEvent>() {
        return None;
    }
    // SAFETY: long enough, and every bit pattern is a `FlowEvent`; the ring aligns to eight bytes only.
    Some(unsafe { bytes.as_ptr().cast::<FlowEvent>().read_unaligned() })
}

fn describe(event: &FlowEvent, pods: &Directory) -> Option<DirectFlowEvent> {
    let kind = match event.kind {
        event_kind::OPENED => FlowEventKind::Opened,
        event_kind::CLOSED => FlowEventKind::Closed,
        event_kind::FAILED => FlowEventKind::Failed,
        _ => return None,
    };
    Some(DirectFlowEvent {
        flow: record(0, &event.flow, pods)?,
        kind,
        sent_bytes: event.sent_bytes,
        received_bytes: event.received_bytes,
        opened_ns: event.flow.opened_ns,
        at_ns: event.at_ns,
    })
}

/// A flow as it is reported; `None` when one of its pods is not enrolled any more.
pub(crate) fn record(socket_cookie: u64, flow: &Flow, pods: &Directory) -> Option<FlowRecord> {
    let tuple = &flow.tuple;
    Some(FlowRecord {
        socket_cookie,
        source: pods.get(flow.source_cookie)?,
        destination: pods.get(flow.destination_cookie)?,
        source_addr: SocketAddr::new(ip(tuple.source), tuple.source_port),
        destination_addr: SocketAddr::new(ip(tuple.destination), tuple.destination_port),
        vip: vip(flow.vip, flow.vip_port),
    })
}

fn vip(addr: Addr, port: u16) -> Option<SocketAddr> {
    (addr != [0; 4]).then(|| SocketAddr::new(ip(addr), port))
}

/// `FLOWS`, `AGGREGATES`, and what has been reported from them.
pub(crate) struct Flows {
    flows: OwnedFd,
    aggregates: PerCpuHashMap<MapData, AggregateKey, Aggregate>,
    reported: HashMap<AggregateKey, Aggregate>,
    /// Flows that were open before their pods were enrolled (anew), until both are.
    before: HashMap<u64, Flow>,
    /// What those had carried by then: the kernel counts the bytes of a socket from its beginning.
    baseline: HashMap<AggregateKey, Bytes>,
}

impl fmt::Debug for Flows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flows").finish_non_exhaustive()
    }
}

impl Flows {
    pub(crate) fn open(flows: &Path, aggregates: &Path) -> Result<Self, KernelError> {
        let map = MapData::from_pin(aggregates).doing(|| "open map AGGREGATES")?;
        let mut flows = Self {
            flows: sys::obj_get(flows).doing(|| "open map FLOWS")?,
            aggregates: PerCpuHashMap::try_from(Map::PerCpuHashMap(map)).doing(|| "open map AGGREGATES")?,
            reported: HashMap::new(),
            before: HashMap::new(),
            baseline: HashMap::new(),
        };
        // The series of metrics begin at zero with their process, and so must these sums.
        flows.begin_anew(|_| true).doing(|| "read map FLOWS")?;
        Ok(flows)
    }

    /// Forgets the sums of pods, so that they start at zero when the pods are enrolled (anew).
    pub(crate) fn begin_anew(&mut self, is_concerned: impl Fn(u64) -> bool) -> io::Result<()> {
        let open = self.established()?.into_iter();
        self.before.extend(
            open.filter(|(_, flow)| {
                is_concerned(flow.source_cookie) || is_concerned(flow.destination_cookie)
            }),
        );
        let concerned =
            |key: &AggregateKey| is_concerned(key.source_cookie) || is_concerned(key.destination_cookie);
        for key in self.keys().into_iter().filter(concerned) {
            // Gone already is as good.
            let _ = self.aggregates.remove(&key);
        }
        self.reported.retain(|key, _| !concerned(key));
        self.baseline.retain(|key, _| !concerned(key));
        Ok(())
    }

    /// A pod was enrolled: what flows between pods that are there now have carried is not this agent's to report.
    pub(crate) fn claim(
        &mut self,
        is_present: impl Fn(u64) -> bool,
        live: impl FnMut(u64) -> HashMap<u64, Bytes>,
    ) {
        let ours = |flow: &Flow| is_present(flow.source_cookie) && is_present(flow.destination_cookie);
        let claimed: HashMap<u64, Flow> = self.before.extract_if(|_, flow| ours(flow)).collect();
        for_each_live(&claimed, live, |key, bytes| {
            let carried = self.baseline.entry(key).or_default();
            carried.sent += bytes.sent;
            carried.received += bytes.received;
        });
    }

    fn keys(&self) -> HashSet<AggregateKey> {
        self.aggregates.keys().take(MAX_KEYS).filter_map(Result::ok).collect()
    }

    /// Established flows by socket cookie.
    pub(crate) fn established(&self) -> io::Result<HashMap<u64, Flow>> {
        Ok(entries(self.flows.as_fd())?.collect())
    }

    /// Sums per pair of pods, with the bytes of open flows. `live` asks a source's namespace for those.
    ///
    /// Sums of pods that `is_present` does not know are removed, and flows of pods that `is_known` does not.
    pub(crate) fn totals(
        &mut self,
        is_present: impl Fn(u64) -> bool,
        is_known: impl Fn(u64) -> bool,
        live: impl FnMut(u64) -> HashMap<u64, Bytes>,
    ) -> Result<&HashMap<AggregateKey, Aggregate>, KernelError> {
        // Sums before open flows: one that closes in between is missed once, and never counted twice.
        let mut sums = self.closed(&is_present)?;
        let mut flows = self.established().doing(|| "read map FLOWS")?;
        self.forget_gone(&mut flows, &is_known)?;
        flows.retain(|_, flow| is_present(flow.source_cookie) && is_present(flow.destination_cookie));
        for_each_live(&flows, live, |key, bytes| {
            let sum: &mut Aggregate = sums.entry(key).or_default();
            sum.sent_bytes += bytes.sent;
            sum.received_bytes += bytes.received;
        });
        self.baseline.retain(|key, _| is_present(key.source_cookie) && is_present(key.destination_cookie));
        for (key, carried) in &self.baseline {
            if let Some(sum) = sums.get_mut(key) {
                sum.sent_bytes = sum.sent_bytes.saturating_sub(carried.sent);
                sum.received_bytes = sum.received_bytes.saturating_sub(carried.received);
            }
        }
        self.reported.retain(|key, _| sums.contains_key(key));
        for (key, sum) in sums {
            let reported = self.reported.entry(key).or_default();
            *reported = at_least(&sum, reported);
        }
        Ok(&self.reported)
    }

    fn closed(
        &mut self,
        is_present: &impl Fn(u64) -> bool,
    ) -> Result<HashMap<AggregateKey, Aggregate>, KernelError> {
        let keys = self.keys();
        let mut sums = HashMap::with_capacity(keys.len());
        for key in keys {
            if !is_present(key.source_cookie) || !is_present(key.destination_cookie) {
                // Gone already is as good.
                let _ = self.aggregates.remove(&key);
                continue;
            }
            if let Ok(values) = self.aggregates.get(&key, 0) {
                sums.insert(key, values.iter().fold(Aggregate::default(), |sum, value| add(&sum, value)));
            }
        }
        Ok(sums)
    }

    /// A namespace may end without its sockets being closed one by one.
    fn forget_gone(
        &self,
        flows: &mut HashMap<u64, Flow>,
        is_known: &impl Fn(u64) -> bool,
    ) -> Result<(), KernelError> {
        let gone: Vec<u64> = flows
            .iter()
            .filter(|(_, flow)| !is_known(flow.source_cookie))
            .map(|(cookie, _)| *cookie)
            .collect();
        for cookie in gone {
            flows.remove(&cookie);
            sys::map_delete(self.flows.as_fd(), &cookie).doing(|| "remove an entry of map FLOWS")?;
        }
        Ok(())
    }
}

/// Ends an iteration over a map that changes all the time.
const MAX_KEYS: usize = 4 * weft_ebpf_common::capacity::AGGREGATES as usize;

/// What open flows have carried. `live` is asked once for each source.
fn for_each_live(
    flows: &HashMap<u64, Flow>,
    mut live: impl FnMut(u64) -> HashMap<u64, Bytes>,
    mut tell: impl FnMut(AggregateKey, &Bytes),
) {
    let mut by_source = HashMap::new();
    for (socket, flow) in flows {
        let source = flow.source_cookie;
        let sockets = by_source.entry(source).or_insert_with(|| live(source));
        if let Some(bytes) = sockets.get(socket) {
            tell(aggregate_key(flow), bytes);
        }
    }
}

fn aggregate_key(flow: &Flow) -> AggregateKey {
    AggregateKey {
        source_cookie: flow.source_cookie,
        destination_cookie: flow.destination_cookie,
        vip: flow.vip,
        port: flow.vip_port,
        reserved: [0; 3],
    }
}

fn add(a: &Aggregate, b: &Aggregate) -> Aggregate {
    combine(a, b, |a, b| a.wrapping_add(b))
}

fn at_least(a: &Aggregate, b: &Aggregate) -> Aggregate {
    combine(a, b, u64::max)
}

fn combine(a: &Aggregate, b: &Aggregate, with: impl Fn(u64, u64) -> u64) -> Aggregate {
    Aggregate {
        opened: with(a.opened, b.opened),
        closed: with(a.closed, b.closed),
        failed: with(a.failed, b.failed),
        sent_bytes: with(a.sent_bytes, b.sent_bytes),
        received_bytes: with(a.received_bytes, b.received_bytes),
    }
}
