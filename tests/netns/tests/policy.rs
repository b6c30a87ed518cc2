//! Policies that come and go as files, and what becomes of connections.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests fail as tests do"
)]

use std::net::SocketAddr;

use weft_netns_tests::puppet::{Connect, Connection, End, Puppet, Role};
use weft_netns_tests::yaml::{from_account, peer_authentication, policy, policy_with};
use weft_netns_tests::{Family, Mesh, Path, eventually};

const PUPPET: &str = env!("CARGO_BIN_EXE_netns-puppet");

/// Pod, its node, and how it is reached.
const SERVERS: [(&str, &str, Path); 3] =
    [("near", "a", Path::Direct), ("seven", "a", Path::Proxied), ("far", "b", Path::Proxied)];

fn open(mesh: &Mesh, client: &mut Puppet, family: Family, (pod, _, path): (&str, &str, Path)) -> Connection {
    mesh.connect_by(client, &family.connect(mesh.target(family, pod)), path)
}

/// Waits until a connection has been cut.
fn wait_cut(client: &mut Puppet, connection: Connection, what: &str) {
    let (_, end) = client.receive_for(connection, 1, std::time::Duration::from_secs(30));
    assert!(matches!(end, End::Eof | End::Reset), "{what} was not cut: {end:?}");
}

#[test]
fn a_deny_policy_comes_and_goes() {
    let Some(mesh) = Mesh::usual(PUPPET) else { return };
    let mut client = mesh.puppet("client");
    let mut other = mesh.puppet("other");
    for server in SERVERS {
        let (pod, node, _) = server;
        let (_puppet, _) = mesh.serve(pod, Role::Greet);
        let to = mesh.target(Family::V4, pod);
        let established = [Family::V4, Family::V6].map(|family| open(&mesh, &mut client, family, server));
        let kept = open(&mesh, &mut other, Family::V4, server);

        mesh.write("deny.yaml", &policy("no-client", pod, "DENY", &from_account("client")));
        mesh.wait_reaches(&mut client, to, false);
        for connection in established {
            wait_cut(&mut client, connection, &format!("an established connection to {pod}"));
        }
        assert!(other.echoes(kept), "what the policy does not deny goes on");
        mesh.wait_reaches(&mut other, to, true);

        let named = [("policy", "ns[shop]-policy[no-client]-rule[0]"), ("reason", "authorization")];
        eventually("the counter names the policy", || {
            // The first one may have been open, and cut, before the change was complete.
            assert!(!mesh.reaches(&mut client, to), "the next connection is denied");
            mesh.metric(node, "weft_refused_total", &named) >= 1.0
        });
        let line = mesh.log_line(node, "a refusal that names the policy", |line| {
            line["response_flags"] == "DENY" && line["policy"] == "ns[shop]-policy[no-client]-rule[0]"
        });
        assert_eq!(line["source_principal"], "spiffe://cluster.local/ns/shop/sa/client", "{line}");
        eventually("the cut connections are counted", || {
            mesh.metric(node, "weft_policy_cut_total", &[]) >= 2.0
        });

        mesh.remove("deny.yaml");
        mesh.wait_reaches(&mut client, to, true);
        let again = open(&mesh, &mut client, Family::V4, server);
        assert!(client.echoes(again), "direct where it was direct before");
    }
}

#[test]
fn an_allow_policy_admits_only_whom_it_names() {
    let Some(mesh) = Mesh::usual(PUPPET) else { return };
    let mut client = mesh.puppet("client");
    let mut other = mesh.puppet("other");
    let mut outside = mesh.outside();
    for server in SERVERS {
        let pod = server.0;
        let (_puppet, _) = mesh.serve(pod, Role::Greet);
        let to = mesh.target(Family::V4, pod);
        mesh.wait_reaches(&mut outside, to, true);
        mesh.write("allow.yaml", &policy("only-client", pod, "ALLOW", &from_account("client")));
        mesh.wait_reaches(&mut other, to, false);
        assert!(!mesh.reaches(&mut outside, to), "who has no identity is not admitted");
        // By identity on the direct path, too.
        let allowed = open(&mesh, &mut client, Family::V4, server);
        assert!(client.echoes(allowed));
        assert!(!mesh.reaches(&mut other, mesh.target(Family::V6, pod)));

        mesh.write("allow.yaml", &policy("only-client", pod, "ALLOW", &from_account("other")));
        mesh.wait_reaches(&mut other, to, true);
        wait_cut(&mut client, allowed, "a connection that is not allowed any more");
        mesh.remove("allow.yaml");
        mesh.wait_reaches(&mut client, to, true);
    }
}

