use proptest::prelude::*;

use super::*;
use crate::compile::{CompileOptions, Compiler, tests::random::some_resource};
use crate::resource::virtual_service::ExportTo;
use crate::resource::*;
use crate::testing::{any, *};

fn learned(ports: &[(&str, u16)]) -> LearnedPorts {
    LearnedPorts(ports.iter().map(|(name, port)| (key(name), *port)).collect())
}

fn enrolled(snapshot: &Snapshot) -> BTreeSet<NamespacedName> {
    snapshot.local().iter().map(|local| local.workload.key.clone()).collect()
}

fn view(resources: &[Resource], learned: &LearnedPorts) -> KernelView {
    let snapshot = compile(resources.iter().cloned());
    kernel_view(&snapshot, &enrolled(&snapshot), learned)
}

/// `source → destination:port` with the service account and the pod's name.
fn direct(view: &KernelView) -> Vec<String> {
    let account = |pair: &DirectPair| pair.source.rsplit('/').next().unwrap().to_owned();
    let mut pairs: Vec<_> = view
        .direct
        .iter()
        .map(|pair| format!("{} → {}:{}", account(pair), pair.destination.name, pair.port))
        .collect();
    pairs.sort();
    pairs
}

fn with_account(account: &str, pod: Pod) -> Resource {
    Resource::Pod(Pod { service_account: account.into(), ..pod })
}

/// A client and a server with a TCP, an HTTP and an undeclared port.
fn world() -> Vec<Resource> {
    let ports = [
        port("db", 5432, 5432, PortProtocol::Tcp),
        port("http", 80, 8080, PortProtocol::Http),
        port("x", 9000, 9000, PortProtocol::Undeclared),
    ];
    vec![
        with_account("client", pod("shop/client", &["10.0.0.9"], "")),
        with_account("server", pod("shop/server", &["10.0.0.1"], "app=server")),
        Resource::Service(service("shop/server", &["10.96.0.1"], "app=server", &ports)),
    ]
}

fn with(resource: Resource) -> Vec<Resource> {
    [world(), vec![resource]].concat()
}

/// A rule that says nothing.
fn destination_rule(name: &str, host: &str) -> DestinationRule {
    DestinationRule {
        meta: meta(name),
        host: host.into(),
        policy: None,
        subsets: Vec::new(),
        export_to: Vec::new(),
        workload_selector: None,
    }
}

#[test]
fn declared_tcp_goes_direct_and_http_does_not() {
    let nothing = LearnedPorts::default();
    let view_of_world = view(&world(), &nothing);
    assert_eq!(direct(&view_of_world), ["client → server:5432"]);
    let vips: Vec<_> = view_of_world.services.iter().map(|s| (s.vip, s.endpoints.clone())).collect();
    assert_eq!(vips, [(addr("10.96.0.1:5432"), vec![addr("10.0.0.1:5432")])]);
    let seen =
        learned(&[("shop/server", 9000), ("shop/server", 7), ("shop/server", 8080), ("other/server", 6)]);
    let expected = ["client → server:5432", "client → server:7", "client → server:9000"];
    assert_eq!(direct(&view(&world(), &seen)), expected);
}

/// What objects say about a Service's endpoints is kept by the proxy; the pair of pods may go direct nevertheless.
#[test]
fn the_kernel_chooses_only_where_nobody_rules() {
    let nothing = LearnedPorts::default();
    let rule = |host: &str| Resource::DestinationRule(destination_rule("shop/rule", host));
    let services = |resource| view(&with(resource), &nothing).services.len();
    assert_eq!(services(rule("other.shop.svc.cluster.local")), 1);
    assert_eq!(services(rule("server.shop.svc.cluster.local")), 0);
    assert_eq!(services(rule("*.shop.svc.cluster.local")), 0);
    let hidden =
        service("shop/server", &["10.96.0.1"], "app=server", &[port("db", 5432, 5432, PortProtocol::Tcp)]);
    let hidden = Service { export_to: vec![ExportTo::Own], ..hidden };
    assert_eq!(services(Resource::Service(hidden)), 0, "not every client sees it (X-7)");
    let ruled = view(&with(rule("server.shop.svc.cluster.local")), &nothing);
    assert_eq!(direct(&ruled), ["client → server:5432"]);
}

