//! How an agent begins with the data path, alone or in place of another one, and how it gives it away.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use weft_core::resource::NamespacedName;
use weft_ebpf_common::classify::tuple_fresh;
use weft_ebpf_common::{ABI_MAJOR, ABI_MINOR, Meta, TUPLE_LIFETIME_NS, Tuple, meta_flags};

use super::{Datapath, DatapathConfig, open_map, program_names};
use crate::agents::Agents;
use crate::bpffs;
use crate::cgroup::{self, Placement};
use crate::counters::Counters;
use crate::error::{Doing, KernelError};
use crate::flows::Flows;
use crate::handles::{Directory, OnwardTuples, Tuples};
use crate::inheritance::{Inheritance, Inherited, Listeners};
use crate::load::{self, Loader};
use crate::lock::PinLock;
use crate::maps::entries;
use crate::netns::Netns;
use crate::pins::{Pins, PodPins};
use crate::probe::probe_kernel;
use crate::processes::ProcessTable;
use crate::sys::{self, monotonic_ns};
use crate::tables::Tables;
use crate::view::Ids;
use crate::watch::NamespaceChanges;

impl Datapath {
    /// Probes the kernel, mounts bpffs if needed, takes over a pinned state of the same schema or starts
    /// afresh, loads and attaches the programs. Moves this process into [`DatapathConfig::agent_cgroup`].
    ///
    /// Until the first [`apply`](Self::apply), no flow is direct and pods of an earlier agent are served by
    /// what that agent wrote.
    ///
    /// # Errors
    /// Something is missing in the kernel, or the pins belong to another agent or another version.
    pub fn open(config: DatapathConfig) -> Result<Self, KernelError> {
        Self::inherit(config, Inheritance::default())
    }

    /// The same with what another agent hands over. One that shares its lock has stopped to change anything and goes
    /// on to serve connections, until [`predecessor_ended`](Self::predecessor_ended) is called: its own connections
    /// are not captured, and what it announces counts.
    ///
    /// # Errors
    /// As [`open`](Self::open); or the other agent has its pins elsewhere.
    pub fn inherit(config: DatapathConfig, inheritance: Inheritance) -> Result<Self, KernelError> {
        let capabilities = probe_kernel(&config)?;
        bpffs::prepare(&config.pin_dir, config.mount_bpffs)?;
        let has_predecessor = inheritance.lock.is_some();
        let lock = match inheritance.lock {
            Some(lock) => PinLock::shared(lock, &config.pin_dir)?,
            None => PinLock::take(&config.pin_dir)?,
        };
        let pins = Pins::new(&config.pin_dir);
        pins.refuse_newer()?;
        pins.create()?;
        pins.check_maps()?;
        let agent_cgroup = cgroup::join(&config.agent_cgroup)?;

        let mut loader = Loader::new(&pins);
        let mut node = loader.node()?;
        let (tables, ids) = begin_anew(&pins)?;
        let meta_map = open_map(&pins, "META")?;
        let agents = agents(&pins, &meta_map, agent_cgroup, has_predecessor)?;
        load::attach_node(&mut node, &pins, &config.cgroup, config.probe_cgroup.as_deref())?;

        let onward = open_map(&pins, "ONWARD")?;
        forget_announced(&onward, has_predecessor).doing(|| "clear map ONWARD")?;
        let directory = Directory::default();
        let mut datapath = Self {
            loader,
            capabilities,
            own: Netns::current().doing(|| "open the agent's network namespace")?,
            placement: Placement::new(&config.cgroup, &config.agent_cgroup, ProcessTable::new(&config.proc))?,
            enrolled: HashMap::new(),
            ids,
            tables,
            flows: Flows::open(&pins.map("FLOWS"), &pins.map("AGGREGATES"))?,
            counters: Counters::open(&pins.map("COUNTERS"))?,
            meta: meta(agent_cgroup),
            meta_map,
            agents,
            captures: open_map(&pins, "CAPTURES")?,
            onward: OnwardTuples::new(onward),
            tuples: Tuples::new(open_map(&pins, "DIRECT")?, directory.clone()),
            directory,
            programs: program_names(config.probe_cgroup.is_some()),
            leftovers: pins.pods().into_iter().chain(pins.older().iter().flat_map(Pins::pods)).collect(),
            has_older: !pins.older().is_empty(),
            inherited: Inherited::new(inheritance.listeners),
            // Policy may have changed while there was no agent.
            sweep_due_ns: Some(monotonic_ns() + TUPLE_LIFETIME_NS),
            events_taken: false,
            changes: NamespaceChanges::new().doing(|| "watch for changes in network namespaces")?,
            pins,
            config,
            lock: Some(lock),
        };
        let has_others = datapath.agents.has_others()?;
        datapath.set_flag(meta_flags::PREDECESSORS, has_others);
        datapath.heartbeat()?;
        datapath.remove_gone_leftovers()?;
        Ok(datapath)
    }

