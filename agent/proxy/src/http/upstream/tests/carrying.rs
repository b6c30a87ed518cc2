//! Connections: reuse, sharing, their end, and the ways that lead to endpoints.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use weft_core::resource::destination_rule::{ClientTls, ClientTlsMode};

use super::super::limits::Counted;
use super::super::{Application, SendErrorKind, application};
use super::*;
use crate::account::Route;
use crate::http::h1::Switched;
use crate::testbed::{identity, run};

#[test]
fn a_connection_is_used_again() {
    run(async {
        for protocol in [UpstreamProtocol::Http1, UpstreamProtocol::Http2] {
            let client = Client::new(Bed::new("a"), protocol);
            let backend = Backend::new(client.bed.other_ip, protocol).await;
            let cluster = cluster(&[backend.addr], policy());
            for _ in 0..5 {
                let sent = client.send(&cluster, get()).await.unwrap();
                assert_eq!(sent.route, Route::Plaintext);
                assert_eq!(read(sent.response.into_body()).await, "hello");
            }
            assert_eq!((backend.requests.get(), backend.connections.get()), (5, 1), "{protocol:?}");
        }
    });
}

#[test]
fn requests_at_the_same_time_share_an_http2_connection() {
    run(async {
        let client = Client::new(Bed::new("a"), UpstreamProtocol::Http2);
        let backend = Backend::new(client.bed.other_ip, UpstreamProtocol::Http2).await;
        backend.close_gate();
        let cluster = cluster(&[backend.addr], policy());
        let requests: Vec<_> = (0..100).map(|_| client.spawn_get(&cluster)).collect();
        client.bed.until("all requests", |_| backend.requests.get() == 100).await;
        assert_eq!(backend.connections.get(), 1);
        let more = client.spawn_get(&cluster);
        client.bed.until("one more", |_| backend.requests.get() == 101).await;
        assert_eq!(backend.connections.get(), 2, "a hundred are enough for one connection");
        backend.open_gate();
        for request in requests {
            request.await.unwrap().unwrap();
        }
        more.await.unwrap().unwrap();
    });
}

#[test]
fn a_connection_is_closed_when_nobody_has_used_it_for_long() {
    run(async {
        for protocol in [UpstreamProtocol::Http1, UpstreamProtocol::Http2] {
            let client = Client::new(Bed::new("a"), protocol);
            let backend = Backend::new(client.bed.other_ip, protocol).await;
            let pool = ConnectionPool {
                http_idle_timeout: Some(Duration::from_secs(60)),
                ..ConnectionPool::default()
            };
            let cluster = cluster(&[backend.addr], limited(pool));
            client.get(&cluster).await.unwrap();
            tokio::time::pause();
            tokio::time::advance(Duration::from_secs(50)).await;
            tokio::time::resume();
            client.get(&cluster).await.unwrap();
            assert_eq!(backend.connections.get(), 1);
            tokio::time::pause();
            tokio::time::advance(Duration::from_secs(61)).await;
            tokio::time::resume();
            client.bed.until("the end", |_| backend.open.get() == 0).await;
            client.bed.until("the account's", |_| client.state(&cluster).connections.get() == 0).await;
        }
    });
}

#[test]
fn a_pod_that_goes_takes_its_connections_along() {
    run(async {
        let client = Client::new(Bed::new("a"), UpstreamProtocol::Http1);
        let backend = Backend::new(client.bed.other_ip, UpstreamProtocol::Http1).await;
        let cluster = cluster(&[backend.addr], policy());
        client.get(&cluster).await.unwrap();
        assert_eq!(backend.open.get(), 1);
        client.bed.worker.remove_pod(client.bed.client.clone(), Duration::ZERO);
        client.bed.until("the end", |_| backend.open.get() == 0).await;
    });
}

#[test]
fn an_answer_that_is_not_read_to_its_end_closes_its_connection() {
    run(async {
        let client = Client::new(Bed::new("a"), UpstreamProtocol::Http1);
        let backend = Backend::new(client.bed.other_ip, UpstreamProtocol::Http1).await;
        let cluster = cluster(&[backend.addr], policy());
        let mut request = get();
        *request.body_mut() = Body::full(vec![7; 4 << 20]);
        let sent = client.send(&cluster, request).await.unwrap();
        let state = client.state(&cluster);
        assert_eq!(state.gauge(Counted::Request).get(), 1);
        drop(sent);
        assert_eq!(state.gauge(Counted::Request).get(), 0);
        client.bed.until("the end", |_| backend.open.get() == 0 && state.connections.get() == 0).await;
    });
}

/// Accepts one connection, answers what `answer` says to its first request, and gives the connection back.
async fn raw(listener: &TcpListener, answer: &[u8]) -> TcpStream {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"hello") {
        stream.read_buf(&mut seen).await.unwrap();
    }
    stream.write_all(answer).await.unwrap();
    stream
}

