//! A lab with everything running in it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use weft_lab::{Agent, AgentOptions, Controller, Lab, LabSpec, Pod, PodSpec, Process, poll_until};

use crate::puppet::{Connect, Connection, End, Puppet, Role, Server};
use crate::yaml;

/// Longest wait for a change to take effect: generous, for loaded machines.
const PATIENCE: Duration = Duration::from_secs(60);
/// Port of the usual Services.
pub const SERVICE_PORT: u16 = 80;
/// Port on which the pods behind them listen.
const TARGET_PORT: u16 = 7000;

/// How a client addresses a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// An IPv4 socket.
    V4,
    /// An IPv6 socket.
    V6,
    /// An IPv6 socket to a v4-mapped address.
    Mapped,
}

impl Family {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::V4, Self::V6, Self::Mapped];

    /// The address of a pod in this family.
    pub fn ip(self, pod: &Pod) -> IpAddr {
        match self {
            Self::V4 | Self::Mapped => pod.ipv4().into(),
            Self::V6 => pod.ipv6().into(),
        }
    }

    /// Loopback in this family.
    pub fn loopback(self) -> IpAddr {
        match self {
            Self::V4 | Self::Mapped => [127, 0, 0, 1].into(),
            Self::V6 => std::net::Ipv6Addr::LOCALHOST.into(),
        }
    }

    /// The unspecified address in this family.
    pub fn any(self) -> IpAddr {
        match self {
            Self::V4 | Self::Mapped => [0, 0, 0, 0].into(),
            Self::V6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
        }
    }

    /// An ordinary connection in this family.
    pub fn connect(self, to: SocketAddr) -> Connect {
        Connect { mapped: self == Self::Mapped, ..Connect::to(to) }
    }
}

/// How a connection travelled, as the application at its end can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// The application sees the client's own port: nothing is in between.
    Direct,
    /// The application sees the client's address with another port.
    Proxied,
}

/// A lab with a controller and agents. Everything ends when it is dropped.
#[derive(Debug)]
pub struct Mesh {
    agents: BTreeMap<String, Agent>,
    controller: Option<Controller>,
    lab: Lab,
    puppet: String,
}

/// Whether these tests can run here at all; says loudly why not.
pub fn privileged() -> bool {
    let missing = if !rustix::process::geteuid().is_root() {
        "root (run it with sudo)"
    } else if weft_lab::mount_point().is_err() {
        "cgroup2 (mount -t cgroup2 none /sys/fs/cgroup/unified)"
    } else {
        return true;
    };
    assert!(std::env::var_os("CI").is_none(), "in CI nothing is skipped, but this is missing: {missing}");
    eprintln!("SKIPPED: needs {missing}");
    false
}

/// Two nodes. On node a: `client` and `other`, which talk, `near`, which they reach directly, and `seven`, which
/// they reach through the node's proxy. On node b: `far`. All in namespace `shop`.
pub fn usual_spec() -> LabSpec {
    let pod = |node: &str, name: &str| PodSpec::new(node, "shop", name).service_account(name);
    LabSpec::new()
        .node("a")
        .node("b")
        .pod(pod("a", "client"))
        .pod(pod("a", "other"))
        .pod(pod("a", "near").annotation("weft.dev/traffic", "l4"))
        .pod(pod("a", "seven").annotation("weft.dev/traffic", "l7"))
        .pod(pod("b", "far"))
}

impl Mesh {
    /// A mesh of [`usual_spec`] with all pods enrolled; `None` when it cannot be had here.
    pub fn usual(puppet: &str) -> Option<Self> {
        Self::start(puppet, &usual_spec())
    }

    /// The same with other nodes and pods. Pods are in namespace `shop`; Services `NAME` lead from port 80 of
    /// their VIP ([`Self::vip`]) to port 7000 of pod `NAME`.
    pub fn start(puppet: &str, spec: &LabSpec) -> Option<Self> {
        let mut mesh = Self::prepare(puppet, spec)?;
        mesh.start_controller(&[]);
        for node in mesh.node_names() {
            mesh.start_agent(&node);
        }
        Some(mesh)
    }

