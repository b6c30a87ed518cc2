//! TLS that a policy asks for, begun for connections that are not HTTP (D-18).

use std::net::IpAddr;
use std::sync::Arc;

use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_rustls::server::TlsStream;
use weft_core::resource::PortProtocol;
use weft_core::resource::destination_rule::{ClientCertificates, ClientTls, ClientTlsMode, TcpKeepalive};
use weft_identity::testing::{Issued, TestCa};

use super::*;
use crate::testbed::{much_both_ways, service_speaking, tls_server};

const HOST: &str = "db.example.com";

/// A node with certificates of namespace `shop`, and a database outside of the mesh.
struct Site {
    bed: Bed,
    directory: TempDir,
    ca: TestCa,
    database: TcpListener,
    vip: SocketAddr,
}

impl Site {
    async fn new(protocol: PortProtocol) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let ca = TestCa::new();
        std::fs::create_dir(directory.path().join("shop")).unwrap();
        std::fs::write(directory.path().join("shop/ca.pem"), ca.root_pem()).unwrap();
        let config = ProxyConfig { tls_files: Some(directory.path().into()), ..ProxyConfig::default() };
        let mut bed = Bed::with(config, "a");
        let outside: IpAddr = bed.other_ip;
        let database = TcpListener::bind((outside, 0)).await.unwrap();
        let vip = bed.listen(&bed.client, Role::Outbound, SocketAddr::new(outside, 0));
        bed.change(service_speaking(protocol, vip, &[outside], database.local_addr().unwrap().port()));
        let mut site = Self { bed, directory, ca, database, vip };
        site.policy(ClientTlsMode::Simple, Some(certificates()));
        site
    }

    fn policy(&mut self, mode: ClientTlsMode, certificates: Option<ClientCertificates>) {
        let tls = ClientTls {
            mode,
            sni: Some(HOST.into()),
            subject_alt_names: Vec::new(),
            certificates: certificates.map(Arc::new),
        };
        self.bed.change([rule(PolicyBlocks { tls: Some(tls), ..PolicyBlocks::default() })]);
    }

    fn right(&self) -> Issued {
        self.ca.issue_named(&[HOST], false)
    }

    async fn connect(&self) -> TcpStream {
        connect_from(self.bed.client_ip, self.vip).await.unwrap()
    }

    /// Both ends of a connection through the mesh.
    async fn both(&self, issued: &Issued, clients: Option<&TestCa>) -> (TcpStream, TlsStream<TcpStream>) {
        let acceptor = tls_server(issued, clients, &[]);
        let serving = async {
            let stream = self.database.accept().await.unwrap().0;
            acceptor.accept(stream).await.unwrap()
        };
        tokio::join!(self.connect(), serving)
    }

    fn tls_errors(&self) -> usize {
        series(&self.bed.metrics(), "envoy_cluster_ssl_connection_error", &["} 1"]).len()
    }
}

fn certificates() -> ClientCertificates {
    ClientCertificates {
        namespace: "shop".into(),
        authorities: Some("/ca.pem".into()),
        revoked: None,
        certificate: None,
        key: None,
        credential: None,
        unverified: false,
    }
}

#[test]
fn tls_is_begun_whoever_speaks_first_and_each_direction_ends_on_its_own() {
    run(async {
        for protocol in [PortProtocol::Tcp, PortProtocol::Undeclared] {
            for server_first in [false, true] {
                let site = Site::new(protocol).await;
                let (mut client, mut server) = site.both(&site.right(), None).await;
                let about = server.get_ref().1;
                assert_eq!((about.server_name(), about.alpn_protocol()), (Some(HOST), None));
                let mut heard = [0; 8];
                if server_first {
                    server.write_all(b"greeting").await.unwrap();
                    client.read_exact(&mut heard).await.unwrap();
                    assert_eq!(&heard, b"greeting");
                }
                client.write_all(b"\0request").await.unwrap();
                client.shutdown().await.unwrap();
                let mut all = Vec::new();
                server.read_to_end(&mut all).await.unwrap();
                assert_eq!(all, b"\0request");
                server.write_all(b"answer").await.unwrap();
                server.shutdown().await.unwrap();
                all.clear();
                client.read_to_end(&mut all).await.unwrap();
                assert_eq!(all, b"answer");
                site.bed.until("the end", |bed| bed.worker.live.is_empty(Some(&bed.client))).await;
                assert!(site.bed.log().is_empty(), "{}", site.bed.log());
            }
        }
    });
}

#[test]
fn much_passes_whole_both_ways_at_once() {
    run(async {
        let site = Site::new(PortProtocol::Tcp).await;
        let (client, server) = site.both(&site.right(), None).await;
        much_both_ways(client, server, 8 << 20).await;
    });
}

