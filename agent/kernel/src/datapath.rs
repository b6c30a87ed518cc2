//! The kernel's half of the data path, as the agent sees it.

mod direct;
mod opening;

use std::collections::HashMap;
use std::net::{IpAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use weft_core::kernel_view::KernelView;
use weft_core::resource::NamespacedName;
use weft_ebpf_common::{Meta, Tuple, capacity, meta_flags};

use self::direct::{by_cookie, live_bytes};
use crate::Netns;
use crate::admit::admit;
use crate::agents::Agents;
use crate::cgroup::Placement;
use crate::cleanup::{self, CleanupReport};
use crate::counters::Counters;
use crate::enrol::{EnrolledPod, set_up};
use crate::error::{Doing, EnrolError, KernelError};
use crate::flows::{FlowEvents, FlowRecord, Flows};
use crate::handles::{Directory, OnwardTuples, Tuples};
use crate::inheritance::Inherited;
use crate::load::{self, Loader};
use crate::lock::PinLock;
use crate::maps::{self, Changes};
use crate::others::{self, EarlierProgram};
use crate::pins::{Pins, PodPins};
use crate::probe::Capabilities;
use crate::processes::ProcessTable;
use crate::sys::{self, monotonic_ns};
use crate::tables::Tables;
use crate::view::{Desired, Ids, Place, Steering};
use crate::watch::NamespaceChanges;

pub use crate::counters::CounterValue;

/// Where the data path lives.
#[derive(Debug, Clone)]
pub struct DatapathConfig {
    /// cgroup2 directory under which the pods' processes run (`kubepods`, or the root of cgroup2).
    pub cgroup: PathBuf,
    /// cgroup2 directory of the kubelet, whose probes reach applications without the proxy (ruling 7).
    pub probe_cgroup: Option<PathBuf>,
    /// cgroup2 directory of the agent alone, created if missing; [`Datapath::open`] moves this process into
    /// it. Connections of its processes are never captured (ruling 6).
    pub agent_cgroup: PathBuf,
    /// Directory on bpffs for links and maps.
    pub pin_dir: PathBuf,
    /// Whether bpffs is mounted there when it is not one. In a container it would go with that.
    pub mount_bpffs: bool,
    /// Where the machine's procfs is mounted.
    pub proc: PathBuf,
}

/// A pod that is to be enrolled.
#[derive(Debug, Clone)]
pub struct PodToEnrol {
    /// Namespace and name.
    pub key: NamespacedName,
    /// Its network namespace.
    pub netns: PathBuf,
    /// `status.podIPs`, or what the network plugin said; the namespace must hold each of them.
    pub ips: Vec<IpAddr>,
}

/// A pod whose network namespace is set up. Not steered to user space before `apply` has told the maps.
#[derive(Debug)]
pub struct Enrolled {
    /// The namespace.
    pub netns: Arc<Netns>,
    /// The addresses with which it was enrolled.
    pub ips: Vec<IpAddr>,
    /// Non-blocking listeners that receive inbound connections of any port (IPv4, IPv6); the accepted
    /// socket's local address is the original destination. Without the second where the namespace has no IPv6.
    pub inbound: Vec<TcpListener>,
    /// The same for captured outbound connections.
    pub outbound: Vec<TcpListener>,
}

/// What one `apply` changed.
#[derive(Debug, Clone, Default)]
pub struct Applied {
    /// Map entries written.
    pub written: usize,
    /// Map entries removed.
    pub removed: usize,
    /// Established direct flows that are not permitted as direct any more: the caller decides (by asking
    /// `core`) which of them are denied, and [`Datapath::cut`]s those. Filled when this `apply` took
    /// permissions back; see [`Datapath::sweep`] for flows that were on their way.
    pub revoked: Vec<FlowRecord>,
    /// Entries that did not fit; their flows go through the proxy.
    pub overflow: usize,
}

/// How a cut went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// The flow is gone.
    Done,
    /// It had gone already.
    AlreadyGone,
}