#[test]
fn a_connection_that_the_server_closed_is_not_used_again() {
    run(async {
        let client = Client::new(Bed::new("a"), UpstreamProtocol::Http1);
        let listener = TcpListener::bind((client.bed.other_ip, 0)).await.unwrap();
        let cluster = cluster(&[listener.local_addr().unwrap()], policy());
        for _ in 0..3 {
            let request = client.spawn_get(&cluster);
            let stream = raw(&listener, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            request.await.unwrap().unwrap();
            let state = client.state(&cluster);
            assert_eq!(state.connections.get(), 1);
            drop(stream);
            client.bed.until("the end", |_| state.connections.get() == 0).await;
        }
    });
}

#[test]
fn what_was_not_sent_is_given_back_and_what_was_is_not() {
    use super::super::exchange::{Carrier, Exchange, Home};
    use super::super::pool::{Pool, Settings};
    run(async {
        let client = Client::new(Bed::new("a"), UpstreamProtocol::Http1);
        let listener = TcpListener::bind((client.bed.other_ip, 0)).await.unwrap();
        let cluster = cluster(&[listener.local_addr().unwrap()], policy());
        let request = client.spawn_get(&cluster);
        drop(raw(&listener, b"").await);
        let error = request.await.unwrap().unwrap_err();
        assert_eq!(error.kind, SendErrorKind::Reset);
        assert!(error.request.is_none());

        let (worker, settings) = (&client.bed.worker, Settings::of(&ConnectionPool::default()));
        let leg = client.leg();
        let way = weft_core::decide::Path::Plaintext;
        let pool_policy = ConnectionPool::default();
        let service = crate::labels::Service::Unknown;
        let dial = super::super::dial_of(&leg, listener.local_addr().unwrap(), &way, (service, &pool_policy));
        let pool = Rc::<Pool>::default();
        let connection =
            super::super::connection::single(worker, &pool, &dial, (None, &settings)).await.unwrap();
        drop(listener.accept().await.unwrap());
        client.bed.until("the news", |_| connection.sender.is_closed()).await;
        let home = Home { worker: worker.clone(), pool, cluster: None, settings };
        let mut exchange = Exchange::new(None, None, Carrier::Single(connection), home);
        let error = exchange.send(get().into()).await.unwrap_err();
        assert_eq!(error.kind, SendErrorKind::ResetBeforeRequest);
        assert!(error.request.is_some());
    });
}

#[test]
fn a_stream_that_is_refused_was_not_worked_on() {
    run(async {
        let client = Client::new(Bed::new("a"), UpstreamProtocol::Http2);
        let listener = TcpListener::bind((client.bed.other_ip, 0)).await.unwrap();
        let cluster = cluster(&[listener.local_addr().unwrap()], policy());
        tokio::task::spawn_local(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut connection = h2::server::handshake(stream).await.unwrap();
            let mut answers = [h2::Reason::REFUSED_STREAM, h2::Reason::INTERNAL_ERROR].into_iter();
            while let Some(request) = connection.accept().await {
                let (_, mut respond) = request.unwrap();
                respond.send_reset(answers.next().unwrap());
            }
        });
        for kind in [SendErrorKind::RefusedStream, SendErrorKind::Reset] {
            assert_eq!(client.get(&cluster).await.unwrap_err().kind, kind);
        }
    });
}

#[test]
fn an_upgraded_connection_is_accounted_for_until_it_is_closed() {
    run(async {
        let client = Client::new(Bed::new("a"), UpstreamProtocol::Http1);
        let listener = TcpListener::bind((client.bed.other_ip, 0)).await.unwrap();
        let cluster = cluster(&[listener.local_addr().unwrap()], policy());
        let server = tokio::task::spawn_local(async move {
            let answer = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\n";
            let mut stream = raw(&listener, answer).await;
            let (mut from, mut to) = stream.split();
            tokio::io::copy(&mut from, &mut to).await.unwrap();
        });
        let mut request = get();
        request.headers_mut().insert("upgrade", "echo".parse().unwrap());
        request.headers_mut().insert("connection", "Upgrade".parse().unwrap());
        let mut sent = client.send(&cluster, request).await.unwrap();
        assert_eq!(sent.response.status(), 101);
        let mut stream = Switched::take(&mut sent.response).unwrap();
        stream.write_all(b"ping").await.unwrap();
        let mut echo = [0; 4];
        stream.read_exact(&mut echo).await.unwrap();
        assert_eq!(&echo, b"ping");
        let state = client.state(&cluster);
        assert_eq!((state.connections.get(), state.gauge(Counted::Request).get()), (1, 1));
        drop(stream);
        server.await.unwrap();
        client
            .bed
            .until("the end", |_| state.connections.get() == 0 && state.gauge(Counted::Request).get() == 0)
            .await;
    });
}