    /// Namespaces and configuration, but nothing of ours runs yet.
    pub fn prepare(puppet: &str, spec: &LabSpec) -> Option<Self> {
        if !privileged() {
            return None;
        }
        let lab = Lab::new(spec).expect("a lab can be made");
        let mesh = Self { agents: BTreeMap::new(), controller: None, lab, puppet: puppet.to_owned() };
        mesh.write("namespace-shop.yaml", &yaml::namespace("shop", true, &[]));
        mesh.write("mesh.yaml", yaml::LOG_EVERYTHING);
        for (number, pod) in (10_u8..=250).zip(mesh.lab.pods()) {
            let (v4, v6) = (format!("10.200.0.{number}"), format!("fd00:200::{number:x}"));
            let ports = [("tcp-echo", SERVICE_PORT, TARGET_PORT)];
            let written = mesh.lab.config().service(&pod.key(), &[&v4, &v6], pod.name(), &ports);
            written.expect("a Service can be written");
        }
        Some(mesh)
    }

    fn node_names(&self) -> Vec<String> {
        self.lab.nodes().iter().map(|node| node.name().to_owned()).collect()
    }

    /// Starts the controller, with further arguments.
    pub fn start_controller(&mut self, args: &[&str]) {
        self.controller = Some(start_controller(&self.lab, args));
    }

    /// Kills the controller.
    pub fn kill_controller(&mut self) {
        self.controller = None;
    }

    /// Starts the agent of a node and waits until its pods are enrolled.
    pub fn start_agent(&mut self, node: &str) {
        self.start_agent_with(node, &AgentOptions::default());
        let pods = self.lab.pods().iter().filter(|pod| pod.node() == node);
        pods.for_each(|pod| self.wait_state(node, &pod.key(), "enrolled"));
    }

    /// Starts the agent of a node with options and waits until it is ready.
    pub fn start_agent_with(&mut self, node: &str, options: &AgentOptions) {
        let mut agent = self.lab.spawn_agent(node, options).expect("the agent can be started");
        agent.wait_ready().expect("the agent becomes ready");
        self.agents.insert(node.to_owned(), agent);
    }

    /// Starts another agent beside the one of a node and waits until it has taken over. Gives the old one.
    pub fn replace_agent(&mut self, node: &str, options: &AgentOptions) -> Agent {
        let agent = self.lab.spawn_agent(node, options).expect("the agent can be started");
        let old = self.agents.insert(node.to_owned(), agent).expect("an agent runs");
        let before = format!("process {} ", old.pid());
        eventually("the new agent has taken over", || {
            let status = self.try_status(node);
            let from = status.as_ref().and_then(|status| status.get("took_over_from")?.as_str());
            from.is_some_and(|from| from.starts_with(&before))
        });
        let pods = self.lab.pods().iter().filter(|pod| pod.node() == node);
        pods.for_each(|pod| self.wait_state(node, &pod.key(), "enrolled"));
        old
    }

    fn try_status(&self, node: &str) -> Option<Value> {
        self.agent(node).status().ok()
    }

    /// The cgroup of a node's agent.
    pub fn agent_cgroup(&self, node: &str) -> PathBuf {
        self.lab.node(node).expect("the lab has the node").cgroup().join("agent")
    }

    /// Runs a command of `weft` in a node's namespace to its end.
    pub fn weft(&self, node: &str, args: &[&str]) -> std::process::Output {
        let netns = self.lab.node(node).expect("the lab has the node").netns();
        let mut command = std::process::Command::new("nsenter");
        command.arg(format!("--net={}", netns.display())).arg("--").arg(self.lab.weft()).args(args);
        command.output().expect("weft can be run")
    }

    /// The lab.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// A pod of namespace `shop`.
    pub fn pod(&self, name: &str) -> &Pod {
        self.lab.pod(&format!("shop/{name}")).expect("the lab has the pod")
    }

    /// The agent of a node.
    pub fn agent(&self, node: &str) -> &Agent {
        self.agents.get(node).expect("the agent was started")
    }

    /// The agent of a node, for signals.
    pub fn agent_mut(&mut self, node: &str) -> &mut Agent {
        self.agents.get_mut(node).expect("the agent was started")
    }

    /// A puppet in a pod of namespace `shop`.
    pub fn puppet(&self, pod: &str) -> Puppet {
        let place = self.pod(pod).place();
        Puppet::start(&self.puppet, &place.cgroup, &place.netns)
    }

