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
        one.open_gate();
        other.open_gate();
        for request in requests {
            request.await.unwrap().unwrap();
        }
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
