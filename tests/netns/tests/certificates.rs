//! The certificate authority: whom it refuses, and that traffic does without it for a while.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests fail as tests do"
)]

use std::time::{Duration, Instant, SystemTime};

use rcgen::{CertificateParams, KeyPair, SanType};
use weft_core::Identity;
use weft_identity::csr_api::UnixCaClient;
use weft_identity::{CaClient, IdentityError};
use weft_lab::AgentOptions;
use weft_netns_tests::puppet::{Connect, Role};
use weft_netns_tests::{Family, Mesh, Path, eventually, usual_spec};

const PUPPET: &str = env!("CARGO_BIN_EXE_netns-puppet");
/// Life of the certificates in the test of an outage.
const LIFE: Duration = Duration::from_secs(60);
/// How long the authority is away: longer than the certificates' half life (ruling 23).
const OUTAGE: Duration = Duration::from_secs(45);

/// Asks the authority's socket of a node for a certificate.
fn ask(mesh: &Mesh, node: &str, account: &str) -> Result<(), IdentityError> {
    let identity = Identity::new("cluster.local", "shop", account);
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(identity.to_string().as_str().try_into().unwrap())];
    let csr = params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();
    let client = UnixCaClient::new(&mesh.lab().ca_sockets().join(format!("{node}.sock")));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(client.sign(&csr, &identity)).map(drop)
}

#[test]
fn only_identities_of_the_nodes_own_pods_are_signed() {
    let Some(mut mesh) = Mesh::prepare(PUPPET, &usual_spec()) else { return };
    mesh.start_controller(&[]);
    assert!(ask(&mesh, "a", "client").is_ok());
    assert!(ask(&mesh, "b", "far").is_ok());
    for (node, account) in [("b", "client"), ("a", "far"), ("a", "nobody")] {
        let refused = ask(&mesh, node, account);
        assert!(matches!(refused, Err(IdentityError::Refused(_))), "{account} on {node}: {refused:?}");
    }
    mesh.write("namespace-shop.yaml", &weft_netns_tests::yaml::namespace("shop", false, &[]));
    eventually("a pod that left the mesh gets no certificate", || ask(&mesh, "a", "client").is_err());
}

/// The soonest end of an agent's certificates, in seconds from now.
fn soonest_end(mesh: &Mesh, node: &str) -> f64 {
    let metrics = mesh.agent(node).metrics().unwrap();
    let ends = metrics.select("weft_certificate_expiry_seconds", &[]).map(|sample| sample.value);
    ends.fold(f64::INFINITY, f64::min)
}

#[test]
fn traffic_does_without_the_authority_for_a_while() {
    let Some(mut mesh) = Mesh::prepare(PUPPET, &usual_spec()) else { return };
    let seconds = LIFE.as_secs().to_string();
    mesh.start_controller(&["--cert-lifetime", &seconds]);
    let options = AgentOptions { args: vec!["--cert-lifetime".into(), seconds], ..AgentOptions::default() };
    for node in ["a", "b"] {
        mesh.start_agent_with(node, &options);
    }
    mesh.wait_enrolled("a", &["client", "other"]);
    mesh.wait_enrolled("b", &["far"]);
    let (_far, _) = mesh.serve("far", Role::Greet);
    let mut client = mesh.puppet("client");
    let far = Connect::to(mesh.target(Family::V4, "far"));
    let established = mesh.connect_by(&mut client, &far, Path::Proxied);
    let enough = (OUTAGE + Duration::from_secs(5)).as_secs_f64();
    let fresh = weft_lab::eventually(LIFE, "all certificates were issued a moment ago", || {
        ["a", "b"].iter().all(|node| soonest_end(&mesh, node) > enough)
    });
    fresh.unwrap();

    mesh.kill_controller();
    let gone = Instant::now();
    while gone.elapsed() < OUTAGE {
        assert!(
            client.echoes(established),
            "an established connection, {:?} into the outage",
            gone.elapsed()
        );
        // On a slow machine the last connection may come so late that the certificates have really expired.
        let reached = mesh.reaches(&mut client, far.to);
        let expired = gone.elapsed().as_secs_f64() >= enough;
        assert!(reached || expired, "a new connection, {:?} into the outage", gone.elapsed());
        // Once a second is enough to notice a failure.
        client.receive_for(established, 1, Duration::from_secs(1));
    }
    for node in ["a", "b"] {
        assert!(
            soonest_end(&mesh, node) < LIFE.as_secs_f64() - OUTAGE.as_secs_f64() + 1.0,
            "none was renewed"
        );
    }
    mesh.start_controller(&["--cert-lifetime", &LIFE.as_secs().to_string()]);
    let renewed = weft_lab::eventually(LIFE, "the certificates are renewed", || {
        ["a", "b"].iter().all(|node| soonest_end(&mesh, node) > LIFE.as_secs_f64() / 2.0)
    });
    assert!(renewed.is_ok(), "{renewed:?} at {:?}", SystemTime::now());
    assert!(client.echoes(established), "rotation drops no connection");
    assert!(mesh.reaches(&mut client, far.to));
}