    /// A puppet that is not in the mesh.
    pub fn outside(&self) -> Puppet {
        let place = self.lab.outside().place();
        Puppet::start(&self.puppet, &place.cgroup, &place.netns)
    }

    /// Starts a server on the usual port of a pod, for all families.
    pub fn serve(&self, pod: &str, role: Role) -> (Puppet, Server) {
        let mut puppet = self.puppet(pod);
        let server = puppet.serve(SocketAddr::new(Family::V6.any(), TARGET_PORT), role);
        (puppet, server)
    }

    /// Address of a pod's usual server.
    pub fn target(&self, family: Family, pod: &str) -> SocketAddr {
        SocketAddr::new(family.ip(self.pod(pod)), TARGET_PORT)
    }

    /// Virtual address of a pod's Service.
    pub fn vip(&self, family: Family, pod: &str) -> SocketAddr {
        let key = self.pod(pod).key();
        let number = self.lab.pods().iter().position(|pod| pod.key() == key).unwrap_or_default() + 10;
        let ip = match family {
            Family::V4 | Family::Mapped => format!("10.200.0.{number}"),
            Family::V6 => format!("fd00:200::{number:x}"),
        };
        SocketAddr::new(ip.parse().expect("it is an address"), SERVICE_PORT)
    }

    /// Writes a file of configuration.
    pub fn write(&self, name: &str, content: &str) {
        self.lab.config().write(name, content).expect("the configuration can be written");
    }

    /// Removes a file of configuration.
    pub fn remove(&self, name: &str) {
        self.lab.config().remove(name).expect("the configuration can be removed");
    }

    /// A metric of an agent, summed over the series with these labels.
    pub fn metric(&self, node: &str, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.agent(node).metrics().expect("metrics are served").value(name, labels)
    }

    /// State and reason of a pod (`NAMESPACE/NAME`) in `weft status`; `unknown` when it is not listed.
    pub fn state(&self, node: &str, pod: &str) -> (String, String) {
        let status = self.status(node);
        let workloads = status.get("workloads").and_then(Value::as_array).expect("status has workloads");
        let found = workloads.iter().find(|workload| workload.get("pod").is_some_and(|name| name == pod));
        let text = |key: &str, absent: &str| {
            let value = found.and_then(|workload| workload.get(key)).and_then(Value::as_str);
            value.unwrap_or(absent).to_owned()
        };
        (text("state", "unknown"), text("reason", ""))
    }

    /// Waits until a pod has a state.
    pub fn wait_state(&self, node: &str, pod: &str, state: &str) {
        eventually(&format!("{pod} is {state}"), || self.state(node, pod).0 == state);
    }

    /// Waits until pods of namespace `shop` are enrolled.
    pub fn wait_enrolled(&self, node: &str, pods: &[&str]) {
        pods.iter().for_each(|pod| self.wait_state(node, &format!("shop/{pod}"), "enrolled"));
    }

    /// `weft status`, also when it is bad news.
    pub fn status(&self, node: &str) -> Value {
        self.status_of(self.agent(node))
    }

    /// The same of an agent that the mesh does not keep.
    pub fn status_of(&self, agent: &Agent) -> Value {
        let socket = agent.admin_socket().display().to_string();
        let out = std::process::Command::new(self.lab.weft())
            .args(["status", "--socket", &socket, "-o", "json"])
            .output()
            .expect("weft can be run");
        // Status 1 means bad news, which tests ask for on purpose.
        assert!(matches!(out.status.code(), Some(0 | 1)), "{}", String::from_utf8_lossy(&out.stderr));
        serde_json::from_slice(&out.stdout).expect("the answer is JSON")
    }

    /// Entries of one of the kernel's maps.
    pub fn map_entries(&self, node: &str, map: &str) -> u64 {
        let status = self.status(node);
        let maps = status.pointer("/kernel/maps").and_then(Value::as_array).expect("status has maps");
        let found = maps.iter().find(|entry| entry.get("name").is_some_and(|name| name == map));
        let entries = found.and_then(|entry| entry.get("entries")).and_then(Value::as_u64);
        entries.expect("the map is listed with its entries")
    }

    /// Waits for a line of a node's access log.
    pub fn log_line(&self, node: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        value_eventually(what, || {
            let text = self.agent(node).process().stdout();
            text.lines().filter_map(|line| serde_json::from_str(line).ok()).find(|line| wanted(line))
        })
    }

