//! The test bed itself.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::cleanup::{remove_everything, sweep_stale};
use crate::config::ConfigDir;
use crate::id::LabId;
use crate::process::{Place, Process, tail};
use crate::spec::{LabSpec, PodSpec};
use crate::topology::{self, Addresses, Leaf};
use crate::{cgroup, sysctl};

/// Longest time that a client in a pod may take; each bounds itself more tightly.
const CLIENT_LIMIT: Duration = Duration::from_secs(180);

/// Host-wide settings of a benchmark: a namespace inherits its congestion control when it is made.
const BENCH_HOST_SETTINGS: &[(&str, &str)] = &[
    ("net.ipv4.tcp_congestion_control", "cubic"),
    ("net.ipv4.tcp_allowed_congestion_control", "reno cubic"),
];

/// A node: a router for its pods, and the place where its agent runs.
#[derive(Debug, Clone)]
pub struct Node {
    name: String,
    addresses: Addresses,
    netns: PathBuf,
    cgroup: PathBuf,
    dir: PathBuf,
    logs: PathBuf,
}

impl Node {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address.
    pub fn ipv4(&self) -> Ipv4Addr {
        self.addresses.v4
    }

    /// Its address.
    pub fn ipv6(&self) -> Ipv6Addr {
        self.addresses.v6
    }

    /// Its network namespace.
    pub fn netns(&self) -> &Path {
        &self.netns
    }

    /// The cgroup of everything on the node.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// The cgroup under which its pods run.
    pub fn kubepods(&self) -> PathBuf {
        self.cgroup.join("kubepods")
    }

    /// Directory for state and pins of its agent.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where programs of the node's own (not of its pods) run.
    pub fn place(&self) -> Place {
        Place { cgroup: self.cgroup.join("system"), netns: self.netns.clone(), logs: self.logs.clone() }
    }
}

/// A pod: a network namespace and a cgroup.
#[derive(Debug, Clone)]
pub struct Pod {
    spec: PodSpec,
    uid: String,
    addresses: Addresses,
    place: Place,
    link: String,
    peer_binary: PathBuf,
}

impl Pod {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// Its Kubernetes namespace.
    pub fn namespace(&self) -> &str {
        &self.spec.namespace
    }

    /// `NAMESPACE/NAME`.
    pub fn key(&self) -> String {
        format!("{}/{}", self.spec.namespace, self.spec.name)
    }

    /// The node on which it runs.
    pub fn node(&self) -> &str {
        &self.spec.node
    }

    /// Its service account.
    pub fn service_account(&self) -> &str {
        &self.spec.service_account
    }

    /// Its identity in trust domain `cluster.local`, without `spiffe://`.
    pub fn principal(&self) -> String {
        format!("cluster.local/ns/{}/sa/{}", self.spec.namespace, self.spec.service_account)
    }

