//! One agent per pin directory.

use std::fs::File;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::error::{Doing, KernelError};

/// Held as long as this process owns the pins; the kernel releases it when the process dies.
#[derive(Debug)]
pub(crate) struct PinLock {
    _directory: File,
}

impl PinLock {
    /// Takes the lock without waiting.
    pub(crate) fn take(directory: &Path) -> Result<Self, KernelError> {
        let file =
            File::open(directory).doing(|| format!("open the pin directory {}", directory.display()))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { _directory: file }),
            Err(Errno::WOULDBLOCK) => Err(KernelError::IncompatiblePins(format!(
                "another process uses the pin directory {}: stop that agent, or give this one a directory of its \
                 own with --pin-dir",
                directory.display()
            ))),
            Err(error) => Err(error).doing(|| format!("lock the pin directory {}", directory.display())),
        }
    }
}
