//! How pods are found that no annotation leads to: by the CNI plugin's word, and by their processes.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests fail as tests do"
)]

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::{Path as FilePath, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use weft_lab::{AgentOptions, LabSpec, Place, Pod, PodSpec, Process};
use weft_netns_tests::puppet::{Connect, Role};
use weft_netns_tests::{Family, Mesh, Path, eventually, yaml};

/// The agent looks every five seconds for pods that have gone.
const LOOKS_AROUND: Duration = Duration::from_secs(7);
const PUPPET: &str = env!("CARGO_BIN_EXE_netns-puppet");

/// How much the API shows of a pod.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shows {
    /// The scheduler has bound it.
    Bound,
    /// The kubelet has told its addresses.
    Addresses,
}

/// A pod as the API server shows it: where its namespace is, is not said.
fn pod_yaml(pod: &Pod, shows: Shows, labels: &str) -> String {
    let mut text = format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {}\n  namespace: {}\n  uid: {}\n  labels: {{app: {}{labels}}}\n  \
         annotations: {{weft.dev/traffic: l7}}\nspec:\n  nodeName: {}\n  serviceAccountName: {}\n  containers:\n  - name: main\n    image: lab\n",
        pod.name(),
        pod.namespace(),
        pod.uid(),
        pod.name(),
        pod.node(),
        pod.service_account(),
    );
    if shows == Shows::Addresses {
        write!(text, "status:\n  podIPs:\n  - ip: {}\n  - ip: \"{}\"\n", pod.ipv4(), pod.ipv6()).unwrap();
    }
    text + "---\n"
}

fn spec() -> LabSpec {
    let pod = |node: &str, name: &str| PodSpec::new(node, "shop", name).service_account(name);
    LabSpec::new().node("a").pod(pod("a", "client")).pod(pod("a", "near")).pod(pod("a", "late"))
}

fn write_pods(mesh: &Mesh, pods: &[&str]) {
    let text: String = pods.iter().map(|name| pod_yaml(mesh.pod(name), Shows::Addresses, "")).collect();
    mesh.write("cluster.yaml", &text);
}

#[test]
fn running_pods_are_found_by_their_processes() {
    let Some(mut mesh) = Mesh::prepare(PUPPET, &spec()) else { return };
    write_pods(&mesh, &["client", "near", "late"]);
    mesh.start_controller(&[]);
    // A guest in the namespace of another pod, longer there than the pod's own processes.
    let (client, near) = (mesh.pod("client").place().clone(), mesh.pod("near").place().clone());
    let visit = Place { cgroup: client.cgroup.clone(), netns: near.netns.clone(), logs: client.logs.clone() };
    let guest = Process::spawn(&visit, "guest", FilePath::new("sleep"), &["600"]).unwrap();
    let (server, _) = mesh.serve("near", Role::Greet);
    let mut puppet = mesh.puppet("client");
    mesh.start_agent_with("a", &AgentOptions::default());
    mesh.wait_enrolled("a", &["client", "near"]);
    mesh.connect_by(&mut puppet, &Connect::to(mesh.target(Family::V4, "near")), Path::Proxied);
    eventually("nothing of it runs yet, and that is said", || {
        let (state, reason) = mesh.state("a", "shop/late");
        state == "enrolling" && reason.contains("no process")
    });

    let first = mesh.puppet("late");
    mesh.wait_enrolled("a", &["late"]);
    // The process by which it was found may end while another one goes on.
    let second = mesh.puppet("late");
    drop(first);
    let lost = weft_lab::eventually(LOOKS_AROUND, "the pod is lost", || {
        mesh.state("a", "shop/late").0 != "enrolled"
    });
    assert!(lost.is_err(), "{:?}", mesh.state("a", "shop/late"));

    // A new agent finds them all again.
    mesh.agent_mut("a").kill();
    mesh.start_agent_with("a", &AgentOptions::default());
    mesh.wait_enrolled("a", &["client", "near", "late"]);
    drop((guest, server, second));
}

/// The node's side of the plugin.
struct Cni {
    dir: PathBuf,
    plugin: PathBuf,
}

const LIST: &str = "{ \"cniVersion\":\"1.0.0\",\"name\":\"lab\",\n  \"plugins\":[{\"type\":\"bridge\"},{\"type\":\"portmap\"}] }\n";

