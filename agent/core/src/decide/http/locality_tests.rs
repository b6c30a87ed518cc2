use proptest::prelude::*;

use super::*;
use crate::decide::http::tests::{ask, cluster_at};
use crate::resource::destination_rule::{
    Balancing, LoadBalancer, LocalityPattern, OutlierDetection, PolicyBlocks, TrafficPolicy,
};
use crate::resource::{DestinationRule, MeshConfig, MeshHttp, Node, PortProtocol, Resource};
use crate::testing::{compile, key, labels, meta, pod, port, service};

/// Nodes by name and place.
const NODES: [(&str, &str); 5] =
    [("a", "eu/eu-1"), ("b", "eu/eu-1"), ("c", "eu/eu-2"), ("d", "us/us-1"), ("e", "asia/asia-1")];

fn outlier() -> Option<OutlierDetection> {
    Some(OutlierDetection {
        consecutive_5xx: 5,
        consecutive_gateway: 0,
        consecutive_local_origin: 5,
        split_local_origin: false,
        interval: std::time::Duration::from_secs(10),
        base_ejection_time: std::time::Duration::from_secs(30),
        max_ejection_percent: 10,
        min_health_percent: 0,
        error_codes: Vec::new(),
    })
}

fn node(name: &str, place: &str) -> Resource {
    let keys = [names::TOPOLOGY_REGION, names::TOPOLOGY_ZONE, names::TOPOLOGY_SUBZONE];
    let pairs = keys.into_iter().zip(place.split('/')).filter(|(_, value)| !value.is_empty());
    Resource::Node(Node {
        name: name.into(),
        addresses: Vec::new(),
        labels: std::sync::Arc::new(pairs.collect()),
    })
}

/// A client on node `a`, and a Service with one pod on each node: 10.0.0.1 on `a`, 10.0.0.2 on `b`, and so on.
fn world(distribution: Option<TrafficDistribution>) -> Vec<Resource> {
    let mut web =
        service("default/web", &["10.96.0.1"], "app=web", &[port("http", 80, 8080, PortProtocol::Http)]);
    web.distribution = distribution;
    let client = pod("default/client", &["10.0.0.100"], "app=client,tier=gold");
    let mut resources = vec![Resource::Service(web), Resource::Pod(client)];
    for (at, (name, place)) in (1..).zip(NODES) {
        resources.push(node(name, place));
        let tier = if at % 2 == 0 { "gold" } else { "silver" };
        let ip = format!("10.0.0.{at}");
        let mut pod = pod(&format!("default/web-{at}"), &[&ip], &format!("app=web,tier={tier}"));
        pod.node = Some(name.into());
        resources.push(Resource::Pod(pod));
    }
    resources
}

fn rule(locality: Option<LocalitySetting>, outlier_detection: Option<OutlierDetection>) -> Resource {
    let balancer = LoadBalancer::LeastRequest;
    let balancing = Balancing { balancer, locality: locality.map(Into::into), warmup: None };
    let blocks =
        PolicyBlocks { load_balancer: Some(balancing), outlier_detection, ..PolicyBlocks::default() };
    Resource::DestinationRule(DestinationRule {
        meta: meta("default/web"),
        host: "web.default.svc.cluster.local".into(),
        policy: Some(TrafficPolicy { blocks, ports: Vec::new() }),
        subsets: Vec::new(),
        export_to: Vec::new(),
        workload_selector: None,
    })
}

fn failover(pairs: &[(&str, &str)]) -> LocalitySetting {
    let failover = pairs.iter().map(|(from, to)| ((*from).into(), (*to).into())).collect();
    LocalitySetting { failover, ..LocalitySetting::default() }
}

fn priorities(texts: &[&str]) -> LocalitySetting {
    let failover_priority = texts.iter().map(|text| PriorityLabel::new(text)).collect();
    LocalitySetting { failover_priority, ..LocalitySetting::default() }
}

