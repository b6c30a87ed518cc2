//! Limits (E26, E27, D-13).

use super::super::SendErrorKind;
use super::super::limits::Counted;
use super::*;
use crate::testbed::run;

/// Starts requests and waits until all but `left` of them were refused.
async fn burst(client: &Client, cluster: &Arc<Cluster>, count: usize, left: usize) -> Vec<SendErrorKind> {
    let refused = Rc::new(RefCell::new(Vec::new()));
    for _ in 0..count {
        let (client, cluster, refused) = (client.clone(), cluster.clone(), refused.clone());
        tokio::task::spawn_local(async move {
            if let Err(error) = client.get(&cluster).await {
                assert!(error.request.is_some(), "nothing was sent");
                refused.borrow_mut().push(error.kind);
            }
        });
    }
    client.bed.until("the refusals", |_| refused.borrow().len() == count - left).await;
    refused.borrow().clone()
}

#[test]
fn three_connections_and_one_that_waits_serve_four_of_fifty() {
    run(async {
        let client = Client::new(Bed::new("a"), UpstreamProtocol::Http1);
        let backend = Backend::new(client.bed.other_ip, UpstreamProtocol::Http1).await;
        backend.close_gate();
        let cluster = cluster(
            &[backend.addr],
            limited(ConnectionPool {
                max_connections: Some(3),
                max_pending_requests: Some(1),
                max_requests_per_connection: Some(1),
                ..ConnectionPool::default()
            }),
        );
        let refused = burst(&client, &cluster, 50, 4).await;
        assert!(refused.iter().all(|kind| *kind == SendErrorKind::Overflow), "{refused:?}");
        client.bed.until("the three", |_| backend.requests.get() == 3).await;
        let state = client.state(&cluster);
        assert_eq!((state.connections.get(), state.gauge(Counted::Pending).get()), (3, 1));
        backend.open_gate();
        client.bed.until("the fourth", |_| backend.requests.get() == 4).await;
        client.bed.until("the end", |_| state.connections.get() == 0).await;
        assert_eq!(backend.connections.get(), 4, "a connection carries one request");
        assert_eq!(client.counter("upstream_rq_pending_overflow"), 46);
        assert_eq!(client.counter("upstream_rq_active_overflow"), 0);
        assert_eq!(client.counter("upstream_cx_overflow"), 47);
        assert_eq!((state.gauge(Counted::Request).get(), state.gauge(Counted::Pending).get()), (0, 0));
    });
}

#[test]
fn one_request_at_a_time_serves_one_of_five() {
    run(async {
        for protocol in [UpstreamProtocol::Http1, UpstreamProtocol::Http2] {
            let client = Client::new(Bed::new("a"), protocol);
            let backend = Backend::new(client.bed.other_ip, protocol).await;
            backend.close_gate();
            let cluster = cluster(
                &[backend.addr],
                limited(ConnectionPool {
                    max_requests: Some(1),
                    max_pending_requests: Some(1),
                    max_requests_per_connection: Some(1),
                    ..ConnectionPool::default()
                }),
            );
            let refused = burst(&client, &cluster, 5, 1).await;
            assert!(refused.iter().all(|kind| *kind == SendErrorKind::Overflow), "{refused:?}");
            assert_eq!(client.counter("upstream_rq_active_overflow"), 1, "{protocol:?}");
            assert_eq!(client.counter("upstream_rq_pending_overflow"), 3, "{protocol:?}");
            backend.open_gate();
            let state = client.state(&cluster);
            client.bed.until("the end", |_| state.gauge(Counted::Request).get() == 0).await;
            assert_eq!(backend.requests.get(), 1);
        }
    });
}

#[test]
fn one_connection_serves_those_who_wait_one_after_the_other() {
    run(async {
        let client = Client::new(Bed::new("a"), UpstreamProtocol::Http1);
        let backend = Backend::new(client.bed.other_ip, UpstreamProtocol::Http1).await;
        backend.close_gate();
        let pool = ConnectionPool { max_connections: Some(1), ..ConnectionPool::default() };
        let cluster = cluster(&[backend.addr], limited(pool));
        let requests: Vec<_> = (0..10).map(|_| client.spawn_get(&cluster)).collect();
        let state = client.state(&cluster);
        client.bed.until("nine to wait", |_| state.gauge(Counted::Pending).get() == 9).await;
        // Those who give up are passed over.
        requests[3].abort();
        requests[9].abort();
        client.bed.until("two to give up", |_| state.gauge(Counted::Pending).get() == 7).await;
        backend.open_gate();
        for (at, request) in requests.into_iter().enumerate() {
            assert_eq!(request.await.is_ok(), at != 3 && at != 9);
        }
        assert_eq!(backend.connections.get(), 1);
        assert_eq!(backend.requests.get(), 8);
    });
}

