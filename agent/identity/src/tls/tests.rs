use std::time::Duration;

use rustls::{ClientConnection, ServerConnection};
use rustls_pki_types::ServerName;

use super::*;
use crate::testing::{TestCa, Wrong};

fn cart() -> Identity {
    Identity::new("cluster.local", "shop", "cart")
}

fn store() -> Identity {
    Identity::new("cluster.local", "shop", "store")
}

/// What both ends say after the messages of a handshake have gone to and fro.
struct Outcome {
    client: Result<ClientConnection, rustls::Error>,
    server: Result<ServerConnection, rustls::Error>,
}

fn handshake(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> Outcome {
    let name = ServerName::try_from("10.0.0.1").unwrap();
    let mut client = ClientConnection::new(client, name).unwrap();
    let mut server = ServerConnection::new(server).unwrap();
    let (mut client_error, mut server_error) = (None, None);
    for _ in 0..10 {
        transfer(&mut client, &mut server);
        server_error = server_error.or(server.process_new_packets().err());
        transfer(&mut server, &mut client);
        client_error = client_error.or(client.process_new_packets().err());
    }
    Outcome { client: client_error.map_or(Ok(client), Err), server: server_error.map_or(Ok(server), Err) }
}

/// Whether a client and a server accept each other.
pub(crate) fn agree(client: &Hbone, server: &Hbone) -> Result<(), rustls::Error> {
    let outcome = handshake(client.client(server.identity()), server.server());
    outcome.client.and(outcome.server).map(drop)
}

/// Whether the client believes the server; what the server thinks of the client is not asked.
pub(crate) fn believes(client: &Hbone, server: &Hbone) -> bool {
    let outcome = handshake(client.client(server.identity()), server.server());
    !matches!(outcome.client, Err(rustls::Error::InvalidCertificate(_)))
}

fn transfer<A, B>(from: &mut rustls::ConnectionCommon<A>, to: &mut rustls::ConnectionCommon<B>) {
    let mut bytes = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut bytes).unwrap();
    }
    let mut unread = &*bytes;
    while !unread.is_empty() {
        to.read_tls(&mut unread).unwrap();
        // Makes room; the caller sees the same error again.
        let _ = to.process_new_packets();
    }
}

