//! TLS and TCP rules.

use super::*;
use crate::decide::{ConnectionDecision, route_connection, route_connection_traced};
use crate::resource::virtual_service::{ConnectionMatch, TcpRule, TlsMatch, TlsRule};

fn routes(hosts: &[(&str, u32)]) -> Vec<(DestinationRef, u32)> {
    hosts.iter().map(|(host, weight)| (to(host).destination, *weight)).collect()
}

fn tcp(matches: Vec<ConnectionMatch>, hosts: &[(&str, u32)]) -> TcpRule {
    TcpRule { matches, routes: routes(hosts) }
}

fn object(tls: Vec<TlsRule>, tcp: Vec<TcpRule>) -> Resource {
    Resource::VirtualService(VirtualService { tls, tcp, ..virtual_service("default/b", &["b"], vec![]) })
}

fn decide(snapshot: &Snapshot, original: &str, sni: Option<&str>) -> ConnectionDecision {
    let workload = snapshot.workload(&key("default/client")).expect("the client");
    let caller = Caller { workload, original: addr(original), labels: &workload.pod_labels };
    route_connection(snapshot, &caller, sni)
}

fn goes(snapshot: &Snapshot, original: &str, sni: Option<&str>) -> String {
    let decision = decide(snapshot, original, sni);
    let name = |target: &Target| match &target.cluster {
        Ok(cluster) => format!("{}*{}", short_name(&cluster.name), target.weight),
        Err(name) => format!("NC {}", short_name(name)),
    };
    decision.targets.iter().map(name).collect::<Vec<_>>().join(" ")
}

/// V-31.
#[test]
fn tcp_rules_match_by_port_address_and_client() {
    let port = |port: u16| ConnectionMatch { port: Some(port), ..ConnectionMatch::default() };
    let nobody = ConnectionMatch { source_labels: labels("app=nobody"), ..ConnectionMatch::default() };
    let elsewhere = ConnectionMatch {
        destination_subnets: vec!["192.0.2.0/24".parse().expect("a subnet")],
        ..port(9090)
    };
    let here = ConnectionMatch {
        destination_subnets: vec!["10.96.0.0/24".parse().expect("a subnet")],
        ..port(9090)
    };
    let snapshot = with([object(
        vec![],
        vec![tcp(vec![nobody, elsewhere], &[("a", 1)]), tcp(vec![here], &[("c", 20), ("a", 80), ("b", 0)])],
    )]);
    assert_eq!(goes(&snapshot, "10.96.0.2:9090", None), "9090||c.default*20 9090||a.default*80");
    let decision = decide(&snapshot, "10.96.0.2:9090", None);
    let rule = decision.rule.expect("a rule");
    assert_eq!((rule.list, rule.rule, rule.matched), ("tcp", 1, Some(0)));
    assert_eq!(goes(&snapshot, "10.96.0.2:80", None), "80||b.default*1", "no rule: its own");
    assert!(decide(&snapshot, "192.0.2.1:9090", None).targets.is_empty(), "nobody's address");
    assert!(decide(&snapshot, "10.96.0.2:1", None).targets.is_empty(), "nobody's port");
}

/// rules for a headless Service match by its own port, whatever the endpoint's.
#[test]
fn endpoints_of_headless_services_have_its_rules() {
    let db = service("default/db", &[], "app=db", &[port("tcp", 5432, 5433, PortProtocol::Tcp)]);
    let at = |port: u16| {
        let matches = vec![ConnectionMatch { port: Some(port), ..ConnectionMatch::default() }];
        let rules = virtual_service("default/db", &["db"], vec![]);
        VirtualService { tcp: vec![tcp(matches, &[("a", 1)])], ..rules }
    };
    let goes_to = |rules: Option<VirtualService>| {
        let objects = [Resource::Service(db.clone())].into_iter();
        goes(&with(objects.chain(rules.map(Resource::VirtualService))), "10.0.0.6:5433", None)
    };
    assert_eq!(goes_to(None), "5432||db.default*1");
    assert_eq!(goes_to(Some(at(5433))), "5432||db.default*1");
    assert_eq!(
        goes_to(Some(at(5432))),
        "NC 5432||a.default",
        "as it was written, for the port that was addressed"
    );
}

