//! Pods and agents that come and go.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests fail as tests do"
)]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path as FilePath;
use std::time::Duration;

use weft_lab::{AgentOptions, LabSpec, Pod, PodSpec, Process, within};
use weft_netns_tests::puppet::{Connect, Puppet, Role};
use weft_netns_tests::yaml::{self, from_account, policy};
use weft_netns_tests::{Family, Mesh, NetnsState, Path, descriptors, eventually, usual_spec};

const PUPPET: &str = env!("CARGO_BIN_EXE_netns-puppet");
const TERM: rustix::process::Signal = rustix::process::Signal::TERM;

#[test]
fn a_label_takes_running_pods_in_and_out() {
    let Some(mut mesh) = Mesh::prepare(PUPPET, &usual_spec()) else { return };
    let pods = ["client", "near", "far"];
    mesh.write("namespace-shop.yaml", &yaml::namespace("shop", false, &[]));
    mesh.start_controller(&[]);
    for node in ["a", "b"] {
        mesh.start_agent_with(node, &AgentOptions::default());
    }
    let servers: Vec<_> = ["near", "far"].map(|pod| mesh.serve(pod, Role::Greet)).into();
    let mut client = mesh.puppet("client");
    let far = Connect::to(mesh.target(Family::V4, "far"));
    let before = pods.map(|pod| NetnsState::of(mesh.pod(pod)));
    let unmeshed = mesh.connect_by(&mut client, &far, Path::Direct);
    for round in 0..3 {
        mesh.write("namespace-shop.yaml", &yaml::namespace("shop", true, &[]));
        mesh.wait_enrolled("a", &["client", "near"]);
        mesh.wait_enrolled("b", &["far"]);
        assert!(client.echoes(unmeshed), "a connection that nothing forbids outlives enrolment");
        let captured = mesh.connect_by(&mut client, &far, Path::Proxied);
        mesh.connect_by(&mut client, &Connect::to(mesh.target(Family::V6, "near")), Path::Direct);
        assert!(NetnsState::of(mesh.pod("client")).has_our_rules());
        client.close(captured);

        mesh.write("namespace-shop.yaml", &yaml::namespace("shop", false, &[]));
        mesh.connect_by(&mut client, &far, Path::Direct);
        // Rule and route may stay for half a minute while captured connections end (ruling 8).
        for (pod, before) in pods.into_iter().zip(&before) {
            let mut last = None;
            let restored =
                weft_lab::eventually(Duration::from_secs(60), "nothing is left in the pod", || {
                    last = Some(NetnsState::of(mesh.pod(pod)));
                    last.as_ref() == Some(before)
                });
            assert!(restored.is_ok(), "round {round}, {pod}: was {before:#?}, is {last:#?}");
        }
    }
    drop(servers);
}

#[test]
fn clean_up_works_without_an_agent() {
    let Some(mut mesh) = Mesh::prepare(PUPPET, &usual_spec()) else { return };
    let pods = ["client", "near", "seven"];
    let before = pods.map(|pod| NetnsState::of(mesh.pod(pod)));
    mesh.start_controller(&[]);
    mesh.start_agent("a");
    mesh.start_agent("b");
    let mut outside = mesh.outside();
    let server = outside.serve(SocketAddr::new(Family::V6.any(), 0), Role::Greet);
    let to = SocketAddr::new(Family::V4.ip(mesh.lab().outside()), server.address.port());
    let mut client = mesh.puppet("client");
    let to = Connect { wait_ms: 2_000, ..Connect::to(to) };
    let captured = mesh.connect_by(&mut client, &to, Path::Proxied);
    client.close(captured);
    mesh.agent_mut("a").kill();
    assert!(client.try_connect(to.clone()).is_err(), "pins hold without an agent");

    let node = mesh.lab().node("a").unwrap();
    let (pins, cgroup) =
        (node.dir().join("bpf").display().to_string(), node.kubepods().display().to_string());
    let agent_cgroup = mesh.agent_cgroup("a").display().to_string();
    let places = ["--pin-dir", &pins, "--cgroup", &cgroup, "--agent-cgroup", &agent_cgroup];
    let one = mesh.weft("a", &[&["cleanup", "--pod", "shop/near"], &places[..]].concat());
    assert!(one.status.success(), "{}", String::from_utf8_lossy(&one.stderr));
    assert_eq!(NetnsState::of(mesh.pod("near")), before[1], "one pod is out");
    assert!(NetnsState::of(mesh.pod("client")).has_our_rules(), "the others are in");
    let all = mesh.weft("a", &[&["cleanup", "-o", "json"], &places[..]].concat());
    assert!(all.status.success(), "{}", String::from_utf8_lossy(&all.stderr));
    for (pod, before) in pods.into_iter().zip(&before) {
        assert_eq!(NetnsState::of(mesh.pod(pod)), *before, "{pod}");
    }
    let left = std::fs::read_dir(&pins).map_or(0, Iterator::count);
    assert_eq!(left, 0, "no pin is left");
    mesh.connect_by(&mut client, &to, Path::Direct);
    let again = mesh.weft("a", &[&["cleanup"], &places[..]].concat());
    assert!(again.status.success(), "cleaning up twice is no mistake");
}

