//! The machine under test: two nodes, a pair of pods in the mesh and the same pair outside of it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use weft_lab::{Agent, Controller, Lab, LabSpec, Pod, PodSpec, Process};

use super::meter::{Measured, Meter, keep_awake};
use super::report::{Contender, Family};

pub(crate) const SINK: u16 = 1001;
pub(crate) const SMALL: u16 = 1002;
pub(crate) const HTTP: u16 = 1003;
pub(crate) const ECHO: u16 = 1004;

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
    meter: Meter,
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
        let meter = Meter::new(&lab)?;
        let bed = Self {
            agents,
            _servers: servers,
            _controller: controller,
            lab,
            binaries: binaries.to_owned(),
            meter,
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
        let agents: Vec<u32> = self.agents.iter().map(Agent::pid).collect();
        self.meter.measure(self.client(contender)?, &agents, args)
    }

    /// A process for each processor that keeps it from halting, at the lowest priority.
    pub(crate) fn keep_awake(&self) -> Result<Vec<Process>> {
        keep_awake(&self.lab, &self.binaries)
    }
}

fn namespace(contender: Contender) -> &'static str {
    match contender {
        Contender::Direct => "plain",
        Contender::Weft | Contender::Envoy => "mesh",
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
