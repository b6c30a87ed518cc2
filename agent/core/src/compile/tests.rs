pub(crate) mod random;

use std::sync::Arc;

use super::*;
use crate::resource::*;
use crate::snapshot::{Membership, TrafficHint};
use crate::testing::{self, *};

fn membership_of(labelled: &str, of_namespace: &str, adopt: bool) -> Option<bool> {
    let mut pod = pod("shop/web", &["10.0.0.1"], "");
    pod.labels = Arc::new(labels(labelled));
    let mut compiler =
        Compiler::new(CompileOptions { node: None, adopt_istio_labels: adopt, endpoints_from_pods: true });
    compiler.apply([
        upsert(Resource::Pod(pod)),
        upsert(Resource::Namespace(namespace("shop", of_namespace, ""))),
    ]);
    match compiler.snapshot().workload(&key("shop/web")).unwrap().membership {
        Membership::InMesh => Some(true),
        Membership::OutOfMesh => Some(false),
        Membership::Excluded(_) => None,
    }
}

#[test]
fn labels_opt_in_and_the_pod_beats_the_namespace() {
    for (pod, namespace, expected) in [
        ("", "", false),
        ("weft.dev/mesh=enabled", "", true),
        ("", "weft.dev/mesh=enabled", true),
        ("weft.dev/mesh=disabled", "weft.dev/mesh=enabled", false),
        ("weft.dev/mesh=enabled", "weft.dev/mesh=disabled", true),
        ("weft.dev/mesh=true", "", false),
        ("istio.io/dataplane-mode=ambient", "", true),
        ("", "istio.io/dataplane-mode=ambient", true),
        ("istio.io/dataplane-mode=none", "istio.io/dataplane-mode=ambient", false),
        ("", "istio-injection=enabled", true),
        ("", "istio-injection=disabled", false),
        ("sidecar.istio.io/inject=false", "istio-injection=enabled", false),
        ("sidecar.istio.io/inject=true", "", true),
        ("sidecar.istio.io/inject=true", "weft.dev/mesh=disabled", true),
        ("weft.dev/mesh=disabled,sidecar.istio.io/inject=true", "", false),
        ("", "weft.dev/mesh=disabled,istio-injection=enabled", false),
    ] {
        assert_eq!(membership_of(pod, namespace, true), Some(expected), "pod {pod}, namespace {namespace}");
        if [pod, namespace].iter().all(|labels| !labels.contains("weft")) {
            assert_eq!(membership_of(pod, namespace, false), Some(false), "not adopted: {pod}, {namespace}");
        }
    }
}

#[test]
fn pods_without_the_hosts_sockets_are_excluded_with_a_reason() {
    let web = pod("shop/web", &["10.0.0.1"], "");
    let class = |class: &str| Pod { runtime_class: Some(class.into()), ..web.clone() };
    let annotated = |text: &str| Pod { annotations: Arc::new(labels(text)), ..web.clone() };
    for (pod, word) in [
        (Pod { host_network: true, ..web.clone() }, Some("hostNetwork")),
        (class("gvisor"), Some("gvisor")),
        (class("kata-qemu"), Some("kata-qemu")),
        (class("runsc"), Some("runsc")),
        (class("nvidia"), None),
        (annotated("sidecar.istio.io/status=x"), Some("sidecar")),
        (annotated("weft.dev/mesh=bypass"), None),
    ] {
        let snapshot = compile([Resource::Pod(pod.clone())]);
        let membership = &snapshot.workload(&key("shop/web")).unwrap().membership;
        match (membership, word) {
            (Membership::Excluded(reason), Some(word)) => {
                assert!(reason.contains(word), "{reason}");
                let problem = snapshot.problems().first().unwrap();
                assert!(problem.message.contains(reason.as_str()), "{problem}");
            }
            (membership, word) => assert_eq!((membership, word), (&Membership::InMesh, None), "{pod:?}"),
        }
    }
    let opted_out = Pod { host_network: true, labels: Arc::default(), ..web };
    let snapshot = compile([Resource::Pod(opted_out)]);
    assert_eq!(snapshot.workload(&key("shop/web")).unwrap().membership, Membership::OutOfMesh);
    assert!(snapshot.problems().is_empty());
    assert!(snapshot.workload_by_ip(&ip("10.0.0.1")).is_none(), "the node's address names no pod");
}

