//! What a hostile pod may try, and what holds while the agent is gone.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests fail as tests do"
)]

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use weft_lab::{AgentOptions, PodSpec, poll_until, within};
use weft_netns_tests::puppet::{Connect, End, Puppet, Role};
use weft_netns_tests::yaml::{self, from_account, peer_authentication, policy, policy_with};
use weft_netns_tests::{Family, Mesh, Path, descriptors, eventually, usual_spec};

const PUPPET: &str = env!("CARGO_BIN_EXE_netns-puppet");
/// The bit of SO_MARK that the data path uses, and ztunnel's mark.
const MARKS: [u32; 3] = [0x1000_0000, 0x539, 0x1000_0539];

/// How long a connection may take, also one that is not expected to come about.
const LONG_MS: u64 = 10_000;

/// Whether a connection gets the server's greeting.
fn greeted(client: &mut Puppet, how: Connect) -> bool {
    let Ok(connection) = client.try_connect(how) else { return false };
    let (bytes, _) = client.receive_for(connection, 1, Duration::from_millis(LONG_MS));
    client.close(connection);
    !bytes.is_empty()
}

#[test]
fn a_mark_is_no_way_around_policy() {
    let Some(mesh) = Mesh::usual(PUPPET) else { return };
    let mut client = mesh.puppet("client");
    for pod in ["near", "seven", "far"] {
        let (_server, _) = mesh.serve(pod, Role::Greet);
        let to = mesh.target(Family::V4, pod);
        for mark in MARKS {
            assert!(greeted(&mut client, Connect { mark: Some(mark), ..Connect::to(to) }), "{pod} {mark:#x}");
        }
        mesh.write("deny.yaml", &policy("deny", pod, "DENY", &from_account("client")));
        mesh.wait_reaches(&mut client, to, false);
        for mark in MARKS {
            for family in Family::ALL {
                let how = Connect { mark: Some(mark), ..family.connect(mesh.target(family, pod)) };
                assert!(!greeted(&mut client, how), "{pod} {family:?} with mark {mark:#x}");
            }
        }
        mesh.remove("deny.yaml");
    }
}

/// Ports on which somebody listens on loopback in a pod.
fn loopback_listeners(mesh: &Mesh, pod: &str) -> Vec<u16> {
    let read = || Ok(fs::read_to_string("/proc/thread-self/net/tcp")?);
    let table = within(mesh.pod(pod).netns(), read).unwrap();
    let listening = table.lines().filter(|line| line.contains("0100007F:") && line.contains(" 0A "));
    let ports = listening.filter_map(|line| line.split_once("0100007F:")?.1.get(..4).map(str::to_owned));
    ports.map(|port| u16::from_str_radix(&port, 16).unwrap()).collect()
}

#[test]
fn the_agents_listeners_are_no_way_in() {
    let Some(mesh) = Mesh::usual(PUPPET) else { return };
    let (mut near, server) = mesh.serve("near", Role::Greet);
    let mut client = mesh.puppet("client");
    let ports = loopback_listeners(&mesh, "client");
    assert_eq!(ports.len(), 2, "an inbound and an outbound listener");
    let agent = mesh.agent("a").pid();
    let before = descriptors(agent);
    for port in ports {
        for ip in [Ipv4Addr::LOCALHOST, mesh.pod("client").ipv4()] {
            if let Ok(connection) = client.try_connect(Connect::to((ip, port).into())) {
                // Its end may come before the bytes are sent.
                let _ = client.send(connection, b"GET / HTTP/1.1\r\n\r\n");
                let (bytes, end) = client.receive(connection, 1);
                assert!(bytes.is_empty(), "somebody answered on {ip}:{port}: {bytes:?}");
                assert!(matches!(end, End::Eof | End::Reset), "{ip}:{port} stays open: {end:?}");
            }
        }
        let mut other = mesh.puppet("other");
        assert!(!greeted(&mut other, Connect::to((mesh.pod("client").ipv4(), port).into())));
    }
    eventually("no connection of the agent to itself is left", || descriptors(agent) <= before + 4);
    assert!(mesh.reaches(&mut client, mesh.target(Family::V4, "near")), "everything else works");
    assert_eq!(near.tally(server).0, 1, "and nothing else reached the server");
}

