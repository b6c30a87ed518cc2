//! What this kernel and this process can do, tried out before anything is changed.

use std::fs;
use std::io;
use std::mem::size_of_val;

use aya::maps::MapType;
use aya::sys::is_map_supported;

use crate::Netns;
use crate::datapath::DatapathConfig;
use crate::diag::SocketDiag;
use crate::error::{Doing, KernelError};
use crate::{cgroup, sys};

/// One instruction of eBPF.
#[repr(C)]
#[derive(Clone, Copy)]
struct Instruction {
    code: u8,
    /// Destination in the low half, source in the high half.
    registers: u8,
    offset: i16,
    immediate: i32,
}

const fn instruction(code: u8, registers: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers, offset, immediate }
}

/// `r0 = 1; exit`: allow, pass.
const RETURN_1: [Instruction; 2] = [set(0, 1), instruction(0x95, 0, 0, 0)];

const fn set(register: u8, value: i32) -> Instruction {
    instruction(0xb7, register, 0, value)
}

const fn call(helper: i32) -> Instruction {
    instruction(0x85, 0, 0, helper)
}

/// `bpf_setsockopt(ctx, SOL_SOCKET, SO_MARK, &zero, 4)`; the context is in `r1` from the beginning.
const SET_MARK: [Instruction; 7] = [
    // *(u64 *)(r10 - 8) = 0
    instruction(0x7a, 10, -8, 0),
    // r4 = r10 - 8
    instruction(0xbf, 4 | 10 << 4, 0, 0),
    instruction(0x07, 4, 0, -8),
    set(2, 1),
    set(3, 36),
    set(5, 4),
    call(49),
];

/// A program type with an attach type (`enum bpf_prog_type`, `enum bpf_attach_type`).
struct Hook {
    kind: u32,
    attach: u32,
}

const CONNECT4: Hook = Hook { kind: 18, attach: 10 };
const GETPEERNAME4: Hook = Hook { kind: 18, attach: 29 };
const SOCK_OPS: Hook = Hook { kind: 13, attach: 3 };
const SK_LOOKUP: Hook = Hook { kind: 30, attach: 36 };

struct ProgramProbe {
    feature: &'static str,
    since: &'static str,
    hook: Hook,
    body: &'static [Instruction],
}

/// Program types and those helpers that came later than the type.
const PROGRAMS: [ProgramProbe; 7] = [
    probe("connect hooks of cgroups", "4.17", CONNECT4, &[]),
    probe("network namespace cookies in connect hooks", "5.7", CONNECT4, &[call(122)]),
    probe("cgroup ids in connect hooks", "5.7", CONNECT4, &[call(80)]),
    probe("socket options in connect hooks", "5.8", CONNECT4, &SET_MARK),
    probe("getpeername hooks of cgroups", "5.8", GETPEERNAME4, &[]),
    probe("socket operations hooks of cgroups", "4.13", SOCK_OPS, &[]),
    probe("socket lookup programs", "5.9", SK_LOOKUP, &[]),
];

const fn probe(
    feature: &'static str,
    since: &'static str,
    hook: Hook,
    body: &'static [Instruction],
) -> ProgramProbe {
    ProgramProbe { feature, since, hook, body }
}

const MAPS: [(MapType, &str, &str); 6] = [
    (MapType::LpmTrie, "prefix tries", "4.11"),
    (MapType::SockMap, "socket maps", "4.14"),
    (MapType::SkStorage, "storage with sockets", "5.2"),
    (MapType::RingBuf, "ring buffers", "5.8"),
    (MapType::LruHash, "least-recently-used hashes", "4.10"),
    (MapType::PerCpuHash, "per-CPU hashes", "4.6"),
];

/// What is possible beyond the minimum.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Capabilities {
    /// Established connections can be cut (`INET_DIAG_DESTROY`): without it nothing may go direct, since a
    /// permission could not be taken back.
    pub(crate) can_cut: bool,
}

/// Tries everything that the data path needs; the error names each feature that is missing.
pub(crate) fn probe_kernel(config: &DatapathConfig) -> Result<Capabilities, KernelError> {
    let missing = missing_features()?;
    if !missing.is_empty() {
        return Err(KernelError::Unsupported(format!(
            "the data path cannot work here: {}",
            missing.join("; ")
        )));
    }
    cgroup::id(&config.cgroup)?;
    config.probe_cgroup.as_deref().map_or(Ok(0), cgroup::id)?;
    let can_cut = SocketDiag::open()
        .and_then(|mut diag| diag.can_destroy())
        .doing(|| "ask the kernel whether it can destroy sockets")?;
    if !can_cut {
        tracing::warn!(
            "the kernel lacks INET_DIAG_DESTROY (Linux 4.5): all connections go through the proxy"
        );
    }
    Ok(Capabilities { can_cut })
}