#[test]
fn an_idle_connection_gives_way_to_another_endpoint() {
    run(async {
        let client = Client::new(Bed::new("a"), UpstreamProtocol::Http1);
        let one = Backend::new(client.bed.other_ip, UpstreamProtocol::Http1).await;
        let other = Backend::new(client.bed.other_ip, UpstreamProtocol::Http1).await;
        let pool = ConnectionPool { max_connections: Some(1), ..ConnectionPool::default() };
        let policy = ClusterPolicy { load_balancer: LoadBalancer::RoundRobin, ..limited(pool) };
        let cluster = cluster(&[one.addr, other.addr], policy);
        for turn in 1..=4 {
            client.get(&cluster).await.unwrap();
            assert_eq!(one.connections.get() + other.connections.get(), turn);
            let state = client.state(&cluster);
            client.bed.until("one connection", |_| one.open.get() + other.open.get() == 1).await;
            assert_eq!(state.connections.get(), 1);
        }
        assert_eq!(client.counter("upstream_rq_pending_overflow"), 0);
    });
}

#[test]
fn an_endpoint_without_a_connection_gets_one_beyond_the_limit() {
    run(async {
        let client = Client::new(Bed::new("a"), UpstreamProtocol::Http1);
        let one = Backend::new(client.bed.other_ip, UpstreamProtocol::Http1).await;
        let other = Backend::new(client.bed.other_ip, UpstreamProtocol::Http1).await;
        one.close_gate();
        other.close_gate();
        let pool = ConnectionPool { max_connections: Some(1), ..ConnectionPool::default() };
        let policy = ClusterPolicy { load_balancer: LoadBalancer::RoundRobin, ..limited(pool) };
        let cluster = cluster(&[one.addr, other.addr], policy);
        let requests: Vec<_> = (0..3).map(|_| client.spawn_get(&cluster)).collect();
        client.bed.until("both", |_| one.requests.get() == 1 && other.requests.get() == 1).await;
        assert_eq!(client.state(&cluster).gauge(Counted::Pending).get(), 1);
        // The one that waits is served though the other endpoint's connection fills the cluster.
        let [first, second] =
            if at_one(&client, &cluster, &one) > 1 { [&one, &other] } else { [&other, &one] };
        first.open_gate();
        client.bed.until("the third", |_| first.requests.get() == 2).await;
        second.open_gate();
        for request in requests {
            request.await.unwrap().unwrap();
        }
    });
}

/// Requests that an endpoint has to answer.
fn at_one(client: &Client, cluster: &Arc<Cluster>, backend: &Backend) -> u32 {
    let host = client.state(cluster).hosts(std::iter::once(backend.addr), &cluster.endpoints);
    host[0].active.get()
}

/// A cluster with `maxConnections`, or without.
fn at_most(endpoint: SocketAddr, connections: Option<u32>) -> Arc<Cluster> {
    let pool = ConnectionPool {
        max_connections: connections,
        max_concurrent_streams: Some(1),
        ..ConnectionPool::default()
    };
    cluster(&[endpoint], limited(pool))
}

#[test]
fn a_lowered_limit_closes_what_is_idle_at_the_next_request() {
    run(async {
        for protocol in [UpstreamProtocol::Http1, UpstreamProtocol::Http2] {
            let client = Client::new(Bed::new("a"), protocol);
            let backend = Backend::new(client.bed.other_ip, protocol).await;
            backend.close_gate();
            let before = at_most(backend.addr, None);
            let requests: Vec<_> = (0..5).map(|_| client.spawn_get(&before)).collect();
            client.bed.until("five", |_| backend.requests.get() == 5).await;
            backend.open_gate();
            for request in requests {
                request.await.unwrap().unwrap();
            }
            assert_eq!(backend.open.get(), 5, "{protocol:?}");
            client.get(&at_most(backend.addr, Some(2))).await.unwrap();
            client.bed.until("two to be left", |_| backend.open.get() == 2).await;
            assert_eq!(client.state(&before).connections.get(), 2);
            assert_eq!(backend.connections.get(), 5, "one that was open is used");
        }
    });
}