#[test]
fn a_forged_source_address_is_nobody() {
    let Some(mesh) = Mesh::usual(PUPPET) else { return };
    let mut client = mesh.puppet("client");
    let mut other = mesh.puppet("other");
    for pod in ["near", "seven", "far"] {
        let (_server, _) = mesh.serve(pod, Role::Greet);
        mesh.write("allow.yaml", &policy("only-client", pod, "ALLOW", &from_account("client")));
        for family in [Family::V4, Family::V6] {
            let to = mesh.target(family, pod);
            mesh.wait_reaches(&mut other, to, false);
            mesh.wait_reaches(&mut client, to, true);
            for mark in [None, Some(MARKS[0])] {
                let bind = Some(SocketAddr::new(family.ip(mesh.pod("client")), 0));
                let forged = Connect { bind, transparent: true, mark, wait_ms: 3_000, ..Connect::to(to) };
                assert!(!greeted(&mut other, forged), "{pod} {family:?} {mark:?}");
            }
        }
        mesh.remove("allow.yaml");
    }
    let refused = mesh.metric("a", "weft_refused_total", &[("reason", "forged_source")]);
    assert!(refused >= 1.0, "forged captured connections are counted");
}

/// Source ports below the ephemeral range are those of the agent's own onward connections.
#[test]
fn the_agents_source_ports_are_no_way_in() {
    let Some(mesh) = Mesh::usual(PUPPET) else { return };
    let mut client = mesh.puppet("client");
    for pod in ["near", "seven", "far"] {
        let (_server, _) = mesh.serve(pod, Role::Greet);
        let to = mesh.target(Family::V4, pod);
        let from = |port: u16| {
            let bind = Some(SocketAddr::new(mesh.pod("client").ipv4().into(), port));
            Connect { bind, wait_ms: LONG_MS, ..Connect::to(to) }
        };
        assert!(greeted(&mut client, from(2001)), "{pod}: an ordinary connection from such a port");
        mesh.write("deny.yaml", &policy("deny", pod, "DENY", &from_account("client")));
        mesh.wait_reaches(&mut client, to, false);
        for port in [2000, 15_008, 32_767] {
            for mark in [None, Some(MARKS[0])] {
                assert!(!greeted(&mut client, Connect { mark, ..from(port) }), "{pod} from {port} {mark:?}");
            }
        }
        mesh.remove("deny.yaml");
    }
}

#[test]
fn a_pod_cannot_reach_what_governs_it() {
    let Some(mesh) = Mesh::usual(PUPPET) else { return };
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(mesh.agent("a").admin_socket()), 0o600, "the admin socket");
    assert_eq!(mode(&mesh.lab().ca_sockets().join("a.sock")), 0o600, "the CSR API");
    assert_eq!(mode(&mesh.lab().node("a").unwrap().dir().join("bpf")), 0o700, "the pins");
    let read = || {
        Ok(fs::read_to_string("/proc/thread-self/net/tcp")?
            + &fs::read_to_string("/proc/thread-self/net/tcp6")?)
    };
    let sockets = within(mesh.lab().node("a").unwrap().netns(), read).unwrap();
    let ports = sockets.lines().filter(|line| line.contains(" 0A ")).filter_map(|line| {
        let local = line.split_whitespace().nth(1)?;
        u16::from_str_radix(local.rsplit(':').next()?, 16).ok()
    });
    let mut ports: Vec<u16> = ports.collect();
    ports.sort_unstable();
    assert_eq!(ports, [15020, 15021], "metrics and readiness are the only open ports of a node");
}

/// Pods of node b, each with another rule for the time without an agent.
fn gone_spec() -> weft_lab::LabSpec {
    let pod = |namespace: &str, name: &str| PodSpec::new("b", namespace, name).service_account(name);
    usual_spec()
        .pod(pod("shop", "strict"))
        .pod(pod("shop", "guarded"))
        .pod(pod("shop", "trial"))
        .pod(pod("calm", "strict"))
        .pod(pod("calm", "guarded"))
}

