use std::io;

use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConnection, ServerConfig, ServerConnection};

use super::*;
use crate::testing::{Issued, SERIAL, TestCa};

const HOST: &str = "shop.example.com";
const SPIFFE: &str = "spiffe://example.com/ns/shop/sa/web";

/// A server that presents a certificate, and asks for one of `clients` where it is given.
fn server(issued: &Issued, clients: Option<&TestCa>) -> Arc<ServerConfig> {
    let chain = CertificateDer::from_pem_slice(issued.chain_pem.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).unwrap();
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone());
    let builder = builder.with_safe_default_protocol_versions().unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(ca.root_pem().as_bytes()).unwrap()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        }
    };
    let mut config = builder.with_single_cert(vec![chain], key).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

/// Moves records between both until neither has any, or one is not content.
fn shake(client: Arc<ClientConfig>, server: Arc<ServerConfig>, asked: &str) -> Result<(), rustls::Error> {
    let name = ServerName::try_from(asked.to_owned()).unwrap();
    let mut client = ClientConnection::new(client, name)?;
    let mut server = ServerConnection::new(server)?;
    loop {
        let mut moved = false;
        let mut records = Vec::new();
        while client.wants_write() {
            moved |= client.write_tls(&mut records).unwrap() > 0;
        }
        let mut left = records.as_slice();
        while !left.is_empty() {
            server.read_tls(&mut left).unwrap();
            server.process_new_packets()?;
        }
        let mut records = Vec::new();
        while server.wants_write() {
            moved |= server.write_tls(&mut records as &mut dyn io::Write).unwrap() > 0;
        }
        let mut left = records.as_slice();
        while !left.is_empty() {
            client.read_tls(&mut left).unwrap();
            client.process_new_packets()?;
        }
        if !moved {
            assert!(!client.is_handshaking() && !server.is_handshaking());
            return Ok(());
        }
    }
}

fn material(ca: &TestCa) -> Material {
    Material { authorities: Some(ca.root_pem().into_bytes()), ..Material::default() }
}

/// What becomes of a handshake in which the server has `names`, is asked for [`HOST`], and `wanted` are accepted.
fn outcome(ca: &TestCa, issued: &Issued, wanted: &[&str]) -> Result<(), CertificateError> {
    let wanted: Vec<Arc<str>> = wanted.iter().map(|name| (*name).into()).collect();
    let config = client_config(&material(ca), &wanted, Some(&b"h2"[..])).unwrap();
    shake(config, server(issued, None), HOST).map_err(|error| match error {
        rustls::Error::InvalidCertificate(error) => error,
        other => panic!("{other}"),
    })
}

#[test]
fn one_of_the_names_must_be_the_servers() {
    let ca = TestCa::new();
    for (names, wanted, right) in [
        (&[HOST][..], &[][..], true),
        (&["other.example.com", HOST], &[], true),
        (&["*.example.com"], &[], true),
        (&["other.example.com"], &[], false),
        (&[SPIFFE], &[], false),
        (&[HOST], &[HOST], true),
        (&[HOST], &["other.example.com"], false),
        (&["other.example.com"], &["wrong.example.com", "other.example.com"], true),
        (&["*.example.com"], &["other.example.com"], true),
        (&[SPIFFE], &[SPIFFE], true),
        (&["spiffe://example.com/ns/shop/sa/other"], &[SPIFFE], false),
        (&[HOST], &[SPIFFE], false),
        (&["192.0.2.1"], &["192.0.2.1"], true),
        (&["192.0.2.2"], &["192.0.2.1"], false),
        (&[HOST], &["not a name"], false),
    ] {
        let found = outcome(&ca, &ca.issue_named(names, false), wanted);
        assert_eq!(found.is_ok(), right, "{names:?} {wanted:?}: {found:?}");
    }
}

/// Also where the name is right: nobody vouches for it.
#[test]
fn the_chain_must_be_right_whatever_the_names() {
    let (ca, other) = (TestCa::new(), TestCa::new());
    for wanted in [&[][..], &[HOST]] {
        let found = outcome(&ca, &ca.issue_named(&[HOST], true), wanted).unwrap_err();
        assert!(
            matches!(found, CertificateError::Expired | CertificateError::ExpiredContext { .. }),
            "{found:?}"
        );
        let forged = outcome(&ca, &other.issue_named(&[HOST], false), wanted).unwrap_err();
        let unknown = matches!(forged, CertificateError::UnknownIssuer | CertificateError::BadSignature);
        assert!(unknown, "{forged:?}");
    }
}

#[test]
fn what_is_revoked_is_refused() {
    let ca = TestCa::new();
    let issued = ca.issue_named(&[HOST], false);
    for (serial, right) in [(SERIAL, false), (SERIAL + 1, true)] {
        let revoked = Some(ca.revoking(serial).into_bytes());
        let config = client_config(&Material { revoked, ..material(&ca) }, &[], Some(&b"h2"[..])).unwrap();
        assert_eq!(shake(config, server(&issued, None), HOST).is_ok(), right, "{serial}");
    }
}

#[test]
fn a_client_presents_its_certificate() {
    let (ca, clients) = (TestCa::new(), TestCa::new());
    let strict = server(&ca.issue_named(&[HOST], false), Some(&clients));
    let without = client_config(&material(&ca), &[], Some(&b"h2"[..])).unwrap();
    assert!(shake(without, strict.clone(), HOST).is_err());
    let own = clients.issue_named(&["client.example.com"], false);
    let own = Some((own.chain_pem.into_bytes(), own.key_pem.into_bytes()));
    let with = client_config(&Material { own, ..material(&ca) }, &[], Some(&b"h2"[..])).unwrap();
    shake(with, strict, HOST).unwrap();
}

#[test]
fn without_an_authority_nobody_is_asked_and_names_are_refused() {
    let ca = TestCa::new();
    let config = client_config(&Material::default(), &[], Some(&b"h2"[..])).unwrap();
    shake(config, server(&ca.issue_named(&["anything.example.com"], true), None), HOST).unwrap();
    let named = client_config(&Material::default(), &[HOST.into()], Some(&b"h2"[..]));
    assert_eq!(named.unwrap_err(), OriginationError::NamesWithoutAuthority);
}

#[test]
fn texts_that_cannot_be_used_say_so() {
    let ca = TestCa::new();
    let own = ca.issue_named(&[HOST], false);
    let other = ca.issue_named(&[HOST], false);
    let text = |text: &str| Some(text.as_bytes().to_vec());
    let pair =
        |certificate: &str, key: &str| Some((certificate.as_bytes().to_vec(), key.as_bytes().to_vec()));
    for (material, what) in [
        (Material { authorities: text("nothing"), ..Material::default() }, "authorities"),
        (Material { authorities: text(&own.key_pem), ..Material::default() }, "authorities"),
        (Material { revoked: text("nothing"), ..material(&ca) }, "revoked"),
        (Material { own: pair("nothing", &own.key_pem), ..material(&ca) }, "certificate"),
        (Material { own: pair(&own.chain_pem, "nothing"), ..material(&ca) }, "key"),
        (Material { own: pair(&own.chain_pem, &other.key_pem), ..material(&ca) }, "certificate with its key"),
    ] {
        let error = client_config(&material, &[], Some(&b"h2"[..])).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
        assert!(!error.contains("BEGIN"), "{error}");
    }
}
