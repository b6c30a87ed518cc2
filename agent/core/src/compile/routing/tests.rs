//! Compiling routing: incrementally as from scratch, delegates, findings.

use proptest::prelude::*;

use super::*;
use crate::Snapshot;
use crate::decide::http::tests::{
    answers, ask, exact, prefix, regex, rule, uri, virtual_service, vs, with, world,
};
use crate::resource::destination_rule::{Balancing, LoadBalancer, PolicyBlocks, Subset, TrafficPolicy};
use crate::resource::virtual_service::{ExportTo, HttpMatch, HttpRule, Retries, TextMatch};
use crate::resource::{Change, Resource, ResourceKey};
use crate::testing::{compiler, key, labels, meta, pod, upsert};

fn names(prefix: &'static str) -> impl Strategy<Value = String> {
    (prop::sample::select(vec!["a", "b", "weft-system"]), 0..3_u8)
        .prop_map(move |(namespace, at)| format!("{namespace}/{prefix}{at}"))
}

fn hosts() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "s0.a.svc.cluster.local",
        "s1.a.svc.cluster.local",
        "s0.b.svc.cluster.local",
        "*.a.svc.cluster.local",
        "*.local",
        "x.example.com",
    ])
}

fn export() -> impl Strategy<Value = Vec<ExportTo>> {
    prop::sample::select(vec![
        vec![],
        vec![ExportTo::Namespace("a".into())],
        vec![ExportTo::All, ExportTo::Nobody],
        vec![ExportTo::Nobody],
    ])
}

/// A VirtualService of the small world of `compile::tests::random`; some delegate to others, some are delegates.
pub(crate) fn some_virtual_service() -> impl Strategy<Value = Resource> {
    let delegate = prop::option::weighted(0.3, names("v"));
    let hosts = prop_oneof![1 => Just(vec![]), 3 => prop::collection::vec(hosts(), 1..3)];
    (names("v"), hosts, delegate, export(), prop::option::of(0..2_i64), 0..3_usize).prop_map(
        |(name, hosts, delegate, export_to, created, rules)| {
            let mut http: Vec<_> = (0..rules).map(|at| answers(200 + at as u16, vec![])).collect();
            if let Some(delegate) = delegate {
                let action = HttpAction::Delegate(key(&delegate));
                http.push(HttpRule { action, ..HttpRule::default() });
            }
            let mut object = virtual_service(&name, &hosts, http);
            object.meta.created = created;
            object.export_to = export_to;
            Resource::VirtualService(object)
        },
    )
}

/// A DestinationRule of the same world.
pub(crate) fn some_destination_rule() -> impl Strategy<Value = Resource> {
    let subset = prop::sample::select(vec!["", "version=v1", "app=y"]);
    let subsets = prop::collection::vec(subset, 0..3);
    (names("d"), hosts(), subsets, export(), prop::option::of(0..2_i64), prop::bool::weighted(0.2)).prop_map(
        |(name, host, subsets, export_to, created, selecting)| {
            let policy = TrafficPolicy {
                blocks: PolicyBlocks {
                    load_balancer: Some(Balancing::of(LoadBalancer::Random)),
                    ..PolicyBlocks::default()
                },
                ports: Vec::new(),
            };
            let subset = |(at, text): (usize, &str)| Subset {
                name: format!("s{at}").into(),
                labels: labels(text),
                policy: None,
            };
            let mut meta = meta(&name);
            meta.created = created;
            Resource::DestinationRule(DestinationRule {
                meta,
                host: host.into(),
                policy: created.map(|_| policy),
                subsets: subsets.into_iter().enumerate().map(subset).collect(),
                export_to,
                workload_selector: selecting.then(|| labels("app=x")),
            })
        },
    )
}

/// Everything that the routing of a snapshot says, as text in a fixed order; nothing where there is none.
pub(crate) fn render(snapshot: &Snapshot) -> Vec<String> {
    let routing = &snapshot.routing;
    let mut lines = Vec::new();
    for host in all_hosts() {
        for service in routing.virtual_services.get(host).into_iter().flat_map(|list| list.iter()) {
            lines.push(format!(
                "route {host} by {} {:?} {:?}",
                service.object, service.visibility, service.http
            ));
        }
        let mut by_namespace: Vec<_> =
            routing.rules.get(host).into_iter().flat_map(|rules| rules.iter()).collect();
        by_namespace.sort_by_key(|(namespace, _)| *namespace);
        for (namespace, rules) in by_namespace {
            let rules = rules.iter().map(|rule| rule.render()).collect::<Vec<_>>();
            lines.push(format!("rules for {host} in {namespace}: {rules:?}"));
        }
    }
    let mut subsets: Vec<_> =
        routing.subsets.iter().map(|(key, table)| format!("subsets of {key} {table:?}")).collect();
    subsets.sort();
    lines.extend(subsets);
    lines.extend(routing.endpoints.render());
    let current = |service: &Arc<CompiledService>| {
        routing.services.get(&*service.host).is_some_and(|known| Arc::ptr_eq(known, service))
            && routing
                .namespaces
                .get(&*service.key.namespace)
                .is_some_and(|names| names.contains(&service.key))
    };
    let stale = snapshot.services().filter(|service| !current(service));
    lines.extend(stale.map(|service| format!("STALE {}", service.key)));
    let known: usize = routing.namespaces.values().map(|names| names.len()).sum();
    if (known, routing.services.len()) != (snapshot.services().count(), snapshot.services().count()) {
        lines.push("STALE names of Services".into());
    }
    lines
}

