//! The life of direct flows (`tuple`), and the kubelet's probes (`probe`).

use core::ptr::read_volatile;

use aya_ebpf::bindings::{
    BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG,
    BPF_SOCK_OPS_TCP_CONNECT_CB, bpf_sock_ops,
};
use aya_ebpf::helpers::generated::{bpf_get_socket_cookie, bpf_sock_ops_cb_flags_set};
use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::SockOpsContext;
use weft_ebpf_common::classify::{is_unspecified, mapped, payload_received, payload_sent, same, tcp_state};
use weft_ebpf_common::{
    Aggregate, AggregateKey, Counter, Flow, FlowEvent, Tuple, TupleInfo, event_kind, flow_state, meta_flags,
};

use crate::maps::{DIRECT, META, PROBES, count, now};
use crate::maps_node::{AGGREGATES, EVENTS, FLOWS, LOCAL, PODS, flow_of, forget, raw};
use crate::runtime::debug_line;

/// The return value of this kind of program has no meaning for these events.
const DONE: u32 = 1;
const AF_INET: u32 = 2;

#[sock_ops]
pub fn tuple(ctx: SockOpsContext) -> u32 {
    let ops = ctx.ops;
    // SAFETY: the kernel passes a valid context.
    let (op, sk) = unsafe { ((*ops).op, (*ops).__bindgen_anon_2.sk) };
    if sk.is_null() {
        return DONE;
    }
    // SAFETY: the socket of this context.
    let flow = unsafe { flow_of(sk) };
    if flow.is_null() {
        return DONE;
    }
    // SAFETY: checked; only the socket's own events write the entry, and they do not run at the same time.
    let flow = unsafe { &mut *flow };
    match op {
        BPF_SOCK_OPS_TCP_CONNECT_CB => {
            if !publish(&ctx, flow) {
                // SAFETY: the socket of this context.
                unsafe { forget(sk) };
            }
        }
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => established(&ctx, flow),
        BPF_SOCK_OPS_STATE_CB => state_changed(&ctx, flow),
        _ => {}
    }
    DONE
}

/// The SYN is about to leave, and the source port is known.
#[inline(always)]
fn publish(ctx: &SockOpsContext, flow: &mut Flow) -> bool {
    let tuple = tuple_of(ctx.ops);
    if !is_own(flow.source_cookie, &tuple) {
        debug_line!(ctx, "tuple: netns {} used a source address that is not its own", flow.source_cookie);
        count(Counter::TupleForged);
        return false;
    }
    flow.tuple = tuple;
    flow.state = flow_state::PUBLISHED;
    let info =
        TupleInfo { published_ns: now(), cookie: flow.source_cookie, identity: flow.identity, reserved: 0 };
    // Without room the destination sends the flow to its proxy.
    let _ = DIRECT.insert(&tuple, &info, 0);
    count(Counter::TuplePublished);
    // SAFETY: the context is this program's.
    unsafe {
        let flags = (*ctx.ops).bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG;
        bpf_sock_ops_cb_flags_set(ctx.ops, flags as i32);
    }
    true
}

/// Whether the source address belongs to the pod: a container with `CAP_NET_RAW` can bind any other.
#[inline(always)]
fn is_own(cookie: u64, tuple: &Tuple) -> bool {
    // SAFETY: replaced as a whole by user space.
    let Some(pod) = (unsafe { PODS.get(&cookie) }) else { return false };
    !is_unspecified(&tuple.source) && (same(&tuple.source, &pod.ip4) || same(&tuple.source, &pod.ip6))
}

/// The handshake is complete. The tuple stays published: a destination that answers with SYN cookies looks it
/// up again for the ACK, which leaves after this event.
#[inline(always)]
fn established(ctx: &SockOpsContext, flow: &mut Flow) {
    if flow.state != flow_state::PUBLISHED {
        return;
    }
    flow.state = flow_state::ESTABLISHED;
    // SAFETY: the context is this program's.
    let cookie = unsafe { bpf_get_socket_cookie(raw(ctx)) };
    if FLOWS.insert(&cookie, &*flow, 0).is_err() {
        count(Counter::FlowsFull);
    }
    if let Some(sum) = aggregate(flow) {
        sum.opened += 1;
    }
    send_event(flow, event_kind::OPENED, 0, 0);
}