#[test]
fn a_dry_run_denies_nothing_and_is_counted() {
    let Some(mesh) = Mesh::usual(PUPPET) else { return };
    let mut client = mesh.puppet("client");
    for server in SERVERS {
        let (pod, node, _) = server;
        let (_puppet, _) = mesh.serve(pod, Role::Greet);
        let to = mesh.target(Family::V4, pod);
        let established = open(&mesh, &mut client, Family::V4, server);
        let annotations = "{istio.io/dry-run: \"true\"}";
        let name = format!("try-{pod}");
        mesh.write("trial.yaml", &policy_with(&name, pod, "DENY", &from_account("client"), annotations));
        eventually(&format!("what the dry run would have answered is counted for {pod}"), || {
            assert!(mesh.reaches(&mut client, to), "a dry run denies nothing");
            let metrics = mesh.agent(node).metrics().unwrap();
            let mut counted = metrics.select("weft_dry_run_total", &[("outcome", "deny")]);
            counted.any(|sample| sample.value >= 1.0 && sample.labels["policy"].contains(&name))
        });
        assert!(client.echoes(established), "and cuts nothing");
        mesh.remove("trial.yaml");
    }
}

#[test]
fn strict_refuses_plaintext_from_outside() {
    let Some(mesh) = Mesh::usual(PUPPET) else { return };
    let mut client = mesh.puppet("client");
    let mut outside = mesh.outside();
    for server in SERVERS {
        let (pod, node, _) = server;
        let (_puppet, _) = mesh.serve(pod, Role::Greet);
        for family in Family::ALL {
            mesh.wait_reaches(&mut outside, mesh.target(family, pod), true);
        }
        let to = mesh.target(Family::V4, pod);
        let established = outside.connect(to);
        outside.greeting(established);

        mesh.write("strict.yaml", &peer_authentication(pod, "STRICT"));
        for family in Family::ALL {
            mesh.wait_reaches(&mut outside, mesh.target(family, pod), false);
        }
        wait_cut(&mut outside, established, "an established plaintext connection");
        let line = mesh.log_line(node, "a refusal that names the PeerAuthentication", |line| {
            line["response_flags"] == "DENY" && line.to_string().contains(&format!("shop/{pod}"))
        });
        assert!(line.to_string().contains("STRICT"), "{line}");
        eventually("the refusal is counted", || {
            mesh.metric(node, "weft_refused_total", &[("reason", "peer_authentication")]) >= 1.0
        });
        let inside = open(&mesh, &mut client, Family::V4, server);
        assert!(client.echoes(inside), "who has an identity is not concerned");

        mesh.remove("strict.yaml");
        mesh.wait_reaches(&mut outside, to, true);
    }
}

#[test]
fn ports_and_address_ranges_are_told_apart() {
    let Some(mesh) = Mesh::usual(PUPPET) else { return };
    let mut client = mesh.puppet("client");
    let mut outside = mesh.outside();
    for server in SERVERS {
        let pod = server.0;
        let (mut puppet, _) = mesh.serve(pod, Role::Greet);
        let second = puppet.serve(SocketAddr::new(Family::V6.any(), 7001), Role::Greet);
        let to = mesh.target(Family::V4, pod);
        let beside = SocketAddr::new(to.ip(), second.address.port());
        mesh.write(
            "port.yaml",
            &policy("no-7001", pod, "DENY", "[{to: [{operation: {ports: [\"7001\"]}}]}]"),
        );
        mesh.wait_reaches(&mut client, beside, false);
        assert!(mesh.reaches(&mut client, to), "another port is not concerned");
        let open = open(&mesh, &mut client, Family::V4, server);
        assert!(client.echoes(open));

        let range = format!("[{{from: [{{source: {{ipBlocks: [{}/32]}}}}]}}]", mesh.lab().outside().ipv4());
        mesh.write("port.yaml", &policy("no-outside", pod, "DENY", &range));
        mesh.wait_reaches(&mut outside, to, false);
        mesh.wait_reaches(&mut client, beside, true);
        assert!(mesh.reaches(&mut outside, mesh.target(Family::V6, pod)), "another address is not concerned");
        mesh.remove("port.yaml");
        mesh.wait_reaches(&mut outside, to, true);
    }
}

#[test]
fn the_source_is_preserved_for_clients_from_outside() {
    let Some(mesh) = Mesh::usual(PUPPET) else { return };
    let mut outside = mesh.outside();
    for (pod, _, _) in SERVERS {
        let (_puppet, _) = mesh.serve(pod, Role::Greet);
        for family in Family::ALL {
            let to = mesh.target(family, pod);
            let connection = outside.try_connect(family.connect(to)).unwrap();
            let (peer, local) = outside.greeting(connection);
            assert_eq!((peer.ip(), local), (family.ip(mesh.lab().outside()), to));
            assert!(outside.echoes(connection));
        }
    }
    let lost = outside.try_connect(Connect { wait_ms: 2_000, ..Connect::to(mesh.vip(Family::V4, "far")) });
    assert!(lost.is_err(), "a virtual address is the mesh's, nothing outside leads there");
}