#[test]
fn a_killed_agent_comes_back_to_its_pins() {
    let Some(mut mesh) = Mesh::usual(PUPPET) else { return };
    let servers: Vec<_> = ["near", "far"].map(|pod| mesh.serve(pod, Role::Greet)).into();
    let mut client = mesh.puppet("client");
    let near = Connect::to(mesh.target(Family::V4, "near"));
    let far = Connect::to(mesh.target(Family::V4, "far"));
    let state = NetnsState::of(mesh.pod("client"));
    let direct = mesh.connect_by(&mut client, &near, Path::Direct);
    for _ in 0..3 {
        let proxied = mesh.connect_by(&mut client, &far, Path::Proxied);
        mesh.agent_mut("a").kill();
        assert!(client.echoes(direct), "a direct flow needs no agent");
        assert!(!client.echoes(proxied), "a proxied one does");
        assert!(client.try_connect(Connect { wait_ms: 1_000, ..far.clone() }).is_err(), "fail closed");
        mesh.start_agent("a");
        assert!(client.echoes(direct), "and survives its return");
        mesh.connect_by(&mut client, &near, Path::Direct);
        mesh.connect_by(&mut client, &far, Path::Proxied);
    }
    assert_eq!(NetnsState::of(mesh.pod("client")), state, "nothing is there twice");
    mesh.write("deny.yaml", &policy("deny", "near", "DENY", &from_account("client")));
    eventually("a direct flow of an earlier agent is cut by policy", || !client.echoes(direct));
    drop(servers);
}

/// What a `lab-peer watch` has seen, whenever that changed.
fn outcomes(process: &Process) -> BTreeSet<String> {
    let lines = process.stdout();
    let outcome = |line: &str| {
        let event: serde_json::Value = serde_json::from_str(line).ok()?;
        Some(event["outcome"].as_str()?.to_owned())
    };
    lines.lines().filter_map(outcome).collect()
}

/// A mesh whose agent of node a has a holder.
struct HeldMesh {
    holder: Process,
    mesh: Mesh,
    socket: String,
}

impl HeldMesh {
    fn start(patience_seconds: &str) -> Option<Self> {
        let mut mesh = Mesh::prepare(PUPPET, &usual_spec())?;
        mesh.write(
            "strict.yaml",
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: \
             shop}\nspec: {mtls: {mode: STRICT}}\n",
        );
        let socket = mesh.lab().dir().join("hold.sock").display().to_string();
        let holder = hold(&mesh, &socket, patience_seconds);
        mesh.start_controller(&[]);
        let mut held = Self { holder, mesh, socket };
        held.start_agent();
        held.mesh.start_agent("b");
        Some(held)
    }

    fn start_agent(&mut self) {
        let args = vec!["--holder-socket".to_owned(), self.socket.clone()];
        self.mesh.start_agent_with("a", &AgentOptions { args, ..AgentOptions::default() });
        self.mesh.wait_enrolled("a", &["client", "other", "near", "seven"]);
    }

    fn start_holder(&mut self, patience_seconds: &str) {
        self.holder = hold(&self.mesh, &self.socket, patience_seconds);
    }

    fn said(&self, what: &str) -> bool {
        self.mesh.agent("a").process().stderr().contains(what)
    }
}