#[test]
fn a_bypassed_pod_stays_in_the_mesh() {
    let annotations = Arc::new(labels("weft.dev/mesh=bypass"));
    let snapshot = compile([Resource::Pod(Pod { annotations, ..pod("shop/web", &["10.0.0.1"], "") })]);
    assert!(snapshot.local()[0].bypass && snapshot.local()[0].workload.in_mesh());
    assert!(snapshot.bypassed(&key("shop/web")));
    assert_eq!(snapshot.problems()[0].code, "WEFT0111");
}

#[test]
fn mesh_settings_follow_ruling_14() {
    let config = |name: &str, root: Option<&str>| {
        Resource::MeshConfig(MeshConfig {
            trust_domain: Some(name.replace('/', ".").into()),
            root_namespace: root.map(Into::into),
            ..MeshConfig::new(key(name))
        })
    };
    let of = |resources: Vec<Resource>| {
        let snapshot = compile(resources);
        (snapshot.mesh().trust_domain.to_string(), snapshot.mesh().root_namespace.to_string())
    };
    let pair = |trust_domain: &str, root: &str| (trust_domain.to_owned(), root.to_owned());
    assert_eq!(of(vec![]), pair("cluster.local", "weft-system"));
    let istio = Resource::Namespace(namespace("istio-system", "", ""));
    assert_eq!(of(vec![istio.clone()]), pair("cluster.local", "istio-system"));
    let object = Resource::PeerAuthentication(peer_authentication("istio-system/x", "", None));
    assert_eq!(of(vec![object]), pair("cluster.local", "istio-system"));
    let ours = config("weft-system/weft", None);
    let theirs = config("istio-system/istio", Some("mesh-root"));
    assert_eq!(of(vec![theirs.clone()]), pair("istio-system.istio", "mesh-root"));
    assert_eq!(of(vec![theirs.clone(), ours.clone()]), pair("weft-system.weft", "istio-system"));
    assert_eq!(of(vec![config("shop/weft", Some("shop"))]), pair("cluster.local", "weft-system"));
    let problems = compile([theirs, ours]).problems().iter().map(|p| p.to_string()).collect::<Vec<_>>();
    assert_eq!(problems.len(), 1);
    assert!(problems[0].contains("ConfigMap istio-system/istio"), "{problems:?}");
}

#[test]
fn a_new_trust_domain_reaches_every_identity() {
    let mut compiler = compiler();
    compiler.apply([upsert(Resource::Pod(pod("shop/web", &["10.0.0.1"], "")))]);
    let before = compiler.snapshot();
    let config = MeshConfig { trust_domain: Some("corp".into()), ..MeshConfig::new(key("weft-system/weft")) };
    compiler.apply([upsert(Resource::MeshConfig(config))]);
    let after = compiler.snapshot();
    let principal = |snapshot: &Snapshot| {
        let web = snapshot.workload_by_ip(&ip("10.0.0.1")).unwrap();
        assert_eq!(web.labels.principal.to_string(), web.identity.to_string());
        assert!(Arc::ptr_eq(web, &snapshot.local()[0].workload));
        web.identity.principal()
    };
    assert_eq!(principal(&before), "cluster.local/ns/shop/sa/default");
    assert_eq!(principal(&after), "corp/ns/shop/sa/default");
}