fn all_hosts() -> [&'static str; 6] {
    [
        "s0.a.svc.cluster.local",
        "s1.a.svc.cluster.local",
        "s0.b.svc.cluster.local",
        "*.a.svc.cluster.local",
        "*.local",
        "x.example.com",
    ]
}

fn delegating(name: &str, to: &str, root: HttpRule) -> Resource {
    let delegate = HttpRule { action: HttpAction::Delegate(key(to)), ..root };
    vs(name, &["b"], vec![delegate, answers(299, vec![uri(exact("/keep"))])])
}

fn root_rule(matches: Vec<HttpMatch>) -> HttpRule {
    HttpRule { matches, ..HttpRule::default() }
}

fn codes(snapshot: &Snapshot) -> Vec<(&'static str, String)> {
    let own = |code: &str| code.starts_with("WEFT013") || code == "IST0101";
    let own = snapshot.problems().iter().filter(|problem| own(problem.code));
    own.map(|problem| (problem.code, problem.message.clone())).collect()
}

/// V-29.
#[test]
fn a_delegates_matches_lie_within_the_roots() {
    let root = || delegating("default/root", "other/part", root_rule(vec![uri(prefix("/product"))]));
    let part = |uri| vs("other/part", &[], vec![answers(201, vec![super::tests::uri(uri)])]);
    let inside = with([root(), part(exact("/product/v1"))]);
    assert_eq!(ask("b", "/product/v1").goes(&inside), "201 direct_response");
    assert_eq!(ask("b", "/product/v2").goes(&inside), "404 no_route");
    assert_eq!(codes(&inside), []);
    let outside = with([root(), part(prefix("/reviews"))]);
    assert_eq!(ask("b", "/reviews").goes(&outside), "404 no_route");
    assert_eq!(ask("b", "/keep").goes(&outside), "299 direct_response", "other rules stay in force");
    assert_eq!(codes(&outside).len(), 1);
    let without = with([root(), vs("other/part", &[], vec![answers(201, vec![])])]);
    assert_eq!(ask("b", "/product/x").goes(&without), "201 direct_response");
    assert_eq!(ask("b", "/x").goes(&without), "404 no_route");
}

/// V-29: field by field. What cannot be compared lies outside.
#[test]
fn what_lies_within_a_root() {
    let header = |text: Option<TextMatch>| HttpMatch {
        headers: text.map(|text| ("x".into(), text)).into_iter().collect(),
        ..HttpMatch::default()
    };
    let namespace = |name: &str| HttpMatch { source_namespace: Some(name.into()), ..HttpMatch::default() };
    let gateways = |names: &[&str]| HttpMatch {
        gateways: names.iter().map(|name| (*name).into()).collect(),
        ..HttpMatch::default()
    };
    let present = || header(Some(TextMatch::Present));
    for (root, own, expected) in [
        (uri(prefix("/a")), uri(prefix("/a/b")), true),
        (uri(prefix("/a/b")), uri(prefix("/a")), false),
        (uri(prefix("/a")), uri(exact("/a")), true),
        (uri(exact("/a")), uri(prefix("/a")), false),
        (uri(regex("/a.*")), uri(regex("/a.*")), false),
        (uri(regex("/a.*")), header(exact("1")), true),
        (present(), header(exact("1")), false),
        (present(), present(), false),
        (header(exact("1")), present(), false),
        (header(exact("1")), header(exact("1")), true),
        (namespace("default"), namespace("default"), true),
        (namespace("default"), uri(prefix("/")), false),
        (uri(prefix("/")), namespace("default"), true),
        (gateways(&["gw", "mesh"]), gateways(&["mesh"]), true),
        (gateways(&["gw", "mesh"]), gateways(&["mesh", "gw"]), true),
        (gateways(&["mesh"]), gateways(&["gw", "mesh"]), false),
        (gateways(&["mesh"]), gateways(&[]), true),
    ] {
        let text = format!("{root:?} {own:?}");
        let part = vs("other/part", &[], vec![answers(201, vec![own])]);
        let snapshot = with([delegating("default/root", "other/part", root_rule(vec![root])), part]);
        assert_eq!(codes(&snapshot).is_empty(), expected, "{text}");
    }
}

