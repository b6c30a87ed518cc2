//! Maps that the programs of the node and of every pod share. The agent pins them by these names.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray};
use weft_ebpf_common::classify::fresh;
use weft_ebpf_common::{
    Counter, HEARTBEAT_LIFETIME_NS, Meta, PolicyKey, PortRuleKey, Tuple, TupleInfo, capacity,
};

#[map]
pub static META: Array<Meta> = Array::with_max_entries(1, 0);
#[map]
pub static POLICY: HashMap<PolicyKey, u8> = HashMap::with_max_entries(capacity::POLICY, BPF_F_NO_PREALLOC);
#[map]
pub static PORT_RULES: HashMap<PortRuleKey, u8> =
    HashMap::with_max_entries(capacity::PORT_RULES, BPF_F_NO_PREALLOC);
#[map]
pub static DIRECT: LruHashMap<Tuple, TupleInfo> = LruHashMap::with_max_entries(capacity::DIRECT, 0);
#[map]
pub static PROBES: LruHashMap<Tuple, u64> = LruHashMap::with_max_entries(capacity::PROBES, 0);
/// Only `steer` reads it; the node's object has it, too, so that it exists before the first pod does.
#[map]
pub static ONWARD: HashMap<Tuple, u64> = HashMap::with_max_entries(capacity::ONWARD, BPF_F_NO_PREALLOC);
#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(capacity::COUNTERS, 0);

/// Adds one to a reason counter.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: a value of a per-CPU array; this CPU is the only writer of its copy.
        unsafe { *value += 1 };
    }
}

/// Nanoseconds of `CLOCK_MONOTONIC`.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: takes no arguments.
    unsafe { bpf_ktime_get_ns() }
}

/// Whether the agent has shown a sign of life recently enough for flows without it.
#[inline(always)]
pub fn agent_alive(now: u64) -> bool {
    META.get(0).is_some_and(|meta| fresh(now, meta.heartbeat_ns, HEARTBEAT_LIFETIME_NS))
}

/// Whether policy lets `identity` go direct to `port` of the pods of policy set `set`.
#[inline(always)]
pub fn may_go_direct(set: u32, identity: u32, port: u16) -> bool {
    let key = PolicyKey { set, identity, port, reserved: [0; 3] };
    POLICY.get_ptr(&key).is_some()
}

/// The rule of a pod for one port.
#[inline(always)]
pub fn port_rule(cookie: u64, port: u16, kind: u16) -> Option<u8> {
    let key = PortRuleKey { cookie, port, kind, reserved: 0 };
    // SAFETY: one byte that only user space writes.
    unsafe { PORT_RULES.get(&key).copied() }
}