/// What the data path needs and this process or kernel does not have: one sentence for each, none where all is
/// there. Features are tried out only where the process may do so.
///
/// # Errors
/// The process cannot find out its own capabilities.
pub fn missing_features() -> Result<Vec<String>, KernelError> {
    let mut missing = missing_capabilities()?;
    if missing.is_empty() {
        missing.extend(missing_programs());
        missing.extend(missing_maps());
        missing.extend(missing_links());
        missing.extend(missing_cookies());
    }
    Ok(missing)
}

/// Bits of `linux/capability.h`.
fn missing_capabilities() -> Result<Vec<String>, KernelError> {
    const NET_ADMIN: u32 = 12;
    const SYS_ADMIN: u32 = 21;
    const BPF: u32 = 39;
    let status = fs::read_to_string("/proc/self/status").doing(|| "read the capabilities of this process")?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or_default();
    let has = |bit: u32| effective & 1 << bit != 0;
    let wanted = [
        ("CAP_NET_ADMIN", has(NET_ADMIN)),
        ("CAP_BPF (Linux 5.8; CAP_SYS_ADMIN before)", has(BPF) || has(SYS_ADMIN)),
        ("CAP_SYS_ADMIN (to enter the pods' network namespaces)", has(SYS_ADMIN)),
    ];
    let missing = wanted.iter().filter(|(_, has)| !has);
    Ok(missing.map(|(name, _)| format!("the agent lacks {name}")).collect())
}

fn missing_programs() -> impl Iterator<Item = String> {
    PROGRAMS.iter().filter_map(|probe| {
        let mut instructions = probe.body.to_vec();
        instructions.extend(RETURN_1);
        let error = load(&probe.hook, &instructions).err()?;
        Some(format!("the kernel lacks {} (Linux {}): {error}", probe.feature, probe.since))
    })
}

fn missing_maps() -> impl Iterator<Item = String> {
    MAPS.iter().filter_map(|(kind, feature, since)| match is_map_supported(*kind) {
        Ok(true) => None,
        Ok(false) => Some(format!("the kernel lacks {feature} (Linux {since})")),
        Err(error) => {
            Some(format!("cannot find out whether the kernel has {feature} (Linux {since}): {error}"))
        }
    })
}

/// A kernel that knows the command complains about the descriptor.
fn missing_links() -> Option<String> {
    match sys::link_update_nothing() {
        Some(libc::EBADF) => None,
        _ => Some("the kernel lacks BPF links (Linux 5.7)".to_owned()),
    }
}

fn missing_cookies() -> Option<String> {
    let error = Netns::current().err()?;
    Some(format!("the kernel lacks SO_NETNS_COOKIE (Linux 5.14): {error}"))
}

/// Prefix of the arguments of `BPF_PROG_LOAD`.
#[repr(C)]
struct ProgramAttr {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach: u32,
}

// SAFETY: laid out like BPF_PROG_LOAD; the caller below points at live instructions and a live string.
unsafe impl sys::Attr for ProgramAttr {}

fn load(hook: &Hook, instructions: &[Instruction]) -> io::Result<()> {
    let license = c"GPL";
    let mut attr = ProgramAttr {
        kind: hook.kind,
        instruction_count: (size_of_val(instructions) / size_of::<Instruction>()) as u32,
        instructions: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name: *b"weft_probe\0\0\0\0\0\0",
        interface: 0,
        attach: hook.attach,
    };
    sys::bpf_fd(sys::Command::ProgLoad, &mut attr).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_has_everything() {
        let missing: Vec<_> = missing_programs()
            .chain(missing_maps())
            .chain(missing_links())
            .chain(missing_cookies())
            .collect();
        assert_eq!(missing, Vec::<String>::new());
        assert_eq!(missing_capabilities().unwrap(), Vec::<String>::new());
    }

    #[test]
    fn a_helper_that_does_not_exist_is_noticed() {
        let mut instructions = vec![call(100_000)];
        instructions.extend(RETURN_1);
        assert!(load(&CONNECT4, &instructions).is_err());
    }
}
