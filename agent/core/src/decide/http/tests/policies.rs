//! DestinationRules: which one, and what it says for a port and a subset.

use super::*;
use crate::decide::Path;
use crate::resource::destination_rule::*;

fn blocks(load_balancer: LoadBalancer) -> PolicyBlocks {
    PolicyBlocks { load_balancer: Some(Balancing::of(load_balancer)), ..PolicyBlocks::default() }
}

pub(super) fn balancing(load_balancer: LoadBalancer) -> Option<TrafficPolicy> {
    Some(TrafficPolicy { blocks: blocks(load_balancer), ports: Vec::new() })
}

pub(super) fn destination_rule(name: &str, host: &str, policy: Option<TrafficPolicy>) -> DestinationRule {
    DestinationRule {
        meta: meta(name),
        host: full(host),
        policy,
        subsets: Vec::new(),
        export_to: Vec::new(),
        workload_selector: None,
    }
}

fn subset(name: &str, labelled: &str, policy: Option<TrafficPolicy>) -> Subset {
    Subset { name: name.into(), labels: labels(labelled), policy }
}

fn rules(rules: impl IntoIterator<Item = DestinationRule>) -> Vec<Resource> {
    rules.into_iter().map(Resource::DestinationRule).collect()
}

/// Name of the object and load balancer that a client gets for Service `b`.
fn policy_for(resources: &[DestinationRule], from: &'static str) -> (Option<String>, LoadBalancer) {
    let decision = ask("b.default", "/").from(from).route(&with(rules(resources.to_vec())));
    let policy = &cluster_at(&decision, 0).policy;
    let object = policy.object.as_ref().map(|object| format!("{}/{}", object.namespace, object.name));
    (object, policy.load_balancer.clone())
}

const B: &str = "b.default.svc.cluster.local";

/// D-1: the client's namespace, the Service's, the root.
#[test]
fn the_clients_namespace_is_asked_first() {
    let other = destination_rule("other/r", B, balancing(LoadBalancer::Random));
    let own = destination_rule("default/r", B, balancing(LoadBalancer::RoundRobin));
    let root = destination_rule("weft-system/r", B, balancing(LoadBalancer::Passthrough));
    let all = [other.clone(), own.clone(), root.clone()];
    assert_eq!(policy_for(&all, "default/client").0.as_deref(), Some("default/r"));
    assert_eq!(policy_for(&all, "other/client").0.as_deref(), Some("other/r"));
    assert_eq!(policy_for(&[own, root.clone()], "other/client").0.as_deref(), Some("default/r"));
    assert_eq!(policy_for(&[root], "other/client").0.as_deref(), Some("weft-system/r"));
    assert_eq!(policy_for(&[], "other/client"), (None, LoadBalancer::LeastRequest));
    assert_eq!(policy_for(&[other], "default/client").0, None, "a third namespace's is not asked");
}

/// D-1: no merging across namespaces; the most specific host within one.
#[test]
fn the_most_specific_host_of_the_first_namespace_wins() {
    let wide = destination_rule("default/wide", "*.local", balancing(LoadBalancer::Random));
    let own = destination_rule("default/own", "*.default.svc.cluster.local", None);
    let exact = destination_rule("weft-system/exact", B, balancing(LoadBalancer::RoundRobin));
    let all = [wide.clone(), own, exact.clone()];
    assert_eq!(policy_for(&all, "default/client"), (Some("default/own".into()), LoadBalancer::LeastRequest));
    let both = [wide, exact];
    assert_eq!(policy_for(&both, "default/client"), (Some("default/wide".into()), LoadBalancer::Random));
}

/// D-20, X-7.
#[test]
fn only_exported_rules_reach_other_namespaces() {
    let mut private = destination_rule("default/r", B, balancing(LoadBalancer::Random));
    private.export_to = vec![ExportTo::Namespace("default".into())];
    let root = destination_rule("weft-system/r", B, balancing(LoadBalancer::RoundRobin));
    let all = [private, root];
    assert_eq!(policy_for(&all, "default/client").0.as_deref(), Some("default/r"));
    assert_eq!(policy_for(&all, "other/client").0.as_deref(), Some("weft-system/r"));
}

