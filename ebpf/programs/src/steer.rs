//! A TCP connection arrives in a pod's namespace: to the application, or to a listener of the agent.

use core::ptr::read_volatile;

use aya_ebpf::bindings::bpf_sk_lookup;
use aya_ebpf::macros::{map, sk_lookup};
use aya_ebpf::maps::{Array, SockMap};
use aya_ebpf::programs::SkLookupContext;
use weft_ebpf_common::classify::{V4_MARKER, is_loopback, same, tuple_fresh};
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
const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;

#[map]
static STEER: Array<SteerConfig> = Array::with_max_entries(1, 0);
#[map]
static LISTENERS: SockMap = SockMap::with_max_entries(capacity::LISTENERS, 0);

/// What becomes of a connection, and why.
type Outcome = (Counter, u32);

#[sk_lookup]
pub fn steer(ctx: SkLookupContext) -> u32 {
    match decide(&ctx) {
        Some((reason, verdict)) => {
            count(reason);
            verdict
        }
        None => PASS,
    }
}

/// `None` is none of our business.
#[inline(always)]
fn decide(ctx: &SkLookupContext) -> Option<Outcome> {
    let lookup = ctx.lookup;
    // SAFETY: the kernel passes a valid context.
    let (protocol, family) = unsafe { ((*lookup).protocol, (*lookup).family) };
    let v6 = family == AF_INET6;
    if protocol != IPPROTO_TCP {
        return None;
    }
    let config = STEER.get(0)?;
    if config.flags & steer_flags::BYPASS != 0 {
        return Some((Counter::SteerBypass, PASS));
    }
    let tuple = tuple_of(lookup, family);
    let local = tuple.destination;
    // First, whether it is needed or not: behind a branch the compiler writes it once for each way there.
    let own = is_own(config, &local);
    if !is_loopback(&local) && !own {
        return Some(outbound(ctx, v6));
    }
    // Not by the interface: a connection of the pod to its own address is said to come in by `eth0`.
    if is_loopback(&local) || is_loopback(&tuple.source) || same(&tuple.source, &local) {
        return Some((Counter::SteerSelf, PASS));
    }
    if let Some(reason) = vouched(config, &tuple) {
        return Some((reason, PASS));
    }
    if config.flags & steer_flags::INBOUND_RULES != 0 && excluded(config, tuple.destination_port) {
        return Some((Counter::SteerExcluded, PASS));
    }
    Some(inbound(ctx, config, tuple.destination_port, v6))
}

/// A captured connection of the pod itself, looped to `lo`: its destination is somewhere else.
#[inline(always)]
fn outbound(ctx: &SkLookupContext, v6: bool) -> Outcome {
    let slot = if v6 { listener_slot::OUTBOUND6 } else { listener_slot::OUTBOUND4 };
    match LISTENERS.redirect_sk_lookup(ctx, slot, 0) {
        Ok(()) => (Counter::SteerOutbound, PASS),
        Err(_) => (Counter::SteerGoneDropped, DROP),
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
fn inbound(ctx: &SkLookupContext, config: &SteerConfig, port: u16, v6: bool) -> Outcome {
    let slot = if v6 { listener_slot::INBOUND6 } else { listener_slot::INBOUND4 };
    if LISTENERS.redirect_sk_lookup(ctx, slot, 0).is_ok() {
        return (Counter::SteerInbound, PASS);
    }
    let exception = config.flags & steer_flags::GONE_EXCEPTIONS != 0
        && port_rule(config.cookie, port, rule_kind::GONE_EXCEPTION).is_some();
    let pass = (config.flags & steer_flags::GONE_PASS != 0) != exception;
    debug_line!(ctx, "steer: no listener, port {}, pass {}", port, pass as u32);
    if pass { (Counter::SteerGonePassed, PASS) } else { (Counter::SteerGoneDropped, DROP) }
}

/// Whether an address is one of the pod's. Unused places hold `::`, which is nobody's.
///
/// Verifying this program is most of what enrolling a pod costs, so it is short: there are no branches, since the
/// verifier would follow both ways out of each comparison through the rest of the program, and halves of addresses are
/// compared instead of words.
#[inline(always)]
fn is_own(config: &SteerConfig, addr: &Addr) -> bool {
    let [first, second] = halves(addr);
    let mut differs = u64::MAX;
    let mut at = 0;
    while at < MAX_OWN_ADDRS {
        let own = (&raw const config.addrs[at]).cast::<[u64; 2]>();
        // SAFETY: an address within the map's value, where addresses are aligned to eight bytes.
        let own = unsafe { [read_volatile(&raw const (*own)[0]), read_volatile(&raw const (*own)[1])] };
        let bits = (own[0] ^ first) | (own[1] ^ second);
        // The sign says whether any bit is set.
        differs &= bits | bits.wrapping_neg();
        at += 1;
    }
    differs >> 63 == 0
}

/// An address as two numbers of eight bytes in memory's order. They are read back from the stack: the compiler would
/// write what follows twice, the other time for addresses of which it knows that they are IPv4.
#[inline(always)]
fn halves(addr: &Addr) -> [u64; 2] {
    let half = |low: u32, high: u32| {
        if cfg!(target_endian = "little") {
            u64::from(low) | u64::from(high) << 32
        } else {
            u64::from(high) | u64::from(low) << 32
        }
    };
    let both = [half(addr[0], addr[1]), half(addr[2], addr[3])];
    // SAFETY: a local variable.
    unsafe { [read_volatile(&raw const both[0]), read_volatile(&raw const both[1])] }
}

/// The connection as the client's SYN shows it: source is the remote end.
///
/// Without branches: of two ways to here the verifier would follow both to the end. The context reads as zero what the
/// other family has.
#[inline(always)]
fn tuple_of(lookup: *mut bpf_sk_lookup, family: u32) -> Tuple {
    const { assert!(AF_INET & 8 == 0 && AF_INET6 & 8 != 0) };
    let marker = V4_MARKER & ((family >> 3) & 1).wrapping_sub(1);
    // SAFETY: the context is valid; words of addresses are read one by one, as the verifier wants.
    unsafe {
        let remote = &raw const (*lookup).remote_ip6;
        let local = &raw const (*lookup).local_ip6;
        Tuple {
            source: [
                read_volatile(&raw const (*remote)[0]),
                read_volatile(&raw const (*remote)[1]),
                read_volatile(&raw const (*remote)[2]) | marker,
                read_volatile(&raw const (*remote)[3]) | (*lookup).remote_ip4,
            ],
            destination: [
                read_volatile(&raw const (*local)[0]),
                read_volatile(&raw const (*local)[1]),
                read_volatile(&raw const (*local)[2]) | marker,
                read_volatile(&raw const (*local)[3]) | (*lookup).local_ip4,
            ],
            source_port: u16::from_be((*lookup).remote_port),
            destination_port: (*lookup).local_port as u16,
        }
    }
}