#[test]
fn a_server_that_is_not_the_one_gets_no_byte_and_the_client_a_reset() {
    run(async {
        let strangers = TestCa::new();
        for wrong in 0..3 {
            let site = Site::new(PortProtocol::Tcp).await;
            let issued = match wrong {
                0 => strangers.issue_named(&[HOST], false),
                1 => site.ca.issue_named(&["other.example.com"], false),
                _ => site.ca.issue_named(&[HOST], true),
            };
            let acceptor = tls_server(&issued, None, &[]);
            let serving = async { acceptor.accept(site.database.accept().await.unwrap().0).await };
            let (mut client, served) = tokio::join!(site.connect(), serving);
            assert!(served.is_err());
            assert_eq!(client.read(&mut [0]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
            assert!(site.bed.log().contains("certificate"), "{}", site.bed.log());
            assert_eq!(site.tls_errors(), 1, "{}", site.bed.metrics());
        }
    });
}

#[test]
fn mutual_shows_the_clients_certificate_and_a_policy_that_cannot_be_kept_connects_to_nobody() {
    run(async {
        let mut site = Site::new(PortProtocol::Tcp).await;
        let clients = TestCa::new();
        let own = clients.issue_named(&["client.example.com"], false);
        std::fs::write(site.directory.path().join("shop/own.pem"), &own.chain_pem).unwrap();
        std::fs::write(site.directory.path().join("shop/own.key"), &own.key_pem).unwrap();
        let files = ClientCertificates {
            certificate: Some("/own.pem".into()),
            key: Some("/own.key".into()),
            ..certificates()
        };
        site.policy(ClientTlsMode::Mutual, Some(files));
        let (_client, server) = site.both(&site.right(), Some(&clients)).await;
        assert_eq!(server.get_ref().1.peer_certificates().map(<[_]>::len), Some(1));
        site.policy(ClientTlsMode::Mutual, None);
        let mut client = site.connect().await;
        assert_eq!(client.read(&mut [0]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert!(site.bed.log().contains("MUTUAL needs a certificate"), "{}", site.bed.log());
        assert_eq!(site.tls_errors(), 1, "{}", site.bed.metrics());
    });
}

/// Without the server's word that it has said everything, nobody knows: that is no end, but a break.
#[test]
fn an_end_that_nobody_has_signed_is_a_reset() {
    run(async {
        let site = Site::new(PortProtocol::Tcp).await;
        let (mut client, mut server) = site.both(&site.right(), None).await;
        server.write_all(b"half").await.unwrap();
        let mut heard = [0; 4];
        client.read_exact(&mut heard).await.unwrap();
        drop(server.into_inner().0);
        assert_eq!(client.read(&mut [0]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    });
}

/// What the kernel has set for the connections to an address: state of the timer and the time until it fires, in
/// hundredths of a second.
fn timer(destination: SocketAddr) -> Option<(u8, u64)> {
    let IpAddr::V4(ip) = destination.ip() else { return None };
    let wanted = format!("{:08X}:{:04X}", u32::from_ne_bytes(ip.octets()), destination.port());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    table.lines().find_map(|line| {
        let fields: Vec<_> = line.split_ascii_whitespace().collect();
        let established = fields.get(2) == Some(&wanted.as_str()) && fields.get(3) == Some(&"01");
        let (state, time) = fields.get(5).filter(|_| established)?.split_once(':')?;
        Some((u8::from_str_radix(state, 16).ok()?, u64::from_str_radix(time, 16).ok()?))
    })
}

/// D-12: also connections that are not HTTP are probed as the policy says.
#[test]
fn connections_are_probed_as_the_policy_says() {
    run(async {
        let mut site = Site::new(PortProtocol::Tcp).await;
        let time = Some(std::time::Duration::from_secs(40));
        let tcp_keepalive = Some(TcpKeepalive { time, ..TcpKeepalive::default() });
        let pool = ConnectionPool { tcp_keepalive, ..ConnectionPool::default() };
        site.bed.change([rule(PolicyBlocks { connection_pool: Some(pool), ..PolicyBlocks::default() })]);
        let mut client = site.connect().await;
        let mut server = site.database.accept().await.unwrap().0;
        exchange(&mut client, &mut server).await;
        let database = site.database.local_addr().unwrap();
        // 2: it waits to probe; without the policy for three minutes.
        site.bed
            .until("the timer", |_| timer(database).is_some_and(|(kind, left)| kind == 2 && left <= 4_000))
            .await;
    });
}
