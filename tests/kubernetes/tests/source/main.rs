//! The Kubernetes source of configuration, against the real API server.

mod watches;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weft_control::kubernetes::{self, ClientOptions, KindFreshness, KubernetesOptions};
use weft_control::{Handle, Status};
use weft_core::compile::CompileOptions;
use weft_core::resource::{Kind, MtlsMode, NamespacedName};
use weft_core::snapshot::Membership;
use weft_kubernetes_tests::{Answer, ControlPlane, ControlPlaneOptions, Proxy};
use weft_lab::eventually;

/// Backing off ends after half a minute at most.
const LIMIT: Duration = Duration::from_secs(120);

fn start(kubeconfig: &Path, streaming_lists: bool) -> Result<Handle> {
    let client = ClientOptions { kubeconfig: Some(kubeconfig.to_owned()), ..ClientOptions::default() };
    let options = KubernetesOptions { client, streaming_lists, ..KubernetesOptions::default() };
    let compile =
        CompileOptions { node: Some("node1".into()), adopt_istio_labels: false, endpoints_from_pods: false };
    Ok(kubernetes::start(options, compile)?)
}

fn complete(source: &Handle) -> Result<()> {
    eventually(LIMIT, "everything was read", || source.status().complete)
}

fn name(of: &str) -> NamespacedName {
    let (namespace, name) = of.split_once('/').expect("namespace/name");
    NamespacedName::new(namespace, name)
}

fn in_mesh(source: &Handle, pod: &str) -> Option<bool> {
    let snapshot = source.snapshot();
    Some(snapshot.workload(&name(pod))?.membership == Membership::InMesh)
}

fn count(status: &Status, kind: Kind) -> usize {
    status.kinds.get(&kind).copied().unwrap_or_default()
}

fn of_kind(source: &Handle, kind: &str) -> KindFreshness {
    let kinds = source.status().freshness.as_ref().expect("it is this source").kinds();
    kinds.into_iter().find(|known| known.kind == kind).expect("it is watched")
}

fn finding(source: &Handle, code: &str, text: &str) -> bool {
    source.status().problems.iter().any(|problem| problem.code == code && problem.message.contains(text))
}

fn definition(plane: &ControlPlane, of: &str) -> Result<()> {
    let path = format!("{}/../../deploy/crds/{of}.yaml", env!("CARGO_MANIFEST_DIR"));
    plane.apply(&std::fs::read_to_string(&path).with_context(|| path.clone())?)
}

fn namespace(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: default, namespace: {name}}}\n"
    )
}

/// A pod that runs on `node1`, written as the kubelet would.
fn pod(plane: &ControlPlane, namespace: &str, pod: &str, ip: &str) -> Result<()> {
    plane.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {pod}, namespace: {namespace}, labels: {{app: {pod}}}, annotations: {{weft.dev/netns: /run/netns/stolen}}}}\nspec: {{nodeName: node1, containers: [{{name: main, image: none, ports: [{{containerPort: 8080}}]}}]}}\n"
    ))?;
    let status = format!(
        r#"{{"status":{{"phase":"Running","podIP":"{ip}","podIPs":[{{"ip":"{ip}"}}],"conditions":[{{"type":"Ready","status":"True"}}]}}}}"#
    );
    plane.kubectl(&[
        "patch",
        "pod",
        "-n",
        namespace,
        pod,
        "--subresource=status",
        "--type=merge",
        "-p",
        &status,
    ])?;
    Ok(())
}

fn policy(namespace: &str, mode: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: default, namespace: {namespace}}}\nspec: {{mtls: {{mode: {mode}}}}}\n"
    )
}

fn is_strict(source: &Handle, pod: &str) -> bool {
    let snapshot = source.snapshot();
    let local = snapshot.local_workload(&name(pod));
    local.is_some_and(|local| local.peer_authentication.of_port(8080).mode == MtlsMode::Strict)
}

