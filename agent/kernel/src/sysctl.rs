//! Settings of a pod's network namespace without which marked connections lose their way.
//!
//! Each is a switch: it is on while the pod is enrolled, and as it was found afterwards.
//!
//! Runtimes mount `/proc/sys` of a container read-only. An agent in one uses a procfs of its own, which is mounted
//! nowhere and goes with the process.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{StatVfsMountFlags, statvfs};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

/// What an application's answer to an onward connection needs, in the order of the bits that remember them.
const SWITCHES: [&str; 3] = [
    // The accepted socket inherits the mark, so its answers are looped back to the agent.
    "net/ipv4/tcp_fwmark_accept",
    // So does the reset of a port on which nobody listens.
    "net/ipv4/fwmark_reflect",
    "net/ipv6/fwmark_reflect",
];

/// A procfs whose settings can be written.
struct WritableProc {
    sys: PathBuf,
    /// Keeps it.
    _mount: Option<OwnedFd>,
}

impl WritableProc {
    fn find() -> Self {
        let found = Path::new("/proc/sys");
        let read_only = statvfs(found).is_ok_and(|found| found.f_flag.contains(StatVfsMountFlags::RDONLY));
        let own = if read_only { Self::detached() } else { Ok(None) };
        own.unwrap_or_else(|error| {
            tracing::error!(%error, "/proc/sys is read-only, and no other procfs can be had (CAP_SYS_ADMIN)");
            None
        })
        .unwrap_or_else(|| Self { sys: found.into(), _mount: None })
    }

    fn detached() -> io::Result<Option<Self>> {
        let proc = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_create(&proc)?;
        let safe = MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let mount = fsmount(&proc, FsMountFlags::FSMOUNT_CLOEXEC, safe)?;
        let sys = format!("/proc/self/fd/{}/sys", mount.as_raw_fd()).into();
        Ok(Some(Self { sys, _mount: Some(mount) }))
    }
}

/// The file of a switch; it is that of the network namespace of whoever opens it.
fn file(switch: &str) -> PathBuf {
    static PROC: OnceLock<WritableProc> = OnceLock::new();
    PROC.get_or_init(WritableProc::find).sys.join(switch)
}

/// Which switches are on in this thread's namespace, one bit each.
pub(crate) fn read() -> io::Result<u32> {
    let mut on = 0;
    for (bit, switch) in SWITCHES.iter().enumerate() {
        match fs::read_to_string(file(switch)) {
            Ok(text) if text.trim() == "0" => {}
            Ok(_) => on |= 1 << bit,
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(on)
}

/// Turns all switches on.
pub(crate) fn enable() -> io::Result<()> {
    restore(u32::MAX)
}

/// Whether all switches that exist are on.
pub(crate) fn enabled() -> io::Result<bool> {
    let existing =
        SWITCHES.iter().enumerate().filter(|(_, switch)| fs::exists(file(switch)).unwrap_or(false));
    let all = existing.fold(0, |bits, (bit, _)| bits | 1 << bit);
    Ok(read()? == all)
}

/// Makes the switches as `on` says.
pub(crate) fn restore(on: u32) -> io::Result<()> {
    for (bit, switch) in SWITCHES.iter().enumerate() {
        let value = if on & (1 << bit) == 0 { "0" } else { "1" };
        match fs::write(file(switch), value) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => result?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_procfs_of_our_own_shows_the_settings_of_the_threads_namespace() {
        let own = WritableProc::detached().unwrap().unwrap();
        let read = |sys: &Path| fs::read_to_string(sys.join(SWITCHES[0])).unwrap();
        std::thread::spawn(move || {
            #[allow(deprecated, reason = "the replacement is not in every rustix 1.x")]
            rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNET).unwrap();
            assert_eq!(read(&own.sys), "0\n");
            fs::write(own.sys.join(SWITCHES[0]), "1").unwrap();
            assert_eq!(read(&own.sys), "1\n");
            assert_eq!(read(Path::new("/proc/sys")), "1\n", "it is the same setting");
        })
        .join()
        .unwrap();
        assert_eq!(read(Path::new("/proc/sys")), "0\n", "and another one of this namespace");
    }
}
