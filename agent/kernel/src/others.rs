//! Programs of others where ours are: load balancers in `connect()`, another agent in a pod's namespace.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use crate::Netns;
use crate::load::STEER_PROGRAM;
use crate::pins::{Pins, PodPins};
use crate::sys;

/// Of `enum bpf_attach_type`.
const SK_LOOKUP: u32 = 36;
/// How hooks of connections are called, their numbers in `enum bpf_attach_type`, and our programs there.
const CONNECT_HOOKS: [(&str, u32, &str); 2] = [("connect4", 10, "out4"), ("connect6", 11, "out6")];

/// A program of others that sees the connections of pods before ours does. One that translates the addresses of
/// Services hides from the agent which Service was meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EarlierProgram {
    /// `connect4` or `connect6`.
    pub hook: &'static str,
    /// The kernel's number of it, as `bpftool prog show id` takes it.
    pub id: u32,
    /// Its name, cut by the kernel after fifteen bytes; empty where it has none.
    pub name: String,
}

/// Programs that run before ours at the pods' cgroup: those that were attached there earlier. Those of cgroups above
/// run later.
pub(crate) fn earlier(pins: &Pins, cgroup: &Path) -> io::Result<Vec<EarlierProgram>> {
    let cgroup = File::open(cgroup)?;
    let mut found = Vec::new();
    for (hook, attach, ours) in CONNECT_HOOKS {
        // Links of an older schema stand beside ours for a moment.
        let own: Vec<u32> = pins.all().iter().filter_map(|pins| program_of(&pins.link(ours))).collect();
        let order = sys::attached(cgroup.as_fd(), attach, true)?;
        let before = order.iter().take_while(|id| !own.contains(id)).copied();
        // Without ours among them there is no order.
        if order.iter().any(|id| own.contains(id)) {
            found.extend(before.map(|id| EarlierProgram { hook, id, name: name(id) }));
        }
    }
    Ok(found)
}

/// Whether an agent that has its pins elsewhere steers the connections of a namespace. A program alone does not say
/// so: `has_rules` asks for the rules that an agent adds.
pub(crate) fn steered_by_another(
    netns: &Netns,
    pins: &Pins,
    candidate: &PodPins,
    has_rules: impl FnOnce() -> bool,
) -> io::Result<bool> {
    let mut others = sys::attached(netns.as_fd(), SK_LOOKUP, false)?;
    let own = program_of(&candidate.link());
    others.retain(|id| Some(*id) != own && name(*id) == STEER_PROGRAM);
    if !others.is_empty() {
        // Pods of another name, or of an older schema, that were in the same namespace.
        let all = pins.all().into_iter().flat_map(|pins| pins.pods());
        let own: Vec<u32> = all
            .filter(|pod| pod.cookie == netns.cookie())
            .filter_map(|pod| program_of(&pod.link()))
            .collect();
        others.retain(|id| !own.contains(id));
    }
    Ok(!others.is_empty() && has_rules())
}

/// The program of a pinned link, if there is such a link.
fn program_of(pin: &Path) -> Option<u32> {
    sys::link_program(sys::obj_get(pin).ok()?.as_fd()).ok()
}

/// A program that has just gone has no name.
fn name(id: u32) -> String {
    sys::program_name(id).unwrap_or_default()
}