#[test]
fn without_its_agent_a_pod_gets_only_what_needs_no_decision() {
    let Some(mut mesh) = Mesh::prepare(PUPPET, &gone_spec()) else { return };
    mesh.write("calm.yaml", &yaml::namespace("calm", true, &[("weft.dev/agent-gone", "pass")]));
    mesh.write("strict.yaml", &peer_authentication("strict", "STRICT"));
    mesh.write("guarded.yaml", &policy("guarded", "guarded", "DENY", &from_account("nobody")));
    let trial =
        policy_with("trial", "trial", "DENY", &from_account("nobody"), "{istio.io/dry-run: \"true\"}");
    mesh.write("trial.yaml", &trial);
    for (name, text) in [
        ("calm-strict.yaml", peer_authentication("strict", "STRICT")),
        ("calm-guarded.yaml", policy("guarded", "guarded", "DENY", &from_account("nobody"))),
    ] {
        mesh.write(name, &text.replace("namespace: shop", "namespace: calm"));
    }
    mesh.start_controller(&[]);
    mesh.start_agent("a");
    mesh.start_agent("b");

    // Pod, and whether a plaintext client from outside reaches it with and without the agent.
    let table = [
        ("shop/far", true, true),
        ("shop/strict", false, false),
        ("shop/guarded", true, false),
        ("shop/trial", true, true),
        ("calm/strict", false, true),
        ("calm/guarded", true, true),
    ];
    let mut outside = mesh.outside();
    let mut client = mesh.puppet("client");
    let mut servers = Vec::new();
    for (key, with_agent, _) in table {
        let place = mesh.lab().pod(key).unwrap().place();
        let mut server = Puppet::start(PUPPET, &place.cgroup, &place.netns);
        servers.push(server.serve(SocketAddr::new(Family::V6.any(), 7000), Role::Greet));
        servers_keep(server);
        for ip in addresses(&mesh, key) {
            mesh.wait_reaches(&mut outside, (ip, 7000).into(), with_agent);
        }
    }
    assert!(mesh.reaches(&mut client, mesh.target(Family::V4, "far")));
    mesh.agent_mut("b").kill();
    for (key, _, without_agent) in table {
        for ip in addresses(&mesh, key) {
            let how = Connect { wait_ms: LONG_MS, ..Connect::to((ip, 7000).into()) };
            assert_eq!(greeted(&mut outside, how), without_agent, "{key} at {ip} without its agent");
        }
    }
    mesh.agent_mut("a").kill();
    for to in
        [mesh.target(Family::V4, "far"), mesh.target(Family::V6, "far"), mesh.target(Family::V4, "seven")]
    {
        let how = Connect { wait_ms: 3_000, ..Connect::to(to) };
        assert!(!greeted(&mut client, how), "captured outbound connections are refused without the agent");
    }
}

/// A puppet that lives as long as the lab.
fn servers_keep(server: Puppet) {
    std::mem::forget(server);
}

fn addresses(mesh: &Mesh, key: &str) -> [IpAddr; 2] {
    let pod = mesh.lab().pod(key).unwrap();
    [pod.ipv4().into(), pod.ipv6().into()]
}

#[test]
fn no_plaintext_reaches_a_strict_pod_whose_agent_was_killed() {
    let Some(mut mesh) = Mesh::usual(PUPPET) else { return };
    let (mut far, server) = mesh.serve("far", Role::Silent);
    let mut outside = mesh.outside();
    let to = mesh.target(Family::V4, "far");
    let before = outside.connect(to);
    assert!(outside.echoes(before), "plaintext is accepted while the pod is not strict");
    mesh.write("strict.yaml", &peer_authentication("far", "STRICT"));
    eventually("the established plaintext connection is cut", || !outside.echoes(before));

    mesh.agent_mut("b").kill();
    let (accepted, bytes) = far.tally(server);
    for _ in 0..20 {
        for family in Family::ALL {
            let how = Connect { wait_ms: 500, ..family.connect(mesh.target(family, "far")) };
            if let Ok(connection) = outside.try_connect(how) {
                // Refusal to take the bytes is as good as losing them.
                let _ = outside.send(connection, b"plaintext");
                outside.close(connection);
            }
        }
    }
    assert_eq!(far.tally(server), (accepted, bytes), "not one connection, not one byte");
}