#[test]
fn two_workloads_agree_on_hybrid_keys_and_know_each_other() {
    let ca = TestCa::new();
    let outcome = handshake(ca.hbone(&cart()).client(&store()), ca.hbone(&store()).server());
    let (client, server) = (outcome.client.unwrap(), outcome.server.unwrap());
    assert!(!client.is_handshaking() && !server.is_handshaking());
    assert_eq!(key_exchange_group(&client), Some("X25519MLKEM768"));
    assert_eq!(key_exchange_group(&server), Some("X25519MLKEM768"));
    assert_eq!(client.alpn_protocol(), Some(&b"h2"[..]));
    assert_eq!(client.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    assert_eq!(
        client.negotiated_cipher_suite().map(|suite| suite.suite()),
        Some(rustls::CipherSuite::TLS13_AES_128_GCM_SHA256)
    );
    assert_eq!(server.server_name(), None, "the client sends no SNI");
    assert_eq!(client.tls13_tickets_received(), 0);
    assert_eq!(peer_identity(client.peer_certificates().unwrap()), Ok(store()));
    assert_eq!(peer_identity(server.peer_certificates().unwrap()), Ok(cart()));
}

/// What `explain` says about the peer's certificate, and the alert that the peer sees.
fn complaint(wrong: Wrong) -> (&'static str, &'static str) {
    match wrong {
        Wrong::TrustDomain => (
            "is spiffe://other.example/ns/shop/sa/store, of another trust domain than ours (`cluster.local`)",
            "CertificateUnknown",
        ),
        Wrong::Identity => (
            "is spiffe://cluster.local/ns/shop/sa/somebody-else, but spiffe://cluster.local/ns/shop/sa/store was expected",
            "CertificateUnknown",
        ),
        Wrong::Expired => ("certificate expired at 2", "CertificateExpired"),
        Wrong::NotYetValid => ("certificate is not valid before 2", "CertificateExpired"),
        Wrong::NoSan | Wrong::DnsSanOnly => ("has no URI name", "CertificateUnknown"),
        Wrong::TwoUriSans => (
            "has several URI names (`spiffe://cluster.local/ns/shop/sa/store`, `spiffe://cluster.local/ns/other/sa/other`)",
            "CertificateUnknown",
        ),
        Wrong::OtherUri => {
            ("`https://cluster.local/ns/shop/sa/cart` is not of the form", "CertificateUnknown")
        }
        Wrong::SelfSigned | Wrong::UnknownIssuer => ("unknown issuer", "UnknownCA"),
        Wrong::ForgedIssuer => ("did another CA with the name of ours issue it?", "DecryptError"),
        Wrong::Usage => ("extended key usage", "UnsupportedCertificate"),
        Wrong::CaAsLeaf => ("certificate of a CA as its own", "CertificateUnknown"),
    }
}

fn assert_complains(side: &str, wrong: Wrong, error: &rustls::Error) {
    let text = explain(error);
    let (expected, _) = complaint(wrong);
    assert!(text.contains(expected), "{side}, {wrong:?}: {text}");
}

fn assert_alerted(wrong: Wrong, result: Result<impl std::fmt::Debug, rustls::Error>) {
    let error = result.expect_err("the peer is told");
    let (_, alert) = complaint(wrong);
    assert!(explain(&error).contains(&format!("the alert {alert};")), "{wrong:?}: {}", explain(&error));
}

#[test]
fn a_client_refuses_every_wrong_server() {
    let ca = TestCa::new();
    for wrong in Wrong::ALL {
        let server = ca.wrong_hbone(&store(), wrong).server();
        let outcome = handshake(ca.hbone(&cart()).client(&store()), server);
        assert_complains("server", wrong, &outcome.client.expect_err("the client refuses"));
        assert_alerted(wrong, outcome.server);
    }
}

#[test]
fn a_server_refuses_every_wrong_client() {
    let ca = TestCa::new();
    for wrong in Wrong::ALL {
        let client = ca.wrong_hbone(&store(), wrong).client(&cart());
        let outcome = handshake(client, ca.hbone(&cart()).server());
        if wrong == Wrong::Identity {
            // Any workload of the trust domain may knock; policy decides later, on this identity.
            let server = outcome.server.unwrap();
            let identity = peer_identity(server.peer_certificates().unwrap()).unwrap();
            assert_eq!(identity.service_account(), "somebody-else");
            continue;
        }
        assert_complains("client", wrong, &outcome.server.expect_err("the server refuses"));
        assert_alerted(wrong, outcome.client);
    }
}

#[test]
fn a_client_without_certificate_is_refused() {
    let ca = TestCa::new();
    let server = ca.hbone(&store());
    let mut client = ClientConfig::builder_with_provider(Arc::clone(provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ServerVerifier::new(&server.trust, store())))
        .with_no_client_auth();
    client.alpn_protocols = vec![ALPN.to_vec()];
    let error = handshake(Arc::new(client), server.server()).server.expect_err("the server refuses");
    assert_eq!(explain(&error), "the peer presented no certificate");
}

#[test]
fn a_client_that_offers_no_h2_is_refused() {
    let ca = TestCa::new();
    let mut client = ClientConfig::clone(&ca.hbone(&cart()).client(&store()));
    client.alpn_protocols = vec![b"http/1.1".to_vec()];
    let error = handshake(Arc::new(client), ca.hbone(&store()).server()).server.expect_err("refused");
    assert!(explain(&error).contains("does not speak HBONE"), "{}", explain(&error));
}

#[test]
fn a_peer_without_the_hybrid_group_gets_a_classic_one() {
    let ca = TestCa::new();
    let classic = CryptoProvider {
        kx_groups: vec![aws_lc_rs::kx_group::SECP256R1],
        ..CryptoProvider::clone(provider())
    };
    let hbone = ca.hbone(&store());
    let verifier = ClientVerifier::new(&hbone.trust);
    let issued = ca.issue(&store());
    let mut server = ServerConfig::builder_with_provider(Arc::new(classic))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(Arc::new(verifier))
        .with_single_cert(
            certificates(&issued.chain_pem, "chain").unwrap(),
            PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).unwrap(),
        )
        .unwrap();
    server.alpn_protocols = vec![ALPN.to_vec()];
    let outcome = handshake(ca.hbone(&cart()).client(&store()), Arc::new(server));
    assert_eq!(key_exchange_group(&outcome.client.unwrap()), Some("secp256r1"));
}