    /// Its labels.
    pub fn labels(&self) -> impl Iterator<Item = (&str, &str)> {
        self.spec.labels.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Its annotations, without that of its namespace.
    pub fn annotations(&self) -> impl Iterator<Item = (&str, &str)> {
        self.spec.annotations.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Its uid.
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// Its address.
    pub fn ipv4(&self) -> Ipv4Addr {
        self.addresses.v4
    }

    /// Its address.
    pub fn ipv6(&self) -> Ipv6Addr {
        self.addresses.v6
    }

    /// Its network namespace.
    pub fn netns(&self) -> &Path {
        &self.place.netns
    }

    /// Name of the node's end of its link.
    pub fn link(&self) -> &str {
        &self.link
    }

    /// Where its processes run.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Starts `lab-peer` in the pod.
    pub fn spawn(&self, args: &[&str]) -> Result<Process> {
        let name =
            format!("{}-{}-{}", self.spec.name, self.spec.node, args.first().copied().unwrap_or("peer"));
        Process::spawn(&self.place, &name, &self.peer_binary, args)
    }

    /// Starts `lab-peer serve SERVICES…` in the pod and waits until it listens.
    pub fn serve(&self, services: &[&str]) -> Result<Process> {
        self.server(&[&["serve"], services].concat())
    }

    /// Starts the HTTP application in the pod, which answers as `version`, and waits until it listens.
    pub fn app(&self, version: &str, ports: &[u16]) -> Result<Process> {
        let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
        let ports: Vec<&str> = ports.iter().map(String::as_str).collect();
        self.server(&[&["app", "--version", version], ports.as_slice()].concat())
    }

    fn server(&self, args: &[&str]) -> Result<Process> {
        let mut server = self.spawn(args)?;
        server.wait_for_line(Duration::from_secs(60), |line| line.contains("listening").then_some(()))?;
        Ok(server)
    }

    /// Starts a relay in the pod that only copies, and waits until it listens.
    pub fn relay(&self, port: u16, to: &str) -> Result<Process> {
        self.server(&["relay", &port.to_string(), to])
    }

    /// Runs `lab-peer` in the pod to its end and gives the last line of its output, which is JSON.
    pub fn peer(&self, args: &[&str]) -> Result<Value> {
        let mut process = self.spawn(args)?;
        process.close_stdin();
        process.wait(CLIENT_LIMIT)?;
        let text = process.stdout();
        let Some(last) = text.lines().last() else { bail!("{}", process.report("printed nothing")) };
        serde_json::from_str(last).with_context(|| process.report("did not print JSON"))
    }

    /// Runs any program in the pod to its end and gives its standard output.
    pub fn exec(&self, program: &str, args: &[&str]) -> Result<String> {
        let mut process = Process::spawn(&self.place, program, Path::new(program), args)?;
        process.close_stdin();
        let status = process.wait(CLIENT_LIMIT)?;
        if !status.success() {
            bail!("{}", process.report(&format!("failed ({status})")));
        }
        Ok(process.stdout())
    }
}

/// A test bed. Everything that it made goes when it is dropped.
#[derive(Debug)]
pub struct Lab {
    id: LabId,
    nodes: Vec<Node>,
    pods: Vec<Pod>,
    outside: Pod,
    config: ConfigDir,
    binaries: PathBuf,
    /// Cleans up in our place when we die; waits for the end of its standard input.
    janitor: Child,
}

impl Lab {
    /// Makes nodes and pods. Their Node and Pod objects are in the configuration from the beginning;
    /// Namespace objects are the caller's to write.
    pub fn new(spec: &LabSpec) -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            bail!("network namespaces, cgroups and eBPF need root; run it with sudo");
        }
        sweep_stale();
        let id = LabId::next();
        let binaries = spec.binaries.clone().map_or_else(default_binaries, Ok)?;
        let peer_binary = binaries.join("lab-peer");
        if !peer_binary.exists() {
            bail!("{} is missing; build it with `cargo build -p weft-lab`", peer_binary.display());
        }
        fs::create_dir_all(id.run_dir().join("logs"))?;
        let janitor = start_janitor(&peer_binary, &id)?;
        // From here on the lab exists and its destructor cleans up, also when something below fails.
        let mut lab = Self {
            config: ConfigDir::create(&id.run_dir())?,
            nodes: Vec::new(),
            pods: Vec::new(),
            outside: outside(&id, &peer_binary),
            binaries,
            janitor,
            id,
        };
        lab.build(spec, &peer_binary)?;
        Ok(lab)
    }

    fn build(&mut self, spec: &LabSpec, peer_binary: &Path) -> Result<()> {
        if spec.for_bench {
            sysctl::set_for_a_while(&self.id.run_dir(), BENCH_HOST_SETTINGS)?;
        }
        let root = cgroup::mount_point()?.join(self.id.cgroup_name());
        for (index, name) in (0u8..).zip(&spec.nodes) {
            self.nodes.push(new_node(&self.id, &root, index, name));
        }
        for (number, pod) in (0u16..).zip(&spec.pods) {
            let index = spec.nodes.iter().position(|name| *name == pod.node);
            let index = index.with_context(|| format!("pod {} is on no node of the lab", pod.name))?;
            self.pods.push(new_pod(&self.id, &root, (u8::try_from(index)?, number), pod, peer_binary));
        }
        self.outside.place.cgroup = root.join("outside");
        for node in &self.nodes {
            fs::create_dir_all(node.place().cgroup)?;
            fs::create_dir_all(node.kubepods())?;
            fs::create_dir_all(&node.dir)?;
        }
        for pod in self.pods.iter().chain([&self.outside]) {
            fs::create_dir_all(&pod.place.cgroup)?;
        }
        self.build_network(spec)?;
        self.config.cluster(&self.nodes, &self.pods)
    }

    fn build_network(&self, spec: &LabSpec) -> Result<()> {
        let nodes: Vec<String> = spec.nodes.iter().map(|name| node_namespace(name)).collect();
        let index =
            |name: &str| spec.nodes.iter().position(|have| have == name).and_then(|at| u8::try_from(at).ok());
        let leaf = |pod: &Pod, what: String| Leaf {
            what,
            node: index(&pod.spec.node).unwrap_or(0),
            link: pod.link.clone(),
            addresses: pod.addresses,
        };
        let mut leaves: Vec<Leaf> =
            (0u16..).zip(&self.pods).map(|(number, pod)| leaf(pod, pod_namespace(number))).collect();
        leaves.push(leaf(&self.outside, "outside".to_owned()));
        topology::build(&self.id, &nodes, &leaves, spec.for_bench)
    }