/// V-29: the delegate's fields win, the root's fill the rest.
#[test]
fn the_root_fills_what_the_delegate_leaves() {
    use std::time::Duration;
    let retries = Retries {
        attempts: 7,
        per_try_timeout: None,
        on: vec![],
        ignore_previous_hosts: None,
        remote_localities: None,
        backoff: None,
    };
    let root = HttpRule {
        name: Some("r".into()),
        timeout: Some(Duration::from_secs(3)),
        retries: Some(retries),
        ..HttpRule::default()
    };
    let own =
        HttpRule { name: Some("d".into()), timeout: Some(Duration::from_secs(1)), ..rule(vec![], &["c"]) };
    let snapshot = with([delegating("default/root", "other/part", root), vs("other/part", &[], vec![own])]);
    let decision = ask("b", "/").route(&snapshot);
    let crate::decide::http::Action::Forward(forward) = &decision.action else { panic!("not forwarded") };
    assert_eq!((forward.timeout, forward.retry.attempts), (Some(Duration::from_secs(1)), 7));
    let rule = decision.rule.as_ref().expect("a rule");
    assert_eq!((&*rule.object.name, rule.rule, rule.name.as_deref()), ("part", 0, Some("r-d")));
    let root = rule.root.as_ref().map(|(object, at)| (&*object.name, *at));
    assert_eq!(root, Some(("root", 0)));
}

/// V-29: what cannot be a delegate is told, and what comes later counts.
#[test]
fn delegates_come_and_go() {
    let mut compiler = compiler();
    compiler.apply(world().into_iter().map(upsert));
    compiler.apply([upsert(delegating("default/root", "other/part", root_rule(vec![])))]);
    let missing = compiler.snapshot();
    assert_eq!(ask("b", "/").goes(&missing), "404 no_route");
    assert!(codes(&missing)[0].1.contains("does not exist"));
    let mut part = virtual_service("other/part", &[], vec![answers(201, vec![])]);
    let mut apply = |part: &VirtualService| {
        compiler.apply([upsert(Resource::VirtualService(part.clone()))]);
        compiler.snapshot()
    };
    let there = apply(&part);
    assert_eq!((ask("b", "/").goes(&there).as_str(), codes(&there)), ("201 direct_response", vec![]));
    part.export_to = vec![ExportTo::Namespace("other".into())];
    assert!(codes(&apply(&part))[0].1.contains("not exported"));
    part.export_to = vec![ExportTo::Namespace("default".into())];
    assert_eq!(codes(&apply(&part)), []);
    part.hosts = vec!["x.example.com".into()];
    assert!(codes(&apply(&part))[0].1.contains("hosts of its own"));
    part.hosts = vec![];
    part.http = vec![HttpRule { action: HttpAction::Delegate(key("other/x")), ..HttpRule::default() }];
    assert!(codes(&apply(&part)).iter().any(|(_, message)| message.contains("delegates again")));
    let name = ResourceKey { kind: Kind::VirtualService, name: key("other/part") };
    compiler.apply([Change::Delete(name)]);
    assert!(codes(&compiler.snapshot())[0].1.contains("does not exist"));
}

/// A change of one object shares everything else with the snapshot before.
#[test]
fn a_change_compiles_one_object() {
    let hosts: Vec<_> = (0..500).map(|at| format!("h{at}.example.com")).collect();
    let objects = hosts
        .iter()
        .enumerate()
        .map(|(at, host)| vs(&format!("default/v{at}"), &[host.as_str()], vec![answers(200, vec![])]));
    let mut compiler = compiler();
    compiler.apply(world().into_iter().chain(objects).map(upsert));
    let before = compiler.snapshot();
    compiler.apply([upsert(vs("default/v7", &["h7.example.com"], vec![answers(201, vec![])]))]);
    let after = compiler.snapshot();
    let list = |snapshot: &Snapshot, at: usize| {
        snapshot.routing.virtual_services.get(&hosts[at]).cloned().expect("the object")
    };
    let shared = (0..500).filter(|at| Arc::ptr_eq(&list(&before, *at), &list(&after, *at))).count();
    assert_eq!(shared, 499);
    assert!(!Arc::ptr_eq(&list(&before, 7), &list(&after, 7)));
    compiler.apply([upsert(Resource::Pod(pod("default/client", &["10.0.0.100"], "app=client,x=y")))]);
    assert!(Arc::ptr_eq(&after.routing, &compiler.snapshot().routing), "pods do not touch it");
}