fn hold(mesh: &Mesh, socket: &str, patience_seconds: &str) -> Process {
    let place = mesh.lab().node("a").unwrap().place();
    let args = ["hold", "--socket", socket, "--patience-seconds", patience_seconds];
    // What one that was killed has left there is nobody.
    let _ = std::fs::remove_file(socket);
    let holder = Process::spawn(&place, "hold", &mesh.lab().weft(), &args).unwrap();
    eventually("the holder is there", || FilePath::new(socket).exists());
    holder
}

#[test]
fn with_a_holder_connections_wait_for_the_next_agent() {
    // An agent must be back within this time, also on a slow machine.
    let Some(mut held) = HeldMesh::start("15") else { return };
    let mesh = &mut held.mesh;
    let servers = [mesh.serve("near", Role::Greet), mesh.serve("far", Role::Silent)];
    let mut client = mesh.puppet("client");
    let direct = mesh.connect_by(&mut client, &Connect::to(mesh.target(Family::V4, "near")), Path::Direct);
    let watch = |from: &Pod, to: SocketAddr| {
        from.spawn(&["watch", &to.to_string(), "--seconds", "120", "--timeout-ms", "20000"]).unwrap()
    };
    let new = watch(mesh.pod("client"), mesh.target(Family::V4, "far"));
    let stranger = watch(mesh.lab().outside(), mesh.target(Family::V4, "near"));
    for connections in [&new, &stranger] {
        eventually("connections are tried", || !outcomes(connections).is_empty());
    }
    for _ in 0..3 {
        held.mesh.agent_mut("a").kill();
        assert!(client.echoes(direct), "a direct flow needs no agent");
        held.start_agent();
        eventually("it went on with the sockets", || held.said("were held"));
        assert!(client.echoes(direct));
        let mesh = &held.mesh;
        mesh.connect_by(&mut client, &Connect::to(mesh.target(Family::V4, "near")), Path::Direct);
    }
    // Those that the killed agent had accepted end with it; all others wait.
    let of = |ended: &[&str]| ended.iter().map(|&outcome| outcome.to_owned()).collect::<BTreeSet<_>>();
    let seen = outcomes(&new);
    assert!(seen.contains("ok") && seen.is_subset(&of(&["ok", "reset", "closed"])), "{seen:?}");
    assert!(!outcomes(&stranger).contains("ok"), "somebody got in without identity");

    let mesh = &mut held.mesh;
    let mut outside = mesh.outside();
    let to = Connect { wait_ms: 5_000, ..Connect::to(mesh.target(Family::V4, "near")) };
    mesh.agent_mut("a").kill();
    assert!(outside.try_connect(to.clone()).is_ok(), "it waits");
    eventually("without another agent they are refused in the end", || {
        outside
            .try_connect(to.clone())
            .is_err_and(|failure| failure.is(std::io::ErrorKind::ConnectionRefused))
    });
    drop(servers);
}

#[test]
fn a_holder_may_die_alone_or_with_its_agent() {
    let Some(mut held) = HeldMesh::start("60") else { return };
    let servers = [held.mesh.serve("near", Role::Greet), held.mesh.serve("far", Role::Greet)];
    let mut client = held.mesh.puppet("client");
    let far = Connect { wait_ms: 20_000, ..Connect::to(held.mesh.target(Family::V4, "far")) };
    let proxied = held.mesh.connect_by(&mut client, &far, Path::Proxied);
    // Alone: the agent goes on, and gives everything to the next holder.
    held.holder.kill();
    assert!(client.echoes(proxied), "the agent needs no holder");
    held.mesh.connect_by(&mut client, &far, Path::Proxied);
    held.start_holder("60");
    eventually("the agent has met the next holder", || held.said("the holder is back"));
    assert!(client.echoes(proxied));
    held.mesh.agent_mut("a").kill();
    held.start_agent();
    eventually("the next holder had them", || held.said("were held"));
    held.mesh.connect_by(&mut client, &far, Path::Proxied);

    // Together: what waits is refused, as without a holder, and both come back.
    let near = held.mesh.target(Family::V4, "near");
    let direct = held.mesh.connect_by(&mut client, &Connect::to(near), Path::Direct);
    held.mesh.agent_mut("a").kill();
    held.holder.kill();
    assert!(client.try_connect(Connect { wait_ms: 2_000, ..far.clone() }).is_err(), "fail closed");
    assert!(held.mesh.outside().try_connect(Connect { wait_ms: 2_000, ..Connect::to(near) }).is_err());
    assert!(client.echoes(direct), "a direct flow needs neither");
    held.start_holder("60");
    held.start_agent();
    assert!(!held.said("were held"), "there was nothing");
    held.mesh.connect_by(&mut client, &far, Path::Proxied);
    assert!(client.echoes(direct));
    held.mesh.agent_mut("a").kill();
    held.start_agent();
    eventually("there was something", || held.said("were held"));
    drop(servers);
}

