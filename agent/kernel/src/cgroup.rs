//! Control groups: the agent's own, and where the processes of a pod are.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::statfs;

use crate::error::{Doing, KernelError};

/// `CGROUP2_SUPER_MAGIC` of `linux/magic.h`.
const MAGIC: u64 = 0x6367_7270;

/// A scan of `/proc` serves a batch of enrolments.
const SCAN_LIFETIME: Duration = Duration::from_secs(1);

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

/// Which processes live in which namespace and cgroup.
#[derive(Debug)]
pub(crate) struct Processes {
    attach: PathBuf,
    agent: PathBuf,
    scan: Option<Scan>,
}

#[derive(Debug)]
struct Scan {
    taken: Instant,
    /// Inode of the network namespace → process and its cgroup.
    by_netns: HashMap<u64, Vec<(u32, PathBuf)>>,
}

impl Processes {
    /// `attach` and `agent` are directories of the mounted cgroup2.
    pub(crate) fn new(attach: &Path, agent: &Path) -> Result<Self, KernelError> {
        let relative = |directory: &Path| {
            relative_to_hierarchy(directory).doing(|| format!("find the mount of {}", directory.display()))
        };
        Ok(Self { attach: relative(attach)?, agent: relative(agent)?, scan: None })
    }

    /// The first process of a namespace that is where no process of a pod may be.
    pub(crate) fn misplaced(&mut self, netns_inode: u64) -> io::Result<Option<Misplaced>> {
        if self.scan.as_ref().is_none_or(|scan| scan.taken.elapsed() > SCAN_LIFETIME) {
            self.scan = Some(Scan { taken: Instant::now(), by_netns: scan()? });
        }
        let processes = self.scan.as_ref().and_then(|scan| scan.by_netns.get(&netns_inode));
        Ok(processes.into_iter().flatten().find_map(|(pid, cgroup)| self.judge(*pid, cgroup)))
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

/// A directory of the mounted cgroup2 as `/proc/PID/cgroup` would name it.
fn relative_to_hierarchy(directory: &Path) -> io::Result<PathBuf> {
    let directory = fs::canonicalize(directory)?;
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
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

fn scan() -> io::Result<HashMap<u64, Vec<(u32, PathBuf)>>> {
    let mut by_netns = HashMap::<_, Vec<_>>::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // A process may end while we look.
        if let Some((netns, cgroup)) = place(&entry.path()) {
            by_netns.entry(netns).or_default().push((pid, cgroup));
        }
    }
    Ok(by_netns)
}

fn place(process: &Path) -> Option<(u64, PathBuf)> {
    let netns = fs::metadata(process.join("ns/net")).ok()?.ino();
    let cgroups = fs::read_to_string(process.join("cgroup")).ok()?;
    let cgroup = cgroups.lines().find_map(|line| line.strip_prefix("0::"))?;
    Some((netns, PathBuf::from(cgroup)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn processes() -> Processes {
        Processes { attach: "/kubepods".into(), agent: "/kubepods/agent".into(), scan: None }
    }

    #[test]
    fn judges_where_processes_are() {
        let processes = processes();
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