#[inline(always)]
fn state_changed(ctx: &SockOpsContext, flow: &mut Flow) {
    // SAFETY: for this event the first two arguments are the old and the new state.
    let (old, new) = unsafe {
        let args = &raw const (*ctx.ops).__bindgen_anon_1.args;
        (read_volatile(&raw const (*args)[0]), read_volatile(&raw const (*args)[1]))
    };
    // SAFETY: fields of a valid context.
    let (acked, received) = unsafe { ((*ctx.ops).bytes_acked, (*ctx.ops).bytes_received) };
    if new == tcp_state::FIN_WAIT2 {
        flow.fin_wait_received = received as u32;
        return;
    }
    if new == tcp_state::CLOSE {
        closed(ctx, flow, payload_sent(acked, old), payload_received(received, old, flow.fin_wait_received));
    }
}

#[inline(always)]
fn closed(ctx: &SockOpsContext, flow: &mut Flow, sent: u64, received: u64) {
    let _ = DIRECT.remove(&flow.tuple);
    match flow.state {
        flow_state::ESTABLISHED => {
            // SAFETY: the context is this program's.
            let cookie = unsafe { bpf_get_socket_cookie(raw(ctx)) };
            let _ = FLOWS.remove(&cookie);
            if let Some(sum) = aggregate(flow) {
                sum.closed += 1;
                sum.sent_bytes += sent;
                sum.received_bytes += received;
            }
            send_event(flow, event_kind::CLOSED, sent, received);
        }
        flow_state::PUBLISHED => {
            if let Some(sum) = aggregate(flow) {
                sum.failed += 1;
            }
            send_event(flow, event_kind::FAILED, 0, 0);
        }
        _ => {}
    }
    // The socket may connect again; it is then another flow.
    flow.state = flow_state::CONNECTING;
}

/// This CPU's sums for the flow's pair of pods.
#[inline(always)]
fn aggregate(flow: &Flow) -> Option<&'static mut Aggregate> {
    let key = AggregateKey {
        source_cookie: flow.source_cookie,
        destination_cookie: flow.destination_cookie,
        vip: flow.vip,
        port: flow.vip_port,
        reserved: [0; 3],
    };
    if AGGREGATES.get_ptr(&key).is_none() {
        let _ = AGGREGATES.insert(&key, &Aggregate::default(), 0);
    }
    let Some(sum) = AGGREGATES.get_ptr_mut(&key) else {
        count(Counter::AggregatesFull);
        return None;
    };
    // SAFETY: this CPU's copy; this kind of program does not interrupt itself for longer than an addition,
    // and a count that is lost to an interrupt is the price of not locking.
    Some(unsafe { &mut *sum })
}

#[inline(always)]
fn send_event(flow: &Flow, kind: u32, sent_bytes: u64, received_bytes: u64) {
    if !META.get(0).is_some_and(|meta| meta.flags & meta_flags::FLOW_EVENTS != 0) {
        return;
    }
    let Some(mut entry) = EVENTS.reserve::<FlowEvent>(0) else {
        count(Counter::EventsLost);
        return;
    };
    entry.write(FlowEvent { flow: *flow, sent_bytes, received_bytes, at_ns: now(), kind, reserved: 0 });
    entry.submit(0);
}

#[sock_ops]
pub fn probe(ctx: SockOpsContext) -> u32 {
    // SAFETY: the kernel passes a valid context.
    if unsafe { (*ctx.ops).op } != BPF_SOCK_OPS_TCP_CONNECT_CB {
        return DONE;
    }
    let tuple = tuple_of(ctx.ops);
    if LOCAL.get_ptr(&tuple.destination).is_some() {
        let _ = PROBES.insert(&tuple, &now(), 0);
        count(Counter::ProbePublished);
    }
    DONE
}

/// The connection as its SYN shows it. A socket of family IPv6 that speaks IPv4 has v4-mapped addresses.
#[inline(always)]
fn tuple_of(ops: *mut bpf_sock_ops) -> Tuple {
    // SAFETY: the context is valid; words of addresses are read one by one, as the verifier wants.
    unsafe {
        let (source, destination) = if (*ops).family == AF_INET {
            (mapped((*ops).local_ip4), mapped((*ops).remote_ip4))
        } else {
            let local = &raw const (*ops).local_ip6;
            let remote = &raw const (*ops).remote_ip6;
            (
                [
                    read_volatile(&raw const (*local)[0]),
                    read_volatile(&raw const (*local)[1]),
                    read_volatile(&raw const (*local)[2]),
                    read_volatile(&raw const (*local)[3]),
                ],
                [
                    read_volatile(&raw const (*remote)[0]),
                    read_volatile(&raw const (*remote)[1]),
                    read_volatile(&raw const (*remote)[2]),
                    read_volatile(&raw const (*remote)[3]),
                ],
            )
        };
        Tuple {
            source,
            destination,
            source_port: (*ops).local_port as u16,
            // Network order in the upper half of the word, unlike the local port.
            destination_port: u32::from_be((*ops).remote_port) as u16,
        }
    }
}