#[test]
fn the_first_sigterm_lets_connections_end_and_the_second_ends_them() {
    let Some(mut mesh) = Mesh::usual(PUPPET) else { return };
    let (_far, _) = mesh.serve("far", Role::Greet);
    let mut client = mesh.puppet("client");
    let far = Connect::to(mesh.target(Family::V4, "far"));
    let patience = Duration::from_secs(25);
    let stop = |mesh: &Mesh| {
        mesh.agent("a").process().signal(TERM).unwrap();
        eventually("it says that it stops", || mesh.agent("a").process().stderr().contains("stopping"));
    };

    let connection = mesh.connect_by(&mut client, &far, Path::Proxied);
    stop(&mesh);
    assert!(client.echoes(connection), "an established connection goes on");
    assert!(mesh.reaches(&mut client, far.to), "new ones are served as long as it has to be there");
    assert!(mesh.agent_mut("a").process_mut().is_running());
    client.close(connection);
    let status = mesh.agent_mut("a").process_mut().wait(patience).unwrap();
    assert!(status.success(), "it ends with its last connection: {status}");
    assert!(client.try_connect(Connect { wait_ms: 1_000, ..far.clone() }).is_err(), "nobody is there");

    mesh.start_agent("a");
    let connection = mesh.connect_by(&mut client, &far, Path::Proxied);
    stop(&mesh);
    assert!(client.echoes(connection));
    mesh.agent("a").process().signal(TERM).unwrap();
    mesh.agent_mut("a").process_mut().wait(patience).expect("the second signal ends it at once");
}

/// Whether the node still has its end of a pod's link: it goes when the pod's namespace is really gone.
fn has_link(mesh: &Mesh, node: &str, link: &str) -> bool {
    let node = mesh.lab().node(node).unwrap();
    within(node.netns(), || Ok(std::fs::read_to_string("/proc/thread-self/net/dev")?)).unwrap().contains(link)
}

#[test]
fn a_namespace_that_vanishes_is_let_go() {
    let Some(mesh) = Mesh::usual(PUPPET) else { return };
    let pod = mesh.pod("near").clone();
    assert!(has_link(&mesh, "a", pod.link()));
    let name = pod.netns().file_name().unwrap().to_str().unwrap();
    weft_lab::run("ip", &["netns", "del", name]).unwrap();
    eventually("the pod is not enrolled any more", || mesh.state("a", "shop/near").0 != "enrolled");

    eventually("nothing keeps the namespace alive", || !has_link(&mesh, "a", pod.link()));
    let mut client = mesh.puppet("client");
    let (_far, _) = mesh.serve("far", Role::Greet);
    assert!(mesh.reaches(&mut client, mesh.target(Family::V4, "far")), "the others are not concerned");
}

#[test]
fn two_hundred_and_fifty_pods_enrol() {
    let spec = (0..250).fold(LabSpec::new().node("a"), |spec, number| {
        spec.pod(PodSpec::new("a", "shop", &format!("pod-{number}")).annotation("weft.dev/traffic", "l4"))
    });
    let Some(mut mesh) = Mesh::prepare(PUPPET, &spec) else { return };
    mesh.start_controller(&[]);
    mesh.start_agent_with("a", &AgentOptions::default());
    eventually("all of them are enrolled", || {
        let status = mesh.status("a");
        let workloads = status["workloads"].as_array().unwrap();
        workloads.iter().filter(|workload| workload["state"] == "enrolled").count() == 250
    });
    let (_server, _) = mesh.serve("pod-200", Role::Greet);
    let mut client = mesh.puppet("pod-0");
    mesh.connect_by(&mut client, &Connect::to(mesh.target(Family::V4, "pod-200")), Path::Direct);
    assert_eq!(mesh.map_entries("a", "PODS"), 250);
}