#[test]
fn metric_labels_follow_m5_and_m6() {
    let of = |labelled: &str, owner: Option<&str>| {
        let owner = owner.map(|name| Arc::new(Owner { kind: "Deployment".into(), name: name.into() }));
        let snapshot = compile([Resource::Pod(Pod { owner, ..pod("shop/web-1", &["10.0.0.1"], labelled) })]);
        let labels = snapshot.workload(&key("shop/web-1")).unwrap().labels.clone();
        [
            labels.workload.to_string(),
            labels.app.to_string(),
            labels.version.to_string(),
            labels.canonical_service.to_string(),
            labels.canonical_revision.to_string(),
        ]
    };
    assert_eq!(of("", None), ["web-1", "unknown", "unknown", "web-1", "latest"]);
    assert_eq!(of("app=a,version=v2", Some("web")), ["web", "a", "v2", "a", "v2"]);
    assert_eq!(
        of("app=a,version=v2,app.kubernetes.io/name=n,app.kubernetes.io/version=k", Some("web")),
        ["web", "a", "v2", "n", "k"]
    );
    let canonical =
        "app.kubernetes.io/name=n,service.istio.io/canonical-name=c,service.istio.io/canonical-revision=r";
    assert_eq!(of(canonical, Some("web")), ["web", "unknown", "unknown", "c", "r"]);
}

/// The endpoints of the first port of `shop/web`, `!` where not ready.
fn endpoints(snapshot: &Snapshot) -> Vec<String> {
    let service = snapshot.service(&key("shop/web")).unwrap();
    let text = |endpoint: &crate::snapshot::Endpoint| {
        format!("{}{}", endpoint.addr(), if endpoint.ready { "" } else { "!" })
    };
    service.ports[0].endpoints.iter().map(text).collect()
}

#[test]
fn endpoints_come_from_pods_until_a_slice_exists() {
    let mut named =
        service("shop/web", &["10.96.0.1"], "app=web", &[port("http", 80, 0, PortProtocol::Http)]);
    named.ports =
        Arc::new([ServicePort { target: TargetPort::Name("main".into()), ..named.ports[0].clone() }]);
    let container = |number| -> Arc<[ContainerPort]> {
        Arc::new([ContainerPort { name: Some("main".into()), port: number }])
    };
    let mut compiler = compiler();
    compiler.apply([
        upsert(Resource::Service(named.clone())),
        upsert(Resource::Pod(Pod {
            ports: container(8080),
            ..pod("shop/a", &["10.0.0.1", "fd00::1"], "app=web")
        })),
        upsert(Resource::Pod(Pod {
            ports: container(9090),
            ready: false,
            ..pod("shop/b", &["10.0.0.2"], "app=web")
        })),
        upsert(Resource::Pod(pod("shop/without-port", &["10.0.0.3"], "app=web"))),
        upsert(Resource::Pod(Pod {
            ports: container(8080),
            ..pod("shop/other", &["10.0.0.4"], "app=other")
        })),
        upsert(Resource::Pod(Pod { ports: container(8080), ..pod("elsewhere/c", &["10.0.0.5"], "app=web") })),
        upsert(Resource::Pod(Pod {
            ports: container(8080),
            terminated: true,
            ..pod("shop/done", &["10.0.0.6"], "app=web")
        })),
    ]);
    let snapshot = compiler.snapshot();
    assert_eq!(endpoints(&snapshot), ["10.0.0.1:8080", "10.0.0.2:9090!", "[fd00::1]:8080"]);
    assert!(snapshot.workload(&key("shop/done")).is_none());
    assert_eq!(snapshot.objects(), 7);
    assert_eq!(snapshot.local_workload(&key("shop/b")).unwrap().declared_ports, [(9090, PortProtocol::Http)]);

    compiler.apply([upsert(Resource::Service(Service { publish_not_ready: true, ..named.clone() }))]);
    assert_eq!(endpoints(&compiler.snapshot()), ["10.0.0.1:8080", "10.0.0.2:9090", "[fd00::1]:8080"]);

    compiler.apply([
        upsert(Resource::Service(named)),
        upsert(Resource::EndpointSlice(slice(
            "shop/web-1",
            "web",
            &[("http", 81), ("x", 82)],
            &[("10.0.0.9", true)],
        ))),
        upsert(Resource::EndpointSlice(slice("shop/web-2", "web", &[("http", 81)], &[("10.0.0.8", false)]))),
    ]);
    assert_eq!(endpoints(&compiler.snapshot()), ["10.0.0.8:81!", "10.0.0.9:81"]);
    for name in ["shop/web-1", "shop/web-2"] {
        compiler.apply([Change::Delete(ResourceKey { kind: Kind::EndpointSlice, name: key(name) })]);
    }
    assert_eq!(endpoints(&compiler.snapshot()), ["10.0.0.1:8080", "10.0.0.2:9090!", "[fd00::1]:8080"]);
}