/// Rules of another namespace, for an address that is no pod's or that of somebody else's pod, move nobody's connection.
#[test]
fn rules_of_strangers_come_between_nobody_and_an_address() {
    let trap = service("other/trap", &[], "", &[port("http", 80, 5433, PortProtocol::Http)]);
    let endpoints = [("192.0.2.8", true), ("10.0.0.6", true)];
    let rules = VirtualService {
        tcp: vec![tcp(vec![], &[("d.other.svc.cluster.local", 1)])],
        ..virtual_service("other/trap", &["trap.other.svc.cluster.local"], vec![])
    };
    let snapshot = with([
        Resource::Service(trap),
        Resource::EndpointSlice(slice("other/trap-1", "trap", &[("http", 5433)], &endpoints)),
        Resource::VirtualService(rules),
    ]);
    let of = |client: &str, original: &str| {
        let workload = snapshot.workload(&key(client)).expect("the client");
        let caller = Caller { workload, original: addr(original), labels: &workload.pod_labels };
        let targets = route_connection(&snapshot, &caller, None).targets.len();
        (targets, crate::decide::protocol::outbound(&snapshot, &workload.key.namespace, addr(original)))
    };
    for address in ["192.0.2.8:5433", "10.0.0.6:5433"] {
        assert_eq!(of("default/client", address), (0, PortProtocol::Undeclared), "{address}");
    }
    assert_eq!(of("other/client", "192.0.2.8:5433"), (1, PortProtocol::Http), "its own namespace's");
    assert_eq!(of("other/client", "10.0.0.6:5433"), (0, PortProtocol::Undeclared), "a pod of `default`");
}

/// V-30.
#[test]
fn tls_rules_match_by_name_first_by_declaration() {
    let named = |hosts: &[&str], to: &str| TlsRule {
        matches: vec![TlsMatch {
            sni_hosts: hosts.iter().map(|host| (*host).into()).collect(),
            connection: ConnectionMatch::default(),
        }],
        routes: routes(&[(to, 0)]),
    };
    let snapshot = with([object(
        vec![named(&["*.example.com"], "a"), named(&["x.example.com", "b.default.svc.cluster.local"], "c")],
        vec![],
    )]);
    assert_eq!(goes(&snapshot, "10.96.0.2:443", Some("X.example.com")), "443||a.default*1");
    assert_eq!(goes(&snapshot, "10.96.0.2:443", Some("b.default.svc.cluster.local")), "443||c.default*1");
    assert_eq!(goes(&snapshot, "10.96.0.2:443", Some("example.com")), "443||b.default*1");
    assert_eq!(goes(&snapshot, "10.96.0.2:443", None), "443||b.default*1", "no name, no TLS rule");
}

/// V-30, V-31.
#[test]
fn tls_rules_are_for_tls_ports_and_tcp_rules_for_others() {
    let named = TlsRule {
        matches: vec![TlsMatch { sni_hosts: vec!["b".into()], connection: ConnectionMatch::default() }],
        routes: routes(&[("a", 0)]),
    };
    let snapshot = with([object(vec![named], vec![tcp(vec![], &[("c", 0)])])]);
    assert_eq!(goes(&snapshot, "10.96.0.2:443", Some("b")), "443||a.default*1");
    assert_eq!(goes(&snapshot, "10.96.0.2:443", Some("x")), "443||b.default*1");
    assert_eq!(goes(&snapshot, "10.96.0.2:443", None), "443||b.default*1");
    assert_eq!(goes(&snapshot, "10.96.0.2:9090", Some("b")), "9090||c.default*1");
}

#[test]
fn the_trace_names_what_failed() {
    let entry = ConnectionMatch { port: Some(1), ..ConnectionMatch::default() };
    let snapshot = with([object(vec![], vec![tcp(vec![entry], &[("a", 1)])])]);
    let workload = snapshot.workload(&key("default/client")).expect("the client");
    let caller = Caller { workload, original: addr("10.96.0.2:9090"), labels: &workload.pod_labels };
    let (_, trace) = route_connection_traced(&snapshot, &caller, None);
    let skipped: Vec<_> =
        trace.skipped.iter().map(|skip| (skip.list, skip.rule, skip.field.as_str())).collect();
    assert_eq!(skipped, [("tcp", 0, "port")]);
}
