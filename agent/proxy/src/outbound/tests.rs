mod secured;

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use weft_core::resource::destination_rule::{
    Balancing, ConnectionPool, DestinationRule, HashAlgorithm, HashKey, LoadBalancer, PolicyBlocks,
    TrafficPolicy,
};
use weft_core::resource::virtual_service::{DestinationRef, TcpRule, VirtualService};
use weft_core::resource::{Change, Meta, PolicyAction, Resource};

use crate::listener::Role;
use crate::testbed::{Bed, connect_from, deny_all, name, run, run_paused, service};
use crate::{ProxyConfig, ports};

/// A Service in front of `endpoints`; connections to it are captured.
fn captured(bed: &mut Bed, endpoints: &[std::net::IpAddr], port: u16) -> SocketAddr {
    let vip = bed.listen(&bed.client, Role::Outbound, SocketAddr::new(bed.other_ip, 0));
    bed.change(service(vip, endpoints, port));
    vip
}

async fn exchange(client: &mut TcpStream, server: &mut TcpStream) {
    client.write_all(b"\x00question").await.unwrap();
    let mut heard = [0; 9];
    server.read_exact(&mut heard).await.unwrap();
    server.write_all(b"answer").await.unwrap();
    client.read_exact(&mut heard[..6]).await.unwrap();
    assert_eq!(&heard[..6], b"answer");
}

fn series<'a>(metrics: &'a str, family: &str, labels: &[&str]) -> Vec<&'a str> {
    let matches = |line: &&str| line.starts_with(family) && labels.iter().all(|label| line.contains(label));
    metrics.lines().filter(matches).collect()
}

#[test]
fn a_pod_of_the_same_node_is_reached_without_tls_and_both_sides_report() {
    run(async {
        let mut bed = Bed::new("a");
        let (application, addr) = bed.application().await;
        let vip = captured(&mut bed, &[addr.ip()], addr.port());
        let mut client = connect_from(bed.client_ip, vip).await.unwrap();
        let mut server = application.accept().await.unwrap().0;
        let seen = server.peer_addr().unwrap();
        assert_eq!(seen.ip(), bed.client_ip, "the source address is kept");
        assert!((ports::FIRST..=ports::LAST).contains(&seen.port()));
        exchange(&mut client, &mut server).await;
        let metrics = bed.metrics();
        let principal = "source_principal=\"spiffe://cluster.local/ns/shop/sa/client\"";
        let service = "destination_service=\"shop.shop.svc.cluster.local\"";
        for (reporter, security) in [("source", "unknown"), ("destination", "none")] {
            let labels = [
                &format!("reporter=\"{reporter}\""),
                &format!("connection_security_policy=\"{security}\""),
                principal,
                service,
            ];
            let labels: Vec<&str> = labels.iter().map(|label| label.as_ref()).collect();
            assert_eq!(series(&metrics, "istio_tcp_received_bytes_total", &labels).len(), 1, "{metrics}");
        }
        assert_eq!(bed.learned.recv().await.unwrap(), (name("server"), addr.port()));
    });
}

#[test]
fn a_server_may_speak_first() {
    run(async {
        let mut bed = Bed::new("a");
        let (application, addr) = bed.application().await;
        let vip = captured(&mut bed, &[addr.ip()], addr.port());
        let mut client = connect_from(bed.client_ip, vip).await.unwrap();
        let mut server = application.accept().await.unwrap().0;
        server.write_all(b"220 ready\r\n").await.unwrap();
        let mut heard = [0; 11];
        client.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"220 ready\r\n");
    });
}

