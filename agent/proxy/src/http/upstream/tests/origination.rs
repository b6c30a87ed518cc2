//! TLS that a policy asks for, towards real TLS servers (D-18).

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weft_core::resource::destination_rule::{ClientCertificates, ClientTls, ClientTlsMode};
use weft_identity::testing::{Issued, TestCa};

use std::time::Duration;

use super::super::SendErrorKind;
use super::super::origination::FRESH;
use super::health::pass;
use super::*;
use crate::ProxyConfig;
use crate::testbed::{run, tls_server};

const HOST: &str = "shop.example.com";

/// What a server saw of a client.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    name: Option<String>,
    protocol: Option<Vec<u8>>,
    certificates: usize,
}

/// A TLS server that answers one request on each connection.
struct Server {
    addr: SocketAddr,
    seen: Rc<RefCell<Vec<Seen>>>,
}

impl Server {
    /// Presents `issued`, and wants a certificate of `clients` where it is given.
    async fn new(ip: IpAddr, issued: &Issued, clients: Option<&TestCa>) -> Self {
        let acceptor = tls_server(issued, clients, &[b"http/1.1"]);
        let listener = TcpListener::bind((ip, 0)).await.unwrap();
        let server = Self { addr: listener.local_addr().unwrap(), seen: Rc::default() };
        let seen = server.seen.clone();
        tokio::task::spawn_local(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, seen) = (acceptor.clone(), seen.clone());
                tokio::task::spawn_local(async move {
                    // A client that does not trust us goes.
                    let Ok(mut stream) = acceptor.accept(stream).await else { return };
                    let connection = stream.get_ref().1;
                    let found = Seen {
                        name: connection.server_name().map(str::to_owned),
                        protocol: connection.alpn_protocol().map(<[u8]>::to_vec),
                        certificates: connection.peer_certificates().map_or(0, <[_]>::len),
                    };
                    let mut request = Vec::new();
                    while !request.ends_with(b"hello") {
                        if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
                            return;
                        }
                    }
                    seen.borrow_mut().push(found);
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
                });
            }
        });
        server
    }

    fn cluster(&self, tls: ClientTls) -> Arc<Cluster> {
        cluster(&[self.addr], ClusterPolicy { tls: Some(tls), ..policy() })
    }
}

/// A node with a directory of certificates.
fn node() -> (Client, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("shop")).unwrap();
    let config = ProxyConfig { tls_files: Some(directory.path().into()), ..ProxyConfig::default() };
    (Client::new(Bed::with(config, "a"), UpstreamProtocol::Http1), directory)
}

fn write(directory: &TempDir, name: &str, text: &str) {
    std::fs::write(directory.path().join("shop").join(name), text).unwrap();
}

fn simple(certificates: Option<ClientCertificates>, names: &[&str]) -> ClientTls {
    ClientTls {
        mode: ClientTlsMode::Simple,
        sni: Some(HOST.into()),
        subject_alt_names: names.iter().map(|name| (*name).into()).collect(),
        certificates: certificates.map(Arc::new),
    }
}

fn files(authorities: &str) -> ClientCertificates {
    ClientCertificates {
        namespace: "shop".into(),
        authorities: Some(authorities.into()),
        revoked: None,
        certificate: None,
        key: None,
        credential: None,
        unverified: false,
    }
}

#[test]
fn without_certificates_tls_is_begun_with_the_name_of_the_server() {
    run(async {
        let client = Client::new(Bed::new("a"), UpstreamProtocol::Http1);
        let issued = TestCa::new().issue_named(&["anything.example.com"], true);
        let server = Server::new(client.bed.other_ip, &issued, None).await;
        let cluster = server.cluster(simple(None, &[]));
        let sent = client.send(&cluster, get()).await.unwrap();
        assert_eq!(read(sent.response.into_body()).await, "ok");
        let seen = Seen { name: Some(HOST.into()), protocol: Some(b"http/1.1".to_vec()), certificates: 0 };
        assert_eq!(*server.seen.borrow(), [seen]);
    });
}

