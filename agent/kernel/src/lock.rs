//! One agent per pin directory.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::error::{Doing, KernelError};

/// Held as long as this process owns the pins; the kernel releases it when the last process that shares it dies.
#[derive(Debug)]
pub(crate) struct PinLock {
    directory: File,
}

impl PinLock {
    /// Takes the lock without waiting.
    pub(crate) fn take(directory: &Path) -> Result<Self, KernelError> {
        let file =
            File::open(directory).doing(|| format!("open the pin directory {}", directory.display()))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { directory: file }),
            Err(Errno::WOULDBLOCK) => Err(KernelError::IncompatiblePins(format!(
                "another process uses the pin directory {}: stop that agent, or give this one a directory of its \
                 own with --pin-dir",
                directory.display()
            ))),
            Err(error) => Err(error).doing(|| format!("lock the pin directory {}", directory.display())),
        }
    }

    /// The lock that another agent holds and shares.
    pub(crate) fn shared(lock: OwnedFd, directory: &Path) -> Result<Self, KernelError> {
        let lock = File::from(lock);
        let describe = || format!("look at the pin directory {}", directory.display());
        let (theirs, ours) = (lock.metadata().doing(describe)?, fs::metadata(directory).doing(describe)?);
        if (theirs.dev(), theirs.ino()) != (ours.dev(), ours.ino()) {
            return Err(KernelError::IncompatiblePins(format!(
                "the agent that is to be replaced has its pins elsewhere than in {}: give this one the same \
                 --pin-dir, or a --state-dir of its own",
                directory.display()
            )));
        }
        // Held already by whoever shares it: this only makes sure.
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .doing(|| format!("lock the pin directory {}", directory.display()))?;
        Ok(Self { directory: lock })
    }

    /// For another agent: the lock is then held as long as one of both holds it.
    pub(crate) fn share(&self) -> io::Result<OwnedFd> {
        self.directory.try_clone().map(OwnedFd::from)
    }
}
