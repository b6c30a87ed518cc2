//! Services that not everybody sees.

use super::*;
use crate::decide::outbound::{OutboundDecision, outbound};
use crate::decide::{protocol, route_connection};

/// Service `d` of namespace `other`, with this `exportTo`.
fn exported(to: Vec<ExportTo>) -> Resource {
    let ports = [port("http", 80, 8080, PortProtocol::Http), port("tcp", 9090, 9090, PortProtocol::Tcp)];
    let service = service("other/d", &["10.96.0.4"], "app=d", &ports);
    Resource::Service(Service { export_to: to, ..service })
}

fn settings(exports: ExportDefaults, registry_only: bool) -> Resource {
    Resource::MeshConfig(MeshConfig { registry_only, exports, ..MeshConfig::new(key("istio-system/istio")) })
}

/// Where a TCP connection of this client to `d` goes.
fn connection(snapshot: &Snapshot, client: &str) -> String {
    let workload = snapshot.workload(&key(client)).expect("the client");
    let original = addr("10.96.0.4:9090");
    let caller = Caller { workload, original, labels: &workload.pod_labels };
    let decision = route_connection(snapshot, &caller, None);
    if let Some(target) = decision.targets.first() {
        return short_name(&target.cluster.as_ref().expect("a cluster").name);
    }
    match outbound(snapshot, workload, original) {
        OutboundDecision::Passthrough { .. } => "passthrough".into(),
        OutboundDecision::Unreachable { flag, .. } => flag.into(),
        OutboundDecision::Endpoints { .. } => panic!("a Service's endpoints without the Service"),
    }
}

#[test]
fn a_service_is_known_where_it_is_exported() {
    let namespace = |name: &str| ExportTo::Namespace(name.into());
    for (to, near, far) in [
        (vec![], true, true),
        (vec![ExportTo::All], true, true),
        (vec![ExportTo::Own], true, false),
        (vec![namespace("default")], false, true),
        (vec![namespace("default"), ExportTo::Own], true, true),
        (vec![ExportTo::Nobody], false, false),
    ] {
        let snapshot = with([exported(to.clone())]);
        for (client, sees) in [("other/client", near), ("default/client", far)] {
            let expected = if sees { "80||d.other" } else { "passthrough" };
            let goes =
                |host: &str, original: &str| ask(host, "/").from(client).dials(original).goes(&snapshot);
            for host in ["d.other", "d.other.svc.cluster.local", "10.96.0.4"] {
                assert_eq!(goes(host, "10.96.0.4:80"), expected, "{to:?} {client} {host}");
            }
            assert_eq!(goes("10.0.0.5:8080", "10.0.0.5:8080"), expected, "its pod: {to:?} {client}");
            let expected = if sees { "9090||d.other" } else { "passthrough" };
            assert_eq!(connection(&snapshot, client), expected, "{to:?} {client}");
            let declared = if sees { PortProtocol::Tcp } else { PortProtocol::Undeclared };
            let namespace = client.split('/').next().expect("a namespace");
            assert_eq!(protocol::outbound(&snapshot, namespace, addr("10.96.0.4:9090")), declared);
        }
    }
}

#[test]
fn what_is_not_exported_is_refused_where_only_the_registry_counts() {
    let snapshot = with([exported(vec![ExportTo::Own]), settings(ExportDefaults::default(), true)]);
    assert_eq!(ask("d.other", "/").dials("10.96.0.4:80").goes(&snapshot), "502 block_all");
    assert_eq!(connection(&snapshot, "default/client"), "UH");
    assert_eq!(connection(&snapshot, "other/client"), "9090||d.other");
}

#[test]
fn rules_cannot_send_a_client_to_what_it_does_not_see() {
    let route = || vs("default/b", &["b"], vec![rule(vec![], &["d.other.svc.cluster.local"])]);
    let goes = |to: Vec<ExportTo>| ask("b", "/").goes(&with([route(), exported(to)]));
    assert_eq!(
        (goes(vec![]).as_str(), goes(vec![ExportTo::Own]).as_str()),
        ("80||d.other", "NC 80||d.other")
    );
}