    /// The lines of a node's access log about connections that were refused or failed.
    pub fn failures(&self, node: &str) -> Vec<String> {
        let failed = |line: &&str| !line.contains("\"response_flags\":\"-\"");
        self.agent(node).process().stdout().lines().filter(failed).map(str::to_owned).collect()
    }

    /// Waits for the line about a client's connection, seen from one side (`outbound`, `inbound`).
    pub fn log_of(&self, node: &str, direction: &str, client: SocketAddr) -> Value {
        let client = SocketAddr::new(client.ip().to_canonical(), client.port()).to_string();
        let what = format!("an access log line of node {node} for {client}, {direction}");
        self.log_line(node, &what, |line| {
            line.get("downstream_remote_address").is_some_and(|address| *address == client)
                && line.get("direction").is_some_and(|side| side == direction)
        })
    }

    /// Opens connections from a puppet until one travels as wanted, and gives that one. The server greets.
    pub fn connect_by(&self, puppet: &mut Puppet, how: &Connect, path: Path) -> Connection {
        value_eventually(&format!("a connection to {} that is {path:?}", how.to), || {
            let connection = puppet.try_connect(how.clone()).ok()?;
            let travelled = travelled(puppet, connection)?;
            if travelled == path {
                return Some(connection);
            }
            puppet.close(connection);
            None
        })
    }

    /// Whether a new connection reaches a server that greets.
    pub fn reaches(&self, puppet: &mut Puppet, to: SocketAddr) -> bool {
        let Ok(connection) = puppet.try_connect(Connect::to(to)) else { return false };
        let reached = travelled(puppet, connection).is_some();
        puppet.close(connection);
        reached
    }

    /// Waits until new connections reach a server that greets, or no longer do.
    pub fn wait_reaches(&self, puppet: &mut Puppet, to: SocketAddr, reached: bool) {
        let what = format!("{to} is {}reached", if reached { "" } else { "no longer " });
        eventually(&what, || self.reaches(puppet, to) == reached);
    }
}

fn start_controller(lab: &Lab, args: &[&str]) -> Controller {
    let node = lab.nodes().first().expect("a lab has a node");
    let text = |path: &std::path::Path| path.display().to_string();
    let (config, sockets) = (text(lab.config().path()), lab.ca_sockets());
    let (state, sockets_text) = (text(&lab.dir().join("controller")), text(&sockets));
    let own = ["controller", "--config", &config, "--state-dir", &state, "--socket-dir", &sockets_text];
    let weft = lab.weft();
    assert!(weft.exists(), "{} is missing; build it with `cargo build -p weft -p weft-lab`", weft.display());
    let process = Process::spawn(&node.place(), "controller", &weft, &[&own, args].concat());
    let process = process.expect("the controller can be started");
    eventually("every node has its CA socket", || {
        lab.nodes().iter().all(|node| sockets.join(format!("{}.sock", node.name())).exists())
    });
    Controller { process }
}

/// Reads a greeting, if one comes; the client's address must be preserved on every path.
fn travelled(puppet: &mut Puppet, connection: Connection) -> Option<Path> {
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        let (bytes, end) = puppet.receive(connection, 1);
        line.extend_from_slice(&bytes);
        if end != End::Enough {
            return None;
        }
    }
    let line = String::from_utf8_lossy(&line).into_owned();
    let peer: SocketAddr = line.split(' ').next()?.parse().ok()?;
    let client = connection.local.ip().to_canonical();
    assert_eq!(peer.ip().to_canonical(), client, "the server does not see the client's address");
    Some(if peer.port() == connection.local.port() { Path::Direct } else { Path::Proxied })
}

/// Waits until a condition is true.
pub fn eventually(what: &str, condition: impl FnMut() -> bool) {
    let waited = weft_lab::eventually(PATIENCE, what, condition);
    assert!(waited.is_ok(), "{waited:?}");
}

/// Waits until there is a value.
pub fn value_eventually<T>(what: &str, mut value: impl FnMut() -> Option<T>) -> T {
    let found = poll_until(PATIENCE, || {
        value().ok_or_else(|| std::io::Error::other(format!("not there: {what}")).into())
    });
    found.expect("the value appears in time")
}