/// How full a map is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapUse {
    /// Name of the map.
    pub name: String,
    /// Entries in use, where that can be counted.
    pub entries: usize,
    /// Capacity.
    pub max_entries: usize,
}

/// The loaded data path. One owner (the agent's node task); not used on the path of a connection.
#[derive(Debug)]
pub struct Datapath {
    pins: Pins,
    loader: Loader,
    capabilities: Capabilities,
    own: Netns,
    placement: Placement,
    config: DatapathConfig,
    enrolled: HashMap<NamespacedName, EnrolledPod>,
    directory: Directory,
    ids: Ids,
    tables: Tables,
    flows: Flows,
    counters: Counters,
    meta: Meta,
    meta_map: OwnedFd,
    agents: Agents,
    captures: OwnedFd,
    onward: OnwardTuples,
    tuples: Tuples,
    programs: Vec<String>,
    /// What an earlier agent enrolled, minus what this one has enrolled or removed since.
    leftovers: Vec<PodPins>,
    /// Programs of an older schema are still attached: they capture and steer what ours do not know before the first
    /// `apply`.
    has_older: bool,
    /// Listening sockets of an earlier agent whose pods are not enrolled yet.
    inherited: Inherited,
    /// When flows that were on their way during the last revocation are established or gone.
    sweep_due_ns: Option<u64>,
    events_taken: bool,
    changes: NamespaceChanges,
    /// Last, so that the lock outlives everything that uses the pins. `None` when another agent has taken over.
    lock: Option<PinLock>,
}

impl Datapath {
    /// Sets a pod's namespace up: listeners, policy rule and route per family, sysctls, `steer` link.
    ///
    /// A pod of an earlier agent keeps its steering while the programs and listeners change. A failure leaves
    /// nothing behind (of a pod that is taken over: what the earlier agent left).
    ///
    /// # Errors
    /// [`EnrolError::Refused`] when the pod must not be enrolled as it is, or is gone.
    pub fn enrol(&mut self, pod: &PodToEnrol) -> Result<Enrolled, EnrolError> {
        if self.enrolled.contains_key(&pod.key) {
            return Err(EnrolError::Refused(format!("pod {} is enrolled already", pod.key)));
        }
        let (candidate, routes) = admit(pod, &self.own, &self.enrolled, &self.placement, &self.pins)?;
        let inherited = self.inherited.take(candidate.netns.cookie());
        let (mut enrolled, listeners) =
            set_up(candidate, routes, &mut self.loader, self.captures.as_fd(), inherited)?;
        match enrolled.netns.run(|| self.changes.watch_here()).flatten() {
            Ok(watch) => enrolled.watch = Some(watch),
            Err(error) => {
                tracing::warn!(pod = %pod.key, %error, "its rules are looked at from time to time only")
            }
        }
        let cookie = enrolled.cookie();
        self.remove_namesakes(&pod.key, cookie)?;
        let netns = Arc::clone(&enrolled.netns);
        self.directory.insert(cookie, pod.key.clone());
        self.enrolled.insert(pod.key.clone(), enrolled);
        let by_cookie = by_cookie(&self.enrolled);
        let live = |source| by_cookie.get(&source).map(|pod| live_bytes(pod)).unwrap_or_default();
        self.flows.claim(|cookie| by_cookie.contains_key(&cookie), live);
        Ok(Enrolled { netns, ips: pod.ips.clone(), inbound: listeners.inbound, outbound: listeners.outbound })
    }

    /// Takes everything out of a pod's namespace again. Succeeds when the namespace is gone already, and for a
    /// pod that an earlier agent left (see [`leftovers`](Self::leftovers)).
    ///
    /// Captured connections that are open lose their route with this: the caller waits for their end first.
    ///
    /// # Errors
    /// Something could not be removed; the text says what.
    pub fn unenrol(&mut self, pod: &NamespacedName) -> Result<(), KernelError> {
        for leftover in self.leftovers.extract_if(.., |pins| pins.pod == *pod).collect::<Vec<_>>() {
            self.remove_leftover(&leftover)?;
        }
        let Some(enrolled) = self.enrolled.remove(pod) else { return Ok(()) };
        self.directory.remove(enrolled.cookie());
        // Permissions, then marking, then steering: nothing is sent where nobody accepts it.
        self.tables.forget_pod(enrolled.cookie())?;
        enrolled.take_down()
    }