#[test]
fn in_a_cluster_slices_alone_are_endpoints() {
    let options = CompileOptions { node: None, adopt_istio_labels: false, endpoints_from_pods: false };
    let mut compiler = Compiler::new(options);
    compiler.apply([
        upsert(Resource::Service(service(
            "shop/web",
            &["10.96.0.1"],
            "app=web",
            &[port("http", 80, 8080, PortProtocol::Http)],
        ))),
        upsert(Resource::Pod(pod("shop/a", &["10.0.0.1"], "app=web"))),
    ]);
    assert!(endpoints(&compiler.snapshot()).is_empty());
    let own = slice("shop/web-1", "web", &[("http", 8080)], &[("10.0.0.9", true)]);
    compiler.apply([upsert(Resource::EndpointSlice(own))]);
    assert_eq!(endpoints(&compiler.snapshot()), ["10.0.0.9:8080"]);
    compiler.apply([Change::Delete(ResourceKey { kind: Kind::EndpointSlice, name: key("shop/web-1") })]);
    assert!(endpoints(&compiler.snapshot()).is_empty());
}

#[test]
fn declared_ports_and_hints_of_several_services() {
    let hinted = |name: &str, hint: &str, ports: &[ServicePort]| {
        let annotations = Arc::new(labels(hint));
        Resource::Service(Service { annotations, ..service(name, &[], "app=web", ports) })
    };
    let resources = |hint: &str| {
        vec![
            Resource::Pod(pod("shop/web-1", &["10.0.0.1"], "app=web")),
            Resource::Namespace(namespace("shop", "", "weft.dev/traffic=l4")),
            hinted(
                "shop/a",
                hint,
                &[
                    port("tcp", 1, 81, PortProtocol::Tcp),
                    port("x", 2, 82, PortProtocol::Undeclared),
                    port("udp", 53, 53, PortProtocol::Udp),
                ],
            ),
            hinted(
                "shop/b",
                "",
                &[port("http", 1, 81, PortProtocol::Http), port("tcp", 2, 82, PortProtocol::Tcp)],
            ),
            Resource::Service(service(
                "shop/manual",
                &["10.96.0.9"],
                "",
                &[port("db", 5432, 0, PortProtocol::Tls)],
            )),
            Resource::EndpointSlice(slice("shop/manual-x", "manual", &[("db", 5433)], &[("10.0.0.1", true)])),
        ]
    };
    let snapshot = compile(resources(""));
    let local = snapshot.local()[0].clone();
    assert_eq!(
        local.declared_ports,
        [(81, PortProtocol::Http), (82, PortProtocol::Tcp), (5433, PortProtocol::Tls)]
    );
    assert_eq!(local.traffic, Some(TrafficHint::L4));
    assert_eq!(compile(resources("weft.dev/traffic=l7")).local()[0].traffic, Some(TrafficHint::L7));
    assert!(snapshot.service(&key("shop/a")).unwrap().port(53).is_none(), "UDP is never captured");
}