    /// Its id.
    pub fn id(&self) -> &LabId {
        &self.id
    }

    /// The nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// A node by name.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.nodes
            .iter()
            .find(|node| node.name == name)
            .with_context(|| format!("the lab has no node {name}"))
    }

    /// The pods.
    pub fn pods(&self) -> &[Pod] {
        &self.pods
    }

    /// A pod by `NAMESPACE/NAME`.
    pub fn pod(&self, key: &str) -> Result<&Pod> {
        self.pods.iter().find(|pod| pod.key() == key).with_context(|| format!("the lab has no pod {key}"))
    }

    /// A client that is not in the mesh and no pod.
    pub fn outside(&self) -> &Pod {
        &self.outside
    }

    /// The configuration directory.
    pub fn config(&self) -> &ConfigDir {
        &self.config
    }

    /// Directory of state, sockets and logs.
    pub fn dir(&self) -> PathBuf {
        self.id.run_dir()
    }

    /// Directory of log files.
    pub fn logs(&self) -> PathBuf {
        self.id.run_dir().join("logs")
    }

    /// Path of `weft`.
    pub fn weft(&self) -> PathBuf {
        self.binaries.join("weft")
    }

    /// Removes everything now and reports what could not be removed.
    pub fn finish(self) -> Result<()> {
        let failures = remove_everything(&self.id);
        drop(self);
        if !failures.is_empty() {
            bail!("the lab could not be removed completely: {}", failures.join("; "));
        }
        Ok(())
    }

    fn print_logs(&self) {
        for entry in fs::read_dir(self.logs()).into_iter().flatten().flatten() {
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            if !text.is_empty() {
                eprintln!("--- {}\n{}", entry.file_name().to_string_lossy(), tail(&text));
            }
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.print_logs();
        }
        for failure in remove_everything(&self.id) {
            eprintln!("lab {}: {failure}", self.id);
        }
        drop(self.janitor.stdin.take());
        let _ = self.janitor.wait();
    }
}

fn node_namespace(name: &str) -> String {
    format!("node-{name}")
}

fn pod_namespace(number: u16) -> String {
    format!("pod-{number}")
}

fn new_node(id: &LabId, root: &Path, index: u8, name: &str) -> Node {
    Node {
        name: name.to_owned(),
        addresses: topology::node_addresses(index),
        netns: id.netns_path(&node_namespace(name)),
        cgroup: root.join(name),
        dir: id.run_dir().join(name),
        logs: id.run_dir().join("logs"),
    }
}

/// `at` is the number of the node and of the pod.
fn new_pod(id: &LabId, root: &Path, at: (u8, u16), spec: &PodSpec, peer_binary: &Path) -> Pod {
    let (node, number) = at;
    // Labs that run at the same time share the machine's processes, whose cgroups name the pod.
    let uid = format!("{:08x}-{:04x}-4000-8000-{number:012}", id.pid(), id.counter() & 0xffff);
    let container = format!("kubepods/burstable/pod{uid}/{number:064x}");
    Pod {
        addresses: topology::pod_addresses(node, number),
        place: Place {
            cgroup: root.join(&spec.node).join(container),
            netns: id.netns_path(&pod_namespace(number)),
            logs: id.run_dir().join("logs"),
        },
        uid,
        link: format!("veth{number}"),
        spec: spec.clone(),
        peer_binary: peer_binary.to_owned(),
    }
}

fn outside(id: &LabId, peer_binary: &Path) -> Pod {
    Pod {
        spec: PodSpec::new("", "outside", "outside"),
        uid: String::new(),
        addresses: topology::outside_addresses(),
        place: Place {
            cgroup: PathBuf::new(),
            netns: id.netns_path("outside"),
            logs: id.run_dir().join("logs"),
        },
        link: "outside".to_owned(),
        peer_binary: peer_binary.to_owned(),
    }
}

/// Cargo's directory of binaries: that of the running program, or its parent for a test.
pub(crate) fn default_binaries() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let dir = program.parent().context("a program lies in a directory")?;
    Ok(if dir.ends_with("deps") { dir.parent().unwrap_or(dir).to_owned() } else { dir.to_owned() })
}

pub(crate) fn start_janitor(peer_binary: &Path, id: &LabId) -> Result<Child> {
    use std::os::unix::process::CommandExt;
    Command::new(peer_binary)
        .args(["janitor", &id.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        // Signals for the owner's process group must not reach it.
        .process_group(0)
        .spawn()
        .context("the janitor of the lab cannot be started")
}