/// Files that are wrong, one way each.
const BROKEN: [(&str, &str); 14] = [
    ("tab.yaml", "apiVersion: v1\nkind: Namespace\nmetadata:\n\tname: x\n"),
    ("unclosed.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: x\n"),
    ("scalar.yaml", "just a sentence\n"),
    ("list.yaml", "- a\n- b\n"),
    ("no-kind.yaml", "apiVersion: v1\nmetadata: {name: x}\n"),
    ("no-name.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {namespace: shop}\n"),
    ("misspelt.yaml", "apiVersion: security.istio.io/v1\nkind: AuthorisationPolicy\nmetadata: {name: x}\n"),
    (
        "bad-ip.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: x, namespace: shop}\nstatus: {podIP: 1.2.3}\n",
    ),
    (
        "bad-type.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {name: x, namespace: shop}\nspec: {ports: 7}\n",
    ),
    (
        "bad-port.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {name: x, namespace: shop}\nspec: {ports: [{port: 70000}]}\n",
    ),
    (
        "bad-action.yaml",
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: x, namespace: shop}\n\
         spec: {action: PERHAPS, rules: [{}]}\n",
    ),
    (
        "bad-mode.yaml",
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: x, namespace: shop}\n\
         spec: {mtls: {mode: SOMETIMES}}\n",
    ),
    ("broken.json", "{\"apiVersion\": \"v1\", \"kind\": "),
    ("broken.jsonl", "{\"apiVersion\":\"v1\",\"kind\":\"Namespace\",\"metadata\":{\"name\":\"x\"}}\n{\n"),
];

#[test]
fn broken_files_leave_the_rest_in_force() {
    let Some(mesh) = Mesh::usual(PUPPET) else { return };
    let (_far, _) = mesh.serve("far", Role::Greet);
    let mut client = mesh.puppet("client");
    let mut other = mesh.puppet("other");
    let to = mesh.target(Family::V4, "far");
    mesh.write("kept.yaml", &policy("kept", "far", "DENY", &from_account("client")));
    mesh.wait_reaches(&mut client, to, false);

    for (name, text) in BROKEN {
        mesh.write(name, text);
    }
    // Not UTF-8, empty, and a good document between two bad ones.
    mesh.lab().config().write("empty.yaml", "").unwrap();
    std::fs::write(mesh.lab().config().path().join("binary.yaml"), [0xff, 0xfe, 0, 1]).unwrap();
    let mixed = format!("kind: 7\n---\n{}---\n: :\n", policy("mixed", "far", "DENY", &from_account("other")));
    mesh.write("mixed.yaml", &mixed);

    mesh.wait_reaches(&mut other, to, false);
    assert!(!mesh.reaches(&mut client, to), "what was in force stays in force");
    let files: Vec<&str> =
        BROKEN.iter().map(|(name, _)| *name).chain(["binary.yaml", "mixed.yaml"]).collect();
    let unreported = |report: &str| -> Vec<&str> {
        files.iter().filter(|file| !report.contains(**file)).copied().collect()
    };
    let logged = weft_lab::poll_until(Duration::from_secs(30), || {
        match unreported(&mesh.agent("b").process().stderr()) {
            missing if missing.is_empty() => Ok(()),
            missing => Err(std::io::Error::other(format!("not in the agent's log: {missing:?}")).into()),
        }
    });
    logged.unwrap();
    let directory = mesh.lab().config().path().display().to_string();
    let analysis = mesh.weft("b", &["analyze", "--config", &directory, "-o", "json"]);
    assert_eq!(analysis.status.code(), Some(1), "analyze ends with bad news");
    let analysis = String::from_utf8(analysis.stdout).unwrap();
    assert_eq!(unreported(&analysis), Vec::<&str>::new(), "analyze reports every broken file");
    let problems = mesh.status("b")["config"]["problems"].as_u64().unwrap();
    assert!(problems >= files.len() as u64, "status counts them: {problems}");

    // An object that becomes invalid keeps its last good version.
    mesh.write("kept.yaml", &policy("kept", "far", "PERHAPS", &from_account("client")));
    eventually("the invalid version is reported", || {
        mesh.agent("b").process().stderr().contains("kept.yaml")
    });
    assert!(!mesh.reaches(&mut client, to), "the last good version stays in force");
    for (name, _) in BROKEN.iter().chain([&("mixed.yaml", ""), &("kept.yaml", ""), &("binary.yaml", "")]) {
        mesh.remove(name);
    }
    mesh.wait_reaches(&mut client, to, true);
    mesh.wait_reaches(&mut other, to, true);
}

