use super::*;

fn key(name: &str) -> NamespacedName {
    NamespacedName::new("shop", name)
}

fn enrol(name: &str, netns: &str) -> (NamespacedName, Wanted) {
    let place = if netns.is_empty() { Place::Processes } else { Place::Path(netns.into()) };
    let target = Target { uid: Some("u-1".into()), place, ips: vec!["10.0.0.1".parse().unwrap()] };
    (key(name), Wanted::Enrol(target))
}

fn wants<const N: usize>(all: [(NamespacedName, Wanted); N]) -> BTreeMap<NamespacedName, Wanted> {
    all.into()
}

fn wrong(reason: &str) -> Result<(), Failure> {
    Err(Failure::Wrong(reason.into()))
}

const IDLE: &dyn Fn(&NamespacedName) -> usize = &|_| 0;
const BUSY: &dyn Fn(&NamespacedName) -> usize = &|_| 1;

fn enrolled(now: Instant) -> Pods {
    let mut pods = Pods::default();
    let plan = pods.plan(&wants([enrol("cart", "/n/cart")]), now, IDLE);
    assert_eq!(plan, Plan { enrol: vec![key("cart")], ..Plan::default() });
    pods.enrolled(&key("cart"), Ok(()), now);
    pods
}

#[test]
fn an_enrolled_pod_is_left_alone() {
    let now = Instant::now();
    let mut pods = enrolled(now);
    assert_eq!(pods.plan(&wants([enrol("cart", "/n/cart")]), now, BUSY), Plan::default());
    assert_eq!(pods.due(now), None);
}

#[test]
fn a_pod_that_leaves_keeps_its_route_while_it_has_connections() {
    let now = Instant::now();
    let mut pods = enrolled(now);
    let plan = pods.plan(&wants([]), now, BUSY);
    assert_eq!(plan, Plan { leave: vec![key("cart")], ..Plan::default() });
    assert_eq!(pods.plan(&wants([]), now, BUSY), Plan::default());
    assert!(pods.due(now).is_some());

    let ended = pods.plan(&wants([]), now, IDLE);
    assert_eq!(ended, Plan { undo: vec![key("cart")], ..Plan::default() });
    pods.undone(&key("cart"));
    assert!(pods.0.is_empty());
}

#[test]
fn the_grace_ends_even_with_connections() {
    let now = Instant::now();
    let mut pods = enrolled(now);
    pods.plan(&wants([]), now, BUSY);
    let plan = pods.plan(&wants([]), now + GRACE, BUSY);
    assert_eq!(plan.undo, [key("cart")]);
}

#[test]
fn a_pod_that_moves_stays_captured_meanwhile_even_if_it_cannot_be_enrolled() {
    let now = Instant::now();
    let mut pods = enrolled(now);
    let moved = wants([enrol("cart", "/n/other")]);
    let plan = Plan { replace: vec![key("cart")], enrol: vec![key("cart")], ..Plan::default() };
    assert_eq!(pods.plan(&moved, now, BUSY), plan);
    pods.enrolled(&key("cart"), wrong("no such address"), now);
    assert_eq!(pods.plan(&moved, now, BUSY), Plan::default(), "nothing is undone");
    assert!(pods.0.contains_key(&key("cart")), "what is left of it belongs to a pod that is known");
}

#[test]
fn an_enrolled_pod_whose_namespace_is_not_named_any_more_stays() {
    let now = Instant::now();
    let mut pods = enrolled(now);
    let incomplete = wants([(key("cart"), Wanted::Incomplete("no annotation".into()))]);
    assert_eq!(pods.plan(&incomplete, now, IDLE), Plan::default());
    assert!(matches!(pods.0[&key("cart")].stage, Stage::Enrolled));
}

#[test]
fn a_pod_that_comes_back_begins_anew() {
    let now = Instant::now();
    let both = Plan { undo: vec![key("cart")], enrol: vec![key("cart")], ..Plan::default() };
    let mut pods = enrolled(now);
    pods.plan(&wants([]), now, BUSY);
    assert_eq!(pods.plan(&wants([enrol("cart", "/n/cart")]), now, BUSY), both);
}

