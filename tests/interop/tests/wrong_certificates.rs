//! Clients whose certificates are wrong in every way, against our inbound side.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests fail as tests do"
)]

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use weft_interop_tests::{Authority, Credentials};
use weft_lab::within;
use weft_netns_tests::puppet::Role;
use weft_netns_tests::{Family, Mesh};

const PUPPET: &str = env!("CARGO_BIN_EXE_interop-puppet");
const PATIENCE: Duration = Duration::from_secs(20);
const HOUR: Duration = Duration::from_secs(3600);

/// Accepts every server: it is the client that is tried here.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("only TLS 1.3 is offered".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            leaf,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

fn client_config(credentials: Option<&Credentials>) -> ClientConfig {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer(provider)));
    let mut config = match credentials {
        None => builder.with_no_client_auth(),
        Some(Credentials { certificate, key }) => {
            let chain =
                CertificateDer::pem_slice_iter(certificate.as_bytes()).collect::<Result<_, _>>().unwrap();
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
            builder.with_client_auth_cert(chain, key).unwrap()
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// Asks for a stream to `authority` through the HBONE port of `peer`; the status, or how it was refused.
async fn connect(config: ClientConfig, peer: SocketAddr, authority: &str) -> io::Result<http::StatusCode> {
    let tcp = tokio::net::TcpStream::connect((peer.ip(), 15008)).await?;
    let tls = TlsConnector::from(Arc::new(config)).connect(ServerName::from(peer.ip()), tcp).await?;
    let (send, connection) = h2::client::handshake(tls).await.map_err(io::Error::other)?;
    let ask = async {
        let request = http::Request::connect(authority).body(()).unwrap();
        let mut ready = send.ready().await?;
        let (response, _stream) = ready.send_request(request, false)?;
        Ok(response.await?.status())
    };
    tokio::select! {
        answer = ask => answer.map_err(|error: h2::Error| io::Error::other(error)),
        ended = connection => Err(io::Error::other(format!("the tunnel ended: {ended:?}"))),
    }
}

/// [`connect`] from outside the mesh.
fn attempt(mesh: &Mesh, credentials: Option<&Credentials>, authority: &str) -> io::Result<http::StatusCode> {
    let config = client_config(credentials);
    let peer = mesh.target(Family::V4, "far");
    let result = within(mesh.lab().outside().netns(), || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let answer = runtime.block_on(async { timeout(PATIENCE, connect(config, peer, authority)).await });
        Ok(answer.unwrap_or_else(|_| panic!("no answer and no refusal from {peer} for {authority}")))
    });
    result.unwrap()
}

/// Every wrong certificate, with the words that must be in the log.
fn wrong_ones(authority: &Authority) -> Vec<(&'static str, Option<Credentials>, &'static str)> {
    let uri = |text: &str| vec![rcgen::SanType::URI(text.try_into().unwrap())];
    let now = SystemTime::now();
    let with = |change: &dyn Fn(&mut rcgen::CertificateParams)| Some(authority.issue_with("client", change));
    vec![
        ("no certificate", None, "no certificate"),
        ("self-signed", Some(Authority::self_signed("client")), "not issued by any root"),
        ("unknown issuer", Some(Authority::stranger().issue("client")), "not issued by any root"),
        (
            "expired",
            with(&|p| (p.not_before, p.not_after) = ((now - 2 * HOUR).into(), (now - HOUR).into())),
            "expired",
        ),
        (
            "not yet valid",
            with(&|p| (p.not_before, p.not_after) = ((now + HOUR).into(), (now + 2 * HOUR).into())),
            "not valid before",
        ),
        (
            "other trust domain",
            with(&|p| p.subject_alt_names = uri("spiffe://other.example/ns/shop/sa/client")),
            "trust domain",
        ),
        ("no name", with(&|p| p.subject_alt_names.clear()), "no URI name"),
        (
            "a DNS name only",
            with(&|p| p.subject_alt_names = vec![rcgen::SanType::DnsName("client.shop".try_into().unwrap())]),
            "no URI name",
        ),
        (
            "no workload",
            with(&|p| p.subject_alt_names = uri("https://cluster.local/ns/shop/sa/client")),
            "no identity",
        ),
        (
            "half a SPIFFE ID",
            with(&|p| p.subject_alt_names = uri("spiffe://cluster.local/ns/shop")),
            "no identity",
        ),
        (
            "two names",
            with(&|p| p.subject_alt_names.extend(uri("spiffe://cluster.local/ns/shop/sa/other"))),
            "several URI names",
        ),
        (
            "a usage that is neither client nor server",
            with(&|p| p.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::CodeSigning]),
            "not acceptable",
        ),
        ("a CA", with(&|p| p.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained)), "of a CA"),
    ]
}

#[test]
fn wrong_certificates_are_refused_counted_and_explained() {
    let Some(mesh) = Mesh::usual(PUPPET) else { return };
    let authority = Authority::of(mesh.lab());
    let (mut far, server) = mesh.serve("far", Role::Greet);
    let right = authority.issue("client");
    let to = mesh.target(Family::V4, "far").to_string();
    assert_eq!(attempt(&mesh, Some(&right), &to).unwrap(), http::StatusCode::OK, "a right one is accepted");
    // The tunnel is open when the connection is, which is before the application has accepted it.
    let accepted = weft_netns_tests::value_eventually("the application accepts it", || {
        Some(far.tally(server).0).filter(|accepted| *accepted > 0)
    });
    let failures =
        || mesh.metric("b", "istio_tcp_connections_failed_total", &[("response_flags", "TLS_FAILURE")]);
    for (seen, (what, credentials, words)) in wrong_ones(&authority).into_iter().enumerate() {
        let before = failures();
        let refused = attempt(&mesh, credentials.as_ref(), &to);
        assert!(refused.is_err(), "{what}: {refused:?}");
        let line = weft_netns_tests::value_eventually(&format!("a log line about {what}"), || {
            let text = mesh.agent("b").process().stdout();
            text.lines().filter(|line| line.contains("TLS_FAILURE")).nth(seen).map(str::to_owned)
        });
        assert!(line.contains(words), "{what} is explained with {words:?}: {line}");
        weft_netns_tests::eventually(&format!("{what} is counted"), || failures() > before);
    }
    assert_eq!(far.tally(server).0, accepted, "none of them reached the application");
    assert_eq!(attempt(&mesh, Some(&right), &to).unwrap(), http::StatusCode::OK, "and a right one still is");
}

#[test]
fn wrong_requests_are_answered_and_lead_nowhere() {
    let Some(mesh) = Mesh::usual(PUPPET) else { return };
    let authority = Authority::of(mesh.lab());
    let (_far, _) = mesh.serve("far", Role::Greet);
    let right = authority.issue("client");
    let far = mesh.target(Family::V4, "far");
    let ask = |authority: &str| attempt(&mesh, Some(&right), authority).unwrap().as_u16();
    assert_eq!(ask(&far.to_string()), 200);
    for (authority, status) in [
        (mesh.target(Family::V4, "client").to_string(), 400),
        ("127.0.0.1:7000".to_owned(), 400),
        (format!("{}:15008", far.ip()), 400),
        ("far.shop:7000".to_owned(), 400),
        (format!("{}:7999", far.ip()), 503),
    ] {
        assert_eq!(ask(&authority), status, "{authority}");
    }
}
