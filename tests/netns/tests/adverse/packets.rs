//! Packets that no `connect()` made, as a container with `CAP_NET_RAW` can send them.

use std::net::SocketAddr;

use weft_lab::anonymous_bytes;
use weft_netns_tests::puppet::{Connect, End, Puppet, Role};
use weft_netns_tests::yaml::{from_account, peer_authentication, policy};
use weft_netns_tests::{Family, Mesh, Path, eventually};

use crate::{PATHS, PUPPET, has_nft, set_rules};

const CAPTURE_MARK: u32 = 0x1000_0000;
/// The kernel knows nothing of such connections, and would reset them when it sees the answers.
const MUTE: &str = "table inet mute { chain out { type filter hook output priority 0; \
                    tcp flags & rst == rst ip ttl != 77 drop; tcp flags & rst == rst ip6 hoplimit != 77 drop; }; }";

/// Source ports: of the agent's range and of clients.
const PORTS: [u16; 2] = [2_000, 41_000];

/// Handshakes by hand from every port, as they are and with the mark of captured connections; how they ended.
fn attempts(puppet: &mut Puppet, from: SocketAddr, to: SocketAddr) -> Vec<(u16, Option<u32>, Vec<u8>, End)> {
    let ways = PORTS.into_iter().flat_map(|port| [(port, None), (port, Some(CAPTURE_MARK))]);
    let shake = |(port, mark)| {
        let (bytes, end) = puppet.handshake(SocketAddr::new(from.ip(), port), to, mark);
        (port, mark, bytes, end)
    };
    ways.map(shake).collect()
}

#[test]
fn handshakes_by_hand_get_no_further_than_others() {
    if !has_nft("handshakes_by_hand_get_no_further_than_others") {
        return;
    }
    let Some(mesh) = Mesh::usual(PUPPET) else { return };
    let mut client = mesh.puppet("client");
    set_rules(mesh.pod("client"), MUTE);
    for (pod, _) in PATHS {
        let (mut server, at) = mesh.serve(pod, Role::Greet);
        for family in [Family::V4, Family::V6] {
            let to = mesh.target(family, pod);
            let from = SocketAddr::new(family.ip(mesh.pod("client")), 0);
            eventually(
                &format!("a handshake by hand with {to} of {pod} works where nothing forbids it"),
                || attempts(&mut client, from, to).iter().any(|(.., bytes, _)| bytes.ends_with(b"\n")),
            );
        }
        // Neither identity nor TLS: what only `client` may, and what only TLS may, is refused to it all the same.
        for (name, text) in [
            ("deny", policy("deny", pod, "DENY", &from_account("client"))),
            ("strict", peer_authentication(pod, "STRICT")),
            ("allow", policy("only", pod, "ALLOW", &from_account("other"))),
        ] {
            mesh.write("rule.yaml", &text);
            let mut outside = mesh.outside();
            match name {
                "deny" => mesh.wait_reaches(&mut client, mesh.target(Family::V4, pod), false),
                _ => mesh.wait_reaches(&mut outside, mesh.target(Family::V4, pod), false),
            }
            let (before, _) = server.tally(at);
            for family in [Family::V4, Family::V6] {
                let from = SocketAddr::new(family.ip(mesh.pod("client")), 0);
                for (port, mark, bytes, end) in attempts(&mut client, from, mesh.target(family, pod)) {
                    let is_itself = mark.is_some() && name == "strict";
                    let is_stranger = mark.is_none() && name == "deny";
                    let what = format!("{pod} {name} {family:?} from {port} {mark:?}: {end:?}");
                    assert!(is_itself || is_stranger || bytes.is_empty(), "{what}");
                }
            }
            if name == "allow" {
                assert_eq!(server.tally(at).0, before, "{pod}: something reached the application");
            }
            mesh.remove("rule.yaml");
            mesh.wait_reaches(&mut outside, mesh.target(Family::V4, pod), true);
        }
    }
}

#[test]
fn a_direct_flow_cannot_be_repeated_by_another_pod() {
    if !has_nft("a_direct_flow_cannot_be_repeated_by_another_pod") {
        return;
    }
    let Some(mesh) = Mesh::usual(PUPPET) else { return };
    let (mut near, at) = mesh.serve("near", Role::Greet);
    let (mut client, mut other) = (mesh.puppet("client"), mesh.puppet("other"));
    set_rules(mesh.pod("other"), MUTE);
    mesh.write("allow.yaml", &policy("only-client", "near", "ALLOW", &from_account("client")));
    for family in [Family::V4, Family::V6] {
        let to = mesh.target(family, "near");
        mesh.wait_reaches(&mut other, to, false);
        mesh.wait_reaches(&mut client, to, true);
        let known = mesh.connect_by(&mut client, &Connect::to(to), Path::Direct);
        let (before, bytes) = near.tally(at);
        for mark in [None, Some(CAPTURE_MARK)] {
            let (bytes, _) = other.handshake(known.local, to, mark);
            assert!(bytes.is_empty(), "{family:?} {mark:?}");
        }
        client.abort(known);
        for mark in [None, Some(CAPTURE_MARK)] {
            let (bytes, _) = other.handshake(known.local, to, mark);
            assert!(bytes.is_empty(), "after its end, {family:?} {mark:?}");
        }
        assert_eq!(near.tally(at), (before, bytes), "{family:?}");
    }
}

#[test]
fn a_flood_of_first_packets_keeps_nobody_out() {
    let Some(mesh) = Mesh::usual(PUPPET) else { return };
    let servers = PATHS.map(|(pod, _)| mesh.serve(pod, Role::Greet));
    let (mut client, mut outside) = (mesh.puppet("client"), mesh.outside());
    let held: Vec<_> = PATHS
        .iter()
        .map(|(pod, path)| mesh.connect_by(&mut client, &Connect::to(mesh.target(Family::V4, pod)), *path))
        .collect();
    let agents = ["a", "b"].map(|node| mesh.agent(node).pid());
    let before = agents.map(|pid| anonymous_bytes(pid).unwrap());
    for (pod, path) in PATHS {
        for family in [Family::V4, Family::V6] {
            let to = mesh.target(family, pod);
            outside.flood(to, 6_000);
            mesh.connect_by(&mut client, &Connect::to(to), path);
            eventually("who is not in the mesh gets in, too", || mesh.reaches(&mut outside, to));
        }
    }
    for connection in held {
        assert!(client.echoes(connection));
    }
    for (pid, before) in agents.into_iter().zip(before) {
        let after = anonymous_bytes(pid).unwrap();
        assert!(after < before + (32 << 20), "from {before} to {after} bytes");
    }
    drop(servers);
}