#[test]
fn a_pod_of_another_node_is_reached_through_a_tunnel() {
    run(async {
        let bed = Bed::new("b");
        bed.serve_tunnels();
        let client = Client::new(bed, UpstreamProtocol::Http1);
        let backend = Backend::new(client.bed.server_ip, UpstreamProtocol::Http1).await;
        let cluster = cluster(&[backend.addr], policy());
        for _ in 0..3 {
            let sent = client.send(&cluster, get()).await.unwrap();
            assert_eq!(sent.route, Route::Hbone);
            assert_eq!(sent.workload.as_ref().unwrap().key, name("server"));
            assert_eq!(read(sent.response.into_body()).await, "hello");
        }
        assert_eq!(backend.requests.get(), 3);
        assert_eq!(client.state(&cluster).connections.get(), 1, "one stream of the tunnel carries them");
    });
}

fn tls(mode: ClientTlsMode) -> ClientTls {
    ClientTls { mode, sni: None, subject_alt_names: Vec::new(), certificates: None }
}

#[test]
fn istio_mutual_leaves_out_who_has_no_identity() {
    run(async {
        let bed = Bed::new("b");
        bed.serve_tunnels();
        let client = Client::new(bed, UpstreamProtocol::Http1);
        let of_pod = Backend::new(client.bed.server_ip, UpstreamProtocol::Http1).await;
        let outside = Backend::new(client.bed.other_ip, UpstreamProtocol::Http1).await;
        let tls = tls(ClientTlsMode::IstioMutual);
        let policy = ClusterPolicy { tls: Some(tls), load_balancer: LoadBalancer::RoundRobin, ..policy() };
        let both = cluster(&[of_pod.addr, outside.addr], policy.clone());
        for _ in 0..6 {
            assert_eq!(client.send(&both, get()).await.unwrap().route, Route::Hbone);
        }
        let neither = cluster(&[outside.addr], policy);
        assert_eq!(client.get(&neither).await.unwrap_err().kind, SendErrorKind::NoHealthyUpstream);
        assert_eq!(outside.requests.get(), 0);
    });
}

#[test]
fn istio_mutual_asks_for_one_of_the_names() {
    run(async {
        for node in ["a", "b"] {
            let bed = Bed::new(node);
            bed.serve_tunnels();
            let client = Client::new(bed, UpstreamProtocol::Http1);
            let backend = Backend::new(client.bed.server_ip, UpstreamProtocol::Http1).await;
            let named = |names: &[&str]| {
                let subject_alt_names = names.iter().map(|name| (*name).into()).collect();
                let tls = ClientTls { subject_alt_names, ..tls(ClientTlsMode::IstioMutual) };
                cluster(&[backend.addr], ClusterPolicy { tls: Some(tls), ..policy() })
            };
            let own = identity("server").to_string();
            client.get(&named(&["spiffe://cluster.local/ns/x/sa/other", &own])).await.unwrap();
            let error = client.get(&named(&["spiffe://cluster.local/ns/x/sa/other"])).await.unwrap_err();
            assert_eq!(error.kind, SendErrorKind::NoHealthyUpstream, "{node}");
            assert!(error.detail.contains("identity"), "{}", error.detail);
            assert_eq!(backend.requests.get(), 1, "{node}");
        }
    });
}

#[test]
fn without_tls_a_pod_of_the_mesh_is_reached_in_plain_text() {
    run(async {
        let client = Client::new(Bed::new("b"), UpstreamProtocol::Http1);
        let backend = Backend::new(client.bed.server_ip, UpstreamProtocol::Http1).await;
        let tls = tls(ClientTlsMode::Disable);
        let cluster = cluster(&[backend.addr], ClusterPolicy { tls: Some(tls), ..policy() });
        let sent = client.send(&cluster, get()).await.unwrap();
        assert_eq!(sent.route, Route::Plaintext);
    });
}

#[test]
fn an_application_sees_its_clients_and_each_has_connections_of_its_own() {
    run(async {
        for protocol in [UpstreamProtocol::Http1, UpstreamProtocol::Http2] {
            let client = Client::new(Bed::new("a"), protocol);
            let bed = &client.bed;
            let backend = Backend::new(bed.server_ip, protocol).await;
            let local = client.snapshot.local_workload(&name("server")).unwrap();
            let mut sources = Vec::new();
            for ip in [bed.client_ip, bed.other_ip, bed.client_ip, bed.other_ip] {
                let from = Cell::default();
                let to = Application {
                    pod: &bed.server,
                    local,
                    client: ip,
                    destination: backend.addr,
                    from: &from,
                };
                let response = application(&bed.worker, &to, get().into(), protocol).await.unwrap();
                assert_eq!(read(response.into_body()).await, "hello");
                assert_eq!(from.get().map(|from| from.ip()), Some(ip));
                sources.push(from.get());
            }
            assert_eq!(sources[..2], sources[2..], "of the connection, not of the request");
            assert_eq!((backend.requests.get(), backend.connections.get()), (4, 2), "{protocol:?}");
            assert_eq!(*backend.peers.borrow(), HashSet::from([bed.client_ip, bed.other_ip]));
        }
    });
}
