//! Every kind of client to every kind of destination, over IPv4, IPv6 and v4-mapped.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests fail as tests do"
)]

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use weft_netns_tests::puppet::{Connect, Connection, End, Puppet, Role};
use weft_netns_tests::{Family, Mesh, Path, eventually};

const PUPPET: &str = env!("CARGO_BIN_EXE_netns-puppet");

/// Connects, checks both ends' view of the addresses, and moves some bytes.
fn checked(client: &mut Puppet, how: Connect, server_sees: SocketAddr) -> (Connection, Path) {
    let to = how.to;
    let connection = client.try_connect(how).unwrap();
    let remote = SocketAddr::new(connection.remote.ip().to_canonical(), connection.remote.port());
    assert_eq!(remote, to, "the client sees the address that it connected to");
    let (peer, local) = client.greeting(connection);
    assert_eq!(peer.ip(), connection.local.ip().to_canonical(), "the server sees the client's address");
    assert_eq!(local, server_sees, "the server sees its own address");
    assert_eq!(client.exchange(connection, 200_000).unwrap(), 200_000);
    let path = if peer.port() == connection.local.port() { Path::Direct } else { Path::Proxied };
    (connection, path)
}

#[test]
fn pod_to_pod_on_another_node() {
    let Some(mesh) = Mesh::usual(PUPPET) else { return };
    let (_far, _) = mesh.serve("far", Role::Greet);
    let mut client = mesh.puppet("client");
    for family in Family::ALL {
        let to = mesh.target(family, "far");
        let (connection, path) = checked(&mut client, family.connect(to), to);
        assert_eq!(path, Path::Proxied);
        client.close(connection);
        let line = mesh.log_of("a", "outbound", connection.local);
        assert_eq!(line["mesh_path"], "hbone", "{line}");
        assert_eq!(line["source_principal"], "spiffe://cluster.local/ns/shop/sa/client", "{line}");
        assert_eq!(line["destination_principal"], "spiffe://cluster.local/ns/shop/sa/far", "{line}");
    }
}

#[test]
fn pod_to_service_on_another_node() {
    let Some(mesh) = Mesh::usual(PUPPET) else { return };
    let (_far, _) = mesh.serve("far", Role::Greet);
    let mut client = mesh.puppet("client");
    for family in Family::ALL {
        let how = family.connect(mesh.vip(family, "far"));
        let (_, path) = checked(&mut client, how, mesh.target(family, "far"));
        assert_eq!(path, Path::Proxied);
    }
}

#[test]
fn pod_to_pod_on_the_same_node_is_direct() {
    let Some(mesh) = Mesh::usual(PUPPET) else { return };
    let (_near, _) = mesh.serve("near", Role::Greet);
    let mut client = mesh.puppet("client");
    for family in Family::ALL {
        let to = mesh.target(family, "near");
        let first = mesh.connect_by(&mut client, &family.connect(to), Path::Direct);
        client.close(first);
        let (_, path) = checked(&mut client, family.connect(to), to);
        assert_eq!(path, Path::Direct, "{family:?}");
    }
}

#[test]
fn pod_to_service_on_the_same_node_is_direct() {
    let Some(mesh) = Mesh::usual(PUPPET) else { return };
    let (_near, _) = mesh.serve("near", Role::Greet);
    let mut client = mesh.puppet("client");
    for family in Family::ALL {
        let how = family.connect(mesh.vip(family, "near"));
        let first = mesh.connect_by(&mut client, &how, Path::Direct);
        client.close(first);
        let (_, path) = checked(&mut client, how, mesh.target(family, "near"));
        assert_eq!(path, Path::Direct, "{family:?}");
    }
}

#[test]
fn pod_to_pod_on_the_same_node_through_the_proxy() {
    let Some(mesh) = Mesh::usual(PUPPET) else { return };
    let (_seven, _) = mesh.serve("seven", Role::Greet);
    let mut client = mesh.puppet("client");
    for family in Family::ALL {
        let to = mesh.target(family, "seven");
        for how in [family.connect(to), family.connect(mesh.vip(family, "seven"))] {
            let (connection, path) = checked(&mut client, how, to);
            assert_eq!(path, Path::Proxied, "{family:?}");
            client.close(connection);
            let line = mesh.log_of("a", "inbound", connection.local);
            assert_eq!(line["mesh_path"], "node", "{line}");
            assert_eq!(line["source_principal"], "spiffe://cluster.local/ns/shop/sa/client", "{line}");
        }
    }
}