impl Cni {
    fn new(mesh: &Mesh) -> Self {
        let dir = mesh.lab().dir().join("cni");
        for name in ["bin", "net.d"] {
            fs::create_dir_all(dir.join(name)).unwrap();
        }
        fs::write(dir.join("net.d/10-lab.conflist"), LIST).unwrap();
        let plugin = mesh.lab().weft().with_file_name("weft-cni");
        assert!(plugin.exists(), "{} is missing; build it with `cargo build -p weft-cni`", plugin.display());
        Self { dir, plugin }
    }

    fn options(&self) -> AgentOptions {
        let path = |name: &str| self.dir.join(name).display().to_string();
        let pairs = [
            ("--cni-bin-dir", path("bin")),
            ("--cni-conf-dir", path("net.d")),
            ("--cni-socket", path("cni.sock")),
            ("--cni-plugin", self.plugin.display().to_string()),
        ];
        let args = pairs.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect();
        AgentOptions { args, ..AgentOptions::default() }
    }

    fn list(&self) -> String {
        fs::read_to_string(self.dir.join("net.d/10-lab.conflist")).unwrap()
    }

    /// Our entry, as the agent wrote it.
    fn entry(&self) -> Option<Value> {
        let list: Value = serde_json::from_str(&self.list()).ok()?;
        let plugins = list["plugins"].as_array()?;
        plugins.last().filter(|last| last["type"] == "weft-cni").cloned()
    }

    /// Calls the plugin as a container runtime does.
    fn begin(&self, command: &str, sandbox: &Sandbox<'_>) -> Child {
        let mut config = self.entry().expect("the plugin is chained");
        config["cniVersion"] = "1.0.0".into();
        config["name"] = "lab".into();
        config["timeoutSeconds"] = sandbox.patience.into();
        config["prevResult"] = sandbox.result();
        let mut child = Command::new(self.dir.join("bin/weft-cni"))
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", sandbox.id)
            .env("CNI_NETNS", sandbox.pod.netns())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", self.dir.join("bin"))
            .env(
                "CNI_ARGS",
                format!(
                    "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
                    sandbox.namespace,
                    sandbox.pod.name(),
                    sandbox.id,
                    sandbox.pod.uid()
                ),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
        child
    }

    fn call(&self, command: &str, sandbox: &Sandbox<'_>) -> Output {
        self.begin(command, sandbox).wait_with_output().unwrap()
    }
}

struct Sandbox<'a> {
    id: &'a str,
    namespace: &'a str,
    pod: &'a Pod,
    patience: u64,
}

impl Sandbox<'_> {
    fn result(&self) -> Value {
        serde_json::json!({
            "cniVersion": "1.0.0",
            "interfaces": [{"name": "br0"}, {"name": "eth0", "sandbox": self.pod.netns()}],
            "ips": [
                {"interface": 1, "address": format!("{}/24", self.pod.ipv4())},
                {"interface": 1, "address": format!("{}/64", self.pod.ipv6())},
            ],
        })
    }
}

fn succeeded(sandbox: &Sandbox<'_>, output: &Output) {
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), sandbox.result(), "prevResult is unchanged");
}

fn refused(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!output.status.success(), "{text}");
    let error: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(error["code"], 11, "{text}");
    text
}

#[test]
fn a_new_pod_is_enrolled_before_it_begins() {
    let Some(mut mesh) = Mesh::prepare(PUPPET, &spec()) else { return };
    write_pods(&mesh, &["client", "near"]);
    mesh.start_controller(&[]);
    let (server, _) = mesh.serve("near", Role::Greet);
    let cni = Cni::new(&mesh);
    mesh.start_agent_with("a", &cni.options());
    mesh.wait_enrolled("a", &["near"]);
    eventually("the plugin is installed", || cni.entry().is_some() && cni.dir.join("bin/weft-cni").exists());

    mesh.write("strict.yaml", &yaml::peer_authentication("near", "STRICT"));

    // The runtime is quicker than the agent's watch of pods.
    let late = mesh.pod("late").clone();
    let sandbox = Sandbox { id: "c1", namespace: "shop", pod: &late, patience: 30 };
    let begun = cni.begin("ADD", &sandbox);
    mesh.write("late.yaml", &pod_yaml(&late, Shows::Bound, ""));
    succeeded(&sandbox, &begun.wait_with_output().unwrap());
    assert_eq!(mesh.state("a", "shop/late").0, "enrolled");

    // Its very first connection is captured, though the API shows no address of it yet.
    let mut puppet = mesh.puppet("late");
    mesh.connect_by(&mut puppet, &Connect::to(mesh.target(Family::V4, "near")), Path::Proxied);
    let connection =
        mesh.connect_by(&mut puppet, &Connect::to(mesh.target(Family::V6, "near")), Path::Proxied);

    // The kubelet tells the addresses: nothing changes.
    mesh.write("late.yaml", &pod_yaml(&late, Shows::Addresses, ", told: 'yes'"));
    eventually("the agent knows the addresses", || {
        let status = mesh.status("a").to_string();
        status.contains(&late.ipv4().to_string())
    });
    assert_eq!(mesh.state("a", "shop/late").0, "enrolled");
    assert!(mesh.reaches(&mut puppet, mesh.target(Family::V4, "near")));
    puppet.close(connection);
    let log = mesh.agent("a").process().stderr();
    assert!(!log.contains("has other addresses"), "{log}");
    drop((server, puppet));
}