/// who dials an endpoint of a headless Service gets what objects say about it from the proxy.
#[test]
fn clients_of_a_headless_service_with_rules_go_through_the_proxy() {
    let nothing = LearnedPorts::default();
    let db = service("shop/server", &[], "app=server", &[port("db", 5432, 5432, PortProtocol::Tcp)]);
    let headless = with(Resource::Service(db));
    assert_eq!(direct(&view(&headless, &nothing)), ["client → server:5432"]);
    let rule = |host: &str| {
        let rule = Resource::DestinationRule(destination_rule("shop/rule", host));
        direct(&view(&[headless.clone(), vec![rule]].concat(), &nothing))
    };
    assert_eq!(rule("server.shop.svc.cluster.local"), [""; 0]);
    assert_eq!(rule("other.shop.svc.cluster.local"), ["client → server:5432"]);
    // Nor can another namespace take the direct path away.
    let trap = service("evil/trap", &[], "", &[port("db", 5432, 5432, PortProtocol::Tcp)]);
    let objects = [
        Resource::Service(trap),
        Resource::EndpointSlice(slice("evil/trap-1", "trap", &[("db", 5432)], &[("10.0.0.1", true)])),
        Resource::DestinationRule(destination_rule("evil/rule", "trap.evil.svc.cluster.local")),
    ];
    assert_eq!(direct(&view(&[world(), objects.to_vec()].concat(), &nothing)), ["client → server:5432"]);
}

#[test]
fn the_traffic_annotation_overrides() {
    let hint =
        |value: &str| with(Resource::Namespace(namespace("shop", "", &format!("weft.dev/traffic={value}"))));
    let nothing = LearnedPorts::default();
    assert_eq!(direct(&view(&hint("l7"), &learned(&[("shop/server", 7)]))), [""; 0]);
    let all = ["client → server:5432", "client → server:8080", "client → server:9000"];
    assert_eq!(direct(&view(&hint("l4"), &nothing)), all);
}

#[test]
fn encryption_bypass_and_enrolment_prevent_direct() {
    let nothing = LearnedPorts::default();
    let encrypted = with(Resource::Namespace(namespace("shop", "", "weft.dev/same-node=encrypt")));
    assert_eq!(direct(&view(&encrypted, &nothing)), [""; 0]);
    let annotations: Arc<Labels> = labels("weft.dev/mesh=bypass").into();
    let bypassed = Pod { annotations, ..pod("shop/server", &["10.0.0.1"], "app=server") };
    assert_eq!(direct(&view(&with(with_account("server", bypassed)), &nothing)), [""; 0]);
    let snapshot = compile(world());
    for missing in ["shop/client", "shop/server"] {
        let mut enrolled = enrolled(&snapshot);
        enrolled.remove(&key(missing));
        let view = kernel_view(&snapshot, &enrolled, &nothing);
        assert_eq!((direct(&view), view.pods.len(), view.services.len()), (vec![], 1, 0));
    }
}

#[test]
fn every_pod_of_an_identity_must_be_allowed() {
    let deny = policy(
        "shop/deny",
        PolicyAction::Deny,
        "app=server",
        vec![from(Source { ip_blocks: any(["10.0.0.8/32".parse().unwrap()]), ..Source::default() })],
    );
    let second = |account: &str| with_account(account, pod("shop/second", &["10.0.0.8"], ""));
    let all =
        |account: &str| [with(Resource::AuthorizationPolicy(deny.clone())), vec![second(account)]].concat();
    let nothing = LearnedPorts::default();
    assert_eq!(direct(&view(&all("client"), &nothing)), [""; 0]);
    assert_eq!(direct(&view(&all("other"), &nothing)), ["client → server:5432"]);
}

#[test]
fn policies_decide_and_those_that_only_count_are_the_proxys() {
    let nothing = LearnedPorts::default();
    let rules = |principal: &str| vec![from(principals(&[principal]))];
    let client = "cluster.local/ns/shop/sa/client";
    for (action, principal, dry_run, expected) in [
        (PolicyAction::Allow, client, false, true),
        (PolicyAction::Allow, "nobody", false, false),
        (PolicyAction::Deny, client, false, false),
        (PolicyAction::Deny, "nobody", false, true),
        (PolicyAction::Custom, client, false, false),
        (PolicyAction::Deny, client, true, false),
        (PolicyAction::Deny, "nobody", true, true),
        (PolicyAction::Allow, "nobody", true, false),
        (PolicyAction::Audit, client, false, false),
        (PolicyAction::Audit, "nobody", false, true),
    ] {
        let mut policy = policy("shop/p", action, "app=server", rules(principal));
        policy.dry_run = dry_run;
        let found = direct(&view(&with(Resource::AuthorizationPolicy(policy)), &nothing));
        let expected = if expected { vec!["client → server:5432"] } else { vec![] };
        assert_eq!(found, expected, "{action:?} {principal} dry-run {dry_run}");
    }
    let sni = Rule { when: vec![Condition::Sni(not([pattern("x")]))], ..Rule::default() };
    let policy = policy("shop/p", PolicyAction::Allow, "app=server", vec![sni]);
    assert_eq!(direct(&view(&with(Resource::AuthorizationPolicy(policy)), &nothing)), [""; 0]);
}

#[test]
fn strict_does_not_prevent_direct() {
    let strict = peer_authentication("shop/strict", "", Some(MtlsMode::Strict));
    let view = view(&with(Resource::PeerAuthentication(strict)), &LearnedPorts::default());
    assert_eq!(direct(&view), ["client → server:5432"]);
}

