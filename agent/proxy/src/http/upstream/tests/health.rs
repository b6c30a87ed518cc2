//! Choice of endpoints, and ejections (S-15 to S-17, D-15).

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::super::SendErrorKind;
use super::*;
use crate::testbed::run;

fn outlier(percent: u32) -> OutlierDetection {
    OutlierDetection {
        consecutive_5xx: 1,
        consecutive_gateway: 0,
        consecutive_local_origin: 5,
        split_local_origin: false,
        interval: Duration::from_secs(10),
        base_ejection_time: Duration::from_secs(180),
        max_ejection_percent: percent,
        min_health_percent: 0,
        error_codes: Vec::new(),
    }
}

async fn three(client: &Client) -> Vec<Rc<Backend>> {
    let mut backends = Vec::new();
    for _ in 0..3 {
        backends.push(Backend::new(client.bed.other_ip, client.protocol).await);
    }
    backends
}

fn addresses(backends: &[Rc<Backend>]) -> Vec<SocketAddr> {
    backends.iter().map(|backend| backend.addr).collect()
}

/// Lets time pass that nobody waits for.
pub(super) async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

#[test]
fn round_robin_serves_each_as_often() {
    run(async {
        let client = Client::new(Bed::new("a"), UpstreamProtocol::Http1);
        let backends = three(&client).await;
        let policy = ClusterPolicy { load_balancer: LoadBalancer::RoundRobin, ..policy() };
        let cluster = cluster(&addresses(&backends), policy);
        for _ in 0..12 {
            client.get(&cluster).await.unwrap();
        }
        let counts: Vec<_> = backends.iter().map(|backend| backend.requests.get()).collect();
        assert_eq!(counts, [4, 4, 4]);
    });
}

#[test]
fn least_request_avoids_the_one_that_does_not_answer() {
    run(async {
        let client = Client::new(Bed::new("a"), UpstreamProtocol::Http1);
        let backends = three(&client).await;
        backends[1].close_gate();
        let cluster = cluster(&addresses(&backends), policy());
        let stuck = loop {
            let request = client.spawn_get(&cluster);
            let before: usize = backends.iter().map(|backend| backend.requests.get()).sum();
            client
                .bed
                .until("a request", |_| backends.iter().map(|it| it.requests.get()).sum::<usize>() > before)
                .await;
            if backends[1].requests.get() == 1 {
                break request;
            }
            request.await.unwrap().unwrap();
        };
        for _ in 0..50 {
            client.get(&cluster).await.unwrap();
        }
        assert_eq!(backends[1].requests.get(), 1);
        backends[1].open_gate();
        stuck.await.unwrap().unwrap();
    });
}

#[test]
fn what_was_tried_is_not_tried_again_while_there_is_another() {
    run(async {
        let client = Client::new(Bed::new("a"), UpstreamProtocol::Http1);
        let backends = three(&client).await;
        let cluster = cluster(&addresses(&backends), policy());
        let mut search = Search::default();
        for _ in 0..4 {
            let (worker, leg) = (&client.bed.worker, client.leg());
            let sent =
                send(worker, &leg, &cluster, &mut search, get().into(), client.protocol).await.unwrap();
            read(sent.response.into_body()).await;
        }
        let first: HashSet<_> = search.tried[..3].iter().collect();
        assert_eq!(first.len(), 3, "three different ones, then any (E16)");
        assert_eq!(search.tried.len(), 4);
    });
}

#[test]
fn a_hash_stays_with_its_endpoint() {
    use weft_core::resource::destination_rule::{HashAlgorithm, HashKey};
    run(async {
        let client = Client::new(Bed::new("a"), UpstreamProtocol::Http1);
        let backends = three(&client).await;
        let load_balancer = LoadBalancer::ConsistentHash {
            key: HashKey::SourceIp,
            algorithm: HashAlgorithm::Ring { minimum_size: 1024 },
        };
        let cluster = cluster(&addresses(&backends), ClusterPolicy { load_balancer, ..policy() });
        let mut owners = HashMap::new();
        for round in 0..3 {
            for user in 0..20_u64 {
                let hash = Some(user.wrapping_mul(0x9E37_79B9_7F4A_7C15));
                let mut search = Search { hash, ..Search::default() };
                let (worker, leg) = (&client.bed.worker, client.leg());
                let sent =
                    send(worker, &leg, &cluster, &mut search, get().into(), client.protocol).await.unwrap();
                read(sent.response.into_body()).await;
                assert_eq!(*owners.entry(user).or_insert(sent.endpoint), sent.endpoint, "round {round}");
            }
        }
        assert_eq!(owners.values().collect::<HashSet<_>>().len(), 3);
    });
}

#[test]
fn passthrough_goes_where_the_client_wanted() {
    run(async {
        let client = Client::new(Bed::new("a"), UpstreamProtocol::Http1);
        let backends = three(&client).await;
        let policy = ClusterPolicy { load_balancer: LoadBalancer::Passthrough, ..policy() };
        let cluster = cluster(&addresses(&backends), policy);
        for _ in 0..5 {
            let leg = Leg { original: backends[2].addr, ..client.leg() };
            let mut search = Search::default();
            let worker = &client.bed.worker;
            let sent =
                send(worker, &leg, &cluster, &mut search, get().into(), client.protocol).await.unwrap();
            assert_eq!(sent.endpoint, backends[2].addr);
            read(sent.response.into_body()).await;
        }
        assert_eq!((backends[2].requests.get(), backends[2].connections.get()), (5, 1));
    });
}

