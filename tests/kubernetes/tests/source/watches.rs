//! How watches begin and go on: bookmarks, servers that do not stream lists, kinds of the Gateway API.

use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, ensure};
use weft_control::kubernetes::{self, ClientOptions, KubernetesOptions};
use weft_core::compile::CompileOptions;
use weft_kubernetes_tests::{Answer, ControlPlane, ControlPlaneOptions, Proxy};
use weft_lab::{eventually, poll_until};

use super::{LIMIT, complete, finding, in_mesh, namespace, of_kind, pod, start};

/// What was asked for about pods.
#[derive(Clone, Default)]
struct Asked(Arc<Mutex<Vec<String>>>);

impl Asked {
    fn note(&self, path: &str) -> bool {
        let is_of_pods = path.starts_with("/api/v1/pods?");
        if is_of_pods {
            self.0.lock().expect("nobody panics with it").push(path.to_owned());
        }
        is_of_pods
    }

    fn all(&self) -> Vec<String> {
        self.0.lock().expect("nobody panics with it").clone()
    }

    /// Where the watches began that went on from somewhere.
    fn versions(&self) -> Vec<u64> {
        let version = |path: &String| {
            let of = path.split(['?', '&']).find_map(|part| part.strip_prefix("resourceVersion="))?;
            path.contains("watch=true").then(|| of.parse().ok())?
        };
        self.all().iter().filter_map(version).collect()
    }
}

/// Nothing happens to pods, and much to others: without bookmarks a watch would go on from where pods last changed, which
/// grows too old some day.
#[test]
fn bookmarks_move_a_quiet_watch_on() -> Result<()> {
    let Some(plane) = ControlPlane::start(ControlPlaneOptions::default())? else { return Ok(()) };
    plane.apply(&namespace("shop"))?;
    pod(&plane, "shop", "web", "10.1.0.1")?;
    let proxy = Proxy::start(&plane)?;
    let asked = Asked::default();
    let noted = asked.clone();
    // The API server sends a bookmark two seconds before a watch has lasted as long as was asked for.
    proxy.answer(move |path| if noted.note(path) { Answer::Lasting(5) } else { Answer::Real });
    let source = start(&proxy.kubeconfig(), true)?;
    complete(&source)?;
    let mut turn = 0;
    poll_until(LIMIT, || {
        turn += 1;
        plane.kubectl(&["label", "--overwrite", "namespace", "shop", &format!("turn={turn}")])?;
        ensure!(asked.versions().len() >= 3, "watches that went on: {:?}", asked.versions());
        Ok(())
    })?;
    let versions = asked.versions();
    assert!(versions.is_sorted_by(|one, next| one < next), "bookmarks were not heeded: {versions:?}");
    let pods = of_kind(&source, "Pod");
    assert_eq!((pods.lists, pods.failure, pods.undecodable), (1, None, 0), "it was listed once");
    assert_eq!(in_mesh(&source, "shop/web"), Some(false));
    plane.kubectl(&["label", "namespace", "shop", "weft.dev/mesh=enabled"])?;
    eventually(LIMIT, "changes are heard of", || in_mesh(&source, "shop/web") == Some(true))
}

#[test]
fn a_server_that_does_not_stream_lists_is_asked_for_pages() -> Result<()> {
    let flags = vec!["--feature-gates=WatchList=false".to_owned()];
    let options = ControlPlaneOptions { flags, ..ControlPlaneOptions::default() };
    let Some(plane) = ControlPlane::start(options)? else { return Ok(()) };
    plane.apply(&namespace("shop"))?;
    pod(&plane, "shop", "web", "10.1.0.1")?;
    let proxy = Proxy::start(&plane)?;
    let asked = Asked::default();
    let noted = asked.clone();
    let real = move |path: &str| {
        noted.note(path);
        Answer::Real
    };
    proxy.answer(real);
    let source = start(&proxy.kubeconfig(), true)?;
    complete(&source)?;
    let streams = |paths: &[String]| paths.iter().filter(|path| path.contains("sendInitialEvents")).count();
    let paths = asked.all();
    assert!(paths.first().context("pods are asked for")?.contains("sendInitialEvents"), "{paths:?}");
    assert!(paths.iter().any(|path| path.contains("limit=")), "{paths:?}");
    assert_eq!(in_mesh(&source, "shop/web"), Some(false));
    plane.kubectl(&["label", "namespace", "shop", "weft.dev/mesh=enabled"])?;
    eventually(LIMIT, "changes are heard of", || in_mesh(&source, "shop/web") == Some(true))?;
    assert!(!finding(&source, "WEFT0016", ""), "that is no failure: {:?}", source.status().problems);

    // What was found out is remembered, also when everything has to be listed anew.
    plane.kill_api_server();
    eventually(LIMIT, "the connection is lost", || source.status().is_connected() == Some(false))?;
    plane.start_api_server()?;
    plane.kubectl(&["label", "namespace", "shop", "weft.dev/mesh-"])?;
    eventually(LIMIT, "changes are heard of again", || in_mesh(&source, "shop/web") == Some(false))?;
    assert_eq!(streams(&asked.all()), 1, "{:?}", asked.all());
    Ok(())
}

const HTTP_ROUTES: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: httproutes.gateway.networking.k8s.io
  annotations: {api-approved.kubernetes.io: "https://github.com/kubernetes-sigs/gateway-api/pull/1"}
spec:
  group: gateway.networking.k8s.io
  names: {kind: HTTPRoute, plural: httproutes, singular: httproute, listKind: HTTPRouteList}
  scope: Namespaced
  versions:
  - name: v1beta1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
"#;

/// Their objects are counted, and nothing of them is executed.
#[test]
fn kinds_of_the_gateway_api_are_watched_where_they_are_validated() -> Result<()> {
    let Some(plane) = ControlPlane::start(ControlPlaneOptions::default())? else { return Ok(()) };
    plane.apply(&namespace("shop"))?;
    let client =
        ClientOptions { kubeconfig: Some(plane.kubeconfig().to_owned()), ..ClientOptions::default() };
    let options = KubernetesOptions { client, validated_kinds: true, ..KubernetesOptions::default() };
    let compile = CompileOptions { node: None, adopt_istio_labels: false, endpoints_from_pods: false };
    let source = kubernetes::start(options, compile)?;
    complete(&source)?;
    let before = source.status().objects.ignored;
    plane.apply(HTTP_ROUTES)?;
    let route = "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: HTTPRoute\n\
                 metadata: {name: web, namespace: shop}\nspec: {nonsense: true}\n";
    eventually(LIMIT, "the new kind is served", || plane.apply(route).is_ok())?;
    let label = "HTTPRoute.gateway.networking.k8s.io";
    let watched = || {
        let kinds = source.status().freshness.as_ref().expect("it is this source").kinds();
        kinds.iter().any(|kind| kind.kind == label && kind.connected && kind.synced)
    };
    eventually(LIMIT, "the kind is watched", watched)?;
    eventually(LIMIT, "its object is counted", || source.status().objects.ignored == before + 1)?;
    assert!(source.status().problems.iter().all(|problem| !problem.message.contains("HTTPRoute")));
    plane.kubectl(&["delete", "httproute", "web", "-n", "shop"])?;
    eventually(LIMIT, "it is gone", || source.status().objects.ignored == before)
}
