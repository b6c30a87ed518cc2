//! Where the data path lives: options and what they are by default on this machine.

use std::path::{Path, PathBuf};

use clap::Args;
use weft_kernel::{DatapathConfig, ProcessTable};

pub(crate) use super::cgroups::find_cgroup2;
use super::cgroups::{Cgroups, Kubelet};

/// Where bpffs is by custom, and its magic number of `linux/magic.h`.
const BPFFS: (&str, u64) = ("/sys/fs/bpf", 0xcafe_4a11);

#[derive(Debug, Clone, Args)]
pub(crate) struct DatapathOptions {
    /// cgroup2 directory under which the pods' processes run [default: that of the pods where the agent is one,
    /// kubepods.slice, kubepods or the root].
    #[arg(long, value_name = "PATH")]
    cgroup: Option<PathBuf>,
    /// cgroup2 directory of the kubelet, whose probes reach applications without the proxy [default with the
    /// Kubernetes source: that of the process].
    #[arg(long, value_name = "PATH")]
    probe_cgroup: Option<PathBuf>,
    /// cgroup2 directory of the agent alone [default: weft-agent in that of the agent's container, else
    /// weft-agent-NODE under the root].
    #[arg(long, value_name = "PATH")]
    agent_cgroup: Option<PathBuf>,
    /// Directory for pinned programs and maps; bpffs is mounted there when it is not on one [default:
    /// /sys/fs/bpf/weft where that is bpffs, else /run/weft/bpf].
    #[arg(long, value_name = "DIR")]
    pin_dir: Option<PathBuf>,
    /// Refuse to run with pins that are not on a bpffs which outlives the agent's container [default: only with the
    /// Kubernetes source].
    #[arg(long)]
    require_host_bpffs: bool,
    /// Where procfs of the machine is mounted.
    #[arg(long, value_name = "DIR", default_value = "/proc")]
    proc: PathBuf,
}

/// What [`DatapathOptions::resolve`] found.
#[derive(Debug)]
pub(crate) struct Resolved {
    pub(crate) config: DatapathConfig,
    /// The kubelet that is to be followed.
    pub(crate) kubelet: Option<Kubelet>,
}

impl DatapathOptions {
    /// Where procfs of the machine is mounted.
    pub(crate) fn proc(&self) -> &Path {
        &self.proc
    }

    /// Fills in what was not given, in a cluster of Kubernetes or outside.
    ///
    /// # Errors
    /// No cgroup2 is mounted and a directory of it is needed.
    pub(crate) fn resolve(&self, node: &str, in_cluster: bool) -> anyhow::Result<Resolved> {
        let table = ProcessTable::new(&self.proc);
        let found = std::cell::OnceCell::new();
        let cgroups = || match found.get() {
            Some(found) => Ok::<&Cgroups, anyhow::Error>(found),
            None => Cgroups::find(&table).map(|cgroups| found.get_or_init(|| cgroups)),
        };
        let cgroup = match &self.cgroup {
            Some(given) => given.clone(),
            None => cgroups()?.pods(),
        };
        let agent_cgroup = match &self.agent_cgroup {
            Some(given) => given.clone(),
            None => cgroups()?.agent(node),
        };
        let mut kubelet = match &self.probe_cgroup {
            None if in_cluster => Some(Kubelet::new(table.clone(), cgroups()?.clone(), cgroup.clone())),
            None | Some(_) => None,
        };
        let probe_cgroup = self.probe_cgroup.clone().or_else(|| kubelet.as_mut().and_then(Kubelet::find));
        let require_host_bpffs = in_cluster || self.require_host_bpffs;
        let default_pin_dir =
            || if require_host_bpffs { Path::new(BPFFS.0).join("weft") } else { default_pin_dir() };
        let config = DatapathConfig {
            cgroup,
            probe_cgroup,
            agent_cgroup,
            pin_dir: self.pin_dir.clone().unwrap_or_else(default_pin_dir),
            mount_bpffs: !require_host_bpffs,
            proc: self.proc.clone(),
        };
        Ok(Resolved { config, kubelet })
    }
}

/// The customary place where it is mounted: nothing can be created there where it is not.
fn default_pin_dir() -> PathBuf {
    let (place, magic) = BPFFS;
    let mounted = rustix::fs::statfs(place).is_ok_and(|found| found.f_type as u64 == magic);
    if mounted { Path::new(place).join("weft") } else { "/run/weft/bpf".into() }
}