fn distribute(from: &str, to: &[(&str, u32)]) -> LocalitySetting {
    let to = to.iter().map(|(place, weight)| (LocalityPattern::new(place), *weight)).collect();
    let distribute = vec![Distribute { from: LocalityPattern::new(from), to }];
    LocalitySetting { distribute, ..LocalitySetting::default() }
}

/// What is laid out for the client: for each group priority, weight and the last bytes of its addresses.
fn laid_out(resources: Vec<Resource>) -> Option<Vec<(u32, u32, Vec<u8>)>> {
    let snapshot = compile(resources);
    let decision = ask("web.default", "/").route(&snapshot);
    let cluster = cluster_at(&decision, 0);
    let client = snapshot.workload(&key("default/client")).unwrap();
    let endpoints: Vec<_> = cluster.endpoints.iter().map(|endpoint| endpoint.addr()).collect();
    let layout = layout(&snapshot, client, cluster, &endpoints)?;
    let last = |index: &u32| match endpoints[*index as usize] {
        SocketAddr::V4(addr) => addr.ip().octets()[3],
        SocketAddr::V6(_) => 0,
    };
    let group = |group: &Group| (group.priority, group.weight, group.members.iter().map(last).collect());
    Some(layout.groups().iter().map(group).collect())
}

fn with(resource: Resource) -> Vec<Resource> {
    world(None).into_iter().chain([resource]).collect()
}

fn mesh(locality: LocalitySetting) -> Resource {
    let http = MeshHttp { locality: Some(locality.into()), ..MeshHttp::default() };
    Resource::MeshConfig(MeshConfig { http, ..MeshConfig::new(key("weft-system/weft")) })
}

/// D-10: outlier detection alone turns failover on; without it nothing is preferred.
#[test]
fn near_places_come_first_where_failures_are_noticed() {
    let near_first = vec![(0, 1, vec![1, 2]), (1, 1, vec![3]), (2, 1, vec![4, 5])];
    assert_eq!(laid_out(with(rule(None, outlier()))), Some(near_first.clone()));
    assert_eq!(laid_out(with(rule(Some(LocalitySetting::default()), outlier()))), Some(near_first));
    assert_eq!(laid_out(with(rule(None, None))), None);
    assert_eq!(laid_out(with(rule(Some(failover(&[("eu", "us")])), None))), None);
    let off = LocalitySetting { enabled: false, ..LocalitySetting::default() };
    assert_eq!(laid_out(with(rule(Some(off.clone()), outlier()))), None);
    let meshwide = [rule(None, outlier()), mesh(off.clone())];
    assert_eq!(laid_out(world(None).into_iter().chain(meshwide).collect()), None);
    let own = [rule(Some(LocalitySetting::default()), outlier()), mesh(off)];
    assert!(
        laid_out(world(None).into_iter().chain(own).collect()).is_some(),
        "the rule's own setting counts"
    );
}

/// D-10: `failover` names the region that comes before other foreign ones.
#[test]
fn a_named_region_comes_before_others() {
    let expected = vec![(0, 1, vec![1, 2]), (1, 1, vec![3]), (2, 1, vec![5]), (3, 1, vec![4])];
    assert_eq!(
        laid_out(with(rule(Some(failover(&[("us", "eu"), ("eu", "asia")])), outlier()))),
        Some(expected)
    );
}

/// D-10: the more leading labels agree, the nearer; `key=value` compares with a given value.
#[test]
fn labels_can_say_what_is_near() {
    let expected = vec![(0, 1, vec![2]), (1, 1, vec![4]), (2, 1, vec![1, 3, 5])];
    let setting = priorities(&["tier", names::TOPOLOGY_ZONE]);
    assert_eq!(laid_out(with(rule(Some(setting), outlier()))), Some(expected));
    let expected = vec![(0, 1, vec![1]), (1, 1, vec![3, 5]), (2, 1, vec![2, 4])];
    let setting = priorities(&["tier=silver", names::HOSTNAME]);
    assert_eq!(laid_out(with(rule(Some(setting), outlier()))), Some(expected));
    let both = LocalitySetting { failover: failover(&[("eu", "asia")]).failover, ..priorities(&["tier"]) };
    let expected = vec![(0, 1, vec![2]), (1, 1, vec![4]), (2, 1, vec![1]), (3, 1, vec![3]), (4, 1, vec![5])];
    assert_eq!(laid_out(with(rule(Some(both), outlier()))), Some(expected));
}

