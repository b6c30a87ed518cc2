//! Control groups: the agent's own, and where the processes of a pod are.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::statfs;

use crate::error::{Doing, KernelError};
use crate::processes::ProcessTable;

/// `CGROUP2_SUPER_MAGIC` of `linux/magic.h`.
const MAGIC: u64 = 0x6367_7270;

/// The kernel's id of a cgroup2 directory.
pub(crate) fn id(directory: &Path) -> Result<u64, KernelError> {
    let describe = || format!("look at the cgroup {}", directory.display());
    if statfs(directory).doing(describe)?.f_type as u64 != MAGIC {
        return Err(KernelError::Unsupported(format!(
            "{} is not a directory of cgroup2 (Linux 4.5): mount cgroup2, and give its directory with --cgroup",
            directory.display()
        )));
    }
    Ok(fs::metadata(directory).doing(describe)?.ino())
}

/// Creates `directory` if it is missing and moves this process into it. Returns its id.
pub(crate) fn join(directory: &Path) -> Result<u64, KernelError> {
    fs::create_dir_all(directory).doing(|| format!("create the agent's cgroup {}", directory.display()))?;
    let id = id(directory)?;
    let pid = std::process::id().to_string();
    fs::write(directory.join("cgroup.procs"), pid)
        .doing(|| format!("move the agent into its cgroup {}", directory.display()))?;
    Ok(id)
}

/// Why a pod's processes keep it from being enrolled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Misplaced {
    /// A process shares the agent's cgroup: its connections would count as the agent's.
    WithAgent(u32),
    /// A process is outside the directory to which the programs are attached: its connections would escape.
    Outside(u32, String),
}

/// Judges where the processes of pods are.
#[derive(Debug)]
pub(crate) struct Placement {
    attach: PathBuf,
    agent: PathBuf,
    table: ProcessTable,
}

impl Placement {
    /// `attach` and `agent` are directories of the mounted cgroup2.
    pub(crate) fn new(attach: &Path, agent: &Path, table: ProcessTable) -> Result<Self, KernelError> {
        let relative = |directory: &Path| {
            relative_to_hierarchy(&table, directory)
                .doing(|| format!("find the mount of {}", directory.display()))
        };
        Ok(Self { attach: relative(attach)?, agent: relative(agent)?, table })
    }

    pub(crate) fn table(&self) -> &ProcessTable {
        &self.table
    }

    /// The first process of a namespace that is where no process of a pod may be.
    pub(crate) fn misplaced(&self, netns_inode: u64) -> io::Result<Option<Misplaced>> {
        let processes = self.table.recent()?;
        let mut inside = processes.in_netns(netns_inode).iter();
        Ok(inside.find_map(|(pid, cgroup)| self.judge(*pid, cgroup)))
    }

    fn judge(&self, pid: u32, cgroup: &Path) -> Option<Misplaced> {
        if cgroup == self.agent {
            Some(Misplaced::WithAgent(pid))
        } else if !cgroup.starts_with(&self.attach) {
            Some(Misplaced::Outside(pid, cgroup.display().to_string()))
        } else {
            None
        }
    }
}

/// A directory of the mounted cgroup2 as `/proc/PID/cgroup` names it for the first process.
fn relative_to_hierarchy(table: &ProcessTable, directory: &Path) -> io::Result<PathBuf> {
    let directory = fs::canonicalize(directory)?;
    let mounts = table.with_view_of_host(|| fs::read_to_string("/proc/thread-self/mountinfo"))?;
    let found = mounts.lines().filter_map(cgroup2_mount).filter(|(_, point)| directory.starts_with(point));
    let (root, point) = found.max_by_key(|(_, point)| point.as_os_str().len()).ok_or_else(|| {
        io::Error::new(io::ErrorKind::NotFound, "no mount of cgroup2 contains this directory")
    })?;
    let below = directory.strip_prefix(&point).unwrap_or(Path::new(""));
    Ok(root.join(below))
}

/// Root and mount point of a line of `mountinfo` (proc(5)) that is about cgroup2.
fn cgroup2_mount(line: &str) -> Option<(PathBuf, PathBuf)> {
    let (mount, file_system) = line.split_once(" - ")?;
    if !file_system.starts_with("cgroup2 ") {
        return None;
    }
    let mut fields = mount.split(' ').skip(3);
    Some((PathBuf::from(fields.next()?), PathBuf::from(fields.next()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placement() -> Placement {
        let table = ProcessTable::new(Path::new("/proc"));
        Placement { attach: "/kubepods".into(), agent: "/kubepods/agent".into(), table }
    }

    #[test]
    fn judges_where_processes_are() {
        let processes = placement();
        assert_eq!(processes.judge(1, Path::new("/kubepods/pod1/app")), None);
        assert_eq!(processes.judge(1, Path::new("/kubepods")), None);
        assert_eq!(processes.judge(1, Path::new("/kubepods/agent")), Some(Misplaced::WithAgent(1)));
        for outside in ["/system.slice", "/kubepods2", "/../other", "/"] {
            let judged = processes.judge(7, Path::new(outside));
            assert_eq!(judged, Some(Misplaced::Outside(7, outside.to_owned())));
        }
    }

    #[test]
    fn reads_mountinfo() {
        let line = "36 25 0:31 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate";
        assert_eq!(cgroup2_mount(line), Some(("/".into(), "/sys/fs/cgroup/unified".into())));
        assert_eq!(cgroup2_mount("36 25 0:31 / /proc rw - proc proc rw"), None);
    }
}
