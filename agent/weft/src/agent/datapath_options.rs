//! Where the data path lives: options and what they are by default on this machine.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use weft_kernel::DatapathConfig;

/// Where bpffs is by custom, and its magic number of `linux/magic.h`.
const BPFFS: (&str, u64) = ("/sys/fs/bpf", 0xcafe_4a11);

#[derive(Debug, Clone, Args)]
pub(crate) struct DatapathOptions {
    /// cgroup2 directory under which the pods' processes run [default: kubepods.slice, kubepods or the root].
    #[arg(long, value_name = "PATH")]
    cgroup: Option<PathBuf>,
    /// cgroup2 directory of the kubelet, whose probes reach applications without the proxy.
    #[arg(long, value_name = "PATH")]
    probe_cgroup: Option<PathBuf>,
    /// cgroup2 directory of the agent alone [default: weft-agent-NODE under the root].
    #[arg(long, value_name = "PATH")]
    agent_cgroup: Option<PathBuf>,
    /// Directory for pinned programs and maps; bpffs is mounted there when it is not on one [default:
    /// /sys/fs/bpf/weft where that is bpffs, else /run/weft/bpf].
    #[arg(long, value_name = "DIR")]
    pin_dir: Option<PathBuf>,
}

impl DatapathOptions {
    /// Fills in what was not given.
    ///
    /// # Errors
    /// No cgroup2 is mounted and a directory of it is needed.
    pub(crate) fn resolve(&self, node: &str) -> anyhow::Result<DatapathConfig> {
        let cgroup = match &self.cgroup {
            Some(given) => given.clone(),
            None => pods_cgroup(&mount()?),
        };
        let agent_cgroup = match &self.agent_cgroup {
            Some(given) => given.clone(),
            None if node.is_empty() => mount()?.join("weft-agent"),
            None => mount()?.join(format!("weft-agent-{node}")),
        };
        Ok(DatapathConfig {
            cgroup,
            probe_cgroup: self.probe_cgroup.clone(),
            agent_cgroup,
            pin_dir: self.pin_dir.clone().unwrap_or_else(default_pin_dir),
        })
    }
}

/// The customary place where it is mounted: nothing can be created there where it is not.
fn default_pin_dir() -> PathBuf {
    let (place, magic) = BPFFS;
    let mounted = rustix::fs::statfs(place).is_ok_and(|found| found.f_type as u64 == magic);
    if mounted { Path::new(place).join("weft") } else { "/run/weft/bpf".into() }
}

/// Where cgroup2 is mounted.
fn mount() -> anyhow::Result<PathBuf> {
    let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").context("the mounts cannot be read")?;
    find_cgroup2(&mountinfo).context(
        "cgroup2 is not mounted: mount it (mount -t cgroup2 none /sys/fs/cgroup), or give --cgroup and --agent-cgroup",
    )
}

/// The first mount of type cgroup2 (proc(5): the type follows the field `-`).
fn find_cgroup2(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        let is_cgroup2 = kind.split(' ').next() == Some("cgroup2");
        let point = mount.split(' ').nth(4)?;
        is_cgroup2.then(|| PathBuf::from(unescape(point)))
    })
}

/// Blanks in mount points are written as `\040`.
fn unescape(point: &str) -> String {
    point.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

/// The kubelet's cgroup of pods, by either of its drivers, else everything.
fn pods_cgroup(mount: &Path) -> PathBuf {
    let candidates = ["kubepods.slice", "kubepods"].map(|name| mount.join(name));
    candidates.into_iter().find(|path| path.is_dir()).unwrap_or_else(|| mount.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_cgroup2_wherever_it_is() {
        let hybrid = "\
25 30 0:23 / /sys rw,nosuid shared:7 - sysfs sysfs rw
31 25 0:27 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755
32 31 0:28 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw,nsdelegate
33 31 0:29 / /sys/fs/cgroup/my\\040dir rw shared:11 - cgroup cgroup rw,cpu";
        assert_eq!(find_cgroup2(hybrid), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(find_cgroup2("30 25 0:26 / /a\\040b rw - cgroup2 none rw"), Some(PathBuf::from("/a b")));
        assert_eq!(find_cgroup2("25 30 0:23 / /cgroup2 rw - sysfs cgroup2 rw"), None);
    }

    #[test]
    fn the_kubelets_cgroup_is_preferred() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(pods_cgroup(dir.path()), dir.path());
        std::fs::create_dir(dir.path().join("kubepods")).unwrap();
        assert_eq!(pods_cgroup(dir.path()), dir.path().join("kubepods"));
        std::fs::create_dir(dir.path().join("kubepods.slice")).unwrap();
        assert_eq!(pods_cgroup(dir.path()), dir.path().join("kubepods.slice"));
    }
}
