//! The processes of this machine: in which network namespace and cgroup each is, and to which pod it belongs.
//!
//! Paths of cgroups are read as the first process of the machine sees them: an agent in a container may have a
//! cgroup namespace of its own, in which the paths of all others begin with `/../..`.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A scan serves a batch of enrolments.
const LIFETIME: Duration = Duration::from_secs(1);

/// A scan and when it was taken.
type Taken = (Instant, Arc<Processes>);

/// Finds processes through one mount of procfs. Clones share the latest scan.
#[derive(Debug, Clone)]
pub struct ProcessTable {
    proc: PathBuf,
    latest: Arc<Mutex<Option<Taken>>>,
}

/// One scan. Costs about 15 µs for each process of the machine.
#[derive(Debug, Default)]
pub struct Processes {
    by_netns: HashMap<u64, Vec<(u32, PathBuf)>>,
    by_pod: HashMap<String, Vec<PodProcess>>,
}

/// A process of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodProcess {
    /// Process id, as the scanned procfs has it.
    pub pid: u32,
    /// When it started, in clock ticks since boot.
    pub started: u64,
    /// Its network namespace.
    pub netns: PathBuf,
    /// Inode of that.
    pub inode: u64,
}

/// Names of processes that are a kubelet, alone or inside of k3s and its like (cut at 15 letters by the kernel).
const KUBELETS: [&str; 5] = ["kubelet", "k3s-server", "k3s-agent", "k0s", "kubelite"];

impl ProcessTable {
    /// A table of the procfs that is mounted at `proc` (`/proc`; in a container perhaps the host's at `/host/proc`).
    pub fn new(proc: &Path) -> Self {
        Self { proc: proc.to_owned(), latest: Arc::default() }
    }

    /// Where procfs is mounted.
    pub fn proc(&self) -> &Path {
        &self.proc
    }

    /// The network namespace of the machine itself.
    pub fn host_netns(&self) -> PathBuf {
        self.proc.join("1/ns/net")
    }

    /// The processes now.
    ///
    /// # Errors
    /// The directory cannot be listed.
    pub fn scan(&self) -> io::Result<Arc<Processes>> {
        let found = Arc::new(self.with_view_of_host(|| Processes::scan(&self.proc))?);
        *self.latest.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), found.clone()));
        Ok(found)
    }

    /// The processes of at most a second ago.
    ///
    /// # Errors
    /// As [`scan`](Self::scan).
    pub fn recent(&self) -> io::Result<Arc<Processes>> {
        let latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match latest {
            Some((taken, found)) if taken.elapsed() < LIFETIME => Ok(found),
            Some(_) | None => self.scan(),
        }
    }

    /// The cgroup2 of a process as the first process sees it.
    pub fn cgroup_of(&self, pid: u32) -> Option<PathBuf> {
        self.with_view_of_host(|| unified(&self.proc.join(pid.to_string())))
    }

    /// Process ids and cgroup2 (as the first process sees it) of the kubelets that run on this machine.
    ///
    /// # Errors
    /// The directory cannot be listed.
    pub fn kubelets(&self) -> io::Result<Vec<(u32, PathBuf)>> {
        self.with_view_of_host(|| {
            let found = fs::read_dir(&self.proc)?.flatten().filter_map(|entry| {
                let pid = entry.file_name().to_str()?.parse::<u32>().ok()?;
                let process = entry.path();
                Some((pid, is_kubelet(&process).then(|| unified(&process))??))
            });
            Ok(found.collect())
        })
    }

    /// Whether a process that was found to be a kubelet still is the same one, in the same cgroup2.
    pub fn is_kubelet_still(&self, (pid, cgroup): &(u32, PathBuf)) -> bool {
        is_kubelet(&self.proc.join(pid.to_string())) && self.cgroup_of(*pid).as_ref() == Some(cgroup)
    }

    /// Runs `work` on a thread that sees paths of cgroups as the first process does; where that is not permitted,
    /// as this process does. A panic of `work` goes on here.
    pub fn with_view_of_host<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let first = File::open(self.proc.join("1/ns/cgroup"));
        let on_thread = || {
            let entered = first.and_then(|first| {
                Ok(move_into_link_name_space(first.as_fd(), Some(LinkNameSpaceType::ControlGroup))?)
            });
            if let Err(error) = entered {
                tracing::debug!(%error, "cgroups are seen as this process sees them");
            }
            work()
        };
        std::thread::scope(|scope| match scope.spawn(on_thread).join() {
            Ok(answer) => answer,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }
}

