//! The command line against a real API server, without a node: what it says about a cluster in which nothing, or only
//! half of it, is installed, and about ways to a cluster that lead nowhere.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests fail as tests do"
)]

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;
use weft_kubernetes_tests::{ControlPlane, ControlPlaneOptions, free_port};

/// Whoever waits longer than this for an error thinks that the command hangs.
const PATIENCE: Duration = Duration::from_secs(60);

fn weft() -> PathBuf {
    let test = std::env::current_exe().expect("a test has a path");
    let target = test.parent().and_then(Path::parent).expect("a test is below the target directory");
    let weft = target.join("weft");
    assert!(weft.is_file(), "{} is missing; build it with `cargo build -p weft`", weft.display());
    weft
}

/// Runs a command of `weft` with the kubeconfig of somebody.
fn run(kubeconfig: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(weft());
    command
        .args(args)
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .env_remove("KUBECONFIG")
        .env("HOME", "/nonexistent");
    command.output().expect("weft runs")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{error}: {}{}", String::from_utf8_lossy(&output.stdout), said(output))
    })
}

/// The check of that name; a message and an outcome.
fn check(report: &Value, name: &str) -> (String, String) {
    let groups = report["groups"].as_array().expect("groups");
    let mut checks = groups.iter().flat_map(|group| group["checks"].as_array().expect("checks"));
    let check = checks.find(|check| check["name"] == name);
    let check = check.unwrap_or_else(|| panic!("no check {name} in {report}"));
    let text = |key: &str| check[key].as_str().unwrap_or_default().to_owned();
    (text("outcome"), text("message"))
}