#[test]
fn undeclared_ports_go_direct_once_they_are_known() {
    let Some(mesh) = Mesh::usual(PUPPET) else { return };
    let mut client = mesh.puppet("client");
    // `other` says nothing about its ports, `near` says that all of them are plain TCP.
    for pod in ["other", "near"] {
        let mut puppet = mesh.puppet(pod);
        let server = puppet.serve(SocketAddr::new(Family::V6.any(), 0), Role::Greet);
        for family in Family::ALL {
            let to = SocketAddr::new(family.ip(mesh.pod(pod)), server.address.port());
            mesh.connect_by(&mut client, &family.connect(to), Path::Direct);
        }
    }
}

#[test]
fn a_pod_reaches_itself() {
    let Some(mesh) = Mesh::usual(PUPPET) else { return };
    let (mut client, _) = mesh.serve("client", Role::Greet);
    for family in Family::ALL {
        let own = mesh.target(family, "client");
        let (_, path) = checked(&mut client, family.connect(own), own);
        assert_eq!(path, Path::Direct, "to its own address, {family:?}");
        let loopback = SocketAddr::new(family.loopback(), own.port());
        let (_, path) = checked(&mut client, family.connect(loopback), loopback);
        assert_eq!(path, Path::Direct, "to localhost, {family:?}");
        checked(&mut client, family.connect(mesh.vip(family, "client")), own);
    }
}

#[test]
fn a_closed_port_ends_the_connection() {
    let Some(mesh) = Mesh::usual(PUPPET) else { return };
    let mut client = mesh.puppet("client");
    for pod in ["near", "seven", "far"] {
        for family in Family::ALL {
            for to in [mesh.target(family, pod), mesh.vip(family, pod)] {
                // The proxy can tell only after it has accepted.
                let ended = match client.try_connect(family.connect(to)) {
                    Err(failure) => {
                        failure.is(ErrorKind::ConnectionRefused) || failure.is(ErrorKind::ConnectionReset)
                    }
                    Ok(connection) => matches!(client.receive(connection, 1), (_, End::Reset)),
                };
                assert!(ended, "{to} of {pod}");
            }
        }
    }
}

#[test]
fn an_application_that_does_not_accept_is_an_error_and_no_loop() {
    let Some(mesh) = Mesh::usual(PUPPET) else { return };
    let mut client = mesh.puppet("client");
    let pods = [("seven", "a"), ("far", "b")];
    let servers = pods.map(|(pod, _)| mesh.serve(pod, Role::Deaf));
    // The first ones wait in the application's queue; for the others there is no answer at all.
    let waiting = pods.map(|(pod, _)| [(); 4].map(|()| client.connect(mesh.target(Family::V4, pod))));
    for ((pod, node), waiting) in pods.into_iter().zip(waiting) {
        let line = mesh.log_line(node, &format!("the failure at {pod}"), |line| {
            line["response_flags"] == "UF" && line["direction"] == "inbound"
        });
        assert!(line.to_string().contains("no answer"), "{line}");
        // The line may be there before the reset.
        let mut ends = [End::Silence; 4];
        eventually(&format!("a client of {pod} is told"), || {
            for (end, waiting) in ends.iter_mut().zip(waiting).filter(|(end, _)| **end == End::Silence) {
                *end = client.receive_for(waiting, 1, Duration::from_millis(200)).1;
            }
            ends.contains(&End::Reset)
        });
        assert!(ends.contains(&End::Silence), "{pod}: {ends:?}");
    }
    drop(servers);
}

