use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::time::{Instant, sleep};

use super::*;
use crate::testing::{TestCa, Wrong};

const LIFETIME: Duration = Duration::from_secs(60);

/// A CA on tokio's clock that can be down, slow or wrong, and counts.
struct FakeCa {
    ca: TestCa,
    clock: Clock,
    down: AtomicBool,
    latency: Duration,
    calls: AtomicUsize,
    running: AtomicUsize,
    most_running: AtomicUsize,
}

impl FakeCa {
    async fn answer(&self, csr_pem: &str, identity: &Identity) -> Result<SignedCertificate, IdentityError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let running = self.running.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_running.fetch_max(running, Ordering::SeqCst);
        sleep(self.latency).await;
        self.running.fetch_sub(1, Ordering::SeqCst);
        if self.down.load(Ordering::SeqCst) {
            return Err(IdentityError::Unavailable("the test switched it off".to_owned()));
        }
        Ok(self.ca.sign(csr_pem, identity, ((self.clock)(), LIFETIME)))
    }

    fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::SeqCst);
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

impl CaClient for FakeCa {
    fn sign<'a>(
        &'a self,
        csr_pem: &'a str,
        identity: &'a Identity,
    ) -> Pin<Box<dyn Future<Output = Result<SignedCertificate, IdentityError>> + Send + 'a>> {
        Box::pin(self.answer(csr_pem, identity))
    }
}

/// The wall clock as tokio's clock moves it.
fn virtual_clock() -> Clock {
    let (wall, start) = (SystemTime::now(), Instant::now());
    Arc::new(move || wall + start.elapsed())
}

fn setup(latency: Duration) -> (Arc<FakeCa>, CertStore) {
    let clock = virtual_clock();
    let ca = Arc::new(FakeCa {
        ca: TestCa::new(),
        clock: Arc::clone(&clock),
        down: AtomicBool::new(false),
        latency,
        calls: AtomicUsize::new(0),
        running: AtomicUsize::new(0),
        most_running: AtomicUsize::new(0),
    });
    let client: Arc<dyn CaClient> = Arc::clone(&ca) as Arc<_>;
    let store = CertStore::with_clock(client, &Handle::current(), Vec::new(), clock);
    (ca, store)
}

fn id(name: &str) -> Identity {
    Identity::new("cluster.local", "shop", name)
}

fn set(names: &[&str]) -> BTreeSet<Identity> {
    names.iter().map(|name| id(name)).collect()
}

const SOON: Duration = Duration::from_secs(5);

#[tokio::test(start_paused = true)]
async fn what_is_wanted_is_fetched_and_the_rest_is_not() {
    let (ca, store) = setup(Duration::from_millis(10));
    assert!(store.get(&id("cart")).unwrap_err().to_string().contains("no pod of this node"));
    store.want(set(&["cart"]));
    assert!(store.get(&id("cart")).unwrap_err().to_string().ends_with("asked for, not arrived yet"));
    let hbone = store.wait(&id("cart"), SOON).await.unwrap();
    assert_eq!(hbone.identity(), &id("cart"));
    assert!(Arc::ptr_eq(&hbone, &store.get(&id("cart")).unwrap()));
    assert!(store.wait(&id("other"), SOON).await.is_err());
    assert_eq!(ca.calls(), 1);
    store.want(set(&["cart"]));
    sleep(Duration::from_secs(1)).await;
    assert_eq!(ca.calls(), 1, "wanting the same again asks for nothing");
}