/// D-10: shares by place, without outlier detection; places that one pattern covers share by their size.
#[test]
fn shares_go_to_the_places_that_are_named() {
    let setting = distribute("eu/*", &[("eu/eu-1/*", 70), ("us", 30)]);
    let expected = vec![(0, 70, vec![1, 2]), (0, 30, vec![4])];
    assert_eq!(laid_out(with(rule(Some(setting), None))), Some(expected));
    let setting = distribute("eu", &[("eu", 90), ("*", 10)]);
    let expected = vec![(0, 60, vec![1, 2]), (0, 30, vec![3]), (0, 5, vec![5]), (0, 5, vec![4])];
    assert_eq!(laid_out(with(rule(Some(setting), None))), Some(expected));
    assert_eq!(laid_out(with(rule(Some(distribute("us", &[("eu", 100)])), outlier()))), None);
    let nowhere = distribute("*", &[("mars", 100)]);
    assert_eq!(laid_out(with(rule(Some(nowhere), None))), Some(vec![]), "nobody gets anything");
}

/// D-11: a Service's own preference acts without outlier detection, and a DestinationRule's setting counts before it.
#[test]
fn services_can_prefer_what_is_near() {
    let same_zone = vec![(0, 1, vec![1, 2]), (1, 1, vec![3]), (2, 1, vec![4, 5])];
    assert_eq!(laid_out(world(Some(TrafficDistribution::SameZone))), Some(same_zone));
    let same_node = vec![(0, 1, vec![1]), (1, 1, vec![2]), (2, 1, vec![3]), (3, 1, vec![4, 5])];
    assert_eq!(laid_out(world(Some(TrafficDistribution::SameNode))), Some(same_node));
    let off = LocalitySetting { enabled: false, ..LocalitySetting::default() };
    let mut resources = world(Some(TrafficDistribution::SameNode));
    resources.push(rule(Some(off), None));
    assert_eq!(laid_out(resources), None);
}

/// A pod's own label says where it is, whatever its node says.
#[test]
fn a_pods_own_label_counts_before_its_node() {
    let mut resources = with(rule(None, outlier()));
    for resource in &mut resources {
        if let Resource::Pod(pod) = resource
            && pod.meta.key == key("default/web-4")
        {
            pod.labels = std::sync::Arc::new(labels("weft.dev/mesh=enabled,app=web,istio-locality=eu.eu-1"));
        }
    }
    let expected = vec![(0, 1, vec![1, 2, 4]), (1, 1, vec![3]), (2, 1, vec![5])];
    assert_eq!(laid_out(resources), Some(expected));
}

#[test]
fn where_no_node_says_where_it_is_nothing_is_preferred() {
    let nodes = |resource: &Resource| !matches!(resource, Resource::Node(_));
    let resources = with(rule(None, outlier())).into_iter().filter(nodes).collect();
    assert_eq!(laid_out(resources), None);
}

fn group(priority: u32, weight: u32, members: std::ops::Range<u32>) -> Group {
    Group { locality: None, priority, weight, members: members.collect() }
}

/// How many of 100 draws go to each group; a group is known by its first member.
fn shares(layout: &Layout, available: &[usize], draws: u64) -> Vec<usize> {
    let mut counts = vec![0; available.len()];
    let at = |group: &Group| layout.groups.iter().position(|known| known == group).unwrap();
    for draw in 0..draws {
        if let Some(group) = layout.choose(&mut |group| available[at(group)], draw) {
            counts[at(group)] += 1;
        }
    }
    counts
}

