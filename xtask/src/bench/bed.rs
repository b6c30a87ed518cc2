//! The machine under test: two nodes, a pair of pods in the mesh and the same pair outside of it.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use weft_lab::{Agent, Controller, Lab, LabSpec, Others, Pod, PodSpec, Process, mount_point};

use super::report::{Contender, Family};

pub(crate) const SINK: u16 = 1001;
pub(crate) const SMALL: u16 = 1002;
pub(crate) const HTTP: u16 = 1003;
pub(crate) const ECHO: u16 = 1004;

/// More foreign load than this, and a measurement is thrown away.
const FOREIGN_LIMIT: f64 = 0.06;
/// How often a measurement is repeated for the sake of quiet.
const REPEATS: usize = 3;
/// How long one look at the load of others takes.
const LOOK: Duration = Duration::from_millis(500);
/// How long a whole run waits for others to become quiet.
const PATIENCE: Duration = Duration::from_secs(300);

/// Where the server is, seen from the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Where {
    SameNode,
    CrossNode,
}

/// Two nodes with agents. Fields end in the order in which they stand: agents before the lab.
#[derive(Debug)]
pub(crate) struct Bed {
    pub(crate) agents: Vec<Agent>,
    _servers: Vec<Process>,
    _controller: Controller,
    pub(crate) lab: Lab,
    binaries: PathBuf,
    /// How long this run has waited for quiet.
    waited: Cell<Duration>,
}

/// What a measurement gave.
#[derive(Debug)]
pub(crate) struct Measured {
    /// What the client printed.
    pub(crate) report: Value,
    /// Processor seconds of all agents.
    pub(crate) agents_cpu: f64,
    /// Busy seconds of the whole machine.
    pub(crate) machine_busy: f64,
    /// Share of the machine that was used by others.
    pub(crate) foreign: f64,
}

impl Measured {
    /// A number of the client's report.
    pub(crate) fn number(&self, field: &str) -> Result<f64> {
        let value = self.report.get(field).and_then(Value::as_f64);
        value.with_context(|| format!("the client did not report {field}: {}", self.report))
    }
}

impl Bed {
    /// Everything on two nodes; `further` pods are added to namespace `mesh` on node b.
    pub(crate) fn new(binaries: &Path, further: &[String]) -> Result<Self> {
        let mut spec = LabSpec::new().node("a").node("b").for_bench().binaries(binaries.to_owned());
        for namespace in ["mesh", "plain"] {
            for (node, name) in [("a", "client"), ("a", "near"), ("b", "far")] {
                spec = spec.pod(PodSpec::new(node, namespace, name).service_account(name));
            }
        }
        let spec = further
            .iter()
            .fold(spec, |spec, name| spec.pod(PodSpec::new("b", "mesh", name).service_account("far")));
        let lab = Lab::new(&spec)?;
        lab.config().namespace("mesh", &[("weft.dev/mesh", "enabled")])?;
        lab.config().namespace("plain", &[])?;
        declare_ports(&lab, further)?;
        let servers = serve(&lab, further)?;
        let controller = lab.start_controller()?;
        let agents = vec![lab.start_agent("a")?, lab.start_agent("b")?];
        let bed = Self {
            agents,
            _servers: servers,
            _controller: controller,
            lab,
            binaries: binaries.to_owned(),
            waited: Cell::new(Duration::ZERO),
        };
        bed.agent(0)?.wait_enrolled(&["mesh/client", "mesh/near"])?;
        let far: Vec<String> =
            further.iter().chain([&"far".to_owned()]).map(|name| format!("mesh/{name}")).collect();
        bed.agent(1)?.wait_enrolled(&far.iter().map(String::as_str).collect::<Vec<_>>())?;
        bed.warm_up()?;
        Ok(bed)
    }

    pub(crate) fn agent(&self, index: usize) -> Result<&Agent> {
        self.agents.get(index).context("each node has its agent")
    }

    /// Every path once, so that certificates, tunnels and what ports speak are known.
    fn warm_up(&self) -> Result<()> {
        for location in [Where::SameNode, Where::CrossNode] {
            for family in [Family::V4, Family::V6] {
                for contender in Contender::BOTH {
                    let target = self.target(contender, location, family, SMALL)?;
                    weft_lab::poll_until(Duration::from_secs(10), || {
                        let report = self.client(contender)?.peer(&["load", "first", &target])?;
                        if report.get("ms").is_none() {
                            bail!("{} does not reach {target}: {report}", contender.name());
                        }
                        Ok(())
                    })?;
                }
            }
        }
        Ok(())
    }

    /// The client pod of a contender.
    pub(crate) fn client(&self, contender: Contender) -> Result<&Pod> {
        self.lab.pod(&format!("{}/client", namespace(contender)))
    }