#[test]
fn direct_flows_need_a_sign_of_life() {
    let Some(mut mesh) = Mesh::usual(PUPPET) else { return };
    let (_near, _) = mesh.serve("near", Role::Greet);
    let mut client = mesh.puppet("client");
    let to = mesh.target(Family::V4, "near");
    let established = mesh.connect_by(&mut client, &Connect::to(to), Path::Direct);
    mesh.agent_mut("a").kill();
    assert!(greeted(&mut client, Connect::to(to)), "the kernel still authorises direct flows");
    let refused = poll_until(Duration::from_secs(90), || {
        let how = Connect { wait_ms: 2_000, ..Connect::to(to) };
        if greeted(&mut client, how) { Err(std::io::Error::other("still reached").into()) } else { Ok(()) }
    });
    refused.expect("without a heartbeat new direct flows are refused after half a minute");
    assert!(client.echoes(established), "established ones go on");
}

#[test]
fn namespaces_that_are_not_the_pods_own_are_refused() {
    let Some(mut mesh) = Mesh::prepare(PUPPET, &usual_spec()) else { return };
    let pod = |name: &str, netns: &str, ip: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: shop\n  annotations: \
             {{weft.dev/netns: {netns}}}\nspec: {{nodeName: a, serviceAccountName: x}}\n\
             status: {{podIPs: [{{ip: {ip}}}]}}\n---\n"
        )
    };
    let node = mesh.lab().node("a").unwrap();
    let (node_netns, node_ip) = (node.netns().display().to_string(), node.ipv4().to_string());
    let outside = mesh.lab().outside().netns().display().to_string();
    let near = mesh.pod("near").netns().display().to_string();
    let text = pod("of-host", "/proc/1/ns/net", "10.9.9.1")
        + &pod("of-agent", &node_netns, &node_ip)
        + &pod("of-other", &near, &mesh.pod("near").ipv4().to_string())
        + &pod("wrong-ip", &outside, "10.9.9.2")
        + &pod("no-netns", "/run/netns/weft-lab-there-is-none", "10.9.9.3")
        + &pod("no-file", "/etc/hostname", "10.9.9.4");
    mesh.write("refused.yaml", &text);
    mesh.start_controller(&[]);
    mesh.start_agent_with("a", &AgentOptions::default());
    mesh.wait_enrolled("a", &["client", "other", "seven"]);
    for (name, words) in [
        ("of-host", "namespace"),
        ("of-agent", "agent's own namespace"),
        ("wrong-ip", "10.9.9.2"),
        ("no-netns", "namespace is gone"),
        ("no-file", "not a network namespace"),
    ] {
        let key = format!("shop/{name}");
        mesh.wait_state("a", &key, "failed");
        let reason = mesh.state("a", &key).1;
        assert!(reason.contains(words), "{key}: {reason}");
    }
    // Two pods claim one namespace and one address: one of them at most is enrolled.
    eventually("one of the two that share a namespace is refused", || {
        let states = ["near", "of-other"].map(|name| mesh.state("a", &format!("shop/{name}")).0);
        states.iter().filter(|state| *state == "enrolled").count() == 1
    });
}

#[test]
fn encryption_on_one_node_where_it_is_asked_for() {
    let Some(mesh) = Mesh::usual(PUPPET) else { return };
    let servers = ["near", "seven"].map(|pod| mesh.serve(pod, Role::Greet));
    let mut client = mesh.puppet("client");
    mesh.connect_by(&mut client, &Connect::to(mesh.target(Family::V4, "near")), Path::Direct);
    let tls = || {
        let labels = [("connection_security_policy", "mutual_tls"), ("destination_workload", "near")];
        mesh.metric("a", "istio_tcp_connections_opened_total", &labels)
    };
    assert_eq!(tls(), 0.0, "there is none where nobody asked");
    mesh.write("namespace-shop.yaml", &yaml::namespace("shop", true, &[("weft.dev/same-node", "encrypt")]));
    for pod in ["near", "seven"] {
        for family in Family::ALL {
            eventually("the connection is encrypted", || {
                let connection =
                    mesh.connect_by(&mut client, &family.connect(mesh.target(family, pod)), Path::Proxied);
                assert!(client.echoes(connection));
                client.close(connection);
                mesh.log_of("a", "outbound", connection.local)["mesh_path"] == "hbone"
            });
        }
    }
    assert!(tls() >= 1.0, "and the metrics say so");
    mesh.write("namespace-shop.yaml", &yaml::namespace("shop", true, &[]));
    mesh.connect_by(&mut client, &Connect::to(mesh.target(Family::V4, "near")), Path::Direct);
    drop(servers);
}
