use std::fs;

use weft_core::resource::NamespacedName;

use super::*;
use crate::agent::node::PodState;

fn request() -> Request {
    Request {
        version: 1,
        command: Command::Add,
        container_id: "abc_1.2-3".into(),
        netns: "/var/run/netns/cni-1".into(),
        namespace: "shop".into(),
        pod: "web-1".into(),
        uid: Some("2c48913c-b29f-11e7-9350-020968147796".into()),
        ips: vec!["10.0.0.1".parse().unwrap()],
        keep: Vec::new(),
        patience_ms: 1000,
    }
}

#[test]
fn a_proper_request_is_taken_as_it_is() {
    let told = told(&request(), Path::new("/proc")).unwrap();
    assert_eq!(told.key(), NamespacedName::new("shop", "web-1"));
    assert_eq!(told.netns, Path::new("/var/run/netns/cni-1"));
}

#[test]
fn what_could_become_a_path_elsewhere_is_refused() {
    let refused = |change: fn(&mut Request)| {
        let mut request = request();
        change(&mut request);
        told(&request, Path::new("/proc")).unwrap_err()
    };
    for why in [
        refused(|request| request.container_id = String::new()),
        refused(|request| request.container_id = "../../etc/passwd".into()),
        refused(|request| request.container_id = ".hidden".into()),
        refused(|request| request.container_id = "a".repeat(129)),
        refused(|request| request.container_id = "a\0b".into()),
    ] {
        assert!(why.contains("container id"), "{why}");
    }
    for why in [
        refused(|request| request.namespace = "Shop".into()),
        refused(|request| request.namespace = String::new()),
        refused(|request| request.pod = "../web".into()),
        refused(|request| request.pod = "w".repeat(254)),
    ] {
        assert!(why.contains("name of the pod"), "{why}");
    }
    assert!(refused(|request| request.uid = Some("../x".into())).contains("uid"));
    assert!(refused(|request| request.netns = "relative".into()).contains("absolute"));
    assert!(refused(|request| request.netns = "/a\0b".into()).contains("absolute"));
    assert!(refused(|request| request.ips = vec!["127.0.0.1".parse().unwrap()]).contains("addresses"));
    assert!(refused(|request| request.ips = vec!["::".parse().unwrap()]).contains("addresses"));
}

#[test]
fn paths_of_the_node_are_found_where_the_agent_sees_them() {
    assert_eq!(visible("/proc/7/ns/net", Path::new("/host/proc")), Path::new("/host/proc/7/ns/net"));
    assert_eq!(visible("/nowhere/x", Path::new("/proc")), Path::new("/nowhere/x"));
    assert_eq!(visible("/run/netns/no-such", Path::new("/proc")), Path::new("/run/netns/no-such"));
}

const YAML: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {weft.dev/mesh: enabled}}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, uid: 2c48913c-b29f-11e7-9350-020968147796}
spec: {nodeName: a, containers: [{name: c, image: i}]}
---
apiVersion: v1
kind: Pod
metadata: {name: out-1, namespace: shop, uid: u-2, labels: {weft.dev/mesh: disabled}}
spec: {nodeName: a, containers: [{name: c, image: i}]}
---
apiVersion: v1
kind: Pod
metadata: {name: sidecar-1, namespace: shop, uid: u-3, annotations: {sidecar.istio.io/status: '{}'}}
spec: {nodeName: a, containers: [{name: c, image: i}]}
";

fn snapshot() -> Arc<Snapshot> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("all.yaml");
    fs::write(&path, YAML).unwrap();
    crate::config::load(&[path]).unwrap().snapshot
}

fn state(state: &'static str, netns: &str) -> NodeState {
    let pod = PodState {
        state,
        reason: Some("for a reason".into()),
        pending_since: None,
        netns: Some(netns.into()),
    };
    NodeState { pods: [(NamespacedName::new("shop", "web-1"), pod)].into(), ..NodeState::default() }
}

#[test]
fn a_pod_of_the_mesh_waits_until_it_is_enrolled_in_this_very_namespace() {
    let snapshot = snapshot();
    let told = told(&request(), Path::new("/proc")).unwrap();
    let stands = |state: &NodeState| standing(&told, &snapshot, state);
    assert!(matches!(stands(&NodeState::default()), Standing::Waits(_)));
    assert_eq!(stands(&state("failed", "/var/run/netns/cni-1")), Standing::Waits("for a reason".into()));
    assert!(matches!(stands(&state("enrolled", "/var/run/netns/former")), Standing::Waits(_)));
    let enrolled = Standing::Decided(Answer::new(Outcome::Enrolled));
    assert_eq!(stands(&state("enrolled", "/var/run/netns/cni-1")), enrolled);
}

#[test]
fn others_are_let_through_or_waited_for() {
    let snapshot = snapshot();
    let stands = |namespace: &str, pod: &str, uid: &str| {
        let request =
            Request { namespace: namespace.into(), pod: pod.into(), uid: Some(uid.into()), ..request() };
        let told = told(&request, Path::new("/proc")).unwrap();
        standing(&told, &snapshot, &NodeState::default())
    };
    assert_eq!(stands("shop", "out-1", "u-2"), Standing::Decided(Answer::new(Outcome::NotInMesh)));
    let Standing::Decided(answer) = stands("shop", "sidecar-1", "u-3") else { panic!("it is decided") };
    assert_eq!(answer.outcome, Outcome::NotInMesh);
    assert!(answer.reason.unwrap().contains("sidecar"));
    assert_eq!(stands("shop", "new-1", "u-9"), Standing::Unseen);
    assert_eq!(stands("shop", "web-1", "u-of-a-namesake"), Standing::Unseen);
    assert_eq!(stands("elsewhere", "new-1", "u-9"), Standing::Stranger);
}

#[test]
fn rules_name_the_namespaces_that_are_opted_in() {
    let rules = crate::agent::cni::follow::rules(&snapshot());
    assert!(rules.holds_back("shop", "whatever"));
    assert!(!rules.holds_back("elsewhere", "whatever"));
}

#[tokio::test]
async fn hostile_input_is_answered_or_dropped() {
    for garbage in [&b"\n"[..], b"hello\n", b"\xff\xfe\n", b"{\"version\":1}\n", b"{\"command\":\"add\""] {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(garbage).await.unwrap();
        theirs.shutdown().await.unwrap();
        assert!(read(&mut ours).await.unwrap().is_err(), "{garbage:?}");
    }
    let (mut ours, mut theirs) = UnixStream::pair().unwrap();
    let flood = tokio::spawn(async move {
        let junk = vec![b'['; 1 << 16];
        while theirs.write_all(&junk).await.is_ok() {}
    });
    assert!(read(&mut ours).await.unwrap().is_err());
    drop(ours);
    flood.await.unwrap();
}
