//! cgroup2 directories.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::wait::eventually;

/// Where cgroup2 is mounted: `/sys/fs/cgroup` on most machines, `/sys/fs/cgroup/unified` on hybrid ones.
pub fn mount_point() -> Result<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("/proc/self/mountinfo cannot be read")?;
    mounts_of_type(&table, "cgroup2")
        .next()
        .context("cgroup2 is not mounted; mount it with `mount -t cgroup2 none /sys/fs/cgroup/unified`")
}

fn mounts_of_type<'a>(mountinfo: &'a str, fs_type: &'a str) -> impl Iterator<Item = PathBuf> + 'a {
    mountinfo.lines().filter_map(move |line| {
        let (mount, rest) = line.split_once(" - ")?;
        (rest.split(' ').next()? == fs_type)
            .then(|| PathBuf::from(mount.split(' ').nth(4).unwrap_or_default()))
    })
}

/// Whether a process runs in the group or below.
pub fn populated(cgroup: &Path) -> bool {
    fs::read_to_string(cgroup.join("cgroup.events"))
        .is_ok_and(|text| text.lines().any(|line| line == "populated 1"))
}

/// Kills what runs in the group and below, and removes the directories. Does nothing when there is none.
pub(crate) fn remove(cgroup: &Path) -> Result<()> {
    if !cgroup.exists() {
        return Ok(());
    }
    fs::write(cgroup.join("cgroup.kill"), "1")
        .with_context(|| format!("the processes of {} cannot be killed", cgroup.display()))?;
    eventually(Duration::from_secs(10), "the killed processes have ended", || !populated(cgroup))?;
    // A dying process keeps its group busy for a moment after it has left the count.
    eventually(Duration::from_secs(30), "the cgroups are removed", || remove_tree(cgroup))
        .with_context(|| format!("{} cannot be removed", cgroup.display()))
}

/// Removes the group of this name from the hierarchies of version 1, where no process is left in it.
pub(crate) fn remove_from_version_1(name: &str) -> Result<()> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    for cgroup in mounts_of_type(&table, "cgroup").map(|mount| mount.join(name)).filter(|dir| dir.exists()) {
        eventually(Duration::from_secs(30), "the cgroups are removed", || remove_tree(&cgroup))
            .with_context(|| format!("{} cannot be removed", cgroup.display()))?;
    }
    Ok(())
}

fn remove_tree(cgroup: &Path) -> bool {
    let Ok(entries) = fs::read_dir(cgroup) else { return !cgroup.exists() };
    let children = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let emptied = children.filter(|entry| !remove_tree(&entry.path())).count() == 0;
    emptied && fs::remove_dir(cgroup).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_is_found_on_hybrid_machines() {
        let table = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
                     41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:7 - cgroup2 cgroup2 rw\n";
        let mounts = |fs_type: &str| mounts_of_type(table, fs_type).collect::<Vec<_>>();
        assert_eq!(mounts("cgroup2"), [PathBuf::from("/sys/fs/cgroup/unified")]);
        assert!(mounts("bpf").is_empty());
    }
}