#[test]
fn what_happens_in_the_cluster_is_in_the_snapshot() -> Result<()> {
    let Some(plane) = ControlPlane::start(ControlPlaneOptions::default())? else { return Ok(()) };
    plane.apply(&namespace("shop"))?;
    pod(&plane, "shop", "web", "10.1.0.1")?;
    let sources = [start(plane.kubeconfig(), true)?, start(plane.kubeconfig(), false)?];
    for source in &sources {
        complete(source)?;
        assert_eq!((source.status().source, source.status().is_connected()), ("kubernetes", Some(true)));
        assert_eq!(in_mesh(source, "shop/web"), Some(false));
        let local = source.snapshot();
        let local = local.local_workload(&name("shop/web")).context("it runs on this node")?;
        assert_eq!(local.netns, None, "nobody names network namespaces through the API");
    }
    assert_eq!(of_kind(&sources[0], "Pod").watches, 1, "the list is streamed");

    labels(&plane, &sources)?;
    endpoints(&plane, &sources)?;
    kinds_that_appear(&plane, &sources)?;
    invalid_objects(&plane, &sources)?;
    settings(&plane, &sources)?;
    kinds_that_go(&plane, &sources)?;

    plane.kubectl(&["delete", "pod", "-n=shop", "web", "--force", "--grace-period=0"])?;
    for source in &sources {
        eventually(LIMIT, "the pod is gone", || in_mesh(source, "shop/web").is_none())?;
    }
    Ok(())
}

fn labels(plane: &ControlPlane, sources: &[Handle]) -> Result<()> {
    for (label, expected) in [
        ("weft.dev/mesh=enabled", true),
        ("weft.dev/mesh-", false),
        ("istio.io/dataplane-mode=ambient", false),
        ("weft.dev/mesh=enabled", true),
    ] {
        plane.kubectl(&["label", "--overwrite", "namespace", "shop", label])?;
        for source in sources {
            eventually(LIMIT, label, || in_mesh(source, "shop/web") == Some(expected))?;
        }
    }
    Ok(())
}

/// Ruling 16: in a cluster EndpointSlices alone count.
fn endpoints(plane: &ControlPlane, sources: &[Handle]) -> Result<()> {
    plane.apply("apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}\n")?;
    let known = |source: &Handle| {
        let snapshot = source.snapshot();
        Some(snapshot.service(&name("shop/web"))?.ports.first()?.endpoints.len())
    };
    for source in sources {
        eventually(LIMIT, "the Service is known", || known(source) == Some(0))?;
    }
    plane.apply("apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}\naddressType: IPv4\nports: [{name: http, port: 8080}]\nendpoints: [{addresses: [10.1.0.1]}, {addresses: [10.1.0.2]}]\n")?;
    for source in sources {
        eventually(LIMIT, "the slice is known", || known(source) == Some(2))?;
    }
    Ok(())
}

fn kinds_that_appear(plane: &ControlPlane, sources: &[Handle]) -> Result<()> {
    definition(plane, "peerauthentications.security.istio.io")?;
    let strict = policy("shop", "STRICT");
    eventually(LIMIT, "the new kind is served", || plane.apply(&strict).is_ok())?;
    for source in sources {
        eventually(LIMIT, "the policy of the new kind is in force", || is_strict(source, "shop/web"))?;
    }
    Ok(())
}

/// The definition lets it pass; we do not.
fn invalid_objects(plane: &ControlPlane, sources: &[Handle]) -> Result<()> {
    plane.apply(&policy("shop", "STRICTLY"))?;
    for source in sources {
        let rejected = || source.status().objects.rejected == 1 && finding(source, "IST0106", "STRICTLY");
        eventually(LIMIT, "the mistake is reported", rejected)?;
        assert!(is_strict(source, "shop/web"), "the last good version stays in force");
        assert_eq!(of_kind(source, "PeerAuthentication").undecodable, 1);
    }
    plane.apply(&policy("shop", "PERMISSIVE"))?;
    for source in sources {
        eventually(LIMIT, "the corrected version is in force", || {
            !is_strict(source, "shop/web") && source.status().objects.rejected == 0
        })?;
    }
    Ok(())
}

