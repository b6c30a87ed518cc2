//! Maps that only the programs of the node use.

use core::ptr;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{BPF_F_NO_PREALLOC, BPF_SK_STORAGE_GET_F_CREATE, bpf_sock};
use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::helpers::generated::{
    bpf_map_lookup_elem, bpf_sk_release, bpf_sk_storage_delete, bpf_sk_storage_get,
};
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::lpm_trie::LpmTrie;
use aya_ebpf::maps::{HashMap, PerCpuHashMap, RingBuf, SockHash};
use weft_ebpf_common::{
    Addr, Aggregate, AggregateKey, EndpointInfo, EndpointKey, Flow, LocalPod, PodConfig, RangeKey,
    ServiceInfo, ServiceKey, capacity,
};

#[map]
pub static PODS: HashMap<u64, PodConfig> = HashMap::with_max_entries(capacity::PODS, BPF_F_NO_PREALLOC);
#[map]
pub static LOCAL: HashMap<Addr, LocalPod> = HashMap::with_max_entries(capacity::LOCAL, BPF_F_NO_PREALLOC);
#[map]
pub static RANGE_RULES: LpmTrie<RangeKey, u8> =
    LpmTrie::with_max_entries(capacity::RANGE_RULES, BPF_F_NO_PREALLOC);
#[map]
pub static SERVICES: HashMap<ServiceKey, ServiceInfo> =
    HashMap::with_max_entries(capacity::SERVICES, BPF_F_NO_PREALLOC);
#[map]
pub static ENDPOINTS: HashMap<EndpointKey, EndpointInfo> =
    HashMap::with_max_entries(capacity::ENDPOINTS, BPF_F_NO_PREALLOC);
#[map]
pub static FLOWS: HashMap<u64, Flow> = HashMap::with_max_entries(capacity::FLOWS, BPF_F_NO_PREALLOC);
#[map]
pub static AGGREGATES: PerCpuHashMap<AggregateKey, Aggregate> =
    PerCpuHashMap::with_max_entries(capacity::AGGREGATES, BPF_F_NO_PREALLOC);
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(capacity::EVENTS, 0);
/// Outbound IPv4 listener of each pod. The kernel removes an entry when the listener is closed: with its agent.
#[map]
static CAPTURES: SockHash<u64> = SockHash::with_max_entries(capacity::CAPTURES, 0);
/// cgroups of agents that were replaced.
#[map]
pub static AGENTS: HashMap<u64, u64> = HashMap::with_max_entries(capacity::AGENTS, BPF_F_NO_PREALLOC);
#[btf_map]
pub static SOCKETS: SkStorage<Flow> = SkStorage::new();

#[inline(always)]
fn sockets() -> *mut core::ffi::c_void {
    ptr::addr_of!(SOCKETS).cast_mut().cast()
}

/// The direct flow that a socket carries.
///
/// # Safety
/// `sk` is the socket of the running program's context.
#[inline(always)]
pub unsafe fn flow_of(sk: *mut bpf_sock) -> *mut Flow {
    // SAFETY: the verifier checks the types; a missing entry is a null pointer.
    unsafe { bpf_sk_storage_get(sockets(), sk.cast(), ptr::null_mut(), 0) }.cast()
}

/// Stores a direct flow with its socket; false when there is no memory.
///
/// # Safety
/// As for [`flow_of`].
#[inline(always)]
pub unsafe fn remember(sk: *mut bpf_sock, flow: &mut Flow) -> bool {
    let flags = u64::from(BPF_SK_STORAGE_GET_F_CREATE);
    // SAFETY: as above; `flow` has the map's value type.
    let stored = unsafe { bpf_sk_storage_get(sockets(), sk.cast(), ptr::from_mut(flow).cast(), flags) };
    !stored.is_null()
}

/// Forgets the direct flow of a socket, if it carries one.
///
/// # Safety
/// As for [`flow_of`].
#[inline(always)]
pub unsafe fn forget(sk: *mut bpf_sock) {
    // SAFETY: as above.
    unsafe { bpf_sk_storage_delete(sockets(), sk.cast()) };
}

/// Whether an agent holds the outbound listener of a pod.
#[inline(always)]
pub fn has_listener(mut cookie: u64) -> bool {
    let map = ptr::addr_of!(CAPTURES).cast_mut().cast();
    // SAFETY: the key has the map's type. The socket is ours until it is released.
    unsafe {
        let socket = bpf_map_lookup_elem(map, (&raw mut cookie).cast());
        if socket.is_null() {
            return false;
        }
        bpf_sk_release(socket);
    }
    true
}

/// The context as helpers take it.
#[inline(always)]
pub fn raw<C: EbpfContext>(ctx: &C) -> *mut core::ffi::c_void {
    ctx.as_ptr()
}