    /// Ends this agent's hold on a pod whose addresses or namespace changed, and keeps its capture: the pod is
    /// as one of an earlier agent ([`leftovers`](Self::leftovers)) until it is enrolled anew or un-enrolled.
    /// When the new enrolment fails, it stays closed where a missing agent means that.
    pub fn hand_over(&mut self, pod: &NamespacedName) {
        if let Some(enrolled) = self.enrolled.remove(pod) {
            let cookie = enrolled.cookie();
            self.directory.remove(cookie);
            self.leftovers.push(enrolled.pins);
            if let Err(error) = self.flows.begin_anew(|other| other == cookie) {
                tracing::warn!(%pod, %error, "cannot read map FLOWS: bytes of open flows may count twice");
            }
        }
    }

    /// Enrolled pods whose network namespace has lost its path or its last device (the pod is gone).
    pub fn vanished(&self) -> Vec<NamespacedName> {
        let table = self.placement.table();
        let gone = self.enrolled.values().filter(|pod| !pod.is_alive(table));
        gone.map(|pod| pod.key.clone()).collect()
    }

    /// Pods that an earlier agent enrolled and this one has not: they are steered by what that agent wrote.
    /// The caller [`enrol`](Self::enrol)s those that are still in the mesh and [`unenrol`](Self::unenrol)s the
    /// others.
    pub fn leftovers(&self) -> Vec<NamespacedName> {
        self.leftovers.iter().map(|pins| pins.pod.clone()).collect()
    }

    /// Pods whose namespace went while there was no agent.
    fn remove_gone_leftovers(&mut self) -> Result<(), KernelError> {
        let is_gone = |pins: &mut PodPins| cleanup::linked_namespace(pins).is_none();
        for leftover in self.leftovers.extract_if(.., is_gone).collect::<Vec<_>>() {
            tracing::info!(pod = %leftover.pod, "unpinning a pod that has gone");
            self.remove_leftover(&leftover)?;
        }
        Ok(())
    }

    /// After an enrolment: what was left of the pod is taken over, and what was left of an earlier pod of the
    /// same name has no other owner.
    fn remove_namesakes(&mut self, pod: &NamespacedName, cookie: u64) -> Result<(), KernelError> {
        for leftover in self.leftovers.extract_if(.., |pins| pins.pod == *pod).collect::<Vec<_>>() {
            if leftover.cookie != cookie {
                self.remove_leftover(&leftover)?;
            }
        }
        Ok(())
    }

    fn remove_leftover(&mut self, leftover: &PodPins) -> Result<(), KernelError> {
        self.tables.forget_pod(leftover.cookie)?;
        drop(self.inherited.take(leftover.cookie));
        let report = cleanup::remove_leftover(&self.pins.holding(leftover), leftover);
        match report.failures.into_iter().next() {
            Some(failure) => Err(std::io::Error::other(failure))
                .doing(|| format!("remove what an earlier agent left of pod {}", leftover.pod)),
            None => Ok(()),
        }
    }

    /// Tells when [`reassert`](Self::reassert) may have something to do: rules, routes or addresses of an enrolled
    /// pod's namespace changed. Sysctls are not reported.
    pub fn changes(&self) -> NamespaceChanges {
        self.changes.clone()
    }