/// D-2.
#[test]
fn rules_of_one_host_and_namespace_are_merged() {
    let mut old = destination_rule("default/old", "b", balancing(LoadBalancer::Random));
    old.meta.created = Some(1);
    old.subsets = vec![subset("v1", "version=v1", None), subset("x", "version=v1", None)];
    let mut young = destination_rule("default/young", "b", balancing(LoadBalancer::RoundRobin));
    young.meta.created = Some(2);
    young.subsets = vec![subset("v2", "version=v2", None), subset("x", "version=v2", None)];
    let to = vs("default/b", &["b"], vec![rule(vec![], &["b/v1", "b/v2", "b/x"])]);
    let mut resources = rules([young, old]);
    resources.push(to);
    let decision = ask("b", "/").route(&with(resources));
    let clusters: Vec<_> = (0..3).map(|at| cluster_at(&decision, at)).collect();
    assert!(clusters.iter().all(|cluster| cluster.policy.load_balancer == LoadBalancer::Random));
    assert_eq!(addresses(clusters[0]), ["10.0.0.2:8080"]);
    assert_eq!(addresses(clusters[1]), ["10.0.0.3:8080"]);
    assert_eq!(addresses(clusters[2]), ["10.0.0.2:8080"], "the first of a name counts");
    let named = |at: usize| clusters[at].policy.object.as_ref().map(|object| &*object.name);
    assert_eq!([named(0), named(1)], [Some("old"), Some("young")], "each subset names its object");
}

/// D-3.
#[test]
fn a_selector_chooses_clients_of_its_namespace() {
    let mut selecting = destination_rule("default/z", "b", balancing(LoadBalancer::Random));
    selecting.workload_selector = Some(labels("app=client"));
    let plain = destination_rule("default/a", "b", balancing(LoadBalancer::RoundRobin));
    let all = [plain, selecting];
    assert_eq!(policy_for(&all, "default/client").1, LoadBalancer::Random);
    assert_eq!(policy_for(&all, "default/c").1, LoadBalancer::RoundRobin);
    assert_eq!(policy_for(&all, "other/client").1, LoadBalancer::RoundRobin, "never exported");
}

/// D-1, D-3: what stands in the client's namespace for other clients still ends the search there.
#[test]
fn a_selector_of_others_hides_rules_elsewhere() {
    let mut selecting = destination_rule("other/s", B, balancing(LoadBalancer::Random));
    selecting.workload_selector = Some(labels("app=nobody"));
    let own = destination_rule("default/r", B, balancing(LoadBalancer::RoundRobin));
    let all = [selecting, own];
    assert_eq!(policy_for(&all, "other/client"), (None, LoadBalancer::LeastRequest));
    assert_eq!(policy_for(&all, "default/client").1, LoadBalancer::RoundRobin);
}

/// D-20: a rule for other namespaces only is not one of its own.
#[test]
fn a_rule_for_others_is_not_for_its_own_namespace() {
    let mut lent = destination_rule("default/r", B, balancing(LoadBalancer::Random));
    lent.export_to = vec![ExportTo::Namespace("other".into())];
    assert_eq!(policy_for(&[lent.clone()], "default/client").0, None);
    assert_eq!(policy_for(&[lent], "other/client").0.as_deref(), Some("default/r"));
}

/// D-1: the root's rules are for everybody, so its own clients meet the Service's first.
#[test]
fn clients_in_the_root_namespace_have_the_services_rules() {
    let client = || Resource::Pod(pod("weft-system/client", &["10.0.0.102"], "app=client"));
    let named = |resources: Vec<DestinationRule>| {
        let snapshot = with(rules(resources).into_iter().chain([client()]));
        let decision = ask("b.default", "/").from("weft-system/client").route(&snapshot);
        cluster_at(&decision, 0).policy.object.as_ref().map(|object| object.namespace.to_string())
    };
    let mut root = destination_rule("weft-system/r", "*.local", balancing(LoadBalancer::Random));
    let own = destination_rule("default/r", B, balancing(LoadBalancer::RoundRobin));
    assert_eq!(named(vec![root.clone(), own.clone()]).as_deref(), Some("default"));
    assert_eq!(named(vec![root.clone()]).as_deref(), Some("weft-system"));
    root.export_to = vec![ExportTo::Own];
    assert_eq!(
        named(vec![root, own]).as_deref(),
        Some("weft-system"),
        "a private one is for its clients alone"
    );
}

