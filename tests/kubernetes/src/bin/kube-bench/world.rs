//! A lab with one node, whose agent follows a real API server, and a controller.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use weft_kubernetes_tests::etcd_store::{self, Write};
use weft_kubernetes_tests::{ControlPlane, ControlPlaneOptions};
use weft_lab::{Agent, AgentOptions, Lab, LabSpec, Place, Pod, PodSpec, Process, Watcher, get, poll_until};

use crate::api::{Api, forward};
use crate::cni::Cni;
use crate::objects::{self, NAMESPACES, Templates};

const PORT: u16 = 8080;
/// Pods that are added.
const LATE: usize = 10;
const MESH: &str = "/api/v1/namespaces/mesh";
const MODES: &str = "/apis/security.istio.io/v1/namespaces/mesh/peerauthentications/default";
const MODE: &str = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: mesh}\nspec: {mtls: {mode: PERMISSIVE}}\n";
/// The names that the manifest's permissions are for.
pub(crate) const AGENT: &str = "system:serviceaccount:weft-system:weft-agent";
pub(crate) const CONTROLLER: &str = "system:serviceaccount:weft-system:weft-controller";
const GROUPS: &[&str] = &["system:serviceaccounts", "system:authenticated"];
/// Where the lab's agents tell whether they are ready, in the node's namespace.
const READINESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15021);
const PATIENCE: Duration = Duration::from_secs(240);

pub(crate) struct World {
    // Dropped in this order: clients before servers.
    api: Api,
    _server: Process,
    cni: Cni,
    pub(crate) lab: Lab,
    pub(crate) plane: ControlPlane,
}

impl World {
    /// `None` when the servers are missing.
    pub(crate) fn start(binaries: &Path) -> Result<Option<Self>> {
        let options = ControlPlaneOptions { audit: true, ..ControlPlaneOptions::default() };
        let Some(plane) = ControlPlane::start(options)? else { return Ok(None) };
        let spec = LabSpec::new().node("a").binaries(binaries.to_owned());
        let late = (0..LATE).map(|number| PodSpec::new("a", "mesh", &format!("late-{number}")));
        let lab = Lab::new(&late.fold(spec.pod(PodSpec::new("a", "mesh", "server")), LabSpec::pod))?;
        let address =
            plane.url().trim_start_matches("https://").parse().context("the address of the API server")?;
        forward(lab.node("a")?.netns(), address)?;
        let server = lab.pod("mesh/server")?.serve(&[&format!("small:{PORT}")])?;
        let api = Api::start(&plane)?;
        let cni = Cni::new(lab.dir(), &binaries.join("weft-cni"))?;
        let world = Self { api, _server: server, cni, lab, plane };
        world.install()?;
        world.mount_bpffs()?;
        world.base()?;
        Ok(Some(world))
    }

    /// The manifests, but for the webhook: nobody would answer at the address of its Service.
    fn install(&self) -> Result<()> {
        let deploy = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy");
        let manifest = fs::read_to_string(format!("{deploy}/weft.yaml"))?;
        let wanted = manifest.split("\n---\n").filter(|part| !part.contains("\nkind: ValidatingWebhook"));
        let mut all: Vec<String> = wanted.map(str::to_owned).collect();
        for definition in fs::read_dir(format!("{deploy}/crds"))? {
            all.push(fs::read_to_string(definition?.path())?);
        }
        self.plane.apply(&all.join("\n---\n"))
    }

    /// In a cluster the agent takes no other place for its pins than one that was there before.
    fn mount_bpffs(&self) -> Result<()> {
        let bpffs = self.lab.node("a")?.dir().join("bpf");
        fs::create_dir_all(&bpffs)?;
        let mounted = Command::new("mount").args(["-t", "bpf", "bpf"]).arg(&bpffs).status()?;
        ensure!(mounted.success(), "bpffs cannot be mounted");
        Ok(())
    }

