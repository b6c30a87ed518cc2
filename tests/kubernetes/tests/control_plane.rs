//! The control plane itself does what the other tests rely on.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use serde_json::Value;
use weft_kubernetes_tests::{ControlPlane, ControlPlaneOptions};
use weft_lab::{eventually, poll_until};

const LIMIT: Duration = Duration::from_secs(120);

const CRD: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: things.tests.weft.dev}
spec:
  group: tests.weft.dev
  names: {kind: Thing, listKind: ThingList, plural: things, singular: thing}
  scope: Namespaced
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
"#;

fn namespace(name: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n")
}

fn config_map(namespace: &str, name: &str) -> String {
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, namespace: {namespace}}}\n")
}

/// The first event of a watch of config maps from a resource version.
fn first_event(plane: &ControlPlane, namespace: &str, version: &str) -> Value {
    let path = format!(
        "/api/v1/namespaces/{namespace}/configmaps?watch=true&resourceVersion={version}&timeoutSeconds=20"
    );
    let mut watch = Watch::start(plane, &path);
    watch.next().expect("a watch from an old version says something")
}

struct Watch {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Watch {
    fn start(plane: &ControlPlane, path: &str) -> Self {
        let mut child = Command::new(plane.programs().join("kubectl"))
            .args(["get", &format!("--raw={path}")])
            .env("KUBECONFIG", plane.kubeconfig())
            .stdout(Stdio::piped())
            .spawn()
            .expect("kubectl runs");
        let lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        Self { child, lines }
    }

    fn next(&mut self) -> Option<Value> {
        serde_json::from_str(&self.lines.next()?.ok()?).ok()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn version_of(plane: &ControlPlane, namespace: &str, name: &str) -> String {
    let query = ["get", "configmap", "-n", namespace, name, "-o=jsonpath={.metadata.resourceVersion}"];
    plane.kubectl(&query).expect("it is there")
}

#[test]
fn objects_new_kinds_users_and_a_restart() {
    let options = ControlPlaneOptions { audit: true, ..ControlPlaneOptions::default() };
    let Some(plane) = ControlPlane::start(options).unwrap() else { return };
    plane.apply(&namespace("one")).unwrap();

    plane.apply(CRD).unwrap();
    let thing =
        "apiVersion: tests.weft.dev/v1\nkind: Thing\nmetadata: {name: t, namespace: one}\nspec: {a: 1}\n";
    eventually(LIMIT, "the new kind is served", || plane.apply(thing).is_ok()).unwrap();
    assert_eq!(plane.kubectl(&["get", "things", "-n=one", "t", "-o=jsonpath={.spec.a}"]).unwrap(), "1");

    nobody_may_read_and_it_is_written_down(&plane);
    a_token_is_its_account(&plane);

    plane.apply(&config_map("one", "before")).unwrap();
    let version = version_of(&plane, "one", "before");
    plane.apply(&config_map("one", "after")).unwrap();
    plane.kill_api_server();
    assert!(plane.kubectl(&["get", "--raw=/readyz"]).is_err());
    plane.start_api_server().unwrap();
    assert_ne!(version_of(&plane, "one", "after"), version, "etcd has kept everything");
    let event = first_event(&plane, "one", &version);
    assert_eq!(event.pointer("/object/code"), Some(&Value::from(410)), "{event}");
}

fn nobody_may_read_and_it_is_written_down(plane: &ControlPlane) {
    let nobody = plane.kubeconfig_for("nobody", &["strangers", "aliens"]);
    let refused =
        plane.kubectl_as(&nobody, &["get", "secrets", "-n=one"]).expect_err("it is refused").to_string();
    assert!(refused.contains("nobody"), "{refused}");
    let denial = |event: &Value| {
        event.pointer("/user/username") == Some(&Value::from("nobody"))
            && event.pointer("/responseStatus/code") == Some(&Value::from(403))
            && event.pointer("/objectRef/resource") == Some(&Value::from("secrets"))
    };
    // It is written down when the answer is on its way already.
    let written = || plane.audit_log().into_iter().find(denial).context("nothing is written down");
    let event = poll_until(LIMIT, written).expect("the refusal is written down");
    let groups = event.pointer("/user/groups").expect("it works").to_string();
    assert!(groups.contains("strangers") && groups.contains("aliens"), "{groups}");
}

fn a_token_is_its_account(plane: &ControlPlane) {
    plane.kubectl(&["create", "serviceaccount", "-n=one", "robot"]).expect("it works");
    let token = plane.kubectl(&["create", "token", "-n=one", "robot"]).expect("it works");
    let robot = plane.kubeconfig_for_token(token.trim());
    let said = plane.kubectl_as(&robot, &["auth", "whoami", "-o=jsonpath={.status.userInfo.username}"]);
    assert_eq!(said.expect("it works"), "system:serviceaccount:one:robot");
}

#[test]
fn a_compacted_etcd_forgets() {
    let options = ControlPlaneOptions { watch_cache: false, ..ControlPlaneOptions::default() };
    let Some(plane) = ControlPlane::start(options).unwrap() else { return };
    plane.apply(&namespace("one")).unwrap();
    plane.apply(&config_map("one", "before")).unwrap();
    let version = version_of(&plane, "one", "before");
    plane.apply(&config_map("one", "after")).unwrap();
    let event = first_event(&plane, "one", &version);
    assert_eq!(event.get("type"), Some(&Value::from("ADDED")), "not compacted yet: {event}");
    // The newest revision is kept, so a watch that needs only that one would go on.
    plane.apply(&config_map("one", "last")).unwrap();
    plane.compact_etcd().unwrap();
    let event = first_event(&plane, "one", &version);
    assert_eq!(event.pointer("/object/code"), Some(&Value::from(410)), "{event}");
}
