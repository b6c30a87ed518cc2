//! Which namespaces may be enrolled at all.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::sync::Arc;

use weft_core::resource::NamespacedName;

use crate::Netns;
use crate::cgroup::{Misplaced, Placement};
use crate::datapath::PodToEnrol;
use crate::enrol::{Candidate, EnrolledPod, inode};
use crate::error::{Doing, EnrolError};
use crate::others;
use crate::pins::{Pins, PodPins};
use crate::route::{IpFamily, Routes};

/// Checks a pod's namespace, its addresses and its processes.
pub(crate) fn admit(
    pod: &PodToEnrol,
    own: &Netns,
    enrolled: &HashMap<NamespacedName, EnrolledPod>,
    placement: &Placement,
    pins: &Pins,
) -> Result<(Candidate, Routes), EnrolError> {
    let netns = open(pod)?;
    refuse_host(pod, &netns, own, placement)?;
    refuse_other_pods(pod, &netns, enrolled)?;
    let mut routes = netns
        .run(Routes::open)
        .and_then(|result| result)
        .doing(|| format!("open netlink in the network namespace of pod {}", pod.key))?;
    let addresses = routes.addresses().doing(|| format!("list the addresses of pod {}", pod.key))?;
    let missing: Vec<&IpAddr> = pod.ips.iter().filter(|ip| !addresses.contains(ip)).collect();
    if pod.ips.is_empty() || !missing.is_empty() {
        return Err(lacks_addresses(pod, &missing));
    }
    let misplaced = placement.misplaced(netns.inode()).doing(|| "list the processes of the pods")?;
    misplaced.map_or(Ok(()), |misplaced| Err(refuse_misplaced(pod, misplaced)))?;
    let pins_of_pod = pins.pod(&pod.key, netns.cookie());
    refuse_steered(pod, &netns, &mut routes, (pins, &pins_of_pod))?;
    let candidate = Candidate {
        key: pod.key.clone(),
        path: pod.netns.clone(),
        ips: pod.ips.clone(),
        addresses,
        pins: pins_of_pod,
        netns: Arc::new(netns),
    };
    Ok((candidate, routes))
}

fn refused(pod: &PodToEnrol, reason: &str) -> EnrolError {
    EnrolError::Refused(format!("pod {} with network namespace {}: {reason}", pod.key, pod.netns.display()))
}

fn open(pod: &PodToEnrol) -> Result<Netns, EnrolError> {
    Netns::open(&pod.netns).map_err(|error| match error.kind() {
        ErrorKind::NotFound => not_yet(pod, "the namespace is gone"),
        ErrorKind::InvalidInput => refused(pod, "the file is not a network namespace"),
        _ => refused(pod, &format!("the namespace cannot be opened: {error}")),
    })
}

fn not_yet(pod: &PodToEnrol, reason: &str) -> EnrolError {
    EnrolError::NotYet(format!("pod {} with network namespace {}: {reason}", pod.key, pod.netns.display()))
}

fn refuse_host(
    pod: &PodToEnrol,
    netns: &Netns,
    own: &Netns,
    placement: &Placement,
) -> Result<(), EnrolError> {
    if netns.cookie() == own.cookie() {
        return Err(refused(pod, "it is the agent's own namespace"));
    }
    // Unreadable where the agent has no access to the host's processes; the agent's own is the host's then.
    if inode(&placement.table().host_netns()).is_ok_and(|host| host == netns.inode()) {
        return Err(refused(pod, "it is the host's namespace (hostNetwork pods are not enrolled)"));
    }
    Ok(())
}

fn refuse_other_pods(
    pod: &PodToEnrol,
    netns: &Netns,
    enrolled: &HashMap<NamespacedName, EnrolledPod>,
) -> Result<(), EnrolError> {
    match enrolled.values().find(|other| other.cookie() == netns.cookie()) {
        Some(other) => Err(refused(pod, &format!("it is already enrolled for pod {}", other.key))),
        None => Ok(()),
    }
}

/// Of two agents each would steer the onward connections of the other.
fn refuse_steered(
    pod: &PodToEnrol,
    netns: &Netns,
    routes: &mut Routes,
    (pins, pins_of_pod): (&Pins, &PodPins),
) -> Result<(), EnrolError> {
    let has_rules = || IpFamily::ALL.into_iter().any(|family| routes.present(family).unwrap_or(false));
    let steered = others::steered_by_another(netns, pins, pins_of_pod, has_rules).unwrap_or_else(|error| {
        tracing::warn!(pod = %pod.key, %error, "cannot find out whether another agent steers its connections");
        false
    });
    if steered {
        return Err(refused(
            pod,
            "an agent with another --pin-dir steers its connections: stop that one and run `weft cleanup` with its \
             --pin-dir",
        ));
    }
    Ok(())
}

fn lacks_addresses(pod: &PodToEnrol, missing: &[&IpAddr]) -> EnrolError {
    if pod.ips.is_empty() {
        return refused(pod, "status.podIPs is empty");
    }
    let missing: Vec<_> = missing.iter().map(ToString::to_string).collect();
    not_yet(pod, &format!("the namespace does not have {} of status.podIPs", missing.join(", ")))
}

fn refuse_misplaced(pod: &PodToEnrol, misplaced: Misplaced) -> EnrolError {
    match misplaced {
        Misplaced::WithAgent(pid) => refused(
            pod,
            &format!("process {pid} is in the agent's cgroup, whose connections are not captured: move it"),
        ),
        // Plugins of the network and runtimes may be in it for a moment.
        Misplaced::Outside(pid, cgroup) => not_yet(
            pod,
            &format!(
                "process {pid} is in cgroup {cgroup}, outside the directory given with --cgroup, so its \
                 connections would not be captured: move it, or give a directory that contains it"
            ),
        ),
    }
}
