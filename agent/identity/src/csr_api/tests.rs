use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{CertificateParams, KeyPair};
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::*;
use crate::{CaClient, CertStore, EmbeddedCa, Hbone, IdentityError};

struct OnlyOn(&'static str, BTreeSet<Identity>);

impl NodeAuthority for OnlyOn {
    fn may_have(&self, node: &str, identity: &Identity) -> Result<(), CaError> {
        if node == self.0 && self.1.contains(identity) {
            return Ok(());
        }
        Err(CaError::Forbidden(format!("no pod of node {node} has {identity}")))
    }
}

fn cart() -> Identity {
    Identity::new("cluster.local", "shop", "cart")
}

fn authority() -> Arc<dyn NodeAuthority> {
    Arc::new(OnlyOn("node-a", BTreeSet::from([cart()])))
}

fn csr() -> (KeyPair, String) {
    let key = KeyPair::generate().unwrap();
    let pem = CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    (key, pem)
}

/// A served socket in a directory of its own.
struct Served {
    ca: Arc<Ca>,
    socket: PathBuf,
    stop: oneshot::Sender<()>,
    server: JoinHandle<Result<(), IdentityError>>,
}

impl Served {
    async fn start(dir: &Path, node: &str) -> Self {
        let ca = Arc::new(Ca::open(&dir.join("ca"), "cluster.local").unwrap());
        let socket = dir.join("run").join(format!("{node}.sock"));
        let (stop, stopped) = oneshot::channel();
        let shutdown = async move {
            let _ = stopped.await;
        };
        let server = tokio::spawn(serve(socket.clone(), node.into(), ca.clone(), authority(), shutdown));
        let served = Self { ca, socket, stop, server };
        while !served.socket.exists() && !served.server.is_finished() {
            tokio::task::yield_now().await;
        }
        served
    }

    async fn stop(self) {
        self.stop.send(()).unwrap();
        self.server.await.unwrap().unwrap();
    }
}

fn dir() -> TempDir {
    tempfile::tempdir().unwrap()
}

#[tokio::test]
async fn a_node_gets_certificates_for_its_own_pods() {
    let dir = dir();
    let served = Served::start(dir.path(), "node-a").await;
    assert_eq!(served.socket.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let client = UnixCaClient::new(&served.socket);
    let (key, pem) = csr();
    let signed = client.sign(&pem, &cart()).await.unwrap();
    assert_eq!(signed.roots_pem, [served.ca.root_pem()]);
    assert_eq!(signed.chain_pem.len(), 1);
    let (chain, roots) = (signed.chain_pem.concat(), signed.roots_pem.concat());
    Hbone::from_pem(&cart(), &chain, &key.serialize_pem(), &roots, &[]).unwrap();
    let socket = served.socket.clone();
    served.stop().await;
    assert!(!socket.exists(), "the socket file goes with the server");
}

#[tokio::test]
async fn refusals_carry_their_reason() {
    let dir = dir();
    let served = Served::start(dir.path(), "node-a").await;
    let client = UnixCaClient::new(&served.socket);
    let other = Identity::new("cluster.local", "shop", "other");
    let error = client.sign(&csr().1, &other).await.unwrap_err();
    let expected =
        "the CA refuses: no pod of node node-a has spiffe://cluster.local/ns/shop/sa/other".to_owned();
    assert_eq!(error.to_string(), expected);
    let error = client.sign("garbage", &cart()).await.unwrap_err();
    assert!(matches!(&error, IdentityError::Refused(text) if text.contains("is no PEM")), "{error:?}");
    served.stop().await;
}

#[tokio::test]
async fn the_socket_says_which_node_asks() {
    let dir = dir();
    let served = Served::start(dir.path(), "node-b").await;
    let error = UnixCaClient::new(&served.socket).sign(&csr().1, &cart()).await.unwrap_err();
    assert!(
        matches!(&error, IdentityError::Refused(text) if text.contains("no pod of node node-b")),
        "{error:?}"
    );
    served.stop().await;
}

/// Sends a hand-made request and answers the status.
async fn raw(
    socket: &Path,
    method: &'static str,
    request: message::IstioCertificateRequest,
) -> tonic::Status {
    let mut grpc = tonic::client::Grpc::new(UnixCaClient::new(socket).channel());
    grpc.ready().await.unwrap();
    let path = tonic::codegen::http::uri::PathAndQuery::from_static(method);
    let codec = tonic_prost::ProstCodec::<_, message::IstioCertificateResponse>::default();
    grpc.unary(tonic::Request::new(request), path, codec).await.unwrap_err()
}

#[tokio::test]
async fn malformed_requests_are_refused() {
    use message::IstioCertificateRequest;
    use tonic::Code;

    let dir = dir();
    let served = Served::start(dir.path(), "node-a").await;
    let (_, pem) = csr();
    let nobody = IstioCertificateRequest { csr: pem.clone(), validity_duration: 0, metadata: None };
    let identity = cart().to_string();
    let asked = IstioCertificateRequest::new(&pem, &identity, Duration::ZERO);
    let negative = IstioCertificateRequest { validity_duration: -1, ..asked };
    for (method, request, code, expected) in [
        (METHOD, nobody, Code::InvalidArgument, "ImpersonatedIdentity is missing"),
        (
            METHOD,
            IstioCertificateRequest::new(&pem, "cluster.local/ns/shop/sa/cart", Duration::ZERO),
            Code::InvalidArgument,
            "ImpersonatedIdentity: `cluster.local/ns/shop/sa/cart` is not of the form",
        ),
        (METHOD, negative, Code::InvalidArgument, "is negative: -1"),
        (
            METHOD,
            IstioCertificateRequest::new(&"x".repeat(100_000), &identity, Duration::ZERO),
            Code::OutOfRange,
            "message length too large",
        ),
        ("/other.Service/Method", IstioCertificateRequest::default(), Code::Unimplemented, METHOD),
    ] {
        let status = raw(&served.socket, method, request).await;
        assert_eq!(status.code(), code, "{status:?}");
        assert!(status.message().contains(expected), "{status:?}");
    }
    served.stop().await;
}

#[tokio::test]
async fn a_lifetime_is_passed_on_and_capped() {
    let dir = dir();
    let served = Served::start(dir.path(), "node-a").await;
    let client = UnixCaClient::new(&served.socket).with_lifetime(Duration::from_secs(60));
    let (key, pem) = csr();
    let signed = client.sign(&pem, &cart()).await.unwrap();
    let (chain, roots) = (signed.chain_pem.concat(), signed.roots_pem.concat());
    let hbone = Hbone::from_pem(&cart(), &chain, &key.serialize_pem(), &roots, &[]).unwrap();
    let left = hbone.not_after().duration_since(std::time::SystemTime::now()).unwrap();
    assert!(left <= Duration::from_secs(60), "{left:?}");
    served.stop().await;
}

#[tokio::test]
async fn one_client_survives_the_ca_going_and_coming() {
    let dir = dir();
    let client = UnixCaClient::new(&dir.path().join("run/node-a.sock"));
    let error = client.sign(&csr().1, &cart()).await.unwrap_err();
    assert!(
        matches!(&error, IdentityError::Unavailable(text) if text.contains("run/node-a.sock: No such file")),
        "{error:?}"
    );
    for _ in 0..2 {
        let served = Served::start(dir.path(), "node-a").await;
        client.sign(&csr().1, &cart()).await.unwrap();
        served.stop().await;
        let error = client.sign(&csr().1, &cart()).await.unwrap_err();
        assert!(matches!(error, IdentityError::Unavailable(_)), "{error:?}");
    }
}

#[tokio::test]
async fn a_live_socket_is_not_taken_and_a_stale_one_is() {
    let dir = dir();
    let served = Served::start(dir.path(), "node-a").await;
    let rival =
        serve(served.socket.clone(), "node-a".into(), served.ca.clone(), authority(), std::future::ready(()));
    let error = rival.await.unwrap_err().to_string();
    assert!(error.contains("another process already serves"), "{error}");
    UnixCaClient::new(&served.socket).sign(&csr().1, &cart()).await.unwrap();
    let socket = served.socket.clone();
    served.stop().await;
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    assert!(socket.exists(), "a dropped listener leaves its file");
    let served = Served::start(dir.path(), "node-a").await;
    UnixCaClient::new(&socket).sign(&csr().1, &cart()).await.unwrap();
    served.stop().await;
}

#[tokio::test]
async fn unsafe_places_for_a_socket_are_refused() {
    let dir = dir();
    let ca = Arc::new(Ca::open(&dir.path().join("ca"), "cluster.local").unwrap());
    let refusal = async |socket: PathBuf| {
        let served = serve(socket, "node-a".into(), ca.clone(), authority(), std::future::ready(())).await;
        served.unwrap_err().to_string()
    };
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = refusal(file).await;
    assert!(error.contains("exists and is no socket"), "{error}");
    let open = dir.path().join("open");
    std::fs::create_dir(&open).unwrap();
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).unwrap();
    let error = refusal(open.join("node-a.sock")).await;
    assert!(error.contains("has mode 0777") && error.contains("chmod 700"), "{error}");
    let error = refusal(PathBuf::from("node-a.sock")).await;
    assert!(error.contains("must be absolute"), "{error}");
}

#[tokio::test]
async fn the_embedded_ca_checks_like_the_served_one() {
    let dir = dir();
    let ca = Arc::new(Ca::open(dir.path(), "cluster.local").unwrap());
    let client = EmbeddedCa::new(ca.clone(), authority(), "node-a".into());
    client.sign(&csr().1, &cart()).await.unwrap();
    let other = Identity::new("cluster.local", "shop", "other");
    assert!(matches!(client.sign(&csr().1, &other).await, Err(IdentityError::Refused(_))));
    assert!(matches!(client.sign("garbage", &cart()).await, Err(IdentityError::Refused(_))));
}

#[tokio::test]
async fn a_store_is_filled_over_the_socket() {
    let dir = dir();
    let served = Served::start(dir.path(), "node-a").await;
    let client = Arc::new(UnixCaClient::new(&served.socket));
    let store = CertStore::new(client, tokio::runtime::Handle::current());
    store.want(BTreeSet::from([cart()]));
    let hbone = store.wait(&cart(), Duration::from_secs(10)).await.unwrap();
    assert_eq!(hbone.identity(), &cart());
    served.stop().await;
}
