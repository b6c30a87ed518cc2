//! Packet filters that belong to a pod: they may keep connections away, but they open no way around the mesh.

use std::net::SocketAddr;
use std::time::Duration;

use weft_netns_tests::puppet::{Connect, Puppet, Role};
use weft_netns_tests::yaml::{peer_authentication, policy};
use weft_netns_tests::{Family, Mesh, Path};

use crate::{PATHS, PUPPET, has_nft, set_rules};

/// A firewall that admits only what it names.
fn closed_but_for(ports: &str) -> String {
    format!(
        "table inet own {{ chain in {{ type filter hook input priority 0; policy drop; iif lo accept; \
         ct state established,related accept; meta l4proto ipv6-icmp accept; tcp dport {{ {ports} }} accept; }}; }}"
    )
}

/// Whether a server's greeting comes before long: for connections that are not expected to come about.
fn greeted(client: &mut Puppet, to: SocketAddr) -> bool {
    let Ok(connection) = client.try_connect(Connect { wait_ms: 2_000, ..Connect::to(to) }) else {
        return false;
    };
    let (bytes, _) = client.receive_for(connection, 1, Duration::from_secs(2));
    client.close(connection);
    !bytes.is_empty()
}

#[test]
fn a_firewall_in_a_pod_goes_on_to_decide_about_its_ports() {
    if !has_nft("a_firewall_in_a_pod_goes_on_to_decide_about_its_ports") {
        return;
    }
    let Some(mesh) = Mesh::usual(PUPPET) else { return };
    let mut servers: Vec<_> = PATHS.map(|(pod, _)| mesh.serve(pod, Role::Greet).0).into();
    for server in &mut servers {
        server.serve(SocketAddr::new(Family::V6.any(), 7001), Role::Greet);
    }
    let (mut client, mut outside) = (mesh.puppet("client"), mesh.outside());
    for pod in ["client", "near", "seven", "far"] {
        set_rules(mesh.pod(pod), &closed_but_for("7000, 15008"));
    }
    for (pod, path) in PATHS {
        for family in Family::ALL {
            let how = family.connect(mesh.target(family, pod));
            let connection = mesh.connect_by(&mut client, &how, path);
            assert_eq!(client.exchange(connection, 100_000), Ok(100_000), "{pod} {family:?}");
            let plain = mesh.connect_by(&mut outside, &how, Path::Proxied);
            assert_eq!(outside.exchange(plain, 100_000), Ok(100_000), "{pod} {family:?} from outside");
        }
        let closed = SocketAddr::new(mesh.target(Family::V4, pod).ip(), 7001);
        assert!(!greeted(&mut outside, closed), "{pod} has closed this port");
    }
    // Without the port of tunnels nothing of the mesh arrives, and nobody falls back to plaintext.
    set_rules(mesh.pod("far"), &closed_but_for("7000"));
    let mut other = mesh.puppet("other");
    let refused = other.connect_in_vain(mesh.target(Family::V4, "far"));
    let line = mesh.log_of("a", "outbound", refused.local);
    assert!(line["response_flags"].as_str().unwrap().contains("UF"), "{line}");
    assert!(mesh.reaches(&mut outside, mesh.target(Family::V4, "far")), "plaintext is admitted as before");
}

#[test]
fn rules_against_loopback_close_a_pod_and_do_not_open_it() {
    if !has_nft("rules_against_loopback_close_a_pod_and_do_not_open_it") {
        return;
    }
    let Some(mesh) = Mesh::usual(PUPPET) else { return };
    let mut servers = PATHS.map(|(pod, _)| mesh.serve(pod, Role::Greet));
    let mut client = mesh.puppet("client");
    for (pod, path) in PATHS {
        mesh.connect_by(&mut client, &Connect::to(mesh.target(Family::V4, pod)), path);
    }
    mesh.write("strict.yaml", &peer_authentication("far", "STRICT"));
    mesh.wait_reaches(&mut mesh.outside(), mesh.target(Family::V4, "far"), false);
    // As hardened hosts have it: what comes by loopback has an address of loopback.
    let rule = "table inet own { chain in { type filter hook input priority 0; iif lo ip saddr != 127.0.0.0/8 drop; \
                iif lo ip6 saddr != ::1 drop; }; }";
    set_rules(mesh.pod("client"), rule);
    let mut tally = || servers.each_mut().map(|(server, at)| server.tally(*at).0);
    let seen = tally();
    for family in [Family::V4, Family::V6] {
        for pod in ["seven", "far"] {
            assert!(!greeted(&mut client, mesh.target(family, pod)), "captured connections go by loopback");
        }
        assert!(mesh.reaches(&mut client, mesh.target(family, "near")), "direct ones do not");
    }
    set_rules(mesh.pod("client"), "");
    for pod in ["seven", "far"] {
        set_rules(mesh.pod(pod), rule);
        assert!(!greeted(&mut client, mesh.target(Family::V4, pod)), "the agent comes by loopback");
    }
    assert_eq!(tally(), [seen[0] + 2, seen[1], seen[2]], "only direct connections arrived");
    for pod in ["seven", "far"] {
        set_rules(mesh.pod(pod), "");
        mesh.wait_reaches(&mut client, mesh.target(Family::V4, pod), true);
    }
}

#[test]
fn redirections_of_a_pods_own_are_kept_and_policy_holds_behind_them() {
    if !has_nft("redirections_of_a_pods_own_are_kept_and_policy_holds_behind_them") {
        return;
    }
    let Some(mesh) = Mesh::usual(PUPPET) else { return };
    let servers = PATHS.map(|(pod, _)| mesh.serve(pod, Role::Greet));
    let (mut client, mut outside) = (mesh.puppet("client"), mesh.outside());
    // A proxy of the application's own in front of what it dials, as sidecars have it.
    let local = client.serve(SocketAddr::new(Family::V6.any(), 9001), Role::Greet);
    set_rules(
        mesh.pod("client"),
        "table inet own { chain out { type nat hook output priority -100; tcp dport 9000 redirect to :9001; }; }",
    );
    for family in Family::ALL {
        let ip = family.ip(mesh.pod("far"));
        let connection = client.try_connect(family.connect(SocketAddr::new(ip, 9000))).unwrap();
        let (_, seen) = client.greeting(connection);
        assert_eq!(seen.port(), local.address.port(), "the pod's own proxy got it, {family:?}");
        client.close(connection);
    }
    set_rules(mesh.pod("client"), "");

    // Another port for the same application.
    for (pod, _) in PATHS {
        set_rules(
            mesh.pod(pod),
            "table inet own { chain pre { type nat hook prerouting priority -100; tcp dport 9000 redirect to :7000; }; }",
        );
        for family in Family::ALL {
            let to = SocketAddr::new(family.ip(mesh.pod(pod)), 9000);
            let connection = outside.try_connect(family.connect(to)).unwrap();
            let (peer, _) = outside.greeting(connection);
            assert_eq!(peer.ip(), family.ip(mesh.lab().outside()), "who it is stays visible");
            outside.close(connection);
        }
        let to = SocketAddr::new(Family::V4.ip(mesh.pod(pod)), 9000);
        mesh.write("deny.yaml", &policy("deny", pod, "DENY", "[{to: [{operation: {ports: [\"7000\"]}}]}]"));
        mesh.wait_reaches(&mut client, mesh.target(Family::V4, pod), false);
        assert!(!greeted(&mut outside, to), "{pod}: a denied port has no other entrance");
        mesh.remove("deny.yaml");
        mesh.wait_reaches(&mut client, mesh.target(Family::V4, pod), true);
    }
    drop(servers);
}
