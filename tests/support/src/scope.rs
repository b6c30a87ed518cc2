//! Processes and files that are no mesh of nodes and pods, but must go just as surely.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;

use anyhow::{Result, bail};

use crate::cgroup;
use crate::cleanup::{remove_everything, sweep_stale};
use crate::id::LabId;
use crate::lab::{default_binaries, start_janitor};
use crate::process::Place;

/// The namespace that a process is in anyway.
const OWN_NETNS: &str = "/proc/self/ns/net";

/// A directory and a cgroup. What runs in the one and lies in the other goes when this is dropped, and also
/// when its owner is killed.
#[derive(Debug)]
pub struct Scope {
    id: LabId,
    cgroup: PathBuf,
    janitor: Child,
}

impl Scope {
    /// Makes one.
    ///
    /// # Errors
    /// This process is not root, cgroup2 is not mounted, or `lab-peer` (the janitor) was not built.
    pub fn new() -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            bail!("cgroups need root; run it with sudo");
        }
        sweep_stale();
        let janitor = default_binaries()?.join("lab-peer");
        if !janitor.exists() {
            bail!("{} is missing; build it with `cargo build -p weft-lab`", janitor.display());
        }
        let id = LabId::next();
        fs::create_dir_all(id.run_dir().join("logs"))?;
        let cgroup = cgroup::mount_point()?.join(id.cgroup_name());
        let scope = Self { cgroup, janitor: start_janitor(&janitor, &id)?, id };
        fs::create_dir_all(&scope.cgroup)?;
        Ok(scope)
    }

    /// Its id.
    pub fn id(&self) -> &LabId {
        &self.id
    }

    /// Its directory.
    pub fn dir(&self) -> PathBuf {
        self.id.run_dir()
    }

    /// Its cgroup2 directory.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// Where its processes run: in a cgroup of their own below, and in the network of this process.
    ///
    /// # Errors
    /// The cgroup cannot be made.
    pub fn place(&self) -> Result<Place> {
        let cgroup = self.cgroup.join("processes");
        fs::create_dir_all(&cgroup)?;
        Ok(Place { cgroup, netns: OWN_NETNS.into(), logs: self.dir().join("logs") })
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        for failure in remove_everything(&self.id) {
            eprintln!("scope {}: {failure}", self.id);
        }
        drop(self.janitor.stdin.take());
        let _ = self.janitor.wait();
    }
}
