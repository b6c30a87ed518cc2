//! The cgroups of agents: of this one, and of those that were replaced and still serve their last connections.

use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};

use crate::error::{Doing, KernelError};
use crate::maps::{self, entries};
use crate::sys::{self, monotonic_ns};

/// Map `AGENTS`, with what this agent is.
#[derive(Debug)]
pub(crate) struct Agents {
    map: OwnedFd,
    own: u64,
    /// The agent that this one has taken over from.
    predecessor: Option<u64>,
}

impl Agents {
    /// `before` is the cgroup of an agent that still serves connections.
    pub(crate) fn new(map: OwnedFd, own: u64, before: Option<u64>) -> Result<Self, KernelError> {
        let predecessor = before.filter(|cgroup| *cgroup != own && *cgroup != 0);
        match before {
            // One that was taken over from may come back as a successor.
            Some(_) => drop(sys::map_delete(map.as_fd(), &own).doing(|| "write map AGENTS")?),
            None => maps::clear::<u64, u64>(map.as_fd()).doing(|| "clear map AGENTS")?,
        }
        if let Some(cgroup) = &predecessor {
            sys::map_update(map.as_fd(), cgroup, &monotonic_ns()).doing(|| "write map AGENTS")?;
        }
        Ok(Self { map, own, predecessor })
    }

    /// The predecessor has ended. True if that changes anything.
    pub(crate) fn forget_predecessor(&mut self) -> Result<bool, KernelError> {
        let Some(cgroup) = self.predecessor.take() else { return Ok(false) };
        sys::map_delete(self.map.as_fd(), &cgroup).doing(|| "write map AGENTS")
    }

    /// Whether there is any besides this one.
    pub(crate) fn has_others(&self) -> Result<bool, KernelError> {
        Ok(!self.others()?.is_empty())
    }

    /// All of them.
    pub(crate) fn all(&self) -> Result<HashSet<u64>, KernelError> {
        Ok(self.others()?.into_iter().chain([self.own]).collect())
    }

    fn others(&self) -> Result<Vec<u64>, KernelError> {
        let others = entries::<u64, u64>(self.map.as_fd()).doing(|| "read map AGENTS")?;
        Ok(others.map(|(cgroup, _)| cgroup).collect())
    }
}
