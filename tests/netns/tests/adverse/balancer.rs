//! Beside a network plugin that translates virtual addresses in `connect()`, whichever of both programs is first.

use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::path::Path as FilePath;

use aya::maps::{Array, HashMap};
use aya::programs::CgroupSockAddr;
use aya::programs::links::CgroupAttachMode;
use aya::{Ebpf, EbpfLoader};
use weft_ebpf_common::classify::{from_octets, mapped};
use weft_ebpf_common::{Addr, EndpointInfo, ServiceKey};
use weft_netns_tests::puppet::Role;
use weft_netns_tests::yaml::{from_account, peer_authentication, policy};
use weft_netns_tests::{Family, Mesh, eventually, usual_spec};

use crate::{PATHS, PUPPET};

fn addr(ip: IpAddr) -> Addr {
    match ip {
        IpAddr::V4(ip) => mapped(u32::from_ne_bytes(ip.octets())),
        IpAddr::V6(ip) => from_octets(ip.octets()),
    }
}

/// A load balancer at a cgroup that knows the virtual addresses of all servers.
fn attach(mesh: &Mesh, cgroup: &FilePath) -> Ebpf {
    let object = mesh.lab().weft().parent().unwrap().join("../ebpf/balancer");
    let mut ebpf = EbpfLoader::new().load_file(&object).unwrap();
    let mut backends: HashMap<_, ServiceKey, EndpointInfo> =
        ebpf.map_mut("BACKENDS").unwrap().try_into().unwrap();
    for (pod, _) in PATHS {
        for family in [Family::V4, Family::V6] {
            let (vip, target) = (mesh.vip(family, pod), mesh.target(family, pod));
            let key = ServiceKey { vip: addr(vip.ip()), port: vip.port(), reserved: 0 };
            let backend = EndpointInfo { addr: addr(target.ip()), port: target.port(), reserved: 0 };
            backends.insert(key, backend, 0).unwrap();
        }
    }
    for name in ["balance4", "balance6"] {
        let program: &mut CgroupSockAddr = ebpf.program_mut(name).unwrap().try_into().unwrap();
        program.load().unwrap();
        program.attach(File::open(cgroup).unwrap(), CgroupAttachMode::Single).unwrap();
    }
    ebpf
}

/// Connections that it gave a backend.
fn translated(balancer: &Ebpf) -> u64 {
    let count: Array<_, u64> = balancer.map("TRANSLATED").unwrap().try_into().unwrap();
    count.get(&0, 0).unwrap()
}

/// What the agent says about programs that see connections before its own.
fn earlier(mesh: &Mesh) -> String {
    mesh.status("a")["kernel"].get("earlier").map(ToString::to_string).unwrap_or_default()
}

/// Virtual addresses lead to their pods on every path, and who may connect is who the policy names.
fn services_work(mesh: &Mesh) {
    let servers: Vec<_> = PATHS.map(|(pod, _)| mesh.serve(pod, Role::Greet)).into();
    let (mut client, mut other, mut outside) = (mesh.puppet("client"), mesh.puppet("other"), mesh.outside());
    for (pod, path) in PATHS {
        for family in Family::ALL {
            let how = family.connect(mesh.vip(family, pod));
            let connection = mesh.connect_by(&mut client, &how, path);
            assert_eq!(client.exchange(connection, 50_000), Ok(50_000), "{pod} {family:?}");
            client.close(connection);
            if pod == "far" {
                let line = mesh.log_of("a", "outbound", connection.local);
                assert_eq!(line["mesh_path"], "hbone", "{line}");
                assert_eq!(line["destination_principal"], "spiffe://cluster.local/ns/shop/sa/far", "{line}");
            }
        }
        mesh.write("deny.yaml", &policy("deny", pod, "DENY", &from_account("client")));
        mesh.write("strict.yaml", &peer_authentication(pod, "STRICT"));
        for family in [Family::V4, Family::V6] {
            let vip: SocketAddr = mesh.vip(family, pod);
            mesh.wait_reaches(&mut client, vip, false);
            mesh.wait_reaches(&mut other, vip, true);
            mesh.wait_reaches(&mut outside, mesh.target(family, pod), false);
        }
        mesh.remove("deny.yaml");
        mesh.remove("strict.yaml");
    }
    drop(servers);
}

#[test]
fn a_load_balancer_that_was_there_before_the_agent_changes_nothing() {
    let Some(mut mesh) = Mesh::prepare(PUPPET, &usual_spec()) else { return };
    let balancer = attach(&mesh, &mesh.lab().node("a").unwrap().kubepods());
    mesh.start_controller(&[]);
    mesh.start_agent("a");
    mesh.start_agent("b");
    services_work(&mesh);
    assert!(translated(&balancer) >= 9, "it runs first, so the agent sees what it chose");
    let found = earlier(&mesh);
    assert!(found.contains("balance4 at connect4") && found.contains("balance6 at connect6"), "{found}");
    eventually("the agent says so", || {
        mesh.agent("a").process().stderr().contains("others see the connections of pods first")
    });
}

#[test]
fn a_load_balancer_that_comes_after_the_agent_changes_nothing() {
    let Some(mesh) = Mesh::usual(PUPPET) else { return };
    let balancer = attach(&mesh, &mesh.lab().node("a").unwrap().kubepods());
    services_work(&mesh);
    assert_eq!(earlier(&mesh), "");
    assert!(translated(&balancer) > 0, "captured connections keep their destination until it has run");
}

#[test]
fn a_load_balancer_at_the_parent_cgroup_changes_nothing() {
    let Some(mut mesh) = Mesh::prepare(PUPPET, &usual_spec()) else { return };
    let before = attach(&mesh, mesh.lab().node("a").unwrap().cgroup());
    mesh.start_controller(&[]);
    mesh.start_agent("a");
    mesh.start_agent("b");
    services_work(&mesh);
    assert_eq!(earlier(&mesh), "");
    assert!(translated(&before) > 0, "programs of the parent run after those of the child");
}
