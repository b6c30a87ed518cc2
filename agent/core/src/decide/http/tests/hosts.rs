//! Whom does a Host name, and who owns it?

use super::*;

/// X-3, E7.
#[test]
fn every_form_of_a_services_name_reaches_it() {
    let snapshot = with([]);
    let forms = [
        "b.default.svc.cluster.local",
        "b.default.svc.cluster.local.",
        "b.default.svc",
        "b.default",
        "b",
        "B",
        "b:80",
        "b.default:12345",
        "10.96.0.2",
        "10.96.0.2:80",
        "",
    ];
    for form in forms {
        let decision = ask(form, "/").route(&snapshot);
        assert_eq!(short(&decision), "80||b.default", "{form}");
        assert_eq!(decision.route_name(), Some("default"));
        assert_eq!(
            decision.service.map(|(service, at)| (service.key.clone(), at)),
            Some((key("default/b"), 0))
        );
    }
}

/// a short name is of the client's namespace.
#[test]
fn a_short_name_is_of_the_clients_namespace() {
    let snapshot = with([]);
    assert_eq!(ask("b", "/").from("other/client").goes(&snapshot), "passthrough");
    assert_eq!(ask("d", "/").from("other/client").goes(&snapshot), "80||d.other");
    assert_eq!(ask("d", "/").goes(&snapshot), "passthrough");
    assert_eq!(ask("d.other", "/").goes(&snapshot), "80||d.other");
}

/// only the full name may end with the root's dot, and hosts of no Service have no other form at all.
#[test]
fn a_final_dot_is_for_full_names() {
    let snapshot = with([vs("default/x", &["out.example.com"], vec![answers(201, vec![])])]);
    for host in ["b.", "b.default.", "b.default.svc.", "out.example.com."] {
        assert_eq!(ask(host, "/").goes(&snapshot), "passthrough", "{host}");
    }
}

/// nobody says what the port speaks, so it has a listener of its own.
#[test]
fn a_port_that_declares_nothing_serves_every_host() {
    let open =
        service("default/open", &["10.96.0.7"], "app=b", &[port("any", 81, 8080, PortProtocol::Undeclared)]);
    let snapshot = with([Resource::Service(open.clone())]);
    for host in ["open", "b", "nowhere.example.com", "192.0.2.9:77", ""] {
        assert_eq!(ask(host, "/").dials("10.96.0.7:81").goes(&snapshot), "81||open.default", "{host}");
    }
    let snapshot = with([Resource::Service(open), vs("default/x", &["open"], vec![answers(201, vec![])])]);
    assert_eq!(ask("x.example.com", "/").dials("10.96.0.7:81").goes(&snapshot), "201 direct_response");
}

/// V-10: the port is the listener's, not that of Host.
#[test]
fn a_service_without_the_dialled_port_is_not_named() {
    let snapshot = with([]);
    assert_eq!(ask("two:8000", "/").goes(&snapshot), "passthrough");
    assert_eq!(ask("two", "/").dials("10.96.0.5:8000").goes(&snapshot), "8000||two.default");
}

/// headless Services by name, by their pods' names, on the port that the client dialled.
#[test]
fn headless_services_are_known_by_name() {
    let snapshot = with([]);
    for form in ["db", "db.default", "db-0.db", "db-0.db.default.svc.cluster.local", "db-0.db.default.svc"] {
        let decision = ask(form, "/").dials("10.0.0.6:8080").route(&snapshot);
        assert_eq!(short(&decision), "80||db.default", "{form}");
        let client = snapshot.workload(&key("default/client")).expect("the client");
        let candidates =
            cluster_candidates(&snapshot, client, cluster_at(&decision, 0), addr("10.0.0.6:8080"));
        assert_eq!(
            candidates.iter().map(|to| to.addr).collect::<Vec<_>>(),
            [addr("10.0.0.6:8080")],
            "{form}"
        );
    }
    assert_eq!(ask("b-v1.b", "/").goes(&snapshot), "passthrough", "only headless ones have such names");
}

