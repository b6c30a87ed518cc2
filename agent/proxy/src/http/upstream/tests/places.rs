//! Near endpoints before far ones, new ones gradually, retries within a budget (D-9, D-10, D-19).

use std::time::Duration;

use tokio::time::advance;
use weft_core::resource::destination_rule::{
    Distribute, LocalityPattern, LocalitySetting, RetryBudget, Warmup,
};
use weft_core::resource::virtual_service::PerMillion;
use weft_core::resource::{Change, Node, Resource};

use super::super::state::ClusterState;
use super::*;
use crate::testbed::{run, run_paused};

/// A node with the address of a backend: its place is the backend's.
fn node(name: &str, region: &str, address: Option<IpAddr>) -> Change {
    let labels = [("topology.kubernetes.io/region", region)].into_iter().collect();
    let node = Node { name: name.into(), addresses: address.into_iter().collect(), labels: Arc::new(labels) };
    Change::Upsert(Box::new(Resource::Node(node)))
}

/// A client in `eu`, a backend there and one in `us`.
async fn two_regions() -> (Client, [Rc<Backend>; 2]) {
    let mut bed = Bed::new("a");
    let far = IpAddr::from([127, 200, 0, 9]);
    bed.change([node("a", "eu", None), node("near", "eu", Some(bed.other_ip)), node("far", "us", Some(far))]);
    let near = Backend::new(bed.other_ip, UpstreamProtocol::Http1).await;
    let far = Backend::new(far, UpstreamProtocol::Http1).await;
    (Client::new(bed, UpstreamProtocol::Http1), [near, far])
}

fn noticing() -> OutlierDetection {
    OutlierDetection {
        consecutive_5xx: 2,
        consecutive_gateway: 0,
        consecutive_local_origin: 5,
        split_local_origin: false,
        interval: Duration::from_secs(10),
        base_ejection_time: Duration::from_secs(60),
        max_ejection_percent: 100,
        min_health_percent: 0,
        error_codes: Vec::new(),
    }
}

fn counts(backends: &[Rc<Backend>; 2]) -> [usize; 2] {
    backends.each_ref().map(|backend| backend.requests.get())
}

#[test]
fn the_near_region_serves_until_it_is_ejected() {
    run(async {
        let (client, backends) = two_regions().await;
        let cluster = cluster(&backends.each_ref().map(|backend| backend.addr), ejecting(noticing()));
        for _ in 0..20 {
            client.get(&cluster).await.unwrap();
        }
        assert_eq!(counts(&backends), [20, 0]);
        backends[0].status.set(503);
        for _ in 0..20 {
            client.get(&cluster).await.unwrap();
        }
        assert_eq!(counts(&backends), [22, 18]);
    });
}

#[test]
fn what_failed_is_tried_again_elsewhere() {
    run(async {
        let (client, backends) = two_regions().await;
        let cluster = cluster(&backends.each_ref().map(|backend| backend.addr), ejecting(noticing()));
        let mut search = Search { tried: SmallVec::from_iter([backends[0].addr]), ..Search::default() };
        let leg = client.leg();
        let sending =
            send(&client.bed.worker, &leg, &cluster, &mut search, get().into(), UpstreamProtocol::Http1);
        assert_eq!(sending.await.unwrap().endpoint, backends[1].addr);
    });
}

/// V-25, with two endpoints near and one far. As in Envoy, places are left after every second try.
#[test]
fn retries_leave_their_place_as_the_rule_says() {
    run(async {
        let (mut client, [near, far]) = two_regions().await;
        let also_near = IpAddr::from([127, 200, 0, 10]);
        let mut bed = Rc::into_inner(client.bed).unwrap();
        bed.change([node("also-near", "eu", Some(also_near))]);
        let also_near = Backend::new(also_near, UpstreamProtocol::Http1).await;
        client = Client::new(bed, UpstreamProtocol::Http1);
        let cluster = cluster(&[near.addr, far.addr, also_near.addr], ejecting(noticing()));
        let places = async |again: bool, remote: Option<bool>| {
            let mut search = Search { again, remote, ..Search::default() };
            for _ in 0..5 {
                let leg = client.leg();
                let sending =
                    send(&client.bed.worker, &leg, &cluster, &mut search, get().into(), client.protocol);
                read(sending.await.unwrap().response.into_body()).await;
            }
            let place = |addr: &SocketAddr| if *addr == far.addr { "far" } else { "near" };
            search.tried.iter().map(place).collect::<Vec<_>>().join(" ")
        };
        for _ in 0..20 {
            assert_eq!(places(false, None).await, "near near far near near", "when nobody else is left");
            assert_eq!(places(false, Some(false)).await, "near near near near near");
            assert_eq!(places(true, None).await, "near near near near near");
            assert_eq!(
                places(true, Some(true)).await,
                "near near far far near",
                "all places were left by then"
            );
        }
    });
}