fn settings(plane: &ControlPlane, sources: &[Handle]) -> Result<()> {
    plane.apply(&namespace("weft-system"))?;
    let map = |name: &str, domain: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, namespace: weft-system}}\ndata: {{mesh: \"trustDomain: {domain}\"}}\n"
        )
    };
    plane.apply(&map("other", "wrong.example"))?;
    plane.apply(&map("weft", "right.example"))?;
    for source in sources {
        let right = || &*source.snapshot().mesh().trust_domain == "right.example";
        eventually(LIMIT, "the settings are in force", right)?;
        assert_eq!(count(&source.status(), Kind::MeshConfig), 1, "no other ConfigMap is read");
    }
    Ok(())
}

fn kinds_that_go(plane: &ControlPlane, sources: &[Handle]) -> Result<()> {
    plane.kubectl(&["delete", "crd", "peerauthentications.security.istio.io"])?;
    for source in sources {
        eventually(LIMIT, "the kind is not watched any more", || {
            let kinds = source.status().freshness.as_ref().expect("it is this source").kinds();
            kinds.iter().all(|kind| kind.kind != "PeerAuthentication")
        })?;
        eventually(LIMIT, "its findings are gone", || !finding(source, "WEFT0016", ""))?;
        assert_eq!(count(&source.status(), Kind::PeerAuthentication), 0);
    }
    Ok(())
}

#[test]
fn an_api_server_that_is_away_changes_nothing() -> Result<()> {
    let Some(plane) = ControlPlane::start(ControlPlaneOptions::default())? else { return Ok(()) };
    plane.apply(&namespace("shop"))?;
    pod(&plane, "shop", "web", "10.1.0.1")?;
    pod(&plane, "shop", "gone", "10.1.0.2")?;
    plane.kubectl(&["label", "namespace", "shop", "weft.dev/mesh=enabled"])?;
    let source = start(plane.kubeconfig(), true)?;
    complete(&source)?;

    plane.kill_api_server();
    eventually(LIMIT, "the connection is lost", || source.status().is_connected() == Some(false))?;
    eventually(LIMIT, "that is a finding", || finding(&source, "WEFT0016", "cannot be reached"))?;
    let about = source.status().problems.iter().filter(|problem| problem.code == "WEFT0016").count();
    assert!(
        about <= 2,
        "one finding for all kinds, and one for the kinds' list: {:?}",
        source.status().problems
    );
    let age = source.status().age();
    eventually(LIMIT, "the configuration grows old", || {
        source.status().age() > age + Duration::from_secs(2)
    })?;
    assert_eq!(in_mesh(&source, "shop/web"), Some(true), "what was read last stays in force");

    // A second agent begins meanwhile: it waits, and says so.
    let late = start(plane.kubeconfig(), true)?;
    eventually(LIMIT, "it says what is missing", || finding(&late, "WEFT0016", "cannot be reached"))?;
    assert!(!late.status().complete && late.snapshot().workloads().next().is_none());

    plane.start_api_server()?;
    plane.kubectl(&["delete", "pod", "-n=shop", "gone", "--force", "--grace-period=0"])?;
    plane.kubectl(&["label", "namespace", "shop", "weft.dev/mesh-"])?;
    for source in [&source, &late] {
        complete(source)?;
        eventually(LIMIT, "changes are heard of again", || in_mesh(source, "shop/web") == Some(false))?;
        eventually(LIMIT, "what went is gone", || in_mesh(source, "shop/gone").is_none())?;
        eventually(LIMIT, "all is well again", || {
            source.status().is_connected() == Some(true) && !finding(source, "WEFT0016", "")
        })?;
    }
    assert!(of_kind(&source, "Pod").restarts > 0);
    Ok(())
}