#[test]
fn peer_authentication_scopes() {
    let ports = |mut policy: PeerAuthentication, ports: &[(u16, Option<MtlsMode>)]| {
        policy.ports = ports.to_vec();
        policy
    };
    let aged = |mut policy: PeerAuthentication, created: i64| {
        policy.meta.created = Some(created);
        policy
    };
    let of = |policies: Vec<PeerAuthentication>, port: u16| {
        let policies = policies.into_iter().map(Resource::PeerAuthentication);
        let snapshot = compile(policies.chain([Resource::Pod(pod("shop/web", &["10.0.0.1"], "app=web"))]));
        let mode = snapshot.local()[0].peer_authentication.of_port(port).clone();
        format!(
            "{} by {}",
            mode.mode.as_str(),
            mode.object.map_or("default".into(), |object| object.name.to_string())
        )
    };
    let make = testing::peer_authentication;
    let strict = Some(MtlsMode::Strict);
    let permissive = Some(MtlsMode::Permissive);
    let mesh = make("weft-system/mesh", "", strict);
    let wide = make("shop/wide", "", permissive);
    let web = make("shop/web", "app=web", Some(MtlsMode::Disable));
    assert_eq!(of(vec![], 80), "PERMISSIVE by default");
    assert_eq!(of(vec![mesh.clone()], 80), "STRICT by mesh");
    assert_eq!(of(vec![mesh.clone(), wide.clone()], 80), "PERMISSIVE by wide");
    assert_eq!(of(vec![mesh.clone(), wide.clone(), web.clone()], 80), "DISABLE by web");
    assert_eq!(of(vec![mesh.clone(), make("shop/wide", "", None)], 80), "STRICT by mesh");
    assert_eq!(of(vec![make("shop/web", "app=other", strict)], 80), "PERMISSIVE by default");
    assert_eq!(of(vec![make("weft-system/selected", "app=web", strict)], 80), "PERMISSIVE by default");
    assert_eq!(of(vec![make("other/wide", "", strict)], 80), "PERMISSIVE by default");
    let with_ports = ports(web, &[(80, strict), (81, None)]);
    assert_eq!(of(vec![with_ports.clone()], 80), "STRICT by web");
    assert_eq!(of(vec![with_ports], 81), "DISABLE by web");
    let inherits = ports(make("shop/web", "app=web", None), &[(80, strict), (81, None)]);
    assert_eq!(of(vec![wide.clone(), inherits.clone()], 80), "STRICT by web");
    assert_eq!(of(vec![wide.clone(), inherits], 81), "PERMISSIVE by wide");
    assert_eq!(of(vec![ports(mesh, &[(80, permissive)])], 80), "STRICT by mesh", "ports need a selector");
    let older = aged(make("shop/z", "", strict), 1);
    assert_eq!(of(vec![aged(make("shop/a", "", permissive), 2), older], 80), "STRICT by z");
}

#[test]
fn policies_select_by_root_namespace_and_labels() {
    let at = |name: &str, selector: &str| policy(name, PolicyAction::Deny, selector, vec![Rule::default()]);
    let gateway = AuthorizationPolicy { targets_gateway: true, ..at("shop/gateway", "") };
    let policies = [
        at("weft-system/mesh", ""),
        at("weft-system/some", "app=web"),
        at("weft-system/none", "app=other"),
        at("shop/wide", ""),
        at("shop/web", "app=web"),
        at("shop/v2", "app=web,version=v2"),
        at("other/wide", ""),
        gateway,
    ];
    let pods = [
        pod("shop/web", &["10.0.0.1"], "app=web"),
        pod("shop/web2", &["10.0.0.2"], "app=web,tier=x"),
        pod("shop/db", &["10.0.0.3"], "app=db"),
        pod("weft-system/x", &["10.0.0.4"], "app=web"),
    ];
    let resources = policies.into_iter().map(Resource::AuthorizationPolicy);
    let snapshot = compile(resources.chain(pods.into_iter().map(Resource::Pod)));
    let of = |name: &str| {
        let local = snapshot.local_workload(&key(name)).unwrap();
        let mut names: Vec<_> = local.policies.policies().map(|policy| policy.meta.key.to_string()).collect();
        names.sort();
        names.join(" ")
    };
    assert_eq!(of("shop/web"), "shop/web shop/wide weft-system/mesh weft-system/some");
    assert_eq!(of("shop/db"), "shop/wide weft-system/mesh");
    assert_eq!(of("weft-system/x"), "weft-system/mesh weft-system/some");
    let set = |name: &str| snapshot.local_workload(&key(name)).unwrap().policies.clone();
    assert!(Arc::ptr_eq(&set("shop/web"), &set("shop/web2")), "pods with the same policies share them");
}