#[test]
fn shares_by_place_are_kept() {
    run(async {
        let (client, backends) = two_regions().await;
        let share = |place: &str, percent| (LocalityPattern::new(place), percent);
        let distribute =
            vec![Distribute { from: LocalityPattern::new("eu"), to: vec![share("eu", 30), share("us", 70)] }];
        let setting = LocalitySetting { distribute, ..LocalitySetting::default() };
        let policy = ClusterPolicy { locality: Some(setting.into()), ..policy() };
        let cluster = cluster(&backends.each_ref().map(|backend| backend.addr), policy);
        for _ in 0..1000 {
            client.get(&cluster).await.unwrap();
        }
        let [near, far] = counts(&backends);
        // Four sigmas of 1000 draws.
        assert!(near.abs_diff(300) < 58 && near + far == 1000, "{near} {far}");
    });
}

#[test]
fn endpoints_are_as_old_as_the_time_that_they_are_ready() {
    run_paused(async {
        let warmup =
            Warmup { duration: Duration::from_secs(60), minimum: PerMillion(100_000), aggression: 1000 };
        let client = Client::new(Bed::new("a"), UpstreamProtocol::Http1);
        let state: Arc<ClusterState> = client.state(&cluster(&[], policy()));
        let addr = |last: u8| SocketAddr::from(([10, 0, 0, last], 80));
        let hosts = |ready: &[bool]| {
            let all = (1..).zip(ready).map(|(last, ready)| Endpoint::new(addr(last), *ready));
            let all: Vec<_> = all.collect();
            let ready = all.iter().filter(|endpoint| endpoint.ready).map(|endpoint| endpoint.addr());
            state.hosts(ready.collect::<Vec<_>>().into_iter(), &all)
        };
        let ages = |hosts: &[Arc<super::super::state::Host>]| {
            let now = tokio::time::Instant::now();
            hosts.iter().map(|host| state.age(host, now).as_secs()).collect::<Vec<_>>()
        };
        hosts(&[true, true]);
        advance(Duration::from_secs(61)).await;
        assert!(!state.is_warming(&warmup));
        assert_eq!(ages(&hosts(&[true, true, true])), [61, 61, 0]);
        assert!(state.is_warming(&warmup));
        advance(Duration::from_secs(10)).await;
        hosts(&[true, false, true]);
        advance(Duration::from_secs(10)).await;
        assert_eq!(ages(&hosts(&[true, true, true])), [81, 0, 20]);
        advance(Duration::from_secs(60)).await;
        assert!(!state.is_warming(&warmup));
    });
}

#[test]
fn retries_keep_to_the_budget_in_place_of_the_limit() {
    run(async {
        let client = Client::new(Bed::new("a"), UpstreamProtocol::Http1);
        let pool = ConnectionPool { max_retries: Some(100), ..ConnectionPool::default() };
        let budget = RetryBudget { share: PerMillion(500_000), minimum: 1 };
        let backend = Backend::new(client.bed.other_ip, UpstreamProtocol::Http1).await;
        backend.close_gate();
        let cluster = cluster(&[backend.addr], ClusterPolicy { retry_budget: Some(budget), ..limited(pool) });
        let retry = || super::super::retry(&client.bed.worker, &client.leg(), &cluster);
        let one = retry();
        assert!(one.is_some() && retry().is_none(), "one in any case");
        let waiting: Vec<_> = (0..4).map(|_| client.spawn_get(&cluster)).collect();
        client.bed.until("four requests", |_| backend.requests.get() == 4).await;
        let another = retry();
        assert!(another.is_some() && retry().is_none(), "half of what is outstanding");
        assert_eq!(client.counter("upstream_rq_retry_overflow"), 2);
        backend.open_gate();
        for request in waiting {
            request.await.unwrap().unwrap();
        }
    });
}
