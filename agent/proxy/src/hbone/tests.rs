mod leaving;

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{Method, Request, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use weft_identity::testing::Wrong;

use super::STREAM_WINDOW;
use super::client::{self, TunnelStream};
use crate::account::{Account, Facts, Route, Side};
use crate::listener::Role;
use crate::outbound::Setback;
use crate::pod::HANDSHAKES_PER_PEER;
use crate::relay::{Ahead, Pair, relay};
use crate::testbed::{
    Bed, allow_again, connect_from, connected, deny_all, identity, much_both_ways, name, run, run_paused,
    strict,
};
use crate::{ProxyConfig, ports, tls};

async fn open(bed: &Bed, destination: SocketAddr) -> Result<TunnelStream, Setback> {
    let snapshot = bed.snapshot();
    let source = snapshot.workload(&name("client")).unwrap();
    let server = snapshot.workload(&name("server")).unwrap();
    let client = SocketAddr::new(bed.client_ip, 40000);
    let facts = Facts::new(Side::Source, Route::Hbone, client, destination);
    client::open(&bed.worker, &bed.client, source, server, (destination, &facts)).await
}

fn failure(setback: Setback) -> crate::account::Failure {
    match setback {
        Setback::Endpoint(failure) | Setback::Final(failure) => failure,
    }
}

/// An application's connection through a tunnel: the client's end and the server's.
async fn tunnelled(bed: &Bed, application: &TcpListener, destination: SocketAddr) -> (TcpStream, TcpStream) {
    let TunnelStream { stream, permit } = open(bed, destination).await.map_err(failure).unwrap();
    let (client, downstream) = connected().await;
    let live = bed.worker.live.connection(&bed.client, None);
    let worker = bed.worker.clone();
    let facts = Box::new(Facts::new(Side::Source, Route::Hbone, destination, destination));
    tokio::task::spawn_local(async move {
        let _permit = permit;
        let account = Account::open(&worker, facts, None);
        relay(Pair::ClientTcp(downstream, stream), Ahead::default(), account.meter(), &live).await;
    });
    (client, application.accept().await.unwrap().0)
}

#[test]
fn bytes_half_closes_and_the_source_address_pass_through() {
    run(async {
        let bed = Bed::new("b");
        bed.serve_tunnels();
        let (application, addr) = bed.application().await;
        let (mut client, mut server) = tunnelled(&bed, &application, addr).await;
        let seen = server.peer_addr().unwrap();
        assert!(seen.ip().is_loopback() && (ports::FIRST..=ports::LAST).contains(&seen.port()), "{seen}");
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut heard = Vec::new();
        server.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"question");
        server.write_all(b"answer").await.unwrap();
        server.shutdown().await.unwrap();
        heard.clear();
        client.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"answer");
        bed.until("the end of both streams", |bed| bed.server.connections() == 1).await;
        let metrics = bed.metrics();
        assert!(metrics.contains("connection_security_policy=\"mutual_tls\""), "{metrics}");
    });
}

