//! The command line as a process: exit statuses, and what goes to which output.

#![allow(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use std::path::Path;
use std::process::{Command, Output, Stdio};

const POLICY: &str = r"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody, namespace: shop}
spec: {}
";

const MESH: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: cart, namespace: shop, labels: {weft.dev/mesh: enabled}}
spec: {nodeName: a, serviceAccountName: cart}
status: {podIPs: [{ip: 10.0.0.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: stock, namespace: shop, labels: {weft.dev/mesh: enabled}}
spec: {nodeName: b, serviceAccountName: stock}
status: {podIPs: [{ip: 10.0.1.1}]}
";

fn weft(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_weft")).args(args).stdin(Stdio::null()).output().unwrap()
}

fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn explain_for_people() {
    let dir = directory(&[("mesh.yaml", MESH), ("policy.yaml", POLICY)]);
    let output =
        weft(&["explain", "--config", text(dir.path()), "--from", "shop/cart", "--to", "10.0.1.1:80"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    insta::assert_snapshot!(stdout(&output));
}

const SPLIT: &str = r"
apiVersion: v1
kind: Service
metadata: {name: stock, namespace: shop}
spec:
  clusterIP: 10.96.0.1
  clusterIPs: [10.96.0.1]
  selector: {app: stock}
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Pod
metadata: {name: stock-v1, namespace: shop, labels: {weft.dev/mesh: enabled, app: stock, version: v1}}
spec: {nodeName: a, serviceAccountName: stock}
status: {podIPs: [{ip: 10.0.0.2}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: stock, namespace: shop}
spec: {host: stock, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: stock, namespace: shop}
spec:
  hosts: [stock]
  http:
  - match: [{uri: {prefix: /gone}}]
    redirect: {uri: /}
  - route:
    - {destination: {host: stock, subset: v1}, weight: 90}
    - {destination: {host: stock, subset: v2}, weight: 10}
    headers: {request: {set: {x-by: mesh}}, response: {remove: [server]}}
    timeout: 1s
";

#[test]
fn explain_a_request_for_people() {
    let dir = directory(&[("mesh.yaml", MESH), ("split.yaml", SPLIT)]);
    let ask = |path: &str| {
        let to = format!("http://stock{path}");
        let args =
            ["explain", "--config", text(dir.path()), "--from", "shop/cart", "--to", &to, "-H", "x-a: b"];
        let output = weft(&args);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        stdout(&output)
    };
    insta::assert_snapshot!("explain_a_request", ask("/x?y"));
    insta::assert_snapshot!("explain_a_redirect", ask("/gone/by"));
}

#[test]
fn a_denial_is_bad_news_only_when_asked() {
    let dir = directory(&[("mesh.yaml", MESH), ("policy.yaml", POLICY)]);
    let args =
        ["explain", "--config", text(dir.path()), "--from", "shop/cart", "--to", "10.0.1.1:80", "-o", "json"];
    assert_eq!(weft(&args).status.code(), Some(0));
    let strict: Vec<&str> = args.iter().copied().chain(["--fail-on-deny"]).collect();
    assert_eq!(weft(&strict).status.code(), Some(1));
}

#[test]
fn yaml_says_the_same_as_json() {
    let dir = directory(&[("mesh.yaml", MESH)]);
    let ask = |output: &str| {
        weft(&[
            "explain",
            "--config",
            text(dir.path()),
            "--from",
            "shop/cart",
            "--to",
            "10.0.1.1:80",
            "--output",
            output,
        ])
    };
    let json: serde_json::Value = serde_json::from_str(&stdout(&ask("json"))).unwrap();
    let yaml: serde_json::Value = serde_saphyr::from_str(&stdout(&ask("yaml"))).unwrap();
    assert_eq!(json, yaml);
    assert_eq!(json["verdict"], "allow");
}

#[test]
fn analyze_reports_and_ends_with_the_worst() {
    let fine = directory(&[("mesh.yaml", MESH)]);
    assert_eq!(weft(&["analyze", "--config", text(fine.path())]).status.code(), Some(0));

    let broken = directory(&[("mesh.yaml", MESH), ("broken.yaml", "a: [1\n")]);
    let output = weft(&["analyze", "--config", text(broken.path()), "-o", "json"]);
    assert_eq!(output.status.code(), Some(1));
    let json: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(json["objects"]["accepted"], 2);
    assert_eq!(json["objects"]["rejected"], 1);
    let finding = &json["findings"][0];
    assert_eq!(finding["severity"], "error");
    assert_eq!(finding["file"], "broken.yaml");
    assert_eq!(finding["document"], 1);
}

#[test]
fn standard_input_is_a_file_too() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_weft"))
        .args(["analyze", "--config", "-", "-o", "json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), MESH.as_bytes()).unwrap();
    let json: serde_json::Value = serde_json::from_str(&stdout(&child.wait_with_output().unwrap())).unwrap();
    assert_eq!(json["objects"]["read"], 2);
}

#[test]
fn what_cannot_run_ends_with_two_and_says_why() {
    for args in [
        &["explain", "--from", "a/b"][..],
        &["nonsense"],
        &["analyze", "--config", "/nonexistent/weft"],
        &["explain", "--config", "/nonexistent/weft", "--from", "a/b", "--to", "c:1"],
        &["status", "--socket", "/nonexistent/weft.sock"],
        &["cleanup", "--pod", "cart"],
    ] {
        let output = weft(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{args:?}");
    }
    assert_eq!(weft(&["--help"]).status.code(), Some(0));
}
