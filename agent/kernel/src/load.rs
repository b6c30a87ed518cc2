//! Loads the programs of the node and attaches them, or replaces those of an earlier agent without a gap.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use aya::programs::links::{CgroupAttachMode, FdLink};
use aya::programs::{Program, SkLookup};
use aya::{Ebpf, EbpfLoader};

use crate::cgroup;
use crate::debug_log::DebugLog;
use crate::error::{Doing, KernelError};
use crate::pins::{NODE_MAPS, Pins, PodPins, remove_link, unless_missing};
use crate::sys::{self, LinkTarget};

/// The object of the node.
pub(crate) static NODE_OBJECT: &[u8] = aya::include_bytes_aligned!(env!("WEFT_NODE_OBJECT"));
/// The object of one pod.
pub(crate) static STEER_OBJECT: &[u8] = aya::include_bytes_aligned!(env!("WEFT_STEER_OBJECT"));

/// Programs at the pods' cgroup.
pub(crate) const CGROUP_PROGRAMS: [&str; 5] = ["out4", "out6", "tuple", "name4", "name6"];
/// Program at the kubelet's cgroup.
pub(crate) const PROBE_PROGRAM: &str = "probe";
/// Program in each pod's namespace.
pub(crate) const STEER_PROGRAM: &str = "steer";

/// Loads objects with one set of pins. Building one costs 17 ms (it parses the kernel's BTF), so there is one
/// per agent.
#[derive(Debug)]
pub(crate) struct Loader {
    loader: EbpfLoader<'static>,
    debug_log: DebugLog,
}

impl Loader {
    pub(crate) fn new(pins: &Pins) -> Self {
        let mut loader = EbpfLoader::new();
        // The programs read only contexts that are stable ABI, so nothing is relocated against the kernel's own
        // types; parsed and kept they are more than half of an idle agent's memory.
        loader.btf(None);
        for layout in NODE_MAPS {
            loader.map_pin_path(layout.name, pins.map(layout.name));
        }
        Self { loader, debug_log: DebugLog::default() }
    }

    /// The node's programs, bound to the pinned maps.
    pub(crate) fn node(&mut self) -> Result<Ebpf, KernelError> {
        let mut object = self.loader.load(NODE_OBJECT).doing(|| "create the maps of the node")?;
        self.debug_log.add(&mut object);
        Ok(object)
    }

    /// A pod's own instance of `steer`, bound to the pod's maps.
    pub(crate) fn steer(&mut self, pod: &PodPins) -> Result<Ebpf, KernelError> {
        self.loader.map_pin_path("STEER", pod.map("STEER"));
        self.loader.map_pin_path("LISTENERS", pod.map("LISTENERS"));
        let object = self.loader.load(STEER_OBJECT);
        let mut object = object.doing(|| format!("create the maps of pod {}", pod.pod))?;
        self.debug_log.add(&mut object);
        Ok(object)
    }

    /// Passes on the lines that programs built for debugging have written.
    pub(crate) fn flush_debug_log(&mut self) {
        self.debug_log.flush();
    }
}

/// Attaches the node's programs to the cgroups, in place of an earlier agent's.
pub(crate) fn attach_node(
    ebpf: &mut Ebpf,
    pins: &Pins,
    cgroup: &Path,
    probe_cgroup: Option<&Path>,
) -> Result<(), KernelError> {
    for name in CGROUP_PROGRAMS {
        attach_to_cgroup(ebpf, name, &pins.link(name), cgroup)?;
    }
    attach_probe(ebpf, pins, probe_cgroup)
}

/// Attaches the program for probes to the kubelet's cgroup, in place of an earlier one; without a cgroup it is
/// detached.
pub(crate) fn attach_probe(
    ebpf: &mut Ebpf,
    pins: &Pins,
    probe_cgroup: Option<&Path>,
) -> Result<(), KernelError> {
    match probe_cgroup {
        Some(cgroup) => attach_to_cgroup(ebpf, PROBE_PROGRAM, &pins.link(PROBE_PROGRAM), cgroup),
        None => remove_link(&pins.link(PROBE_PROGRAM))
            .doing(|| "detach the program for probes of an earlier agent"),
    }
}