/// S-40.
#[test]
fn a_pods_address_is_its_own_destination_reported_under_the_service() {
    let rules = vec![answers(418, vec![])];
    let snapshot = with([vs("default/b", &["b"], rules)]);
    let decision = ask("10.0.0.3:8080", "/").dials("10.0.0.3:8080").route(&snapshot);
    assert_eq!(short(&decision), "80||b.default");
    let client = snapshot.workload(&key("default/client")).expect("the client");
    let candidates = cluster_candidates(&snapshot, client, cluster_at(&decision, 0), addr("10.0.0.3:8080"));
    assert_eq!(candidates.iter().map(|to| to.addr).collect::<Vec<_>>(), [addr("10.0.0.3:8080")]);
    assert_eq!(
        ask("10.0.0.3:1", "/").dials("10.0.0.3:1").goes(&snapshot),
        "passthrough",
        "no Service's port"
    );
    assert_eq!(ask("10.0.0.3", "/").dials("10.96.0.2:80").goes(&snapshot), "passthrough", "not dialled");
}

/// X-14, E45.
#[test]
fn unknown_hosts_pass_or_are_refused() {
    let snapshot = with([]);
    let decision = ask("nowhere.example.com", "/").route(&snapshot);
    assert_eq!((short(&decision).as_str(), decision.route_name()), ("passthrough", Some("allow_any")));
    let config = MeshConfig { registry_only: true, ..MeshConfig::new(key("istio-system/istio")) };
    let snapshot = with([Resource::MeshConfig(config)]);
    let decision = ask("nowhere.example.com", "/").route(&snapshot);
    assert_eq!((short(&decision).as_str(), decision.route_name()), ("502 block_all", Some("block_all")));
    assert_eq!(ask("b", "/").goes(&snapshot), "80||b.default");
}

/// a host with a dot is taken as it is.
#[test]
fn a_virtual_service_names_its_hosts_exactly() {
    let snapshot = with([vs("default/x", &["b.default"], vec![answers(201, vec![])])]);
    assert_eq!(ask("b", "/").goes(&snapshot), "80||b.default");
    assert_eq!(ask("b.default", "/").goes(&snapshot), "201 direct_response");
    let snapshot = with([vs("other/x", &["b.other.svc.cluster.local"], vec![answers(201, vec![])])]);
    assert_eq!(ask("b", "/").goes(&snapshot), "80||b.default");
}

/// V-1: on all ports of a Service; hosts that no Service has on port 80, and on those of the Services named with it.
#[test]
fn a_virtual_service_acts_on_the_ports_of_its_services() {
    let acts = vec![answers(201, vec![])];
    let snapshot = with([vs("default/x", &["two", "b"], acts.clone())]);
    assert_eq!(ask("two", "/").dials("10.96.0.5:8000").goes(&snapshot), "201 direct_response");
    assert_eq!(ask("two", "/").dials("10.96.0.5:8001").goes(&snapshot), "201 direct_response");
    assert_eq!(ask("b", "/").goes(&snapshot), "201 direct_response");
    let snapshot = with([vs("default/x", &["out.example.com"], acts.clone())]);
    assert_eq!(ask("out.example.com", "/").goes(&snapshot), "201 direct_response");
    assert_eq!(ask("out.example.com", "/").dials("192.0.2.1:8000").goes(&snapshot), "passthrough");
    let snapshot = with([vs("default/x", &["out.example.com", "two"], acts)]);
    assert_eq!(ask("out.example.com", "/").goes(&snapshot), "201 direct_response");
    assert_eq!(ask("out.example.com", "/").dials("192.0.2.1:8002").goes(&snapshot), "passthrough");
    assert_eq!(ask("out.example.com", "/").dials("192.0.2.1:8001").goes(&snapshot), "201 direct_response");
}

