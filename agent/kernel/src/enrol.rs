//! One pod's network namespace: listeners, rule and route, sysctls, `steer`.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aya::Ebpf;
use socket2::{Domain, Protocol, Socket, Type};
use weft_core::resource::NamespacedName;
use weft_ebpf_common::{MAX_OWN_ADDRS, SteerConfig, listener_slot};

use crate::Netns;
use crate::error::{Doing, KernelError};
use crate::inheritance::Listeners;
use crate::load::{self, Loader};
use crate::maps::addr;
use crate::pins::PodPins;
use crate::processes::ProcessTable;
use crate::route::{IpFamily, Routes};
use crate::sys;
use crate::sysctl;
use crate::view::Steering;
use crate::watch::Watch;

/// Length of the accept queue, as the kernel limits it by default (`net.core.somaxconn`).
const BACKLOG: i32 = 4096;

/// An enrolled pod, as this agent keeps it.
#[derive(Debug)]
pub(crate) struct EnrolledPod {
    pub(crate) key: NamespacedName,
    pub(crate) path: PathBuf,
    pub(crate) netns: Arc<Netns>,
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) pins: PodPins,
    /// Lives in the pod's namespace.
    routes: Mutex<Routes>,
    families: Vec<IpFamily>,
    steer: OwnedFd,
    config: SteerConfig,
    had_device: bool,
    /// Where the agent listens in it.
    listening: Vec<SocketAddr>,
    /// Reports changes of the namespace; without it they are found when the agent looks from time to time.
    pub(crate) watch: Option<Watch>,
}

/// A pod that passed all checks.
#[derive(Debug)]
pub(crate) struct Candidate {
    pub(crate) key: NamespacedName,
    pub(crate) path: PathBuf,
    pub(crate) netns: Arc<Netns>,
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) addresses: BTreeSet<IpAddr>,
    pub(crate) pins: PodPins,
}

/// Undoes a set-up that fails half-way, but nothing that an earlier agent did: its capture must not end because
/// ours cannot begin.
struct Undo<'a> {
    candidate: &'a Candidate,
    saved_sysctls: Option<u32>,
    armed: bool,
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        let pod = &self.candidate.key;
        if let Err(error) = self.candidate.pins.remove() {
            tracing::warn!(%pod, %error, "cannot unpin what a failed enrolment left");
        }
        let saved = self.saved_sysctls;
        let undone = self.candidate.netns.run(|| restore(saved, &IpFamily::ALL));
        if let Err(error) = undone.and_then(|result| result) {
            tracing::warn!(%pod, %error, "cannot take back the rules and routes of a failed enrolment");
        }
    }
}

/// Sets the namespace of a pod up. Nothing is steered yet when it was not before.
///
/// `routes` lives in the pod's namespace. Sockets that were inherited are used, and others made where they lack.
pub(crate) fn set_up(
    candidate: Candidate,
    mut routes: Routes,
    loader: &mut Loader,
    captures: BorrowedFd<'_>,
    inherited: Listeners,
) -> Result<(EnrolledPod, Listeners), KernelError> {
    let had_device = routes.has_device().doing(|| about(&candidate.key, "list the devices"))?;
    let taken_over = candidate.pins.exist();
    if taken_over {
        candidate.pins.check_maps()?;
    } else {
        // A directory without a link is what a crash in the middle of an enrolment leaves.
        candidate.pins.remove().doing(|| about(&candidate.key, "remove old pins"))?;
        candidate.pins.create().doing(|| about(&candidate.key, "create the pin directory"))?;
    }
    let mut undo = Undo { candidate: &candidate, saved_sysctls: None, armed: !taken_over };

    let mut ebpf = loader.steer(&candidate.pins)?;
    let steer = open_map(&candidate.pins, "STEER")?;
    let mut config = if taken_over { read_config(&steer, &candidate.key)? } else { idle(&candidate) };
    let (listeners, families) =
        inside(&candidate, || prepare(&mut routes, &candidate.ips, (&mut config, taken_over), inherited))?;
    undo.saved_sysctls = Some(config.saved_sysctls);
    set_addresses(&mut config, &candidate.ips, &candidate.addresses);
    write_config(&steer, &config, &candidate.key)?;
    fill_slots((&candidate.pins, candidate.netns.cookie()), &listeners, captures)?;
    attach(&mut ebpf, &candidate)?;

    undo.armed = false;
    drop(undo);
    let Candidate { key, path, netns, ips, pins, .. } = candidate;
    Ok((
        EnrolledPod {
            key,
            path,
            netns,
            ips,
            pins,
            routes: Mutex::new(routes),
            families,
            steer,
            config,
            had_device,
            listening: listeners.addresses(),
            watch: None,
        },
        listeners,
    ))
}

fn about(pod: &NamespacedName, what: &str) -> String {
    format!("{what} of pod {pod}")
}

