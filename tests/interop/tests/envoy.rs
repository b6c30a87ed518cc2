//! HBONE with a real Envoy at the other end, in both directions.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests fail as tests do"
)]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use weft_interop_tests::{Authority, Envoy, EnvoyBinary, client_config, server_config};
use weft_lab::PodSpec;
use weft_netns_tests::puppet::{Connect, Connection, End, Puppet, Role};
use weft_netns_tests::yaml::{from_account, policy};
use weft_netns_tests::{Family, Mesh, privileged, usual_spec};

const PUPPET: &str = env!("CARGO_BIN_EXE_interop-puppet");
const MIB: u64 = 1 << 20;
const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/client";
const FAR: &str = "spiffe://cluster.local/ns/shop/sa/far";
/// Where Envoy's client side listens.
const LOCAL: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9000);

fn envoy() -> Option<EnvoyBinary> {
    if privileged() { EnvoyBinary::get() } else { None }
}

/// Bytes both ways, then each side's end in turn. The greeting has been read, the server counts.
fn half_close(client: &mut Puppet, to: SocketAddr) {
    let connection = client.connect(to);
    client.greeting(connection);
    client.send(connection, &[7; 300_000]).unwrap();
    client.shutdown(connection);
    let (bytes, end) = client.receive(connection, usize::MAX);
    assert_eq!((String::from_utf8(bytes).unwrap().as_str(), end), ("300000\n", End::Eof));
}

#[test]
fn envoy_calls_our_pods() {
    let Some(binary) = envoy() else { return };
    let Some(mesh) = Mesh::usual(PUPPET) else { return };
    let authority = Authority::of(mesh.lab());
    let own = authority.issue("client");
    let outside = mesh.lab().outside();
    for family in [Family::V4, Family::V6] {
        let (mut far, greeter) = mesh.serve("far", Role::Greet);
        let target = mesh.target(family, "far");
        let config = client_config(&authority, &own, LOCAL, target, FAR);
        let envoy = Envoy::start(&binary, mesh.lab(), outside.place(), "envoy-client", &config);
        let mut client = mesh.outside();
        let connection = client.connect(LOCAL);
        let (peer, local) = client.greeting(connection);
        assert_eq!((peer.ip(), local), (family.ip(outside), target), "the tunnel's source is preserved");
        assert_eq!(client.exchange(connection, 10 * MIB), Ok(10 * MIB));
        client.close(connection);
        let line = mesh
            .log_line("b", "the connection from Envoy", |line| line["bytes_sent"].as_u64() >= Some(10 * MIB));
        assert_eq!(line["source_principal"], CLIENT, "{line}");
        assert_eq!(line["mesh_path"], "hbone", "{line}");
        far.stop(greeter);
        drop(far);
        let (_far, _) = mesh.serve("far", Role::Count);
        half_close(&mut client, LOCAL);
        drop(envoy);
    }
}

#[test]
fn our_policy_holds_for_envoy() {
    let Some(binary) = envoy() else { return };
    let Some(mesh) = Mesh::usual(PUPPET) else { return };
    let authority = Authority::of(mesh.lab());
    let (_far, _) = mesh.serve("far", Role::Greet);
    let target = mesh.target(Family::V4, "far");
    let config = client_config(&authority, &authority.issue("client"), LOCAL, target, FAR);
    let _envoy = Envoy::start(&binary, mesh.lab(), mesh.lab().outside().place(), "envoy-client", &config);
    let mut client = mesh.outside();
    let established = greeted(&mut client, LOCAL).expect("nothing is denied yet");

    mesh.write("deny.yaml", &policy("no-client", "far", "DENY", &from_account("client")));
    weft_netns_tests::eventually("a new connection is refused", || greeted(&mut client, LOCAL).is_none());
    let (_, end) = client.receive(established, 1);
    assert!(matches!(end, End::Eof | End::Reset), "the established one is cut: {end:?}");
    let line = mesh.log_line("b", "the refusal", |line| {
        line["response_flags"] == "DENY" && line["source_principal"] == CLIENT
    });
    assert_eq!(line["policy"], "ns[shop]-policy[no-client]-rule[0]", "{line}");

    mesh.remove("deny.yaml");
    weft_netns_tests::eventually("it is admitted again", || greeted(&mut client, LOCAL).is_some());
}

