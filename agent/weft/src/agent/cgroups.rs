//! Where agent, pods and kubelet are in this machine's cgroup2.
//!
//! Paths are compared as the first process of the machine sees them (a container may have a cgroup namespace of its
//! own), and turned into directories of the mount that shows most of the hierarchy: `/sys/fs/cgroup`, on hybrid
//! machines `/sys/fs/cgroup/unified`. A node that is itself in a cgroup (several on one machine) mounts only that.

use std::path::{Component, Path, PathBuf};

use anyhow::{Context, bail};
use weft_kernel::ProcessTable;

/// Name of the agent's cgroup inside of its container's.
const IN_CONTAINER: &str = "weft-agent";

/// The mounted cgroup2, and where this process is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cgroups {
    /// Mount point.
    mount: PathBuf,
    /// What is mounted there.
    root: PathBuf,
    /// This process.
    own: Option<PathBuf>,
}

impl Cgroups {
    /// Looks at the mounts of this process.
    ///
    /// # Errors
    /// No cgroup2 is mounted, or only the agent's own container is to be seen.
    pub(crate) fn find(table: &ProcessTable) -> anyhow::Result<Self> {
        let read = || {
            let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo");
            mounts.and_then(|mounts| Ok((mounts, std::fs::read_to_string("/proc/self/cgroup")?)))
        };
        let (mounts, own) = table.with_view_of_host(read).context("the mounts cannot be read")?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::")).map(PathBuf::from);
        let (root, mount) = widest(&mounts).context(
            "cgroup2 is not mounted: mount it (mount -t cgroup2 none /sys/fs/cgroup), or give --cgroup and --agent-cgroup",
        )?;
        let found = Self { mount, root, own };
        if found.shows_only_own_container() {
            bail!(
                "only the agent's own container is to be seen at {}, so that pods could not be captured: mount \
                 /sys/fs/cgroup of the node into the agent's pod as a hostPath",
                found.mount.display()
            );
        }
        Ok(found)
    }

    fn shows_only_own_container(&self) -> bool {
        self.own.as_ref().is_some_and(|own| *own == self.root && kubepods(own).is_some())
    }

    /// The directory of a cgroup, if the mount shows it.
    fn directory(&self, cgroup: &Path) -> Option<PathBuf> {
        let directory = self.mount.join(cgroup.strip_prefix(&self.root).ok()?);
        directory.is_dir().then_some(directory)
    }

    /// The cgroup under which pods run: that in which the agent itself runs as a pod, else by the kubelet's
    /// customs, else everything.
    pub(crate) fn pods(&self) -> PathBuf {
        let own = self.own.as_deref().and_then(kubepods).and_then(|pods| self.directory(&pods));
        own.unwrap_or_else(|| pods_by_custom(&self.mount))
    }

    /// The cgroup that the agent is to have for itself: inside of its container's, whose limits go on to hold, else
    /// at the top.
    pub(crate) fn agent(&self, node: &str) -> PathBuf {
        let container = self.own.as_deref().filter(|own| kubepods(own).is_some());
        match container.and_then(|own| self.directory(own)) {
            Some(own) if own.ends_with(IN_CONTAINER) => own,
            Some(own) => own.join(IN_CONTAINER),
            None if node.is_empty() => self.mount.join("weft-agent"),
            None => self.mount.join(format!("weft-agent-{node}")),
        }
    }

    /// The directory of a kubelet's cgroup, if it is one from which probes can be told: on this node, and not around
    /// the pods.
    fn of_probes(&self, kubelet: &Path, pods: &Path) -> Option<PathBuf> {
        let directory = self.directory(kubelet)?;
        (directory != self.mount && !pods.starts_with(&directory)).then_some(directory)
    }
}

/// Follows the kubelet of this node: a service that is restarted has another process and another cgroup.
#[derive(Debug)]
pub(crate) struct Kubelet {
    table: ProcessTable,
    cgroups: Cgroups,
    pods: PathBuf,
    /// The process, as it was found.
    known: Option<(u32, PathBuf)>,
    told: bool,
}