/// The watch has no cache behind it, and etcd forgets what was before.
#[test]
fn a_watch_that_is_too_old_begins_anew() -> Result<()> {
    let options = ControlPlaneOptions { watch_cache: false, ..ControlPlaneOptions::default() };
    let Some(plane) = ControlPlane::start(options)? else { return Ok(()) };
    plane.apply(&namespace("shop"))?;
    pod(&plane, "shop", "web", "10.1.0.1")?;
    pod(&plane, "shop", "gone", "10.1.0.2")?;
    let proxy = Proxy::start(&plane)?;
    let source = start(&proxy.kubeconfig(), true)?;
    complete(&source)?;
    let revision = source.snapshot().revision();
    let lists = of_kind(&source, "Pod").lists;

    // Nothing changed: a new list is no news.
    proxy.answer(|_| Answer::Nothing);
    eventually(LIMIT, "the connection is lost", || source.status().is_connected() == Some(false))?;
    plane.apply(&namespace("other"))?;
    plane.kubectl(&["delete", "pod", "-n=shop", "gone", "--force", "--grace-period=0"])?;
    for turn in 0..3 {
        plane.kubectl(&["label", "--overwrite", "pod", "-n=shop", "web", &format!("turn={turn}")])?;
    }
    plane.compact_etcd()?;
    assert_eq!(source.snapshot().revision(), revision);
    assert!(in_mesh(&source, "shop/gone").is_some(), "what was read last stays in force");
    proxy.answer(|_| Answer::Real);
    eventually(LIMIT, "what went is gone", || in_mesh(&source, "shop/gone").is_none())?;
    assert_eq!(in_mesh(&source, "shop/web"), Some(false));
    eventually(LIMIT, "it was listed again", || of_kind(&source, "Pod").lists > lists)?;
    Ok(())
}

/// A list in pages that takes so long that the next page has expired (410 as HTTP status).
#[test]
fn a_list_that_is_too_old_begins_anew() -> Result<()> {
    let options = ControlPlaneOptions { watch_cache: false, ..ControlPlaneOptions::default() };
    let Some(plane) = ControlPlane::start(options)? else { return Ok(()) };
    let plane = Arc::new(plane);
    plane.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: many}\n")?;
    // Two pages and a bit.
    let accounts: String = (0..1100)
        .map(|number| {
            format!("---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: sa-{number}, namespace: many}}\n")
        })
        .collect();
    let file = plane.dir().join("accounts.yaml");
    std::fs::write(&file, accounts)?;
    plane.kubectl(&["create", "-f", file.to_str().context("a path")?])?;
    let proxy = Proxy::start(&plane)?;
    // Before the second page is read etcd forgets the state of which the first was a part: the page is gone (410).
    let asked = Arc::new(AtomicU64::new(0));
    let (servers, pages) = (plane.clone(), asked.clone());
    proxy.answer(move |path| {
        let further = path.contains("/serviceaccounts?") && path.contains("continue=");
        if further && pages.fetch_add(1, Ordering::SeqCst) == 0 {
            servers
                .apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: later}\n")
                .expect("a newer state");
            servers.compact_etcd().expect("etcd compacts");
        }
        Answer::Real
    });
    let source = start(&proxy.kubeconfig(), false)?;
    complete(&source)?;
    assert_eq!(count(&source.status(), Kind::ServiceAccount), 1100);
    assert!(asked.load(Ordering::SeqCst) > 2, "the list of three pages was begun anew");
    Ok(())
}

#[test]
fn a_forbidden_kind_is_a_finding_until_it_is_allowed() -> Result<()> {
    let Some(plane) = ControlPlane::start(ControlPlaneOptions::default())? else { return Ok(()) };
    let rules = |more: &str| {
        format!(
            r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {{name: reader}}
rules:
- {{apiGroups: [""], resources: [namespaces, nodes, services, serviceaccounts{more}], verbs: [list, watch]}}
- {{apiGroups: [""], resources: [configmaps], resourceNames: [weft, istio], verbs: [list, watch]}}
- {{apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list, watch]}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {{name: reader}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: reader}}
subjects: [{{apiGroup: rbac.authorization.k8s.io, kind: User, name: reader}}]
"#
        )
    };
    plane.apply(&rules(""))?;
    plane.apply(&namespace("shop"))?;
    pod(&plane, "shop", "web", "10.1.0.1")?;
    for streaming in [true, false] {
        plane.apply(&rules(""))?;
        let source = start(&plane.kubeconfig_for("reader", &[]), streaming)?;
        complete(&source)?;
        eventually(LIMIT, "the finding names the kind", || {
            finding(&source, "WEFT0015", "Pod cannot be read")
        })?;
        assert!(finding(&source, "WEFT0015", "forbidden"));
        let denied = source.status().problems.iter().filter(|problem| problem.code == "WEFT0015").count();
        assert_eq!(denied, 1, "{:?}", source.status().problems);
        assert!(finding(&source, "WEFT0017", "every half minute"), "definitions may not be watched either");
        assert!(count(&source.status(), Kind::ServiceAccount) > 0, "all others go on");
        plane.apply(&rules(", pods"))?;
        eventually(LIMIT, "the pods are known", || in_mesh(&source, "shop/web").is_some())?;
        eventually(LIMIT, "the finding is gone", || !finding(&source, "WEFT0015", ""))?;
    }
    Ok(())
}