#[test]
fn a_lowered_limit_closes_what_is_in_use_when_its_request_ends() {
    run(async {
        let client = Client::new(Bed::new("a"), UpstreamProtocol::Http1);
        let backend = Backend::new(client.bed.other_ip, UpstreamProtocol::Http1).await;
        backend.close_gate();
        let before = at_most(backend.addr, None);
        let mut requests: Vec<_> = (0..5).map(|_| client.spawn_get(&before)).collect();
        client.bed.until("five", |_| backend.requests.get() == 5).await;
        let lowered = at_most(backend.addr, Some(2));
        requests.extend((0..5).map(|_| client.spawn_get(&lowered)));
        let state = client.state(&before);
        client.bed.until("five to wait", |_| state.gauge(Counted::Pending).get() == 5).await;
        for left in (2..5).rev() {
            backend.gate.add_permits(1);
            client.bed.until("one to be closed", |_| backend.open.get() == left).await;
            assert_eq!(state.connections.get() as usize, left);
            assert_eq!(state.gauge(Counted::Pending).get(), 5, "its place is nobody's");
        }
        backend.open_gate();
        for request in requests {
            request.await.unwrap().unwrap();
        }
        assert_eq!((backend.open.get(), backend.connections.get()), (2, 5));
        assert_eq!(state.gauge(Counted::Pending).get(), 0);
    });
}

#[test]
fn a_raised_limit_serves_those_who_wait() {
    run(async {
        let client = Client::new(Bed::new("a"), UpstreamProtocol::Http1);
        let backend = Backend::new(client.bed.other_ip, UpstreamProtocol::Http1).await;
        backend.close_gate();
        let low = at_most(backend.addr, Some(1));
        let mut requests: Vec<_> = (0..3).map(|_| client.spawn_get(&low)).collect();
        let state = client.state(&low);
        client.bed.until("two to wait", |_| state.gauge(Counted::Pending).get() == 2).await;
        requests.push(client.spawn_get(&at_most(backend.addr, Some(4))));
        client.bed.until("all four", |_| backend.requests.get() == 4).await;
        backend.open_gate();
        for request in requests {
            request.await.unwrap().unwrap();
        }
    });
}

#[test]
fn an_idle_connection_from_before_the_limit_gives_way_to_another_worker() {
    run(async {
        let client = Client::new(Bed::new("a"), UpstreamProtocol::Http1);
        let backend = Backend::new(client.bed.other_ip, UpstreamProtocol::Http1).await;
        client.get(&at_most(backend.addr, None)).await.unwrap();
        let other = crate::worker::Worker::new(1, client.bed.worker.shared.clone());
        let cluster = at_most(backend.addr, Some(1));
        let mut search = Search::default();
        let sent = send(&other, &client.leg(), &cluster, &mut search, get().into(), UpstreamProtocol::Http1)
            .await
            .unwrap();
        assert_eq!(read(sent.response.into_body()).await, "hello");
        client.bed.until("one connection", |_| backend.open.get() == 1).await;
        assert_eq!(backend.connections.get(), 2);
        assert_eq!(client.state(&cluster).connections.get(), 1);
        // And back: this worker's own connection was closed, the other's gives way.
        client.get(&cluster).await.unwrap();
        client.bed.until("one connection", |_| backend.open.get() == 1).await;
        assert_eq!(backend.connections.get(), 3);
    });
}

#[test]
fn retries_are_counted_while_they_last() {
    run(async {
        let client = Client::new(Bed::new("a"), UpstreamProtocol::Http1);
        let pool = ConnectionPool { max_retries: Some(2), ..ConnectionPool::default() };
        let cluster = cluster(&[], limited(pool));
        let retry = || super::super::retry(&client.bed.worker, &client.leg(), &cluster);
        let (one, two) = (retry().unwrap(), retry().unwrap());
        assert!(retry().is_none());
        drop(one);
        let three = retry().unwrap();
        drop((two, three));
        assert_eq!(client.counter("upstream_rq_retry_overflow"), 1);
    });
}

#[test]
fn a_request_whose_client_has_gone_gives_back_what_it_held() {
    run(async {
        let client = Client::new(Bed::new("a"), UpstreamProtocol::Http1);
        let backend = Backend::new(client.bed.other_ip, UpstreamProtocol::Http1).await;
        backend.close_gate();
        let cluster = cluster(&[backend.addr], policy());
        let request = client.spawn_get(&cluster);
        client.bed.until("the request", |_| backend.requests.get() == 1).await;
        let state = client.state(&cluster);
        assert_eq!((state.gauge(Counted::Request).get(), state.connections.get()), (1, 1));
        request.abort();
        client.bed.until("the end", |_| state.connections.get() == 0 && backend.open.get() == 0).await;
        assert_eq!(state.gauge(Counted::Request).get(), 0);
    });
}