///
#[test]
fn the_most_specific_host_wins() {
    let all = [
        vs("default/w1", &["*.cluster.local"], vec![answers(201, vec![])]),
        vs("default/w2", &["*.default.svc.cluster.local"], vec![answers(202, vec![])]),
        vs("default/b", &["b"], vec![answers(203, vec![])]),
    ];
    let snapshot = with(all);
    assert_eq!(ask("b", "/").goes(&snapshot), "203 direct_response");
    assert_eq!(ask("c", "/").goes(&snapshot), "202 direct_response");
    assert_eq!(ask("d.other", "/").goes(&snapshot), "201 direct_response");
}

/// what names the Service, or else the most specific wildcard, is alone with it, also where it has nothing to say.
#[test]
fn a_wildcard_does_not_stand_in_for_another_one() {
    let silent = || vec![answers(201, vec![HttpMatch { port: Some(81), ..HttpMatch::default() }])];
    let wide = || vs("default/w1", &["*.cluster.local"], vec![answers(202, vec![])]);
    for host in ["b", "*.default.svc.cluster.local"] {
        let snapshot = with([vs("default/x", &[host], silent()), wide()]);
        assert_eq!(ask("b", "/").goes(&snapshot), "80||b.default", "{host}");
    }
    let hidden = VirtualService {
        export_to: vec![ExportTo::Namespace("other".into())],
        ..virtual_service("default/x", &["b"], silent())
    };
    let snapshot = with([Resource::VirtualService(hidden), wide()]);
    assert_eq!(ask("b", "/").goes(&snapshot), "202 direct_response", "it is not there for this client");
}

/// a wildcard for Services is not one for hosts without.
#[test]
fn a_wildcard_that_matches_services_leaves_other_hosts_alone() {
    let snapshot = with([
        vs("default/w1", &["*.cluster.local"], vec![answers(201, vec![])]),
        vs("default/w2", &["*.nobody.svc.cluster.local"], vec![answers(202, vec![])]),
        vs("default/w3", &["*.example.com"], vec![answers(203, vec![])]),
        vs("default/w4", &["*-x.default.svc.cluster.local"], vec![answers(204, vec![])]),
    ]);
    assert_eq!(ask("missing.cluster.local", "/").goes(&snapshot), "passthrough");
    assert_eq!(ask("x.nobody.svc.cluster.local", "/").goes(&snapshot), "202 direct_response");
    assert_eq!(ask("a.b.example.com", "/").goes(&snapshot), "203 direct_response");
    assert_eq!(ask("a-x.default.svc.cluster.local", "/").goes(&snapshot), "204 direct_response");
}

/// the oldest owns the host; then name, then namespace.
#[test]
fn the_oldest_owns_a_host() {
    let mut old = virtual_service("default/z", &["b"], vec![answers(201, vec![uri(exact("/x"))])]);
    old.meta.created = Some(1);
    let mut young = virtual_service("default/a", &["b"], vec![answers(202, vec![])]);
    young.meta.created = Some(2);
    let snapshot = with([Resource::VirtualService(young.clone()), Resource::VirtualService(old)]);
    assert_eq!(ask("b", "/x").goes(&snapshot), "201 direct_response");
    assert_eq!(ask("b", "/").goes(&snapshot), "404 no_route", "the younger one is not asked");
    young.meta.created = Some(1);
    let mut same = virtual_service("other/a", &["b"], vec![answers(203, vec![])]);
    same.meta.created = Some(1);
    let snapshot = with([Resource::VirtualService(same), Resource::VirtualService(young)]);
    assert_eq!(ask("b", "/").goes(&snapshot), "202 direct_response");
}