impl Processes {
    fn scan(proc: &Path) -> io::Result<Self> {
        let mut found = Self::default();
        let host = fs::metadata(proc.join("1/ns/net")).map(|host| host.ino()).ok();
        for entry in fs::read_dir(proc)?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
                continue;
            };
            // A process may end while we look.
            found.add(pid, &entry.path(), host);
        }
        for processes in found.by_pod.values_mut() {
            processes.sort_unstable_by_key(|process| (process.started, process.pid));
        }
        Ok(found)
    }

    fn add(&mut self, pid: u32, process: &Path, host: Option<u64>) -> Option<()> {
        let cgroups = fs::read_to_string(process.join("cgroup")).ok()?;
        let netns = process.join("ns/net");
        let inode = fs::metadata(&netns).ok()?.ino();
        let cgroup = cgroups.lines().find_map(|line| line.strip_prefix("0::"));
        if host == Some(inode) {
            return None;
        }
        if let Some(cgroup) = cgroup {
            self.by_netns.entry(inode).or_default().push((pid, cgroup.into()));
        }
        let uid = pod_uid(&cgroups)?;
        let started = fs::read_to_string(process.join("stat")).ok().and_then(|stat| start_time(&stat))?;
        self.by_pod.entry(uid).or_default().push(PodProcess { pid, started, netns, inode });
        Some(())
    }

    /// Processes in a network namespace other than the host's, with their cgroup2.
    pub(crate) fn in_netns(&self, inode: u64) -> &[(u32, PathBuf)] {
        self.by_netns.get(&inode).map(Vec::as_slice).unwrap_or_default()
    }

    /// The network namespaces in which a pod has processes, by the oldest process in each: its own comes first, as
    /// others are there on a visit.
    pub fn of_pod(&self, uid: &str) -> Vec<&PodProcess> {
        let mut seen = Vec::new();
        let all = self.by_pod.get(&uid.to_ascii_lowercase()).map(Vec::as_slice).unwrap_or_default();
        let mut first_in_each = Vec::new();
        for process in all {
            if !seen.contains(&process.inode) {
                seen.push(process.inode);
                first_in_each.push(process);
            }
        }
        first_in_each
    }
}

/// The cgroup2 of a process.
fn unified(process: &Path) -> Option<PathBuf> {
    let cgroups = fs::read_to_string(process.join("cgroup")).ok()?;
    cgroups.lines().find_map(|line| line.strip_prefix("0::")).map(PathBuf::from)
}

fn is_kubelet(process: &Path) -> bool {
    fs::read_to_string(process.join("comm")).is_ok_and(|name| KUBELETS.contains(&name.trim_end()))
}