#[test]
fn an_agent_that_is_gone() {
    let strict = Some(MtlsMode::Strict);
    let permissive = Some(MtlsMode::Permissive);
    let authentication = |mode, ports: &[(u16, Option<MtlsMode>)]| {
        let mut policy = peer_authentication("shop/server", "app=server", mode);
        policy.ports = ports.to_vec();
        Resource::PeerAuthentication(policy)
    };
    let rule = |dry_run| {
        let mut policy = policy("shop/p", PolicyAction::Deny, "app=server", vec![]);
        policy.dry_run = dry_run;
        Resource::AuthorizationPolicy(policy)
    };
    let pass = Resource::Namespace(namespace("shop", "", "weft.dev/agent-gone=pass"));
    for (extra, expected) in [
        (vec![], (true, vec![])),
        (vec![authentication(strict, &[])], (false, vec![])),
        (vec![authentication(strict, &[(80, permissive), (81, strict)])], (false, vec![80])),
        (vec![authentication(permissive, &[(80, strict), (81, permissive)])], (true, vec![80])),
        (vec![rule(false)], (false, vec![])),
        (vec![rule(false), authentication(strict, &[(80, permissive)])], (false, vec![])),
        (vec![rule(true)], (true, vec![])),
        (vec![rule(false), authentication(strict, &[(80, permissive)]), pass], (true, vec![])),
    ] {
        let view = view(&[world(), extra.clone()].concat(), &LearnedPorts::default());
        let server = view.pods.iter().find(|pod| &*pod.workload.key.name == "server").unwrap();
        assert_eq!((server.gone_pass, server.gone_ports.clone()), expected, "{extra:?}");
    }
}

/// Checks every promise of a view against the decisions of the proxy.
fn check(
    snapshot: &Snapshot,
    enrolled: &BTreeSet<NamespacedName>,
    view: &KernelView,
) -> Result<(), TestCaseError> {
    let locals: Vec<_> = enrolled.iter().filter_map(|key| snapshot.local_workload(key)).collect();
    let mut reachable = BTreeSet::new();
    for pair in &view.direct {
        let destination = snapshot.local_workload(&pair.destination).expect("a local destination");
        prop_assert!(enrolled.contains(&pair.destination));
        let sources = locals.iter().filter(|local| *local.workload.identity.principal() == *pair.source);
        for source in sources.clone().filter(|source| source.workload.in_mesh() && !source.bypass) {
            for to in &destination.workload.ips {
                for from in source.workload.ips.iter().filter(|from| from.is_ipv4() == to.is_ipv4()) {
                    let to = SocketAddr::new(*to, pair.port);
                    let identity = Some(&*source.workload.identity);
                    let connection =
                        InboundConnection { identity, source_ip: *from, destination: to, sni: None };
                    let decision = inbound(destination, &connection);
                    prop_assert_eq!(decision.verdict, Verdict::Allow, "{:?} from {}", pair, from);
                    prop_assert!(decision.authorization.dry_run.is_empty());
                    prop_assert!(decision.authorization.audits.is_empty());
                }
            }
        }
        prop_assert!(sources.count() > 0);
        reachable.extend(destination.workload.ips.iter().map(|ip| SocketAddr::new(*ip, pair.port)));
    }
    for service in &view.services {
        prop_assert!(service.endpoints.iter().any(|endpoint| reachable.contains(endpoint)));
    }
    // And nothing is left out: every ready endpoint that is reachable has its virtual addresses, where nobody rules.
    for service in snapshot.local_services() {
        let is_ruled = !kernel_chooses(snapshot, service);
        for port in service.ports.iter() {
            for vip in
                service.vips.iter().filter(|vip| snapshot.service_by_vip(vip).unwrap().key == service.key)
            {
                let direct = port.endpoints.iter().any(|endpoint| {
                    let family = endpoint.addr().is_ipv4() == vip.is_ipv4();
                    endpoint.ready && family && reachable.contains(&endpoint.addr())
                });
                let vip = SocketAddr::new(*vip, port.port);
                prop_assert_eq!(view.services.iter().any(|service| service.vip == vip), direct && !is_ruled);
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn never_direct_where_the_proxy_would_refuse(
        resources in prop::collection::vec(some_resource(), 1..60),
        learned_ports in prop::collection::vec((0..4u8, prop::sample::select(vec![80u16, 443, 8080])), 0..8),
    ) {
        let mut compiler = Compiler::new(CompileOptions { node: Some("a".into()), adopt_istio_labels: true, endpoints_from_pods: true });
        compiler.apply([upsert(Resource::Namespace(namespace("a", "weft.dev/mesh=enabled", "")))]);
        compiler.apply(resources.into_iter().map(upsert));
        let snapshot = compiler.snapshot();
        let learned = LearnedPorts(learned_ports.iter().map(|(at, port)| (key(&format!("a/p{at}")), *port)).collect());
        let enrolled = enrolled(&snapshot);
        check(&snapshot, &enrolled, &kernel_view(&snapshot, &enrolled, &learned))?;
    }
}