#[test]
fn an_endpoint_of_a_headless_service_that_was_dialled_is_the_one() {
    run(async {
        let client = Client::new(Bed::new("a"), UpstreamProtocol::Http1);
        let backends = three(&client).await;
        let cluster = cluster(&addresses(&backends), policy());
        for _ in 0..5 {
            let leg = Leg { original: backends[1].addr, ..client.leg() };
            let mut search = Search::default();
            let worker = &client.bed.worker;
            let sent =
                send(worker, &leg, &cluster, &mut search, get().into(), client.protocol).await.unwrap();
            assert_eq!(sent.endpoint, backends[1].addr);
        }
    });
}

#[test]
fn an_endpoint_that_fails_is_out_and_comes_back() {
    run(async {
        let client = Client::new(Bed::new("a"), UpstreamProtocol::Http1);
        let backend = Backend::new(client.bed.other_ip, UpstreamProtocol::Http1).await;
        backend.status.set(500);
        let cluster = cluster(&[backend.addr], ejecting(outlier(100)));
        assert_eq!(client.get(&cluster).await.unwrap().0, 500);
        // 180 s, then twice as much, which is more than the most (D-15).
        for seconds in [180, 300] {
            let error = client.get(&cluster).await.unwrap_err();
            assert_eq!(error.kind, SendErrorKind::NoHealthyUpstream);
            assert!(error.request.is_some());
            pass(Duration::from_secs(seconds - 5)).await;
            assert_eq!(client.get(&cluster).await.unwrap_err().kind, SendErrorKind::NoHealthyUpstream);
            pass(Duration::from_secs(6)).await;
            // Back, and out again for the longer.
            assert_eq!(client.get(&cluster).await.unwrap().0, 500);
        }
        assert_eq!(backend.requests.get(), 3);
        assert_eq!(client.counter("ejections_enforced_total"), 3);
        assert_eq!(client.counter("ejections_active"), 1);
    });
}

#[test]
fn one_of_a_few_is_ejected_and_the_others_stay() {
    run(async {
        let client = Client::new(Bed::new("a"), UpstreamProtocol::Http1);
        let backends = three(&client).await;
        let cluster = cluster(&addresses(&backends), ejecting(outlier(10)));
        backends.iter().for_each(|backend| backend.status.set(503));
        for _ in 0..20 {
            assert_eq!(client.get(&cluster).await.unwrap().0, 503);
        }
        let once = backends.iter().filter(|backend| backend.requests.get() == 1).count();
        assert_eq!(once, 1, "the first to fail, and no other");
        assert_eq!(client.counter("ejections_enforced_total"), 1);
        assert!(client.counter("ejections_overflow") > 0);
    });
}

#[test]
fn what_cannot_be_reached_is_ejected_and_nothing_was_sent_to_it() {
    run(async {
        let client = Client::new(Bed::new("a"), UpstreamProtocol::Http1);
        let backend = Backend::new(client.bed.other_ip, UpstreamProtocol::Http1).await;
        let gone = TcpListener::bind((client.bed.other_ip, 0)).await.unwrap().local_addr().unwrap();
        let policy = ClusterPolicy { load_balancer: LoadBalancer::RoundRobin, ..ejecting(outlier(10)) };
        let cluster = cluster(&[backend.addr, gone], policy);
        let mut failures = 0;
        for _ in 0..10 {
            if let Err(error) = client.get(&cluster).await {
                assert_eq!((error.kind, error.endpoint), (SendErrorKind::ConnectFailure, Some(gone)));
                assert!(error.request.is_some());
                failures += 1;
            }
        }
        assert_eq!(failures, 1);
        assert_eq!(client.counter("upstream_cx_connect_fail"), 1);
    });
}

#[test]
fn a_grpc_status_counts_as_its_http_status() {
    run(async {
        let client = Client::new(Bed::new("a"), UpstreamProtocol::Http2);
        let backend = Backend::new(client.bed.other_ip, UpstreamProtocol::Http2).await;
        let cluster = cluster(&[backend.addr], ejecting(outlier(100)));
        let ask = async || {
            let mut request = get();
            request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
            let sent = client.send(&cluster, request).await?;
            read(sent.response.into_body()).await;
            Ok::<_, SendError>(())
        };
        for status in [0, 5, 7] {
            backend.grpc_status.set(Some(status));
            ask().await.unwrap();
        }
        backend.grpc_status.set(Some(14));
        ask().await.unwrap();
        assert_eq!(ask().await.unwrap_err().kind, SendErrorKind::NoHealthyUpstream);
    });
}

#[test]
fn state_outlives_the_endpoints_of_one_snapshot() {
    run(async {
        let client = Client::new(Bed::new("a"), UpstreamProtocol::Http1);
        let backends = three(&client).await;
        backends[0].status.set(500);
        let before = cluster(&addresses(&backends[..2]), ejecting(outlier(50)));
        while backends[0].requests.get() == 0 {
            client.get(&before).await.unwrap();
        }
        let connections = backends[1].connections.get();
        let after = cluster(&addresses(&backends), ejecting(outlier(50)));
        for _ in 0..20 {
            client.get(&after).await.unwrap();
        }
        assert_eq!(backends[0].requests.get(), 1, "it is still out");
        assert_eq!(backends[1].connections.get().max(1), connections.max(1), "its connection is still used");
        assert!(backends[2].requests.get() > 0);
        let without = cluster(&[backends[1].addr], ejecting(outlier(50)));
        client.get(&without).await.unwrap();
        assert_eq!(client.counter("ejections_active"), 0, "an endpoint that has gone is not out");
        client.bed.until("its connection's end", |_| backends[2].open.get() == 0).await;
        assert!(!client.state(&without).any_ejected(Instant::now));
    });
}
