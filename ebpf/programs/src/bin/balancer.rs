//! Stands for a socket-level load balancer of somebody else, as network plugins have one: `connect()` to a virtual
//! address goes to a backend. Only tests load it.
#![no_std]
#![no_main]

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::macros::{cgroup_sock_addr, map};
use aya_ebpf::maps::{Array, HashMap};
use aya_ebpf::programs::SockAddrContext;
use weft_ebpf_common::classify::mapped;
use weft_ebpf_common::{EndpointInfo, ServiceKey};

#[path = "../runtime.rs"]
#[expect(unused_macros, unused_imports, reason = "it writes no log")]
mod runtime;

const ALLOW: i32 = 1;

/// Backend of each virtual address.
#[map]
static BACKENDS: HashMap<ServiceKey, EndpointInfo> = HashMap::with_max_entries(64, 0);
/// How many connections were given a backend.
#[map]
static TRANSLATED: Array<u64> = Array::with_max_entries(1, 0);

#[cgroup_sock_addr(connect4)]
pub fn balance4(ctx: SockAddrContext) -> i32 {
    let sa = ctx.sock_addr;
    // SAFETY: the kernel passes a valid context.
    let (vip, port) = unsafe { (mapped((*sa).user_ip4), (*sa).user_port) };
    if let Some(backend) = backend(ServiceKey { vip, port: u16::from_be(port as u16), reserved: 0 }) {
        // SAFETY: fields that this hook may write.
        unsafe {
            (*sa).user_ip4 = backend.addr[3];
            (*sa).user_port = u32::from(backend.port.to_be());
        }
    }
    ALLOW
}

#[cgroup_sock_addr(connect6)]
pub fn balance6(ctx: SockAddrContext) -> i32 {
    let sa = ctx.sock_addr;
    // SAFETY: as above; word by word, as the verifier wants it.
    let (vip, port) = unsafe {
        let vip = [
            read_volatile(&raw const (*sa).user_ip6[0]),
            read_volatile(&raw const (*sa).user_ip6[1]),
            read_volatile(&raw const (*sa).user_ip6[2]),
            read_volatile(&raw const (*sa).user_ip6[3]),
        ];
        (vip, (*sa).user_port)
    };
    if let Some(backend) = backend(ServiceKey { vip, port: u16::from_be(port as u16), reserved: 0 }) {
        // SAFETY: fields that this hook may write, word by word.
        unsafe {
            write_volatile(&raw mut (*sa).user_ip6[0], backend.addr[0]);
            write_volatile(&raw mut (*sa).user_ip6[1], backend.addr[1]);
            write_volatile(&raw mut (*sa).user_ip6[2], backend.addr[2]);
            write_volatile(&raw mut (*sa).user_ip6[3], backend.addr[3]);
            (*sa).user_port = u32::from(backend.port.to_be());
        }
    }
    ALLOW
}

#[inline(always)]
fn backend(service: ServiceKey) -> Option<EndpointInfo> {
    // SAFETY: entries are written before the program is attached, and never again.
    let backend = unsafe { BACKENDS.get(&service) }?;
    if let Some(count) = TRANSLATED.get_ptr_mut(0) {
        // SAFETY: eight bytes of the map; a lost count of two processors at once is none.
        unsafe { *count += 1 };
    }
    Some(*backend)
}