/// D-4, D-5, D-7: subset's port, subset, port, top.
#[test]
fn blocks_of_ports_and_subsets() {
    let tls = |mode| Some(ClientTls { mode, sni: None, subject_alt_names: Vec::new(), certificates: None });
    let top = TrafficPolicy {
        blocks: PolicyBlocks { tls: tls(ClientTlsMode::Disable), ..blocks(LoadBalancer::Random) },
        ports: vec![(8001, PolicyBlocks { tls: tls(ClientTlsMode::IstioMutual), ..PolicyBlocks::default() })],
    };
    let own = TrafficPolicy {
        blocks: blocks(LoadBalancer::RoundRobin),
        ports: vec![(8000, blocks(LoadBalancer::Passthrough))],
    };
    let mut written = destination_rule("default/two", "two", Some(top));
    written.subsets = vec![subset("v1", "version=v1", None), subset("v2", "version=v2", Some(own))];
    let entry = |port: u16| HttpMatch { port: Some(port), ..HttpMatch::default() };
    let snapshot = with(rules([written]).into_iter().chain([vs(
        "default/two",
        &["two"],
        vec![rule(vec![entry(8000), entry(8001)], &["two", "two/v1", "two/v2"])],
    )]));
    let got = |dialled: &str| {
        let decision = ask("two", "/").dials(dialled).route(&snapshot);
        let policies = (0..3).map(|at| cluster_at(&decision, at).policy.clone());
        let text = |policy: Arc<ClusterPolicy>| {
            format!("{:?} {:?}", policy.load_balancer, policy.tls.as_ref().map(|tls| tls.mode.as_str()))
        };
        policies.map(text).collect::<Vec<_>>()
    };
    let top = "Random Some(\"DISABLE\")";
    let wholesale = "LeastRequest Some(\"ISTIO_MUTUAL\")";
    assert_eq!(got("10.96.0.5:8000"), [top, top, "Passthrough None"]);
    assert_eq!(got("10.96.0.5:8001"), [wholesale, wholesale, "RoundRobin Some(\"ISTIO_MUTUAL\")"]);
}

/// E25, S-58: a subset that nobody defines is no cluster, one without pods an empty one.
#[test]
fn missing_and_empty_subsets() {
    let mut written = destination_rule("default/b", "b", None);
    written.subsets = vec![subset("v9", "version=v9", None), subset("all", "", None)];
    let to = vs("default/b", &["b"], vec![rule(vec![], &["b/v9", "b/nowhere", "b/all"])]);
    let snapshot = with(rules([written]).into_iter().chain([to.clone()]));
    let decision = ask("b", "/").route(&snapshot);
    assert_eq!(short(&decision), "80|v9|b.default NC 80|nowhere|b.default 80|all|b.default");
    assert!(cluster_at(&decision, 0).endpoints.is_empty());
    assert_eq!(cluster_at(&decision, 2).endpoints.len(), 2);
    assert_eq!(ask("b", "/").goes(&with([to])).matches("NC").count(), 3, "no rule defines any");
}

/// D-4: subsets follow pods, their labels and Services.
#[test]
fn subsets_follow_what_they_are_made_of() {
    let mut written = destination_rule("default/b", "*.default.svc.cluster.local", None);
    written.subsets = vec![subset("v1", "version=v1", None)];
    let to = vs("default/b", &["b"], vec![rule(vec![], &["b/v1"])]);
    let mut compiler = compiler();
    let all = world().into_iter().chain(rules([written.clone()])).chain([to]).map(upsert);
    let before = applied(&mut compiler, all);
    let of = |snapshot: &Snapshot| addresses(cluster_at(&ask("b", "/").route(snapshot), 0));
    assert_eq!(of(&before), ["10.0.0.2:8080"]);
    let relabelled = pod("default/b-v2", &["10.0.0.3"], "app=b,version=v1");
    let after = applied(&mut compiler, [upsert(Resource::Pod(relabelled))]);
    assert_eq!(of(&after), ["10.0.0.2:8080", "10.0.0.3:8080"]);
    assert_eq!(of(&before), ["10.0.0.2:8080"], "a snapshot does not change");
    let slice = slice("default/b-1", "b", &[("http", 8080)], &[("10.0.0.2", true), ("10.0.0.3", true)]);
    let sliced = applied(&mut compiler, [upsert(Resource::EndpointSlice(slice))]);
    assert_eq!(of(&sliced), ["10.0.0.2:8080", "10.0.0.3:8080"]);
    let back = pod("default/b-v1", &["10.0.0.2"], "app=b,version=v2");
    let after = applied(&mut compiler, [upsert(Resource::Pod(back))]);
    assert_eq!(of(&after), ["10.0.0.3:8080"], "also where slices name the endpoints");
    written.subsets = vec![subset("v1", "version=v2", None)];
    let after = applied(&mut compiler, [upsert(Resource::DestinationRule(written))]);
    assert_eq!(of(&after), ["10.0.0.2:8080"]);
}

