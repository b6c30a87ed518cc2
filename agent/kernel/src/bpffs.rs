//! The directory of pins: a place on bpffs, mounted if there is none.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;

use rustix::fs::statfs;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::error::{Doing, KernelError};

/// `BPF_FS_MAGIC` of `linux/magic.h`.
const MAGIC: u64 = 0xcafe_4a11;

/// Makes `directory` exist on bpffs, readable by root only.
///
/// Where it is on another file system, bpffs is mounted at it, if that is wanted.
pub(crate) fn prepare(directory: &Path, may_mount: bool) -> Result<(), KernelError> {
    if !may_mount {
        require(directory)?;
    }
    create(directory).doing(|| format!("create the pin directory {}", directory.display()))?;
    if !is_bpffs(directory).doing(|| format!("look at the pin directory {}", directory.display()))? {
        mount(
            "bpf",
            directory,
            c"bpf",
            MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC,
            c"mode=0700",
        )
        .doing(|| {
            format!(
                "mount bpffs at {} (the agent needs CAP_SYS_ADMIN, or a pin directory on a mounted bpffs)",
                directory.display()
            )
        })?;
    }
    Ok(())
}

/// What is mounted in the agent's own mount namespace goes with its container, and all pins with it: the pods would be
/// out of the mesh at every restart.
fn require(directory: &Path) -> Result<(), KernelError> {
    let existing = directory.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(directory);
    if is_bpffs(existing).doing(|| format!("look at the pin directory {}", directory.display()))? {
        return Ok(());
    }
    Err(KernelError::Unsupported(format!(
        "{} is not on the bpffs of the host, so pods could not stay enrolled while the agent is restarted: mount it on \
         the node (mount -t bpf bpf /sys/fs/bpf), and mount that into the agent's pod as a hostPath at the same place \
         with mountPropagation HostToContainer",
        directory.display()
    )))
}

/// Creates a directory and its parents with mode 0700.
pub(crate) fn create(directory: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

/// Whether `directory` lies on bpffs.
pub(crate) fn is_bpffs(directory: &Path) -> io::Result<bool> {
    Ok(statfs(directory)?.f_type as u64 == MAGIC)
}

/// Unmounts bpffs from `directory` if it is mounted at just this place (so by an agent) and holds nothing.
pub(crate) fn release(directory: &Path) -> io::Result<()> {
    let parent = directory.parent().unwrap_or(directory);
    let is_mount_point = fs::metadata(directory)?.dev() != fs::metadata(parent)?.dev();
    if is_bpffs(directory)? && is_mount_point && is_empty(directory)? {
        unmount(directory, UnmountFlags::empty())?;
    }
    Ok(())
}

/// Whether nobody has pinned anything. The kernel itself may put `maps.debug` and `progs.debug` into every
/// bpffs (`CONFIG_BPF_PRELOAD`).
fn is_empty(directory: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(directory)? {
        if !entry?.file_name().to_string_lossy().ends_with(".debug") {
            return Ok(false);
        }
    }
    Ok(true)
}
