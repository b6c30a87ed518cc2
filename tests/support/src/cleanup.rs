//! Removal of everything that carries a lab's id.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::mount::{UnmountFlags, unmount};

use crate::id::{LabId, NETNS_DIR, PREFIX, RUN_DIR};
use crate::{cgroup, sysctl};

/// Kills the lab's processes and removes its cgroups, namespaces, mounts and files; puts settings of the host
/// back. Can be repeated; each part is tried even when another one fails, and the failures are given back.
pub fn remove_everything(id: &LabId) -> Vec<String> {
    let run_dir = id.run_dir();
    let steps = [
        cgroup::mount_point().and_then(|mount| cgroup::remove(&mount.join(id.cgroup_name()))),
        cgroup::remove_from_version_1(&id.cgroup_name()),
        unmount_below(&run_dir),
        remove_namespaces(id),
        sysctl::restore(&run_dir),
        remove_files(&run_dir),
    ];
    steps.into_iter().filter_map(Result::err).map(|e| format!("{e:#}")).collect()
}

/// Removes every lab of this process, for handlers of signals: destructors do not run there.
pub fn remove_labs_of_this_process() -> Vec<String> {
    let own: HashSet<LabId> = ids_in_use().into_iter().filter(LabId::is_of_this_process).collect();
    own.iter().flat_map(remove_everything).collect()
}

/// Removes what labs of dead processes left behind; gives their number.
pub fn sweep_stale() -> usize {
    let stale: HashSet<LabId> = ids_in_use().into_iter().filter(|id| !id.owner_alive()).collect();
    for id in &stale {
        remove_everything(id);
    }
    stale.len()
}

fn ids_in_use() -> Vec<LabId> {
    let mut ids = Vec::new();
    ids.extend(names_in(Path::new(RUN_DIR)).iter().filter_map(|name| LabId::parse(name)));
    let prefixed =
        |dir: &Path| names_in(dir).into_iter().filter_map(|n| LabId::parse(n.strip_prefix(PREFIX)?));
    ids.extend(prefixed(Path::new(NETNS_DIR)));
    if let Ok(mount) = cgroup::mount_point() {
        ids.extend(prefixed(&mount));
    }
    ids
}

fn names_in(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Agents mount bpffs at their pin directories; without the mount, pinned links and maps are gone.
fn unmount_below(dir: &Path) -> Result<()> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let below =
        table.lines().filter_map(|line| line.split(' ').nth(4)).filter(|at| Path::new(at).starts_with(dir));
    let mut mounts: Vec<&str> = below.collect();
    mounts.reverse();
    for at in mounts {
        unmount(at, UnmountFlags::DETACH).with_context(|| format!("{at} cannot be unmounted"))?;
    }
    Ok(())
}

fn remove_namespaces(id: &LabId) -> Result<()> {
    let begins = format!("{PREFIX}{id}-");
    for name in names_in(Path::new(NETNS_DIR)).iter().filter(|name| name.starts_with(&begins)) {
        let path = Path::new(NETNS_DIR).join(name);
        // Not mounted when its making was interrupted: then only the file is there.
        let _ = unmount(&path, UnmountFlags::DETACH);
        fs::remove_file(&path).with_context(|| format!("{} cannot be removed", path.display()))?;
    }
    Ok(())
}

fn remove_files(run_dir: &Path) -> Result<()> {
    if run_dir.exists() {
        fs::remove_dir_all(run_dir).with_context(|| format!("{} cannot be removed", run_dir.display()))?;
    }
    // Only when it was the last lab.
    let _ = fs::remove_dir(RUN_DIR);
    Ok(())
}
