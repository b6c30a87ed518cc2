//! The agent's own files, removed when it leaves its node for good.

use std::fs::{self, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use weft_kernel::ProcessTable;

use super::handover;
use super::options::Options;

/// Removes what the agent keeps beside its pins: the places of pods, lock and sockets, and the directories when nothing
/// else is in them. The key of an embedded CA stays.
pub(super) fn remove(options: &Options) {
    let state = &options.state_dir;
    // What is not there needs no removing, and what cannot be removed has no effect.
    let _ = fs::remove_dir_all(state.join("places"));
    for file in [
        Some(state.join("lock")),
        Some(state.join(handover::SOCKET)),
        Some(options.admin_socket()),
        options.cni.socket(),
    ] {
        let _ = file.map(fs::remove_file);
    }
    remove_directories(options.datapath.proc(), &[state]);
}

/// Removes these directories and the one below /run, as far as nothing is in them.
pub(crate) fn remove_directories(proc: &Path, directories: &[&Path]) {
    let run = Path::new(weft_cni::protocol::SOCKET).parent();
    for directory in directories.iter().copied().chain(run) {
        if let Err(error) = remove_directory(proc, directory) {
            tracing::debug!(directory = %directory.display(), %error, "a directory stays");
        }
    }
}

/// What is mounted into a container cannot be removed from inside of it, but from where it is mounted from.
fn remove_directory(proc: &Path, directory: &Path) -> io::Result<()> {
    match fs::remove_dir(directory) {
        // The latter where the container's own root is not to be written to.
        Err(error) if matches!(error.kind(), ErrorKind::ResourceBusy | ErrorKind::ReadOnlyFilesystem) => {
            let own = fs::metadata(directory)?;
            let seen_from_host = of_host(proc, directory).filter(|path| is_same(path, &own));
            // One of them is enough.
            seen_from_host.map(fs::remove_dir).find(Result::is_ok).unwrap_or(Err(error))
        }
        done => done,
    }
}

/// The path as the first process and the kubelet see it, who are on the host where the agent is in a container.
fn of_host<'d>(proc: &Path, directory: &'d Path) -> impl Iterator<Item = PathBuf> + use<'d> {
    let kubelets = ProcessTable::new(proc).kubelets().unwrap_or_default().into_iter().map(|(pid, _)| pid);
    let roots: Vec<_> =
        std::iter::once(1).chain(kubelets).map(|pid| proc.join(format!("{pid}/root"))).collect();
    roots.into_iter().map(move |root| root.join(directory.strip_prefix("/").unwrap_or(directory)))
}

/// Several nodes may share a machine: only the very same directory is ours.
fn is_same(path: &Path, own: &Metadata) -> bool {
    fs::metadata(path).is_ok_and(|found| (found.dev(), found.ino()) == (own.dev(), own.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_empty_directories_go() {
        let dir = tempfile::tempdir().unwrap();
        let (empty, full) = (dir.path().join("empty"), dir.path().join("full"));
        for directory in [&empty, &full] {
            fs::create_dir(directory).unwrap();
        }
        fs::write(full.join("key"), "kept").unwrap();
        let proc = Path::new("/proc");
        assert!(remove_directory(proc, &empty).is_ok() && !empty.exists());
        assert!(remove_directory(proc, &full).is_err() && full.join("key").exists());
        assert!(remove_directory(proc, &empty).is_err(), "what is not there is no success, and no panic");
    }

    #[test]
    fn the_hosts_view_is_told_from_that_of_others() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let own = fs::metadata(one.path()).unwrap();
        assert!(is_same(one.path(), &own) && !is_same(other.path(), &own));
        let first = of_host(Path::new("/proc"), Path::new("/run/weft")).next().unwrap();
        assert_eq!(first, Path::new("/proc/1/root/run/weft"));
    }
}