    /// Address of the server of a contender.
    pub(crate) fn target(
        &self,
        contender: Contender,
        location: Where,
        family: Family,
        port: u16,
    ) -> Result<String> {
        let name = match location {
            Where::SameNode => "near",
            Where::CrossNode => "far",
        };
        let pod = self.lab.pod(&format!("{}/{name}", namespace(contender)))?;
        Ok(match family {
            Family::V4 => format!("{}:{port}", pod.ipv4()),
            Family::V6 => format!("[{}]:{port}", pod.ipv6()),
        })
    }

    /// Runs a client while others leave the machine alone; repeats it when they did not.
    pub(crate) fn measure(&self, contender: Contender, args: &[&str]) -> Result<Measured> {
        self.wait_for_quiet()?;
        let mut measured = self.measure_once(contender, args)?;
        for _ in 1..REPEATS {
            if measured.foreign <= FOREIGN_LIMIT {
                break;
            }
            self.wait_for_quiet()?;
            measured = self.measure_once(contender, args)?;
        }
        Ok(measured)
    }

    /// Waits until others use little of the machine, or the patience of the whole run is used up.
    fn wait_for_quiet(&self) -> Result<()> {
        while self.waited.get() < PATIENCE {
            let before = self.clocks()?;
            std::thread::sleep(LOOK);
            if self.foreign(&before, &self.clocks()?)? <= FOREIGN_LIMIT {
                break;
            }
            self.waited.set(self.waited.get() + LOOK);
        }
        Ok(())
    }

    /// Share of the machine that others used between two looks.
    fn foreign(&self, before: &Clocks, after: &Clocks) -> Result<f64> {
        let wall = after.at.duration_since(before.at).as_secs_f64();
        let processors = f64::from(u32::try_from(std::thread::available_parallelism()?.get())?);
        Ok(after.others.since(&before.others) / (wall * processors))
    }

    fn measure_once(&self, contender: Contender, args: &[&str]) -> Result<Measured> {
        let before = self.clocks()?;
        let report = self.client(contender)?.peer(args)?;
        let after = self.clocks()?;
        if report.get("error").is_some() {
            bail!("{} {}: {report}", contender.name(), args.join(" "));
        }
        let algorithm = report.get("congestion_control").and_then(Value::as_str).unwrap_or("unknown");
        if algorithm != "cubic" {
            bail!("the sockets use {algorithm}, not cubic: figures would mean nothing");
        }
        let foreign = self.foreign(&before, &after)?;
        Ok(Measured {
            report,
            agents_cpu: after.agents - before.agents,
            machine_busy: after.machine - before.machine,
            foreign,
        })
    }

    fn clocks(&self) -> Result<Clocks> {
        let agents =
            self.agents.iter().map(|agent| weft_lab::cpu_seconds(agent.pid())).sum::<Result<f64>>()?;
        let cgroup = mount_point()?.join(self.lab.id().cgroup_name());
        Ok(Clocks {
            agents,
            machine: weft_lab::machine_busy_seconds()?,
            others: Others::look(&cgroup)?,
            at: std::time::Instant::now(),
        })
    }

    /// A process for each processor that keeps it from halting, at the lowest priority.
    pub(crate) fn keep_awake(&self) -> Result<Vec<Process>> {
        let peer = self.binaries.join("lab-peer");
        let peer = peer.to_str().context("the path of lab-peer is UTF-8")?;
        let count = std::thread::available_parallelism()?.get();
        (0..count)
            .map(|_| {
                let place = self.lab.outside().place();
                Process::spawn(place, "spin", Path::new("chrt"), &["--idle", "0", peer, "spin"])
            })
            .collect()
    }
}

struct Clocks {
    agents: f64,
    machine: f64,
    others: Others,
    at: std::time::Instant,
}

fn namespace(contender: Contender) -> &'static str {
    match contender {
        Contender::Direct => "plain",
        Contender::Weft => "mesh",
    }
}

/// Declares the ports as TCP: they are L4 from the first connection on.
fn declare_ports(lab: &Lab, further: &[String]) -> Result<()> {
    let ports = [
        ("tcp-sink", SINK, SINK),
        ("tcp-small", SMALL, SMALL),
        ("tcp-http", HTTP, HTTP),
        ("tcp-echo", ECHO, ECHO),
    ];
    for (index, name) in ["near", "far"].into_iter().chain(further.iter().map(String::as_str)).enumerate() {
        lab.config().service(&format!("mesh/{name}"), &[&format!("172.20.1.{}", index + 1)], name, &ports)?;
    }
    Ok(())
}

fn serve(lab: &Lab, further: &[String]) -> Result<Vec<Process>> {
    let services =
        [format!("sink:{SINK}"), format!("small:{SMALL}"), format!("http:{HTTP}"), format!("echo:{ECHO}")];
    let all: Vec<&str> = services.iter().map(String::as_str).collect();
    let small = format!("small:{SMALL}");
    let mut servers = Vec::new();
    for pod in ["mesh/near", "mesh/far", "plain/near", "plain/far"] {
        servers.push(lab.pod(pod)?.serve(&all)?);
    }
    for name in further {
        servers.push(lab.pod(&format!("mesh/{name}"))?.serve(&[&small])?);
    }
    Ok(servers)
}