#[test]
fn without_an_agent_the_mesh_is_closed_and_the_rest_open() {
    let Some(mut mesh) = Mesh::prepare(PUPPET, &spec()) else { return };
    write_pods(&mesh, &["client"]);
    mesh.start_controller(&[]);
    let cni = Cni::new(&mesh);
    mesh.start_agent_with("a", &cni.options());
    eventually("the plugin is installed with rules", || {
        cni.entry().is_some() && cni.dir.join("bin/weft-cni.rules").exists()
    });
    let late = mesh.pod("late").clone();
    let sandbox = |namespace| Sandbox { id: "c1", namespace, pod: &late, patience: 1 };
    let patient = Sandbox { patience: 30, ..sandbox("shop") };
    mesh.write("late.yaml", &pod_yaml(&late, Shows::Bound, ""));
    succeeded(&patient, &cni.call("ADD", &patient));

    // Hostile neighbours of the socket do not keep the plugin from its answer.
    let silent: Vec<_> = (0..20).map(|_| UnixStream::connect(cni.dir.join("cni.sock")).unwrap()).collect();
    for garbage in
        [&b"\xff\xfe\n"[..], b"{}\n", b"{\"version\":1,\"command\":\"add\",\"containerId\":\"../../x\"}\n"]
    {
        UnixStream::connect(cni.dir.join("cni.sock")).unwrap().write_all(garbage).unwrap();
    }
    succeeded(&patient, &cni.call("ADD", &patient));
    drop(silent);

    mesh.agent_mut("a").kill();
    let text = refused(&cni.call("ADD", &sandbox("shop")));
    assert!(text.contains("no Weft agent answers"), "{text}");
    for open in ["elsewhere", "weft-system", "kube-system"] {
        succeeded(&sandbox(open), &cni.call("ADD", &sandbox(open)));
    }
    assert!(cni.call("DEL", &sandbox("shop")).status.success());
    assert!(cni.call("CHECK", &sandbox("shop")).status.success());

    // A new agent was told nothing, and has it all the same, though no process of the pod runs.
    mesh.start_agent_with("a", &cni.options());
    mesh.wait_enrolled("a", &["late"]);
    assert!(cni.call("DEL", &patient).status.success());

    // Another plugin's installer writes its list anew.
    fs::write(cni.dir.join("net.d/10-lab.conflist"), LIST.replace("bridge", "macvlan")).unwrap();
    eventually("the plugin is chained again", || cni.entry().is_some());
    assert!(cni.list().contains("macvlan"));

    mesh.agent_mut("a").kill();
    let paths = ["bin", "net.d"].map(|name| cni.dir.join(name).display().to_string());
    let pins = mesh.lab().node("a").unwrap().dir().join("bpf").display().to_string();
    let args = ["cleanup", "--pin-dir", &pins, "--cni-bin-dir", &paths[0], "--cni-conf-dir", &paths[1]];
    let cleaned = mesh.weft("a", &args);
    assert!(cleaned.status.success(), "{}", String::from_utf8_lossy(&cleaned.stdout));
    assert_eq!(cni.list(), LIST.replace("bridge", "macvlan"), "byte for byte as it was");
    assert_eq!(fs::read_dir(cni.dir.join("bin")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(cni.dir.join("net.d")).unwrap().count(), 1);
}