/// V-24.
#[test]
fn a_single_hashing_destination_keeps_its_endpoint_in_retries() {
    let hashing = LoadBalancer::ConsistentHash {
        key: HashKey::SourceIp,
        algorithm: HashAlgorithm::Ring { minimum_size: 1024 },
    };
    let written = destination_rule("default/b", "b", balancing(hashing));
    let ignores = |destinations: &[&str]| {
        let to = vs("default/b", &["b"], vec![rule(vec![], destinations)]);
        let decision = ask("b", "/").route(&with(rules([written.clone()]).into_iter().chain([to])));
        forward_of(&decision).retry.ignore_previous_hosts
    };
    assert!(!ignores(&["b"]));
    assert!(ignores(&["b", "c"]));
    assert!(ignores(&["c"]));
}

/// D-18, S-17, S-27.
#[test]
fn the_way_to_endpoints_follows_the_policy() {
    let ways = |policy: Option<TrafficPolicy>| {
        let outside =
            Pod { labels: Arc::new(labels("app=b,version=v3")), ..pod("default/b-v3", &["10.0.0.30"], "") };
        let more =
            [Resource::Pod(outside), Resource::DestinationRule(destination_rule("default/b", "b", policy))];
        let mut compiler = crate::compile::Compiler::new(crate::compile::CompileOptions {
            node: Some("elsewhere".into()),
            adopt_istio_labels: true,
            endpoints_from_pods: true,
        });
        let snapshot = applied(&mut compiler, world().into_iter().chain(more).map(upsert));
        let asked = ask("b", "/");
        let decision = asked.route(&snapshot);
        let client = snapshot.workload(&key("default/client")).expect("the client");
        let candidates = cluster_candidates(&snapshot, client, cluster_at(&decision, 0), asked.original);
        let way = |path: &Path| match path {
            Path::SameNode(_) => "same node",
            Path::Hbone(_) => "hbone",
            Path::Plaintext => "plaintext",
        };
        candidates.iter().map(|to| format!("{} {}", to.addr, way(&to.path))).collect::<Vec<_>>()
    };
    let mode = |mode| {
        let tls = Some(ClientTls { mode, sni: None, subject_alt_names: Vec::new(), certificates: None });
        Some(TrafficPolicy { blocks: PolicyBlocks { tls, ..PolicyBlocks::default() }, ports: Vec::new() })
    };
    let [v1, v2, v3] = ["10.0.0.2:8080", "10.0.0.3:8080", "10.0.0.30:8080"];
    let line = |to: &str, way: &str| format!("{to} {way}");
    assert_eq!(ways(None), [line(v1, "hbone"), line(v2, "hbone"), line(v3, "plaintext")]);
    assert_eq!(ways(mode(ClientTlsMode::IstioMutual)), [line(v1, "hbone"), line(v2, "hbone")]);
    assert_eq!(ways(mode(ClientTlsMode::Disable)), [v1, v2, v3].map(|to| line(to, "plaintext")));
    assert_eq!(ways(balancing(LoadBalancer::Passthrough)), ["10.96.0.2:80 plaintext"]);
}