impl Kubelet {
    pub(crate) fn new(table: ProcessTable, cgroups: Cgroups, pods: PathBuf) -> Self {
        Self { table, cgroups, pods, known: None, told: false }
    }

    /// Whether it is where it was.
    pub(crate) fn is_unchanged(&self) -> bool {
        self.known.as_ref().is_some_and(|known| self.table.is_kubelet_still(known))
    }

    /// The directory of its cgroup now.
    pub(crate) fn find(&mut self) -> Option<PathBuf> {
        let kubelets = self.table.kubelets().unwrap_or_default();
        let usable = kubelets.into_iter().find_map(|known| {
            let directory = self.cgroups.of_probes(&known.1, &self.pods)?;
            Some((known, directory))
        });
        let (known, directory) = usable.unzip();
        self.known = known;
        match &directory {
            Some(directory) => {
                tracing::info!(cgroup = %directory.display(), "probes come from the kubelet's cgroup")
            }
            None if !self.told => tracing::warn!(
                "no kubelet with a cgroup of its own was found: its probes are treated as connections from outside the \
                 mesh, which STRICT refuses; give --probe-cgroup"
            ),
            None => {}
        }
        self.told = true;
        directory
    }
}

/// Where cgroup2 is mounted; the mount that shows most of it.
pub(crate) fn find_cgroup2(mountinfo: &str) -> Option<PathBuf> {
    widest(mountinfo).map(|(_, mount)| mount)
}

/// The mount of cgroup2 that shows most: root and mount point.
fn widest(mountinfo: &str) -> Option<(PathBuf, PathBuf)> {
    let mounts: Vec<_> = mountinfo.lines().filter_map(cgroup2_mount).collect();
    let shadowed = |at: usize, point: &Path| mounts.iter().skip(at + 1).any(|(_, later)| later == point);
    let visible = mounts.iter().enumerate().filter(|(at, (_, point))| !shadowed(*at, point));
    let depth = |root: &Path| {
        let count = |wanted: fn(&Component<'_>) -> bool| root.components().filter(wanted).count();
        let up = count(|component| matches!(component, Component::ParentDir));
        let down = count(|component| matches!(component, Component::Normal(_)));
        // Above our own namespace, then nearest to the root.
        (usize::MAX - up, down)
    };
    visible.map(|(_, mount)| mount).min_by_key(|(root, _)| depth(root)).cloned()
}

/// Root and mount point of a line of mountinfo (proc(5)) that is about cgroup2: the type follows the field `-`.
fn cgroup2_mount(line: &str) -> Option<(PathBuf, PathBuf)> {
    let (mount, kind) = line.split_once(" - ")?;
    let mut fields = mount.split(' ').skip(3);
    let (root, point) = (fields.next()?, fields.next()?);
    (kind.split(' ').next() == Some("cgroup2")).then(|| (unescape(root).into(), unescape(point).into()))
}

/// Blanks in mount points are written as `\040`.
fn unescape(point: &str) -> String {
    point.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

/// The cgroup of all pods above the one of a pod: `kubepods`, `kubepods.slice`, `kubelet-kubepods.slice`.
fn kubepods(cgroup: &Path) -> Option<PathBuf> {
    let is_kubepods = |component: &Component<'_>| {
        let name = component.as_os_str().to_str().unwrap_or_default();
        name == "kubepods" || name == "kubepods.slice" || name.ends_with("-kubepods.slice")
    };
    let before = cgroup.components().position(|component| is_kubepods(&component))?;
    Some(cgroup.components().take(before + 1).collect())
}

/// The kubelet's cgroup of pods, by either of its drivers, else everything.
fn pods_by_custom(mount: &Path) -> PathBuf {
    let candidates = ["kubepods.slice", "kubepods"].map(|name| mount.join(name));
    candidates.into_iter().find(|path| path.is_dir()).unwrap_or_else(|| mount.to_owned())
}

#[cfg(test)]
#[path = "cgroups_tests.rs"]
mod tests;
