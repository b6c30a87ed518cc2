//! `connect()` of a pod: leave it alone, let it go direct, or mark it for the proxy.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::bindings::{bpf_sock, bpf_sock_addr};
use aya_ebpf::helpers::generated::{
    bpf_get_current_cgroup_id, bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_setsockopt,
};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::programs::SockAddrContext;
use weft_ebpf_common::classify::{is_v4, mapped, never_captured, same};
use weft_ebpf_common::{
    Addr, CAPTURE_MARK, Counter, EndpointKey, Flow, Meta, PodConfig, RULE_CAPTURE, RangeKey, ServiceKey,
    Tuple, flow_state, meta_flags, pod_flags, port_rule as rule_kind,
};

use crate::maps::{META, agent_alive, count, may_go_direct, now, port_rule};
use crate::maps_node::{AGENTS, ENDPOINTS, LOCAL, PODS, RANGE_RULES, SERVICES, forget, has_listener, raw, remember};
use crate::runtime::debug_line;

const ALLOW: i32 = 1;
/// The application sees EPERM.
const REFUSE: i32 = 0;

const IPPROTO_TCP: u32 = 6;
const SOL_SOCKET: i32 = 1;
const SO_BINDTODEVICE: i32 = 25;
const SO_MARK: i32 = 36;

/// A connection that is being opened.
struct Connect<'a> {
    ctx: &'a SockAddrContext,
    sa: *mut bpf_sock_addr,
    sk: *mut bpf_sock,
    cookie: u64,
    destination: Addr,
    port: u16,
}

/// Where a direct flow goes.
struct Target {
    addr: Addr,
    port: u16,
    cookie: u64,
    is_service: bool,
}

#[cgroup_sock_addr(connect4)]
pub fn out4(ctx: SockAddrContext) -> i32 {
    // SAFETY: the kernel passes a valid context.
    let destination = mapped(unsafe { (*ctx.sock_addr).user_ip4 });
    decide(&ctx, destination, true)
}

#[cgroup_sock_addr(connect6)]
pub fn out6(ctx: SockAddrContext) -> i32 {
    let sa = ctx.sock_addr;
    // SAFETY: as above. Word by word and volatile: the verifier refuses computed offsets into the context.
    let words = unsafe {
        [
            read_volatile(&raw const (*sa).user_ip6[0]),
            read_volatile(&raw const (*sa).user_ip6[1]),
            read_volatile(&raw const (*sa).user_ip6[2]),
            read_volatile(&raw const (*sa).user_ip6[3]),
        ]
    };
    decide(&ctx, words, false)
}

#[inline(always)]
fn decide(ctx: &SockAddrContext, destination: Addr, family4: bool) -> i32 {
    let sa = ctx.sock_addr;
    // SAFETY: the kernel passes a valid context; `sk` is the connecting socket and never null in this hook.
    let (protocol, port, sk) = unsafe { ((*sa).protocol, (*sa).user_port, (*sa).__bindgen_anon_1.sk) };
    if protocol != IPPROTO_TCP {
        return ALLOW;
    }
    // SAFETY: the context is this program's.
    let cookie = unsafe { bpf_get_netns_cookie(raw(ctx)) };
    // SAFETY: user space replaces entries as a whole, and a torn one of a pod is the old or the new pod's.
    let Some(pod) = (unsafe { PODS.get(&cookie) }) else { return ALLOW };
    let connect = Connect { ctx, sa, sk, cookie, destination, port: u16::from_be(port as u16) };
    // SAFETY: the socket of this context. It may have carried a direct flow before it connected again.
    unsafe { forget(sk) };
    if let Some(reason) = exemption(&connect, pod) {
        count(reason);
        return ALLOW;
    }
    if pod.flags & pod_flags::DIRECT != 0 && go_direct(&connect, pod, family4) {
        debug_line!(ctx, "out: netns {} goes direct, port {}", cookie, connect.port);
        count(Counter::OutDirect);
        return ALLOW;
    }
    if is_v4(&destination) && !agent_alive(now()) && !has_listener(cookie) {
        // `steer` can only drop it, and the kernel sends no reset from a foreign IPv4 address: the client would
        // hang. For a restart of the agent, which is shorter than the life of a heartbeat, that is welcome: the
        // client's next SYN finds the new one.
        count(Counter::OutGone);
        return REFUSE;
    }
    if !mark_for_proxy(&connect) {
        count(Counter::OutMarkFailed);
        return REFUSE;
    }
    debug_line!(ctx, "out: netns {} captured, port {}", cookie, connect.port);
    count(Counter::OutCaptured);
    ALLOW
}

/// Why a connection is none of the proxy's business.
#[inline(always)]
fn exemption(connect: &Connect<'_>, pod: &PodConfig) -> Option<Counter> {
    // SAFETY: takes no arguments.
    let cgroup = unsafe { bpf_get_current_cgroup_id() };
    if META.get(0).is_some_and(|meta| meta.agent_cgroup == cgroup || is_predecessor(meta, cgroup)) {
        return Some(Counter::OutAgent);
    }
    if pod.flags & pod_flags::BYPASS != 0 {
        return Some(Counter::OutBypass);
    }
    let own = same(&connect.destination, &pod.ip4) || same(&connect.destination, &pod.ip6);
    if own || never_captured(&connect.destination) {
        return Some(Counter::OutSelf);
    }
    if pod.flags & pod_flags::OUTBOUND_RULES != 0 && excluded(connect, pod) {
        return Some(Counter::OutExcluded);
    }
    None
}

