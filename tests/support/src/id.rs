//! Names of everything that a lab makes.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// Where labs keep their files: a tmpfs that only root writes to.
pub(crate) const RUN_DIR: &str = "/run/weft-lab";
/// Where `ip netns` keeps named namespaces.
pub(crate) const NETNS_DIR: &str = "/run/netns";
/// Begins every name of a network namespace or cgroup.
pub(crate) const PREFIX: &str = "weft-lab-";

/// `<pid>-<counter>`: process that owns the lab, and its number there.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LabId {
    pid: u32,
    counter: u32,
}

impl LabId {
    /// The next id of this process.
    pub fn next() -> Self {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        Self { pid: std::process::id(), counter: COUNTER.fetch_add(1, Ordering::Relaxed) }
    }

    /// Reads `<pid>-<counter>`, with or without something after it (`-node-a`).
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, '-');
        Some(Self { pid: parts.next()?.parse().ok()?, counter: parts.next()?.parse().ok()? })
    }

    /// Whether the process that made the lab still runs.
    pub fn owner_alive(&self) -> bool {
        Path::new("/proc").join(self.pid.to_string()).exists()
    }

    /// Whether this process made it.
    pub fn is_of_this_process(&self) -> bool {
        self.pid == std::process::id()
    }

    /// The process that owns the lab.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Number of the lab there.
    pub(crate) fn counter(&self) -> u32 {
        self.counter
    }

    /// Directory of logs, state, configuration and pins.
    pub fn run_dir(&self) -> PathBuf {
        Path::new(RUN_DIR).join(self.to_string())
    }

    /// Name of the cgroup that holds every process of the lab.
    pub fn cgroup_name(&self) -> String {
        format!("{PREFIX}{self}")
    }

    /// Name of a network namespace.
    pub fn netns_name(&self, what: &str) -> String {
        format!("{PREFIX}{self}-{what}")
    }

    /// Path of a network namespace.
    pub fn netns_path(&self, what: &str) -> PathBuf {
        Path::new(NETNS_DIR).join(self.netns_name(what))
    }
}

impl fmt::Display for LabId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.pid, self.counter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_from_names() {
        let id = LabId::parse("123-4-node-a").unwrap();
        assert_eq!(id.to_string(), "123-4");
        assert_eq!(id.netns_name("x"), "weft-lab-123-4-x");
        assert_eq!(LabId::parse("abc-1"), None);
        assert_eq!(LabId::parse("12"), None);
    }

    #[test]
    fn ids_of_one_process_differ() {
        assert_ne!(LabId::next(), LabId::next());
    }
}