#[test]
fn a_deny_by_identity_meets_plaintext() {
    let deny = || policy("shop/deny", PolicyAction::Deny, "app=web", vec![from(principals(&["x"]))]);
    let codes = |policy: AuthorizationPolicy, mode| {
        let snapshot = compile([
            Resource::Pod(pod("shop/web", &["10.0.0.1"], "app=web")),
            Resource::AuthorizationPolicy(policy),
            Resource::PeerAuthentication(peer_authentication("shop/default", "", mode)),
        ]);
        snapshot.problems().iter().map(|problem| problem.code).collect::<Vec<_>>()
    };
    assert_eq!(codes(deny(), None), ["WEFT0112"]);
    assert_eq!(codes(deny(), Some(MtlsMode::Strict)), [""; 0]);
    assert_eq!(codes(AuthorizationPolicy { dry_run: true, ..deny() }, None), [""; 0]);
    let ports = AuthorizationPolicy { rules: vec![to_ports(&[1])], ..deny() };
    assert_eq!(codes(ports, None), [""; 0]);
    let other = AuthorizationPolicy { selector: Some(labels("app=other")), ..deny() };
    assert_eq!(codes(other, None), [""; 0]);
}

#[test]
fn one_address_has_one_owner() {
    let aged = |name: &str, created: i64| {
        let mut pod = pod(name, &["10.0.0.1"], "");
        pod.meta.created = Some(created);
        pod
    };
    let owner = |snapshot: &Snapshot| {
        snapshot.workload_by_ip(&ip("10.0.0.1")).map(|owner| owner.key.name.to_string())
    };
    let mut compiler = compiler();
    compiler
        .apply([upsert(Resource::Pod(aged("shop/young", 9))), upsert(Resource::Pod(aged("shop/old", 1)))]);
    let snapshot = compiler.snapshot();
    assert_eq!(owner(&snapshot).as_deref(), Some("young"));
    assert_eq!(snapshot.problems()[0].object.as_ref().unwrap().to_string(), "Pod shop/old");
    compiler.apply([Change::Delete(ResourceKey { kind: Kind::Pod, name: key("shop/young") })]);
    let snapshot = compiler.snapshot();
    assert_eq!(owner(&snapshot).as_deref(), Some("old"));
    assert!(snapshot.problems().is_empty());
    compiler.apply([Change::Delete(ResourceKey { kind: Kind::Pod, name: key("shop/old") })]);
    assert_eq!(owner(&compiler.snapshot()), None);
}

#[test]
fn nothing_changed_is_the_same_snapshot() {
    let mut compiler = compiler();
    let web = || {
        [
            upsert(Resource::Pod(pod("shop/web", &["10.0.0.1"], ""))),
            upsert(Resource::Namespace(namespace("shop", "", ""))),
            upsert(Resource::Service(service(
                "shop/web",
                &["10.96.0.1"],
                "app=web",
                &[port("", 80, 80, PortProtocol::Tcp)],
            ))),
            upsert(Resource::EndpointSlice(slice("shop/web-1", "web", &[("", 80)], &[("10.0.0.1", true)]))),
            upsert(Resource::AuthorizationPolicy(policy("shop/p", PolicyAction::Allow, "app=web", vec![]))),
        ]
    };
    compiler.apply(web());
    let first = compiler.snapshot();
    compiler.apply(web());
    compiler.apply([Change::Delete(ResourceKey { kind: Kind::Pod, name: key("shop/unknown") })]);
    assert!(Arc::ptr_eq(&first, &compiler.snapshot()));
    compiler.apply([upsert(Resource::Pod(Pod { ready: false, ..pod("shop/web", &["10.0.0.1"], "") }))]);
    let second = compiler.snapshot();
    assert_eq!((first.revision(), second.revision()), (1, 2));
    assert!(Arc::ptr_eq(first.service(&key("shop/web")).unwrap(), second.service(&key("shop/web")).unwrap()));
}