#[test]
fn nonsense_changes_nothing() -> Result<()> {
    let Some(plane) = ControlPlane::start(ControlPlaneOptions::default())? else { return Ok(()) };
    plane.apply(&namespace("shop"))?;
    pod(&plane, "shop", "web", "10.1.0.1")?;
    let proxy = Proxy::start(&plane)?;
    let nonsense = [
        Answer::Html,
        Answer::Status(429),
        Answer::WrongJson,
        Answer::Truncated(300),
        Answer::Status(500),
        Answer::Nothing,
    ];
    for (turn, answer) in nonsense.into_iter().enumerate() {
        // A source that failed again and again would be slower with each turn.
        let source = start(&proxy.kubeconfig(), turn % 2 == 0)?;
        complete(&source)?;
        let before = in_mesh(&source, "shop/web");
        proxy.answer(move |_| answer);
        let said = proxy.requests();
        eventually(LIMIT, "it was tried again", || proxy.requests() > said + 20).with_context(|| {
            format!("{answer:?}: {:?}", source.status().freshness.as_ref().map(|known| known.kinds()))
        })?;
        assert_eq!(in_mesh(&source, "shop/web"), before, "{answer:?}");
        assert_eq!(source.status().is_connected(), Some(false), "{answer:?}");
        assert!(source.snapshot().workloads().next().is_some());
        let label = if turn % 2 == 0 { "weft.dev/mesh=enabled" } else { "weft.dev/mesh-" };
        plane.kubectl(&["label", "--overwrite", "namespace", "shop", label])?;
        proxy.answer(|_| Answer::Real);
        let expected = Some(turn % 2 == 0);
        eventually(LIMIT, "it is well again", || in_mesh(&source, "shop/web") == expected)
            .with_context(|| format!("after {answer:?}"))?;
        eventually(LIMIT, "all is well again", || {
            source.status().is_connected() == Some(true) && !finding(&source, "WEFT0016", "")
        })?;
    }
    Ok(())
}

#[test]
fn a_slow_api_server_is_waited_for() -> Result<()> {
    let Some(plane) = ControlPlane::start(ControlPlaneOptions::default())? else { return Ok(()) };
    plane.apply(&namespace("shop"))?;
    pod(&plane, "shop", "web", "10.1.0.1")?;
    let proxy = Proxy::start(&plane)?;
    proxy.answer(|_| Answer::Slow(Duration::from_millis(700)));
    let source = start(&proxy.kubeconfig(), true)?;
    complete(&source)?;
    assert_eq!(in_mesh(&source, "shop/web"), Some(false));
    plane.kubectl(&["label", "namespace", "shop", "weft.dev/mesh=enabled"])?;
    eventually(LIMIT, "the label is known", || in_mesh(&source, "shop/web") == Some(true))?;
    ensure!(of_kind(&source, "Pod").failure.is_none());
    Ok(())
}

/// What users without a cluster see.
#[test]
fn a_kubeconfig_that_does_not_exist_is_an_error() {
    let path = PathBuf::from("/nonexistent/kubeconfig");
    let error = start(&path, true).err().map(|error| format!("{error:#}")).unwrap_or_default();
    assert!(error.contains("/nonexistent/kubeconfig"), "{error}");
}
