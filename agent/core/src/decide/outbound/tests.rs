use std::collections::HashMap;

use super::*;
use crate::resource::virtual_service::ExportTo;
use crate::resource::*;
use crate::testing::*;

/// `web` and `db` on node a, `far` on node b, `plain` outside the mesh, a client on node a.
fn resources() -> Vec<Resource> {
    let ports = [port("http", 80, 8080, PortProtocol::Http), port("db", 5432, 5432, PortProtocol::Tcp)];
    let dual = ["10.96.0.1", "fd00:96::1"];
    vec![
        Resource::Pod(pod("shop/client", &["10.0.0.9"], "")),
        Resource::Pod(pod("shop/web", &["10.0.0.1", "fd00::1"], "app=web")),
        Resource::Pod(Pod { node: Some("b".into()), ..pod("shop/far", &["10.0.1.1"], "app=web") }),
        Resource::Pod(Pod { ready: false, ..pod("shop/late", &["10.0.0.3"], "app=late") }),
        Resource::Pod(Pod { labels: labels("app=web").into(), ..pod("shop/plain", &["10.0.0.4"], "") }),
        Resource::Service(service("shop/web", &dual, "app=web", &ports)),
        Resource::Service(service("shop/late", &["10.96.0.2"], "app=late", &ports)),
        Resource::Service(service(
            "shop/outside",
            &["10.96.0.3"],
            "",
            &[port("", 443, 443, PortProtocol::Tls)],
        )),
        Resource::EndpointSlice(slice("shop/outside-1", "outside", &[("", 8443)], &[("192.0.2.7", true)])),
    ]
}

fn mesh_config(registry_only: bool, encrypt_same_node: bool) -> Resource {
    Resource::MeshConfig(MeshConfig {
        registry_only,
        encrypt_same_node,
        ..MeshConfig::new(key("weft-system/weft"))
    })
}

fn describe(path: &Path) -> &'static str {
    match path {
        Path::SameNode(_) => "node",
        Path::Hbone(_) => "hbone",
        Path::Plaintext => "plaintext",
    }
}

/// The decision for the client in one line.
fn ask(resources: Vec<Resource>, original: &str) -> String {
    let snapshot = compile(resources);
    let client = snapshot.workload(&key("shop/client")).unwrap();
    match outbound(&snapshot, client, addr(original)) {
        OutboundDecision::Endpoints { destination, candidates } => {
            let port =
                destination.service_port().map(|(service, port)| format!("{} {}", service.key, port.port));
            let candidates = candidates.iter().map(|candidate| {
                let name =
                    candidate.workload.as_ref().map_or("?".into(), |workload| workload.key.name.clone());
                format!("{} {name} {}", candidate.addr, describe(&candidate.path))
            });
            format!("{}: {}", port.unwrap_or("pod".into()), candidates.collect::<Vec<_>>().join(", "))
        }
        OutboundDecision::Passthrough { destination: Destination::Unknown } => "passthrough".into(),
        OutboundDecision::Passthrough { destination } => panic!("{destination:?}"),
        OutboundDecision::Unreachable { reason, flag, .. } => format!("{flag} {reason}"),
    }
}

/// what a client of a headless Service dials is the Service's, a pod or not, and nothing else of a pod.
#[test]
fn endpoints_of_headless_services_are_dialled_as_they_are() {
    let db =
        |name: &str| Resource::Service(service(name, &[], "", &[port("tcp", 5432, 5433, PortProtocol::Tcp)]));
    let endpoints = [("192.0.2.8", true), ("10.0.1.1", true), ("10.0.0.3", false)];
    let slices = ["db", "aka"]
        .map(|of| Resource::EndpointSlice(slice(&format!("shop/{of}-1"), of, &[("tcp", 5433)], &endpoints)));
    for registry_only in [false, true] {
        let objects = || {
            [resources(), slices.to_vec(), vec![db("shop/db"), mesh_config(registry_only, false)]].concat()
        };
        let ask = |original| ask(objects(), original);
        assert_eq!(ask("192.0.2.8:5433"), "shop/db 5432: 192.0.2.8:5433 ? plaintext");
        assert_eq!(ask("10.0.1.1:5433"), "shop/db 5432: 10.0.1.1:5433 far hbone");
        assert_eq!(ask("10.0.0.3:5433"), "shop/db 5432: 10.0.0.3:5433 late node", "ready or not");
        assert_eq!(ask("10.0.1.1:5432"), "pod: 10.0.1.1:5432 far hbone", "the Service's port is nobody's");
        assert_eq!(ask("192.0.2.8:5432") == "passthrough", !registry_only);
    }
    let two = [resources(), slices.to_vec(), vec![db("shop/db"), db("shop/aka")]].concat();
    assert_eq!(
        ask(two.clone(), "10.0.1.1:5433"),
        "shop/aka 5432: 10.0.1.1:5433 far hbone",
        "the first by name"
    );
    let hidden = Service {
        export_to: vec![ExportTo::Nobody],
        ..service("shop/aka", &[], "", &[port("tcp", 5432, 5433, PortProtocol::Tcp)])
    };
    let one = [two, vec![Resource::Service(hidden)]].concat();
    assert_eq!(ask(one, "10.0.1.1:5433"), "shop/db 5432: 10.0.1.1:5433 far hbone", "that the client sees");
}

