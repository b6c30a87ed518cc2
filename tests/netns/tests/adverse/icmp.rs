//! Errors that routers and packet filters report reach the connections that they are about.

use std::net::SocketAddr;

use weft_lab::{Pod, output};
use weft_netns_tests::puppet::{Connect, End, Puppet, Role};
use weft_netns_tests::{Family, Mesh, Path};

use crate::{PUPPET, has_nft, ip, set_rules};

/// Enough for many segments of any size.
const BYTES: u64 = 300_000;

/// The route of a pod to an address, with what the kernel has learned about it.
fn route(pod: &Pod, to: SocketAddr) -> String {
    let netns = format!("--net={}", pod.netns().display());
    output("nsenter", &[&netns, "--", "ip", "route", "get", &to.ip().to_string()]).unwrap()
}

#[test]
fn a_narrow_link_between_the_nodes_is_found_out() {
    let Some(mesh) = Mesh::usual(PUPPET) else { return };
    let (_far, _) = mesh.serve("far", Role::Greet);
    let (mut client, mut outside) = (mesh.puppet("client"), mesh.outside());
    for (node, link) in [("a", "to-1"), ("b", "to-0")] {
        ip(mesh.lab().node(node).unwrap().netns(), &["link", "set", "dev", link, "mtu", "1280"]);
    }
    for family in Family::ALL {
        let how = family.connect(mesh.target(family, "far"));
        for puppet in [&mut client, &mut outside] {
            let connection = mesh.connect_by(puppet, &how, Path::Proxied);
            assert_eq!(puppet.exchange(connection, BYTES), Ok(BYTES), "{family:?}");
            puppet.close(connection);
        }
    }
    for family in [Family::V4, Family::V6] {
        let learned = route(mesh.pod("client"), mesh.target(family, "far"));
        assert!(learned.contains("mtu 1280"), "the agent's tunnel was told: {learned}");
    }
}

/// How a connection ends that cannot be opened, and its line in node a's log.
fn failure(mesh: &Mesh, client: &mut Puppet, to: SocketAddr, direction: &str) -> String {
    let connection = client.connect_in_vain(to);
    mesh.log_of("a", direction, connection.local).to_string()
}

#[test]
fn a_destination_that_cannot_be_reached_ends_the_connection_and_the_log_says_why() {
    let Some(mesh) = Mesh::usual(PUPPET) else { return };
    let (_far, _) = mesh.serve("far", Role::Greet);
    let mut outside = mesh.outside();
    let foreign = outside.serve(SocketAddr::new(Family::V6.any(), 0), Role::Greet).address.port();
    let mut client = mesh.puppet("client");
    let node = mesh.lab().node("a").unwrap().netns().to_owned();
    for (family, option, bits) in [(Family::V4, "-4", 32), (Family::V6, "-6", 128)] {
        let far = mesh.target(family, "far");
        let foreign = SocketAddr::new(family.ip(mesh.lab().outside()), foreign);
        // A tunnel that exists does not ask for the way again: so its other end goes with its agent's connections.
        let before = mesh.connect_by(&mut client, &Connect::to(foreign), Path::Proxied);
        for to in [mesh.vip(family, "far"), far, foreign] {
            let subject = if to == foreign { foreign } else { far };
            let prefix = format!("{}/{bits}", subject.ip());
            ip(&node, &[option, "route", "replace", "unreachable", &prefix]);
            let line = failure(&mesh, &mut client, to, "outbound");
            assert!(line.contains("\"UF"), "{line}");
            assert!(line.contains("unreachable") || line.contains("No route to host"), "{line}");
            restore(&mesh, option, &prefix, to == foreign);
        }
        assert!(client.echoes(before), "an established connection outlives it");
        mesh.connect_by(&mut client, &Connect::to(far), Path::Proxied);
    }
}

/// Takes an unreachable route away; the one to namespace `outside` was replaced by it.
fn restore(mesh: &Mesh, option: &str, prefix: &str, is_outside: bool) {
    let node = mesh.lab().node("a").unwrap().netns().to_owned();
    if is_outside {
        ip(&node, &[option, "route", "replace", prefix, "dev", mesh.lab().outside().link()]);
    } else {
        ip(&node, &[option, "route", "del", "unreachable", prefix]);
    }
}

#[test]
fn an_application_behind_a_rejecting_filter_is_refused_at_once() {
    if !has_nft("an_application_behind_a_rejecting_filter_is_refused_at_once") {
        return;
    }
    let Some(mesh) = Mesh::usual(PUPPET) else { return };
    let servers = ["seven", "far"].map(|pod| mesh.serve(pod, Role::Greet));
    let (mut client, mut outside) = (mesh.puppet("client"), mesh.outside());
    for (pod, node) in [("seven", "a"), ("far", "b")] {
        set_rules(
            mesh.pod(pod),
            "table inet own { chain in { type filter hook input priority 0; tcp dport 7000 reject with icmpx \
             port-unreachable; }; }",
        );
        for family in Family::ALL {
            for (puppet, by_tunnel) in [(&mut client, pod == "far"), (&mut outside, false)] {
                let connection = puppet.try_connect(family.connect(mesh.target(family, pod)));
                let Ok(connection) = connection else { continue };
                assert_eq!(puppet.receive(connection, 1).1, End::Reset, "{pod} {family:?}");
                // Of a client behind a tunnel the other end does not know the port.
                if !by_tunnel {
                    let line = mesh.log_of(node, "inbound", connection.local).to_string();
                    assert!(line.contains("refused"), "{line}");
                }
            }
        }
        set_rules(mesh.pod(pod), "");
        mesh.connect_by(&mut client, &Connect::to(mesh.target(Family::V4, pod)), Path::Proxied);
    }
    drop(servers);
}