/// D-21: block by block, behind rules, behind ports, and where there is no rule.
#[test]
fn the_meshs_policy_stands_behind_every_rule() {
    let base = TrafficPolicy {
        blocks: PolicyBlocks {
            connection_pool: Some(ConnectionPool { max_connections: Some(7), ..ConnectionPool::default() }),
            ..blocks(LoadBalancer::Random)
        },
        ports: Vec::new(),
    };
    let mesh = |policy: Option<TrafficPolicy>| {
        mesh_config(MeshHttp { traffic_policy: policy.map(Into::into), ..MeshHttp::default() })
    };
    let own = TrafficPolicy {
        blocks: blocks(LoadBalancer::RoundRobin),
        ports: vec![(80, PolicyBlocks { tls: None, ..PolicyBlocks::default() })],
    };
    let rule = Resource::DestinationRule(DestinationRule {
        subsets: vec![subset("v1", "version=v1", None)],
        ..destination_rule("default/r", B, Some(own))
    });
    let mut compiler = compiler();
    compiler.apply(world().into_iter().chain([rule]).map(upsert));
    let found = |snapshot: &Snapshot, host: &str| {
        let decision = ask(host, "/").route(snapshot);
        let policy = &cluster_at(&decision, 0).policy;
        (policy.load_balancer.clone(), policy.connection_pool.max_connections)
    };
    let before = compiler.snapshot();
    assert_eq!(found(&before, "b.default"), (LoadBalancer::LeastRequest, None), "the port's own blocks");
    compiler.apply([upsert(mesh(Some(base)))]);
    let with = compiler.snapshot();
    assert_eq!(found(&with, "a.default"), (LoadBalancer::Random, Some(7)), "no rule");
    assert_eq!(found(&with, "b.default"), (LoadBalancer::Random, Some(7)), "a port without blocks");
    compiler.apply([upsert(mesh(None))]);
    assert_eq!(found(&compiler.snapshot(), "a.default"), (LoadBalancer::LeastRequest, None));
}

fn mesh_config(http: MeshHttp) -> Resource {
    Resource::MeshConfig(MeshConfig { http, ..MeshConfig::new(key("weft-system/weft")) })
}

/// C-1: `connectTimeout`, `tcpKeepalive` and `h2UpgradePolicy` stand behind every pool, field by field.
#[test]
fn the_meshs_settings_fill_what_pools_leave_out() {
    let seconds = |seconds| Some(Duration::from_secs(seconds));
    let pool = PoolDefaults {
        connect_timeout: seconds(3),
        tcp_keepalive: Some(TcpKeepalive { probes: Some(9), time: seconds(60), interval: None }),
        h2_upgrade: Some(true),
    };
    let own = ConnectionPool {
        connect_timeout: seconds(1),
        tcp_keepalive: Some(TcpKeepalive { probes: None, time: seconds(30), interval: seconds(5) }),
        h2_upgrade: Some(false),
        max_connections: Some(7),
        ..ConnectionPool::default()
    };
    let blocks = PolicyBlocks { connection_pool: Some(own.clone()), ..PolicyBlocks::default() };
    let policy = TrafficPolicy { blocks, ports: Vec::new() };
    let silent = ConnectionPool { max_connections: Some(8), ..ConnectionPool::default() };
    let silent = PolicyBlocks { connection_pool: Some(silent), ..PolicyBlocks::default() };
    let rule = DestinationRule {
        subsets: vec![subset("v1", "version=v1", Some(TrafficPolicy { blocks: silent, ports: Vec::new() }))],
        ..destination_rule("default/r", B, Some(policy))
    };
    let of_subset = super::rule(vec![uri(prefix("/v1"))], &["b/v1"]);
    let to_subset = vs("default/b", &["b"], vec![of_subset, super::rule(vec![], &["b"])]);
    let mut compiler = compiler();
    compiler.apply(world().into_iter().chain(rules([rule])).chain([to_subset]).map(upsert));
    compiler.apply([upsert(mesh_config(MeshHttp { pool, ..MeshHttp::default() }))]);
    let snapshot = compiler.snapshot();
    let found = |host: &str, path: &str| {
        let decision = ask(host, path).route(&snapshot);
        cluster_at(&decision, 0).policy.connection_pool.clone()
    };
    let filled = ConnectionPool {
        connect_timeout: pool.connect_timeout,
        tcp_keepalive: pool.tcp_keepalive,
        h2_upgrade: pool.h2_upgrade,
        ..ConnectionPool::default()
    };
    assert_eq!(found("a", "/"), filled, "no rule");
    assert_eq!(
        found("b", "/v1"),
        ConnectionPool { max_connections: Some(8), ..filled },
        "the subset is silent"
    );
    let keepalive = TcpKeepalive { probes: Some(9), time: seconds(30), interval: seconds(5) };
    assert_eq!(found("b", "/"), ConnectionPool { tcp_keepalive: Some(keepalive), ..own });
}