/// An EndpointSlice may name any address: what is said to a pod is no business of other namespaces, and what a client's
/// own namespace says of an address comes first.
#[test]
fn nobody_elses_service_comes_between_a_client_and_a_pod() {
    let db =
        |name: &str| Resource::Service(service(name, &[], "", &[port("tcp", 5432, 5433, PortProtocol::Tcp)]));
    let endpoints = [("192.0.2.8", true), ("10.0.1.1", true)];
    let of = |name: &str, service: &str| {
        Resource::EndpointSlice(slice(name, service, &[("tcp", 5433)], &endpoints))
    };
    let evil = || [resources(), vec![db("evil/trap"), of("evil/trap-1", "trap")]].concat();
    assert_eq!(ask(evil(), "10.0.1.1:5433"), "pod: 10.0.1.1:5433 far hbone");
    assert_eq!(ask(evil(), "192.0.2.8:5433"), "evil/trap 5432: 192.0.2.8:5433 ? plaintext");
    let both = [evil(), vec![db("shop/db"), of("shop/db-1", "db")]].concat();
    assert_eq!(ask(both.clone(), "10.0.1.1:5433"), "shop/db 5432: 10.0.1.1:5433 far hbone");
    assert_eq!(ask(both, "192.0.2.8:5433"), "shop/db 5432: 192.0.2.8:5433 ? plaintext");
}

#[test]
fn every_kind_of_destination() {
    let unregistered =
        "UH 192.0.2.1:443 belongs to no Service and no Pod, and outboundTrafficPolicy is REGISTRY_ONLY";
    for (original, expected) in [
        (
            "10.96.0.1:80",
            "shop/web 80: 10.0.0.1:8080 web node, 10.0.0.4:8080 plain plaintext, 10.0.1.1:8080 far hbone",
        ),
        ("[fd00:96::1]:5432", "shop/web 5432: [fd00::1]:5432 web node"),
        ("10.96.0.1:81", "NR Service shop/web has no port 81"),
        ("10.96.0.2:80", "UH port 80 of Service shop/late has no ready endpoint"),
        ("10.96.0.3:443", "shop/outside 443: 192.0.2.7:8443 ? plaintext"),
        ("10.0.0.3:8080", "pod: 10.0.0.3:8080 late node"),
        ("10.0.1.1:9999", "pod: 10.0.1.1:9999 far hbone"),
        ("10.0.0.9:1", "pod: 10.0.0.9:1 client node"),
        ("192.0.2.1:443", "passthrough"),
    ] {
        assert_eq!(ask(resources(), original), expected, "{original}");
        let strict = ask([resources(), vec![mesh_config(true, false)]].concat(), original);
        let expected = if expected == "passthrough" { unregistered } else { expected };
        assert_eq!(strict, expected, "{original} under REGISTRY_ONLY");
    }
}

#[test]
fn encryption_on_the_same_node() {
    let hbone = "pod: 10.0.0.1:80 web hbone";
    assert_eq!(ask([resources(), vec![mesh_config(false, true)]].concat(), "10.0.0.1:80"), hbone);
    let annotated = Resource::Namespace(namespace("shop", "", "weft.dev/same-node=encrypt"));
    assert_eq!(ask([resources(), vec![annotated]].concat(), "10.0.0.1:80"), hbone);
}

#[test]
fn bypassed_pods_are_reached_without_the_mesh() {
    let annotations: Arc<Labels> = labels("weft.dev/mesh=bypass").into();
    let near = Pod { annotations: annotations.clone(), ..pod("shop/web", &["10.0.0.1"], "") };
    let far = Pod { annotations, node: Some("b".into()), ..pod("shop/far", &["10.0.1.1"], "") };
    let all = || [resources(), vec![Resource::Pod(near.clone()), Resource::Pod(far.clone())]].concat();
    assert_eq!(ask(all(), "10.0.0.1:80"), "pod: 10.0.0.1:80 web plaintext");
    assert_eq!(ask(all(), "10.0.1.1:80"), "pod: 10.0.1.1:80 far plaintext");
}

fn candidates(count: u8) -> Vec<Candidate> {
    let one = |at| Candidate {
        addr: SocketAddr::from(([10, 0, 0, at], 80)),
        path: Path::Plaintext,
        workload: None,
    };
    (0..count).map(one).collect()
}

#[test]
fn pick_takes_the_less_loaded_of_two_and_never_one_tried() {
    let candidates = candidates(4);
    let loads: HashMap<_, _> = candidates.iter().map(|c| c.addr).zip([3, 0, 2, 2]).collect();
    let load = |addr: &SocketAddr| loads[addr];
    for (draws, tried, expected) in [
        ([0, 0], &[][..], Some(1)),  // 0 or 1
        ([1, 1], &[][..], Some(1)),  // 1 or 2
        ([2, 2], &[][..], Some(2)),  // 2 or 3: the same load, the first drawn
        ([3, 0], &[][..], Some(3)),  // 3 or 0
        ([0, 0], &[1][..], Some(2)), // 0 or 2
        ([9, 9], &[0, 1, 3][..], Some(2)),
        ([9, 9], &[0, 1, 2, 3][..], None),
    ] {
        let mut draws = draws.into_iter();
        assert_eq!(pick(&candidates, tried, &mut |_| draws.next().unwrap(), &load), expected, "{tried:?}");
    }
    assert_eq!(pick(&[], &[], &mut |_| 0, &load), None);
}

#[test]
fn pick_reaches_every_candidate() {
    let candidates = candidates(5);
    let mut seen = std::collections::BTreeSet::new();
    for first in 0..5 {
        for second in 0..4 {
            let mut draws = [first, second].into_iter();
            seen.extend(pick(&candidates, &[], &mut |_| draws.next().unwrap(), &|_| 0));
        }
    }
    assert_eq!(seen.len(), 5);
}
