use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rcgen::{CertificateParams, KeyPair};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;

use super::*;
use crate::tls::tests::agree;
use crate::{CaClient, CaMaterial, CertStore, IdentityError, LiveCa, ServingTls};

const NAME: &str = "ca.weft-system.svc";
const SOON: Duration = Duration::from_secs(20);

fn id(name: &str) -> Identity {
    Identity::new("cluster.local", "shop", name)
}

fn caller(namespace: &str, account: &str, node: Option<&str>) -> Caller {
    Caller {
        namespace: namespace.to_owned(),
        service_account: account.to_owned(),
        pod: Some(format!("{account}-1")),
        node: node.map(Into::into),
    }
}

/// Knows a few tokens.
struct Known {
    tokens: HashMap<&'static str, Caller>,
    asked: AtomicUsize,
    /// Reviews of the token `slow` wait for this.
    go_on: Notify,
}

impl Authenticator for Known {
    fn authenticate<'a>(
        &'a self,
        token: &'a str,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<Caller, AuthenticationError>> + Send + 'a>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move {
            if token == "down" {
                return Err(AuthenticationError::Unavailable("nobody there".to_owned()));
            }
            if token == "slow" {
                self.go_on.notified().await;
            }
            let unknown = || AuthenticationError::Refused("it is unknown".to_owned());
            self.tokens.get(token).cloned().ok_or_else(unknown)
        })
    }
}

struct CartOnA;

impl NodeAuthority for CartOnA {
    fn may_have(&self, node: &str, identity: &Identity) -> Result<(), CaError> {
        if node == "a" && *identity == id("cart") {
            return Ok(());
        }
        Err(CaError::Forbidden(format!("no pod of node {node} has {identity}")))
    }
}

/// A server with the files of a client.
struct World {
    dir: TempDir,
    ca: Arc<LiveCa>,
    material: CaMaterial,
    known: Arc<Known>,
    counters: Arc<Counters>,
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    server: JoinHandle<Result<(), IdentityError>>,
}

impl World {
    async fn start() -> Self {
        let material = CaMaterial::generate("cluster.local").unwrap();
        Self::of(material, "127.0.0.1:0".parse().unwrap()).await
    }

    async fn of(material: CaMaterial, address: SocketAddr) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = Arc::new(LiveCa::new(Ca::from_material(&material, "cluster.local").unwrap()));
        let tokens = HashMap::from([
            ("agent-a", caller("weft-system", "weft-agent", Some("a"))),
            ("slow", caller("weft-system", "weft-agent", Some("a"))),
            ("agent-b", caller("weft-system", "weft-agent", Some("b"))),
            ("unbound", caller("weft-system", "weft-agent", None)),
            ("cart", caller("shop", "cart", Some("a"))),
        ]);
        let known = Arc::new(Known { tokens, asked: AtomicUsize::new(0), go_on: Notify::new() });
        let access = Access {
            authenticator: Arc::clone(&known) as Arc<_>,
            authority: Arc::new(CartOnA),
            node_accounts: BTreeSet::from(["weft-system/weft-agent".parse().unwrap()]),
        };
        let server = NetworkServer::new(Arc::clone(&ca), access);
        let counters = server.counters();
        let tls = ServingTls::new(Arc::clone(&ca), vec![NAME.to_owned()], &["h2"]).unwrap();
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let server = tokio::spawn(server.serve(listener, tls, async move { drop(stopped.await) }));
        let world = Self { dir, ca, material, known, counters, address, stop: Some(stop), server };
        std::fs::write(world.root_file(), &world.material.roots_pem).unwrap();
        world
    }

    fn root_file(&self) -> PathBuf {
        self.dir.path().join("root-cert.pem")
    }

    fn client(&self, token: &str) -> NetworkCaClient {
        let token_file = self.dir.path().join(format!("token-{token}"));
        std::fs::write(&token_file, format!("{token}\n")).unwrap();
        NetworkCaClient::new(NetworkCaOptions {
            address: format!("https://{}", self.address),
            token_file,
            root_file: self.root_file(),
            server_name: Some(NAME.to_owned()),
            cluster_id: "Kubernetes".to_owned(),
            lifetime: Duration::from_secs(60),
        })
        .unwrap()
    }

    async fn ask(&self, token: &str, identity: &Identity) -> Result<SignedCertificate, IdentityError> {
        self.client(token).sign(&csr(), identity).await
    }

    async fn stop(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        (&mut self.server).await.unwrap().unwrap();
    }
}