    /// The namespace `mesh` with the pod that really runs, and those that will.
    fn base(&self) -> Result<()> {
        let account = self.lab.pod("mesh/server")?.service_account();
        self.plane.apply(&format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: a}}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: mesh, labels: {{weft.dev/mesh: enabled}}}}\n---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {account}, namespace: mesh}}\n"
        ))?;
        for pod in self.lab.pods() {
            self.plane.apply(&format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: {}, namespace: mesh}}\nspec: {{nodeName: a, serviceAccountName: {account}, containers: [{{name: main, image: none}}]}}\n",
                pod.name()
            ))?;
            self.give_uid(pod)?;
        }
        let server = self.lab.pod("mesh/server")?;
        let status = objects::pod_status(&[server.ipv4().to_string(), server.ipv6().to_string()], true);
        let status = status.to_string();
        let args =
            ["patch", "pod", "-n=mesh", "server", "--subresource=status", "--type=merge", "-p", &status];
        self.plane.kubectl(&args)?;
        poll_until(Duration::from_secs(30), || self.plane.apply(MODE))
    }

    /// The API server chooses uids; the cgroup of the pod has the lab's.
    fn give_uid(&self, pod: &Pod) -> Result<()> {
        let path = format!("/registry/pods/mesh/{}", pod.name());
        let given =
            self.plane.kubectl(&["get", "pod", "-n=mesh", pod.name(), "-o=jsonpath={.metadata.uid}"])?;
        let mut value = etcd_store::read(self.plane.etcd_address(), &path)?;
        let at = value.windows(given.len()).position(|part| part == given.as_bytes()).context("a uid")?;
        value.splice(at..at + given.len(), pod.uid().bytes());
        etcd_store::write(self.plane.etcd_address(), &[Write::Put(path, value)])
    }

    /// Puts very many pods and Services beside it.
    pub(crate) fn fill(&self, pods: usize, services: usize) -> Result<Templates> {
        let namespaces = (0..NAMESPACES).map(|number| {
            format!(
                "---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {}}}\n",
                objects::namespace(number)
            )
        });
        self.plane.apply(&namespaces.collect::<String>())?;
        let templates = Templates::make(&self.plane)?;
        eprintln!("kube: {pods} pods and {services} Services are written");
        templates.multiply(pods, services)?;
        Ok(templates)
    }

    /// Starts the agent, and waits until it has read everything and taken the pod in.
    pub(crate) fn start_agent(&self) -> Result<Agent> {
        let options = AgentOptions {
            embedded_ca: true,
            kubeconfig: Some(self.plane.kubeconfig_for(AGENT, GROUPS)),
            args: self.cni.flags(),
            ..AgentOptions::default()
        };
        let mut agent = self.lab.spawn_agent("a", &options)?;
        let (netns, address) = (self.lab.node("a")?.netns(), READINESS);
        wait_ready(agent.process_mut(), netns, address)?;
        Ok(agent)
    }

    /// Starts a controller, and waits until it has read everything.
    pub(crate) fn start_controller(&self) -> Result<Process> {
        let port = || -> Result<u16> { Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port()) };
        let readiness = port()?;
        let args = [
            "controller".to_owned(),
            format!("--kubeconfig={}", self.plane.kubeconfig_for(CONTROLLER, GROUPS).display()),
            format!("--admission-addr=127.0.0.1:{}", port()?),
            format!("--ca-listen=127.0.0.1:{}", port()?),
            format!("--metrics-addr=127.0.0.1:{}", port()?),
            format!("--readiness-addr=127.0.0.1:{readiness}"),
        ];
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let here = PathBuf::from("/proc/self/ns/net");
        let place = Place { netns: here.clone(), ..self.lab.node("a")?.place() };
        let mut process = Process::spawn(&place, "controller", &self.lab.weft(), &args)?;
        wait_ready(&mut process, &here, ([127, 0, 0, 1], readiness).into())?;
        Ok(process)
    }

    /// A client from outside that connects to the pod without pause.
    pub(crate) fn watch(&self) -> Result<Watcher> {
        Watcher::start(self.lab.outside(), &format!("{}:{PORT}", self.lab.pod("mesh/server")?.ipv4()))
    }

    /// Whether plaintext is let in; when the API server had answered.
    pub(crate) fn set_mode(&self, mode: &str) -> Result<u64> {
        self.api.patch(MODES, &json!({ "spec": { "mtls": { "mode": mode } } }).to_string())
    }

    /// Takes the pod in or out; when the API server had answered.
    pub(crate) fn set_member(&self, is_member: bool) -> Result<u64> {
        let value = if is_member { "enabled" } else { "disabled" };
        self.api.patch(MESH, &json!({ "metadata": { "labels": { "weft.dev/mesh": value } } }).to_string())
    }

    /// Adds all new pods, as a container runtime does, and takes them off again: how long each addition took, in
    /// milliseconds.
    pub(crate) fn add_pods(&self) -> Result<Vec<f64>> {
        let late = self.lab.pods().iter().filter(|pod| pod.name().starts_with("late-"));
        late.map(|pod| {
            let took = self.cni.call("ADD", pod)?;
            self.cni.call("DEL", pod)?;
            Ok(took)
        })
        .collect()
    }

    /// How many requests somebody has made so far.
    pub(crate) fn requests_of(&self, user: &str) -> usize {
        let log = self.plane.audit_log();
        let text = |entry: &serde_json::Value, path: &str| {
            entry.pointer(path).and_then(serde_json::Value::as_str).unwrap_or_default().to_owned()
        };
        let of_user = log.iter().filter(|entry| text(entry, "/user/username") == user);
        of_user.map(|entry| text(entry, "/auditID")).collect::<std::collections::HashSet<_>>().len()
    }
}

/// Waits until a process says that it is ready, or has ended.
fn wait_ready(process: &mut Process, netns: &Path, address: SocketAddr) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        let answer = get(netns, address, "/healthz/ready").map(|answer| (answer.status, answer.body));
        if answer.as_ref().is_ok_and(|(status, _)| *status == 200) {
            return Ok(());
        }
        if !process.is_running() || Instant::now() > end {
            bail!("{}: {answer:?}", process.report("is not ready"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