#[test]
fn a_server_is_verified_by_its_chain_its_name_and_its_time() {
    run(async {
        let (client, directory) = node();
        let (ca, other) = (TestCa::new(), TestCa::new());
        write(&directory, "ca.pem", &ca.root_pem());
        let ip = client.bed.other_ip;
        for (issued, names, right) in [
            (ca.issue_named(&[HOST], false), &[][..], true),
            (ca.issue_named(&["other.example.com"], false), &[], false),
            (ca.issue_named(&["other.example.com"], false), &["other.example.com"], true),
            (ca.issue_named(&[HOST], false), &["spiffe://example.com/ns/shop/sa/web"], false),
            (ca.issue_named(&[HOST], true), &[], false),
            (other.issue_named(&[HOST], false), &[], false),
            (other.issue_named(&[HOST], false), &[HOST], false),
        ] {
            let server = Server::new(ip, &issued, None).await;
            let before = client.counter("ssl_connection_error");
            let found = client.get(&server.cluster(simple(Some(files("/ca.pem")), names))).await;
            assert_eq!(found.is_ok(), right, "{names:?}: {found:?}");
            assert_eq!(
                server.seen.borrow().len(),
                usize::from(right),
                "what is not verified sees no request"
            );
            if let Err(error) = found {
                assert_eq!(error.kind, SendErrorKind::ConnectFailure);
                assert!(error.detail.contains("certificate"), "{}", error.detail);
                assert!(error.request.is_some());
                assert_eq!(client.counter("ssl_connection_error"), before + 1);
            }
        }
    });
}

#[test]
fn mutual_presents_the_clients_certificate() {
    run(async {
        let (client, directory) = node();
        let (ca, clients) = (TestCa::new(), TestCa::new());
        let own = clients.issue_named(&["client.example.com"], false);
        write(&directory, "ca.pem", &ca.root_pem());
        write(&directory, "own.pem", &own.chain_pem);
        write(&directory, "own.key", &own.key_pem);
        let issued = ca.issue_named(&[HOST], false);
        let server = Server::new(client.bed.other_ip, &issued, Some(&clients)).await;
        let certificates = ClientCertificates {
            certificate: Some("/own.pem".into()),
            key: Some("/own.key".into()),
            ..files("/ca.pem")
        };
        let mutual = ClientTls { mode: ClientTlsMode::Mutual, ..simple(Some(certificates), &[]) };
        client.get(&server.cluster(mutual)).await.unwrap();
        assert_eq!(server.seen.borrow().iter().map(|seen| seen.certificates).collect::<Vec<_>>(), [1]);
        let without = server.cluster(simple(Some(files("/ca.pem")), &[]));
        assert!(client.get(&without).await.is_err());
        assert_eq!(server.seen.borrow().len(), 1);
    });
}

#[test]
fn a_policy_that_cannot_be_kept_sends_nothing() {
    run(async {
        let (client, directory) = node();
        let without = Client::new(Bed::new("a"), UpstreamProtocol::Http1);
        let ca = TestCa::new();
        write(&directory, "ca.pem", &ca.root_pem());
        write(&directory, "nonsense.pem", "nonsense");
        let backend = Backend::new(client.bed.other_ip, UpstreamProtocol::Http1).await;
        let mutual = |certificates| ClientTls { mode: ClientTlsMode::Mutual, ..simple(certificates, &[]) };
        let secret = ClientCertificates { credential: Some("shop".into()), authorities: None, ..files("") };
        let half = ClientCertificates { certificate: Some("/ca.pem".into()), ..files("/ca.pem") };
        for (client, tls, why) in [
            (&client, mutual(None), "MUTUAL needs"),
            (&client, mutual(Some(files("/ca.pem"))), "MUTUAL needs"),
            (&client, simple(None, &[HOST]), "without the certificates of an authority"),
            (&client, simple(Some(files("/missing.pem")), &[]), "/missing.pem of namespace shop"),
            (&client, simple(Some(files("../ca.pem")), &[]), "leads out"),
            (&client, simple(Some(files("/nonsense.pem")), &[]), "certificates of the authorities"),
            (&client, simple(Some(secret.clone()), &[]), "shop of namespace shop has no `ca.crt`"),
            (&client, mutual(Some(secret)), "shop of namespace shop has no `ca.crt`"),
            (&client, simple(Some(half), &[]), "belong together"),
            (&without, simple(Some(files("/ca.pem")), &[]), "--tls-files"),
        ] {
            let cluster = cluster(&[backend.addr], ClusterPolicy { tls: Some(tls), ..policy() });
            let error = client.get(&cluster).await.unwrap_err();
            assert_eq!(error.kind, SendErrorKind::ConnectFailure);
            assert!(error.detail.contains(why), "{}", error.detail);
            assert!(error.request.is_some());
        }
        assert_eq!(backend.connections.get(), 0);
        assert_eq!(client.counter("ssl_connection_error"), 9);
    });
}

fn secret(name: &str) -> ClientCertificates {
    ClientCertificates { credential: Some(name.into()), authorities: None, ..files("") }
}