/// another name of a Service is no way around.
#[test]
fn an_alias_does_not_show_what_is_hidden() {
    let alias = |to: Vec<ExportTo>| {
        let alias = service("default/alias", &[], "", &[]);
        let external_name = Some("d.other.svc.cluster.local".into());
        Resource::Service(Service { external_name, export_to: to, ..alias })
    };
    let goes = |of_alias, of_d| ask("alias", "/").goes(&with([alias(of_alias), exported(of_d)]));
    assert_eq!(goes(vec![], vec![]), "80||d.other");
    assert_eq!(goes(vec![], vec![ExportTo::Own]), "passthrough");
    assert_eq!(goes(vec![ExportTo::Nobody], vec![]), "passthrough");
}

/// X-4, V-1: for the client the host of a hidden Service is one that no Service has.
#[test]
fn a_virtual_service_for_a_hidden_service_acts_as_for_a_stranger() {
    let everywhere = || vs("default/all", &["*.other.svc.cluster.local"], vec![answers(201, vec![])]);
    let goes =
        |to: Vec<ExportTo>| ask("x.other.svc.cluster.local", "/").goes(&with([everywhere(), exported(to)]));
    assert_eq!(goes(vec![]), "passthrough", "it is about the Services that it covers");
    assert_eq!(goes(vec![ExportTo::Own]), "201 direct_response", "it covers none that the client sees");
    let exact = || vs("default/d", &["d.other.svc.cluster.local"], vec![answers(201, vec![])]);
    let snapshot = with([exact(), exported(vec![ExportTo::Own])]);
    let on = |port: &str| {
        ask("d.other.svc.cluster.local", "/").dials(&format!("10.96.0.4:{port}")).goes(&snapshot)
    };
    assert_eq!((on("80").as_str(), on("9090").as_str()), ("201 direct_response", "passthrough"));
}

/// `defaultServiceExportTo` and the others: taken over at once, and only where objects say nothing themselves.
#[test]
fn the_mesh_says_who_sees_what_says_nothing() {
    let rules = virtual_service("other/b", &["b"], vec![answers(201, vec![])]);
    let delegate = virtual_service("other/part", &[], vec![answers(202, vec![])]);
    let root = HttpRule { action: HttpAction::Delegate(key("other/part")), ..HttpRule::default() };
    let objects = [
        vs("default/c", &["c"], vec![root]),
        Resource::VirtualService(rules.clone()),
        Resource::VirtualService(delegate),
    ];
    let mut compiler = compiler();
    compiler.apply(world().into_iter().chain(objects).map(upsert));
    let goes = |snapshot: &Snapshot| ["b", "c", "d.other", "a"].map(|host| ask(host, "/").goes(snapshot));
    let open = ["201 direct_response", "202 direct_response", "80||d.other", "80||a.default"];
    assert_eq!(goes(&compiler.snapshot()), open);
    let own = || vec![ExportTo::Own];
    let all = ExportDefaults { services: own(), virtual_services: own(), destination_rules: own() };
    let closed = applied(&mut compiler, [upsert(settings(all, false))]);
    assert_eq!(goes(&closed), ["80||b.default", "80||c.default", "passthrough", "80||a.default"]);
    let exported_rules = VirtualService { export_to: vec![ExportTo::All], ..rules };
    let changes = [exported(vec![ExportTo::All]), Resource::VirtualService(exported_rules)];
    let own_word = applied(&mut compiler, changes.map(upsert));
    assert_eq!(goes(&own_word), ["201 direct_response", "80||c.default", "80||d.other", "80||a.default"]);
    let again = applied(&mut compiler, [upsert(settings(ExportDefaults::default(), false))]);
    assert_eq!(goes(&again), open);
}