/// Field 22 of `stat` (proc(5)), after the name, which may have blanks and brackets in it.
fn start_time(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// The uid of the pod to which a process belongs, from its `/proc/PID/cgroup` (cgroups(7)), lower case with dashes.
///
/// The kubelet names a pod's cgroup `podUID` (driver cgroupfs) or `…-podUID_WITH_UNDERSCORES.slice` (systemd), below
/// which the runtimes have directories or scopes of their own; containerd without a systemd of its own also writes
/// `…-podUID.slice:cri-containerd:ID`. Where several match, the outermost is the machine's.
pub fn pod_uid(cgroups: &str) -> Option<String> {
    let path = |line: &'_ str| line.splitn(3, ':').nth(2).map(str::to_owned);
    // cgroup2 first: it is what the data path goes by.
    let unified = cgroups.lines().filter(|line| line.starts_with("0::"));
    let others = cgroups.lines().filter(|line| !line.starts_with("0::"));
    unified.chain(others).filter_map(path).find_map(|path| path.split('/').find_map(uid_of_component))
}

fn uid_of_component(component: &str) -> Option<String> {
    // `…-podUID.slice:cri-containerd:ID`
    let name = component.split(':').next().unwrap_or(component);
    let name = name.strip_suffix(".slice").unwrap_or(name);
    let (before, uid) = match name.strip_prefix("pod") {
        Some(uid) => ("", uid),
        None => name.rsplit_once("-pod")?,
    };
    // `kubepods-burstable-podUID`, `kubelet-kubepods-podUID`: nothing else is the kubelet's.
    if !before.is_empty() && !before.split('-').any(|part| part == "kubepods") {
        return None;
    }
    let uid = uid.replace('_', "-").to_ascii_lowercase();
    is_uid(&uid).then_some(uid)
}

/// A UUID, or the 32 digits of the hash that a static pod has instead.
fn is_uid(uid: &str) -> bool {
    let dashed = uid.len() == 36;
    let is_dash = |at: usize| dashed && matches!(at, 8 | 13 | 18 | 23);
    (dashed || uid.len() == 32)
        && uid
            .bytes()
            .enumerate()
            .all(|(at, byte)| if is_dash(at) { byte == b'-' } else { byte.is_ascii_hexdigit() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "2c48913c-b29f-11e7-9350-020968147796";

    fn found(path: &str) -> Option<String> {
        pod_uid(&format!("12:cpu,cpuacct:/\n0::{path}\n"))
    }

    #[test]
    fn knows_the_cgroups_of_all_drivers_and_runtimes() {
        let id = "0f3f2ef8d6a1f6d1e5dbec9d3f1ce49a3ddfd2ba3c9a3ae8f3b3cba85ccd8e0f";
        let systemd = UID.replace('-', "_");
        for path in [
            format!("/kubepods/besteffort/pod{UID}/{id}"),
            format!("/kubepods/pod{UID}/{id}"),
            format!("/kubepods/burstable/pod{UID}"),
            format!("/kubepods/burstable/pod{UID}/{id}/weft-agent"),
            format!(
                "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{systemd}.slice/cri-containerd-{id}.scope"
            ),
            format!("/kubepods.slice/kubepods-pod{systemd}.slice/crio-{id}.scope/container"),
            format!(
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{systemd}.slice/docker-{id}.scope"
            ),
            format!(
                "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod{systemd}.slice/cri-containerd-{id}.scope"
            ),
            format!(
                "/system.slice/containerd.service/kubepods-burstable-pod{systemd}.slice:cri-containerd:{id}"
            ),
            format!("/../../besteffort/pod{UID}/{id}"),
            format!(
                "/../../../kubepods-burstable.slice/kubepods-burstable-pod{systemd}.slice/cri-containerd-{id}.scope"
            ),
            format!("/docker/{id}/kubelet/kubepods/burstable/pod{UID}/{id}"),
            format!("/actions_job/{id}/kubepods/besteffort/pod{}/{id}", UID.to_uppercase()),
        ] {
            assert_eq!(found(&path).as_deref(), Some(UID), "{path}");
        }
    }

    #[test]
    fn static_pods_have_a_hash_and_version_1_alone_is_enough() {
        let hash = "8ed5bbbd9ec2b9e5a2a8ef3a1ec4e8a6";
        assert_eq!(found(&format!("/kubepods/burstable/pod{hash}/x")).as_deref(), Some(hash));
        let hybrid = format!("11:memory:/kubepods/besteffort/pod{UID}/x\n1:name=systemd:/\n0::/\n");
        assert_eq!(pod_uid(&hybrid).as_deref(), Some(UID));
    }

    #[test]
    fn the_outermost_pod_is_the_one_of_this_machine() {
        let inner = "aaaaaaaa-b29f-11e7-9350-020968147796";
        assert_eq!(
            found(&format!("/kubepods/pod{UID}/x/kubelet/kubepods/pod{inner}/y")).as_deref(),
            Some(UID)
        );
    }

    #[test]
    fn nothing_else_is_a_pod() {
        for path in [
            "/",
            "",
            "/user.slice/user-0.slice/session-1.scope",
            "/system.slice/tripod.service",
            "/kubepods/besteffort/pod",
            "/kubepods/besteffort/podnotauid/x",
            "/kubepods/pod2c48913c-b29f-11e7-9350-02096814779",
            "/kubepods/pod2c48913cab29f-11e7-9350-020968147796",
            "/machine.slice/libpod-2c48913c-b29f-11e7-9350-020968147796.scope",
            "/user.slice/my-pod2c48913c_b29f_11e7_9350_020968147796.slice",
            "/kubepods/podé2c48913c-b29f-11e7-9350-0209681477",
        ] {
            assert_eq!(found(path), None, "{path}");
        }
        for garbage in ["", "::", "no colon at all", "1:2", "\u{0}:\u{0}:\u{0}"] {
            assert_eq!(pod_uid(garbage), None);
        }
    }

    #[test]
    fn the_start_is_found_behind_any_name() {
        let rest = "S 1 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 1 1";
        assert_eq!(start_time(&format!("7 (a) b) {rest}")), Some(4711));
        assert_eq!(start_time("7 (sh) S 1"), None);
        assert_eq!(start_time(""), None);
    }

    #[test]
    fn this_process_is_seen() {
        let table = ProcessTable::new(Path::new("/proc"));
        let processes = table.scan().unwrap();
        assert!(Arc::ptr_eq(&processes, &table.recent().unwrap()));
        assert!(processes.of_pod(UID).is_empty());
        assert!(ProcessTable::new(Path::new("/nowhere")).scan().is_err());
    }
}
