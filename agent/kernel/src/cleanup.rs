//! Removal of everything that agents left, without an agent.

use std::collections::HashMap;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use weft_core::resource::NamespacedName;
use weft_ebpf_common::SteerConfig;

use crate::Netns;
use crate::bpffs;
use crate::datapath::DatapathConfig;
use crate::enrol::restore;
use crate::error::KernelError;
use crate::lock::PinLock;
use crate::pins::{Pins, PodPins};
use crate::route::IpFamily;
use crate::sys::{self, LinkTarget};

/// What `cleanup` removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CleanupReport {
    /// Links detached.
    pub links: usize,
    /// Maps unpinned.
    pub maps: usize,
    /// Namespaces from which rules, routes and sysctls were removed.
    pub namespaces: usize,
    /// What could not be removed, and why.
    pub failures: Vec<String>,
}

/// Removes the pins of all schemata, or of one pod.
pub(crate) fn clean_up(
    config: &DatapathConfig,
    pod: Option<&NamespacedName>,
) -> Result<CleanupReport, KernelError> {
    let base = &config.pin_dir;
    let mut report = CleanupReport::default();
    if !bpffs::is_bpffs(base).unwrap_or(false) {
        // Nothing was ever pinned here, or it has gone with its mount.
        return Ok(report);
    }
    let lock = PinLock::take(base)?;
    remove_pins(config, pod, &mut report);
    drop(lock);
    if pod.is_none() {
        let failed = |error| format!("cannot unmount {}: {error}", base.display());
        report.failures.extend(bpffs::release(base).err().map(failed));
        remove_base(base);
        // Fails while processes are in it, and that is right.
        let _ = fs::remove_dir(&config.agent_cgroup);
    }
    Ok(report)
}

/// Removes the pins of all schemata, or of one pod, for whoever holds the lock.
pub(crate) fn remove_pins(config: &DatapathConfig, pod: Option<&NamespacedName>, report: &mut CleanupReport) {
    let namespaces = Namespaces::default();
    for pins in Pins::new(&config.pin_dir).all() {
        let wanted = pins.pods().into_iter().filter(|pins| pod.is_none_or(|pod| *pod == pins.pod));
        for pins_of_pod in wanted {
            remove_pod(&pins, &pins_of_pod, &namespaces, report);
        }
        if pod.is_none() {
            remove_node(&pins, report);
        }
    }
}

/// Removes the pin directory itself. It stays where something is in it or bpffs is mounted at it.
pub(crate) fn remove_base(base: &Path) {
    let _ = fs::remove_dir(base);
}

fn remove_node(pins: &Pins, report: &mut CleanupReport) {
    // Links first: a program that is attached keeps its maps.
    match pins.remove_links() {
        Ok(removed) => report.links += removed,
        Err(error) => report.failures.push(format!("cannot unpin the node's links: {error}")),
    }
    match pins.remove_maps() {
        Ok(removed) => report.maps += removed,
        Err(error) => report.failures.push(format!("cannot unpin the node's maps: {error}")),
    }
    if let Err(error) = pins.remove_empty() {
        report.failures.push(format!("cannot remove the pin directory: {error}"));
    }
}

fn remove_pod(pins: &Pins, pod: &PodPins, namespaces: &Namespaces, report: &mut CleanupReport) {
    let inode = linked_namespace(pod);
    let saved = saved_sysctls(pod);
    // From here on connections of the pod are not marked.
    if let Ok(map) = sys::obj_get(&pins.map("PODS")) {
        let _ = sys::map_delete(map.as_fd(), &pod.cookie);
    }
    let had_link = pod.exist();
    match pod.remove() {
        Ok(maps) => {
            report.links += usize::from(had_link);
            report.maps += maps;
        }
        Err(error) => report.failures.push(format!("cannot unpin the objects of pod {}: {error}", pod.pod)),
    }
    // A namespace that nothing shows any more takes its rules with it.
    let Some(path) = inode.and_then(|inode| namespaces.path(inode)) else { return };
    let restored = Netns::open(&path)
        .and_then(|netns| netns.run(|| restore(saved, &IpFamily::ALL)))
        .and_then(|result| result);
    match restored {
        Ok(()) => report.namespaces += 1,
        Err(error) => {
            report.failures.push(format!("cannot restore the network namespace of pod {}: {error}", pod.pod));
        }
    }
}

/// Removes what is left of a pod that an earlier agent enrolled and this one has not.
pub(crate) fn remove_leftover(pins: &Pins, pod: &PodPins) -> CleanupReport {
    let mut report = CleanupReport::default();
    remove_pod(pins, pod, &Namespaces::default(), &mut report);
    report
}

/// Inode of the namespace to which a pod's link is attached; `None` when it has gone.
pub(crate) fn linked_namespace(pod: &PodPins) -> Option<u64> {
    let link = sys::obj_get(&pod.link()).ok()?;
    match sys::link_target(link.as_fd()) {
        Ok(LinkTarget::Netns(inode @ 1..)) => Some(inode.into()),
        _ => None,
    }
}

fn saved_sysctls(pod: &PodPins) -> Option<u32> {
    pod.check_maps().ok()?;
    let map = sys::obj_get(&pod.map("STEER")).ok()?;
    let config: SteerConfig = sys::map_lookup(map.as_fd(), &0_u32).ok()??;
    Some(config.saved_sysctls)
}

/// Network namespaces of this machine by inode: named ones, and those of processes. Listed when first asked.
#[derive(Default)]
struct Namespaces {
    by_inode: std::cell::OnceCell<HashMap<u64, PathBuf>>,
}

impl Namespaces {
    fn path(&self, inode: u64) -> Option<PathBuf> {
        self.by_inode.get_or_init(list_namespaces).get(&inode).cloned()
    }
}

fn list_namespaces() -> HashMap<u64, PathBuf> {
    let named = ["/run/netns", "/var/run/netns", "/run/docker/netns"];
    let named = named.iter().flat_map(|directory| list(Path::new(directory)));
    let processes = list(Path::new("/proc")).map(|process| process.join("ns/net"));
    named.chain(processes).filter_map(|path| Some((fs::metadata(&path).ok()?.ino(), path))).collect()
}

fn list(directory: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path())
}