/// The Pod object of a pod, as an API server would show it, with a further annotation (YAML flow).
fn pod_yaml(pod: &Pod, annotation: &str) -> String {
    let mut text = String::new();
    write!(
        text,
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {}\n  namespace: shop\n  annotations: {{weft.dev/netns: {}, {annotation}}}\n\
         spec: {{nodeName: {}, serviceAccountName: {}}}\nstatus: {{podIPs: [{{ip: {}}}, {{ip: \"{}\"}}]}}\n",
        pod.name(),
        pod.netns().display(),
        pod.node(),
        pod.service_account(),
        pod.ipv4(),
        pod.ipv6()
    )
    .unwrap();
    text
}

/// Everything below a directory, whatever it is.
fn count_below(directory: &FilePath) -> usize {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| 1 + count_below(&entry.path())).sum()
}

#[test]
fn pods_that_come_and_go_two_hundred_times_leave_nothing() {
    let Some(mesh) = Mesh::usual(PUPPET) else { return };
    let others: Vec<Pod> = mesh.lab().pods().iter().filter(|pod| pod.name() != "other").cloned().collect();
    let pod = mesh.pod("other").clone();
    mesh.write("other.yaml", &pod_yaml(&pod, ""));
    mesh.lab().config().cluster(mesh.lab().nodes(), &others).unwrap();
    let pins = mesh.lab().node("a").unwrap().dir().join("bpf");
    let agent = mesh.agent("a");
    let observe = || {
        let maps =
            ["PODS", "LOCAL", "POLICY", "PORT_RULES", "RANGE_RULES"].map(|map| mesh.map_entries("a", map));
        (descriptors(agent.pid()), maps, count_below(&pins))
    };
    mesh.wait_enrolled("a", &["other"]);
    let enrolled = NetnsState::of(&pod);
    mesh.remove("other.yaml");
    mesh.wait_state("a", "shop/other", "unknown");
    eventually("the pod's namespace is as it was", || !NetnsState::of(&pod).has_our_rules());
    let (before, clean) = (observe(), NetnsState::of(&pod));
    for _ in 0..200 {
        mesh.write("other.yaml", &pod_yaml(&pod, ""));
        mesh.wait_enrolled("a", &["other"]);
        mesh.remove("other.yaml");
        mesh.wait_state("a", "shop/other", "unknown");
    }
    eventually("maps, pins and descriptors are as before", || {
        let now = observe();
        now.0 <= before.0 + 8 && now.1 == before.1 && now.2 == before.2
    });
    eventually("the pod's namespace is as before", || NetnsState::of(&pod) == clean);
    mesh.write("other.yaml", &pod_yaml(&pod, ""));
    mesh.wait_enrolled("a", &["other"]);
    assert_eq!(NetnsState::of(&pod), enrolled);
}

/// A server that is not in the mesh: connections to it show whether a client is captured.
fn serve_outside(mesh: &Mesh) -> (Puppet, Connect) {
    let mut outside = mesh.outside();
    let server = outside.serve(SocketAddr::new(Family::V6.any(), 0), Role::Greet);
    let to = SocketAddr::new(Family::V4.ip(mesh.lab().outside()), server.address.port());
    (outside, Connect { wait_ms: 2_000, ..Connect::to(to) })
}

#[test]
fn an_annotation_switches_capture_off_at_once() {
    let Some(mesh) = Mesh::usual(PUPPET) else { return };
    let (mut outside, to) = serve_outside(&mesh);
    let (mut client, _) = mesh.serve("client", Role::Greet);
    let pod = mesh.pod("client").clone();
    let others: Vec<Pod> = mesh.lab().pods().iter().filter(|pod| pod.name() != "client").cloned().collect();
    let inbound = Connect::to(mesh.target(Family::V4, "client"));
    mesh.write("client.yaml", &pod_yaml(&pod, ""));
    mesh.lab().config().cluster(mesh.lab().nodes(), &others).unwrap();
    for _ in 0..2 {
        mesh.connect_by(&mut client, &to, Path::Proxied);
        mesh.connect_by(&mut outside, &inbound, Path::Proxied);
        mesh.write("client.yaml", &pod_yaml(&pod, "weft.dev/mesh: bypass"));
        mesh.connect_by(&mut client, &to, Path::Direct);
        mesh.connect_by(&mut outside, &inbound, Path::Direct);
        mesh.write("client.yaml", &pod_yaml(&pod, ""));
    }
}

#[test]
fn break_glass_undoes_what_an_earlier_agent_did() {
    let Some(mut mesh) = Mesh::usual(PUPPET) else { return };
    let (_outside, to) = serve_outside(&mesh);
    let mut client = mesh.puppet("client");
    mesh.connect_by(&mut client, &to, Path::Proxied);
    mesh.agent_mut("a").kill();
    let options = AgentOptions { args: vec!["--break-glass".into()], ..AgentOptions::default() };
    mesh.start_agent_with("a", &options);
    mesh.connect_by(&mut client, &to, Path::Direct);
    assert_eq!(mesh.metric("a", "weft_break_glass", &[]), 1.0, "loudly");
    assert_eq!(mesh.status("a")["break_glass"], true);
    mesh.agent_mut("a").kill();
    mesh.start_agent("a");
    mesh.connect_by(&mut client, &to, Path::Proxied);
}

#[test]
fn older_connections_are_cut_only_where_they_would_be_refused() {
    let Some(mut mesh) = Mesh::prepare(PUPPET, &usual_spec()) else { return };
    mesh.write("namespace-shop.yaml", &yaml::namespace("shop", false, &[]));
    mesh.write("strict.yaml", &yaml::peer_authentication("near", "STRICT"));
    mesh.write("allow.yaml", &policy("guarded", "seven", "ALLOW", &from_account("nobody")));
    mesh.start_controller(&[]);
    for node in ["a", "b"] {
        mesh.start_agent_with(node, &AgentOptions::default());
    }
    let pods = ["near", "seven", "far"];
    let servers = pods.map(|pod| mesh.serve(pod, Role::Greet));
    let mut outside = mesh.outside();
    let mut older = |family| {
        pods.map(|pod| {
            let connection = outside.connect(mesh.target(family, pod));
            assert_eq!(outside.greeting(connection).0, connection.local, "nothing is in between yet");
            connection
        })
    };
    let older = [older(Family::V4), older(Family::V6)];
    mesh.write("namespace-shop.yaml", &yaml::namespace("shop", true, &[]));
    mesh.wait_enrolled("a", &["near", "seven"]);
    mesh.wait_enrolled("b", &["far"]);
    for [strict, guarded, free] in older {
        eventually("plaintext to a strict pod is cut", || !outside.echoes(strict));
        eventually("what a policy refuses is cut", || !outside.echoes(guarded));
        assert!(outside.echoes(free), "everything else goes on");
    }

    // What passes while no agent runs is as little decided on, and policy reaches it afterwards.
    mesh.agent_mut("b").kill();
    let meanwhile = outside.connect(mesh.target(Family::V4, "far"));
    assert!(outside.greeting(meanwhile).0 == meanwhile.local && outside.echoes(meanwhile));
    mesh.start_agent("b");
    assert!(outside.echoes(meanwhile), "it goes on when the agent is back");
    mesh.write("far.yaml", &yaml::peer_authentication("far", "STRICT"));
    for connection in [older[0][2], older[1][2], meanwhile] {
        eventually("a later policy cuts it", || !outside.echoes(connection));
    }
    drop(servers);
}
