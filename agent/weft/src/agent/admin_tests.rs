use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use weft_core::resource::NamespacedName;
use weft_identity::{CaClient, IdentityError, SignedCertificate};

use super::*;
use crate::agent::http::serve_unix;
use crate::agent::private_socket::claim;
use crate::{config, logging};

const MESH: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: cart, namespace: shop, labels: {weft.dev/mesh: enabled}, annotations: {weft.dev/netns: /run/netns/cart}}
spec: {nodeName: a, serviceAccountName: cart}
status: {podIPs: [{ip: 10.0.0.1}]}
";

/// A CA that nobody asks.
struct NoCa;

impl CaClient for NoCa {
    fn sign<'a>(
        &'a self,
        _: &'a str,
        _: &'a weft_core::Identity,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<SignedCertificate, IdentityError>> + Send + 'a>> {
        Box::pin(std::future::ready(Err(IdentityError::Unavailable("there is none".into()))))
    }
}

struct Bed {
    dir: tempfile::TempDir,
    facts: Facts,
    _source: weft_control::Handle,
}

impl Bed {
    /// The admin server of an agent in break-glass: it needs no kernel.
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("mesh")).unwrap();
        std::fs::write(dir.path().join("mesh/mesh.yaml"), MESH).unwrap();
        let source = config::watch(&[dir.path().join("mesh")], "a", true).unwrap();
        let facts = Facts {
            node: "a".into(),
            config: source.published().clone(),
            state: Arc::default(),
            certs: CertStore::new(Arc::new(NoCa), tokio::runtime::Handle::current()),
            metrics: Metrics::new(),
            datapath: None,
            proxy: Arc::default(),
            log: logging::LogLevel::detached(),
            standing: Standing::default(),
        };
        let listener = claim(&dir.path().join("admin.sock")).unwrap();
        tokio::spawn(serve_unix(listener, admin_handler(facts.clone())));
        Self { dir, facts, _source: source }
    }

    async fn ask(&self, method: Method, path: &str) -> (StatusCode, String) {
        let stream = tokio::net::UnixStream::connect(self.dir.path().join("admin.sock")).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let request =
            ::http::Request::builder().method(method).uri(path).body(Empty::<Bytes>::new()).unwrap();
        let answer = sender.send_request(request).await.unwrap();
        let status = answer.status();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }
}

#[tokio::test]
async fn status_dump_and_explain_over_the_socket() {
    let bed = Bed::start();
    let (status, body) = bed.ask(Method::GET, "/status").await;
    assert_eq!(status, StatusCode::OK);
    let json: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(json["node"], "a");
    assert_eq!(json["break_glass"], true);
    assert_eq!(json["workloads"][0]["pod"], "shop/cart");
    assert_eq!(json["workloads"][0]["state"], "excluded");
    assert_eq!(json["config"]["objects"]["Pod"], 1);

    let (_, body) = bed.ask(Method::GET, "/dump").await;
    let json: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(json["local"][0]["netns"], "/run/netns/cart");

    let (status, body) = bed.ask(Method::GET, "/explain?from=shop%2Fcart&to=198.51.100.1:443").await;
    assert_eq!(status, StatusCode::OK, "{body}");
    let json: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(json["verdict"], "passthrough");
}

#[tokio::test]
async fn a_request_is_explained_over_the_socket() {
    let bed = Bed::start();
    let question = "/explain?from=shop/cart&to=http://198.51.100.1/a%3Fb&method=POST&header=X-A%3A%201&header=x-b%3A2&body-size=7&seed=1";
    let (status, body) = bed.ask(Method::GET, question).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    let json: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!((&json["protocol"], &json["verdict"]), (&"http".into(), &"passthrough".into()));
    let (status, body) =
        bed.ask(Method::GET, "/explain?from=shop/cart&to=http://198.51.100.1/&header=x").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(body.contains("-H"), "{body}");
}

#[tokio::test]
async fn wrong_questions_get_words() {
    let bed = Bed::start();
    for (method, path, status) in [
        (Method::GET, "/explain?from=shop/cart", StatusCode::BAD_REQUEST),
        (Method::GET, "/explain?from=shop/none&to=a.b:1", StatusCode::BAD_REQUEST),
        (Method::POST, "/log-level", StatusCode::BAD_REQUEST),
        (Method::GET, "/log-level?level=debug", StatusCode::METHOD_NOT_ALLOWED),
        (Method::GET, "/", StatusCode::NOT_FOUND),
    ] {
        let (got, body) = bed.ask(method, path).await;
        assert_eq!(got, status, "{path}: {body}");
        assert!(body.len() > 10, "{path}: {body}");
    }
}

#[tokio::test]
async fn readiness_waits_for_the_configuration_and_for_slow_pods() {
    let bed = Bed::start();
    let now = Instant::now();
    assert_eq!(bed.facts.not_ready(now), None, "in break-glass there is nothing to wait for");
    let pending = PodState { state: "enrolling", reason: None, pending_since: Some(now), netns: None };
    let state = |revision, failure| NodeState {
        revision,
        failure,
        pods: [(NamespacedName::new("shop", "cart"), pending.clone())].into(),
        ..NodeState::default()
    };
    assert!(not_ready(&state(None, None), now).is_some_and(|why| why.contains("configuration")));
    assert_eq!(not_ready(&state(Some(1), None), now), None);
    let later = now + PENDING_LIMIT + Duration::from_secs(1);
    assert!(not_ready(&state(Some(1), None), later).is_some_and(|why| why.contains("shop/cart")));
    assert!(not_ready(&state(Some(1), Some("full".into())), now).is_some_and(|why| why.contains("full")));
}