#[test]
fn aliases_make_a_trust_domain_ours_in_both_directions() {
    let ca = TestCa::new();
    let old = Identity::new("old.example", "shop", "store");
    let issued = ca.issue(&cart());
    let root = ca.root_pem();
    let aliases = ["old.example".into()];
    let migrated = Hbone::from_pem(&cart(), &issued.chain_pem, &issued.key_pem, &root, &aliases).unwrap();
    let issued = ca.issue(&old);
    let aliases = ["cluster.local".into()];
    let behind = Hbone::from_pem(&old, &issued.chain_pem, &issued.key_pem, &root, &aliases).unwrap();
    let dialled = handshake(migrated.client(&store()), behind.server());
    assert!(dialled.client.is_ok() && dialled.server.is_ok());
    let accepted = handshake(behind.client(&cart()), migrated.server());
    assert!(accepted.client.is_ok() && accepted.server.is_ok());
    let other = Identity::new("cluster.local", "shop", "another");
    let error = handshake(migrated.client(&other), behind.server()).client.expect_err("refused");
    assert!(explain(&error).contains("was expected"), "{}", explain(&error));
}

#[test]
fn a_renewed_certificate_leaves_older_configurations_alone() {
    let ca = TestCa::new();
    let before = ca.hbone(&cart());
    let (server, client) = (before.server(), before.client(&store()));
    let outcome = handshake(client.clone(), ca.hbone(&store()).server());
    drop(before);
    let after = ca.hbone(&cart());
    assert!(!Arc::ptr_eq(&server, &after.server()));
    // The connection and the configuration that it was made with outlive the renewal.
    assert!(!outcome.client.unwrap().is_handshaking());
    assert!(handshake(client, ca.hbone(&store()).server()).server.is_ok());
    assert!(handshake(ca.hbone(&store()).client(&cart()), server).client.is_ok());
}

#[test]
fn material_that_peers_would_refuse_is_refused_at_once() {
    let ca = TestCa::new();
    for wrong in Wrong::ALL {
        let issued = ca.issue_wrong(&store(), wrong);
        let error =
            Hbone::from_pem(&store(), &issued.chain_pem, &issued.key_pem, &ca.root_pem(), &[]).unwrap_err();
        let expected = match wrong {
            Wrong::Identity => "it is for spiffe://cluster.local/ns/shop/sa/somebody-else",
            _ => complaint(wrong).0,
        };
        assert!(error.to_string().contains(expected), "{wrong:?}: {error}");
    }
}

#[test]
fn malformed_material_is_named() {
    let ca = TestCa::new();
    let (good, other, root) = (ca.issue(&cart()), ca.issue(&cart()), ca.root_pem());
    let cut = &good.chain_pem[..good.chain_pem.len() / 2];
    for (chain, key, roots, expected) in [
        ("", &*good.key_pem, &*root, "the certificate chain holds no certificate"),
        (cut, &good.key_pem, &root, "the certificate chain is no PEM"),
        (&good.chain_pem, "", &root, "the private key is no PEM"),
        (&good.chain_pem, &good.key_pem, "", "the root bundle holds no certificate"),
        (&good.chain_pem, &other.key_pem, &root, "does not belong to the private key"),
    ] {
        let error = Hbone::from_pem(&cart(), chain, key, roots, &[]).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

#[test]
fn explain_looks_into_io_errors() {
    let ca = TestCa::new();
    let server = ca.wrong_hbone(&store(), Wrong::Expired).server();
    let error = handshake(ca.hbone(&cart()).client(&store()), server).client.expect_err("refused");
    let wrapped = std::io::Error::new(std::io::ErrorKind::InvalidData, error);
    assert!(explain(&wrapped).contains("expired at"), "{}", explain(&wrapped));
    let plain = std::io::Error::new(std::io::ErrorKind::ConnectionReset, "reset");
    assert_eq!(explain(&plain), "reset");
}

#[test]
fn dates_are_for_people() {
    assert_eq!(
        date(SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_400)),
        "2023-11-14T22:13:20Z"
    );
}
