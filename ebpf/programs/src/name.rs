//! `getpeername()` of a direct flow that was dialled by a virtual address shows that address.

use core::ptr::write_volatile;

use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use weft_ebpf_common::{Addr, Flow};

use crate::maps_node::flow_of;

const ALLOW: i32 = 1;

#[cgroup_sock_addr(getpeername4)]
pub fn name4(ctx: SockAddrContext) -> i32 {
    if let Some((words, port)) = dialled(ctx.sock_addr) {
        // SAFETY: fields that this hook may write.
        unsafe {
            (*ctx.sock_addr).user_ip4 = words[3];
            (*ctx.sock_addr).user_port = port;
        }
    }
    ALLOW
}

#[cgroup_sock_addr(getpeername6)]
pub fn name6(ctx: SockAddrContext) -> i32 {
    let sa = ctx.sock_addr;
    if let Some((words, port)) = dialled(sa) {
        // SAFETY: fields that this hook may write, word by word.
        unsafe {
            write_volatile(&raw mut (*sa).user_ip6[0], words[0]);
            write_volatile(&raw mut (*sa).user_ip6[1], words[1]);
            write_volatile(&raw mut (*sa).user_ip6[2], words[2]);
            write_volatile(&raw mut (*sa).user_ip6[3], words[3]);
            (*sa).user_port = port;
        }
    }
    ALLOW
}

/// The virtual address (as words) and port (as the context has it) that the application dialled.
#[inline(always)]
fn dialled(sa: *mut bpf_sock_addr) -> Option<([u32; 4], u32)> {
    // SAFETY: the kernel passes a valid context.
    let sk = unsafe { (*sa).__bindgen_anon_1.sk };
    if sk.is_null() {
        return None;
    }
    // SAFETY: the socket of this context.
    let flow: *const Flow = unsafe { flow_of(sk) };
    if flow.is_null() {
        return None;
    }
    // SAFETY: checked; the entry lives as long as the socket.
    let (words, port): (Addr, u16) = unsafe { ((*flow).vip, (*flow).vip_port) };
    (words[0] | words[1] | words[2] | words[3] != 0).then(|| (words, u32::from(port.to_be())))
}