#[test]
fn a_remote_pod_changes_only_what_leads_to_it() {
    let remote = |ready| Pod { node: Some("b".into()), ready, ..pod("shop/far", &["10.0.1.1"], "app=far") };
    let services = (0..50).map(|at| {
        let selector = if at == 7 { "app=far".to_owned() } else { format!("app=s{at}") };
        let ports = [port("", 80, 80, PortProtocol::Tcp)];
        Resource::Service(service(&format!("shop/s{at}"), &[&format!("10.96.0.{at}")], &selector, &ports))
    });
    let mut compiler = compiler();
    compiler.apply(services.map(upsert));
    compiler.apply([
        upsert(Resource::Pod(pod("shop/near", &["10.0.0.1"], "app=s1"))),
        upsert(Resource::Pod(remote(true))),
    ]);
    let before = compiler.snapshot();
    compiler.apply([upsert(Resource::Pod(remote(false)))]);
    let after = compiler.snapshot();
    for service in before.services() {
        let shared = Arc::ptr_eq(service, after.service(&service.key).unwrap());
        assert_eq!(shared, &*service.key.name != "s7", "{}", service.key);
    }
    assert!(Arc::ptr_eq(&before.local, &after.local));
    assert!(!after.service(&key("shop/s7")).unwrap().ports[0].endpoints[0].ready);
}

#[test]
fn golden_shop() {
    let http_allow = Rule {
        to: vec![Operation { methods: any([pattern("GET")]), ports: any([8080]), ..Operation::default() }],
        ..from(principals(&["cluster.local/ns/shop/sa/web"]))
    };
    let annotated = |text: &str, pod: Pod| Pod { annotations: Arc::new(labels(text)), ..pod };
    let exclusion = "traffic.sidecar.istio.io/excludeOutboundPorts=3306,weft.dev/traffic=tcp";
    let snapshot = compile([
        Resource::Namespace(namespace("shop", "istio-injection=enabled", "weft.dev/agent-gone=pass")),
        Resource::Namespace(namespace("bank", "weft.dev/mesh=enabled", "weft.dev/same-node=encrypt")),
        Resource::Node(Node { name: "a".into(), addresses: vec![], labels: Arc::default() }),
        Resource::Pod(pod("shop/web-1", &["10.0.0.1", "fd00::1"], "app=web,version=v1")),
        Resource::Pod(annotated(exclusion, pod("shop/web-2", &["10.0.0.2"], "app=web,version=v2"))),
        Resource::Pod(Pod { node: Some("b".into()), ..pod("bank/ledger", &["10.0.1.1"], "app=ledger") }),
        Resource::Pod(Pod { host_network: true, ..pod("bank/exporter", &["192.168.0.2"], "") }),
        Resource::Service(service(
            "shop/web",
            &["10.96.0.1", "fd00:96::1"],
            "app=web",
            &[port("http", 80, 8080, PortProtocol::Http), port("db", 5432, 5432, PortProtocol::Tcp)],
        )),
        Resource::Service(service(
            "bank/ledger",
            &["10.96.0.2"],
            "app=ledger",
            &[port("", 443, 8443, PortProtocol::Tls)],
        )),
        Resource::EndpointSlice(slice(
            "bank/ledger-a",
            "ledger",
            &[("", 8443)],
            &[("10.0.1.1", true), ("10.0.1.2", false)],
        )),
        Resource::AuthorizationPolicy(policy(
            "shop/allow-get",
            PolicyAction::Allow,
            "app=web",
            vec![http_allow],
        )),
        Resource::AuthorizationPolicy(policy(
            "shop/external",
            PolicyAction::Custom,
            "",
            vec![to_ports(&[9000])],
        )),
        Resource::PeerAuthentication(peer_authentication("shop/default", "", Some(MtlsMode::Strict))),
        Resource::PeerAuthentication(peer_authentication("shop/second", "", Some(MtlsMode::Disable))),
        Resource::PeerAuthentication(peer_authentication(
            "weft-system/odd",
            "app=web",
            Some(MtlsMode::Strict),
        )),
    ]);
    insta::assert_snapshot!(render(&snapshot));
}
