//! The machine under test: two nodes, a pair of pods in the mesh and the same pair outside of it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use weft_lab::{Agent, Controller, Lab, LabSpec, Pod, PodSpec, Process};

use super::envoy::{Hop, Protocol, Starter, Tls, at};
use super::meter::{Measured, Meter, keep_awake};
use super::report::{Contender, Family};

pub(crate) const SINK: u16 = 1001;
pub(crate) const SMALL: u16 = 1002;
pub(crate) const HTTP: u16 = 1003;
pub(crate) const ECHO: u16 = 1004;
/// What the ports of Envoys are above those of the applications for which they stand.
const EGRESS: u16 = 100;
const INGRESS: u16 = 200;

/// Where the server is, seen from the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Where {
    SameNode,
    CrossNode,
}

/// Two nodes with agents, and the same hop by Envoys. Fields end in the order in which they stand: agents before the lab.
#[derive(Debug)]
pub(crate) struct Bed {
    pub(crate) agents: Vec<Agent>,
    /// The client's and the far server's, with mTLS between them.
    envoys: [Process; 2],
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
        for (node, name) in [("a", "client"), ("b", "far")] {
            spec = spec.pod(PodSpec::new(node, "envoy", name).service_account(name));
        }
        let spec = further
            .iter()
            .fold(spec, |spec, name| spec.pod(PodSpec::new("b", "mesh", name).service_account("far")));
        let lab = Lab::new(&spec)?;
        lab.config().namespace("mesh", &[("weft.dev/mesh", "enabled")])?;
        for namespace in ["plain", "envoy"] {
            lab.config().namespace(namespace, &[])?;
        }
        declare_ports(&lab, further)?;
        let servers = serve(&lab, further)?;
        let controller = lab.start_controller()?;
        let agents = vec![lab.start_agent("a")?, lab.start_agent("b")?];
        let (envoys, meter) = (start_envoys(&lab)?, Meter::new(&lab)?);
        let bed = Self {
            agents,
            envoys,
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
                for contender in contenders(location, family) {
                    let target = self.target(*contender, location, family, SMALL)?;
                    weft_lab::poll_until(Duration::from_secs(10), || {
                        let report = self.client(*contender)?.peer(&["load", "first", &target])?;
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

    /// Address of the server of a contender: of Envoys, where the client's own takes connections for it.
    pub(crate) fn target(
        &self,
        contender: Contender,
        location: Where,
        family: Family,
        port: u16,
    ) -> Result<String> {
        if contender == Contender::Envoy {
            return Ok(format!("127.0.0.1:{}", port + EGRESS));
        }
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
        let serving: Vec<u32> = match contender {
            Contender::Direct | Contender::Relays | Contender::Weft => {
                self.agents.iter().map(Agent::pid).collect()
            }
            Contender::Envoy => self.envoys.iter().map(Process::pid).collect(),
        };
        self.meter.measure(self.client(contender)?, &serving, args)
    }

    /// A process for each processor that keeps it from halting, at the lowest priority.
    pub(crate) fn keep_awake(&self) -> Result<Vec<Process>> {
        keep_awake(&self.lab, &self.binaries)
    }
}

fn namespace(contender: Contender) -> &'static str {
    match contender {
        Contender::Direct | Contender::Relays => "plain",
        Contender::Weft => "mesh",
        Contender::Envoy => "envoy",
    }
}

/// Who is measured there.
pub(crate) fn contenders(location: Where, family: Family) -> &'static [Contender] {
    match (location, family) {
        (Where::CrossNode, Family::V4) => &[Contender::Direct, Contender::Weft, Contender::Envoy],
        (Where::SameNode, _) | (_, Family::V6) => &[Contender::Direct, Contender::Weft],
    }
}

fn start_envoys(lab: &Lab) -> Result<[Process; 2]> {
    let (starter, tls) = (Starter::new(lab)?, Tls::new(&lab.dir())?);
    let (client, far) = (lab.pod("envoy/client")?, lab.pod("envoy/far")?);
    let ports = [SINK, SMALL, HTTP, ECHO];
    let egress = ports.map(|port| Hop::egress(port + EGRESS, Protocol::Tcp, at(far, port + INGRESS), &tls));
    let ingress = ports.map(|port| Hop::ingress(port + INGRESS, Protocol::Tcp, port, &tls));
    Ok([starter.start(client, "egress", &egress)?, starter.start(far, "ingress", &ingress)?])
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
    for pod in ["mesh/near", "mesh/far", "plain/near", "plain/far", "envoy/far"] {
        servers.push(lab.pod(pod)?.serve(&all)?);
    }
    for name in further {
        servers.push(lab.pod(&format!("mesh/{name}"))?.serve(&[&small])?);
    }
    Ok(servers)
}
