//! A lab with one node, whose agent follows a real API server.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use serde_json::{Value, json};
use weft_kubernetes_tests::{ControlPlane, ControlPlaneOptions, etcd_store};
use weft_lab::{Agent, AgentOptions, Lab, LabSpec, Pod, PodSpec, Process, poll_until};

use crate::api::{Api, forward};
use crate::objects::{self, NAMESPACES, Names};

const PORT: u16 = 8080;
const MODES: &str = "/apis/security.istio.io/v1/namespaces/mesh/peerauthentications/default";
const MODE: &str = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: mesh}\nspec: {mtls: {mode: PERMISSIVE}}\n";

pub(crate) struct World {
    // Dropped in this order: clients before servers.
    api: Api,
    _server: Process,
    pub(crate) lab: Lab,
    plane: ControlPlane,
}

impl World {
    /// `None` when the servers are missing.
    pub(crate) fn start(binaries: &Path) -> Result<Option<Self>> {
        let Some(plane) = ControlPlane::start(ControlPlaneOptions::default())? else { return Ok(None) };
        let spec = LabSpec::new().node("a").binaries(binaries.to_owned());
        let lab = Lab::new(&spec.pod(PodSpec::new("a", "mesh", "server")))?;
        let address =
            plane.url().trim_start_matches("https://").parse().context("the address of the API server")?;
        forward(lab.node("a")?.netns(), address)?;
        let server = lab.pod("mesh/server")?.serve(&[&format!("small:{PORT}")])?;
        let api = Api::start(&plane)?;
        let world = Self { api, _server: server, lab, plane };
        world.base()?;
        Ok(Some(world))
    }

    /// The namespace `mesh` with the pod that really runs.
    fn base(&self) -> Result<()> {
        let crd = format!(
            "{}/../../deploy/crds/peerauthentications.security.istio.io.yaml",
            env!("CARGO_MANIFEST_DIR")
        );
        self.plane.apply(&fs::read_to_string(crd)?)?;
        let pod = self.lab.pod("mesh/server")?;
        let account = pod.service_account();
        self.plane.apply(&format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: mesh, labels: {{weft.dev/mesh: enabled}}}}\n---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {account}, namespace: mesh}}\n---\napiVersion: v1\nkind: Pod\nmetadata: {{name: server, namespace: mesh}}\nspec: {{nodeName: a, serviceAccountName: {account}, containers: [{{name: main, image: none}}]}}\n"
        ))?;
        self.set_status("mesh", "server", &[pod.ipv4().to_string(), pod.ipv6().to_string()])?;
        self.give_uid(pod)?;
        poll_until(Duration::from_secs(30), || self.plane.apply(MODE))
    }

    /// The API server chooses uids; the cgroup of the pod has the lab's.
    fn give_uid(&self, pod: &Pod) -> Result<()> {
        let path = "/registry/pods/mesh/server";
        let given =
            self.plane.kubectl(&["get", "pod", "-n=mesh", "server", "-o=jsonpath={.metadata.uid}"])?;
        let value = etcd_store::read(self.plane.etcd_address(), path)?;
        let mut value = value;
        let at = value.windows(given.len()).position(|part| part == given.as_bytes()).context("a uid")?;
        value.splice(at..at + given.len(), pod.uid().bytes());
        etcd_store::write(self.plane.etcd_address(), &[(path.to_owned(), value)])
    }

    fn set_status(&self, namespace: &str, pod: &str, addresses: &[String]) -> Result<()> {
        let ips: Vec<Value> = addresses.iter().map(|address| json!({ "ip": address })).collect();
        let status = json!({ "status": { "phase": "Running", "podIP": addresses.first(), "podIPs": ips,
            "startTime": "2026-01-01T00:00:00Z",
            "conditions": [{ "type": "Ready", "status": "True" }, { "type": "PodScheduled", "status": "True" }] } });
        let status = status.to_string();
        let args =
            ["patch", "pod", "-n", namespace, pod, "--subresource=status", "--type=merge", "-p", &status];
        self.plane.kubectl(&args).map(drop)
    }

    /// Puts very many pods and Services beside it.
    pub(crate) fn fill(&self, pods: usize, services: usize) -> Result<()> {
        let namespaces = (0..NAMESPACES).map(|number| {
            format!(
                "---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {}}}\n",
                objects::namespace(number)
            )
        });
        self.plane.apply(&namespaces.collect::<String>())?;
        self.plane.apply(&objects::templates())?;
        let Names { namespace, pod, .. } = Names::of(0);
        self.set_status(&namespace, &pod, &[objects::address(0)])?;
        eprintln!("kube: {pods} pods and {services} Services are written");
        objects::multiply(self.plane.etcd_address(), pods, services)
    }

    /// Starts the agent, and waits until it has read everything and taken the pod in.
    pub(crate) fn start_agent(&self) -> Result<Agent> {
        let options = AgentOptions {
            embedded_ca: true,
            kubeconfig: Some(self.plane.kubeconfig().to_owned()),
            ..AgentOptions::default()
        };
        let mut agent = self.lab.spawn_agent("a", &options)?;
        poll_until(Duration::from_secs(180), || match agent.process_mut().is_running() {
            true => agent.wait_ready(),
            false => Err(anyhow!("{}", agent.process().report("ended"))),
        })?;
        Ok(agent)
    }

    /// A client from outside that connects to the pod without pause.
    pub(crate) fn watch(&self) -> Result<Watcher> {
        let target = format!("{}:{PORT}", self.lab.pod("mesh/server")?.ipv4());
        let args = ["watch", &target, "--pause-us", "100", "--seconds", "170", "--timeout-ms", "1000"];
        Ok(Watcher { process: self.lab.outside().spawn(&args)?, read: 0 })
    }

    /// Whether plaintext is let in; when the API server had answered.
    pub(crate) fn set_mode(&self, mode: &str) -> Result<u64> {
        self.api.patch(MODES, &json!({ "spec": { "mtls": { "mode": mode } } }).to_string())
    }

    /// A pod elsewhere changes.
    pub(crate) fn change_pod(&self, number: usize) -> Result<()> {
        let Names { namespace, pod, .. } = Names::of(number % 1000);
        let turn = json!({ "metadata": { "labels": { "turn": format!("{}", number / 1000) } } });
        self.api.patch(&format!("/api/v1/namespaces/{namespace}/pods/{pod}"), &turn.to_string()).map(drop)
    }
}

/// A client that tells when the answer changes.
pub(crate) struct Watcher {
    process: Process,
    read: u64,
}

impl Watcher {
    /// When connections became allowed or refused, in nanoseconds since 1970.
    pub(crate) fn next(&mut self, allowed: bool, limit: Duration) -> Result<u64> {
        poll_until(limit, || {
            let (text, _) = self.process.stdout_from(self.read)?;
            for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
                self.read += u64::try_from(line.len())?;
                let event: Value = serde_json::from_str(line)?;
                let Some(outcome) = event.get("outcome").and_then(Value::as_str) else { continue };
                if (outcome == "ok") == allowed {
                    return event.get("at_ns").and_then(Value::as_u64).context("an event has a time");
                }
            }
            Err(anyhow!("the answer has not changed to {}", if allowed { "allowed" } else { "refused" }))
        })
    }
}
