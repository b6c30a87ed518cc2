//! Nothing is left of what a connection needs: refused, counted, and over as soon as there is enough again.

use std::net::SocketAddr;
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use weft_netns_tests::puppet::{Connect, End, Puppet, Role};
use weft_netns_tests::yaml::{from_account, policy};
use weft_netns_tests::{Family, Mesh, Path, descriptors};

use crate::{PATHS, PUPPET};

/// Sets how many descriptors a process may have; gives back how many it could have before.
fn limit_descriptors(pid: u32, limit: u64) -> u64 {
    // Only the first of both limits changes.
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let maximum = line.split_whitespace().nth(4).unwrap().parse().ok();
    let pid = Pid::from_raw(i32::try_from(pid).unwrap());
    prlimit(pid, Resource::Nofile, Rlimit { current: Some(limit), maximum }).unwrap().current.unwrap()
}

/// Opens so many connections and keeps those that are served; how many others there are.
fn crowd(client: &mut Puppet, to: SocketAddr, count: usize) -> usize {
    let mut refused = 0;
    for _ in 0..count {
        let how = Connect { wait_ms: 10_000, ..Connect::to(to) };
        let served = client.try_connect(how).is_ok_and(|connection| {
            let (bytes, end) = client.receive_for(connection, 1, Duration::from_secs(10));
            assert_ne!(end, End::Silence, "a connection hangs");
            !bytes.is_empty()
        });
        refused += usize::from(!served);
    }
    refused
}

#[test]
fn without_descriptors_connections_are_refused_and_counted_and_then_it_is_over() {
    let Some(mesh) = Mesh::usual(PUPPET) else { return };
    let servers = PATHS.map(|(pod, _)| mesh.serve(pod, Role::Greet));
    let mut held = mesh.puppet("other");
    let established: Vec<_> = PATHS
        .iter()
        .map(|(pod, path)| mesh.connect_by(&mut held, &Connect::to(mesh.target(Family::V4, pod)), *path))
        .collect();
    for node in ["a", "b"] {
        let pid = mesh.agent(node).pid();
        let before = limit_descriptors(pid, descriptors(pid) as u64 + 30);
        let mut client = mesh.puppet("client");
        let mut outside = mesh.outside();
        let refused = match node {
            "a" => crowd(&mut client, mesh.target(Family::V4, "seven"), 60),
            _ => crowd(&mut outside, mesh.target(Family::V4, "far"), 60),
        };
        assert!(refused >= 20, "node {node}: only {refused} connections were refused");
        for ((pod, _), connection) in PATHS.iter().zip(&established) {
            assert!(held.echoes(*connection), "the established connection to {pod} is not concerned");
        }
        let near = Connect::to(mesh.target(Family::V4, "near"));
        mesh.connect_by(&mut held, &near, Path::Direct);
        // What is written meanwhile is read when there is something to read it with.
        mesh.write("deny.yaml", &policy("deny", "far", "DENY", &from_account("client")));
        limit_descriptors(pid, before);

        let counted = || mesh.metric(node, "weft_proxy_events_total", &[("reason", "no_descriptors")]);
        assert!(counted() >= 1.0, "node {node} counts refusals");
        mesh.wait_reaches(&mut client, mesh.target(Family::V6, "far"), false);
        mesh.remove("deny.yaml");
        for (pod, _) in PATHS {
            mesh.wait_reaches(&mut client, mesh.target(Family::V6, pod), true);
            mesh.wait_reaches(&mut outside, mesh.target(Family::V4, pod), true);
        }
    }
    drop(servers);
}

#[test]
fn a_pod_without_source_ports_is_told_and_has_them_again() {
    let Some(mesh) = Mesh::usual(PUPPET) else { return };
    let mut outside = mesh.outside();
    let server = outside.serve(SocketAddr::new(Family::V6.any(), 0), Role::Hold);
    let set_ports = |range: &str| {
        let write = || Ok(std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", range)?);
        weft_lab::within(mesh.pod("client").netns(), write).unwrap();
    };
    for family in [Family::V4, Family::V6] {
        set_ports("40000 40039");
        let to = SocketAddr::new(family.ip(mesh.lab().outside()), server.address.port());
        let mut client = mesh.puppet("client");
        // One port for the application and one for the agent, which goes on in the pod's name.
        let held = client.hold(to, 60);
        assert!(held.good >= 10 && held.failed >= 20 && held.mistaken == 0, "{held:?}");
        set_ports("40000 40999");
        assert_eq!(client.hold(to, 20).good, 20, "it is over when there are more");
        outside.broadcast(server);
        assert_eq!(client.held_alive().good, held.good + 20, "who had a connection keeps it");
    }
}