fn csr() -> String {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.serialize_request(&key).unwrap().pem().unwrap()
}

fn refused(answer: Result<SignedCertificate, IdentityError>) -> String {
    match answer {
        Err(IdentityError::Refused(reason)) => reason,
        other => panic!("{other:?}"),
    }
}

fn unavailable(answer: Result<SignedCertificate, IdentityError>) -> String {
    match answer {
        Err(IdentityError::Unavailable(reason)) => reason,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_node_agent_gets_certificates_for_pods_of_its_node_and_anybody_his_own() {
    let world = World::start().await;
    world.ask("agent-a", &id("cart")).await.unwrap();
    world.ask("cart", &id("cart")).await.unwrap();
    let own = Identity::new("cluster.local", "weft-system", "weft-agent");
    world.ask("unbound", &own).await.unwrap();
    assert_eq!(world.counters.ended(Outcome::Issued), 3);
}

#[tokio::test]
async fn each_refusal_has_its_own_words() {
    let world = World::start().await;
    for (token, identity, expected) in [
        ("nobody", id("cart"), "the token is refused: it is unknown"),
        ("agent-b", id("cart"), "no pod of node b has spiffe://cluster.local/ns/shop/sa/cart"),
        ("agent-a", id("other"), "no pod of node a has spiffe://cluster.local/ns/shop/sa/other"),
        ("cart", id("other"), "shop/cart may only have its own identity"),
        ("unbound", id("cart"), "does not say on which node it is used"),
        ("agent-a", Identity::new("other.example", "shop", "cart"), "no pod of node a has spiffe://other"),
    ] {
        let reason = refused(world.ask(token, &identity).await);
        assert!(reason.contains(expected), "{token}: {reason}");
    }
    let reason = unavailable(world.ask("down", &id("cart")).await);
    assert!(reason.contains("the token cannot be reviewed now: nobody there"), "{reason}");
    let client = world.client("agent-a");
    let reason = refused(client.sign("garbage", &id("cart")).await);
    assert!(reason.contains("is no PEM"), "{reason}");
    for (outcome, expected) in [
        (Outcome::Unauthenticated, 1),
        (Outcome::Forbidden, 5),
        (Outcome::Unavailable, 1),
        (Outcome::Invalid, 1),
    ] {
        assert_eq!(world.counters.ended(outcome), expected, "{outcome:?}");
    }
}

#[tokio::test]
async fn the_token_is_read_anew_and_its_review_remembered() {
    let world = World::start().await;
    let client = world.client("agent-a");
    for _ in 0..5 {
        client.sign(&csr(), &id("cart")).await.unwrap();
    }
    assert_eq!(world.known.asked.load(Ordering::SeqCst), 1);
    assert_eq!((world.counters.reviews(), world.counters.remembered()), (1, 4));
    let file = world.dir.path().join("token-agent-a");
    std::fs::write(&file, "nobody").unwrap();
    refused(client.sign(&csr(), &id("cart")).await);
    std::fs::write(&file, "\n").unwrap();
    let reason = unavailable(client.sign(&csr(), &id("cart")).await);
    assert!(reason.contains("holds no token"), "{reason}");
    std::fs::remove_file(&file).unwrap();
    let reason = unavailable(client.sign(&csr(), &id("cart")).await);
    assert!(reason.contains("cannot be read: No such file"), "{reason}");
}

#[tokio::test]
async fn addresses_that_guess_tokens_are_turned_away_before_they_cost_a_review() {
    let world = World::start().await;
    let client = world.client("guess");
    let file = world.dir.path().join("token-guess");
    let mut limited = None;
    for number in 0..60 {
        std::fs::write(&file, format!("guess-{number}")).unwrap();
        if let Err(IdentityError::Unavailable(reason)) = client.sign(&csr(), &id("cart")).await {
            limited = Some(reason);
            break;
        }
    }
    let reason = limited.expect("a limit");
    assert!(reason.contains("too many tokens from this address were refused"), "{reason}");
    assert!(world.known.asked.load(Ordering::SeqCst) < 60);
    assert_eq!(world.counters.ended(Outcome::Limited), 1);
}

#[tokio::test]
async fn a_server_of_another_root_is_not_believed_until_the_file_has_its_root() {
    let world = World::start().await;
    let other = CaMaterial::generate("cluster.local").unwrap();
    std::fs::write(world.root_file(), &other.roots_pem).unwrap();
    let client = world.client("agent-a");
    let reason = unavailable(client.sign(&csr(), &id("cart")).await);
    assert!(reason.contains("unknown issuer"), "{reason}");
    assert_eq!(world.known.asked.load(Ordering::SeqCst), 0, "no token is sent to a stranger");
    std::fs::write(world.root_file(), format!("{}{}", other.roots_pem, world.material.roots_pem)).unwrap();
    client.sign(&csr(), &id("cart")).await.unwrap();
    for (content, expected) in
        [("garbage", "it holds no certificate"), ("-----BEGIN CERTIFICATE-----", "end line")]
    {
        std::fs::write(world.root_file(), content).unwrap();
        let reason = unavailable(client.sign(&csr(), &id("cart")).await);
        assert!(reason.contains("the root file") && reason.contains(expected), "{reason}");
    }
}

#[tokio::test]
async fn a_server_of_another_name_is_not_believed() {
    let world = World::start().await;
    world.client("agent-a");
    let client = NetworkCaClient::new(NetworkCaOptions {
        address: format!("https://{}", world.address),
        token_file: world.dir.path().join("token-agent-a"),
        root_file: world.root_file(),
        server_name: None,
        cluster_id: "Kubernetes".to_owned(),
        lifetime: Duration::ZERO,
    })
    .unwrap();
    let reason = unavailable(client.sign(&csr(), &id("cart")).await);
    assert!(reason.contains("the CA's own certificate"), "{reason}");
}

#[tokio::test]
async fn one_client_survives_the_ca_going_and_coming() {
    let mut world = World::start().await;
    let client = world.client("agent-a");
    client.sign(&csr(), &id("cart")).await.unwrap();
    world.stop().await;
    let reason = unavailable(client.sign(&csr(), &id("cart")).await);
    assert!(reason.starts_with(&format!("https://{}: ", world.address)), "{reason}");
    let again = World::of(world.material.clone(), world.address).await;
    client.sign(&csr(), &id("cart")).await.unwrap();
    drop(again);
}

#[tokio::test]
async fn a_slow_review_holds_up_nobody_else() {
    let world = World::start().await;
    let (slow, quick) = (world.client("slow"), world.client("agent-a"));
    let waiting = tokio::spawn(async move { slow.sign(&csr(), &id("cart")).await });
    while world.known.asked.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    quick.sign(&csr(), &id("cart")).await.unwrap();
    assert!(!waiting.is_finished());
    world.known.go_on.notify_one();
    waiting.await.unwrap().unwrap();
}

/// Both roots are published, the CA is switched, the old root is removed: no step refuses a handshake.
#[tokio::test]
async fn a_rotation_of_roots_refuses_nobody() {
    let mut world = World::start().await;
    let (old, new) = (world.material.clone(), CaMaterial::generate("cluster.local").unwrap());
    let both = format!("{}{}", old.roots_pem, new.roots_pem);
    let store =
        |token: &str| CertStore::new(Arc::new(world.client(token)), tokio::runtime::Handle::current());
    let (early, late) = (store("agent-a"), store("cart"));
    early.want(BTreeSet::from([id("cart")]));
    let before = early.wait(&id("cart"), SOON).await.unwrap();

    let publish = |roots_pem: &str, keys: &CaMaterial| {
        let material = CaMaterial { roots_pem: roots_pem.to_owned(), ..keys.clone() };
        world.ca.replace(Ca::from_material(&material, "cluster.local").unwrap());
    };
    publish(&both, &old);
    early.trust(&both).unwrap();
    assert_eq!(early.trusted_roots().len(), 2);
    std::fs::write(world.root_file(), &both).unwrap();

    publish(&both, &new);
    late.want(BTreeSet::from([id("cart")]));
    let after = late.wait(&id("cart"), SOON).await.unwrap();
    agree(&before, &after).unwrap();
    agree(&after, &before).unwrap();

    std::fs::write(world.root_file(), &new.roots_pem).unwrap();
    publish(&new.roots_pem, &new);
    early.trust(&new.roots_pem).unwrap();
    let mut changes = early.subscribe();
    while Arc::ptr_eq(&before, &early.get(&id("cart")).unwrap()) {
        tokio::time::timeout(Duration::from_secs(60), changes.changed()).await.unwrap().unwrap();
    }
    assert_eq!(early.trusted_roots().len(), 1, "the old root goes with the last answer that had it");
    let renewed = early.get(&id("cart")).unwrap();
    agree(&renewed, &after).unwrap();
    agree(&renewed, &before).unwrap_err();
    world.stop().await;
}