/// `credentialName`: agents take Secrets as they are mounted, those of the client's namespace.
#[test]
fn a_secret_is_a_directory_of_its_name() {
    run(async {
        let (client, directory) = node();
        let (ca, clients) = (TestCa::new(), TestCa::new());
        let own = clients.issue_named(&["client.example.com"], false);
        for name in ["typed", "generic", "apart", "apart-cacert", "half"] {
            std::fs::create_dir(directory.path().join("shop").join(name)).unwrap();
        }
        for (name, text) in [
            ("typed/tls.crt", &own.chain_pem),
            ("typed/tls.key", &own.key_pem),
            ("typed/ca.crt", &ca.root_pem()),
            ("generic/cert", &own.chain_pem),
            ("generic/key", &own.key_pem),
            ("generic/cacert", &ca.root_pem()),
            ("apart/tls.crt", &own.chain_pem),
            ("apart/tls.key", &own.key_pem),
            ("apart-cacert/ca.crt", &ca.root_pem()),
            ("half/tls.crt", &own.chain_pem),
            ("half/ca.crt", &ca.root_pem()),
        ] {
            write(&directory, name, text);
        }
        let issued = ca.issue_named(&[HOST], false);
        let server = Server::new(client.bed.other_ip, &issued, Some(&clients)).await;
        let mutual =
            |name: &str| ClientTls { mode: ClientTlsMode::Mutual, ..simple(Some(secret(name)), &[]) };
        for name in ["typed", "generic", "apart"] {
            client.get(&server.cluster(mutual(name))).await.unwrap();
        }
        assert_eq!(server.seen.borrow().iter().map(|seen| seen.certificates).collect::<Vec<_>>(), [1, 1, 1]);
        let without = server.cluster(mutual("half"));
        assert!(client.get(&without).await.unwrap_err().detail.contains("no `tls.crt` with its `tls.key`"));
        let open = Server::new(client.bed.other_ip, &issued, None).await;
        for name in ["typed", "half", "configmap://shop/half"] {
            client.get(&open.cluster(simple(Some(secret(name)), &[]))).await.unwrap();
        }
        assert_eq!(open.seen.borrow().iter().map(|seen| seen.certificates).collect::<Vec<_>>(), [0, 0, 0]);
        let other = Server::new(client.bed.other_ip, &TestCa::new().issue_named(&[HOST], false), None).await;
        assert!(
            client.get(&other.cluster(simple(Some(secret("typed")), &[]))).await.is_err(),
            "it is verified"
        );
        let unverified = ClientCertificates { unverified: true, ..secret("typed") };
        client.get(&other.cluster(simple(Some(unverified), &[]))).await.unwrap();
        let stolen = open.cluster(simple(Some(secret("../bank/typed")), &[]));
        assert!(client.get(&stolen).await.unwrap_err().detail.contains("leads out"));
    });
}

/// Files that are replaced count from then on, for new connections; where they are the same, nothing changes.
#[test]
fn new_files_are_noticed() {
    run(async {
        let (client, directory) = node();
        let (ca, next) = (TestCa::new(), TestCa::new());
        write(&directory, "ca.pem", &ca.root_pem());
        let old = Server::new(client.bed.other_ip, &ca.issue_named(&[HOST], false), None).await;
        let new = Server::new(client.bed.other_ip, &next.issue_named(&[HOST], false), None).await;
        let tls = || simple(Some(files("/ca.pem")), &[]);
        let (old_cluster, new_cluster) = (old.cluster(tls()), new.cluster(tls()));
        let known = |found: &Result<_, SendError>| match found {
            Ok(_) => true,
            Err(error) if error.detail.contains("certificate") => false,
            Err(error) => panic!("{error:?}"),
        };
        assert!(known(&client.get(&old_cluster).await) && !known(&client.get(&new_cluster).await));
        write(&directory, "ca.pem", &next.root_pem());
        pass(FRESH + Duration::from_secs(1)).await;
        assert!(!known(&client.get(&old_cluster).await) && known(&client.get(&new_cluster).await));
        std::fs::remove_file(directory.path().join("shop/ca.pem")).unwrap();
        pass(FRESH + Duration::from_secs(1)).await;
        let error = client.get(&new_cluster).await.unwrap_err();
        assert!(error.detail.contains("/ca.pem of namespace shop"), "{}", error.detail);
        write(&directory, "ca.pem", &ca.root_pem());
        pass(FRESH).await;
        assert!(known(&client.get(&old_cluster).await), "a failure is not final");
    });
}