#[test]
fn resets_pass_through_in_both_directions() {
    run(async {
        let bed = Bed::new("b");
        bed.serve_tunnels();
        let (application, addr) = bed.application().await;
        for client_resets in [true, false] {
            let (mut client, mut server) = tunnelled(&bed, &application, addr).await;
            client.write_all(b"x").await.unwrap();
            server.read_exact(&mut [0]).await.unwrap();
            let (breaks, mut sees) = if client_resets { (client, server) } else { (server, client) };
            crate::net::reset(breaks);
            assert_eq!(sees.read(&mut [0]).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
        }
    });
}

#[test]
fn much_arrives_as_it_was_sent() {
    run(async {
        let bed = Bed::new("b");
        bed.serve_tunnels();
        let (application, addr) = bed.application().await;
        let (client, server) = tunnelled(&bed, &application, addr).await;
        much_both_ways(client, server, 64 << 20).await;
    });
}

#[test]
fn stalled_readers_do_not_block_another_stream() {
    run(async {
        let bed = Bed::new("b");
        bed.serve_tunnels();
        let (application, addr) = bed.application().await;
        let mut stalled = Vec::new();
        for _ in 0..40 {
            let (mut client, server) = tunnelled(&bed, &application, addr).await;
            tokio::task::spawn_local(async move {
                // More than windows and socket buffers take; it waits for good.
                let _ = client.write_all(&vec![1; 32 << 20]).await;
            });
            stalled.push(server);
        }
        assert_eq!(bed.worker.tunnels.open(), 1, "all share one tunnel");
        // The stalled streams use up what they may.
        bed.until("a stall", |bed| {
            let received = "istio_tcp_received_bytes_total{reporter=\"destination\"";
            let metrics = bed.metrics();
            let line = metrics.lines().find(|line| line.starts_with(received));
            let bytes = line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
            bytes.is_some_and(|bytes| bytes >= f64::from(40 * STREAM_WINDOW))
        })
        .await;
        let (mut client, mut server) = tunnelled(&bed, &application, addr).await;
        for _ in 0..8 {
            let sent = vec![2; 1 << 20];
            let mut heard = vec![0; 1 << 20];
            let (write, read) = tokio::join!(client.write_all(&sent), server.read_exact(&mut heard));
            write.unwrap();
            read.unwrap();
            assert!(heard == sent);
        }
        drop(stalled);
    });
}

#[test]
fn a_pod_that_does_not_take_what_it_gets_is_given_no_new_streams() {
    run(async {
        // A stream that stalls has between half a window and a whole one unread: what was taken before is announced
        // by half windows.
        let budget = 3 * STREAM_WINDOW as usize / 2;
        let config = ProxyConfig { unread_per_pod: budget, ..ProxyConfig::default() };
        let bed = Bed::with(config, "b");
        bed.serve_tunnels();
        let (application, addr) = bed.application().await;
        let (mut clients, mut stalled) = (Vec::new(), Vec::new());
        for _ in 0..3 {
            let (client, server) = tunnelled(&bed, &application, addr).await;
            clients.push(client);
            stalled.push(server);
        }
        for mut client in clients {
            tokio::task::spawn_local(async move {
                // More than windows and socket buffers take; it waits until the server goes.
                let _ = client.write_all(&vec![1; 32 << 20]).await;
            });
        }
        bed.until("a full budget", |bed| bed.server.unread.exceeds(budget)).await;
        assert_eq!(open(&bed, addr).await.map_err(failure).err().unwrap().flags, "CONNECT");
        assert!(!over_limit(&bed, 0));
        drop(stalled);
        bed.until("room", |bed| !bed.server.unread.exceeds(budget)).await;
        tunnelled(&bed, &application, addr).await;
    });
}

#[test]
fn one_attempt_serves_all_who_wait_and_tunnels_are_used_again() {
    run(async {
        let bed = Bed::new("b");
        bed.serve_tunnels();
        let (application, addr) = bed.application().await;
        tokio::task::spawn_local(async move {
            let mut open = Vec::new();
            while let Ok((stream, _)) = application.accept().await {
                open.push(stream);
            }
        });
        for _ in 0..2 {
            let opened = futures_util::future::join_all((0..150).map(|_| open(&bed, addr))).await;
            let streams: Vec<_> = opened.into_iter().map(|it| it.map_err(failure).unwrap()).collect();
            assert_eq!(bed.worker.tunnels.open(), 2, "100 streams fit one tunnel");
            drop(streams);
            bed.until("the end of the streams", |bed| bed.server.connections() == 2).await;
        }
    });
}

/// A bare HTTP/2 connection to the server pod with a certificate of `client`.
async fn raw_tunnel(bed: &Bed) -> SendRequest<Bytes> {
    let addr = SocketAddr::new(bed.server_ip, super::PORT);
    let stream = TcpStream::connect(addr).await.unwrap();
    let config = bed.ca.hbone(&identity("client")).client(&identity("server"));
    let secured = tls::connect(stream, config, bed.server_ip).await.unwrap();
    let (send, connection) = h2::client::handshake(secured.stream).await.unwrap();
    tokio::task::spawn_local(connection);
    send.ready().await.unwrap()
}

async fn status(send: &mut SendRequest<Bytes>, method: Method, authority: &str) -> StatusCode {
    let uri = match method {
        Method::CONNECT => authority.to_owned(),
        _ => format!("http://{authority}/"),
    };
    let request = Request::builder().method(method).uri(uri).body(()).unwrap();
    let (response, _stream) = send.send_request(request, false).unwrap();
    response.await.unwrap().status()
}

#[test]
fn requests_are_answered_as_ztunnel_answers_them() {
    run(async {
        let mut bed = Bed::new("b");
        bed.serve_tunnels();
        let (application, addr) = bed.application().await;
        let mut send = raw_tunnel(&bed).await;
        assert_eq!(status(&mut send, Method::CONNECT, &addr.to_string()).await, StatusCode::OK);
        assert_eq!(status(&mut send, Method::GET, &addr.to_string()).await, StatusCode::BAD_REQUEST);
        let other = format!("{}:80", bed.client_ip);
        assert_eq!(status(&mut send, Method::CONNECT, &other).await, StatusCode::BAD_REQUEST);
        assert_eq!(status(&mut send, Method::CONNECT, "cart.shop:80").await, StatusCode::BAD_REQUEST);
        let own_port = format!("{}:15008", bed.server_ip);
        assert_eq!(status(&mut send, Method::CONNECT, &own_port).await, StatusCode::BAD_REQUEST);
        drop(application);
        assert_eq!(
            status(&mut send, Method::CONNECT, &addr.to_string()).await,
            StatusCode::SERVICE_UNAVAILABLE
        );
        bed.change([deny_all()]);
        assert_eq!(status(&mut send, Method::CONNECT, &addr.to_string()).await, StatusCode::UNAUTHORIZED);
        assert!(bed.log().contains("ns[shop]-policy[nobody]-rule[0]"), "{}", bed.log());
        assert!(bed.log().contains("DENY"), "{}", bed.log());
        assert!(bed.log().contains("InboundPassthroughCluster"), "no Service has the port: {}", bed.log());
    });
}

#[test]
fn a_client_that_gives_up_ends_the_attempt_to_reach_the_application() {
    run(async {
        let hour = Duration::from_secs(3600);
        let bed = Bed::with(ProxyConfig { connect_timeout: hour, ..ProxyConfig::default() }, "b");
        bed.serve_tunnels();
        // Its queue is full with one connection: it answers no further SYN.
        let application = TcpSocket::new_v4().unwrap();
        application.bind(SocketAddr::new(bed.server_ip, 0)).unwrap();
        let application = application.listen(0).unwrap();
        let addr = application.local_addr().unwrap();
        let _queued = TcpStream::connect(addr).await.unwrap();
        let mut send = raw_tunnel(&bed).await;
        let request = Request::builder().method(Method::CONNECT).uri(addr.to_string()).body(()).unwrap();
        let answer = send.send_request(request, false).unwrap();
        bed.until("an attempt", |bed| bed.server.connections() == 2).await;
        drop(answer);
        bed.until("its end", |bed| bed.server.connections() == 1).await;
        assert!(bed.log().contains("the client gave up"), "{}", bed.log());
    });
}

#[test]
fn the_clients_side_tells_refusal_from_failure() {
    run(async {
        let mut bed = Bed::new("b");
        bed.serve_tunnels();
        let (application, addr) = bed.application().await;
        bed.change([deny_all()]);
        match open(&bed, addr).await {
            Err(Setback::Final(failure)) => assert_eq!(failure.flags, "DENY"),
            Err(Setback::Endpoint(failure)) => panic!("may not be tried elsewhere: {failure:?}"),
            Ok(_) => panic!("opened"),
        }
        bed.change([allow_again()]);
        drop(application);
        match open(&bed, addr).await {
            Err(Setback::Endpoint(failure)) => assert_eq!(failure.flags, "UF"),
            Err(Setback::Final(failure)) => panic!("may be tried elsewhere: {failure:?}"),
            Ok(_) => panic!("opened"),
        }
    });
}

#[test]
fn a_new_deny_cuts_established_streams() {
    run(async {
        let mut bed = Bed::new("b");
        bed.serve_tunnels();
        let (application, addr) = bed.application().await;
        let (mut client, mut server) = tunnelled(&bed, &application, addr).await;
        client.write_all(b"x").await.unwrap();
        server.read_exact(&mut [0]).await.unwrap();
        bed.change([deny_all()]);
        for side in [&mut client, &mut server] {
            assert_eq!(side.read(&mut [0]).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
        }
        assert!(bed.log().contains("closed due to policy change"), "{}", bed.log());
    });
}

#[test]
fn a_peer_with_another_identity_is_not_accepted() {
    run(async {
        let bed = Bed::new("b");
        let listener = TcpListener::bind((bed.server_ip, super::PORT)).await.unwrap();
        let config = bed.ca.wrong_hbone(&identity("server"), Wrong::Identity).server();
        tokio::task::spawn_local(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let _ = tls::accept(stream, config).await;
        });
        let failure = open(&bed, SocketAddr::new(bed.server_ip, 80)).await.map_err(failure).err().unwrap();
        assert_eq!(failure.flags, "TLS_FAILURE");
        assert!(failure.details.contains("spiffe://cluster.local/ns/shop/sa/server"), "{}", failure.details);
    });
}

#[test]
fn a_silent_peer_is_given_up() {
    run_paused(async {
        let bed = Bed::new("b");
        let listener = TcpListener::bind((bed.server_ip, super::PORT)).await.unwrap();
        let began = tokio::time::Instant::now();
        let failure = open(&bed, SocketAddr::new(bed.server_ip, 80)).await.map_err(failure).err().unwrap();
        assert_eq!(failure.flags, "TLS_FAILURE");
        let waited = began.elapsed();
        assert!(waited >= Duration::from_secs(10) && waited < Duration::from_secs(12), "{waited:?}");
        drop(listener);
    });
}

#[test]
fn a_client_that_does_not_shake_hands_is_given_up() {
    run(async {
        let config = ProxyConfig { handshake_timeout: Duration::from_millis(50), ..ProxyConfig::default() };
        let bed = Bed::with(config, "b");
        bed.serve_tunnels();
        let mut stream = TcpStream::connect((bed.server_ip, super::PORT)).await.unwrap();
        assert_eq!(stream.read(&mut [0]).await.unwrap_or(0), 0);
        bed.until("the line", |bed| bed.log().contains("the TLS handshake took too long")).await;
        bed.until("the end", |bed| bed.server.connections() == 0).await;
    });
}

fn over_limit(bed: &Bed, count: u64) -> bool {
    bed.worker.shared.counters.all().contains(&("over_limit", count))
}

#[test]
fn silent_clients_of_one_address_do_not_keep_others_out() {
    run(async {
        let bed = Bed::new("b");
        bed.serve_tunnels();
        let addr = SocketAddr::new(bed.server_ip, super::PORT);
        let mut silent = Vec::new();
        for _ in 0..HANDSHAKES_PER_PEER {
            silent.push(connect_from(bed.other_ip, addr).await.unwrap());
        }
        let mut refused = connect_from(bed.other_ip, addr).await.unwrap();
        assert_eq!(refused.read(&mut [0]).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
        assert!(over_limit(&bed, 1));
        let _tunnel = raw_tunnel(&bed).await;
        drop(silent);
        bed.until("free places", |bed| bed.server.connections() == 1).await;
        let mut accepted = connect_from(bed.other_ip, addr).await.unwrap();
        accepted.write_all(b"not TLS at all").await.unwrap();
        let mut alert = Vec::new();
        // A reset may follow the alert.
        let _ = accepted.read_to_end(&mut alert).await;
        assert!(over_limit(&bed, 1), "the places are free again");
    });
}

#[test]
fn who_gets_no_turn_to_shake_hands_is_refused_and_counted() {
    run_paused(async {
        let config = ProxyConfig { handshakes_per_pod: 1, ..ProxyConfig::default() };
        let bed = Bed::with(config, "b");
        bed.serve_tunnels();
        let addr = SocketAddr::new(bed.server_ip, super::PORT);
        let _silent = connect_from(bed.client_ip, addr).await.unwrap();
        let mut second = connect_from(bed.other_ip, addr).await.unwrap();
        assert_eq!(second.read(&mut [0]).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
        assert!(over_limit(&bed, 1));
    });
}

#[test]
fn idle_tunnels_close() {
    run(async {
        let config = ProxyConfig { tunnel_idle: Duration::from_millis(50), ..ProxyConfig::default() };
        let bed = Bed::with(config, "b");
        bed.serve_tunnels();
        let (application, addr) = bed.application().await;
        let (client, server) = tunnelled(&bed, &application, addr).await;
        drop((client, server));
        bed.until("the end of the tunnel", |bed| {
            bed.worker.tunnels.open() == 0 && bed.server.connections() == 0
        })
        .await;
    });
}

#[test]
fn a_drain_lets_streams_end_and_takes_no_new_ones() {
    run(async {
        let bed = Bed::new("b");
        bed.serve_tunnels();
        let (application, addr) = bed.application().await;
        let (mut client, mut server) = tunnelled(&bed, &application, addr).await;
        bed.worker.live.go_away(Some(&bed.server));
        bed.until("the tunnel's end for new streams", |bed| bed.worker.tunnels.open() <= 1).await;
        client.write_all(b"still here").await.unwrap();
        client.shutdown().await.unwrap();
        let mut heard = Vec::new();
        server.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"still here");
        drop((server, client));
        bed.until("an empty server", |bed| bed.worker.live.is_empty(Some(&bed.server))).await;
        // A new stream takes a new tunnel.
        let (_client, _server) = tunnelled(&bed, &application, addr).await;
    });
}

#[test]
fn strict_refuses_plaintext_unless_the_kernel_vouches_and_loops_end() {
    run(async {
        let mut bed = Bed::new("b");
        let inbound = bed.listen(&bed.server, Role::Inbound, SocketAddr::new(bed.server_ip, 0));
        bed.change([strict()]);
        let mut client = connect_from(bed.client_ip, inbound).await.unwrap();
        let error = client.read(&mut [0]).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        let log = bed.log();
        let why = "peer authentication STRICT (PeerAuthentication shop/strict) refuses plaintext";
        assert!(log.contains(why), "{log}");
        // Here the listener is itself where the application should be: the way in becomes a loop, which ends.
        *bed.kernel.0.lock().unwrap() = Some(name("client"));
        let mut client = connect_from(bed.client_ip, inbound).await.unwrap();
        client.read(&mut [0]).await.unwrap_err();
        bed.until("the loop's discovery", |bed| bed.worker.shared.counters.all().contains(&("loops", 1)))
            .await;
        assert!(bed.metrics().contains("source_principal=\"spiffe://cluster.local/ns/shop/sa/client\""));
    });
}