#[test]
fn unknown_destinations_pass_through() {
    let Some(mesh) = Mesh::usual(PUPPET) else { return };
    let mut outside = mesh.outside();
    let server = outside.serve(SocketAddr::new(Family::V6.any(), 0), Role::Greet);
    let mut client = mesh.puppet("client");
    for family in Family::ALL {
        let to = SocketAddr::new(family.ip(mesh.lab().outside()), server.address.port());
        let (connection, _) = checked(&mut client, family.connect(to), to);
        client.close(connection);
        let line = mesh.log_of("a", "outbound", connection.local);
        assert_eq!(line["mesh_path"], "passthrough", "{line}");
        assert_eq!(line["upstream_cluster"], "PassthroughCluster", "{line}");
    }
}

#[test]
fn udp_is_untouched() {
    let Some(mesh) = Mesh::usual(PUPPET) else { return };
    let mut client = mesh.puppet("client");
    for pod in ["near", "far"] {
        let mut server = mesh.puppet(pod);
        for family in [Family::V4, Family::V6] {
            let to = SocketAddr::new(family.ip(mesh.pod(pod)), 5300);
            server.serve(to, Role::Udp);
            let answer = client.ask_udp(to, "question").expect("an answer");
            let (peer, payload) = answer.split_once(' ').unwrap();
            let peer: SocketAddr = peer.parse().unwrap();
            assert_eq!((peer.ip(), payload), (family.ip(mesh.pod("client")), "question"));
        }
    }
}

#[test]
fn one_source_port_serves_two_destinations() {
    let Some(mesh) = Mesh::usual(PUPPET) else { return };
    let servers: Vec<_> = ["near", "seven", "far"].map(|pod| mesh.serve(pod, Role::Greet)).into();
    let mut client = mesh.puppet("client");
    for (family, port) in Family::ALL.into_iter().zip([40_001, 40_002, 40_003]) {
        let bind = Some(SocketAddr::new(family.ip(mesh.pod("client")), port));
        let open = ["near", "seven", "far"].map(|pod| {
            let to = mesh.target(family, pod);
            let (connection, _) = checked(&mut client, Connect { bind, ..family.connect(to) }, to);
            assert_eq!(connection.local.port(), port);
            connection
        });
        for connection in open {
            assert!(client.echoes(connection), "all of them work side by side");
        }
    }
    drop(servers);
}

#[test]
fn a_client_bound_to_a_device() {
    let Some(mesh) = Mesh::usual(PUPPET) else { return };
    let servers: Vec<_> = ["near", "seven", "far"].map(|pod| mesh.serve(pod, Role::Greet)).into();
    let mut client = mesh.puppet("client");
    for family in Family::ALL {
        for pod in ["near", "seven", "far"] {
            let to = mesh.target(family, pod);
            let how = Connect { device: Some("eth0".into()), ..family.connect(to) };
            checked(&mut client, how, to);
        }
    }
    drop(servers);
}

#[test]
fn an_applications_own_mark_is_kept() {
    const OWN: u32 = 0x0000_0042;
    const CAPTURE: u32 = 0x1000_0000;
    let Some(mesh) = Mesh::usual(PUPPET) else { return };
    let servers: Vec<_> = ["near", "far"].map(|pod| mesh.serve(pod, Role::Greet)).into();
    let mut client = mesh.puppet("client");
    for family in Family::ALL {
        for pod in ["near", "far"] {
            let to = mesh.target(family, pod);
            let how = Connect { mark: Some(OWN), ..family.connect(to) };
            let (connection, _) = checked(&mut client, how, to);
            assert_eq!(client.options(connection).0 & !CAPTURE, OWN, "{pod} {family:?}");
        }
    }
    drop(servers);
}

#[test]
fn a_multipath_client() {
    if !std::fs::read_to_string("/proc/sys/net/mptcp/enabled").is_ok_and(|enabled| enabled.trim() == "1") {
        eprintln!("SKIPPED: this kernel has no MPTCP (CONFIG_MPTCP, net.mptcp.enabled)");
        return;
    }
    let Some(mesh) = Mesh::usual(PUPPET) else { return };
    let servers: Vec<_> = ["near", "seven", "far"].map(|pod| mesh.serve(pod, Role::Greet)).into();
    let mut client = mesh.puppet("client");
    for family in Family::ALL {
        for pod in ["near", "seven", "far"] {
            let to = mesh.target(family, pod);
            checked(&mut client, Connect { multipath: true, ..family.connect(to) }, to);
        }
    }
    drop(servers);
}