#[test]
fn failures_are_tried_again_ever_more_slowly_and_at_once_when_the_pod_changes() {
    let now = Instant::now();
    let mut pods = Pods::default();
    let wanted = wants([enrol("cart", "/n/cart")]);
    pods.plan(&wanted, now, IDLE);
    let mut pauses = Vec::new();
    let mut at = now;
    for _ in 0..8 {
        pods.enrolled(&key("cart"), wrong("no such namespace"), at);
        assert_eq!(pods.plan(&wanted, at, IDLE), Plan::default());
        let due = pods.due(at).unwrap();
        pauses.push((due - at).as_secs());
        at = due;
        assert_eq!(pods.plan(&wanted, at, IDLE).enrol, [key("cart")]);
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30, 30]);
    pods.enrolled(&key("cart"), wrong("no such namespace"), at);
    assert_eq!(pods.plan(&wants([enrol("cart", "/n/new")]), at, IDLE).enrol, [key("cart")]);
}

#[test]
fn an_excluded_pod_is_taken_out_and_shown() {
    let now = Instant::now();
    let mut pods = enrolled(now);
    let excluded = wants([(key("cart"), Wanted::Excluded("host network".into()))]);
    assert_eq!(pods.plan(&excluded, now, BUSY).leave, [key("cart")]);
    assert_eq!(pods.plan(&excluded, now, IDLE).undo, [key("cart")]);
    pods.undone(&key("cart"));
    assert_eq!(pods.plan(&excluded, now, IDLE), Plan::default());
    assert!(matches!(&pods.0[&key("cart")].stage, Stage::Excluded(why) if why == "host network"));
}

#[test]
fn a_pod_that_begins_is_looked_for_quickly_and_counts_as_failed_in_the_end() {
    let now = Instant::now();
    let mut pods = Pods::default();
    let wanted = wants([enrol("cart", "")]);
    pods.plan(&wanted, now, IDLE);
    let mut pauses = Vec::new();
    let mut at = now;
    loop {
        pods.enrolled(&key("cart"), Err(Failure::NotYet("no process".into())), at);
        if matches!(pods.0[&key("cart")].stage, Stage::Failed { .. }) {
            break;
        }
        assert_eq!(pods.plan(&wanted, at, IDLE), Plan::default());
        let due = pods.due(at).unwrap();
        pauses.push((due - at).as_millis());
        at = due;
        assert_eq!(pods.plan(&wanted, at, IDLE).enrol, [key("cart")]);
    }
    assert_eq!(pauses[..7], [20, 40, 80, 160, 320, 640, 1000]);
    assert!(at - now >= BEGINNING);
}

#[test]
fn a_pod_without_addresses_waits_for_the_configuration_and_does_not_lose_its_place() {
    let now = Instant::now();
    let not_begun = wants([(key("cart"), Wanted::NotBegun("no address".into()))]);
    let mut pods = Pods::default();
    assert_eq!(pods.plan(&not_begun, now, IDLE), Plan::default());
    assert_eq!(pods.due(now), None);
    assert_eq!(pods.plan(&wants([enrol("cart", "")]), now, IDLE).enrol, [key("cart")]);

    let mut pods = enrolled(now);
    assert_eq!(pods.plan(&not_begun, now, IDLE), Plan::default());
    assert!(matches!(pods.0[&key("cart")].stage, Stage::Enrolled));
}

#[test]
fn the_word_of_the_plugin_may_be_taken_back_but_not_another_pod_of_the_same_name() {
    let now = Instant::now();
    let mut pods = enrolled(now);
    assert_eq!(pods.plan(&wants([enrol("cart", "")]), now, BUSY), Plan::default());
    // A new sandbox of the same pod.
    assert_eq!(pods.plan(&wants([enrol("cart", "/n/new")]), now, BUSY).replace, [key("cart")]);
    pods.enrolled(&key("cart"), Ok(()), now);
    let (_, other) = enrol("cart", "/n/new");
    let Wanted::Enrol(target) = other else { panic!("it is to be enrolled") };
    let other = Wanted::Enrol(Target { uid: Some("u-2".into()), ..target });
    assert_eq!(pods.plan(&wants([(key("cart"), other)]), now, BUSY).replace, [key("cart")]);
}

#[test]
fn the_order_of_addresses_does_not_matter() {
    let now = Instant::now();
    let target = |ips: &[&str]| {
        let ips = ips.iter().map(|ip| ip.parse().unwrap()).collect();
        wants([(key("cart"), Wanted::Enrol(Target { uid: None, place: Place::Processes, ips }))])
    };
    let mut pods = Pods::default();
    pods.plan(&target(&["10.0.0.1", "fd00::1"]), now, IDLE);
    pods.enrolled(&key("cart"), Ok(()), now);
    assert_eq!(pods.plan(&target(&["fd00::1", "10.0.0.1"]), now, IDLE), Plan::default());
    assert_eq!(pods.plan(&target(&["10.0.0.2"]), now, IDLE).replace, [key("cart")]);
}