/// Whether the process belongs to an agent that was replaced and still serves its last connections.
#[inline(always)]
fn is_predecessor(meta: &Meta, cgroup: u64) -> bool {
    meta.flags & meta_flags::PREDECESSORS != 0 && AGENTS.get_ptr(&cgroup).is_some()
}

/// What the pod's own rules say: a rule for the port, else the longest range, else the default.
#[inline(always)]
fn excluded(connect: &Connect<'_>, pod: &PodConfig) -> bool {
    if let Some(rule) = port_rule(connect.cookie, connect.port, rule_kind::OUTBOUND) {
        return rule != RULE_CAPTURE;
    }
    let data = RangeKey { cookie: connect.cookie.to_be_bytes(), addr: connect.destination };
    match RANGE_RULES.get(Key::new(8 * size_of::<RangeKey>() as u32, data)) {
        Some(rule) => *rule != RULE_CAPTURE,
        None => pod.flags & pod_flags::OUTBOUND_DEFAULT_SKIP != 0,
    }
}

/// Lets the connection leave as it is, if policy permits; prepares the publication of its tuple.
#[inline(always)]
fn go_direct(connect: &Connect<'_>, pod: &PodConfig, family4: bool) -> bool {
    let Some(target) = permitted_target(connect, pod) else { return false };
    let opened_ns = now();
    if !agent_alive(opened_ns) {
        count(Counter::OutStale);
        return false;
    }
    let vip = if target.is_service { connect.destination } else { [0; 4] };
    let mut flow = Flow {
        tuple: Tuple {
            source: [0; 4],
            destination: target.addr,
            source_port: 0,
            destination_port: target.port,
        },
        identity: pod.identity,
        source_cookie: connect.cookie,
        destination_cookie: target.cookie,
        opened_ns,
        vip,
        vip_port: connect.port,
        state: flow_state::CONNECTING,
        fin_wait_received: 0,
    };
    // SAFETY: the socket of this context.
    if !clear_mark(connect) || !unsafe { remember(connect.sk, &mut flow) } {
        return false;
    }
    if target.is_service {
        rewrite(connect, &target, family4);
    }
    true
}

/// The pod that the connection would reach, if it is another pod of this node to which policy permits
/// direct flows. One endpoint is drawn for a Service; a remote one means: through the proxy.
#[inline(always)]
fn permitted_target(connect: &Connect<'_>, pod: &PodConfig) -> Option<Target> {
    let (addr, port, is_service) = match endpoint(connect) {
        Some((addr, port)) => (addr, port, true),
        None => (connect.destination, connect.port, false),
    };
    if is_v4(&addr) != is_v4(&connect.destination) {
        return None;
    }
    // SAFETY: replaced as a whole by user space.
    let local = unsafe { LOCAL.get(&addr) }?;
    if local.cookie == connect.cookie || !may_go_direct(local.set, pod.identity, port) {
        return None;
    }
    Some(Target { addr, port, cookie: local.cookie, is_service })
}

#[inline(always)]
fn endpoint(connect: &Connect<'_>) -> Option<(Addr, u16)> {
    let key = ServiceKey { vip: connect.destination, port: connect.port, reserved: 0 };
    // SAFETY: eight bytes, replaced as a whole by user space.
    let service = unsafe { SERVICES.get(&key) }?;
    let count = service.count;
    if count == 0 {
        return None;
    }
    // SAFETY: takes no arguments.
    let index = unsafe { bpf_get_prandom_u32() } % count;
    // SAFETY: replaced as a whole by user space.
    let endpoint = unsafe { ENDPOINTS.get(&EndpointKey { service: service.id, index }) }?;
    Some((endpoint.addr, endpoint.port))
}

#[inline(always)]
fn rewrite(connect: &Connect<'_>, target: &Target, family4: bool) {
    let words = target.addr;
    // SAFETY: writes to fields that this hook may write, word by word.
    unsafe {
        if family4 {
            (*connect.sa).user_ip4 = words[3];
        } else {
            write_volatile(&raw mut (*connect.sa).user_ip6[0], words[0]);
            write_volatile(&raw mut (*connect.sa).user_ip6[1], words[1]);
            write_volatile(&raw mut (*connect.sa).user_ip6[2], words[2]);
            write_volatile(&raw mut (*connect.sa).user_ip6[3], words[3]);
        }
        (*connect.sa).user_port = u32::from(target.port.to_be());
    }
}

/// Sets the capture bit, keeping the application's own mark, and frees the socket from a device: both decide
/// which route the SYN takes.
#[inline(always)]
fn mark_for_proxy(connect: &Connect<'_>) -> bool {
    // SAFETY: fields of the context's socket.
    let (mark, device) = unsafe { ((*connect.sk).mark, (*connect.sk).bound_dev_if) };
    if mark & CAPTURE_MARK == 0 && !set_option(connect, SO_MARK, mark | CAPTURE_MARK, 4) {
        return false;
    }
    device == 0 || set_option(connect, SO_BINDTODEVICE, 0, 1)
}

/// A socket that was captured before, or whose application chose our bit, must not be looped to the proxy.
#[inline(always)]
fn clear_mark(connect: &Connect<'_>) -> bool {
    // SAFETY: a field of the context's socket.
    let mark = unsafe { (*connect.sk).mark };
    mark & CAPTURE_MARK == 0 || set_option(connect, SO_MARK, mark & !CAPTURE_MARK, 4)
}

#[inline(always)]
fn set_option(connect: &Connect<'_>, option: i32, mut value: u32, length: i32) -> bool {
    let value = (&raw mut value).cast();
    // SAFETY: `value` is four bytes on the stack, `length` at most that.
    unsafe { bpf_setsockopt(raw(connect.ctx), SOL_SOCKET, option, value, length) == 0 }
}