fn attach_to_cgroup(ebpf: &mut Ebpf, name: &str, pin: &Path, cgroup: &Path) -> Result<(), KernelError> {
    let id = cgroup::id(cgroup)?;
    let program = program(ebpf, name)?;
    load(program, name)?;
    if replace(program, name, pin, LinkTarget::Cgroup(id))? {
        return Ok(());
    }
    let directory = File::open(cgroup).doing(|| format!("open the cgroup {}", cgroup.display()))?;
    let link = attach(program, name, &directory)?;
    link.pin(pin).doing(|| format!("pin the link of program {name}"))?;
    Ok(())
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Program, KernelError> {
    ebpf.program_mut(name).ok_or_else(|| {
        KernelError::Unsupported(format!("the embedded objects have no program {name}: rebuild the agent"))
    })
}

fn load(program: &mut Program, name: &str) -> Result<(), KernelError> {
    let loaded = match program {
        Program::CgroupSockAddr(program) => program.load(),
        Program::SockOps(program) => program.load(),
        Program::SkLookup(program) => program.load(),
        _ => return Err(unknown_kind(name)),
    };
    loaded.doing(|| format!("load program {name} into the kernel"))
}

fn unknown_kind(name: &str) -> KernelError {
    KernelError::Unsupported(format!("program {name} is of a kind that this version does not know"))
}

fn attach(program: &mut Program, name: &str, cgroup: &File) -> Result<FdLink, KernelError> {
    let describe = || format!("attach program {name} to its cgroup");
    match program {
        Program::CgroupSockAddr(program) => {
            let id = program.attach(cgroup, CgroupAttachMode::Single).doing(describe)?;
            FdLink::try_from(program.take_link(id).doing(describe)?).doing(describe)
        }
        Program::SockOps(program) => {
            let id = program.attach(cgroup, CgroupAttachMode::Single).doing(describe)?;
            FdLink::try_from(program.take_link(id).doing(describe)?).doing(describe)
        }
        _ => Err(unknown_kind(name)),
    }
}

fn attach_sk_lookup(
    program: &mut SkLookup,
    netns: BorrowedFd<'_>,
) -> Result<FdLink, aya::programs::ProgramError> {
    let id = program.attach(netns)?;
    Ok(program.take_link(id)?.into())
}

/// Attaches a loaded instance of `steer` to a pod's namespace and pins the link, or replaces an earlier one.
pub(crate) fn attach_steer(
    ebpf: &mut Ebpf,
    pod: &PodPins,
    netns: BorrowedFd<'_>,
    inode: u64,
) -> Result<(), KernelError> {
    let program = program(ebpf, STEER_PROGRAM)?;
    load(program, STEER_PROGRAM)?;
    if replace(program, STEER_PROGRAM, &pod.link(), LinkTarget::Netns(inode as u32))? {
        return Ok(());
    }
    let Program::SkLookup(steer) = program else { return Err(unknown_kind(STEER_PROGRAM)) };
    let link = attach_sk_lookup(steer, netns)
        .doing(|| format!("attach program {STEER_PROGRAM} to the namespace of pod {}", pod.pod))?;
    link.pin(pod.link()).doing(|| format!("pin the link of pod {}", pod.pod))?;
    Ok(())
}

/// Gives a pinned link our program. False when there is no such link, or when it is attached to something else
/// or to nothing any more: it is unpinned then.
fn replace(program: &Program, name: &str, pin: &Path, wanted: LinkTarget) -> Result<bool, KernelError> {
    let link = match sys::obj_get(pin) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error).doing(|| format!("open the pinned link {}", pin.display())),
    };
    let fd = program.fd().doing(|| format!("find program {name}"))?;
    let target =
        sys::link_target(link.as_fd()).doing(|| format!("look at the pinned link {}", pin.display()))?;
    if target == wanted {
        match sys::link_update(link.as_fd(), fd.as_fd()) {
            Ok(()) => return Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {}
            Err(error) => return Err(error).doing(|| format!("replace program {name} of {}", pin.display())),
        }
    }
    tracing::info!(pin = %pin.display(), "a pinned link is not attached to what it should be: attaching anew");
    unless_missing(fs::remove_file(pin)).doing(|| format!("unpin {}", pin.display()))?;
    Ok(false)
}