fn inside<T>(candidate: &Candidate, work: impl FnOnce() -> io::Result<T>) -> Result<T, KernelError> {
    candidate
        .netns
        .run(work)
        .and_then(|result| result)
        .doing(|| about(&candidate.key, "set up the network namespace"))
}

fn open_map(pins: &PodPins, name: &str) -> Result<OwnedFd, KernelError> {
    sys::obj_get(&pins.map(name)).doing(|| about(&pins.pod, &format!("open map {name}")))
}

fn idle(candidate: &Candidate) -> SteerConfig {
    SteerConfig { cookie: candidate.netns.cookie(), flags: Steering::IDLE.flags, ..SteerConfig::default() }
}

fn read_config(steer: &OwnedFd, pod: &NamespacedName) -> Result<SteerConfig, KernelError> {
    let config = sys::map_lookup(steer.as_fd(), &0_u32).doing(|| about(pod, "read map STEER"))?;
    Ok(config.unwrap_or_default())
}

fn write_config(steer: &OwnedFd, config: &SteerConfig, pod: &NamespacedName) -> Result<(), KernelError> {
    sys::map_update(steer.as_fd(), &0_u32, config).doing(|| about(pod, "write map STEER"))
}

/// Inside the namespace: listeners, rules, routes and the sysctls, in both families where there are two.
fn prepare(
    routes: &mut Routes,
    ips: &[IpAddr],
    (config, taken_over): (&mut SteerConfig, bool),
    mut inherited: Listeners,
) -> io::Result<(Listeners, Vec<IpFamily>)> {
    let mut listeners = Listeners::default();
    let mut families = Vec::new();
    for family in IpFamily::ALL {
        let is_needed = family == IpFamily::V4 || ips.iter().any(|ip| IpFamily::of(*ip) == family);
        match prepare_family(routes, ips, family, (&mut inherited, &mut listeners)) {
            Ok(()) => families.push(family),
            // The namespace has no IPv6, then nothing can leave by it.
            Err(error) if !is_needed && is_unavailable(&error) => {}
            Err(error) => return Err(error),
        }
    }
    if !taken_over {
        config.saved_sysctls = sysctl::read()?;
    }
    sysctl::enable()?;
    Ok((listeners, families))
}

fn prepare_family(
    routes: &mut Routes,
    ips: &[IpAddr],
    family: IpFamily,
    (inherited, listeners): (&mut Listeners, &mut Listeners),
) -> io::Result<()> {
    let mut socket = |is_inbound| match inherited.take(family, is_inbound) {
        Some(socket) => Ok(socket),
        None => listen(family, !is_inbound),
    };
    let (inbound, outbound) = (socket(true)?, socket(false)?);
    let source = ips.iter().find(|ip| IpFamily::of(**ip) == family);
    routes.add(family, source.copied())?;
    listeners.inbound.push(inbound);
    listeners.outbound.push(outbound);
    Ok(())
}

fn is_unavailable(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL | libc::EOPNOTSUPP))
}