    /// The agent that handed over has ended.
    ///
    /// # Errors
    /// A map could not be written.
    pub fn predecessor_ended(&mut self) -> Result<(), KernelError> {
        if self.agents.forget_predecessor()? {
            let has_others = self.agents.has_others()?;
            self.set_flag(meta_flags::PREDECESSORS, has_others);
            self.heartbeat()?;
        }
        Ok(())
    }

    /// The lock of the pins, for the agent that takes over. Nothing may be changed from then on, until that agent
    /// has either taken over ([`retire`](Self::retire)) or failed ([`resume`](Self::resume)).
    ///
    /// # Errors
    /// No descriptor is left, or this agent has been replaced already.
    pub fn share_lock(&self) -> io::Result<OwnedFd> {
        match &self.lock {
            Some(lock) => lock.share(),
            None => Err(io::Error::other("another agent has taken over")),
        }
    }

    /// Another agent has taken over: the lock is its own. What is read from now on is of no consequence.
    pub fn retire(&mut self) {
        self.lock = None;
    }

    /// Whether another agent has taken over.
    pub fn is_retired(&self) -> bool {
        self.lock.is_none()
    }

    /// Takes up its work again after the agent that was to take over has failed, whatever that one has changed.
    /// [`apply`](Self::apply) is to follow. `listeners` are those of the enrolled pods.
    ///
    /// # Errors
    /// The pins have become those of a newer version, or something could not be written: this agent cannot go on.
    pub fn resume(&mut self, listeners: &[(NamespacedName, Listeners)]) -> Result<(), KernelError> {
        self.pins.refuse_newer()?;
        let mut node = self.loader.node()?;
        (self.tables, self.ids) = begin_anew(&self.pins)?;
        load::attach_node(&mut node, &self.pins, &self.config.cgroup, self.config.probe_cgroup.as_deref())?;
        for (pod, listeners) in listeners {
            if let Some(enrolled) = self.enrolled.get_mut(pod) {
                enrolled.resume(listeners, self.captures.as_fd())?;
            }
        }
        let is_ours = |cookie| self.enrolled.values().any(|pod| pod.cookie() == cookie);
        self.leftovers = self.pins.pods().into_iter().filter(|pins| !is_ours(pins.cookie)).collect();
        self.flows.begin_anew(|_| true).doing(|| "read map FLOWS")?;
        self.sweep_due_ns = Some(monotonic_ns() + TUPLE_LIFETIME_NS);
        self.heartbeat()
    }

    /// Takes effect with the next heartbeat.
    pub(super) fn set_flag(&mut self, flag: u32, on: bool) {
        self.meta.flags = if on { self.meta.flags | flag } else { self.meta.flags & !flag };
    }
}

/// What the maps hold, without permissions, and numbers that nothing has.
fn begin_anew(pins: &Pins) -> Result<(Tables, Ids), KernelError> {
    let mut tables = Tables::open(pins)?;
    tables.policy.retain(|_| false)?;
    let ids = Ids::after(tables.highest_id(pins)?);
    Ok((tables, ids))
}

fn agents(pins: &Pins, meta: &OwnedFd, own: u64, has_predecessor: bool) -> Result<Agents, KernelError> {
    let before: Option<Meta> = sys::map_lookup(meta.as_fd(), &0_u32).doing(|| "read map META")?;
    let before = before.filter(|_| has_predecessor).map(|meta| meta.agent_cgroup);
    Agents::new(open_map(pins, "AGENTS")?, own, before)
}

/// Takes back what an agent that crashed had announced: nobody else would ever do that. An agent that goes on to
/// serve takes back its own.
fn forget_announced(onward: &OwnedFd, has_predecessor: bool) -> io::Result<()> {
    let now = monotonic_ns();
    for (tuple, at) in entries::<Tuple, u64>(onward.as_fd())? {
        if !has_predecessor || !tuple_fresh(now, at) {
            sys::map_delete(onward.as_fd(), &tuple)?;
        }
    }
    Ok(())
}

fn meta(agent_cgroup: u64) -> Meta {
    Meta { abi_major: ABI_MAJOR, abi_minor: ABI_MINOR, heartbeat_ns: 0, agent_cgroup, flags: 0, reserved: 0 }
}

/// Programs and maps of older schemata, and what they have of pods that are enrolled: ours say by now what they said.
/// Their other pods follow one by one.
pub(super) fn remove_older(pins: &Pins, enrolled: &HashMap<u64, NamespacedName>) -> Result<(), KernelError> {
    for older in pins.older() {
        let is_enrolled = |pod: &PodPins| enrolled.get(&pod.cookie) == Some(&pod.pod);
        for pod in older.pods().into_iter().filter(is_enrolled) {
            pod.remove().doing(|| format!("unpin the old program of pod {}", pod.pod))?;
        }
        older.remove_links().doing(|| "detach the programs of an older version")?;
        older.remove_maps().doing(|| "unpin the maps of an older version")?;
    }
    Ok(())
}
