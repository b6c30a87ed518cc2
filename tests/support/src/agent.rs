//! Agents and the controller, as they run in production.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;

use crate::command::output;
use crate::http::{Response, get};
use crate::lab::{Lab, Node};
use crate::metrics::Metrics;
use crate::process::Process;
use crate::wait::poll_until;

const METRICS: u16 = 15020;
const READINESS: u16 = 15021;
/// Added to the ports of an agent that is beside another one.
const APART: u16 = 100;
/// How long an agent may take to become ready, or a pod to be enrolled: generous, for loaded machines.
const PATIENCE: Duration = Duration::from_secs(60);

/// What may differ from one agent to another.
#[derive(Debug, Clone, Default)]
pub struct AgentOptions {
    /// Further arguments.
    pub args: Vec<String>,
    /// Directory of the configuration, when it is not the lab's.
    pub config: Option<PathBuf>,
    /// The API server from which the configuration comes, in place of a directory.
    pub kubeconfig: Option<PathBuf>,
    /// Binary, when it is not the lab's.
    pub binary: Option<PathBuf>,
    /// The agent is its own certificate authority and does without a controller.
    pub embedded_ca: bool,
    /// It runs beside the agent of the node, with pins, state, socket and ports of its own.
    pub apart: bool,
}

/// A running `weft agent`. Killed when dropped.
#[derive(Debug)]
pub struct Agent {
    process: Process,
    netns: PathBuf,
    admin_socket: PathBuf,
    binary: PathBuf,
    metrics: SocketAddr,
    readiness: SocketAddr,
}

/// A running `weft controller`. Killed when dropped.
#[derive(Debug)]
pub struct Controller {
    /// Its process.
    pub process: Process,
}

impl Lab {
    /// Directory of the CSR API's sockets.
    pub fn ca_sockets(&self) -> PathBuf {
        self.dir().join("ca")
    }

    /// Starts the controller and waits for the sockets of all nodes.
    pub fn start_controller(&self) -> Result<Controller> {
        let node = self.nodes().first().context("a controller needs a node to run on")?;
        let sockets = self.ca_sockets();
        let args = [
            "controller",
            "--config",
            text(self.config().path())?,
            "--state-dir",
            text(&self.dir().join("controller"))?,
            "--socket-dir",
            text(&sockets)?,
        ]
        .map(str::to_owned);
        let mut process = spawn_weft(node, "controller", &self.weft(), &args)?;
        poll_until(PATIENCE, || {
            let missing =
                self.nodes().iter().find(|node| !sockets.join(format!("{}.sock", node.name())).exists());
            match missing {
                None => Ok(()),
                Some(node) => {
                    Err(anyhow!("no CA socket for node {}: {}", node.name(), process.report("is not ready")))
                }
            }
        })?;
        if !process.is_running() {
            bail!("{}", process.report("ended"));
        }
        Ok(Controller { process })
    }

    /// Starts the agent of a node and waits until it is ready.
    pub fn start_agent(&self, node: &str) -> Result<Agent> {
        let mut agent = self.spawn_agent(node, &AgentOptions::default())?;
        agent.wait_ready()?;
        Ok(agent)
    }

    /// Runs `weft cleanup` for a node whose agent has ended: its pods are out of the mesh then.
    pub fn clean_up_node(&self, node: &str) -> Result<()> {
        let node = self.node(node)?;
        let mut args = vec!["cleanup".to_owned()];
        args.extend(datapath_flags(node, false)?);
        let mut process = spawn_weft(node, "cleanup", &self.weft(), &args)?;
        let status = process.wait(PATIENCE)?;
        if !status.success() {
            bail!("{}", process.report(&format!("ended with {status}")));
        }
        Ok(())
    }

    /// Starts the agent of a node and does not wait.
    pub fn spawn_agent(&self, node: &str, options: &AgentOptions) -> Result<Agent> {
        let node = self.node(node)?;
        let binary = options.binary.clone().unwrap_or_else(|| self.weft());
        let dir = own_dir(node, options.apart);
        let admin_socket = dir.join("admin.sock");
        let port = |usual: u16| if options.apart { usual + APART } else { usual };
        let at = |usual: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port(usual)));
        let (metrics, readiness) = (at(METRICS), at(READINESS));
        let config = options.config.as_deref().unwrap_or(self.config().path());
        let mut args = vec!["agent".to_owned()];
        args.extend(datapath_flags(node, options.apart)?);
        let mut flag = |name: &str, value: &str| args.extend([name.to_owned(), value.to_owned()]);
        match &options.kubeconfig {
            Some(kubeconfig) => flag("--kubeconfig", text(kubeconfig)?),
            None => flag("--config", text(config)?),
        }
        flag("--state-dir", text(&dir.join("state"))?);
        flag("--metrics-addr", &metrics.to_string());
        flag("--readiness-addr", &readiness.to_string());
        flag("--admin-socket", text(&admin_socket)?);
        if !options.embedded_ca {
            flag("--ca-socket", text(&self.ca_sockets().join(format!("{}.sock", node.name())))?);
        }
        args.extend(options.embedded_ca.then(|| "--embedded-ca".to_owned()));
        args.extend(options.args.iter().cloned());
        let name = format!("agent-{}{}", node.name(), if options.apart { "-apart" } else { "" });
        let process = spawn_weft(node, &name, &binary, &args)?;
        let netns = node.netns().to_owned();
        Ok(Agent { process, netns, admin_socket, binary, metrics, readiness })
    }
}