/// what is for some namespaces only comes before what is for everybody, the client's own first.
#[test]
fn private_ones_own_a_host_before_public_ones() {
    let object = |name: &str, created: i64, to: &[&str], status: u16| {
        let mut object =
            virtual_service(name, &["b.default.svc.cluster.local"], vec![answers(status, vec![])]);
        object.meta.created = Some(created);
        object.export_to = to.iter().map(|name| ExportTo::Namespace((*name).into())).collect();
        Resource::VirtualService(object)
    };
    let snapshot = with([
        object("default/public", 1, &[], 201),
        object("other/exported", 2, &["default", "other"], 202),
        object("default/private", 3, &["default"], 203),
    ]);
    assert_eq!(ask("b.default", "/").goes(&snapshot), "203 direct_response");
    assert_eq!(ask("b.default", "/").from("other/client").goes(&snapshot), "202 direct_response");
    let snapshot =
        with([object("default/public", 1, &[], 201), object("other/exported", 2, &["default"], 202)]);
    assert_eq!(ask("b.default", "/").goes(&snapshot), "202 direct_response");
    assert_eq!(ask("b.default", "/").from("other/client").goes(&snapshot), "201 direct_response");
}

/// X-5, V-11: one without a rule for this client and port does not own the host.
#[test]
fn one_without_a_rule_for_the_client_gives_way() {
    let labelled = HttpMatch { source_labels: labels("app=nobody"), ..HttpMatch::default() };
    let snapshot = with([
        vs("default/a", &["b"], vec![answers(201, vec![labelled])]),
        vs("default/b", &["b"], vec![answers(202, vec![])]),
        vs("default/tcp", &["b"], vec![]),
    ]);
    let (decision, trace) = ask("b", "/").traced(&snapshot);
    assert_eq!(short(&decision), "202 direct_response");
    let ignored: Vec<_> = trace.ignored.iter().map(|(object, why)| (&*object.name, *why)).collect();
    assert_eq!(ignored, [("a", Ignored::NoRuleForClient), ("tcp", Ignored::NotOwner)]);
    let other_port = HttpMatch { port: Some(81), ..HttpMatch::default() };
    let snapshot = with([vs("default/a", &["b"], vec![answers(201, vec![other_port])])]);
    assert_eq!(ask("b", "/").goes(&snapshot), "80||b.default", "not a 404: nothing is said about port 80");
}

///
#[test]
fn only_exported_virtual_services_act() {
    let exported = |to: Vec<ExportTo>| {
        let mut object = virtual_service("other/x", &["b"], vec![answers(201, vec![])]);
        object.export_to = to;
        with([Resource::VirtualService(object)])
    };
    let namespace = |name: &str| ExportTo::Namespace(name.into());
    let cases = [
        (vec![], "201 direct_response"),
        (vec![ExportTo::All], "201 direct_response"),
        (vec![namespace("default")], "201 direct_response"),
        (vec![namespace("other")], "80||b.default"),
        (vec![ExportTo::Nobody], "80||b.default"),
    ];
    for (to, expected) in cases {
        assert_eq!(ask("b", "/").goes(&exported(to.clone())), expected, "{to:?}");
    }
}

/// V-2, V-12.
#[test]
fn gateways_decide_whether_the_mesh_is_meant() {
    let bound = |gateways: &[&str], own: &[&str]| {
        let entry =
            HttpMatch { gateways: own.iter().map(|name| (*name).into()).collect(), ..HttpMatch::default() };
        let mut object = virtual_service("default/x", &["b"], vec![answers(201, vec![entry])]);
        object.gateways = gateways.iter().map(|name| (*name).into()).collect();
        ask("b", "/").goes(&with([Resource::VirtualService(object)]))
    };
    assert_eq!(bound(&["default/gw"], &[]), "80||b.default");
    assert_eq!(bound(&["default/gw", "mesh"], &[]), "201 direct_response");
    assert_eq!(bound(&["default/gw", "mesh"], &["mesh"]), "201 direct_response");
    assert_eq!(bound(&["default/gw", "mesh"], &["default/gw"]), "80||b.default");
}