fn crds() -> String {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/crds");
    let mut files: Vec<_> =
        std::fs::read_dir(&dir).expect("deploy/crds").map(|entry| entry.expect("an entry").path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    let texts: Vec<String> =
        files.iter().map(|path| std::fs::read_to_string(path).expect("a file of deploy/crds")).collect();
    texts.join("\n---\n")
}

/// One control plane for all: an empty cluster first, then one with more and more in it.
#[test]
fn the_command_line_tells_what_is_wrong_with_a_cluster() {
    let Some(plane) = ControlPlane::start(ControlPlaneOptions::default()).expect("a control plane") else {
        return;
    };
    let _ = plane.kubectl(&["create", "namespace", "weft-system"]).expect("a namespace");
    an_empty_cluster(&plane);
    ways_that_lead_nowhere(&plane);
    people_without_permissions(&plane);
    mistakes_in_live_objects(&plane);
    a_plugin_of_kubectl(&plane);
    agents_that_do_not_run(&plane);
    a_report_without_secrets(&plane);
}

fn an_empty_cluster(plane: &ControlPlane) {
    let output = run(plane.kubeconfig(), &["check", "-o", "json"]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let report = json(&output);
    assert_eq!(check(&report, "api-server").0, "ok");
    assert_eq!(check(&report, "clock").0, "ok");
    assert_eq!(check(&report, "may-ask").0, "ok");
    let (outcome, message) = check(&report, "definitions");
    assert!(outcome == "warning" && message.contains("PeerAuthentication"), "{message}");
    let (outcome, message) = check(&report, "daemonset");
    assert!(outcome == "error" && message.contains("not installed"), "{message}");

    let pre = run(plane.kubeconfig(), &["check", "--pre", "--fail-on", "error", "-o", "json"]);
    assert_eq!((pre.status.code(), check(&json(&pre), "may-install").0.as_str()), (Some(0), "ok"));

    let text = run(plane.kubeconfig(), &["check"]);
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.contains("× Weft is not installed") && text.contains("weft install"), "{text}");
    assert!(!text.contains('\u{1b}'), "no colours in a pipe: {text}");

    for command in [&["status"][..], &["dump"], &["explain", "--from", "a/b", "--to", "c:80"]] {
        let output = run(plane.kubeconfig(), command);
        assert_eq!(output.status.code(), Some(2), "{command:?}");
        assert!(
            said(&output).contains("not installed") && said(&output).contains("weft install"),
            "{}",
            said(&output)
        );
    }
    let waited = run(plane.kubeconfig(), &["check", "--wait", "--timeout", "1"]);
    assert_eq!(waited.status.code(), Some(1));
    assert!(said(&waited).contains("waiting: Weft is not installed"), "{}", said(&waited));
}

fn ways_that_lead_nowhere(plane: &ControlPlane) {
    let good = std::fs::read_to_string(plane.kubeconfig()).expect("a kubeconfig");
    let dir = plane.dir();
    let file = |name: &str, text: &str| {
        let path = dir.join(name);
        std::fs::write(&path, text).expect("the directory of the control plane can be written");
        path
    };
    // A port that nobody listens on.
    let closed = format!("https://127.0.0.1:{}", free_port().expect("a port"));
    let absent = file("absent.kubeconfig", &good.replace(plane.url(), &closed));
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!("https://{}", silent.local_addr().expect("an address"));
    let silent_config = file("silent.kubeconfig", &good.replace(plane.url(), &address));
    let garbage = file("garbage.kubeconfig", "{{{");
    let stranger = plane.kubeconfig_for_token("nonsense");
    for (kubeconfig, args, wanted) in [
        (dir.join("no-such-file"), &["status"][..], "no-such-file"),
        (garbage, &["status"], "garbage.kubeconfig"),
        (plane.kubeconfig().to_owned(), &["status", "--context", "nowhere"], "nowhere"),
        (absent.clone(), &["status"], "does not answer"),
        (absent, &["analyze"], "kubectl cluster-info"),
        (silent_config, &["check"], "deadline has elapsed"),
        (stranger, &["status"], "does not accept these credentials"),
    ] {
        let began = Instant::now();
        let output = run(&kubeconfig, args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", said(&output));
        assert!(said(&output).contains(wanted), "{args:?} with {}: {}", kubeconfig.display(), said(&output));
        assert!(began.elapsed() < PATIENCE, "{args:?} took {:?}", began.elapsed());
    }
    let nothing =
        Command::new(weft()).args(["analyze"]).env_remove("KUBECONFIG").env("HOME", "/nonexistent").output();
    let nothing = nothing.expect("weft runs");
    assert!(
        nothing.status.code() == Some(2) && said(&nothing).contains("--kubeconfig"),
        "{}",
        said(&nothing)
    );
}

fn people_without_permissions(plane: &ControlPlane) {
    let nobody = plane.kubeconfig_for("nobody", &[]);
    let output = run(&nobody, &["check", "-o", "json"]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let (outcome, message) = check(&json(&output), "may-ask");
    assert!(outcome == "error" && message.contains("create pods/exec in weft-system"), "{message}");
    let output = run(&nobody, &["status"]);
    assert!(
        output.status.code() == Some(2) && said(&output).contains("you may not read"),
        "{}",
        said(&output)
    );
}

const PLANTED: &str = r"
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {selector: {app: cart}, ports: [{name: http, port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: cart, namespace: shop}
spec: {hosts: [cart], http: [{route: [{destination: {host: cart, subset: v9}}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop, labels: {weft.dev/mesh: enabled}}
spec: {serviceAccountName: default, automountServiceAccountToken: false, containers: [{name: a, image: a}]}
";

const MENDED: &str = r"
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: cart, namespace: shop}
spec: {host: cart, subsets: [{name: v9, labels: {version: v9}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: cart, namespace: shop}
spec: {hosts: [cart], http: [{route: [{destination: {host: cart}}]}]}
";

fn codes(output: &Output) -> Vec<(String, String)> {
    let findings = json(output);
    let findings = findings["findings"].as_array().expect("findings").clone();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    findings.iter().map(|finding| (text(&finding["code"]), text(&finding["object"]["name"]))).collect()
}

fn mistakes_in_live_objects(plane: &ControlPlane) {
    plane.apply(&crds()).expect("the definitions");
    let until = Instant::now() + PATIENCE;
    while let Err(error) = plane.kubectl(&["get", "virtualservices,destinationrules", "-A"]) {
        assert!(Instant::now() < until, "the definitions are not served: {error:#}");
    }
    plane.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n").expect("a namespace");
    plane
        .apply("apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: default, namespace: shop}\n")
        .expect("an account");
    plane.apply(PLANTED).expect("the planted mistake");

    let planted = ("IST0101".to_owned(), "cart".to_owned());
    let output = run(plane.kubeconfig(), &["analyze", "-o", "json"]);
    assert!(output.status.code() == Some(1) && codes(&output).contains(&planted), "{}", json(&output));
    let elsewhere = run(plane.kubeconfig(), &["analyze", "-o", "json", "-n", "weft-system"]);
    assert!(!codes(&elsewhere).contains(&planted), "{}", json(&elsewhere));
    let all = run(plane.kubeconfig(), &["analyze", "-o", "json", "-A", "--fail-on", "error"]);
    assert!(codes(&all).contains(&planted));

    // The same with files on top: the mistake is mended in one of them.
    let file = plane.dir().join("mended.yaml");
    std::fs::write(&file, MENDED).expect("a file");
    let path = file.display().to_string();
    let mended = run(plane.kubeconfig(), &["analyze", "--config", &path, "--with-cluster", "-o", "json"]);
    assert!(!codes(&mended).contains(&planted), "{}", json(&mended));
    assert!(json(&mended)["objects"]["read"].as_u64().expect("a number") > 5, "{}", json(&mended));

    // And explained from the objects alone, without any agent.
    let question =
        ["explain", "--from-cluster", "--from", "shop/client", "--to", "http://cart/", "-o", "json"];
    let explained = run(plane.kubeconfig(), &question);
    let answer = json(&explained);
    assert_eq!(answer["route"]["object"]["name"], "cart", "{answer}");
}

fn a_plugin_of_kubectl(plane: &ControlPlane) {
    let dir = plane.dir().join("plugins");
    std::fs::create_dir_all(&dir).expect("a directory");
    for name in ["kubectl-weft", "kubectl_complete-weft"] {
        std::os::unix::fs::symlink(weft(), dir.join(name)).expect("a link");
    }
    let path = format!("{}:{}", dir.display(), std::env::var("PATH").unwrap_or_default());
    let kubectl = |args: &[&str]| {
        let mut command = Command::new(plane.programs().join("kubectl"));
        command
            .args(args)
            .env("PATH", &path)
            .env("KUBECONFIG", plane.kubeconfig())
            .output()
            .expect("kubectl runs")
    };
    let output = kubectl(&["weft", "check", "--pre", "-o", "json"]);
    assert_eq!(check(&json(&output), "api-server").0, "ok");
    // A plugin is about clusters, whatever runs on this machine.
    let output = kubectl(&["weft", "status"]);
    assert!(said(&output).contains("not installed"), "{}", said(&output));
    let help = kubectl(&["weft", "status", "--help"]);
    assert!(String::from_utf8_lossy(&help.stdout).contains("kubectl weft status"), "{help:?}");
    let completed = kubectl(&["__complete", "weft", "stat"]);
    let completed = String::from_utf8_lossy(&completed.stdout).into_owned();
    assert!(completed.starts_with("status\t"), "{completed}");
}

const INSTALLED: &str = r"
apiVersion: v1
kind: ServiceAccount
metadata: {name: default, namespace: weft-system}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: weft-agent, namespace: weft-system}
spec:
  selector: {matchLabels: {app: weft-agent}}
  template:
    metadata: {labels: {app: weft-agent}}
    spec:
      containers:
      - {name: agent, image: weft, args: [agent], env: [{name: SOMETHING, value: plantedInTheEnvironment}]}
---
apiVersion: v1
kind: Pod
metadata: {name: weft-agent-x, namespace: weft-system, labels: {app: weft-agent}}
spec: {nodeName: worker, automountServiceAccountToken: false, containers: [{name: agent, image: weft}]}
---
apiVersion: v1
kind: Secret
metadata: {name: weft-ca, namespace: weft-system}
stringData: {ca-key.pem: plantedInTheSecret}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: weft, namespace: weft-system}
data: {mesh: 'defaultConfig: {tracing: {lightstep: {accessToken: plantedInTheMeshConfig}}}'}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: secrets, namespace: shop}
spec: {hosts: [secrets], http: [{headers: {request: {set: {authorization: 'Bearer plantedInTheRoute'}}}, route: [{destination: {host: cart}}]}]}
";

fn agents_that_do_not_run(plane: &ControlPlane) {
    plane
        .apply("apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: default, namespace: weft-system}\n")
        .expect("an account");
    plane.apply(INSTALLED).expect("half an installation");
    let output = run(plane.kubeconfig(), &["status", "-o", "json"]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let status = json(&output);
    assert_eq!(status["silent"][0]["node"], "worker", "{status}");
    assert!(status["silent"][0]["error"].as_str().expect("why").contains("Pending"), "{status}");
    let text = run(plane.kubeconfig(), &["status"]);
    assert!(String::from_utf8_lossy(&text.stdout).contains("NODE WITHOUT AN ANSWER"), "{text:?}");

    let report = json(&run(plane.kubeconfig(), &["check", "-o", "json"]));
    for (name, words) in [
        ("daemonset", "wants no node"),
        ("controller", "no Deployment weft-controller"),
        ("ca-service", "no ready endpoint"),
        ("root-certificate", "no ConfigMap weft-ca-root-cert"),
        ("agents-answer", "worker (weft-agent-x)"),
    ] {
        let (outcome, message) = check(&report, name);
        assert!(outcome == "error" && message.contains(words), "{name}: {message}");
    }
    assert_eq!(check(&report, "ca-secret").0, "ok");

    let nowhere = run(plane.kubeconfig(), &["status", "--node", "elsewhere"]);
    assert!(
        nowhere.status.code() == Some(2) && said(&nowhere).contains("no agent runs on the node elsewhere")
    );
    let question = ["explain", "--from", "shop/client", "--to", "http://cart/"];
    let explained = run(plane.kubeconfig(), &question);
    assert!(
        explained.status.code() == Some(2) && said(&explained).contains("--from-cluster"),
        "{}",
        said(&explained)
    );
}

fn a_report_without_secrets(plane: &ControlPlane) {
    let file = plane.dir().join("report.tar.gz");
    let path = file.display().to_string();
    let output = run(plane.kubeconfig(), &["bug-report", "--file", &path]);
    // The agent does not run, and the report says so.
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("missing: the agent of worker"), "{}", said(&output));
    let text = unpack(&file);
    for wanted in [
        "objects/daemonsets.json",
        "objects/events.json",
        "rules/virtualservices",
        "check.txt",
        "missing.txt",
    ] {
        assert!(text.contains(wanted), "{wanted} is not in the report");
    }
    assert!(text.contains("\"weft-agent\"") && !text.contains("planted"), "a secret is in the report");
    let again = run(plane.kubeconfig(), &["bug-report", "--file", &path]);
    assert!(again.status.code() == Some(2) && said(&again).contains("--file"), "{}", said(&again));
}

/// Names and contents of all files of an archive, one after the other.
fn unpack(file: &Path) -> String {
    let tar = Command::new("tar").args(["-xzOf"]).arg(file).output().expect("tar runs");
    let names = Command::new("tar").args(["-tzf"]).arg(file).output().expect("tar runs");
    let mut text = String::new();
    for mut part in [names.stdout.as_slice(), tar.stdout.as_slice()] {
        part.read_to_string(&mut text).expect("text");
    }
    text
}