/// Where the node's data path lives: what `agent` and `cleanup` must agree on.
fn datapath_flags(node: &Node, apart: bool) -> Result<Vec<String>> {
    let mut flags = vec!["--node".to_owned(), node.name().to_owned()];
    let paths = [
        ("--cgroup", node.kubepods()),
        ("--agent-cgroup", node.cgroup().join(if apart { "agent-apart" } else { "agent" })),
        ("--pin-dir", own_dir(node, apart).join("bpf")),
    ];
    for (flag, path) in paths {
        flags.extend([flag.to_owned(), text(&path)?.to_owned()]);
    }
    Ok(flags)
}

/// Where an agent keeps what is its own.
fn own_dir(node: &Node, apart: bool) -> PathBuf {
    if apart { node.dir().join("apart") } else { node.dir().to_owned() }
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}

fn spawn_weft(node: &Node, name: &str, binary: &Path, args: &[String]) -> Result<Process> {
    if !binary.exists() {
        bail!("{} is missing; build it with `cargo build -p weft`", binary.display());
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    Process::spawn(&node.place(), name, binary, &args)
}

impl Agent {
    /// Its process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Its process, for signals and waiting.
    pub fn process_mut(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The admin socket.
    pub fn admin_socket(&self) -> &Path {
        &self.admin_socket
    }

    /// What the readiness endpoint says.
    pub fn readiness(&self) -> Result<Response> {
        get(&self.netns, self.readiness, "/healthz/ready")
    }

    /// Waits until it says that it is ready.
    pub fn wait_ready(&mut self) -> Result<()> {
        poll_until(PATIENCE, || {
            let response = self.readiness();
            match response {
                Ok(Response { status: 200, .. }) => Ok(()),
                Ok(other) => Err(anyhow!("the agent is not ready ({}): {}", other.status, other.body)),
                Err(e) => Err(e.context(self.process.report("does not answer"))),
            }
        })
    }

    /// The metrics page.
    pub fn metrics(&self) -> Result<Metrics> {
        let page = get(&self.netns, self.metrics, "/metrics")?;
        if page.status != 200 {
            bail!("GET /metrics was answered with {}: {}", page.status, page.body);
        }
        Ok(Metrics::parse(&page.body))
    }

    /// Waits until a metric (summed over the series with these labels) reaches a value.
    pub fn wait_for_metric(&self, name: &str, labels: &[(&str, &str)], at_least: f64) -> Result<f64> {
        poll_until(PATIENCE, || {
            let value = self.metrics()?.value(name, labels);
            if value >= at_least {
                return Ok(value);
            }
            Err(anyhow!("{name}{labels:?} is {value}, not {at_least}"))
        })
    }

    /// Runs `weft ARGS… --socket … -o json` against it.
    pub fn ask(&self, args: &[&str]) -> Result<Value> {
        let common = ["--socket", text(&self.admin_socket)?, "-o", "json"];
        let answer = output(text(&self.binary)?, &[args, &common].concat())?;
        serde_json::from_str(&answer).with_context(|| format!("`weft {}` did not print JSON", args.join(" ")))
    }

    /// `weft status -o json`.
    pub fn status(&self) -> Result<Value> {
        self.ask(&["status"])
    }

    /// The state of a pod (`NAMESPACE/NAME`) in `weft status`.
    pub fn state_of(&self, pod: &str) -> Result<String> {
        let status = self.status()?;
        let workloads =
            status.get("workloads").and_then(Value::as_array).context("status has no workloads")?;
        let found =
            workloads.iter().find(|workload| workload.get("pod").and_then(Value::as_str) == Some(pod));
        let Some(workload) = found else { return Ok("unknown".to_owned()) };
        let state = workload.get("state").and_then(Value::as_str).context("a workload has no state")?;
        Ok(state.to_owned())
    }

    /// Waits until the pods are enrolled.
    pub fn wait_enrolled(&self, pods: &[&str]) -> Result<()> {
        pods.iter().try_for_each(|pod| self.wait_state(pod, |state| state == "enrolled"))
    }

    /// Waits until `weft status` gives a state of the pod that is wanted (`unknown` when it is not listed).
    pub fn wait_state(&self, pod: &str, mut wanted: impl FnMut(&str) -> bool) -> Result<()> {
        poll_until(PATIENCE, || {
            let state = self.state_of(pod)?;
            if wanted(&state) {
                Ok(())
            } else {
                Err(anyhow!("{}", self.process.report(&format!("says that {pod} is {state}"))))
            }
        })
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// SIGTERM, and waits for the end.
    pub fn stop(&mut self, limit: Duration) -> Result<()> {
        self.process.signal(rustix::process::Signal::TERM)?;
        let status = self.process.wait(limit)?;
        if !status.success() {
            bail!("{}", self.process.report(&format!("ended with {status} after SIGTERM")));
        }
        Ok(())
    }
}
