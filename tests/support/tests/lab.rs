//! The lab itself: its network, its servers and clients, and that nothing of it stays behind.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "helpers of tests fail by panicking"
)]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use weft_lab::{Capture, Lab, LabId, LabSpec, PodSpec, eventually, mount_point};

fn skip_without_root() -> bool {
    let root = Path::new("/proc/self/status").exists()
        && std::fs::read_to_string("/proc/self/status").unwrap().lines().any(|l| l.starts_with("Uid:\t0\t"));
    if !root {
        eprintln!("SKIPPED: network namespaces need root; run the tests with sudo");
    }
    !root
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_else(|| panic!("{value} has no text {key}"))
}

/// Paths of everything that exists for a lab.
fn traces(id: &LabId) -> Vec<String> {
    let cgroup = mount_point().unwrap().join(id.cgroup_name());
    let mut found: Vec<String> =
        [id.run_dir(), cgroup].iter().filter(|p| p.exists()).map(|p| p.display().to_string()).collect();
    let names = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    found.extend(names.filter(|name| name.starts_with(&id.netns_name(""))));
    found
}

#[test]
fn pods_reach_each_other_and_leave_nothing_behind() {
    if skip_without_root() {
        return;
    }
    let spec = LabSpec::new().node("a").node("b");
    let pods = [("a", "client"), ("a", "near"), ("b", "far")];
    let spec = pods.iter().fold(spec, |spec, (node, name)| spec.pod(PodSpec::new(node, "default", name)));
    let lab = Lab::new(&spec).unwrap();
    let client = lab.pod("default/client").unwrap();
    let far = lab.pod("default/far").unwrap();
    let near = lab.pod("default/near").unwrap();
    let services =
        ["echo:7", "http:80", "who:9", "server-first:25", "sink:5", "drain:10", "reset:11", "urgent:12"];
    let _servers = [far.serve(&services).unwrap(), near.serve(&services).unwrap()];
    for pod in [far, near] {
        for address in [format!("{}", pod.ipv4()), format!("[{}]", pod.ipv6())] {
            let who = client.peer(&["connect", &format!("{address}:9"), "--half-close"]).unwrap();
            assert!(
                text(&who, "received").contains(text(&who, "local")),
                "the source address is kept: {who}"
            );
            let got = client.peer(&["get", &format!("http://{address}:80/")]).unwrap();
            assert_eq!(text(&got, "outcome"), "ok", "{got}");
            let echoed = client.peer(&["echo", &format!("{address}:7"), "--bytes", "3000000"]).unwrap();
            assert_eq!(echoed["bytes"], 3_000_000);
        }
    }
    let outside = lab.outside().peer(&["get", &format!("http://[{}]:80/", far.ipv6())]).unwrap();
    assert!(
        outside["body"]["peer"].as_str().unwrap().contains(&lab.outside().ipv6().to_string()),
        "{outside}"
    );
    client_kinds(client, far);
    let id = lab.id().clone();
    lab.finish().unwrap();
    assert_eq!(traces(&id), Vec::<String>::new());
}

fn client_kinds(client: &weft_lab::Pod, far: &weft_lab::Pod) {
    let at = |port: u16| format!("{}:{port}", far.ipv4());
    let drained = client.peer(&["connect", &at(10), "--send", "hello", "--half-close"]).unwrap();
    assert_eq!(text(&drained, "received").trim(), "{\"drained\":5}");
    let reset = client.peer(&["connect", &at(11), "--send", "x"]).unwrap();
    assert_eq!(text(&reset, "outcome"), "reset");
    let closed = client.peer(&["connect", &at(99)]).unwrap();
    assert_eq!(text(&closed, "outcome"), "refused");
    let urgent = client.peer(&["urgent", &at(12)]).unwrap();
    assert_eq!(
        (text(&urgent["seen"], "stream"), &urgent["seen"]["urgent"]),
        ("beforeafter", &Value::from(1))
    );
    let mapped = client.peer(&["connect", &at(25), "--mapped", "--expect", "9"]).unwrap();
    assert_eq!(text(&mapped, "received").trim(), "220 ready");
    let bulk = client.peer(&["load", "bulk", &at(5), "-n", "4", "--seconds", "0.2"]).unwrap();
    assert!(bulk["bytes"].as_u64().unwrap() > 0, "{bulk}");
    let http = client.peer(&["load", "http", &at(80), "-n", "8", "--seconds", "0.2"]).unwrap();
    assert!(http["requests"].as_u64().unwrap() > 0, "{http}");
    let churn = client.peer(&["churn", &at(7), "--count", "50"]).unwrap();
    assert_eq!(churn["ok"], 50, "{churn}");
}

#[test]
fn captures_show_what_is_on_the_wire() {
    if skip_without_root() {
        return;
    }
    let spec = LabSpec::new().node("a").node("b");
    let spec = spec.pod(PodSpec::new("a", "default", "client")).pod(PodSpec::new("b", "default", "far"));
    let lab = Lab::new(&spec).unwrap();
    let (client, far) = (lab.pod("default/client").unwrap(), lab.pod("default/far").unwrap());
    let _server = far.serve(&["echo:7"]).unwrap();
    let capture = Capture::start(&lab.node("a").unwrap().place(), "to-1").unwrap();
    for address in [format!("{}:7", far.ipv4()), format!("[{}]:7", far.ipv6())] {
        client.peer(&["connect", &address, "--send", "marker-of-the-payload", "--half-close"]).unwrap();
    }
    eventually(Duration::from_secs(30), "both connections are captured", || {
        capture.so_far().unwrap().tls_on_port(7).other_streams == 4
    })
    .unwrap();
    let captured = capture.stop().unwrap();
    assert!(captured.contains("marker-of-the-payload"));
    assert!(!captured.contains("something else"));
    assert_eq!(captured.tls_on_port(7).tls_streams, 0);
}

#[test]
fn a_lab_whose_owner_was_killed_is_removed_by_its_janitor() {
    if skip_without_root() {
        return;
    }
    let mut owner = Command::new(env!("CARGO_BIN_EXE_lab-peer"))
        .arg("lab")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(owner.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let said: Value = serde_json::from_str(&line).unwrap();
    let id = LabId::parse(text(&said, "lab")).unwrap();
    assert!(!traces(&id).is_empty());
    owner.kill().unwrap();
    owner.wait().unwrap();
    eventually(Duration::from_secs(60), "the janitor has removed the lab", || traces(&id).is_empty())
        .unwrap();
}
