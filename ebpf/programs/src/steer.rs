//! A TCP connection arrives in a pod's namespace: to the application, or to a listener of the agent.

use core::ptr::read_volatile;

use aya_ebpf::bindings::bpf_sk_lookup;
use aya_ebpf::macros::{map, sk_lookup};
use aya_ebpf::maps::{Array, SockMap};
use aya_ebpf::programs::SkLookupContext;
use weft_ebpf_common::classify::{is_loopback, mapped, same, tuple_fresh};
use weft_ebpf_common::{
    Addr, Counter, MAX_OWN_ADDRS, RULE_CAPTURE, SteerConfig, Tuple, capacity, listener_slot,
    port_rule as rule_kind, steer_flags,
};

use crate::maps::{DIRECT, ONWARD, PROBES, agent_alive, count, may_go_direct, now, port_rule};
use crate::runtime::debug_line;

const PASS: u32 = 1;
/// The client sees a reset.
const DROP: u32 = 0;
const IPPROTO_TCP: u32 = 6;
const AF_INET6: u32 = 10;

#[map]
static STEER: Array<SteerConfig> = Array::with_max_entries(1, 0);
#[map]
static LISTENERS: SockMap = SockMap::with_max_entries(capacity::LISTENERS, 0);

#[sk_lookup]
pub fn steer(ctx: SkLookupContext) -> u32 {
    let lookup = ctx.lookup;
    // SAFETY: the kernel passes a valid context.
    let (protocol, v6) = unsafe { ((*lookup).protocol, (*lookup).family == AF_INET6) };
    if protocol != IPPROTO_TCP {
        return PASS;
    }
    let Some(config) = STEER.get(0) else { return PASS };
    if config.flags & steer_flags::BYPASS != 0 {
        return counted(Counter::SteerBypass, PASS);
    }
    let tuple = tuple_of(lookup, v6);
    let local = tuple.destination;
    if !is_loopback(&local) && !is_own(config, &local) {
        return outbound(&ctx, v6);
    }
    // Not by the interface: a connection of the pod to its own address is said to come in by `eth0`.
    if is_loopback(&local) || is_loopback(&tuple.source) || same(&tuple.source, &local) {
        return counted(Counter::SteerSelf, PASS);
    }
    if let Some(reason) = vouched(config, &tuple) {
        return counted(reason, PASS);
    }
    if config.flags & steer_flags::INBOUND_RULES != 0 && excluded(config, tuple.destination_port) {
        return counted(Counter::SteerExcluded, PASS);
    }
    inbound(&ctx, config, tuple.destination_port, v6)
}

#[inline(always)]
fn counted(reason: Counter, verdict: u32) -> u32 {
    count(reason);
    verdict
}

/// A captured connection of the pod itself, looped to `lo`: its destination is somewhere else.
#[inline(always)]
fn outbound(ctx: &SkLookupContext, v6: bool) -> u32 {
    let slot = if v6 { listener_slot::OUTBOUND6 } else { listener_slot::OUTBOUND4 };
    match LISTENERS.redirect_sk_lookup(ctx, slot, 0) {
        Ok(()) => counted(Counter::SteerOutbound, PASS),
        Err(_) => counted(Counter::SteerGoneDropped, DROP),
    }
}

/// Why a connection may reach the application without the proxy.
#[inline(always)]
fn vouched(config: &SteerConfig, tuple: &Tuple) -> Option<Counter> {
    let now = now();
    // SAFETY: eight bytes that only user space writes.
    if unsafe { ONWARD.get(tuple) }.is_some_and(|at| tuple_fresh(now, *at)) {
        return Some(Counter::SteerOnward);
    }
    // SAFETY: an entry that its writer does not touch again before the connection is closed.
    if unsafe { PROBES.get(tuple) }.is_some_and(|at| tuple_fresh(now, *at)) {
        return Some(Counter::SteerProbe);
    }
    // SAFETY: as above.
    let info = unsafe { DIRECT.get(tuple) }?;
    if !tuple_fresh(now, info.published_ns) {
        return None;
    }
    if agent_alive(now) && may_go_direct(config.set, info.identity, tuple.destination_port) {
        return Some(Counter::SteerDirect);
    }
    count(Counter::SteerDirectRefused);
    None
}

#[inline(always)]
fn excluded(config: &SteerConfig, port: u16) -> bool {
    match port_rule(config.cookie, port, rule_kind::INBOUND) {
        Some(rule) => rule != RULE_CAPTURE,
        None => config.flags & steer_flags::INBOUND_DEFAULT_SKIP != 0,
    }
}

#[inline(always)]
fn inbound(ctx: &SkLookupContext, config: &SteerConfig, port: u16, v6: bool) -> u32 {
    let slot = if v6 { listener_slot::INBOUND6 } else { listener_slot::INBOUND4 };
    if LISTENERS.redirect_sk_lookup(ctx, slot, 0).is_ok() {
        return counted(Counter::SteerInbound, PASS);
    }
    let exception = config.flags & steer_flags::GONE_EXCEPTIONS != 0
        && port_rule(config.cookie, port, rule_kind::GONE_EXCEPTION).is_some();
    let pass = (config.flags & steer_flags::GONE_PASS != 0) != exception;
    debug_line!(ctx, "steer: no listener, port {}, pass {}", port, pass as u32);
    if pass { counted(Counter::SteerGonePassed, PASS) } else { counted(Counter::SteerGoneDropped, DROP) }
}

/// Whether an address is one of the pod's. Unused places hold `::`, which is nobody's.
///
/// Without branches: the verifier would follow both ways out of each comparison through the rest of the
/// program, and take ten times as long for every pod.
#[inline(always)]
fn is_own(config: &SteerConfig, addr: &Addr) -> bool {
    let mut differs = u32::MAX;
    let mut at = 0;
    while at < MAX_OWN_ADDRS {
        let own = &config.addrs[at];
        let bits = (own[0] ^ addr[0]) | (own[1] ^ addr[1]) | (own[2] ^ addr[2]) | (own[3] ^ addr[3]);
        // The sign says whether any bit is set.
        differs &= bits | bits.wrapping_neg();
        at += 1;
    }
    differs >> 31 == 0
}

/// The connection as the client's SYN shows it: source is the remote end.
#[inline(always)]
fn tuple_of(lookup: *mut bpf_sk_lookup, v6: bool) -> Tuple {
    // SAFETY: the context is valid; words of addresses are read one by one, as the verifier wants.
    unsafe {
        let (source, destination) = if v6 {
            let remote = &raw const (*lookup).remote_ip6;
            let local = &raw const (*lookup).local_ip6;
            (
                [
                    read_volatile(&raw const (*remote)[0]),
                    read_volatile(&raw const (*remote)[1]),
                    read_volatile(&raw const (*remote)[2]),
                    read_volatile(&raw const (*remote)[3]),
                ],
                [
                    read_volatile(&raw const (*local)[0]),
                    read_volatile(&raw const (*local)[1]),
                    read_volatile(&raw const (*local)[2]),
                    read_volatile(&raw const (*local)[3]),
                ],
            )
        } else {
            (mapped((*lookup).remote_ip4), mapped((*lookup).local_ip4))
        };
        Tuple {
            source,
            destination,
            source_port: u16::from_be((*lookup).remote_port),
            destination_port: (*lookup).local_port as u16,
        }
    }
}