/// A listener on loopback, where nobody outside reaches it; `steer` assigns connections whatever the port.
fn listen(family: IpFamily, transparent: bool) -> io::Result<TcpListener> {
    let (domain, ip) = match family {
        IpFamily::V4 => (Domain::IPV4, IpAddr::from(Ipv4Addr::LOCALHOST)),
        IpFamily::V6 => (Domain::IPV6, IpAddr::from(Ipv6Addr::LOCALHOST)),
    };
    let socket = Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    match family {
        // Answers to captured connections have the original destination as their source.
        IpFamily::V4 => socket.set_ip_transparent_v4(transparent)?,
        IpFamily::V6 => {
            socket.set_only_v6(true)?;
            socket.set_ip_transparent_v6(transparent)?;
        }
    }
    socket.bind(&SocketAddr::new(ip, 0).into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Inside the namespace: takes rule and route out, restores the sysctls.
pub(crate) fn restore(saved_sysctls: Option<u32>, families: &[IpFamily]) -> io::Result<()> {
    let mut routes = Routes::open()?;
    for family in families {
        routes.remove(*family)?;
    }
    saved_sysctls.map_or(Ok(()), sysctl::restore)
}

/// The pod's own addresses first, then what else its namespace has.
fn set_addresses(config: &mut SteerConfig, ips: &[IpAddr], addresses: &BTreeSet<IpAddr>) {
    let others = addresses.iter().filter(|ip| !ips.contains(ip));
    let all: Vec<_> = ips.iter().chain(others).map(|ip| addr(*ip)).take(MAX_OWN_ADDRS).collect();
    config.addrs = [[0; 4]; MAX_OWN_ADDRS];
    for (place, addr) in config.addrs.iter_mut().zip(&all) {
        *place = *addr;
    }
    config.addr_count = all.len() as u32;
}

fn fill_slots(
    (pins, cookie): (&PodPins, u64),
    listeners: &Listeners,
    captures: BorrowedFd<'_>,
) -> Result<(), KernelError> {
    let map = open_map(pins, "LISTENERS")?;
    let inbound = listeners.inbound.iter().zip([listener_slot::INBOUND4, listener_slot::INBOUND6]);
    let outbound = listeners.outbound.iter().zip([listener_slot::OUTBOUND4, listener_slot::OUTBOUND6]);
    for (listener, slot) in inbound.chain(outbound) {
        let fd = listener.as_raw_fd() as u32;
        sys::map_update(map.as_fd(), &slot, &fd).doing(|| about(&pins.pod, "register the listeners"))?;
    }
    // The kernel takes it out again when it is closed.
    let fd = listeners.outbound.first().map_or(u32::MAX, |listener| listener.as_raw_fd() as u32);
    sys::map_update(captures, &cookie, &fd).doing(|| about(&pins.pod, "register the outbound listener"))
}

fn attach(ebpf: &mut Ebpf, candidate: &Candidate) -> Result<(), KernelError> {
    load::attach_steer(ebpf, &candidate.pins, candidate.netns.as_fd(), candidate.netns.inode())
}

impl EnrolledPod {
    pub(crate) fn cookie(&self) -> u64 {
        self.netns.cookie()
    }

    /// Tells `steer` what to do; true when that is something new.
    pub(crate) fn steer(&mut self, steering: Steering) -> Result<bool, KernelError> {
        if (self.config.set, self.config.flags) == (steering.set, steering.flags) {
            return Ok(false);
        }
        let config = SteerConfig { set: steering.set, flags: steering.flags, ..self.config };
        self.update(config).map(|()| true)
    }

    /// Whether a socket is one of the agent's own.
    pub(crate) fn listens_at(&self, address: &SocketAddr) -> bool {
        self.listening.contains(address)
    }

    /// Reads what a successor wrote that failed, and registers the listeners again.
    pub(crate) fn resume(
        &mut self,
        listeners: &Listeners,
        captures: BorrowedFd<'_>,
    ) -> Result<(), KernelError> {
        self.config = read_config(&self.steer, &self.key)?;
        fill_slots((&self.pins, self.netns.cookie()), listeners, captures)
    }

    fn routes(&self) -> MutexGuard<'_, Routes> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&mut self, config: SteerConfig) -> Result<(), KernelError> {
        write_config(&self.steer, &config, &self.key)?;
        self.config = config;
        Ok(())
    }

    /// Whether the path still leads to this namespace and the namespace still has a device. A path that is a process's
    /// ends with it: then any other process will do.
    pub(crate) fn is_alive(&self, table: &ProcessTable) -> bool {
        let same = inode(&self.path).is_ok_and(|inode| inode == self.netns.inode());
        let lives_on = || {
            let by_process = self.path.starts_with(table.proc());
            by_process && table.recent().is_ok_and(|all| !all.in_netns(self.netns.inode()).is_empty())
        };
        (same || lives_on()) && (!self.had_device || self.routes().has_device().unwrap_or(false))
    }

    /// Puts rule, route and sysctls back if something took them out, and follows changes of the addresses.
    /// True when something was missing.
    pub(crate) fn reassert(&mut self) -> io::Result<bool> {
        if let Some(watch) = &self.watch {
            watch.clear();
        }
        let addresses = self.routes().addresses()?;
        let mut config = self.config;
        set_addresses(&mut config, &self.ips, &addresses);
        if config != self.config {
            self.update(config).map_err(io::Error::other)?;
        }
        let mut repaired = false;
        for family in self.families.clone() {
            if !self.routes().present(family)? {
                let source = self.ips.iter().find(|ip| IpFamily::of(**ip) == family).copied();
                self.routes().add(family, source)?;
                repaired = true;
            }
        }
        if !self.netns.run(sysctl::enabled)?? {
            self.netns.run(sysctl::enable)??;
            repaired = true;
        }
        Ok(repaired)
    }

    /// Takes everything out of the namespace again. Unpinning comes first: it ends the capture even where the
    /// rest fails.
    pub(crate) fn take_down(mut self) -> Result<(), KernelError> {
        let unpinned = self.pins.remove().doing(|| about(&self.key, "unpin the objects"));
        let saved = self.config.saved_sysctls;
        let families = std::mem::take(&mut self.families);
        let restored = self.netns.run(|| restore(Some(saved), &families)).and_then(|result| result);
        unpinned?;
        restored.doing(|| about(&self.key, "restore the network namespace"))
    }
}

/// Inode of a namespace file.
pub(crate) fn inode(path: &Path) -> io::Result<u64> {
    Ok(std::os::unix::fs::MetadataExt::ino(&fs::metadata(path)?))
}