    /// Puts rules, routes and sysctls back that something removed from pods' namespaces (ruling 11), and
    /// follows changes of their addresses. Returns the pods in which something was missing. About 50 µs per
    /// pod.
    pub fn reassert(&mut self) -> Vec<NamespacedName> {
        let mut repaired = Vec::new();
        for (key, pod) in &mut self.enrolled {
            match pod.reassert() {
                Ok(true) => repaired.push(key.clone()),
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(pod = %key, %error, "cannot check the rules of a pod's namespace")
                }
            }
        }
        self.counters.reasserted += repaired.len() as u64;
        repaired
    }

    /// Makes the maps say what the view says: revocations first, then pods, then permissions.
    ///
    /// Pods of the view that are not enrolled are ignored; enrolled pods that it lacks are left alone, and pods
    /// that were handed over or are of an earlier agent ([`leftovers`](Self::leftovers)) stay captured by the rules which that agent wrote.
    ///
    /// # Errors
    /// A map could not be written. What is full is counted instead.
    pub fn apply(&mut self, view: &KernelView) -> Result<Applied, KernelError> {
        let places = self.enrolled.iter().map(|(key, pod)| (key.clone(), place(pod))).collect();
        let mut desired = Desired::new(view, &places, &mut self.ids, self.capabilities.can_cut);
        self.tables.keep(|cookie| self.leftovers.iter().any(|pins| pins.cookie == cookie), &mut desired);
        let mut changes = self.tables.policy.retain(|key| desired.policy.contains_key(key))?;
        let takes_back =
            changes.removed > 0 || self.tables.pods.iter().any(|(id, _)| !desired.pods.contains_key(id));
        changes += self.tables.set(&mut desired)?;
        changes += self.set_steering(&desired)?;
        changes += self.tables.policy.write(&desired.policy)?;
        let revoked = if takes_back { self.take_back()? } else { Vec::new() };
        if self.has_older {
            let enrolled = self.enrolled.values().map(|pod| (pod.cookie(), pod.key.clone())).collect();
            opening::remove_older(&self.pins, &enrolled)?;
            self.has_older = false;
        }
        let Changes { written, removed, overflow } = changes;
        Ok(Applied { written, removed, revoked, overflow })
    }

    fn set_steering(&mut self, desired: &Desired) -> Result<Changes, KernelError> {
        let mut changes = Changes::default();
        for pod in self.enrolled.values_mut() {
            let steering = desired.steering.get(&pod.cookie()).copied().unwrap_or(Steering::IDLE);
            changes.written += usize::from(pod.steer(steering)?);
        }
        Ok(changes)
    }

    /// Signs of life: call at least every 10 s.
    ///
    /// # Errors
    /// The map could not be written.
    pub fn heartbeat(&mut self) -> Result<(), KernelError> {
        self.loader.flush_debug_log();
        self.meta.heartbeat_ns = monotonic_ns();
        sys::map_update(self.meta_map.as_fd(), &0_u32, &self.meta).doing(|| "write map META")
    }

    /// Handle for the proxy's onward connections.
    pub fn onward(&self) -> OnwardTuples {
        self.onward.clone()
    }

    /// Handle for the proxy's inbound side.
    pub fn tuples(&self) -> Tuples {
        self.tuples.clone()
    }

    /// Whether an event tells of every direct flow (for the access log). Off at first.
    ///
    /// # Errors
    /// The map could not be written.
    pub fn set_flow_events(&mut self, on: bool) -> Result<(), KernelError> {
        if (self.meta.flags & meta_flags::FLOW_EVENTS != 0) == on {
            return Ok(());
        }
        self.set_flag(meta_flags::FLOW_EVENTS, on);
        self.heartbeat()
    }

    /// The reader of flow events, once. There is nothing to read while [`Self::set_flow_events`] says so.
    ///
    /// # Errors
    /// The ring buffer could not be mapped.
    pub fn take_events(&mut self) -> Result<Option<FlowEvents>, KernelError> {
        if self.events_taken {
            return Ok(None);
        }
        self.events_taken = true;
        FlowEvents::open(&self.pins.map("EVENTS"), self.directory.clone()).map(Some)
    }

    /// Reason counters.
    pub fn counters(&self) -> Vec<CounterValue> {
        self.counters.read()
    }

    /// How full the maps are.
    pub fn maps(&self) -> Vec<MapUse> {
        let flows = self.flows.established().map_or(0, |flows| flows.len());
        self.tables.usage(flows)
    }

    /// How full the maps of announced connections are. Their entries are counted one by one, with a system call
    /// for each (65,536 at most): for people, not for metrics. Of one that cannot be read nothing is said.
    pub fn tuple_maps(&self) -> Vec<MapUse> {
        let probes = open_map(&self.pins, "PROBES").ok();
        let probes = probes.and_then(|map| maps::count::<Tuple>(map.as_fd()).ok());
        let counts = [
            ("ONWARD", self.onward.count().ok(), capacity::ONWARD),
            ("DIRECT", self.tuples.count().ok(), capacity::DIRECT),
            ("PROBES", probes, capacity::PROBES),
        ];
        let known = counts.into_iter().filter_map(|(name, entries, max)| {
            Some(MapUse { name: name.to_owned(), entries: entries?, max_entries: max as usize })
        });
        known.collect()
    }

    /// Names of the attached programs.
    pub fn programs(&self) -> Vec<String> {
        let mut names = self.programs.clone();
        names.extend(self.enrolled.keys().map(|pod| format!("{} {pod}", load::STEER_PROGRAM)));
        names.sort();
        names
    }

    /// Programs of others that see the connections of pods before ours do.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn earlier_programs(&self) -> std::io::Result<Vec<EarlierProgram>> {
        others::earlier(&self.pins, &self.config.cgroup)
    }

    /// The processes of this machine, as enrolment sees them.
    pub fn processes(&self) -> ProcessTable {
        self.placement.table().clone()
    }

    /// Follows the kubelet into another cgroup (a service that is restarted gets a new one). Costs some milliseconds.
    ///
    /// # Errors
    /// It is no cgroup2, or the program cannot be attached.
    pub fn set_probe_cgroup(&mut self, cgroup: Option<&Path>) -> Result<(), KernelError> {
        let mut node = self.loader.node()?;
        load::attach_probe(&mut node, &self.pins, cgroup)?;
        self.config.probe_cgroup = cgroup.map(Path::to_owned);
        self.programs = program_names(cgroup.is_some());
        Ok(())
    }

    /// Takes everything out of all namespaces and unpins everything: nothing is captured any more.
    pub fn remove_everything(&mut self) -> CleanupReport {
        let mut report = CleanupReport::default();
        let pods: Vec<_> = self.enrolled.keys().cloned().chain(self.leftovers()).collect();
        for pod in pods {
            match self.unenrol(&pod) {
                Ok(()) => report.namespaces += 1,
                Err(error) => report.failures.push(crate::error::chain(&error)),
            }
        }
        cleanup::remove_pins(&self.config, None, &mut report);
        cleanup::remove_base(&self.config.pin_dir);
        report
    }

    /// Removes everything that any agent with this configuration left: works without a running agent.
    ///
    /// # Errors
    /// An agent is running. What cannot be removed is in the report.
    pub fn cleanup(
        config: &DatapathConfig,
        pod: Option<&NamespacedName>,
    ) -> Result<CleanupReport, KernelError> {
        cleanup::clean_up(config, pod)
    }
}

fn place(pod: &EnrolledPod) -> Place {
    Place { cookie: pod.cookie(), ips: pod.ips.clone() }
}

fn open_map(pins: &Pins, name: &str) -> Result<OwnedFd, KernelError> {
    let path: &Path = &pins.map(name);
    sys::obj_get(path).doing(|| format!("open the pinned map {}", path.display()))
}

fn program_names(probe: bool) -> Vec<String> {
    let probe = probe.then_some(load::PROBE_PROGRAM);
    load::CGROUP_PROGRAMS.into_iter().chain(probe).map(str::to_owned).collect()
}

/// The owner moves it between threads; the reader of events lives on another one.
const fn assert_send<T: Send>() {}
const _: () = {
    assert_send::<Datapath>();
    assert_send::<FlowEvents>();
    assert_send::<OnwardTuples>();
    assert_send::<Tuples>();
};
