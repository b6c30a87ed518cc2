//! Pods that have one address family only, among others that have both.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use weft_lab::{LabSpec, Pod, PodSpec, within};
use weft_netns_tests::puppet::{End, Puppet, Role};
use weft_netns_tests::yaml::{from_account, peer_authentication, policy};
use weft_netns_tests::{Family, Mesh, Path, usual_spec};

use crate::{PUPPET, ip};

/// Pods with one family: on each node one that is reached directly or by HBONE.
const SINGLE: [(&str, &str); 4] = [("a", "six"), ("b", "six-far"), ("a", "four"), ("b", "four-far")];

fn spec() -> LabSpec {
    SINGLE.iter().fold(usual_spec(), |spec, (node, name)| {
        spec.pod(PodSpec::new(node, "shop", name).service_account(name).annotation("weft.dev/traffic", "l4"))
    })
}

fn is_six(pod: &str) -> bool {
    pod.starts_with("six")
}

/// Takes the other family from a pod's namespace, as a network plugin of one family would never have given it.
fn narrow(pod: &Pod) {
    if is_six(pod.name()) {
        ip(pod.netns(), &["-4", "addr", "flush", "dev", "eth0"]);
    } else {
        within(pod.netns(), || Ok(std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1")?)).unwrap();
    }
}

/// The Pod objects of these, with the one address that is left.
fn objects(mesh: &Mesh) -> String {
    let mut text = String::new();
    for (node, name) in SINGLE {
        let pod = mesh.pod(name);
        let ip: IpAddr = if is_six(name) { pod.ipv6().into() } else { pod.ipv4().into() };
        writeln!(
            text,
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: shop\n  labels: {{app: {name}}}\n  \
             annotations: {{weft.dev/netns: {}, weft.dev/traffic: l4}}\nspec: {{nodeName: {node}, \
             serviceAccountName: {name}}}\nstatus: {{podIP: \"{ip}\", podIPs: [{{ip: \"{ip}\"}}]}}\n---",
            pod.netns().display()
        )
        .unwrap();
    }
    text
}

fn mesh() -> Option<Mesh> {
    let mut mesh = Mesh::prepare(PUPPET, &spec())?;
    SINGLE.iter().for_each(|(_, name)| narrow(mesh.pod(name)));
    mesh.write("single.yaml", &objects(&mesh));
    let is_single = |pod: &&Pod| SINGLE.iter().any(|(_, name)| *name == pod.name());
    let others: Vec<Pod> = mesh.lab().pods().iter().filter(|pod| !is_single(pod)).cloned().collect();
    mesh.lab().config().cluster(mesh.lab().nodes(), &others).unwrap();
    mesh.start_controller(&[]);
    mesh.start_agent("a");
    mesh.start_agent("b");
    Some(mesh)
}

/// A connection to an address of a family that one of both ends lacks: it ends, and does not hang.
fn fails(client: &mut Puppet, family: Family, to: SocketAddr) {
    if let Ok(connection) = client.try_connect(family.connect(to)) {
        assert!(matches!(client.receive(connection, 1).1, End::Reset | End::Eof), "{family:?} {to}");
    }
}

fn families(pod: &str) -> (&'static [Family], &'static [Family]) {
    if is_six(pod) {
        (&[Family::V6], &[Family::V4, Family::Mapped])
    } else {
        (&[Family::V4, Family::Mapped], &[Family::V6])
    }
}

#[test]
fn pods_with_one_family_are_reached_in_it_and_in_no_other() {
    let Some(mesh) = mesh() else { return };
    let servers: Vec<_> = SINGLE
        .map(|(_, name)| {
            let mut server = mesh.puppet(name);
            let any = if is_six(name) { Family::V6.any() } else { Family::V4.any() };
            server.serve(SocketAddr::new(any, 7000), Role::Greet);
            server
        })
        .into();
    let (mut client, mut outside) = (mesh.puppet("client"), mesh.outside());
    for (node, name) in SINGLE {
        let path = if node == "a" { Path::Direct } else { Path::Proxied };
        let (has, lacks) = families(name);
        for family in has {
            for to in [mesh.target(*family, name), mesh.vip(*family, name)] {
                let connection = mesh.connect_by(&mut client, &family.connect(to), path);
                assert_eq!(client.exchange(connection, 100_000), Ok(100_000), "{name} {to}");
                client.close(connection);
            }
            let how = family.connect(mesh.target(*family, name));
            mesh.connect_by(&mut outside, &how, Path::Proxied);
            mesh.write("deny.yaml", &policy("deny", name, "DENY", &from_account("client")));
            mesh.wait_reaches(&mut client, how.to, false);
            mesh.remove("deny.yaml");
            mesh.wait_reaches(&mut client, how.to, true);
            mesh.write("strict.yaml", &peer_authentication(name, "STRICT"));
            mesh.wait_reaches(&mut outside, how.to, false);
            mesh.remove("strict.yaml");
        }
        for family in lacks {
            fails(&mut client, *family, mesh.vip(*family, name));
        }
    }
    drop(servers);
}

#[test]
fn pods_with_one_family_are_clients_in_it_and_in_no_other() {
    let Some(mesh) = mesh() else { return };
    let servers = ["near", "seven", "far"].map(|pod| mesh.serve(pod, Role::Greet));
    for name in ["six", "four"] {
        let mut client = mesh.puppet(name);
        let (has, lacks) = families(name);
        for family in has {
            for (pod, path) in crate::PATHS {
                for to in [mesh.target(*family, pod), mesh.vip(*family, pod)] {
                    let connection = mesh.connect_by(&mut client, &family.connect(to), path);
                    assert_eq!(client.exchange(connection, 100_000), Ok(100_000), "{name} {to}");
                    client.close(connection);
                }
            }
        }
        for family in lacks {
            for (pod, _) in crate::PATHS {
                fails(&mut client, *family, mesh.target(*family, pod));
                fails(&mut client, *family, mesh.vip(*family, pod));
            }
        }
    }
    drop(servers);
}