#[tokio::test(start_paused = true)]
async fn what_is_no_longer_wanted_is_dropped_and_not_renewed() {
    let (ca, store) = setup(Duration::ZERO);
    store.want(set(&["cart", "store"]));
    store.wait(&id("cart"), SOON).await.unwrap();
    let kept = store.wait(&id("store"), SOON).await.unwrap();
    store.want(set(&["store"]));
    assert!(store.get(&id("cart")).is_err());
    assert!(Arc::ptr_eq(&kept, &store.get(&id("store")).unwrap()), "others keep theirs");
    assert_eq!(store.infos().len(), 1);
    store.want(BTreeSet::new());
    sleep(Duration::from_secs(600)).await;
    assert_eq!(ca.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_identity_that_comes_back_is_fetched_anew() {
    let (ca, store) = setup(Duration::ZERO);
    store.want(set(&["cart"]));
    let first = store.wait(&id("cart"), SOON).await.unwrap();
    store.want(BTreeSet::new());
    store.want(set(&["cart"]));
    let second = store.wait(&id("cart"), SOON).await.unwrap();
    assert!(!Arc::ptr_eq(&first, &second));
    assert_eq!(ca.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn at_most_eight_ask_at_a_time() {
    let (ca, store) = setup(Duration::from_millis(100));
    let names: Vec<String> = (0..50).map(|number| format!("sa-{number}")).collect();
    let wanted: BTreeSet<_> = names.iter().map(|name| id(name)).collect();
    store.want(wanted.clone());
    for identity in &wanted {
        store.wait(identity, SOON).await.unwrap();
    }
    assert_eq!(ca.most_running.load(Ordering::SeqCst), PARALLEL_FETCHES);
    assert_eq!(store.infos().iter().filter(|info| info.not_after.is_some()).count(), 50);
}

#[tokio::test(start_paused = true)]
async fn certificates_are_renewed_at_half_life_with_a_new_key() {
    let (ca, store) = setup(Duration::ZERO);
    store.want(set(&["cart"]));
    let first = store.wait(&id("cart"), SOON).await.unwrap();
    let connection = (first.server(), first.client(&id("store")));
    sleep(Duration::from_secs(26)).await;
    assert_eq!(ca.calls(), 1, "not before 27 seconds");
    sleep(Duration::from_secs(8)).await;
    assert_eq!(ca.calls(), 2, "not after 33 seconds");
    let second = store.get(&id("cart")).unwrap();
    assert!(second.not_after() > first.not_after());
    assert!(!Arc::ptr_eq(&connection.0, &second.server()), "older connections keep what they have");
    for _ in 0..20 {
        sleep(LIFETIME).await;
        store.get(&id("cart")).unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn an_outage_shorter_than_the_remaining_life_is_not_felt() {
    for _ in 0..20 {
        let (ca, store) = setup(Duration::ZERO);
        store.want(set(&["cart"]));
        let first = store.wait(&id("cart"), SOON).await.unwrap();
        ca.set_down(true);
        for _ in 0..45 {
            sleep(Duration::from_secs(1)).await;
            store.get(&id("cart")).unwrap();
        }
        let info = store.infos().remove(0);
        assert!(info.error.unwrap().contains("the test switched it off"));
        ca.set_down(false);
        for _ in 0..60 {
            sleep(Duration::from_secs(1)).await;
            store.get(&id("cart")).unwrap();
        }
        assert!(!Arc::ptr_eq(&first, &store.get(&id("cart")).unwrap()));
        assert_eq!(store.infos().remove(0).error, None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_long_outage_ends_in_a_refusal_that_says_since_when() {
    let (ca, store) = setup(Duration::ZERO);
    store.want(set(&["cart"]));
    let first = store.wait(&id("cart"), SOON).await.unwrap();
    ca.set_down(true);
    sleep(Duration::from_secs(70)).await;
    let error = store.get(&id("cart")).unwrap_err().to_string();
    let expected = format!(
        "no certificate for spiffe://cluster.local/ns/shop/sa/cart: expired since {} and not renewed: \
         the CA cannot be reached: the test switched it off",
        date(first.not_after())
    );
    assert_eq!(error, expected);
    ca.set_down(false);
    store.wait(&id("cart"), Duration::from_secs(200)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn failures_back_off_per_identity() {
    let (ca, store) = setup(Duration::ZERO);
    ca.set_down(true);
    store.want(set(&["cart"]));
    let error = store.wait(&id("cart"), Duration::from_secs(2)).await.unwrap_err().to_string();
    assert!(error.contains("the test switched it off"), "{error}");
    sleep(Duration::from_secs(598)).await;
    // 0.5 s doubled to 150 s: the tenth at 255.5 s, then every 150 s, each ± 20 %.
    assert!((10..=14).contains(&ca.calls()), "{}", ca.calls());
    let before = ca.calls();
    store.want(set(&["cart", "store"]));
    ca.set_down(false);
    store.wait(&id("store"), Duration::from_millis(1)).await.unwrap();
    assert_eq!(ca.calls(), before + 1, "the new identity does not wait for the other's back-off");
}

#[tokio::test(start_paused = true)]
async fn a_ca_that_never_answers_does_not_hold_others_up() {
    let (ca, store) = setup(Duration::from_secs(3600));
    let names: Vec<String> = (0..9).map(|number| format!("sa-{number}")).collect();
    store.want(names.iter().map(|name| id(name)).collect());
    sleep(Duration::from_secs(31)).await;
    assert!(ca.calls() > PARALLEL_FETCHES, "permits come back");
    let error = store.infos().into_iter().find_map(|info| info.error).unwrap();
    assert_eq!(error, "the CA cannot be reached: no answer within 30 seconds");
}

#[tokio::test(start_paused = true)]
async fn subscribers_hear_of_every_change() {
    let (_ca, store) = setup(Duration::ZERO);
    let mut changes = store.subscribe();
    store.want(set(&["cart"]));
    changes.changed().await.unwrap();
    store.wait(&id("cart"), SOON).await.unwrap();
    changes.borrow_and_update();
    tokio::time::timeout(Duration::from_secs(34), changes.changed()).await.expect("a renewal").unwrap();
}

#[tokio::test(start_paused = true)]
async fn dropping_the_last_clone_ends_the_renewals() {
    let (ca, store) = setup(Duration::ZERO);
    store.want(set(&["cart"]));
    store.wait(&id("cart"), SOON).await.unwrap();
    let clone = store.clone();
    drop(store);
    sleep(Duration::from_secs(34)).await;
    assert_eq!(ca.calls(), 2, "a clone keeps them going");
    let mut changes = clone.subscribe();
    drop(clone);
    // The sender of the changes goes when the last task has let go of the shared state.
    while changes.changed().await.is_ok() {}
    assert_eq!(Arc::strong_count(&ca), 1);
    sleep(Duration::from_secs(600)).await;
    assert_eq!(ca.calls(), 2);
}

/// A CA that answers with what the test prepared, whatever was asked.
struct Stubborn(Box<Answer>);

type Answer = dyn Fn(&str, &Identity) -> SignedCertificate + Send + Sync;

impl CaClient for Stubborn {
    fn sign<'a>(
        &'a self,
        csr_pem: &'a str,
        identity: &'a Identity,
    ) -> Pin<Box<dyn Future<Output = Result<SignedCertificate, IdentityError>> + Send + 'a>> {
        Box::pin(std::future::ready(Ok((self.0)(csr_pem, identity))))
    }
}

async fn failure_of(answer: impl Fn(&str, &Identity) -> SignedCertificate + Send + Sync + 'static) -> String {
    let store = CertStore::new(Arc::new(Stubborn(Box::new(answer))), Handle::current());
    store.want(set(&["cart"]));
    let mut changes = store.subscribe();
    while store.infos()[0].error.is_none() {
        changes.changed().await.unwrap();
    }
    store.get(&id("cart")).unwrap_err().to_string()
}

#[tokio::test]
async fn answers_that_do_not_fit_the_request_are_not_used() {
    let now = || (SystemTime::now(), LIFETIME);
    let ca = TestCa::new();
    let error = failure_of(move |csr_pem, _| ca.sign(csr_pem, &id("other"), now())).await;
    assert!(error.contains("it is for spiffe://cluster.local/ns/shop/sa/other, but"), "{error}");
    let ca = TestCa::new();
    let error = failure_of(move |_, identity| SignedCertificate {
        chain_pem: vec![ca.issue(identity).chain_pem],
        roots_pem: vec![ca.root_pem()],
    })
    .await;
    assert!(error.contains("does not belong to the private key"), "{error}");
    let ca = TestCa::new();
    let error = failure_of(move |csr_pem, identity| SignedCertificate {
        roots_pem: vec![TestCa::new().root_pem()],
        ..ca.sign(csr_pem, identity, now())
    })
    .await;
    assert!(error.contains("did another CA with the name of ours issue it?"), "{error}");
    let ca = TestCa::new();
    let error = failure_of(move |_, identity| SignedCertificate {
        chain_pem: vec![ca.issue_wrong(identity, Wrong::Expired).chain_pem],
        roots_pem: vec![ca.root_pem()],
    })
    .await;
    assert!(error.contains("expired at 2"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_wall_clock_that_jumps_ahead_renews_at_once() {
    let ahead = Arc::new(Mutex::new(Duration::ZERO));
    let (base, jump) = (virtual_clock(), Arc::clone(&ahead));
    let clock: Clock = Arc::new(move || base() + *jump.lock().unwrap());
    let issuing = Arc::clone(&clock);
    let ca = TestCa::new();
    let day = Duration::from_hours(24);
    let answer = move |csr_pem: &str, identity: &Identity| ca.sign(csr_pem, identity, (issuing(), day));
    let client = Arc::new(Stubborn(Box::new(answer)));
    let store = CertStore::with_clock(client, &Handle::current(), Vec::new(), clock);
    store.want(set(&["cart"]));
    let first = store.wait(&id("cart"), SOON).await.unwrap();
    // Suspended for two days: tokio's clock has stood still.
    *ahead.lock().unwrap() = 2 * day;
    assert!(store.get(&id("cart")).unwrap_err().to_string().contains("expired since"));
    let second = store.wait(&id("cart"), Duration::from_secs(61)).await.unwrap();
    assert!(second.not_after() > first.not_after());
}

/// A store whose clock differs from the CA's; the answer to the first request.
async fn with_a_clock(
    change: impl Fn(SystemTime) -> SystemTime + Send + Sync + 'static,
) -> Result<(), String> {
    let ca = TestCa::new();
    let answer =
        move |csr_pem: &str, identity: &Identity| ca.sign(csr_pem, identity, (SystemTime::now(), LIFETIME));
    let clock: Clock = Arc::new(move || change(SystemTime::now()));
    let client = Arc::new(Stubborn(Box::new(answer)));
    let store = CertStore::with_clock(client, &Handle::current(), Vec::new(), clock);
    store.want(set(&["cart"]));
    let mut changes = store.subscribe();
    loop {
        let info = store.infos().remove(0);
        match (info.not_after, info.error) {
            (Some(_), _) => return Ok(()),
            (None, Some(error)) => return Err(error),
            (None, None) => changes.changed().await.unwrap(),
        }
    }
}

#[tokio::test]
async fn a_clock_that_is_a_little_off_does_no_harm_and_one_that_is_far_off_is_named() {
    with_a_clock(|now| now - Duration::from_secs(50)).await.unwrap();
    with_a_clock(|now| now + Duration::from_secs(50)).await.unwrap();
    let error = with_a_clock(|now| now - Duration::from_secs(300)).await.unwrap_err();
    assert!(error.contains("is not valid before 2") && error.contains("do the clocks"), "{error}");
    let error = with_a_clock(|now| now + Duration::from_secs(300)).await.unwrap_err();
    assert!(error.contains("expired at 2"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn roots_that_are_given_are_trusted_besides_those_of_answers() {
    let (_ca, store) = setup(Duration::ZERO);
    let (given, other) = (TestCa::new(), TestCa::new());
    store.trust(&given.root_pem()).unwrap();
    assert_eq!(store.trusted_roots(), [], "nothing is trusted before there is a certificate");
    store.want(set(&["cart"]));
    let hbone = store.wait(&id("cart"), SOON).await.unwrap();
    assert_eq!(store.trusted_roots().len(), 2);
    let peer = given.hbone(&id("store"));
    assert!(crate::tls::tests::believes(&hbone, &peer));
    assert!(!crate::tls::tests::believes(&hbone, &other.hbone(&id("store"))));
    // The same configuration, made before, trusts what is given now.
    store.trust(&format!("{}{}", given.root_pem(), other.root_pem())).unwrap();
    assert_eq!(store.trusted_roots().len(), 3);
    assert!(crate::tls::tests::believes(&hbone, &other.hbone(&id("store"))));
    for bad in ["", "garbage", "-----BEGIN CERTIFICATE-----"] {
        store.trust(bad).unwrap_err();
        assert_eq!(store.trusted_roots().len(), 3, "what is no bundle changes nothing");
    }
    let root = store.trusted_roots().remove(0);
    assert_eq!(root.fingerprint.len(), 16);
    assert!(root.subject.contains("test root"), "{root:?}");
}

#[tokio::test(start_paused = true)]
async fn a_file_of_roots_is_followed() {
    let (_ca, store) = setup(Duration::ZERO);
    store.want(set(&["cart"]));
    store.wait(&id("cart"), SOON).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("root-cert.pem");
    store.follow_roots(&path);
    let roots = async |content: &str| {
        std::fs::write(&path, content).unwrap();
        sleep(Duration::from_secs(6)).await;
        store.trusted_roots().len()
    };
    let given = TestCa::new().root_pem();
    assert_eq!(roots(&given).await, 2);
    assert_eq!(roots("garbage").await, 2);
    assert_eq!(roots(&format!("{given}{}", TestCa::new().root_pem())).await, 3);
    std::fs::remove_file(&path).unwrap();
    sleep(Duration::from_secs(6)).await;
    assert_eq!(store.trusted_roots().len(), 3);
}