#[test]
fn another_endpoint_is_tried_before_a_byte_has_moved() {
    run(async {
        let mut bed = Bed::new("a");
        let (application, addr) = bed.application().await;
        // Nothing listens on this port of the other address.
        let dead = bed.other_ip;
        let vip = captured(&mut bed, &[dead, addr.ip()], addr.port());
        for _ in 0..20 {
            let mut client = connect_from(bed.client_ip, vip).await.unwrap();
            let mut server = application.accept().await.unwrap().0;
            exchange(&mut client, &mut server).await;
        }
        drop(application);
        let mut client = connect_from(bed.client_ip, vip).await.unwrap();
        assert_eq!(client.read(&mut [0]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert!(bed.log().contains("cannot be reached"), "{}", bed.log());
    });
}

#[test]
fn a_denied_connection_is_reset_without_a_byte_and_the_log_says_why() {
    run(async {
        let mut bed = Bed::new("a");
        let (_application, addr) = bed.application().await;
        let vip = captured(&mut bed, &[addr.ip()], addr.port());
        bed.change([deny_all()]);
        let mut client = connect_from(bed.client_ip, vip).await.unwrap();
        assert_eq!(client.read(&mut [0]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        bed.until("the log", |bed| bed.log().contains("ns[shop]-policy[nobody]-rule[0]")).await;
        assert!(bed.log().contains(&format!("inbound|{}||", addr.port())), "{}", bed.log());
        let metrics = bed.metrics();
        let failed = series(&metrics, "istio_tcp_connections_failed_total", &["response_flags=\"DENY\""]);
        assert_eq!(failed.len(), 2, "once for each reporter: {metrics}");
    });
}

#[test]
fn an_audited_connection_is_counted_and_logged() {
    run(async {
        let mut bed = Bed::new("a");
        let (application, addr) = bed.application().await;
        let vip = captured(&mut bed, &[addr.ip()], addr.port());
        let Change::Upsert(mut resource) = deny_all() else { unreachable!("it is one") };
        let Resource::AuthorizationPolicy(policy) = &mut *resource else { unreachable!("it is one") };
        policy.action = PolicyAction::Audit;
        bed.change([Change::Upsert(resource)]);
        let mut client = connect_from(bed.client_ip, vip).await.unwrap();
        let mut server = application.accept().await.unwrap().0;
        exchange(&mut client, &mut server).await;
        let audited = "weft_audit_total{policy=\"ns[shop]-policy[nobody]-rule[0]\"} 1\n";
        assert!(bed.metrics().contains(audited), "{}", bed.metrics());
        drop((client, server));
        bed.until("the line", |bed| bed.log().lines().count() == 1).await;
    });
}

#[test]
fn a_new_deny_cuts_an_established_connection() {
    run(async {
        let mut bed = Bed::new("a");
        let (application, addr) = bed.application().await;
        let vip = captured(&mut bed, &[addr.ip()], addr.port());
        let mut client = connect_from(bed.client_ip, vip).await.unwrap();
        let mut server = application.accept().await.unwrap().0;
        exchange(&mut client, &mut server).await;
        bed.change([deny_all()]);
        for side in [&mut client, &mut server] {
            assert_eq!(side.read(&mut [0]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        }
    });
}

#[test]
fn a_forged_source_is_reset_before_anything_else() {
    run(async {
        let mut bed = Bed::new("a");
        let (_application, addr) = bed.application().await;
        let vip = captured(&mut bed, &[addr.ip()], addr.port());
        let mut client = connect_from("127.0.0.1".parse().unwrap(), vip).await.unwrap();
        assert_eq!(client.read(&mut [0]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert!(bed.worker.shared.counters.all().contains(&("forged_sources", 1)));
    });
}

#[test]
fn a_pod_that_is_not_enrolled_is_never_reached_around_the_proxy() {
    run(async {
        let mut bed = Bed::new("a");
        let (_application, addr) = bed.application().await;
        let vip = captured(&mut bed, &[addr.ip()], addr.port());
        bed.worker.remove_pod(bed.server.clone(), std::time::Duration::ZERO);
        let mut client = connect_from(bed.client_ip, vip).await.unwrap();
        assert_eq!(client.read(&mut [0]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        bed.until("the log", |bed| bed.log().contains("not enrolled yet")).await;
    });
}

#[test]
fn unknown_destinations_pass_through() {
    run(async {
        let bed = Bed::new("a");
        // The listener stands for capture; what it accepts is addressed to itself, which is where the
        // proxy then connects to: the second connection must be recognised as the proxy's own.
        let addr = bed.listen(&bed.client, Role::Outbound, SocketAddr::new(bed.other_ip, 0));
        let mut client = connect_from(bed.client_ip, addr).await.unwrap();
        client.read(&mut [0]).await.unwrap_err();
        assert!(bed.worker.shared.counters.all().contains(&("loops", 1)));
        assert!(bed.metrics().contains("destination_service_name=\"PassthroughCluster\""));
    });
}

/// A full pod: one connection is open, another waits in the kernel's queue.
async fn full(bed: &mut Bed) -> (TcpStream, TcpStream, TcpStream) {
    let (application, addr) = bed.application().await;
    let vip = captured(bed, &[addr.ip()], addr.port());
    let mut first = connect_from(bed.client_ip, vip).await.unwrap();
    let mut server = application.accept().await.unwrap().0;
    exchange(&mut first, &mut server).await;
    (first, server, connect_from(bed.client_ip, vip).await.unwrap())
}

fn one_connection() -> ProxyConfig {
    ProxyConfig { connections_per_pod: 1, ..ProxyConfig::default() }
}

#[test]
fn clients_of_a_full_pod_wait_until_there_is_room() {
    run(async {
        let mut bed = Bed::with(one_connection(), "a");
        let (first, server, mut second) = full(&mut bed).await;
        drop((first, server));
        // The application is gone by now: to be told so, the second one must have been accepted.
        assert_eq!(second.read(&mut [0]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert!(bed.worker.shared.counters.all().contains(&("over_limit", 0)));
        bed.until("the log", |bed| bed.log().contains("cannot be reached")).await;
    });
}

#[test]
fn clients_of_a_pod_that_stays_full_are_refused_in_the_end() {
    run_paused(async {
        let mut bed = Bed::with(one_connection(), "a");
        let (_first, _server, mut second) = full(&mut bed).await;
        assert_eq!(second.read(&mut [0]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert!(bed.worker.shared.counters.all().contains(&("over_limit", 1)));
    });
}

#[test]
fn the_future_of_a_connection_is_small() {
    run(async {
        let bed = Bed::new("a");
        let (stream, _other) = crate::testbed::connected().await;
        let peer = stream.peer_addr().unwrap();
        let admitted = crate::pod::Admitted::new(&bed.client, &bed.worker.shared.loads, 0);
        let accepted =
            crate::listener::Accepted { pod: bed.client.clone(), stream, peer, local: peer, admitted };
        let size = size_of_val(&super::serve(bed.worker.clone(), accepted));
        assert!((400..900).contains(&size), "{size}");
    });
}

/// A DestinationRule for the Service.
fn rule(blocks: PolicyBlocks) -> Change {
    Change::Upsert(Box::new(Resource::DestinationRule(DestinationRule {
        meta: Meta { key: name("shop"), created: None, origin: None },
        host: "shop.shop.svc.cluster.local".into(),
        policy: Some(TrafficPolicy { blocks, ports: Vec::new() }),
        subsets: Vec::new(),
        export_to: Vec::new(),
        workload_selector: None,
    })))
}

/// A VirtualService that sends the Service's connections elsewhere.
fn tcp_rule(destination: DestinationRef) -> Change {
    Change::Upsert(Box::new(Resource::VirtualService(VirtualService {
        meta: Meta { key: name("shop"), created: None, origin: None },
        hosts: vec!["shop.shop.svc.cluster.local".into()],
        gateways: vec!["mesh".into()],
        export_to: Vec::new(),
        http: Vec::new(),
        tls: Vec::new(),
        tcp: vec![TcpRule { matches: Vec::new(), routes: vec![(destination, 1)] }],
    })))
}

#[test]
fn connections_beyond_the_limit_of_the_clients_policy_are_refused() {
    run(async {
        let mut bed = Bed::new("a");
        let (application, addr) = bed.application().await;
        let vip = captured(&mut bed, &[addr.ip()], addr.port());
        let pool = ConnectionPool { max_connections: Some(1), ..ConnectionPool::default() };
        bed.change([rule(PolicyBlocks { connection_pool: Some(pool), ..PolicyBlocks::default() })]);
        let mut first = connect_from(bed.client_ip, vip).await.unwrap();
        let mut server = application.accept().await.unwrap().0;
        exchange(&mut first, &mut server).await;
        let mut second = connect_from(bed.client_ip, vip).await.unwrap();
        second.write_all(b"\x00question").await.unwrap();
        let refused = second.read(&mut [0; 1]).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionReset);
        assert!(bed.log().contains("UO"), "{}", bed.log());
        let metrics = bed.metrics();
        assert!(!series(&metrics, "envoy_cluster_upstream_cx_overflow", &["} 1"]).is_empty(), "{metrics}");
        drop((first, server));
        bed.until("room again", |bed| bed.worker.live.is_empty(Some(&bed.client))).await;
        let mut third = connect_from(bed.client_ip, vip).await.unwrap();
        // The second one had reached the application before it was known not to be HTTP.
        let _second = application.accept().await.unwrap();
        let mut server = application.accept().await.unwrap().0;
        exchange(&mut third, &mut server).await;
    });
}

/// A connection that is under a pool's limits, with what was said in it already.
async fn under(bed: &mut Bed, pool: ConnectionPool) -> (TcpStream, TcpStream) {
    let (application, addr) = bed.application().await;
    let vip = captured(bed, &[addr.ip()], addr.port());
    bed.change([rule(PolicyBlocks { connection_pool: Some(pool), ..PolicyBlocks::default() })]);
    let mut client = connect_from(bed.client_ip, vip).await.unwrap();
    let mut server = application.accept().await.unwrap().0;
    exchange(&mut client, &mut server).await;
    (client, server)
}

#[test]
fn an_idle_connection_ends_when_the_clients_policy_says_so() {
    run(async {
        let mut bed = Bed::new("a");
        let idle = Duration::from_secs(2);
        let pool = ConnectionPool { tcp_idle_timeout: Some(idle), ..ConnectionPool::default() };
        let (mut client, mut server) = under(&mut bed, pool).await;
        let began = std::time::Instant::now();
        while began.elapsed() < 2 * idle {
            exchange(&mut client, &mut server).await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let ended = client.read(&mut [0; 1]).await.unwrap_err();
        assert_eq!(ended.kind(), ErrorKind::ConnectionReset);
        assert_eq!(server.read(&mut [0; 1]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert!(bed.log().is_empty(), "that is no failure: {}", bed.log());
    });
}

#[test]
fn a_busy_connection_ends_at_the_age_that_the_clients_policy_sets() {
    run(async {
        let mut bed = Bed::new("a");
        let age = Some(Duration::from_secs(2));
        let pool = ConnectionPool {
            max_connection_duration: age,
            tcp_idle_timeout: Some(Duration::ZERO),
            ..ConnectionPool::default()
        };
        let (mut client, mut server) = under(&mut bed, pool).await;
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while client.write_all(b"x").await.is_ok()
            && server.read(&mut [0; 1]).await.is_ok_and(|read| read > 0)
        {
            assert!(std::time::Instant::now() < deadline, "it lasts");
        }
        bed.until("the line", |bed| bed.log().contains("maxConnectionDuration")).await;
        assert!(bed.log().contains(" DT "), "{}", bed.log());
    });
}

#[test]
fn one_client_keeps_its_endpoint_where_its_address_is_hashed() {
    run(async {
        let mut bed = Bed::new("a");
        let (application, addr) = bed.application().await;
        let other = tokio::net::TcpListener::bind((bed.other_ip, addr.port())).await.unwrap();
        let endpoints = [addr.ip(), bed.other_ip];
        let vip = captured(&mut bed, &endpoints, addr.port());
        let load_balancer = LoadBalancer::ConsistentHash {
            key: HashKey::SourceIp,
            algorithm: HashAlgorithm::Ring { minimum_size: 1024 },
        };
        let blocks =
            PolicyBlocks { load_balancer: Some(Balancing::of(load_balancer)), ..PolicyBlocks::default() };
        bed.change([rule(blocks)]);
        let mut seen = [0, 0];
        for _ in 0..6 {
            let mut client = connect_from(bed.client_ip, vip).await.unwrap();
            let (at, mut server) = tokio::select! {
                accepted = application.accept() => (0, accepted.unwrap().0),
                accepted = other.accept() => (1, accepted.unwrap().0),
            };
            exchange(&mut client, &mut server).await;
            seen[at] += 1;
        }
        assert!(seen.contains(&6), "{seen:?}");
    });
}

#[test]
fn a_rule_for_connections_sends_them_to_another_service() {
    run(async {
        let mut bed = Bed::new("a");
        let (application, addr) = bed.application().await;
        let endpoints = [bed.other_ip];
        let vip = captured(&mut bed, &endpoints, addr.port());
        let missing =
            DestinationRef { host: "nowhere.shop.svc.cluster.local".into(), subset: None, port: None };
        bed.change([tcp_rule(missing)]);
        let mut client = connect_from(bed.client_ip, vip).await.unwrap();
        client.write_all(b"\x00question").await.unwrap();
        assert_eq!(client.read(&mut [0; 1]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert!(bed.log().contains("NC"), "{}", bed.log());
        drop(application);
    });
}