/// A connection that reached the application behind Envoy or behind us.
fn greeted(client: &mut Puppet, to: SocketAddr) -> Option<Connection> {
    let connection = client.try_connect(Connect::to(to)).ok()?;
    let (bytes, _) = client.receive(connection, 1);
    (!bytes.is_empty()).then_some(connection)
}

/// The usual mesh without an agent on node b, where Envoy takes its place in pod `envoy` and `liar`.
fn mesh_with_foreign_pods() -> Option<Mesh> {
    let pod = |name: &str| PodSpec::new("b", "shop", name).service_account(name);
    let mut mesh = Mesh::prepare(PUPPET, &usual_spec().pod(pod("envoy")).pod(pod("liar")))?;
    mesh.start_controller(&[]);
    mesh.start_agent("a");
    Some(mesh)
}

#[test]
fn our_pods_call_envoy() {
    let Some(binary) = envoy() else { return };
    let Some(mesh) = mesh_with_foreign_pods() else { return };
    let authority = Authority::of(mesh.lab());
    let own = authority.issue("envoy");
    let pod = mesh.pod("envoy");
    for family in [Family::V4, Family::V6] {
        let application = SocketAddr::new(family.loopback(), 7000);
        let (mut server, greeter) = mesh.serve("envoy", Role::Greet);
        let config = server_config(&authority, &own, family.ip(pod), &[CLIENT], application);
        let envoy = Envoy::start(&binary, mesh.lab(), pod.place(), "envoy-server", &config);
        let mut client = mesh.puppet("client");
        for to in [mesh.target(family, "envoy"), mesh.vip(family, "envoy")] {
            let connection = client.connect(to);
            client.greeting(connection);
            assert_eq!(client.exchange(connection, 10 * MIB), Ok(10 * MIB));
            client.close(connection);
            let from = format!("for=\"{}\"", connection.local);
            let line =
                envoy.log_line(|line| line["forwarded"].as_str().is_some_and(|text| text.contains(&from)));
            assert_eq!(line["authority"], mesh.target(family, "envoy").to_string(), "{line}");
            assert_eq!((&line["method"], &line["status"]), (&"CONNECT".into(), &200.into()), "{line}");
            assert_eq!((&line["peer"], &line["tls"]), (&CLIENT.into(), &"TLSv1.3".into()), "{line}");
            assert_eq!(line["protocol"], "HTTP/2", "{line}");
            assert_eq!(line["peer_address"], family.ip(mesh.pod("client")).to_string(), "{line}");
            assert!(line["traceparent"].as_str().is_some_and(|id| id.starts_with("00-")), "{line}");
            let baggage = line["baggage"].as_str().unwrap_or_default().to_owned();
            assert!(baggage.contains("k8s.namespace.name=shop"), "{line}");
        }
        server.stop(greeter);
        drop(server);
        let (_server, _) = mesh.serve("envoy", Role::Count);
        half_close(&mut client, mesh.target(family, "envoy"));
        drop(envoy);
    }
}

#[test]
fn identities_are_checked_on_both_sides() {
    let Some(binary) = envoy() else { return };
    let Some(mesh) = mesh_with_foreign_pods() else { return };
    let authority = Authority::of(mesh.lab());
    let application = SocketAddr::new(Family::V4.loopback(), 7000);
    let start = |pod: &str, account: &str| {
        let ip = Family::V4.ip(mesh.pod(pod));
        let config = server_config(&authority, &authority.issue(account), ip, &[CLIENT], application);
        let envoy =
            Envoy::start(&binary, mesh.lab(), mesh.pod(pod).place(), &format!("envoy-{pod}"), &config);
        (mesh.serve(pod, Role::Greet), envoy)
    };
    let (_honest, _liar) = (start("envoy", "envoy"), start("liar", "other"));
    let mut client = mesh.puppet("client");
    let mut other = mesh.puppet("other");
    let honest = mesh.target(Family::V4, "envoy");
    assert!(greeted(&mut client, honest).is_some(), "both are who they should be");
    assert!(greeted(&mut other, honest).is_none(), "Envoy does not accept other");
    for to in [mesh.target(Family::V4, "liar"), mesh.vip(Family::V4, "liar")] {
        assert!(greeted(&mut client, to).is_none(), "we do not accept a server that is not who it should be");
    }
    let line = mesh.log_line("a", "the refusal of the wrong server", |line| {
        line["response_flags"] == "TLS_FAILURE" && line.to_string().contains("sa/liar")
    });
    assert!(line.to_string().contains("sa/other"), "it says who was there: {line}");
}