/// As Envoy's documents have it: 140 % of those that are healthy, up to everything.
#[test]
fn a_place_gives_away_what_it_cannot_carry() {
    let layout = Layout { groups: vec![group(0, 1, 0..100), group(1, 1, 100..200)] };
    for (available, expected) in [
        ([100, 100], [100, 0]),
        ([72, 72], [100, 0]),
        ([71, 71], [99, 1]),
        ([50, 50], [70, 30]),
        ([25, 100], [35, 65]),
        ([25, 25], [50, 50]),
        ([0, 100], [0, 100]),
        ([0, 1], [0, 100]),
        ([1, 0], [100, 0]),
        ([0, 0], [0, 0]),
    ] {
        assert_eq!(shares(&layout, &available, 100), expected, "{available:?}");
    }
}

#[test]
fn shares_of_places_follow_weights_and_health() {
    let layout = Layout { groups: vec![group(0, 80, 0..10), group(0, 20, 10..20)] };
    for (available, expected) in
        [([10, 10], [80, 20]), ([8, 10], [80, 20]), ([5, 10], [74, 26]), ([0, 1], [0, 100])]
    {
        let mut counts = [0_usize; 2];
        for draw in 0..10_000_u64 {
            let draw = draw.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mut answers = available.into_iter();
            let chosen = layout.choose(&mut |_| answers.next().unwrap(), draw).unwrap();
            counts[usize::from(*chosen == layout.groups[1])] += 1;
        }
        let near = |at: usize| counts[at].abs_diff(expected[at] * 100) < 150;
        assert!(near(0) && near(1), "{available:?}: {counts:?}");
    }
}

#[test]
fn retries_leave_places_after_every_second_try() {
    let layout = Layout { groups: vec![group(0, 1, 0..2), group(0, 1, 2..3), group(1, 1, 3..5)] };
    let left = |tried: &[usize]| layout.left_behind(tried.iter().copied()).to_vec();
    assert_eq!(left(&[]), [0_u32; 0]);
    assert_eq!(left(&[0]), [0_u32; 0]);
    assert_eq!(left(&[0, 2]), [0, 0]);
    assert_eq!(left(&[0, 2, 4]), [0, 0]);
    assert_eq!(left(&[0, 2, 4, 9]), [0, 0, 1], "who is gone has no place");
}

fn some_layout() -> impl Strategy<Value = (Layout, Vec<usize>)> {
    let group = (0..4_u32, 1..101_u32, 1..9_u32, any::<prop::sample::Index>());
    prop::collection::vec(group, 0..6).prop_map(|groups| {
        let mut groups: Vec<_> = groups
            .into_iter()
            .map(|(priority, weight, size, available)| {
                (group_of(priority, weight, size), available.index(size as usize + 1))
            })
            .collect();
        groups.sort_by_key(|(group, _)| group.priority);
        let (groups, available) = groups.into_iter().unzip();
        (Layout { groups }, available)
    })
}

fn group_of(priority: u32, weight: u32, size: u32) -> Group {
    group(priority, weight, 0..size)
}

proptest! {
    /// A group is chosen exactly where one has somebody, and never one that has nobody.
    #[test]
    fn whoever_is_left_is_found((layout, available) in some_layout(), draw in any::<u64>()) {
        let mut at = 0;
        let mut answers = available.iter().map(|count| { at += 1; *count });
        let chosen = layout.choose(&mut |_| answers.next().unwrap(), draw);
        prop_assert_eq!(chosen.is_some(), available.iter().any(|count| *count > 0));
        if let Some(chosen) = chosen {
            let place = layout.groups.iter().position(|group| std::ptr::eq(group, chosen)).unwrap();
            prop_assert!(available[place] > 0);
        }
    }

    /// While the first priority is whole, nobody else gets anything.
    #[test]
    fn what_is_near_and_whole_gets_everything((layout, _) in some_layout(), draw in any::<u64>()) {
        let chosen = layout.choose(&mut |group| group.members.len(), draw);
        prop_assert_eq!(chosen.map(|group| group.priority), layout.groups.first().map(|group| group.priority));
    }
}
