//! Incremental compilation equals compilation from scratch, for random changes in a small world.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use crate::compile::routing::tests::{some_destination_rule, some_virtual_service};
use crate::compile::{CompileOptions, Compiler, policy};
use crate::resource::destination_rule::PoolDefaults;
use crate::resource::virtual_service::ExportTo;
use crate::resource::*;
use crate::testing::{
    jwt_rule, key, labels, meta, namespace, peer_authentication, pod, port, render, request_authentication,
    service, slice, upsert,
};

fn name(prefix: &'static str) -> impl Strategy<Value = String> {
    (prop::sample::select(vec!["a", "b", "weft-system", "istio-system"]), 0..4u8)
        .prop_map(move |(namespace, at)| format!("{namespace}/{prefix}{at}"))
}

fn some_labels() -> impl Strategy<Value = String> {
    let texts = vec![
        "",
        "app=x",
        "app=y",
        "app=x,version=v1",
        "app=x,weft.dev/mesh=disabled",
        "app=y,weft.dev/mesh=enabled",
    ];
    prop::sample::select(texts).prop_map(str::to_owned)
}

fn selector() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["", "app=x", "app=y", "version=v1", "app=x,version=v1"]).prop_map(str::to_owned)
}

fn some_pod() -> impl Strategy<Value = Resource> {
    let annotations = prop::sample::select(vec![
        "",
        "",
        "weft.dev/mesh=bypass",
        "weft.dev/traffic=l7",
        "traffic.sidecar.istio.io/excludeInboundPorts=1",
    ]);
    let ips = prop::collection::vec(
        prop::sample::select(vec!["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "fd00::1"]),
        0..3,
    );
    let flags = (prop::bool::weighted(0.8), prop::bool::weighted(0.1), prop::bool::weighted(0.1));
    let shape = (some_labels(), annotations, ips, prop::option::of(prop::sample::select(vec!["a", "b"])));
    (name("p"), shape, flags, prop::option::of(0..2i64), 0..3u16).prop_map(
        |(
            name,
            (labelled, annotated, mut ips, node),
            (ready, terminated, host_network),
            created,
            container,
        )| {
            ips.dedup();
            let mut pod = pod(&name, &ips, "");
            pod.labels = Arc::new(labels(&labelled));
            pod.annotations = Arc::new(labels(annotated));
            pod.node = node.map(Into::into);
            (pod.ready, pod.terminated, pod.host_network) = (ready, terminated, host_network);
            pod.meta.created = created;
            pod.ports = Arc::new([ContainerPort { name: Some("main".into()), port: 8080 + container }]);
            Resource::Pod(pod)
        },
    )
}

fn some_service() -> impl Strategy<Value = Resource> {
    let vips =
        prop::collection::vec(prop::sample::select(vec!["10.96.0.1", "10.96.0.2", "fd00:96::1"]), 0..2);
    let protocols =
        prop::sample::select(vec![PortProtocol::Tcp, PortProtocol::Http, PortProtocol::Undeclared]);
    (
        name("s"),
        vips,
        selector(),
        protocols,
        prop::bool::ANY,
        prop::option::of(0..2i64),
        prop::bool::weighted(0.2),
    )
        .prop_map(|(name, vips, selector, protocol, named, created, hinted)| {
            let mut ports = vec![port("one", 80, 8080, protocol), port("two", 81, 8081, PortProtocol::Tcp)];
            if named {
                ports[0].target = TargetPort::Name("main".into());
            }
            let mut service = service(&name, &vips, &selector, &ports);
            service.meta.created = created;
            if hinted {
                service.annotations = Arc::new(labels("weft.dev/traffic=l4"));
                service.export_to = vec![ExportTo::Namespace("b".into())];
            }
            Resource::Service(service)
        })
}

fn some_slice() -> impl Strategy<Value = Resource> {
    let endpoint = (prop::sample::select(vec!["10.0.0.1", "10.0.0.2", "10.0.9.9"]), prop::bool::ANY);
    (name("e"), 0..4u8, prop::collection::vec(endpoint, 0..3), prop::bool::weighted(0.9)).prop_map(
        |(name, service, endpoints, labelled)| {
            let mut slice = slice(&name, &format!("s{service}"), &[("one", 8080), ("two", 9000)], &endpoints);
            slice.service = slice.service.filter(|_| labelled);
            Resource::EndpointSlice(slice)
        },
    )
}

fn some_policy() -> impl Strategy<Value = Resource> {
    (policy::tests::random_policy(), name("r"), selector(), prop::bool::weighted(0.1)).prop_map(
        |(mut policy, name, selector, targets_gateway)| {
            policy.meta.key = key(&name);
            policy.selector = Some(labels(&selector)).filter(|selector| !selector.is_empty());
            policy.targets_gateway = targets_gateway;
            Resource::AuthorizationPolicy(policy)
        },
    )
}

fn some_peer_authentication() -> impl Strategy<Value = Resource> {
    let mode = || {
        prop::option::of(prop::sample::select(vec![
            MtlsMode::Strict,
            MtlsMode::Permissive,
            MtlsMode::Disable,
        ]))
    };
    (name("m"), selector(), mode(), prop::option::of(0..2i64), mode()).prop_map(
        |(name, selector, mode, created, port)| {
            let mut policy = peer_authentication(&name, &selector, mode);
            policy.meta.created = created;
            policy.ports = vec![(8080, port)];
            Resource::PeerAuthentication(policy)
        },
    )
}

fn some_request_authentication() -> impl Strategy<Value = Resource> {
    let issuers = prop::sample::subsequence(vec!["a", "b"], 1..=2);
    (name("t"), selector(), issuers, prop::bool::weighted(0.1)).prop_map(
        |(name, selector, issuers, targets_gateway)| {
            let rules = issuers.into_iter().map(jwt_rule).collect();
            let object = request_authentication(&name, &selector, rules);
            Resource::RequestAuthentication(RequestAuthentication { targets_gateway, ..object })
        },
    )
}

fn some_mesh_config() -> impl Strategy<Value = Resource> {
    let names = prop::sample::select(vec!["weft-system/weft", "istio-system/istio"]);
    let domains = prop::option::of(prop::sample::select(vec!["cluster.local", "corp"]));
    let roots = prop::option::of(prop::sample::select(vec!["a", "weft-system"]));
    let flags = (prop::bool::ANY, prop::bool::ANY, prop::bool::ANY);
    let looked_at = prop::sample::select(vec!["", "", "weft.dev/mesh=enabled", "istio-injection=enabled"]);
    (names, domains, roots, flags, looked_at).prop_map(|(name, domain, root, flags, looked_at)| {
        let (aliased, impatient, private) = flags;
        let selector = LabelSelector { labels: labels(looked_at), expressions: Vec::new() };
        let export = |private: bool| if private { vec![ExportTo::Own] } else { Vec::new() };
        let connect_timeout = impatient.then(|| std::time::Duration::from_secs(1));
        let pool = PoolDefaults { connect_timeout, ..PoolDefaults::default() };
        Resource::MeshConfig(MeshConfig {
            trust_domain: domain.map(Into::into),
            trust_domain_aliases: if aliased { vec!["old".into()] } else { Vec::new() },
            root_namespace: root.map(Into::into),
            access_log: aliased,
            exports: ExportDefaults {
                services: export(private),
                virtual_services: export(private != aliased),
                destination_rules: export(impatient),
            },
            discovery_selectors: (!looked_at.is_empty()).then_some(selector).into_iter().collect(),
            http: MeshHttp { pool, ..MeshHttp::default() },
            ..MeshConfig::new(key(name))
        })
    })
}

fn some_namespace() -> impl Strategy<Value = Resource> {
    let names = prop::sample::select(vec!["a", "b", "weft-system", "istio-system"]);
    let labelled = prop::sample::select(vec![
        "",
        "weft.dev/mesh=enabled",
        "istio-injection=enabled",
        "weft.dev/mesh=odd",
    ]);
    let annotated = prop::sample::select(vec![
        "",
        "weft.dev/same-node=encrypt",
        "weft.dev/agent-gone=pass",
        "weft.dev/traffic=l4",
    ]);
    (names, labelled, annotated)
        .prop_map(|(name, labelled, annotated)| Resource::Namespace(namespace(name, labelled, annotated)))
}

pub(crate) fn some_resource() -> impl Strategy<Value = Resource> {
    prop_oneof![
        8 => some_pod(),
        4 => some_service(),
        3 => some_slice(),
        4 => some_policy(),
        3 => some_peer_authentication(),
        2 => some_request_authentication(),
        1 => some_mesh_config(),
        3 => some_namespace(),
        3 => some_virtual_service(),
        3 => some_destination_rule(),
        1 => name("sa").prop_map(|name| Resource::ServiceAccount(meta(&name))),
    ]
}

/// An object written, or (`true`) deleted.
fn some_changes() -> impl Strategy<Value = Vec<Vec<(bool, Resource)>>> {
    let change = (prop::bool::weighted(0.3), some_resource());
    prop::collection::vec(prop::collection::vec(change, 1..12), 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn incremental_equals_from_scratch(batches in some_changes(), local_only in prop::bool::ANY) {
        let options = CompileOptions { node: local_only.then(|| "a".into()), adopt_istio_labels: true, endpoints_from_pods: true };
        let mut incremental = Compiler::new(options.clone());
        let mut model = BTreeMap::new();
        for batch in batches {
            for (delete, resource) in batch {
                let key = resource.key();
                if delete {
                    model.remove(&key);
                    incremental.apply([Change::Delete(key)]);
                } else {
                    model.insert(key, resource.clone());
                    incremental.apply([upsert(resource)]);
                }
            }
            let mut scratch = Compiler::new(options.clone());
            scratch.apply(model.values().rev().cloned().map(upsert));
            prop_assert_eq!(render(&incremental.snapshot()), render(&scratch.snapshot()));
        }
    }
}
