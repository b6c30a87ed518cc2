//! One agent takes the place of another under load: nothing is refused, nothing breaks, nothing is unpoliced.

use std::time::Duration;

use serde_json::Value;
use weft_lab::{Agent, AgentOptions, Process};
use weft_netns_tests::puppet::{Connect, Puppet, Role, Server};
use weft_netns_tests::{Family, Path, eventually};

use crate::site::{Site, WEB};

const HELD: usize = 100;
const STRICT: &str = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: \
    shop}\nspec: {mtls: {mode: STRICT}}\n";

/// Clients that go on until they are told.
struct Load {
    clients: Vec<(String, Process)>,
}

impl Load {
    /// HTTP/1 with and without keeping connections, and HTTP/2, to both nodes.
    fn start(site: &Site) -> Self {
        let mut clients = Vec::new();
        for service in ["near", "far"] {
            let address = site.address(Family::V4, service, WEB);
            for how in [&["--close"][..], &[], &["--protocol", "h2"]] {
                let own = ["http", &address, "--host", service, "--until-eof", "--concurrency", "4"];
                let process = site.mesh.pod("client").spawn(&[&own, how].concat()).unwrap();
                clients.push((format!("{service} {how:?}"), process));
            }
        }
        Self { clients }
    }

    /// All of them were always answered. Gives the number of requests.
    fn end(self) -> u64 {
        let mut requests = 0;
        for (name, mut client) in self.clients {
            client.close_stdin();
            client.wait(Duration::from_secs(30)).unwrap();
            let said = client.stdout();
            let report: Value = serde_json::from_str(said.lines().last().unwrap_or_default()).unwrap();
            let asked = report["requests"].as_u64().unwrap();
            assert_eq!(report["errors"], serde_json::json!({}), "{name}: {report}");
            assert_eq!(report["statuses"], serde_json::json!({"200": asked}), "{name}: {report}");
            assert!(asked > 0, "{name}: {report}");
            requests += asked;
        }
        requests
    }
}

/// Connections that are held from `client` to a pod.
struct Held {
    server: (Puppet, Server),
    client: Puppet,
}

impl Held {
    fn open(site: &Site, pod: &str) -> Self {
        let server = site.mesh.serve(pod, Role::Hold);
        let mut client = site.mesh.puppet("client");
        let held = client.hold(site.mesh.target(Family::V4, pod), HELD);
        assert_eq!((held.good, held.first), (HELD, None), "{pod}");
        Self { server, client }
    }

    fn check(&mut self, when: &str) {
        let (puppet, server) = &mut self.server;
        assert_eq!(puppet.broadcast(*server), HELD as u64);
        let alive = self.client.held_alive();
        assert_eq!((alive.good, alive.first), (HELD, None), "{when}");
    }
}

/// New connections without pause, and what they came to whenever that changed.
fn watch(from: &weft_lab::Pod, to: std::net::SocketAddr) -> Process {
    from.spawn(&["watch", &to.to_string(), "--seconds", "120", "--timeout-ms", "20000"]).unwrap()
}

fn outcomes(process: &Process) -> Vec<String> {
    let lines = process.stdout();
    let outcome = |line: &str| {
        let event: Value = serde_json::from_str(line).ok()?;
        Some(event["outcome"].as_str()?.to_owned())
    };
    lines.lines().filter_map(outcome).collect()
}

fn ends(agents: Vec<Agent>) {
    for mut agent in agents {
        let status = agent.process_mut().wait(Duration::from_secs(40)).unwrap();
        assert!(status.success(), "{}", agent.process().report("did not end well"));
        assert!(agent.process().stderr().contains("handed over"), "{}", agent.process().report("is silent"));
    }
}

#[test]
fn agents_are_replaced_and_nobody_notices() {
    let Some(mut site) = Site::new() else { return };
    site.mesh.write("strict.yaml", STRICT);
    let echo = site.mesh.serve("reviews-v2", Role::Silent);
    let mut held = ["near", "far"].map(|pod| Held::open(&site, pod));
    let client = site.mesh.pod("client").clone();
    let new = watch(&client, site.mesh.target(Family::V4, "reviews-v2"));
    let stranger = watch(site.mesh.lab().outside(), site.mesh.target(Family::V4, "reviews-v2"));
    eventually("connections are made", || outcomes(&new) == ["ok"]);
    eventually("the mesh is strict", || outcomes(&stranger).last().is_some_and(|outcome| outcome != "ok"));
    let before = outcomes(&stranger).len();
    let load = Load::start(&site);

    // Longer than the test takes anywhere: what the agents serve ends with the test.
    let options =
        AgentOptions { args: ["--drain-seconds", "900"].map(Into::into).into(), ..AgentOptions::default() };
    let mut old = Vec::new();
    for (round, node) in ["a", "b", "a", "a"].into_iter().enumerate() {
        let asked = format!("/round-{round}");
        old.push(site.mesh.replace_agent(node, &options));
        for held in &mut held {
            held.check(&format!("after the agent of node {node} was replaced (round {round})"));
        }
        assert!(site.ask("far", &["--path", &asked]).all_good());
        assert_eq!(site.mesh.metric(node, "weft_handovers", &[("role", "successor")]), 1.0);
    }
    let requests = load.end();
    assert_eq!(outcomes(&new), ["ok"], "a connection was refused, or took too long");
    assert!(
        outcomes(&stranger).iter().skip(before).all(|outcome| outcome != "ok"),
        "somebody got in without identity: {:?}",
        outcomes(&stranger)
    );
    eprintln!("{requests} requests were answered");
    drop((held, new, stranger, echo));
    ends(old);
}

#[test]
fn a_successor_that_fails_changes_nothing() {
    let Some(mut site) = Site::new() else { return };
    let (near, _) = site.mesh.serve("near", Role::Greet);
    let mut client = site.mesh.puppet("client");
    let to = Connect::to(site.mesh.target(Family::V4, "near"));
    let direct = site.mesh.connect_by(&mut client, &to, Path::Direct);
    let new = watch(&site.mesh.pod("client").clone(), site.mesh.target(Family::V4, "near"));
    let load = Load::start(&site);
    for _ in 0..3 {
        // It has taken everything over when it finds that this is no cgroup.
        let args = ["--probe-cgroup", "/proc"].map(Into::into).into();
        let options = AgentOptions { args, ..AgentOptions::default() };
        let mut failing = site.mesh.lab().spawn_agent("a", &options).unwrap();
        let status = failing.process_mut().wait(Duration::from_secs(30)).unwrap();
        assert!(!status.success());
        let said = failing.process().stderr();
        assert!(said.contains("taking over") && said.contains("/proc"), "{said}");
        assert!(client.echoes(direct), "a direct flow goes on");
        site.mesh.connect_by(&mut client, &to, Path::Direct);
    }
    load.end();
    eventually("the agent says that it goes on", || {
        site.mesh.agent("a").process().stderr().contains("this one goes on")
    });
    assert!(!outcomes(&new).iter().any(|outcome| outcome != "ok"), "{:?}", outcomes(&new));
    let old = site.mesh.replace_agent("a", &AgentOptions::default());
    site.mesh.connect_by(&mut client, &to, Path::Direct);
    assert!(client.echoes(direct));
    drop((client, near, new));
    ends(vec![old]);
}
